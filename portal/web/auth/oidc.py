"""Sign in with a provider of OpenID Connect, and sign out there.

A try to sign in is kept in a cookie of its own, so that several tabs do not disturb each other. It is signed with its
time and valid for ten minutes. A browser without it cannot finish a sign-in that another browser began (login CSRF).

The sign-in page has a link to the provider, not a form: Chromium applies ``form-action 'self'`` to redirects, too.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
from dataclasses import astuple
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from bottle import HTTPError, HTTPResponse

from portal.model.audit import Act, AuditEntry
from portal.model.errors import Busy
from portal.model.message import Actor, ActorKind, random_token
from portal.model.text import N_
from portal.openid import (
    AddressUnverified,
    Person,
    ProviderUnavailable,
    SignInRefused,
    Trial,
    make_providers,
    redirect_uri,
)
from portal.stores.records import Method
from portal.web.auth.identity import Arrivals, Identified
from portal.web.auth.page import SignInPage
from portal.web.auth.session import is_fresh
from portal.web.pages import Pages, json_response
from portal.web.request import Request

if TYPE_CHECKING:
    from portal.openid.provider import Provider

log = logging.getLogger("quarantine.web")

_TRIAL_LIFETIME = timedelta(minutes=10)
_SECRET_OCTETS = 32
_NAME_CHARACTERS = 12  # of the state, in the name of the cookie
_UNAVAILABLE = N_("The sign-in service does not answer. Try again later, or choose another way to sign in.")
_REFUSED = N_("The sign-in was not completed. Try again.")
_LATE = N_("The sign-in took too long, or it was started in another browser. Try again.")
_NOT_FRESH = N_(
    "The sign-in service does not confirm that you signed in just now. Choose another way to sign in, or ask your "
    "administrator."
)
_UNVERIFIED = N_("The sign-in service does not confirm your email address. Ask your administrator.")


class OidcSignIn:
    """`/sign-in/oidc/NAME`, its callback, and `/oidc/NAME/…`."""

    def __init__(self, pages: Pages, arrivals: Arrivals, page: SignInPage, threads: int) -> None:
        self._pages = pages
        self._arrivals = arrivals
        self._page = page
        self._providers = make_providers(pages.parts.settings)
        # Providers may be slow. Other requests need threads as well.
        self._waiting = threading.BoundedSemaphore(max(1, threads // 4))

    def start(self, request: Request, name: str) -> HTTPResponse:
        """GET /sign-in/oidc/NAME: redirect to the provider. `fresh=1`: the person must prove there who they are."""
        provider = self._provider(name)
        state, nonce, verifier = (random_token(_SECRET_OCTETS) for _ in range(3))
        trial = Trial(state, nonce, verifier, request.query("fresh") == "1")
        try:
            with self._turn():
                url = provider.authorization_url(trial, redirect_uri(request.site.url, name))
        except ProviderUnavailable as error:
            return self._unavailable(request, name, error)
        response = HTTPResponse(b"", 303, {"Location": url})
        self._pages.set_cookie(
            response, _cookie(trial.state), self._packed(name, trial), int(_TRIAL_LIFETIME.total_seconds())
        )
        return response

    def finish(self, request: Request, name: str) -> HTTPResponse:
        """GET /sign-in/oidc/NAME/callback: the provider sends the browser here."""
        provider = self._provider(name)
        query = dict(parse_qsl(request.query_string))
        trial = self._trial(request, name, query.get("state", ""))
        if trial is None:
            return self._page.page(request, 403, problem=_LATE)
        try:
            with self._turn():
                person = provider.finish(query, trial, redirect_uri(request.site.url, name))
        except ProviderUnavailable as error:
            response = self._unavailable(request, name, error)
        except SignInRefused as error:
            log.warning("sign-in refused peer=%s method=%s: %s", request.peer, f"oidc:{name}", error)
            problem = _UNVERIFIED if isinstance(error, AddressUnverified) else _REFUSED
            response = self._page.page(request, 403, problem=problem)
        else:
            response = self._begin(request, name, trial, person)
        self._pages.set_cookie(response, _cookie(trial.state), "", 0)
        return response

    def _begin(self, request: Request, name: str, trial: Trial, person: Person) -> HTTPResponse:
        method, now = Method(f"oidc:{name}", person.subject, person.session), self._pages.now()
        if trial.is_fresh and not is_fresh(person.authenticated_at, now):
            found = person.authenticated_at or "not in the token"
            log.warning("sign-in refused peer=%s method=%s: auth_time is %s", request.peer, method.name, found)
            return self._page.page(request, 403, problem=_NOT_FRESH, ended="fresh")
        at = min(person.authenticated_at, now) if person.authenticated_at else None  # its clock may be ahead
        return self._arrivals.begin(request, Identified(person.address, method, at, person.groups))

    def leave(self, request: Request, name: str) -> HTTPResponse:
        """GET /oidc/NAME/sign-out: redirect to the provider's page for signing out."""
        provider = self._provider(name)
        try:
            with self._turn():
                url = provider.end_session_url(f"{request.site.url}/sign-in")
        except ProviderUnavailable as error:
            return self._unavailable(request, name, error)
        return HTTPResponse(b"", 303, {"Location": url}) if url else self._pages.see_other("/sign-in")

    def end_sessions(self, request: Request, name: str) -> HTTPResponse:
        """POST /oidc/NAME/logout: the provider says that somebody signed out there (Back-Channel Logout 1.0)."""
        provider = self._provider(name)
        try:
            with self._turn():
                logout = provider.logout(request.form("logout_token"))
        except (SignInRefused, ProviderUnavailable) as error:
            log.warning("logout of provider refused peer=%s method=%s: %s", request.peer, f"oidc:{name}", error)
            return json_response(400, {"error": "invalid_request"})
        method = Method(f"oidc:{name}", logout.subject, logout.session)
        # Sessions that began after the token was made stay, so that nobody can use the token a second time.
        before, store = datetime.fromtimestamp(logout.issued_at, UTC), self._pages.parts.store
        for recipient, count in store.sign_ins.end_sessions_of_method(method, before):
            actor = Actor(ActorKind.RECIPIENT, recipient, method.name, request.peer)
            store.audit.record(AuditEntry.new(self._pages.now(), Act.SIGNED_OUT, actor, recipient, f"{count} sessions"))
            log.info("sessions ended recipient=%s count=%d", recipient, count)
        return HTTPResponse(b"", 200)

    # ---- parts

    def _provider(self, name: str) -> Provider:
        if name not in self._providers:
            raise HTTPError(404)
        return self._providers[name]

    def _turn(self) -> _Turn:
        return _Turn(self._waiting)

    def _unavailable(self, request: Request, name: str, error: Exception) -> HTTPResponse:
        log.error("sign-in provider unavailable method=%s: %s", f"oidc:{name}", error)
        return self._page.page(request, 503, problem=_UNAVAILABLE)

    def _packed(self, name: str, trial: Trial) -> str:
        until = int((self._pages.now() + _TRIAL_LIFETIME).timestamp())
        return self._pages.parts.links.sign_trial(json.dumps([name, until, *astuple(trial)]))

    def _trial(self, request: Request, name: str, state: str) -> Trial | None:
        """Return the try that began in this browser with this provider and state, None if there is none."""
        text = self._pages.parts.links.read_trial(request.cookie(_cookie(state)))
        if text is None:
            return None
        of, until, *values = json.loads(text)
        trial = Trial(*values)
        if (
            of != name
            or until < self._pages.now().timestamp()
            or not secrets.compare_digest(trial.state.encode(), state.encode())
        ):
            return None
        return trial


class _Turn:
    """One of a few requests that may wait for a provider at the same time. Raises Busy beyond."""

    def __init__(self, free: threading.BoundedSemaphore) -> None:
        self._free = free

    def __enter__(self) -> None:
        if not self._free.acquire(blocking=False):
            raise Busy("too many requests wait for sign-in providers")

    def __exit__(self, *_: object) -> None:
        self._free.release()


def _cookie(state: str) -> str:
    return f"oidc-{state[:_NAME_CHARACTERS]}"
