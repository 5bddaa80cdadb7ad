"""The page of statistics and its charts, on both stores."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from html import unescape
from xml.etree import ElementTree

import pytest

from digest.housekeeping import index_facets
from digest.statistics import count_days
from portal.model.audit import AuditFilter
from portal.model.message import Symbol, Tier
from portal.model.schedule import Preferences
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.model.statistics import Count, Month
from portal.stores.contracts import Recipients
from portal.stores.records import Person
from tests.builders import ALICE, BOB, BY_OPERATOR, hold, prefer
from tests.conftest import MakeParts
from tests.contract.helpers import release
from tests.web_client import Browser, Site

BAD = (Symbol("FUZZY_DENIED", 12.0),)
CAROL = "carol@example.com"


@pytest.fixture
def site(make_parts: MakeParts) -> Site:
    return Site(make_parts(local_domains=("example.org", "example.com")))


def staff(site: Site, role: Role = Role.AUDITOR, domain: str = EVERYWHERE) -> Browser:
    site.store.staff.give(Grant(BOB, role, domain, site.now, BY_OPERATOR))
    return site.signed_in(BOB)


def fill(site: Site) -> None:
    """Hold two messages in different domains yesterday, release one of them today, and count."""
    at = site.now - timedelta(days=1)
    held = hold(site.store, recipients=[ALICE], symbols=BAD, header_from="a@shop.example", at=at)
    hold(site.store, recipients=[CAROL], tier=Tier.DANGEROUS, header_from="b@<b>.example", at=at)
    release(site.store, held, site.now)
    index_facets(site.parts)
    count_days(site.parts, site.now)


def rows(page: str) -> dict[str, list[str]]:
    """Return the numbers of the first columns by the text of the first one."""
    found = {}
    for row in re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", page):
        cells = [re.sub("<[^>]*>", "", cell) for cell in re.split("</t[hd]>", row)]
        found[cells[0]] = cells[1:3]
    return found


def test_the_page_says_what_was_held_and_released(site: Site) -> None:
    fill(site)
    page = staff(site).get("/admin/statistics").text
    found = rows(page)
    assert found["Spam"] == ["1", "1"] and found["Possibly dangerous"] == ["1", "0"]
    assert found["FUZZY_DENIED"] == ["1", "1"]
    assert found["shop.example"] == ["1", "1"]
    assert found[f"{site.now:%Y-%m-%d}"] == ["0", "1"]
    assert "100%" in page
    assert "?symbol=FUZZY_DENIED&amp;since=" in page


def test_a_role_for_a_domain_shows_only_that_domain(site: Site) -> None:
    fill(site)
    browser = staff(site, Role.DOMAIN_ADMINISTRATOR, "example.com")
    for path in ("", "?domain=example.com"):
        page = browser.get(f"/admin/statistics{path}").text
        assert rows(page)["Possibly dangerous"] == ["1", "0"]
        assert "Spam" not in rows(page) and "FUZZY_DENIED" not in page
    for path in ("", "/days.svg", "/tiers.svg"):
        assert browser.get(f"/admin/statistics{path}?domain=example.org").status == 404


def test_the_domains_of_recipients_that_staff_see_are_compared(site: Site) -> None:
    day = site.now.date()
    hosts = ("", "example.org", "example.com", "example.net")
    counts = [Count(host, "total", day.isoformat(), "held", "", 9 - number) for number, host in enumerate(hosts)]
    site.store.statistics.import_records(day, counts)
    browser = staff(site, Role.DOMAIN_ADMINISTRATOR, "example.org")
    assert "Recipient domains" not in browser.get("/admin/statistics").text, "they see a single one"
    staff(site, Role.DOMAIN_ADMINISTRATOR, "example.com")
    for query in ("", "?domain=example.org"):
        page = browser.get(f"/admin/statistics{query}").text
        assert rows(page)["example.org"] == ["8", "0"] and rows(page)["example.com"] == ["7", "0"]
        assert "Recipient domains" in page and "example.net" not in page
    page = staff(site).get("/admin/statistics").text
    assert rows(page)["example.net"] == ["6", "0"]
    assert 'href="/quarantine/admin/?domain=example.net&amp;since=' in page
    assert "Recipient domains" not in browser.get("/admin/statistics?domain=example.org").text


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York"])
def test_a_link_to_the_search_finds_the_messages_that_were_counted(site: Site, zone: str) -> None:
    """Days of the statistics are in UTC, those of the search in the viewer's time zone."""
    midnight = datetime.combine(site.now.date().replace(day=1), time(), UTC)  # that ended the month before
    first = datetime.combine(Month(midnight.date()).before.first, time(), UTC)
    moment = timedelta(milliseconds=1)
    for at, subject in (
        (first - moment, "too early"),
        (first, "first"),
        (midnight - moment, "last"),
        (midnight, "too late"),
    ):
        hold(site.store, recipients=[ALICE], symbols=BAD, header_from="a@shop.example", subject=subject, at=at)
    index_facets(site.parts)
    for day in (first - moment, first, midnight - moment, midnight):
        site.store.statistics.count(day.date())
    browser = staff(site)
    prefer(site.store, BOB, Preferences(timezone=zone))
    page = browser.get(f"/admin/statistics?period={Month(first.date())}").text
    assert rows(page)["FUZZY_DENIED"][0] == rows(page)["example.org"][0] == "2"
    links = {unescape(link) for link in re.findall(r'href="/quarantine(/admin/\?[^"]*since=[^"]*)"', page)}
    assert {link.partition("?")[2].partition("=")[0] for link in links} == {"domain", "tier", "symbol", "sender-domain"}
    for link in links:
        found = browser.get(link).text
        assert [each for each in ("too early", "first", "last", "too late") if each in found] == ["first", "last"], link


