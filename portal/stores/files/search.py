"""The file store's lists. See `stores.search` for what is bounded how."""

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
_ALL = (1 << 63) - 1  # a key after all
_SURROGATES = re.compile("[\ud800-\udfff]")


def find_page(database: Database, wanted: Filter, limit: int, before: DeliveryId | None) -> Page:
    """See `Deliveries.search`. Mail whose file was deleted is listed until the next purge notices."""
    terms = search.wanted_terms(wanted)
    if terms is None:
        return Page((), None)
    if terms:
        _bring_in(database)
    with database.read() as connection:
        connection.execute("BEGIN")  # one state of things for all statements, tables of days included
        try:
            if terms:
                batches = _by_terms(connection, wanted, terms, before)
            else:
                batches = _walk(connection, wanted, BATCH if search.needs_filtering(wanted) else limit + 1, before)
            return search.gather(wanted, limit, batches)
        finally:
            connection.execute("ROLLBACK")


def _bring_in(database: Database) -> None:
    with database.read() as connection:
        is_behind = word_index.is_behind(connection)
    if is_behind:
        with database.write(durable=False) as connection:
            word_index.bring_in(connection)


def _storable(text: str) -> str:
    """Return text to look for with NUL, which is never kept, for the lone surrogates that a terminal may hand over:
    SQLite takes valid Unicode only."""
    return _SURROGATES.sub("\0", text)


_PARTS = 100  # of one statement; SQLite takes up to 500 (SQLITE_MAX_COMPOUND_SELECT)
Batches = Iterator[tuple[list[Delivery], DeliveryId, int]]


def _walk(connection: sqlite3.Connection, wanted: Filter, at_most: int, before: DeliveryId | None) -> Batches:
    """Deliveries in order, without the index of terms."""
    where, values = _conditions(wanted)
    source = "FROM delivery d "
    if wanted.recipient is None and wanted.states and wanted.states <= {State.REQUESTED, State.RELEASING}:
        where.append("d.state IN ('requested', 'releasing')")  # so that the small partial index fits
    elif wanted.recipient is None and wanted.states and State.HELD not in wanted.states:
        source = "FROM delivery d INDEXED BY delivery_acted "
        where.append("d.state <> 'held'")
    if wanted.since is not None:
        where.append("d.message_id >= ?")
        values.append(first_id(wanted.since).bytes)
    if wanted.until is not None:
        where.append("d.message_id < ?")
        values.append(first_id(wanted.until).bytes)
    # CROSS JOIN keeps SQLite from turning the order round: deliveries are walked by their index, messages looked up.
    rows_of = _rows_of_several if wanted.also else _rows
    source += "CROSS JOIN message m ON m.id = d.message_id "
    while True:
        rows = rows_of(connection, source, where, values, before, at_most)
        if rows:
            before = rows[-1].key
            yield rows, before, len(rows)
        if len(rows) < at_most:
            return


def _by_terms(
    connection: sqlite3.Connection, wanted: Filter, terms: search.Terms, before: DeliveryId | None
) -> Batches:
    """Deliveries of the messages that the index of terms names."""
    where, values = _conditions(wanted)
    where.append("m.rowid IN (SELECT value FROM json_each(?))")
    source = "FROM message m CROSS JOIN delivery d ON d.message_id = m.id "
    since = word_index.key(first_id(wanted.since)) if wanted.since else 0
    below = word_index.key(first_id(wanted.until)) if wanted.until else _ALL
    if before is not None:
        # Its further deliveries may be wanted, and older messages whose keys were taken.
        below = min(below, word_index.after_millisecond(before[0]))
    for rowids in word_index.find(connection, terms, since, below, BATCH):
        looked = len(rowids)
        while True:
            rows = _rows(connection, source, where, [*values, json.dumps(rowids)], before, BATCH)
            if rows:
                before = rows[-1].key
                yield rows, before, looked
                looked = 0
            if len(rows) < BATCH:
                break
        if looked:  # nothing fitted, and a page must be able to go on behind it
            yield [], DeliveryId(word_index.first_id_of(word_index.millisecond(rowids[-1])), 0), looked


def _rows(
    connection: sqlite3.Connection,
    source: str,
    where: list[str],
    values: list[Any],
    before: DeliveryId | None,
    at_most: int,
) -> list[Delivery]:
    if before is not None:
        where = [*where, "(d.message_id, d.number) < (?, ?)"]
        values = [*values, before[0].bytes, before[1]]
    clause = f"WHERE {' AND '.join(where)}" if where else ""
    return deliveries_from(connection.execute(SELECT + source + clause + _NEWEST_FIRST, (*values, at_most)))


def _rows_of_several(
    connection: sqlite3.Connection,
    source: str,
    where: list[str],
    values: list[Any],
    before: DeliveryId | None,
    at_most: int,
) -> list[Delivery]:
    """Return the same where ``where`` begins with several recipients: the newest of each one's part of their index,
    merged. Of most of these only the keys are read, which the index has."""
    if before is not None:
        where = [*where, "(d.message_id, d.number) < (?, ?)"]
        values = [*values, before[0].bytes, before[1]]
    recipients, keys = json.loads(values[0]), list[tuple[bytes, int]]()
    part = (
        "SELECT * FROM (SELECT d.message_id, d.number FROM delivery d "
        f"WHERE {' AND '.join(['d.recipient = ?', *where[1:]])}{_NEWEST_FIRST})"
    )
    for start in range(0, len(recipients), _PARTS):
        some = recipients[start : start + _PARTS]
        keys += connection.execute(
            " UNION ALL ".join([part] * len(some)), [v for one in some for v in (one, *values[1:], at_most)]
        )
    newest = sorted(keys, reverse=True)[:at_most]
    if not newest:
        return []
    among = ", ".join(["(?, ?)"] * len(newest))
    return deliveries_from(
        connection.execute(
            f"{SELECT}{source} WHERE (d.message_id, d.number) IN (VALUES {among}){_NEWEST_FIRST}",
            (*(part for key in newest for part in key), at_most),
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
