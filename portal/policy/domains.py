"""The values that hold for a recipient: the values of their domain, else those of the site.

The only place that knows which values a domain has of its own. Everything that depends on a recipient's domain asks
`Domains`: digests, mails, pages and links.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import time

from portal.model.brand import Brand
from portal.model.message import domain
from portal.model.schedule import Plan, Preferences, Schedule, plan_for
from portal.settings import DomainSettings, Settings


@dataclass(frozen=True, slots=True)
class DomainPolicy:
    """The values that hold for the recipients of one domain, or of all domains without values of their own."""

    brand: Brand
    from_address: str | None  # of the portal's mail to them; None: they get no mail
    admin_address: str | None  # who gets their release requests
    at: tuple[time, ...]
    timezone: str
    schedule: Schedule
    language: str


class Domains:
    """The policy of each domain, by the settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.site = _policy(settings, DomainSettings(domain=""))
        self._by_domain = {
            name: _policy(settings, settings.of_domain(name)) for name in (*settings.domains, *settings.digest.domains)
        }

    def of(self, recipient: str) -> DomainPolicy:
        """Return what holds for a recipient, who is named by an address or identity."""
        return self._by_domain.get(domain(recipient), self.site)

    def plan(self, recipient: str, preferences: Preferences) -> Plan:
        """Return the schedule, time zone and language of a recipient's digests."""
        return plan_for(self.of(recipient), recipient, preferences)


def _policy(settings: Settings, own: DomainSettings) -> DomainPolicy:
    digest = settings.digest
    return DomainPolicy(
        brand=Brand(settings.site.name if own.name is None else own.name),
        from_address=own.from_address or settings.mail.from_address,
        admin_address=own.admin_address or settings.mail.admin_address,
        at=own.at or digest.at,
        timezone=own.timezone or digest.timezone,
        schedule=own.schedule or digest.schedule,
        language=own.language or digest.language,
    )
