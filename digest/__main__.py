"""The digest process, ``quarantine-digest``: ``run`` beside the uWSGI workers, ``once`` by hand. The only apscheduler.

Jobs live in memory and may be missed, repeated, or run on ten hosts at once: what is due stands in the store
(`digest.news`, `digest.run`). Each job has its own thread, so that an hour of digests does not delay a sign-in mail.
Exit status of ``once``: 0 all is well, 1 some digest was not sent, 2 wrong call, settings or store.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import MAXYEAR, MINYEAR, UTC, datetime, timedelta
from types import FrameType
from typing import Any

import click
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.blocking import BlockingScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from digest import housekeeping, news
from digest import run as work
from portal import __version__
from portal.actions import retry_due
from portal.assemble import Parts, assemble, log_to_stderr
from portal.model.clock import utc_now
from portal.model.domains import shown_address
from portal.model.errors import QuarantineError, StoreUnavailable
from portal.model.message import identity
from portal.model.text import shown
from portal.monitoring import watch
from portal.settings import Settings, load

log = logging.getLogger("quarantine.digest")

RETRY_SECONDS = 5  # how often a store that is down at the start is tried
SHOWN = 100  # digests sent, each in a row of the summary; more are shown by number
_YEARS = 1000  # from either end of time, so that what is reckoned from --now is no date beyond it
_RECIPIENT = Column("recipient", overflow="fold")  # on a narrow terminal as well an address is told whole
GRACE_SECONDS = 2.0  # for the mail being sent when we are told to stop; uWSGI kills after about three


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="quarantine-digest")
def main() -> None:
    """Tell recipients what is held for them. Settings come from QUARANTINE_CONFIG, ./quarantine.toml or
    /etc/rspamd-quarantine/quarantine.toml."""
    log_to_stderr()
    # Most threads wait for the network and need the interpreter for a moment after each answer; while another composes
    # they would wait 5 ms for each.
    sys.setswitchinterval(0.0003)
    # Its "skipped: maximum number of running instances reached" is how a long run is meant to look.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)


@contextmanager
def _sentences() -> Iterator[None]:
    """What is wrong with settings or store, as a sentence on stderr and exit status 2."""
    try:
        yield
    except QuarantineError as error:
        click.echo(str(error), err=True)
        raise SystemExit(2) from error


# ---- run


@main.command()
def run() -> None:
    """Send digests, waiting mail and waiting releases, and purge daily, until told to stop."""
    stop = threading.Event()

    def handle_stop_signal(number: int, frame: FrameType | None) -> None:
        # Once is enough: uWSGI says it each second.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        stop.set()
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, handle_stop_signal)
    signal.signal(signal.SIGINT, handle_stop_signal)
    with _sentences():
        try:
            settings = load()
            parts = _opened(settings)
        except QuarantineError:
            # What is left is the interpreter's own end, where what a handler raises is printed as a traceback.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            raise
    scheduler = _scheduler(parts, stop.is_set)
    hours = ", ".join(f"{at:%H:%M}" for at in settings.digest.at)
    log.info("running %s, digests %s at %s %s", __version__, settings.digest.schedule, hours, settings.digest.timezone)
    try:
        scheduler.start()
    except SystemExit:
        _leave(scheduler)


def _opened(settings: Settings) -> Parts:
    """The parts, as soon as the store can be reached. Raises SettingsError, StoreUnusable."""
    while True:
        try:
            # Nobody waits for these; below the lease of 90 s, or another process would send it as well.
            return assemble(settings, release_seconds=75, create=True)
        except StoreUnavailable as error:
            log.error("%s; trying again in %d s", error, RETRY_SECONDS)
            time.sleep(RETRY_SECONDS)


def _scheduler(parts: Parts, stopped: work.Stopped) -> BlockingScheduler:
    zone = parts.settings.digest.timezone
    pace = work.Pace(parts.settings.digest.per_minute)

    def digests() -> None:
        while True:
            while news.schedule_news(parts, utc_now()) == news.PAGE and not stopped():
                pass  # after a long stop there are many
            summary = work.send_due(parts, utc_now(), stopped=stopped, pace=pace)
            if not summary.sent or summary.stopped_early or stopped():
                return

    now = utc_now()
    soon = now + timedelta(seconds=10)
    jobs: list[tuple[str, Callable[[], object], Any, datetime]] = [  # the last: when first
        ("heartbeat", lambda: parts.store.heartbeat(utc_now()), IntervalTrigger(seconds=10), now),
        ("mails", lambda: housekeeping.send_queued(parts, utc_now(), stopped=stopped), IntervalTrigger(seconds=2), now),
        ("releases", lambda: retry_due(parts.actions), IntervalTrigger(seconds=5), now),
        ("digests", digests, IntervalTrigger(seconds=10), now),
        ("overdue", lambda: watch(parts, utc_now()), IntervalTrigger(minutes=1), soon),
        ("find-news", lambda: news.find_news(parts, utc_now()), IntervalTrigger(hours=1), soon),
        ("daily", lambda: housekeeping.daily(parts, utc_now()), CronTrigger(hour=3, minute=17, timezone=zone), soon),
    ]
    scheduler = BlockingScheduler(
        timezone="UTC",
        executors={"default": ThreadPoolExecutor(len(jobs))},
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
    )
    for name, job, trigger, first in jobs:
        scheduler.add_job(_caught(name, job), trigger, id=name, next_run_time=first)
    return scheduler


def _caught(name: str, job: Callable[[], object]) -> Callable[[], None]:
    """The outermost edge of a job: what it meets is logged here, and the next tick tries again.

    The same trouble at every tick, like a store that is down for an hour, is logged when it begins and when it ends.
    """
    trouble = ""

    def run_job() -> None:
        nonlocal trouble
        try:
            job()
        except QuarantineError as error:
            if str(error) != trouble:
                log.error("%s: %s", name, error)
            trouble = str(error)
        except Exception:
            log.exception("%s failed", name)
        else:
            if trouble:
                log.info("%s: works again", name)
            trouble = ""

    return run_job


def _leave(scheduler: BlockingScheduler) -> None:
    """Let a mail that is on its way arrive, so that it is not sent twice, then stop whatever still runs.

    Nothing depends on this: claims of a process that is killed run out by themselves.
    """
    if scheduler.running:
        ending = threading.Thread(target=scheduler.shutdown, daemon=True)
        ending.start()
        ending.join(GRACE_SECONDS)
    log.info("stopped")
    logging.shutdown()
    os._exit(0)  # the interpreter would wait for every thread


# ---- once


def _moment(ctx: click.Context, param: click.Parameter, text: str | None) -> datetime | None:
    """A time with its offset, aware UTC."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a time like 2026-11-22T07:00:00+01:00") from error
    if moment.tzinfo is None:
        raise click.BadParameter(f"{text!r} has no offset: add Z for UTC, or one like +01:00")
    if not MINYEAR + _YEARS < moment.year < MAXYEAR - _YEARS:
        raise click.BadParameter(f"{text!r} is too far away")
    return moment.astimezone(UTC)


