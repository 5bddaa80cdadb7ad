"""The digest process, ``quarantine-digest``: ``run`` next to the uWSGI workers, ``once`` by hand. The only apscheduler.

Background jobs exist in memory only. They may be missed, repeated, or run on ten hosts at once, since the store records
what is due (`digest.news`, `digest.run`). Each job has its own thread, so that an hour of digests does not delay a
sign-in mail. Exit status: 0 for success; 1 if a digest was not sent or the store cannot be reached; 2 for wrong
arguments, wrong settings or a store that cannot be used.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import MAXYEAR, MINYEAR, UTC, datetime, timedelta
from functools import partial
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

from digest import attachments, housekeeping, news, notices, report, sizes, statistics
from digest import run as work
from digest.outcomes import Progress as RunProgress
from digest.outcomes import Summary
from digest.stopping import Pace, Stopped
from portal import __version__
from portal.assemble import OUTCOMES_SECONDS, Parts, assemble, close_outcomes, log_as_chosen, log_to_stderr
from portal.batches.parallel import retry_due
from portal.cli.common import record
from portal.cli.options import AS_OPTION
from portal.digests.compose import DELIVERIES
from portal.model.audit import Act
from portal.model.clock import utc_now
from portal.model.domains import shown_address
from portal.model.errors import QuarantineError, SettingsError, StoreUnavailable, StoreUnusable
from portal.model.message import identity
from portal.model.text import shown
from portal.monitoring import watch
from portal.policy.block_map import BlockMap
from portal.settings import Settings, load

log = logging.getLogger("quarantine.digest")

RETRY_SECONDS = 5  # between two attempts to open a store that is unavailable at the start
SHOWN = 100  # sent digests that the summary lists, each in a row; if there are more, it shows their number
_YEARS = 1000  # --now must be this far from `datetime`'s limits, so that times computed from it are within them
GRACE_SECONDS = 10.0  # for the mail being sent at a stop signal; uWSGI kills after 15 (uwsgi.ini)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="quarantine-digest")
@AS_OPTION
def main(person: str | None) -> None:
    """Send recipients digests of the messages held for them. Settings come from QUARANTINE_CONFIG, ./quarantine.toml or
    /etc/rspamd-quarantine/quarantine.toml."""
    log_to_stderr()
    # It warns "skipped: maximum number of running instances reached" during each long run, which is intended.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)


@contextmanager
def _exit_on_problem() -> Iterator[None]:
    """Print a problem of the settings or the store as one sentence on stderr, and exit with status 2 or, for what may
    work later, 1: as the commands of `quarantine`."""
    try:
        yield
    except QuarantineError as error:
        click.echo(str(error), err=True)
        raise SystemExit(2 if isinstance(error, (SettingsError, StoreUnusable)) else 1) from error


# ---- run


@main.command()
def run() -> None:
    """Send digests, queued mail and deferred releases, and purge daily, until stopped."""
    stop = threading.Event()

    def handle_stop_signal(number: int, frame: FrameType | None) -> None:
        # Handle it once: uWSGI repeats the signal each second.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        stop.set()
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, handle_stop_signal)
    signal.signal(signal.SIGINT, handle_stop_signal)
    with _exit_on_problem():
        try:
            settings = load()
            log_as_chosen(settings)
            parts = _open_when_available(settings)
        except QuarantineError:
            # At interpreter shutdown an exception raised by a handler would be printed as a traceback.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            raise
    with suppress(StoreUnavailable):
        parts.store.heartbeat(utc_now())  # before anything is claimed: it says from when on claims are taken over
    scheduler = _scheduler(parts, stop.is_set)
    hours = ", ".join(f"{at:%H:%M}" for at in settings.digest.at)
    log.info("running %s, digests %s at %s %s", __version__, settings.digest.schedule, hours, settings.digest.timezone)
    try:
        scheduler.start()
    except SystemExit:
        _shut_down(scheduler, parts)


def _open_when_available(settings: Settings) -> Parts:
    """Wait until the store can be reached. Return the parts. Raises SettingsError, StoreUnusable."""
    while True:
        try:
            # No user waits for these releases. The limit is below the lease of 90 s: after it another process would
            # send the message as well.
            return assemble(settings, release_seconds=75, create=True)
        except StoreUnavailable as error:
            log.error("%s; trying again in %d s", error, RETRY_SECONDS)
            time.sleep(RETRY_SECONDS)


def _scheduler(parts: Parts, stopped: Stopped) -> BlockingScheduler:
    zone = parts.settings.digest.timezone
    pace = Pace(parts.settings.digest.per_minute)
    applied = news.AppliedAliases()

    def digests() -> None:
        while True:
            while news.schedule_news(parts, utc_now(), applied=applied) == news.PAGE and not stopped():
                pass  # after a long outage there are many pages
            summary = work.send_due(parts, utc_now(), stopped=stopped, pace=pace)
            if not summary.sent or summary.stopped_early or stopped():
                return

    now = utc_now()
    soon = now + timedelta(seconds=10)

    def now_and_stopped(work: Callable[..., object]) -> Callable[[], object]:
        return lambda: work(parts, utc_now(), stopped=stopped)

    jobs: list[tuple[str, Callable[[], object], Any, datetime]] = [  # name, function, trigger, first run
        ("heartbeat", lambda: parts.store.heartbeat(utc_now()), IntervalTrigger(seconds=10), now),
        ("mails", now_and_stopped(housekeeping.send_queued), IntervalTrigger(seconds=2), now),
        ("scans", now_and_stopped(housekeeping.scan_waiting), IntervalTrigger(seconds=2), now),
        ("learning", now_and_stopped(housekeeping.learn_waiting), IntervalTrigger(seconds=5), now),
        ("batches", now_and_stopped(housekeeping.run_batches), IntervalTrigger(seconds=2), now),
        ("mass acts", now_and_stopped(housekeeping.run_mass_acts), IntervalTrigger(seconds=2), now),
        ("forget", now_and_stopped(housekeeping.forget_waiting), IntervalTrigger(seconds=5), now),
        ("facets", lambda: housekeeping.index_facets(parts, stopped=stopped), IntervalTrigger(seconds=5), now),
        ("attachments", now_and_stopped(attachments.read_names), IntervalTrigger(seconds=5), now),
        ("releases", lambda: retry_due(parts.actions, stopped=stopped), IntervalTrigger(seconds=5), now),
        ("digests", digests, IntervalTrigger(seconds=10), now),
        ("notices", now_and_stopped(partial(notices.send_notices, pace=pace)), IntervalTrigger(seconds=10), soon),
        ("statistics", now_and_stopped(statistics.count_days), IntervalTrigger(minutes=1), soon),
        ("sizes", now_and_stopped(sizes.measure), IntervalTrigger(minutes=1), soon),
        ("overdue", lambda: watch(parts, utc_now()), IntervalTrigger(minutes=1), soon),
        ("find-news", lambda: news.find_news(parts, utc_now(), applied=applied), IntervalTrigger(hours=1), soon),
        ("reminders", now_and_stopped(housekeeping.remind), IntervalTrigger(hours=1), soon),
        ("report", now_and_stopped(report.send_reports), IntervalTrigger(minutes=5), soon),
        ("expire", now_and_stopped(housekeeping.expire), IntervalTrigger(minutes=1), soon),
        ("daily", lambda: housekeeping.daily(parts, utc_now()), CronTrigger(hour=3, minute=17, timezone=zone), soon),
    ]
    if (path := parts.settings.rspamd.block_map) is not None:
        block_map = BlockMap(path, parts.store, parts.people)
        jobs.append(("block-map", lambda: block_map.refresh(utc_now()), IntervalTrigger(seconds=3), now))
    scheduler = BlockingScheduler(
        timezone="UTC",
        executors={"default": ThreadPoolExecutor(len(jobs))},
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
    )
    for name, job, trigger, first in jobs:
        scheduler.add_job(_with_errors_logged(name, job), trigger, id=name, next_run_time=first)
    return scheduler


def _with_errors_logged(name: str, job: Callable[[], object]) -> Callable[[], None]:
    """Return a job that logs all errors instead of raising them. The next tick tries again.

    An error that repeats at every tick, like that of a store that is unavailable for an hour, is logged when it begins
    and when it ends.
    """
    problem = ""

    def run_job() -> None:
        nonlocal problem
        try:
            job()
        except QuarantineError as error:
            if str(error) != problem:
                log.error("%s: %s", name, error)
            problem = str(error)
        except Exception:
            log.exception("%s failed", name)
        else:
            if problem:
                log.info("%s: works again", name)
            problem = ""

    return run_job


def _shut_down(scheduler: BlockingScheduler, parts: Parts) -> None:
    """Wait at most `GRACE_SECONDS` for the mail being sent, so that it is not sent twice. Then end the process.

    Correctness does not depend on this: claims of a killed process expire by themselves.
    """
    if scheduler.running:
        shutdown = threading.Thread(target=scheduler.shutdown, daemon=True)
        shutdown.start()
        shutdown.join(GRACE_SECONDS)
        close_outcomes(parts.store, GRACE_SECONDS / 5)
    log.info("stopped")
    logging.shutdown()
    os._exit(0)  # a normal exit would wait for every thread


# ---- once


def _parse_time(ctx: click.Context, param: click.Parameter, text: str | None) -> datetime | None:
    """Return an ISO 8601 time with an offset as UTC. Raises BadParameter."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a time: use one like 2026-11-22T07:00:00+01:00") from error
    if moment.tzinfo is None:
        raise click.BadParameter(f"{text!r} has no offset: add Z for UTC, or one like +01:00")
    if not MINYEAR + _YEARS < moment.year < MAXYEAR - _YEARS:
        raise click.BadParameter(f"{text!r} is too far from the present: check the year")
    return moment.astimezone(UTC)


