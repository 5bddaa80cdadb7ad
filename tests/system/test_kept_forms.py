"""The list in Chromium after a session has ended, with and without scripts: what was selected is selected again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, expect

from digest.housekeeping import send_queued
from portal.assemble import Parts
from portal.model.message import State
from tests.builders import ALICE
from tests.system.local_site import LocalSite, local_site, sign_in

pytestmark = pytest.mark.system


@pytest.fixture
def store_url(files_url: str) -> str:
    """A single store: browsers do the same on all stores."""
    return files_url


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Iterator[LocalSite]:
    with local_site(make_parts) as made:
        yield made


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
    page.get_by_label("Email address").fill(ALICE)
    page.get_by_role("button", name="Send link").click()
    expect(page.get_by_role("heading", name="Check your email")).to_be_visible()
    send_queued(site.parts, site.now)
    found = re.search(rb"http://\S+/sign-in/[\w-]{32}/", site.mail.mails[-1].data.replace(b"=\r\n", b""))
    assert found
    page.goto(found[0].decode())
    page.get_by_role("button", name="Sign in as").click()  # no page submits itself in a browser of a program
    expect(page.get_by_text("You were signed out, so nothing was changed.")).to_be_visible()
    expect(page.get_by_text("To go on, press “Release selected”.")).to_be_visible()
    assert [box.is_checked() for box in boxes.all()] == [False, True, False, True, False]
    assert {site.state(held) for held in helds} == {State.HELD}
    page.get_by_role("button", name="Release selected").click()
    expect(page.get_by_text("Released: 2").first).to_be_visible()
    assert [site.state(held) for held in reversed(helds)].count(State.RELEASED) == 2
    assert [site.state(helds[3]), site.state(helds[1])] == [State.RELEASED, State.RELEASED]
    context.close()
