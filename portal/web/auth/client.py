"""A short name of a browser and its system, by which people recognise their sessions, and the key of its rate limits.

No library for User-Agent headers is used (docs/decisions/libraries.md): a name decides nothing, and a wrong one costs
nothing.
"""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network, ip_address

# The first mark that the header contains counts: the others imitate the browsers below them.
_BROWSERS = (
    ("Edg", "Edge"),
    ("OPR/", "Opera"),
    ("SamsungBrowser/", "Samsung Internet"),
    ("FxiOS/", "Firefox"),
    ("Firefox/", "Firefox"),
    ("CriOS/", "Chrome"),
    ("Chrome/", "Chrome"),
    ("Safari/", "Safari"),
)
_SYSTEMS = (
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Android", "Android"),
    ("CrOS", "ChromeOS"),
    ("Windows", "Windows"),
    ("Macintosh", "macOS"),
    ("Linux", "Linux"),
)


def client_name(user_agent: str) -> str:
    """Return the name of a browser and its system, such as "Firefox · Windows". ``""``: neither is known."""
    found = (next((name for mark, name in each if mark in user_agent), "") for each in (_BROWSERS, _SYSTEMS))
    return " · ".join(filter(None, found))


def client_key(peer: str) -> str:
    """Return the key by which rate limits identify a client: the IPv4 address, or the /64 network of an IPv6 address.

    A host chooses the lower 64 bits of its IPv6 addresses itself (RFC 4862), so a limit per address would be useless.
    """
    try:
        address = ip_address(peer)
    except ValueError:
        return peer
    if not isinstance(address, IPv6Address):
        return peer
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(IPv6Network((int(address), 64), strict=False))
