"""The preview of the next digest: the mail that is sent next, without links, and why none would be sent."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from email import message_from_bytes
from email.policy import SMTP
from html import unescape
from pathlib import Path

import pytest

from digest import news, run
from portal.digests.compose import MAIL_BYTES
from portal.model.links import TOKEN_PATTERN
from portal.model.message import Symbol, Tier
from portal.model.schedule import Preferences
from tests.builders import ALICE, BOB, MALLORY, hold, prefer
from tests.conftest import MakeParts
from tests.smtp_server import SmtpServer
from tests.statements import Statements
from tests.web_client import Browser, Site

INFO, SALES = "info@example.org", "sales@example.org"
PAGE, TEXT, FRAME = "/preferences/digest", "/preferences/digest?as=text", "/preferences/digest/html"
HTML_LINK = re.compile(rf'href="[^"]*/link/{TOKEN_PATTERN}/[^"]*"')
TEXT_LINK = re.compile(rf"/link/{TOKEN_PATTERN}/\S*")
ADDED = re.compile(r'<style>a\[aria-disabled\][^<]*</style>|(?<=<body) tabindex="0"')
SIGNED = (Symbol("R_DKIM_ALLOW", -0.2, ("example.net:s=key",)), Symbol("DMARC_NA", 0))


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def site(make_parts: MakeParts, smtp: SmtpServer, tmp_path: Path) -> Site:
    (tmp_path / "virtual").write_text(f"{SALES} {ALICE}\n{INFO} {ALICE}, {BOB}\n")
    return Site(
        make_parts(
            mail__url=smtp.url,
            digest__timezone="Europe/Berlin",
            digest__at="06:30",
            people__alias_file=tmp_path / "virtual",
        )
    )


def previewed(browser: Browser) -> tuple[str, str, str]:
    """Return the subject, the HTML part and the text part of the preview."""
    page, frame = browser.get(TEXT).text, browser.get(FRAME).text
    subject = re.search(r"<dt>[^<]*</dt>\s*<dd><bdi>(.*?)</bdi></dd>", page)
    text = re.search(r"<pre[^>]*>\n(.*?)</pre>", page, re.DOTALL)
    assert subject and text
    return unescape(subject[1]), frame, unescape(text[1])


def sent(smtp: SmtpServer) -> tuple[str, str, str]:
    """Return the same of the only mail that was sent."""
    [received] = smtp.mails
    assert len(received.data) <= MAIL_BYTES
    mail = message_from_bytes(received.data, policy=SMTP)
    html, text = (mail.get_body((kind,)) for kind in ("html", "plain"))
    assert html and text
    return (
        mail["Subject"],
        HTML_LINK.sub('role="link" aria-disabled="true"', html.get_content().replace("\r\n", "\n")),
        TEXT_LINK.sub("/link/…", text.get_content().replace("\r\n", "\n")),
    )


def few(site: Site) -> None:
    hold(site.store, recipients=[ALICE], symbols=SIGNED, subject="Invoice & <b>", score=15.1)
    hold(site.store, recipients=[ALICE], tier=Tier.DANGEROUS)
    hold(site.store, recipients=[ALICE], tier=Tier.SUSPICIOUS, subject="")
    hold(site.store, recipients=[BOB, MALLORY])


def of_a_role(site: Site) -> None:
    for recipient in (ALICE, SALES, INFO, INFO, BOB):
        hold(site.store, recipients=[recipient], subject=f"Offer for {recipient}")
    prefer(site.store, ALICE, Preferences(language="ar", timezone="Asia/Kathmandu"))


def many(site: Site) -> None:
    """Hold more than fit: how many rows are shown depends on the length of each link."""
    letters = "абвгдежзийклмнопрстуфхцчшщъыьэюя"
    hold(site.store, recipients=[ALICE], symbols=SIGNED)
    for number in range(60):
        subject = "".join(letters[(number * 7 + n * (number + 1)) % 32] for n in range(100))
        hold(
            site.store, recipients=[(ALICE, INFO)[number % 2]], subject=subject, header_from=f"Ы <a{number}@b.example>"
        )


@pytest.mark.parametrize("fill", [few, of_a_role, many])
def test_the_preview_is_the_mail_that_is_sent_next(site: Site, smtp: SmtpServer, fill: Callable[[Site], None]) -> None:
    fill(site)
    subject, html, text = previewed(site.signed_in(ALICE))
    for part in (html, text):
        assert not re.search(TOKEN_PATTERN, part) and "xxx" not in part
    assert "href=" not in html
    news.find_news(site.parts, site.now)
    run.send_all(site.parts, site.now, recipient=ALICE)
    expected = sent(smtp)
    assert (subject, ADDED.sub("", html), text) == expected
    assert ("more messages are not listed here" in text) == (fill is many)
    assert "<iframe" not in site.signed_in(ALICE).get(PAGE).text, "nothing is left to be announced"


def test_the_digests_after_the_first_one_do_not_introduce_themselves(site: Site, smtp: SmtpServer) -> None:
    few(site)
    run.send_all(site.parts, site.now, recipient=ALICE)
    smtp.mails.clear()
    few(site)
    subject, html, text = previewed(site.signed_in(ALICE))
    assert "first digest" not in text
    run.send_all(site.parts, site.now, recipient=ALICE)
    assert (subject, ADDED.sub("", html), text) == sent(smtp)


def test_the_frame_has_a_policy_of_its_own_and_the_page_a_sandbox(site: Site) -> None:
    few(site)
    browser = site.signed_in(ALICE)
    answer = browser.get(FRAME)
    policy = (answer.header("Content-Security-Policy") or "").split("; ")
    assert set(policy) >= {"default-src 'none'", "form-action 'none'", "frame-ancestors 'self'", "sandbox"}
    assert "style-src 'unsafe-inline'" in policy
    assert answer.header("Referrer-Policy") == "no-referrer"
    page = browser.get(PAGE)
    [frame] = re.findall(r"<iframe([^>]*)>", page.text)
    assert 'src="/quarantine/preferences/digest/html"' in frame and 'sandbox=""' in frame
    assert "'unsafe-inline'" not in (page.header("Content-Security-Policy") or "")


def test_the_logo_of_the_mail_is_in_the_frame(make_parts: MakeParts, tmp_path: Path) -> None:
    make_parts()  # creates an empty quarantine.toml
    logo = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
    (tmp_path / "quarantine.toml").write_text(f'[domains."example.org"]\nlogo = "data:image/png;base64,{logo}"')
    site = Site(make_parts())
    few(site)
    html = site.signed_in(ALICE).get(FRAME).text
    assert f'src="data:image/png;base64,{logo}"' in html and "cid:" not in html


# ---- when, and why not


def page_of(site: Site) -> str:
    return unescape(site.signed_in(ALICE).get(PAGE).text)


def test_the_page_says_when_the_digest_is_sent(site: Site) -> None:
    few(site)
    assert re.search(r"Next digest: \w+, \d+ \w+ \d+, 06:30 \(Europe/Berlin\)\.", page_of(site))
    prefer(site.store, ALICE, Preferences(timezone="Asia/Kathmandu"))
    assert re.search(r", 06:30 \(Asia/Kathmandu\)\.", page_of(site))
    site.store.recipients.schedule(ALICE, site.now - timedelta(seconds=1))
    assert "will be sent within a few minutes." in page_of(site)


def test_the_page_says_that_the_digest_waits_for_wanted_mail(site: Site) -> None:
    hold(site.store, recipients=[ALICE])
    prefer(site.store, ALICE, Preferences(only_wanted=True))
    assert run.send_all(site.parts, site.now).sent == [(ALICE, 1)]
    hold(site.store, recipients=[ALICE])
    latest = re.search(r"at the latest until \w+, (\d+) \w+ \d+, 06:30 \(Europe/Berlin\)\.", page_of(site))
    assert latest and int(latest[1]) in [(site.now + timedelta(days=days)).day for days in (6, 7)]
    hold(site.store, recipients=[ALICE], symbols=SIGNED)
    assert "Next digest: " in page_of(site)


def test_without_news_nothing_would_be_sent(site: Site) -> None:
    page = page_of(site)
    assert "No digest would be sent now: there are no new held messages." in page
    assert "Next digest: " in page
    assert site.signed_in(ALICE).get(FRAME).text == ""


@pytest.mark.parametrize("reason", ["you stopped digests", "no days are chosen"])
def test_nothing_is_sent_to_those_who_get_no_digests(make_parts: MakeParts, site: Site, reason: str) -> None:
    few(site)
    if reason == "you stopped digests":
        site.store.recipients.set_digests_stopped(ALICE, site.now)
    else:
        site = Site(make_parts(digest__schedule="never"))
    page = page_of(site)
    assert f"No digest will be sent: {reason}" in page
    assert "Next digest: " not in page and "<iframe" not in page
    assert site.signed_in(ALICE).get(FRAME).text == ""


def test_the_preferences_lead_to_the_preview_of_those_who_are_signed_in(site: Site) -> None:
    assert f'href="/quarantine{PAGE}"' in site.signed_in(ALICE).get("/preferences").text


def test_the_pages_take_few_statements(make_parts: MakeParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "virtual").write_text(f"{SALES} {ALICE}\n{INFO} {ALICE}, {BOB}\n")
    statements = Statements(monkeypatch)
    site = Site(make_parts(people__alias_file=tmp_path / "virtual"))
    of_a_role(site)
    browser = site.signed_in(ALICE)
    for path in (PAGE, FRAME):
        browser.get(path)
        with statements.of() as sent:
            browser.get(path)
        assert 3 <= len(sent) <= 5, sent
