"""Types of options and arguments that several commands have."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import click

from portal.cli.common import WrongCall
from portal.model import criteria
from portal.model.criteria import moment
from portal.model.errors import BadCriterion
from portal.model.message import Filter
from portal.model.text import is_blank, shown

_SHOWN = 100
_LIMIT_MAX = 10_000_000
MATCHING_OPTIONS = ("matching", "dry_run", "reason", "yes", "notify", "hold_back")  # beside what to search for


LIMIT = click.option("--limit", type=click.IntRange(1, _LIMIT_MAX), default=50, show_default=True)


def say_more(found: str, limit: int) -> None:
    """Print to stderr that a list ends before its end: "There are more rules", and which --limit to use."""
    wider = f"To list more, use --limit {min(limit * 10, _LIMIT_MAX)}" if limit < _LIMIT_MAX else "Narrow the search."
    click.echo(f"{found}. {wider}", err=True)


class FilledText(click.ParamType[str]):
    """A text with something to read. An empty variable in a script must not select all messages."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text without blanks around it. Raises click.BadParameter."""
        text = str(value)
        if is_blank(text):
            self.fail("It is empty. Give a value, or leave this out.", param, ctx)
        return text.strip()


FILLED = FilledText()


class Id(click.ParamType[UUID]):
    """An id of the portal: a UUID."""

    name = "id"

    def __init__(self, listing: str) -> None:
        """``listing``: the command that lists such ids."""
        self._listing = listing

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> UUID:
        """Return the id. Raises click.BadParameter."""
        try:
            return value if isinstance(value, UUID) else UUID(str(value).strip())
        except ValueError:
            self.fail(f"{shown(str(value), _SHOWN)!r} is not an id. Try: {self._listing}", param, ctx)


AS_OPTION = click.option(  # of a whole program; `current_operator` reads it
    "--as",
    "person",
    type=FILLED,
    metavar="NAME",
    help="Your name for the audit, if it is not the account that called sudo.",
)


class FilledPath(click.Path):
    """A path that is not blank: `Path("")` would be the current folder."""

    def __init__(self) -> None:
        """A file or a folder, "-" for standard input."""
        super().__init__(path_type=Path, allow_dash=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path. Raises click.BadParameter."""
        return super().convert(FILLED.convert(value, param, ctx), param, ctx)


FILLED_PATH = FilledPath()


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


def criteria_options(without: Collection[str] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds an option for each search criterion, except these."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for criterion in reversed(criteria.CRITERIA):
            if criterion.name in without:
                continue
            names = [f"--{criterion.name}", *(["--subject"] if criterion.name == "words" else [])]
            text = f"{criterion.help} May be repeated." if criterion.many else criterion.help
            option = click.option(*names, criterion.name.replace("-", "_"), type=FILLED, multiple=True, help=text)
            command = option(command)
        return command

    return add


def matching_options(
    *, reason: str = "The reason, for the audit. Required with --matching."
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds the options of a mass act. ``recipient`` is the command's own.

    ``reason``: the help of the option.
    """

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            criteria_options(without=("recipient",)),
            click.option("--yes", is_flag=True, help="With --matching: do not ask for confirmation."),
            click.option("--reason", type=FILLED, help=reason),
            click.option(
                "--dry-run", is_flag=True, help="With --matching: print what would be done, and change nothing."
            ),
            click.option(
                "--notify", is_flag=True, help="With --matching: mail recipients the number of messages and the reason."
            ),
            click.option("--hold-back", is_flag=True, help="With --matching: leave them out of digests until it ends."),
            click.option("--matching", is_flag=True, help="Act on all messages that the other options find."),
        ):
            command = option(command)
        return command

    return add


def is_matching(ids: Sequence[str], options: Mapping[str, Any]) -> bool:
    """Return whether the call is a mass act. Raises WrongCall if its options do not fit."""
    if options["matching"] and ids:
        raise WrongCall("Use either ids or --matching.")
    if not options["matching"] and any(value for name, value in options.items() if name not in ("matching", "reason")):
        raise WrongCall("To act on all messages that a search finds, add --matching.")
    if not options["matching"] and not ids:
        raise WrongCall("Give the id of a message, or --matching and what to search for. Try: quarantine list")
    return bool(options["matching"])


def typed_filter(typed: Mapping[str, Sequence[str]]) -> Filter:
    """Return the search of these options, before the store is opened. Times are in UTC. Raises WrongCall."""
    texts = {name.replace("_", "-"): values for name, values in typed.items()}
    try:
        return criteria.read(texts, UTC, datetime.now(UTC))
    except BadCriterion as error:
        raise WrongCall(error.sentence(lambda name: f"--{name}")) from error
