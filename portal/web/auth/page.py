"""The sign-in page, with all methods that the settings offer."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from bottle import HTTPResponse

from portal.model.text import N_, shown
from portal.web.auth.session import Sessions
from portal.web.pages import Pages
from portal.web.request import Request

_ADDRESS_LENGTH = 254  # RFC 5321, 4.5.3.1.3, less the angle brackets
_NO_FRESH_WAY = N_("This needs another way to sign in than the one of the web server. Ask your administrator.")


class SignInPage:
    """`GET /sign-in`."""

    def __init__(self, pages: Pages, sessions: Sessions) -> None:
        self._pages = pages
        self._sessions = sessions

    def show(self, request: Request) -> HTTPResponse:
        """GET /sign-in. Mails to some recipients have a link with the address as a query parameter."""
        return self.page(request, ended=request.query("ended"))

    def page(
        self,
        request: Request,
        status: int = 200,
        *,
        problem: str = "",
        url: str = "",
        password_is_wrong: bool = False,
        ended: str = "",
    ) -> HTTPResponse:
        """Return the page.

        ``problem``: why a try to sign in failed, to be translated, and the ``url`` where it may succeed.
        ``password_is_wrong``: it failed because of the password, which is to be entered again. ``ended``: as for
        `Sessions.to_sign_in`.
        """
        typed = request.form("address") if request.method == "POST" else request.query("address")
        address = shown(typed or self._sessions.typed_address(request), _ADDRESS_LENGTH)
        settings = self._pages.parts.settings
        root, proxy, left = request.site.root, settings.proxy, request.query("left")
        titles = {name: each.title or name for name, each in settings.oidc.items()}
        needs_fresh, takes_passwords = ended == "fresh", settings.takes_passwords
        query = "?fresh=1" if needs_fresh else ""
        providers = [(f"{root}/sign-in/oidc/{name}{query}", title) for name, title in titles.items()]
        if needs_fresh and not (providers or takes_passwords or settings.sign_in.mailed_link):
            problem = problem or _NO_FRESH_WAY
        if proxy.secret is not None and not needs_fresh:  # it does not say when the person proved who they are
            providers.insert(0, (f"{root}/sign-in/proxy", proxy.title))
        sign_out = {name: (f"{root}/oidc/{name}/sign-out", title) for name, title in titles.items()}
        if proxy.sign_out_url:
            sign_out["proxy"] = (proxy.sign_out_url, proxy.title or urlsplit(proxy.sign_out_url).hostname or "")
        return self._pages.page(
            request,
            "sign-in",
            status,
            address=re.sub(r"(@[\w.-]*\w)\W+\Z", r"\1", address),  # as in portal/web/repair.py
            ended=ended,
            leads_back=bool(self._sessions.destination(request)),
            problem=problem,
            problem_url=url,
            password_is_wrong=password_is_wrong,
            takes_passwords=takes_passwords,
            providers=providers,
            left=sign_out.get(left),
            mailed_link=settings.sign_in.mailed_link,
        )
