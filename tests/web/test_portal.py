"""The pages of a signed-in recipient, the permissions on every route, and hostile mail on every page."""

import html
import itertools
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from portal.assemble import Parts, assemble
from portal.model.errors import StoreUnavailable
from portal.model.links import Action
from portal.model.message import DeliveryId, EventKind, Flag, State, Symbol, Tier, held_at, new_id
from portal.stores.records import Held
from portal.web.history import EVENTS_IN_WORDS
from tests.builders import ALICE, BOB, BY_OPERATOR, MALLORY, digesting, hold
from tests.builders import rule as rule_of_alice
from tests.conftest import MakeSettings
from tests.moving.test_copy import damage
from tests.smtp_server import SmtpServer
from tests.web_client import Answer, Browser, Site


@pytest.fixture
def relay() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def site(make_parts: Callable[..., Parts], relay: SmtpServer) -> Site:
    return Site(make_parts(relay__url=relay.url))


@pytest.fixture
def held(site: Site) -> Held:
    return site.hold()


def act(browser: Browser, id: UUID, what: str, **form: str) -> Answer:
    return browser.post(f"/messages/{id}/{what}", {"form_token": browser.form_token(), **form})


# ---- the list


def test_without_a_session_the_start_page_leads_to_signing_in(site: Site) -> None:
    for path in ("/", "/quarantine", "/preferences", f"/messages/{new_id()}/"):
        answer = site.browser().get(path)
        assert (answer.status, answer.header("Location")) == (303, "/quarantine/sign-in")


def test_a_button_of_the_list_leads_back_to_the_same_place_of_it(site: Site) -> None:
    for number in range(27):
        site.hold(subject=f"Offer & more {letters(number)}")
    site.hold(subject="another")
    browser = site.signed_in(ALICE)
    first = browser.get("/?state=held&q=offer+more&size=25").text
    older = re.search(r'href="/quarantine(/\?[^"]*before=[^"]*)"', first)
    assert older
    page = browser.get(html.unescape(older[1])).text
    action = re.search(r'href="(/quarantine/messages/[^"]*/)[?"]', page)
    place = re.search(r'name="from" value="([^"]*)"', page)
    assert action and place
    form = {"form_token": browser.form_token(), "from": html.unescape(place[1])}
    back = browser.follow(browser.post(f"{action[1]}delete", form), "/").text
    assert len(re.findall(r'<a class="mail"', back)) == 1
    assert 'value="offer more"' in back
    assert "Deleted on" in back
    undone = re.search(r'name="mail" value="([^"]*)">\s*<button name="do" value="restore">', back)
    assert undone
    undo = {**form, "do": "restore", "mail": undone[1]}
    assert len(re.findall(r'<a class="mail"', browser.follow(browser.post("/messages", undo), "/").text)) == 2


@pytest.mark.parametrize(
    "place", ["//evil.example", "a=b&done=x", "q=%0d%0aX: y&state=held", "state=//evil", "\x00&&=&"]
)
def test_a_button_leads_back_only_to_a_page_of_the_portal(site: Site, held: Held, place: str) -> None:
    browser = site.signed_in(ALICE)
    answer = act(browser, held.id, "delete", **{"from": f"list?{place}"})
    location = answer.header("Location") or ""
    assert location.startswith("/quarantine/")
    assert location.isprintable() and "//" not in location and "done=" not in location
    assert "Deleted on" in browser.get(location).text


def test_every_button_of_the_list_names_its_mail(site: Site) -> None:
    site.hold(subject="Offer <1>")
    site.hold(subject="")
    page = site.signed_in(ALICE).get("/").text
    labels = re.findall(r'<button formaction="[^"]*/release[^"]*">(\w+)<span class="for-readers">: (.*?)</span>', page)
    assert sorted(labels) == [("Release", "(no subject)"), ("Release", "Offer &lt;1&gt;")]


def test_the_list_shows_ones_own_mail_newest_first(site: Site) -> None:
    held = {str(site.hold(subject=subject).id): subject for subject in ("first", "second", "third")}
    hold(site.store, recipients=(BOB,), subject="for bob alone")
    page = site.signed_in(ALICE).get("/").text
    places = [page.index(f"<bdi>{held[id]}</bdi>") for id in sorted(held, reverse=True)]
    assert places == sorted(places)
    assert "for bob alone" not in page
    assert BOB not in page


def test_the_list_is_shown_page_by_page(site: Site) -> None:
    held = {site.hold(subject=f"number {letters(number)}.").id: letters(number) for number in range(60)}
    browser, subjects = site.signed_in(ALICE), re.compile(r"<bdi>number (\w+)\.</bdi></a>")
    pages = [browser.get("/?size=25").text]
    while older := re.search(r'href="([^"]*)" rel="next"', pages[-1]):
        pages.append(browser.get(html.unescape(older[1])).text)
    assert [len(subjects.findall(page)) for page in pages] == [25, 25, 10]
    assert subjects.findall("".join(pages)) == [held[id] for id in sorted(held, reverse=True)]
    for before, page in reversed(list(itertools.pairwise(pages))):
        newer = re.search(r'href="([^"]*)" rel="prev"', page)
        assert newer
        assert subjects.findall(browser.get(html.unescape(newer[1])).text) == subjects.findall(before)
    assert 'rel="prev"' not in pages[0]


def letters(number: int) -> str:
    """Return a number as letters: subjects that differ in digits alone are near-duplicates."""
    return "".join("abcdefghij"[int(digit)] for digit in f"{number:02d}")


@pytest.mark.parametrize(
    "query",
    [
        *("before=x", "before=00000000-0000-0000-0000-000000000000.0", "state=x", "done=x", "before=%ff"),
        *(
            f"done=01900000-0000-7000-8000-000000000000.{number}"
            for number in ("9" * 5, "9" * 30, "9" * 5000, "%C2%B2")
        ),
    ],
)
def test_odd_queries_show_the_list(site: Site, held: Held, query: str) -> None:
    page = site.signed_in(ALICE).get(f"/?{query}")
    assert page.status == 200
    assert "Offer" in page.text


def test_mail_is_found_by_words_of_subject_and_sender_page_by_page(site: Site) -> None:
    held = {site.hold(subject=f"Grüße number {letters(number)}.").id: letters(number) for number in range(30)}
    site.hold(subject="other")
    hold(site.store, recipients=(BOB,), subject="Grüße number 77.")
    browser, seen = site.signed_in(ALICE), []
    path = "/?q=grusse+promo%40example&size=25"
    while path:
        page = browser.get(path).text
        assert 'value="grusse promo@example"' in page
        seen += re.findall(r"<bdi>Grüße number (\w+)\.</bdi></a>", page)
        older = re.search(r'href="([^"]*)" rel="next"', page)
        path = html.unescape(older[1]) if older else ""
        assert not path or "q=grusse+promo%40example" in path
    assert seen == [held[id] for id in sorted(held, reverse=True)]
    assert "No matches." in browser.get("/?q=nowhere").text
    assert "No matches." in browser.get("/?q=grusse&state=deleted").text
    assert 'href="/quarantine/?state=deleted&amp;q=grusse"' in browser.get("/?q=grusse").text


@pytest.mark.parametrize("query", ['"><script>alert(1)</script>', "'", "&amp;", "a" * 5000, "{{ 7*7 }}", "%", "*"])
def test_odd_words_are_shown_as_text(site: Site, held: Held, query: str) -> None:
    page = site.signed_in(ALICE).get("/?" + urlencode({"q": query}))
    assert page.status == 200
    assert "<script>alert" not in page.text
    assert f'value="{html.escape(query[:200])}"'.replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page.text


def test_every_event_has_a_text() -> None:
    assert set(EVENTS_IN_WORDS) == set(EventKind)


