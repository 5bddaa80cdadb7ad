"""Search over all deliveries by facets, and the index for it. Each store adds how it finds the rows.

Two cursors say what is indexed. New messages are looked for from `_UNTIL` on, and some minutes before it. `_BELOW` goes
down from the time at which the index was begun, or from now after `recheck`, until there are no older messages.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, NamedTuple
from uuid import UUID

from portal.model.message import DeliveryId, Filter, State, first_id, held_at
from portal.stores import facets
from portal.stores.contracts.facets import COUNTED_MAX, GROUPED_MAX, Facets
from portal.stores.facets import Hit
from portal.stores.records import Group, GroupBy, Groups, Page, Total
from portal.stores.search import EXAMINED_MAX, Terms, has_texts, needs_texts
from portal.stores.shared.rows import Rows
from portal.stores.shared.session import Engine, Session

_PAGE_SECONDS, _COUNT_SECONDS, _GROUPS_SECONDS = 2.0, 3.0, 6.0  # for one call
_CATCH_UP = 5  # transactions of the index before a search
_OVERLAP = timedelta(minutes=3)  # an `add` takes seconds, and clocks of hosts differ
_UNTIL, _BELOW, _COMPLETE = "facets.until", "facets.below", "facets.complete"
_LOWEST, _HIGHEST = UUID(int=0), UUID(int=(1 << 128) - 1)
_COMPARED_AT_ONCE = 2_000  # if texts are compared one by one
_GROUPED_AT_ONCE = 20_000


class Batch(NamedTuple):
    """Hits, newest first."""

    hits: list[Hit]
    lowest: DeliveryId  # that was examined
    examined: int


class SqlFacets(Facets):
    """See `Facets`."""

    _indexed_at_once = 500

    def __init__(self, engine: Engine, rows: Rows) -> None:
        self._engine = engine
        self._rows = rows

    # ---- searches

    def page(self, wanted: Filter, limit: int, before: DeliveryId | None = None) -> Page:
        deadline = monotonic() + _PAGE_SECONDS
        found: list[DeliveryId] = []
        next: DeliveryId | None = None
        examined = 0
        at_once = max(limit + 1, _COMPARED_AT_ONCE if needs_texts(wanted) else 0)
        with self._searching(wanted, before, at_once) as (session, batches):
            for batch in batches:
                found += [hit.key for hit in batch.hits]
                examined += batch.examined
                if len(found) > limit:
                    next = found[limit - 1]
                    break
                if examined >= EXAMINED_MAX or monotonic() > deadline:
                    next = batch.lowest
                    break
            keys = set(found[:limit])
            clause = "where d.message_id in :ids order by d.message_id desc, d.number desc"
            ids = list({key.message_id for key in keys})
            deliveries = self._rows.deliveries(session, clause, ids=ids) if ids else []
        return Page(tuple(delivery for delivery in deliveries if delivery.key in keys), next)

    def count(self, wanted: Filter, at_most: int = COUNTED_MAX) -> Total:
        deadline = monotonic() + _COUNT_SECONDS
        count = 0
        with self._searching(wanted, None, at_most + 1) as (_, batches):
            for batch in batches:
                count += len(batch.hits)
                if count > at_most or monotonic() > deadline:
                    return Total(min(count, at_most), exact=False)
        return Total(count, exact=True)

    def groups(self, wanted: Filter, by: GroupBy, at_most: int = GROUPED_MAX) -> Groups:
        deadline = monotonic() + _GROUPS_SECONDS
        counts = _Counts(by)
        count, exact = 0, True
        oldest: Hit | None = None
        with self._searching(wanted, None, min(at_most + 1, _GROUPED_AT_ONCE)) as (session, batches):
            for hits, _, _ in batches:
                exact = count + len(hits) <= at_most and monotonic() <= deadline
                counted = hits[: at_most - count]
                counts.add(counted)
                count += len(counted)
                oldest = counted[-1] if counted else oldest
                if not exact:
                    break
            groups = counts.groups(session)
        return Groups(groups, Total(count, exact), held_at(oldest.key.message_id) if oldest else None)

    @contextmanager
    def _searching(
        self, wanted: Filter, before: DeliveryId | None, at_once: int
    ) -> Iterator[tuple[Session, Iterator[Batch]]]:
        """Yield a session and batches of hits; ``at_once`` is how many one statement may return."""
        terms = facets.wanted_terms(wanted)
        transactions = 0
        while terms is not None and transactions < _CATCH_UP and self._index_new():
            transactions += 1
        with self._engine.reading(snapshot=True) as session:
            symbols = _numbers(session, wanted.symbols)
            if terms is None or not all(symbols):
                yield session, iter(())
                return
            with closing(self._hits(session, wanted, terms, before, at_once)) as batches:
                yield session, _matching(wanted, symbols, batches)

    @abstractmethod
    def _hits(
        self, session: Session, wanted: Filter, terms: Terms, before: DeliveryId | None, at_once: int
    ) -> Generator[Batch]:
        """Yield the hits before this key that have these terms and `conditions`, at most ``at_once`` by a statement."""

    def knows_symbol(self, name: str) -> bool:
        with self._engine.reading() as session:
            [numbers] = _numbers(session, [name])
        return bool(numbers)

    # ---- the index

    def index(self) -> bool:
        return self._index_new() or self._index_older()

    def _index_new(self) -> bool:
        """Index some new messages. Return whether there may be more."""
        with self._engine.reading() as session:
            until = _cursor(session, _UNTIL)
            if until is not None and not self._new(session, until):
                return False  # nothing to write: so it is for most searches
        with self._engine.writing(durable=False) as session:
            session.lock("facets")
            now = first_id(datetime.now(UTC))
            until = _cursor(session, _UNTIL)
            if until is None:
                _set(session, {_UNTIL: now, _BELOW: now})
                return True
            ids = self._new(session, until)
            self._rows.index_facets(session, ids)
            more = len(ids) == self._indexed_at_once
            _set(session, {_UNTIL: max(until, ids[-1] if more else now)})
        return more

    def _new(self, session: Session, until: UUID) -> list[UUID]:
        since = first_id(held_at(until) - _OVERLAP)
        return self._rows.without_facets(session, since, _HIGHEST, self._indexed_at_once)

    def _index_older(self) -> bool:
        """Index some messages below the cursor. Return whether there may be more."""
        with self._engine.reading() as session:
            if _cursor(session, _BELOW) in (None, _LOWEST):
                return False
        with self._engine.writing(durable=False) as session:
            session.lock("facets")
            below = _cursor(session, _BELOW) or _LOWEST
            rows = session.many(
                "select id from message where id < :below order by id desc limit :limit",
                below=below,
                limit=self._indexed_at_once,
            )
            if rows:
                self._rows.index_facets(session, self._rows.without_facets(session, rows[-1][0], below, len(rows)))
            more = len(rows) == self._indexed_at_once
            _set(session, {_BELOW: rows[-1][0]} if more else {_BELOW: _LOWEST, _COMPLETE: _LOWEST})
        return more

    def recheck(self) -> None:
        with self._engine.writing(durable=False) as session:
            session.lock("facets")
            if _cursor(session, _UNTIL) is not None:
                _set(session, {_BELOW: first_id(datetime.now(UTC))})

    def is_complete(self) -> bool:
        with self._engine.reading() as session:
            return _cursor(session, _COMPLETE) is not None


class _Counts:
    """Counts hits by what they have in common."""

    def __init__(self, by: GroupBy) -> None:
        self._by = by
        self._counts = Counter[Any]()
        self._points = Counter[int]()  # hundredths, by the number of a symbol's name

    def add(self, hits: Sequence[Hit]) -> None:
        """Count some more."""
        match self._by:
            case GroupBy.SYMBOL:
                for hit in hits:
                    numbers = facets.unpack(hit.symbols)
                    self._counts.update(numbers[::2])
                    for number, points in zip(numbers[::2], numbers[1::2], strict=True):
                        if points:
                            self._points[number] += points
            case GroupBy.SENDER_DOMAIN:
                self._counts.update(hit.sender_domain for hit in hits)
            case GroupBy.DOMAIN:
                self._counts.update(hit.recipient.rpartition("@")[2] for hit in hits)
            case GroupBy.HOUR:
                self._counts.update(f"{held_at(hit.key.message_id):%Y-%m-%dT%H}" for hit in hits)

    def groups(self, session: Session) -> tuple[Group, ...]:
        """Return the groups in the order of `Facets.groups`."""
        counts: Mapping[Any, int] = self._counts
        if self._by is not GroupBy.SYMBOL:
            groups = [Group(name, count) for name, count in counts.items()]
        else:
            names = (
                session.many("select id, name from symbol_name where id in :ids", ids=list(counts)) if counts else ()
            )
            groups = [Group(name, counts[number], self._points[number] / 100) for number, name in names]
        if self._by is GroupBy.HOUR:
            return tuple(sorted(groups, key=lambda group: group.name, reverse=True))
        return tuple(sorted(groups, key=lambda group: (-group.points, -group.count, group.name)))


def _matching(wanted: Filter, symbols: Sequence[set[int]], batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield batches without the hits that only the index, which is not exact, finds."""
    for hits, lowest, examined in batches:
        if symbols:  # a message whose verdict was replaced is indexed under its earlier symbols as well
            hits = [
                hit for hit in hits if not any(each.isdisjoint(facets.unpack(hit.symbols)[::2]) for each in symbols)
            ]
        if needs_texts(wanted):
            hits = [hit for hit in hits if has_texts(wanted, hit.subject, hit.envelope_sender, hit.header_from)]
        yield Batch(hits, lowest, examined)


