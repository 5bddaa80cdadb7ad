"""The console of staff, `/admin/`: who may use it, and its first page.

Every route of the console is made by `Console.route`, so a handler cannot be reached without these checks, which each
request passes in this order:

1. The client is in `staff.networks`. Others get 404, as for a page that does not exist.
2. Somebody is signed in, else 303 to the sign-in page.
3. They have a role now, by store and settings. Others get 404: recipients need not know of the console.
4. They signed in, or used the console, within the last 30 minutes. Otherwise 303 to the sign-in page. The recipient's
   own pages still work in their session.
5. They gave their second factor in this session, if they need one (`Staff.needs_factor`). Otherwise 303 to its page.
6. A role permits what the route is for, for at least one domain, else 403. The handler checks the domain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Any

from bottle import HTTPError, HTTPResponse

from portal.model.domains import shown_address
from portal.model.message import Actor
from portal.model.staff import EVERYWHERE, Role
from portal.model.text import N_
from portal.policy.staff import Member, Permission
from portal.stores import Store
from portal.stores.lifecycle import SESSION_USE_RECORDED, STAFF_IDLE
from portal.web.auth.session import Session, Sessions
from portal.web.pages import Pages
from portal.web.request import Request

HOME = "/admin/"
REQUESTS = "/admin/requests"
SECOND_FACTOR = "/admin/second-factor"
REQUESTS_COUNTED = 1000
_COUNT_SECONDS = 10

ROLE_NAMES = {
    Role.ADMINISTRATOR: N_("Administrator"),
    Role.DOMAIN_ADMINISTRATOR: N_("Domain administrator"),
    Role.HELP_DESK: N_("Help desk"),
    Role.AUDITOR: N_("Auditor"),
}
ROLE_SUMMARIES = {
    Role.ADMINISTRATOR: N_("Reads and releases all messages and gives roles."),
    Role.DOMAIN_ADMINISTRATOR: N_(
        "Reads and releases messages of a domain, except dangerous ones, and gives roles there."
    ),
    Role.HELP_DESK: N_("Finds messages by sender and subject and releases spam."),
    Role.AUDITOR: N_("Sees everything except the contents of messages and changes nothing."),
}
# The pages in the menu of the console: path, text, and the permission that they need.
_DAILY_WORK = (
    (HOME, N_("Messages"), Permission.SEE_ENVELOPE),
    (REQUESTS, N_("Requests"), Permission.SEE_ENVELOPE),
    ("/admin/recipients/", N_("Recipients"), Permission.SEE_ENVELOPE),
    ("/admin/jobs/", N_("Jobs"), Permission.SEE_ENVELOPE),
    ("/admin/statistics", N_("Statistics"), Permission.SEE_ENVELOPE),
)
# One link of the menu leads to these, which have a line of their own as soon as one of them is open.
_ADMINISTRATION = (
    ("/admin/domains", N_("Domains"), Permission.READ_AUDIT),
    ("/admin/staff", N_("Staff"), Permission.READ_AUDIT),
    ("/admin/tokens", N_("API tokens"), Permission.SEE_ENVELOPE),
    ("/admin/audit", N_("Audit"), Permission.READ_AUDIT),
)


@dataclass(frozen=True, slots=True)
class MenuLink:
    """A link in the menu of the console."""

    path: str
    text: str  # to be translated
    is_current: bool


@dataclass(frozen=True, slots=True)
class StaffSession:
    """A member of staff who may use the console now."""

    member: Member
    session: Session
    actor: Actor  # of what they do in this request


class OpenRequests:
    """The numbers of open release requests, counted at most once in `_COUNT_SECONDS`: each page has one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._counts: dict[frozenset[str], tuple[float, int]] = {}  # by domains: when it was counted, number

    def count(self, reach: frozenset[str]) -> int:
        """Return the number of requests in these domains, at most one more than `REQUESTS_COUNTED`."""
        counted_at, count = self._counts.get(reach, (None, 0))
        if counted_at is None or monotonic() - counted_at > _COUNT_SECONDS:
            domains = None if EVERYWHERE in reach else reach
            count = self._store.deliveries.count_requested(domains, REQUESTS_COUNTED + 1)
            self._counts[reach] = monotonic(), count
        return count

    def forget(self) -> None:
        """Count again for the next page, since a request was decided."""
        self._counts.clear()


StaffHandler = Callable[..., HTTPResponse]  # takes a Request, a StaffSession and, as keywords, the parts of the route


