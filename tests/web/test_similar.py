"""The list of messages similar to one, filters that are taken off again, and what a search without matches says."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from digest.housekeeping import run_batches
from portal.assemble import Parts
from portal.model.message import State
from tests.builders import ALICE, BOB, hold
from tests.statements import Statements
from tests.web_client import Answer, Site

INFO = "info@example.org"


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Site:
    return Site(make_parts())


def subjects(page: Answer) -> list[str]:
    """Return the subjects of the rows of a list."""
    return re.findall(r'<a class="mail" [^>]+><bdi>([^<]*)<', page.text)


def link(page: Answer, text: str) -> str:
    """Return the address of the link whose text contains a pattern."""
    found = [
        href
        for href, label in re.findall(r'<a [^>]*href="([^"]+)"[^>]*>(.*?)</a>', page.text, re.DOTALL)
        if re.search(text, re.sub("<[^>]+>", "", label))
    ]
    assert len(found) == 1, (text, found)
    return html.unescape(found[0])


def test_similar_messages_are_counted_and_listed_one_by_one(site: Site) -> None:
    held = [site.hold(subject=f"Win prize {n}") for n in range(4)]
    site.hold(subject="Another")
    hold(site.store, recipients=(BOB,), subject="Win prize 9")
    browser = site.signed_in(ALICE)
    message = browser.get(f"/messages/{held[0].id}/")
    listed = browser.get(link(message, "Similar held messages: 3"))
    assert subjects(listed) == [f"Win prize {n}" for n in (3, 2, 1, 0)]
    assert subjects(browser.get(link(listed, "Similar to one message"))) == ["Another", "Win prize 3"], "folded"
    assert "Similar" not in browser.get(f"/messages/{site.hold(subject='Alone').id}/").text


def test_it_stays_with_other_filters_on_pages_and_on_the_way_back(site: Site) -> None:
    held = [site.hold(subject=f"Win prize {n}") for n in range(60)]
    site.hold(subject="Win another prize")
    browser, like = site.signed_in(ALICE), f"like={held[5].id}.0"
    page = browser.get(f"/?{like}&q=prize")
    assert f'name="like" value="{held[5].id}.0"' in page.text and len(subjects(page)) == 25
    third = browser.get(link(browser.get(link(page, "^Older")), "^Older"))
    assert subjects(third) == [f"Win prize {n}" for n in range(9, -1, -1)]
    message = browser.get(link(third, "^Win prize 5$"))
    assert subjects(browser.get(link(message, "Back to the list"))) == subjects(third)
    next = browser.follow(browser.get(link(message, "Next message")), "/")
    assert "<h1><bdi>Win prize 4</bdi></h1>" in next.text
    previous = browser.follow(browser.get(link(next, "Previous message")), "/")
    assert "<h1><bdi>Win prize 5</bdi></h1>" in previous.text
    ranked = browser.get(f"/?{like}&order=likely&size=50")
    assert len(subjects(ranked)) == 50
    assert len(subjects(browser.get(link(ranked, "Next page")))) == 10


@pytest.mark.parametrize("count", [30, 60])
def test_all_similar_messages_are_deleted_together(site: Site, count: int) -> None:
    """Up to 50 at once, more as a background job."""
    held = [site.hold(subject=f"Win prize {n}") for n in range(count)]
    other, browser = site.hold(subject="Another"), site.signed_in(ALICE)
    page = browser.get(link(browser.get(f"/?like={held[0].id}.0"), "Select all matches"))
    assert f"Selected, also on other pages: {count}" in page.text
    form = {
        name: html.unescape(value)
        for name, value in re.findall(
            r'<input type="hidden" name="(\w+)" value="([^"]*)">', page.text[page.text.index('id="list"') :]
        )
    }
    late = site.hold(subject="Win prize 99")
    answer = browser.post("/messages", {**form, "do": "delete", "mail": form["shown"]})
    run_batches(site.parts, site.now)
    assert browser.follow(answer, "/").status == 200
    assert {site.state(each) for each in held} == {State.DELETED}
    assert {site.state(each) for each in (late, other)} == {State.HELD}


def test_other_peoples_messages_are_similar_to_nothing(site: Site) -> None:
    site.hold(recipients=[ALICE], subject="Prize")
    foreign = site.hold(recipients=[BOB], subject="Prize")
    browser = site.signed_in(ALICE)
    answers = [
        browser.get(f"/?like={like}").text
        for like in (f"{foreign.id}.0", "0198a1b2-0000-7000-8000-000000000000.0", "x")
    ]
    for answer in answers:
        assert "No matches." in answer and "Found in" not in answer
    first, second = (
        re.sub(r'[0-9a-f-]{36}(\.0)?|(?<=name="form_token" value=")[^"]+', "", each) for each in answers[:2]
    )
    assert first == second


def test_a_search_without_matches_takes_few_statements(
    make_parts: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = Statements(monkeypatch)
    site = Site(make_parts())
    gone, browser = site.hold(subject="Gone"), site.signed_in(ALICE)
    browser.post(f"/messages/{gone.id}/delete", {"form_token": browser.form_token()})
    browser.get("/")  # shows the result
    with statements.of() as queries:
        assert "Found in:" in browser.get("/?q=gone").text
    assert len(queries) <= 5, queries


@pytest.mark.parametrize("recipient", [ALICE, INFO])
def test_list_and_message_take_few_statements(
    make_parts: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipient: str
) -> None:
    """Also for a role mailbox, whose pages say which reader acted."""
    aliases = tmp_path / "virtual"
    aliases.write_text(f"{INFO} {ALICE}, {BOB}\n")
    statements = Statements(monkeypatch)
    site = Site(make_parts(people__alias_file=aliases))
    held = [site.hold(recipients=[recipient], subject=f"Win prize {n}") for n in range(40)]
    browser = site.signed_in(ALICE)
    for path, text in (
        (f"/?like={held[0].id}.0", "Win prize 39"),
        (f"/messages/{held[0].id}.0/", "Similar held messages: 39"),
    ):
        with statements.of() as queries:
            assert text in browser.get(path).text
        assert len(queries) <= 5, queries


def test_filters_are_shown_and_taken_off_one_by_one(site: Site) -> None:
    site.hold(subject="Prize", header_from="a@example.net")
    browser = site.signed_in(ALICE)
    page = browser.get(
        "/?q=prize&sender=nobody&since=2020-01-31&until=2030-02-28&tier=spam&attachment=1&reason=%3Cb%3Ex&size=50"
    )
    chips = re.findall(r"Remove filter: </span>(.*?)</span> <span", page.text)
    assert chips == [
        "Sender: <bdi>nobody</bdi>",
        "From day: <bdi>31 Jan 2020</bdi>",
        "To day: <bdi>28 Feb 2030</bdi>",
        "Kind: <bdi>Spam</bdi>",
        "Reason: <bdi>&lt;b&gt;x</bdi>",
        "With attachments",
    ]
    assert not subjects(page)
    for chip in ("Sender: nobody", "Reason", "With attachments"):
        page = browser.get(link(page, chip))
    assert subjects(page) == ["Prize"]
    assert "q=prize" in link(page, "Kind: Spam") and "size=50" in link(page, "Kind: Spam")


def test_a_search_without_matches_says_where_there_are_some(site: Site) -> None:
    browser = site.signed_in(ALICE)
    token = browser.form_token()
    for n in range(3):
        held = site.hold(subject=f"Lost invoice {n}")
        browser.post(f"/messages/{held.id}/delete", {"form_token": token})
    hold(site.store, recipients=(BOB,), subject="Lost invoice")
    site.hold(subject="Other")
    browser.get("/")  # which shows the result of the last action
    page = browser.get("/?q=%22lost+invoice%22&tier=spam")
    assert "No matches." in page.text and "Without quotation marks" in page.text
    found = browser.get(link(page, r"^Deleted \(3\)$"))
    assert len(subjects(found)) == 1 and 'value="&#34;lost invoice&#34;"' in found.text
    back = browser.get("/?state=deleted&q=other")
    assert subjects(browser.get(link(back, r"^Held \(1\)$"))) == ["Other"]
    page = browser.get("/?q=absent")
    assert (
        "Found in" not in page.text
        and "Every word must be in the subject, the sender or the name of an attachment." in page.text
    )
    assert "Found in" not in browser.get("/?state=requested").text, "without a search or filter"
    assert "Only letters and digits can be searched." in browser.get("/?q=%22%21%22").text
