"""`/admin/requests`: the release requests that nobody has decided about, the longest waiting first."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from bottle import HTTPResponse

from portal.model.domains import shown_address
from portal.model.message import Delivery
from portal.model.reasons import SCANS_IN_WORDS
from portal.model.sender import sender_shown
from portal.model.staff import EVERYWHERE
from portal.model.text import shown
from portal.model.tiers import TIER_NAMES
from portal.policy.release_requests import REQUEST_REASON_CHARACTERS
from portal.policy.staff import Permission
from portal.web.console import Console, StaffSession
from portal.web.listing import name_of
from portal.web.pages import Pages
from portal.web.request import Request
from portal.web.rows import Viewer

_SHOWN = 100


@dataclass(frozen=True, slots=True)
class RequestRow:
    """An open release request."""

    key: str
    age: str
    requested: str
    recipient: str
    sender: str
    subject: str
    reason: str  # the recipient's, "" if they gave none
    tier: str  # to be translated
    scan: str  # to be translated
    may_decide: bool


class ConsoleRequests:
    """`/admin/requests`."""

    def __init__(self, pages: Pages, console: Console) -> None:
        self._pages = pages
        self._console = console
        self._parts = pages.parts

    def show(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """GET /admin/requests."""
        viewer, now = self._pages.viewer(request, staff.member.person), self._pages.now()
        reach = self._parts.staff.reach(staff.member, Permission.SEE_ENVELOPE)
        domains = None if EVERYWHERE in reach else reach
        with self._pages.searching():
            waiting = self._parts.store.deliveries.requested(domains, _SHOWN + 1)
        return self._console.page(
            request,
            staff,
            "requests",
            rows=[self._row(staff, each, viewer, now) for each in waiting[:_SHOWN]],
            has_more=len(waiting) > _SHOWN,
        )

    def _row(self, staff: StaffSession, delivery: Delivery, viewer: Viewer, now: datetime) -> RequestRow:
        message, scan = delivery.message, delivery.message.scan
        return RequestRow(
            key=name_of(delivery.key),
            age=viewer.language.duration(now - delivery.state_at),
            requested=viewer.language.moment(delivery.state_at, viewer.zone),
            recipient=shown_address(delivery.address),
            sender=str(sender_shown(message)),
            subject=shown(message.subject, 120),
            reason=shown(delivery.reason, REQUEST_REASON_CHARACTERS),
            tier=TIER_NAMES[message.tier],
            scan=SCANS_IN_WORDS[scan.outcome] if scan else "",
            may_decide=self._parts.staff.may_release(staff.member, delivery),
        )
