"""Shared parts of the commands of ``quarantine``: opening the store, errors as text with an exit status, output."""

from __future__ import annotations

import getpass
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from portal.assemble import OUTCOMES_SECONDS, Parts, assemble
from portal.model.audit import Act, AuditEntry
from portal.model.domains import shown_address
from portal.model.errors import BodyDamaged, BodyMissing, QuarantineError, SettingsError, StoreUnusable
from portal.model.message import Actor, ActorKind, Delivery, Message, domain
from portal.model.text import shown
from portal.settings import load
from portal.stores import Store

if TYPE_CHECKING:
    from rich.table import Table

SOCKET = "/run/quarantine.sock"  # between Nginx and the portal: deploy/systemd/quarantine.socket
_PROGRESS_SECONDS = 30
_NAME_CHARACTERS = 100
_BEYOND_ASCII = re.compile(r"[^\x00-\x7e]")

ReportProgress = Callable[[int, int | None, int], None]  # items done, all items if known, bytes done


class NotDone(QuarantineError):
    """The command was not completed. The text says why, and what to do next."""


class WrongCall(QuarantineError):
    """The arguments of the command do not fit. The text says what does."""


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn the errors of a command into text on stderr and an exit status, never a traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (WrongCall, SettingsError, StoreUnusable) as error:
            raise SystemExit(_print_error(str(error), 2)) from error
        except QuarantineError as error:
            raise SystemExit(_print_error(f"{error}{body_advice(error)}", 1)) from error
        except BrokenPipeError:  # `quarantine list | head`
            sys.stderr.close()
            raise SystemExit(0) from None
        except OSError as error:  # `quarantine print ID > FILE` on a full disk
            target = str(error.filename) if error.filename else "the output could not be written"
            advice = "Check its path and rights" if error.filename else "Make room, or write it elsewhere"
            _print_error(f"{target}: {error.strerror or error}. {advice}, then call it again.", 1)
            sys.stderr.close()  # Python flushes it again at exit and would report the error again
            raise SystemExit(1) from error

    return run


def say(text: str, *, err: bool = False) -> None:
    """Print a line of a command that changes something. If nobody reads the output any more, print nothing from now on.

    A command that acts on several messages must not stop after the first ones because of ``| head -1``.
    """
    try:
        click.echo(text, err=err)
    except BrokenPipeError:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, (sys.stderr if err else sys.stdout).fileno())
        os.close(nothing)


def body_advice(error: QuarantineError) -> str:
    """Return what to do about a stored body that cannot be read, as a second sentence, "" for other errors."""
    if isinstance(error, BodyDamaged | BodyMissing):
        return ". Restore the stored mail from a backup (docs/operate.md), then try again."
    return ""


def _print_error(text: str, status: int) -> int:
    say(text, err=True)
    return status


def read_input(path: Path) -> bytes:
    """Return what is in a file, or in standard input for "-". Raises OSError.

    The wrapper of a package changes the folder and the user, so there only standard input leads to any file.
    """
    return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()


@contextmanager
def open_parts() -> Iterator[Parts]:
    """Open all parts by the settings, and close the store at the end. Raises as `load` and `assemble`.

    If the store became unavailable after the mail server's answer, this waits for it to record that.
    """
    parts = assemble(load())
    try:
        yield parts
    finally:
        parts.store.close(OUTCOMES_SECONDS)


def current_operator() -> Actor:
    """Return the person who runs the command, as the actor of what it does.

    The name is that of ``quarantine --as``, else of the account that called sudo, else of the account itself. With
    ``--as``, ``via`` names the account.
    """
    try:
        account = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry in /etc/passwd; OSError since Python 3.13
        account = str(os.getuid())
    context = click.get_current_context(silent=True)
    name = context.find_root().params.get("person") if context is not None else None
    if name:
        return Actor(ActorKind.OPERATOR, shown(name, _NAME_CHARACTERS), f"cli:{shown(account)}")
    return Actor(ActorKind.OPERATOR, shown(account), "cli")


def local_domain(parts: Parts, name: str) -> str:
    """Return a domain as in identities. Raises WrongCall unless it is one of `local_domains`."""
    host = domain(name)
    if not parts.domains.is_local(host):
        raise WrongCall(f"{shown_address(host)} is not a domain of local_domains. Check its spelling.")
    return host


