"""Rows of the list: short reasons, the gravest warning, the group, and when the message was held."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from datetime import timedelta
from zoneinfo import ZoneInfo

import pytest

from portal.mail.languages import get
from portal.mail.relay import Relay
from portal.model.errors import RelayRefused
from portal.model.message import Symbol, Tier
from tests.builders import ALICE, BY_LINK, BY_OPERATOR
from tests.conftest import MakeParts
from tests.smtp_server import SmtpServer
from tests.web_client import Site

SPOOFED = Symbol("SPOOF_DISPLAY_NAME", 8.0)
WARNING = "The display name shows a different address than the real sender"


@pytest.fixture
def site(make_parts: MakeParts) -> Site:
    return Site(make_parts(digest__timezone="Africa/Algiers"))


def texts(page: str, kind: str) -> list[str]:
    """Return the texts of all elements of a class."""
    found = re.findall(rf'<(span|label) class="{kind}"[^>]*>(.*?)</\1>', page, re.DOTALL)
    return [html.unescape(re.sub("<[^>]+>", "", text)).strip() for _, text in found]


def test_reasons_have_few_words_and_come_once(site: Site) -> None:
    names = ("DBL_SPAM", "RDNS_NONE", "URIBL_BLACK", "BAYES_SPAM")
    held = site.hold(symbols=tuple(Symbol(name, 5.0) for name in names))
    browser = site.signed_in(ALICE)
    [why] = texts(browser.get("/").text, "why")
    reasons = why.split(" · ")
    assert "spam link" in reasons and "misconfigured server" in reasons
    assert len(reasons) == len(set(reasons)) and all(len(each.split()) <= 3 for each in reasons)
    assert "Contains a link to a known spam site" in browser.get(f"/messages/{held.id}/").text


@pytest.mark.parametrize(
    ("tier", "plain", "spoofed"),
    [
        (Tier.SPAM, [], [f"Caution: {WARNING}"]),
        (Tier.SUSPICIOUS, ["Check this message before you release it"], [f"Check first · {WARNING}"]),
        (Tier.DANGEROUS, ["Possibly dangerous"], [f"Possibly dangerous · {WARNING}"]),
    ],
)
def test_a_warning_about_the_sender_hides_no_graver_one(
    site: Site, tier: Tier, plain: list[str], spoofed: list[str]
) -> None:
    browser, sender = site.signed_in(ALICE), '"alice@example.org" <x@evil.example>'
    site.hold(tier, subject="An offer", header_from="Shop <a@shop.example>")
    assert texts(browser.get("/").text, "alert") == plain
    site.hold(tier, subject="Your account", header_from=sender, symbols=(SPOOFED,))
    assert texts(browser.get("/").text, "alert") == spoofed + plain


def test_what_happened_before_hides_no_caution(site: Site) -> None:
    denied, failed = site.hold(Tier.DANGEROUS, subject="Denied"), site.hold(Tier.SUSPICIOUS, subject="Failed")
    site.parts.actions.request_release(denied.id, 0, BY_LINK)
    site.parts.actions.refuse_request(denied.id, 0, BY_OPERATOR, "A virus.")
    with SmtpServer(script={"MAIL": "552 5.3.4 too large"}) as relay, pytest.raises(RelayRefused):
        replace(site.parts.actions, relay=Relay(relay.url)).release(failed.id, 0, BY_LINK)
    browser = site.signed_in(ALICE)
    assert texts(browser.get("/").text, "alert") == [
        "Check this message before you release it · The last release failed: MAIL FROM: 552 5.3.4 too large",
        "Possibly dangerous · The release request was denied: A virus.",
    ]


def test_the_box_of_similar_messages_says_that_it_takes_all_of_them(site: Site) -> None:
    for number in range(3):
        site.hold(subject=f"Weekly offers {number}")
    site.hold(subject="Your order", header_from="<a@shop.example>")
    page = site.signed_in(ALICE).get("/").text
    assert texts(page, "tick") == [
        "Select: Your order",
        "Select: Weekly offers 2 · Similar messages: 2 · selected together",
    ]
    assert texts(page, "many") == ["Similar messages: 2 · selected together"]


def test_likely_mistakes_have_the_time_of_today_and_the_day_of_others(site: Site) -> None:
    site.now = site.now.replace(hour=22, minute=30)  # 23:30 in Algiers, where there is no summer time
    for hours in (0, 2, 24):
        at = site.now - timedelta(hours=hours)
        site.hold(at=at, subject=f"Offer {hours * 7919}", header_from=f"<a@n{hours}.example>")
    today, yesterday = (
        get("en").short_day(at, ZoneInfo("Africa/Algiers")) for at in (site.now, site.now - timedelta(days=1))
    )
    browser = site.signed_in(ALICE)
    assert texts(browser.get("/?order=likely").text, "when") == ["23:30", "21:30", yesterday]
    site.now += timedelta(hours=1)
    assert texts(browser.get("/?order=likely").text, "when") == [today, today, yesterday]
    assert texts(browser.get("/?order=newest").text, "when") == ["23:30", "21:30", "23:30"]


def test_each_subject_is_a_heading_below_that_of_its_day(site: Site) -> None:
    site.hold(subject="Your order <1>")
    site.hold(subject="")
    page = site.signed_in(ALICE).get("/").text
    main = page[page.index("<main") :]
    found = re.findall(r"<h([1-6])[^>]*>(.*?)</h\1>", main[: main.index('class="foot"')], re.DOTALL)
    named = [(level, re.sub("<[^>]+>", "", text)) for level, text in found]
    assert [level for level, _ in named] == ["1", "2", "3", "3"]
    assert [text for _, text in named[2:]] == ["(no subject)", "Your order &lt;1&gt;"]
