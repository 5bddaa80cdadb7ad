"""One HTTP request, as the dispatcher hands it to the handlers of pages."""

from __future__ import annotations

from typing import Any

from bottle import BaseRequest, FormsDict, HTTPError

from portal.mail.languages import Language
from portal.web.site import Site

Environ = dict[str, Any]


class Request:
    """What a handler may know of a request.

    ``language`` is that of the pages that answer it: first what the browser asks for, and the recipient's own from the
    moment they are known (`Pages.use_language_of`), so that pages about errors are in their language as well.
    """

    def __init__(self, environ: Environ, site: Site, language: Language) -> None:
        self.language = language
        self.method: str = environ["REQUEST_METHOD"]
        self.path: str = environ.get("PATH_INFO", "")  # below the mount point
        self.peer: str = environ.get("REMOTE_ADDR", "")  # the client's IP address, "" if unknown
        self._environ = environ
        self._site = site
        bottles = environ.get("bottle.request")
        self._parsed = BaseRequest(environ)
        # It puts itself there: a cycle, so that each request would stay in memory until the collector comes.
        environ["bottle.request"] = bottles

    def query(self, name: str) -> str:
        """Return a parameter of the address, ``""`` when it is missing."""
        value: str = self._parsed.query.getunicode(name) or ""
        return value

    def form(self, name: str) -> str:
        """Return a field of the posted form, ``""`` when it is missing. Raises HTTPError 400 for a malformed form."""
        value: str = self._forms().getunicode(name) or ""
        return value

    def all_of_form(self, name: str) -> list[str]:
        """Return all fields of the posted form with this name. Raises HTTPError 400 for a malformed form."""
        values: list[str] = self._forms().getall(name)
        return values

    def _forms(self) -> FormsDict:
        try:
            return self._parsed.forms
        except (ValueError, LookupError) as error:
            # Bottle fails on a malformed Content-Type and on an unknown charset: the client's fault.
            raise HTTPError(400) from error

    def cookie(self, name: str) -> str | None:
        """Return a cookie of ours, unverified.

        Read by hand: the standard library stops at the first cookie it rejects, and a webmail on the same host may
        have set one.
        """
        wanted = self._site.cookie_name(name)
        for pair in self._environ.get("HTTP_COOKIE", "").split(";"):
            key, _, value = pair.strip().partition("=")
            if key == wanted:
                text: str = value
                return text
        return None

    @property
    def is_foreign(self) -> bool:
        """Whether a page of another site made the browser send this.

        Origin decides (Fetch standard, "origin header"). Old browsers that do not send it are judged by
        Sec-Fetch-Site. A client that sends neither is left to the token or cookie that it presents.
        """
        origin = self._environ.get("HTTP_ORIGIN")
        site = self._environ.get("HTTP_SEC_FETCH_SITE")
        return not (origin == self._site.origin or (origin is None and site in (None, "same-origin", "none")))

    @property
    def is_prefetch(self) -> bool:
        """Whether the browser fetches the page in advance, before anybody opens it."""
        return "prefetch" in self._environ.get("HTTP_SEC_PURPOSE", "")

    @property
    def is_by_a_person(self) -> bool:
        """Whether the browser vouches that a person pressed a button.

        Chromium and Firefox send Sec-Fetch-User only for what a user gesture started (Fetch Metadata, 2.4). Safari may
        leave it out, so for other browsers Sec-Fetch-Site is enough; programs that are not browsers do not send it.
        Over plain http beyond loopback browsers send neither, and everybody counts as a person.
        """
        sent = self._environ
        if not self._site.secure_cookies or sent.get("HTTP_SEC_FETCH_USER") == "?1":
            return True
        marks = "HTTP_SEC_CH_UA" in sent or "Firefox/" in sent.get("HTTP_USER_AGENT", "")
        return "HTTP_SEC_FETCH_SITE" in sent and not marks
