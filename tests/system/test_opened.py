"""Subjects of opened messages are paler in the list, in a browser that keeps a history."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from portal.assemble import Parts
from tests.system.local_site import local_site, sign_in

pytestmark = pytest.mark.system


@pytest.fixture
def store_url(files_url: str) -> str:
    """A single store: browsers see the same on all stores."""
    return files_url


def test_the_subject_of_an_opened_message_is_paler(
    make_parts: Callable[..., Parts], browser: Browser, tmp_path: Path
) -> None:
    with local_site(make_parts) as site:
        for number in range(2):
            site.hold(subject="Offer", header_from=f"<a@n{number}.example>", score=10 + number * 9)
        url = f"{site.parts.settings.public_url}/"
        # Other contexts have no history, and scripts cannot see which links were visited.
        context = browser.browser_type.launch_persistent_context(
            str(tmp_path / "profile"), executable_path=shutil.which("chromium"), args=["--no-sandbox", "--headless=new"]
        )
        sign_in(site, context)
        page = context.new_page()
        page.goto(url)
        before = pictures(page)
        page.locator(".mail").first.click()
        page.wait_for_url("**/messages/**")
        page.goto(url)
        after = pictures(page)
        context.close()
    assert before[0] == before[1] == after[1] != after[0]


def pictures(page: Page) -> list[bytes]:
    """Return pictures of the subjects, without what depends on where the pointer is."""
    page.mouse.move(1, 1)
    return [each.screenshot(animations="disabled") for each in page.locator(".mail bdi").all()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_its_colour_can_be_read_on_all_backgrounds_of_rows(
    make_parts: Callable[..., Parts], browser: Browser, scheme: str
) -> None:
    with local_site(make_parts) as site:
        context = browser.new_context(color_scheme="dark" if scheme == "dark" else "light")
        sign_in(site, context)
        page = context.new_page()
        page.goto(f"{site.parts.settings.public_url}/")
        colours = page.evaluate(
            """() => ["--soft", "--card", "--ground", "--note"].map(name =>
                getComputedStyle(document.documentElement).getPropertyValue(name).trim())"""
        )
        context.close()
    text, *grounds = (luminance(each) for each in colours)
    for ground in grounds:
        assert (max(text, ground) + 0.05) / (min(text, ground) + 0.05) >= 4.5, colours


def luminance(colour: str) -> float:
    """Return the relative luminance of ``#rgb`` or ``#rrggbb`` (WCAG 2.2)."""
    digits = colour[1:] if len(colour) == 7 else "".join(each * 2 for each in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
