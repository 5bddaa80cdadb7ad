"""Types of options and arguments that several commands have."""

from __future__ import annotations

import re
from datetime import MAXYEAR, UTC, datetime, timedelta
from typing import Any

import click

from portal.model.text import shown

_RELATIVE_TIME = re.compile(r"(\d{1,5})([dhm])")
_DATE = re.compile(r"\d{4}-?\d\d-?\d\d")


class FilledText(click.ParamType[str]):
    """A text that is not blank. An empty variable in a script must not select all messages."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text without blanks around it. Raises click.BadParameter."""
        text = str(value).strip()
        return text or self.fail("It is empty. Give a value, or leave this out.", param, ctx)


FILLED = FilledText()


class Moment(click.ParamType[datetime]):
    """A time: a date, with or without the time of day, or how long ago."""

    name = "time"

    def __init__(self, *, ends_day: bool = False) -> None:
        """``ends_day``: a date alone means the end of that day (UTC)."""
        self._ends_day = ends_day

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the time. Raises click.BadParameter."""
        relative = _RELATIVE_TIME.fullmatch(value)
        if relative:
            unit = {"d": "days", "h": "hours", "m": "minutes"}[relative[2]]
            return datetime.now(UTC) - timedelta(**{unit: int(relative[1])})
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{shown(value)!r} is not a date: use 2026-01-31, 2026-01-31T08:00, 3d, 12h or 30m", param, ctx)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        ends_day = self._ends_day and _DATE.fullmatch(value) and moment.year < MAXYEAR  # adding a day would overflow
        return moment + timedelta(days=1) if ends_day else moment
