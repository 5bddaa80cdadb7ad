"""The list in Chromium after a session has ended, with and without scripts: what was selected is selected again."""

from __future__ import annotations

import re
from urllib.parse import parse_qs

import pytest
from playwright.sync_api import Browser, Page, expect

from digest.housekeeping import send_queued
from portal.model.message import State
from tests.builders import ALICE
from tests.system.local_site import LocalSite, sign_in

pytestmark = pytest.mark.system


@pytest.fixture
def store_url(files_url: str) -> str:
    """A single store: browsers do the same on all stores."""
    return files_url


def sign_in_again(site: LocalSite, page: Page) -> None:
    """Sign in by the mailed link on the page that says that the session has ended."""
    page.get_by_label("Email address").fill(ALICE)
    page.get_by_role("button", name="Send link").click()
    expect(page.get_by_role("heading", name="Check your email")).to_be_visible()
    send_queued(site.parts, site.now)
    found = re.search(rb"http://\S+/sign-in/[\w-]{32}/", site.mail.mails[-1].data.replace(b"=\r\n", b""))
    assert found
    page.goto(found[0].decode())
    page.get_by_role("button", name="Sign in as").click()  # no page submits itself in a browser of a program


@pytest.mark.parametrize("scripts", [False, True])
def test_selected_messages_are_selected_again_and_released_by_the_same_button(
    site: LocalSite, browser: Browser, scripts: bool
) -> None:
    helds = [site.hold(subject=f"Offer {n * 7919}", header_from=f"<s{n}@n{n}.example>") for n in range(5)]
    context = browser.new_context(java_script_enabled=scripts, viewport={"width": 390, "height": 844})
    sign_in(site, context)
    page = context.new_page()
    page.goto(f"{site.parts.settings.public_url}/")
    boxes = page.locator(".list [name=mail]")
    for place in (1, 3):
        boxes.nth(place).check()
    site.pass_time(days=2)
    page.get_by_role("button", name="Release selected").click()
    expect(page.get_by_text("with all that you selected and typed")).to_be_visible()
    sign_in_again(site, page)
    expect(page.get_by_text("You were signed out, so nothing was changed.")).to_be_visible()
    expect(page.get_by_text("To go on, press “Release selected”.")).to_be_visible()
    assert [box.is_checked() for box in boxes.all()] == [False, True, False, True, False]
    assert {site.state(held) for held in helds} == {State.HELD}
    page.get_by_role("button", name="Release selected").click()
    expect(page.get_by_text("Released: 2").first).to_be_visible()
    assert [site.state(held) for held in reversed(helds)].count(State.RELEASED) == 2
    assert [site.state(helds[3]), site.state(helds[1])] == [State.RELEASED, State.RELEASED]
    context.close()


def test_messages_on_other_pages_are_counted_and_can_be_left_out(site: LocalSite, browser: Browser) -> None:
    helds = [site.hold(subject=f"Offer {n * 7919}", header_from=f"<s{n}@n{n}.example>") for n in range(7)]
    context = browser.new_context(viewport={"width": 390, "height": 844})
    sign_in(site, context)
    page = context.new_page()
    page.goto(f"{site.parts.settings.public_url}/")
    page.get_by_role("button", name="Select all on this page").click()
    site.pass_time(days=2)
    newer = [site.hold(subject=f"Other {n * 7919}", header_from=f"<t{n}@m{n}.example>") for n in range(24)]
    page.get_by_role("button", name="Delete selected").click()
    sign_in_again(site, page)
    beside = page.get_by_label("Selected messages on other pages: 6")
    expect(beside).to_be_checked()
    high = page.locator(".beside label").bounding_box()
    assert high and high["height"] >= 44
    expect(page.locator(".selected")).to_have_text("Selected: 7")
    beside.uncheck()
    expect(page.locator(".selected")).to_have_text("Selected: 1")
    beside.check()
    own = page.locator(f"[id='m-{helds[-1].id}.0'] [name=mail]")
    own.uncheck()
    expect(page.locator(".selected")).to_have_text("Selected: 6")

    page.route("**/messages", lambda route: route.abort())
    page.locator(".rows > li").first.focus()
    with page.expect_request("**/messages") as sent:  # a key is for its row alone
        page.keyboard.press("d")
    assert parse_qs(sent.value.post_data or "")["mail"] == [f"{newer[-1].id}.0"]
    expect(page.locator(".selected")).to_have_text("Selected: 6")  # the selection is kept after a failure
    page.unroute("**/messages")

    for name in ("Select all on this page", "Select none"):
        page.get_by_role("button", name=name).click()
    expect(beside).not_to_be_checked()
    expect(page.locator(".selected")).to_have_text("")
    page.locator(".rows > li").first.focus()
    page.keyboard.press("d")
    expect(page.locator("#status")).to_contain_text("Deleted")
    assert [site.state(held) for held in [*helds, *newer]] == [State.HELD] * 30 + [State.DELETED]
    context.close()
