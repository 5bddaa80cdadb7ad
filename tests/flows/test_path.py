"""The whole path, on both stores: mail that Rspamd posts is announced and released by a link, byte for byte."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from email import message_from_bytes
from email.policy import default
from pathlib import Path

import pytest

from digest import housekeeping, news, run
from portal.batches.parallel import retry_due
from portal.cli import checks
from portal.model.links import Action
from portal.model.message import DeliveryId, State
from tests.builders import ALICE, BOB, BY_OPERATOR, MALLORY, hold
from tests.conftest import MakeParts
from tests.smtp_server import SmtpServer
from tests.web.test_exporter import post
from tests.web_client import Site

MAIL = (
    b"Received: from x.example.net by mx1.example.org; Sun, 22 Nov 2026 07:00:00 +0000\r\n"
    b"From: Promo <promo@example.net>\r\nTo: alice@example.org\r\nSubject: Offer\r\n\r\n"
    b".hidden dot\r\n8 bit \xe4\xf6\xfc\r\n\r\n.\r\nlast line without an end"
)


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def site(make_parts: MakeParts, smtp: SmtpServer) -> Site:
    return Site(make_parts(relay__url=smtp.url, mail__url=smtp.url, mail__admin_address="postmaster@example.org"))


def digest_links(smtp: SmtpServer, recipient: str) -> dict[str, list[str]]:
    """Return the addresses in the text part of a recipient's last digest by the label on the line before each."""
    (mail,) = [m for m in smtp.mails if m.recipients == [recipient]]
    text = message_from_bytes(mail.data, policy=default).get_body(("plain",)).get_content()  # type: ignore[union-attr]
    text = text.replace("\r\n", "\n")
    links: dict[str, list[str]] = {}
    for word, url in re.findall(r"^ *(\w+).*\n *(http\S+) *$", text, re.MULTILINE):
        links.setdefault(word, []).append(url)
    smtp.mails.clear()
    return links


def send_digests(site: Site) -> None:
    """Do the work of the digest process until the next digest is sent."""
    news.schedule_news(site.parts, site.now)
    site.now += timedelta(days=1)
    summary = run.send_due(site.parts, site.now)
    assert not summary.failed


def test_mail_is_held_announced_and_released_to_one_recipient_alone(site: Site, smtp: SmtpServer) -> None:
    held = post(site, MAIL).json
    assert held["status"] == "held"
    send_digests(site)
    links = digest_links(smtp, ALICE)
    browser = site.browser()
    assert browser.get(links["Release"][0]).status == 200
    assert smtp.mails == []
    browser.post(links["Release"][0], {"pressed": "1"})
    (released,) = smtp.mails
    assert (released.sender, released.recipients) == ("promo@example.net", [ALICE])
    assert released.data.endswith(MAIL + b"\r\n")
    browser.post(links["Release"][0], {"pressed": "1"})
    assert len(smtp.mails) == 1
    states = {
        d.recipient: d.state for d in site.store.deliveries.of_message(site.store.messages.find(held["id"])[0].id)
    }
    assert states == {ALICE: State.RELEASED, BOB: State.HELD}
    assert smtp.violations == []


def test_a_release_waits_for_a_relay_that_is_down(site: Site, smtp: SmtpServer) -> None:
    held = post(site, MAIL).json
    send_digests(site)
    links = digest_links(smtp, ALICE)
    smtp.script["MAIL"] = "451 4.3.0 later"
    site.browser().post(links["Release"][0], {"pressed": "1"})
    assert smtp.mails == []
    assert "Release in progress" in site.browser().get(links["Release"][0]).text
    assert site.store.deliveries.get(DeliveryId(site.store.messages.find(held["id"])[0].id, 0)).state is State.RELEASING
    del smtp.script["MAIL"]
    site.now += timedelta(minutes=2)
    assert retry_due(site.parts.actions) == 1
    assert [m.recipients for m in smtp.mails] == [[ALICE]]


REJECTED = "554 5.7.1 <host>: Client host rejected: Access denied"


def test_replies_about_the_portal_are_shown_to_its_administrator_alone(
    site: Site, smtp: SmtpServer, caplog: pytest.LogCaptureFixture
) -> None:
    held = post(site, MAIL).json
    id = site.store.messages.find(held["id"])[0].id
    send_digests(site)
    links = digest_links(smtp, ALICE)
    several = site.parts.links.url(Action.SEVERAL, site.store.digests.last(ALICE).id, 0, site.now)  # type: ignore[union-attr]
    show = site.parts.links.url(Action.SHOW, id, 0, site.now)
    reader, pressing = site.signed_in(ALICE), {"Sec-Fetch-User": "?1"}

    def pages() -> dict[str, str]:
        since = f"?since={int((site.now - timedelta(days=10)).timestamp())}"
        paths = [links["Release"][0], show, several, several + since, "/", "/?state=released", f"/messages/{id}/"]
        opened = {path: site.browser() if path == show else reader for path in paths}  # else it leads to the message
        return {path: browser.get(path).text for path, browser in opened.items()}

    smtp.script["RCPT"] = REJECTED
    drawn = str(int(site.now.timestamp()))
    form = {"do": "release", "mail": f"{id}.0", "drawn": drawn}
    answer = site.browser().post(several, form, headers=pressing)
    assert answer.status == 303
    assert site.store.deliveries.get(DeliveryId(id, 0)).state is State.RELEASING
    shown = pages()
    assert sum("retried automatically" in page for page in shown.values()) == 4
    for path, page in shown.items():
        assert "rejected" not in page and "denied" not in page and "554 " not in page, path
    assert "Client host rejected" in caplog.text
    found = [finding.text for finding in checks.storage(site.parts.settings, site.store) if finding.topic == "releases"]
    assert found == [f"1 wait for the mail server; last error of one of them: RCPT TO: {REJECTED}"]

    smtp.mails.clear()
    del smtp.script["RCPT"]
    housekeeping.send_queued(site.parts, site.now)
    [alarm] = smtp.mails
    assert alarm.recipients == ["postmaster@example.org"]
    assert b"Client host rejected" in alarm.data

    smtp.script["RCPT"] = REJECTED
    site.now += timedelta(days=5, minutes=1)
    assert retry_due(site.parts.actions) == 1
    assert site.store.deliveries.get(DeliveryId(id, 0)).state is State.HELD
    reader = site.signed_in(ALICE)
    shown = pages()
    assert sum("The last release failed" in page for page in shown.values()) == 6
    for path, page in shown.items():
        assert "rejected" not in page and "denied" not in page and "554 " not in page, path


