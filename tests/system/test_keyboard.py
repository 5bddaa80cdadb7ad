"""Pages by keyboard alone, without JavaScript: everything is reached in order, is seen, and is left again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyotp
import pytest
from playwright.sync_api import Browser, Page

from digest.housekeeping import run_mass_acts
from portal.assemble import Parts
from portal.model.message import State, Tier
from portal.model.text import TAGS
from tests.builders import ALICE, BY_LINK, now
from tests.system.local_site import LocalSite, local_site, sign_in

pytestmark = pytest.mark.system

# Returns what has the focus, how many of nine points of it are visible, and whether an outline shows the focus.
FOCUSED = """() => {
    const one = document.activeElement, box = (one.closest(".tick") ?? one).getBoundingClientRect();
    if (one === document.body) return null;
    let seen = 0;
    for (const x of [.1, .5, .9]) for (const y of [.1, .5, .9]) {
        const top = document.elementFromPoint(box.x + box.width * x, box.y + box.height * y);
        if (top && (one.contains(top) || top.closest("label")?.contains(one))) seen++;
    }
    const shows = [null, "::after"].some(part => getComputedStyle(one, part).outlineStyle !== "none");
    return [one.textContent.trim() || one.name, seen, shows];
}"""


@pytest.fixture
def store_url(files_url: str) -> str:
    """A single store: browsers do the same on all stores."""
    return files_url


@pytest.fixture
def page(site: LocalSite, browser: Browser, width: int) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": width, "height": 640}, java_script_enabled=False)
    sign_in(site, context)
    yield context.new_page()
    context.close()


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until an element has the focus."""
    wanted = page.locator(selector).first
    for _ in range(150):
        page.keyboard.press("Tab")
        if wanted.evaluate("one => one === document.activeElement"):
            return
    raise AssertionError(f"Tab does not reach {selector}")


@pytest.mark.parametrize("width", [390, 1280])
def test_messages_are_selected_and_deleted_by_keyboard(site: LocalSite, page: Page) -> None:
    held, other, last = (site.hold(subject=f"Offer {n * 7919}", header_from=f"<a@n{n}.example>") for n in range(3))
    page.goto(f"{site.parts.settings.public_url}/")
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to the list"
    page.keyboard.press("Enter")
    tab_to(page, f"[value='{last.id}.0']")
    page.keyboard.press("Space")
    tab_to(page, f"[value='{other.id}.0']")
    page.keyboard.press("Space")
    tab_to(page, ".bar [value=delete]")
    page.keyboard.press("Enter")
    page.get_by_text("Deleted: 2").wait_for()
    assert [site.state(each) for each in (held, other, last)] == [State.HELD, State.DELETED, State.DELETED]


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("what", ["list", "message", "preferences"])
def test_what_has_the_focus_is_seen_and_not_covered(site: LocalSite, page: Page, what: str) -> None:
    """WCAG 2.2: 2.1.2 (no trap), 2.4.3 (order), 2.4.7 (visible), 2.4.11 (not hidden by the bar at the bottom)."""
    helds = [site.hold(subject=f"Offer {n * 7919}", header_from=f"<a@n{n}.example>") for n in range(12)]
    path = {"list": "/", "message": f"/messages/{helds[5].id}/", "preferences": "/preferences"}[what]
    page.goto(f"{site.parts.settings.public_url}{path}")
    skip = "Skip to the list" if what == "list" else "Skip to the content"
    texts: list[str] = []
    for _ in range(120):
        page.keyboard.press("Tab")
        found = page.evaluate(FOCUSED)
        if found is None:
            break
        text, seen, shows = found
        texts.append(text)
        assert seen > 0 and shows, found
    else:
        raise AssertionError(f"the focus does not leave the page: {texts}")
    assert texts[0] == skip
    if what == "list":
        offers = [f"Offer {n * 7919}" for n in reversed(range(12))]
        assert [text for text in texts if text.startswith("Offer")] == offers
        assert texts.index("Release selected") > texts.index(offers[-1])


@pytest.mark.parametrize("width", [390])
def test_what_has_the_focus_is_not_covered_on_the_way_back(site: LocalSite, page: Page) -> None:
    for number in range(12):
        site.hold(subject=f"Offer {number * 7919}", header_from=f"<a@n{number}.example>")
    page.goto(f"{site.parts.settings.public_url}/")
    tab_to(page, ".sizes a")
    for _ in range(36):
        page.keyboard.press("Shift+Tab")
        text, seen, shows = page.evaluate(FOCUSED)
        assert seen > 0 and shows, text


LONG = b"Content-Type: text/plain\r\n\r\n" + b"A line of a long message\r\n" * 200
# Whether the way back and the first button are seen at the top of the window.
HEAD = """() => [".back a", ".first button"].map(selector => {
    const box = document.querySelector(selector).getBoundingClientRect();
    return box.top >= 0 && box.bottom <= 120 && box.height >= 44;
})"""


