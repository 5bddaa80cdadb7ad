"""Rows of table `facet`, and the numbers of symbols' names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from uuid import UUID

from portal.model.message import ActorKind, Message
from portal.stores.facets import FacetRow, facet_row, hundredths, pack
from portal.stores.shared.session import Session

_RULE = f"{ActorKind.RULE}:"


def facet_rows(session: Session, messages: Sequence[Message]) -> list[FacetRow]:
    """Return the rows of these messages."""
    ids = [message.id for message in messages]
    recipients, rules = defaultdict[UUID, set[str]](set), defaultdict[UUID, set[str]](set)
    for id, recipient in session.many("select message_id, recipient from delivery where message_id in :ids", ids=ids):
        recipients[id].add(recipient)
    ruled = "select message_id, actor from event where message_id in :ids and actor like 'rule:%'"
    for id, actor in session.many(ruled, ids=ids):
        rules[id].add(actor.removeprefix(_RULE))
    return [facet_row(message, sorted(recipients[message.id]), sorted(rules[message.id])) for message in messages]


def mark_stale(session: Session, ids: Sequence[UUID]) -> None:
    """Note that the rows of these messages, if there are any, are out of date. Waits for no other transaction."""
    insert = "insert into stale_facet (message_id) values (:message_id)"
    session.execute_all(insert, [{"message_id": id} for id in ids])


def packed_symbols(session: Session, rows: Sequence[FacetRow]) -> list[bytes]:
    """Return column ``facet.symbols`` of these rows; new names get numbers."""
    numbers = _numbers(session, {name for row in rows for name, _ in row.symbols})
    return [pack((numbers[name], hundredths(score)) for name, score in row.symbols) for row in rows]


def _numbers(session: Session, names: Iterable[str]) -> dict[str, int]:
    wanted = sorted(names)  # in order, so that two transactions do not wait for each other
    select = "select name, id from symbol_name where name in :names"
    found: dict[str, int] = dict(session.many(select, names=wanted)) if wanted else {}
    missing = [{"name": name} for name in wanted if name not in found]
    if missing:
        session.execute_all("insert into symbol_name (name) values (:name) on conflict (name) do nothing", missing)
        found = dict(session.many(select, names=wanted))
    return found
