"""Work of the digest process in addition to digests: queued mail of the portal, virus scans, learning, batches, mass
acts, forgotten recipients, daily maintenance.

Each function is safe to repeat at any moment, in any number of processes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from uuid import UUID

from digest.news import find_old_news
from digest.outcomes import FAILURES_IN_A_ROW
from digest.stopping import Stopped, never, or_after
from portal.assemble import Parts
from portal.batches.batch import KIND as BATCH
from portal.batches.mass import KIND as MASS
from portal.batches.mass_run import MassActs
from portal.batches.run import Batches
from portal.model.clock import clock
from portal.model.errors import (
    AlreadyDone,
    BodyDamaged,
    NotFound,
    QuarantineError,
    RelayDeferred,
    RelayRefused,
    RspamdUnavailable,
)
from portal.model.message import Event, EventKind, State
from portal.policy.forgetting import FORGET
from portal.policy.learning import LEARN, Result
from portal.policy.retention import expire_ended, removal_time
from portal.scanning import BACKGROUND_SECONDS
from portal.stores import Store, notes
from portal.stores.lifecycle import REMINDER_AFTER
from portal.stores.records import Job
from portal.stores.shared.jobs import SCAN

log = logging.getLogger("quarantine.digest")

_SCANS_AT_ONCE = 4
_SCAN_TRIES = 100  # in a day
_SCAN_BACK_OFF_MIN, _SCAN_BACK_OFF_MAX = timedelta(seconds=10), timedelta(minutes=15)
_LEARN_TRIES = 3
_LEARN_BACK_OFF = timedelta(minutes=1)  # after the first try; ten times that after the second
_LEARN_WAIT = timedelta(minutes=1)
_LEARN_PAUSE = timedelta(hours=1)
_INDEX_SECONDS = 2  # of five
_FORGET_WAIT = timedelta(minutes=10)
_REQUESTS = 500  # whose reminders are looked up together
_STATISTICS_KEPT = timedelta(days=800)
_TURN_SECONDS = 5  # of a batch, before it is the turn of the next one
_CLOCK_JUMP = timedelta(days=4)  # more than a long weekend during which the process did not run
_CLOCK_TRUSTED = timedelta(hours=20)  # without a jump, before the first purge


def send_queued(parts: Parts, now: datetime, *, stopped: Stopped = never) -> int:
    """Send queued mail of the portal (sign-in links, release requests, alarms). Return how many mails were sent.

    Mail that fails is retried later. Several failures in a row end the call. Raises StoreUnavailable.
    """
    time, sent, failures, more = clock(now), 0, 0, True
    with parts.mailer.connection() as connection:
        while more and failures < FAILURES_IN_A_ROW and not stopped():
            mail = None
            try:
                with parts.store.outbox.sending(time()) as mail:
                    more = mail is not None
                    if mail is not None and mail.to:  # else a decoy, see `QueuedMail`
                        reply = connection.send("", mail.to, [mail.mail], has_8bit=not mail.mail.isascii())
                        log.info("mail sent id=%s tries=%d: %s", mail.id, mail.attempts, reply)
                        sent += 1
                failures = 0
            except RelayRefused as error:
                log.error("mail refused and dropped id=%s: %s", mail and mail.id, error)
            except RelayDeferred as error:
                log.warning("mail deferred id=%s: %s", mail and mail.id, error)
                failures += 1
    return sent


def scan_waiting(parts: Parts, now: datetime, *, stopped: Stopped = never) -> int:
    """Run the queued virus scans. Return how many messages were scanned.

    A scan that fails since Rspamd or the scanner does not answer is retried with exponential backoff for a day, and
    ends the call. Raises StoreUnavailable.
    """
    time, scanned = clock(now), 0
    with ThreadPoolExecutor(_SCANS_AT_ONCE) as pool:
        while not stopped():
            jobs = parts.store.jobs.claim(SCAN, _SCANS_AT_ONCE, time())
            results = list(pool.map(lambda job: _scan(parts, job, time), jobs))
            scanned += sum(results)
            if not jobs or not all(results):
                break
    return scanned


def _scan(parts: Parts, job: Job, time: Callable[[], datetime]) -> bool:
    """Run one scan. Return False if the scanner does not answer."""
    id, error = UUID(job.arguments["message"]), None
    try:
        for message in parts.store.messages.find(str(id)):
            stored = message
            # A scan that is done is not repeated: the job may be one of a process that died after the scan.
            if message.scan is None or not message.scan.is_done:
                stored, error = parts.scanning.scan(message, time(), BACKGROUND_SECONDS)
            parts.actions.report_finding(stored)
    except (NotFound, BodyDamaged) as missing:
        log.error("not scanned id=%s: %s", id, missing)
    except QuarantineError:
        raise
    except Exception:
        log.exception("scan failed id=%s", id)
        error = RspamdUnavailable("internal error")
    if error is not None and job.tries < _SCAN_TRIES:
        pause = min(_SCAN_BACK_OFF_MIN * 2 ** min(job.tries - 1, 10), _SCAN_BACK_OFF_MAX)
        parts.store.jobs.retry(job, time() + pause)
        return False
    if error is not None:
        log.error("scan given up id=%s: %s", id, error)
    parts.store.jobs.finish(job, None, time())
    return True


def remind(parts: Parts, now: datetime, *, stopped: Stopped = never) -> int:
    """Remind administrators of release requests that are open for a day. Return how many reminders were queued.

    Raises StoreUnavailable.
    """
    count, after = 0, None
    while not stopped():
        page = parts.store.deliveries.ending(State.REQUESTED, now - REMINDER_AFTER, _REQUESTS, after)
        if not page:
            break
        after = page[-1].key
        events = parts.store.deliveries.last_events([each.key for each in page])
        waiting = [each.key for each in page if not _was_reminded(events.get(each.key, ()))]
        count += sum(parts.actions.remind(key) for key in waiting)
    return count


def _was_reminded(events: Sequence[Event]) -> bool:
    """Return whether there was a reminder since the last request. ``events``: the latest of each kind, oldest first."""
    kinds = [event.kind for event in events if event.kind in (EventKind.REQUESTED, EventKind.REMINDED)]
    return kinds[-1:] == [EventKind.REMINDED]


def index_facets(parts: Parts, *, stopped: Stopped = never) -> None:
    """Index messages under what staff search for, for a while: new ones, then those held before an upgrade.

    Not to the end, since after an upgrade that takes hours of processor time, which digests need as well. Raises
    StoreUnavailable.
    """
    stopped = or_after(_INDEX_SECONDS, stopped)
    while not stopped() and parts.store.facets.index():
        pass


def learn_waiting(parts: Parts, now: datetime, *, stopped: Stopped = never) -> int:
    """Have Rspamd learn the queued messages. Return how many jobs ended.

    A message is tried three times. If Rspamd rejects this portal, the administrator gets one alarm, and one message an
    hour is tried until it is accepted: repeated wrong passwords would lock everybody on this host out of Rspamd's web
    interface. Raises StoreUnavailable.
    """
    time, ended = clock(now), 0
    while not stopped() and not _learning_is_paused(parts.store, time()):
        jobs = parts.store.jobs.claim(LEARN, 1, time())
        if not jobs or not _learn(parts, jobs[0], time):
            break
        ended += 1
    return ended


def _learn(parts: Parts, job: Job, time: Callable[[], datetime]) -> bool:
    """Run one job. Return False if Rspamd does not answer or rejects this portal."""
    jobs, id = parts.store.jobs, job.arguments["message"]
    try:
        result, reason = parts.learning.run(job, time())
    except (NotFound, BodyDamaged) as missing:
        log.error("not learned id=%s: %s", id, missing)
        result, reason = Result.SKIPPED, ""
    except RspamdUnavailable as error:
        result, reason = Result.FAILED, str(error)
    except QuarantineError:
        raise
    except Exception:
        log.exception("learning failed id=%s", id)
        result, reason = Result.FAILED, "internal error"
    if result is Result.WAIT:
        jobs.retry(job, time() + _LEARN_WAIT, tried=False)
    elif result is Result.REJECTED:
        _pause_learning(parts, reason, time())
        jobs.retry(job, time() + _LEARN_PAUSE, tried=False)
    elif result is Result.MISCONFIGURED:
        _pause_learning(parts, reason, time())
        jobs.finish(job, None, time())
    elif result is Result.FAILED and job.tries < _LEARN_TRIES:
        jobs.retry(job, time() + _LEARN_BACK_OFF * 10 ** (job.tries - 1))
    else:
        if result is Result.FAILED:
            log.error("learning given up id=%s: %s", id, reason)
        elif result is Result.DONE and notes.LEARNING_PAUSED.get(parts.store) is not None:
            notes.LEARNING_PAUSED.set(parts.store, None)
            log.info("learning works again")
        jobs.finish(job, None, time())
    return result in (Result.DONE, Result.SKIPPED, Result.WAIT)


def _learning_is_paused(store: Store, now: datetime) -> bool:
    since = notes.LEARNING_PAUSED.get(store)
    # The difference is absolute, so that a clock that was a year ahead does not pause it for a year.
    return since is not None and abs(now - since) < _LEARN_PAUSE


def _pause_learning(parts: Parts, reason: str, now: datetime) -> None:
    note = notes.LEARNING_PAUSED
    if note.get(parts.store) is not None:
        note.set(parts.store, now)
        return
    parts.actions.alarm(
        "Rspamd rejects messages to be learned",
        f"{reason}. Learning is paused; one message an hour is tried. Check rspamd.password, which must be the "
        "enable_password of Rspamd's worker-controller if it has one, secure_ip there, and that a classifier is "
        "configured: `quarantine check`. To stop learning, set rspamd.learn to off.",
        note=(note.name, note.text(parts.store), note.to_text(now)),
    )


def run_batches(parts: Parts, now: datetime, *, stopped: Stopped = never) -> int:
    """Run the batches that wait, each for some seconds in turn, until none does. Return how many turns were taken.

    Raises StoreUnavailable.
    """
    batches = Batches(parts.store, parts.actions, parts.people, parts.settings.is_local)
    return _in_turns(parts.store, BATCH, batches.run, now, stopped)


def run_mass_acts(parts: Parts, now: datetime, *, stopped: Stopped = never) -> int:
    """Run the mass acts of staff that are due, each for some seconds in turn. Return how many turns were taken.

    Raises StoreUnavailable.
    """
    masses = MassActs(parts.store, parts.actions, parts.staff)
    return _in_turns(parts.store, MASS, masses.run, now, stopped)


def _in_turns(store: Store, kind: str, run: Callable[[Job, Stopped], object], now: datetime, stopped: Stopped) -> int:
    """Run the waiting jobs of a kind, each for some seconds in turn. Return how many turns were taken."""
    time, turns = clock(now), 0
    while not stopped() and (jobs := store.jobs.claim(kind, 1, time())):
        try:
            run(jobs[0], or_after(_TURN_SECONDS, stopped))
        except AlreadyDone:
            log.info("job goes on in another process kind=%s id=%s", kind, jobs[0].id)
        turns += 1
    return turns


def forget_waiting(parts: Parts, now: datetime, *, stopped: Stopped = never) -> int:
    """Remove the deliveries of people whom staff forgot, for some seconds in turn. Return how many turns were taken.

    Deliveries that are being released are removed once that has ended. Raises StoreUnavailable.
    """
    time, jobs = clock(now), parts.store.jobs

    def run(job: Job, is_over: Stopped) -> None:
        until = datetime.fromisoformat(job.arguments["until"])  # what is held since then belongs to nobody yet
        left = parts.forgetting.remove(job.arguments["identities"], until, is_over)
        if is_over():
            jobs.retry(job, time(), tried=False)
        elif left:
            jobs.retry(job, time() + _FORGET_WAIT, tried=False)
        else:
            jobs.finish(job, None, time())
            log.info("deliveries of a forgotten recipient removed job=%s", job.id)

    return _in_turns(parts.store, FORGET, run, now, stopped)


def daily(parts: Parts, now: datetime) -> None:
    """Prepare the store for the coming days. If the clock can be trusted, purge messages past retention.

    At the end, find news of any age. Raises StoreUnavailable.
    """
    retention_days = parts.domains.longest_retention_days
    parts.store.prepare_days(now, retention_days)
    expire(parts, now, all_of_them=True)
    parts.store.facets.recheck()
    if clock_is_trusted(parts.store, now):
        purged = parts.store.purge(removal_time(parts.store, now) - timedelta(days=retention_days), now)
        parts.store.statistics.expire((now - _STATISTICS_KEPT).date())
        audited = parts.store.audit.expire(now - timedelta(days=parts.settings.store.audit_retention_days))
        log.info("purged messages=%d kept=%d audit=%d", purged.messages, purged.kept, audited)
    find_old_news(parts, now)  # last, since it reads all that is kept: if it fails, nothing else is left undone


def expire(parts: Parts, now: datetime, *, all_of_them: bool = False, stopped: Stopped = never) -> int:
    """Forget the deliveries whose time is over, if the clock can be trusted. Return how many. See `expire_ended`.

    Raises StoreUnavailable.
    """
    if not clock_is_trusted(parts.store, now):
        return 0
    at = removal_time(parts.store, now)
    count = expire_ended(parts.store, parts.domains, at, all_of_them=all_of_them, stopped=stopped)
    if count:
        log.info("expired deliveries=%d", count)
    return count


def clock_is_trusted(store: Store, now: datetime) -> bool:
    """Return whether the clock has not jumped for `_CLOCK_TRUSTED`: a clock that is a year ahead would purge all mail.

    After a jump, or after days in which this did not run (which look the same), an administrator has a day to correct
    the clock.
    """
    since, period = now, notes.CLOCK.get(store)
    if period is not None:
        if abs(now - period.until) <= _CLOCK_JUMP:
            since = period.since
        else:
            log.warning("the clock jumped, or nothing ran, from %s to %s: the purge waits a day", period.until, now)
    notes.CLOCK.set(store, notes.Period(since, now))
    return now - since >= _CLOCK_TRUSTED
