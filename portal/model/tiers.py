"""The tier of a message, from its symbols."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from portal.model.message import Export, Tier

_NAMES_CACHED = 4096


@dataclass(frozen=True, slots=True)
class Tiers:
    """The patterns that decide the tier of a message, as in `fnmatch`. Names are compared in upper case."""

    dangerous: tuple[str, ...]
    suspicious: tuple[str, ...]
    # Without the cache, some sixty patterns for each of twenty symbols took a third of the time of holding a message.
    _cache: dict[str, Tier] = field(default_factory=dict, init=False, repr=False, compare=False)

    def of(self, export: Export) -> Tier:
        """Return the tier by the symbols; unreadable metadata makes it at least suspicious."""
        worst = Tier.SUSPICIOUS if export.flags else Tier.SPAM
        for symbol in export.symbols:
            # A negative score is in favour of the message. Zero is not: a virus scanner's symbol has no score, since
            # its rule forces the action (Rspamd's plugins/antivirus.lua: "add it to metric if you want non-zero
            # weight").
            if symbol.score >= 0:
                tier = self._cache.get(symbol.name) or self._tier_of(symbol.name)
                if tier is Tier.DANGEROUS:
                    return tier
                if tier is Tier.SUSPICIOUS:
                    worst = tier
        return worst

    def _tier_of(self, name: str) -> Tier:
        tier = Tier.SPAM
        for each, patterns in ((Tier.DANGEROUS, self.dangerous), (Tier.SUSPICIOUS, self.suspicious)):
            if any(fnmatchcase(name.upper(), pattern.upper()) for pattern in patterns):
                tier = each
                break
        if len(self._cache) < _NAMES_CACHED:  # a limit, since a client may post invented names
            self._cache[name] = tier
        return tier
