"""The session of a signed-in recipient: start it, read it, list and end it. It does not depend on the sign-in method.

The browser has a random secret in a cookie. The store has its SHA-256 and ends the session by age and idleness.
"""

from __future__ import annotations

import logging
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from bottle import HTTPResponse

from portal.model.audit import Act
from portal.model.errors import LinkInvalid, NotFound
from portal.model.message import identity, is_address, random_token
from portal.model.text import N_, shown
from portal.policy.staff import Member
from portal.stores.lifecycle import FORMS_KEPT
from portal.stores.records import MAILED_LINK, Job, Method, StartedSession
from portal.web.auth.client import client_name
from portal.web.auth.kept_form import NO_FORM, KeptForm, KeptForms
from portal.web.exporter import allowed_peer
from portal.web.listing import named_message
from portal.web.pages import Pages, sha256
from portal.web.request import Request

log = logging.getLogger("quarantine.web")

METHOD_NAMES = {  # by `Method.name`
    "mailed-link": N_("Mailed link"),
    "ldap": N_("Password"),
    "imap": N_("Password"),
    "proxy": N_("Web server"),
}
FRESH = timedelta(minutes=15)  # since the person proved who they are, for acts with far-reaching effects
_CLOCKS_DIFFER = timedelta(minutes=3)  # a later time is that of a clock that was wrong
_COOKIE = "session"
_COOKIE_SECONDS = 7 * 24 * 3600  # the store ends an unused session earlier
_SECRET_OCTETS = 24
_DESTINATION = re.compile(
    r"/(?:rules|preferences(?:/digest)?|sessions|jobs/[0-9a-f-]{36}/"
    r"|messages/[0-9a-f-]{36}(?:\.[0-9]{1,5})?/(?:sender|formatted|headers|source|download|previous|next)?"
    r"|admin(?:/(?:[a-z0-9-][a-z0-9.-]*/){0,4}(?:[a-z0-9-][a-z0-9.-]*)?)?)?"  # no part is .., which browsers resolve
    # The answer's head must fit into 4 KiB, the buffer of a proxy by default. A list's address is encoded twice in that
    # of a message, which then takes 15 characters for a Japanese letter of a search.
    r"(?:\?[A-Za-z0-9_.~*%=&+-]{1,2200})?",
    re.ASCII,
)
_MESSAGE = re.compile(r"/messages/([0-9a-f.-]+)/", re.ASCII)
_DESTINATION_COOKIE = "destination"
_UNDONE = re.compile(r"[?&](undone=[0-9a-z.-]+)", re.ASCII)  # the page of a form that came after the session had ended
_OTHERS_LINK = "/?link=other"  # the list, which says that the link of a digest was for another recipient
_DESTINATION_SECONDS = int(FORMS_KEPT.total_seconds())
_ADDRESS_COOKIE = "address"
_MAX_LISTED = 20  # all of them can be ended together


@dataclass(frozen=True, slots=True)
class Session:
    """A signed-in recipient."""

    recipient: str  # identity
    form_token: str  # anti-forgery token of the forms on their pages
    sha256: bytes  # of its secret, by which the store knows it
    authenticated_at: datetime | None  # when the person last proved who they are, None if that is not known
    staff_until: datetime | None  # the end of its use of the console, if its recipient has a role; None: it was ended
    method: Method  # of its sign-in
    has_factor: bool  # whether its recipient has set up a second factor, for the console
    factor_given: bool  # whether it was given in this session
    job: Job | None  # that was asked for; the reader checks who began it
    member: Member  # the recipient with the roles that they have in this session now, of which there may be none

    def is_fresh(self, now: datetime) -> bool:
        """Return whether the person proved at most `FRESH` ago who they are."""
        return is_fresh(self.authenticated_at, now)


