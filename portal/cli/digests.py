"""The commands ``quarantine digests …``: stop, resume and set the digests of many recipients."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import click

from portal.assemble import Parts
from portal.cli.common import WrongCall, current_operator, guarded, open_parts
from portal.cli.options import FILLED, FILLED_PATH
from portal.model.domains import shown_address
from portal.model.errors import BadPreference, UnknownRecipient
from portal.model.message import Actor
from portal.model.schedule import NO_PREFERENCES, Schedule, typed_preferences
from portal.model.tables import unquoted
from portal.model.text import TAGS, shown
from portal.policy.recipients import REASON_CHARACTERS

_NAMES = {"days": "schedule", "at": "at", "zone": "timezone", "language": "language"}  # columns, as preferences
_DEFAULT = "default"  # instead of a value: that of the domain
_MAX_LISTED = 20  # lines with problems

Change = Callable[[Parts, str, Mapping[str, str], Actor, datetime, str], bool]


class _Line(NamedTuple):
    """One recipient of a call. ``number``: the line of the file, 0 for an argument."""

    number: int
    address: str
    values: Mapping[str, str]

    def problem(self, text: str) -> str:
        where = f"line {self.number}" if self.number else shown_address(self.address)
        return f"{where}: {text}"


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the arguments and options of all commands of this group."""
    for add in (
        click.option("--dry-run", is_flag=True, help="Check everything, print what would change, and change nothing."),
        click.option("--reason", type=FILLED, help="The reason, for the audit."),
        click.option(
            "--from-file",
            "file",
            type=FILLED_PATH,
            help='A file with one address in each line, or CSV with a column "address"; "-": standard input.',
        ),
        click.argument("addresses", type=FILLED, nargs=-1, metavar="[ADDRESS …]"),
    ):
        command = add(command)
    return command


@click.group()
def digests() -> None:
    """Stop, resume and set the digests of recipients.

    If one address or value is wrong, nothing is changed. `quarantine recipient` shows the digests of one recipient.
    """


@digests.command()
@_common
@guarded
def stop(addresses: Sequence[str], file: Path | None, **more: Any) -> None:
    """Stop digests and notices. Messages are still held."""
    _change_all(addresses, file, (), {}, lambda parts, *to: _set_stopped(parts, *to, stopped=True), **more)


@digests.command()
@_common
@guarded
def resume(addresses: Sequence[str], file: Path | None, **more: Any) -> None:
    """Resume stopped digests. The next one has the messages that were held in the meantime."""
    _change_all(addresses, file, (), {}, lambda parts, *to: _set_stopped(parts, *to, stopped=False), **more)


@digests.command("set")
@_common
@click.option("--days", type=FILLED, help=f"{', '.join([*Schedule][1:])}.")
@click.option("--at", type=FILLED, help="Times of these days, for example 07:00,15:00.")
@click.option("--zone", type=FILLED, help="Time zone, for example Europe/Berlin.")
@click.option("--language", type=FILLED, help=f"{', '.join(TAGS)}.")
@guarded
def set_(
    addresses: Sequence[str],
    file: Path | None,
    days: str | None,
    at: str | None,
    zone: str | None,
    language: str | None,
    **more: Any,
) -> None:
    """Set days and times of digests, time zone and language.

    "default" is the value of the recipient's domain. Values that are not given stay as they are. A CSV file may have
    columns of the same names; its values take precedence, and empty ones are not given.
    """
    given = {"days": days, "at": at, "zone": zone, "language": language}
    values = {name: value for name, value in given.items() if value is not None}
    _change_all(addresses, file, tuple(_NAMES), values, _set_preferences, **more)


COMMANDS = (digests,)