def test_mail_is_found_under_its_state(site: Site) -> None:
    browser = site.signed_in(ALICE)
    for state in (State.HELD, State.REQUESTED, State.RELEASED, State.DELETED):
        one = site.hold(subject=f"now {state}")
        if state is not State.HELD:
            site.store.deliveries.move(
                DeliveryId(one.id, 0), state, {State.HELD}, BY_OPERATOR, site.now, kind=EventKind(state.value)
            )
    for name in ("held", "requested", "released", "deleted"):
        assert re.findall(r"<bdi>now (\w+)</bdi>", browser.get(f"/?state={name}").text) == [name]


@pytest.mark.parametrize(("size", "shown"), [("", 25), ("25", 25), ("50", 50), ("100", 60), ("7", 25), ("x", 25)])
def test_the_size_of_a_page_is_chosen(site: Site, size: str, shown: int) -> None:
    for number in range(60):
        site.hold(subject=letters(number))
    page = site.signed_in(ALICE).get(f"/?size={size}").text
    assert page.count('class="mail"') == shown
    assert f'<a href="/quarantine/?size={shown if shown != 60 else 100}" aria-current="true">' in page


def listed(browser: Browser, query: str) -> list[str]:
    """Return the subjects of a list."""
    return re.findall(r'<a class="mail"[^>]*><bdi>(.*?)</bdi>', browser.get(f"/{query}").text)


def test_filters_narrow_the_list(site: Site) -> None:
    site.hold(subject="plain", header_from="Shop <news@shop.example>", score=15.5)
    site.hold(subject="with file", symbols=(Symbol("HAS_ATTACHMENT", 0.0), Symbol("BAYES_SPAM", 5.0)))
    site.hold(tier=Tier.SUSPICIOUS, subject="macro", symbols=(Symbol("FORGED_SENDER", 5.0),))
    site.hold(tier=Tier.DANGEROUS, subject="virus")
    browser = site.signed_in(ALICE)
    assert listed(browser, "") == ["virus", "macro", "with file", "plain"]
    assert listed(browser, "?sender=SHOP.example") == ["plain"]
    assert listed(browser, "?attachment=1") == ["with file"]
    for search in ("from:shop.example", "FROM: shop.example", 'plain from:"Shop <news"', "from:news pla"):
        assert listed(browser, "?" + urlencode({"q": search, "sender": "promo"})) == ["plain"]
    page = browser.get("/?q=from:news+plain").text
    assert 'name="q" value="plain"' in page and 'name="sender" value="news"' in page and "<bdi>news</bdi>" in page
    assert listed(browser, "?q=from:") == listed(browser, "?q=from") == []
    assert listed(browser, "?score-min=17.4&score-max=17.6") == ["virus", "macro", "with file"]
    assert listed(browser, "?score-max=17") == ["plain"]
    assert listed(browser, "?score-min=x&score-max=nan&tier=suspicious") == ["macro"]
    assert "Highest score: <bdi>17</bdi>" in browser.get("/?score-max=17").text
    assert listed(browser, "?tier=suspicious") == ["macro"]
    assert listed(browser, "?tier=dangerous&sender=promo") == ["virus"]
    assert listed(browser, "?q=file&attachment=1") == ["with file"]
    assert listed(browser, "?q=plain&attachment=1") == []
    reason = "The From address differs from the sending address"
    assert listed(browser, "?" + urlencode({"reason": reason})) == ["macro"]
    page = browser.get("/?" + urlencode({"reason": reason, "tier": "suspicious"})).text
    assert f'<option value="{reason}" selected>' in page and '<option value="suspicious" selected>' in page
    assert 'href="/quarantine/">Show all' in page
    assert "Remove filter" in page and "Remove filter" not in browser.get("/?q=plain").text


@pytest.mark.parametrize("language", ["en", "de"])
def test_the_filter_by_reason_offers_all_reasons_and_those_of_the_page_first(site: Site, language: str) -> None:
    subject = Symbol("SUBJ_ALL_CAPS", 5.0)
    for number in range(26):
        site.hold(subject=f"on both pages {number}", symbols=(Symbol("FORGED_SENDER", 5.0), subject))
    browser = site.signed_in(ALICE)
    saved = {"change": "save", "language": language, "form_token": browser.form_token()}
    assert browser.post("/preferences", saved).status == 303
    select = re.search(r'<select name="reason">(.*?)</select>', browser.get("/").text, re.DOTALL)
    assert select
    options = [*map(html.unescape, re.findall(r'<option value="([^"]+)"', select[1]))]
    texts = [html.unescape(text).casefold() for text in re.findall(r'<option value="[^"]+">(.*?)<', select[1])]
    near = {"The subject is all capitals", "The From address differs from the sending address"}
    assert set(options[:2]) == near and len(options) == len(set(options)) == len(texts) > 50
    assert texts[:2] == sorted(texts[:2]) and texts[2:] == sorted(texts[2:])
    assert {"Bulk email", "Classified as spam", "Not scanned for viruses yet"} <= {*options[2:]}
    assert "No virus found" not in options
    assert ("the subject is all capitals" in texts) == (language == "en")


def test_days_are_those_of_the_readers_zone(site: Site) -> None:
    held = site.hold(subject="at this time")
    browser = site.signed_in(ALICE)
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):
        form = {"change": "save", "timezone": zone, "form_token": browser.form_token()}
        browser.post("/preferences", form)
        day = held_at(held.id).astimezone(ZoneInfo(zone)).date()
        before, after = day - timedelta(days=1), day + timedelta(days=1)
        assert listed(browser, f"?since={day}&until={day}") == ["at this time"]
        assert listed(browser, f"?until={before}") == listed(browser, f"?since={after}") == []
    for odd in ("since=x", "until=9999-12-31", "since=0001-01-01", "since=2026-02-30"):
        assert listed(browser, f"?{odd}") == ["at this time"]


def test_the_list_counts_each_state(site: Site) -> None:
    for number in range(5):
        site.hold(subject=letters(number))
    browser = site.signed_in(ALICE)
    act(browser, site.hold(subject="x").id, "delete")
    hold(site.store, recipients=(BOB,))
    page = browser.get("/").text
    counts = re.findall(r'>(\w+) <span class="count">([\d,+]+)</span></a>', page)
    assert counts == [("Held", "5"), ("Requested", "0"), ("Released", "0"), ("Deleted", "1"), ("All", "6")]
    assert "<title>Deleted: x · Held (5) · " in page  # a screen reader begins with it
    assert "<title>Held (5) · " in browser.get("/").text
    assert len(listed(browser, "?state=all")) == 6


def test_near_duplicates_are_one_row_and_acted_on_together(site: Site, relay: SmtpServer) -> None:
    wine = [site.hold(subject=f"Wine {number}% off", recipients=[ALICE]) for number in range(4)]
    other = site.hold(subject="Another", recipients=[ALICE])
    browser = site.signed_in(ALICE)
    page = browser.get("/").text
    assert listed(browser, "") == ["Another", "Wine 3% off"]
    assert "Similar messages: 3" in page and "Wine 0% off" in page
    [keys] = re.findall(r'name="mail" value="([^"]* [^"]*)"', page)
    form = {"form_token": browser.form_token(), "from": "list", "do": "delete", "mail": keys}
    result = browser.follow(browser.post("/messages", form), "/").text
    assert "Deleted: 4" in result
    assert {site.state(each) for each in wine} == {State.DELETED}
    assert site.state(other) is State.HELD
    [undo] = re.findall(r'name="undo" value="([^"]*)"', result)
    undoing = {"form_token": form["form_token"], "from": "list", "undo": undo}
    result = browser.follow(browser.post("/messages", undoing), "/").text
    assert "Deletion undone: 4" in result
    [button] = re.findall(r'name="only" value="(release [^"]*)"', result)
    result = browser.follow(browser.post("/messages", {**form, "do": "", "only": button}), "/").text
    assert re.search("Release(d| in progress): ", result)
    assert State.HELD not in {site.state(each) for each in wine}


