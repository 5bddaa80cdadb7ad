"""The HTTP request that the dispatcher passes to the handlers of pages."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlencode
from zoneinfo import ZoneInfo

from bottle import BaseRequest, FormsDict, HTTPError

from portal.mail.languages import Language
from portal.policy.domains import DomainPolicy
from portal.web.site import Site

Environ = dict[str, Any]


_LARGE_FORMS = ("/admin/recipients/list",)  # their paths; all others are limited to 100 KiB


class _LargeForm(BaseRequest):  # type: ignore[misc]  # bottle has no types
    """A request whose form may have 1 MiB, also in memory."""

    MEMFILE_MAX = 1 << 20


class Request:
    """The request data that handlers may use.

    ``policy`` is what holds for the recipient of the response: that of the site at first, then that of the recipient's
    domain, together with ``language``.
    ``language`` is the language of the response: at first the one that the browser asks for, then the recipient's own
    as soon as the recipient is known (`Pages.use_recipient`), so that error pages are in that language as well.
    ``zone`` is the recipient's time zone, None until then.
    ``shows_console``: whether pages link to the console, since the recipient has a role. It permits nothing.
    ``stale_cookies``: the names of the portal's cookies that the response is to remove, whatever it is.
    """

    def __init__(self, environ: Environ, site: Site, policy: DomainPolicy, language: Language) -> None:
        self.policy = policy
        self.language = language
        self.zone: ZoneInfo | None = None
        self.shows_console = False
        self.stale_cookies: list[str] = []
        self.method: str = environ["REQUEST_METHOD"].upper()  # Bottle finds the routes of POST for "post", too
        self.path: str = environ.get("PATH_INFO", "")  # below the mount point
        self.peer: str = environ.get("REMOTE_ADDR", "")  # the client's IP address, "" if unknown
        self.query_string: str = environ.get("QUERY_STRING", "")
        self._environ = environ
        self.site = site
        bottle_request = environ.get("bottle.request")
        self._parsed = (_LargeForm if self.path in _LARGE_FORMS else BaseRequest)(environ)
        # BaseRequest stores itself in environ. That cycle would keep each request in memory until garbage collection.
        environ["bottle.request"] = bottle_request

    def query(self, name: str) -> str:
        """Return a query parameter, ``""`` if it is missing."""
        value: str = self._parsed.query.getunicode(name) or ""
        return value

    def query_without(self, *names: str) -> str:
        """Return the query string with ``?`` and without these parameters, "" if none is left."""
        left = urlencode([each for each in parse_qsl(self.query_string) if each[0] not in names])
        return f"?{left}" if left else ""

    def form(self, name: str) -> str:
        """Return a field of the posted form, ``""`` if it is missing. Raises HTTPError 400 for a malformed form."""
        value: str = self._forms().getunicode(name) or ""
        return value

    def all_of_form(self, name: str) -> list[str]:
        """Return all fields of the posted form with this name. Raises HTTPError 400 for a malformed form."""
        values: list[str] = self._forms().getall(name)
        return values

    def fields(self) -> list[tuple[str, str]]:
        """Return all fields of the posted form, also those with the same name. Raises HTTPError 400."""
        forms = self._forms()
        pairs = [(name, value) for name in forms for value in forms.getall(name)]
        return [(_from_utf8(name), _from_utf8(value)) for name, value in pairs]

    def file(self, name: str) -> bytes:
        """Return the content of a file of the posted form, empty if there is none. Raises HTTPError 400."""
        self._forms()
        upload = self._parsed.files.get(name)
        return b"" if upload is None else upload.file.read()

    def _forms(self) -> FormsDict:
        try:
            return self._parsed.forms
        except (ValueError, LookupError) as error:
            # Bottle raises on a malformed Content-Type and on an unknown charset: errors of the client.
            raise HTTPError(400) from error

    def content(self, max_bytes: int) -> bytes:
        """Return the body. Raises HTTPError 413 if it is larger than ``max_bytes``, 400 if it is incomplete."""
        text: str = self._environ.get("CONTENT_LENGTH") or "0"
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise HTTPError(400)
        if int(text) > max_bytes:
            raise HTTPError(413)
        content, left = b"", int(text)
        while left:
            try:
                chunk: bytes = self._environ["wsgi.input"].read(left)
            except OSError as error:  # uWSGI: the client disconnected or was too slow
                raise HTTPError(400) from error
            if not chunk:
                raise HTTPError(400)
            content, left = content + chunk, left - len(chunk)
        return content

    @property
    def content_type(self) -> str:
        """The media type of the body, without its parameters and in lower case; "" if it is missing."""
        text: str = self._environ.get("CONTENT_TYPE", "")
        return text.partition(";")[0].strip().lower()

    def cookie(self, name: str) -> str | None:
        """Return the value of one of the portal's cookies, unverified.

        http.cookies is not used: it stops at the first cookie that it rejects, and a webmail on the same host may have
        set one.
        """
        cookie_name = self.site.cookie_name(name)
        for pair in self._environ.get("HTTP_COOKIE", "").split(";"):
            key, _, value = pair.strip().partition("=")
            if key == cookie_name:
                text: str = value
                return text
        return None

    def header(self, name: str) -> str:
        """Return a header of the request, "" if it is missing."""
        text: str = self._environ.get(f"HTTP_{name.upper().replace('-', '_')}", "")
        return text

    def has_header(self, name: str) -> bool:
        """Return whether the request has a header, which may be empty."""
        return f"HTTP_{name.upper().replace('-', '_')}" in self._environ

    @property
    def user_agent(self) -> str:
        """The User-Agent header, "" if there is none."""
        text: str = self._environ.get("HTTP_USER_AGENT", "")
        return text

    @property
    def only_reads(self) -> bool:
        """True if the method is one that changes nothing, so that no form sent it."""
        return self.method in ("GET", "HEAD")

    @property
    def is_cross_site(self) -> bool:
        """True if a page of another site made the browser send this request.

        Origin decides (Fetch standard, "origin header"). If an old browser does not send it, Sec-Fetch-Site decides.
        A client that sends neither passes this check and needs a valid token or cookie.
        """
        origin = self._environ.get("HTTP_ORIGIN")
        site = self._environ.get("HTTP_SEC_FETCH_SITE")
        return not (origin == self.site.origin or (origin is None and site in (None, "same-origin", "none")))

    @property
    def is_prefetch(self) -> bool:
        """True if the browser prefetches the page, before anybody opens it."""
        return "prefetch" in self._environ.get("HTTP_SEC_PURPOSE", "")

    @property
    def is_for_frame(self) -> bool:
        """True if the browser states that the response is for a frame.

        Over plain http beyond loopback, browsers do not say what a request is for.
        """
        wanted = self._environ.get("HTTP_SEC_FETCH_DEST")
        return wanted == "iframe" or (wanted is None and not self.site.secure_cookies)

    @property
    def has_user_gesture(self) -> bool:
        """True if the browser states that a person pressed a button.

        Chromium and Firefox send Sec-Fetch-User only for requests started by a user gesture (Fetch Metadata, 2.4).
        Safari may omit it, so Sec-Fetch-Site is enough for other browsers; programs that are not browsers do not send
        it. Over plain http beyond loopback, browsers send neither header and every client counts as a person.
        """
        environ = self._environ
        if not self.site.secure_cookies or environ.get("HTTP_SEC_FETCH_USER") == "?1":
            return True
        sends_user_gesture = "HTTP_SEC_CH_UA" in environ or "Firefox/" in environ.get("HTTP_USER_AGENT", "")
        return "HTTP_SEC_FETCH_SITE" in environ and not sends_user_gesture


def _from_utf8(text: str) -> str:
    """Return a text whose octets Bottle has decoded as Latin-1."""
    return text.encode("latin-1").decode("utf-8", "replace")
