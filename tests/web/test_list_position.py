"""The list of messages: which of them a page shows, and which are soon removed."""

from __future__ import annotations

import html
import re
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from portal.model.message import DeliveryId, Symbol, Tier
from portal.model.schedule import Preferences
from portal.web import inbox
from portal.web.listing import Listing
from tests.builders import ALICE, BOB, BY_LINK, prefer
from tests.conftest import MakeParts
from tests.web_client import Browser, Site

INFO = "info@example.org"


@pytest.fixture
def site(make_parts: MakeParts) -> Site:
    return Site(make_parts(digest__timezone="Europe/Berlin"))


def fill(site: Site, count: int, recipients: tuple[str, ...] = (ALICE,)) -> list[DeliveryId]:
    """Hold so many messages, none of which are near-duplicates."""
    helds = [
        site.hold(subject=f"Offer {n * 7919}", header_from=f"<a@n{n}.example.net>", recipients=recipients, score=20 + n)
        for n in range(count)
    ]
    return [DeliveryId(each.id, 0) for each in helds]


def position(page: str) -> str:
    found = re.search(r'<span class="at">([^<]*)</span>', page)
    return found[1] if found else ""


def page_after(browser: Browser, page: str, rel: str) -> str:
    found = re.search(rf'href="([^"]*)" rel="{rel}"', page)
    if not found:
        return ""
    answer = browser.get(html.unescape(found[1]))
    return (browser.get(answer.header("Location") or "") if answer.status == 303 else answer).text


def link(page: str, rel: str) -> str:
    [found] = re.findall(rf'href="([^"]*)" rel="{rel}"', page)
    return html.unescape(found)


def shown(page: str) -> list[str]:
    return re.findall(r'<li id="m-([^"]*)"', page)


def walk(browser: Browser, path: str, rel: str = "next") -> list[str]:
    """Return the position of this page and of all that follow."""
    page, found = browser.get(path).text, []
    while page:
        found.append(position(page))
        page = page_after(browser, page, rel)
    return found


@pytest.mark.parametrize("order", ["newest", "likely"])
def test_a_page_says_which_messages_of_how_many_it_shows(site: Site, order: str) -> None:
    fill(site, 60)
    browser = site.signed_in(ALICE)
    assert walk(browser, f"/?order={order}") == ["1–25 of 60", "26–50 of 60", "51–60 of 60"]
    last = browser.get("/").text
    while further := page_after(browser, last, "next"):
        last = further
    middle = page_after(browser, last, "prev")
    assert [position(middle), position(page_after(browser, middle, "prev"))] == ["26–50 of 60", "1–25 of 60"]
    assert walk(browser, "/?size=100") == [""], "a single page has no pager"
    offered = 'href="/quarantine/?order=likely&amp;size=100">Likely mistakes first, all 60<'
    assert [
        offered in browser.get(path).text
        for path in ("/?order=newest&size=50", "/?order=newest&size=100", "/?order=newest&q=offer&size=25")
    ] == [
        True,
        False,
        False,
    ]


def test_the_position_is_counted_anew_on_each_page(site: Site) -> None:
    """Messages that were held or deleted in the meantime do not make it wrong."""
    helds = fill(site, 60)
    browser = site.signed_in(ALICE)
    second = re.search(r'href="([^"]*)" rel="next"', browser.get("/").text)
    assert second
    for key in helds[-3:]:
        site.parts.actions.delete(*key, BY_LINK)
    assert position(browser.get(html.unescape(second[1])).text) == "23–47 of 57"
    fill(site, 5)
    assert position(browser.get(html.unescape(second[1])).text) == "28–52 of 62"


def test_similar_messages_in_one_row_are_counted(site: Site) -> None:
    for _ in range(30):
        site.hold(subject="The same offer")
    fill(site, 30)
    browser = site.signed_in(ALICE)
    assert walk(browser, "/") == ["1–25 of 60", "26–50 of 60", "51–60 of 60"]
    assert walk(browser, "/?order=likely") == ["1–54 of 60", "55–60 of 60"]


