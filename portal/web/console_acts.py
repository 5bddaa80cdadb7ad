"""The acts of staff on one message: release, delete, restore, deny a request, announce it again, mail a link to it.

Each act checks the role for the recipient's domain again; a release does so right before the claim, under the lock of
the delivery's row. The reason that somebody typed is in the history for staff and in the audit.
"""

from __future__ import annotations

import logging

from bottle import HTTPResponse

from portal.model.audit import Act, AuditEntry
from portal.model.domains import shown_address
from portal.model.errors import AlreadyDone, LinkInvalid, NotAllowed, RelayDeferred, RelayRefused
from portal.model.message import Delivery, State, Tier
from portal.model.text import N_, is_blank, shown
from portal.policy.recipients import REASON_CHARACTERS
from portal.policy.staff import NOT_YOURS, Permission
from portal.web.auth.mailed_link import MailedLinks
from portal.web.console import Console, StaffSession
from portal.web.console_message import ConsoleMessage, place
from portal.web.listing import name_of
from portal.web.pages import Pages
from portal.web.request import Request
from portal.web.results import keep

log = logging.getLogger("quarantine.staff")

_PERMISSIONS = {
    "delete": Permission.DELETE,
    "restore": Permission.RESTORE,
    "reannounce": Permission.MANAGE_RECIPIENTS,
    "link": Permission.SEND_LINK,
}
_DECISIONS = ("release", "approve", "again", "deny")
_RELEASES = ("release", "approve")


class ConsoleActs:
    """POST `/admin/messages/ID/`."""

    def __init__(self, pages: Pages, console: Console, messages: ConsoleMessage, links: MailedLinks) -> None:
        self._pages = pages
        self._console = console
        self._messages = messages
        self._links = links
        self._parts = pages.parts

    def act(self, request: Request, staff: StaffSession, id: str) -> HTTPResponse:
        """POST /admin/messages/ID/: perform an act, then redirect (303) to the page of the message."""
        delivery, others = self._messages.found(staff, id)
        act, reason = request.form("act"), shown(request.form("reason").strip(), REASON_CHARACTERS)
        if act not in (*_PERMISSIONS, *_DECISIONS):
            return self._pages.notice(
                request, N_("No action selected"), N_("Go back and press one of the buttons."), 400
            )
        if act == "again" and delivery.state not in (State.RELEASED, State.PASSED):
            act = "release"  # it was changed in the meantime
        if not self._may(staff, act, delivery):
            if self._parts.staff.decides_own(staff.member.person, delivery):
                return self._messages.page(request, staff, delivery, others, 403, error=NOT_YOURS)
            return self._console.forbidden(request)
        if act == "deny" and is_blank(reason):
            error = N_("Enter a reason: the recipient reads it.")
            return self._messages.page(request, staff, delivery, others, 400, error=error)
        is_late = act == "approve" and delivery.state is not State.REQUESTED
        is_harmful = delivery.message.tier is not Tier.SPAM
        if act in _RELEASES and is_harmful and not is_late and not request.form("confirmed"):
            return self._question(request, staff, delivery, act, reason)
        try:
            result = self._perform(request, staff, delivery, act, reason)
        except LinkInvalid:
            error = N_("This recipient cannot sign in.")
            return self._messages.page(request, staff, delivery, others, 400, error=error)
        query = f"?{request.query_string}" if request.query_string else ""
        response = self._pages.see_other(f"/{place(delivery.key)}/{query}")
        keep(self._pages, response, result, delivery.key)
        return response

    def _may(self, staff: StaffSession, act: str, delivery: Delivery) -> bool:
        if act in _DECISIONS:
            return self._parts.staff.may_release(staff.member, delivery)
        return self._messages.may(staff, _PERMISSIONS[act], delivery)

    def _question(
        self, request: Request, staff: StaffSession, delivery: Delivery, act: str, reason: str
    ) -> HTTPResponse:
        """Return the page that says what the release of a suspicious or dangerous message does."""
        return self._console.page(
            request,
            staff,
            "release",
            row=self._pages.row(request, delivery, staff.member.person),
            at=place(delivery.key),
            act=act,
            query=f"?{request.query_string}" if request.query_string else "",
            recipient=shown_address(delivery.address),
            reason=reason,
            reason_characters=REASON_CHARACTERS,
        )

    def _perform(self, request: Request, staff: StaffSession, delivery: Delivery, act: str, reason: str) -> str:
        """Perform an act and return its result, one of `results.ACTS`. Raises LinkInvalid, Busy."""
        self._console.open_requests.forget()
        actions, actor, id, number = self._parts.actions, staff.actor, delivery.id, delivery.number

        def check(claimed: Delivery) -> None:
            if act == "approve" and claimed.state is not State.REQUESTED:
                raise AlreadyDone("its release is not requested any more", claimed)
            self._parts.staff.check_release(staff.member, claimed)

        # The delivery has the outcome of a release that failed. The page shows it.
        try:
            match act:
                case "release" | "approve" | "again":
                    self._pages.release_as_staff(delivery, actor, check, reason, again=act == "again")
                case "delete":
                    actions.delete(id, number, actor, reason=reason)
                case "restore":
                    actions.restore(id, number, actor, reason=reason)
                case "reannounce":
                    actions.reannounce(id, number, actor, reason=reason)
                case "deny":
                    actions.refuse_request(id, number, actor, reason)
                case _:
                    return self._send_link(request, staff, delivery, reason)
        except AlreadyDone:
            return "late"
        except (NotAllowed, RelayDeferred, RelayRefused) as error:
            log.info("act of staff act=%s id=%s number=%d by=%s: %s", act, id, number, actor.who, error)
        return "release" if act == "approve" else act

    def _send_link(self, request: Request, staff: StaffSession, delivery: Delivery, reason: str) -> str:
        """Mail the readers of a message a link to it, each to their own address. Nobody else sees the link."""
        destination = f"/messages/{name_of(delivery.key)}/"
        readers = self._parts.people.readers(delivery.recipient)
        audit, now, sent, unable = self._parts.store.audit, self._pages.now(), 0, 0
        for reader in readers:
            try:
                is_sent = self._links.send_link(reader, request.peer, destination)
            except LinkInvalid:
                unable += 1
                continue
            if is_sent:
                audit.record(AuditEntry.new(now, Act.LINK_SENT, staff.actor, reader, reason, delivery=delivery.key))
                sent += 1
        if unable == len(readers):
            raise LinkInvalid("no reader of this message can sign in")
        if not sent:
            return "link-limit"
        log.info("link sent id=%s number=%d by=%s", delivery.id, delivery.number, staff.actor.who)
        return "link"
