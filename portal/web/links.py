"""Pages of the links in a digest. docs/security.md describes the rules that this module implements.

Opening a link changes nothing, since mail scanners open links, run scripts and submit forms. A page has one form for
exactly one action on one delivery (`digest` has the pages for a whole digest). The form may submit itself only if that
is harmless and the client is probably a person. These conditions are checked when the page is rendered and again when
the form arrives without its button.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from bottle import HTTPResponse

from portal.model.domains import shown_address
from portal.model.errors import AlreadyDone, LinkInvalid, NotAllowed, RelayDeferred, RelayRefused
from portal.model.links import Action, Link
from portal.model.message import RELEASABLE, Actor, Delivery, DeliveryId, State, identity
from portal.model.rights import ReleaseRight
from portal.model.sender import needs_check
from portal.model.text import N_
from portal.policy.release_requests import REQUEST_REASON_CHARACTERS
from portal.stores.records import LinkOpen, Person
from portal.web.auth.mailed_link import MailedLinks
from portal.web.auth.page import SignInPage
from portal.web.auth.session import Sessions
from portal.web.digest import DigestPages
from portal.web.listing import cursor, name_of
from portal.web.pages import Pages
from portal.web.preferences import PreferencePages
from portal.web.request import Request
from portal.web.rows import Row, findings

log = logging.getLogger("quarantine.web")

_BURST = timedelta(seconds=10)
_OPENS_KEPT = timedelta(minutes=15)
_BURST_DELIVERIES = 3  # different deliveries of one digest within _BURST
_BURST_OPENS = 2  # opens of one delivery within _BURST
_MAX_OPENS_PER_MINUTE = 60
_DEVICE_SECONDS = 365 * 24 * 3600
_DIGEST_ACTIONS = (Action.SEVERAL, Action.FORWARDED, Action.OPEN)
# A POST is recorded with this id: it counts for the rate limit, but is not mistaken for an open of the page.
_POST_MARKER = UUID(int=0)


class LinkPages:
    """`/link/TOKEN/`."""

    def __init__(
        self,
        pages: Pages,
        preferences: PreferencePages,
        sessions: Sessions,
        mailed: MailedLinks,
        sign_in_page: SignInPage,
    ) -> None:
        self._pages = pages
        self._sign_in_page = sign_in_page
        self._sessions = sessions
        self._mailed = mailed
        self._preferences = preferences
        self._store = pages.parts.store
        self._links = pages.parts.links
        settings = pages.parts.settings.links
        self._auto = settings.confirm == "auto"
        self._autosubmit_after = timedelta(minutes=settings.autosubmit_after_minutes)
        self._digest = DigestPages(pages, preferences)

    def show(self, request: Request, token: str) -> HTTPResponse:
        """GET and HEAD: show the page with its form. The only change is the record that the link was opened."""
        link = self._links.verify(token, self._pages.now())
        if link.action is Action.PREFERENCES:
            return self._preferences.page(request, self._recipient(request, link))
        link_open = LinkOpen(link.key, self._pages.now())
        if link.action is Action.SEVERAL:
            digest = self._store.digests.get(link.id)
            reader = self._reader_of(request, link, digest.person)
            if not request.query("since"):
                self._record_open(request, link, reader, link_open)
            return self._digest.show_several(request, reader, digest.deliveries)
        if link.action in _DIGEST_ACTIONS:
            recipient = self._recipient(request, link)
            self._record_open(request, link, recipient, link_open)
            if link.action is Action.OPEN:
                return self._open(request, recipient)
            return self._digest.show_forwarded(request, recipient)
        delivery, person = self._delivery(request, link)
        reader = person.recipient
        # After a POST (`done`) the page must not count as an open and must not submit itself, or it would loop.
        if request.query("done") and link.action is not Action.SHOW:
            done = request.query("done")
            done = done if done in ("restore", "unchecked") else link.action.name.lower()
            return self._page(request, link, delivery, reader, autosubmit=False, done=done)
        opens = self._record_open(request, link, reader, link_open)
        if link.action is Action.SHOW:
            signed_in = self._signed_in(request)
            if signed_in in self._pages.parts.people.readers(delivery.recipient):
                return self._pages.see_other(self._message_path(self._pages.row(request, delivery, signed_in)))
            return self._show_mail(request, link, delivery, reader)
        autosubmit = self._may_autosubmit(request, link, delivery, person, opens)
        return self._page(request, link, delivery, reader, autosubmit=autosubmit)

    def act(self, request: Request, token: str) -> HTTPResponse:
        """POST: perform the action, then redirect (303) to the page, which shows the result."""
        link = self._links.verify(token, self._pages.now())
        if link.action is Action.PREFERENCES:
            return self._change_preferences(request, link)
        self._pages.check_same_origin(request)
        link_open = LinkOpen(DeliveryId(_POST_MARKER, 0), self._pages.now())
        if link.action in _DIGEST_ACTIONS:
            recipient = self._recipient(request, link)
            self._record_open(request, link, recipient, link_open)
            if link.action is Action.OPEN:
                return self._mail_sign_in(request, recipient, _list_path(request))
            self._pages.check_user_gesture(request)
            response = self._digest.act(request, link, recipient)
            return self._with_device_cookie(request, response, recipient) if request.form("do") else response
        delivery, person = self._delivery(request, link)
        reader = person.recipient
        opens = self._record_open(request, link, reader, link_open)
        if link.action is Action.SHOW:
            return self._mail_sign_in(request, reader, self._message_path(self._pages.row(request, delivery, reader)))
        undo = link.action is Action.DELETE and request.form("undo") == "1"
        pressed = undo or request.form("pressed") == "1"
        if pressed and needs_check(delivery.message):
            self._pages.check_user_gesture(request)
        is_release = link.action is Action.RELEASE and delivery.state in RELEASABLE
        if pressed and is_release and self._pages.is_unchecked(request, delivery):
            return self._pages.see_other("./?done=unchecked")
        if pressed or self._may_autosubmit(request, link, delivery, person, opens):
            actor = self._pages.actor(request, "link", delivery, reader)
            self._perform(request, link, actor, undo=undo)
        response = self._pages.see_other("./?done=restore" if undo else "./?done=1")
        return self._with_device_cookie(request, response, reader) if pressed and request.has_user_gesture else response

    def _with_device_cookie(self, request: Request, response: HTTPResponse, recipient: str) -> HTTPResponse:
        """Return the response to a pressed button, with the cookie that marks this device as known."""
        device = self._links.device(request.cookie("device"), recipient, self._pages.now())
        self._pages.set_cookie(response, "device", device, _DEVICE_SECONDS)
        return response

    def _delivery(self, request: Request, link: Link) -> tuple[Delivery, Person]:
        """Return the delivery and the recipient of a link.

        Raises NotFound, or LinkInvalid if the link was revoked or its recipient may no longer read that message.
        """
        delivery = self._store.deliveries.get(link.key)
        readers = self._pages.parts.people.readers(delivery.recipient)
        reader = next((each for each in readers if self._links.is_for(link, each, delivery.recipient)), None)
        if reader is None:
            raise LinkInvalid("the recipient of this link may no longer read that message")
        person = self._store.recipients.get(reader)
        self._check_revoked(request, link, person)
        return delivery, person

    def _check_revoked(self, request: Request, link: Link, person: Person, *, any_host: bool = False) -> None:
        """Use the recipient's language and time zone for the response. Raises LinkInvalid if the link was revoked."""
        self._pages.use_recipient(request, person.recipient, person.preferences, any_host=any_host)
        valid_from = person.links_valid_from
        if valid_from is not None and link.issued_at < valid_from:
            raise LinkInvalid("this link was revoked")

    def _record_open(self, request: Request, link: Link, recipient: str, link_open: LinkOpen) -> Sequence[LinkOpen]:
        """Record an open. Return the digest's opens of the last 15 minutes. Raises 429 above the rate limit."""
        since = link_open.at - _OPENS_KEPT
        opens = self._store.digests.record_link_open(recipient, link.issued_at, link_open, since)
        if sum(1 for o in opens if o.at > link_open.at - timedelta(minutes=1)) > _MAX_OPENS_PER_MINUTE:
            raise self._pages.notice(
                request,
                N_("Too many requests"),
                N_("The links in this message were opened too often. Wait a minute, then try again."),
                429,
                Retry_After="60",
            )
        return opens

    def _may_autosubmit(
        self, request: Request, link: Link, delivery: Delivery, person: Person, opens: Sequence[LinkOpen]
    ) -> bool:
        """Return True if the form may submit itself now, or may be accepted without its button."""
        if not self._auto or delivery.state is not State.HELD or delivery.reason:
            return False
        if request.is_prefetch:
            return False
        cookie = request.cookie("device")
        is_known_device = self._links.knows_device(cookie, person.recipient, person.devices_valid_from)
        if link.action is Action.DELETE:
            return is_known_device
        if link.action is not Action.RELEASE or needs_check(delivery.message):
            return False
        if self._pages.parts.domains.right(delivery) is not ReleaseRight.SELF:
            return False
        if self._pages.parts.scanning.is_on and delivery.message.scan is None:
            return False  # it was held before scans were switched on, and may turn out to be one that cannot be scanned
        is_old_enough = self._pages.now() - link.issued_at > self._autosubmit_after
        return is_known_device or (is_old_enough and not is_burst(opens))

    def _perform(self, request: Request, link: Link, actor: Actor, *, undo: bool) -> None:
        """Perform the action. An error is recorded in the delivery, and the page shows it."""
        actions = self._pages.parts.actions
        try:
            if undo:
                actions.restore(link.id, link.number, actor)
            elif link.action is Action.RELEASE:
                self._pages.release(request, link.id, link.number, actor)
            elif link.action is Action.DELETE:
                actions.delete(link.id, link.number, actor)
            else:
                actions.request_release(link.id, link.number, actor, reason=request.form("reason"))
        except (AlreadyDone, NotAllowed, RelayDeferred, RelayRefused) as error:
            log.info("link %s id=%s number=%d: %s", link.action.name, link.id, link.number, error)

    def _page(
        self,
        request: Request,
        link: Link,
        delivery: Delivery,
        reader: str,
        *,
        autosubmit: bool,
        done: str = "",
    ) -> HTTPResponse:
        """Return the page of a link. ``done``: the action whose result it shows."""
        return self._pages.page(
            request,
            "link",
            row=self._pages.row(request, delivery, reader),
            action=link.action.name.lower(),
            done=done,
            alone=autosubmit,
            script=autosubmit,
            reason_characters=REQUEST_REASON_CHARACTERS,
            recipient=shown_address(delivery.recipient),
        )

    def _show_mail(self, request: Request, link: Link, delivery: Delivery, reader: str) -> HTTPResponse:
        """Return the page with the facts and reasons of one message, and its links. The text needs a session."""

        def link_path(action: Action) -> str:
            named_reader = reader if link.reader else ""
            token = self._links.token(action, link.id, link.number, link.issued_at, named_reader)
            return f"{self._pages.site.root}/link/{token}/"

        row = self._pages.row(request, delivery, reader)
        response = self._pages.page(
            request,
            "show",
            row=row,
            methods=self._sign_in_page.methods_of_link(request),
            recipient=shown_address(delivery.recipient),
            reader=shown_address(reader),
            release=link_path(Action.RELEASE),
            delete=link_path(Action.DELETE),
            ask=link_path(Action.REQUEST),
            may_rule=self._pages.may_rule(delivery.recipient),
            **findings(delivery.message, request.language),
        )
        return self._sessions.keep_destination(response, self._message_path(row), reader)

    # ---- signing in

    def _open(self, request: Request, recipient: str) -> HTTPResponse:
        """Return the page of *Open my quarantine*, with all methods to sign in."""
        if self._signed_in(request) == recipient:
            return self._pages.see_other(_list_path(request))
        methods = self._sign_in_page.methods_of_link(request)
        response = self._pages.page(request, "open", reader=shown_address(recipient), methods=methods)
        return self._sessions.keep_destination(response, _list_path(request), recipient)

    def _mail_sign_in(self, request: Request, reader: str, destination: str) -> HTTPResponse:
        """Mail a sign-in link to the reader of a link. Others who have the digest cannot use it."""
        if request.form("pressed") != "1" or not self._sign_in_page.methods_of_link(request).mailed_link:
            return self._pages.see_other("./")
        self._pages.check_user_gesture(request)
        return self._mailed.request_mail(request, reader, destination)

    def _signed_in(self, request: Request) -> str:
        """Return who is signed in in this browser, "" if nobody is. The response stays that for the link's reader."""
        before = request.policy, request.language, request.zone
        session = self._sessions.current(request)
        request.policy, request.language, request.zone = before
        return session.recipient if session else ""

    @staticmethod
    def _message_path(row: Row) -> str:
        return f"/messages/{row.name}/"

    # ---- preferences (the link at the end of a digest, and RFC 8058)

    def _recipient(self, request: Request, link: Link, *, any_host: bool = False) -> str:
        """Return the recipient of a digest. Raises NotFound, or LinkInvalid if the link may no longer be used."""
        return self._reader_of(request, link, self._store.digests.recipient_of(link.id), any_host=any_host)

    def _reader_of(self, request: Request, link: Link, person: Person, *, any_host: bool = False) -> str:
        """Return the identity of a digest's recipient. Raises LinkInvalid if the link may no longer be used."""
        if (recipient := identity(person.recipient)) != person.recipient:  # of a digest of schema version 5
            person = self._store.recipients.get(recipient)
        if not self._pages.parts.people.is_person(person.recipient):
            raise LinkInvalid("the recipient of this digest is now an alias or a role mailbox")
        self._check_revoked(request, link, person, any_host=any_host)
        return person.recipient

    def _change_preferences(self, request: Request, link: Link) -> HTTPResponse:
        one_click = request.form("List-Unsubscribe") == "One-Click"
        recipient = self._recipient(request, link, any_host=one_click)
        if one_click:
            # RFC 8058, 3.2: the mail provider's servers send it without Origin and cookies. A redirect is not allowed.
            self._preferences.unsubscribe(request, recipient, link.id)
            return HTTPResponse(
                b"You will not receive any more digests.\n", 200, {"Content-Type": "text/plain; charset=utf-8"}
            )
        self._pages.check_same_origin(request)
        self._pages.check_user_gesture(request)
        return self._preferences.change(request, recipient, back="./")


def _list_path(request: Request) -> str:
    """Return the path of the list that a digest's link leads to: of similar messages if it names one of them."""
    like = cursor(request.query("like"))
    return f"/?like={name_of(like)}" if like else "/"


def is_burst(opens: Sequence[LinkOpen]) -> bool:
    """Return True if links were opened as scanners do: several of a digest, or one repeatedly, within ten seconds.

    ``opens``: oldest first.
    """
    page_opens = [o for o in opens if o.delivery.message_id != _POST_MARKER]
    for position, first in enumerate(page_opens):
        counts: dict[DeliveryId, int] = {}
        for other in page_opens[position:]:
            if other.at - first.at > _BURST:
                break
            key = other.delivery
            counts[key] = counts.get(key, 0) + 1
            if counts[key] >= _BURST_OPENS or len(counts) >= _BURST_DELIVERIES:
                return True
    return False
