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
from datetime import datetime, timedelta
from email.message import EmailMessage
from uuid import UUID

from digest.compose import compose
from portal.assemble import Parts
from portal.errors import AlreadyDone, QuarantineError, RelayDeferred, RelayRefused, SettingsError, StoreUnavailable
from portal.message import Delivery, State, new_id
from portal.ranking import known_senders
from portal.schedule import NOTHING_CHOSEN, Plan, Preferences, Schedule, plan_for
from portal.stores import Digest, Store

log = logging.getLogger("quarantine.digest")

PAGE = 500  # recipients looked up at once
DELIVERIES = 5_000  # of one recipient in one digest; the rest stays news and follows the next day
FAILURES_IN_A_ROW = 3  # then we look whether the mail server is there at all
DEFERRALS_IN_A_ROW = 20  # then it is there and takes nothing; below, some mailboxes may be full
LOOKED_AT_AGAIN = timedelta(days=1)  # those who are not told
NEWS_LOOKED_FOR = timedelta(days=2)  # how far back `find_news` looks
_CLOCK = "digest.clock"  # a note in the store: since when `daily` met no jump, and when it ran last
_CLOCK_JUMP = timedelta(days=4)  # more than a long weekend without the process
_CLOCK_TRUSTED = timedelta(hours=20)

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


def plan_of(parts: Parts, recipient: str, preferences: Preferences) -> Plan:
    """When and how this recipient is told."""
    return plan_for(parts.settings.digest, recipient, preferences)


def schedule_news(parts: Parts, now: datetime, limit: int = PAGE) -> int:
    """Give every recipient with news the time of their digest; returns how many got one.

    It is the first of their plan after the oldest news, so one that was missed is due at once. Those who are not told
    (not local, or `never` by the settings) are looked at again the next day: `send_due` does not mail them.
    """
    people = parts.store.unscheduled(limit)
    for person in people:
        # Never after now: what was held while a clock was ahead would wait until then.
        since = min(person.news_since or now, now)
        planned = plan_of(parts, person.recipient, person.preferences).next_time(since)
        local = parts.settings.is_local(person.recipient)
        parts.store.schedule(person.recipient, planned if local and planned else now + LOOKED_AT_AGAIN)
    return len(people)


def why_not(parts: Parts, recipient: str) -> str:
    """Why this recipient is not told, in words; "" when they are. Those who stopped are the store's to know."""
    if not parts.settings.is_local(recipient):
        return "not in local_domains"
    # Who chose a schedule is asked for only where that matters: the defaults alone cost no question.
    if plan_of(parts, recipient, NOTHING_CHOSEN).schedule is not Schedule.NEVER:
        return ""
    chosen = plan_of(parts, recipient, parts.store.person(recipient).preferences).schedule
    return "digest.schedule is never" if chosen is Schedule.NEVER else ""


# ---- digests


def send_due(parts: Parts, now: datetime, limit: int = PAGE, *, stopped: Stopped = _never) -> Summary:
    """Send the digests that are due, longest waiting first, at most ``limit``, over one connection.

    Each recipient stands alone: one whose digest fails leaves the others. Raises StoreUnavailable.
    """
    with Run(parts, now) as run:
        for recipient in parts.store.due_digests(now, limit):
            if stopped() or run.summary.given_up:
                break
            if run.may_tell(recipient):
                run.send(recipient)
            else:
                # Out of the way, or the longest waiting would be the same strangers for ever.
                planned = parts.store.person(recipient).next_digest_at
                parts.store.schedule(recipient, run.clock() + LOOKED_AT_AGAIN, instead_of=planned)
        return run.summary


def send_all(parts: Parts, now: datetime, *, recipient: str | None = None) -> Summary:
    """Send what is not announced yet whatever the hour, to everybody or to one recipient. Raises StoreUnavailable."""
    with Run(parts, now) as run:
        for person in [recipient] if recipient else everybody_with_news(parts):
            if run.summary.given_up:
                break
            if run.may_tell(person):
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
        if not run.may_tell(recipient):
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

    def may_tell(self, recipient: str) -> bool:
        """Whether this recipient may be mailed; notes it when not."""
        reason = why_not(self.parts, recipient)
        if reason:
            self.summary.skipped.append((recipient, reason))
        return not reason

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
    plan = plan_of(parts, digest.recipient, digest.preferences)
    return compose(
        digest,
        links=parts.links,
        render=parts.render,
        sender=settings.mail.from_address,
        zone=plan.zone,
        max_rows=settings.digest.max_rows,
        retention_days=settings.store.retention_days,
        now=now,
        language=plan.language,
        mail_id=mail_id,
        known=known_senders(parts.store, [digest.recipient]).get(digest.recipient, ()),
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
    since, noted = now, store.recall(_CLOCK)
    if noted is not None:
        first, last = (datetime.fromisoformat(moment) for moment in noted.split())
        if abs(now - last) <= _CLOCK_JUMP:
            since = first
        else:
            log.warning("the clock jumped, or nothing ran, from %s to %s: the purge waits a day", last, now)
    store.remember(_CLOCK, f"{since.isoformat()} {now.isoformat()}", replace=True)
    return now - since >= _CLOCK_TRUSTED


def find_news(parts: Parts, now: datetime) -> int:
    """Mark recipients with held mail that was never announced as having news; returns how many were.

    Heals what a race left out, and what a clock that was ahead did to times; tells those whose domain became local.
    Raises StoreUnavailable.
    """
    mended = parts.store.mend_times(now)
    if mended:
        log.warning("a clock was ahead: planned anew digests, releases or mails=%d", mended)
    found = parts.store.find_news(now - NEWS_LOOKED_FOR, parts.settings.local_domains)
    if found:
        log.info("found news for recipients=%d", found)
    return found


def preview(parts: Parts, recipient: str | None) -> Iterator[tuple[str, tuple[Delivery, ...]]]:
    """Who would be told of what, claiming nothing. Recipients that are not told (`why_not`) come with nothing."""
    for person in [recipient] if recipient else everybody_with_news(parts):
        yield person, () if why_not(parts, person) else tuple(parts.store.unannounced(person, DELIVERIES))
