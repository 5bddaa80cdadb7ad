"""Scans of held messages: for viruses after holding, in the background, and again right before a release; by all of
Rspamd's filters on demand.

Rspamd asks no virus scanner about some of the messages it rejects (`docs/decisions/scanning.md`). A scan is *done* only
if Rspamd lists a scanner, answered 200 without a symbol for a failed scan, and the message is not too large. Any other
message is *not scanned*, and thus at least suspicious.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from portal.model.errors import RspamdUnavailable
from portal.model.message import Body, Message, Scan, ScanOutcome, Symbol, Tier
from portal.model.record import record
from portal.model.tiers import Tiers
from portal.stores import Store

if TYPE_CHECKING:
    from portal.rspamd import Rspamd, Verdict

log = logging.getLogger("quarantine.scan")

COUNTER = "scans."  # of scans, followed by the outcome
POST_SECONDS = 1.5  # Rspamd waits five seconds for the answer to its post
RELEASE_SECONDS = 2.0  # a person waits for the release
# Below Rspamd's task_timeout of 8 s: then Rspamd answers as if a scanner that hangs had found nothing.
BACKGROUND_SECONDS = 6.0
RESCAN_SECONDS = 15.0  # longer than Rspamd's task_timeout
HARMLESS = b"From: <>\r\nSubject: quarantine check\r\n\r\nThis message tests the virus scanner.\r\n"


@record(frozen=True, slots=True)
class Scanning:
    """Scans messages and records the results.

    ``rspamd``: None if `rspamd.url` is not set. ``groups``: empty if no virus scans are asked for.
    """

    store: Store
    tiers: Tiers
    rspamd: Rspamd | None
    groups: Sequence[str]
    max_bytes: int
    valid: timedelta
    release_unscanned: bool
    required: bool  # by allow rules: they let no message through that was not scanned

    @property
    def is_on(self) -> bool:
        """True if messages are scanned for viruses."""
        return self.rspamd is not None and bool(self.groups)

    def is_due(self, message: Message, now: datetime) -> bool:
        """Return whether the message must be scanned before a release."""
        scan = message.scan
        if not self.is_on:
            return False
        # The difference is absolute: the clock of the host that scanned may be ahead.
        return scan is None or scan.at is None or not scan.is_done or abs(now - scan.at) >= self.valid

    def scan(self, message: Message, now: datetime, seconds: float) -> tuple[Message, RspamdUnavailable | None]:
        """Scan a message and record the result.

        Returns the message as it is stored afterwards, also changed by other scans and verdicts, and the error if
        scanning it later may succeed. Raises StoreUnavailable, NotFound, BodyMissing, BodyDamaged.
        """
        error: RspamdUnavailable | None = None
        try:
            scan = self._ask(lambda: self.store.messages.body(message.id), message.size_bytes, now, seconds)
        except RspamdUnavailable as caught:
            error = caught
            scan = Scan(ScanOutcome.FAILED, now, detail=str(error))
        tier = self.tiers.with_scan(message.verdict_tier, scan)
        stored = self.store.messages.record_scan(message.id, scan, tier, now)
        self.report(message.id, scan)
        return stored, error

    def scan_posted(self, body: Body, now: datetime, seconds: float) -> Scan | None:
        """Scan a message that is not held yet. Return the result, None if scanning it later may succeed.

        Records nothing. Raises OSError if the body cannot be read.
        """
        try:
            return self._ask(body.chunks, body.size_bytes, now, seconds)
        except RspamdUnavailable as error:
            log.warning("scan failed before holding: %s", error)
            return None

    def report(self, id: UUID, scan: Scan) -> None:
        """Log the result of a scan and count it."""
        if scan.outcome is ScanOutcome.FAILED:
            log.warning("scan failed id=%s: %s", id, scan.detail)
        else:
            names = ",".join(symbol.name for symbol in scan.symbols) or "-"
            log.info("scanned id=%s outcome=%s symbols=%s", id, scan.outcome.value, names)
        self.store.notes.count({COUNTER + scan.outcome.value: 1})

    def rescan(self, message: Message, recipients: Sequence[str], now: datetime) -> tuple[Message, Verdict]:
        """Have all of Rspamd's filters judge a message again. Return it as it is stored afterwards, and the verdict.

        Only symbols that make a message dangerous count, and are recorded like those of a virus scan. A better verdict
        changes nothing: results of SPF, DKIM and greylisting depend on the time. Raises RspamdUnavailable, also if
        `rspamd.url` is not set, StoreUnavailable, NotFound, BodyMissing, BodyDamaged.
        """
        if self.rspamd is None:
            raise RspamdUnavailable("rspamd.url is not set")
        verdict = self.rspamd.check(
            self.store.messages.body(message.id),
            message.size_bytes,
            sender=message.envelope_sender,
            recipients=recipients,
            client_ip=message.client_ip,
            seconds=RESCAN_SECONDS,
        )
        dangerous = tuple(filter(self.tiers.is_dangerous, verdict.symbols))
        if dangerous and message.verdict_tier is not Tier.DANGEROUS:
            scan = Scan(ScanOutcome.FOUND, now, dangerous)
            message = self.store.messages.record_scan(message.id, scan, Tier.DANGEROUS, now)
        names = ",".join(symbol.name for symbol in dangerous) or "-"
        log.info("rescanned id=%s action=%s score=%s dangerous=%s", message.id, verdict.action, verdict.score, names)
        return message, verdict

    def works(self, seconds: float) -> bool:
        """Return whether the scanner reads a harmless message."""
        try:
            return self.rspamd is not None and not failures(self.rspamd, HARMLESS, self.groups, seconds)
        except RspamdUnavailable:
            return False

    def _ask(self, body: Callable[[], Iterable[bytes]], size_bytes: int, now: datetime, seconds: float) -> Scan:
        """Return the result of a scan by Rspamd. Raises RspamdUnavailable if scanning it later may succeed."""
        if self.rspamd is None:
            return Scan(ScanOutcome.FAILED, now, detail="rspamd.url is not set")
        if size_bytes > self.max_bytes:
            return Scan(ScanOutcome.FAILED, now, detail="the message is larger than rspamd.scan_max_bytes")
        deadline = time.monotonic() + seconds
        names = scanners(self.rspamd, self.groups, seconds)
        if not names:
            return Scan(ScanOutcome.FAILED, now, detail="Rspamd has no virus scanner in rspamd.scan_groups")
        reported = self.rspamd.scan(body(), size_bytes, self.groups, deadline - time.monotonic())
        if failed := _failures(reported):
            raise RspamdUnavailable(f"the virus scanner failed: {'; '.join(failed)}")
        # A site's own rule may add symbols to every scan: only those of scanners and of the tiers' lists are findings.
        found = tuple(s for s in reported if not s.score < 0 and (s.name in names or self.tiers.knows(s.name)))
        return Scan(ScanOutcome.FOUND if found else ScanOutcome.CLEAN, now, found)


def scanners(rspamd: Rspamd, groups: Sequence[str], seconds: float) -> frozenset[str]:
    """Return the symbols with which virus scanners report what they find. Raises RspamdUnavailable."""
    return frozenset(name for name in rspamd.symbols_of(groups, seconds) if not _is_failure(name))


def failures(rspamd: Rspamd, message: bytes, groups: Sequence[str], seconds: float) -> list[str]:
    """Scan a message that is not held; return the failures that scanners report. Raises RspamdUnavailable."""
    return _failures(rspamd.scan([message], len(message), groups, seconds))


def _failures(reported: Sequence[Symbol]) -> list[str]:
    return [" ".join((symbol.name, *symbol.options)) for symbol in reported if _is_failure(symbol.name)]


def _is_failure(symbol: str) -> bool:
    """Return whether this is a scanner's symbol for a scan that failed.

    Source: Rspamd's lualib/lua_scanners/common.lua: `symbol_fail` is the scanner's symbol with this suffix.
    """
    return symbol.endswith("_FAIL")