def conditions(wanted: Filter, before: DeliveryId | None) -> tuple[list[str], dict[str, Any]]:
    """Return SQL conditions on a delivery ``d`` and its message's facets ``f``, and their parameters."""
    where, values = list[str](), dict[str, Any]()

    def add(condition: str, **parameters: Any) -> None:
        where.append(condition)
        values.update(parameters)

    if wanted.recipient is not None:
        add("d.recipient in :recipients", recipients=[wanted.recipient, *wanted.also])
    if wanted.domains is not None:
        patterns = {f"domain_{n}": f"%@{_escaped(name)}" for n, name in enumerate(sorted(wanted.domains))}
        likes = " or ".join(f"d.recipient like :{name} escape '\\'" for name in patterns)
        add(f"({likes})", **patterns)
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


def columns(wanted: Filter) -> str:
    """Return the columns that `batch_of` takes; ``m`` is only needed if `needs_texts`."""
    texts = "m.subject, m.envelope_sender, m.header_from" if needs_texts(wanted) else "'', '', ''"
    return f"d.message_id, d.number, d.recipient, f.sender_domain, f.symbols, {texts}"


def batch_of(rows: Sequence[Sequence[Any]], lowest: DeliveryId | None) -> Batch:
    """Return the hits of rows of `columns`; ``lowest`` None: they are what was examined."""
    hits = [Hit(DeliveryId(id, number), *values) for id, number, *values in rows]
    return Batch(hits, lowest or hits[-1].key, len(hits))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _numbers(session: Session, names: Sequence[str]) -> list[set[int]]:
    """Return the numbers of each of these symbols in all its spellings."""
    folded = [name[: facets.SYMBOL_CHARS].lower() for name in names]
    if not folded:
        return []
    rows = session.many("select id, lower(name) from symbol_name where lower(name) in :names", names=folded)
    return [{number for number, found in rows if found == name} for name in folded]


def _cursor(session: Session, name: str) -> UUID | None:
    row = session.one("select value from setting where name = :name", name=name)
    return UUID(row[0]) if row else None


def _set(session: Session, cursors: Mapping[str, UUID]) -> None:
    upsert = (
        "insert into setting (name, value) values (:name, :value)"
        " on conflict (name) do update set value = excluded.value"
    )
    session.execute_all(upsert, [{"name": name, "value": str(value)} for name, value in cursors.items()])