class Sessions:
    """The sessions of this site, and `/sign-out`."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._store = pages.parts.store
        self._forms = KeptForms(pages)

    def of(self, request: Request, job_id: UUID | None = None) -> Session:
        """Return the session of this request. From now on the response uses the recipient's language, zone and domain.

        Raises a 303 to the sign-in page if there is no session. After signing in the page of this request is shown.
        ``job_id`` as in `SignIns.session`.
        """
        found = self._read(request, job_id)
        if found is None:
            raise self.to_sign_in(request, self.page_of(request), "yes" if request.cookie(_COOKIE) else "")
        return found[0]

    def of_form(self, request: Request, page: str, *, keeps: bool = False) -> Session:
        """Return the session of a posted form, as `of` does. Raises 403 unless a page of that session sent it.

        ``page``: what is shown after signing in if the session has ended. Nothing is done then. ``keeps``: that page
        has the form, and shows again what `kept_form` returns; its address has the parameter ``undone``.
        """
        self._pages.check_same_origin(request)
        found, owner = self._read(request), self._forms.owner(request) if keeps else None
        if owner is not None and not self.may_sign_in(owner):
            owner = None
        if found is None:
            if owner is None:
                raise self.to_sign_in(request, page, "form")
            # Somebody else who signs in here gets their own list, and not the page of this form.
            response = self.keep_destination(self._pages.see_other("/sign-in?ended=kept"), page, owner)
            raise self._forms.keep(request, owner, response)
        session, secret = found
        if owner == session.recipient and not self._pages.form_token_fits(request, secret):
            # The same person signed in again since then, in another tab.
            page = _fitting(page)
            response = self._pages.see_other(page if _DESTINATION.fullmatch(page) else "/")
            raise self._forms.keep(request, owner, response)
        self._pages.check_form_token(request, secret)
        self._forms.forget(request, session.recipient)
        return session

    def kept_form(self, request: Request, session: Session, *, is_shown: bool) -> KeptForm:
        """Return the form that this browser posted after a session of this recipient had ended, `NO_FORM` without one.

        ``is_shown``: the sign-in led to this page. The store is only asked then.
        """
        return self._forms.of(request, session.recipient) if is_shown else NO_FORM

    def current(self, request: Request) -> Session | None:
        """Return the session of this request as `of` does, None if there is none."""
        found = self._read(request)
        return found[0] if found else None

    def _read(self, request: Request, job_id: UUID | None = None) -> tuple[Session, str] | None:
        secret = request.cookie(_COOKIE)
        stored = self._store.sign_ins.session(sha256(secret), self._pages.now(), job_id) if secret else None
        if secret is None or stored is None:
            return None
        recipient = identity(stored.recipient)  # sessions started up to version 0.1.1 have U-labels
        # A session also ends when its domain is no longer local or its recipient becomes an alias.
        if not self.may_sign_in(recipient):
            return None
        self._pages.use_recipient(request, recipient, stored.preferences)
        member = self._pages.parts.staff.member(recipient, stored.method.name, stored.grants)
        request.shows_console = bool(member.grants) and self.is_staff_network(request)
        form_token = self._pages.parts.links.form_token(secret, recipient)
        session = Session(
            recipient,
            form_token,
            sha256(secret),
            stored.authenticated_at,
            stored.staff_until,
            stored.method,
            stored.has_factor,
            stored.factor_given,
            stored.job,
            member,
        )
        return session, secret

    def is_staff_network(self, request: Request) -> bool:
        """Return whether the console answers this client, by `staff.networks`."""
        networks = self._pages.parts.settings.staff.networks
        return not networks or allowed_peer(request.peer, networks)

    @staticmethod
    def page_of(request: Request) -> str:
        """Return the page of a GET request, which is shown again after signing in."""
        return f"{request.path}?{request.query_string}" if request.query_string else request.path

    def to_sign_in(self, request: Request, page: str, ended: str) -> HTTPResponse:
        """Return the redirect to the sign-in page. The browser keeps which page was meant, until it is signed in.

        ``ended``: "yes" if a session has ended, "form" if a form was not accepted because of that, "console" if the
        console needs a newer sign-in, "fresh" if the person must prove again who they are. May also be raised.
        """
        return self.keep_destination(self._pages.see_other(f"/sign-in?ended={ended}" if ended else "/sign-in"), page)

    def keep_destination(self, response: HTTPResponse, page: str, reader: str = "") -> HTTPResponse:
        """Return a response with a cookie that names the page to which `destination` leads afterwards.

        ``reader``: to whom alone it leads, the reader of a digest's link or the owner of a kept form; "" if there is
        none. Of an address that is too long, only the path and ``undone`` are kept: a message is then opened without
        its list. For the list and other pages to which it does not lead, the response removes the cookie, which names a
        page that was left.
        """
        page = _fitting(page)
        if (reader or page != "/") and _DESTINATION.fullmatch(page):
            value = _packed(f"{page} {reader}".rstrip())
            self._pages.set_cookie(response, _DESTINATION_COOKIE, value, _DESTINATION_SECONDS)
            return response
        return self.without_destination(response)

    def destination(self, request: Request, recipient: str) -> str:
        """Return the page that this browser opened before signing in or the second factor, "" if there is none.

        ``recipient``: who signs in. If a link for another reader opened it, that is the recipient's own list, but for a
        message of a role mailbox that both may read. For the form of another reader it is their own list as well.
        """
        page, reader = self.kept_destination(request)
        if reader in ("", recipient):
            return page
        if _UNDONE.search(page):
            return ""
        message = _MESSAGE.fullmatch(page)
        return page if message and self._may_read(recipient, message[1]) else _OTHERS_LINK

    def _may_read(self, recipient: str, name: str) -> bool:
        """Return whether the recipient may read the role mailbox's message with this `Row.name`.

        A name without a number is the own copy of the recipient who opens it.
        """
        message_id, number = named_message(name)
        if message_id is None or number is None:
            return False
        try:
            self._store.deliveries.get_for(self._pages.parts.people.reader(recipient), message_id, number)
        except NotFound:
            return False
        return True

    def kept_destination(self, request: Request) -> tuple[str, str]:
        """Return the page and the reader that `keep_destination` kept in this browser, "" for each that is missing."""
        # Over http another site of this host may have set the cookie. It can only name a page of the portal, and
        # opening one changes nothing.
        page, _, reader = _unpacked(request.cookie(_DESTINATION_COOKIE)).partition(" ")
        return (page, reader) if _DESTINATION.fullmatch(page) else ("", "")

    def without_destination(self, response: HTTPResponse) -> HTTPResponse:
        """Return a response that removes the cookie of `keep_destination`."""
        self._pages.set_cookie(response, _DESTINATION_COOKIE, "", 0)
        return response

    def typed_address(self, request: Request) -> str:
        """Return the address that was typed in this browser to sign in, "" if it is not known."""
        return _unpacked(request.cookie(_ADDRESS_COOKIE))

    def keep_typed_address(self, response: HTTPResponse, address: str) -> None:
        """Keep an address for the forms of the sign-in pages, as long as a session may last."""
        self._pages.set_cookie(response, _ADDRESS_COOKIE, _packed(address), _COOKIE_SECONDS)

    def may_sign_in(self, recipient: str) -> bool:
        """Return True if this identity is a person in a local domain."""
        parts = self._pages.parts
        return is_address(recipient) and parts.settings.is_local(recipient) and parts.people.is_person(recipient)

    def begin(
        self,
        request: Request,
        recipient: str,
        destination: str,
        authenticated_at: datetime | None,
        method: Method = MAILED_LINK,
    ) -> HTTPResponse:
        """Sign a recipient in and return the redirect to a page that `destination` returned before, else to their list.

        ``authenticated_at``: when the person proved who they are, None if that is not known. A session of somebody else
        in this browser ends, and the page that they opened is not shown, unless by a link for this recipient.
        Raises LinkInvalid if they may not sign in. The secret is always new, whatever cookie the browser sent (session
        fixation).
        """
        recipient = identity(recipient)
        if not self.may_sign_in(recipient):
            raise LinkInvalid("this recipient may not sign in")
        self._pages.check_host(request, recipient)
        old, secret = request.cookie(_COOKIE), random_token(_SECRET_OCTETS)
        ended = self._store.sign_ins.end_session(sha256(old)) if old else None
        if ended not in (None, recipient) and (destination, "") == self.kept_destination(request):
            destination = ""
        client = client_name(request.user_agent)
        self._store.sign_ins.start_session(
            sha256(secret), recipient, self._pages.now(), client, method, authenticated_at
        )
        self._pages.record(request, Act.SIGNED_IN, recipient, client, via=method.name)
        log.info("signed in recipient=%s peer=%s method=%s", recipient, request.peer, method.name)
        response = self._pages.see_other(destination if _DESTINATION.fullmatch(destination) else "/")
        self.without_destination(response)
        self._pages.set_cookie(response, _COOKIE, secret, _COOKIE_SECONDS)
        return response

    def sign_out(self, request: Request) -> HTTPResponse:
        """POST /sign-out."""
        self._pages.check_same_origin(request)
        secret, found = request.cookie(_COOKIE), None
        if secret:
            # With a wrong token the session continues, and the response must not suggest that it has ended.
            self._pages.check_form_token(request, secret)
            found = self._read(request)
            if found is not None:  # first: if it fails, the repeated request finds the session, and is recorded
                self._pages.record(request, Act.SIGNED_OUT, found[0].recipient)
                self._forms.forget(request, found[0].recipient)
            self._store.sign_ins.end_session(sha256(secret))
        provider = found[0].method.name.removeprefix("oidc:") if found else ""
        settings = self._pages.parts.settings
        is_known = provider in settings.oidc or (provider == "proxy" and bool(settings.proxy.sign_out_url))
        return self.signed_out(self._pages.see_other(f"/sign-in?left={provider}" if is_known else "/sign-in"))

    def all_of(self, session: Session) -> Sequence[StartedSession]:
        """Return the sessions of this session's recipient, the last used first."""
        return self._store.sign_ins.sessions(session.recipient, _MAX_LISTED, self._pages.now())

    def end(self, request: Request, session: Session, name: str) -> bool:
        """End the recipient's session of this name, the hexadecimal hash of its secret. Return whether it was this one.

        Other names, also of other recipients' sessions, are ignored.
        """
        try:
            only = bytes.fromhex(name)
        except ValueError:
            return False
        ended = self._store.sign_ins.end_sessions(session.recipient, only)
        self._ended(request, session.recipient, ended)
        return only == session.sha256

    def end_others(self, request: Request, session: Session) -> None:
        """End all other sessions of this session's recipient, and forget browsers as `end_all` does."""
        self._store.recipients.forget_devices(session.recipient, self._pages.now())
        self._ended(
            request, session.recipient, self._store.sign_ins.end_sessions(session.recipient, but=session.sha256)
        )

    def end_all(self, request: Request, recipient: str) -> None:
        """End all sessions of a recipient. Release links no longer submit themselves in browsers known until now."""
        self._store.recipients.forget_devices(recipient, self._pages.now())
        self._ended(request, recipient, self._store.sign_ins.end_sessions(recipient))

    def _ended(self, request: Request, recipient: str, count: int) -> None:
        if count:
            self._pages.record(request, Act.SIGNED_OUT, recipient, f"{count} sessions")
        log.info("sessions ended recipient=%s count=%d", recipient, count)

    def signed_out(self, response: HTTPResponse) -> HTTPResponse:
        """Return a response that removes the cookies of the session, the typed address, a kept form and
        `keep_destination`."""
        for name in (_COOKIE, _ADDRESS_COOKIE):
            self._pages.set_cookie(response, name, "", 0)
        self._forms.without_cookie(response)
        return self.without_destination(response)


def is_fresh(authenticated_at: datetime | None, now: datetime) -> bool:
    """Return whether somebody who proved then who they are need not do so again. None: it is not known when."""
    return authenticated_at is not None and now - FRESH <= authenticated_at <= now + _CLOCKS_DIFFER


def method_name(name: str) -> str:
    """Return how people know a sign-in method, to be translated. ``name``: that of a `Method`."""
    return METHOD_NAMES.get(name) or shown(name.removeprefix("oidc:"), 40)


def _fitting(page: str) -> str:
    """Return an address to which `Sessions.destination` may lead: of one that is too long, the path and ``undone``."""
    if _DESTINATION.fullmatch(page):
        return page
    undone = _UNDONE.search(page)
    return page.partition("?")[0] + (f"?{undone[1]}" if undone else "")


def _packed(text: str) -> str:
    """Return text for a cookie's value, in characters that need no quotes."""
    return urlsafe_b64encode(text.encode("utf-8", "replace")).rstrip(b"=").decode("ascii")


def _unpacked(value: str | None) -> str:
    """Return the text of a cookie's value, "" if it is not one."""
    try:
        return urlsafe_b64decode(f"{value or ''}==").decode()
    except ValueError:
        return ""
