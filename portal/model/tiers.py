"""Which tier a message belongs to: what its symbols say about the harm it could do."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from portal.model.message import Export, Tier

_NAMES_KNOWN = 4096


@dataclass(frozen=True, slots=True)
class Tiers:
    """Which tier a message belongs to. Patterns as in `fnmatch`; names are compared in upper case."""

    dangerous: tuple[str, ...]
    suspicious: tuple[str, ...]
    # Some sixty patterns for each of twenty symbols took a third of the time that holding a mail takes.
    _known: dict[str, Tier] = field(default_factory=dict, init=False, repr=False, compare=False)

    def of(self, export: Export) -> Tier:
        """The tier from symbols; whatever could not be read makes it at least suspicious."""
        worst = Tier.SUSPICIOUS if export.flags else Tier.SPAM
        for symbol in export.symbols:
            # Negative ones speak for the mail. Zero does not: a virus scanner's symbol has no score of its own, since
            # its rule forces the action (Rspamd's plugins/antivirus.lua: "add it to metric if you want non-zero
            # weight").
            if symbol.score >= 0:
                tier = self._known.get(symbol.name) or self._named(symbol.name)
                if tier is Tier.DANGEROUS:
                    return tier
                if tier is Tier.SUSPICIOUS:
                    worst = tier
        return worst

    def _named(self, name: str) -> Tier:
        tier = Tier.SPAM
        for each, patterns in ((Tier.DANGEROUS, self.dangerous), (Tier.SUSPICIOUS, self.suspicious)):
            if any(fnmatchcase(name.upper(), pattern.upper()) for pattern in patterns):
                tier = each
                break
        if len(self._known) < _NAMES_KNOWN:  # whoever may post can make up names
            self._known[name] = tier
        return tier