def _is_text(argument: str) -> bool:
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


@main.command()
@click.option("--recipient", metavar="ADDRESS", help="Only for this recipient.")
@click.option("--dry-run", is_flag=True, help="Only show who would be told of what.")
@click.option("--resend", is_flag=True, help="Send the last digest of --recipient again, with fresh links.")
@click.option("--now", metavar="ISO-TIME", callback=_moment, help="Act as if it were this time, for tests.")
def once(recipient: str | None, dry_run: bool, resend: bool, now: datetime | None) -> None:
    """Send all that is not announced yet, whatever the hour, and say what was done."""
    if resend and not recipient:
        raise click.UsageError("--resend needs --recipient ADDRESS: whose last digest?")
    if resend and dry_run:
        raise click.UsageError("--resend and --dry-run do not go together")
    # What is no UTF-8, as a terminal of ISO 8859-1 types it, comes as half characters that no store takes.
    if recipient is not None and ("@" not in recipient or not _is_text(recipient)):
        raise click.UsageError(f"--recipient {recipient!r} is not a mail address")
    who = identity(recipient) if recipient else None
    with _sentences():
        parts = assemble(load())
        try:
            moment = now or utc_now()
            if not resend:
                news.find_news(parts, moment)
            people = list(parts.people.readers(parts.people.held_as(recipient))) if recipient else None
            if people and people != [who]:
                click.echo(f"{shown(recipient or '')} is read by {', '.join(map(shown_address, people))}:")
            if dry_run:
                _show_preview(parts, people)
                return
            if resend and people:
                summary = work.Summary()
                for person in people:
                    summary.add(work.resend(parts, moment, person))
            else:
                with _progress() as progress:
                    pace = work.Pace(parts.settings.digest.per_minute)
                    summary = work.send_all(parts, moment, recipient=people, pace=pace, progress=progress)
        finally:
            parts.store.close()
    _show(summary)


