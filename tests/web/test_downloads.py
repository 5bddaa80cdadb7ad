"""Headers, source and download of a held message: who gets what, and how it is sent."""

from __future__ import annotations

import base64
import html
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from portal.assemble import Parts
from portal.model.message import EventKind, Scan, ScanOutcome, State, Tier
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.stores.records import Held
from tests.builders import ALICE, BOB, BY_OPERATOR, MALLORY
from tests.moving.test_copy import damage
from tests.web_client import Answer, Browser, Site

MAIL = (
    b'From: "x" <promo@example.net>\r\nTo: alice@example.org\r\n'
    b"Subject: =?utf-8?b?PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==?=\r\n"
    b"X-Evil: <img src=x onerror=alert(1)>\r\n\r\nBuy \xe2\x80\xae now\r\n"
)


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Site:
    return Site(make_parts())


def download(browser: Browser, held: Held, **form: Any) -> Answer:
    """Post the form of the page with the warning."""
    warned = re.search(r'name="warned" value="(\w+)"', browser.get(f"/messages/{held.id}/download").text)
    fields = {"form_token": browser.form_token(), "warned": warned[1] if warned else "", **form}
    return browser.post(f"/messages/{held.id}/download", fields)


def with_value(site: Site, key: str, value: str) -> None:
    site.parts.domains.set("example.org", key, value, BY_OPERATOR)


# ---- headers and source


def test_headers_and_source_are_inert_text(site: Site) -> None:
    held = site.hold(data=MAIL)
    browser = site.signed_in(ALICE)
    page = browser.get(f"/messages/{held.id}/headers").text
    assert "<dt><bdi>Subject</bdi></dt><dd><bdi>&lt;script&gt;alert(1)&lt;/script&gt;</bdi></dd>" in page
    assert "<dt><bdi>X-Evil</bdi></dt><dd><bdi>&lt;img src=x onerror=alert(1)&gt;</bdi></dd>" in page
    page = browser.get(f"/messages/{held.id}/source").text
    source = re.search(r'<pre class="source"[^>]*>(.*?)</pre>', page, re.S)
    assert source and html.unescape(source[1]).endswith("\n\nBuy \\xe2\\x80\\xae now\n")
    assert "<img" not in page and "<script>alert" not in page


def test_the_page_links_to_headers_and_source_and_keeps_the_place_in_the_list(site: Site) -> None:
    held = site.hold(data=MAIL)
    page = site.signed_in(ALICE).get(f"/messages/{held.id}/headers?list=%3Fq%3Doffer").text
    assert f'href="/quarantine/messages/{held.id}/source?list=%3Fq%3Doffer"' in page
    assert f'href="/quarantine/messages/{held.id}/headers?list=%3Fq%3Doffer" aria-current="page"' in page


def test_a_dangerous_message_has_headers_and_no_source(site: Site) -> None:
    held = site.hold(Tier.DANGEROUS, data=MAIL)
    browser = site.signed_in(ALICE)
    page = browser.get(f"/messages/{held.id}/headers")
    assert page.status == 200 and "/source" not in page.text
    assert browser.get(f"/messages/{held.id}/source").status == 404


# ---- the message as a file


def test_a_message_is_downloaded_as_it_was_received(site: Site) -> None:
    data = MAIL + bytes(range(256)) * 10_000
    held = site.hold(data=data)
    answer = download(site.signed_in(ALICE), held)
    assert answer.status == 200 and answer.body == data
    assert answer.header("Content-Length") == str(len(data))
    assert answer.header("Content-Type") == "application/octet-stream"
    assert answer.header("Content-Disposition") == (
        f"attachment; filename=\"{held.id}.eml\"; filename*=UTF-8''{held.id}.eml"
    )
    assert answer.header("Content-Security-Policy") == "default-src 'none'; sandbox"
    assert answer.header("X-Content-Type-Options") == "nosniff"
    assert answer.header("Cache-Control") == "no-store"
    assert answer.header("Cross-Origin-Resource-Policy") == "same-origin"


