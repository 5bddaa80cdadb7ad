"""What the digest process does, each a function that is safe to repeat at any moment, in any number of processes.

None trusts a timer: each asks the store what is due, claims it, does it, records it. ``now`` is the moment a call
begins; within a call time goes on from there, so that a claim made late in a long run has its whole lease.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from email.message import EmailMessage
from uuid import UUID

from digest.compose import compose
from digest.news import LOOKED_AT_AGAIN, everybody_with_news, plan_of, why_not
from portal.assemble import Parts
from portal.mail.relay import Connection
from portal.model.clock import clock
from portal.model.errors import (
    QuarantineError,
    RelayDeferred,
    RelayRefused,
    RelayUnreachable,
    SettingsError,
    StoreUnavailable,
)
from portal.model.message import Delivery, State, new_id
from portal.monitoring import count_run
from portal.stores import LEASE, Digest, Store, Unsent
from portal.stores.senders import known_senders

log = logging.getLogger("quarantine.digest")

DIGESTS = 5_000  # in one run, so that those who became due meanwhile get their times in between
AHEAD = 4  # digests claimed for each connection at once
DELIVERIES = 5_000  # in one digest, and in all that are claimed at once; the rest stays news and follows the next day
# With less left of its claim a mail is not begun: it takes 30 s at most, and is recorded behind the next claim.
LEFT_OF_LEASE = timedelta(seconds=50)
FAILURES_IN_A_ROW = 3  # then we look whether the mail server is there at all
DEFERRALS_IN_A_ROW = 20  # then it is there and takes nothing; below, some mailboxes may be full
TRIES = 10  # with back-off these take four hours and a half; then that recipient's next digest has its turn
BACK_OFF_MAX = timedelta(hours=1)
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
    refused: int = 0  # of the failed, those whose next digest is the next try
    given_up: bool = False  # left off early: several failed in a row

    def add(self, other: Summary) -> None:
        """Take in what another run did."""
        self.sent += other.sent
        self.skipped += other.skipped
        self.failed += other.failed
        self.refused += other.refused
        self.given_up = self.given_up or other.given_up


Progress = Callable[[int, int], None]  # told after each recipient: how many are done, of how many


class Pace:
    """At most so many mails a minute, over all runs of a process; 0: as fast as it goes. Thread-safe."""

    def __init__(self, per_minute: int = 0) -> None:
        self.per_minute = per_minute
        self._next = 0.0  # in time.monotonic()
        self._lock = threading.Lock()

    def wait(self, stopped: Stopped) -> None:
        """Return when it is the caller's turn, or when `stopped`."""
        if not self.per_minute:
            return
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + 60 / self.per_minute
        while (left := turn - time.monotonic()) > 0 and not stopped():
            time.sleep(min(left, 0.2))


# ---- digests


def send_due(
    parts: Parts, now: datetime, limit: int = DIGESTS, *, stopped: Stopped = _never, pace: Pace | None = None
) -> Summary:
    """Send the digests that are due, longest waiting first, at most ``limit``, over the connections of the settings.

    Each recipient stands alone: one whose digest fails leaves the others. Raises StoreUnavailable.
    """
    run = Run(parts, now, stopped=stopped, pace=pace)
    run.send(run.due(limit))
    return run.summary