@contextmanager
def _progress() -> Iterator[work.Progress | None]:
    """A bar on the terminal, with the time that is left; elsewhere the log is all."""
    if not sys.stderr.isatty():
        yield None
        return
    console = Console(stderr=True)
    columns = ("{task.completed} of {task.total} digests", BarColumn(), TimeRemainingColumn())
    # What goes wrong stands above the bar; a line for each digest would push it away.
    handler = RichHandler(logging.WARNING, console=console, show_path=False)
    usual, logging.root.handlers = logging.root.handlers, [handler]
    try:
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=None, visible=False)  # until we know of how many
            yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)
    finally:
        logging.root.handlers = usual


def _show_preview(parts: Parts, people: Sequence[str] | None) -> None:
    table = Table(_RECIPIENT, "messages", "oldest", "", title="Would be told", title_justify="left")
    rows = 0
    for person, deliveries in work.preview(parts, people):
        rows += 1
        if deliveries:
            oldest = f"{deliveries[0].message.held_at:%Y-%m-%d %H:%M} UTC"
            table.add_row(Text(shown_address(person)), str(len(deliveries)), oldest, "")
        else:
            reason = news.skip_reason(parts, person)
            table.add_row(
                Text(shown_address(person)), "0", "", f"{reason}: would not be mailed" if reason else "nothing to tell"
            )
    _print(table if rows else "Nobody has news: no digest would be sent.")


def _show(summary: work.Summary) -> None:
    if not (summary.sent or summary.skipped or summary.failed):
        _print("Nobody has news: no digest was sent.")
        return
    table = Table(_RECIPIENT, "messages", "")
    shortened = len(summary.sent) > SHOWN
    for recipient, count in summary.sent[: 0 if shortened else None]:
        table.add_row(Text(shown_address(recipient)), str(count), "sent")
    if shortened:
        told = sum(count for _, count in summary.sent)
        table.add_row(f"{len(summary.sent)} recipients", str(told), "sent")
    for recipient, reason in summary.skipped:
        table.add_row(Text(shown_address(recipient)), "", Text(f"not sent: {shown(reason)}"))
    for recipient, reason in summary.failed:
        table.add_row(Text(shown_address(recipient)), "", Text(f"failed: {shown(reason)}", "red"))
    _print(table)
    if summary.failed:
        more = " The rest was not tried, since several failed in a row." if summary.stopped_early else ""
        click.echo(
            f"{len(summary.failed)} of the digests could not be sent; nothing in them counts as announced.{more} "
            "`quarantine check` tells whether mail.url can be reached; the digest process tries again by itself.",
            err=True,
        )
        raise SystemExit(1)


def _print(what: Table | str) -> None:
    Console(width=None if sys.stdout.isatty() else 200).print(what, highlight=False)


if __name__ == "__main__":
    main()
