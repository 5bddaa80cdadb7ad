"""Conditions and columns of the statements that search by facets in both stores, and the hits of their rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from portal.model.message import DeliveryId, Filter, State
from portal.stores import facets
from portal.stores.facets import Hit
from portal.stores.search import has_texts, needs_texts
from portal.stores.shared.patterns import of_domains

Symbols = Sequence[set[int]]  # the numbers of each wanted symbol, in all its spellings


class Batch(NamedTuple):
    """Hits in order."""

    hits: list[Hit]
    lowest: DeliveryId  # the last one that was examined
    examined: int
    score: float = 0.0  # of the last one, in a list by score


def conditions(wanted: Filter, before: DeliveryId | None) -> tuple[list[str], dict[str, Any]]:
    """Return SQL conditions on a delivery ``d`` and its message's facets ``f``, and their parameters."""
    where, values = list[str](), dict[str, Any]()

    def add(condition: str, **parameters: Any) -> None:
        where.append(condition)
        values.update(parameters)

    if wanted.recipient is not None:
        add("d.recipient in :recipients", recipients=[wanted.recipient, *wanted.also])
    if wanted.domains is not None:
        condition, patterns = of_domains("d.recipient", wanted.domains)
        add(condition, **patterns)
    if wanted.states:
        add("d.state in :states", states=sorted(state.value for state in wanted.states))
    if State.HELD not in wanted.states and wanted.states:
        add("d.state <> 'held'")  # the condition of a small index
    if State.EXPIRED not in wanted.states:
        add("d.state <> 'expired'")
    if wanted.rule is not None:
        ruled = "select 1 from event e where e.message_id = d.message_id and e.number = d.number and e.actor = :rule"
        add(f"exists ({ruled})", rule=f"rule:{wanted.rule}")
    if wanted.tiers:
        add("f.tier in :tiers", tiers=sorted(tier.value for tier in wanted.tiers))
    if wanted.actions:
        add("f.action in :actions", actions=sorted(wanted.actions))
    if wanted.sender_domain is not None:
        add("f.sender_domain = :sender_domain", sender_domain=wanted.sender_domain)
    for name in ("score_min", "size_min"):
        if (low := getattr(wanted, name)) is not None:
            add(f"f.{_COLUMN[name]} >= :{name}", **{name: low})
    for name in ("score_max", "size_max"):
        if (high := getattr(wanted, name)) is not None:
            add(f"f.{_COLUMN[name]} <= :{name}", **{name: high})
    if before is not None:
        add("(d.message_id, d.number) < (:key_id, :key_number)", key_id=before.message_id, key_number=before.number)
    return where, values


_COLUMN = {"score_min": "score", "score_max": "score", "size_min": "size_bytes", "size_max": "size_bytes"}


def columns(wanted: Filter, *, with_facts: bool = False) -> str:
    """Return the columns that `batch_of` takes; ``m`` is only needed if `needs_texts`."""
    names = ["d.message_id", "d.number", "f.score", "f.symbols" if wanted.symbols or with_facts else "''"]
    if needs_texts(wanted):
        names += ["m.subject", "m.envelope_sender", "m.header_from", "m.attachments"]
    elif with_facts:
        names += ["''"] * 4
    if with_facts:
        names += ["d.recipient", "f.sender_domain", "d.state", "f.tier"]
    return ", ".join(names)


def batch_by_score(rows: Sequence[Sequence[Any]]) -> Batch:
    """Return the hits of rows of `columns` in the order of the score."""
    batch = batch_of(rows, None)
    return batch._replace(score=batch.hits[-1].score or 0.0)


def batch_of(rows: Sequence[Sequence[Any]], lowest: DeliveryId | None) -> Batch:
    """Return the hits of rows of `columns`; ``lowest`` None: they are what was examined."""
    hits = hits_of(rows)
    return Batch(hits, lowest or hits[-1].key, len(hits))


def hits_of(rows: Sequence[Sequence[Any]]) -> list[Hit]:
    """Return the hits of rows of `columns`."""
    return [Hit(DeliveryId(id, number), *values) for id, number, *values in rows]


def checked(wanted: Filter, symbols: Symbols, hits: list[Hit]) -> list[Hit]:
    """Return the hits without those that only the index, which is not exact, finds."""
    if symbols:
        hits = [hit for hit in hits if has_symbols(hit.symbols, symbols)]
    if needs_texts(wanted):
        hits = [hit for hit in hits if has_texts(wanted, hit.texts)]
    return hits


def has_symbols(packed: bytes, symbols: Symbols) -> bool:
    """Return whether a message has these symbols: one with a new verdict is indexed under its earlier ones as well."""
    numbers = facets.unpack(packed)[::2]
    return not any(each.isdisjoint(numbers) for each in symbols)
