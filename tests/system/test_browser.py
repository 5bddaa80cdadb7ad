"""Link pages and the portal in a real Chromium: persons and scanners, and pages without JavaScript, at 320 pixels and
without an error in the console."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, expect

from digest import housekeeping
from portal.assemble import Parts
from portal.model.links import Action
from portal.model.message import Actor, ActorKind, EventKind, Filter, Scan, ScanOutcome, State, Symbol, Tier
from portal.model.schedule import Preferences
from portal.model.text import TAGS
from tests.builders import ALICE, BOB, digesting, prefer, rule
from tests.system.accessibility import nodes, unclear
from tests.system.local_site import LocalSite, local_site, part, read_mail, sign_in
from tests.web_client import Site

pytestmark = pytest.mark.system
FLAGS = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]


@pytest.fixture
def store_url(files_url: str) -> str:
    """A single store: browsers do the same on all stores."""
    return files_url


@pytest.fixture(scope="module")
def chromium() -> str:
    path = shutil.which("chromium")
    assert path, "chromium is missing: tests/system/install-packages"
    return path


@pytest.fixture
def steered(browser: Browser) -> Browser:
    """A browser steered by a program: `navigator.webdriver` is true."""
    return browser


def command(chromium: str, folder: Path) -> list[str]:
    """Return the command of a browser that is not steered, like a person's."""
    return [chromium, "--headless", "--disable-gpu", "--password-store=basic", *FLAGS, f"--user-data-dir={folder}"]


def open_once(chromium: str, folder: Path, url: str) -> str:
    """Open an address, let eight seconds of the page's time pass, and return the page as shown then."""
    more = ["--virtual-time-budget=8000", "--dump-dom", url]
    done = subprocess.run([*command(chromium, folder), *more], capture_output=True, timeout=60, check=True)
    return done.stdout.decode()


def signed_in(site: Site, browser: Browser, **more: Any) -> BrowserContext:
    context = browser.new_context(**more)
    sign_in(site, context)
    return context


def url(site: Site, action: Action, held: Any, minutes_old: float = 0) -> str:
    path = site.link(action, held, minutes_old=minutes_old)
    return path if path.startswith("http") else site.parts.settings.public_url + path.removeprefix("/quarantine")