@pytest.mark.parametrize("days", ["7", "365", "x", ""])
@pytest.mark.parametrize("name", ["days", "tiers"])
def test_the_charts_are_images_without_script(site: Site, name: str, days: str) -> None:
    fill(site)
    answer = staff(site).get(f"/admin/statistics/{name}.svg?period={days}")
    assert (answer.status, answer.header("Content-Type")) == (200, "image/svg+xml")
    root = ElementTree.fromstring(answer.text)  # noqa: S314 - our own
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not [each for each in root.iter() if str(each.tag).endswith("script")]
    assert ("Held" if name == "days" else "Possibly dangerous") in answer.text
    labels = {each.text for each in root.iter("{http://www.w3.org/2000/svg}text")}
    assert f"{site.now - timedelta(days=6 if days == '7' else 364 if days == '365' else 29):%Y-%m-%d}" in labels


def test_a_period_is_compared_with_the_one_before(site: Site) -> None:
    first = site.now.date().replace(day=1)
    month = Month(first).before
    for day, number in ((month.last, 5), (month.before.first, 3), (first, 1)):
        counts = [Count(host, "total", day.isoformat(), "held", "", number) for host in ("", "example.com")]
        site.store.statistics.import_records(day, counts)
    browser = staff(site)
    for query in (f"period={month}", f"period={month}&domain=example.com"):
        page = browser.get(f"/admin/statistics?{query}").text
        assert rows(page)["Held"] == ["5", "3"] and f'value="{month}" selected' in page
        for each in (month, month.before):
            assert f"{each.first} –<br>{each.last}" in page
    assert rows(browser.get(f"/admin/statistics?period={Month(first)}").text)["Held"] == ["1", "5"]
    for wrong in ("0001-01", "2026-13", "31", ""):
        assert browser.get(f"/admin/statistics?period={wrong}").status == 200


def test_the_page_of_an_empty_store_says_so(site: Site) -> None:
    browser = staff(site)
    assert "Nothing was counted in these days." in browser.get("/admin/statistics").text
    assert browser.get("/admin/statistics/days.svg").status == 200


def test_administrators_stop_and_resume_the_mails_of_the_report(site: Site) -> None:
    browser = staff(site, Role.DOMAIN_ADMINISTRATOR, "example.org")
    prefer(site.store, BOB, Preferences(timezone="Europe/Berlin"))
    form = {"form_token": browser.form_token()}
    for chosen, offered in (("off", "Mail me the report"), ("on", "Do not mail me the report")):
        answer = browser.post("/admin/statistics", form | {"report": chosen})
        assert answer.header("Location") == "/quarantine/admin/statistics?done=report"
        page = browser.get("/admin/statistics?done=report").text
        assert "Your choice was saved." in page and f">{offered}</button>" in page
        assert browser.post("/preferences", form | {"change": "save", "timezone": "Europe/Berlin"}).status == 303
        kept = site.store.recipients.get(BOB).preferences
        assert (kept.timezone, kept.monthly_report) == ("Europe/Berlin", chosen == "on")
    assert browser.post("/admin/statistics", form).status == 400
    recorded = [
        (e.actor.who, e.actor.via, e.subject) for e in site.store.audit.list(AuditFilter(act="preferences-set"), 9)
    ]
    assert [each for each in recorded if each[1] == "console"] == [(f"operator:{BOB}", "console", BOB)] * 2


def test_the_choice_of_the_report_changes_nothing_else(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the next digest, nor what the person changes at the same moment on another page."""
    store, browser = site.store.recipients, staff(site, Role.DOMAIN_ADMINISTRATOR, "example.org")
    form = {"form_token": browser.form_token(), "report": "off"}
    hold(site.store, recipients=[BOB], at=site.now)
    store.schedule(BOB, site.now)
    assert browser.post("/admin/statistics", form).status == 303
    person = store.get(BOB)
    assert (person.preferences, person.next_digest_at) == (Preferences(monthly_report=False), site.now)
    get, form = type(store).get, form | {"report": "on"}

    def overtaken(self: Recipients, recipient: str) -> Person:
        found = get(self, recipient)
        prefer(site.store, recipient, replace(found.preferences, language="fr"))
        return found

    with monkeypatch.context() as patched:
        patched.setattr(type(store), "get", overtaken)
        assert browser.post("/admin/statistics", form).status == 303
    assert store.get(BOB).preferences == Preferences(language="fr", monthly_report=True)


def test_others_are_offered_no_report(site: Site) -> None:
    assert 'name="report"' not in staff(site, Role.AUDITOR).get("/admin/statistics").text
