"""Dataclasses that are made fast: ``@record(frozen=True, slots=True)``.

For each frozen class `dataclasses` of Python 3.11 compiles six functions. A command of `quarantine` makes more than a
hundred such classes, and this took a quarter of its processor time. Here only `__init__` is compiled, and all classes
share the others. For a type checker a record is a frozen dataclass; when the program runs, nothing prevents a change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any

__all__ = ["record"]

if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:

    def record(*, frozen: bool, slots: bool, kw_only: bool = False) -> Callable[[type], type]:
        """Return a decorator like `dataclass`. ``frozen`` and ``slots`` are for the type checker, and always true."""

        def decorate(cls: type) -> type:
            own = vars(cls)
            made = dataclass(slots=True, repr=False, eq=False, kw_only=kw_only)(cls)
            names = [each.name for each in fields(made) if each.compare]
            made._compared = attrgetter(*names) if names else staticmethod(_nothing)
            for function in (__repr__, __eq__, __hash__):
                if function.__name__ not in own:
                    setattr(made, function.__name__, function)
            return made

        return decorate


def _nothing(record: object) -> tuple[()]:
    return ()


def __repr__(self: Any) -> str:
    shown = ", ".join(f"{each.name}={getattr(self, each.name)!r}" for each in fields(self) if each.repr)
    return f"{type(self).__qualname__}({shown})"


def __eq__(self: Any, other: Any) -> bool:
    if other.__class__ is not self.__class__:
        return NotImplemented
    compared = self._compared
    return bool(compared(self) == compared(other))


def __hash__(self: Any) -> int:
    return hash(self._compared(self))