@pytest.mark.parametrize("query", ["?q=offer", "?sender=example.net", "?mailbox=alice@example.org"])
def test_a_search_does_not_say_how_many_there_are_before_it_knows(site: Site, query: str) -> None:
    fill(site, 60)
    browser = site.signed_in(ALICE)
    positions = ["1–25 of more than 25", "26–50 of more than 50", "51–60 of 60"]
    assert walk(browser, f"/{query}") == positions
    last = browser.get(f"/{query}").text
    while further := page_after(browser, last, "next"):
        last = further
    middle = page_after(browser, last, "prev")
    assert [position(middle), position(page_after(browser, middle, "prev"))] == positions[1::-1]
    assert walk(browser, f"/{query}&select=matching")[0] == "1–25 of 60"


@pytest.mark.parametrize("query", ["", "?q=offer"])
def test_newer_leads_back_from_any_page_to_the_first_one(
    site: Site, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    """Also from a bookmark, and when messages were held or deleted in the meantime."""
    monkeypatch.setattr("portal.web.listing._SIZE", "2")
    helds = fill(site, 31)
    browser = site.signed_in(ALICE)
    page, pages = browser.get(f"/{query}").text, list[str]()
    while page:
        pages.append(page)
        page = page_after(browser, page, "next")
    assert len(pages) == 16
    bookmark = link(pages[-1], "prev")
    page, back = browser.get(bookmark).text, [pages[-1]]
    assert len(bookmark) < 100
    while page:
        back.insert(0, page)
        page = page_after(browser, page, "prev")
    assert [shown(each) for each in back] == [shown(each) for each in pages]
    assert [position(each).split(" ")[0] for each in back] == [position(each).split(" ")[0] for each in pages]
    assert query or link(pages[1], "prev") == "/quarantine/"
    for key in helds[2:]:
        site.parts.actions.delete(*key, BY_LINK)
    answer = browser.get(bookmark)
    assert (answer.status, answer.header("Location")) == (303, f"/quarantine/{query}"), "nothing is newer than the page"
    late = fill(site, 2)
    page = browser.get(bookmark).text
    assert shown(page) == [f"{id}.0" for id, _ in (late[0], helds[1])]
    answer = browser.get(link(page, "prev"))
    first = answer if answer.status == 200 else browser.follow(answer, "/")
    assert shown(first.text) == [f"{id}.0" for id, _ in late[::-1]]


@pytest.mark.parametrize("query", ["", "?q=offer"])
def test_newer_leaves_out_nothing_that_was_on_the_page_before(
    site: Site, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    monkeypatch.setattr("portal.web.listing._SIZE", "5")
    fill(site, 15)
    browser = site.signed_in(ALICE)
    first = browser.get(f"/{query}").text
    second = page_after(browser, first, "next")
    third = page_after(browser, second, "next")
    fill(site, 4)
    back = page_after(browser, third, "prev")
    assert shown(back) == shown(second)
    assert {*shown(first)} <= {*shown(page_after(browser, back, "prev"))}


def hold_ranked(site: Site, score: float, **more: Any) -> str:
    """Hold a message that is at the place of its score in the order of likely mistakes; return its row."""
    held = site.hold(
        subject=f"Offer {score}", header_from=f"<a@s{score}.example>", recipients=(ALICE,), **more, score=score
    )
    return f"{held.id}.0"


def delete(site: Site, row: str) -> None:
    site.parts.actions.delete(UUID(row.partition(".")[0]), 0, BY_LINK)


@pytest.mark.parametrize("query", ["", "&q=offer"])
@pytest.mark.parametrize("deleted", [(), (2,), (4,), (3, 4), (5,), (0, 1, 2, 3, 4), (4, 5, 6)])
def test_no_row_of_the_likely_mistakes_is_repeated_or_left_out(
    site: Site, monkeypatch: pytest.MonkeyPatch, query: str, deleted: tuple[int, ...]
) -> None:
    """Between two pages messages are deleted elsewhere, and others are held before and after the row between them."""
    monkeypatch.setattr("portal.web.listing._SIZE", "5")
    rows = [hold_ranked(site, 20 + n) for n in range(15)]
    browser = site.signed_in(ALICE)
    first = browser.get(f"/?order=likely{query}").text
    assert shown(first) == rows[:5]
    for number in deleted:
        delete(site, rows[number])
    hold_ranked(site, 19)
    late = hold_ranked(site, 26.5)
    rows[7:7] = [late]
    left = [row for number, row in enumerate(rows) if number >= 5 and number not in deleted]
    second = page_after(browser, first, "next")
    assert shown(second) == left[:5]
    assert shown(page_after(browser, second, "next")) == left[5:10]


@pytest.mark.parametrize("query", ["", "&q=offer"])
@pytest.mark.parametrize("deleted", [(), (2,), (5,), (9,), (10,), (10, 11), (9, 10)])
def test_no_row_is_repeated_or_left_out_on_the_way_back(
    site: Site, monkeypatch: pytest.MonkeyPatch, query: str, deleted: tuple[int, ...]
) -> None:
    monkeypatch.setattr("portal.web.listing._SIZE", "5")
    rows = [hold_ranked(site, 20 + n) for n in range(15)]
    browser = site.signed_in(ALICE)
    page = browser.get(f"/?order=likely{query}").text
    for _ in range(2):
        page = page_after(browser, page, "next")
    assert shown(page) == rows[10:]
    for number in deleted:
        delete(site, rows[number])
    early, late = hold_ranked(site, 19), hold_ranked(site, 29.5)
    before = [early, *(row for number, row in enumerate(rows[:10]) if number not in deleted), late]
    back = page_after(browser, page, "prev")
    assert shown(back) == before[-5:]
    assert shown(page_after(browser, back, "next")) == [row for n, row in enumerate(rows) if n > 9 and n not in deleted]
    further = page_after(browser, back, "prev")
    # The first page is as long as any other.
    assert shown(further) == (before[-10:-5] if len(before) > 10 else before[:5])


def test_a_last_page_whose_rows_are_gone_does_not_say_that_nothing_is_held(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("portal.web.listing._SIZE", "5")
    rows = [hold_ranked(site, 20 + n) for n in range(7)]
    browser = site.signed_in(ALICE)
    older = link(browser.get("/?order=likely").text, "next")
    for row in rows[5:]:
        delete(site, row)
    page = browser.get(older).text
    assert "No held messages." not in page and "No more messages." in page


def test_the_place_of_a_row_that_is_gone_is_its_number_in_a_large_mailbox(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search takes the statement that would find it."""
    monkeypatch.setattr("portal.web.listing._SIZE", "5")
    monkeypatch.setattr(inbox, "NEWEST_MAX", 10)
    rows = [hold_ranked(site, 20 + n) for n in range(15)]
    browser = site.signed_in(ALICE)
    first = browser.get("/?order=likely&q=offer").text
    second = page_after(browser, first, "next")
    delete(site, rows[5])
    third = page_after(browser, second, "next")
    assert shown(page_after(browser, second, "prev")) == rows[:5]
    delete(site, rows[4])
    assert shown(page_after(browser, first, "next")) == rows[6:11]
    assert shown(third) == rows[10:]


def test_a_row_of_near_duplicates_is_found_by_those_that_are_left(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal.web.listing._SIZE", "5")
    rows = [hold_ranked(site, 20 + n) for n in range(8)]
    same = [site.hold(subject=f"Invoice {n}", header_from="<a@same.example>", score=24.5) for n in range(3)]
    browser = site.signed_in(ALICE)
    page = browser.get("/?order=likely").text
    assert shown(page) == rows[:5]
    second = page_after(browser, page, "next")
    assert shown(second) == [f"{same[2].id}.0", *rows[5:]]
    delete(site, f"{same[2].id}.0")
    assert shown(page_after(browser, second, "prev")) == rows[:5]
    monkeypatch.setattr("portal.web.listing._SIZE", "6")
    page = browser.get("/?order=likely").text
    assert shown(page) == [*rows[:5], f"{same[1].id}.0"]
    delete(site, f"{same[1].id}.0")
    assert shown(page_after(browser, page, "next")) == rows[5:]
    delete(site, f"{same[0].id}.0")
    assert shown(page_after(browser, page, "next")) == rows[5:]


def test_the_last_of_two_pages_offers_all_messages_like_the_first_one(site: Site) -> None:
    fill(site, 30)
    browser = site.signed_in(ALICE)
    first = browser.get("/").text
    for page in (first, page_after(browser, first, "next")):
        assert "Select all 30" in page and "first, all 30" in page


@pytest.mark.parametrize(
    ("typed", "words", "sender"),
    [
        ("from:shop.example from:kontor", "", "kontor"),
        ("offer from:shop news FROM:kontor pla", "offer news pla", "kontor"),
        ('"message from: hr" x', '"message from: hr" x', ""),
        ('"from: hr" from:shop', '"from: hr"', "shop"),
        ('from:"a b"from:shop', "", "a b"),
        ('say "from:shop', 'say "from:shop', ""),
    ],
)
def test_a_sender_in_the_search_is_read_once(typed: str, words: str, sender: str) -> None:
    """The addresses that a page makes from it name the same list."""
    listing = Listing.of([("q", typed)])
    assert (" ".join(listing.get("q").split()), listing.get("sender")) == (words, sender)
    assert Listing.of_query(listing.query()) == listing


def test_a_page_without_matches_leads_on_in_its_direction(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal.stores.search.EXAMINED_MAX", 5)
    helds = fill(site, 12)
    shop = site.hold(header_from="The Shop <a@b.example>")
    browser = site.signed_in(ALICE)
    page = browser.get(f"/?sender=hop&down_to={helds[0].message_id}.0").text
    for _ in range(2):
        assert "No matches here. Choose “Newer” to continue." in page
        answer = browser.get(link(page, "prev"))
        page = answer.text if answer.status == 200 else browser.follow(answer, "/").text
    assert shown(page) == [f"{shop.id}.0"] and "Choose “Older”" in browser.get(f"{link(page, 'next')}").text


def test_a_large_mailbox_has_more_messages_than_are_counted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "_COUNTED", 40)
    fill(site, 110)
    positions = walk(site.signed_in(ALICE), "/")
    assert positions[:2] == ["1–25 of more than 40", "26–50 of more than 50"]
    assert "first, all" not in site.signed_in(ALICE).get("/").text
    assert positions[2:] == ["51–75 of more than 75", "76–100 of more than 100", "101–110 of 110"]


def test_the_position_in_several_mailboxes(make_parts: MakeParts, tmp_path: Path) -> None:
    (tmp_path / "virtual").write_text(f"{INFO} {ALICE}, {BOB}\n")
    site = Site(make_parts(people__alias_file=tmp_path / "virtual"))
    for _ in range(4):
        fill(site, 10, (INFO,))
        fill(site, 5)
    browser = site.signed_in(ALICE)
    assert walk(browser, "/") == ["1–25 of 60", "26–50 of 60", "51–60 of 60"]
    assert walk(site.signed_in(BOB), "/") == ["1–25 of 40", "26–40 of 40"]


@pytest.mark.parametrize("odd", ["at=x", "at=-3", "at=99999999", "at=7", "down_to=x", "down_to=" + "-" * 400])
def test_addresses_with_odd_positions_show_the_list(site: Site, odd: str) -> None:
    fill(site, 60)
    assert position(site.signed_in(ALICE).get(f"/?{odd}").text) == "1–25 of 60"


# ---- removal


def ends(page: str) -> list[str]:
    return re.findall(r'<span class="ends">([^<]*)</span>', page)


def test_a_row_says_when_its_message_is_soon_removed(site: Site) -> None:
    days = site.parts.settings.store.retention_days
    for left in (20, 6, 4, 3, 1, 0):
        site.hold(
            at=site.now - timedelta(days=days - left), subject=f"Ends in {left}", header_from=f"<a@n{left}.example>"
        )
    assert ends(site.signed_in(ALICE).get("/").text) == [
        "Removed in 4 days",
        "Removed in 3 days",
        "Removed tomorrow",
        "Removed today",
    ]
    site.pass_time(days=1)
    assert ends(site.signed_in(ALICE).get("/").text)[:3] == [
        "Removed in 5 days",
        "Removed in 3 days",
        "Removed in 2 days",
    ]


def test_days_until_the_removal_are_those_of_the_reader(site: Site) -> None:
    """At 20:00 UTC, what ends four hours later ends tomorrow in Berlin and today in New York."""
    site.now = site.now.replace(hour=20, minute=0, second=0)
    site.hold(at=site.now - timedelta(days=site.parts.settings.store.retention_days) + timedelta(hours=4, minutes=30))
    browser = site.signed_in(ALICE)
    assert ends(browser.get("/").text) == ["Removed tomorrow"]
    prefer(site.store, ALICE, Preferences(timezone="America/New_York"))
    assert ends(browser.get("/").text) == ["Removed today"]


def test_of_a_short_retention_only_the_last_third_is_soon(make_parts: MakeParts) -> None:
    site = Site(make_parts(store__retention_days=6))
    for age in range(6):
        site.hold(at=site.now - timedelta(days=age), subject=f"Age {age}", header_from=f"<a@n{age}.example>")
    assert ends(site.signed_in(ALICE).get("/").text) == ["Removed in 2 days", "Removed tomorrow"]


def test_only_what_can_still_be_lost_is_soon_removed(site: Site) -> None:
    """A requested message is kept until somebody answers, and a released one was delivered."""
    at = site.now - timedelta(days=site.parts.settings.store.retention_days - 2)
    deleted, requested = site.hold(at=at), site.hold(Tier.DANGEROUS, at=at)
    site.parts.actions.delete(deleted.id, 0, BY_LINK)
    browser = site.signed_in(ALICE)
    page = browser.get(f"/messages/{requested.id}/").text
    assert "<b>Removed in 2 days.</b>" in page and "<dt>Removed on</dt>" in page
    site.parts.actions.request_release(requested.id, 0, BY_LINK)
    assert ends(browser.get("/?state=deleted").text) == ["Removed in 2 days"]
    assert ends(browser.get("/?state=requested").text) == []
    page = browser.get(f"/messages/{requested.id}/").text
    assert "Removed in" not in page and "<dt>Removed on</dt>" not in page


def test_the_page_of_a_message_says_on_which_day_it_is_removed(site: Site) -> None:
    held = site.hold(at=site.now - timedelta(days=1))
    page = site.signed_in(ALICE).get(f"/messages/{held.id}/").text
    end = site.delivery(held).message.held_at + timedelta(days=site.parts.settings.store.retention_days)
    day = end.astimezone(ZoneInfo("Europe/Berlin")).day
    assert re.search(rf"<dt>Removed on</dt>\s*<dd>{day} ", page) and "<b>Removed" not in page


# ---- marks


def test_rows_with_attachments_are_marked_and_sections_counted(site: Site) -> None:
    site.hold(subject="An invoice", header_from="<a@b.example>", symbols=(Symbol("HAS_ATTACHMENT", 0.0),))
    for _ in range(3):
        site.hold(subject="The same offer")
    site.hold(Tier.DANGEROUS, subject="A virus")
    browser = site.signed_in(ALICE)
    for path in ("/", "/?order=likely"):
        page = browser.get(path).text
        [row] = re.findall(r"<li id=(?:(?!</li>).)*class=\"attached\".*?</li>", page, re.DOTALL)
        assert "<bdi>An invoice</bdi>" in row and '<span class="for-readers">With attachments</span>' in row
    counts = dict(re.findall(r'<h2>(.*?) <span class="count">(.*?)</span></h2>', page))
    assert counts == {"Other messages": "4", "Possibly dangerous messages": "1"}
