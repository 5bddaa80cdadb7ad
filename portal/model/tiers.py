"""The tier of a message, from its symbols."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import translate

from portal.model.message import Export, Scan, Symbol, Tier
from portal.model.text import N_

TIER_NAMES = {Tier.SPAM: N_("Spam"), Tier.SUSPICIOUS: N_("Suspicious"), Tier.DANGEROUS: N_("Possibly dangerous")}


class Tiers:
    """The patterns that decide the tier of a message, as in `fnmatch`. Names are compared in upper case."""

    def __init__(self, dangerous: Sequence[str], suspicious: Sequence[str]) -> None:
        # One expression for all patterns of a tier, instead of some sixty calls of `fnmatchcase` for each symbol.
        self._dangerous = _any_of(dangerous)
        self._suspicious = _any_of(suspicious)

    def of(self, export: Export) -> Tier:
        """Return the tier by the symbols; unreadable metadata makes it at least suspicious."""
        worst = Tier.SUSPICIOUS if export.flags else Tier.SPAM
        for symbol in export.symbols:
            if self.is_dangerous(symbol):
                return Tier.DANGEROUS
            if symbol.score >= 0 and self._suspicious.match(symbol.name.upper()):
                worst = Tier.SUSPICIOUS
        return worst

    def is_dangerous(self, symbol: Symbol) -> bool:
        """Return whether this symbol makes a message dangerous."""
        # A negative score is in favour of the message. Zero is not: a virus scanner's symbol has no score, since its
        # rule forces the action (Rspamd's plugins/antivirus.lua: "add it to metric if you want non-zero weight").
        return not symbol.score < 0 and self._dangerous.match(symbol.name.upper()) is not None

    def knows(self, symbol: str) -> bool:
        """Return whether one of the patterns matches the name."""
        return bool(self._dangerous.match(symbol.upper()) or self._suspicious.match(symbol.upper()))

    def with_scan(self, tier: Tier, scan: Scan) -> Tier:
        """Return the tier of a message with this tier and this virus scan.

        A scanner's symbol that only the suspicious patterns match is suspicious (an encrypted archive, a macro). Any
        other is dangerous, also under a name that a site chose itself.
        """
        found = [self._of_scanner(symbol.name.upper()) for symbol in scan.symbols]
        return max((tier, *found), key=tuple(Tier).index)

    def _of_scanner(self, name: str) -> Tier:
        is_suspicious = self._suspicious.match(name) and not self._dangerous.match(name)
        return Tier.SUSPICIOUS if is_suspicious else Tier.DANGEROUS


def _any_of(patterns: Sequence[str]) -> re.Pattern[str]:
    """Return an expression for the names in upper case that one of the patterns matches."""
    return re.compile("|".join(translate(pattern.upper()) for pattern in patterns) or "(?!)")
