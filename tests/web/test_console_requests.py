"""Release requests: the queue of staff, who is mailed, reminders, and what the mail's link needs."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from datetime import timedelta
from email import message_from_bytes
from email.policy import SMTP

import pytest

from digest.housekeeping import remind
from portal.assemble import Parts
from portal.model.message import DeliveryId, EventKind, Scan, ScanOutcome, State, Tier
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.stores.records import Held
from portal.web import console, console_requests
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, MALLORY
from tests.statements import Statements
from tests.web_client import Browser, Site

ADMIN = "postmaster@example.org"
CAROL = "carol@example.net"


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Site:
    return Site(make_parts(local_domains=("example.org", "example.net"), mail__admin_address=ADMIN))


def staff(site: Site, role: Role = Role.ADMINISTRATOR, domain: str = EVERYWHERE, person: str = MALLORY) -> Browser:
    site.store.staff.give(Grant(person, role, domain, site.now, BY_OPERATOR))
    return site.signed_in(person)


def requested(site: Site, recipient: str = ALICE, tier: Tier = Tier.DANGEROUS, **more: str) -> Held:
    held = site.hold(tier, recipients=(recipient,), **more)
    site.parts.actions.request_release(held.id, 0, BY_LINK)
    return held


def mails(site: Site) -> list[tuple[str, str]]:
    """Return the receivers and texts of the queued mails, and take them out of the queue."""
    found: list[tuple[str, str]] = []
    while True:
        with site.store.outbox.sending(site.now + timedelta(days=2)) as mail:
            if mail is None:
                return sorted(found)
            parsed = message_from_bytes(mail.mail, policy=SMTP.clone(utf8=True))
            found.append((mail.to, f"{parsed['Subject']}\n{parsed.get_content()}"))


def test_the_longest_waiting_request_is_first_with_its_age_and_scan(site: Site) -> None:
    newest = site.hold(Tier.DANGEROUS, recipients=(ALICE,), subject="The oldest request")
    held = requested(site, CAROL, subject="The newest request")
    site.store.messages.record_scan(held.id, Scan(ScanOutcome.CLEAN, site.now), Tier.DANGEROUS, site.now)
    site.store.deliveries.move(
        DeliveryId(newest.id, 0), State.REQUESTED, {State.HELD}, BY_LINK, site.now - timedelta(hours=5),
        kind=EventKind.REQUESTED,
    )  # fmt: skip
    page = staff(site).get("/admin/requests").text
    assert page.index("The oldest request") < page.index("The newest request")
    assert "5 hours" in page and "No virus found" in page
    assert f'href="/quarantine/admin/messages/{held.id}.0/' in page


def test_the_longest_waiting_are_shown_if_there_are_more(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_requests, "_SHOWN", 3)
    monkeypatch.setattr(console, "REQUESTS_COUNTED", 3)
    for number in range(5):
        requested(site, CAROL, subject=f"Request {number}")
        site.pass_time(minutes=1)
        requested(site, ALICE, subject="For the other domain")
    page = staff(site, Role.HELP_DESK, "example.net").get("/admin/requests").text
    assert re.findall("Request [0-9]", page) == ["Request 0", "Request 1", "Request 2"]
    assert "Search all messages" in page and re.search(r"Requests <span[^>]*>3\+<", page)


def test_a_role_for_a_domain_sees_its_requests_and_their_number(site: Site) -> None:
    requested(site, ALICE, subject="For the other domain")
    requested(site, CAROL, subject="For this domain")
    browser = staff(site, Role.HELP_DESK, "example.net")
    page = browser.get("/admin/requests").text
    assert "For this domain" in page and "For the other domain" not in page
    assert "Somebody else decides" in page
    assert re.search(r'aria-current="page">Requests <span[^>]*>1</span>', page)
    assert not re.search(
        r"Requests <span", staff(site, person=BOB, domain="example.net", role=Role.AUDITOR).get("/").text
    )


def test_the_number_falls_with_a_decision(site: Site) -> None:
    held = requested(site)
    browser = staff(site)
    assert re.search(r">Requests <span[^>]*>1<", browser.get("/admin/").text)
    form = {"form_token": browser.form_token(), "act": "deny", "reason": "It is phishing."}
    page = browser.follow(browser.post(f"/admin/messages/{held.id}.0/", form), "/").text
    assert "Denied." in page and not re.search(r">Requests <span", page)
    assert "No open requests." in browser.get("/admin/requests").text


def test_the_mail_leads_to_the_page_which_needs_a_sign_in_and_a_role(site: Site) -> None:
    held = requested(site)
    [(to, text)] = mails(site)
    assert to == ADMIN and f"quarantine refuse {held.id}" in text
    link = re.search(r"https?://\S+(/admin/messages/\S+)", text)
    assert link and link[1] == f"/admin/messages/{held.id}.0/"
    assert site.browser().get(link[1]).header("Location") == "/quarantine/sign-in"
    assert site.signed_in(ALICE).get(link[1]).status == 404
    assert "Approve and release" in staff(site).get(link[1]).text


@pytest.mark.parametrize(
    ("tier", "recipient", "receivers"),
    [
        (Tier.SUSPICIOUS, CAROL, ["dora@example.net", "erik@example.org"]),
        (Tier.SUSPICIOUS, "dora@example.net", ["erik@example.org"]),
        (Tier.DANGEROUS, CAROL, [ADMIN]),
        (Tier.SUSPICIOUS, ALICE, [ADMIN]),
    ],
)
def test_the_administrators_of_a_domain_get_the_requests_that_they_may_decide(
    site: Site, tier: Tier, recipient: str, receivers: list[str]
) -> None:
    for person in ("dora@example.net", "erik@example.org"):
        staff(site, Role.DOMAIN_ADMINISTRATOR, "example.net", person)
    staff(site, Role.HELP_DESK, "example.net", "hans@example.net")
    for host in ("example.net", "example.org"):
        site.parts.domains.set(host, "release_suspicious", "request", BY_OPERATOR)
    requested(site, recipient, tier)
    assert [to for to, _ in mails(site)] == receivers


def test_an_open_request_is_reminded_of_once_after_a_day(site: Site) -> None:
    held, denied = requested(site), requested(site)
    site.parts.actions.refuse_request(denied.id, 0, BY_OPERATOR, "no")
    mails(site)
    for hours, reminded in ((23, 0), (2, 1), (1, 0), (48, 0)):
        site.pass_time(hours=hours)
        assert remind(site.parts, site.now) == reminded
    [(to, text)] = mails(site)
    assert to == ADMIN and text.startswith(f"Reminder: release requested by {ALICE}") and str(held.id) in text
    assert "Nobody has decided about this request since" in text
    assert [e.kind for e in site.history(held)] == [EventKind.HELD, EventKind.REQUESTED, EventKind.REMINDED]


def test_a_new_request_after_a_denial_is_reminded_of_again(site: Site) -> None:
    held = requested(site)
    site.pass_time(hours=25)
    assert remind(site.parts, site.now) == 1
    site.parts.actions.refuse_request(held.id, 0, BY_OPERATOR, "no")
    site.parts.actions.request_release(held.id, 0, BY_LINK)
    site.pass_time(hours=25)
    assert remind(site.parts, site.now) == 1
    assert remind(site.parts, site.now) == 0


def test_two_processes_remind_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    held = requested(site)
    site.pass_time(hours=25)
    assert [site.parts.actions.remind(DeliveryId(held.id, 0)) for _ in range(2)] == [True, False]


def test_the_queue_needs_few_statements(make_parts: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch) -> None:
    statements = Statements(monkeypatch)
    site = Site(make_parts())
    for _ in range(3):
        requested(site)
    browser = staff(site)
    with statements.of() as sent:
        assert html.unescape(browser.get("/admin/requests").text).count("Offer") >= 3
    assert 0 < len(sent) <= 5, sent