@pytest.mark.parametrize(
    ("tier", "key", "value", "form", "sent"),
    [
        (Tier.SPAM, "", "", 200, 200),
        (Tier.SUSPICIOUS, "", "", 200, 200),
        (Tier.DANGEROUS, "", "", 403, 403),
        (Tier.SPAM, "recipient_downloads", "false", 403, 403),
        (Tier.SPAM, "release_spam", "request", 403, 403),
        (Tier.SUSPICIOUS, "release_suspicious", "administrator", 403, 403),
    ],
)
def test_tier_and_domain_decide_whether_it_may_be_downloaded(
    site: Site, tier: Tier, key: str, value: str, form: int, sent: int
) -> None:
    held = site.hold(tier, data=MAIL)
    if key:
        with_value(site, key, value)
    browser = site.signed_in(ALICE)
    page = browser.get(f"/messages/{held.id}/").text
    assert ("Download this message" in page) == (form == 200)
    assert browser.get(f"/messages/{held.id}/download").status == form
    answer = download(browser, held)
    assert answer.status == sent
    assert (answer.body == MAIL) == (sent == 200)
    assert (EventKind.DOWNLOADED in [event.kind for event in site.history(held)]) == (sent == 200)


def test_dangerous_mail_is_never_downloaded_whoever_may_release_it(
    make_parts: Callable[..., Parts], tmp_path: Path
) -> None:
    (tmp_path / "quarantine.toml").write_text('[domains."example.org"]\nrelease_dangerous = "self"\n')
    site = Site(make_parts())
    held = site.hold(Tier.DANGEROUS)
    assert download(site.signed_in(ALICE), held).status == 403


def test_a_suspicious_message_is_downloaded_from_a_page_with_a_warning(site: Site) -> None:
    held = site.hold(Tier.SUSPICIOUS, data=MAIL)
    browser = site.signed_in(ALICE)
    page = browser.get(f"/messages/{held.id}/").text
    assert f'href="/quarantine/messages/{held.id}/download"' in page
    assert f'action="/quarantine/messages/{held.id}/download"' not in page
    warning = browser.get(f"/messages/{held.id}/download").text
    assert warning.index('class="warning"') < warning.index(f'action="/quarantine/messages/{held.id}/download"')
    # The button of a page that was opened while it was spam.
    answer = browser.post(f"/messages/{held.id}/download", {"form_token": browser.form_token()})
    assert answer.status == 303 and (answer.header("Location") or "").endswith(f"/messages/{held.id}/download")


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (None, "This message was not scanned for viruses."),
        (ScanOutcome.WAITING, "Not scanned for viruses yet"),
        (ScanOutcome.FAILED, "The virus scan could not be completed"),
        (ScanOutcome.CLEAN, ""),
    ],
)
@pytest.mark.parametrize("at", ["messages/ID", "admin/messages/ID.0"])
def test_spam_that_was_not_scanned_is_downloaded_from_a_page_that_says_so(
    site: Site, at: str, outcome: ScanOutcome | None, reason: str
) -> None:
    held = site.hold(data=MAIL, recipients=(ALICE,))
    if outcome is not None:
        scanned(site, held, outcome)
    site.store.staff.give(Grant(ALICE, Role.ADMINISTRATOR, EVERYWHERE, site.now, BY_OPERATOR))
    browser, at = site.signed_in(ALICE), "/" + at.replace("ID", str(held.id))
    page = browser.get(f"{at}/text" if "admin" in at else f"{at}/").text
    assert (f'action="/quarantine{at}/download"' in page) is (reason == "")
    page = browser.get(f"{at}/download").text
    assert ('class="warning"' in page) is (reason != "") and reason in page
    form, warned = {"form_token": browser.form_token()}, re.search(r'name="warned" value="(\w+)"', page)
    answer = browser.post(f"{at}/download", form)
    assert answer.status == (303 if reason else 200)
    if reason:
        assert (answer.header("Location") or "").endswith(f"{at}/download")
    assert warned and browser.post(f"{at}/download", {**form, "warned": warned[1]}).body == MAIL