def _is_valid_unicode(argument: str) -> bool:
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


@main.command()
@click.option("--recipient", metavar="ADDRESS", help="Only for this recipient.")
@click.option("--dry-run", is_flag=True, help="Only show which digests would be sent.")
@click.option("--resend", is_flag=True, help="Send the last digest of --recipient again, with fresh links.")
@click.option("--now", metavar="ISO-TIME", callback=_parse_time, help="Act as if it were this time, for tests.")
def once(recipient: str | None, dry_run: bool, resend: bool, now: datetime | None) -> None:
    """Send digests of all unannounced messages now, whatever the schedule, and print the result."""
    if resend and not recipient:
        raise click.UsageError("Give --recipient ADDRESS with --resend.")
    if resend and dry_run:
        raise click.UsageError("Use either --resend or --dry-run.")
    # An argument that is not UTF-8, as from an ISO 8859-1 terminal, has surrogates, which no store accepts.
    if recipient is not None and ("@" not in recipient or not _is_valid_unicode(recipient)):
        raise click.UsageError(f"--recipient {recipient!r} is not a mail address. Enter one like name@example.org.")
    with _exit_on_problem():
        parts = assemble(load())
        try:
            if recipient and not parts.people.is_notified(recipient):
                raise click.UsageError(
                    f"{shown_address(recipient)} gets no digests: local_domains has neither it nor its domain. "
                    "Check its spelling."
                )
            moment = now or utc_now()
            if not resend:
                news.find_news(parts, moment)
            people = list(parts.people.readers(parts.people.held_as(recipient))) if recipient else None
            if recipient and people and people != [identity(recipient)]:
                click.echo(f"{shown(recipient)} is read by {', '.join(map(shown_address, people))}:")
            if dry_run:
                _show_preview(parts, people, moment)
                return
            for person in [""] if people is None else people:
                record(parts.store, Act.DIGEST_REQUESTED, person, "resend" if resend else "")
            if resend and people:
                summary = Summary()
                for person in people:
                    summary.add(work.resend(parts, moment, person))
            else:
                with _progress() as progress:
                    pace = Pace(parts.settings.digest.per_minute)
                    summary = work.send_all(parts, moment, recipient=people, pace=pace, progress=progress)
        finally:
            parts.store.close(OUTCOMES_SECONDS)
    _show_summary(summary)