def test_what_was_held_since_the_last_visit_is_marked(site: Site) -> None:
    site.pass_time(hours=-2)
    browser = site.signed_in(ALICE)
    site.hold(subject="on the first visit nothing is marked")
    assert '<span class="chip">New' not in browser.get("/").text
    site.pass_time(hours=3)
    for _ in range(3):  # during the whole visit
        page = browser.get("/").text
        assert page.count('<span class="chip">New') == 1
        assert re.search(r'<p class="news">New since \w+ \d+ \w+, \d\d:\d\d: 1</p>', page)
        site.pass_time(minutes=20)
    assert 'class="news"' not in browser.get("/?q=first").text + browser.get("/?state=deleted").text
    site.pass_time(hours=2)
    page = browser.get("/").text
    assert '<span class="chip">New' not in page and 'class="news"' not in page
    for value in ("x", "9" * 40, "1.2.3"):
        browser.cookies["__Host-quarantine-visit"] = value
        assert browser.get("/").status == 200


def test_likely_mistakes_are_first_if_asked(site: Site) -> None:
    signed = (Symbol("R_DKIM_ALLOW", -0.2, ("partner.example:s=x",)), Symbol("DMARC_POLICY_ALLOW", -0.5))
    site.hold(subject="an invoice", header_from="Jane <jane@partner.example>", score=16.0, symbols=signed)
    site.hold(Tier.DANGEROUS, subject="a virus", score=15.1)
    for number in range(30):
        site.hold(subject=letters(number), score=20.0 + number)
    browser = site.signed_in(ALICE)
    page = browser.get("/?order=likely").text
    headings = re.findall(r'<h2>(.*?) <span class="count">(\d+)</span></h2>', page)
    assert headings == [("Likely mistakes", "1"), ("Other messages", "30")]
    first = listed(browser, "?order=likely")
    assert first[0] == "an invoice" and first[1] == "aa" and len(first) == 25
    second = listed(browser, "?order=likely&skip=25")
    assert second[-1] == "a virus" and len(second) == 7
    assert set(first).isdisjoint(second)
    assert 'rel="next"' in page and "Possibly dangerous messages" in browser.get("/?order=likely&skip=25").text


def test_the_order_and_the_page_size_are_remembered(site: Site) -> None:
    for number in range(60):
        site.hold(subject=letters(number), score=20.0 + number)
    browser = site.signed_in(ALICE)
    newest, likely = listed(browser, ""), listed(browser, "?order=likely&size=50")
    assert (newest[0], len(newest), likely[0], len(likely)) == (letters(59), 25, letters(0), 50)
    assert listed(browser, "") == likely and "Other messages" in browser.get("/").text
    assert len(listed(browser, "?size=100")) == len(listed(browser, "")) == 60
    assert listed(browser, "?order=newest&size=25") == listed(browser, "") == newest
    browser.cookies["__Host-quarantine-list"] = "x.1"
    assert listed(browser, "") == newest


def test_the_back_link_of_a_message_leads_to_the_same_list(site: Site, held: Held) -> None:
    browser = site.signed_in(ALICE)
    link = re.search(r'<a class="mail" href="([^"]*)"', browser.get("/?q=offer&size=50&select=all").text)
    assert link
    page = browser.get(html.unescape(link[1])).text
    assert '<p class="back"><a href="/quarantine/?q=offer&amp;size=50">' in page
    form = {"form_token": browser.form_token(), "from": "message?q=offer&size=50"}
    answer = browser.post(f"/messages/{held.id}/delete", form)
    assert '<p class="back"><a href="/quarantine/?q=offer&amp;size=50">' in browser.follow(answer, "/").text
    for odd in ("//evil.example", "?x=y", "%0d%0aX: y", "q=" + "x" * 3000):
        page = browser.get(f"/messages/{held.id}/?" + urlencode({"list": odd})).text
        assert re.search(r'<p class="back"><a href="/quarantine/(\?q=x{200})?">', page)


def test_after_a_button_the_browser_goes_on_at_the_next_row(site: Site) -> None:
    last = site.hold(subject="last", at=site.now - timedelta(days=2))  # under a heading of its own
    first = site.hold(subject="first")
    browser = site.signed_in(ALICE)
    page = browser.get("/").text
    assert f'formaction="/quarantine/messages/{first.id}/release?next={last.id}.0"' in page
    assert f'formaction="/quarantine/messages/{last.id}/release?next={first.id}.0"' in page, "there is none after it"
    answer = act(browser, first.id, f"release?next={last.id}.0", **{"from": "list"})
    assert answer.header("Location") == f"/quarantine/#m-{last.id}.0"
    answer = act(browser, last.id, "release?next=//evil.example", **{"from": "list"})
    assert answer.header("Location") == "/quarantine/"


# ---- actions


def test_releasing_from_the_list_is_confirmed_there(site: Site, held: Held, relay: SmtpServer) -> None:
    browser = site.signed_in(ALICE)
    page = browser.follow(act(browser, held.id, "release", **{"from": "list"}), "/").text
    assert "Released on" in page
    assert [mail.recipients for mail in relay.mails] == [[ALICE]]
    assert site.state(held, 1) is State.HELD


def test_deleting_can_be_undone(site: Site, held: Held) -> None:
    browser = site.signed_in(ALICE)
    page = browser.follow(act(browser, held.id, "delete", **{"from": "list"}), "/").text
    assert site.state(held) is State.DELETED
    assert 'name="do" value="restore"' in page
    act(browser, held.id, "restore")
    assert site.state(held) is State.HELD


def test_dangerous_mail_is_requested(site: Site, relay: SmtpServer) -> None:
    held, browser = site.hold(Tier.DANGEROUS), site.signed_in(ALICE)
    assert f"/messages/{held.id}/release" not in browser.get("/").text
    act(browser, held.id, "release")
    assert site.state(held) is State.HELD
    page = browser.follow(act(browser, held.id, "ask"), "/").text
    assert "Release requested on" in page
    assert site.state(held) is State.REQUESTED
    act(browser, held.id, "release")
    assert site.state(held) is State.REQUESTED
    assert not relay.mails


def test_acting_twice_shows_what_happened(site: Site, held: Held, relay: SmtpServer) -> None:
    browser = site.signed_in(ALICE)
    act(browser, held.id, "release")
    for again, result in (
        ("release", "Released on"),
        ("delete", "Not changed: the message was released on"),
        ("restore", "Not changed: the message was released on"),
        ("ask", "Not changed: the message was released on"),
    ):
        page = browser.follow(act(browser, held.id, again), "/").text
        assert result in page
    assert len(relay.mails) == 1


def test_a_tab_says_so_if_another_one_was_faster(site: Site, held: Held, relay: SmtpServer) -> None:
    browser = site.signed_in(ALICE)
    act(browser, held.id, "delete", **{"from": "list"})
    for place in ("list", "message"):
        page = browser.follow(act(browser, held.id, "release", **{"from": place}), "/").text
        assert "Not released: the message was deleted on" in page
        assert "Undo deletion" in page
    page = browser.follow(act(browser, held.id, "restore", **{"from": "list"}), "/").text
    assert "Deletion undone. The message is held again." in page
    assert not relay.mails


def test_a_result_is_shown_once(site: Site, held: Held) -> None:
    browser = site.signed_in(ALICE)
    assert "Deleted on" in browser.follow(act(browser, held.id, "delete", **{"from": "list"}), "/").text
    assert "Deleted on" not in browser.get("/").text


@pytest.mark.parametrize("value", ["", "delete.", "delete.AAAA", "x.AAAA", "delete." + "A" * 24, "delete.%", '"'])
def test_a_result_that_anybody_wrote_shows_nothing(site: Site, held: Held, value: str) -> None:
    browser = site.signed_in(ALICE)
    browser.cookies["__Host-quarantine-result"] = value
    page = browser.get("/")
    assert page.status == 200 and 'role="status"' not in page.text


