"""The list of messages in Chromium with its script: by keyboard, by mouse, in two tabs, and without the server."""

import gzip
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from portal.model.message import State, Tier
from portal.stores.records import Held
from tests.builders import ALICE, BY_LINK
from tests.system.local_site import sign_in
from tests.web_client import ROOT, Site

pytestmark = pytest.mark.system


@pytest.fixture
def store_url(files_url: str) -> str:
    """A single store: browsers do the same on all stores."""
    return files_url


@pytest.fixture
def page(site: Site, browser: Browser) -> Iterator[Page]:
    """A signed-in page. An error in the console fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    sign_in(site, context)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert errors == []


def hold(site: Site, count: int, first: int = 1) -> list[Held]:
    """Hold messages that are not similar. The list shows the last one first."""
    numbers = range(first, first + count)
    return [site.hold(subject=f"Offer {n * 7919} of shop {n}", header_from=f"<s{n}@n{n}.example>") for n in numbers]


def open_list(site: Site, page: Page, query: str = "") -> None:
    page.goto(f"{site.parts.settings.public_url}/{query}")


def row(page: Page, held: Held) -> Any:
    return page.locator(f"[id='m-{held.id}.0']")


def states(site: Site, helds: list[Held]) -> list[State]:
    return [site.state(held) for held in helds]


def test_keys_select_act_undo_and_open(site: Site, page: Page) -> None:
    *_, third, second, first = helds = hold(site, 6)
    open_list(site, page)
    loads: list[str] = []
    page.on("domcontentloaded", lambda page: loads.append(page.url))
    page.keyboard.press("j")
    expect(row(page, first)).to_be_focused()
    for key in ("x", "j", "j", "Shift+X"):
        page.keyboard.press(key)
    expect(page.locator(".selected")).to_have_text("Selected: 3")
    page.keyboard.press("d")
    expect(page.locator("#status")).to_contain_text("Deleted: 3")
    expect(row(page, helds[2])).to_be_focused()  # the next one
    expect(page).to_have_title(re.compile(r"^Deleted: 3 · Held \(3\)"))
    assert states(site, [first, second, third]) == [State.DELETED] * 3
    page.keyboard.press("u")
    expect(page.locator("#status")).to_contain_text("Deletion undone: 3")
    assert states(site, [first, second, third]) == [State.HELD] * 3

    page.keyboard.press("r")  # without a selection: the row with the focus
    expect(page.locator("#status")).to_contain_text("Released on")
    expect(row(page, helds[1])).to_be_focused()
    assert states(site, helds[:3]) == [State.HELD, State.HELD, State.RELEASED]
    page.keyboard.press("k")
    page.keyboard.press("d")
    expect(page.locator("#status")).to_contain_text("Deleted")
    assert site.state(third) is State.DELETED
    expect(row(page, helds[1])).to_be_focused()
    assert loads == []  # nor has the page been loaded again

    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("jxrd")
    expect(page.get_by_role("searchbox")).to_have_value("jxrd")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Control+r")  # the browser's own
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name=re.compile("^Offer")).wait_for()
    assert states(site, helds[:2]) == [State.HELD] * 2


def test_shift_and_a_step_extend_the_selection_and_reduce_it_on_the_way_back(site: Site, page: Page) -> None:
    helds = hold(site, 7)[::-1]
    open_list(site, page, "?order=newest")

    def press(*names: str) -> list[int]:
        for name in names:
            page.keyboard.press(name)
        return [n for n, held in enumerate(helds) if row(page, held).get_by_role("checkbox").is_checked()]

    assert press("Shift+J") == [], "the first step only leads to the list"
    expect(row(page, helds[0])).to_be_focused()
    assert press("j", "j", "Shift+J", "Shift+J") == [2, 3, 4]
    expect(row(page, helds[4])).to_be_focused()
    expect(page.locator("#status")).to_have_text("Selected: 3")
    assert press("Shift+K") == [2, 3]
    assert press("Shift+K", "Shift+K", "Shift+K") == [0, 1, 2], "also in the other direction"
    assert press("Shift+K") == [0, 1, 2], "there is no row above"
    assert press("j", "j", "j", "j", "x", "Shift+J") == [0, 1, 2, 4, 5], "another range"
    assert press("Shift+X") == [0, 1, 2, 4, 5]
    page.keyboard.press("l")
    page.wait_for_url("**order=likely**")
    page.wait_for_load_state()
    page.keyboard.press("g")
    page.keyboard.press("d")
    page.wait_for_url("**state=deleted**")
    page.wait_for_load_state()
    page.keyboard.press("l")  # other folders have no such order
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
    assert "state=deleted" in page.url


def test_keys_open_other_folders_and_delete_as_in_mail_programs(site: Site, page: Page) -> None:
    *_, second, first = helds = hold(site, 4)
    open_list(site, page, "?order=newest")
    page.keyboard.press("j")
    page.keyboard.press("#")
    expect(page.locator("#status")).to_contain_text("Deleted")
    assert states(site, [first, second]) == [State.DELETED, State.HELD]
    for key, title in (("d", "Deleted"), ("r", "Released"), ("h", "Held")):
        page.keyboard.press("g")
        page.keyboard.press(key)
        expect(page).to_have_title(re.compile(f"^{title} "))
    for key in ("j", "g", "x", "d"):  # another key ends the way to a folder
        page.keyboard.press(key)
    expect(page.locator("#status")).to_contain_text("Deleted")
    assert page.title().startswith("Deleted") and "state=deleted" not in page.url
    assert states(site, helds) == [State.HELD, State.HELD, State.DELETED, State.DELETED]


def test_keys_of_a_layout_without_latin_letters(site: Site, page: Page) -> None:
    hold(site, 2)
    open_list(site, page)
    page.evaluate(
        """() => { for (const [key, code] of [["ت", "KeyJ"], ["ء", "KeyX"]])
            document.body.dispatchEvent(new KeyboardEvent("keydown", { key, code, bubbles: true })) }"""
    )
    expect(page.locator(".rows :checked")).to_have_count(1)


def test_shortcuts_can_be_switched_off_and_stay_off(site: Site, page: Page) -> None:
    hold(site, 2)
    open_list(site, page)
    page.keyboard.press("?")
    card = page.get_by_role("dialog", name="Keyboard shortcuts")
    expect(card).to_be_visible()
    card.get_by_label("Use keyboard shortcuts").uncheck()
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()
    page.reload()
    for key in ("j", "x", "?"):
        page.keyboard.press(key)
    expect(card).to_be_hidden()
    expect(page.locator(".rows :checked")).to_have_count(0)
    page.get_by_role("button", name="Keyboard shortcuts").click()
    card.get_by_label("Use keyboard shortcuts").check()
    card.get_by_role("button", name="Close").click()
    page.keyboard.press("j")
    page.keyboard.press("x")
    expect(page.locator(".rows :checked")).to_have_count(1)


def test_suspicious_messages_are_opened_instead_of_released(site: Site, page: Page) -> None:
    held = site.hold(Tier.SUSPICIOUS, subject="Scanned document")
    open_list(site, page)
    page.keyboard.press("j")
    page.keyboard.press("r")
    page.wait_for_url(re.compile(f"/messages/{held.id}/"))
    assert site.state(held) is State.HELD


def test_shift_selects_a_range_and_the_other_selection_stays(site: Site, page: Page) -> None:
    helds = hold(site, 10)[::-1]
    open_list(site, page)
    boxes = page.locator(".rows [type=checkbox]")
    boxes.nth(1).click()
    boxes.nth(4).click(modifiers=["Shift"])
    page.locator(".tick").nth(7).click(modifiers=["Shift"], position={"x": 3, "y": 3})
    expect(page.locator(".selected")).to_have_text("Selected: 7")
    boxes.nth(2).uncheck()
    expect(page.locator(".selected")).to_have_text("Selected: 6")
    row(page, helds[0]).get_by_role("button", name="Release").click()
    expect(row(page, helds[0])).to_have_count(0)
    expect(page.locator(".selected")).to_have_text("Selected: 6")
    everything = page.get_by_role("button", name="Select all on this page")
    everything.click()
    expect(page.locator(".selected")).to_have_text("Selected: 9")
    page.get_by_role("button", name="Select none").click()
    expect(page.locator(".selected")).to_have_text("")


def test_the_selection_is_there_on_the_way_back(site: Site, page: Page) -> None:
    helds = hold(site, 5)[::-1]
    open_list(site, page)
    for held in helds[1:3]:
        row(page, held).get_by_role("checkbox").check()
    row(page, helds[0]).get_by_role("link").click()
    page.get_by_role("button", name="Delete").first.click()
    page.get_by_text("Deleted on").first.wait_for()
    page.go_back()
    page.go_back()
    expect(page.locator(".selected")).to_have_text("Selected: 2")
    for held in helds[1:3]:
        expect(row(page, held).get_by_role("checkbox")).to_be_checked()


def test_two_tabs_say_what_happened(site: Site, page: Page) -> None:
    [held, other] = hold(site, 2)
    open_list(site, page)
    site.parts.actions.delete(held.id, 0, BY_LINK)
    row(page, held).get_by_role("button", name="Release").click()
    expect(page.locator("#status")).to_contain_text("Not released: the message was deleted")
    expect(row(page, held)).to_have_count(0)
    expect(row(page, other)).to_be_focused()
    open_list(site, page, "?state=all")
    page.keyboard.press("j")
    page.keyboard.press("d")
    expect(page.locator("#status")).to_contain_text("Deleted")
    expect(row(page, other).locator("[name=mail]")).not_to_be_checked()  # though it is still listed
    assert site.state(other) is State.DELETED


def test_keys_do_nothing_to_other_rows_while_an_act_is_sent(site: Site, page: Page) -> None:
    *_, third, second, first = hold(site, 4)
    open_list(site, page)
    page.evaluate(
        "() => { const send = window.send = XMLHttpRequest.prototype.send;"
        " XMLHttpRequest.prototype.send = function (form) { window.go = () => send.call(this, form) } }"
    )
    page.keyboard.press("j")
    page.keyboard.press("d")
    page.keyboard.press("j")
    page.keyboard.press("d")
    page.evaluate("() => go()")
    expect(page.locator("#status")).to_contain_text("Deleted")
    expect(page.locator(".selected")).to_have_text("")
    assert states(site, [first, second, third]) == [State.DELETED, State.HELD, State.HELD]
    page.evaluate("() => { XMLHttpRequest.prototype.send = send }")
    page.context.set_offline(True)
    page.keyboard.press("d")
    expect(page.locator("#status")).to_contain_text("cannot be reached")
    expect(page.locator(".selected")).to_have_text("")


def test_nothing_is_lost_while_the_server_is_away(site: Site, page: Page) -> None:
    helds = hold(site, 3)
    open_list(site, page)
    page.get_by_role("button", name="Select all on this page").click()
    page.context.set_offline(True)
    page.get_by_role("button", name="Delete selected").click()
    expect(page.locator("#status")).to_contain_text("cannot be reached")
    expect(page.locator(".selected")).to_have_text("Selected: 3")
    page.context.set_offline(False)
    page.route("**/messages", lambda route: route.fulfill(status=502, content_type="text/html", body="Bad gateway"))
    page.get_by_role("button", name="Delete selected").click()
    expect(page.locator("#status")).to_contain_text("The server reported an error")
    page.unroute("**/messages")
    page.locator(".list [name=form_token]").evaluate("one => { one.value = 'another' }")
    page.get_by_role("button", name="Delete selected").click()
    expect(page.locator("#status")).to_contain_text("This form is from an earlier session")
    expect(page.locator(".selected")).to_have_text("Selected: 3")
    assert states(site, helds) == [State.HELD] * 3
    page.context.clear_cookies()
    page.get_by_role("button", name="Delete selected").click()
    page.wait_for_url(re.compile("/sign-in"))
    expect(page.get_by_text("You were signed out").first).to_be_visible()
    assert states(site, helds) == [State.HELD] * 3


def test_a_question_and_all_that_match_lead_to_the_pages_of_the_server(site: Site, page: Page) -> None:
    doubtful = site.hold(Tier.SUSPICIOUS, subject="Scanned document")
    helds = hold(site, 30)
    open_list(site, page)
    page.get_by_role("link", name="Select all 31").click()
    page.wait_for_url("**select=matching**")
    for key in ("j", "x"):  # all but the first one
        page.keyboard.press(key)
    page.keyboard.press("r")
    page.get_by_role("heading", name="Check before you release").wait_for()
    assert states(site, helds) == [State.HELD] * 30
    page.get_by_role("button", name="Release only the others").click()
    page.wait_for_url(re.compile(r"/quarantine/(\?.*)?(#.*)?$"))
    expect(page).to_have_title(re.compile("^Released: 29 · "))
    assert states(site, [doubtful, helds[-1]]) == [State.HELD] * 2


def test_a_double_press_acts_once(site: Site, page: Page) -> None:
    hold(site, 3)
    open_list(site, page)
    posts: list[str] = []

    def slowly(route: Route) -> None:
        posts.append(route.request.url)
        page.wait_for_timeout(300)
        route.continue_()

    page.route("**/messages", slowly)
    page.get_by_role("button", name="Select all on this page").click()
    page.get_by_role("button", name="Delete selected").dblclick()
    page.keyboard.press("d")
    expect(page.locator("#status")).to_contain_text("Deleted: 3")
    assert len(posts) == 1


def test_the_first_page_is_small(site: Site, browser: Browser) -> None:
    hold(site, 30)
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    sign_in(site, context)
    page = context.new_page()
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    open_list(site, page)
    assert len(urls) <= 3, urls
    base = site.parts.settings.public_url.removesuffix(ROOT)
    reader = site.signed_in(ALICE)
    bodies = [reader.get(url.removeprefix(base)).body for url in [*urls, f"{base}{ROOT}/static/icon.svg"]]
    sizes = [len(gzip.compress(body, 5)) for body in bodies]
    assert sum(sizes) < 30_000, sizes
    context.close()


def test_a_code_is_sent_when_it_is_complete(site: Site, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(f"{site.parts.settings.public_url}/sign-in")
    page.get_by_role("textbox").fill(ALICE)
    page.get_by_role("button").last.click()
    field = page.get_by_label("8-digit code")
    expect(field).to_have_accessible_description("The code is sent as soon as it is complete.")
    page.keyboard.type("0000 000")
    page.wait_for_timeout(100)
    expect(page.get_by_role("alert")).to_have_count(0)
    page.keyboard.type("0")
    expect(page.get_by_role("alert")).to_contain_text("not valid")
    expect(field).to_be_focused()
    page.close()
