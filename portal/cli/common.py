"""Shared parts of the commands of ``quarantine``: errors as text with an exit status, and progress output."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from time import monotonic
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from portal.model.errors import AlreadyDone, NotFound, QuarantineError, RelayDeferred, SettingsError

SOCKET = "/run/quarantine.sock"  # between Nginx and the portal: deploy/systemd/quarantine.socket
_PROGRESS_SECONDS = 30

ReportProgress = Callable[[int, int, int], None]  # items done, all items, bytes done


class NotDone(QuarantineError):
    """The command was not completed. The text says why, and what to do next."""


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn the errors of a command into text on stderr and an exit status, never a traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (NotDone, NotFound, AlreadyDone) as error:
            raise SystemExit(_print_error(str(error), 1)) from error
        except SettingsError as error:
            raise SystemExit(_print_error(str(error), 2)) from error
        except QuarantineError as error:
            raise SystemExit(_print_error(str(error), 2 if not isinstance(error, RelayDeferred) else 1)) from error
        except BrokenPipeError:  # `quarantine list | head`
            sys.stderr.close()
            raise SystemExit(0) from None
        except OSError as error:  # `quarantine print ID > FILE` on a full disk
            target = str(error.filename) if error.filename else "the output could not be written"
            _print_error(f"{target}: {error.strerror or error}", 1)
            sys.stderr.close()  # Python flushes it again at exit and would report the error again
            raise SystemExit(1) from error

    return run


def _print_error(text: str, status: int) -> int:
    click.echo(text, err=True)
    return status


@contextmanager
def progress(unit: str) -> Iterator[ReportProgress]:
    """Report progress, speed and remaining time: as a bar on a terminal, otherwise as a line every 30 seconds."""
    console = Console(stderr=True)
    started_seconds = last_seconds = monotonic()

    def rate(done: int, total: int, size_bytes: int) -> str:
        seconds = max(monotonic() - started_seconds, 0.001)
        left = timedelta(seconds=round((total - done) * seconds / max(done, 1)))
        return f"{done / seconds:.0f} {unit}/s, {size_bytes / 1e6 / seconds:.1f} MB/s, {left} left"

    if not console.is_terminal:

        def print_line(done: int, total: int, size_bytes: int) -> None:
            nonlocal last_seconds
            if monotonic() - last_seconds >= _PROGRESS_SECONDS:
                last_seconds = monotonic()
                click.echo(f"{done} of {total} {unit}, {rate(done, total, size_bytes)}", err=True)

        yield print_line
        return
    columns = (
        TextColumn("{task.completed:.0f} of {task.total:.0f} " + unit),
        BarColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=0, rate="")

        def update_bar(done: int, total: int, size_bytes: int) -> None:
            bar.update(task, completed=done, total=total, rate=rate(done, total, size_bytes))

        yield update_bar