def test_a_warning_is_shown_again_if_the_message_became_suspicious_since(site: Site) -> None:
    held, browser = site.hold(data=MAIL), site.signed_in(ALICE)
    assert "This message was not scanned for viruses." in browser.get(f"/messages/{held.id}/download").text
    scanned(site, held, ScanOutcome.CLEAN, Tier.SUSPICIOUS)
    form = {"form_token": browser.form_token(), "warned": "spam"}
    answer = browser.post(f"/messages/{held.id}/download", form)
    page = browser.follow(answer, "/").text
    assert "Caution:" in page and "not scanned" not in page
    assert download(browser, held).body == MAIL


def test_a_download_is_in_the_history_with_who_did_it(site: Site) -> None:
    held = site.hold(data=MAIL)
    browser = site.signed_in(ALICE)
    download(browser, held)
    event = site.history(held)[-1]
    assert (event.kind, event.actor.who, event.actor.via, event.detail) == (
        EventKind.DOWNLOADED,
        "recipient",
        "portal",
        "message",
    )
    assert site.state(held) is State.HELD
    assert "Message downloaded by you." in browser.get(f"/messages/{held.id}/").text


def test_a_download_needs_the_recipients_session_and_its_form(site: Site) -> None:
    held = site.hold(data=MAIL, recipients=(ALICE,))
    for browser, status in ((site.browser(), 303), (site.signed_in(MALLORY), 404), (site.signed_in(BOB), 404)):
        form = {"form_token": browser.form_token()} if status == 404 else {}
        assert browser.post(f"/messages/{held.id}/download", form).status == status
    browser = site.signed_in(ALICE)
    assert browser.post(f"/messages/{held.id}/download", {}).status == 403
    foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    form = {"form_token": browser.form_token()}
    assert browser.post(f"/messages/{held.id}/download", form, headers=foreign).status == 403
    assert [event.kind for event in site.history(held)].count(EventKind.DOWNLOADED) == 0


def test_a_damaged_message_is_a_page_and_no_file(site: Site, store_url: str) -> None:
    held = site.hold(data=MAIL)
    damage(store_url, held.id)
    answer = download(site.signed_in(ALICE), held)
    assert answer.status == 410 and "Content-Disposition" not in dict(answer.headers)


def test_downloads_leave_places_for_other_pages(site: Site) -> None:
    held = site.hold(data=MAIL)
    browser = site.signed_in(ALICE)
    for _ in range(20):  # more than there are places: each is free again
        assert download(browser, held).status == 200


# ---- attachments


def with_attachment(content: bytes, name: str = "invoice.pdf") -> bytes:
    head = "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nhello\r\n--b\r\n"
    head += f'Content-Type: a/b; name="{name}"\r\n'
    return head.encode() + b"Content-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(content) + b"--b--\r\n"


def scanned(site: Site, held: Held, outcome: ScanOutcome = ScanOutcome.CLEAN, tier: Tier = Tier.SPAM) -> Held:
    site.store.messages.record_scan(held.id, Scan(outcome, site.now), tier, site.now)
    return held


def test_an_attachment_is_downloaded_decoded(site: Site) -> None:
    content = os.urandom(500_000)
    held = scanned(site, site.hold(data=with_attachment(content)))
    browser = site.signed_in(ALICE)
    number = re.search(r'<button name="part" value="(\d+)">', browser.get(f"/messages/{held.id}/").text)
    assert number
    answer = download(browser, held, part=number[1])
    assert answer.status == 200 and answer.body == content
    assert answer.header("Content-Length") == "500000"
    assert answer.header("Content-Type") == "application/octet-stream"
    assert answer.header("Content-Disposition") == "attachment; filename=\"invoice.pdf\"; filename*=UTF-8''invoice.pdf"
    assert answer.header("Content-Security-Policy") == "default-src 'none'; sandbox"
    assert site.history(held)[-1].detail == f"attachment {number[1]}"


