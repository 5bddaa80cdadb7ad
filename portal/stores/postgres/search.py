"""Lists in PostgreSQL: a recipient's own, and what operators look for. See `search` for what is bounded how.

The index of terms is a GIN over a `tsvector` for each day, asked one day after the other: what a statement may read is
a day's hits, or that day, whatever the planner thinks of it. Terms are written as a `tsquery` here; text search
configurations, parsers and dictionaries have no part in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, LiteralString
from uuid import UUID

from portal.model.message import Delivery, DeliveryId, Filter, Reader, State, first_id
from portal.stores import search
from portal.stores.postgres import days, rows
from portal.stores.postgres.database import Connection, Database
from portal.stores.postgres.session import PostgresSession, text
from portal.stores.records import Page
from portal.stores.search import BATCH, Terms

Batches = Iterator[tuple[list[Delivery], DeliveryId, int]]

_CHAINED = 200  # terms of which one is wanted, one behind the other
_NEWEST_FIRST: LiteralString = "order by d.message_id desc, d.number desc limit %s"


def find_page(database: Database, wanted: Filter, limit: int, before: DeliveryId | None) -> Page:
    """See `Deliveries.search`."""
    terms = search.wanted_terms(wanted)
    if terms is None:
        return Page((), None)
    with database.transaction() as connection:
        if terms:
            batches = _by_terms(connection, wanted, terms, before)
        else:
            batches = _walk(connection, wanted, BATCH if search.needs_filtering(wanted) else limit + 1, before)
        return search.gather(wanted, limit, batches)


def _walk(connection: Connection, wanted: Filter, at_most: int, before: DeliveryId | None) -> Batches:
    """Deliveries in order, without the index of terms."""
    more = True
    while more:
        found, deliveries = _deliveries(connection, wanted, None, before, at_most)
        more = len(found) == at_most
        if found:
            before = DeliveryId(found[-1][0], found[-1][1])
            yield deliveries, before, len(found)


def _by_terms(connection: Connection, wanted: Filter, terms: Terms, before: DeliveryId | None) -> Batches:
    """Deliveries of the messages that the index of terms names."""
    for ids in _messages(connection, wanted, terms, before):
        looked, more = len(ids), True
        while more:
            found, deliveries = _deliveries(connection, wanted, ids, before, BATCH)
            more = len(found) == BATCH
            # All that is above the last row was looked at, or above the last message if there are no more rows.
            before = DeliveryId(*(found[-1][:2] if more else (ids[-1], 0)))
            yield deliveries, before, looked
            looked = 0


def _messages(connection: Connection, wanted: Filter, terms: Terms, before: DeliveryId | None) -> Iterator[list[UUID]]:
    query = " & ".join(_any(list(map(_quoted, group))) for group in terms)
    for day in sorted(days.days_of(connection, "message"), reverse=True):
        low, high = days.bounds(day)
        if wanted.since is not None:
            low = max(low, first_id(wanted.since))
        if wanted.until is not None:
            high = min(high, first_id(wanted.until))
        if before is not None:
            high = min(high, UUID(int=before[0].int + 1))  # its further deliveries may be wanted
        while low < high:
            found = connection.execute(
                "select m.id from message m where m.terms @@ %s::tsquery and m.id >= %s and m.id < %s"
                " order by m.id desc limit %s",
                [query, low, high, BATCH],
            ).fetchall()
            if found:
                yield [id for (id,) in found]
            if len(found) < BATCH:
                break
            high = found[-1][0]


def _deliveries(
    connection: Connection, wanted: Filter, ids: list[UUID] | None, before: DeliveryId | None, at_most: int
) -> tuple[list[tuple[Any, ...]], list[Delivery]]:
    """Rows in order, and the deliveries they are."""
    where: list[LiteralString] = []
    values: list[Any] = []
    if wanted.also and ids is not None:
        where.append("d.recipient = any(%s)")
        values.append([text(each) for each in (wanted.recipient or "", *wanted.also)])
    elif wanted.recipient is not None and not wanted.also:
        where.append("d.recipient = %s")
        values.append(text(wanted.recipient))
    if wanted.states:
        where.append("d.state = any(%s)")
        values.append(sorted(state.value for state in wanted.states))
        if State.HELD not in wanted.states:
            where.append("d.state <> 'held'")  # so that the small partial index fits
    if wanted.since is not None:
        where.append("d.message_id >= %s")
        values.append(first_id(wanted.since))
    if wanted.until is not None:
        where.append("d.message_id < %s")
        values.append(first_id(wanted.until))
    if ids is not None:
        where.append("d.message_id = any(%s)")
        values.append(ids)
    if before is not None:
        # The first condition says nothing new, but it is the one by which newer days are left out.
        where.append("d.message_id <= %s and (d.message_id, d.number) < (%s, %s)")
        values += [before[0], *before]
    conditions = " and ".join(where)
    if wanted.also and ids is None:
        reader = Reader(wanted.recipient or "", (wanted.recipient or "", *wanted.also))
        found = rows.merged(connection, reader, conditions or "true", values, "message_id desc, number desc", at_most)
    else:
        clause: LiteralString = ("where " + conditions + " ") if where else ""
        found = rows.delivery_rows(connection, clause + _NEWEST_FIRST, [*values, at_most])
    return found, rows.with_messages(PostgresSession(connection), found)


def _any(terms: list[str]) -> str:
    """A query for one of these, halved into brackets: the server goes as deep into a chain as that is long, and ends at
    some thousands (max_stack_depth)."""
    if len(terms) <= _CHAINED:
        return f"({' | '.join(terms)})"
    half = len(terms) // 2
    return f"({_any(terms[:half])} | {_any(terms[half:])})"


def _quoted(term: str) -> str:
    # Terms hold letters, digits, marks and "=" alone; nothing of them can end the quotes.
    return f"'{term[:-1]}':*" if term.endswith("*") else f"'{term}'"
