"""The rest of the digest process's work: our own mail that waits, and what is done once a day.

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

_CLOCK_JUMP = timedelta(days=4)  # more than a long weekend without the process
_CLOCK_TRUSTED = timedelta(hours=20)


def send_queued(parts: Parts, now: datetime, *, stopped: Stopped = never) -> int:
    """Send our own mail that waits (sign-in links, requests, alarms); returns how many went out.

    Raises StoreUnavailable. Mail that fails waits for its next try; several failures in a row end the call.
    """
    tell, sent, in_a_row, more = clock(now), 0, 0, True
    with parts.mailer.connection() as connection:
        while more and in_a_row < FAILURES_IN_A_ROW and not stopped():
            mail = None
            try:
                with parts.store.outbox.sending(tell()) as mail:
                    more = mail is not None
                    if mail is not None and mail.to:  # else a decoy, see `QueuedMail`
                        reply = connection.send("", mail.to, [mail.mail], has_8bit=not mail.mail.isascii())
                        log.info("mail sent id=%s tries=%d: %s", mail.id, mail.attempts, reply)
                        sent += 1
                in_a_row = 0
            except RelayRefused as error:
                log.error("mail refused and dropped id=%s: %s", mail and mail.id, error)
            except RelayDeferred as error:
                log.warning("mail deferred id=%s: %s", mail and mail.id, error)
                in_a_row += 1
    return sent


def daily(parts: Parts, now: datetime) -> None:
    """Make what the coming days need and, where the clock is steady, remove what is past retention.

    Raises StoreUnavailable.
    """
    parts.store.prepare_days(now)
    if _steady(parts.store, now):
        purged = parts.store.purge(now - timedelta(days=parts.settings.store.retention_days), now)
        log.info("purged messages=%d kept=%d", purged.messages, purged.kept)


def _steady(store: Store, now: datetime) -> bool:
    """Whether the clock has gone on without a jump since the day before: one that is a year ahead would purge all.

    After a jump, or days in which this did not run – which look the same – there is a day to set the clock right.
    """
    since, steady = now, notes.CLOCK.get(store)
    if steady is not None:
        if abs(now - steady.until) <= _CLOCK_JUMP:
            since = steady.since
        else:
            log.warning("the clock jumped, or nothing ran, from %s to %s: the purge waits a day", steady.until, now)
    notes.CLOCK.set(store, notes.Period(since, now))
    return now - since >= _CLOCK_TRUSTED
