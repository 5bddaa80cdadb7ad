"""Where the portal is on the web: what follows from the setting ``public_url`` alone, never from a request's Host.

See OWASP, Forgot Password Cheat Sheet: an address built from Host sends a mail's reader to the site of whoever asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Site:
    """The portal's address and its parts."""

    url: str
    root: str  # its path as addresses have it, without a slash at the end
    mount: str  # the same as PATH_INFO has it (PEP 3333)
    origin: str  # as browsers send it
    https: bool
    secure_cookies: bool

    @classmethod
    def of(cls, public_url: str) -> Site:
        """Return the site at this address. `Settings` has checked it."""
        url = urlsplit(public_url)
        root, https = url.path.rstrip("/"), url.scheme == "https"
        return cls(
            url=public_url,
            root=root,
            mount=unquote(root).encode().decode("latin-1"),
            origin=_origin(public_url),
            https=https,
            # Chromium and Firefox keep __Host- cookies on https and, as a test showed, on http to a loopback address.
            secure_cookies=https or url.hostname in LOOPBACK_HOSTS,
        )

    def cookie_name(self, name: str) -> str:
        """Return the full name of a cookie of ours."""
        # Browsers refuse a cookie with this prefix from other hosts and over plain http (RFC 6265bis, 4.1.3.2).
        return f"{'__Host-' if self.secure_cookies else ''}quarantine-{name}"


def _origin(url: str) -> str:
    """Return an address's origin as browsers write it (RFC 6454, 6.2): in lower case, without the default port."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    name = f"[{host}]" if ":" in host else host  # `Settings` takes ASCII only
    port = "" if parts.port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{parts.port}"
    return f"{parts.scheme}://{name}{port}"
