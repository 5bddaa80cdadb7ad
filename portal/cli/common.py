"""What all commands of ``quarantine`` share: failures as sentences with an exit status, and progress."""

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

_PROGRESS_SECONDS = 30

ReportProgress = Callable[[int, int, int], None]  # how many are done, of how many, and how many bytes


class NotDone(QuarantineError):
    """Nothing was done; the message says why and how to call again."""


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn what may go wrong into a sentence on stderr and an exit status, never a traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (NotDone, NotFound, AlreadyDone) as error:
            raise SystemExit(_say(str(error), 1)) from error
        except SettingsError as error:
            raise SystemExit(_say(str(error), 2)) from error
        except QuarantineError as error:
            raise SystemExit(_say(str(error), 2 if not isinstance(error, RelayDeferred) else 1)) from error
        except BrokenPipeError:  # `quarantine list | head`
            sys.stderr.close()
            raise SystemExit(0) from None
        except OSError as error:  # `quarantine print ID > FILE` on a full disk
            what = str(error.filename) if error.filename else "it could not be written"
            _say(f"{what}: {error.strerror or error}", 1)
            sys.stderr.close()  # Python tries once more at its end, and would say so
            raise SystemExit(1) from error

    return run


def _say(text: str, status: int) -> int:
    click.echo(text, err=True)
    return status


@contextmanager
def progress(unit: str) -> Iterator[ReportProgress]:
    """Shows how far it is, how fast and how long still: a bar on a terminal, a line each half minute elsewhere."""
    console = Console(stderr=True)
    started_seconds = last_seconds = monotonic()

    def told(done: int, total: int, size_bytes: int) -> str:
        seconds = max(monotonic() - started_seconds, 0.001)
        left = timedelta(seconds=round((total - done) * seconds / max(done, 1)))
        return f"{done / seconds:.0f} {unit}/s, {size_bytes / 1e6 / seconds:.1f} MB/s, {left} left"

    if not console.is_terminal:

        def say(done: int, total: int, size_bytes: int) -> None:
            nonlocal last_seconds
            if monotonic() - last_seconds >= _PROGRESS_SECONDS:
                last_seconds = monotonic()
                click.echo(f"{done} of {total} {unit}, {told(done, total, size_bytes)}", err=True)

        yield say
        return
    columns = (
        TextColumn("{task.completed:.0f} of {task.total:.0f} " + unit),
        BarColumn(),
        TextColumn("{task.fields[told]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=0, told="")

        def draw(done: int, total: int, size_bytes: int) -> None:
            bar.update(task, completed=done, total=total, told=told(done, total, size_bytes))

        yield draw
