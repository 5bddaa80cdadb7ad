"""`/admin/messages/ID/…`: one message for staff. ID is the id of the message, with the number of the delivery.

The first page has no content of the message. Its content is on other pages, for people who may read it, and each
reading is in the audit before it happens. Deliveries of other domains are answered with 404.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bottle import HTTPResponse

from portal.model import criteria
from portal.model.audit import Act, AuditEntry
from portal.model.authentication import checks
from portal.model.domains import shown_address
from portal.model.errors import BadCriterion
from portal.model.message import RELEASABLE, Delivery, DeliveryId, Filter, State
from portal.model.rights import Access
from portal.model.staff import EVERYWHERE
from portal.model.text import N_, shown
from portal.model.tiers import TIER_NAMES
from portal.policy.recipients import REASON_CHARACTERS
from portal.policy.staff import Permission
from portal.stores.records import Order, Page, ScoreKey
from portal.web.console import HOME, Console, StaffSession
from portal.web.console_search import STATE_NAMES, Search
from portal.web.downloads import DownloadPages
from portal.web.formatted import FormattedMessages
from portal.web.found import visible
from portal.web.history import history
from portal.web.listing import cursor, name_of
from portal.web.pages import Pages
from portal.web.release_request import release_request
from portal.web.request import Request
from portal.web.results import forget, kept
from portal.web.rows import Row, Viewer, findings
from portal.web.views import MessageViews

DELETABLE = frozenset({*RELEASABLE, State.REQUESTED})
_DETAILS = N_("Details")
# The result of an act, by the state afterwards; None: whatever it is.
_DENIED = N_("Denied. The recipient gets a mail with the reason.")
_RESULTS = {
    ("release", State.RELEASED): (True, N_("Released. The mail server accepted the message.")),
    ("release", State.RELEASING): (True, N_("The release is in progress. It is tried again automatically.")),
    ("again", State.RELEASED): (True, N_("Sent again. The mail server accepted the message.")),
    ("again", State.RELEASING): (True, N_("The release is in progress. It is tried again automatically.")),
    ("delete", State.DELETED): (True, N_("Deleted.")),
    ("restore", State.HELD): (True, N_("Deletion undone. The message is held again.")),
    ("restore", State.BLOCKED): (True, N_("Deletion undone.")),
    ("restore", State.PASSED): (True, N_("Deletion undone.")),
    ("deny", State.HELD): (True, _DENIED),
    ("deny", State.BLOCKED): (True, _DENIED),
    ("deny", State.PASSED): (True, _DENIED),
    ("reannounce", State.HELD): (True, N_("The next digest lists this message again.")),
    ("link", None): (True, N_("A link to this message is on its way to the recipient. It is valid for 15 minutes.")),
    ("link-limit", None): (False, N_("No link was sent: one was sent a moment ago. Try again in some minutes.")),
    ("late", None): (False, N_("Not changed: somebody acted on this message before.")),
}
_UNCHANGED = N_("Nothing was changed.")
_PREVIOUS_MAX = 300  # deliveries of a search among which the previous one is looked for
_OTHERS = 50  # deliveries of the same message that are listed


@dataclass(frozen=True, slots=True)
class OtherRow:
    """Another delivery that the page links to."""

    key: str
    address: str
    held: str
    sender: str
    subject: str
    state: str  # to be translated


class ConsoleMessage:
    """The pages of a message."""

    def __init__(self, pages: Pages, console: Console, formatted: FormattedMessages, downloads: DownloadPages) -> None:
        self._pages = pages
        self._console = console
        self._formatted = formatted
        self._downloads = downloads
        self._views = MessageViews(pages)
        self._parts = pages.parts

    def show(self, request: Request, staff: StaffSession, id: str) -> HTTPResponse:
        """GET /admin/messages/ID/: everything about the message except its content."""
        delivery, others = self.found(staff, id)
        return self.page(request, staff, delivery, others)

    def page(
        self,
        request: Request,
        staff: StaffSession,
        delivery: Delivery,
        others: Sequence[Delivery],
        status: int = 200,
        *,
        error: str = "",
    ) -> HTTPResponse:
        """Return the first page of a message. ``error``: why a form was rejected, to be translated."""
        events = self._parts.store.deliveries.history(delivery.key)
        viewer = self._pages.viewer(request, staff.member.person)
        row = self._pages.row(request, delivery, staff.member.person, events)
        result, lines = kept(request), history(events, row, viewer, for_staff=True)
        act = result.act if result.key == delivery.key else ""
        response = self._page(
            request,
            staff,
            row,
            status=status,
            error=error,
            done=_result(act, delivery),
            last=lines[-1] if act == "late" else None,
            offers=list(self._offers(staff, delivery)),
            reason=shown(request.form("reason"), REASON_CHARACTERS) if error else "",
            reason_characters=REASON_CHARACTERS,
            others=[_other(each, viewer) for each in others[:_OTHERS]],
            others_left=viewer.language.number(max(0, len(others) - _OTHERS)) if len(others) > _OTHERS else "",
            asked=release_request(events, viewer),
            facts=_facts(delivery, viewer),
            checks=checks(delivery.message),
            history=lines,
            **findings(delivery.message, request.language),
        )
        if result.act:
            forget(self._pages, response)
        return response

    def _offers(self, staff: StaffSession, delivery: Delivery) -> Iterator[tuple[str, str]]:
        """Yield the acts that a person may do now: the value of the button, and its text, to be translated."""
        state = delivery.state
        may_release = delivery.recipient != "" and self._parts.staff.may_release(staff.member, delivery)
        if may_release and state is State.REQUESTED:
            yield "approve", N_("Approve and release")
            yield "deny", N_("Deny request")
        elif may_release and state in (State.HELD, State.BLOCKED):
            yield "release", N_("Release")
        elif may_release and state in (State.PASSED, State.RELEASED):
            yield "again", N_("Send again")
        if state in DELETABLE and self.may(staff, Permission.DELETE, delivery):
            yield "delete", N_("Delete")
        if state is State.DELETED and self.may(staff, Permission.RESTORE, delivery):
            yield "restore", N_("Undo deletion")
        if delivery.recipient and state is State.HELD and self.may(staff, Permission.MANAGE_RECIPIENTS, delivery):
            yield "reannounce", N_("Put into the next digest")
        if self._parts.people.readers(delivery.recipient) and self.may(staff, Permission.SEND_LINK, delivery):
            yield "link", N_("Send link to recipient")

    def similar(self, request: Request, staff: StaffSession, id: str) -> HTTPResponse:
        """GET /admin/messages/ID/similar: held messages of the same recipient that are nearly identical."""
        delivery, _ = self.found(staff, id)
        page, viewer = (
            self._parts.store.deliveries.near_duplicates(delivery),
            self._pages.viewer(request, staff.member.person),
        )
        return self._console.page(
            request,
            staff,
            "similar",
            at=place(delivery.key),
            subject=shown(delivery.message.subject, 200),
            recipient=shown_address(delivery.address),
            rows=[_other(each, viewer) for each in page.deliveries],
            has_more=page.next is not None,
        )

    def read(self, request: Request, staff: StaffSession, id: str, view: str) -> HTTPResponse:
        """GET /admin/messages/ID/VIEW: the content of the message."""
        delivery = self._readable(request, staff, id)
        name = "" if view == "text" else view
        self._views.check(request, delivery, self._access(staff, delivery), name)
        if view != "formatted":  # its frame has the content
            self._record_reading(staff, delivery, view)
        viewer = self._pages.viewer(request, staff.member.person)
        row = self._pages.row(request, delivery, staff.member.person, ())
        return self._page(request, staff, row, view=view, **self._views.values(name, delivery, viewer))

    def frame(self, request: Request, staff: StaffSession, id: str) -> HTTPResponse:
        """GET /admin/messages/ID/html: the frame with the message as its sender formatted it."""
        delivery = self._readable(request, staff, id)
        self._views.check_formatted(request, delivery)
        self._record_reading(staff, delivery, "formatted")
        return self._formatted.frame(request, delivery, staff.member.person)

    def ask_download(self, request: Request, staff: StaffSession, id: str) -> HTTPResponse:
        """GET /admin/messages/ID/download: the button that downloads the message, below a warning."""
        delivery = self._readable(request, staff, id)

        def access(of: Delivery) -> Access:
            return self._access(staff, of)

        return self._downloads.question(request, staff.session, delivery, access, place(delivery.key))

    def download(self, request: Request, staff: StaffSession, id: str) -> HTTPResponse:
        """POST /admin/messages/ID/download: send the message or an attachment. Its history and the audit have it."""
        delivery = self._readable(request, staff, id)

        def access(of: Delivery) -> Access:
            return self._access(staff, of)

        page = f"/{place(delivery.key)}/download"
        return self._downloads.file(request, delivery, staff.member.person, access, staff.actor, page)

    def go(self, request: Request, staff: StaffSession, id: str, way: str) -> HTTPResponse:
        """GET /admin/messages/ID/WAY: redirect to the next or previous message of the search that one came from."""
        delivery, _ = self.found(staff, id)
        search = Search.of_query(request.query("search").removeprefix("?")).without("by")
        reach = self._parts.staff.reach(staff.member, Permission.SEE_ENVELOPE)
        zone = self._pages.viewer(request, staff.member.person).zone
        try:
            wanted = criteria.read(search.typed(), zone, self._pages.now())
        except BadCriterion:
            return self._pages.see_other(HOME + search.query())
        wanted = self._parts.people.searched(wanted).within(None if EVERYWHERE in reach else reach)

        def found(limit: int, before: DeliveryId | None) -> Page:
            return self._parts.store.deliveries.search(wanted, limit, before)

        with self._pages.searching():
            if search.order is Order.NEWEST:
                key = _beside(delivery.key, way, found, cursor(search.get("before")))
            else:
                key = self._beside_by_score(delivery, way, wanted, search.order)
        return self._pages.see_other(f"/{place(key)}/{search.as_place()}" if key else HOME + search.query())

    def _beside_by_score(self, delivery: Delivery, way: str, wanted: Filter, order: Order) -> DeliveryId | None:
        if delivery.message.score is None:
            return None  # not in this list
        highest_first = (order is Order.HIGHEST) == (way == "next")
        place = ScoreKey(delivery.message.score, delivery.key)
        page = self._parts.store.facets.by_score(wanted, 1, place, highest_first=highest_first)
        return page.deliveries[0].key if page.deliveries else None

    # ---- which message

    def found(self, staff: StaffSession, name: str) -> tuple[Delivery, Sequence[Delivery]]:
        """Return the delivery with this name, and the others of its message, all of domains that the person may see.

        A message's id alone names the first one. Raises NotFound.
        """
        return visible(self._parts.store, self._parts.staff, staff.member, name)

    def _readable(self, request: Request, staff: StaffSession, name: str) -> Delivery:
        """Return the delivery with this name. Raises 403 unless the person may read its content, NotFound."""
        delivery, _ = self.found(staff, name)
        if not self.may(staff, Permission.SEE_BODY, delivery):
            raise self._console.forbidden(request)
        return delivery

    def may(self, staff: StaffSession, permission: Permission, delivery: Delivery) -> bool:
        """Return whether the person may do this to a delivery."""
        return self._parts.staff.may_for(staff.member, permission, delivery)

    def _access(self, staff: StaffSession, delivery: Delivery) -> Access:
        return self._parts.staff.access(staff.member, delivery)

    def _record_reading(self, staff: StaffSession, delivery: Delivery, view: str) -> None:
        entry = AuditEntry.new(
            self._pages.now(), Act.BODY_READ, staff.actor, delivery.recipient, view, delivery=delivery.key
        )
        self._parts.store.audit.record(entry)

    # ---- the page

    def _page(
        self, request: Request, staff: StaffSession, row: Row, *, view: str = "", status: int = 200, **values: Any
    ) -> HTTPResponse:
        """Return the page of a message with its content in one view or, without any, everything else."""
        delivery = row.delivery
        access = self._access(staff, delivery)
        links: list[tuple[str, str]] = []
        if self.may(staff, Permission.SEE_BODY, delivery):
            found = self._views.links(delivery, access, values.get("preview"))
            links = [("", _DETAILS), *((name or "text", text) for name, text in found)]
        search = Search.of_query(request.query("search").removeprefix("?")).without("by")
        return self._console.page(
            request,
            staff,
            "message",
            status,
            row=row,
            at=place(delivery.key),
            recipient=shown_address(delivery.address),
            here=HOME + search.query(),
            list=search.as_place(),
            view=view,
            views=links,
            access=access,
            state=STATE_NAMES.get(delivery.state, ""),
            tier=TIER_NAMES[delivery.message.tier],
            **{"error": "", "done": None, "offers": (), "asked": None, **values},
        )


def _result(act: str, delivery: Delivery) -> tuple[bool, str] | None:
    """Return what the act before this page did: whether it was done, and the text, to be translated."""
    if not act or (act in ("release", "again") and delivery.state is State.HELD and delivery.reason):
        return None  # the state says why
    return _RESULTS.get((act, delivery.state)) or _RESULTS.get((act, None)) or (False, _UNCHANGED)


def _beside(
    key: DeliveryId, way: str, search: Callable[[int, DeliveryId | None], Page], begin: DeliveryId | None
) -> DeliveryId | None:
    """Return the next or previous delivery of a search whose newest is first; None if there is none or it is not found.

    ``search`` returns so many deliveries from the newest one on, or after one. So the previous delivery is the last one
    between the begin of the page that the reader came from and this one or, for the first one of the page, of all.
    """
    if way == "next":
        page = search(1, key)
        return page.deliveries[0].key if page.deliveries else None
    for start in dict.fromkeys([begin if begin and begin > key else None, None]):
        page = search(_PREVIOUS_MAX, start)
        is_reached = page.next <= key if page.next is not None else not page.is_cut
        newer = [each.key for each in page.deliveries if each.key > key]
        if not is_reached or newer:
            return newer[-1] if is_reached else None
    return None


def place(key: DeliveryId) -> str:
    """Return the path of a message's page without slashes around it."""
    return f"admin/messages/{name_of(key)}"


