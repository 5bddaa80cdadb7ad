"""Pages of deliveries in PostgreSQL, for a recipient's own list and for operators. `search` documents the limits.

The index of terms is a GIN over a `tsvector` in each partition. A statement queries the newest partition, the next
statement the two before, then four, and so on. A frequent word thus fills its page from one partition, and a rare one
needs few round trips. Whatever plan a statement gets, it reads all hits of its partitions, or these partitions, at
most. Terms are written as a `tsquery` here; the text search configurations, parsers and dictionaries are not used.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, LiteralString
from uuid import UUID

from portal.model.message import Delivery, DeliveryId, Filter, State, first_id
from portal.model.ranking import Likeness
from portal.stores import search
from portal.stores.postgres import partitions, rows
from portal.stores.postgres.database import Connection, Database
from portal.stores.postgres.session import PostgresSession, rows_of, text
from portal.stores.records import Page
from portal.stores.search import BATCH, Terms
from portal.stores.shared.rows import DELIVERY
from portal.stores.shared.session import Row
from portal.stores.span import Span

_CHAINED = 200  # alternatives in one chain of a tsquery
LOWEST, HIGHEST = UUID(int=0), UUID(int=(1 << 128) - 1)
_DELIVERY: LiteralString = ", ".join(DELIVERY)
# Of rows of `first_with` and `search_of`: the number of those examined, whether it is found, the id of its message,
# and what `rows.joined` takes.
_FOUND: LiteralString = (
    "place, is_found, (d).message_id, " + ", ".join(f"(d).{column}" for column in DELIVERY) + ", " + rows.MESSAGE_OF
)
_NEWEST_FIRST: LiteralString = "order by d.message_id desc, d.number desc limit %s"


def find_page(database: Database, wanted: Filter, limit: int, span: Span) -> Page:
    """See `Deliveries.search`."""
    terms = search.wanted_terms(wanted)
    if terms is None:
        return Page((), None)
    with database.transaction() as connection, closing(_batches(connection, wanted, terms, limit, span)) as batches:
        return search.gather(wanted, limit, span, batches)


def _batches(connection: Connection, wanted: Filter, terms: Terms, limit: int, span: Span) -> Generator[search.Batch]:
    checked_here = search.needs_filtering(wanted) or search.needs_texts(wanted)
    at_most = BATCH if checked_here else limit + 1
    if wanted.recipient is not None:
        at_most = min(max(at_most, 10 * limit), search.EXAMINED_MAX) if checked_here else at_most
        yield from _batches_of_reader(connection, wanted, terms, at_most, span)
    elif terms:
        yield from _batches_by_terms(connection, wanted, terms, span.high)
    else:
        yield from _batches_in_order(connection, wanted, at_most, span.high)


def _batches_of_reader(
    connection: Connection, wanted: Filter, terms: Terms, at_most: int, span: Span
) -> Iterator[search.Batch]:
    """Yield the deliveries of a recipient's search: ``at_most``, and then all others in one statement.

    So a page waits for two statements at most, whatever is checked here and not by the database.
    """
    examined, more = 0, True
    while more and examined < search.EXAMINED_MAX:
        if terms:
            found = _with_terms(connection, wanted, terms, span, examined, at_most)
            more = len(found) == at_most or (len(found) > 0 and not found[-1][1])
        else:
            found = connection.execute(
                f"select {_FOUND} from first_with(%s::tsquery, %s::text[], %s::text[], %s, %s, %s, %s, %s, %s)",
                [None, *_of_reader(wanted, span), at_most],
            ).fetchall()
            more = len(found) > 0 and found[-1][0] == at_most
        if found:
            place, is_found, *last = found[-1][:4]
            # A search by terms examines messages, and ends with the last one if that is not found.
            span = span.after(DeliveryId(*last)) if is_found or not terms else span.after_message(last[0])
            yield (rows.joined(rows_of([row[3:]])[0]) for row in found if row[1]), span.cursor, place
            examined += place
        at_most = search.EXAMINED_MAX - examined


def _with_terms(
    connection: Connection, wanted: Filter, terms: Terms, span: Span, examined: int, at_most: int
) -> list[Row]:
    """Return rows of `search_of` for a call that has examined so many messages or deliveries."""
    words = tuple(group for group in terms if not group[0].startswith("="))
    compared = max(0, search.NEWEST_MAX - examined) if search.begins_with_newest(wanted) else 0
    return connection.execute(
        f"select {_FOUND} from search_of(%s::tsquery, %s::tsquery, %s::text[], %s::text[],"
        " %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [
            *(tsquery(terms), tsquery(words) if compared else None, *_of_reader(wanted, span)),
            *(
                first_id(datetime.now(UTC)),
                compared,
                search.NEWEST_FIRST,
                BATCH,
                search.EXAMINED_MAX - examined,
                at_most,
            ),
        ],
    ).fetchall()


def _batches_in_order(
    connection: Connection, wanted: Filter, at_most: int, before: DeliveryId | None
) -> Iterator[search.Batch]:
    """Yield deliveries of all recipients in order, at most ``at_most`` in a batch, without the index of terms."""
    more = True
    while more:
        found, deliveries = _deliveries(connection, wanted, None, before, at_most)
        more = len(found) == at_most
        if found:
            before = DeliveryId(found[-1][0], found[-1][1])
            yield deliveries, before, len(found)


def _batches_by_terms(
    connection: Connection, wanted: Filter, terms: Terms, before: DeliveryId | None
) -> Iterator[search.Batch]:
    """Yield the deliveries of all recipients of the messages that the index of terms finds."""
    for ids in _message_ids(connection, wanted, terms, before):
        examined, more = len(ids), True
        while more:
            found, deliveries = _deliveries(connection, wanted, ids, before, BATCH)
            more = len(found) == BATCH
            # Examined so far: down to the last row, or down to the last message if there are no more rows.
            before = DeliveryId(*(found[-1][:2] if more else (ids[-1], 0)))
            yield deliveries, before, examined
            examined = 0


def _message_ids(
    connection: Connection, wanted: Filter, terms: Terms, before: DeliveryId | None
) -> Iterator[list[UUID]]:
    """Yield batches of the ids that have these terms, newest first."""
    query = tsquery(terms)
    since = first_id(wanted.since) if wanted.since is not None else LOWEST
    until = first_id(wanted.until) if wanted.until is not None else HIGHEST
    if before is not None:
        until = min(until, UUID(int=before[0].int + 1))  # the page may end between two deliveries of a message
    for low, high in ranges(connection, "message", since, until):
        found = BATCH
        while found == BATCH and low < high:
            rows = connection.execute(
                "select m.id from message m where m.terms @@ %s::tsquery and m.id >= %s and m.id < %s"
                " order by m.id desc limit %s",
                [query, low, high, BATCH],
            ).fetchall()
            found = len(rows)
            if rows:
                yield [id for (id,) in rows]
                high = rows[-1][0]


def ranges(connection: Connection, table: str, since: UUID, until: UUID) -> Iterator[tuple[UUID, UUID]]:
    """Yield ranges of ids, newest first: of one partition, then of two, four and so on. Raises psycopg.Error."""
    existing = partitions.partitions_of(connection, table)
    starts = [each.low for each in reversed(existing) if each.low < until and since < each.high]
    # Partitions created in advance have mail only if a clock was ahead. They are queried with the one of now.
    now = first_id(datetime.now(UTC))
    ahead, count = sum(start > now for start in starts), 1
    while starts:
        asked, starts = starts[: ahead + count], starts[ahead + count :]
        ahead, count = 0, 2 * count
        low = max(asked[-1], since)
        yield low, until
        until = min(until, low)


def tsquery(terms: Terms) -> str:
    """Return a tsquery for messages that have one term of each group."""
    return " & ".join(_any(list(map(_quoted, group))) for group in terms)


def _deliveries(
    connection: Connection, wanted: Filter, ids: list[UUID] | None, before: DeliveryId | None, at_most: int
) -> tuple[list[tuple[Any, ...]], list[Delivery]]:
    """Return (rows, their deliveries) of all recipients, newest first, at most ``at_most``.

    There are fewer deliveries than rows if a message was just purged.
    """
    where: list[LiteralString] = ["d.state <> 'expired'"]
    values: list[Any] = []
    if wanted.states:
        where.append("d.state = any(%s)")
        values.append(sorted(state.value for state in wanted.states))
        if State.HELD not in wanted.states:
            where.append("d.state <> 'held'")  # so that the planner can use the small partial index
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
        # The second condition implies the first, but only the first lets the planner skip newer partitions.
        where.append("d.message_id <= %s and (d.message_id, d.number) < (%s, %s)")
        values += [before[0], *before]
    found = rows.delivery_rows(connection, "where " + " and ".join(where) + " " + _NEWEST_FIRST, [*values, at_most])
    return found, rows.with_messages(PostgresSession(connection), found)


def _of_reader(wanted: Filter, span: Span) -> list[Any]:
    """Return the parameters of `deliveries_of` but the last one. Forgotten deliveries are not listed."""
    return [
        [text(identity) for identity in (wanted.recipient or "", *wanted.also)],
        sorted(state.value for state in wanted.states or frozenset(State) - {State.EXPIRED}),
        *(span.low or DeliveryId(LOWEST, 0)),
        *(span.high or DeliveryId(HIGHEST, 0)),
        span.oldest_first,
    ]


def candidates(
    connection: Connection, likeness: Likeness, wanted: Filter, span: Span, examined: int, at_most: int
) -> list[tuple[Delivery, int]]:
    """See `search.Candidates`."""
    of_recipient = replace(wanted, recipient=likeness.recipient, also=())
    sha256, header_from, address = search.prefilter(likeness)
    found = connection.execute(
        f"select place, {_DELIVERY}, {rows.MESSAGE_OF}"
        " from near_duplicates(%s::text[], %s::text[], %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [*_of_reader(of_recipient, span), examined, sha256, text(header_from), address, at_most],
    )
    return [(rows.joined(row[1:]), row[0]) for row in rows_of(found.fetchall())]


def _any(terms: list[str]) -> str:
    """Return a tsquery for any one of the terms, nested in halves.

    The server recurses as deep as a chain is long, and fails at some thousands (max_stack_depth).
    """
    if len(terms) <= _CHAINED:
        return f"({' | '.join(terms)})"
    half = len(terms) // 2
    return f"({_any(terms[:half])} | {_any(terms[half:])})"


def _quoted(term: str) -> str:
    # Terms consist of letters, digits, marks and "=", none of which can end the quotes.
    return f"'{term[:-1]}':*" if term.endswith("*") else f"'{term}'"
