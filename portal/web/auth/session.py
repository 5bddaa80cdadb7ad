"""The session of a signed-in recipient, however they signed in: begin it, read it, end it.

The browser has a random secret in a cookie; the store has its SHA-256 and ends the session by age and idleness.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from bottle import HTTPResponse

from portal.model.errors import LinkInvalid
from portal.model.message import identity, random_token
from portal.web.pages import Pages, sha256
from portal.web.request import Request

log = logging.getLogger("quarantine.web")

_COOKIE = "session"
_COOKIE_SECONDS = 7 * 24 * 3600  # the store ends an unused session earlier
_SECRET_OCTETS = 24


@dataclass(frozen=True, slots=True)
class Session:
    """A signed-in recipient."""

    recipient: str  # identity
    form_token: str  # of the forms on their pages


class Sessions:
    """Sessions of this site, and `/sign-out`."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._store = pages.parts.store

    def of(self, request: Request) -> Session:
        """Return the session of this request, whose pages are in the recipient's language from here on.

        Raises a 303 to the sign-in page when nobody is signed in.
        """
        return self._read(request)[0]

    def of_form(self, request: Request) -> Session:
        """Return the session of a posted form. Raises 403 also unless the form is from a page of that session."""
        self._pages.refuse_foreign(request)
        session, secret = self._read(request)
        self._pages.refuse_old_form(request, secret)
        return session

    def _read(self, request: Request) -> tuple[Session, str]:
        secret = request.cookie(_COOKIE)
        kept = self._store.sign_ins.session(sha256(secret), self._pages.now()) if secret else None
        recipient = None if kept is None else identity(kept)  # those begun up to version 0.1.1 have U-labels
        # A session also ends when its domain is no longer local or its recipient becomes an alias.
        if secret is None or recipient is None or not self.may_sign_in(recipient):
            raise self._pages.see_other("/sign-in")
        self._pages.use_language_of(request, recipient, self._store.recipients.get(recipient).preferences)
        return Session(recipient, self._pages.parts.links.form_token(secret)), secret

    def may_sign_in(self, recipient: str) -> bool:
        """Return whether this identity is a person of a local domain."""
        parts = self._pages.parts
        return is_address(recipient) and parts.settings.is_local(recipient) and parts.people.is_person(recipient)

    def begin(self, request: Request, recipient: str) -> HTTPResponse:
        """Sign a recipient in and return the redirect to their list. Raises LinkInvalid if they may not sign in.

        The secret is always a new one, whatever the browser presents (session fixation).
        """
        recipient = identity(recipient)
        if not self.may_sign_in(recipient):
            raise LinkInvalid("this recipient is not ours")
        old, secret = request.cookie(_COOKIE), random_token(_SECRET_OCTETS)
        if old:
            self._store.sign_ins.end_session(sha256(old))
        self._store.sign_ins.start_session(sha256(secret), recipient, self._pages.now())
        log.info("signed in recipient=%s peer=%s", recipient, request.peer)
        answer = self._pages.see_other("/")
        self._pages.set_cookie(answer, _COOKIE, secret, _COOKIE_SECONDS)
        return answer

    def sign_out(self, request: Request) -> HTTPResponse:
        """POST /sign-out."""
        self._pages.refuse_foreign(request)
        secret = request.cookie(_COOKIE)
        if secret:
            # With a wrong token nothing is done, and the answer must not look as if it had been.
            self._pages.refuse_old_form(request, secret)
            self._store.sign_ins.end_session(sha256(secret))
        answer = self._pages.see_other("/sign-in")
        self._pages.set_cookie(answer, _COOKIE, "", 0)
        return answer


def is_address(text: str) -> bool:
    """Return whether this can be a recipient's address. Anything else reaches neither the store nor a mail's header."""
    return text.count("@") == 1 and text.isprintable() and not any(c.isspace() or c in '<>,;:"\\()' for c in text)