def _other(delivery: Delivery, viewer: Viewer) -> OtherRow:
    return OtherRow(
        key=name_of(delivery.key),
        address=shown_address(delivery.address),
        held=viewer.language.short_moment(delivery.message.held_at, viewer.zone),
        sender=shown(delivery.message.header_from, 120),
        subject=shown(delivery.message.subject, 120),
        state=STATE_NAMES.get(delivery.state, ""),
    )


def _facts(delivery: Delivery, viewer: Viewer) -> list[tuple[str, str]]:
    """Return what Rspamd and the mail server said about a message: name, to be translated, and text."""
    message = delivery.message
    sender = message.envelope_sender
    found = [
        (N_("Envelope sender"), viewer.language.gettext(N_("(unknown)")) if sender is None else f"<{sender}>"),
        (N_("Sending server"), message.client_ip or ""),
        (N_("Signed in as"), message.user or ""),
        (N_("Action"), message.action or ""),
        (N_("Queue id"), message.queue_id or ""),
        (N_("Message-ID"), message.message_id or ""),
        (N_("Problems of the report"), ", ".join(sorted(flag.value for flag in message.flags))),
        (N_("Not scanned"), message.scan.detail if message.scan else ""),
    ]
    return [(name, shown(text, 320)) for name, text in found if text]
