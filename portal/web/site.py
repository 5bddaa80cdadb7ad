"""A public address of the portal. It follows from a setting ``public_url``; a Host header only selects one of them.

See OWASP, Forgot Password Cheat Sheet: if a link in a mail were built from the Host header, the client that requested
the mail could point the link to its own site.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from urllib.parse import unquote, urlsplit

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Site:
    """The portal's public address and the values derived from it."""

    url: str
    root: str  # the path, percent-encoded, without a trailing slash
    mount: str  # the same path as it appears in PATH_INFO (PEP 3333)
    origin: str  # as browsers send it in Origin
    https: bool
    secure_cookies: bool

    @classmethod
    @cache
    def of(cls, public_url: str) -> Site:
        """Return the site at this URL, which `Settings` has validated."""
        url = urlsplit(public_url)
        root, https = url.path.rstrip("/"), url.scheme == "https"
        return cls(
            url=public_url,
            root=root,
            mount=unquote(root).encode().decode("latin-1"),
            origin=_origin(public_url),
            https=https,
            # Chromium and Firefox accept __Host- cookies over https and, as a test showed, over http to loopback.
            secure_cookies=https or url.hostname in LOOPBACK_HOSTS,
        )

    def cookie_name(self, name: str) -> str:
        """Return the full name of one of the portal's cookies."""
        # Browsers reject a cookie with this prefix from other hosts and over plain http (RFC 6265bis, 4.1.3.2).
        return f"{'__Host-' if self.secure_cookies else ''}quarantine-{name}"


def _origin(url: str) -> str:
    """Return the origin of a URL as browsers write it (RFC 6454, 6.2): in lower case, without the default port."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    name = f"[{host}]" if ":" in host else host  # `Settings` accepts ASCII only
    port = "" if parts.port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{parts.port}"
    return f"{parts.scheme}://{name}{port}"
