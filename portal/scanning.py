"""Virus scans of held messages: after holding, in the background, and again right before a release.

Rspamd asks no virus scanner about some of the messages it rejects (`docs/decisions/scanning.md`). A scan is *done* only
if Rspamd lists a scanner, answered 200 without a symbol for a failed scan, and the message is not too large. Any other
message is *not scanned*, and thus at least suspicious.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from portal.model.errors import RspamdUnavailable
from portal.model.message import Message, Scan, ScanOutcome
from portal.model.tiers import Tiers
from portal.rspamd import Rspamd
from portal.stores import Store

log = logging.getLogger("quarantine.scan")

COUNTER = "scans."  # of scans, followed by the outcome
RELEASE_SECONDS = 2.0  # a person waits for the release
BACKGROUND_SECONDS = 30.0  # less than the lease of a job


@dataclass(frozen=True, slots=True)
class Scanning:
    """Scans messages and records the results.

    ``rspamd``: None if no scans are asked for (`rspamd.url` or `rspamd.scan_groups` is empty).
    """

    store: Store
    tiers: Tiers
    rspamd: Rspamd | None
    groups: Sequence[str]
    max_bytes: int
    valid: timedelta
    release_unscanned: bool

    @property
    def is_on(self) -> bool:
        """True if messages are scanned."""
        return self.rspamd is not None

    def is_due(self, message: Message, now: datetime) -> bool:
        """Return whether the message must be scanned before a release."""
        scan = message.scan
        if not self.is_on:
            return False
        # The difference is absolute: the clock of the host that scanned may be ahead.
        return scan is None or scan.at is None or not scan.is_done or abs(now - scan.at) >= self.valid

    def scan(self, message: Message, now: datetime, seconds: float) -> bool:
        """Scan a message and record the result; return whether that made the message more dangerous.

        Raises RspamdUnavailable if scanning it later may succeed (this is recorded as well), StoreUnavailable,
        NotFound, BodyMissing.
        """
        unavailable: RspamdUnavailable | None = None
        try:
            scan = self._ask(message, now, seconds)
        except RspamdUnavailable as error:
            unavailable = error
            scan = Scan(ScanOutcome.FAILED, now, detail=str(error))
        tier = self.tiers.with_scan(message.verdict_tier, scan)
        raised = self.store.messages.record_scan(message.id, scan, tier, now)
        if scan.outcome is ScanOutcome.FAILED:
            log.warning("scan failed id=%s: %s", message.id, scan.detail)
        else:
            names = ",".join(symbol.name for symbol in scan.symbols) or "-"
            log.info("scanned id=%s outcome=%s symbols=%s", message.id, scan.outcome.value, names)
        self.store.notes.add_counters({COUNTER + scan.outcome.value: 1})
        if unavailable is not None:
            raise unavailable
        return raised

    def _ask(self, message: Message, now: datetime, seconds: float) -> Scan:
        """Return the result of a scan by Rspamd. Raises RspamdUnavailable if scanning it later may succeed."""
        if self.rspamd is None:
            return Scan(ScanOutcome.FAILED, now, detail="rspamd.url is not set")
        if message.size_bytes > self.max_bytes:
            return Scan(ScanOutcome.FAILED, now, detail="the message is larger than rspamd.scan_max_bytes")
        names = scanners(self.rspamd, self.groups, seconds)
        if not names:
            return Scan(ScanOutcome.FAILED, now, detail="Rspamd has no virus scanner in rspamd.scan_groups")
        body = self.store.messages.body(message.id)
        reported = self.rspamd.scan(body, message.size_bytes, self.groups, seconds)
        failed = [symbol for symbol in reported if is_failure(symbol.name)]
        if failed:
            reasons = "; ".join(" ".join((symbol.name, *symbol.options)) for symbol in failed)
            raise RspamdUnavailable(f"the virus scanner failed: {reasons}")
        # A site's own rule may add symbols to every scan: only those of scanners and of the tiers' lists are findings.
        found = tuple(s for s in reported if s.score >= 0 and (s.name in names or self.tiers.knows(s.name)))
        return Scan(ScanOutcome.FOUND if found else ScanOutcome.CLEAN, now, found)


def scanners(rspamd: Rspamd, groups: Sequence[str], seconds: float) -> frozenset[str]:
    """Return the symbols with which virus scanners report what they find. Raises RspamdUnavailable."""
    return frozenset(name for name in rspamd.symbols_of(groups, seconds) if not is_failure(name))


def is_failure(symbol: str) -> bool:
    """Return whether this is a scanner's symbol for a scan that failed.

    Source: Rspamd's lualib/lua_scanners/common.lua: `symbol_fail` is the scanner's symbol with this suffix.
    """
    return symbol.endswith("_FAIL")
