"""The values that hold for a recipient: those of their domain, else those of the site.

The only place that knows which values a domain has of its own. Everything that depends on a recipient's domain asks
`Domains`: digests, mails, pages and links. A domain's values are in the settings file and in the store. The store's
values win, except those of keys that the file locks.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from datetime import datetime, time
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from portal.model.brand import Brand
from portal.model.clock import utc_now
from portal.model.domain_value import DomainValue
from portal.model.domains import shown_address
from portal.model.errors import BadDomainValue, DomainValueNotSet, StoreUnavailable
from portal.model.message import Actor, Delivery, Tier, domain, new_id
from portal.model.phrase import Phrase
from portal.model.record import record
from portal.model.rights import Access, ReleaseRight, access
from portal.model.schedule import Plan, Preferences, Schedule, plan_for
from portal.model.text import N_, shown
from portal.settings import DomainSettings, Settings
from portal.settings.domains import CHOICES, EDITABLE, RETENTIONS, plain_values, rejected
from portal.stores import Store

log = logging.getLogger("quarantine.domains")

_ONLY_STRICTER = ("release_suspicious", "release_dangerous")  # keys for which the store cannot say `self`
_FRESH_SECONDS = 5.0  # changes by other processes take effect after this time


@record(frozen=True, slots=True)
class DomainPolicy:
    """The values that hold for the recipients of one domain, or of all domains without values of their own."""

    brand: Brand
    from_address: str | None  # of the portal's mail to them; None: they get no mail
    admin_address: str | None  # who gets their release requests
    public_url: str  # of their pages
    at: tuple[time, ...]
    timezone: str
    schedule: Schedule
    language: str
    notices: bool
    release: Mapping[Tier, ReleaseRight]
    retention_days: Mapping[Tier, int]
    recipient_rules: bool  # whether recipients may make allow and block rules
    formatted_view: bool  # whether they may see messages as their senders formatted them
    recipient_downloads: bool  # whether recipients may download messages and attachments


@record(frozen=True, slots=True)
class _State:
    """Everything that follows from one version of the store's values."""

    version: str
    own: Mapping[str, DomainSettings] = field(default_factory=dict)  # file and store together
    policies: Mapping[str, DomainPolicy] = field(default_factory=dict)
    unusable: Sequence[tuple[DomainValue, str]] = ()  # values of the store that are not in effect, and why


