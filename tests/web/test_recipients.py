"""The page of a recipient in the console, on both stores."""

from __future__ import annotations

from collections.abc import Callable
from datetime import time, timedelta
from html import unescape
from pathlib import Path
from urllib.parse import quote

import pytest

from portal.assemble import Parts
from portal.model.audit import Act, AuditEntry
from portal.model.message import Tier
from portal.model.schedule import Preferences
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.stores.records import Unsent
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, MALLORY, digesting, rule
from tests.statements import Statements
from tests.web_client import Browser, Site

DOMAINS = ("example.org", "example.net", "münchen.example")
ALIASES = "sales@example.net alice@example.org\ninfo@example.org alice@example.org, bob@example.org\n"


@pytest.fixture
def site(make_parts: Callable[..., Parts], tmp_path: Path) -> Site:
    file = tmp_path / "virtual"
    file.write_text(ALIASES)
    return Site(make_parts(local_domains=DOMAINS, people__alias_file=str(file), people__recipient_delimiter="+"))


def staff(site: Site, role: Role = Role.ADMINISTRATOR, domain: str = EVERYWHERE, person: str = MALLORY) -> Browser:
    site.store.staff.give(Grant(person, role, domain, site.now, BY_OPERATOR))
    return site.signed_in(person)


def page_of(browser: Browser, address: str) -> str:
    answer = browser.get(f"/admin/recipients/?address={quote(address)}")
    assert answer.status == 200
    return unescape(answer.text)


def test_the_page_says_what_staff_need_to_know(site: Site) -> None:
    held = site.hold(subject="Invoice 7", recipients=(ALICE,))
    site.hold(Tier.DANGEROUS, subject="For sales", recipients=("sales@example.net",))
    site.hold(subject="For both", recipients=("info@example.org",))
    site.parts.actions.delete(held.id, 0, BY_OPERATOR)
    site.store.recipients.set_preferences(ALICE, Preferences(at=(time(6, 40),), timezone="Asia/Tokyo", language="fr"))
    site.store.rules.add([rule("news.example", "allow")], site.now)
    site.store.audit.record(
        AuditEntry.new(site.now, Act.SIGNED_IN, BY_LINK, ALICE, "Firefox · Windows"),
    )
    site.store.sign_ins.start_session(b"x" * 32, ALICE, site.now, "Safari · iPhone")
    page = page_of(staff(site), ALICE)
    for text in (
        *("Held: 2", "Deleted: 1", "Invoice 7", "For both", "For sales", "<bdi>sales@example.net</bdi></a> · alias"),
        *("BAYES_SPAM 5.1", "17.5 / 15", "Possibly dangerous", "6:40", "Asia/Tokyo", "Français", "None was sent."),
        *("Allow · <strong><bdi>news.example</bdi>", "Firefox · Windows", "Safari · iPhone", "Times are in UTC"),
        '<a href="/quarantine/admin/recipients/?address=info%40example.org"><bdi>info@example.org</bdi></a>',
    ):
        assert text in page, text
    assert "Bob" not in page and BOB not in page


@pytest.mark.parametrize("typed", ["Alice+x@Example.ORG", " alice@example.org", "Sales@example.net"])
def test_any_spelling_leads_to_the_person(site: Site, typed: str) -> None:
    page = page_of(staff(site), typed)
    assert f"<h2><bdi>{ALICE}</bdi></h2>" in page
    assert ("is an alias of this recipient" in page) == ("Sales" in typed)


def test_international_domains_are_read_and_shown_with_u_labels(site: Site) -> None:
    site.hold(recipients=("jo@xn--mnchen-3ya.example",))
    browser = staff(site)
    for typed in ("jo@MÜNCHEN.example", "jo@xn--mnchen-3ya.example"):
        page = page_of(browser, typed)
        assert "<h2><bdi>jo@münchen.example</bdi></h2>" in page and "Held: 1" in page


def test_a_shared_mailbox_names_its_readers(site: Site) -> None:
    page = page_of(staff(site), "info@example.org")
    assert "This is a shared mailbox." in page and BOB in page and ALICE in page
    assert "Signed-in browsers" not in page


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        ("alice", "This is not an email address."),
        ("a b@example.org", "This is not an email address."),
        ("x@elsewhere.example", "This address is not a recipient here"),
        ("nobody@example.org", "Nothing is stored for this address"),
        ('"><script>alert(1)</script>@example.org', "This is not an email address."),
        ("a" * 900 + "@example.org", "This is not an email address."),
        ("\x00\u202e@example.org", "This is not an email address."),
    ],
)
def test_an_unknown_address_says_why(site: Site, typed: str, reason: str) -> None:
    browser = staff(site)
    answer = browser.get(f"/admin/recipients/?address={quote(typed)}")
    assert answer.status == 200 and reason in answer.text and "<script>alert" not in answer.text


def test_staff_of_a_domain_see_the_recipients_and_addresses_of_the_domain_alone(site: Site) -> None:
    site.hold(subject="For alice", recipients=(ALICE,))
    site.hold(subject="For sales", recipients=("sales@example.net",))
    site.store.rules.add([rule("of-sales.example", scope="sales@example.net")], site.now)
    browser = staff(site, Role.HELP_DESK, "example.org")
    page = page_of(browser, ALICE)
    assert "For alice" in page
    assert "For sales" not in page and "sales@example.net" not in page and "of-sales" not in page
    for typed in ("jo@example.net", "nobody@elsewhere.example", "jo@münchen.example"):
        assert "This address is not in your domains." in page_of(browser, typed)
    other = staff(site, Role.HELP_DESK, "example.net", BOB)
    assert "This address is not in your domains." in page_of(other, "sales@example.net"), "its reader is elsewhere"


def test_the_page_says_why_no_digest_comes(site: Site) -> None:
    site.hold(recipients=(ALICE,))
    browser = staff(site)
    with digesting(site.store, ALICE, site.now, 50, ignore_schedule=True):
        pass
    assert "None was sent." not in page_of(browser, ALICE)
    site.hold(recipients=(ALICE,))
    claims = site.store.digests.claim(site.now, 1, 50, only=[ALICE], ignore_schedule=True)
    site.store.digests.settle([], [Unsent(claims.digests[0], site.now, failure="452 4.2.2 mailbox <full>")], site.now)
    assert "452 4.2.2 mailbox <full>" in page_of(browser, ALICE)
    alice = site.signed_in(ALICE)
    alice.post("/preferences", {"form_token": alice.form_token(), "change": "stop"})
    page = page_of(browser, ALICE)
    assert "Digests stopped on" in page and f"<bdi>{ALICE} (portal)</bdi>" in page


def test_the_page_takes_few_statements(make_parts: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch) -> None:
    statements = Statements(monkeypatch)
    site = Site(make_parts())
    for number in range(30):
        site.hold(subject=f"Offer {number * 7919}")
    with digesting(site.store, ALICE, site.now, 50, ignore_schedule=True):
        pass
    site.store.recipients.set_digests_stopped(ALICE, site.now)
    browser = staff(site)
    site.now += timedelta(minutes=2)
    with statements.of() as sent:
        assert "Digests stopped" in page_of(browser, ALICE)
    assert len(sent) <= 10, "\n".join(sent)
