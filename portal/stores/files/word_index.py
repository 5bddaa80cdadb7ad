"""The file store's inverted index: SQLite's FTS5 over the terms that `search` makes, one table a day.

Contentless (https://www.sqlite.org/fts5.html#contentless_tables), since the terms are all there is to find by; SQLite
before 3.43 cannot delete from such a table, so a day's table goes as a whole, once its messages are gone. What is left
of single messages until then leads to rows that are no more.

Messages have a rowid of our own that grows with the id, so that FTS5, which walks its lists by rowid, gives the newest
first without sorting. A message's terms first go to a plain table, in the message's own transaction, and from there
64 at a time: FTS5 writes several pages for each transaction, and so an `add` takes 5 % more processor time instead of
16 (measured). Whoever searches brings in the rest before.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from portal.model.message import first_id, held_at
from portal.stores.search import Terms

_TOGETHER = 64  # messages indexed in one go, on average
_PAGES_TOGETHER = 500  # of 4 KB, removed in one go
_MILLISECOND = 1 << 20  # keys of one
_KEY_MAX = (1 << 63) - 1
_TABLE = re.compile(r"words_(\d{4})(\d\d)(\d\d)")


def key(message_id: UUID) -> int:
    """The rowid of a message: 43 bits of milliseconds (until the year 2248) and 20 bits of what is random in the id.

    Grows with the id. Of a million messages held at 100 a second two get the same one every tenth time or so.
    """
    value = message_id.int
    return min((value >> 80) << 20 | (value >> 64 & 0xFFF) << 8 | value >> 54 & 0xFF, _KEY_MAX)


def millisecond(rowid: int) -> int:
    """The lowest key of the millisecond in which this message was held."""
    return rowid // _MILLISECOND * _MILLISECOND


def after_millisecond(message_id: UUID) -> int:
    """A key beyond those of all messages that were held in the same millisecond."""
    return min(millisecond(key(message_id)) + _MILLISECOND, _KEY_MAX)


def first_id_of(rowid: int) -> UUID:
    """The lowest quarantine id that has this `key`."""
    return UUID(int=rowid >> 20 << 80 | 7 << 76 | (rowid >> 8 & 0xFFF) << 64 | 2 << 62 | (rowid & 0xFF) << 54)


def put(connection: sqlite3.Connection, rowid: int, terms: Iterable[str]) -> None:
    """Have a new message indexed. Inside the transaction that makes its row."""
    add(connection, rowid, terms)
    if rowid % _TOGETHER == 0:
        bring_in(connection)


def add(connection: sqlite3.Connection, rowid: int, terms: Iterable[str]) -> None:
    """Have a message indexed under further terms."""
    connection.execute(
        "INSERT INTO unindexed (key, terms) VALUES (?, ?) "
        "ON CONFLICT (key) DO UPDATE SET terms = terms || ' ' || excluded.terms",
        (rowid, " ".join(terms)),
    )


def is_behind(connection: sqlite3.Connection) -> bool:
    """Whether there are messages to `bring_in`."""
    return connection.execute("SELECT 1 FROM unindexed LIMIT 1").fetchone() is not None


def bring_in(connection: sqlite3.Connection) -> None:
    """Index all that waits for it. Inside a transaction."""
    while (first := connection.execute("SELECT min(key) FROM unindexed").fetchone()[0]) is not None:
        day = _day(first)
        table, bounds = _table(day), _bounds(day)
        # The tokenizer takes terms as they are: all but ASCII's other characters belongs to a word.
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


def find(connection: sqlite3.Connection, wanted: Terms, since: int, below: int, at_most: int) -> Iterator[list[int]]:
    """Rowids of messages with these terms, in [since, below), newest first, so many at a time and the rest of their
    millisecond: within one a message whose key was taken has another's, and so the order of ids is not that of rowids.

    One transaction must be open meanwhile, since tables go with their days.
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
            rows = connection.execute(query, (match, low, high, at_most)).fetchall()
            if len(rows) < at_most:
                high = low
            else:
                last, high = rows[-1][0], max(low, millisecond(rows[-1][0]))
                rows += connection.execute(query, (match, high, last, -1)).fetchall()
            if rows:
                yield [rowid for (rowid,) in rows]


def days(connection: sqlite3.Connection) -> list[date]:
    """The days that have an index, oldest first."""
    names = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'words!_%' ESCAPE '!'"
    )
    return sorted(date(*map(int, match.groups())) for (name,) in names if (match := _TABLE.fullmatch(name)))


def retire_if_empty(connection: sqlite3.Connection, day: date) -> None:
    """Take a day's index out of use, for `clear`, if none of its messages is left. Inside a transaction."""
    bounds = _bounds(day)
    left = connection.execute("SELECT 1 FROM message WHERE rowid >= ? AND rowid < ? LIMIT 1", bounds).fetchone()
    if left is None:
        connection.execute(f"ALTER TABLE {_table(day)} RENAME TO gone_{_table(day)}")
        connection.execute("DELETE FROM unindexed WHERE key >= ? AND key < ?", bounds)


def clear(connection: sqlite3.Connection) -> bool:
    """Remove a part of what was retired; returns whether there is more. Inside a transaction.

    In parts, since dropping the index of 300,000 messages as a whole kept the others waiting for 700 ms. FTS5 keeps
    its pages as rows of the table ..._data; without its rows 1 and 10 it would not even let itself be dropped
    (https://www.sqlite.org/fts5.html#fts5_data_structures).
    """
    row = connection.execute("SELECT name FROM sqlite_master WHERE name GLOB 'gone_words_????????' LIMIT 1").fetchone()
    if row is None:
        return False
    pages = f"{row[0]}_data"
    removed = connection.execute(
        f"DELETE FROM {pages} WHERE id IN (SELECT id FROM {pages} WHERE id > 10 LIMIT ?)",
        (_PAGES_TOGETHER,),
    ).rowcount
    if removed < _PAGES_TOGETHER:
        connection.execute(f"DROP TABLE {row[0]}")
    return True


def _quoted(term: str) -> str:
    # Terms hold letters, digits, marks and "=" alone; nothing of them can end the quotes.
    return f'"{term[:-1]}"*' if term.endswith("*") else f'"{term}"'


def _table(day: date) -> str:
    return f"words_{day:%Y%m%d}"


def _bounds(day: date) -> tuple[int, int]:
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return key(first_id(start)), key(first_id(start + timedelta(days=1)))


def _day(rowid: int) -> date:
    return held_at(UUID(int=rowid >> 20 << 80)).date()
