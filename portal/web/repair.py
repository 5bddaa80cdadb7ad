"""Addresses of pages that a mail program or a person changed: more characters at the end, doubled slashes, line breaks.

Mail programs take the punctuation, bracket or quotation mark after an address as a part of it, and people copy it
along. A redirect to the page's own address is enough: counters and limits then see one spelling of each link.
"""

from __future__ import annotations

import re

from portal.model.links import TOKEN_PATTERN

_SLASHES = re.compile(r"/+")
_LINE_END = re.compile(r"=?\s+")  # "=": a soft line break of quoted-printable (RFC 2045, 6.7)
_SECRET = re.compile(
    rf"/(?:link/[^A-Za-z0-9_-]*({TOKEN_PATTERN})|sign-in/[^A-Za-z0-9_-]*([A-Za-z0-9_-]{{32}}))(?![A-Za-z0-9])", re.ASCII
)
_MESSAGE = re.compile(r"/messages/([0-9a-f-]{36}(?:\.[0-9]{1,5})?)[^A-Za-z0-9]*", re.ASCII)
_TAIL = re.compile(r"[^A-Za-z0-9]+\Z")
_PAGES = ("/", "/sign-in", "/sign-in/code", "/preferences", "/rules")


def repaired(path: str, mount: str) -> str | None:
    """Return the address, below the mount point, of the page that was meant. None: the address is right or unknown.

    ``path``: PATH_INFO, with the mount point.
    """
    single = _SLASHES.sub("/", path)
    if mount and not single.startswith(mount + "/"):
        return "/" if single == mount != path else None
    below = single[len(mount) :]
    meant = _page(below)
    return meant if meant is not None and (meant != below or single != path) else None


def _page(below: str) -> str | None:
    if secret := _SECRET.match(below) or _SECRET.match(_LINE_END.sub("", below)):
        return f"/link/{secret[1]}/" if secret[1] else f"/sign-in/{secret[2]}/"
    if message := _MESSAGE.fullmatch(below):
        return f"/messages/{message[1]}/"
    page = _TAIL.sub("", below) or "/"
    return page if page in _PAGES and "/.." not in below else None