class Domains:
    """The policy of each domain. Thread-safe; one for each process."""

    def __init__(self, settings: Settings, store: Store, *, now: Callable[[], datetime] = utc_now) -> None:
        """Raises StoreUnavailable."""
        self._settings = settings
        self._values = store.domains
        self._now = now
        self._local = frozenset(domain(name) for name in settings.local_domains)
        self.site = self._policy(DomainSettings(domain=""))
        self._reading = threading.Lock()
        self._state = self._read(self._values.version())
        self._read_at = monotonic()

    # ---- for everything that depends on a recipient

    def of(self, recipient: str) -> DomainPolicy:
        """Return the values that hold for a recipient, who is named by an address or identity."""
        return self._fresh().policies.get(domain(recipient), self.site)

    def is_local(self, host: str) -> bool:
        """Return whether a domain, as in an identity, is one of `local_domains` or has addresses there."""
        return host in self._local

    def local(self) -> Sequence[str]:
        """Return the domains of which `is_local` is true, in order."""
        return sorted(self._local)

    def plan(self, recipient: str, preferences: Preferences) -> Plan:
        """Return the schedule, time zone and language of a recipient's digests."""
        return plan_for(self.of(recipient), recipient, preferences)

    def right(self, delivery: Delivery) -> ReleaseRight:
        """Return who may release a delivery, by its message's tier and the domain it was sent to.

        A message that is only suspicious since it was not scanned may be spam as well: the stricter right holds.
        """
        release, message = self.of(delivery.recipient).release, delivery.message
        return max(release[message.tier], release[message.verdict_tier], key=tuple(ReleaseRight).index)

    def access(self, delivery: Delivery) -> Access:
        """Return what the readers of a delivery may see and download, by the domain it was sent to."""
        downloads = self.of(delivery.recipient).recipient_downloads
        return access(delivery.message, self.right(delivery), downloads=downloads)

    def at_host(self, host: str) -> DomainPolicy:
        """Return the policy for visitors of a host (`Host` header) who are not known yet; unknown hosts are the site's.

        If domains share a host and look different, visitors see the look of the site.
        """
        name = host.lower().removesuffix(":443")
        found = [
            policy
            for policy in self._fresh().policies.values()
            if policy.public_url != self.site.public_url and urlsplit(policy.public_url).netloc.lower() == name
        ]
        if not found or len({policy.brand for policy in found}) == 1:
            return found[0] if found else self.site
        return replace(self.site, public_url=found[0].public_url)

    def brand_file(self, name: str) -> tuple[bytes, str] | None:
        """Return a domain's logo or style sheet by `Brand.logo_name` or `Brand.style_name`, with its media type."""
        for brand in (policy.brand for policy in self._fresh().policies.values()):
            if name == brand.style_name:
                return brand.style.encode(), "text/css; charset=utf-8"
            if name == brand.logo_name:
                return brand.logo_octets, f"image/{name.rpartition('.')[2]}"
        return None

    # ---- retention, see `retention`

    @property
    def blocked_retention_days(self) -> int:
        """The retention of messages that a block rule held."""
        return self._settings.store.blocked_retention_days

    @property
    def longest_retention_days(self) -> int:
        """The age at which nobody has a message any more."""
        return max(self.retention_periods())

    def retention_periods(self) -> set[int]:
        """Return all retentions that some domain has for some tier, in days."""
        policies = (self.site, *self._fresh().policies.values())
        return {days for policy in policies for days in policy.retention_days.values()}

    def retention_version(self) -> str:
        """Return a text that changes when any retention changes."""
        policies = sorted(self._fresh().policies.items())
        values = [(name, [*policy.retention_days.values()]) for name, policy in [("", self.site), *policies]]
        return str(values)

    # ---- for administrators

    def names(self) -> Sequence[str]:
        """Return the domains that have values of their own, in order."""
        return sorted(self._fresh().own)

    def own(self, name: str) -> DomainSettings:
        """Return the values that a domain has of its own. Raises BadDomainValue if the domain is not local."""
        return self._fresh().own.get(self._checked(name), DomainSettings(domain=domain(name)))

    def of_file(self, name: str) -> DomainSettings:
        """Return the values that the settings file has for a domain."""
        return self._settings.of_domain(domain(name))

    def sources(self, name: str) -> Mapping[str, str]:
        """Return where each value of a domain comes from: "store", "file" or "site", or "file, locked" or
        "site, locked". Raises BadDomainValue if the domain is not local."""
        of_file, in_effect = self.of_file(name), plain_values(self.own(name))
        in_file = plain_values(of_file)
        in_store = {
            each.name for each in self._values.in_use() if each.domain == domain(name) and each.value is not None
        }
        sources = {}
        for key in EDITABLE:
            source = "file" if key in in_file else "site"
            if key in of_file.locked:
                sources[key] = f"{source}, locked"
            else:
                sources[key] = "store" if key in in_store and key in in_effect else source
        return sources

    def unusable(self) -> Sequence[tuple[DomainValue, str]]:
        """Return the values of the store that are not in effect, each with the reason."""
        return self._fresh().unusable

    def history(self, name: str, limit: int) -> Sequence[DomainValue]:
        """Return the changes of a domain's values in the store, newest first. Raises BadDomainValue."""
        return self._values.history(self._checked(name), limit)

    def set(self, name: str, key: str, value: str | None, actor: Actor) -> None:
        """Set a value of a domain, or remove it (None), also one that may not be set any more.

        Raises BadDomainValue, DomainValueNotSet.
        """
        host = domain(name)
        if value is not None:
            self._check_key(self._checked(host), key)
            self._with(self.of_file(host), key, value)
        elif (host, key) not in {(each.domain, each.name) for each in self._values.in_use() if each.value is not None}:
            self._check_key(self._checked(host), key)
            text = N_("This value is not set in the store. If the settings file has it, change it there.")
            raise DomainValueNotSet(Phrase(text), key)
        self._values.set([DomainValue(new_id(), host, key, value, self._now(), actor)])
        log.info("domain value %s domain=%s key=%s by=%s", "removed" if value is None else "set", host, key, actor.who)
        self._state = self._read(self._values.version())

    def _checked(self, name: str) -> str:
        if domain(name) not in self._local:
            text = "%(domain)s is not a domain of local_domains. Check its spelling."  # pages answer 404
            raise BadDomainValue(Phrase(text, {"domain": shown_address(name)}))
        return domain(name)

    def _check_key(self, host: str, key: str) -> None:
        if key not in EDITABLE:
            text = "%(key)s is not one of the keys that can be set. Use one of: %(keys)s."  # for commands only
            raise BadDomainValue(Phrase(text, {"key": repr(shown(key, 40)), "keys": ", ".join(EDITABLE)}))
        if key in self.of_file(host).locked:
            raise BadDomainValue(Phrase(N_("This value is locked in the settings file. Change it there.")), key)

    def _with(self, own: DomainSettings, key: str, value: str) -> DomainSettings:
        """Return the values with one more. Raises BadDomainValue."""
        if key == "logo" and not value.startswith("data:"):  # a path would be that of another host
            raise BadDomainValue(Phrase("The store keeps the picture, not a path. Use a data URL."), key)
        try:
            checked = DomainSettings.model_validate({"domain": own.domain, key: value})
        except ValidationError as error:
            is_retention = key in RETENTIONS.values()
            problem = self._settings.store.bad_retention if is_retention else rejected(key, error)
            raise BadDomainValue(problem, key) from error
        if misfit := self._settings.problem_of(checked):
            raise BadDomainValue(misfit[1], key)
        if key in _ONLY_STRICTER and getattr(checked, key) is ReleaseRight.SELF:
            text = N_("Only the settings file can have %(value)s. Enter one of: %(values)s.")
            raise BadDomainValue(Phrase(text, {"value": value, "values": ", ".join(CHOICES[key])}), key)
        return own.model_copy(update={key: getattr(checked, key)})

    # ---- the state

    def _fresh(self) -> _State:
        """Return the state, read again if another process may have changed it.

        While the store does not answer, the values stay as they are.
        """
        if monotonic() - self._read_at > _FRESH_SECONDS and self._reading.acquire(blocking=False):
            try:
                version = self._values.version()
                if version != self._state.version:
                    self._state = self._read(version)
            except StoreUnavailable as error:
                log.warning("values of domains not read again: %s", error)
            finally:
                self._read_at = monotonic()
                self._reading.release()
        return self._state

    def _read(self, version: str) -> _State:
        tables = self._settings.domains | self._settings.digest.domains
        own = {name: self._settings.of_domain(name) for name in tables}
        unusable = []
        for value in self._values.in_use():
            if value.value is None:
                continue
            try:
                self._check_key(self._checked(value.domain), value.name)
                before = own.get(value.domain) or DomainSettings(domain=value.domain)
                own[value.domain] = self._with(before, value.name, value.value)
            except BadDomainValue as error:
                unusable.append((value, str(error)))
        return _State(version, own, {name: self._policy(values) for name, values in own.items()}, unusable)

    def _policy(self, own: DomainSettings) -> DomainPolicy:
        settings = self._settings

        def either(value: Any, site: Any) -> Any:
            return site if value is None else value

        return DomainPolicy(
            brand=Brand(either(own.name, settings.site.name), own.colour or "", own.colour_dark or "", own.logo or ""),
            from_address=either(own.from_address, settings.mail.from_address),
            admin_address=either(own.admin_address, settings.mail.admin_address),
            public_url=either(own.public_url, settings.public_url),
            at=either(own.at, settings.digest.at),
            timezone=either(own.timezone, settings.digest.timezone),
            schedule=either(own.schedule, settings.digest.schedule),
            language=either(own.language, settings.digest.language),
            notices=either(own.notices, settings.digest.notices),
            release={
                Tier.SPAM: either(own.release_spam, ReleaseRight.SELF),
                Tier.SUSPICIOUS: either(own.release_suspicious, ReleaseRight.SELF),
                Tier.DANGEROUS: either(own.release_dangerous, ReleaseRight.REQUEST),
            },
            retention_days={
                tier: either(getattr(own, key), settings.store.retention_days) for tier, key in RETENTIONS.items()
            },
            recipient_rules=either(own.recipient_rules, True),
            formatted_view=either(own.formatted_view, True),
            recipient_downloads=either(own.recipient_downloads, True),
        )
