"""Record the statements that a page sends to the database, on both stores."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

# SQLite reports what it sends to the tables of its full-text index as comments, but for the configuration of one.
# Whether values of domains have changed is asked every few seconds, whatever the pages are.
_NOT_COUNTED = re.compile(
    r"\s*(--|SELECT k, v FROM 'main'\.'\w+_config'|select count\(\*\), \(select id from domain_value"
    r"|(BEGIN|COMMIT|ROLLBACK|SET|PRAGMA)\b)",
    re.IGNORECASE,
)


class Statements:
    """The statements of stores that are opened from now on, without those that begin and end transactions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._recorded: list[str] = []
        connect, execute = sqlite3.connect, psycopg.Cursor.execute

        def connected(*args: Any, **options: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*args, **options)
            connection.set_trace_callback(self._record)
            return connection

        def executed(cursor: Any, query: Any, *args: Any, **options: Any) -> Any:
            self._record(query.decode() if isinstance(query, bytes) else str(query))
            return execute(cursor, query, *args, **options)

        monkeypatch.setattr(sqlite3, "connect", connected)
        monkeypatch.setattr(psycopg.Cursor, "execute", executed)

    def _record(self, statement: str) -> None:
        if not _NOT_COUNTED.match(statement):
            self._recorded.append(statement)

    @contextmanager
    def of(self) -> Iterator[list[str]]:
        """Collect the statements of a block."""
        statements: list[str] = []
        before = len(self._recorded)
        yield statements
        statements += self._recorded[before:]
