"""The documentation as a site in Chromium, opened from a folder: it searches, and asks no host for anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route

from tests.project.test_site import build_site

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def docs_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_site(tmp_path_factory.mktemp("docs"))


def test_the_search_works_from_a_folder_without_a_network(docs_site: Path, browser: Browser) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    asked = []

    def refuse(route: Route) -> None:
        asked.append(route.request.url)
        route.abort()

    context.route(lambda address: not address.startswith(("file:", "data:", "blob:")), refuse)
    page = context.new_page()
    page.goto((docs_site / "index.html").as_uri())
    page.keyboard.press("Control+k")
    page.keyboard.type("check_all_filters")
    page.locator("dialog a[href*='install.html']").first.click()
    page.wait_for_url("**/install.html**")
    for name in ("settings", "pictures", "decisions/links"):
        page.goto((docs_site / f"{name}.html").as_uri())
        broken = "[...document.images].filter(one => one.complete && !one.naturalWidth).map(one => one.src)"
        assert page.evaluate(broken) == []
    context.close()
    assert asked == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_on_a_phone_and_follow_the_reader_s_colours(docs_site: Path, browser: Browser, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 320, "height": 640}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    for name in ("index", "install", "settings", "operate"):
        page.goto((docs_site / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 320, name
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(int(value) for value in ground.strip("rgb()").split(", ")[:3]) < 200) == (scheme == "dark"), ground
    context.close()
