"""Sixty messages in Chromium and Firefox: four are released, the others deleted. By mouse, by keys, without scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest

from digest.housekeeping import run_batches
from portal.assemble import Parts
from portal.model.message import State, Symbol
from portal.stores.records import Held
from tests.system.browsers import Window, button, link, until, wait_for
from tests.system.local_site import LocalSite, local_site

pytestmark = pytest.mark.system
PROVEN = (Symbol("DMARC_POLICY_ALLOW", -0.5), Symbol("R_DKIM_ALLOW", -0.2))
Presses = Iterator[Callable[[], None]]


@pytest.fixture
def store_url(files_url: str) -> str:
    """A single store: browsers do the same on all stores."""
    return files_url


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Iterator[LocalSite]:
    with local_site(make_parts) as made:
        yield made


def checkbox(number: int) -> str:
    return f"(//input[@name='mail'])[{number}]/ancestor::label"


def states(site: LocalSite, helds: list[Held]) -> list[State]:
    return [site.state(held) for held in helds]


def by_mouse(window: Window) -> Presses:
    """Yield the presses that select the first four messages, release them, select all others and delete them."""
    yield partial(window.press, checkbox(1))
    yield partial(window.press, checkbox(4), shift=True)
    yield partial(window.press, button("Release selected"))
    wait_for(window, "Released: 4")
    yield partial(window.press, button("Select all on this page"))
    yield partial(window.press, button("Delete selected"))


def by_keys(window: Window) -> Presses:
    for key in ("x", "j", "j", "j", "Shift+X", "r"):
        yield partial(window.keys, key)
    wait_for(window, "Released: 4")
    for key in ("a", "d"):
        yield partial(window.keys, key)


def by_forms(window: Window) -> Presses:
    for number in range(1, 5):
        yield partial(window.press, checkbox(number))
    yield partial(window.press, button("Release selected"))
    wait_for(window, "Released: 4")
    yield partial(window.press, link("Select all on this page"))
    yield partial(window.press, button("Delete selected"))


@pytest.mark.parametrize(("way", "scripts"), [(by_mouse, True), (by_keys, True), (by_forms, False)])
def test_sixty_messages_are_triaged_in_eight_presses(
    site: LocalSite, window: Window, way: Callable[[Window], Presses]
) -> None:
    """Find the four wanted messages, release them, and delete the others."""

    def spam(first: int) -> list[Held]:
        numbers = range(first, first + 28)
        return [site.hold(subject=f"Offer {n * 7919} of shop {n}", header_from=f"<s{n}@n{n}.example>") for n in numbers]

    unwanted = spam(1)
    wanted = [
        site.hold(subject=subject, header_from=f"<a@partner{n}.example>", symbols=PROVEN, score=15.5)
        for n, subject in enumerate(("Re: Minutes", "Order 4711", "Lunch?", "Your VAT notice"))
    ]
    unwanted += spam(29)
    window.sign_in(site)
    requests = site.requests()
    window.open(f"{site.parts.settings.public_url}/?order=likely&size=100")
    presses = 0
    for press in way(window):
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
