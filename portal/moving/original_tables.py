"""Reader of the tables ``meta`` and ``msg`` of sys4's original quarantine.py. It never writes to them.

    meta (qid char(30) primary key, timestamp timestamp, score double precision, ip inet, action char(20),
          "from" bytea, symbols json)
    msg  (qid char(30), content text)

Missing and additional columns are accepted, except ``qid`` and ``content``, which must exist.
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
    """One message of the original's tables."""

    queue_id: str
    fields: dict[str, str]  # Rspamd's metadata by its own names, octets as ISO-8859-1
    held_at: datetime | None
    content: bytes | None  # None: metadata without a message


class OriginalTables:
    """The tables, read one message at a time: only a list of queue ids is kept in memory."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def queue_ids(self) -> list[str]:
        """Return the queue ids of all messages, in order. Raises StoreUnavailable."""
        with translated():
            found = self._connection.execute("select qid from meta union select qid from msg order by 1").fetchall()
        return [str(qid) for (qid,) in found]

    def read(self, qid: str) -> list[OriginalRow]:
        """Return the messages of a queue id, usually one. Raises StoreUnavailable."""
        with translated():
            meta = self._connection.execute("select * from meta where qid = %s", [qid])
            row = meta.fetchone()
            known = dict(zip((c.name for c in meta.description or ()), row or (), strict=False))
            contents = self._connection.execute("select content from msg where qid = %s", [qid]).fetchall()
        at = known.pop("timestamp", None)
        if isinstance(at, datetime):
            # A time without a zone is in the server's zone: the original inserted NOW().
            at = (at if at.tzinfo else at.replace(tzinfo=self._connection.info.timezone)).astimezone(UTC)
        fields = {name: _text(value) for name, value in known.items() if value is not None}
        fields["qid"] = qid.rstrip()  # char(30) is padded with spaces
        return [
            OriginalRow(fields["qid"], fields, at if isinstance(at, datetime) else None, _bytes(content))
            for (content,) in contents or [(None,)]
        ]


@contextmanager
def original_tables(dsn: str) -> Iterator[OriginalTables]:
    """Connect to the database. Raises StoreUnavailable if it is unreachable, StoreUnusable if tables are missing."""
    try:
        conninfo = make_conninfo(dsn, connect_timeout=3)
    except psycopg.Error:
        # libpq's message repeats a part of the address, which may be a part of the password; so it is not even chained.
        raise StoreUnusable(
            "--dsn is not a PostgreSQL address: use postgresql://user@host/database, with the password in ~/.pgpass"
        ) from None
    try:
        with translated():
            connection = Connection.connect(conninfo, autocommit=True, prepare_threshold=None)
    except StoreUnavailable as error:
        raise StoreUnavailable(f"--dsn: {error}") from error
    except UnicodeError as error:
        raise StoreUnusable(
            "--dsn: invalid host name (empty label, or one longer than 63 characters): correct the address"
        ) from error
    with translated(), connection:
        begin(connection, OTHER_SECONDS)
        connection.execute("set transaction isolation level repeatable read, read only")
        for table, column in (("meta", "qid"), ("msg", "qid"), ("msg", "content")):
            there = connection.execute(
                "select from pg_attribute where attrelid = to_regclass(%s) and attname = %s", [table, column]
            )
            if not there.rowcount:
                raise StoreUnusable(
                    f"--dsn: this database has no table {table} with a column {column}: use the database in the "
                    "original's DBCONF"
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
