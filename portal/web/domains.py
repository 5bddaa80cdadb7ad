"""The page of domains in the console: their values, where each comes from, and forms that change them."""

from __future__ import annotations

from dataclasses import dataclass

from bottle import HTTPError, HTTPResponse

from portal.mail.languages import Language
from portal.model.domain_value import DomainValue
from portal.model.domains import shown_address
from portal.model.errors import BadDomainValue
from portal.model.message import Filter, State, domain
from portal.model.phrase import Phrase
from portal.model.staff import EVERYWHERE
from portal.model.text import N_, shown
from portal.policy.domains import DomainPolicy
from portal.policy.staff import Permission
from portal.settings import DomainSettings
from portal.settings.domains import CHOICES, EDITABLE, RETENTIONS, plain_values
from portal.settings.values import plain
from portal.stores.records import GroupBy
from portal.web.console import Console, StaffSession
from portal.web.pages import Pages
from portal.web.request import Request
from portal.web.rows import Viewer

PATH = "/admin/domains"
_VALUE_CHARS = 400
_CHANGES = 20  # shown of a domain
_SOURCES = {
    "store": N_("Set here or by a command"),
    "file": N_("Set in the settings file"),
    "site": N_("Default"),
}
_NOT_HERE = Phrase(N_("This value cannot be set here. Use the command quarantine domains set."))
_LOCKED = N_("Locked in the settings file")
_RESULTS = {"saved": N_("Value saved."), "unchanged": N_("Nothing was changed: it was so already.")}


@dataclass(frozen=True, slots=True)
class DomainRow:
    """A domain as the list shows it."""

    name: str  # in addresses
    shown: str
    held: str
    values: str  # those of its own, as in the settings file


@dataclass(frozen=True, slots=True)
class ValueRow:
    """A value of a domain."""

    key: str
    help: str
    value: str  # its own one, "" if it has none
    usual: str  # that of the site
    source: str  # to be translated
    choices: tuple[str, ...]  # empty for a text
    may_change: bool


