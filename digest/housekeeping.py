"""Background jobs of the digest process in addition to digests: queued mail of the portal, and daily maintenance.

Each function is safe to repeat at any moment, in any number of processes.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from digest.run import FAILURES_IN_A_ROW, Stopped, never
from portal.assemble import Parts
from portal.model.clock import clock
from portal.model.errors import RelayDeferred, RelayRefused
from portal.stores import Store, notes

log = logging.getLogger("quarantine.digest")

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


def daily(parts: Parts, now: datetime) -> None:
    """Prepare the store for the coming days. If the clock can be trusted, purge messages past retention.

    Raises StoreUnavailable.
    """
    parts.store.prepare_days(now)
    if _clock_is_trusted(parts.store, now):
        purged = parts.store.purge(now - timedelta(days=parts.settings.store.retention_days), now)
        log.info("purged messages=%d kept=%d", purged.messages, purged.kept)


def _clock_is_trusted(store: Store, now: datetime) -> bool:
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
