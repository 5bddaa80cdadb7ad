"""Tests for readers who want no motion, or colours of their own (forced colours). Chromium can pretend both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from portal.assemble import Parts
from portal.model.message import Symbol, Tier
from tests.builders import ALICE
from tests.system.local_site import LocalSite, local_site, sign_in
from tests.system.samples import hold_samples

pytestmark = pytest.mark.system

# What moves from now on, by transitions, by style sheets and by scripts.
_MOTION = """
    window.motion = [];
    for (const kind of ["transitionrun", "animationstart"])
        addEventListener(kind, event => motion.push(`${kind} of ${event.target.outerHTML.slice(0, 80)}`), true);
    const animate = Element.prototype.animate;
    Element.prototype.animate = function (frames, timing) {
        motion.push(`animation of ${this.outerHTML.slice(0, 80)}`);
        return animate.call(this, frames, timing);
    };"""
# The colours of an element's edges and of what is around it.
_COLOURS = """one => {
    const style = getComputedStyle(one), around = getComputedStyle(document.body).backgroundColor;
    const edge = side => style[`border${side}Style`] !== "none" && parseFloat(style[`border${side}Width`]) >= 1
        ? style[`border${side}Color`] : around;
    const outline = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 ? style.outlineColor : around;
    return {around, outline, ground: style.backgroundColor,
        edges: ["Top", "Right", "Bottom", "Left"].map(edge)} }"""


@pytest.fixture
def store_url(files_url: str) -> str:
    """A single store: browsers see the same on all stores."""
    return files_url


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Iterator[LocalSite]:
    with local_site(make_parts) as made:
        hold_samples(made)
        yield made


@contextmanager
def list_of(site: LocalSite, browser: Browser, **wishes: Any) -> Iterator[Page]:
    """Alice's list in a browser whose reader has these wishes."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, **wishes)
    context.add_init_script(_MOTION)
    sign_in(site, context)
    page = context.new_page()
    page.goto(site.parts.settings.public_url)
    yield page
    context.close()


@pytest.mark.parametrize(("wish", "moves"), [("reduce", False), ("no-preference", True)])
def test_nothing_moves_for_readers_who_want_no_motion(
    site: LocalSite, browser: Browser, wish: Any, moves: bool
) -> None:
    with list_of(site, browser, reduced_motion=wish) as page:
        rows = page.locator(".rows > li")
        number = rows.count()
        rows.nth(1).hover()
        page.locator(".do > *").first.hover()
        page.locator("header nav a").first.hover()
        page.keyboard.press("j")
        page.keyboard.press("x")
        page.keyboard.press("d")
        page.locator(".toast").wait_for()
        expect(rows).not_to_have_count(number)
        found = page.evaluate("motion")
    assert bool(found) is moves, found


def test_what_is_current_focused_pressed_and_ticked_is_seen_in_forced_colours(
    site: LocalSite, browser: Browser
) -> None:
    with list_of(site, browser, forced_colors="active") as page:
        assert page.evaluate("matchMedia('(forced-colors: active)').matches")
        tabs = page.locator(".views a")
        current, other = (
            colours(page.locator(f".views a{which}").first) for which in ("[aria-current]", ":not([aria-current])")
        )
        assert tabs.count() > 2 and current["edges"] != other["edges"], "the current tab looks like the others"
        buttons = [each for each in page.locator("main button:not(.plain), main a.button").all() if is_shown(each)]
        assert len(buttons) > 5
        for button in buttons:
            found = colours(button)
            assert found["around"] not in found["edges"], f"no edge: {button.inner_text()}"
        for what in (tabs.first, page.locator("main .do > *").first, page.locator("input[type=search]")):
            page.keyboard.press("Tab")  # so that the browser shows the focus
            what.focus()
            found = colours(what)
            assert found["outline"] != found["around"], (
                f"the focus is not seen: {what.evaluate('one => one.outerHTML')}"
            )
        tick = page.locator(".tick input").first
        empty = tick.screenshot()
        tick.check()
        tick.blur()
        assert tick.screenshot() != empty
        ticked, row = (colours(page.locator(".rows > li").nth(number)) for number in (0, 1))
        assert ticked["outline"] != row["outline"], "the row of a tick looks like the others"


def test_nothing_moves_on_the_page_of_a_message_for_readers_who_want_no_motion(
    site: LocalSite, browser: Browser
) -> None:
    found = {}
    for wish in ("reduce", "no-preference"):
        with list_of(site, browser, reduced_motion=wish) as page:
            page.locator(".mail").first.click()
            page.locator(".text").wait_for()
            for what in ("header nav a", ".first button", ".back a", "main details > summary"):
                page.locator(what).first.hover()
            page.locator("main details > summary").first.click()
            found[wish] = page.evaluate("motion")
    assert found["reduce"] == [] and found["no-preference"] != []


def test_a_message_is_clear_in_forced_colours(site: LocalSite, browser: Browser) -> None:
    spoofed = (Symbol("SPOOF_DISPLAY_NAME", 8.0),)
    held = site.hold(Tier.SUSPICIOUS, recipients=[ALICE], symbols=spoofed, subject="Scanned document")
    with list_of(site, browser, forced_colors="active") as page:
        page.goto(f"{site.parts.settings.public_url}/messages/{held.id}/")
        current, other = (
            colours(page.locator(f"main .views a{which}").first) for which in ("[aria-current]", ":not([aria-current])")
        )
        assert current["edges"] != other["edges"], "the current view looks like the others"
        boxes = [each for each in page.locator("main button, main a.button, main .warning").all() if is_shown(each)]
        assert len(boxes) > 3
        for box in boxes:
            found = colours(box)
            assert found["around"] not in found["edges"], f"no edge: {box.inner_text()}"
        for what in (
            page.locator("main .views a").first,
            page.locator(".first button").first,
            page.locator(".back a").first,
        ):
            page.keyboard.press("Tab")  # so that the browser shows the focus
            what.focus()
            found = colours(what)
            assert found["outline"] != found["around"], what.inner_text()


def colours(what: Locator) -> dict[str, Any]:
    found: dict[str, Any] = what.evaluate(_COLOURS)
    return found


def is_shown(what: Locator) -> bool:
    box = what.bounding_box()
    return what.is_visible() and box is not None and box["width"] > 2
