"""Types of options and arguments that several commands have."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from portal.model.criteria import moment


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
        try:
            return moment(value, UTC, datetime.now(UTC), ends_day=self._ends_day)
        except ValueError as error:
            self.fail(str(error), param, ctx)