@pytest.mark.parametrize(
    ("tier", "outcome", "key", "value", "status"),
    [
        (Tier.SPAM, ScanOutcome.CLEAN, "", "", 200),
        (Tier.SPAM, None, "", "", 403),
        (Tier.SPAM, ScanOutcome.WAITING, "", "", 403),
        (Tier.SPAM, ScanOutcome.FAILED, "", "", 403),
        (Tier.SPAM, ScanOutcome.FOUND, "", "", 403),
        (Tier.SPAM, ScanOutcome.CLEAN, "recipient_downloads", "false", 403),
        (Tier.SPAM, ScanOutcome.CLEAN, "release_spam", "request", 403),
        (Tier.SUSPICIOUS, ScanOutcome.CLEAN, "", "", 403),
        (Tier.DANGEROUS, ScanOutcome.CLEAN, "", "", 403),
    ],
)
def test_tier_scan_and_domain_decide_whether_an_attachment_may_be_downloaded(
    site: Site, tier: Tier, outcome: ScanOutcome | None, key: str, value: str, status: int
) -> None:
    held = site.hold(tier, data=with_attachment(b"%PDF-1.7"))
    if outcome is not None:
        scanned(site, held, outcome)
    if key:
        with_value(site, key, value)
    browser = site.signed_in(ALICE)
    page = browser.get(f"/messages/{held.id}/").text
    assert "invoice.pdf" in page and ('name="part"' in page) == (status == 200)
    answer = download(browser, held, part="3")
    assert answer.status == status
    assert (EventKind.DOWNLOADED in [event.kind for event in site.history(held)]) == (status == 200)


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("../../in\u202evoice.pdf", "invoice.pdf"),
        ("con.pdf", "_con.pdf"),
        ("", "attachment-3"),
        ("請求書.pdf", "請求書.pdf"),
        ('"; filename=evil.exe; x="', "_; filename=evil.exe; x=_"),
    ],
)
def test_a_hostile_name_is_harmless(site: Site, name: str, sent: str) -> None:
    held = scanned(site, site.hold(data=with_attachment(b"x", name.replace('"', '\\"'))))
    disposition = download(site.signed_in(ALICE), held, part="3").header("Content-Disposition") or ""
    found = re.fullmatch(r"""attachment; filename="([^"\\]+)"; filename\*=UTF-8''([A-Za-z0-9_.~%-]+)""", disposition)
    assert found and unquote(found[2]) == sent
    assert len(found[1]) == len(sent)
    assert disposition.isascii() and disposition.isprintable() and "/" not in disposition and "\\" not in disposition


def test_the_page_warns_beside_an_attachment(site: Site) -> None:
    held = site.hold(data=with_attachment(b"MZ\x90\0", "<b>customs.pdf.exe"))
    page = site.signed_in(ALICE).get(f"/messages/{held.id}/").text
    assert "&lt;b&gt;customs.pdf.exe" in page
    assert "Program" in page and "It can run commands" in page and "Its name hides" in page


@pytest.mark.parametrize(
    ("part", "status"), [("2", 200), ("99", 422), ("0", 404), ("-1", 404), ("1;x", 404), ("٣", 404), ("9" * 30, 404)]
)
def test_a_number_that_is_no_attachment_is_a_page(site: Site, part: str, status: int) -> None:
    held = scanned(site, site.hold(data=with_attachment(b"x")))
    assert download(site.signed_in(ALICE), held, part=part).status == status


def test_an_attachment_of_a_stranger_does_not_exist(site: Site) -> None:
    held = scanned(site, site.hold(data=with_attachment(b"x"), recipients=(ALICE,)))
    assert download(site.signed_in(MALLORY), held, part="3").status == 404


def test_an_attachment_that_takes_too_long_is_a_page(site: Site) -> None:
    head = b"Content-Type: a/b; name=a\r\nContent-Transfer-Encoding: x-uuencode\r\n\r\n"
    held = scanned(site, site.hold(data=head + b"M\r\n" * 8_000_000))
    answer = download(site.signed_in(ALICE), held, part="1")
    assert answer.status == 422 and answer.header("Content-Disposition") is None


def test_an_attachment_of_a_damaged_message_is_a_page(site: Site, store_url: str) -> None:
    held = scanned(site, site.hold(data=with_attachment(b"x")))
    damage(store_url, held.id)
    assert download(site.signed_in(ALICE), held, part="3").status == 410
