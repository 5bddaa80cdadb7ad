"""Send digests. Each function is safe to repeat at any moment, in any number of processes.

No function relies on a timer: each asks the store what is due, claims it, sends it and records the outcome. ``now`` is
the time at which a call begins. Within a call the time advances from there, so that a claim made late in a long run has
its full lease.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from queue import Empty, SimpleQueue
from uuid import UUID

from digest.news import RECHECK_AFTER, recipients_with_news, skip_reason
from digest.outcomes import Outcome, Progress, Report, Summary, next_try
from digest.postponing import postponed
from digest.stopping import Pace, Stopped, interrupt_delayed, join_all, never
from portal.assemble import Parts
from portal.batches.mass_hold import HeldBack
from portal.batches.mass_rights import MassRights
from portal.digests.compose import DELIVERIES, digest_mail
from portal.mail.relay import Connection
from portal.model.clock import clock
from portal.model.errors import QuarantineError
from portal.model.message import State, new_id
from portal.stores import LEASE
from portal.stores.durations import Measured, sending
from portal.stores.records import Digest, Unsent
from portal.stores.senders import known_senders

log = logging.getLogger("quarantine.digest")

DIGESTS = 5_000  # in one run, so that recipients who get news during a run are scheduled before the next one
AHEAD = 4  # digests claimed at once for each connection
# A mail is not begun with less time left of its claim: it takes 30 s at most, and is recorded after the next claim.
LEFT_OF_LEASE = timedelta(seconds=50)
_BATCH_SECONDS = 0.05  # an outcome waits this long at most for others, to be recorded in one batch
# ---- digests


def send_due(
    parts: Parts, now: datetime, limit: int = DIGESTS, *, stopped: Stopped = never, pace: Pace | None = None
) -> Summary:
    """Send at most ``limit`` due digests, the longest waiting first, over `digest.connections` connections.

    A failure of one recipient's digest does not affect the others. Raises StoreUnavailable.
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
    """Send digests of unannounced deliveries now, whatever the schedule, to all recipients or to some.

    Raises StoreUnavailable.
    """
    named = [recipient] if isinstance(recipient, str) else recipient
    people = list(recipients_with_news(parts) if named is None else named)
    run = Run(parts, now, pace=pace, progress=progress and (lambda done: progress(done, len(people))))
    run.send(run.named(people))
    return run.summary


def resend(parts: Parts, now: datetime, recipient: str) -> Summary:
    """Send a recipient's last digest once more, with the deliveries that are still held and links dated ``now``.

    Claims nothing and announces nothing. Raises StoreUnavailable.
    """
    run = Run(parts, now)
    digest = parts.store.digests.last(recipient)
    if not run.may_notify(recipient):
        return run.summary
    if digest is not None:
        reader = parts.people.reader(recipient)
        readable = tuple(d for d in digest.deliveries if d.recipient in reader.identities)
        digest = replace(digest, reader=reader, deliveries=readable)
    if digest is None:
        run.summary.skipped.append((recipient, "no earlier digest"))
    elif not any(delivery.state is State.HELD for delivery in digest.deliveries):
        run.summary.skipped.append((recipient, "no message of the last digest is still held"))
    else:
        run.repeat(digest, now.replace(microsecond=0))
    return run.summary


@dataclass(frozen=True, slots=True)
class _Claimed:
    digest: Digest
    known: Collection[str]  # senders whose messages this recipient had released
    is_first: bool  # this recipient was sent none before
    until: datetime  # end of the claim


Claim = Callable[[], Sequence[Digest]]  # claims the next digests; returns an empty sequence if there are no more


