"""Sixty messages in Chromium and Firefox: four are released, the others deleted. By mouse, by keys, without scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain

import pytest
from playwright.sync_api import Browser, Locator, Page, ViewportSize

from digest.housekeeping import run_batches
from portal.model.message import State, Symbol
from portal.stores.records import Held
from tests.system.browsers import Window, button, link, until, wait_for
from tests.system.local_site import LocalSite, sign_in

pytestmark = pytest.mark.system
PROVEN = (Symbol("DMARC_POLICY_ALLOW", -0.5), Symbol("R_DKIM_ALLOW", -0.2))
Presses = Iterator[Callable[[], None]]


@pytest.fixture
def store_url(files_url: str) -> str:
    """A single store: browsers do the same on all stores."""
    return files_url


def checkbox(number: int) -> str:
    return f"(//input[@name='mail'])[{number}]/ancestor::label"


def states(site: LocalSite, helds: list[Held]) -> list[State]:
    return [site.state(held) for held in helds]


def all_likely(window: Window) -> Presses:
    """Yield the press by which a new reader chooses the order and the size."""
    yield partial(window.press, link("Likely mistakes first, all 60"))


def by_mouse(window: Window) -> Presses:
    """Yield the presses that select the first four messages, release them, select all others and delete them."""
    yield partial(window.press, checkbox(1))
    yield partial(window.press, checkbox(4), shift=True)
    yield partial(window.press, button("Release selected"))
    wait_for(window, "Released: 4")
    yield partial(window.press, button("Select all on this page"))
    yield partial(window.press, button("Delete selected"))


def likely_by_key(window: Window) -> Presses:
    yield partial(window.keys, "l")
    until(window, lambda: "order=likely" in window.address(), "the order is not changed")
    until(window, lambda: window.run("return document.readyState") == "complete", "the list is not loaded")


def by_keys(window: Window) -> Presses:
    for key in ("x", "Shift+J", "Shift+J", "Shift+J", "r"):
        yield partial(window.keys, key)
    wait_for(window, "Released: 4")
    for key in ("a", "d"):
        yield partial(window.keys, key)


def by_forms(window: Window) -> Presses:
    for number in range(1, 5):
        yield partial(window.press, checkbox(number))
    yield partial(window.press, button("Release selected"))
    wait_for(window, "Released: 4")
    yield partial(window.press, "//summary[normalize-space()='More']")
    yield partial(window.press, button("Delete all on this page"))


def hold_sixty(site: LocalSite) -> tuple[list[Held], list[Held]]:
    """Hold four messages that are wanted, and 56 others before and after them."""

    def spam(first: int) -> list[Held]:
        numbers = range(first, first + 28)
        return [site.hold(subject=f"Offer {n * 7919} of shop {n}", header_from=f"<s{n}@n{n}.example>") for n in numbers]

    unwanted = spam(1)
    wanted = [
        site.hold(subject=subject, header_from=f"<a@partner{n}.example>", symbols=PROVEN, score=15.5)
        for n, subject in enumerate(("Re: Minutes", "Order 4711", "Lunch?", "Your VAT notice"))
    ]
    return wanted, [*unwanted, *spam(29)]


@pytest.mark.parametrize(
    ("first", "way", "scripts"),
    [
        (all_likely, by_mouse, True),
        (likely_by_key, by_keys, True),
        (None, by_keys, True),
        (all_likely, by_forms, False),
    ],
)
def test_sixty_messages_are_triaged_in_eight_presses(
    site: LocalSite, window: Window, first: Callable[[Window], Presses] | None, way: Callable[[Window], Presses]
) -> None:
    """Find the four wanted messages, release them, and delete the others.

    ``first``: how a new reader chooses the order. None: the browser remembers it.
    """
    wanted, unwanted = hold_sixty(site)
    window.sign_in(site)
    if first is None:
        window.open(f"{site.parts.settings.public_url}/?order=likely&size=100")
    requests = site.requests()
    window.open(f"{site.parts.settings.public_url}/")
    presses = 0
    for press in chain(first(window) if first else (), way(window)):
        press()
        presses += 1
    # More than 50 are deleted in the background. The page that says how far this is loads itself again.
    until(window, lambda: "/jobs/" in window.address(), "no page of the job")
    loads = [path for kind, path in requests if kind == "document"]
    assert presses <= 8 and len(loads) <= 4, (presses, loads)
    run_batches(site.parts, site.now)
    wait_for(window, "Deleted: 56")
    assert states(site, wanted) == [State.RELEASED] * 4
    assert states(site, unwanted) == [State.DELETED] * 56


def with_thumb(page: Page, what: Locator) -> None:
    box = what.bounding_box()
    assert box is not None and box["width"] >= 44 and box["height"] >= 44, box
    what.tap()


def with_keys(page: Page, what: Locator) -> None:
    """Tab to an element, and press it: a box by Space, a button by Enter."""
    box = what.locator("input")
    wanted = box if box.count() else what
    for _ in range(400):
        page.keyboard.press("Tab")
        if wanted.evaluate("one => one === document.activeElement"):
            break
    else:
        raise AssertionError(f"Tab does not reach {what}")
    page.keyboard.press("Space" if box.count() else "Enter")


@pytest.mark.parametrize(("press", "phone"), [(with_thumb, True), (with_keys, False)])
def test_sixty_messages_are_triaged_without_scripts_by_thumb_and_by_tab(
    site: LocalSite, browser: Browser, press: Callable[[Page, Locator], None], phone: bool
) -> None:
    wanted, unwanted = hold_sixty(site)
    size: ViewportSize = {"width": 390, "height": 844} if phone else {"width": 1280, "height": 800}
    context = browser.new_context(viewport=size, has_touch=phone, java_script_enabled=False)
    sign_in(site, context)
    page = context.new_page()
    requests = site.requests()
    page.goto(f"{site.parts.settings.public_url}/")
    presses = [page.get_by_role("link", name="Likely mistakes first, all 60")]
    presses += (page.locator(".tick").nth(number) for number in range(4))
    presses.append(page.get_by_role("button", name="Release selected"))
    presses.append(page.locator(".bar summary"))
    presses.append(page.get_by_role("button", name="Delete all on this page"))
    for what in presses:
        press(page, what)
        page.wait_for_load_state()
        if what is presses[0]:
            page.wait_for_url("**order=likely**")
    page.wait_for_url("**/jobs/**")
    loads = [path for kind, path in requests if kind == "document"]
    assert len(presses) <= 8 and len(loads) <= 4, loads
    run_batches(site.parts, site.now)
    assert states(site, wanted) == [State.RELEASED] * 4
    assert states(site, unwanted) == [State.DELETED] * 56
    context.close()


@pytest.mark.parametrize("scripts", [True, False], ids=["", "without JavaScript"])
def test_one_message_is_deleted_restored_and_released(site: LocalSite, window: Window) -> None:
    held = site.hold(subject="Your order 4711")
    other = site.hold(subject="Lunch?", header_from="<b@partner.example>")
    window.sign_in(site)
    window.open(f"{site.parts.settings.public_url}/")
    window.press(checkbox(2))
    window.press(button("Delete selected"))
    wait_for(window, "Deleted")
    until(window, lambda: states(site, [held, other]) == [State.DELETED, State.HELD], "not deleted")
    window.press("//button[starts-with(normalize-space(), 'Undo')]")
    until(window, lambda: states(site, [held, other]) == [State.HELD] * 2, "not restored")
    window.open(f"{site.parts.settings.public_url}/messages/{held.id}/")
    window.press("//button[starts-with(normalize-space(), 'Release')]")
    wait_for(window, "Released on")
    assert states(site, [held, other]) == [State.RELEASED, State.HELD]
