"""A small interface over both engines, for statements that are the same in both.

SQL has named parameters (``:name``) and the tables and columns of quarantine.sql. Values go in and come out as Python
values: UUID, aware UTC datetime, str, bytes, int, float, None. ``in :name`` takes a list. Parameters are given by name,
or as the fields of a dataclass or named tuple: ``session.execute(sql, key, reason="…")``. Of what the engines' SQL
has in common, note that only ``case`` compares two values (`greatest`, `max`), that a column of a conflicting row is
qualified by its table, and that comparing text is not the same in both (collations).
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
    """The statements of one transaction. They raise the engine's errors, which `Engine` translates."""

    @abstractmethod
    def execute(self, sql: str, *fields: object, **values: Any) -> int:
        """Execute a statement; return the number of rows it changed."""

    @abstractmethod
    def many(self, sql: str, *fields: object, **values: Any) -> list[Row]:
        """Return all rows."""

    @abstractmethod
    def one(
        self, sql: str, *fields: object, for_update: bool = False, skip_locked: bool = False, **values: Any
    ) -> Row | None:
        """Return the first row. ``for_update``: as it is once no other transaction changes it, and locked until the
        end of this one; ``skip_locked``: pass over rows that others have locked."""

    @abstractmethod
    def lock(self, name: str) -> None:
        """Wait for other transactions that have a lock of this name, and hold it until the end of this one."""

    def journal(self, line: Callable[[], dict[str, Any]]) -> None:  # noqa: B027 - PostgreSQL keeps no journal
        """Write this line into the audit journal after the commit, in a store that has one."""


def parameters(fields: Sequence[Any], values: Mapping[str, Any], adapt: Callable[[Any], Any]) -> dict[str, Any]:
    """Return all parameters of a statement by name, each adapted; of a list its items."""
    given: dict[str, Any] = {}
    for each in fields:
        names = getattr(each, "_fields", None) or _names(each.__class__)  # a named tuple has `_fields`
        given.update((name, getattr(each, name)) for name in names)
    given.update(values)
    return {name: [adapt(item) for item in v] if isinstance(v, list) else adapt(v) for name, v in given.items()}


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


class Engine(ABC):
    """Begins transactions. Its errors are StoreUnavailable and StoreUnusable."""

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
