"""Sending digests. Each function is safe to repeat at any moment, in any number of processes.

None trusts a timer: each asks the store what is due, claims it, does it, records it. ``now`` is the moment a call
begins; within a call time goes on from there, so that a claim made late in a long run has its whole lease.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from email.message import EmailMessage
from queue import SimpleQueue
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
from portal.stores import LEASE, Digest, Unsent
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

Stopped = Callable[[], bool]  # whether to leave off before the next mail


def never() -> bool:
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
    parts: Parts, now: datetime, limit: int = DIGESTS, *, stopped: Stopped = never, pace: Pace | None = None
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


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of a claimed digest. Without a reply and an error it was not begun."""

    digest: Digest
    reply: str | None = None  # of the mail server, "" if there was nothing to tell
    error: BaseException | None = None


class Run:
    """One run, in three stages: claim digests; compose and send them over several connections; record the outcomes.

    Claiming and recording happen in the thread that calls, which alone changes the state of the run. Each connection
    has a thread, which gets its next digest once its last one is recorded: whenever the process dies, at most one
    digest for each connection is sent a second time.
    """

    def __init__(
        self,
        parts: Parts,
        now: datetime,
        *,
        stopped: Stopped = never,
        pace: Pace | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.parts = parts
        self.clock = clock(now)
        self.summary = Summary()
        self._stopped, self._pace, self._progress = stopped, pace or Pace(), progress
        # Python runs one thread at a time anyway; those that wait here do not take turns with the one that composes.
        self._composing = threading.Lock()
        self._batches: Iterator[Sequence[Digest]] = iter(())
        self._waiting: deque[_Claimed] = deque()
        self._outcomes: list[_Outcome] = []  # not recorded yet
        self._is_ending = False
        self._in_a_row = 0

    # ---- stage 1: claim

    def due(self, limit: int) -> Iterator[Sequence[Digest]]:
        """Claim digests that are due, longest waiting first."""
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
        """Claim digests of these recipients, whatever the hour."""
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
        """Return whether this recipient may be mailed; if not, note why."""
        reason = why_not(self.parts, recipient)
        if reason:
            self._note(skipped=(recipient, reason))
        return not reason

    def _next(self) -> _Claimed | None:
        """Return the next claimed digest, None when there is none or the run ends."""
        while not self._waiting and not self._is_over():
            # Before the claim: a moment later it would end earlier than we think.
            until = self.clock() + LEASE
            digests = next(self._batches, None)
            if digests is None:
                return None
            told: list[Digest] = []
            strangers: list[Digest] = []
            for digest in digests:
                (told if self.may_tell(digest.recipient) else strangers).append(digest)
            if strangers:
                # Postponed, or the longest waiting would be the same strangers at every tick.
                later = self.clock() + LOOKED_AT_AGAIN
                self._settle(unsent=[Unsent(digest, due_at=later) for digest in strangers])
            # For a single mail as well: there is no order then, but its row shows it.
            readers = [digest.reader or digest.recipient for digest in told if digest.deliveries]
            known = known_senders(self.parts.store, readers)
            self._waiting += [_Claimed(digest, known.get(digest.recipient, ()), until) for digest in told]
        return self._waiting.popleft() if self._waiting and not self._is_over() else None

    def _is_over(self) -> bool:
        return self._is_ending or self.summary.given_up or self._stopped()

    # ---- all three

    def send(self, batches: Iterator[Sequence[Digest]]) -> None:
        """Send all of these. Raises StoreUnavailable when no more can be claimed; what was sent is recorded."""
        self._batches = batches
        began = time.monotonic()
        try:
            first = self._next()  # before any thread, since most runs find nothing to do
            if first is not None:
                self._waiting.appendleft(first)
                connections = min(self.parts.settings.digest.connections, len(self._waiting))
                if connections == 1:
                    self._send_alone()
                else:
                    self._send_together(connections)
        finally:
            self._settle(unsent=[Unsent(claimed.digest) for claimed in self._waiting])  # if not, their claims run out
            self._tell_of_the_run(time.monotonic() - began)

    def _send_alone(self) -> None:
        """Send one after the other in this thread, so that ctrl-C interrupts also a mail server that hangs."""
        with self.parts.mailer.connection() as connection:
            try:
                while claimed := self._next():
                    self._outcomes.append(self._deliver(claimed, connection))
                    self._record()
            finally:
                self._record()

    def _send_together(self, connections: int) -> None:
        """Send over several connections, as many as there can be threads."""
        work: SimpleQueue[_Claimed | None] = SimpleQueue()
        done: SimpleQueue[_Outcome] = SimpleQueue()
        threads = self._started(connections, work, done)
        if not threads:
            return self._send_alone()
        sending = 0
        try:
            while True:
                while sending < len(threads) and (claimed := self._next()):
                    work.put(claimed)
                    sending += 1
                if not sending:
                    return None
                self._outcomes.append(done.get())
                while not done.empty():
                    self._outcomes.append(done.get())
                sending -= len(self._outcomes)
                self._record()
        finally:
            self._is_ending = True
            for _ in threads:
                work.put(None)
            for thread in threads:
                thread.join()
            while not done.empty():
                self._outcomes.append(done.get())
            self._record()

    def _started(
        self, count: int, work: SimpleQueue[_Claimed | None], done: SimpleQueue[_Outcome]
    ) -> list[threading.Thread]:
        """Start up to so many threads; the system may refuse some of them (RLIMIT_NPROC, memory)."""

        def deliver() -> None:
            with self.parts.mailer.connection() as connection:
                while (claimed := work.get()) is not None:
                    done.put(self._deliver(claimed, connection))

        threads: list[threading.Thread] = []
        for _ in range(count):
            thread = threading.Thread(target=deliver)
            try:
                thread.start()
            except RuntimeError as error:
                log.error("digests: %d of %d connections are used: %s", max(len(threads), 1), count, error)
                break
            threads.append(thread)
        return threads

    # ---- stage 2: compose and send

    def _deliver(self, claimed: _Claimed, connection: Connection) -> _Outcome:
        """Compose and send one digest. Never raises: errors are part of the outcome."""
        digest = claimed.digest
        try:
            self._pace.wait(self._is_over)
            with self._composing:
                mail = self._mail(digest, digest.id, claimed.known) if digest.deliveries else b""
            if self._is_over() or self.clock() > claimed.until - LEFT_OF_LEASE:
                return _Outcome(digest)
            reply = connection.send("", digest.address, [mail], has_8bit=not mail.isascii()) if mail else ""
        except BaseException as error:
            return _Outcome(digest, error=error)
        return _Outcome(digest, reply)

    def _mail(self, digest: Digest, mail_id: UUID, known: Collection[str]) -> bytes:
        return digest_mail(self.parts, digest, self.clock(), mail_id, known).as_bytes()

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

    # ---- stage 3: record

    def _record(self) -> None:
        """Record all outcomes in one batch, and note them.

        Raises what is no failure of a digest, like ctrl-C, once it is recorded. Interrupted itself, it can be called
        again.
        """
        if not self._outcomes:
            return
        unsent = {o.digest.id: self._unsent(o) for o in self._outcomes if o.reply is None}
        error = self._settle([o.digest for o in self._outcomes if o.reply is not None], list(unsent.values()))
        outcomes, self._outcomes = self._outcomes, []
        interrupt: BaseException | None = None
        for outcome in outcomes:
            digest, failure = outcome.digest, outcome.error
            if outcome.reply is not None and error is None:
                self._in_a_row = 0
                if digest.deliveries:
                    self._sent(digest, digest.id, outcome.reply)
            elif outcome.reply is not None and error is not None:
                if digest.deliveries:
                    log.error("sent digest not recorded id=%s: it is sent once more when its claim ends", digest.id)
                self._failed(digest.recipient, error)
            elif isinstance(failure, Exception):
                if error is not None:
                    log.error("failed digest not recorded recipient=%s: %s", digest.recipient, error)
                self._failed(digest.recipient, failure, refused=unsent[digest.id].due_at is not None)
            elif failure is not None:
                interrupt = failure
        if interrupt is not None:
            raise interrupt

    def _settle(self, sent: Sequence[Digest] = (), unsent: Sequence[Unsent] = ()) -> Exception | None:
        """Call `Store.settle_digests`; return the error it met twice, if any."""
        error: Exception | None = None
        if sent or unsent:
            for _ in range(2):  # after a lost connection there is a new one, and settling twice does no harm
                try:
                    self.parts.store.settle_digests(sent, unsent, self.clock())
                except Exception as met:
                    error = met
                else:
                    return None
        return error

    def _unsent(self, outcome: _Outcome) -> Unsent:
        """Return when a digest is tried again: soon, later and later, or when the next one is due."""
        digest, error, now = outcome.digest, outcome.error, self.clock()
        if error is None:
            return Unsent(digest)
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
        self.summary.refused += refused
        self._in_a_row = self._in_a_row + 1 if isinstance(error, (RelayDeferred, StoreUnavailable)) else 0
        if not self.summary.given_up and self._is_hopeless(error):
            log.warning("digests: %d failed in a row, leaving off until the next tick", self._in_a_row)
            self.summary.given_up = True

    def _is_hopeless(self, error: Exception) -> bool:
        """Return whether this is about the mail server or the store, and not about single recipients."""
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


def preview(parts: Parts, people: Sequence[str] | None) -> Iterator[tuple[str, tuple[Delivery, ...]]]:
    """Who would be told of what, claiming nothing. Recipients that are not told (`why_not`) come with nothing."""
    for who in everybody_with_news(parts) if people is None else people:
        yield who, () if why_not(parts, who) else tuple(parts.store.unannounced(parts.people.reader(who), DELIVERIES))