def open_until(chromium: str, folder: Path, url: str, is_done: Callable[[], bool]) -> None:
    """Open an address, and close the browser as soon as its page has done something, or after 40 seconds."""
    # The browser stays open: --dump-dom never ends on a page that opens another one, and a debugging port is steering.
    with subprocess.Popen(
        [*command(chromium, folder), url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as browser:
        deadline = time.monotonic() + 40
        while not is_done() and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(browser.pid, signal.SIGKILL)


def test_one_click_on_an_older_digest_releases(site: Site, chromium: str, tmp_path: Path) -> None:
    held = site.hold()
    link = url(site, Action.RELEASE, held, minutes_old=11)
    open_until(chromium, tmp_path, link, lambda: site.state(held) not in (State.HELD, State.RELEASING))
    assert site.state(held) is State.RELEASED


@pytest.mark.parametrize("is_known", [True, False])
def test_a_held_message_is_read_three_presses_after_its_digest(
    site: LocalSite, steered: Browser, chromium: str, tmp_path: Path, is_known: bool
) -> None:
    """The sign-in link continues by itself, but only in the browser that requested it. Nothing is typed."""
    held, profile = site.hold(recipients=[ALICE], subject="Minutes of Thursday"), tmp_path / "profile"
    digest, presses, answers = site.digest(), 0, site.requests()
    with steered.browser_type.launch_persistent_context(profile, executable_path=chromium, args=FLAGS) as context:
        page = context.new_page()
        if is_known:
            page.goto(url(site, Action.RELEASE, site.hold(recipients=[ALICE])))
            page.get_by_role("button").click()
        read_mail(page, digest)
        for what in (
            page.get_by_role("link", name="Minutes of Thursday"),
            page.get_by_role("button", name="Send me a sign-in link"),
        ):
            what.click()
            presses += 1
        page.get_by_role("textbox").wait_for()
        housekeeping.send_queued(site.parts, site.now)
        found = re.search(r'http://[^"]+/sign-in/[\w-]{32}/', part(site.last_mail(), "html"))
        assert found
        link = found[0]
        page.goto(link)
        page.wait_for_timeout(2500)

    def sessions() -> int:
        return len(site.store.sign_ins.sessions(ALICE, 9, site.now))

    assert sessions() == 0, "it is steered"
    assert f"Sign in as <bdi>{ALICE}</bdi>" in open_once(chromium, tmp_path / "other", link)
    assert sessions() == 0
    answers.clear()
    open_until(chromium, profile, link, lambda: len([what for what, _ in answers if what == "document"]) > 1)
    presses += 1  # on the link in the mail
    shown = [path for what, path in answers if what == "document"]
    assert shown[-1].endswith(f"/messages/{held.id}/"), shown
    assert (sessions(), presses) == (1, 3)


def test_a_held_message_is_read_three_presses_after_opening_the_quarantine(
    site: LocalSite, steered: Browser, chromium: str, tmp_path: Path
) -> None:
    """The button, the mailed link and the subject. Nothing is typed."""
    text = b"Subject: Minutes\r\n\r\nWe meet again in May.\r\n"
    site.hold(recipients=[ALICE], subject="Minutes of Thursday", data=text)
    digest, presses = site.digest(), 0
    like_a_person = [*FLAGS, "--disable-blink-features=AutomationControlled"]
    with steered.browser_type.launch_persistent_context(
        tmp_path, executable_path=chromium, args=like_a_person
    ) as context:
        page = context.new_page()
        read_mail(page, digest)
        page.get_by_role("link", name="Open my quarantine").click()
        page.get_by_role("button", name="Send me a sign-in link").click()
        presses += 1
        page.get_by_role("textbox").wait_for()
        housekeeping.send_queued(site.parts, site.now)
        found = re.search(r'http://[^"]+/sign-in/[\w-]{32}/', part(site.last_mail(), "html"))
        assert found
        page.goto(found[0])
        presses += 1
        page.get_by_role("link", name="Minutes of Thursday").click()
        presses += 1
        expect(page.locator(".text")).to_contain_text("We meet again in May.")
    assert presses == 3


def test_one_click_on_a_fresh_digest_shows_the_button(site: Site, chromium: str, tmp_path: Path) -> None:
    held = site.hold()
    page = open_once(chromium, tmp_path, url(site, Action.RELEASE, held, minutes_old=9))
    assert "Release to inbox" in page
    assert site.state(held) is State.HELD


def test_dangerous_and_suspicious_mail_waits_for_a_press(site: Site, chromium: str, tmp_path: Path) -> None:
    for tier in (Tier.SUSPICIOUS, Tier.DANGEROUS):
        held = site.hold(tier)
        for action in (Action.RELEASE, Action.REQUEST, Action.DELETE):
            open_once(chromium, tmp_path, url(site, action, held, minutes_old=60))
        assert site.state(held) is State.HELD


def test_a_steered_browser_gets_a_page_and_may_press(site: Site, steered: Browser) -> None:
    held = site.hold()
    page = steered.new_context().new_page()
    page.goto(url(site, Action.RELEASE, held, minutes_old=11))
    page.wait_for_timeout(2500)
    assert site.state(held) is State.HELD
    page.get_by_role("button", name="Release to inbox").click()
    page.get_by_role("heading", name="Message released").wait_for()
    assert site.state(held) is State.RELEASED
    assert [cookie["name"] for cookie in page.context.cookies()] == ["__Host-quarantine-device"]


def test_without_javascript_the_button_works_and_so_does_undo(site: Site, steered: Browser) -> None:
    held = site.hold()
    page = steered.new_context(java_script_enabled=False).new_page()
    page.goto(url(site, Action.DELETE, held, minutes_old=11))
    page.get_by_role("button", name="Delete").click()
    assert site.state(held) is State.DELETED
    page.get_by_role("button", name="Undo").click()
    assert site.state(held) is State.HELD


def test_messages_and_attachments_are_downloaded_and_not_opened(site: Site, steered: Browser) -> None:
    head = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nhello\r\n--b\r\n"
    data = head + b'Content-Type: text/html; name="../r\xc3\xa9ly.html"\r\n\r\n<script>alert(1)</script>\r\n--b--\r\n'
    held = site.hold(data=data)
    site.store.messages.record_scan(held.id, Scan(ScanOutcome.CLEAN, site.now), Tier.SPAM, site.now)
    page = signed_in(site, steered, accept_downloads=True).new_page()
    page.goto(f"{site.parts.settings.public_url}/messages/{held.id}/")
    for button, name, expected in (
        ("../rély.html", "rély.html", b"<script>alert(1)</script>"),
        ("Download this message", f"{held.id}.eml", data),
    ):
        with page.expect_download() as started:
            page.get_by_role("button", name=button).click()
        assert started.value.suggested_filename == name
        assert Path(started.value.path()).read_bytes() == expected
    assert page.url.endswith(f"/messages/{held.id}/")


def test_a_person_works_through_the_portal_by_keyboard(site: Site, steered: Browser) -> None:
    held = site.hold()
    page = signed_in(site, steered).new_page()
    page.goto(site.parts.settings.public_url)
    page.get_by_role("button", name=re.compile("^Release.*Offer")).focus()
    page.keyboard.press("Enter")
    page.locator(".toast").get_by_text("Released on").wait_for()
    assert site.state(held) is State.RELEASED


@pytest.mark.parametrize("scripts", [True, False], ids=["", "without JavaScript"])
@pytest.mark.parametrize(
    ("action", "button", "key", "what"),
    [
        *(
            (action, button, key, "button")
            for action, button in (
                (Action.REQUEST, "Request release"),
                (Action.DELETE, "Delete"),
                (Action.PREFERENCES, "Stop digests"),
                (Action.FORWARDED, "Revoke all links"),
            )
            for key in ("Enter", "Space")
        ),
        (Action.PREFERENCES, "Save", "Enter", "input[type=time]"),  # without the button
    ],
)
def test_a_key_counts_as_a_persons_press(
    site: Site, steered: Browser, action: Action, button: str, key: str, what: str, scripts: bool
) -> None:
    held = site.hold(Tier.DANGEROUS)
    with digesting(site.store, ALICE, site.now, 50, ignore_schedule=True) as digest:
        pass
    before = site.store.recipients.get(ALICE), site.state(held)
    if action in (Action.PREFERENCES, Action.FORWARDED):
        address = site.parts.links.url(action, digest.id, 0, digest.issued_at)
    else:
        address = url(site, action, held)
    context = steered.new_context(java_script_enabled=scripts)
    page = context.new_page()
    page.goto(address)
    wanted = page.get_by_role("button", name=button) if what == "button" else page.locator(what).first
    if what != "button":
        page.locator("details", has=page.locator(what)).locator("summary").click()
        wanted.fill("07:30")
    for _ in range(100):
        if wanted.evaluate("one => one === document.activeElement"):
            break
        page.keyboard.press("Tab")
    with page.expect_event("response", lambda answer: answer.request.method == "POST") as posted:
        page.keyboard.press(key)
    assert posted.value.request.all_headers()["sec-fetch-user"] == "?1"
    page.wait_for_load_state()
    context.close()
    assert posted.value.status < 400
    assert (site.store.recipients.get(ALICE), site.state(held)) != before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_small_phone_and_log_no_error(site: Site, steered: Browser, scheme: Any) -> None:
    held = site.hold(subject="W" * 150, header_from=f'"{"M" * 60}" <{"l" * 60}@{"o" * 60}.example>')
    page = signed_in(site, steered, viewport={"width": 320, "height": 640}, color_scheme=scheme).new_page()
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    base = site.parts.settings.public_url
    link = url(site, Action.RELEASE, held, minutes_old=11)
    [made] = site.store.rules.add([rule(f"{'l' * 60}@{'o' * 60}.example", hits=3, last_hit_at=site.now)], site.now)
    message = f"/messages/{held.id}/"
    rules = (f"{message}sender", "/rules", f"/rules?done={made.id}")
    own = ("/preferences", "/preferences/digest", "/preferences/digest?as=text", "/sessions")
    for address in ("/", message, *rules, *own, "/sign-in", "/sign-in/code", link):
        page.goto(address if address.startswith("http") else base + address)
        page.locator("summary").evaluate_all("all => all.forEach(one => one.click())")
        assert page.evaluate("document.documentElement.scrollWidth") <= 320, address
        targets = page.locator(
            "button:not(.plain, .for-readers), .button, .back a, .tick, input:not([type=hidden], [type=checkbox]),"
            " .views a, .orders a, .pages a, .aside a, .alike li a, .chips a, .targets a"
        ).filter(visible=True)
        heights = targets.evaluate_all("all => all.map(one => one.getBoundingClientRect().height)")
        assert all(height >= 44 for height in heights), address
    assert messages == []


def test_links_that_stand_alone_are_easy_to_hit(make_parts: Callable[..., Parts], steered: Browser) -> None:
    """Those within a sentence need not be (WCAG 2.2, 2.5.8)."""
    with local_site(make_parts, proxy__secret="p" * 32) as site:
        held, macro = site.hold(), site.hold(Tier.SUSPICIOUS)
        page = signed_in(site, steered, viewport={"width": 390, "height": 844}).new_page()
        base = site.parts.settings.public_url
        pages = ["rules", "about", "preferences", "sessions", "sign-in", "sign-in/code"]
        of_message = [f"messages/{macro.id}/", f"messages/{macro.id}/download", f"messages/{held.id}/sender"]
        addresses = [f"{base}/{path}" for path in (*pages, *of_message)]
        for address in (*addresses, site.link(Action.SHOW, held), f"{base}/sign-in/proxy"):
            if address.endswith("/proxy"):  # somebody without a quarantine here
                headers = {"X-Quarantine-User": "x@elsewhere.example", "X-Quarantine-Secret": "p" * 32}
                page.context.set_extra_http_headers(headers)
            page.goto(address if address.startswith("http") else base.removesuffix("/quarantine") + address)
            page.locator("summary").evaluate_all("all => all.forEach(one => one.click())")
            low = page.locator("p a:visible, li a:visible").evaluate_all(
                "all => all.filter(one => one.parentElement.innerText.trim() === one.innerText.trim()"
                " && one.getBoundingClientRect().height < 44).map(one => one.innerText)"
            )
            assert low == [], address
        assert page.get_by_text("Sign in with another address").count() == 1


def hold_rows(site: Site) -> None:
    """Hold messages for each kind of row: short, long, with alerts and similar messages, each also for a role mailbox
    and removed soon."""
    soon, spoofed = site.now - timedelta(days=28), (Symbol("SPOOF_DISPLAY_NAME", 8.0),)
    kinds = [(ALICE, None), (ALICE, soon), (INFO, None), (INFO, soon)]
    for word, (recipient, at) in zip(("Apple", "Bread", "Cloud", "Dunes"), kinds, strict=True):
        more: dict[str, Any] = {"recipients": [recipient], "at": at}
        sender = f'"{word * 15}" <{word * 10}@{word * 10}.example>'
        for tier in Tier:
            site.hold(tier, subject=f"{tier.value} {word * 30}", header_from=sender, **more)
            site.hold(tier, subject=f"{word} {tier.value}", header_from=f"{word}@{tier.value}.example", **more)
        for number in range(3):
            site.hold(subject=f"{word} offer {number}", header_from=f"shop@{word}.example", **more)
            alike = {"subject": f"{word} scan {number}", "header_from": f"scan@{word}.example", "symbols": spoofed}
            site.hold(Tier.SUSPICIOUS, **alike, **more)


INFO = "info@example.org"
_OVERLAPS = """() => [...document.querySelectorAll(".rows > li")].flatMap(row => {
    const parts = [...row.querySelectorAll(".why, .alert, .score, .status, .few, .many, .do > *")]
        .map(one => [one, one.getBoundingClientRect()]).filter(([, box]) => box.width > 2);
    return parts.flatMap(([one, a], number) => parts.slice(number + 1).filter(([other, b]) =>
        Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
        && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1
    ).map(([other]) => `${one.className}, ${other.className}: ${row.innerText.slice(0, 90)}`));
})"""
_KINDS = {
    "held": EventKind.RESTORED,
    "deleted": EventKind.DELETED,
    "requested": EventKind.REQUESTED,
    "released": EventKind.RELEASED,
    "blocked": EventKind.BLOCKED,
    "passed": EventKind.PASSED,
}


@pytest.mark.parametrize(("width", "highest"), [(320, 90), (390, 80), (900, 56), (1280, 56)])
def test_rows_of_the_list_are_low(
    make_parts: Callable[..., Parts], tmp_path: Path, steered: Browser, width: int, highest: int
) -> None:
    (tmp_path / "virtual").write_text(f"{INFO} {ALICE}, {BOB}\n")
    with local_site(make_parts, people__alias_file=tmp_path / "virtual") as site:
        hold_rows(site)
        page = signed_in(site, steered, viewport={"width": width, "height": 640}).new_page()
        high: list[Any] = []
        for state in _KINDS:
            move(site, state)
            page.goto(f"{site.parts.settings.public_url}/?state={'released' if state == 'passed' else state}&size=100")
            found = page.locator(".rows > li").evaluate_all(
                "all => all.map(one => [one.getBoundingClientRect().height, one.innerText.replaceAll('\\n', '|')])"
            )
            assert len(found) == 32, state
            assert page.evaluate(_OVERLAPS) == [], state
            assert page.locator("li:has(.alert) .alike").count() >= 4
            assert (page.locator("li:has(.ends)").count() == 16) == (state in ("held", "deleted", "blocked"))
            high += [(state, *each) for each in found if each[0] > highest]
        assert not high, "\n".join(map(str, high))


def test_rows_are_low_in_all_languages(make_parts: Callable[..., Parts], steered: Browser) -> None:
    with local_site(make_parts) as site:
        for tier in Tier:
            site.hold(tier, subject="Your order 4711 has been shipped", header_from="Kontor <orders@kontor.example>")
        page = signed_in(site, steered, viewport={"width": 390, "height": 640}).new_page()
        high = []
        for state, tag in product(("held", "requested", "released", "deleted"), TAGS):
            if tag == TAGS[0]:
                move(site, state)
            prefer(site.store, ALICE, Preferences(language=tag))
            for width, highest in ((390, 80), (1280, 56)):
                page.set_viewport_size({"width": width, "height": 640})
                page.goto(f"{site.parts.settings.public_url}/?state={state}")
                heights = page.locator(".rows > li").evaluate_all(
                    "all => all.map(one => one.getBoundingClientRect().height)"
                )
                assert len(heights) == len(Tier)
                high += [(state, tag, width, heights)] if max(heights) > highest else []
        assert not high, "\n".join(map(str, high))


@pytest.mark.parametrize(("width", "highest"), [(320, 150), (390, 150), (1280, 80)])
def test_rows_of_rules_are_as_wide_as_the_page(site: Site, steered: Browser, width: int, highest: int) -> None:
    site.store.rules.add([rule("bounce-1234567@example.net"), rule("partner.example", "allow")], site.now)
    page = signed_in(site, steered, viewport={"width": width, "height": 640}).new_page()
    page.goto(f"{site.parts.settings.public_url}/rules")
    heights = page.locator(".senders > li").evaluate_all("all => all.map(one => one.getBoundingClientRect().height)")
    assert len(heights) == 2 and max(heights) <= highest, heights


def move(site: Site, state: str) -> None:
    """Bring all messages into a state."""
    reader = site.parts.people.reader(ALICE)
    for delivery in site.store.deliveries.matching(reader, Filter(states=frozenset(State)), 1000).deliveries:
        site.store.deliveries.move(
            delivery.key,
            State(state),
            set(State),
            Actor(ActorKind.RECIPIENT, BOB, "portal"),
            site.now,
            kind=_KINDS[state],
        )


def test_what_is_cut_in_the_list_is_the_end_of_a_subject_and_the_beginning_of_an_address(
    site: Site, steered: Browser
) -> None:
    """Also a subject in the other direction than the page's. The domain of an address stays longer than the name."""
    sender = f'"{"Name " * 12}" <{"l" * 60}@{"sub." * 12}evil.example>'
    site.hold(subject="Offer " * 40, header_from=sender)
    site.hold(subject="عرض " * 60, header_from="<a@b.example>")
    page = signed_in(site, steered, viewport={"width": 900, "height": 640}).new_page()
    page.goto(f"{site.parts.settings.public_url}/")
    of = "one => [getComputedStyle(one).direction, one.scrollWidth > one.clientWidth]"
    assert page.locator(".mail bdi").first.evaluate(of) == ["rtl", True]
    assert page.locator(".mail bdi").last.evaluate(of) == ["ltr", True]
    assert page.locator(".from .address").last.evaluate(of) == ["rtl", True]
    inner, outer = (page.locator(f".from .address{part}").last.bounding_box() for part in (" bdi", ""))
    assert inner and outer and inner["x"] < outer["x"]
    assert abs(inner["x"] + inner["width"] - outer["x"] - outer["width"]) < 1, "the end is seen"


def test_the_list_is_printed_without_boxes_and_buttons(site: Site, steered: Browser) -> None:
    for number in range(3):
        site.hold(subject=f"Offer of the week {number}")
    site.hold(Tier.SUSPICIOUS, subject="Scanned document", symbols=(Symbol("SPOOF_DISPLAY_NAME", 8.0),))
    page = signed_in(site, steered, viewport={"width": 718, "height": 1000}).new_page()
    page.goto(f"{site.parts.settings.public_url}/")
    page.emulate_media(media="print")
    assert page.locator(".list .tick, .bar, .do, .search, .views").filter(visible=True).count() == 0
    lefts = page.locator(".line").evaluate_all("all => all.map(one => one.getBoundingClientRect().x)")
    assert len(lefts) == 2 and len(set(lefts)) == 1, lefts


def test_a_message_is_printed_whole_and_without_buttons(site: Site, steered: Browser) -> None:
    lines = [f"Line {number} of a long message" for number in range(300)]
    held = site.hold(subject="Minutes of Thursday", data="\r\n".join(["Subject: Minutes", "", *lines, ""]).encode())
    page = signed_in(site, steered, viewport={"width": 718, "height": 1000}).new_page()
    page.goto(f"{site.parts.settings.public_url}/messages/{held.id}/")
    page.emulate_media(media="print")
    buttons = page.locator("main :is(button, .button, summary, input, .views, .back)").filter(visible=True)
    assert buttons.all_inner_texts() == []
    text = page.locator(".text")
    assert text.inner_text().splitlines()[-1] == lines[-1]
    assert text.evaluate("one => one.scrollHeight <= one.clientHeight && getComputedStyle(one).overflow === 'visible'")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for words in ("Minutes of Thursday", "Held since", "Why this message was held"):
        assert page.get_by_text(words).first.is_visible(), words


@pytest.mark.parametrize(
    ("sender", "is_warned"),
    [("Kontor <orders@kontor.example>", False), ('"a@kontor.example" <orders@b.example>', True)],
    ids=["", "warned"],
)
@pytest.mark.parametrize("tier", Tier)
def test_the_text_of_a_message_begins_in_the_first_400_pixels_of_a_phone(
    site: Site, steered: Browser, tier: Tier, sender: str, is_warned: bool
) -> None:
    """Also with a subject of two lines and all cautions; two cautions in a longer language need a line more."""
    data = b"Content-Type: text/html\r\n\r\n<p>It will arrive tomorrow."
    subject = "Your order 4711 has been shipped and will arrive tomorrow"
    symbols = Symbol("BAYES_SPAM", 5.1), Symbol("OLETOOLS", 5.0)
    held = site.hold(tier, subject=subject, header_from=sender, data=data, from_count=1, symbols=symbols)
    page = signed_in(site, steered, viewport={"width": 390, "height": 844}).new_page()
    for language in ("en", "de", "fr", "pl"):
        prefer(site.store, ALICE, Preferences(language=language))
        page.goto(f"{site.parts.settings.public_url}/messages/{held.id}/")
        heading, box = page.locator("h1").bounding_box(), page.locator(".text").bounding_box()
        assert heading and heading["height"] >= 50, "the subject has two lines"
        assert page.locator(".warning").count() == (is_warned or tier is not Tier.SPAM)
        two = language != "en" and is_warned and tier is not Tier.SPAM
        assert box and box["y"] <= (412 if two else 400), language


def test_the_list_is_read_out_by_headings_and_names(site: Site, steered: Browser) -> None:
    site.hold(subject="Your order 4711", header_from="Kontor <orders@kontor.example>")
    site.hold(Tier.SUSPICIOUS, subject="Scanned document")
    page = signed_in(site, steered).new_page()
    page.goto(f"{site.parts.settings.public_url}/")
    tree = page.locator("main").aria_snapshot()
    for line in (
        'heading "Held" [level=1]',
        'checkbox "Select: Your order 4711"',
        'heading "Your order 4711" [level=3]',
        'link "Your order 4711"',
        'button "Release : Your order 4711"',
        'link "Review : Scanned document"',
        'button "Release selected"',
    ):
        assert line in tree, tree
    described = page.get_by_role("link", name="Your order 4711", exact=True)
    text = described.evaluate(
        "one => document.getElementById(one.getAttribute('aria-describedby').split(' ')[0]).innerText"
    )
    assert "orders@kontor.example" in text


def test_a_message_is_read_out_with_its_warnings(site: LocalSite, steered: Browser) -> None:
    html = b"--b\r\nContent-Type: text/html\r\n\r\n<h1>Offers</h1><p>Read <a href=https://x.example>this</a>"
    attached = b"--b\r\nContent-Type: %s\r\nContent-Disposition: attachment; filename=%s\r\n\r\nx"
    program, letter = (
        attached % each for each in ((b"application/x-dosexec", b"letter.pdf.exe"), (b"text/plain", b"a.txt"))
    )
    parts = b"Content-Type: multipart/mixed; boundary=b", b"", html, program, letter, b"--b--", b""
    subject = "Your order 4711"
    held = site.hold(recipients=[ALICE], subject=subject, data=b"\r\n".join(parts))
    site.store.messages.record_scan(held.id, Scan(ScanOutcome.CLEAN, site.now), Tier.SPAM, site.now)
    virus = site.hold(Tier.DANGEROUS, recipients=[ALICE], subject=subject)
    page, base = signed_in(site, steered).new_page(), site.parts.settings.public_url
    for path, acts in (
        (f"{held.id}/", ("Release", "Delete")),
        (f"{held.id}/formatted", ("Release", "Delete")),
        (f"{virus.id}/", ("Request release", "Delete")),
    ):
        page.goto(f"{base}/messages/{path}")
        assert unclear(page) == []
        headings = [(node.level, node.name) for node in nodes(page) if node.role == "heading"]
        assert headings[0] == (1, subject) and "Why this message was held" in headings[-1]
        for act in acts:
            expect(page.get_by_role("button", name=f"{act} : {subject}", exact=True)).to_have_count(1)
        for frame in page.locator("iframe").all():
            expect(frame).to_have_accessible_name("The message as its sender formatted it")
    page.goto(f"{base}/messages/{held.id}/")
    for name, warning in (("letter.pdf.exe", "It can run commands on your computer."), ("a.txt", "")):
        download = page.get_by_role("button", name=f"Download : {name}", exact=True)
        expect(download).to_have_accessible_description(re.compile(re.escape(warning) or "^$"))


@pytest.mark.parametrize("script", [True, False], ids=["script", "plain"])
def test_what_happened_to_several_messages_is_read_out(site: LocalSite, steered: Browser, script: bool) -> None:
    for number in range(3):
        site.hold(recipients=[ALICE], subject=f"Your order {number}", header_from=f"a{number}@kontor.example")
    page, base = signed_in(site, steered, java_script_enabled=script).new_page(), site.parts.settings.public_url
    site.mail.script["RCPT"] = "550 5.1.1 no such user"
    for act, result in (("Release selected", "Release failed: 2"), ("Delete selected", "Deleted: 2")):
        page.goto(f"{base}/")
        for number in range(2):
            page.get_by_role("checkbox", name=f"Select: Your order {number}").check()
        page.get_by_role("button", name=act).click()
        said = page.locator("#status") if script else page.get_by_role("status")
        expect(said).to_contain_text(result)
        if not script:
            expect(page).to_have_title(re.compile(f"^{result} · Held"))
            assert said.evaluate("one => one === document.querySelector('main h1').nextElementSibling")
        for name in ("Your order 0", "Your order 1") if act == "Release selected" else ():
            expect(page.locator(".done").get_by_role("link", name=name)).to_have_count(1)
        assert unclear(page) == []
    undo = page.get_by_role("button", name="Undo deletion")
    undo.press("Enter")
    expect(page.locator("#status") if script else page.get_by_role("status")).to_contain_text("Deletion undone: 2")


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_focused_elements_are_not_covered_by_the_bar(site: Site, steered: Browser, width: int) -> None:
    for _ in range(15):
        site.hold()
    with digesting(site.store, ALICE, site.now, 50, ignore_schedule=True) as digest:
        pass
    page = steered.new_context(viewport={"width": width, "height": 640}).new_page()
    page.goto(site.parts.links.url(Action.SEVERAL, digest.id, 0, digest.issued_at))
    seen = 0
    for _ in range(20):
        page.keyboard.press("Tab")
        edges = page.evaluate(
            """() => document.activeElement.type === "checkbox" && [
                document.activeElement.getBoundingClientRect().bottom,
                document.querySelector(".bar").getBoundingClientRect().top]"""
        )
        if edges:
            seen += 1
            assert edges[0] <= edges[1], seen
    assert seen == 15


def test_the_browsers_time_zone_is_offered_and_saved_only_if_wanted(site: Site, steered: Browser) -> None:
    page = signed_in(site, steered, timezone_id="Asia/Tokyo").new_page()
    page.goto(f"{site.parts.settings.public_url}/preferences")
    offer, zone = page.locator("#zone-offer"), page.locator("#timezone")
    assert "Asia/Tokyo" in offer.inner_text()
    assert zone.input_value() == ""
    offer.get_by_role("button").click()
    assert zone.input_value() == "Asia/Tokyo" and not offer.is_visible()
    assert site.store.recipients.get(ALICE).preferences.timezone is None
    page.get_by_label("Twice a day").check()
    page.get_by_role("button", name="Save").click()
    page.get_by_text("Preferences saved.").wait_for()
    chosen = site.store.recipients.get(ALICE).preferences
    assert (chosen.timezone, chosen.schedule) == ("Asia/Tokyo", "daily")
    assert not offer.is_visible()
