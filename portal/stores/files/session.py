"""Sessions on SQLite. Ids are stored as 16 bytes and times as microseconds; both are recognized by the names of their
columns."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from time import monotonic
from typing import Any
from uuid import UUID

from portal.model.schedule import Preferences
from portal.stores.files.database import Database, from_micros, to_micros
from portal.stores.shared.session import Engine, Row, Session, parameters

_TIMES = re.compile(r"(^|_)(at|until|since|from|before)$")  # also matches header_from, whose text is not converted
_IDS = re.compile(r"(^|_)(id|lease)$")  # also matches the header message.message_id, whose text is not converted
_SURROGATES = re.compile("[\ud800-\udfff]")
_STEPS = 20_000  # of SQLite's virtual machine between two looks at the clock: about a millisecond
_IN = re.compile(r"\bin :(\w+)")


class SqliteSession(Session):
    """See `Session`. The store's write lock serves as the lock of every row."""

    def __init__(self, connection: sqlite3.Connection, database: Database) -> None:
        self.connection = connection
        self._database = database

    def execute(self, sql: str, *fields: object, **values: Any) -> int:
        return self._run(sql, fields, values).rowcount

    def execute_all(self, sql: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.connection.executemany(sql, [parameters((), row, _to_sqlite) for row in rows])

    def many(self, sql: str, *fields: object, **values: Any) -> list[Row]:
        return rows_of(self._run(sql, fields, values))

    def many_for_update(self, sql: str, **values: Any) -> list[Row]:
        return self.many(sql, **values)

    def one(
        self, sql: str, *fields: object, for_update: bool = False, skip_locked: bool = False, **values: Any
    ) -> Row | None:
        rows = self.many(sql, *fields, **values)
        return rows[0] if rows else None

    def _run(self, sql: str, fields: Sequence[object], values: Mapping[str, Any]) -> sqlite3.Cursor:
        bound = parameters(fields, values, _to_sqlite)

        def items(match: re.Match[str]) -> str:
            """Return SQL with one parameter for each item of a list: SQLite has no parameters for lists."""
            names = [f"{match[1]}_{n}" for n in range(len(bound[match[1]]))]
            bound.update(zip(names, bound[match[1]], strict=True))
            return f"in ({', '.join(f':{name}' for name in names)})"

        return self.connection.execute(_IN.sub(items, sql) if "in :" in sql else sql, bound)

    def lock(self, name: str) -> None:
        pass

    def limit(self, seconds: float) -> None:
        deadline = monotonic() + seconds
        self.connection.set_progress_handler(lambda: monotonic() > deadline, _STEPS)

    def was_ended(self, error: Exception) -> bool:
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        self.connection.execute("SAVEPOINT block")
        try:
            yield
        except BaseException:
            self.connection.execute("ROLLBACK TO block")
            raise
        finally:
            self.connection.execute("RELEASE block")

    def is_of_values(self, error: Exception) -> bool:
        of_values = (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError)
        return isinstance(error, of_values) or not isinstance(error, sqlite3.Error)

    def journal(self, line: Callable[[], dict[str, Any]]) -> None:
        self._database.journal_after_commit(line())


class SqliteEngine(Engine):
    """See `Engine`."""

    clock = "cast((julianday('now') - 2440587.5) * 86400.0 as text)"

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def reading(self, *, snapshot: bool = False) -> Iterator[SqliteSession]:
        with self._database.read() as connection:
            if snapshot:
                connection.execute("BEGIN")
            try:
                yield SqliteSession(connection, self._database)
            finally:
                connection.set_progress_handler(None, 0)
                if snapshot:
                    connection.execute("ROLLBACK")

    def non_ascii(self, column: str) -> str:
        return f"{column} GLOB '*[^ -~]*'"

    @contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[SqliteSession]:
        with self._database.write(durable=durable) as connection:
            try:
                yield SqliteSession(connection, self._database)
            finally:
                connection.set_progress_handler(None, 0)


def connection_of(session: Session) -> sqlite3.Connection:
    """Return the SQLite connection of a session."""
    assert isinstance(session, SqliteSession)  # noqa: S101 - the store's parts share one engine
    return session.connection


def rows_of(cursor: sqlite3.Cursor) -> list[Row]:
    """Return all rows with ids and times as Python values."""
    rows = cursor.fetchall()
    if not rows:
        return rows
    converters = _converters(tuple(column[0] for column in cursor.description))
    if not converters:
        return rows
    converted = []
    for row in rows:
        values = list(row)
        for index, convert in converters:
            values[index] = convert(values[index])
        converted.append(tuple(values))
    return converted


def iterate_rows(cursor: sqlite3.Cursor) -> Iterator[Row]:
    """Yield the rows likewise, each one when SQLite reads it."""
    return map(converter(cursor), cursor)


def converter(cursor: sqlite3.Cursor) -> Callable[[Row], Row]:
    """Return a function that converts a row likewise."""
    converters = _converters(tuple(column[0] for column in cursor.description))

    def converted(row: Row) -> Row:
        values = list(row)
        for index, convert in converters:
            values[index] = convert(values[index])
        return tuple(values)

    return converted


@lru_cache(maxsize=200)
def _converters(names: tuple[str, ...]) -> list[tuple[int, Callable[[Any], Any]]]:
    return [
        (index, _time if _TIMES.search(name) else _id)
        for index, name in enumerate(names)
        if _TIMES.search(name) or _IDS.search(name)
    ]


def _time(value: Any) -> Any:
    return from_micros(value) if isinstance(value, int) else value


def _id(value: Any) -> Any:
    return UUID(bytes=value) if isinstance(value, bytes) else value


def _to_sqlite(value: Any) -> Any:
    """Return a value as SQLite stores it. Lone surrogates, which a terminal may pass on, are replaced: they are not
    valid Unicode."""
    if isinstance(value, UUID):
        return value.bytes
    if isinstance(value, datetime):
        return to_micros(value)
    if isinstance(value, Preferences):
        return value.to_json()
    if isinstance(value, str) and not value.isascii():
        return _SURROGATES.sub("\ufffd", value)
    return value
