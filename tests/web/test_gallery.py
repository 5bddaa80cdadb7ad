"""Every page has a picture in docs/pictures.md, or a reason why not."""

from __future__ import annotations

import re

from tests.paths import ROOT
from tests.system.gallery import SECTIONS, STATES, WITHOUT
from tests.web.test_portal import OWN


def test_every_page_has_a_picture_or_a_reason_why_not() -> None:
    pages = {rule for method, rule in OWN if method == "GET" and not re.match("/api/v1/.", rule)}
    shown = {state.page for state in STATES}
    assert WITHOUT.keys() & shown == set()
    assert WITHOUT.keys() | (shown & pages) == pages, "add the new page to the states in tests/system"
    forms = {rule for method, rule in OWN if method == "POST"}
    assert shown - pages - forms == {""}, "mails have no page"


def test_the_documentation_shows_all_of_them() -> None:
    assert len({state.name for state in STATES}) == len(STATES)
    text = (ROOT / "docs/pictures.md").read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == list(SECTIONS)
    assert re.findall(r"\(images/page-([\w-]+)\.png\)", text) == [state.name for state in STATES]
    pictures = {path.stem.removeprefix("page-") for path in (ROOT / "docs/images").glob("page-*.png")}
    assert pictures == {state.name for state in STATES}
