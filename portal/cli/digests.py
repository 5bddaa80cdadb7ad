"""The commands ``quarantine digests …``: stop, resume, set, list and export the digests of many recipients."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from portal.assemble import Parts
from portal.cli.common import (
    Lines,
    NotDone,
    WrongCall,
    add_row,
    current_operator,
    guarded,
    json_text,
    local_domain,
    new_table,
    open_parts,
    print_table,
    read_input,
)
from portal.cli.options import FILLED, FILLED_PATH
from portal.model.domains import shown_address
from portal.model.errors import BadList
from portal.model.message import domain
from portal.model.schedule import Schedule
from portal.model.text import TAGS
from portal.policy import recipient_lists
from portal.policy.recipient_lists import COLUMNS, Checked, Line
from portal.policy.recipients import REASON_CHARACTERS, DigestAct

_MAX_LISTED = 20  # lines with problems
_MAX_PEOPLE = 10_000_000  # of a domain


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
        click.option("--domain", "host", type=FILLED, help="All people of a domain for whom something is stored."),
        click.argument("addresses", type=FILLED, nargs=-1, metavar="[ADDRESS …]"),
    ):
        command = add(command)
    return command


@click.group()
def digests() -> None:
    """Stop, resume and set the digests of recipients, or list them.

    If one address or value is wrong, nothing is changed. `quarantine recipient` shows the digests of one recipient.
    """


@digests.command()
@_common
@guarded
def stop(addresses: Sequence[str], **more: Any) -> None:
    """Stop digests and notices. Messages are still held."""
    _change_all(DigestAct.STOP, addresses, values={}, **more)


@digests.command()
@_common
@guarded
def resume(addresses: Sequence[str], **more: Any) -> None:
    """Resume stopped digests. The next one has the messages that were held in the meantime."""
    _change_all(DigestAct.RESUME, addresses, values={}, **more)


@digests.command("set")
@_common
@click.option("--days", type=FILLED, help=f"{', '.join([*Schedule][1:])}.")
@click.option("--at", type=FILLED, help="Times of these days, for example 07:00,15:00.")
@click.option("--zone", type=FILLED, help="Time zone, for example Europe/Berlin.")
@click.option("--language", type=FILLED, help=f"{', '.join(TAGS)}.")
@click.option("--notices", type=FILLED, help="on or off: a notice soon after a message is held that may be wanted.")
@click.option(
    "--only-wanted", type=FILLED, help="on or off: only digests with a message that may be wanted, at least one a week."
)
@guarded
def set_(
    addresses: Sequence[str],
    days: str | None,
    at: str | None,
    zone: str | None,
    language: str | None,
    notices: str | None,
    only_wanted: str | None,
    **more: Any,
) -> None:
    """Set days and times of digests, time zone, language and notices, and whether digests wait for wanted mail.

    "default" is the value of the recipient's domain. Values that are not given stay as they are. A CSV file may have
    columns of the same names; its values take precedence, and empty ones are not given.
    """
    given = {
        "days": days,
        "at": at,
        "zone": zone,
        "language": language,
        "notices": notices,
        "only-wanted": only_wanted,
    }
    values = {name: value for name, value in given.items() if value is not None}
    _change_all(DigestAct.SET, addresses, values=values, **more)


@digests.command("list")
@click.option("--domain", "host", type=FILLED, help="Only the people of this domain.")
@click.option("--stopped", is_flag=True, help="Only people whose digests are stopped.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@guarded
def list_(host: str | None, stopped: bool, as_json: bool) -> None:
    """List all people for whom something is stored, with what they or staff chose. "default" is the value of the
    domain."""
    table = new_table("recipient", "days", "at", "zone", "language", "notices", "only wanted", "stopped (UTC)")
    with open_parts() as parts:
        for person in recipient_lists.people(parts.recipients, _hosts(parts, host), stopped=stopped):
            values, at = recipient_lists.chosen(person), person.stopped_at
            if as_json:
                preferences = person.preferences
                switches = {"only_wanted": bool(preferences.only_wanted), "notices": preferences.notices}
                del values["only-wanted"]
                json = {"recipient": person.recipient, **values, **switches}
                click.echo(json_text({**json, "stopped_at": at.isoformat() if at else None}))
                continue
            shown_at = f"{at:%Y-%m-%d %H:%M}" if at else ""
            add_row(table, shown_address(person.recipient), *values.values(), shown_at)
    if not as_json:
        print_table(table)


@digests.command()
@click.option("--domain", "host", type=FILLED, help="Only the people of this domain.")
@click.option("--stopped", is_flag=True, help="Only the addresses of people whose digests are stopped.")
@guarded
def export(host: str | None, stopped: bool) -> None:
    """Write all people for whom something is stored, and their preferences, as CSV to standard output.

    `quarantine digests set --from-file` takes the file back. With --stopped, `stop` and `resume` take it.
    """
    with open_parts() as parts:
        hosts = _hosts(parts, host)
        now, name = parts.actions.now(), domain(host or "")
        parts.store.audit.record(*recipient_lists.export_entries(now, current_operator(), {name}, stopped=stopped))
        found = recipient_lists.people(parts.recipients, hosts, stopped=stopped)
        csv.writer(Lines()).writerows(recipient_lists.written(found, stopped=stopped))


COMMANDS = (digests,)


def _hosts(parts: Parts, host: str | None) -> Collection[str] | None:
    """Return the domain that was given. Raises WrongCall."""
    return None if host is None else {local_domain(parts, host)}


def _change_all(
    act: DigestAct,
    addresses: Sequence[str],
    *,
    file: Path | None,
    host: str | None,
    values: Mapping[str, str],
    dry_run: bool,
    reason: str | None,
) -> None:
    """Check all recipients and values, then change them and print the results."""
    reason = reason or ""
    if len(reason) > REASON_CHARACTERS:
        raise WrongCall(f"--reason: This is longer than {REASON_CHARACTERS} characters. Shorten it.")
    lines = [Line(0, address) for address in addresses]
    lines += _read(file, act) if file is not None else []
    if not (lines or host):
        raise WrongCall("Give at least one address, a file with --from-file, or a domain with --domain.")
    if act is DigestAct.SET and not values and not any(line.values for line in lines):
        raise WrongCall(f"Give at least one value: {', '.join(f'--{name}' for name in COLUMNS)}.")
    with open_parts() as parts:
        lines += _of_domain(parts, host) if host else []
        now = parts.actions.now()
        checked = recipient_lists.check(parts.recipients, act, lines, values, now)
        _report(checked)
        changed = {*checked.changes}
        if not dry_run:
            changed = {*parts.recipients.change(act, checked.changes, current_operator(), now, reason)}
    for recipient in sorted([*checked.changes, *checked.unchanged]):
        done = "would be changed" if dry_run else "changed"
        click.echo(f"{shown_address(recipient)}: {done if recipient in changed else 'unchanged'}")


def _read(file: Path, act: DigestAct) -> Sequence[Line]:
    """Return the recipients of a file. Raises WrongCall, OSError."""
    data = read_input(file)
    try:
        return list(recipient_lists.read(data, act))
    except BadList as error:
        raise WrongCall(f"line {error.line}: {error}\nNothing was changed.") from error


def _of_domain(parts: Parts, host: str) -> Sequence[Line]:
    """Return the people of a domain. Raises WrongCall, NotDone."""
    lines = recipient_lists.of_domain(parts.recipients, local_domain(parts, host), _MAX_PEOPLE)
    if not lines:
        raise NotDone(f"Nothing is stored for recipients of {shown_address(host)}. Give their addresses instead.")
    return lines


def _report(checked: Checked) -> None:
    """Raise WrongCall, with the problems, if something is wrong."""
    problems = [
        f"{f'line {each.line.number}' if each.line.number else shown_address(each.line.address)}: {each.text}"
        for each in checked.refused
    ]
    if problems:
        more = [f"… and {len(problems) - _MAX_LISTED} more"] if len(problems) > _MAX_LISTED else []
        raise WrongCall("\n".join([*problems[:_MAX_LISTED], *more, "Nothing was changed."]))
