"""axe-core in all states of the gallery, light and dark, on a small phone, and for each page in one state on a wide
screen."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from jinja2 import Environment, Template
from playwright.sync_api import Browser, BrowserContext, Page, expect

from portal.assemble import Parts
from portal.model.links import Action
from tests.builders import ALICE
from tests.imap_server import CERTIFICATE, ImapServer
from tests.paths import ROOT
from tests.system import gallery
from tests.system.accessibility import Axe, low_targets, misfits, unclear
from tests.system.local_site import local_site
from tests.system.stage import stage_in

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]
SMALL, PHONE, WIDE = 320, 390, 1280


@pytest.fixture
def store_url(files_url: str) -> str:
    """A single store: browsers see the same on all stores."""
    return files_url


class Judge:
    """The findings of axe, and what neither fits nor reads well. Of a mail only what is serious or critical."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._axes: dict[tuple[BrowserContext, int], Axe] = {}

    def see(self, name: str, page: Page, *widths: int) -> None:
        page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true })")
        is_page = "/quarantine" in page.url  # web mail has the landmarks, and a digest repeats its buttons
        if not is_page:  # axe believes that a page without a background is white, in the dark, too
            page.evaluate("document.documentElement.style.backgroundColor = 'Canvas'")
        for width in widths or (SMALL, WIDE):
            page.set_viewport_size({"width": width, "height": 640})
            key = page.context, width
            axe = self._axes[key] = self._axes.get(key) or Axe()
            found = unclear(page) + misfits(page) if is_page else []
            found += [
                f"{one['id']} ({one['impact']}): {node['html'][:150]} {node['failureSummary']}"
                for one in axe.violations(page)
                if is_page or one["impact"] in ("serious", "critical")
                for node in one["nodes"]
            ]
            self.found += [f"{name}, {width} pixels wide: {problem}" for problem in found]
        # The console and the documentation of the API are for mice, with lists that are long.
        fingers = (PHONE, WIDE) if WIDE in (widths or (WIDE,)) else (PHONE,)
        for width in fingers if is_page and not re.search("/(admin|api)/", page.url) else ():
            page.set_viewport_size({"width": width, "height": 640})
            page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true })")
            self.found += [f"{name}, {width} pixels wide: {problem}" for problem in low_targets(page)]


def test_axe_finds_nothing_in_any_state(browser: Browser, rendered: set[str]) -> None:
    judge, pages = Judge(), set()
    with stage_in("en", browser) as stage:
        for state in gallery.open_states(stage):
            # The list has a layout of its own on wide screens.
            is_new = state.page in ("", "/") or state.page not in pages
            judge.see(state.name, stage.page, *((SMALL, WIDE) if is_new else (SMALL,)))
            pages.add(state.page)
    assert judge.found == [], "\n".join(judge.found)
    templates = {str(path.relative_to(ROOT / "templates")) for path in (ROOT / "templates/web").rglob("*.html")}
    assert templates - rendered == set()


def test_axe_finds_nothing_in_the_form_with_all_methods(make_parts: Callable[..., Parts], browser: Browser) -> None:
    server, judge = ImapServer(), Judge()
    settings = {"imap__host": "127.0.0.1", "imap__port": server.port, "imap__ca_file": CERTIFICATE}
    company = {"issuer": "http://127.0.0.1:9", "client_id": "quarantine", "title": "Example Company"}  # it is down
    providers = {"oidc": {"company": company}, "proxy__secret": "p" * 32}
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    with local_site(make_parts, **settings, **providers) as site:
        base = site.parts.settings.public_url
        for path in ("sign-in/oidc/company", "sign-in?left=company", "sign-in?ended=fresh", "sign-in"):
            page.goto(f"{base}/{path}")
            judge.see(page.title(), page)
        assert page.get_by_role("link", name="Sign in with").count() == 2
        page.goto(site.link(Action.SHOW, site.hold(recipients=[ALICE])))
        judge.see(page.title(), page)
        page.get_by_role("link", name="Sign in with your password").click()
        assert page.get_by_label("Email address").input_value() == ALICE
        expect(page.get_by_label("Password")).to_be_focused()
        page.get_by_label("Email address").fill(ALICE)
        page.get_by_label("Password").fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_text("The email address or the password is wrong.").wait_for()
        judge.see(page.title(), page)
    context.close()
    server.close()
    assert not judge.found


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the templates that were rendered, as pages or as parts of a page."""
    names: set[str] = set()
    get = Environment.get_template

    def noting(environment: Environment, name: Any, *more: Any) -> Template:
        names.add(str(name))
        return get(environment, name, *more)

    monkeypatch.setattr(Environment, "get_template", noting)
    return names
