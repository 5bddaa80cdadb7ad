"""Forms that were posted after their session had ended: the page of each form shows again what it had.

Nothing that they ask for is done. They are kept in the store, for the recipient whose page had the form and for the
browser that posted it: each has a random secret in a cookie. docs/decisions/kept-forms.md has the reasons.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from unicodedata import category

from bottle import HTTPResponse

from portal.model.message import random_token
from portal.stores.lifecycle import FORMS_KEPT
from portal.web.pages import Pages, sha256
from portal.web.request import Request

_COOKIE = "form"
_SECRET_OCTETS = 24


@dataclass(frozen=True, slots=True)
class KeptForm:
    """A posted form."""

    path: str  # to which it was posted
    fields: Sequence[tuple[str, str]] = ()

    def get(self, name: str) -> str:
        """Return a field, "" if it is missing, like `Request.form`."""
        return next((value for each, value in reversed(self.fields) if each == name), "")

    def all(self, name: str) -> list[str]:
        """Return all fields with this name."""
        return [value for each, value in self.fields if each == name]


NO_FORM = KeptForm("")


class KeptForms:
    """The forms of this site that are kept."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._store = pages.parts.store

    def owner(self, request: Request) -> str | None:
        """Return the recipient whose page had the form of this request; None: it is not of a page of ours.

        It is also known when the session has ended and its row was removed, or somebody else is signed in.
        """
        return self._pages.parts.links.form_owner(request.form("form_token"))

    def keep(self, request: Request, owner: str, response: HTTPResponse) -> HTTPResponse:
        """Keep the form of this request for its owner, and return the response with the cookie of this browser."""
        secret, fields = random_token(_SECRET_OCTETS), [each for each in request.fields() if each[0] != "form_token"]
        form = json.dumps([request.path, fields])
        self._store.sign_ins.keep_form(owner, sha256(secret), form, self._pages.now())
        self._pages.set_cookie(response, _COOKIE, secret, int(FORMS_KEPT.total_seconds()))
        return response

    def of(self, request: Request, recipient: str) -> KeptForm:
        """Return the form that this browser posted for this recipient, `NO_FORM` if there is none."""
        secret = request.cookie(_COOKIE)
        if not secret:
            return NO_FORM
        form = self._store.sign_ins.kept_form(recipient, sha256(secret), self._pages.now())
        if form is None:
            return NO_FORM
        path, fields = json.loads(form)
        return KeptForm(path, [(name, _without_controls(value)) for name, value in fields])

    def forget(self, request: Request, recipient: str) -> None:
        """Forget the form of this browser and recipient: it was posted again, or another one, or they signed out.

        The response to this request removes the cookie.
        """
        if secret := request.cookie(_COOKIE):
            self._store.sign_ins.forget_form(recipient, sha256(secret))
            request.stale_cookies.append(_COOKIE)

    def without_cookie(self, response: HTTPResponse) -> None:
        """Remove the cookie."""
        self._pages.set_cookie(response, _COOKIE, "", 0)


def _without_controls(text: str) -> str:
    """Return a text without characters that no field of a page can show."""
    return "".join(each for each in text if each in "\r\n\t" or category(each) not in ("Cc", "Cs", "Cn"))
