"""Sessions and engine for the shared statements on PostgreSQL."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from time import monotonic
from typing import Any, overload

import psycopg

from portal.model.schedule import Preferences
from portal.stores.postgres.database import OTHER_SECONDS, Connection, Database
from portal.stores.shared.session import Engine, Row, Session, parameters

_NAMED = re.compile(r"(\bin )?(?<!:):(\w+)")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class PostgresSession(Session):
    """See `Session`."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._deadline: float | None = None  # in time.monotonic()

    def execute(self, sql: str, *fields: object, **values: Any) -> int:
        return self._run(sql, fields, values).rowcount

    def execute_all(self, sql: str, rows: Sequence[Mapping[str, Any]]) -> None:
        with self.connection.cursor() as cursor:
            cursor.executemany(_for_psycopg(sql), [parameters((), row, _adapt) for row in rows])

    def many(self, sql: str, *fields: object, **values: Any) -> list[Row]:
        return rows_of(self._run(sql, fields, values).fetchall())

    def many_for_update(self, sql: str, **values: Any) -> list[Row]:
        return self.many(f"{sql} for update", **values)

    def _run(self, sql: str, fields: Sequence[object], values: Mapping[str, Any]) -> psycopg.Cursor[Row]:
        self._set_timeout()
        return self.connection.execute(_for_psycopg(sql), parameters(fields, values, _adapt))

    def _set_timeout(self) -> None:
        if self._deadline is not None:
            milliseconds = max(1, round((self._deadline - monotonic()) * 1000))  # 0 is no limit
            self.connection.execute(f"set local statement_timeout = {milliseconds}".encode())

    def one(
        self, sql: str, *fields: object, for_update: bool = False, skip_locked: bool = False, **values: Any
    ) -> Row | None:
        sql += " for update" if for_update else ""
        rows = self.many(sql + " skip locked" if skip_locked else sql, *fields, **values)
        return rows[0] if rows else None

    def lock(self, name: str) -> None:
        self._set_timeout()
        # Never the lock of the schema, whose number is below 2^32.
        self.connection.execute("select pg_advisory_xact_lock(%s)", [1 << 32 | zlib.crc32(name.encode())])

    def limit(self, seconds: float) -> None:
        self._deadline = monotonic() + seconds

    def was_ended(self, error: Exception) -> bool:
        return self._deadline is not None and isinstance(error, psycopg.errors.QueryCanceled)

    def savepoint(self) -> AbstractContextManager[object]:
        return self.connection.transaction()

    def is_of_values(self, error: Exception) -> bool:
        of_values = (psycopg.DataError, psycopg.errors.ProgramLimitExceeded)
        return isinstance(error, of_values) or not isinstance(error, psycopg.Error)


class PostgresEngine(Engine):
    """See `Engine`."""

    clock = "cast(extract(epoch from clock_timestamp()) as text)"

    def __init__(self, database: Database, seconds: float = OTHER_SECONDS) -> None:
        """``seconds`` is the time limit of each statement."""
        self._database = database
        self._seconds = seconds

    @contextmanager
    def reading(self, *, snapshot: bool = False) -> Iterator[PostgresSession]:
        with self._database.transaction(self._seconds) as connection:
            if snapshot:
                connection.execute("set transaction isolation level repeatable read")
            yield PostgresSession(connection)

    def non_ascii(self, column: str) -> str:
        return rf"{column} ~ '[^\x01-\x7f]'"

    @contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[PostgresSession]:
        with self._database.transaction(self._seconds) as connection:
            yield PostgresSession(connection)


def connection_of(session: Session) -> Connection:
    """Return the connection of a session of this store."""
    assert isinstance(session, PostgresSession)  # noqa: S101 - the store's parts share one engine
    return session.connection


def rows_of(rows: Sequence[Row]) -> list[Row]:
    """Return rows with their times in UTC: psycopg returns them in the session's time zone."""
    return [tuple(v.astimezone(UTC) if isinstance(v, datetime) else v for v in row) for row in rows]


@overload
def text(value: str) -> str: ...
@overload
def text(value: str | None) -> str | None: ...
def text(value: str | None) -> str | None:
    """Return text that PostgreSQL can store: NUL and lone surrogates become U+FFFD.

    The exporter guarantees valid text. If that ever fails, a replaced character is better than mail that cannot be
    held. Text from operators and mail servers has no such guarantee.
    """
    return None if value is None else _UNSTORABLE.sub("\ufffd", value)


@lru_cache(maxsize=500)
def _for_psycopg(sql: str) -> bytes:
    """Return a statement with its named parameters in psycopg's format."""

    def parameter(match: re.Match[str]) -> str:
        return f"= any(%({match[2]})s)" if match[1] else f"%({match[2]})s"

    return _NAMED.sub(parameter, sql.replace("%", "%%")).encode()


def _adapt(value: Any) -> Any:
    if isinstance(value, Preferences):
        return value.to_json()
    return text(value) if isinstance(value, str) else value
