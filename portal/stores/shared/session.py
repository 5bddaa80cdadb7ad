"""A small interface to both engines, for statements that are the same in both.

SQL has named parameters (``:name``) and the tables and columns of quarantine.sql. Parameters and results are Python
values: UUID, aware UTC datetime, str, bytes, int, float, None. ``in :name`` takes a list. Parameters are passed by
name, or as the fields of a dataclass or named tuple: ``session.execute(sql, key, reason="…")``.

Limits of the SQL that both engines accept: the greater of two values needs ``case`` (PostgreSQL has `greatest`, SQLite
`max`); a column of the conflicting row is qualified by its table; comparing text depends on the collation.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

Row = tuple[Any, ...]


class Session(ABC):
    """Runs the statements of one transaction. They raise the engine's errors, which `Engine` translates."""

    @abstractmethod
    def execute(self, sql: str, *fields: object, **values: Any) -> int:
        """Execute a statement; return the number of rows it changed."""

    @abstractmethod
    def execute_all(self, sql: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Execute a statement for each of these rows of parameters, without a round trip for each."""

    @abstractmethod
    def many(self, sql: str, *fields: object, **values: Any) -> list[Row]:
        """Return all rows."""

    @abstractmethod
    def many_for_update(self, sql: str, **values: Any) -> list[Row]:
        """Return all rows, as `one` with ``for_update``. The statement has an order, so that none waits for another."""

    @abstractmethod
    def one(
        self, sql: str, *fields: object, for_update: bool = False, skip_locked: bool = False, **values: Any
    ) -> Row | None:
        """Return the first row, or None.

        ``for_update``: wait for other transactions that change the row, and lock it until the end of this one.
        ``skip_locked``: skip rows that other transactions have locked.
        """

    @abstractmethod
    def lock(self, name: str) -> None:
        """Acquire the lock of this name, and hold it until the end of the transaction."""

    @abstractmethod
    def limit(self, seconds: float) -> None:
        """End the statements of this session that run so many seconds from now on, see `was_ended`.

        After such an error the session takes no more statements.
        """

    @abstractmethod
    def was_ended(self, error: Exception) -> bool:
        """Return whether `limit` caused this error."""

    @abstractmethod
    def savepoint(self) -> AbstractContextManager[object]:
        """Begin a block whose statements are undone if it raises; the transaction can go on then."""

    @abstractmethod
    def is_of_values(self, error: Exception) -> bool:
        """Return whether an error comes from values and not from the database: trying again would not help."""

    def journal(self, line: Callable[[], dict[str, Any]]) -> None:  # noqa: B027 - PostgreSQL keeps no journal
        """Write this line to the audit journal after the commit, if the store has a journal."""


def parameters(fields: Sequence[Any], values: Mapping[str, Any], adapt: Callable[[Any], Any]) -> dict[str, Any]:
    """Return all parameters of a statement by name. Values, and the items of lists, are passed through ``adapt``."""
    result: dict[str, Any] = {}
    for each in fields:
        names = getattr(each, "_fields", None) or _names(each.__class__)  # a named tuple has `_fields`
        result.update((name, getattr(each, name)) for name in names)
    result.update(values)
    return {name: [adapt(item) for item in v] if isinstance(v, list) else adapt(v) for name, v in result.items()}


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


class Engine(ABC):
    """Begins transactions. Raises StoreUnavailable and StoreUnusable only."""

    clock: str  # SQL: the time of the store's own clock, the same for all hosts, in seconds since 1970 as text

    @abstractmethod
    def reading(self, *, snapshot: bool = False) -> AbstractContextManager[Session]:
        """Begin a session for statements that change nothing. ``snapshot``: all of them see the same state."""

    @abstractmethod
    def non_ascii(self, column: str) -> str:
        """Return the SQL condition that a column contains non-ASCII characters."""

    @abstractmethod
    def writing(self, *, durable: bool = True) -> AbstractContextManager[Session]:
        """Begin a transaction that is committed on exit, or rolled back by any exception.

        ``durable``: after the commit it survives a power cut.
        """
