"""The portal's mails in mail programs with few styles: where things are and whether they can be read, not pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from digest.housekeeping import send_queued
from portal.assemble import Parts
from portal.model.links import Action
from portal.model.message import Symbol, Tier
from tests.builders import ALICE
from tests.system.local_site import LocalSite, local_site, part, read_mail
from tests.system.mail_programs import show_in_word, show_without_sheets
from tests.system.samples import hold_everyday_mail, hold_samples

pytestmark = pytest.mark.system

Show = Callable[[Page, str], None]
# Mail has no page around it in these widths: a phone, a reading pane, a window. Word is on desktops only.
PLACES = [(show_without_sheets, 320), (show_without_sheets, 700), (show_in_word, 700), (show_in_word, 1280)]
IDS = ["without style sheets-320", "without style sheets-700", "Word-700", "Word-1280"]
MAIL_WIDTH = 640

# All that is written: text, size, fonts, contrast with the background (WCAG 2.2, 1.4.3).
_WRITTEN = """() => {
  const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true})
  const light = colour => {
    context.fillStyle = colour
    context.fillRect(0, 0, 1, 1)
    const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map(each => each / 255)
      .map(each => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const ground = one => {
    for (; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor
      if (colour !== "rgba(0, 0, 0, 0)") return colour
    }
    return "rgb(255, 255, 255)"
  }
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = []
  while (walker.nextNode()) {
    const node = walker.currentNode, one = node.parentElement, style = getComputedStyle(one)
    if (!node.data.trim() || !one.checkVisibility()) continue
    const [a, b] = [light(style.color), light(ground(one))].sort((one, other) => other - one)
    const range = document.createRange()
    range.selectNodeContents(node)
    const box = range.getBoundingClientRect()
    found.push({text: node.data.trim(), size: parseFloat(style.fontSize), fonts: style.fontFamily,
                contrast: (a + 0.05) / (b + 0.05), left: box.left, right: box.right})
  }
  return found
}"""


@pytest.fixture
def store_url(files_url: str) -> str:
    """A single store: mails are the same on all stores."""
    return files_url


@pytest.fixture
def site(make_parts: Callable[..., Parts], language: str) -> Iterator[LocalSite]:
    with local_site(make_parts, mail__admin_address="postmaster@example.org", digest__language=language) as made:
        yield made


@pytest.fixture
def language() -> str:
    return "en"


@pytest.fixture
def page(browser: Browser, width: int) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": width, "height": 640})
    yield context.new_page()
    context.close()


def check_text(page: Page, width: int) -> None:
    """Check that all text can be read and is within the width of a mail."""
    written = page.evaluate(_WRITTEN)
    assert len(written) > 5
    mail = min(width, MAIL_WIDTH)
    for each in written:
        assert each["size"] >= 13 and each["contrast"] >= 4.5, each
        assert "Segoe UI" in each["fonts"] or "sans-serif" in each["fonts"], each
        assert each["left"] >= (width - mail) / 2 - 1 and each["right"] <= (width + mail) / 2 + 1, each
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def button_box(page: Page, name: str) -> list[dict[str, float]]:
    """Return the coloured areas of buttons with a name; their text is within, with space on all sides."""
    found = []
    for link in page.get_by_role("link", name=name, exact=True).all():
        area: dict[str, Any] = link.evaluate(
            """link => {
              const one = [link, link.parentElement].reverse().find(
                each => getComputedStyle(each).backgroundColor === "rgb(11, 87, 208)")
              const range = document.createRange()
              range.selectNodeContents(link)
              const {x, y, width, height} = one.getBoundingClientRect(), text = range.getBoundingClientRect()
              return {x, y, width, height, left: text.left - x, right: x + width - text.right,
                      above: text.top - y, below: y + height - text.bottom, colour: getComputedStyle(link).color}
            }"""
        )
        assert area["colour"] == "rgb(255, 255, 255)" and area["height"] >= 44 and area["width"] >= 60, area
        assert min(area["left"], area["right"]) >= 12 and min(area["above"], area["below"]) >= 8, area
        found.append(area)
    return found


@pytest.mark.parametrize(("show", "width"), PLACES, ids=IDS)
@pytest.mark.parametrize("language", ["en", "ar", "ja"])
def test_a_digest_holds_in_programs_with_few_styles(site: LocalSite, page: Page, show: Show, width: int) -> None:
    hold_samples(site, site.parts.settings.digest.language)
    show(page, part(site.digest(), "html"))
    check_text(page, width)
    name = site.parts.render.language_for(site.parts.settings.digest.language).gettext("Release")
    buttons = button_box(page, name)
    assert len(buttons) == 6
    for area, link in zip(buttons, page.get_by_role("link", name=name, exact=True).all(), strict=True):
        row = link.locator("xpath=ancestor::tr[2]")
        box, facts = row.bounding_box(), row.locator("xpath=td[1]").bounding_box()
        assert box is not None and facts is not None
        assert box["y"] <= area["y"] and area["y"] + area["height"] <= box["y"] + box["height"] + 1, "it is in its row"
        beside = area["x"] - facts["x"] - facts["width"], facts["x"] - area["x"] - area["width"]
        assert facts["width"] >= min(width, MAIL_WIDTH) * 0.4 and max(beside) >= 0, "the columns do not overlap"
        assert len(row.locator("xpath=td[1]").inner_text().splitlines()) >= 2, "sender and subject"
        assert " · " in row.locator("xpath=following-sibling::tr[1]").inner_text(), "reasons, score and time below"
    sizes = page.locator("h1, h2").evaluate_all("all => all.map(one => parseFloat(getComputedStyle(one).fontSize))")
    assert min(sizes) > 16 and sizes[0] == max(sizes)


# The top and height of each row, and the number of lines of its reasons.
_ROWS = """() => [...document.querySelectorAll("tr:has(> td + td)")].map(first => {
  const second = first.nextElementSibling, small = second.querySelector("small"), range = document.createRange()
  range.selectNodeContents(small)
  if (small.querySelector("br")) range.setStartAfter(small.querySelector("br"))  // a caution is before it
  const {top} = first.getBoundingClientRect(), {bottom} = second.getBoundingClientRect()
  const baselines = [...range.getClientRects()].map(each => Math.round(each.bottom / 8))
  return {top, bottom, lines: new Set(baselines).size}
})"""


@pytest.mark.parametrize("width", [390])
def test_a_phone_shows_the_first_rows_at_once(site: LocalSite, page: Page) -> None:
    """With the widest of the usual fonts, DejaVu Sans: the phone's own are narrower."""
    site.hold(recipients=[ALICE])
    site.digest()  # the first digest of a recipient has one more sentence
    hold_everyday_mail(site)
    read_mail(page, site.digest())
    rows = page.evaluate(_ROWS)
    heights = [each["bottom"] - each["top"] for each in rows]
    assert len(rows) == 50
    assert rows[0]["top"] <= 300
    assert sum(each["bottom"] <= 844 for each in rows) >= 4
    assert median(heights) <= 120 and max(heights) <= 178
    assert {each["lines"] for each in rows} == {1}


@pytest.mark.parametrize("width", [390])
@pytest.mark.parametrize("language", ["en", "ar", "ja"])
def test_reasons_have_one_line_on_a_phone(site: LocalSite, page: Page, language: str) -> None:
    hold_samples(site, language)
    read_mail(page, site.digest())
    rows = page.evaluate(_ROWS)
    assert len(rows) == 9
    assert {each["lines"] for each in rows} == {1}


@pytest.mark.parametrize(("show", "width"), PLACES, ids=IDS)
def test_long_words_of_senders_do_not_widen_it(site: LocalSite, page: Page, show: Show, width: int) -> None:
    word = "unbroken" * 20
    site.hold(recipients=[ALICE], subject=word, header_from=f"{word} <{word[:60]}@{word[:60]}.example>")
    forged = {
        "header_from": f'"{word}@example.org" <x@{word[:60]}.example>',
        "symbols": [Symbol("SPOOF_DISPLAY_NAME", 8)],
    }
    site.hold(Tier.DANGEROUS, recipients=[ALICE], subject="\u202eabc" + word, **forged)
    mail = site.digest()
    show(page, part(mail, "html"))
    check_text(page, width)
    assert len(button_box(page, "Release")) == 1
    assert word[:100] in part(mail, "plain"), "the text part has it as it is"


# Where the first letter, the punctuation at the end and what follows are, from left to right.
_PLACES = """([text, after]) => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), range = document.createRange()
  const place = (node, at) => {
    range.setStart(node, at)
    range.setEnd(node, at + 1)
    return range.getBoundingClientRect().left
  }
  const found = {}
  while (walker.nextNode()) {
    const node = walker.currentNode, at = node.data.indexOf(text), next = node.data.indexOf(after)
    if (at >= 0) Object.assign(found, {first: place(node, at), end: place(node, at + text.length - 1)})
    if (next >= 0) found.after = place(node, next)
  }
  return Object.keys(found).sort((one, other) => found[one] - found[other])
}"""


@pytest.mark.parametrize(("show", "width"), PLACES[2:3], ids=IDS[2:3])
@pytest.mark.parametrize(
    ("language", "text", "direction"),
    [("en", "ab \u05d0\u05d1", "ltr"), ("en", "\u05d0\u05d1!", "rtl"), ("ar", "Offers!", "ltr")],
)
def test_the_direction_of_a_name_moves_nothing_beside_it(
    site: LocalSite, page: Page, show: Show, text: str, direction: str
) -> None:
    """In Word as well, which knows no `bdi`: the punctuation of a name is at its end, and its address after it."""
    site.hold(recipients=[ALICE], header_from=f"{text} <9@x.example>")
    show(page, part(site.digest(), "html"))
    own = ["first", "end"] if direction == "ltr" else ["end", "first"]
    assert page.evaluate(_PLACES, [text, "9@x.example"]) == (
        ["after", *own] if site.parts.settings.digest.language == "ar" else [*own, "after"]
    )


@pytest.mark.parametrize(("show", "width"), PLACES, ids=IDS)
def test_the_mail_with_a_sign_in_link_has_a_button(site: LocalSite, page: Page, show: Show, width: int) -> None:
    page.goto(f"{site.parts.settings.public_url}/sign-in")
    page.get_by_label("Email address").fill(ALICE)
    page.get_by_role("button", name="Send link").click()
    send_queued(site.parts, site.now)
    show(page, part(site.last_mail(), "html"))
    check_text(page, width)
    assert len(button_box(page, "Sign in")) == 1


@pytest.mark.parametrize(("show", "width"), PLACES, ids=IDS)
def test_the_answer_to_an_unsubscription_has_a_button(site: LocalSite, page: Page, show: Show, width: int) -> None:
    site.hold(recipients=[ALICE])
    site.digest()
    digest = site.store.digests.last(ALICE)
    assert digest
    preferences = site.parts.links.url(Action.PREFERENCES, digest.id, 0, digest.issued_at)
    assert page.request.post(preferences, form={"List-Unsubscribe": "One-Click"}).ok
    send_queued(site.parts, site.now)
    show(page, part(site.last_mail(), "html"))
    check_text(page, width)
    assert len(button_box(page, "Open my preferences")) == 1
