"""A small interface over both engines, for statements that are the same in both.

SQL has named parameters (``:name``) and the tables and columns of quarantine.sql. Values go in and come out as Python
values: UUID, aware UTC datetime, str, bytes, int, float, None. ``in :name`` takes a sequence. Of what the engines' SQL
has in common, note that only ``case`` compares two values (`greatest`, `max`), that a column of a conflicting row is
qualified by its table, and that comparing text is not the same in both (collations).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

Row = tuple[Any, ...]


class Session(ABC):
    """The statements of one transaction. They raise the engine's errors, which `Engine` translates."""

    @abstractmethod
    def execute(self, sql: str, **values: Any) -> int:
        """Execute a statement; return the number of rows it changed."""

    @abstractmethod
    def many(self, sql: str, **values: Any) -> list[Row]:
        """Return all rows."""

    @abstractmethod
    def one(self, sql: str, *, for_update: bool = False, skip_locked: bool = False, **values: Any) -> Row | None:
        """Return the first row. ``for_update``: as it is once no other transaction changes it, and locked until the
        end of this one; ``skip_locked``: pass over rows that others have locked."""

    @abstractmethod
    def lock(self, name: str) -> None:
        """Wait for other transactions that have a lock of this name, and hold it until the end of this one."""

    def journal(self, line: Callable[[], dict[str, Any]]) -> None:  # noqa: B027 - PostgreSQL keeps no journal
        """Write this line into the audit journal after the commit, in a store that has one."""


class Engine(ABC):
    """Begins transactions. Its errors are StoreUnavailable and StoreMisfit."""

    @abstractmethod
    def reading(self, *, snapshot: bool = False) -> AbstractContextManager[Session]:
        """Begin statements that change nothing. ``snapshot``: all of them see the store as it is at one moment."""

    @abstractmethod
    def non_ascii(self, column: str) -> str:
        """Return the SQL condition that a column has other characters than those of ASCII."""

    @abstractmethod
    def writing(self, *, durable: bool = True) -> AbstractContextManager[Session]:
        """Begin a transaction that is committed on exit, or rolled back by any exception. ``durable``: once committed
        it survives a power cut."""
