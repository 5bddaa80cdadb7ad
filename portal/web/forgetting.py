"""The page on which staff confirm that a person who left is forgotten."""

from __future__ import annotations

from bottle import HTTPResponse

from portal.model.domains import shown_address
from portal.model.errors import NotAllowed, UnknownRecipient
from portal.policy.forgetting import Leaver
from portal.policy.staff import Permission
from portal.web.console import ROLE_NAMES, Console, StaffSession, shown_domain
from portal.web.pages import Pages
from portal.web.recipients import query_of
from portal.web.request import Request

PATH = "/admin/recipients/forget"


class ForgetPages:
    """`/admin/recipients/forget`."""

    def __init__(self, pages: Pages, console: Console) -> None:
        self._pages = pages
        self._console = console
        self._parts = pages.parts
        self._forgetting = pages.parts.forgetting

    def show(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """GET /admin/recipients/forget: what would be removed, and a button."""
        leaver = self._leaver(request, staff, request.query("address"))
        problem = ""
        try:
            self._forgetting.check(leaver, staff.member)
        except NotAllowed as error:
            problem = str(error)
        viewer = self._pages.viewer(request, staff.member.person)
        return self._console.page(
            request,
            staff,
            "forget",
            recipient=shown_address(leaver.recipient),
            identity=leaver.recipient,
            back=query_of(leaver.recipient),
            others=[shown_address(each) for each in leaver.identities if each != leaver.recipient],
            number=viewer.language.number(sum(leaver.counts.of.values())),
            is_counted=leaver.counts.complete,
            sessions=leaver.sessions,
            rules=leaver.rules,
            roles=[(ROLE_NAMES[each.role], shown_domain(each.domain)) for each in leaver.grants],
            problem=problem,
        )

    def forget(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """POST /admin/recipients/forget: forget the person, then redirect (303) to their page.

        A background job removes the deliveries, which may be many.
        """
        leaver = self._leaver(request, staff, request.form("address"))
        self._console.check_fresh(request, staff, query_of(leaver.recipient))
        now, actor = self._pages.now(), staff.actor
        try:
            reason = request.form("reason").strip()
            self._forgetting.begin(leaver, actor, now, reason, staff.member, in_background=True)
        except NotAllowed:
            return self._console.forbidden(request)
        return self._pages.see_other(f"{query_of(leaver.recipient)}&done=forgotten")

    def _leaver(self, request: Request, staff: StaffSession, typed: str) -> Leaver:
        """Return the person of an address. Raises 303 or 403 unless staff may manage them."""

        def may_manage(host: str) -> bool:
            return self._parts.staff.may(staff.member, Permission.MANAGE_RECIPIENTS, host)

        try:
            mailbox = self._parts.recipients.find(typed.strip(), may_manage)
        except UnknownRecipient as unknown:
            if request.only_reads:
                raise self._pages.see_other(query_of(typed)) from unknown  # that page says why
            raise self._console.forbidden(request) from unknown
        if not mailbox.is_person:
            raise self._console.forbidden(request)
        return self._forgetting.leaver(mailbox.recipient, self._pages.now(), may_manage)
