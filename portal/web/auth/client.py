"""A short name of a browser and its system, by which people recognise their sessions.

No library for User-Agent headers is used (docs/decisions/libraries.md): a name decides nothing, and a wrong one costs
nothing.
"""

from __future__ import annotations

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
