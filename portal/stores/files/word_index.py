"""The file store's inverted index: SQLite's FTS5 over the terms of `stores.search`, one table per day.

The tables are contentless (https://www.sqlite.org/fts5.html#contentless_tables), since only terms are searched. SQLite
before 3.43 cannot delete from such a table, so a day's table is dropped as a whole once all its messages are removed.
Until then it may refer to rows that no longer exist.

The rowid of a message is computed from its id and grows with it, so that FTS5, which reads its lists by rowid, returns
the newest first without sorting. The terms of a message first go to a plain table, in the transaction that adds the
message, and from there to FTS5, 64 messages at a time, since FTS5 writes several pages for each transaction. Row of the
bench: "a post without batches for the word index". Each search indexes the waiting messages first.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from portal.model.message import first_id, held_at
from portal.stores.search import Terms

_BATCH = 64  # messages indexed in one transaction, on average
_PAGES_BATCH = 500  # pages of 4 KB removed in one transaction
_MILLISECOND = 1 << 20  # keys per millisecond
_KEY_MAX = (1 << 63) - 1
_TABLE = re.compile(r"words_(\d{4})(\d\d)(\d\d)")


def key(message_id: UUID) -> int:
    """Return the rowid of a message: 43 bits of milliseconds (until the year 2248) and 20 of the id's random bits.

    It grows with the id. Among a million messages held at 100 a second, two have the same key with a probability of
    about one in ten.
    """
    value = message_id.int
    return min((value >> 80) << 20 | (value >> 64 & 0xFFF) << 8 | value >> 54 & 0xFF, _KEY_MAX)


def millisecond(rowid: int) -> int:
    """Return the lowest key of the millisecond in which this message was held."""
    return rowid // _MILLISECOND * _MILLISECOND


def after_millisecond(message_id: UUID) -> int:
    """Return a key greater than those of all messages that were held in the same millisecond."""
    return min(millisecond(key(message_id)) + _MILLISECOND, _KEY_MAX)


def first_id_of(rowid: int) -> UUID:
    """Return the lowest quarantine id that has this `key`."""
    return UUID(int=rowid >> 20 << 80 | 7 << 76 | (rowid >> 8 & 0xFFF) << 64 | 2 << 62 | (rowid & 0xFF) << 54)


def put(connection: sqlite3.Connection, rowid: int, terms: Iterable[str]) -> None:
    """Queue a new message for indexing; on average every 64th call also indexes all waiting messages.

    Runs in the transaction that adds the message's row.
    """
    add(connection, rowid, terms)
    if rowid % _BATCH == 0:
        index_waiting(connection)


def add(connection: sqlite3.Connection, rowid: int, terms: Iterable[str]) -> None:
    """Queue a message for indexing under further terms."""
    connection.execute(
        "INSERT INTO unindexed (key, terms) VALUES (?, ?) "
        "ON CONFLICT (key) DO UPDATE SET terms = terms || ' ' || excluded.terms",
        (rowid, " ".join(terms)),
    )


def has_waiting(connection: sqlite3.Connection) -> bool:
    """Return whether messages wait for `index_waiting`."""
    return connection.execute("SELECT 1 FROM unindexed LIMIT 1").fetchone() is not None


def index_waiting(connection: sqlite3.Connection) -> None:
    """Index all waiting messages. Runs in a transaction."""
    while (first := connection.execute("SELECT min(key) FROM unindexed").fetchone()[0]) is not None:
        day = _day(first)
        table, bounds = _table(day), _bounds(day)
        # The tokenizer keeps terms whole: it splits only at ASCII characters other than letters, digits and "=".
        connection.execute(
            f"CREATE VIRTUAL TABLE IF NOT EXISTS {table} USING fts5(terms, content='', detail=none, columnsize=0, "
            "prefix='2 3', tokenize=\"ascii tokenchars '='\")"
        )
        connection.execute(
            f"INSERT INTO {table} (rowid, terms) SELECT key, terms FROM unindexed "
            "WHERE key >= ? AND key < ? ORDER BY key",
            bounds,
        )
        connection.execute("DELETE FROM unindexed WHERE key >= ? AND key < ?", bounds)


def find(connection: sqlite3.Connection, wanted: Terms, since: int, below: int, limit: int) -> Iterator[list[int]]:
    """Yield rowids of messages with these terms, in [since, below), newest first, in batches.

    A batch has ``limit`` rowids and the others of the last one's millisecond. Within a millisecond the order of rowids
    can differ from that of ids, since a message whose key was taken has the next free one.

    The caller keeps one transaction open until the end, since a purge drops tables of past days.
    """
    match = " AND ".join(f"({' OR '.join(map(_quoted, group))})" for group in wanted)
    for day in reversed(days(connection)):
        low, high = _bounds(day)
        low, high = max(low, since), min(high, below)
        query = (
            f"SELECT rowid FROM {_table(day)} WHERE {_table(day)} MATCH ? "
            "AND rowid >= ? AND rowid < ? ORDER BY rowid DESC LIMIT ?"
        )
        while low < high:
            rows = connection.execute(query, (match, low, high, limit)).fetchall()
            if len(rows) < limit:
                high = low
            else:
                last, high = rows[-1][0], max(low, millisecond(rows[-1][0]))
                rows += connection.execute(query, (match, high, last, -1)).fetchall()
            if rows:
                yield [rowid for (rowid,) in rows]


def days(connection: sqlite3.Connection) -> list[date]:
    """Return the days that have an index, oldest first."""
    names = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'words!_%' ESCAPE '!'"
    )
    return sorted(date(*map(int, match.groups())) for (name,) in names if (match := _TABLE.fullmatch(name)))


def retire_if_empty(connection: sqlite3.Connection, day: date) -> None:
    """Rename a day's index, so that it is not searched and `clear` removes it, if all its messages were removed.

    Runs in a transaction.
    """
    bounds = _bounds(day)
    row = connection.execute("SELECT 1 FROM message WHERE rowid >= ? AND rowid < ? LIMIT 1", bounds).fetchone()
    if row is None:
        connection.execute(f"ALTER TABLE {_table(day)} RENAME TO gone_{_table(day)}")
        connection.execute("DELETE FROM unindexed WHERE key >= ? AND key < ?", bounds)


def clear(connection: sqlite3.Connection) -> bool:
    """Remove a part of the retired indexes; return whether more may be left. Runs in a transaction.

    Removing them in parts is necessary, since dropping the index of 300,000 messages as a whole blocked other writers
    for 700 ms. FTS5 stores its pages as rows of the table ..._data. Rows 1 and 10 stay, since without them the index
    could not be dropped (https://www.sqlite.org/fts5.html#fts5_data_structures).
    """
    row = connection.execute("SELECT name FROM sqlite_master WHERE name GLOB 'gone_words_????????' LIMIT 1").fetchone()
    if row is None:
        return False
    pages = f"{row[0]}_data"
    removed = connection.execute(
        f"DELETE FROM {pages} WHERE id IN (SELECT id FROM {pages} WHERE id > 10 LIMIT ?)",
        (_PAGES_BATCH,),
    ).rowcount
    if removed < _PAGES_BATCH:
        connection.execute(f"DROP TABLE {row[0]}")
    return True


def _quoted(term: str) -> str:
    # Terms contain only letters, digits, marks and "=", so a term cannot close the quotes.
    return f'"{term[:-1]}"*' if term.endswith("*") else f'"{term}"'


def _table(day: date) -> str:
    return f"words_{day:%Y%m%d}"


def _bounds(day: date) -> tuple[int, int]:
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return key(first_id(start)), key(first_id(start + timedelta(days=1)))


def _day(rowid: int) -> date:
    return held_at(UUID(int=rowid >> 20 << 80)).date()
