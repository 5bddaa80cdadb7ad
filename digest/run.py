"""What the digest process does, each a function that is safe to repeat at any moment, in any number of processes.

None trusts a timer: each asks the store what is due, claims it, does it, records it. ``now`` is the moment a call
begins; within a call time goes on from there, so that a claim made late in a long run has its whole lease.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from email.message import EmailMessage
from uuid import UUID
from zoneinfo import ZoneInfo

from digest.compose import compose
from portal.assemble import Parts
from portal.errors import AlreadyDone, QuarantineError, RelayDeferred, RelayRefused, SettingsError, StoreUnavailable
from portal.message import Delivery, State, new_id
from portal.ranking import known_senders
from portal.settings import Settings
from portal.stores import Digest

log = logging.getLogger("quarantine.digest")

PAGE = 500  # recipients looked up at once
DELIVERIES = 5_000  # of one recipient in one digest; the rest stays news and follows the next day
FAILURES_IN_A_ROW = 3  # then we look whether the mail server is there at all
DEFERRALS_IN_A_ROW = 20  # then it is there and takes nothing; below, some mailboxes may be full
NEWS_LOOKED_FOR = timedelta(days=2)  # how far back `find_news` looks

Stopped = Callable[[], bool]  # whether to leave off before the next mail


def _never() -> bool:
    return False


@dataclass(slots=True)
class Summary:
    """What one run over the due digests did."""

    sent: list[tuple[str, int]] = field(default_factory=list)  # recipient, deliveries told of
    skipped: list[tuple[str, str]] = field(default_factory=list)  # recipient, why in words; all is well
    failed: list[tuple[str, str]] = field(default_factory=list)  # recipient, why in words; tried again later
    given_up: bool = False  # left off early: several failed in a row


def clock(now: datetime) -> Callable[[], datetime]:
    """A clock that shows ``now`` at this moment and goes on from there."""
    started = time.monotonic()
    return lambda: now + timedelta(seconds=time.monotonic() - started)


# ---- when


def next_time(settings: Settings, after: datetime) -> datetime:
    """The first `digest.at` in `digest.timezone` later than ``after``, aware UTC.

    Once per local day. A time that a spring night leaves out is the moment the gap ends; one that an autumn night
    has twice is the first of the two (PEP 495, ``fold=0``).
    """
    zone = ZoneInfo(settings.digest.timezone)
    day = after.astimezone(zone).date() - timedelta(days=1)
    while True:
        moment = _moment(day, settings, zone)
        # A day may be left out as a whole (Pacific/Apia had no 30 December 2011).
        if moment > after and moment.astimezone(zone).date() == day:
            return moment
        day += timedelta(days=1)


def _moment(day: date, settings: Settings, zone: ZoneInfo) -> datetime:
    wall = datetime.combine(day, settings.digest.at, zone)
    moment = wall.astimezone(UTC)
    if moment.astimezone(zone).replace(tzinfo=None) == wall.replace(tzinfo=None):
        return moment
    # In a gap fold=0 counts with the offset before it and so lands behind it, fold=1 before it (PEP 495).
    before, behind = wall.replace(fold=1).astimezone(UTC), moment
    while behind - before > timedelta(seconds=1):
        middle = before + (behind - before) // 2
        if middle.astimezone(zone).utcoffset() == behind.astimezone(zone).utcoffset():
            behind = middle
        else:
            before = middle
    return behind.replace(microsecond=0)


def schedule_news(parts: Parts, now: datetime, limit: int = PAGE) -> int:
    """Give every recipient with news the time of their digest; returns how many got one.

    It is the first after the oldest news, so one that was missed is due at once. Those who are not local (any more)
    get the next time from now, to be looked at again: `send_due` does not mail them.
    """
    people = parts.store.unscheduled(limit)
    for person in people:
        local = parts.settings.is_local(person.recipient)
        parts.store.schedule(person.recipient, next_time(parts.settings, (local and person.news_since) or now))
    return len(people)


# ---- digests


def send_due(parts: Parts, now: datetime, limit: int = PAGE, *, stopped: Stopped = _never) -> Summary:
    """Send the digests that are due, longest waiting first, at most ``limit``, over one connection.

    Each recipient stands alone: one whose digest fails leaves the others. Raises StoreUnavailable.
    """
    with Run(parts, now) as run:
        for recipient in parts.store.due_digests(now, limit):
            if stopped() or run.summary.given_up:
                break
            if run.is_local(recipient):
                run.send(recipient)
            else:
                # Out of the way, or the longest waiting would be the same strangers for ever.
                parts.store.schedule(recipient, next_time(parts.settings, run.clock()))
        return run.summary


def send_all(parts: Parts, now: datetime, *, recipient: str | None = None) -> Summary:
    """Send what is not announced yet whatever the hour, to everybody or to one recipient. Raises StoreUnavailable."""
    with Run(parts, now) as run:
        for person in [recipient] if recipient else everybody_with_news(parts):
            if run.summary.given_up:
                break
            if run.is_local(person):
                run.send(person, at_once=True)
        return run.summary


def everybody_with_news(parts: Parts) -> Iterator[str]:
    """Identities of all recipients with news who did not stop digests, in order."""
    after = ""
    while page := parts.store.due_digests(None, PAGE, after):
        yield from page
        after = page[-1]


def resend(parts: Parts, now: datetime, recipient: str) -> Summary:
    """Send a recipient's last digest once more: what of it is still held, with links dated now.

    Claims and announces nothing. Raises StoreUnavailable.
    """
    with Run(parts, now) as run:
        digest = parts.store.last_digest(recipient)
        if not run.is_local(recipient):
            return run.summary
        if digest is None:
            run.summary.skipped.append((recipient, "has had no digest yet"))
        elif not any(delivery.state is State.HELD for delivery in digest.deliveries):
            run.summary.skipped.append((recipient, "nothing of the last digest is still held"))
        else:
            run.repeat(replace(digest, issued_at=now.replace(microsecond=0)))
        return run.summary


class Run:
    """One run: a clock, one connection that is opened when first needed, and what came of it."""

    def __init__(self, parts: Parts, now: datetime) -> None:
        self.parts = parts
        self.clock = clock(now)
        self.summary = Summary()
        self._stack = ExitStack()
        self._connection = self._stack.enter_context(parts.mailer.connection())
        self._in_a_row = 0

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def is_local(self, recipient: str) -> bool:
        """Whether this recipient may be mailed; notes it when not."""
        if self.parts.settings.is_local(recipient):
            return True
        self.summary.skipped.append((recipient, "not in local_domains"))
        return False

    def send(self, recipient: str, *, at_once: bool = False) -> None:
        """Claim, compose and send one recipient's digest; whatever fails is noted and logged."""
        try:
            with self.parts.store.digesting(recipient, self.clock(), DELIVERIES, at_once=at_once) as digest:
                if digest.deliveries:
                    reply = self._mail(digest, digest.id)
        except AlreadyDone as error:
            self.summary.skipped.append((recipient, str(error)))
        except Exception as error:
            self._failed(recipient, error)
        else:
            self._in_a_row = 0
            if digest.deliveries:
                self._sent(digest, digest.id, reply)

    def repeat(self, digest: Digest) -> None:
        """Send a digest that was sent before, as another mail."""
        mail_id = new_id(self.clock())
        try:
            reply = self._mail(digest, mail_id)
        except Exception as error:
            self._failed(digest.recipient, error)
        else:
            self._sent(digest, mail_id, reply)

    def _mail(self, digest: Digest, mail_id: UUID) -> str:
        mail = digest_mail(self.parts, digest, self.clock(), mail_id).as_bytes()
        return self._connection.send("", digest.address, [mail], has_8bit=not mail.isascii())

    def _sent(self, digest: Digest, mail_id: UUID, reply: str) -> None:
        count = sum(delivery.state is State.HELD for delivery in digest.deliveries)
        self.summary.sent.append((digest.recipient, count))
        log.info("digest sent id=%s recipient=%s messages=%d: %s", mail_id, digest.recipient, count, reply)

    def _failed(self, recipient: str, error: Exception) -> None:
        if isinstance(error, QuarantineError):
            log.warning("digest failed recipient=%s: %s", recipient, error)
        else:
            log.error("digest failed recipient=%s", recipient, exc_info=error)
        self.summary.failed.append((recipient, str(error) if isinstance(error, QuarantineError) else "internal error"))
        self._in_a_row = self._in_a_row + 1 if isinstance(error, (RelayDeferred, StoreUnavailable)) else 0
        if self._hopeless(error):
            log.warning("digests: %d failed in a row, leaving off until the next tick", self._in_a_row)
            self.summary.given_up = True

    def _hopeless(self, error: Exception) -> bool:
        """Whether this is about the mail server or the store, and not about single recipients."""
        if self._in_a_row == FAILURES_IN_A_ROW:
            try:
                self.parts.mailer.probe()
            except RelayDeferred:
                return True
            return isinstance(error, StoreUnavailable)
        return self._in_a_row >= DEFERRALS_IN_A_ROW