class Run:
    """One run, in three stages: claim digests; compose and send them over several connections; record the outcomes.

    The calling thread claims and records, and it alone changes the state of the run. Each connection has a thread,
    which gets its next digest after its last one was recorded: whenever the process dies, at most one digest for each
    connection is sent a second time. Ctrl-C may interrupt the calling thread at any line. Claims and outcomes are
    therefore stored in attributes as soon as they exist, and `send` settles them at its end.
    """

    def __init__(
        self,
        parts: Parts,
        now: datetime,
        *,
        kind: str = "digest",
        stopped: Stopped = never,
        pace: Pace | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """``kind``: "digest" or "notice", for the log and metrics."""
        self.parts = parts
        self._kind = kind
        self.clock = clock(now)
        self.summary = Summary()
        self._report = Report(parts, self.clock, self.summary, progress, kind)
        self._stopped, self._pace = stopped, pace or Pace()
        # Python runs one thread at a time anyway. Threads that wait for this lock do not slow the composing one down.
        self._composing = threading.Lock()
        self._claim: Claim = tuple
        self._claimed: dict[UUID, Digest] = {}  # without an outcome yet
        self._waiting: deque[_Claimed] = deque()
        self._claim_is_by_name = False
        self._named: deque[str] = deque()  # recipients to claim by name
        self._outcomes: deque[Outcome] = deque()  # not recorded yet
        self._error: BaseException | None = None  # of a thread
        self._is_ending = False

    # ---- stage 1: claim

    def due(self, limit: int) -> Claim:
        """Return a function that claims due digests, the longest waiting first, up to ``limit`` in total."""
        left = limit

        def claim() -> Sequence[Digest]:
            nonlocal left
            if left <= 0:
                return ()
            digests = self.parts.store.digests.claim(
                self.clock(), min(self._claim_size, left), DELIVERIES, readers=self.parts.people.reader
            ).digests
            left = left - len(digests) if digests else 0
            return digests

        return claim

    def named(self, recipients: Sequence[str]) -> Claim:
        """Return a function that claims digests of these recipients, whatever the schedule."""
        self._claim_is_by_name = True
        self._named.extend(who for who in recipients if self.may_notify(who))

        def claim() -> Sequence[Digest]:
            while self._named:
                some = [self._named.popleft() for _ in range(min(self._claim_size, len(self._named)))]
                claims = self.parts.store.digests.claim(
                    self.clock(),
                    len(some),
                    DELIVERIES,
                    only=some,
                    ignore_schedule=True,
                    readers=self.parts.people.reader,
                )
                processed = {digest.recipient for digest in claims.digests} | set(claims.refused)
                self._named.extendleft(who for who in reversed(some) if who not in processed)
                self.summary.skipped += [(who, str(why)) for who, why in claims.refused.items()]
                if claims.digests:
                    return claims.digests
            return ()

        return claim

    @property
    def _claim_size(self) -> int:
        """The number of digests claimed at once: few enough for each to be sent long before its claim ends."""
        count = AHEAD * self.parts.settings.digest.connections
        return min(count, max(1, self._pace.per_minute // 4)) if self._pace.per_minute else count

    def may_notify(self, recipient: str) -> bool:
        """Return whether this recipient may be mailed. If not, add the reason to the summary."""
        reason = skip_reason(self.parts, recipient)
        if reason:
            self.summary.skipped.append((recipient, reason))
            self._report.show_progress()
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
            self._release_claim(claimed.digest)
        return None

    def _fill(self, least: int = 1) -> None:
        """Claim until ``least`` digests wait to be sent, or nothing is left to claim. Raises StoreUnavailable."""
        while len(self._waiting) < least and not self._is_over():
            # Read before the claim: a later time would be after the claim's true end.
            until = self.clock() + LEASE
            with interrupt_delayed():  # an interrupt after the commit would lose what was claimed
                digests = self._claim()
                self._claimed.update((digest.id, digest) for digest in digests)
            self._report.show_progress()
            if not digests:
                return
            allowed: list[Digest] = []
            later: list[Unsent] = []  # otherwise every tick would claim the same recipients first
            now = self.clock()
            held_back = HeldBack.at(self.parts.store, MassRights(self.parts.staff), now)
            last_sent = self.parts.store.digests.last_sent([digest.recipient for digest in digests])
            # Also needed for a digest with one message, which needs no order: its row shows a known sender.
            readers = [digest.effective_reader for digest in digests if digest.deliveries]
            known = known_senders(self.parts.store, readers)
            for digest in digests:
                left, who = held_back.left(digest.deliveries), digest.recipient
                if not self.may_notify(who):
                    later.append(Unsent(digest, due_at=now + RECHECK_AFTER))
                    continue
                found = postponed(
                    digest, left, known.get(who, ()), last_sent.get(who), self.parts.domains, now,
                    is_by_name=self._claim_is_by_name,
                )  # fmt: skip
                if found is None:
                    allowed.append(replace(digest, deliveries=left))
                else:
                    later.append(found[0])
                    self.summary.skipped.append((who, found[1]))
            if later:
                self._settle(unsent=later)
            self.parts.store.digests.begin(allowed)
            self._waiting += [
                _Claimed(digest, known.get(digest.recipient, ()), digest.recipient not in last_sent, until)
                for digest in allowed
            ]

    def _release_claim(self, digest: Digest) -> None:
        """End a claim that is too old, and claim the digest again later."""
        self._settle(unsent=[Unsent(digest)])
        self._claim_again(digest)

    def _claim_again(self, digest: Digest) -> None:
        if self._claim_is_by_name:
            self._named.append(digest.recipient)  # a due digest stays due, so it is claimed again anyway

    def _is_over(self) -> bool:
        return self._is_ending or self.summary.stopped_early or self._error is not None or self._stopped()

    # ---- all three

    def send(self, claim: Claim) -> None:
        """Send all digests that ``claim`` claims. Raises StoreUnavailable when no more can be claimed."""
        self._claim = claim
        began = time.monotonic()
        try:
            self._fill()  # before any thread is started, since most runs find nothing due
            connections = min(self.parts.settings.digest.connections, len(self._waiting))
            if connections == 1:
                self._send_alone()
            elif connections:
                self._send_together(connections)
        finally:
            with suppress(QuarantineError):  # if this fails, the claims expire
                self._settle(unsent=[Unsent(digest) for digest in self._claimed.values()])
            self._report.log_run(time.monotonic() - began)

    def _send_alone(self) -> None:
        """Send digests one after the other in this thread, so that ctrl-C also interrupts a mail server that hangs."""
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
        """Send over ``connections`` connections, or over as many as threads can be started."""
        work: SimpleQueue[_Claimed | None] = SimpleQueue()
        wake_ups: SimpleQueue[bool] = SimpleQueue()  # of this thread; True: the pace allows a thread its next mail
        paced = self._pace.per_minute > 0
        batch = 1 if paced else 2  # outcomes to record at once: with 4 of 8 threads waiting the processor was idle

        def deliver() -> None:
            try:
                with self.parts.mailer.connection() as connection:
                    while True:
                        if paced:
                            self._pace.wait(self._is_over)
                            wake_ups.put(True)
                        claimed = work.get()
                        if claimed is None:
                            work.put(None)  # for the other threads
                            return
                        self._outcomes.append(self._deliver(claimed, connection))
                        # While another thread composes, the processor is busy: then several are recorded in a batch.
                        if len(self._outcomes) >= batch or not self._composing.locked():
                            wake_ups.put(False)
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
                    self._fill(least=len(threads))  # while all threads are busy, so that none has to wait for a claim
                with suppress(Empty):
                    free += wake_ups.get(timeout=_BATCH_SECONDS)
                    while True:
                        free += wake_ups.get_nowait()
                recorded = self._record()
                sending -= recorded
                free += 0 if paced else recorded
        finally:
            self._is_ending = True
            work.put(None)
            interrupt = join_all(threads)
            self._record()
            if interrupt is not None:
                raise interrupt
        if self._error is not None:
            raise self._error

    def _start(self, threads: list[threading.Thread], count: int, target: Callable[[], None]) -> None:
        """Start up to ``count`` threads; the system may refuse some of them (RLIMIT_NPROC, memory)."""
        for number in range(count):
            thread = threading.Thread(target=target)
            threads.append(thread)
            try:
                thread.start()
            except (RuntimeError, MemoryError) as error:
                threads.pop()
                log.error("%ss: %d of %d connections are used: %s", self._kind, max(number, 1), count, error)
                return

    # ---- stage 2: compose and send

    def _deliver(self, claimed: _Claimed, connection: Connection) -> Outcome:
        """Compose and send one digest. Never raises: errors are part of the outcome."""
        digest, begun = claimed.digest, False
        try:
            with self._composing:
                mail = self._mail(digest, digest.id, claimed.known, claimed.is_first) if digest.deliveries else b""
            if self._is_over() or self.clock() > claimed.until - LEFT_OF_LEASE:
                return Outcome(digest)
            begun = True
            reply = ""
            if mail:
                with sending(self.parts.store, Measured.DIGEST):
                    reply = connection.send("", digest.address, [mail], has_8bit=not mail.isascii())
        except BaseException as error:
            return Outcome(digest, error=error, begun=begun)
        return Outcome(digest, reply, begun=True)

    def _mail(self, digest: Digest, mail_id: UUID, known: Collection[str], is_first: bool) -> bytes:
        return digest_mail(self.parts, digest, self.clock(), mail_id, known, is_first).as_bytes()

    def repeat(self, earlier: Digest, issued_at: datetime) -> None:
        """Send a digest that was sent before, as another mail with links of this date."""
        digest, store = replace(earlier, issued_at=issued_at), self.parts.store
        mail_id = new_id(self.clock())
        known = known_senders(store, [digest.effective_reader]).get(digest.recipient, ())
        try:
            mail = self._mail(digest, mail_id, known, is_first=False)
            # Recorded before the mail is sent, since the digest must be kept for as long as the links of the mail work.
            store.digests.repeat(digest)
            reply = self.parts.mailer.send("", digest.address, [mail], has_8bit=not mail.isascii())
        except Exception as error:
            if not Outcome(digest, error=error, begun=True).may_have_arrived:
                with suppress(QuarantineError):  # if this fails, it is kept for longer
                    store.digests.repeat(earlier)
            self._report.failed(digest.recipient, error)
        else:
            self._report.sent(digest, mail_id, reply)

    # ---- stage 3: record

    def _record(self) -> int:
        """Record all outcomes in one batch, log them and add them to the summary. Return how many there were.

        Raises errors that are not a failure of a digest, like KeyboardInterrupt. It can be called again after an
        interrupt.
        """
        outcomes = list(self._outcomes)
        if not outcomes:
            return 0
        unsent = {
            outcome.digest.id: next_try(outcome, self.parts.domains, self.clock())
            for outcome in outcomes
            if not outcome.is_sent
        }
        unrecorded: Exception | None = None
        try:
            is_recorded = self._settle(
                [outcome.digest for outcome in outcomes if outcome.is_sent], list(unsent.values())
            )
            # What is sent now might be repeated if the process died before the store is available again.
            self.summary.stopped_early = self.summary.stopped_early or not is_recorded
        except Exception as store_error:
            unrecorded = store_error
        interrupt: BaseException | None = None
        failures: list[Exception | None] = []
        for outcome in outcomes:
            self._outcomes.popleft()
            digest, error = outcome.digest, unrecorded if outcome.is_sent else outcome.error
            self._claimed.pop(digest.id, None)
            if unrecorded is not None and not outcome.is_sent:
                log.error("failed %s not recorded recipient=%s: %s", self._kind, digest.recipient, unrecorded)
            elif unrecorded is not None and digest.deliveries:
                log.error("sent %s not recorded id=%s: it is sent once more when its claim ends", self._kind, digest.id)
            if isinstance(error, Exception):
                failures.append(error)
                later = unsent.get(digest.id)
                self._report.failed(digest.recipient, error, refused=later is not None and later.due_at is not None)
            elif error is not None:
                interrupt = error
            elif outcome.is_sent:
                failures.append(None)
                if digest.deliveries:
                    self._report.sent(digest, digest.id, outcome.reply or "")
            elif not self._is_over():
                self._claim_again(digest)
        self._report.show_progress()
        self._report.stop_if_outage(failures, self._is_over)
        if interrupt is not None:
            raise interrupt
        return len(outcomes)

    def _settle(self, sent: Sequence[Digest] = (), unsent: Sequence[Unsent] = ()) -> bool:
        """Call `Digests.settle`. Return whether the claims are ended now."""
        if not sent and not unsent:
            return True
        is_recorded = self.parts.store.digests.settle(sent, unsent, self.clock())
        for each in unsent:
            self._claimed.pop(each.digest.id, None)
        return is_recorded
