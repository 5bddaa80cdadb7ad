"""On a phone nothing needs scrolling sideways, and what a row says is in sight and can be pressed: in the list, and in
the console."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from itertools import product

import pytest
from playwright.sync_api import Browser

from portal.assemble import Parts
from portal.model.message import Symbol, Tier
from portal.model.schedule import Preferences
from tests.builders import ALICE, BY_LINK, prefer
from tests.system.accessibility import low_targets
from tests.system.local_site import local_site, sign_in
from tests.system.samples import hold_samples

pytestmark = pytest.mark.system


@pytest.fixture
def store_url(files_url: str) -> str:
    """A single store: browsers see the same on all stores."""
    return files_url


@pytest.mark.parametrize(("width", "highest"), [(320, 215), (390, 160), (1280, 80)])
def test_rows_of_a_search_fit(make_parts: Callable[..., Parts], browser: Browser, width: int, highest: int) -> None:
    with local_site(make_parts, staff__administrators=ALICE) as site:
        hold_samples(site)
        context = browser.new_context(viewport={"width": width, "height": 800})
        sign_in(site, context)
        page = context.new_page()
        page.goto(f"{site.parts.settings.public_url}/admin/?symbol=BAYES_SPAM")
        table = page.get_by_role("table")
        rows = table.get_by_role("row").all()[1:]
        assert len(rows) == 10
        for row in rows:
            cells = row.get_by_role("cell").all()
            boxes = [box for cell in cells if (box := cell.bounding_box()) and box["width"] and box["height"]]
            assert len(cells) == 8 and len(boxes) >= 7, "a state may be empty"
            assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
            for number, one in enumerate(boxes):
                for other in boxes[number + 1 :]:
                    across = min(one["x"] + one["width"], other["x"] + other["width"]) - max(one["x"], other["x"])
                    down = min(one["y"] + one["height"], other["y"] + other["height"]) - max(one["y"], other["y"])
                    assert across <= 0.5 or down <= 0.5, "two cells overlap"
            height = row.bounding_box()
            assert height and height["height"] <= highest
        scrolls = table.evaluate("one => one.parentElement.scrollWidth > one.parentElement.clientWidth")
        assert not scrolls
        headers = [header.inner_text().strip("▼▲ \n") for header in table.get_by_role("columnheader").all()]
        assert headers[:2] == ["Held", "Subject"] and len(headers) == 8
        context.close()


@pytest.mark.parametrize("query", ["?symbol=BAYES_SPAM", "?by=symbol"])
def test_the_head_of_a_table_stays_in_sight(make_parts: Callable[..., Parts], browser: Browser, query: str) -> None:
    with local_site(make_parts, staff__administrators=ALICE) as site:
        for number in range(40):
            site.hold(subject=f"Offer {number}", symbols=(Symbol("BAYES_SPAM", 8.0), Symbol(f"RULE_{number}", 1.0)))
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        sign_in(site, context)
        page = context.new_page()
        page.goto(f"{site.parts.settings.public_url}/admin/{query}")
        table = page.get_by_role("table")
        table.evaluate("one => { one.parentElement.scrollIntoView(); one.parentElement.scrollTop = 1e6 }")
        last = table.get_by_role("row").last.bounding_box()
        assert last and 0 < last["y"] < 800, "it is scrolled to its end"
        for header in table.get_by_role("columnheader").all():
            assert header.evaluate(
                "one => { const box = one.getBoundingClientRect();"
                " return one.contains(document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2)) }"
            )
        context.close()


def test_pages_of_the_console_fit_a_small_phone(make_parts: Callable[..., Parts], browser: Browser) -> None:
    with local_site(make_parts, staff__administrators=ALICE) as site:
        long = f'"{"M" * 60}" <{"l" * 60}@{"o" * 60}.example>'
        held = site.hold(Tier.DANGEROUS, subject="W" * 150, header_from=long)
        site.hold(recipients=(f"{'r' * 60}@example.org",), symbols=(Symbol("S" * 100, 8.0),))
        messages = [f"messages/{held.id}.0/{view}" for view in ("", "text", "headers", "similar")]
        searches = ["", "?symbol=BAYES_SPAM&tier=dangerous", "?by=symbol", f"?symbol={'S' * 100}"]
        jobs = ["jobs/", *(f"jobs/new?symbol=BAYES_SPAM&act={act}" for act in ("release", "delete"))]
        recipients = [f"recipients/?address={ALICE}", "recipients/list", f"recipients/forget?address={ALICE}"]
        others = ["requests", "domains", "domains?domain=example.org", "staff", "statistics", "audit", "tokens"]
        context = browser.new_context(viewport={"width": 320, "height": 640})
        sign_in(site, context)
        page = context.new_page()
        for path in (*searches, *messages, *jobs, *recipients, *others, "second-factor"):
            answer = page.goto(f"{site.parts.settings.public_url}/admin/{path}")
            assert answer and answer.status == 200 and "/admin/" in page.url, path
            page.locator("summary").evaluate_all("all => all.forEach(one => one.click())")
            assert page.evaluate("document.documentElement.scrollWidth") <= 320, path
        context.close()


@pytest.mark.parametrize("language", ["en", "de", "fr", "ar", "ja"])
def test_the_names_of_views_are_beside_each_other(
    make_parts: Callable[..., Parts], browser: Browser, language: str
) -> None:
    """They do not become narrower than their texts: the line scrolls."""
    with local_site(make_parts) as site:
        prefer(site.store, ALICE, Preferences(language=language))
        hold_samples(site)
        context = browser.new_context(viewport={"width": 320, "height": 800})
        sign_in(site, context)
        page = context.new_page()
        page.goto(f"{site.parts.settings.public_url}/")
        views = page.locator(".views a")
        assert views.count() == 5
        assert views.evaluate_all("all => all.filter(one => one.scrollWidth > one.clientWidth).length") == 0
        context.close()


@pytest.mark.parametrize("order", ["newest", "likely"])
@pytest.mark.parametrize("language", ["en", "de", "fr", "ar", "ja"])
@pytest.mark.parametrize("width", [320, 390])
def test_the_domain_of_a_sender_is_seen_in_the_list(
    make_parts: Callable[..., Parts], browser: Browser, width: int, language: str, order: str
) -> None:
    """Also beside the longest button and a day in words: the name is cut before it."""
    with local_site(make_parts) as site:
        prefer(site.store, ALICE, Preferences(language=language))
        senders = ('"Kontor Nord Versandhandel" <orders@kontor-nord.example>', "<lena.wagner@partner-firma.example>")
        for tier, sender in product((Tier.SPAM, Tier.SUSPICIOUS, Tier.DANGEROUS), senders):
            site.hold(tier, subject=f"Offer {tier}", header_from=sender, at=site.now - timedelta(days=9))
        context = browser.new_context(viewport={"width": width, "height": 800})
        sign_in(site, context)
        page = context.new_page()
        page.goto(f"{site.parts.settings.public_url}/?order={order}")
        hosts = page.locator(".from .address bdi").evaluate_all(_SEEN)
        assert len(hosts) == 6
        assert all(hosts), "a domain is cut"
        names = page.locator(".from .who").evaluate_all("all => all.map(one => one.scrollWidth > one.clientWidth)")
        assert width > 320 or all(names), "the test needs a name that is cut"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        context.close()


@pytest.mark.parametrize(("width", "touch"), [(320, True), (390, True), (900, False), (1280, False), (1180, True)])
def test_a_press_on_a_subject_opens_its_message(
    make_parts: Callable[..., Parts], browser: Browser, width: int, touch: bool
) -> None:
    """The line that unfolds similar messages is near it, and covers no subject: neither its own nor the next one."""
    with local_site(make_parts) as site:
        for tier, name, subject, is_deleted in product(
            Tier, ("", '"a@kontor.example" '), ("Offer", "The weekly offers of the shop for houses"), (False, True)
        ):
            sender = f"{name}<{len(subject)}.{is_deleted}@{tier}{len(name)}.example>"
            for number in range(2):
                held = site.hold(tier, subject=f"{subject} {number}", header_from=sender)
                if is_deleted:
                    site.parts.actions.delete(held.id, 0, BY_LINK)
        context = browser.new_context(viewport={"width": width, "height": 844}, has_touch=touch)
        sign_in(site, context)
        page = context.new_page()
        page.goto(f"{site.parts.settings.public_url}/?state=all&size=100")
        assert page.evaluate("matchMedia('(pointer: coarse)').matches") is touch
        assert page.locator(".alike").count() == page.locator(".rows > li").count() == 24
        assert page.locator(".rows > li").evaluate_all(_NOT_HIT) == []
        assert low_targets(page) == []
        frame = page.locator(".do button, .do .button").first.evaluate("one => getComputedStyle(one).borderColor")
        assert ("0, 0, 0, 0" in frame) is not touch, "buttons in rows have no frame beside a mouse only"
        context.close()


def test_links_of_a_job_are_high_enough_for_a_thumb(make_parts: Callable[..., Parts], browser: Browser) -> None:
    with local_site(make_parts) as site:
        for number in range(60):
            site.hold(subject=f"Offer {number * 7919}", header_from=f"<a@n{number}.example>")
        context = browser.new_context(viewport={"width": 390, "height": 800}, java_script_enabled=False)
        sign_in(site, context)
        page = context.new_page()
        page.goto(f"{site.parts.settings.public_url}/?select=matching")
        page.get_by_role("button", name="Delete selected").click()
        for name in ("Stop refreshing", "Refresh automatically"):
            box = page.get_by_role("link", name=name).bounding_box()
            assert box and box["height"] >= 44, name
            page.get_by_role("link", name=name).click()
        context.close()


# Whether the last characters of each address, those of its domain, are in the box around it.
_SEEN = """all => all.map(one => {
    const domain = document.createRange(), text = one.lastChild, host = text.textContent.split("@").pop();
    domain.setStart(text, text.length - host.length);
    domain.setEnd(text, text.length);
    const seen = domain.getBoundingClientRect(), box = one.parentElement.getBoundingClientRect();
    return seen.width > 20 && seen.left >= box.left - 1 && seen.right <= box.right + 1;
})"""

# The rows whose link is not hit by a press on the text of their subject: at its beginning, in the middle, at its end.
_NOT_HIT = """all => all.filter(row => {
    row.scrollIntoView({block: "center"});
    const link = row.querySelector(".mail"), text = new Range();
    text.selectNodeContents(link);
    const box = text.getBoundingClientRect(), seen = row.querySelector(".title").getBoundingClientRect();
    const left = Math.max(box.left, seen.left), right = Math.min(box.right, seen.right);
    return [.5, .8, .95].some(down => [.02, .5, .98].some(along =>
        !link.contains(document.elementFromPoint(left + (right - left) * along, box.y + box.height * down))));
}).map(row => row.innerText)"""
