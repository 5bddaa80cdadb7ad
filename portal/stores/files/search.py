"""Lists and search in the file store. See `stores.search` for the bounds of one call."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from typing import Any

from portal.model.message import Delivery, DeliveryId, Filter, State, first_id
from portal.stores import search
from portal.stores.files import word_index
from portal.stores.files.database import Database
from portal.stores.files.rows import SELECT, deliveries_from
from portal.stores.records import Page
from portal.stores.search import BATCH

_NEWEST_FIRST = " ORDER BY d.message_id DESC, d.number DESC LIMIT ?"
_KEY_MAX = (1 << 63) - 1  # greater than all keys
_SURROGATES = re.compile("[\ud800-\udfff]")


def find_page(database: Database, wanted: Filter, limit: int, before: DeliveryId | None) -> Page:
    """See `Deliveries.search`. Mail whose file is missing is listed until the next purge."""
    terms = search.wanted_terms(wanted)
    if terms is None:
        return Page((), None)
    if terms:
        _index_waiting(database)
    with database.read() as connection:
        connection.execute("BEGIN")  # one snapshot for all statements, including the tables of days
        try:
            if terms:
                batches = _by_terms(connection, wanted, terms, before)
            else:
                batches = _by_key(connection, wanted, BATCH if search.needs_filtering(wanted) else limit + 1, before)
            return search.gather(wanted, limit, batches)
        finally:
            connection.execute("ROLLBACK")


def _index_waiting(database: Database) -> None:
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
Batches = Iterator[tuple[list[Delivery], DeliveryId, int]]


def _by_key(connection: sqlite3.Connection, wanted: Filter, limit: int, before: DeliveryId | None) -> Batches:
    """Yield deliveries by key (keyset pagination), without the index of terms."""
    where, values = _conditions(wanted)
    source = "FROM delivery d "
    if wanted.recipient is None and wanted.states and wanted.states <= {State.REQUESTED, State.RELEASING}:
        where.append("d.state IN ('requested', 'releasing')")  # the condition of the small partial index
    elif wanted.recipient is None and wanted.states and State.HELD not in wanted.states:
        source = "FROM delivery d INDEXED BY delivery_acted "
        where.append("d.state <> 'held'")
    if wanted.since is not None:
        where.append("d.message_id >= ?")
        values.append(first_id(wanted.since).bytes)
    if wanted.until is not None:
        where.append("d.message_id < ?")
        values.append(first_id(wanted.until).bytes)
    # CROSS JOIN keeps SQLite from reordering the join: deliveries are read by their index, messages are looked up.
    select_rows = _rows_of_several if wanted.also else _rows
    source += "CROSS JOIN message m ON m.id = d.message_id "
    while True:
        rows = select_rows(connection, source, where, values, before, limit)
        if rows:
            before = rows[-1].key
            yield rows, before, len(rows)
        if len(rows) < limit:
            return


def _by_terms(
    connection: sqlite3.Connection, wanted: Filter, terms: search.Terms, before: DeliveryId | None
) -> Batches:
    """Yield deliveries of the messages that the index of terms finds."""
    where, values = _conditions(wanted)
    where.append("m.rowid IN (SELECT value FROM json_each(?))")
    source = "FROM message m CROSS JOIN delivery d ON d.message_id = m.id "
    since = word_index.key(first_id(wanted.since)) if wanted.since else 0
    below = word_index.key(first_id(wanted.until)) if wanted.until else _KEY_MAX
    if before is not None:
        # Include the whole millisecond of ``before``: it can have more deliveries of that message, and older messages
        # with greater rowids, since their keys were taken.
        below = min(below, word_index.after_millisecond(before[0]))
    for rowids in word_index.find(connection, terms, since, below, BATCH):
        examined = len(rowids)
        while True:
            rows = _rows(connection, source, where, [*values, json.dumps(rowids)], before, BATCH)
            if rows:
                before = rows[-1].key
                yield rows, before, examined
                examined = 0
            if len(rows) < BATCH:
                break
        if examined:  # nothing matched: yield a cursor from which the next page can continue
            yield [], DeliveryId(word_index.first_id_of(word_index.millisecond(rowids[-1])), 0), examined


def _rows(
    connection: sqlite3.Connection,
    source: str,
    where: list[str],
    values: list[Any],
    before: DeliveryId | None,
    limit: int,
) -> list[Delivery]:
    if before is not None:
        where = [*where, "(d.message_id, d.number) < (?, ?)"]
        values = [*values, before[0].bytes, before[1]]
    clause = f"WHERE {' AND '.join(where)}" if where else ""
    return deliveries_from(connection.execute(SELECT + source + clause + _NEWEST_FIRST, (*values, limit)))


def _rows_of_several(
    connection: sqlite3.Connection,
    source: str,
    where: list[str],
    values: list[Any],
    before: DeliveryId | None,
    limit: int,
) -> list[Delivery]:
    """Return the rows of `_rows` when ``where`` begins with several recipients.

    Merges the newest keys of each recipient, which are read from the index alone. Then only the rows of the result are
    read.
    """
    if before is not None:
        where = [*where, "(d.message_id, d.number) < (?, ?)"]
        values = [*values, before[0].bytes, before[1]]
    recipients, keys = json.loads(values[0]), list[tuple[bytes, int]]()
    part = (
        "SELECT * FROM (SELECT d.message_id, d.number FROM delivery d "
        f"WHERE {' AND '.join(['d.recipient = ?', *where[1:]])}{_NEWEST_FIRST})"
    )
    for start in range(0, len(recipients), _PARTS):
        batch = recipients[start : start + _PARTS]
        keys += connection.execute(
            " UNION ALL ".join([part] * len(batch)), [v for one in batch for v in (one, *values[1:], limit)]
        )
    newest = sorted(keys, reverse=True)[:limit]
    if not newest:
        return []
    placeholders = ", ".join(["(?, ?)"] * len(newest))
    return deliveries_from(
        connection.execute(
            f"{SELECT}{source} WHERE (d.message_id, d.number) IN (VALUES {placeholders}){_NEWEST_FIRST}",
            (*(part for key in newest for part in key), limit),
        )
    )


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
