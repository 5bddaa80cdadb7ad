"""The sign-in page, with all methods that the settings offer."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from bottle import HTTPResponse

from portal.model.text import shown
from portal.web.auth.session import Sessions
from portal.web.pages import Pages
from portal.web.request import Request

_ADDRESS_LENGTH = 254  # RFC 5321, 4.5.3.1.3, less the angle brackets


class SignInPage:
    """`GET /sign-in`."""

    def __init__(self, pages: Pages, sessions: Sessions) -> None:
        self._pages = pages
        self._sessions = sessions

    def show(self, request: Request) -> HTTPResponse:
        """GET /sign-in. Mails to some recipients have a link with the address as a query parameter."""
        return self.page(request)

    def page(
        self, request: Request, status: int = 200, *, problem: str = "", url: str = "", password_is_wrong: bool = False
    ) -> HTTPResponse:
        """Return the page.

        ``problem``: why a try to sign in failed, to be translated, and the ``url`` where it may succeed.
        ``password_is_wrong``: it failed because of the password, which is to be entered again.
        """
        typed = request.form("address") if request.method == "POST" else request.query("address")
        address = shown(typed or self._sessions.typed_address(request), _ADDRESS_LENGTH)
        settings = self._pages.parts.settings
        root, proxy, left = request.site.root, settings.proxy, request.query("left")
        titles = {name: each.title or name for name, each in settings.oidc.items()}
        providers = [(f"{root}/sign-in/oidc/{name}", title) for name, title in titles.items()]
        if proxy.secret is not None:
            providers.insert(0, (f"{root}/sign-in/proxy", proxy.title))
        sign_out = {name: (f"{root}/oidc/{name}/sign-out", title) for name, title in titles.items()}
        if proxy.sign_out_url:
            sign_out["proxy"] = (proxy.sign_out_url, proxy.title or urlsplit(proxy.sign_out_url).hostname or "")
        return self._pages.page(
            request,
            "sign-in",
            status,
            address=re.sub(r"(@[\w.-]*\w)\W+\Z", r"\1", address),  # as in portal/web/repair.py
            ended=request.query("ended"),
            leads_back=bool(self._sessions.destination(request)),
            problem=problem,
            problem_url=url,
            password_is_wrong=password_is_wrong,
            takes_passwords=bool(settings.ldap.uri or settings.imap.host),
            providers=providers,
            left=sign_out.get(left),
            mailed_link=settings.sign_in.mailed_link,
        )
