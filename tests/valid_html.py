"""HTML as the standard's parser reads it: no parse error, and no reference to an id that the page does not have.

Source: HTML Living Standard, 13.2 (parse errors) and 3.2.6 (ids); WAI-ARIA 1.2, 6.3 (references).
"""

from __future__ import annotations

import re
from collections import Counter

import html5lib

_ONE_ID = ("for", "form", "aria-activedescendant")
_IDS = ("aria-labelledby", "aria-describedby", "aria-controls", "headers")
_OWN = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|[A-Za-z0-9_-]{40,}|\d+")  # ids, tokens, numbers


_valid: set[str] = set()


def assert_valid(html: str) -> None:
    """Fail unless a page is valid. Of pages that differ in ids, tokens and numbers only, one is parsed."""
    shape = _OWN.sub("0", html)
    if shape not in _valid:
        found = problems(html)
        assert not found, "\n".join([*found, html])
        _valid.add(shape)


def problems(html: str) -> list[str]:
    """Return what is wrong with a page."""
    parser = html5lib.HTMLParser(namespaceHTMLElements=False)
    document = parser.parse(html)
    found = [f"line {line}: {code} {values}" for (line, _), code, values in parser.errors]
    elements = list(document.iter())
    ids = Counter(element.get("id") for element in elements if element.get("id") is not None)
    found += [f"id {id!r} {count} times" for id, count in ids.items() if count > 1]
    for element in elements:
        for name in (*_ONE_ID, *_IDS):
            value = element.get(name, "")
            found += [f"{element.tag} {name}: no id {id!r}" for id in value.split() if id not in ids]
        href = element.get("href", "")
        if href.startswith("#") and href[1:] and href[1:] not in ids:
            found.append(f"{element.tag} href: no id {href!r}")
    return found
