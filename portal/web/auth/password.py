"""Sign in with a password that the site's directory or IMAP server checks (`portal.passwords`).

The portal's own limits come first, since these servers slow down or lock out everybody's sign-ins after wrong passwords
of one client. The answer and its time are the same for every address without a right password, so that they do not
disclose which recipients exist.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from bottle import HTTPError, HTTPResponse

from portal.model.errors import PasswordServerUnavailable, PasswordUnanswered
from portal.model.message import identity, is_address, new_id
from portal.model.text import N_
from portal.passwords import PasswordServer, is_passable
from portal.passwords.deadline import Deadline
from portal.stores.records import Admission, Method, PasswordLimits, PasswordTry
from portal.web.auth.client import client_key
from portal.web.auth.identity import Arrivals, Identified
from portal.web.auth.page import SignInPage
from portal.web.pages import Pages
from portal.web.request import Request

log = logging.getLogger("quarantine.web")

_ADDRESS_LENGTH = 254  # RFC 5321, 4.5.3.1.3, less the angle brackets
_INCOMPLETE = N_("Enter your email address and your password.")
_WRONG = N_("The email address or the password is wrong.")
_ELSEWHERE = N_("This address signs in at another page:")
_REFUSALS = {
    Admission.LIMITED: (429, N_("Too many wrong passwords. Try again later.")),
    Admission.BUSY: (503, N_("Another sign-in is still being checked. Try again in a few seconds.")),
}
_UNAVAILABLE = N_("Passwords cannot be checked at the moment. Try again later.")


class PasswordSignIn:
    """`/sign-in/password`."""

    def __init__(self, pages: Pages, page: SignInPage, arrivals: Arrivals, servers: Sequence[PasswordServer]) -> None:
        """``servers``: those that check passwords, in the order in which they are asked."""
        self._pages = pages
        self._page = page
        self._arrivals = arrivals
        self._servers = servers
        self._tries = pages.parts.store.passwords

    def form(self, _: Request) -> HTTPResponse:
        """GET /sign-in/password: the address of a form that was not accepted, opened again."""
        return self._pages.see_other("/sign-in")

    def sign_in(self, request: Request) -> HTTPResponse:
        """POST /sign-in/password."""
        self._pages.check_same_origin(request)
        if not self._servers:
            raise HTTPError(404)
        address, password = request.form("address").strip(), request.form("password")
        if len(address) > _ADDRESS_LENGTH or not is_address(address) or not is_passable(password):
            return self._page.page(request, 400, problem=_INCOMPLETE, password_is_wrong=True)
        # An alias belongs to a person, whose own password is needed.
        recipient = self._pages.parts.people.person(address) or identity(address)
        host = self._pages.parts.domains.of(recipient).public_url
        if host != request.site.url:
            # Not a redirect: Chromium blocks that of a form to another host (form-action).
            return self._page.page(request, 403, problem=_ELSEWHERE, url=f"{host}/sign-in")
        servers = [each for each in self._servers if each.method != "imap" or self._is_local(recipient)]
        if not servers:
            # An IMAP server may ignore the domain: many of these addresses may name the same account there, each with
            # tries of its own. Since nothing is asked, nobody's tries are used up.
            return self._wrong(request)
        outcome = self._checked(request, servers, recipient, password)
        return self._arrivals.begin(request, outcome) if isinstance(outcome, Identified) else outcome

    def _checked(
        self, request: Request, servers: Sequence[PasswordServer], recipient: str, password: str
    ) -> Identified | HTTPResponse:
        """Return who the servers say this is, or the page that says why they do not."""
        is_local, client = self._is_local(recipient), client_key(request.peer)
        attempt = PasswordTry(new_id(), recipient, client, self._pages.now(), is_local)
        admission = Admission.BUSY
        if self._pages.password_checks.acquire(blocking=False):
            try:
                admission = self._tries.begin(attempt, PasswordLimits())
                if admission is Admission.GRANTED:
                    return self._asked(request, servers, attempt, password)
            finally:
                self._pages.password_checks.release()
        log.warning("password not checked peer=%s: %s", request.peer, admission.value)
        status, text = _REFUSALS[admission]
        return self._page.page(request, status, problem=text)

    def _asked(
        self, request: Request, servers: Sequence[PasswordServer], attempt: PasswordTry, password: str
    ) -> Identified | HTTPResponse:
        """Ask each server until one accepts the password, and record the outcome."""
        is_answered, may_be_wrong = True, False
        with Deadline() as deadline:
            for server in servers:
                try:
                    proven = server.check(attempt.recipient, password, request.peer, deadline)
                except PasswordServerUnavailable as error:
                    log.error("password not checked via=%s: %s", server.method, error)
                    is_answered = False
                    may_be_wrong |= isinstance(error, PasswordUnanswered)
                    continue
                if proven is not None:
                    self._tries.right(attempt)
                    method, now = Method(server.method), self._pages.now()
                    return Identified(proven.address, method, now, proven.groups, is_own_address=True)
                may_be_wrong = True
        # A server that delays its answer to wrong passwords must not be a way around the limits.
        (self._tries.wrong if may_be_wrong else self._tries.unanswered)(attempt)
        if not is_answered:
            return self._page.page(request, 503, problem=_UNAVAILABLE)
        return self._wrong(request)

    def _is_local(self, recipient: str) -> bool:
        return self._pages.parts.settings.is_local(recipient)

    def _wrong(self, request: Request) -> HTTPResponse:
        log.warning("password refused peer=%s", request.peer)
        return self._page.page(request, 403, problem=_WRONG, password_is_wrong=True)
