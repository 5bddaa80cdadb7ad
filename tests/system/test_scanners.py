"""Scanners that are browsers: Chromium opens, fetches, submits and presses the links of a digest.

`tests/faults/test_scanners.py` has those that are no browsers, with every link of a real digest."""

from __future__ import annotations

import html
import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser

from portal.model.links import Action
from portal.model.message import State, Tier
from tests.system import test_browser
from tests.system.test_browser import open_once, url
from tests.web_client import Site

pytestmark = pytest.mark.system
store_url, chromium = test_browser.store_url, test_browser.chromium  # fixtures
AGES = (0, 1, 9)  # minutes
WITH_FORM = [
    *((tier, action) for tier in (Tier.SPAM, Tier.SUSPICIOUS) for action in (Action.RELEASE, Action.DELETE)),
    *((Tier.DANGEROUS, action) for action in (Action.REQUEST, Action.DELETE)),
]
LINKS = [*WITH_FORM, *((tier, Action.SHOW) for tier in Tier), (Tier.DANGEROUS, Action.RELEASE)]


class Inbox:
    """A page of web mail in front of the site, on the site's own origin, where scripts may do most."""

    def __init__(self, site: Site) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()  # by method and Sec-Purpose, of links
        self.page = ""
        self.url = "http://" + urlsplit(site.parts.settings.public_url).netloc + "/inbox"
        self._app = site.app
        site.app = self  # type: ignore[assignment]

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        if environ["PATH_INFO"] == "/inbox":
            start("200 OK", [("Content-Type", "text/html; charset=utf-8")])
            return [f"<!doctype html><html><title>Inbox</title>{self.page}</html>".encode()]
        if "/link/" in environ["PATH_INFO"]:
            self.requests[environ["REQUEST_METHOD"], environ.get("HTTP_SEC_PURPOSE", "")] += 1
        return self._app(environ, start)


@pytest.fixture
def inbox(site: Site) -> Inbox:
    return Inbox(site)


def rules(links: list[str], what: str) -> str:
    """Return speculation rules: links that browsers prefetch and prerender."""
    text = json.dumps({what: [{"source": "list", "urls": links, "eagerness": "immediate"}]})
    return f'<script type="speculationrules">{text}</script>'


def frames(links: list[str], _: str) -> str:
    return "".join(f'<iframe src="{html.escape(link)}"></iframe>' for link in links)


def fetches(links: list[str], _: str) -> str:
    return f"<script>{json.dumps([*links, *links])}.forEach(link => fetch(link))</script>"


def linked(links: list[str], what: str) -> str:
    return "".join(f'<link rel="{what}" href="{html.escape(link)}">' for link in links)


@pytest.mark.parametrize("minutes", AGES)
def test_a_browser_that_is_not_steered_changes_nothing_by_looking(
    site: Site, chromium: str, tmp_path: Path, minutes: int
) -> None:
    """Scripts run, eight seconds of the page's time pass, and no button is pressed."""
    held = site.hold()  # for other tiers no page submits itself at any age: see test_browser
    for action in (Action.RELEASE, Action.DELETE):
        assert "<html" in open_once(chromium, tmp_path / action.name, url(site, action, held, minutes))
    assert site.state(held) is State.HELD


@pytest.mark.parametrize(
    ("way", "what", "purpose", "least"),
    [  # by speculation rules Chromium requests only a few at a time
        (rules, "prefetch", "prefetch", 1),
        (rules, "prerender", "prefetch;prerender", 1),
        (linked, "prefetch", "prefetch", len(LINKS)),
        (fetches, "", "", len(LINKS)),
        (frames, "", "", len(LINKS)),
    ],
    ids=["prefetched", "prerendered", "prefetched by link elements", "fetched twice", "framed"],
)
def test_a_page_that_fetches_all_links_at_once_changes_nothing(
    site: Site,
    inbox: Inbox,
    chromium: str,
    tmp_path: Path,
    way: Callable[[list[str], str], str],
    what: str,
    purpose: str,
    least: int,
) -> None:
    """The digest may have any age."""
    held = {tier: site.hold(tier) for tier in Tier}
    inbox.page = way([url(site, action, held[tier], 11) for tier, action in LINKS], what)
    open_once(chromium, tmp_path, inbox.url)
    assert inbox.requests["GET", purpose] >= least, inbox.requests
    assert {site.state(one) for one in held.values()} == {State.HELD}


@pytest.mark.parametrize("minutes", AGES)
@pytest.mark.parametrize(
    ("script", "may_change"),
    [("form.submit()", set()), ("form.querySelector('button').click()", {"spam"}), ("", {*map(str, Tier)})],
    ids=["submitted", "clicked by a script", "pressed with a mouse"],
)
def test_a_scanner_in_a_browser_can_do_only_what_is_allowed(
    site: Site, browser: Browser, minutes: int, script: str, may_change: set[str]
) -> None:
    held = {link: site.hold(link[0]) for link in WITH_FORM}
    context = browser.new_context()
    if script:
        # Run it in the page itself: for Chromium, an action by a debugger is an action of a person.
        once = f"if (!location.search) document.querySelectorAll('form').forEach(form => {script})"
        context.add_init_script(f"addEventListener('load', () => {{ {once} }})")
    page = context.new_page()
    for (_, action), one in held.items():
        # Wait for the reply too: Chromium may never close a page that is opening another one.
        loads = itertools.count(1)
        with page.expect_event("load", lambda _, loads=loads: next(loads) == 2):
            page.goto(url(site, action, one, minutes), wait_until="commit" if script else "load")
            if not script:
                page.locator("form button").first.click()
    context.close()
    states = {link: site.state(one) for link, one in held.items()}
    assert {str(tier) for (tier, _), state in states.items() if state is not State.HELD} == may_change
    # An administrator must release dangerous mail, whether a person or a script presses.
    assert states[Tier.DANGEROUS, Action.REQUEST] in (State.HELD, State.REQUESTED)


def test_a_script_cannot_claim_to_be_a_person(site: Site, browser: Browser) -> None:
    held = site.hold(Tier.SUSPICIOUS)
    page = browser.new_page()
    page.goto(url(site, Action.RELEASE, held))
    status = page.evaluate(
        "fetch('./', {method: 'POST', headers: {'Sec-Fetch-User': '?1'}, body: new URLSearchParams({pressed: '1'})})"
        ".then(answer => answer.status)"
    )
    assert (status, site.state(held)) == (403, State.HELD)
    page.get_by_role("button", name="Release to inbox").click()
    page.get_by_role("heading", name="Message released").wait_for()
    assert site.state(held) is State.RELEASED
