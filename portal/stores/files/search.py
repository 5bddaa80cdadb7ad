"""Lists and search in the file store. See `stores.search` for the bounds of one call."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import groupby, islice
from typing import Any
from uuid import UUID

from portal.model.message import Delivery, DeliveryId, Filter, State
from portal.model.ranking import Likeness
from portal.stores import search
from portal.stores.files import word_index
from portal.stores.files.database import Database
from portal.stores.files.rows import NO_DELIVERY, SELECT, iterate, iterate_with, placed_from
from portal.stores.records import Page
from portal.stores.span import Span

_ORDERS = (" ORDER BY d.message_id DESC, d.number DESC LIMIT ?", " ORDER BY d.message_id, d.number LIMIT ?")
_SURROGATES = re.compile("[\ud800-\udfff]")


def find_page(database: Database, catalog: word_index.Catalog, wanted: Filter, limit: int, span: Span) -> Page:
    """See `Deliveries.search`. Mail whose file is missing is listed until the next purge."""
    terms = search.wanted_terms(wanted)
    if terms is None:
        return Page((), None)
    # The connection outlives the generator, since one that is left by an exception is not used again.
    with (
        database.read() as connection,
        closing(_batches(connection, catalog, wanted, terms, limit, span)) as batches,
    ):
        return search.gather(wanted, limit, span, batches)


def _batches(
    connection: sqlite3.Connection,
    catalog: word_index.Catalog,
    wanted: Filter,
    terms: search.Terms,
    limit: int,
    span: Span,
) -> Generator[search.Batch]:
    with _snapshot(connection):
        if not terms:
            needs_filtering = search.needs_filtering(wanted)
            yield from _by_key(connection, wanted, search.EXAMINED_MAX if needs_filtering else limit + 1, span)
            return
        if search.begins_with_newest(wanted):
            left = yield from _among_first(connection, wanted, terms, span)
            if left is None:
                return
            span = left
        yield from _by_terms(connection, catalog.indexes(connection), wanted, terms, span)


@contextmanager
def _snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Let all statements see the same rows and the same tables of days."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def index_waiting(database: Database) -> None:
    """Index all messages whose terms wait for it."""
    with database.read() as connection:
        has_waiting = word_index.has_waiting(connection)
    if has_waiting:
        with database.write(durable=False) as connection:
            word_index.index_waiting(connection)


def _storable(text: str) -> str:
    """Return search text that SQLite accepts: lone surrogates, which a terminal may pass on, are not valid Unicode.

    They are replaced with NUL, which no stored text has, so that the search finds nothing.
    """
    return _SURROGATES.sub("\0", text)


# CROSS JOIN keeps SQLite from reordering the join: keys are read by their index, the rows are looked up.
_OF_KEY = (
    "CROSS JOIN delivery d ON d.message_id = n.message_id AND d.number = n.number "
    "CROSS JOIN message m ON m.id = n.message_id"
)
_AT_ONCE = 64
_OF_SEVERAL = "d.recipient IN (SELECT value FROM json_each(?))"


def _by_key(connection: sqlite3.Connection, wanted: Filter, limit: int, span: Span) -> Iterator[search.Batch]:
    """Yield deliveries by key (keyset pagination), without the index of terms.

    SQLite reads rows when they are asked for, so that a page that is soon full reads hardly more than it shows.
    """
    if wanted.also:
        keys, values = _first_keys(wanted, limit, span)
        query = f"{SELECT}FROM ({keys}) n {_OF_KEY}"
    else:
        query, values = _first(f"{SELECT}{{}}CROSS JOIN message m ON m.id = d.message_id ", wanted, limit, span)
    found = iterate(connection.execute(query, values))
    while deliveries := list(islice(found, _AT_ONCE)):
        yield deliveries, span.after(deliveries[-1].key).cursor, len(deliveries)


def _among_first(
    connection: sqlite3.Connection, wanted: Filter, terms: search.Terms, span: Span
) -> Generator[search.Batch, None, Span | None]:
    """Yield those of a recipient's first deliveries that have the words of these terms, as the index finds them.

    Return the span of the deliveries that were not examined, None if there are none. Deliveries without the words never
    reach Python.
    """
    keys, values = _first_keys(wanted, search.NEWEST_MAX, span)
    has_words = "has_words(?, m.subject, m.envelope_sender, m.header_from, m.attachments)"
    found = connection.execute(
        f"{SELECT.rstrip()}, n.message_id, n.number FROM ({keys}) n {_OF_KEY} WHERE {has_words} "
        # After them the key of the last one that was examined, if there may be more.
        f"UNION ALL SELECT * FROM (SELECT {NO_DELIVERY}, n.message_id, n.number FROM ({keys}) n LIMIT 1 OFFSET ?)",
        (
            *(*values, json.dumps([group for group in terms if not group[0].startswith("=")])),
            *(*values, search.NEWEST_MAX - 1),
        ),
    )
    for delivery, (id, number) in iterate_with(found, 2):
        left = span.after(DeliveryId(UUID(bytes=id), number))
        if delivery is None:
            return left
        yield (delivery,), left.cursor, 1
    return None


def _by_terms(
    connection: sqlite3.Connection,
    indexes: Sequence[word_index.Index],
    wanted: Filter,
    terms: search.Terms,
    span: Span,
) -> Iterator[search.Batch]:
    """Yield deliveries of the messages that the index of terms finds, and for the others only that they were found."""
    # Both with their whole milliseconds: these can have more deliveries of the message, and messages with rowids in
    # another order, since their keys were taken.
    since = word_index.millisecond(word_index.key(span.low.message_id)) if span.low else 0
    below = word_index.next_millisecond(word_index.key(span.high.message_id)) if span.high else word_index.KEY_MAX
    hits, keys = word_index.hits(indexes, terms, since, below, oldest_first=span.oldest_first)
    where, values = _within(span, *_conditions(wanted))
    found = connection.execute(
        f"{SELECT.rstrip()}, h.key FROM ({hits}) h LEFT JOIN message m ON m.rowid = h.key "
        f"LEFT JOIN delivery d ON {' AND '.join(['d.message_id = m.id', *where])}",
        (*keys, *values),
    )
    # Within a millisecond the order of rowids can differ from that of ids.
    for millisecond, rows in groupby(iterate_with(found, 1), lambda row: word_index.millisecond(row[1][0])):
        examined, deliveries = set[int](), list[Delivery]()
        for delivery, (rowid,) in rows:
            examined.add(rowid)
            deliveries += [delivery] if delivery else []
        deliveries.sort(key=lambda delivery: delivery.key, reverse=not span.oldest_first)
        end = word_index.next_millisecond(millisecond) if span.oldest_first else millisecond
        yield deliveries, DeliveryId(word_index.first_id_of(end), 0), len(examined)


def candidates(
    connection: sqlite3.Connection,
    likeness: Likeness,
    wanted: Filter,
    span: Span,
    examined: int,
    at_most: int,
) -> list[tuple[Delivery, int]]:
    """See `search.Candidates`."""
    first, values = _first_keys(replace(wanted, recipient=likeness.recipient, also=()), examined, span)
    found = connection.execute(
        f"WITH first AS MATERIALIZED ({first}), "
        "placed AS (SELECT message_id, number, row_number() OVER () AS place FROM first), "
        # Found before their columns are read, so that no long rows are sorted.
        "found AS MATERIALIZED (SELECT p.message_id, p.number, p.place FROM placed p "
        "CROSS JOIN message m ON m.id = p.message_id "
        "WHERE p.place = ? OR m.body_sha256 = ? OR m.header_from = ? OR instr(lower(m.header_from), ?) > 0 "
        f"ORDER BY p.place LIMIT ?) {SELECT.rstrip()}, f.place FROM found f "
        "CROSS JOIN message m ON m.id = f.message_id "
        "CROSS JOIN delivery d ON d.message_id = f.message_id AND d.number = f.number ORDER BY f.place",
        (*values, examined, *search.prefilter(likeness), at_most),
    )
    return placed_from(found)


def _within(span: Span, where: list[str], values: list[Any]) -> tuple[list[str], list[Any]]:
    """Add the conditions for the deliveries of a span."""
    if span.low is not None:
        where, values = [*where, "(d.message_id, d.number) >= (?, ?)"], [*values, span.low[0].bytes, span.low[1]]
    if span.high is not None:
        where, values = [*where, "(d.message_id, d.number) < (?, ?)"], [*values, span.high[0].bytes, span.high[1]]
    return where, values


def _first_keys(wanted: Filter, limit: int, span: Span) -> tuple[str, list[Any]]:
    """Return SQL for the first keys of a span that match, in its direction, at most ``limit``, and its parameters."""
    return _first("SELECT d.message_id, d.number {}", wanted, limit, span)


def _first(select: str, wanted: Filter, limit: int, span: Span) -> tuple[str, list[Any]]:
    """Return SQL likewise, with these columns; ``{}`` is replaced with the source of the deliveries ``d``."""
    where, values = _conditions(wanted)
    order = _ORDERS[span.oldest_first]
    source = "FROM delivery d "
    if wanted.recipient is None and wanted.states and wanted.states <= {State.REQUESTED, State.RELEASING}:
        where.append("d.state IN ('requested', 'releasing')")  # the condition of the small partial index
    elif wanted.recipient is None and wanted.states and State.HELD not in wanted.states:
        source = "FROM delivery d INDEXED BY delivery_acted "
        where.append("d.state <> 'held'")
    where, values = _within(span, where, values)
    if not wanted.also:
        return f"{select.format(source)}WHERE {' AND '.join(where)}{order}", [*values, limit]
    # The index is read from each recipient's first delivery to the last one that can be on the page, for each of any
    # number of recipients. For a condition with a list SQLite would read all their deliveries.
    recipients, *values = values
    of_one = " AND ".join(["d.recipient = r.value", *where[1:]])
    last = f"SELECT e.message_id FROM delivery e WHERE {of_one}{order} OFFSET ?".replace("d.", "e.")
    reach = f"<= coalesce(({last}), x'ff')" if span.oldest_first else f">= coalesce(({last}), x'')"
    source = f"FROM json_each(?) r CROSS JOIN delivery d ON {of_one} AND d.message_id {reach} "
    return f"{select.format(source)}{order}", [recipients, *values, *values, 1, limit - 1, limit]


def _conditions(wanted: Filter) -> tuple[list[str], list[Any]]:
    where: list[str] = []
    values: list[Any] = []
    if wanted.recipient is not None and wanted.also:
        where.append(_OF_SEVERAL)
        values.append(json.dumps([_storable(recipient) for recipient in (wanted.recipient, *wanted.also)]))
    elif wanted.recipient is not None:
        where.append("d.recipient = ?")
        values.append(_storable(wanted.recipient))
    if wanted.states:
        where.append(f"d.state IN ({', '.join('?' * len(wanted.states))})")
        values += sorted(state.value for state in wanted.states)
    else:
        where.append("d.state <> 'expired'")  # forgotten: never listed
    return where, values
