"""The tier of a message, from its symbols."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import translate

from portal.model.message import Export, Tier


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
            # A negative score is in favour of the message. Zero is not: a virus scanner's symbol has no score, since
            # its rule forces the action (Rspamd's plugins/antivirus.lua: "add it to metric if you want non-zero
            # weight").
            if symbol.score >= 0:
                name = symbol.name.upper()
                if self._dangerous.match(name):
                    return Tier.DANGEROUS
                if self._suspicious.match(name):
                    worst = Tier.SUSPICIOUS
        return worst


def _any_of(patterns: Sequence[str]) -> re.Pattern[str]:
    """Return an expression for the names in upper case that one of the patterns matches."""
    return re.compile("|".join(translate(pattern.upper()) for pattern in patterns) or "(?!)")
