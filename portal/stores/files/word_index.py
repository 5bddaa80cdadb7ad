"""The file store's inverted index: SQLite's FTS5 over the terms of `stores.search`, in tables of one or more UTC days.

A search queries each table, so there are some 50 of them whatever the retention is (`lifecycle.width_days`). Tables of
another width, of an older program or an earlier retention, stay until they are empty.

The tables are contentless (https://www.sqlite.org/fts5.html#contentless_tables), since only terms are searched. SQLite
before 3.43 cannot delete from such a table, so a table is dropped as a whole once all its messages are removed. Until
then it may refer to rows that no longer exist.

The rowid of a message is computed from its id and grows with it, so that FTS5, which reads its lists by rowid, returns
the newest first without sorting. The terms of a message first go to a plain table, in the transaction that adds the
message, and from there to FTS5, 64 messages at a time, since FTS5 writes several pages for each transaction. Row of the
bench: "a post without batches for the word index". A search also compares the terms of the waiting messages.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from portal.model.message import first_id, held_at
from portal.stores.lifecycle import RETENTION, new_range, width_days
from portal.stores.search import Terms

_BATCH = 64  # messages indexed in one transaction, on average
_MERGED_PAGES = 100  # written in one transaction by a merge: 10 ms
_PAGES_BATCH = 500  # pages of 4 KB removed in one transaction
_MILLISECOND = 1 << 20  # keys per millisecond
KEY_MAX = (1 << 63) - 1
_TABLE = re.compile(r"(?:gone_)?words_(\d{4})(\d\d)(\d\d)(?:_(\d+))?")


class Index(NamedTuple):
    """The index of some days."""

    table: str
    begin: datetime  # the first time of these days
    end: datetime  # the first time after them

    @property
    def keys(self) -> tuple[int, int]:
        """The lowest key, and the lowest key after it."""
        return key(first_id(self.begin)), key(first_id(self.end))


def key(message_id: UUID) -> int:
    """Return the rowid of a message: 43 bits of milliseconds (until the year 2248) and 20 of the id's random bits.

    It grows with the id. Among a million messages held at 100 a second, two have the same key with a probability of
    about one in ten.
    """
    value = message_id.int
    return min((value >> 80) << 20 | (value >> 64 & 0xFFF) << 8 | value >> 54 & 0xFF, KEY_MAX)


def millisecond(rowid: int) -> int:
    """Return the lowest key of the millisecond in which this message was held."""
    return rowid // _MILLISECOND * _MILLISECOND


def next_millisecond(rowid: int) -> int:
    """Return a key greater than those of all messages that were held in the same millisecond."""
    return min(millisecond(rowid) + _MILLISECOND, KEY_MAX)


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
        index = _index_for(connection, held_at(first_id_of(first)))
        connection.execute(
            f"INSERT INTO {index.table} (rowid, terms) SELECT key, terms FROM unindexed "
            "WHERE key >= ? AND key < ? ORDER BY key",
            index.keys,
        )
        connection.execute("DELETE FROM unindexed WHERE key >= ? AND key < ?", index.keys)


def _index_for(connection: sqlite3.Connection, at: datetime) -> Index:
    """Return the index of the messages held at this time; create it if there is none."""
    existing = indexes(connection)
    for index in existing:
        if index.begin <= at < index.end:
            return index
    noted = connection.execute("SELECT value FROM setting WHERE name = ?", (RETENTION,)).fetchone()
    width = width_days(int(noted[0])) if noted else 1
    begin, end = new_range(at, width, [(index.begin, index.end) for index in existing])
    days = (end - begin).days
    index = Index(f"words_{begin:%Y%m%d}" + (f"_{days}" if days > 1 else ""), begin, end)
    # The tokenizer keeps terms whole: it splits only at ASCII characters other than letters, digits and "=".
    connection.execute(
        f"CREATE VIRTUAL TABLE {index.table} USING fts5(terms, content='', detail=none, columnsize=0, "
        "prefix='2 3', tokenize=\"ascii tokenchars '='\")"
    )
    return index


class Catalog:
    """The indexes of a database, which are read again only when its schema has changed."""

    def __init__(self) -> None:
        self._known: tuple[int, list[Index]] = -1, []

    def indexes(self, connection: sqlite3.Connection) -> list[Index]:
        """Return the indexes, oldest first."""
        (version,) = connection.execute("PRAGMA schema_version").fetchone()
        if self._known[0] != version:
            self._known = version, indexes(connection)
        return self._known[1]


def hits(
    existing: Sequence[Index], wanted: Terms, since: int, below: int, *, oldest_first: bool
) -> tuple[str, list[Any]]:
    """Return SQL for the rowids ``key`` of the messages with these terms, in [since, below), in order, and its
    parameters, which are ?1 to ?4.

    SQLite reads a rowid when it is asked for, and an index when those of the days before are read. Messages that wait
    for being indexed are compared one by one. Within a millisecond the order of rowids can differ from that of ids,
    since a message whose key was taken has the next free one.
    """
    waiting = "SELECT key FROM unindexed WHERE key >= ?2 AND key < ?3 AND has_terms(?4, terms)"
    order = f"ORDER BY key {'ASC' if oldest_first else 'DESC'}"
    parts, end = list[str](), KEY_MAX
    for index in reversed(existing):
        low, high = index.keys
        if low < below and since < high:
            between = (
                f"SELECT rowid AS key FROM {index.table} WHERE {index.table} MATCH ?1 AND rowid >= ?2 AND rowid < ?3"
            )
            # UNION, since a message that was indexed may wait again with more terms.
            parts += [
                f"{waiting} AND key >= {high} AND key < {end} {order}",
                f"{between} UNION {waiting} AND key >= {low} AND key < {high} {order}",
            ]
            end = low
    parts.append(f"{waiting} AND key < {end} {order}")
    parts = parts[::-1] if oldest_first else parts
    match = " AND ".join(f"({' OR '.join(map(_quoted, group))})" for group in wanted)
    return " UNION ALL ".join(f"SELECT * FROM ({part} LIMIT -1)" for part in parts) + " LIMIT -1", [
        *(match, since, below, json.dumps(wanted))
    ]


def find(connection: sqlite3.Connection, wanted: Terms, since: int, below: int, limit: int) -> Iterator[list[int]]:
    """Yield rowids of messages with these terms, in [since, below), newest first, in batches.

    A batch has ``limit`` rowids and the others of the last one's millisecond. Within a millisecond the order of rowids
    can differ from that of ids, since a message whose key was taken has the next free one.

    The caller keeps one transaction open until the end, since a purge drops tables.
    """
    match = " AND ".join(f"({' OR '.join(map(_quoted, group))})" for group in wanted)
    for index in reversed(indexes(connection)):
        low, high = index.keys
        low, high = max(low, since), min(high, below)
        query = (
            f"SELECT rowid FROM {index.table} WHERE {index.table} MATCH ? "
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


def indexes(connection: sqlite3.Connection) -> list[Index]:
    """Return the indexes, oldest first."""
    found = []
    for match in _tables(connection, "words"):
        year, month, day, days = match.groups()
        begin = datetime(int(year), int(month), int(day), tzinfo=UTC)
        found.append(Index(match[0], begin, begin + timedelta(days=int(days or 1))))
    return sorted(found, key=lambda index: index.begin)


def _tables(connection: sqlite3.Connection, prefix: str) -> list[re.Match[str]]:
    """Return the names of the indexes that begin with this prefix, without those of their own tables."""
    names = connection.execute(f"SELECT name FROM sqlite_master WHERE type = 'table' AND name GLOB '{prefix}_*'")
    return [match for (name,) in names if (match := _TABLE.fullmatch(name))]


def retire_if_empty(connection: sqlite3.Connection, index: Index) -> None:
    """Rename an index, so that it is not searched and `clear` removes it, if all its messages were removed.

    Runs in a transaction.
    """
    row = connection.execute("SELECT 1 FROM message WHERE rowid >= ? AND rowid < ? LIMIT 1", index.keys).fetchone()
    if row is None:
        connection.execute(f"ALTER TABLE {index.table} RENAME TO gone_{index.table}")
        connection.execute("DELETE FROM unindexed WHERE key >= ? AND key < ?", index.keys)


def clear(connection: sqlite3.Connection) -> bool:
    """Remove a part of the retired indexes; return whether more may be left. Runs in a transaction.

    Removing them in parts is necessary, since dropping the index of 300,000 messages as a whole blocked other writers
    for 700 ms. FTS5 stores its pages as rows of the table ..._data. Rows 1 and 10 stay, since without them the index
    could not be dropped (https://www.sqlite.org/fts5.html#fts5_data_structures).
    """
    retired = _tables(connection, "gone_words")
    if not retired:
        return False
    table = retired[0][0]
    pages = f"{table}_data"
    removed = connection.execute(
        f"DELETE FROM {pages} WHERE id IN (SELECT id FROM {pages} WHERE id > 10 LIMIT ?)",
        (_PAGES_BATCH,),
    ).rowcount
    if removed < _PAGES_BATCH:
        connection.execute(f"DROP TABLE {table}")
    return True


def merge(connection: sqlite3.Connection, index: Index) -> bool:
    """Merge a part of an index into one segment; return whether more may be left. Runs in a transaction.

    A search reads the segments one by one. FTS5 writes one for each transaction, and leaves up to 16 small ones
    (https://www.sqlite.org/fts5.html#the_merge_command).
    """
    before = connection.total_changes
    connection.execute(f"INSERT INTO {index.table} ({index.table}, rank) VALUES ('merge', ?)", (-_MERGED_PAGES,))
    return connection.total_changes - before >= 2  # fewer: it had one segment


def _quoted(term: str) -> str:
    # Terms contain only letters, digits, marks and "=", so a term cannot close the quotes.
    return f'"{term[:-1]}"*' if term.endswith("*") else f'"{term}"'
