"""The outcomes of a run of digests or notices: when one is tried again, whether the run goes on, log and metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from uuid import UUID

from digest.news import RECHECK_AFTER
from digest.stopping import Stopped
from portal.assemble import Parts
from portal.mail.smtp_session import ConnectionLost
from portal.model.errors import QuarantineError, RelayDeferred, RelayRefused, RelayUnreachable, StoreUnavailable
from portal.model.message import State
from portal.monitoring import count_notices, count_run
from portal.policy.domains import Domains
from portal.stores import LEASE
from portal.stores.records import Digest, Unsent

log = logging.getLogger("quarantine.digest")

FAILURES_IN_A_ROW = 3  # after these the mail server is probed
DEFERRALS_IN_A_ROW = 20  # after these the mail server accepts nothing; fewer may be some full mailboxes
# With exponential backoff these take four and a half hours. The recipient's next digest is then the next try.
TRIES = 10
BACK_OFF_MAX = timedelta(hours=1)
NOTICE_INTERVAL = timedelta(minutes=15)  # of one recipient, also after a notice that failed

Progress = Callable[[int, int], None]  # called after each recipient: number done, total


@dataclass(slots=True)
class Summary:
    """The outcomes of one run, by recipient."""

    sent: list[tuple[str, int]] = field(default_factory=list)  # recipient, number of announced deliveries
    skipped: list[tuple[str, str]] = field(default_factory=list)  # recipient, reason; not an error
    failed: list[tuple[str, str]] = field(default_factory=list)  # recipient, error; tried again later
    refused: int = 0  # number of failed digests that are not retried before the recipient's next digest is due
    stopped_early: bool = False  # the run stopped because several digests failed in a row, or the store failed

    def add(self, other: Summary) -> None:
        """Add the outcomes of another run."""
        self.sent += other.sent
        self.skipped += other.skipped
        self.failed += other.failed
        self.refused += other.refused
        self.stopped_early = self.stopped_early or other.stopped_early


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a claimed digest: sent, failed, or not begun."""

    digest: Digest
    reply: str | None = None  # the mail server's; "" if the digest had no deliveries, so that no mail was sent
    error: BaseException | None = None
    begun: bool = False  # sending

    @property
    def is_sent(self) -> bool:
        return self.reply is not None

    @property
    def may_have_arrived(self) -> bool:
        """Return whether the mail server may have accepted a digest that failed: it did not say that it did not."""
        is_answer = isinstance(self.error, (RelayDeferred, RelayRefused)) and not isinstance(self.error, ConnectionLost)
        return self.begun and self.error is not None and not is_answer


def next_try(outcome: Outcome, domains: Domains, now: datetime) -> Unsent:
    """Return when a digest is tried again: at once, after a lease, with backoff, or when the next one is due."""
    return replace(_next_try(outcome, domains, now), may_have_arrived=outcome.may_have_arrived)


def _next_try(outcome: Outcome, domains: Domains, now: datetime) -> Unsent:
    digest, error = outcome.digest, outcome.error
    if error is None or not (outcome.begun or isinstance(error, Exception)):
        return Unsent(digest)
    if isinstance(error, (RelayUnreachable, StoreUnavailable)) or not isinstance(error, Exception):
        return Unsent(digest, not_before=now + LEASE)
    failure = _text_of(error)
    if digest.is_notice and not isinstance(error, RelayRefused):
        return Unsent(digest, not_before=now + NOTICE_INTERVAL)
    if isinstance(error, RelayRefused) or digest.failures + 1 >= TRIES:
        next_time = domains.plan(digest.recipient, digest.preferences).next_time(now)
        return Unsent(digest, due_at=next_time or now + RECHECK_AFTER, failure=failure)
    return Unsent(digest, not_before=now + min(LEASE * 2**digest.failures, BACK_OFF_MAX), failure=failure)


class Report:
    """Logs the outcomes of a run, adds them to its summary and notices an outage."""

    def __init__(
        self,
        parts: Parts,
        clock: Callable[[], datetime],
        summary: Summary,
        progress: Callable[[int], None] | None,
        kind: str,
    ) -> None:
        """``kind``: "digest" or "notice"."""
        self.kind = kind
        self._parts = parts
        self._clock = clock
        self.summary = summary
        self._progress = progress
        self._failures_in_a_row = 0

    def show_progress(self) -> None:
        """Call ``progress`` with the number of recipients that are done."""
        if self._progress is not None:
            self._progress(len(self.summary.sent) + len(self.summary.skipped) + len(self.summary.failed))

    def sent(self, digest: Digest, mail_id: UUID, reply: str) -> None:
        """Log that a digest was sent, and add it to the summary."""
        count = sum(delivery.state is State.HELD for delivery in digest.deliveries)
        self.summary.sent.append((digest.recipient, count))
        log.info("%s sent id=%s recipient=%s messages=%d: %s", self.kind, mail_id, digest.recipient, count, reply)

    def failed(self, recipient: str, error: Exception, *, refused: bool = False) -> None:
        """Log that a digest failed, and add it to the summary. ``refused``: it waits for the recipient's next one."""
        if isinstance(error, QuarantineError):
            log.warning("%s failed recipient=%s: %s", self.kind, recipient, error)
        else:
            log.error("%s failed recipient=%s", self.kind, recipient, exc_info=error)
        self.summary.failed.append((recipient, _text_of(error)))
        self.summary.refused += refused

    def stop_if_outage(self, failures: Sequence[Exception | None], is_over: Stopped) -> None:
        """Stop the run if the errors of these outcomes show an outage. None is a digest that was sent.

        ``is_over``: the run ends anyway, so nothing needs to be probed.
        """
        for error in failures:
            is_temporary = isinstance(error, (RelayDeferred, StoreUnavailable))
            self._failures_in_a_row = self._failures_in_a_row + 1 if is_temporary else 0
            if error is not None and not is_over() and self._is_outage(error):
                count = self._failures_in_a_row
                log.warning("%ss: %d failed in a row, stopping until the next tick", self.kind, count)
                self.summary.stopped_early = True

    def _is_outage(self, error: Exception) -> bool:
        """Return whether the mail server or the store is the cause of the failures, and not single recipients."""
        if self._failures_in_a_row == FAILURES_IN_A_ROW:
            try:
                self._parts.mailer.probe()
            except RelayDeferred:
                return True
            return isinstance(error, StoreUnavailable)
        return self._failures_in_a_row >= DEFERRALS_IN_A_ROW

    def log_run(self, seconds: float) -> None:
        """Log and count the run, unless nothing was due."""
        summary = self.summary
        if not (summary.sent or summary.failed):
            return
        deferred = len(summary.failed) - summary.refused
        log.info(
            "%ss: sent=%d deferred=%d refused=%d skipped=%d in %.1f s",
            self.kind, len(summary.sent), deferred, summary.refused, len(summary.skipped), seconds,
        )  # fmt: skip
        store, sent = self._parts.store, len(summary.sent)
        try:
            if self.kind == "notice":
                count_notices(store, sent)
            else:
                count_run(store, self._clock(), sent=sent, deferred=deferred, refused=summary.refused, seconds=seconds)
        except QuarantineError as error:
            log.error("%ss: the run is not counted: %s", self.kind, error)


def _text_of(error: Exception) -> str:
    return str(error) if isinstance(error, QuarantineError) else "internal error"
