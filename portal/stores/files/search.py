"""Lists and search in the file store. See `stores.search` for the bounds of one call."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

from portal.model.message import Delivery, DeliveryId, Filter, State, first_id
from portal.model.ranking import Likeness
from portal.stores import search
from portal.stores.files import word_index
from portal.stores.files.database import Database
from portal.stores.files.rows import SELECT, deliveries_from, placed_from
from portal.stores.records import Page
from portal.stores.search import BATCH

_NEWEST_FIRST = " ORDER BY d.message_id DESC, d.number DESC LIMIT ?"
_SURROGATES = re.compile("[\ud800-\udfff]")


def find_page(database: Database, wanted: Filter, limit: int, before: DeliveryId | None) -> Page:
    """See `Deliveries.search`. Mail whose file is missing is listed until the next purge."""
    terms = search.wanted_terms(wanted)
    if terms is None:
        return Page((), None)
    # The connection outlives the generator, since one that is left by an exception is not used again.
    with (
        database.read() as connection,
        closing(_batches(database, connection, wanted, terms, limit, before)) as batches,
    ):
        return search.gather(wanted, limit, batches)


def _batches(
    database: Database,
    connection: sqlite3.Connection,
    wanted: Filter,
    terms: search.Terms,
    limit: int,
    before: DeliveryId | None,
) -> Generator[search.Batch]:
    if not terms:
        with _snapshot(connection):
            yield from _by_key(connection, wanted, BATCH if search.needs_filtering(wanted) else limit + 1, before)
        return
    if search.begins_with_newest(wanted):
        with _snapshot(connection):
            before = yield from _among_newest(connection, wanted, terms, limit, before)
        if before is None:
            return
    index_waiting(database)
    with _snapshot(connection):
        yield from _by_terms(connection, wanted, terms, before)


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


_PARTS = 100  # SELECTs in one statement; SQLite accepts up to 500 (SQLITE_MAX_COMPOUND_SELECT)
# CROSS JOIN keeps SQLite from reordering the join: deliveries are read by their index, messages are looked up.
_MESSAGE = "CROSS JOIN message m ON m.id = d.message_id "
_Key = tuple[bytes, int]  # of a delivery, as its columns


def _by_key(
    connection: sqlite3.Connection, wanted: Filter, limit: int, before: DeliveryId | None
) -> Iterator[search.Batch]:
    """Yield deliveries by key (keyset pagination), without the index of terms."""
    where, values = _conditions(wanted)
    source = "FROM delivery d "
    if wanted.recipient is None and wanted.states and wanted.states <= {State.REQUESTED, State.RELEASING}:
        where.append("d.state IN ('requested', 'releasing')")  # the condition of the small partial index
    elif wanted.recipient is None and wanted.states and State.HELD not in wanted.states:
        source = "FROM delivery d INDEXED BY delivery_acted "
        where.append("d.state <> 'held'")
    _add_times(wanted, where, values)
    source += _MESSAGE
    while True:
        if wanted.also:
            keys = _newest_of_several(connection, where, values, before, limit)
            rows = _deliveries(connection, keys)
        else:
            rows = deliveries_from(_rows(connection, SELECT + source, where, values, before, limit))
        if rows:
            before = rows[-1].key
            yield rows, before, len(rows)
        if len(rows) < limit:
            return


def _among_newest(
    connection: sqlite3.Connection, wanted: Filter, terms: search.Terms, limit: int, before: DeliveryId | None
) -> Generator[search.Batch, None, DeliveryId | None]:
    """See `search.among_newest`."""
    where, values = _conditions(wanted)
    _add_times(wanted, where, values)
    select = "SELECT d.message_id, d.number, m.subject, m.envelope_sender, m.header_from "

    def texts(before: DeliveryId | None, count: int) -> list[search.Texts]:
        if wanted.also:
            keys = _newest_of_several(connection, where, values, before, count)
            rows = _rows_of_keys(connection, select, keys)
        else:
            rows = _rows(connection, f"{select}FROM delivery d {_MESSAGE}", where, values, before, count)
        return [search.Texts(DeliveryId(UUID(bytes=id), number), *found) for id, number, *found in rows]

    def deliveries(keys: Sequence[DeliveryId]) -> list[Delivery]:
        return _deliveries(connection, [(id.bytes, number) for id, number in keys])

    return (yield from search.among_newest(terms, limit, before, texts, deliveries))


def _by_terms(
    connection: sqlite3.Connection, wanted: Filter, terms: search.Terms, before: DeliveryId | None
) -> Iterator[search.Batch]:
    """Yield deliveries of the messages that the index of terms finds."""
    where, values = _conditions(wanted)
    where.append("m.rowid IN (SELECT value FROM json_each(?))")
    source = "FROM message m CROSS JOIN delivery d ON d.message_id = m.id "
    since = word_index.key(first_id(wanted.since)) if wanted.since else 0
    below = word_index.key(first_id(wanted.until)) if wanted.until else word_index.KEY_MAX
    if before is not None:
        # Include the whole millisecond of ``before``: it can have more deliveries of that message, and older messages
        # with greater rowids, since their keys were taken.
        below = min(below, word_index.after_millisecond(before[0]))
    for rowids in word_index.find(connection, terms, since, below, BATCH):
        examined = len(rowids)
        while True:
            found = _rows(connection, SELECT + source, where, [*values, json.dumps(rowids)], before, BATCH)
            rows = deliveries_from(found)
            if rows:
                before = rows[-1].key
                yield rows, before, examined
                examined = 0
            if len(rows) < BATCH:
                break
        if examined:  # nothing matched: yield a cursor from which the next page can continue
            yield [], DeliveryId(word_index.first_id_of(word_index.millisecond(rowids[-1])), 0), examined


def candidates(
    connection: sqlite3.Connection, likeness: Likeness, wanted: Filter, before: DeliveryId | None, examined: int
) -> list[tuple[Delivery, int]]:
    """See `search.Candidates`."""
    where, values = _conditions(replace(wanted, recipient=likeness.recipient, also=()))
    _add_times(wanted, where, values)
    where, values = _before(where, values, before)
    newest = f"SELECT d.message_id, d.number FROM delivery d WHERE {' AND '.join(where)}{_NEWEST_FIRST}"
    found = connection.execute(
        f"WITH newest AS MATERIALIZED ({newest}), "
        "placed AS (SELECT message_id, number, row_number() OVER () AS place FROM newest), "
        # Found before their columns are read, so that no long rows are sorted.
        "found AS MATERIALIZED (SELECT p.message_id, p.number, p.place FROM placed p "
        "CROSS JOIN message m ON m.id = p.message_id "
        "WHERE p.place = ? OR m.body_sha256 = ? OR m.header_from = ? OR instr(lower(m.header_from), ?) > 0 "
        f"ORDER BY p.place LIMIT ?) {SELECT.rstrip()}, f.place FROM found f "
        "CROSS JOIN message m ON m.id = f.message_id "
        "CROSS JOIN delivery d ON d.message_id = f.message_id AND d.number = f.number ORDER BY f.place",
        (*values, examined, examined, *search.prefilter(likeness), search.CANDIDATES_MAX),
    )
    return placed_from(found)


def _rows(
    connection: sqlite3.Connection,
    select: str,
    where: list[str],
    values: list[Any],
    before: DeliveryId | None,
    limit: int,
) -> sqlite3.Cursor:
    where, values = _before(where, values, before)
    clause = f"WHERE {' AND '.join(where)}" if where else ""
    return connection.execute(select + clause + _NEWEST_FIRST, (*values, limit))


def _before(where: list[str], values: list[Any], before: DeliveryId | None) -> tuple[list[str], list[Any]]:
    if before is None:
        return where, values
    return [*where, "(d.message_id, d.number) < (?, ?)"], [*values, before[0].bytes, before[1]]


def _newest_of_several(
    connection: sqlite3.Connection, where: list[str], values: list[Any], before: DeliveryId | None, limit: int
) -> list[_Key]:
    """Return the newest keys when ``where`` begins with several recipients, newest first.

    Those of each recipient are read from the index alone.
    """
    where, values = _before(where, values, before)
    recipients, keys = json.loads(values[0]), list[_Key]()
    part = (
        "SELECT * FROM (SELECT d.message_id, d.number FROM delivery d "
        f"WHERE {' AND '.join(['d.recipient = ?', *where[1:]])}{_NEWEST_FIRST})"
    )
    for start in range(0, len(recipients), _PARTS):
        batch = recipients[start : start + _PARTS]
        keys += connection.execute(
            " UNION ALL ".join([part] * len(batch)), [v for one in batch for v in (one, *values[1:], limit)]
        )
    return sorted(keys, reverse=True)[:limit]


def _deliveries(connection: sqlite3.Connection, keys: Sequence[_Key]) -> list[Delivery]:
    """Return the deliveries with these keys, newest first."""
    return deliveries_from(_rows_of_keys(connection, SELECT, keys))


def _rows_of_keys(connection: sqlite3.Connection, select: str, keys: Sequence[_Key]) -> sqlite3.Cursor:
    # A join, since SQLite 3.40 answers a condition with several pairs by reading the whole table.
    placeholders = ", ".join(["(?, ?)"] * len(keys)) or "(NULL, NULL)"
    return connection.execute(
        f"WITH wanted (id, number) AS (VALUES {placeholders}) {select}FROM wanted "
        f"CROSS JOIN delivery d ON d.message_id = wanted.id AND d.number = wanted.number {_MESSAGE}{_NEWEST_FIRST}",
        (*(part for key in keys for part in key), -1),
    )


def _add_times(wanted: Filter, where: list[str], values: list[Any]) -> None:
    if wanted.since is not None:
        where.append("d.message_id >= ?")
        values.append(first_id(wanted.since).bytes)
    if wanted.until is not None:
        where.append("d.message_id < ?")
        values.append(first_id(wanted.until).bytes)


def _conditions(wanted: Filter) -> tuple[list[str], list[Any]]:
    where: list[str] = []
    values: list[Any] = []
    if wanted.recipient is not None and wanted.also:
        where.append("d.recipient IN (SELECT value FROM json_each(?))")
        values.append(json.dumps([_storable(recipient) for recipient in (wanted.recipient, *wanted.also)]))
    elif wanted.recipient is not None:
        where.append("d.recipient = ?")
        values.append(_storable(wanted.recipient))
    if wanted.states:
        where.append(f"d.state IN ({', '.join('?' * len(wanted.states))})")
        values += sorted(state.value for state in wanted.states)
    return where, values
