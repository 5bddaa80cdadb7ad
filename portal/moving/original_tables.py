"""Reads the tables ``meta`` and ``msg`` of sys4's original quarantine.py; nothing is ever written there.

    meta (qid char(30) primary key, timestamp timestamp, score double precision, ip inet, action char(20),
          "from" bytea, symbols json)
    msg  (qid char(30), content text)

Columns that are missing or more are put up with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from portal.model.errors import StoreUnavailable, StoreUnusable
from portal.stores.postgres.database import OTHER_SECONDS, Connection, begin, translated


@dataclass(frozen=True, slots=True)
class OriginalRow:
    """One mail of the original's tables."""

    queue_id: str
    fields: dict[str, str]  # Rspamd's metadata by its own names, octets as ISO-8859-1
    held_at: datetime | None
    content: bytes | None  # None: metadata without a mail


class OriginalTables:
    """The tables, one mail at a time: a list of queue ids is all that is held in memory."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def queue_ids(self) -> list[str]:
        """Of all mails, in order. Raises StoreUnavailable."""
        with translated():
            found = self._connection.execute("select qid from meta union select qid from msg order by 1").fetchall()
        return [str(qid) for (qid,) in found]

    def read(self, qid: str) -> list[OriginalRow]:
        """The mails of a queue id, usually one. Raises StoreUnavailable."""
        with translated():
            meta = self._connection.execute("select * from meta where qid = %s", [qid])
            row = meta.fetchone()
            known = dict(zip((c.name for c in meta.description or ()), row or (), strict=False))
            contents = self._connection.execute("select content from msg where qid = %s", [qid]).fetchall()
        at = known.pop("timestamp", None)
        if isinstance(at, datetime):
            # Without a zone it is the server's, whose NOW() it was.
            at = (at if at.tzinfo else at.replace(tzinfo=self._connection.info.timezone)).astimezone(UTC)
        fields = {name: _text(value) for name, value in known.items() if value is not None}
        fields["qid"] = qid.rstrip()  # char(30) is filled up with blanks
        return [
            OriginalRow(fields["qid"], fields, at if isinstance(at, datetime) else None, _bytes(content))
            for (content,) in contents or [(None,)]
        ]


@contextmanager
def original_tables(dsn: str) -> Iterator[OriginalTables]:
    """Connect. Raises StoreUnavailable when it cannot be reached, StoreUnusable when the tables are not there."""
    try:
        conninfo = make_conninfo(dsn, connect_timeout=3)
    except psycopg.Error:
        # libpq's own sentence repeats a piece of the address, which may be of the password; so it is not even chained.
        raise StoreUnusable(
            "--dsn is no PostgreSQL address: write postgresql://user@host/database, with the password in ~/.pgpass"
        ) from None
    try:
        with translated():
            connection = Connection.connect(conninfo, autocommit=True, prepare_threshold=None)
    except StoreUnavailable as error:
        raise StoreUnavailable(f"--dsn: {error}") from error
    except UnicodeError as error:
        raise StoreUnusable("--dsn: a host name in it cannot be: look for two dots, or a very long part") from error
    with translated(), connection:
        begin(connection, OTHER_SECONDS)
        connection.execute("set transaction isolation level repeatable read, read only")
        for table, column in (("meta", "qid"), ("msg", "qid"), ("msg", "content")):
            there = connection.execute(
                "select from pg_attribute where attrelid = to_regclass(%s) and attname = %s", [table, column]
            )
            if not there.rowcount:
                raise StoreUnusable(
                    f"--dsn: this database has no table {table} with a column {column}: name the one that the "
                    "original's DBCONF names"
                )
        yield OriginalTables(connection)


def _text(value: Any) -> str:
    if isinstance(value, bytes | memoryview):
        return bytes(value).decode("latin-1")
    if isinstance(value, list | dict):
        return json.dumps(value)
    return str(value).strip()


def _bytes(content: Any) -> bytes | None:
    return content.encode() if isinstance(content, str) else None if content is None else bytes(content)
