"""The page of a message in the console: what staff see, who reads the content, and that the audit has it."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

import pytest

from portal.assemble import Parts
from portal.model.audit import AuditFilter
from portal.model.message import Scan, ScanOutcome, Tier
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.stores.records import Held
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, MALLORY
from tests.statements import Statements
from tests.web_client import Browser, Site

CAROL = "carol@example.net"
MAIL = b"From: shop@example.net\r\nSubject: Offer\r\nContent-Type: text/html\r\n\r\n<p>The words of the message</p>\r\n"
VIEWS = ("text", "formatted", "headers", "source")


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Site:
    return Site(make_parts(local_domains=("example.org", "example.net")))


def staff(site: Site, role: Role = Role.ADMINISTRATOR, domain: str = EVERYWHERE) -> Browser:
    site.store.staff.give(Grant(MALLORY, role, domain, site.now, BY_OPERATOR))
    return site.signed_in(MALLORY)


def words(browser: Browser, path: str) -> str:
    """Return what a page says, as text in one line."""
    page = browser.get(path).text
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", page[page.index("<main") :])).split())


def readings(site: Site, held: Held) -> list[tuple[str, str, str]]:
    found = site.store.audit.list(AuditFilter(message_id=held.id), 20)
    return [(each.act, each.actor.name, each.detail) for each in reversed(found) if each.act != "deleted"]


def test_the_page_explains_a_message_and_names_who_did_what(site: Site) -> None:
    held = site.hold(recipients=(ALICE,), subject="An offer", envelope_sender="bounce@example.net")
    site.parts.actions.delete(held.id, 0, BY_LINK)
    said = words(staff(site), f"/admin/messages/{held.id}.0/")
    for text in (
        *("An offer", f"For {ALICE}", "Score: 17.5, limit 15", "BAYES_SPAM", "5.1", "<bounce@example.net>"),
        *("198.51.100.9", "4XyZq1abc", "Spam", f"Deleted by \u2068{ALICE}\u2069 (link · 192.0.2.7)."),
    ):
        assert text in said, text


def test_the_answer_of_the_mail_server_and_the_operator_are_in_the_history(site: Site) -> None:
    held = site.hold(recipients=(ALICE,))
    site.parts.actions.request_release(held.id, 0, BY_LINK)
    site.parts.actions.refuse_request(held.id, 0, BY_OPERATOR, "It is phishing.")
    said = words(staff(site, Role.AUDITOR), f"/admin/messages/{held.id}.0/")
    assert "Release request denied by \u2068root\u2069 (cli). It is phishing." in said


@pytest.mark.parametrize(
    ("role", "domain", "is_shown"),
    [
        (Role.ADMINISTRATOR, EVERYWHERE, True),
        (Role.AUDITOR, EVERYWHERE, True),
        (Role.HELP_DESK, "example.org", True),
        (Role.DOMAIN_ADMINISTRATOR, "example.net", False),
    ],
)
def test_a_message_is_shown_in_the_domains_of_a_role_alone(site: Site, role: Role, domain: str, is_shown: bool) -> None:
    held = site.hold(recipients=(ALICE, CAROL), subject="For two domains")
    browser = staff(site, role, domain)
    assert browser.get(f"/admin/messages/{held.id}.0/").status == (200 if is_shown else 404)
    if is_shown:
        others = words(browser, f"/admin/messages/{held.id}.0/")
        assert (CAROL in others) == (domain == EVERYWHERE)
    else:
        assert ALICE not in words(browser, f"/admin/messages/{held.id}/"), "the first one of the domain"


def test_each_reading_is_in_the_audit_and_the_first_page_is_none(site: Site) -> None:
    held = site.hold(data=MAIL, recipients=(ALICE,))
    browser = staff(site)
    place = f"/admin/messages/{held.id}.0/"
    assert "The words of the message" not in browser.get(place).text
    assert readings(site, held) == []
    assert "The words of the message" not in browser.get(f"{place}formatted").text, "its frame has them"
    for part, read in (("text", "The words"), ("html", "The words"), ("headers", "shop@"), ("source", "The words")):
        site.pass_time(seconds=1)
        assert read in browser.get(place + part).text
    assert readings(site, held) == [("body-read", MALLORY, view) for view in VIEWS]


@pytest.mark.parametrize("role", [Role.HELP_DESK, Role.AUDITOR])
def test_staff_without_the_right_do_not_read(site: Site, role: Role) -> None:
    held = site.hold(data=MAIL, recipients=(ALICE,))
    browser = staff(site, role)
    for part in (*VIEWS, "html", "download"):
        answer = browser.get(f"/admin/messages/{held.id}.0/{part}")
        assert answer.status == 403 and "The words" not in answer.text
    assert "/text" not in browser.get(f"/admin/messages/{held.id}.0/").text
    assert readings(site, held) == []


def test_the_help_desk_reads_where_the_settings_allow_it(make_parts: Callable[..., Parts]) -> None:
    site = Site(make_parts(staff__help_desk_sees_bodies=True))
    held = site.hold(data=MAIL, recipients=(ALICE,))
    assert "The words of" in staff(site, Role.HELP_DESK).get(f"/admin/messages/{held.id}.0/text").text


def test_dangerous_mail_has_neither_source_nor_formatted_view_nor_download(site: Site) -> None:
    held = site.hold(Tier.DANGEROUS, data=MAIL, recipients=(ALICE,))
    browser = staff(site)
    statuses = {
        part: browser.get(f"/admin/messages/{held.id}.0/{part}").status for part in (*VIEWS, "html", "download")
    }
    assert statuses == {"text": 200, "formatted": 404, "headers": 200, "source": 404, "html": 404, "download": 403}


def test_a_download_is_in_the_history_and_the_audit(site: Site) -> None:
    held = site.hold(data=MAIL, recipients=(ALICE,))
    site.store.messages.record_scan(held.id, Scan(ScanOutcome.CLEAN, site.now), Tier.SPAM, site.now)
    browser = staff(site)
    place = f"/admin/messages/{held.id}.0/download"
    answer = browser.post(place, {"form_token": browser.form_token()})
    assert answer.body == MAIL
    assert "attachment" in (answer.header("Content-Disposition") or "")
    assert readings(site, held) == [("downloaded", MALLORY, "message")]
    assert "Message downloaded by an administrator." in words(site.signed_in(ALICE), f"/messages/{held.id}/")


def test_previous_and_next_follow_the_order_of_the_search(site: Site) -> None:
    low, high, middle = (site.hold(recipients=(ALICE,), score=score) for score in (10.0, 30.0, 20.0))
    browser = staff(site)
    for order, way, expected in (
        ("highest-score", "next", low),
        ("highest-score", "previous", high),
        ("lowest-score", "next", high),
        ("lowest-score", "previous", low),
    ):
        search = f"%3Forder%3D{order}"
        answer = browser.get(f"/admin/messages/{middle.id}.0/{way}?search={search}")
        assert f"/admin/messages/{expected.id}.0/" in (answer.header("Location") or ""), (order, way)


def test_previous_and_next_follow_the_search(site: Site) -> None:
    held = [site.hold(recipients=(to,), subject=f"Number {name}") for to, name in zip(
        (ALICE, BOB, ALICE), ("one", "two", "three"), strict=True)]  # fmt: skip
    browser = staff(site)
    found = browser.get(f"/admin/?recipient={ALICE}").text
    [link] = re.findall(r'href="/quarantine(/admin/messages/[^"]*)"><bdi>Number three', found)
    page = browser.get(html.unescape(link))
    following = browser.get(re.findall(r'href="/quarantine([^"]*/next[^"]*)"', page.text)[0])
    assert f"/admin/messages/{held[0].id}.0/" in (following.header("Location") or "")
    one = browser.follow(following, link)
    assert "Number one" in one.text
    assert f'href="/quarantine/admin/?recipient={ALICE.replace("@", "%40")}"' in one.text
    back = browser.get(re.findall(r'href="/quarantine([^"]*/previous[^"]*)"', one.text)[0])
    assert f"/admin/messages/{held[2].id}.0/" in (back.header("Location") or "")
    end = browser.get(re.findall(r'href="/quarantine([^"]*/next[^"]*)"', one.text)[0])
    assert (end.header("Location") or "").startswith("/quarantine/admin/?recipient=")


def test_previous_and_next_follow_a_search_by_an_address_with_an_extension(make_parts: Callable[..., Parts]) -> None:
    site = Site(make_parts(people__recipient_delimiter="+"))
    first, _, last = (site.hold(recipients=(to,)) for to in (ALICE, BOB, ALICE))
    search = "%3Frecipient%3Dalice%252Bshop%2540example.org"
    answer = staff(site).get(f"/admin/messages/{last.id}.0/next?search={search}")
    assert f"/admin/messages/{first.id}.0/" in (answer.header("Location") or "")


def test_previous_is_found_from_a_later_page_of_the_search(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal.web.console_message._PREVIOUS_MAX", 4)
    held = [site.hold(recipients=(ALICE,), subject=f"Number {number}") for number in range(10)]
    browser = staff(site)
    path = f"/admin/?recipient={ALICE}&before={held[4].id}.0"
    [link] = re.findall(r'href="/quarantine(/admin/messages/[^"]*)"><bdi>Number 1<', browser.get(path).text)
    page = browser.get(html.unescape(link))
    assert f"before={held[4].id}.0" in page.text  # the way back
    for number in (2, 3):
        [link] = re.findall(r'href="/quarantine([^"]*/previous[^"]*)"', page.text)
        page = browser.follow(browser.get(html.unescape(link)), link)
        assert f"Number {number}" in page.text
    answer = browser.get(html.unescape(re.findall(r'href="/quarantine([^"]*/previous[^"]*)"', page.text)[0]))
    assert (answer.header("Location") or "").startswith("/quarantine/admin/?")  # too far from the first page


def test_similar_messages_of_the_recipient_are_linked(site: Site) -> None:
    held = [site.hold(recipients=(ALICE,), subject=f"Your invoice {number}") for number in (17, 18)]
    browser = staff(site)
    page = browser.get(f"/admin/messages/{held[0].id}.0/").text
    assert f'href="/quarantine/admin/messages/{held[0].id}.0/similar"' in page
    page = browser.get(f"/admin/messages/{held[0].id}.0/similar").text
    assert f'href="/quarantine/admin/messages/{held[1].id}.0/"' in page


@pytest.mark.parametrize("search", ["%3Fsince%3Dx", "%3Frecipient%3D%00%22%3E", "%ff", "x" * 900])
def test_a_broken_search_leads_back_to_the_console(site: Site, search: str) -> None:
    held = site.hold(recipients=(ALICE,))
    answer = staff(site).get(f"/admin/messages/{held.id}.0/next?search={search}")
    assert answer.status == 303
    assert (answer.header("Location") or "").startswith("/quarantine/admin/")


def test_the_pages_of_a_message_need_few_statements(
    make_parts: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = Statements(monkeypatch)
    site = Site(make_parts())
    held = site.hold(data=MAIL)
    browser = staff(site)
    browser.get("/admin/requests")  # every ten seconds one page counts the open requests
    for part, most in (("", 5), ("similar", 5), ("headers", 6), ("next", 5)):  # a reading also writes to the audit
        with statements.of() as sent:
            assert browser.get(f"/admin/messages/{held.id}.0/{part}").status in (200, 303)
        assert 0 < len(sent) <= most, sent
