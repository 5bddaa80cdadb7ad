"""Sentences with values, which are translated where they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from datetime import timedelta

from portal.model.record import record


@record(frozen=True, slots=True)
class Phrase:
    """A sentence with values. Its ``str`` is the one for commands and programs, in English."""

    text: str  # marked by `N_`, with %(name)s for each value
    values: Mapping[str, str | timedelta] = field(default_factory=dict)  # a timedelta: a number of days

    def __str__(self) -> str:
        return self.text % {name: _in_english(value) for name, value in self.values.items()}


class BadValue(ValueError):
    """A text that is not a value of what it was entered for. ``phrase`` says what to enter instead."""

    def __init__(self, text: str, **values: str) -> None:
        """``text``, marked by `N_`, and its values, as in `Phrase`."""
        self.phrase = Phrase(text, values)
        super().__init__(str(self.phrase))


def _in_english(value: str | timedelta) -> str:
    if isinstance(value, str):
        return value
    return "1 day" if value.days == 1 else f"{value.days} days"
