"""The monthly report: what was held, released and so on, for the people who administer domains.

docs/decisions/statistics.md has the reasons.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from urllib.parse import urlencode

from portal.model.domains import shown_address
from portal.model.message import Tier
from portal.model.record import record
from portal.model.staff import EVERYWHERE
from portal.model.statistics import DELAY_NAMES, OUTCOME_NAMES, Line, Month, Outcome, Part, Sums
from portal.model.text import N_
from portal.model.tiers import TIER_NAMES
from portal.policy.mailing import Mailing
from portal.stores import Store
from portal.stores.records import QueuedMail

_NAMES = 5  # symbols and senders
_DOMAINS = 20


@record(frozen=True, slots=True)
class Reports:
    """Composes the monthly reports."""

    store: Store
    mailing: Mailing

    def is_whole(self, month: Month) -> bool:
        """Return whether counting began before this month."""
        began = self.store.statistics.first_day()
        return began is not None and began < month.first

    def mail(self, person: str, hosts: Collection[str], month: Month) -> QueuedMail | None:
        """Return the report about some domains, or about all mail if EVERYWHERE is one of them, as a mail to a person.

        The month before is left out unless it was counted from its beginning.
        Return None if nothing was counted in this month and the one before, or if no From address is set. Raises
        StoreUnavailable.
        """
        chosen = [EVERYWHERE] if EVERYWHERE in hosts else sorted(hosts)
        found = self._sums(month, chosen, [*Part])
        earlier = self._sums(month.before, chosen, [Part.TOTAL, Part.TIER])
        total, before = _total(found), _total(earlier)
        if not total.numbers and not before.numbers:
            return None
        policy = self.mailing.domains.of(person)
        listed = chosen if chosen != [EVERYWHERE] else self.mailing.domains.local()
        by_domain = self.store.statistics.by_domain(month.first, month.last, listed) if len(listed) > 1 else []
        tables = [
            (N_("Domains"), [Line(shown_address(line.name), line.numbers) for line in by_domain[:_DOMAINS]]),
            (N_("Symbols with most mistakes"), _mistaken(found[Part.SYMBOL])),
            (N_("Sender domains with most mistakes"), _mistaken(found[Part.SENDER])),
        ]
        delays = {line.name: sum(line.numbers.values()) for line in found[Part.DELAY]}
        query = {"period": str(month), **({"domain": chosen[0]} if chosen != [EVERYWHERE] else {})}
        return self.mailing.mail(
            person,
            "report",
            policy,
            month=month.first,
            before=month.before.first if self.is_whole(month.before) else None,
            domains=[shown_address(name) for name in chosen if name != EVERYWHERE],
            outcomes=[(name, total.number(each), before.number(each)) for each, name in OUTCOME_NAMES.items()],
            mistakes=(total.mistakes, before.mistakes),
            tiers=[(name, _held(found, tier), _held(earlier, tier)) for tier, name in TIER_NAMES.items()],
            tables=[(title, lines) for title, lines in tables if lines],
            delays=[(text, delays[name]) for name, text in DELAY_NAMES.items() if name in delays],
            page=f"{policy.public_url}/admin/statistics?{urlencode(query)}",
        )

    def _sums(self, month: Month, hosts: Sequence[str], parts: Sequence[Part]) -> Sums:
        return self.store.statistics.sums(month.first, month.last, hosts, parts)


def _total(sums: Sums) -> Line:
    return next(iter(sums[Part.TOTAL]), Line("", {}))


def _held(sums: Sums, tier: Tier) -> int:
    return sum(line.number(Outcome.HELD) for line in sums[Part.TIER] if line.name == tier.value)


def _mistaken(found: Sequence[Line]) -> list[Line]:
    """Return the lines with most released messages, which were held by mistake."""
    wrong = [line for line in found if line.name and line.number(Outcome.RELEASED)]
    return sorted(wrong, key=lambda line: (-line.number(Outcome.RELEASED), line.number(Outcome.HELD)))[:_NAMES]