def record(
    store: Store, act: Act, subject: str = "", detail: str = "", domains: Collection[str | None] = (None,)
) -> None:
    """Record in the audit what the person who runs the command is about to do. Raises StoreUnavailable.

    ``domains``: whose staff see it, with an entry for each; None: that of the subject.
    """
    now, who = datetime.now(UTC), current_operator()
    store.audit.record(*(AuditEntry.new(now, act, who, subject, detail, domain=each) for each in domains))


def record_each(parts: Parts, act: Act, deliveries: Sequence[Delivery]) -> None:
    """Record in the audit what the person who runs the command is about to do with a message. Raises
    StoreUnavailable."""
    now, who = parts.actions.now(), current_operator()
    parts.store.audit.record(*(AuditEntry.new(now, act, who, d.recipient, delivery=d.key) for d in deliveries))


def find_message(parts: Parts, id: str) -> Message:
    """Return the message with this quarantine id or queue id. Raises NotDone if there is none or more than one."""
    found = parts.store.messages.find(id)
    if not found:
        raise NotDone(f"There is no message with the quarantine id or queue id {shown(id)!r}. Try: quarantine list")
    if len(found) > 1:
        lines = [
            f"  {m.id}  {m.held_at:%Y-%m-%d %H:%M}  {shown(m.header_from, 40)}  {shown(m.subject, 60)}" for m in found
        ]
        raise NotDone(
            "\n".join(
                [f"Queue id {shown(id)} matches several messages, so nothing was done. Use one of these ids:", *lines]
            )
        )
    return found[0]


def new_table(*columns: str) -> Table:
    """Return a table without rows."""
    from rich.table import Table  # slow to import, and only needed here

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("id", "held at (UTC)", "state", "tier", "score"))
    return table


def add_row(table: Table, *cells: str) -> None:
    """Add a row of plain texts."""
    from rich.text import Text

    table.add_row(*map(Text, cells))  # as Text: square brackets in a subject are not markup


def print_table(table: Table) -> None:
    """Print a table, as wide as the terminal."""
    from rich.console import Console

    # A pipe or file gets lines so wide that no value is folded, also with double-width characters: grep must find it.
    Console(width=None if sys.stdout.isatty() else 1000, highlight=False, markup=False).print(table)


def print_json(value: object) -> None:
    """Print JSON with indented lines."""
    click.echo(json_text(value, indent=2))


def json_text(value: object, indent: int | None = None) -> str:
    """Return JSON in which non-ASCII letters are readable and can be found with grep.

    Characters that terminals interpret, and those that the output's encoding lacks, are escaped as JSON requires. The
    escapes of Python's error handler ``backslashreplace`` would not be valid JSON.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    encoding = sys.stdout.encoding or "utf-8"

    def escaped(character: str) -> str:
        try:
            character.encode(encoding)
        except UnicodeEncodeError:
            return json.dumps(character)[1:-1]
        return character if character.isprintable() else json.dumps(character)[1:-1]

    return _BEYOND_ASCII.sub(lambda match: escaped(match[0]), text)


class Lines:
    """A file for `csv.writer` that prints."""

    @staticmethod
    def write(line: str) -> None:
        """Print a line of CSV, which has its own line break."""
        click.echo(line, nl=False)


@contextmanager
def progress(unit: str) -> Iterator[ReportProgress]:
    """Report progress, speed and remaining time: as a bar on a terminal, otherwise as a line every 30 seconds."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    started_seconds = last_seconds = monotonic()

    def reached(done: int, total: int | None) -> str:
        return f"{done} {unit}" if total is None else f"{done} of {total} {unit}"

    def rate(done: int, total: int | None, size_bytes: int) -> str:
        seconds = max(monotonic() - started_seconds, 0.001)
        speed = f"{done / seconds:.0f} {unit}/s"
        if size_bytes:
            speed += f", {size_bytes / 1e6 / seconds:.1f} MB/s"
        if total is None:
            return speed
        return f"{speed}, {timedelta(seconds=round((total - done) * seconds / max(done, 1)))} left"

    if not console.is_terminal:

        def print_line(done: int, total: int | None, size_bytes: int) -> None:
            nonlocal last_seconds
            if monotonic() - last_seconds >= _PROGRESS_SECONDS:
                last_seconds = monotonic()
                say(f"{reached(done, total)}, {rate(done, total, size_bytes)}", err=True)

        yield print_line
        return
    columns = (
        TextColumn("{task.fields[reached]}"),
        BarColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None, reached="", rate="")

        def update_bar(done: int, total: int | None, size_bytes: int) -> None:
            bar.update(
                task, completed=done, total=total, reached=reached(done, total), rate=rate(done, total, size_bytes)
            )

        yield update_bar
