"""From one message to the next or previous one of the list, and sending a released message again."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator

import pytest

from portal.assemble import Parts
from portal.model.message import EventKind, State, Symbol, Tier
from tests.builders import ALICE, BOB, BY_OPERATOR, hold
from tests.smtp_server import SmtpServer
from tests.web_client import Answer, Browser, Site


@pytest.fixture
def relay() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def site(make_parts: Callable[..., Parts], relay: SmtpServer) -> Site:
    return Site(make_parts(relay__url=relay.url))


def follow(browser: Browser, page: Answer, rel: str) -> Answer:
    """Follow the link of a page to its neighbour."""
    link = re.search(rf'href="([^"]+)" rel="{rel}"', page.text)
    assert link, page.text
    return browser.follow(browser.get(html.unescape(link[1])), "/")


def opened(browser: Browser, path: str, subject: str) -> Answer:
    """Open the message of this subject from a list."""
    link = re.search(rf'<a class="mail" href="([^"]+)"[^>]*><bdi>{subject}<', browser.get(path).text)
    assert link
    return browser.get(html.unescape(link[1]))


def older(page: Answer) -> str:
    """Return the path of the next page of a list."""
    [link] = re.findall(r'href="/quarantine([^"]+)" rel="next"', page.text)
    return html.unescape(link)


def subject(page: Answer) -> str:
    found = re.search(r"<h1><bdi>([^<]+)</bdi></h1>", page.text)
    return found[1] if found else ""


def test_neighbours_are_those_of_the_list_and_skip_what_was_acted_on(site: Site) -> None:
    site.hold(subject="pear d")
    deleted = site.hold(subject="pear c")
    site.hold(subject="plum")
    hold(site.store, recipients=(BOB,), subject="pear of another")
    held = site.hold(subject="pear b")
    site.hold(subject="pear a")
    browser = site.signed_in(ALICE)
    page = opened(browser, "/?q=pear", "pear b")
    assert subject(follow(browser, page, "prev")) == "pear a"
    assert subject(follow(browser, page, "next")) == "pear c"
    token = {"form_token": browser.form_token(), "from": "message?q=pear"}
    browser.post(f"/messages/{deleted.id}/delete", token)
    after = browser.follow(browser.post(f"/messages/{held.id}/delete", token), "/")
    assert "Deleted on" in after.text
    last = follow(browser, after, "next")
    assert subject(last) == "pear d"
    assert 'value="pear"' in follow(browser, last, "next").text  # the list


def test_neighbours_follow_the_order_of_the_likely_mistakes(site: Site) -> None:
    wanted = (Symbol("DMARC_POLICY_ALLOW", 0.0, ("example.net",)),)
    site.hold(subject="proven", symbols=wanted, score=15.1)
    site.hold(subject="worst", score=40.0)
    second = site.hold(subject="second", score=16.0)
    browser = site.signed_in(ALICE)
    page = opened(browser, "/?order=likely", "second")
    assert subject(follow(browser, page, "prev")) == "proven"
    form = {"form_token": browser.form_token(), "from": "message?order=likely"}
    after = browser.follow(browser.post(f"/messages/{second.id}/release", form), "/")
    assert subject(follow(browser, after, "next")) == "worst"


def test_the_previous_message_is_found_from_each_page_of_a_long_list(site: Site) -> None:
    for number in range(60, 0, -1):
        site.hold(recipients=(ALICE,), header_from=f"a{number}@example.net", subject=f"pear {number}.")
    browser = site.signed_in(ALICE)
    second = older(browser.get("/"))
    third = older(browser.get(second))
    for path, number in (("/", 2), (second, 30), (second, 26), (third, 55), (third, 52), (third, 51)):
        page = opened(browser, path, f"pear {number}.")
        assert subject(follow(browser, page, "prev")) == f"pear {number - 1}."
    page = opened(browser, third, "pear 51.")
    for number in (50, 49, 48):  # on the page before
        page = follow(browser, page, "prev")
        assert subject(page) == f"pear {number}."
    first = opened(browser, "/", "pear 1.")
    assert follow(browser, first, "prev").text.count('class="mail"') == 25
    page = opened(browser, third, "pear 55.")
    [link] = re.findall(r'href="([^"?]+)[^"]*" rel="prev"', page.text)  # without the place in the list
    assert subject(browser.follow(browser.get(link), "/")) == "pear 54."


def test_a_released_message_is_sent_again_after_a_minute(site: Site, relay: SmtpServer) -> None:
    held, browser = site.hold(recipients=(ALICE,)), site.signed_in(ALICE)
    form, page = {"form_token": browser.form_token()}, f"/messages/{held.id}/"
    assert "/again" not in browser.get(page).text
    browser.post(f"{page}again", form)
    assert site.state(held) is State.HELD and not relay.mails
    browser.post(f"{page}release", form)
    answer = browser.follow(browser.post(f"{page}again", form), page)
    assert "less than a minute ago" in answer.text
    assert len(relay.mails) == 1
    site.pass_time(seconds=61)
    assert f"{held.id}/again" in browser.get(page).text
    for _ in range(2):  # a double click
        browser.post(f"{page}again", form)
    assert len(relay.mails) == 2
    assert [event.kind for event in site.history(held)].count(EventKind.RELEASED) == 2
    assert site.state(held) is State.RELEASED


def test_a_message_that_became_dangerous_is_not_sent_again(site: Site, relay: SmtpServer) -> None:
    held = site.hold(tier=Tier.DANGEROUS, recipients=(ALICE,))
    site.parts.actions.release(held.id, 0, BY_OPERATOR, operator=True)
    site.pass_time(minutes=2)
    browser = site.signed_in(ALICE)
    assert "/again" not in browser.get(f"/messages/{held.id}/").text
    browser.post(f"/messages/{held.id}/again", {"form_token": browser.form_token()})
    assert len(relay.mails) == 1 and site.state(held) is State.RELEASED


@pytest.mark.parametrize("path", ["/", "/?q=pear", "/?order=likely", "/?state=all&size=50"])
def test_neighbours_have_the_addresses_of_their_rows(site: Site, path: str) -> None:
    """Browsers show by its address which row was opened (`:visited`)."""
    for number in range(3):
        site.hold(subject=f"pear {number * 7919}", header_from=f"<a@n{number}.example>")
    browser = site.signed_in(ALICE)
    rows = [html.unescape(each) for each in re.findall(r'<a class="mail" href="([^"]+)"', browser.get(path).text)]
    assert len(rows) == 3
    page, found = browser.get(rows[0]), rows[:1]
    for _ in range(2):
        link = re.search(r'href="([^"]+)" rel="next"', page.text)
        assert link
        answer = browser.get(html.unescape(link[1]))
        found.append(answer.header("Location") or "")
        page = browser.follow(answer, "/")
    assert found == rows
