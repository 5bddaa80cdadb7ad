"""The sign-in page, with all methods that the settings offer, and the methods on the pages of a digest's links."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from bottle import HTTPResponse

from portal.model.text import N_, shown
from portal.web.auth.session import Sessions
from portal.web.pages import Pages
from portal.web.request import Request

_ADDRESS_LENGTH = 254  # RFC 5321, 4.5.3.1.3, less the angle brackets
_NO_FRESH_WAY = N_("This needs another way to sign in than the one of the web server. Ask your administrator.")


@dataclass(frozen=True, slots=True)
class Methods:
    """The sign-in methods of a page."""

    providers: list[tuple[str, str]]  # the path and the title of each, "" if the settings do not name it
    takes_passwords: bool
    mailed_link: bool

    @property
    def only_mail(self) -> bool:
        """True if there is none but the mailed link."""
        return not (self.providers or self.takes_passwords)


class SignInPage:
    """`GET /sign-in`."""

    def __init__(self, pages: Pages, sessions: Sessions) -> None:
        self._pages = pages
        self._sessions = sessions

    def show(self, request: Request) -> HTTPResponse:
        """GET /sign-in. Mails to some recipients have a link with the address as a query parameter.

        The parameter ``link`` is that of *Sign in with your password* on the page of a digest's link.
        """
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
        page, reader = self._sessions.kept_destination(request)
        reader = reader if request.query("link") else ""
        address = shown(typed or reader or self._sessions.typed_address(request), _ADDRESS_LENGTH)
        methods = self._methods(request, needs_fresh=ended == "fresh")
        if methods.only_mail and not methods.mailed_link and ended == "fresh":
            problem = problem or _NO_FRESH_WAY
        return self._pages.page(
            request,
            "sign-in",
            status,
            address=re.sub(r"(@[\w.-]*\w)\W+\Z", r"\1", address),  # as in portal/web/repair.py
            ended=ended,
            leads_back=bool(page),
            problem=problem,
            problem_url=url,
            password_is_wrong=password_is_wrong,
            methods=methods,
            left=self._sign_out_links(request).get(request.query("left")),
        )

    def methods_of_link(self, request: Request) -> Methods:
        """Return the methods for the reader of a digest's link, to whom it mails a link if there is no other method."""
        methods = self._methods(request, needs_fresh=False)
        return replace(methods, mailed_link=methods.mailed_link or methods.only_mail)

    def _methods(self, request: Request, *, needs_fresh: bool) -> Methods:
        """Return the methods. ``needs_fresh``: only those that say when the person proved who they are."""
        root, settings = request.site.root, self._pages.parts.settings
        query = "?fresh=1" if needs_fresh else ""
        providers = [(f"{root}/sign-in/oidc/{name}{query}", title) for name, title in self._titles().items()]
        if settings.proxy.secret is not None and not needs_fresh:
            providers.insert(0, (f"{root}/sign-in/proxy", settings.proxy.title))
        return Methods(providers, settings.takes_passwords, settings.sign_in.mailed_link)

    def _titles(self) -> dict[str, str]:
        return {name: each.title or name for name, each in self._pages.parts.settings.oidc.items()}

    def _sign_out_links(self, request: Request) -> dict[str, tuple[str, str]]:
        """Return where people sign out of each provider, and its title."""
        root, proxy = request.site.root, self._pages.parts.settings.proxy
        links = {name: (f"{root}/oidc/{name}/sign-out", title) for name, title in self._titles().items()}
        if proxy.sign_out_url:
            links["proxy"] = (proxy.sign_out_url, proxy.title or urlsplit(proxy.sign_out_url).hostname or "")
        return links