def _change_all(
    addresses: Sequence[str],
    file: Path | None,
    columns: Sequence[str],
    values: Mapping[str, str],
    change: Change,
    *,
    dry_run: bool,
    reason: str | None,
) -> None:
    """Check all recipients and values, then change them one after the other and print the results.

    ``columns``: that a file may have in addition to the address; ``values``: for all recipients.
    """
    reason = reason or ""
    if len(reason) > REASON_CHARACTERS:
        raise WrongCall(f"--reason: This is longer than {REASON_CHARACTERS} characters.")
    lines = [_Line(0, address, {}) for address in addresses]
    lines += _read(file, columns) if file is not None else []
    if not lines:
        raise WrongCall("Give at least one address, or a file with --from-file.")
    if columns and not values and not any(line.values for line in lines):
        raise WrongCall(f"Give at least one value: {', '.join(f'--{name}' for name in columns)}.")
    with open_parts() as parts:
        for recipient, chosen in _checked(parts, lines, values).items():
            preferences = {_NAMES[name]: "" if text == _DEFAULT else text for name, text in chosen.items()}
            result = "would be changed"
            if not dry_run:
                changed = change(parts, recipient, preferences, current_operator(), parts.actions.now(), reason)
                result = "changed" if changed else "unchanged"
            click.echo(f"{shown_address(recipient)}: {result}")


def _set_stopped(
    parts: Parts, recipient: str, _: Mapping[str, str], actor: Actor, now: datetime, reason: str, *, stopped: bool
) -> bool:
    return parts.recipients.set_digests_stopped(recipient, actor, now, reason, stopped=stopped)


def _set_preferences(
    parts: Parts, recipient: str, typed: Mapping[str, str], actor: Actor, now: datetime, reason: str
) -> bool:
    return parts.recipients.set_preferences(recipient, typed, actor, now, reason)


# ---- what was typed


def _checked(parts: Parts, lines: Sequence[_Line], values: Mapping[str, str]) -> Mapping[str, Mapping[str, str]]:
    """Return the values for each recipient. Raises WrongCall, with all problems."""
    found: dict[str, Mapping[str, str]] = {}
    first: dict[str, _Line] = {}
    problems: list[str] = []
    for line in lines:
        chosen = {**values, **line.values}
        try:
            mailbox = parts.recipients.find(line.address)
            typed_preferences(
                NO_PREFERENCES, {_NAMES[name]: "" if text == _DEFAULT else text for name, text in chosen.items()}
            )
        except (UnknownRecipient, BadPreference) as error:
            problems.append(line.problem(str(error)))
            continue
        if not mailbox.is_person:
            problems.append(line.problem("This is a shared mailbox. Its readers get the digests."))
        elif found.setdefault(mailbox.recipient, chosen) != chosen:
            problems.append(line.problem(f"{shown_address(first[mailbox.recipient].address)} has other values."))
        first.setdefault(mailbox.recipient, line)
    if problems:
        more = [f"… and {len(problems) - _MAX_LISTED} more"] if len(problems) > _MAX_LISTED else []
        raise WrongCall("\n".join([*problems[:_MAX_LISTED], *more, "Nothing was changed."]))
    return found


def _read(file: Path, columns: Sequence[str]) -> Iterator[_Line]:
    """Yield the recipients of a file. Raises WrongCall, OSError."""
    data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise WrongCall(f"line {line}: This is not UTF-8. Save the file as CSV UTF-8.\nNothing was changed.") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names: list[str] = ["address"]
    try:
        for number, row in enumerate(reader):
            cells = [unquoted(cell).strip() for cell in row]
            if not any(cells):
                continue
            if number == 0 and "address" in [cell.lower() for cell in cells]:
                names = [cell.lower() for cell in cells]
                _check_columns(names, columns)
                continue
            if len(cells) > len(names):
                raise WrongCall(f"line {reader.line_num}: There are more values than columns.\nNothing was changed.")
            found = dict(zip(names, cells, strict=False))
            address = found.pop("address", "")
            yield _Line(reader.line_num, address, {name: value for name, value in found.items() if value})
    except csv.Error as error:
        raise WrongCall(f"line {reader.line_num}: This is not CSV: {error}.\nNothing was changed.") from error


def _check_columns(names: Sequence[str], columns: Sequence[str]) -> None:
    unknown = [name for name in names if name not in ("address", *columns)]
    if unknown or len({*names}) < len(names):
        known = f"address and, if wanted, {', '.join(columns)}" if columns else "address alone"
        raise WrongCall(f"line 1: The columns are {known}, not {shown(', '.join(names), 200)}.\nNothing was changed.")