@contextmanager
def _progress() -> Iterator[RunProgress | None]:
    """Show a progress bar with the remaining time if stderr is a terminal. Otherwise yield None."""
    if not sys.stderr.isatty():
        yield None
        return
    console = Console(stderr=True)
    columns = ("{task.completed} of {task.total} digests", BarColumn(), TimeRemainingColumn())
    # Only warnings and errors are logged, above the bar: a line for each digest would scroll it away.
    handler = RichHandler(logging.WARNING, console=console, show_path=False)
    previous, logging.root.handlers = logging.root.handlers, [handler]
    try:
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=None, visible=False)  # until the total is known
            yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)
    finally:
        logging.root.handlers = previous


def _recipient_column() -> Column:
    return Column("recipient", overflow="fold")  # an address is shown whole, on a narrow terminal as well


def _show_preview(parts: Parts, people: Sequence[str] | None, now: datetime) -> None:
    table = Table(
        _recipient_column(), "messages", "oldest", "", title="Digests that would be sent", title_justify="left"
    )
    rows = 0
    for person, deliveries, reason in news.preview(parts, people, DELIVERIES, now):
        rows += 1
        oldest = f"{deliveries[0].message.held_at:%Y-%m-%d %H:%M} UTC" if deliveries else ""
        table.add_row(Text(shown_address(person)), str(len(deliveries)), oldest, reason)
    _print(table if rows else "No digest would be sent: there are no unannounced messages.")


def _show_summary(summary: Summary) -> None:
    if not (summary.sent or summary.skipped or summary.failed):
        _print("No digest was sent: there are no unannounced messages.")
        return
    table = Table(_recipient_column(), "messages", "")
    shortened = len(summary.sent) > SHOWN
    for recipient, count in summary.sent[: 0 if shortened else None]:
        table.add_row(Text(shown_address(recipient)), str(count), "sent")
    if shortened:
        total = sum(count for _, count in summary.sent)
        table.add_row(f"{len(summary.sent)} recipients", str(total), "sent")
    for recipient, reason in summary.skipped:
        table.add_row(Text(shown_address(recipient)), "", Text(f"not sent: {shown(reason)}"))
    for recipient, reason in summary.failed:
        table.add_row(Text(shown_address(recipient)), "", Text(f"failed: {shown(reason)}", "red"))
    _print(table)
    if summary.failed:
        early = " The others were not tried, since several failed in a row or the store was unavailable."
        rest = early if summary.stopped_early else ""
        click.echo(
            f"{len(summary.failed)} digests could not be sent; their messages stay unannounced.{rest} "
            "`quarantine check` tests whether mail.url can be reached. The digest process tries again by itself.",
            err=True,
        )
        raise SystemExit(1)


def _print(output: Table | str) -> None:
    Console(width=None if sys.stdout.isatty() else 200).print(output, highlight=False)


if __name__ == "__main__":
    main()