class Console:
    """The checks of all routes of the console, and `/admin/`."""

    def __init__(self, pages: Pages, sessions: Sessions) -> None:
        self._pages = pages
        self._sessions = sessions
        self._staff = pages.parts.staff
        self._store = pages.parts.store
        self.open_requests = OpenRequests(pages.parts.store)

    def route(
        self,
        permission: Permission,
        handler: StaffHandler,
        page: str = HOME,
        *,
        factor: bool = True,
        is_use: bool = True,
    ) -> Callable[..., HTTPResponse]:
        """Return the handler of a route, which calls ``handler`` for members of staff with this permission only.

        ``page``: for a posted form, the page to show after signing in if the session has ended. ``factor``: False only
        for the page where the second factor is given. ``is_use``: False for a page that reloads itself, which must not
        keep an unattended console open.
        """

        def checked(request: Request, **named: str) -> HTTPResponse:
            return handler(request, self._member(request, permission, page, factor=factor, is_use=is_use), **named)

        return checked

    def check_fresh(self, request: Request, staff: StaffSession, page: str) -> None:
        """Raise a 303 to the sign-in page unless the person proved at most `FRESH` ago who they are.

        For acts with far-reaching effects. The second factor is as new, since it was given in this session. ``page``:
        what is shown after signing in; nothing is done then.
        """
        if not staff.session.is_fresh(self._pages.now()):
            raise self._sessions.to_sign_in(request, page, "fresh")

    def page(self, request: Request, staff: StaffSession, name: str, status: int = 200, **values: Any) -> HTTPResponse:
        """Return the page ``templates/web/admin/NAME.html``, which extends ``web/admin/base.html``."""
        menu, submenu = ([], []) if self.lacks_factor(staff.session) else self._menus(request, staff)
        return self._pages.page(
            request,
            f"admin/{name}",
            status,
            signed_in=shown_address(staff.member.person),
            form_token=staff.session.form_token,
            menu=menu,
            submenu=submenu,
            requests_path=REQUESTS,
            open_requests=self._number_of_requests(request, staff),
            **{"is_first_page": False, **values},
        )

    def _menus(self, request: Request, staff: StaffSession) -> tuple[list[MenuLink], list[MenuLink]]:
        """Return the menu, and the pages of the administration if one of them is open."""

        def links(pages: Sequence[tuple[str, str, Permission]]) -> list[MenuLink]:
            return [
                MenuLink(path, text, path == request.path or (path != HOME and request.path.startswith(path)))
                for path, text, permission in pages
                if self._staff.reach(staff.member, permission)
            ]

        menu, submenu = links(_DAILY_WORK), links(_ADMINISTRATION)
        if len(submenu) <= 1:
            return [*menu, *submenu], []
        is_open = any(link.is_current for link in submenu)
        menu.append(MenuLink(submenu[0].path, N_("Administration"), is_open))
        return menu, submenu if is_open else []

    def _number_of_requests(self, request: Request, staff: StaffSession) -> str:
        """Return the number of open release requests that a person sees, "" if there is none."""
        reach = self._staff.reach(staff.member, Permission.SEE_ENVELOPE)
        count = self.open_requests.count(reach)
        return request.language.number(min(count, REQUESTS_COUNTED)) + "+" * (count > REQUESTS_COUNTED) if count else ""

    def with_slash(self, _: Request, __: StaffSession) -> HTTPResponse:
        """GET /admin: redirect to `/admin/`, for people who type the address."""
        return self._pages.see_other(HOME)

    def roles(self, staff: StaffSession) -> list[tuple[str, str, str]]:
        """Return the roles of a member of staff: name and summary, to be translated, and domain."""
        return [
            (ROLE_NAMES[grant.role], ROLE_SUMMARIES[grant.role], shown_domain(grant.domain))
            for grant in staff.member.grants
        ]

    # ---- checks

    def lacks_factor(self, session: Session) -> bool:
        """Return whether a session must not use the console before its second factor was given."""
        is_needed = self._staff.needs_factor(session.method, has_factor=session.has_factor)
        return is_needed and not session.factor_given

    def _member(
        self, request: Request, permission: Permission, page: str, *, factor: bool, is_use: bool
    ) -> StaffSession:
        if not self._sessions.is_staff_network(request):
            raise HTTPError(404)
        if request.only_reads:
            session, page = self._sessions.of(request), self._sessions.page_of(request)
        else:
            session = self._sessions.of_form(request, page)
        member = session.member
        if not member.grants:
            raise HTTPError(404)
        now = self._pages.now()
        if session.staff_until is None or session.staff_until <= now:
            raise self._sessions.to_sign_in(request, page, "console")
        if factor and self.lacks_factor(session):
            raise self._sessions.keep_destination(self._pages.see_other(SECOND_FACTOR), page)
        if is_use:
            self._extend(session, now)
        if not self._staff.reach(member, permission):
            raise self.forbidden(request)
        return StaffSession(member, session, member.acting_from(request.peer))

    def _extend(self, session: Session, now: datetime) -> None:
        """Record the use of the console, at most once a minute."""
        until = now + STAFF_IDLE
        if session.staff_until is not None and session.staff_until <= until - SESSION_USE_RECORDED:
            self._store.sign_ins.extend_staff_use(session.sha256, until)

    def forbidden(self, request: Request) -> HTTPResponse:
        """Return the answer to staff whose roles do not permit this. May also be raised."""
        return self._pages.notice(
            request,
            N_("Not permitted"),
            N_("Your role does not permit this. Nothing was changed."),
            403,
        )


def shown_domain(host: str) -> str:
    """Return a domain for people, "" for all domains."""
    return shown_address(host) if host != EVERYWHERE else ""
