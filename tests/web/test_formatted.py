"""The page and the frame with a message as its sender formatted it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from portal.assemble import Parts
from portal.model.errors import Busy
from portal.model.message import Tier
from portal.stores.records import Held
from tests.builders import ALICE, BY_OPERATOR, MALLORY
from tests.web_client import Answer, Site

HTML = b'Subject: x\r\nContent-Type: text/html\r\n\r\n<h1>Autumn <img src="http://x.example/1"></h1><script>x</script>'
IN_FRAME = {"Sec-Fetch-Dest": "iframe"}


@pytest.fixture
def store_url(files_url: str) -> str:
    """A single store: these pages show the same on all stores."""
    return files_url


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Site:
    return Site(make_parts())


def frame(site: Site, held: Held, **headers: str) -> Answer:
    return site.signed_in(ALICE).get(f"/messages/{held.id}/html", headers=headers or IN_FRAME)


def test_the_frame_has_a_policy_of_its_own_and_the_page_a_sandbox(site: Site) -> None:
    held = site.hold(data=HTML)
    answer = frame(site, held)
    assert answer.status == 200 and "<h1>Autumn </h1>" in answer.text and "<script" not in answer.text
    policy = answer.header("Content-Security-Policy") or ""
    for directive in (
        "default-src 'none'",
        "img-src data:",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'self'",
        "sandbox allow-popups allow-popups-to-escape-sandbox",
    ):
        assert directive in policy.split("; ")
    for name, value in {
        "Content-Type": "text/html; charset=utf-8",
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
    }.items():
        assert answer.header(name) == value
    page = site.signed_in(ALICE).get(f"/messages/{held.id}/formatted").text
    [attributes] = re.findall(r"<iframe([^>]*)>", page)
    assert f'src="/quarantine/messages/{held.id}/html"' in attributes
    assert 'sandbox="allow-popups allow-popups-to-escape-sandbox"' in attributes
    assert "Autumn" not in page


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Dest": "document"}, {"Accept": "*/*"}], ids=["window", "unknown"])
def test_outside_of_the_frame_it_is_a_file_of_plain_text(site: Site, headers: dict[str, str]) -> None:
    answer = frame(site, site.hold(data=HTML), **headers)
    assert answer.header("Content-Type") == "text/plain; charset=utf-8"
    assert answer.header("Content-Disposition") == 'attachment; filename="message.txt"'
    assert "sandbox" in (answer.header("Content-Security-Policy") or "")


@pytest.mark.parametrize(("number", "words"), [(0, ""), (1, "1 picture from"), (12, "12 pictures from")])
def test_pictures_that_are_not_shown_are_counted(site: Site, number: int, words: str) -> None:
    data = b"Content-Type: text/html\r\n\r\n<p>x</p>" + b'<img src="https://x.example/1">' * number
    said = re.findall(r'class="notice">(.*?) the Internet', frame(site, site.hold(data=data)).text)
    assert said == ([words] if words else [])


def test_the_link_to_it_is_shown_for_messages_with_html_only(site: Site) -> None:
    browser = site.signed_in(ALICE)
    formatted, plain = site.hold(data=HTML), site.hold(data=b"Subject: x\r\n\r\nwords")
    page = browser.get(f"/messages/{formatted.id}/?list=%3Fstate%3Dall").text
    assert f'href="/quarantine/messages/{formatted.id}/formatted?list=%3Fstate%3Dall"' in page
    assert "/formatted" not in browser.get(f"/messages/{plain.id}/").text
    assert "has no formatting" in frame(site, plain).text


def refused(site: Site, held: Held) -> list[str]:
    """Return the reasons that the page and the frame give. Checks that both show nothing, and no link leads there."""
    browser, reasons = site.signed_in(ALICE), []
    assert "/formatted" not in browser.get(f"/messages/{held.id}/").text
    for last in ("formatted", "html"):
        answer = browser.get(f"/messages/{held.id}/{last}", headers=IN_FRAME)
        assert answer.status == 404 and "Autumn" not in answer.text
        reasons += re.findall(r"</h1>\s*<p[^>]*>(.*?)</p>", answer.text)
    return reasons


def test_dangerous_messages_are_never_shown_formatted(site: Site) -> None:
    reason = "The formatted view is not available for messages that may be harmful."
    assert refused(site, site.hold(Tier.DANGEROUS, data=HTML)) == [reason] * 2
    assert frame(site, site.hold(Tier.SUSPICIOUS, data=HTML + b" ")).status == 200  # another message


def test_a_domain_may_switch_it_off(site: Site) -> None:
    held = site.hold(data=HTML)
    site.parts.domains.set("example.org", "formatted_view", "false", BY_OPERATOR)
    assert refused(site, held) == ["The formatted view is switched off for your mailbox."] * 2


def test_another_reader_gets_the_answer_for_a_message_that_does_not_exist(site: Site) -> None:
    held, browser = site.hold(data=HTML), site.signed_in(MALLORY)
    for last in ("formatted", "html"):
        theirs = browser.get(f"/messages/{held.id}/{last}", headers=IN_FRAME)
        absent = browser.get(f"/messages/01900000-0000-7000-8000-000000000001/{last}", headers=IN_FRAME)
        assert (theirs.status, theirs.text) == (404, absent.text)


def test_html_that_cannot_be_read_ends_in_a_sentence(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    held = site.hold(data=HTML)
    monkeypatch.setattr("portal.web.formatted.read_formatted", lambda *_: None)
    assert "takes too long or cannot be read. Its text is still available." in frame(site, held).text

    def busy(*_: object) -> None:
        raise Busy("too many")

    monkeypatch.setattr("portal.web.formatted.read_formatted", busy)
    assert "Too many messages are being opened right now." in frame(site, held).text
