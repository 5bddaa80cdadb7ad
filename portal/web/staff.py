"""The page of staff: who has which role. Roles are given and removed here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bottle import HTTPResponse

from portal.model.domains import shown_address
from portal.model.errors import BadGrant, NotAllowed
from portal.model.second_factor import SET_UP_CODE_LIFETIME
from portal.model.staff import Grant, Role
from portal.model.text import N_, shown
from portal.web.console import ROLE_NAMES, ROLE_SUMMARIES, Console, StaffSession, shown_domain
from portal.web.pages import Pages
from portal.web.request import Request

PATH = "/admin/staff"
_CODE_DAYS = SET_UP_CODE_LIFETIME.days
_TYPED_CHARS = 254  # as in the form

_RESULT_TEXTS = {
    "given": N_("Role given."),
    "known": N_("This person has this role already."),
    "reset": N_("Second factor reset. The person is signed out of the console."),
    "removed": N_("Role removed. The person is signed out of the console."),
}


@dataclass(frozen=True, slots=True)
class FactorRow:
    """A person whose second factor the viewer may replace."""

    identity: str
    person: str
    has_factor: bool
    has_role: bool  # now


@dataclass(frozen=True, slots=True)
class GrantRow:
    """A role as the page lists it."""

    grant: Grant
    person: str
    role: str  # its name, to be translated
    domain: str  # "" for all domains
    given: str  # "" if the settings file gives it
    by: str
    may_remove: bool


class StaffPages:
    """`/admin/staff`."""

    def __init__(self, pages: Pages, console: Console) -> None:
        self._pages = pages
        self._console = console
        self._staff = pages.parts.staff
        self._factors = pages.parts.second_factors

    def show(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """GET /admin/staff: list the roles that this person may see."""
        return self._page(request, staff)

    def change(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """POST /admin/staff: give or remove a role, or reset a second factor, then redirect (303) to the page."""
        self._console.check_fresh(request, staff, PATH)
        if request.form("change") in ("reset-second-factor", "set-up-code"):
            return self._change_factor(request, staff)
        address, host, actor = request.form("address"), request.form("domain"), staff.actor
        try:
            role = Role(request.form("role"))
        except ValueError:
            return self._page(request, staff, 400, error=N_("Choose a role."))
        try:
            if request.form("change") == "remove":
                self._staff.remove(address, role, host, actor, staff.member)
                done = "removed"
            else:
                done = "given" if self._staff.give(address, role, host, actor, staff.member) else "known"
        except NotAllowed:
            return self._console.forbidden(request)
        except BadGrant as error:
            return self._page(request, staff, 400, error=str(error))
        return self._pages.see_other(f"{PATH}?done={done}")

    def _change_factor(self, request: Request, staff: StaffSession) -> HTTPResponse:
        address = request.form("address")
        try:
            if request.form("change") == "set-up-code":
                code = self._factors.make_set_up_code(address, staff.actor, staff.member)
                return self._console.page(
                    request, staff, "set-up-code", code=code, person=shown_address(address), days=_CODE_DAYS
                )
            is_reset = self._factors.reset(address, staff.actor, staff.member)
        except NotAllowed:
            return self._console.forbidden(request)
        except BadGrant as error:
            return self._page(request, staff, 400, error=str(error))
        if not is_reset:
            return self._page(request, staff, 400, error=N_("This person has no second factor."))
        return self._pages.see_other(f"{PATH}?done=reset")

    def _page(self, request: Request, staff: StaffSession, status: int = 200, error: str = "") -> HTTPResponse:
        known = self._staff.known()
        grants, by_role = self._staff.all(known), request.query("order") == "role"
        listed = self._staff.visible(staff.member, grants)
        if by_role:
            listed = sorted(listed, key=lambda grant: [*Role].index(grant.role))
        choices = self._staff.may_be_given(staff.member)
        roles, hosts = dict.fromkeys(role for role, _ in choices), dict.fromkeys(host for _, host in choices)
        return self._console.page(
            request,
            staff,
            "staff",
            status,
            result=_RESULT_TEXTS.get(request.query("done"), ""),
            error=error,
            by_role=by_role,
            rows=[self._row(request, staff, grant) for grant in listed],
            factors=self._factor_rows(staff, known, grants) if choices else [],
            days=_CODE_DAYS,
            roles=[(role.value, ROLE_NAMES[role], ROLE_SUMMARIES[role]) for role in roles],
            domains=[(host, shown_domain(host)) for host in sorted(hosts)],
            typed={
                name: shown(request.form(name), _TYPED_CHARS) if error else "" for name in ("address", "role", "domain")
            },
        )

    def _factor_rows(self, staff: StaffSession, known: Sequence[Grant], grants: Sequence[Grant]) -> list[FactorRow]:
        factors, people = self._factors.people(), {grant.person for grant in grants}
        return [
            FactorRow(person, shown_address(person), person in factors, person in people)
            for person in self._staff.resettable(staff.member, known, factors)
        ]

    def _row(self, request: Request, staff: StaffSession, grant: Grant) -> GrantRow:
        viewer = self._pages.viewer(request, staff.member.person)
        is_of_settings = self._staff.is_of_settings(grant)
        return GrantRow(
            grant=grant,
            person=shown_address(grant.person),
            role=ROLE_NAMES[grant.role],
            domain=shown_domain(grant.domain),
            given="" if is_of_settings else viewer.language.moment(grant.given_at, viewer.zone),
            by=f"{grant.actor.name} ({grant.source})" if grant.source else shown_address(grant.actor.name),
            may_remove=not (is_of_settings or grant.source)
            and self._staff.may_give(staff.member, grant.role, grant.domain, grant.person),
        )