def send_all(
    parts: Parts,
    now: datetime,
    *,
    recipient: str | Sequence[str] | None = None,
    pace: Pace | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Send what is not announced yet whatever the hour, to everybody or to some. Raises StoreUnavailable."""
    named = [recipient] if isinstance(recipient, str) else recipient
    people = list(everybody_with_news(parts) if named is None else named)
    run = Run(parts, now, pace=pace, progress=progress and (lambda done: progress(done, len(people))))
    run.send(run.named(people))
    return run.summary


def resend(parts: Parts, now: datetime, recipient: str) -> Summary:
    """Send a recipient's last digest once more: what of it is still held, with links dated now.

    Claims and announces nothing. Raises StoreUnavailable.
    """
    run = Run(parts, now)
    digest = parts.store.last_digest(recipient)
    if not run.may_tell(recipient):
        return run.summary
    if digest is not None:
        reader = parts.people.reader(recipient)
        theirs = tuple(d for d in digest.deliveries if d.recipient in reader.identities)
        digest = replace(digest, reader=reader, deliveries=theirs)
    if digest is None:
        run.summary.skipped.append((recipient, "has had no digest yet"))
    elif not any(delivery.state is State.HELD for delivery in digest.deliveries):
        run.summary.skipped.append((recipient, "nothing of the last digest is still held"))
    else:
        run.repeat(replace(digest, issued_at=now.replace(microsecond=0)))
    return run.summary


@dataclass(frozen=True, slots=True)
class _Claimed:
    digest: Digest
    known: Collection[str]  # senders whose mail this recipient got released
    until: datetime  # the claim's end


class Run:
    """One run: a clock, a few connections with a thread each, and what came of it.

    A thread takes a claimed digest, composes it, and sends it once its last one is recorded: whenever the process dies,
    at most one digest for each connection is sent a second time.
    """

    def __init__(
        self,
        parts: Parts,
        now: datetime,
        *,
        stopped: Stopped = _never,
        pace: Pace | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.parts = parts
        self.clock = clock(now)
        self.summary = Summary()
        self._stopped, self._pace, self._progress = stopped, pace or Pace(), progress
        self._settling = _Settling(parts.store, self.clock)
        self._guard = threading.Lock()  # over what is noted
        self._source = threading.Lock()  # over what is claimed
        # Python runs one thread at a time anyway; those that wait here do not take turns with the one that composes.
        self._composing = threading.Lock()
        self._batches: Iterator[Sequence[Digest]] = iter(())
        self._waiting: deque[_Claimed] = deque()
        self._error: BaseException | None = None
        self._in_a_row = 0

    # ---- whose digests

    def due(self, limit: int) -> Iterator[Sequence[Digest]]:
        """Claimed digests that are due, longest waiting first."""
        left = limit
        while left > 0:
            digests = self.parts.store.claim_digests(
                self.clock(), min(self._ahead, left), DELIVERIES, readers=self.parts.people.reader
            ).digests
            if not digests:
                return
            left -= len(digests)
            yield digests

    def named(self, recipients: Sequence[str]) -> Iterator[Sequence[Digest]]:
        """Claimed digests of these recipients, whatever the hour."""
        left = deque(who for who in recipients if self.may_tell(who))
        while left:
            some = [left.popleft() for _ in range(min(self._ahead, len(left)))]
            claims = self.parts.store.claim_digests(
                self.clock(), len(some), DELIVERIES, only=some, at_once=True, readers=self.parts.people.reader
            )
            claimed = {digest.recipient for digest in claims.digests}
            left.extendleft(who for who in reversed(some) if who not in claimed and who not in claims.refused)
            for who, why in claims.refused.items():
                self._note(skipped=(who, str(why)))
            yield claims.digests

    @property
    def _ahead(self) -> int:
        """How many are claimed at once: few enough for each to be sent long before its claim ends."""
        count = AHEAD * self.parts.settings.digest.connections
        return min(count, max(1, self._pace.per_minute // 4)) if self._pace.per_minute else count

    def may_tell(self, recipient: str) -> bool:
        """Whether this recipient may be mailed; notes it when not."""
        reason = why_not(self.parts, recipient)
        if reason:
            self._note(skipped=(recipient, reason))
        return not reason

    # ---- sending

    def send(self, batches: Iterator[Sequence[Digest]]) -> None:
        """Send all of these. Raises StoreUnavailable when no more can be claimed; what was sent is recorded."""
        self._batches = batches
        began = time.monotonic()
        helpers: list[threading.Thread] = []
        try:
            self._fill()  # here, since most runs find nothing to do
            connections = min(self.parts.settings.digest.connections, len(self._waiting))
            alone = connections == 1
            helpers = [threading.Thread(target=self._over_a_connection, args=[alone]) for _ in range(connections - 1)]
            for helper in helpers:
                helper.start()
            if connections:
                self._over_a_connection(alone)
        except BaseException as error:  # ctrl-C as well: the others end their mail
            self._error = self._error or error
        for helper in helpers:
            helper.join()
        with suppress(QuarantineError):  # else their claims run out
            self._settling.settle(unsent=[Unsent(claimed.digest) for claimed in self._waiting])
        self._tell_of_the_run(time.monotonic() - began)
        if self._error is not None:
            raise self._error

    def _over_a_connection(self, alone: bool) -> None:
        """Send until nothing is left. While one digest is being recorded the next is composed, but not sent."""
        unrecorded: _Sent | None = None
        try:
            with self.parts.mailer.connection() as connection:
                try:
                    while not self._over():
                        if alone or self._pace.per_minute:
                            # Nobody else records it meanwhile, or there is a wait before the next one.
                            self._record(unrecorded)
                            unrecorded = None
                        self._pace.wait(self._over)
                        claimed = self._next()
                        if claimed is None:
                            return
                        mail = self._composed(claimed)
                        self._record(unrecorded)
                        unrecorded = None  # or what interrupts the next one would have it noted twice
                        if mail is not None:
                            unrecorded = self._send(claimed, mail, connection)
                finally:
                    self._record(unrecorded)
        except BaseException as error:
            self._error = self._error or error

    def _over(self) -> bool:
        return self._stopped() or self.summary.given_up or self._error is not None

    def _next(self) -> _Claimed | None:
        with self._source:
            if not self._waiting:
                self._fill()
            return self._waiting.popleft() if self._waiting and not self._over() else None

    def _fill(self) -> None:
        """Claim until there is something to send, or nothing left to claim."""
        while not self._waiting and not self._over():
            # Before the claim: a moment later it would end earlier than we think.
            until = self.clock() + LEASE
            digests = next(self._batches, None)
            if digests is None:
                return
            told: list[Digest] = []
            strangers: list[Digest] = []
            for digest in digests:
                (told if self.may_tell(digest.recipient) else strangers).append(digest)
            if strangers:
                # Out of the way, or the longest waiting would be the same strangers for ever.
                later = self.clock() + LOOKED_AT_AGAIN
                self._settling.settle(unsent=[Unsent(digest, due_at=later) for digest in strangers])
            # For a single mail as well: there is no order then, but its row says it.
            readers = [digest.reader or digest.recipient for digest in told if digest.deliveries]
            known = known_senders(self.parts.store, readers)
            self._waiting += [_Claimed(digest, known.get(digest.recipient, ()), until) for digest in told]

    def _composed(self, claimed: _Claimed) -> bytes | None:
        """The mail, empty when there is nothing to tell, None when it cannot be made."""
        digest = claimed.digest
        try:
            with self._composing:
                return self._mail(digest, digest.id, claimed.known) if digest.deliveries else b""
        except BaseException as error:
            self._not_sent(digest, error)
            return None

    def _send(self, claimed: _Claimed, mail: bytes, connection: Connection) -> _Sent | None:
        """Send a composed digest; what is returned is to be recorded."""
        digest, reply = claimed.digest, ""
        if self._over() or self.clock() > claimed.until - LEFT_OF_LEASE:
            self._settling.settle(unsent=[Unsent(digest)])
            return None
        try:
            if mail:
                reply = connection.send("", digest.address, [mail], has_8bit=not mail.isascii())
        except BaseException as error:
            self._not_sent(digest, error)
            return None
        return _Sent(digest, reply, self._settling.begin(sent=[digest]))

    def _not_sent(self, digest: Digest, error: BaseException) -> None:
        """Record, note and log what went wrong. Raises what is no failure of this digest, like ctrl-C."""
        unsent = self._unsent(digest, error)
        try:
            self._settling.settle(unsent=[unsent])
        except QuarantineError as unrecorded:
            log.error("failed digest not recorded recipient=%s: %s", digest.recipient, unrecorded)
        if not isinstance(error, Exception):
            raise error
        self._failed(digest.recipient, error, refused=unsent.due_at is not None)

    def _record(self, sent: _Sent | None) -> None:
        """Return when what was sent is recorded."""
        if sent is None:
            return
        digest = sent.digest
        try:
            self._settling.finish(sent.entry)
        except Exception as error:
            if digest.deliveries:
                log.error("sent digest not recorded id=%s: it is sent once more when its claim ends", digest.id)
            self._failed(digest.recipient, error)
            return
        self._in_a_row = 0
        if digest.deliveries:
            self._sent(digest, digest.id, sent.reply)

    def repeat(self, digest: Digest) -> None:
        """Send a digest that was sent before, as another mail."""
        mail_id = new_id(self.clock())
        known = known_senders(self.parts.store, [digest.reader or digest.recipient]).get(digest.recipient, ())
        try:
            mail = self._mail(digest, mail_id, known)
            reply = self.parts.mailer.send("", digest.address, [mail], has_8bit=not mail.isascii())
        except Exception as error:
            self._failed(digest.recipient, error)
        else:
            self._sent(digest, mail_id, reply)

    def _mail(self, digest: Digest, mail_id: UUID, known: Collection[str]) -> bytes:
        return digest_mail(self.parts, digest, self.clock(), mail_id, known).as_bytes()

    def _unsent(self, digest: Digest, error: BaseException) -> Unsent:
        """When a digest that failed is tried again: soon, later and later, or when the next one is due."""
        now = self.clock()
        if isinstance(error, (RelayUnreachable, StoreUnavailable)) or not isinstance(error, Exception):
            return Unsent(digest, not_before=now + LEASE)
        said = str(error) if isinstance(error, QuarantineError) else "internal error"
        if isinstance(error, RelayRefused) or digest.failures + 1 >= TRIES:
            next_time = plan_of(self.parts, digest.recipient, digest.preferences).next_time(now)
            return Unsent(digest, due_at=next_time or now + LOOKED_AT_AGAIN, failure=said)
        return Unsent(digest, not_before=now + min(LEASE * 2**digest.failures, BACK_OFF_MAX), failure=said)

    # ---- what came of it

    def _note(
        self,
        *,
        sent: tuple[str, int] | None = None,
        skipped: tuple[str, str] | None = None,
        failed: tuple[str, str] | None = None,
    ) -> None:
        with self._guard:
            self.summary.sent += [sent] if sent else []
            self.summary.skipped += [skipped] if skipped else []
            self.summary.failed += [failed] if failed else []
            if self._progress is not None:
                self._progress(len(self.summary.sent) + len(self.summary.skipped) + len(self.summary.failed))

    def _sent(self, digest: Digest, mail_id: UUID, reply: str) -> None:
        count = sum(delivery.state is State.HELD for delivery in digest.deliveries)
        self._note(sent=(digest.recipient, count))
        log.info("digest sent id=%s recipient=%s messages=%d: %s", mail_id, digest.recipient, count, reply)

    def _failed(self, recipient: str, error: Exception, *, refused: bool = False) -> None:
        if isinstance(error, QuarantineError):
            log.warning("digest failed recipient=%s: %s", recipient, error)
        else:
            log.error("digest failed recipient=%s", recipient, exc_info=error)
        self._note(failed=(recipient, str(error) if isinstance(error, QuarantineError) else "internal error"))
        with self._guard:  # also while we look at the mail server: those who fail meanwhile wait for what we find
            self.summary.refused += refused
            self._in_a_row = self._in_a_row + 1 if isinstance(error, (RelayDeferred, StoreUnavailable)) else 0
            if not self.summary.given_up and self._hopeless(error):
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

    def _tell_of_the_run(self, seconds: float) -> None:
        summary = self.summary
        if not (summary.sent or summary.failed):
            return
        deferred = len(summary.failed) - summary.refused
        log.info(
            "digests: sent=%d deferred=%d refused=%d not told=%d in %.1f s",
            len(summary.sent), deferred, summary.refused, len(summary.skipped), seconds,
        )  # fmt: skip
        try:
            count_run(
                self.parts.store,
                self.clock(),
                sent=len(summary.sent),
                deferred=deferred,
                refused=summary.refused,
                seconds=seconds,
            )
        except QuarantineError as error:
            log.error("digests: the run is not counted: %s", error)


class _Settling:
    """Records what several threads did: those who come while one is at it wait, and the next takes them all along."""

    def __init__(self, store: Store, clock: Callable[[], datetime]) -> None:
        self._store, self._clock = store, clock
        self._gate, self._guard = threading.Lock(), threading.Lock()
        self._waiting: list[_Entry] = []

    def settle(self, *, sent: Sequence[Digest] = (), unsent: Sequence[Unsent] = ()) -> None:
        """`Store.settle_digests`; returns or raises when that is done."""
        if sent or unsent or self._waiting:  # the last: what was interrupted
            self.finish(self.begin(sent=sent, unsent=unsent))

    def begin(self, *, sent: Sequence[Digest] = (), unsent: Sequence[Unsent] = ()) -> _Entry:
        """What `finish` is to record; somebody else may do so before."""
        entry = _Entry(sent, unsent)
        with self._guard:
            self._waiting.append(entry)
        return entry

    def finish(self, entry: _Entry) -> None:
        """Return or raise when this is recorded."""
        with self._gate:
            if not entry.settled:
                with self._guard:
                    together, self._waiting = self._waiting, []
                try:
                    self._settle(together)
                except BaseException:  # ctrl-C: they are not recorded, so whoever asks next shall do it
                    with self._guard:
                        self._waiting += together
                    raise
        if entry.error is not None:
            raise entry.error

    def _settle(self, together: Sequence[_Entry]) -> None:
        sent = [digest for entry in together for digest in entry.sent]
        unsent = [each for entry in together for each in entry.unsent]
        error: Exception | None = None
        for _ in range(2):  # after a lost connection there is a new one, and settling twice does no harm
            try:
                self._store.settle_digests(sent, unsent, self._clock())
            except Exception as met:
                error = met
            else:
                error = None
                break
        for entry in together:
            entry.settled, entry.error = True, error


@dataclass(frozen=True, slots=True)
class _Sent:
    """A digest that the mail server has and the store does not know of yet."""

    digest: Digest
    reply: str
    entry: _Entry


@dataclass(slots=True)
class _Entry:
    sent: Sequence[Digest]
    unsent: Sequence[Unsent]
    settled: bool = False
    error: Exception | None = None


def digest_mail(parts: Parts, digest: Digest, now: datetime, mail_id: UUID, known: Collection[str]) -> EmailMessage:
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
        known=known,
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


def preview(parts: Parts, people: Sequence[str] | None) -> Iterator[tuple[str, tuple[Delivery, ...]]]:
    """Who would be told of what, claiming nothing. Recipients that are not told (`why_not`) come with nothing."""
    for who in everybody_with_news(parts) if people is None else people:
        yield who, () if why_not(parts, who) else tuple(parts.store.unannounced(parts.people.reader(who), DELIVERIES))