class DomainPages:
    """`/admin/domains`."""

    def __init__(self, pages: Pages, console: Console) -> None:
        self._pages = pages
        self._console = console
        self._staff = pages.parts.staff
        self._domains = pages.parts.domains

    def show(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """GET /admin/domains: list the domains that this person may see, or show the values of one."""
        typed = request.query("domain").strip()
        return self._one(request, staff, domain(typed)) if typed else self._list(request, staff)

    def change(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """POST /admin/domains: set a value of a domain, then redirect (303) to its page with the result.

        An empty value removes the one that was set here, so that the settings file or the site decides again.
        """
        host, key = domain(request.form("domain").strip()), request.form("key")
        value = request.form("value").strip()[:_VALUE_CHARS]
        if not self._may(staff, Permission.MANAGE_DOMAIN_POLICY, host):
            return self._console.forbidden(request)
        page = f"{PATH}?domain={host}"
        self._console.check_fresh(request, staff, page)
        try:
            if key not in EDITABLE or not self._may_change(staff, key):
                raise BadDomainValue(_NOT_HERE, key)
            if value == _text(plain_values(self._domains.own(host)).get(key, "")):
                return self._pages.see_other(f"{page}&done=unchanged")
            self._domains.set(host, key, value or None, staff.actor)
        except BadDomainValue as error:
            return self._one(request, staff, host, wrong=(key, value, error.problem))
        return self._pages.see_other(f"{page}&done=saved")

    def _may_change(self, staff: StaffSession, key: str) -> bool:
        """Return whether a value may be changed here by somebody who may change those of a domain."""
        if key == "public_url":  # links to sign in lead there, so a person who chooses it can sign in as anybody
            return EVERYWHERE in self._staff.reach(staff.member, Permission.MANAGE_DOMAIN_POLICY)
        return key != "logo"  # a picture would need an upload

    def _list(self, request: Request, staff: StaffSession) -> HTTPResponse:
        number = self._pages.viewer(request, staff.member.person).language.number
        reach = self._staff.reach(staff.member, Permission.READ_AUDIT)
        wanted = Filter(states=frozenset({State.HELD})).within(None if EVERYWHERE in reach else reach)
        with self._pages.searching():
            groups = self._pages.parts.store.facets.groups(wanted, GroupBy.DOMAIN)
        held = {group.name: group.count for group in groups.groups}
        names, by_held = self._domains.local(), request.query("order") == "held"
        rows = []
        for name in sorted(names, key=lambda each: -held.get(each, 0)) if by_held else names:
            if self._may(staff, Permission.READ_AUDIT, name):
                values = plain_values(self._domains.own(name))
                text = ", ".join(f"{key} = {_text(value)}" for key, value in values.items())
                rows.append(DomainRow(name, shown_address(name), number(held.get(name, 0)), shown(text, 300)))
        return self._console.page(request, staff, "domains", rows=rows, by_held=by_held, is_counted=groups.total.exact)

    def _one(
        self, request: Request, staff: StaffSession, host: str, *, wrong: tuple[str, str, Phrase] | None = None
    ) -> HTTPResponse:
        """Return the page of a domain. ``wrong``: key and value of a form that was rejected, and why."""
        if not self._domains.is_local(host) or not self._may(staff, Permission.READ_AUDIT, host):
            raise HTTPError(404)
        viewer = self._pages.viewer(request, staff.member.person)
        own, sources = plain_values(self._domains.own(host)), self._domains.sources(host)
        usual, may_change = _of_site(self._domains.site), self._may(staff, Permission.MANAGE_DOMAIN_POLICY, host)
        rows = [
            ValueRow(
                key=key,
                help=_help(key, viewer.language),
                value=_text(own.get(key, "")),
                usual=_text(usual[key]),
                source=_LOCKED if sources[key].endswith("locked") else _SOURCES[sources[key]],
                choices=CHOICES.get(key, ()),
                may_change=may_change and self._may_change(staff, key) and not sources[key].endswith("locked"),
            )
            for key in EDITABLE
        ]
        return self._console.page(
            request,
            staff,
            "domain",
            400 if wrong else 200,
            domain=host,
            shown_domain=shown_address(host),
            rows=rows,
            wrong=wrong and (shown(wrong[0], 40), shown(wrong[1], _VALUE_CHARS), viewer.language.phrase(wrong[2])),
            result=_RESULTS.get(request.query("done"), ""),
            changes=[_change(each, viewer) for each in self._domains.history(host, _CHANGES)],
        )

    def _may(self, staff: StaffSession, permission: Permission, host: str) -> bool:
        return bool(host) and self._staff.may(staff.member, permission, host)


def _change(change: DomainValue, viewer: Viewer) -> tuple[str, str, str, str]:
    """Return when a value was set, its key, the value, "" if it was removed, and who did it."""
    value = "" if change.value is None else _text(plain(change.value))
    at = viewer.language.short_moment(change.set_at, viewer.zone)
    return at, change.name, value, shown_address(change.actor.name) or change.actor.who


def _of_site(policy: DomainPolicy) -> dict[str, object]:
    """Return the values that hold where a domain has none of its own, by key."""
    brand = policy.brand
    return {
        **{"name": brand.name, "colour": brand.colour, "colour_dark": brand.colour_dark, "logo": plain(brand.logo)},
        "from_address": policy.from_address or "",
        "admin_address": policy.admin_address or "",
        "public_url": policy.public_url,
        "at": [plain(each) for each in policy.at],
        "timezone": policy.timezone,
        "schedule": policy.schedule,
        "language": policy.language,
        "notices": policy.notices,
        **{f"release_{tier}": right for tier, right in policy.release.items()},
        **{key: policy.retention_days[tier] for tier, key in RETENTIONS.items()},
        "recipient_rules": policy.recipient_rules,
        "formatted_view": policy.formatted_view,
        "recipient_downloads": policy.recipient_downloads,
    }


def _help(key: str, language: Language) -> str:
    markdown = DomainSettings.model_fields[key].description
    return language.gettext(markdown).replace("`", "").replace("*", "") if markdown else ""


def _text(value: object) -> str:
    """Return a value as `Domains.set` takes it, and as the settings file has it but for quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    return shown(", ".join(map(str, value)) if isinstance(value, list) else str(value), _VALUE_CHARS)