def digest_mail(parts: Parts, digest: Digest, now: datetime, mail_id: UUID) -> EmailMessage:
    """The mail of a digest by the settings. Raises SettingsError without mail.from_address."""
    settings = parts.settings
    if settings.mail.from_address is None:
        raise SettingsError("mail.from_address is needed to send digests")
    return compose(
        digest,
        links=parts.links,
        render=parts.render,
        sender=settings.mail.from_address,
        zone=ZoneInfo(settings.digest.timezone),
        max_rows=settings.digest.max_rows,
        retention_days=settings.store.retention_days,
        now=now,
        mail_id=mail_id,
        known=known_senders(parts.store, digest.recipient) if len(digest.deliveries) > 1 else (),
    )


# ---- the rest of the process's work


def send_queued(parts: Parts, now: datetime, *, stopped: Stopped = _never) -> int:
    """Send our own mail that waits (sign-in links, requests, alarms); returns how many went out.

    Raises StoreUnavailable. Mail that fails waits for its next try; several failures in a row end the call.
    """
    tell, sent, in_a_row, more = clock(now), 0, 0, True
    with parts.mailer.connection() as connection:
        while more and in_a_row < FAILURES_IN_A_ROW and not stopped():
            mail = None
            try:
                with parts.store.sending(tell()) as mail:
                    more = mail is not None
                    if mail is not None and mail.to:  # else a blind, see `OutgoingMail`
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
    """Make what the coming days need and remove what is past retention. Raises StoreUnavailable."""
    parts.store.prepare_days(now)
    purged = parts.store.purge(now - timedelta(days=parts.settings.store.retention_days), now)
    log.info("purged messages=%d kept=%d", purged.messages, purged.kept)


def find_news(parts: Parts, now: datetime) -> int:
    """Mark recipients with held mail that was never announced as having news; returns how many were.

    Heals what a race left out, and tells those whose domain became local. Raises StoreUnavailable.
    """
    found = parts.store.find_news(now - NEWS_LOOKED_FOR, parts.settings.local_domains)
    if found:
        log.info("found news for recipients=%d", found)
    return found


def preview(parts: Parts, recipient: str | None) -> Iterator[tuple[str, tuple[Delivery, ...]]]:
    """Who would be told of what, claiming nothing. Recipients that are not local come with nothing."""
    for person in [recipient] if recipient else everybody_with_news(parts):
        local = parts.settings.is_local(person)
        yield person, tuple(parts.store.unannounced(person, DELIVERIES)) if local else ()
