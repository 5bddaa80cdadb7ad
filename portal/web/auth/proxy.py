"""Sign in as the user whom a proxy in front of the portal has authenticated.

Only this one page reads the proxy's headers, so the proxy needs to protect this page alone, and a forged header does
nothing elsewhere. The peer's address proves nothing here: behind Nginx it is the browser's. So the proxy proves itself
by a secret in a second header, and the shipped Nginx files remove both headers from what browsers send.
"""

from __future__ import annotations

import hmac
import logging

from bottle import HTTPError, HTTPResponse

from portal.stores.records import Method
from portal.web.auth.identity import Arrivals, Identified
from portal.web.pages import Pages
from portal.web.request import Request

log = logging.getLogger("quarantine.web")

_USER, _SECRET = "X-Quarantine-User", "X-Quarantine-Secret"


class ProxySignIn:
    """`/sign-in/proxy`."""

    def __init__(self, pages: Pages, arrivals: Arrivals) -> None:
        self._settings = pages.parts.settings.proxy
        self._arrivals = arrivals

    def sign_in(self, request: Request) -> HTTPResponse:
        """GET /sign-in/proxy. Without the proxy's secret, and without exactly one user, there is no such page."""
        secret = self._settings.secret
        if secret is None:
            raise HTTPError(404)
        expected = secret.get_secret_value().encode()
        if not hmac.compare_digest(request.header(_SECRET).encode("latin-1", "replace"), expected):
            log.warning("sign-in refused peer=%s method=proxy: the secret is missing or wrong", request.peer)
            raise HTTPError(404)
        user = request.header(_USER).strip()
        # WSGI joins repeated headers with commas. No address in local_domains needs one, or a space.
        if not user or any(c in ', \t"' for c in user):
            log.warning("sign-in refused peer=%s method=proxy: there is not exactly one user", request.peer)
            raise HTTPError(404)
        # The header says who it is, and not when they last proved it: the proxy may have signed them in days ago.
        return self._arrivals.begin(request, Identified(user, Method("proxy"), authenticated_at=None))