def test_a_result_shows_nobody_elses_mail(site: Site) -> None:
    held = site.hold(recipients=[MALLORY], subject="for Mallory alone")
    mallory, alice = site.signed_in(MALLORY), site.signed_in(ALICE)
    act(mallory, held.id, "delete", **{"from": "list"})
    alice.cookies["__Host-quarantine-result"] = mallory.cookies["__Host-quarantine-result"]
    assert "for Mallory alone" not in alice.get("/").text


def test_a_button_of_a_session_that_has_ended_does_nothing_and_keeps_the_place(site: Site, held: Held) -> None:
    browser = site.signed_in(ALICE)
    token = browser.form_token()
    site.pass_time(days=2)
    form = {"form_token": token, "from": "list?state=held&q=offer"}
    answer = browser.post(f"/messages/{held.id}/delete", form)
    assert answer.header("Location") == "/quarantine/sign-in?ended=kept"
    page = browser.follow(answer, "/").text
    assert "You were signed out, so nothing was changed." in page
    browser.post("/sign-in", {"address": ALICE})
    other = site.browser()  # the link may be opened in another browser
    with site.store.outbox.sending(site.now) as mail:
        assert mail
        link = re.search(rb"/quarantine/sign-in/[\w-]+/", mail.mail.replace(b"=\r\n", b""))
    assert link
    back = other.post(link[0].decode(), {"pressed": "1"})
    assert back.header("Location") == f"/quarantine/?state=held&q=offer&undone={held.id}"
    answer = other.follow(back, "/")
    page = other.follow(answer, "/").text
    assert "You were signed out, so nothing was changed." in page
    assert 'value="offer"' in page and f"/messages/{held.id}/delete" in page
    assert "You were signed out" not in other.follow(answer, "/").text, "reloaded, or by a bookmark"
    assert site.state(held) is State.HELD


def test_times_are_in_the_readers_zone(site: Site, held: Held) -> None:
    browser = site.signed_in(ALICE)
    mail = site.hold(data=b"Date: Thu, 26 Nov 2026 23:49:08 +0000\r\nTo: alice@example.org\r\n\r\nHi")
    for zone, moment in (("Asia/Tokyo", "Friday, 27 November 2026, 08:49"), ("America/New_York", "Thursday")):
        form = {"change": "save", "timezone": zone, "form_token": browser.form_token()}
        assert browser.post("/preferences", form).status == 303
        for path in ("/", f"/messages/{held.id}/", "/rules", site.link(Action.SHOW, held)):
            reader = site.browser() if path.startswith("/quarantine/link") else browser
            assert f"Times are in {zone.replace('_', ' ')}" in reader.get(path).text
        at = held_at(held.id).astimezone(ZoneInfo(zone))
        assert f"{at:%H:%M}" in browser.get("/").text
        assert moment in re.sub(r".*<dt>Sent on</dt>", "", browser.get(f"/messages/{mail.id}/").text, flags=re.DOTALL)


def test_each_page_and_link_says_the_zone_of_its_times(site: Site, held: Held) -> None:
    zone, browser, signed_in_at = ZoneInfo("Asia/Kolkata"), site.signed_in(ALICE), site.now
    token = {"form_token": browser.form_token()}
    [made] = site.store.rules.add([rule_of_alice("b.example")], site.now)
    doubtful = site.hold(Tier.SUSPICIOUS, subject="Scanned document")
    many = [f"{site.hold(subject=f'Offer {n * 7919}').id}.0" for n in range(51)]
    with digesting(site.store, ALICE, site.now, 99, ignore_schedule=True) as digest:
        pass
    site.pass_time(seconds=5)
    job = browser.post("/messages", token | {"from": "list", "do": "delete", "mail": " ".join(many)}).header("Location")
    assert job and "/jobs/" in job
    assert browser.post("/preferences", token | {"change": "save", "timezone": zone.key}).status == 303
    held_since, of_digest = held_at(held.id), (digest.id, 0, digest.issued_at)
    of_reader: dict[str, datetime | None] = {
        "/preferences": None,
        "/sessions": signed_in_at,
        f"/rules?done={made.id}": None,
        f"/messages/{held.id}/sender": held_since,
        f"/messages/{doubtful.id}/download": None,
        job: None,
    }
    by_link: dict[str, datetime | None] = {
        site.link(Action.RELEASE, held): held_since,
        site.parts.links.url(Action.SEVERAL, *of_digest): held_since,
        site.parts.links.url(Action.OPEN, *of_digest): None,
    }
    for reader, pages in ((browser, of_reader), (site.browser(), by_link)):
        for path, moment in pages.items():
            page = reader.get(path)
            assert page.status == 200 and "Times are in Asia/Kolkata" in page.text, path
            assert moment is None or f"{moment.astimezone(zone):%H:%M}" in page.text, path


def test_forms_need_the_token_of_their_session(site: Site, held: Held) -> None:
    browser, other = site.signed_in(ALICE), site.signed_in(MALLORY)
    path = f"/messages/{held.id}/delete"
    for form in ({}, {"form_token": ""}, {"form_token": "é"}, {"form_token": other.form_token()}):
        assert browser.post(path, form).status == 403
        assert browser.post("/preferences", {"change": "stop", **form}).status == 403
    token = {"form_token": browser.form_token()}
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert browser.request("POST", path, form=token, headers=headers).status == 403
    assert site.state(held) is State.HELD
    assert site.store.recipients.get(ALICE).stopped_at is None


# ---- one message


