"""Digests of many recipients, on the page of the console, on both stores."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import time
from html import unescape
from pathlib import Path

import pytest

from portal.assemble import Parts
from portal.model.audit import AuditFilter
from portal.model.schedule import Preferences
from portal.model.staff import EVERYWHERE, Grant, Role
from tests.builders import ALICE, BOB, BY_OPERATOR, MALLORY, prefer
from tests.web_client import ORIGIN, Answer, Browser, Site

LIST = "/admin/recipients/list"
JO = "jo@example.net"


@pytest.fixture
def site(make_parts: Callable[..., Parts], tmp_path: Path) -> Site:
    file = tmp_path / "virtual"
    file.write_text("sales@example.net alice@example.org\ninfo@example.org alice@example.org, bob@example.org\n")
    return Site(make_parts(local_domains=("example.org", "example.net"), people__alias_file=str(file)))


def staff(site: Site, role: Role = Role.ADMINISTRATOR, domain: str = EVERYWHERE) -> Browser:
    site.store.staff.give(Grant(MALLORY, role, domain, site.now, BY_OPERATOR))
    return site.signed_in(MALLORY)


def send(browser: Browser, form: Mapping[str, str], file: bytes = b"") -> Answer:
    """Send the form as browsers do, with the file."""
    fields = {"form_token": browser.form_token(), **form}
    parts = [f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
    named = b"people.csv" if file else b""
    parts.append(b'Content-Disposition: form-data; name="file"; filename="%s"\r\n\r\n%s' % (named, file))
    body = b"".join(b"--limit\r\n%s\r\n" % part for part in parts) + b"--limit--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=limit", "Origin": ORIGIN}
    return browser.request("POST", LIST, body=body, headers=headers)


def confirm(browser: Browser, page: Answer) -> Answer:
    """Press the button of the second form."""
    form = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page.text))
    more = {"confirm": "1", "reason": "new office"}
    return send(browser, {name: unescape(value) for name, value in form.items()} | more)


def facts(page: Answer) -> dict[str, str]:
    return dict(re.findall(r"<dt>([^<]*)</dt><dd>([\d,]+)", page.text))


def test_a_list_is_checked_confirmed_and_recorded(site: Site) -> None:
    site.hold(recipients=(ALICE, BOB))
    site.store.recipients.set_digests_stopped(BOB, site.now)
    browser = staff(site)
    text = f"\r\n{ALICE}\r\nBOB@example.org\r\nnew@example.org\r\nx@elsewhere.example\r\n<b>\r\ninfo@example.org"
    page = send(browser, {"list": text, "act": "stop"})
    assert page.status == 200, page.text
    assert facts(page) == {"Would be changed": "2", "Already so": "1", "Skipped": "1"}
    assert "Nothing is stored yet for 1 of those" in page.text and "<bdi>new@example.org</bdi>" in page.text
    for line, address, reason in ((5, "x@elsewhere.example", "not a recipient here"), (6, "&lt;b&gt;", "not an email"),
                                  (7, "info@example.org", "a shared mailbox")):  # fmt: skip
        assert re.search(rf'"number">{line}</td><td><bdi>{re.escape(address)}</bdi></td><td>[^<]*{reason}', page.text)
    assert site.store.recipients.get(ALICE).stopped_at is None
    done = confirm(browser, page)
    assert "Recipients changed: 2" in done.text and "a shared mailbox" in done.text
    assert [site.store.recipients.get(each).stopped_at for each in (ALICE, BOB, "new@example.org")] == [site.now] * 3
    entries = site.store.audit.list(AuditFilter(person=MALLORY, act="digests-stopped"), 9)
    assert {(each.subject, each.actor.via, each.detail) for each in entries} == {
        (ALICE, "console", "new office"),
        ("new@example.org", "console", "new office"),
    }
    assert "Recipients changed: 0" in confirm(browser, page).text, "sending it again changes nothing"


COMMAS = 'address,at,zone\n{0},"7:00, 16:00",\n{1},,default\n'
SEMICOLONS = "Zone;address;at\n;{0};7:00,16:00\ndefault;{1};\n"


@pytest.mark.parametrize("table", [COMMAS, SEMICOLONS], ids=["commas", "semicolons"])
def test_a_file_sets_preferences(site: Site, table: str) -> None:
    prefer(site.store, BOB, Preferences(timezone="Asia/Tokyo"))
    browser = staff(site)
    page = send(browser, {"act": "set", "language": "fr"}, table.format(ALICE, BOB).encode("utf-8-sig"))
    assert facts(page)["Would be changed"] == "2"
    confirm(browser, page)
    assert site.store.recipients.get(ALICE).preferences == Preferences(at=(time(7), time(16)), language="fr")
    assert site.store.recipients.get(BOB).preferences == Preferences(language="fr")


def test_a_domain_is_meant_by_its_name(site: Site) -> None:
    site.hold(recipients=(ALICE, BOB, JO, "info@example.org", "sales@example.net", "eve@sub.example.net"))
    browser = staff(site, Role.DOMAIN_ADMINISTRATOR, "example.net")
    page = send(browser, {"domain": "example.net", "act": "stop"})
    assert facts(page) == {"Would be changed": "1", "Already so": "0"}
    confirm(browser, page)
    stopped = [each for each in (ALICE, BOB, JO) if site.store.recipients.get(each).stopped_at]
    assert stopped == [JO]
    assert send(browser, {"domain": "example.org", "act": "stop"}).status == 403
    assert "example.org" not in re.findall(r'<option value="([^"]*)"', browser.get(LIST).text)
    page = send(browser, {"list": f"{JO}\n{ALICE}\nsales@example.net", "act": "resume"})
    assert facts(page) == {"Would be changed": "1", "Already so": "0", "Skipped": "2"}
    confirm(browser, page)
    assert site.store.recipients.get(JO).stopped_at is None


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ({"act": "stop"}, "Enter addresses, choose a file or choose a domain."),
        ({"act": "stop", "list": ALICE, "domain": "example.org"}, "not several of these"),
        ({"list": ALICE}, "Choose an action."),
        ({"act": "set", "list": ALICE}, "There is no value to set."),
        ({"act": "set", "list": ALICE, "at": "25:00"}, "Enter times like 07:00"),
        ({"act": "stop", "list": f"{ALICE}\n{BOB},de"}, "Line 2: There are more values than columns."),
        ({"act": "stop", "list": "address,language\n"}, "Line 1: The only column is address."),
        ({"act": "set", "list": "address,colour\n"}, "Line 1: The columns are address and"),
        ({"act": "set", "list": f'address,at\n{ALICE},"7'}, "This is not CSV."),
        ({"act": "stop", "list": "a@example.org\n" * 10_001}, "A list has at most 10,000 lines."),
    ],
)
def test_a_wrong_form_is_shown_again(site: Site, form: dict[str, str], text: str) -> None:
    page = send(staff(site), form)
    assert page.status == 400 and text in unescape(re.sub(r"<[^>]+>", "", page.text))
    assert ALICE in page.text or ALICE not in form.get("list", "")


def test_a_part_of_a_domain_is_not_taken_for_all_of_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal.web.recipient_list._MAX_LINES", 2)
    for name in ("info", "x", "y"):  # the first one is a shared mailbox
        site.store.recipients.set_digests_stopped(f"{name}@example.org", None)
        site.hold(recipients=(f"{name}@example.org",))
    page = send(staff(site), {"domain": "example.org", "act": "stop"})
    assert page.status == 400 and "A list has at most" in page.text


def test_what_is_confirmed_is_what_was_checked(site: Site) -> None:
    browser = staff(site)
    assert "Line 1: This is not UTF-8." in send(browser, {"act": "stop"}, b"\xff\n").text
    page = send(browser, {"list": "a\u202el\x00ice@example.org\nx@example.net", "act": "stop"})
    assert "\u202e" not in page.text and facts(page)["Would be changed"] == "2"
    confirm(browser, page)
    assert site.store.recipients.get(ALICE).stopped_at is not None


def test_it_needs_a_fresh_sign_in(site: Site) -> None:
    browser = staff(site)
    site.pass_time(minutes=16)
    assert browser.get(LIST).status == 303
    assert send(browser, {"list": ALICE, "act": "stop", "confirm": "1"}).status == 303
    assert site.store.recipients.get(ALICE).stopped_at is None


def test_a_long_list_takes_several_transactions(site: Site) -> None:
    browser = staff(site)
    page = send(browser, {"list": "".join(f"person-{number}@example.org\n" for number in range(1_100)), "act": "stop"})
    assert facts(page)["Would be changed"] == "1,100"
    assert "Recipients changed: 1,100" in confirm(browser, page).text
    assert site.store.recipients.get("person-1099@example.org").stopped_at == site.now


def test_preferences_are_exported_for_the_form_above(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.hold(recipients=(ALICE, BOB, "info@example.org", JO))
    prefer(site.store, ALICE, Preferences("weekdays", (time(7), time(16, 30)), only_wanted=True))
    site.store.recipients.set_digests_stopped(JO, site.now)
    browser = staff(site)
    assert f'action="/quarantine{LIST}/export"' in browser.get(LIST).text
    form = {"form_token": browser.form_token(), "domain": "example.org", "stopped": ""}
    answer = browser.post(f"{LIST}/export", form)
    assert (answer.header("Content-Type"), answer.header("Content-Disposition")) == (
        "text/csv; charset=utf-8",
        'attachment; filename="recipients.csv"',
    )
    assert answer.text.splitlines() == [
        "address,days,at,zone,language,notices,only-wanted",
        f'{ALICE},weekdays,"07:00,16:30",default,default,default,on',
        f"{BOB},default,default,default,default,default,default",
    ]
    prefer(site.store, ALICE, Preferences(language="fr"))
    confirm(browser, send(browser, {"act": "set"}, answer.body))
    assert site.store.recipients.get(ALICE).preferences == Preferences(
        "weekdays", (time(7), time(16, 30)), only_wanted=True
    )
    assert browser.post(f"{LIST}/export", form | {"domain": "", "stopped": "1"}).text.split() == ["address", JO]
    exported = {(e.actor.name, e.domain) for e in site.store.audit.list(AuditFilter(), 99) if e.act == "exported"}
    assert exported == {(MALLORY, ""), (MALLORY, "example.org")}
    monkeypatch.setattr("portal.web.recipient_list._MAX_LINES", 2)
    refused = browser.post(f"{LIST}/export", form | {"domain": ""})
    assert refused.status == 400 and "A list has at most 10,000 lines." in refused.text


def test_staff_of_a_domain_export_its_people_only(site: Site) -> None:
    site.hold(recipients=(ALICE, JO))
    browser = staff(site, Role.DOMAIN_ADMINISTRATOR, "example.net")
    form = {"form_token": browser.form_token(), "domain": ""}
    assert browser.post(f"{LIST}/export", form).text.split()[1:] == [
        f"{JO},default,default,default,default,default,default"
    ]
    assert browser.post(f"{LIST}/export", form | {"domain": "example.org"}).status == 403
    site.pass_time(minutes=16)
    assert "ended=fresh" in (browser.post(f"{LIST}/export", form).header("Location") or "")