def test_dangerous_mail_is_requested_denied_with_a_reason_and_released_by_an_operator(
    site: Site, smtp: SmtpServer
) -> None:
    symbols = '[{"name":"CLAM_VIRUS","score":8.0,"options":["Eicar"]}]'
    held = post(site, MAIL, headers={"X-Rspamd-symbols": symbols}).json
    id = site.store.messages.find(held["id"])[0].id
    send_digests(site)
    links = digest_links(smtp, ALICE)
    assert "Release" not in links
    site.browser().post(links["Request"][0], {"pressed": "1"})
    assert site.store.deliveries.get(DeliveryId(id, 0)).state is State.REQUESTED
    housekeeping.send_queued(site.parts, site.now)
    assert [m.recipients for m in smtp.mails] == [["postmaster@example.org"]]
    smtp.mails.clear()
    operator = site.parts.actions
    operator.refuse_request(id, 0, BY_OPERATOR, "It holds a virus.")
    assert "It holds a virus." in site.browser().get(links["Request"][0]).text
    operator.release(id, 0, BY_OPERATOR, operator=True)
    assert [m.recipients for m in smtp.mails if m.data.endswith(MAIL + b"\r\n")] == [[ALICE]]


def test_nobody_outside_local_domains_is_notified_or_signed_in(site: Site, smtp: SmtpServer) -> None:
    post(site, MAIL, headers={"X-Rspamd-rcpt": '["someone@elsewhere.example", "alice@example.org"]'})
    send_digests(site)
    assert {m.recipients[0] for m in smtp.mails} == {ALICE}
    site.browser().post("/sign-in", {"address": "someone@elsewhere.example"})
    smtp.mails.clear()
    housekeeping.send_queued(site.parts, site.now)
    assert smtp.mails == []


def test_signing_in_by_mail_shows_ones_own_mail_and_nobody_elses(site: Site, smtp: SmtpServer) -> None:
    post(site, MAIL, headers={"X-Rspamd-rcpt": f'["{ALICE}"]', "X-Rspamd-subject": "For Alice alone"})
    post(site, MAIL + b"2", headers={"X-Rspamd-rcpt": f'["{MALLORY}"]', "X-Rspamd-subject": "For Mallory"})
    browser = site.browser()
    browser.post("/sign-in", {"address": "Alice@Example.org"})
    housekeeping.send_queued(site.parts, site.now)
    (mail,) = smtp.mails
    assert mail.recipients[0].lower() == ALICE
    link = re.search(r"http\S+/sign-in/\S+", mail.data.decode().replace("=\r\n", ""))
    assert link
    browser.post(link[0], {"pressed": "1"})
    page = browser.get("/").text
    assert "For Alice alone" in page
    assert "For Mallory" not in page


@pytest.mark.parametrize("store_url", ["files"], indirect=True)  # PostgreSQL has no files
def test_mail_files_deleted_by_cron_leave_pages_digests_and_commands_working(
    site: Site, smtp: SmtpServer, store_url: str
) -> None:
    held = post(site, MAIL).json
    id = site.store.messages.find(held["id"])[0].id
    for path in Path(store_url.removeprefix("files://")).glob("mail/**/*.zst"):
        path.unlink()
    browser = site.signed_in(ALICE)
    assert browser.get("/").status == 200
    assert browser.get(f"/messages/{id}/").status == 200
    token = browser.form_token()
    assert browser.post(f"/messages/{id}/release", {"form_token": token, "pressed": "1"}).status in (303, 410)
    assert smtp.mails == []
    send_digests(site)
    assert smtp.mails == []
    for days in (1, 2):
        housekeeping.daily(site.parts, site.now + timedelta(days=days))


def test_what_nobody_was_notified_of_is_found_once_a_day_however_old_it_is(site: Site) -> None:
    hold(site.store, recipients=[ALICE], announce=(), at=site.now - timedelta(days=5))
    news.find_news(site.parts, site.now)
    assert not list(site.store.recipients.unscheduled(10))
    housekeeping.daily(site.parts, site.now)
    assert [person.recipient for person in site.store.recipients.unscheduled(10)] == [ALICE]


def test_the_digest_is_sent_at_the_configured_time(site: Site) -> None:
    post(site, MAIL)
    news.schedule_news(site.parts, site.now)
    due = site.store.recipients.get(ALICE).next_digest_at
    assert isinstance(due, datetime)
    assert (due.hour, due.minute) == (7, 0)
    assert due > site.now - timedelta(seconds=5)