def failing(_: Any, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Fail like a child that was killed."""
    yield from (b"" for _ in chunks)
    raise ValueError


def test_a_message_shows_text_reasons_and_history_without_other_people(site: Site, held: Held) -> None:
    act(site.signed_in(BOB), held.id, "delete")
    page = site.signed_in(ALICE).get(f"/messages/{held.id}/").text
    for words in (
        "Buy ",
        "BAYES_SPAM",
        "resembles known spam",
        "17.5",
        "promo@example.net",
        ": Held by the spam filter.",
    ):
        assert words in page
    assert page.count(BOB) == page.count("<dd><bdi>alice@example.org, bob@example.org</bdi></dd>") == 1
    assert "deleted" not in page.lower().replace("state=deleted", "")


def test_history_names_nobody_and_no_address(site: Site, held: Held) -> None:
    site.parts.actions.delete(held.id, 0, BY_OPERATOR)
    page = site.signed_in(ALICE).get(f"/messages/{held.id}/").text
    assert "by an administrator" in page
    assert "operator:root" not in page
    assert "192.0.2.7" not in page


def test_html_mail_is_shown_as_text_with_where_its_links_lead(site: Site) -> None:
    data = (
        b"From: x@example.net\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<style>p{}</style><p>Dear <b>you</b></p>"
        b'<a href="https://evil.example/x">your bank</a><script>alert(1)</script><img src="https://evil.example/i">'
    )
    page = site.signed_in(ALICE).get(f"/messages/{site.hold(data=data).id}/").text
    assert "Dear you" in page
    assert "your bank [evil.example]" in page
    assert "alert(1)" not in page
    assert "<img" not in page


@pytest.mark.parametrize(
    "link",
    [
        b'<a href="https://evil.example/">https://bank.example',
        b'<a href="https://evil.example/">https://bank.example<a href="https://bank.example/">',
        b'<a href="https://evil.example/" href="https://bank.example/">https://bank.example</a>',
        b'<a href="https://bank.example@evil.example/">https://bank.example</a>',
        b'<a href="https:\\\\evil.example\\@bank.example/">https://bank.example</a>',
        b'<a href="https:evil.example">https://bank.example</a>',
        b'<a href="&#1; ht&#9;tps:/\\/evil.example?">https://bank.example</a>',
    ],
    ids=["open", "inside", "twice", "login", "backslashes", "no-slashes", "blanks"],
)
def test_where_a_link_leads_is_read_as_browsers_do(site: Site, link: bytes) -> None:
    held = site.hold(data=b"Content-Type: text/html; charset=utf-8\r\n\r\n" + link)
    assert "https://bank.example [evil.example]" in site.signed_in(ALICE).get(f"/messages/{held.id}/").text


def test_attachments_are_named_and_not_served(site: Site) -> None:
    data = (
        b"From: x@example.net\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nhello\r\n--b\r\n"
        b'Content-Type: application/x-msdownload; name="in\xe2\x80\xaevoice<b>.exe"\r\n'
        b'Content-Disposition: attachment; filename="invoice<b>.exe"\r\n\r\nMZ\r\n--b--\r\n'
    )
    page = site.signed_in(ALICE).get(f"/messages/{site.hold(data=data).id}/").text
    assert "invoice&lt;b&gt;.exe" in page
    assert "hello" in page


def test_a_message_that_cannot_be_read_shows_its_header(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal.reading._exchange", failing)
    page = site.signed_in(ALICE).get(f"/messages/{site.hold(data=b'X-First: yes' + bytes([13, 10, 13, 10])).id}/")
    assert page.status == 200
    assert "cannot be displayed" in page.text
    assert "X-First: yes" in page.text


def test_html_at_the_edge_of_what_can_be_read_in_time_has_a_page(site: Site) -> None:
    # This takes about 2 s of CPU, the child's limit. The child may or may not finish; there must be a page.
    held = site.hold(data=b"Content-Type: text/html\r\n\r\n" + b"<!--" * 65_536)
    page = site.signed_in(ALICE).get(f"/messages/{held.id}/")
    assert page.status == 200
    assert "<!--" not in page.text


def test_a_mail_whose_bytes_are_gone_keeps_its_page(site: Site, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    from portal.model.errors import BodyMissing

    def gone(*_: object) -> None:
        raise BodyMissing("gone")

    monkeypatch.setattr(site.store.messages, "body", gone)
    page = site.signed_in(ALICE).get(f"/messages/{held.id}/")
    assert page.status == 200
    assert "no longer available" in page.text


def test_the_page_of_a_damaged_mail_shows_its_facts(site: Site, store_url: str, held: Held) -> None:
    damage(store_url, held.id)
    browser = site.signed_in(ALICE)
    page = browser.get(f"/messages/{held.id}/")
    assert page.status == 200
    assert "no longer available" in page.text
    assert act(browser, held.id, "delete").status == 303


# ---- preferences


def test_digests_are_stopped_and_resumed(site: Site) -> None:
    browser = site.signed_in(ALICE)
    token = {"form_token": browser.form_token()}
    page = browser.follow(browser.post("/preferences", {"change": "stop", **token}), "/preferences").text
    assert "Digests stopped on" in page
    browser.post("/preferences", {"change": "resume", **token})
    assert site.store.recipients.get(ALICE).stopped_at is None


def test_links_are_revoked(site: Site, held: Held) -> None:
    browser, link = site.signed_in(ALICE), site.link(Action.RELEASE, held, minutes_old=1)
    answer = browser.post("/preferences", {"change": "revoke", "form_token": browser.form_token()})
    assert "no longer work" in browser.follow(answer, "/preferences").text
    assert site.browser().get(link).status == 404


# ---- permissions: every route of the application, every kind of person

# The statuses that each kind of person gets. A route that is missing here fails, so a new route has to be added.
OWN: dict[tuple[str, str], tuple[int, int, int]] = {
    # (method, rule): (nobody, the recipient, a stranger with a session)
    ("POST", "/"): (403, 403, 403),  # for the exporter only; browsers are not in its networks
    ("GET", "/"): (303, 200, 200),
    ("GET", "/link/TOKEN/"): (200, 200, 200),  # everybody who has the link
    ("POST", "/link/TOKEN/"): (303, 303, 303),
    ("GET", "/about"): (200, 200, 200),
    ("GET", "/sign-in"): (200, 200, 200),
    ("POST", "/sign-in"): (303, 303, 303),
    ("GET", "/sign-in/password"): (303, 303, 303),  # to the form
    ("POST", "/sign-in/password"): (404, 404, 404),  # without a server that checks passwords
    ("GET", "/sign-in/code"): (200, 200, 200),
    ("POST", "/sign-in/code"): (403, 403, 403),
    ("GET", "/sign-in/proxy"): (404, 404, 404),  # without a secret; tests/web/test_proxy.py has one
    ("GET", "/sign-in/oidc/NAME"): (404, 404, 404),  # without a provider; tests/web/test_oidc.py has one
    ("GET", "/sign-in/oidc/NAME/callback"): (404, 404, 404),
    ("GET", "/oidc/NAME/sign-out"): (404, 404, 404),
    ("POST", "/oidc/NAME/logout"): (404, 404, 404),
    ("GET", "/sign-in/TOKEN/"): (404, 303, 303),  # without a message; the signed-in are led to the list
    ("POST", "/sign-in/TOKEN/"): (404, 404, 404),
    ("POST", "/sign-out"): (303, 303, 303),
    ("POST", "/messages"): (303, 303, 303),  # nothing is selected
    ("GET", "/jobs/ID/"): (303, 404, 404),  # the id of a message
    ("GET", "/messages/ID/"): (303, 200, 404),
    ("GET", "/messages/ID/VIEW"): (303, 200, 404),
    ("GET", "/messages/ID/html"): (303, 200, 404),
    ("POST", "/messages/ID/ACT"): (303, 303, 404),
    ("GET", "/messages/ID/WAY"): (303, 303, 404),
    ("GET", "/messages/ID/download"): (303, 200, 404),
    ("POST", "/messages/ID/download"): (303, 200, 404),
    ("GET", "/messages/ID/sender"): (303, 200, 404),
    ("GET", "/rules"): (303, 200, 200),
    ("POST", "/rules"): (303, 400, 400),  # without a button
    ("POST", "/rules/senders"): (303, 400, 400),  # without a button
    ("POST", "/rules/RULE/CHANGE"): (303, 303, 404),
    ("GET", "/PATH"): (303, 303, 303),  # to the same path with a slash
    ("GET", "/preferences"): (303, 200, 200),
    ("POST", "/preferences"): (303, 303, 303),
    ("GET", "/preferences/digest"): (303, 200, 200),
    ("GET", "/preferences/digest/html"): (303, 200, 200),
    ("GET", "/sessions"): (303, 200, 200),
    ("POST", "/sessions"): (303, 400, 400),  # without a button
    ("GET", "/admin"): (303, 404, 404),
    ("GET", "/admin/"): (303, 404, 404),  # tests/web/test_staff.py has the roles
    ("GET", "/admin/messages/ID/"): (303, 404, 404),
    ("POST", "/admin/messages/ID/"): (303, 404, 404),
    ("GET", "/admin/messages/ID/similar"): (303, 404, 404),
    ("GET", "/admin/messages/ID/VIEW"): (303, 404, 404),
    ("GET", "/admin/messages/ID/html"): (303, 404, 404),
    ("GET", "/admin/messages/ID/WAY"): (303, 404, 404),
    ("GET", "/admin/messages/ID/download"): (303, 404, 404),
    ("POST", "/admin/messages/ID/download"): (303, 404, 404),
    ("GET", "/admin/jobs/"): (303, 404, 404),
    ("POST", "/admin/jobs/"): (303, 404, 404),
    ("GET", "/admin/jobs/new"): (303, 404, 404),
    ("GET", "/admin/jobs/ID/"): (303, 404, 404),
    ("POST", "/admin/jobs/ID/"): (303, 404, 404),
    ("GET", "/admin/requests"): (303, 404, 404),
    ("GET", "/admin/recipients"): (303, 404, 404),
    ("GET", "/admin/recipients/"): (303, 404, 404),
    ("POST", "/admin/recipients/"): (303, 404, 404),
    ("GET", "/admin/recipients/list"): (303, 404, 404),
    ("POST", "/admin/recipients/list"): (303, 404, 404),
    ("POST", "/admin/recipients/list/export"): (303, 404, 404),
    ("GET", "/admin/recipients/forget"): (303, 404, 404),
    ("POST", "/admin/recipients/forget"): (303, 404, 404),
    ("GET", "/admin/domains"): (303, 404, 404),
    ("POST", "/admin/domains"): (303, 404, 404),
    ("GET", "/admin/statistics"): (303, 404, 404),
    ("POST", "/admin/statistics"): (303, 404, 404),
    ("GET", "/admin/statistics/days.svg"): (303, 404, 404),
    ("GET", "/admin/statistics/tiers.svg"): (303, 404, 404),
    ("GET", "/admin/staff"): (303, 404, 404),
    ("POST", "/admin/staff"): (303, 404, 404),
    ("GET", "/admin/tokens"): (303, 404, 404),
    ("POST", "/admin/tokens"): (303, 404, 404),
    ("GET", "/admin/second-factor"): (303, 404, 404),
    ("POST", "/admin/second-factor"): (303, 404, 404),
    ("GET", "/admin/audit"): (303, 404, 404),
    ("POST", "/admin/audit/export"): (303, 404, 404),
    ("GET", "/api/v1"): (303, 303, 303),
    ("GET", "/api/v1/"): (200, 200, 200),
    ("GET", "/api/v1/openapi.json"): (200, 200, 200),
    ("GET", "/api/v1/messages"): (401, 401, 401),  # tests/web/test_api.py has the tokens
    ("GET", "/api/v1/messages/groups"): (401, 401, 401),
    ("GET", "/api/v1/messages/ID"): (401, 401, 401),
    ("POST", "/api/v1/messages/release"): (401, 401, 401),
    ("POST", "/api/v1/messages/delete"): (401, 401, 401),
    ("POST", "/api/v1/messages/restore"): (401, 401, 401),
    ("GET", "/api/v1/jobs"): (401, 401, 401),
    ("POST", "/api/v1/jobs"): (401, 401, 401),
    ("GET", "/api/v1/jobs/ID"): (401, 401, 401),
    ("POST", "/api/v1/jobs/ID/pause"): (401, 401, 401),
    ("POST", "/api/v1/jobs/ID/resume"): (401, 401, 401),
    ("POST", "/api/v1/jobs/ID/cancel"): (401, 401, 401),
    ("POST", "/api/v1/jobs/ID/retry"): (401, 401, 401),
    ("GET", "/api/v1/rules"): (401, 401, 401),
    ("POST", "/api/v1/rules"): (401, 401, 401),
    ("POST", "/api/v1/rules/ID/remove"): (401, 401, 401),
    ("GET", "/api/v1/recipients"): (401, 401, 401),
    ("POST", "/api/v1/recipients/stop-digests"): (401, 401, 401),
    ("POST", "/api/v1/recipients/resume-digests"): (401, 401, 401),
    ("POST", "/api/v1/recipients/send-digest"): (401, 401, 401),
    ("POST", "/api/v1/recipients/sign-out"): (401, 401, 401),
    ("GET", "/api/v1/statistics"): (401, 401, 401),
    ("GET", "/healthz"): (200, 200, 200),
    ("GET", "/metrics"): (403, 403, 403),
    ("GET", "/static/NAME"): (200, 200, 200),
    ("GET", "/brand/NAME"): (404, 404, 404),  # of no domain
}


def plain(rule: str) -> str:
    return re.sub(r"<(\w+):re:(?:[^<>])*>", lambda match: match[1].upper(), rule)


def test_every_route_is_in_the_matrix(site: Site) -> None:
    assert {(method, plain(rule)) for method, rule in site.app.routes} == set(OWN)


@pytest.mark.parametrize("act_name", ["release", "delete", "spam", "restore", "unblock", "ask", "withdraw"])
@pytest.mark.parametrize("person", [None, ALICE, BOB, MALLORY])
def test_nobody_reaches_what_is_not_theirs(site: Site, relay: SmtpServer, person: str | None, act_name: str) -> None:
    secret = "The secret subject"
    held = site.hold(recipients=(ALICE,), subject=secret)
    before = (site.delivery(held), site.history(held))
    [hers] = site.store.rules.add([rule_of_alice("secret.example")], site.now)
    token = site.link(Action.REQUEST, held).rstrip("/").rpartition("/")[2]
    for (method, rule), statuses in OWN.items():
        if act_name != "release" and "/ACT" not in rule:
            continue  # it is the same route for each act
        browser = site.browser() if person is None else site.signed_in(person)
        form = {"change": "resume", "address": MALLORY, "code": "123456", "warned": "spam"}
        if person:
            form["form_token"] = browser.form_token()
        names = {"ID": str(held.id), "ACT": act_name, "NAME": "style.css", "PATH": f"link/{token}"}
        names |= {"RULE": str(hers.id), "CHANGE": "remove", "WAY": "next", "VIEW": "formatted"}
        names["TOKEN"] = token if rule.startswith("/link/") else "A" * 32
        path = "/".join(names.get(part, part) for part in rule.split("/"))
        answer = browser.get(path) if method == "GET" else browser.post(path, form)
        expected = statuses[0 if person is None else 1 if person == ALICE else 2]
        assert answer.status == expected, (method, rule, answer.text)
        if person != ALICE and "/link/" not in path:
            assert secret not in answer.text and hers.sender not in answer.text
        if person != ALICE:
            assert (site.delivery(held), site.history(held)) == before
            assert site.store.rules.get(hers.id) == hers
    if person != ALICE:
        assert not relay.mails


def test_a_link_whose_last_slash_was_cut_off_works(site: Site, held: Held) -> None:
    link = site.link(Action.RELEASE, held)
    browser = site.browser()
    answer = browser.get(link.rstrip("/"))
    assert browser.follow(answer, link.rstrip("/")).status == 200


@pytest.mark.parametrize(
    "id", ["01900000-0000-7000-8000-000000000001", "00000000-0000-0000-0000-000000000000", "A" * 36, "x"]
)
def test_a_strangers_mail_is_answered_like_one_that_never_existed(site: Site, held: Held, id: str) -> None:
    browser = site.signed_in(MALLORY)
    theirs, absent = browser.get(f"/messages/{held.id}/"), browser.get(f"/messages/{id}/")
    assert theirs.status == absent.status == 404
    if len(id) == 36 and id != "A" * 36:
        assert theirs.text == absent.text


def test_a_recipient_acts_on_their_own_delivery_alone(site: Site, held: Held) -> None:
    act(site.signed_in(BOB), held.id, "delete")
    assert (site.state(held, 0), site.state(held, 1)) == (State.HELD, State.DELETED)


def test_a_domain_that_is_no_longer_ours_ends_its_sessions(make_parts: Callable[..., Parts]) -> None:
    site = Site(make_parts(local_domains="elsewhere.example"))
    assert site.signed_in(ALICE).get("/").status == 303


# ---- headers and errors


def test_every_answer_has_its_headers(site: Site, held: Held) -> None:
    browser = site.signed_in(ALICE)
    paths = [
        "/",
        "/sign-in",
        f"/messages/{held.id}/",
        "/preferences",
        "/rules",
        "/sessions",
        "/healthz",
        "/metrics",
        "/nothing",
    ]
    paths += [
        "/static/style.css",
        "/static/link.js",
        "/static/zone.js",
        "/static/none.css",
        site.link(Action.RELEASE, held),
    ]
    answers = [browser.get(path) for path in paths] + [browser.post(path, {}) for path in paths]
    answers += [browser.get("/", environ={"PATH_INFO": path}) for path in ("/", "/other/", "/quarantine/\xff")]
    for answer in answers:
        policy = answer.header("Content-Security-Policy") or ""
        for words in ("default-src 'none'", "script-src 'self'", "form-action 'self'", "frame-ancestors 'none'"):
            assert words in policy
        assert "unsafe" not in policy
        assert answer.header("X-Content-Type-Options") == "nosniff"
        assert answer.header("Referrer-Policy") == "strict-origin"
        assert answer.header("Cross-Origin-Opener-Policy") == "same-origin"
        assert answer.header("Strict-Transport-Security") is None
        assert [key for key, _ in answer.headers].count("Cache-Control") == 1
    assert browser.get("/").header("Cache-Control") == "no-store"


def test_two_pages_have_different_form_tokens_and_both_work(site: Site, held: Held) -> None:
    browser = site.signed_in(ALICE)
    pages = [browser.get(f"/?q=guess{number}").text for number in range(2)]
    one, two = (set(re.findall(r'name="form_token" value="([^"]+)"', page)) for page in pages)
    assert len(one) == len(two) == 1 and one != two
    for token in one | two:
        assert browser.post(f"/messages/{held.id}/delete", {"form_token": token}).status == 303
        assert site.state(held) is State.DELETED
        assert browser.post(f"/messages/{held.id}/restore", {"form_token": token}).status == 303
        assert site.state(held) is State.HELD
    [first], [second] = one, two
    for tampered in (first[:43] + second[43:], first[:-1], first[::-1]):
        assert browser.post(f"/messages/{held.id}/delete", {"form_token": tampered}).status == 403
    assert site.state(held) is State.HELD


# ---- static files


def static_urls(page: str) -> dict[str, str]:
    """Return the addresses of the files that a page loads, by name."""
    return {
        name: f"{path}{query}" for path, name, query in re.findall(r'"(/quarantine/static/([a-z.]+))(\?[^"]*)?"', page)
    }


def test_browsers_keep_a_file_until_its_content_changes(make_parts: Callable[..., Parts], tmp_path: Path) -> None:
    folder = tmp_path / "site" / "templates" / "web" / "static"
    folder.mkdir(parents=True)
    (folder / "site.css").write_text(":root { --main: #060; }")
    browser = Site(make_parts(site__folder=tmp_path / "site")).browser()
    urls = static_urls(browser.get("/sign-in").text)
    assert set(urls) == {"icon.svg", "style.css", "site.css"}
    for url in urls.values():
        answer = browser.get(url)
        assert (answer.status, answer.header("Cache-Control")) == (200, "public, max-age=31536000, immutable")
    (folder / "site.css").write_text(":root { --main: #066; }")
    old, changed = urls["site.css"], static_urls(browser.get("/sign-in").text)["site.css"]
    assert old != changed
    assert browser.get(changed).header("Cache-Control") == "public, max-age=31536000, immutable"
    for url in (old, "/static/site.css", "/static/style.css?v=0.2.0", "/static/style.css?v="):
        answer = browser.get(url)
        assert (answer.status, answer.header("Cache-Control")) == (200, "public, max-age=600")
    assert "#066" in browser.get(old).text
    for url in ("/static/none.css?v=", "/static/none.css"):
        assert browser.get(url).status == 404


def test_https_sites_insist_on_it(make_parts: Callable[..., Parts]) -> None:
    site = Site(make_parts(public_url="https://mail.example.org/quarantine"))
    assert (site.browser().get("/sign-in").header("Strict-Transport-Security") or "").startswith("max-age=")


def test_pages_have_no_script_of_their_own(site: Site, held: Held) -> None:
    browser = site.signed_in(ALICE)
    for path in (
        "/",
        "/sign-in",
        "/sign-in/code",
        f"/messages/{held.id}/",
        f"/messages/{held.id}/sender",
        "/preferences",
        "/rules",
        site.link(Action.REQUEST, held),
    ):
        page = browser.get(path).text
        assert '<html lang="en" dir="ltr">' in page
        assert not re.search(r"<script(?! src=\"/quarantine/static/)|\sstyle=|\son\w+=|javascript:|//[a-z]", page), path


def test_outside_of_the_mount_point_there_is_nothing(site: Site) -> None:
    for path in ("/", "/quarantinex", "/other", "/quarantine/../x"):
        answer = site.browser().request("GET", "/quarantine", environ={"PATH_INFO": path})
        assert answer.status == 404


def test_no_path_is_an_alias_of_another(site: Site) -> None:
    # Nginx blocks public POSTs to the root and public requests of /metrics by their paths.
    local = Browser(site.app, peer="127.0.0.1")
    for method, path in (("POST", "/quarantine/\xff"), ("GET", "/quarantine/m\xfeetrics"), ("GET", "/quarantine/\xc3")):
        assert local.request(method, "/", body=b"x", environ={"PATH_INFO": path}).status == 404


def test_a_site_may_live_at_the_root(make_parts: Callable[..., Parts]) -> None:
    site = Site(make_parts(public_url="http://127.0.0.1:8080"))
    answer = site.browser().request("GET", "/quarantine", environ={"PATH_INFO": "/"})
    assert (answer.status, answer.header("Location")) == (303, "/sign-in")


def test_the_host_header_is_not_trusted(site: Site, held: Held) -> None:
    headers = {"Host": "evil.example", "X-Forwarded-Host": "evil.example"}
    browser = site.signed_in(ALICE)
    for path in ("/", "/sign-in", f"/messages/{held.id}/"):
        assert "evil.example" not in browser.get(path, headers=headers).text
    assert "evil" not in str(site.browser().post("/sign-in", {"address": ALICE}, headers=headers).headers)


def test_errors_are_pages_that_say_what_to_do(site: Site) -> None:
    for method, path, status in (("GET", "/nothing", 404), ("PUT", "/sign-in", 405), ("GET", "/link/x/", 404)):
        answer = site.browser().request(method, path)
        assert answer.status == status
        assert "<h1>" in answer.text
        assert "start page" in answer.text or "Sign in" in answer.text
    assert site.browser().request("PUT", "/sign-in").header("Allow")
    for method in ("PUT", "DELETE", "PATCH"):
        answer = site.browser().request(method, "/")
        assert (answer.status, answer.header("Allow")) == (405, "GET, HEAD, POST")


def test_a_form_too_large_is_refused(site: Site) -> None:
    answer = site.browser().post("/sign-in", {"address": "x" * 200_000})
    assert answer.status == 413
    assert "<h1>" in answer.text


@pytest.mark.parametrize(
    "content_type",
    [";", "multipart/form-data; boundary=x; charset=nope", "multipart/form-data; boundary=x; charset=utf-16"],
)
@pytest.mark.parametrize("action", [None, Action.RELEASE])
def test_a_body_that_is_not_a_form_is_a_client_error(
    site: Site, held: Held, content_type: str, action: Action | None, caplog: pytest.LogCaptureFixture
) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="pressed"; filename="a"\r\n\r\n1\r\n--x--\r\n'
    path = "/sign-in" if action is None else site.link(action, held)
    answer = site.browser().post(path, body=body, headers={"Content-Type": content_type})
    assert answer.status == 400
    assert "request was incomplete" in answer.text
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert site.state(held) is State.HELD


# Bottle leaves closing its file to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_unsatisfiable_range_is_a_client_error(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    answer = site.browser().get("/static/style.css", headers={"Range": "bytes=99999999-"})
    assert answer.status == 416
    assert "error was logged" not in answer.text
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_store_that_is_down_is_a_reassuring_503(site: Site, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    browser, link = site.signed_in(ALICE), site.link(Action.RELEASE, held)

    def fail(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("connection to secret-host refused")

    for part, name in (
        *((site.store.sign_ins, name) for name in ("session", "start")),
        *((site.store.deliveries, "get"), (site.store, "health")),
    ):
        monkeypatch.setattr(part, name, fail)
    answers = [
        browser.get("/"),
        browser.get(link),
        browser.post("/sign-in", {"address": ALICE}),
        browser.get("/healthz"),
    ]
    for answer in answers:
        assert answer.status == 503
        assert "secret-host" not in answer.text
    assert "No messages were lost" in answers[0].text


def test_a_fault_is_logged_once_and_shows_no_traceback(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("inside")

    browser = site.signed_in(ALICE)
    monkeypatch.setattr(site.store.deliveries, "matching", fail)
    answer = browser.get("/")
    assert answer.status == 500
    assert "inside" not in answer.text
    assert "Traceback" not in answer.text
    assert [record.exc_info is not None for record in caplog.records if record.levelname == "ERROR"] == [True]


# ---- hostile mail

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;\u202egpj.exe\u200b\x85"


def test_hostile_mail_stays_text_on_every_page(site: Site) -> None:
    held = site.hold(
        subject=HOSTILE,
        header_from=f'"{HOSTILE} <paypal@bank.example>" <"{HOSTILE}"@example.net>',
        envelope_sender=f'"{HOSTILE}"@example.net',
        symbols=(Symbol(HOSTILE, 9.0, (HOSTILE,)), Symbol("BAYES_SPAM", 5.0)),
        action=HOSTILE,
        queue_id=HOSTILE,
        message_id=HOSTILE,
        flags=frozenset({Flag.SYMBOLS}),
        data=f"Subject: {HOSTILE}\r\nFrom: {HOSTILE}\r\nTo: {HOSTILE}\r\n\r\n{HOSTILE}\r\n".encode(),
    )
    browser, link = site.signed_in(ALICE), site.link(Action.RELEASE, held)
    site.store.deliveries.move(
        DeliveryId(held.id, 0), State.HELD, {State.HELD}, BY_OPERATOR, site.now, kind=EventKind.REFUSED, reason=HOSTILE
    )
    paths = ("/", f"/?done={held.id}", f"/messages/{held.id}/", f"/messages/{held.id}/sender", link)
    pages = [browser.get(path).text for path in paths]
    pages.append(browser.follow(act(browser, held.id, "delete", **{"from": "list"}), "/").text)
    for page in pages:
        assert "alert(1)" in page
        for bad in ("<script>", "<img", 'onerror=alert(1)>"', "\u202e", "\u200b", "\x85", "&amp;gpj"):
            assert bad not in page, bad


@pytest.mark.parametrize(
    "address",
    [
        '"meta/http-equiv=refresh/content=0;//example.com><b>x</b>"@example.net',
        "50%@example.net",
        "100%sure@example.net",
        '"%(x)s"@example.net',
        "{{7*7}}@example.net",
    ],
)
@pytest.mark.parametrize("where", ["header_from", "envelope_sender"])
def test_a_senders_address_is_neither_html_nor_a_format(site: Site, address: str, where: str) -> None:
    sender: dict[str, Any] = {"header_from": address, "envelope_sender": address} | (
        {"header_from": ""} if where != "header_from" else {}
    )
    held = site.hold(**sender)
    browser = site.signed_in(ALICE)
    for path in ("/", f"/messages/{held.id}/", site.link(Action.RELEASE, held)):
        answer = browser.get(path)
        assert answer.status == 200
        assert html.escape(address).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in whole_addresses(
            answer.text
        )


def whole_addresses(page: str) -> str:
    """Return a page in which addresses are not divided: the list leaves out their beginnings on narrow screens."""
    return re.sub(r'<span class="local">(.*?)</span>', r"\1", page)


def test_a_name_with_another_address_gets_a_warning(site: Site) -> None:
    held = site.hold(header_from='"service@paypal.com" <x@evil.example>')
    browser = site.signed_in(ALICE)
    for path in ("/", f"/messages/{held.id}/", site.link(Action.RELEASE, held)):
        page = whole_addresses(browser.get(path).text)
        assert "a different address" in page
        assert "x@evil.example" in page


def test_look_alike_domains_show_their_punycode(site: Site) -> None:
    site.hold(header_from="Bank <x@pаypal.example>")  # noqa: RUF001
    assert "xn--" in site.signed_in(ALICE).get("/").text


# ---- monitoring


def test_health_reports_stats(site: Site) -> None:
    assert (answer := site.browser().get("/healthz")).status == 200
    assert answer.json == {"status": "ok"}  # version and numbers are not for everybody
    inside = site.browser()
    inside.peer = "127.0.0.1"
    answer = inside.get("/healthz")
    assert (answer.status, answer.json["status"]) == (200, "ok")
    assert answer.json["digest_heartbeat_age_seconds"] is None
    site.store.heartbeat(site.now)
    site.pass_time(seconds=90)
    assert inside.get("/healthz").json["digest_heartbeat_age_seconds"] == 90


def test_a_database_damaged_while_running_is_reported_as_an_unusable_store(
    files_url: str, make_settings: MakeSettings, tmp_path: Path
) -> None:
    site = Site(assemble(make_settings(files_url), create=True))
    browser = site.signed_in(ALICE)
    browser.peer = "127.0.0.1"
    path = tmp_path / "quarantine" / "quarantine.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with path.open("r+b") as file:
        file.seek(4096)  # the first page stays, so it is still a database
        file.write(b"\xff" * (path.stat().st_size - 4096))
    assert browser.get("/healthz").status == 503
    browser.peer = "192.0.2.7"
    assert browser.get("/healthz").json == {"status": "store unavailable"}
    browser.peer = "127.0.0.1"
    assert "quarantine_store_up 0.0" in browser.get("/metrics").text
    page = browser.get("/")
    assert (page.status, page.header("Retry-After")) == (503, "60")
    site.store.close()


def test_an_unusable_alias_file_is_reported(site: Site, tmp_path: Path) -> None:
    browser = site.browser()
    browser.peer = "127.0.0.1"
    assert "alias_file" not in browser.get("/healthz").text + browser.get("/metrics").text
    site.parts.people.file = tmp_path / "virtual"
    assert browser.get("/healthz").json["alias_file_usable"] is False
    assert "quarantine_alias_file_usable 0.0" in browser.get("/metrics").text


def test_metrics_are_for_the_exporters_networks(site: Site, held: Held) -> None:
    browser = site.browser()
    assert browser.get("/metrics").status == 403
    browser.peer = "127.0.0.1"
    text = browser.get("/metrics").text
    assert "quarantine_store_up 1.0" in text
    assert "quarantine_releases_waiting 0.0" in text


@pytest.mark.parametrize(
    "query", ["q=%00x", "q=%ff%fe%01", "sender=a%00b", "q=%e2%80%ae%ef%bf%be", "like=%00", "list=%00"]
)
def test_characters_that_no_page_can_show_are_left_out(site: Site, query: str) -> None:
    answer = site.signed_in(ALICE).get(f"/?{query}")  # checked by the standard's parser
    assert answer.status == 200


def test_a_page_says_what_this_is_and_how_a_real_digest_is_recognized(make_parts: Callable[..., Parts]) -> None:
    contact = "the help desk & co, help@example.org"
    site = Site(make_parts(site__contact=contact, public_url="https://quarantine.example.org/quarantine"))
    page = site.browser().get("/about").text
    assert "All links lead to quarantine.example.org." in page and "They are removed after 30 days." in page
    assert "No page here ever asks for a password." in page
    assert page.count("Questions? Contact the help desk &amp; co, help@example.org.") == 2
    assert 'href="/quarantine/about"' in site.browser().get("/sign-in").text
    others = Site(make_parts(imap__host="imap.example.org"))
    assert "Type a password only on the sign-in page" in others.browser().get("/about").text
