"""Sending digests. Each function is safe to repeat at any moment, in any number of processes.

None trusts a timer: each asks the store what is due, claims it, does it, records it. ``now`` is the moment a call
begins; within a call time goes on from there, so that a claim made late in a long run has its whole lease.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from email.message import EmailMessage
from queue import Empty, SimpleQueue
from uuid import UUID

from digest.compose import compose
from digest.news import RECHECK_AFTER, plan_of, recipients_with_news, skip_reason
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
from portal.stores import LEASE
from portal.stores.records import Digest, Unsent
from portal.stores.senders import known_senders

log = logging.getLogger("quarantine.digest")

DIGESTS = 5_000  # in one run, so that those who became due meanwhile get their times in between
AHEAD = 4  # digests claimed for each connection at once
DELIVERIES = 5_000  # in one digest, and in all that are claimed at once; the rest stays news and follows the next day
# With less left of its claim a mail is not begun: it takes 30 s at most, and is recorded behind the next claim.
LEFT_OF_LEASE = timedelta(seconds=50)
_TOGETHER_SECONDS = 0.05  # for which an outcome waits at most for others to be recorded with
FAILURES_IN_A_ROW = 3  # then we look whether the mail server is there at all
DEFERRALS_IN_A_ROW = 20  # then it is there and takes nothing; below, some mailboxes may be full
TRIES = 10  # with back-off these take four hours and a half; then that recipient's next digest has its turn
BACK_OFF_MAX = timedelta(hours=1)

Stopped = Callable[[], bool]  # whether to leave off before the next mail


def never() -> bool:
    return False


@dataclass(slots=True)
class Summary:
    """The outcomes of one run, by recipient."""

    sent: list[tuple[str, int]] = field(default_factory=list)  # recipient, deliveries told of
    skipped: list[tuple[str, str]] = field(default_factory=list)  # recipient, why in words; all is well
    failed: list[tuple[str, str]] = field(default_factory=list)  # recipient, why in words; tried again later
    refused: int = 0  # of the failed, those whose next digest is the next try
    stopped_early: bool = False  # left off early: several failed in a row

    def add(self, other: Summary) -> None:
        """Take in what another run did."""
        self.sent += other.sent
        self.skipped += other.skipped
        self.failed += other.failed
        self.refused += other.refused
        self.stopped_early = self.stopped_early or other.stopped_early


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
    people = list(recipients_with_news(parts) if named is None else named)
    run = Run(parts, now, pace=pace, progress=progress and (lambda done: progress(done, len(people))))
    run.send(run.named(people))
    return run.summary


def resend(parts: Parts, now: datetime, recipient: str) -> Summary:
    """Send a recipient's last digest once more: what of it is still held, with links dated now.

    Claims and announces nothing. Raises StoreUnavailable.
    """
    run = Run(parts, now)
    digest = parts.store.digests.last(recipient)
    if not run.may_notify(recipient):
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
    """The outcome of a claimed digest: sent, failed, or not begun."""

    digest: Digest
    reply: str | None = None  # of the mail server, "" if there was nothing to tell
    error: BaseException | None = None
    begun: bool = False  # the mail server may have it

    @property
    def is_sent(self) -> bool:
        return self.reply is not None


Claim = Callable[[], Sequence[Digest]]  # claims the next digests, and returns none when there are none


class Run:
    """One run, in three stages: claim digests; compose and send them over several connections; record the outcomes.

    Claiming and recording happen in the thread that calls, which alone changes the state of the run. Each connection
    has a thread, which gets its next digest once its last one is recorded: whenever the process dies, at most one
    digest for each connection is sent a second time. Ctrl-C may interrupt the calling thread at any line: claims and
    outcomes are therefore in attributes as soon as they exist, and `send` settles at its end whatever is in them.
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
        self._claim: Claim = tuple
        self._claimed: dict[UUID, Digest] = {}  # without an outcome yet
        self._waiting: deque[_Claimed] = deque()
        self._claim_is_by_name = False
        self._named: deque[str] = deque()  # recipients to claim by name
        self._outcomes: deque[_Outcome] = deque()  # not recorded yet
        self._error: BaseException | None = None  # of a thread
        self._is_ending = False
        self._in_a_row = 0

    # ---- stage 1: claim

    def due(self, limit: int) -> Claim:
        """Return a function that claims digests that are due, longest waiting first, up to ``limit``."""
        left = limit

        def claim() -> Sequence[Digest]:
            nonlocal left
            if left <= 0:
                return ()
            digests = self.parts.store.digests.claim(
                self.clock(), min(self._ahead, left), DELIVERIES, readers=self.parts.people.reader
            ).digests
            left = left - len(digests) if digests else 0
            return digests

        return claim

    def named(self, recipients: Sequence[str]) -> Claim:
        """Return a function that claims digests of these recipients, whatever the hour."""
        self._claim_is_by_name = True
        self._named.extend(who for who in recipients if self.may_notify(who))

        def claim() -> Sequence[Digest]:
            while self._named:
                some = [self._named.popleft() for _ in range(min(self._ahead, len(self._named)))]
                claims = self.parts.store.digests.claim(
                    self.clock(),
                    len(some),
                    DELIVERIES,
                    only=some,
                    ignore_schedule=True,
                    readers=self.parts.people.reader,
                )
                answered = {digest.recipient for digest in claims.digests} | set(claims.refused)
                self._named.extendleft(who for who in reversed(some) if who not in answered)
                self.summary.skipped += [(who, str(why)) for who, why in claims.refused.items()]
                if claims.digests:
                    return claims.digests
            return ()

        return claim

    @property
    def _ahead(self) -> int:
        """How many are claimed at once: few enough for each to be sent long before its claim ends."""
        count = AHEAD * self.parts.settings.digest.connections
        return min(count, max(1, self._pace.per_minute // 4)) if self._pace.per_minute else count

    def may_notify(self, recipient: str) -> bool:
        """Return whether this recipient may be mailed; if not, note why."""
        reason = skip_reason(self.parts, recipient)
        if reason:
            self.summary.skipped.append((recipient, reason))
            self._show_progress()
        return not reason

    def _next(self) -> _Claimed | None:
        """Return a claimed digest that can be sent before its claim ends; None if there is none, or the run ends."""
        while not self._is_over():
            self._fill()
            if not self._waiting:
                break
            claimed = self._waiting.popleft()
            if self.clock() <= claimed.until - LEFT_OF_LEASE:
                return claimed
            self._give_back(claimed.digest)
        return None

    def _fill(self, least: int = 1) -> None:
        """Claim until so many wait to be sent, or nothing is left to claim. Raises StoreUnavailable."""
        while len(self._waiting) < least and not self._is_over():
            # Before the claim: a moment later it would end earlier than we think.
            until = self.clock() + LEASE
            with _interrupt_delayed():  # else it may come after the commit, and nobody knows what was claimed
                digests = self._claim()
                self._claimed.update((digest.id, digest) for digest in digests)
            self._show_progress()
            if not digests:
                return
            told: list[Digest] = []
            strangers: list[Digest] = []
            for digest in digests:
                (told if self.may_notify(digest.recipient) else strangers).append(digest)
            if strangers:
                # Postponed, or the longest waiting would be the same strangers at every tick.
                later = self.clock() + RECHECK_AFTER
                self._settle(unsent=[Unsent(digest, due_at=later) for digest in strangers])
            # For a single mail as well: there is no order then, but its row shows it.
            readers = [digest.effective_reader for digest in told if digest.deliveries]
            known = known_senders(self.parts.store, readers)
            self._waiting += [_Claimed(digest, known.get(digest.recipient, ()), until) for digest in told]

    def _give_back(self, digest: Digest) -> None:
        """End a claim that is too old; the digest is claimed anew."""
        self._settle(unsent=[Unsent(digest)])
        self._claim_again(digest)

    def _claim_again(self, digest: Digest) -> None:
        if self._claim_is_by_name:
            self._named.append(digest.recipient)  # one that was due still is

    def _is_over(self) -> bool:
        return self._is_ending or self.summary.stopped_early or self._error is not None or self._stopped()

    # ---- all three

    def send(self, claim: Claim) -> None:
        """Send all digests that ``claim`` claims. Raises StoreUnavailable when no more can be claimed."""
        self._claim = claim
        began = time.monotonic()
        try:
            self._fill()  # before any thread is started, since most runs find nothing to do
            connections = min(self.parts.settings.digest.connections, len(self._waiting))
            if connections == 1:
                self._send_alone()
            elif connections:
                self._send_together(connections)
        finally:
            with suppress(QuarantineError):  # else their claims run out
                self._settle(unsent=[Unsent(digest) for digest in self._claimed.values()])
            self._log_run(time.monotonic() - began)

    def _send_alone(self) -> None:
        """Send one after the other in this thread, so that ctrl-C interrupts also a mail server that hangs."""
        with self.parts.mailer.connection() as connection:
            try:
                while True:
                    self._pace.wait(self._is_over)
                    claimed = self._next()
                    if claimed is None:
                        return
                    self._outcomes.append(self._deliver(claimed, connection))
                    self._record()
            finally:
                self._record()

    def _send_together(self, connections: int) -> None:
        """Send over several connections, as many as there can be threads."""
        work: SimpleQueue[_Claimed | None] = SimpleQueue()
        news: SimpleQueue[bool] = SimpleQueue()  # wake-ups of this thread; True: a thread has its turn
        paced = self._pace.per_minute > 0
        enough = 1 if paced else 2  # outcomes for a batch: with 4 of 8 threads waiting the processor had nothing to do

        def deliver() -> None:
            try:
                with self.parts.mailer.connection() as connection:
                    while True:
                        if paced:
                            self._pace.wait(self._is_over)
                            news.put(True)
                        claimed = work.get()
                        if claimed is None:
                            work.put(None)  # for the other threads
                            return
                        self._outcomes.append(self._deliver(claimed, connection))
                        # While others compose, the processor has work: then several are recorded together.
                        if len(self._outcomes) >= enough or not self._composing.locked():
                            news.put(False)
            except BaseException as error:
                self._error = error

        threads: list[threading.Thread] = []
        try:
            self._start(threads, connections, deliver)
            if not threads:
                self._send_alone()
            free, sending = 0 if paced else len(threads), 0
            while threads and self._error is None:
                while free and (claimed := self._next()) is not None:
                    work.put(claimed)
                    free, sending = free - 1, sending + 1
                if not sending and (free or self._is_over()):
                    break
                if sending == len(threads) and not paced:
                    self._fill(least=len(threads))  # now, and not when they have nothing to do
                with suppress(Empty):
                    free += news.get(timeout=_TOGETHER_SECONDS)
                    while True:
                        free += news.get_nowait()
                recorded = self._record()
                sending -= recorded
                free += 0 if paced else recorded
        finally:
            self._is_ending = True
            work.put(None)
            interrupt = _joined(threads)
            self._record()
            if interrupt is not None:
                raise interrupt
        if self._error is not None:
            raise self._error

    def _start(self, threads: list[threading.Thread], count: int, target: Callable[[], None]) -> None:
        """Start up to so many threads; the system may refuse some of them (RLIMIT_NPROC, memory)."""
        for number in range(count):
            thread = threading.Thread(target=target)
            threads.append(thread)
            try:
                thread.start()
            except (RuntimeError, MemoryError) as error:
                threads.pop()
                log.error("digests: %d of %d connections are used: %s", max(number, 1), count, error)
                return

    # ---- stage 2: compose and send

    def _deliver(self, claimed: _Claimed, connection: Connection) -> _Outcome:
        """Compose and send one digest. Never raises: errors are part of the outcome."""
        digest, begun = claimed.digest, False
        try:
            with self._composing:
                mail = self._mail(digest, digest.id, claimed.known) if digest.deliveries else b""
            if self._is_over() or self.clock() > claimed.until - LEFT_OF_LEASE:
                return _Outcome(digest)
            begun = True
            reply = connection.send("", digest.address, [mail], has_8bit=not mail.isascii()) if mail else ""
        except BaseException as error:
            return _Outcome(digest, error=error, begun=begun)
        return _Outcome(digest, reply, begun=True)

    def _mail(self, digest: Digest, mail_id: UUID, known: Collection[str]) -> bytes:
        return digest_mail(self.parts, digest, self.clock(), mail_id, known).as_bytes()

    def repeat(self, digest: Digest) -> None:
        """Send a digest that was sent before, as another mail."""
        mail_id = new_id(self.clock())
        known = known_senders(self.parts.store, [digest.effective_reader]).get(digest.recipient, ())
        try:
            mail = self._mail(digest, mail_id, known)
            reply = self.parts.mailer.send("", digest.address, [mail], has_8bit=not mail.isascii())
        except Exception as error:
            self._failed(digest.recipient, error)
        else:
            self._sent(digest, mail_id, reply)

    # ---- stage 3: record

    def _record(self) -> int:
        """Record all outcomes in one batch and note them. Return how many there were.

        Raises what is no failure of a digest, like ctrl-C. Interrupted itself, it can be called again.
        """
        outcomes = list(self._outcomes)
        if not outcomes:
            return 0
        unsent = {outcome.digest.id: self._unsent(outcome) for outcome in outcomes if not outcome.is_sent}
        unrecorded: Exception | None = None
        try:
            self._settle([outcome.digest for outcome in outcomes if outcome.is_sent], list(unsent.values()))
        except Exception as met:
            unrecorded = met
        interrupt: BaseException | None = None
        failures: list[Exception | None] = []
        for outcome in outcomes:
            self._outcomes.popleft()
            digest, error = outcome.digest, unrecorded if outcome.is_sent else outcome.error
            self._claimed.pop(digest.id, None)
            if unrecorded is not None and not outcome.is_sent:
                log.error("failed digest not recorded recipient=%s: %s", digest.recipient, unrecorded)
            elif unrecorded is not None and digest.deliveries:
                log.error("sent digest not recorded id=%s: it is sent once more when its claim ends", digest.id)
            if isinstance(error, Exception):
                failures.append(error)
                later = unsent.get(digest.id)
                self._failed(digest.recipient, error, refused=later is not None and later.due_at is not None)
            elif error is not None:
                interrupt = error
            elif outcome.is_sent:
                failures.append(None)
                if digest.deliveries:
                    self._sent(digest, digest.id, outcome.reply or "")
            elif not self._is_over():
                self._claim_again(digest)
        self._show_progress()
        self._judge(failures)
        if interrupt is not None:
            raise interrupt
        return len(outcomes)

    def _settle(self, sent: Sequence[Digest] = (), unsent: Sequence[Unsent] = ()) -> None:
        """Call `Digests.settle`, twice if need be: after a lost connection there is a new one, and settling twice
        does no harm."""
        if not sent and not unsent:
            return
        try:
            self.parts.store.digests.settle(sent, unsent, self.clock())
        except Exception:
            self.parts.store.digests.settle(sent, unsent, self.clock())
        for each in unsent:
            self._claimed.pop(each.digest.id, None)

    def _unsent(self, outcome: _Outcome) -> Unsent:
        """Return when a digest is tried again: at once, soon, later and later, or when the next one is due."""
        digest, error, now = outcome.digest, outcome.error, self.clock()
        if error is None or not (outcome.begun or isinstance(error, Exception)):
            return Unsent(digest)
        if isinstance(error, (RelayUnreachable, StoreUnavailable)) or not isinstance(error, Exception):
            return Unsent(digest, not_before=now + LEASE)
        said = str(error) if isinstance(error, QuarantineError) else "internal error"
        if isinstance(error, RelayRefused) or digest.failures + 1 >= TRIES:
            next_time = plan_of(self.parts, digest.recipient, digest.preferences).next_time(now)
            return Unsent(digest, due_at=next_time or now + RECHECK_AFTER, failure=said)
        return Unsent(digest, not_before=now + min(LEASE * 2**digest.failures, BACK_OFF_MAX), failure=said)

    # ---- what came of it

    def _show_progress(self) -> None:
        if self._progress is not None:
            self._progress(len(self.summary.sent) + len(self.summary.skipped) + len(self.summary.failed))

    def _sent(self, digest: Digest, mail_id: UUID, reply: str) -> None:
        count = sum(delivery.state is State.HELD for delivery in digest.deliveries)
        self.summary.sent.append((digest.recipient, count))
        log.info("digest sent id=%s recipient=%s messages=%d: %s", mail_id, digest.recipient, count, reply)

    def _failed(self, recipient: str, error: Exception, *, refused: bool = False) -> None:
        if isinstance(error, QuarantineError):
            log.warning("digest failed recipient=%s: %s", recipient, error)
        else:
            log.error("digest failed recipient=%s", recipient, exc_info=error)
        self.summary.failed.append((recipient, str(error) if isinstance(error, QuarantineError) else "internal error"))
        self.summary.refused += refused

    def _judge(self, failures: Sequence[Exception | None]) -> None:
        """Leave off if these outcomes, None for a digest that was sent, show that going on is useless."""
        for error in failures:
            self._in_a_row = self._in_a_row + 1 if isinstance(error, (RelayDeferred, StoreUnavailable)) else 0
            if error is not None and not self._is_over() and self._is_pointless(error):
                log.warning("digests: %d failed in a row, leaving off until the next tick", self._in_a_row)
                self.summary.stopped_early = True

    def _is_pointless(self, error: Exception) -> bool:
        """Return whether this is about the mail server or the store, and not about single recipients."""
        if self._in_a_row == FAILURES_IN_A_ROW:
            try:
                self.parts.mailer.probe()
            except RelayDeferred:
                return True
            return isinstance(error, StoreUnavailable)
        return self._in_a_row >= DEFERRALS_IN_A_ROW

    def _log_run(self, seconds: float) -> None:
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


@contextmanager
def _interrupt_delayed() -> Iterator[None]:
    """Delay ctrl-C until the block ends. Do nothing outside the main thread, which alone receives it."""
    if threading.current_thread() is not threading.main_thread() or not callable(signal.getsignal(signal.SIGINT)):
        yield
        return
    pressed: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if pressed:
            signal.raise_signal(signal.SIGINT)


def _joined(threads: Sequence[threading.Thread]) -> KeyboardInterrupt | None:
    """Wait until these threads have ended. Return ctrl-C pressed meanwhile, which cannot shorten the wait: a mail takes
    30 s at most, and the interpreter would wait for them as well."""
    interrupt = None
    for thread in threads:
        while thread.is_alive():
            try:
                thread.join()
            except KeyboardInterrupt as pressed:
                interrupt = pressed
    return interrupt


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
    """Who would be told of what, claiming nothing. Recipients that are not told (`skip_reason`) come with nothing."""
    for who in recipients_with_news(parts) if people is None else people:
        yield (
            who,
            ()
            if skip_reason(parts, who)
            else tuple(parts.store.digests.unannounced(parts.people.reader(who), DELIVERIES)),
        )