@pytest.mark.parametrize("tier", [Tier.SPAM, Tier.DANGEROUS])
@pytest.mark.parametrize("width", [320, 1280])
def test_what_has_the_focus_is_not_covered_by_the_head_of_a_message(site: LocalSite, page: Page, tier: Tier) -> None:
    """WCAG 2.2, 2.4.11: forth and back, with the head that stays at the top of the window."""
    held = site.hold(tier, data=LONG, subject="A long message")
    site.parts.actions.delete(held.id, 0, BY_LINK)
    site.parts.actions.restore(held.id, 0, BY_LINK)
    page.goto(f"{site.parts.settings.public_url}/messages/{held.id}/")
    tab_to(page, "footer a")
    assert page.evaluate(HEAD) == [True, True]
    texts: list[str] = []
    while "Skip to the content" not in texts:
        page.keyboard.press("Shift+Tab")
        text, seen, shows = page.evaluate(FOCUSED)
        texts.append(text)
        assert seen > 0 and shows, texts
        assert len(texts) < 60
    assert any(text.startswith(("Release", "Request release")) for text in texts) and "Back to the list" in texts
    below = page.locator("main :is(a, button, summary, input, .text):visible")
    for number in range(below.count()):
        below.nth(number).evaluate("one => { scrollBy(0, one.getBoundingClientRect().top - 20); one.focus(); }")
        text, seen, _ = page.evaluate(FOCUSED)
        assert seen > 0, text


@pytest.mark.parametrize("width", [320])
@pytest.mark.parametrize("language", TAGS)
def test_the_head_of_a_message_is_two_lines_in_each_language(
    make_parts: Callable[..., Parts], browser: Browser, width: int, language: str
) -> None:
    with local_site(make_parts, digest__language=language) as site:
        held = site.hold(data=LONG)
        context = browser.new_context(viewport={"width": width, "height": 640}, java_script_enabled=False)
        sign_in(site, context)
        page = context.new_page()
        page.goto(f"{site.parts.settings.public_url}/messages/{held.id}/")
        page.locator("footer").scroll_into_view_if_needed()
        assert page.evaluate(HEAD) == [True, True]
        back, first = page.locator(".back").bounding_box(), page.locator(".first").bounding_box()
        assert back and first and back["height"] <= 44.5 and first["y"] >= back["y"] + back["height"] - 1
        context.close()


@pytest.mark.parametrize(("width", "height", "stays"), [(390, 844, True), (844, 390, False), (1280, 800, True)])
def test_the_head_of_a_message_stays_in_sight_unless_the_screen_is_low(
    site: LocalSite, page: Page, height: int, stays: bool
) -> None:
    held = site.hold(data=LONG)
    page.set_viewport_size({"width": page.viewport_size["width"] if page.viewport_size else 0, "height": height})
    page.goto(f"{site.parts.settings.public_url}/messages/{held.id}/")
    page.locator("footer").scroll_into_view_if_needed()
    assert page.evaluate(HEAD) == [stays, stays]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize("width", [320, 1280])
def test_all_that_a_search_finds_is_released_by_keyboard(
    make_parts: Callable[..., Parts], browser: Browser, width: int
) -> None:
    with local_site(make_parts, staff__administrators=ALICE) as site:
        held = site.hold(recipients=(ALICE,))
        site.now = now()  # a job leaves out what is held later
        context = browser.new_context(viewport={"width": width, "height": 640}, java_script_enabled=False)
        sign_in(site, context)
        page = context.new_page()
        page.goto(f"{site.parts.settings.public_url}/admin/?symbol=BAYES_SPAM")
        tab_to(page, ".ways a[href*='act=release']")
        text, seen, shows = page.evaluate(FOCUSED)
        assert seen > 0 and shows, text
        page.keyboard.press("Enter")
        page.wait_for_url("**/admin/jobs/new?*")
        tab_to(page, "#reason")
        page.keyboard.type("Bayes was wrong.")
        tab_to(page, "[name=notify]")
        page.keyboard.press("Space")
        tab_to(page, "form.one button")
        page.keyboard.press("Enter")
        page.wait_for_url("**/admin/jobs/*-*/")
        site.pass_time(seconds=61)
        run_mass_acts(site.parts, site.now)
        page.reload()
        assert "Finished · 1 of 1" in page.locator("main").inner_text()
        assert site.state(held) is State.RELEASED
        context.close()


@pytest.fixture
def staff_site(make_parts: Callable[..., Parts]) -> Iterator[LocalSite]:
    with local_site(make_parts, staff__administrators=ALICE, staff__second_factor="true") as made:
        yield made


@pytest.mark.parametrize("width", [320, 1280])
def test_a_second_factor_is_set_up_and_given_by_keyboard(staff_site: LocalSite, browser: Browser, width: int) -> None:
    site = staff_site
    context = browser.new_context(viewport={"width": width, "height": 640}, java_script_enabled=False)
    sign_in(site, context)
    page = context.new_page()
    page.goto(f"{site.parts.settings.public_url}/admin/")
    app = pyotp.TOTP(page.locator("code.key").inner_text().replace(" ", ""))
    for typed, next_page in (("000000", "[role=alert]"), (app.at(site.now), ".codes")):
        tab_to(page, "#code")
        page.keyboard.press("Control+A")
        page.keyboard.type(typed)
        page.keyboard.press("Enter")
        page.locator(next_page).wait_for()
    codes = page.locator(".codes code").all_inner_texts()
    assert len(codes) == 10
    tab_to(page, ".acts a")
    page.keyboard.press("Enter")
    page.wait_for_url("**/admin/")
    site.pass_time(seconds=30)
    for is_recovery, next_page in ((False, "**/admin/audit"), (True, "**/admin/second-factor?done=recovered")):
        site.store.sign_ins.end_sessions(ALICE)
        sign_in(site, context)
        page.goto(f"{site.parts.settings.public_url}/admin/audit")
        page.wait_for_function("document.activeElement.id == 'code'")
        if is_recovery:
            tab_to(page, "summary")
            page.keyboard.press("Enter")
            tab_to(page, "#recovery")
        page.keyboard.type(codes[0] if is_recovery else app.at(site.now))
        page.keyboard.press("Enter")
        page.wait_for_url(next_page)
    context.close()
