"""The whole path on real servers: Postfix and Rspamd hold a message, the digest announces it, a browser releases it,
and Postfix delivers the same bytes to exactly one recipient."""

from __future__ import annotations

import email
import email.policy
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dkim
import pytest
from playwright.sync_api import Browser, Page

from tests.system.conftest import Mx
from tests.system.mails import ALICE, BOB, MALLORY, REJECTED, SENDER, spam
from tests.system.services import Portal, http, send, wait_for

pytestmark = pytest.mark.system

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(ignore_https_errors=True)
    yield context.new_page()
    context.close()


def held(portal: Portal, word: str) -> list[dict[str, Any]]:
    """Return the deliveries of the mail whose subject contains ``word``."""
    listed = portal.command("quarantine", "list", "--json").splitlines()
    lines = (line for line in listed if line.startswith("{"))  # without what is said if nothing is held
    return [delivery for delivery in map(json.loads, lines) if word in delivery["subject"]]


def meta(portal: Portal, word: str) -> dict[str, Any]:
    """Return the metadata of that mail."""
    return dict(json.loads(portal.command("quarantine", "meta", "--json", held(portal, word)[0]["id"])))


def arrived(mx: Mx, recipient: str, word: str) -> list[bytes]:
    """Return the mails with that subject in a recipient's inbox."""
    return [mail for mail in mx.postfix.maildir(recipient) if f"Subject: {word} ".encode() in mail]


def digests(mx: Mx, recipient: str, portal: Portal) -> list[str]:
    """Return the plain text of this portal's digests in an inbox."""
    texts = []
    for mail in mx.postfix.maildir(recipient):
        parsed = email.message_from_bytes(mail, policy=email.policy.default)
        body = parsed.get_body(("plain",))
        if body is not None and portal.nginx.public_url in (text := body.get_content()):
            texts.append(text.replace("\r\n", "\n"))
    return texts


def link(text: str, label: str, word: str) -> str:
    """Return the address below ``label`` in the row of the mail with that subject."""
    row = text[text.index(word) :]
    found = re.search(rf"^{label}.*\n(https://\S+)$", row, re.MULTILINE)
    assert found, row
    return found[1]


@pytest.mark.parametrize("discarding", [False, True], ids=["rejected", "discarded"])
def test_a_rejected_mail_is_held_announced_and_released_to_one_of_its_recipients(
    mx: Mx, portal: Portal, page: Page, needle: str, discarding: bool
) -> None:
    mail = spam(needle, REJECTED, body="Kauf! Grüße\r\n.\r\n..zwei\r\n".encode())
    port = mx.postfix.smtp_discarding if discarding else mx.postfix.smtp
    code, text = send(port, SENDER, [ALICE, BOB, MALLORY], mail)
    assert (code, text[:5]) == ((250, "2.0.0") if discarding else (554, "5.7.1"))
    assert mx.postfix.queue() == ""
    assert {d["recipient"]: d["state"] for d in held(portal, needle)} == dict.fromkeys((ALICE, BOB, MALLORY), "held")

    portal.command("quarantine-digest", "once", "--recipient", ALICE)
    digest = wait_for(lambda: [text for text in digests(mx, ALICE, portal) if needle in text])[0]
    page.goto(link(digest, "Release", needle))
    assert page.locator("form").count() == 1
    assert held(portal, needle)[0]["state"] == "held"  # opening changes nothing
    page.get_by_role("button", name="Release").click()
    page.wait_for_selector("h1:has-text('released')")

    (delivered,) = wait_for(lambda: arrived(mx, ALICE, needle))
    above, ours, same = delivered.partition(mail)
    assert ours and same in (b"", b"\r\n")
    assert re.findall(rb"^([A-Za-z-]+):", above, re.MULTILINE) == [b"Received", b"Received", b"X-Quarantine-Mark"]
    assert {d["recipient"]: d["state"] for d in held(portal, needle)} == {
        ALICE: "released",
        BOB: "held",
        MALLORY: "held",
    }
    assert not arrived(mx, BOB, needle) and not arrived(mx, MALLORY, needle)
    page.reload()
    page.goto(link(digest, "Release", needle))
    assert "released" in page.inner_text("h1")  # a second click shows the earlier release
    assert len(arrived(mx, ALICE, needle)) == 1


def test_the_administrators_test_message_takes_the_whole_way(
    mx: Mx, portal: Portal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(portal.environment, "QUARANTINE_RSPAMD__URL", f"http://127.0.0.1:{mx.rspamd.scan}")
    monkeypatch.setitem(portal.environment, "QUARANTINE_RSPAMD__SCAN_GROUPS", "")
    output = portal.command("quarantine", "check", "--send", ALICE, check=False)
    said = [line for line in output.splitlines() if "test: " in line]
    assert [line.split(":")[1].split()[0] for line in said] == ["Rspamd", "portal", "digest", "relay"], output
    assert all(line.startswith("ok ") for line in said), output
    assert ", tier spam" in said[1] and "250 2.0.0 Ok" in said[3]
    word = re.findall(r"check-[0-9a-f]{16}", output)[0]

    def in_inbox() -> list[bytes]:
        return [
            mail for mail in mx.postfix.maildir(ALICE) if f"Subject: Test of the quarantine: {word}".encode() in mail
        ]

    assert len(wait_for(in_inbox)) == 1
    assert wait_for(lambda: [text for text in digests(mx, ALICE, portal) if word in text])
    assert {d["recipient"]: d["state"] for d in held(portal, word)} == {ALICE: "released"}
    mx.switch.set("refuse")  # the portal is down
    output = portal.command("quarantine", "check", "--send", ALICE, check=False)
    assert "PROBLEM test: Rspamd: " in output and "could not post the message to the portal" in output, output


def test_a_person_signs_in_by_mail_and_sees_only_their_own(mx: Mx, portal: Portal, page: Page, needle: str) -> None:
    send(mx.postfix.smtp, SENDER, [BOB], spam(needle, REJECTED))
    others = needle.replace("needle", "others")
    send(mx.postfix.smtp, SENDER, [MALLORY], spam(others, REJECTED))
    page.goto(portal.nginx.public_url + "/")
    page.get_by_role("textbox").fill(BOB)
    page.get_by_role("button").first.click()
    # uWSGI's digest process sends the queued mail.
    url = portal.nginx.public_url + "/sign-in/"
    text = wait_for(lambda: [text for text in digests(mx, BOB, portal) if url in text])[-1]
    address = re.search(rf"^{re.escape(url)}\S+$", text, re.MULTILINE)
    assert address
    page.goto(address[0])
    page.get_by_role("button").first.click()
    page.wait_for_selector(f"text={needle}")
    assert others not in page.content()


def test_a_retry_after_the_portal_was_down_is_held_once(mx: Mx, portal: Portal, needle: str) -> None:
    mx.switch.set("refuse")
    mail = spam(needle, REJECTED)
    assert send(mx.postfix.smtp, SENDER, [ALICE], mail)[0] == 451
    mx.switch.set("pass")
    assert send(mx.postfix.smtp, SENDER, [ALICE], mail)[0] == 554
    assert send(mx.postfix.smtp, SENDER, [ALICE], mail)[0] == 554
    assert len(held(portal, needle)) == 1


def test_plus_tags_and_quoted_local_parts_come_and_go_as_they_were_written(mx: Mx, portal: Portal, needle: str) -> None:
    recipients = ["alice+news@example.org", '"quo ted"@example.org', BOB]
    assert send(mx.postfix.smtp, "promo+verp=x@example.net", recipients, spam(needle, REJECTED))[0] == 554
    assert [d["recipient"] for d in meta(portal, needle)["deliveries"]] == recipients
    assert meta(portal, needle)["envelope_sender"] == "promo+verp=x@example.net"
    assert meta(portal, needle)["flags"] == []
    portal.command("quarantine", "release", held(portal, needle)[0]["id"], "--all")
    for box in (ALICE, "quoted@example.org", BOB):
        assert len(wait_for(partial(arrived, mx, box, needle))) == 1
    assert "from=<promo+verp=x@example.net>" in mx.postfix.log()
    assert re.search(r'to=<"?alice\+news"?@example\.org>', mx.postfix.log())


def test_the_null_sender_stays_null(mx: Mx, portal: Portal, needle: str) -> None:
    assert send(mx.postfix.smtp, "", [ALICE], spam(needle, REJECTED))[0] == 554
    assert meta(portal, needle)["envelope_sender"] == "" and meta(portal, needle)["flags"] == []
    portal.command("quarantine", "release", held(portal, needle)[0]["id"])
    (mail,) = wait_for(lambda: arrived(mx, ALICE, needle))
    queue_id = re.findall(rb"\(Postfix\)[^;]*id ([0-9A-Za-z]+)", mail)[0].decode()
    assert f"{queue_id}: from=<>" in mx.postfix.log()


def test_a_dkim_signature_still_verifies_after_the_release(mx: Mx, portal: Portal, needle: str) -> None:
    mail = spam(needle, {}, body="Grüße\r\n\r\n.\r\nlast line\r\n".encode())
    key, public = (DATA / "dkim.key").read_bytes(), (DATA / "dkim.pub").read_bytes()
    names = [b"from", b"to", b"subject", b"date", b"message-id", b"mime-version", b"content-type"]
    signature = dkim.sign(mail, b"s", b"example.net", key, canonicalize=(b"relaxed", b"relaxed"), include_headers=names)
    signed = b"X-Test-Score: 20\r\n" + signature + mail
    assert send(mx.postfix.smtp, SENDER, [ALICE], signed)[0] == 554
    portal.command("quarantine", "release", held(portal, needle)[0]["id"])
    (delivered,) = wait_for(lambda: arrived(mx, ALICE, needle))
    record = public if public.startswith(b"v=DKIM1") else b"v=DKIM1; p=" + _inner(public)
    assert dkim.verify(delivered, dnsfunc=lambda *_, **__: record)
    assert not dkim.verify(delivered.replace(b"last line", b"lost line"), dnsfunc=lambda *_, **__: record)


def _inner(pem: bytes) -> bytes:
    return b"".join(line for line in pem.split() if b"-" not in line and line not in (b"PUBLIC", b"KEY-----"))


def test_an_unknown_user_is_refused_at_the_release_and_the_reason_is_kept(mx: Mx, portal: Portal, needle: str) -> None:
    headers = {"X-Rspamd-rcpt": '["gone@example.org"]', "X-Rspamd-from": SENDER, "X-Rspamd-action": "reject"}
    assert http(portal.nginx.exporter_url, spam(needle, {}), headers | {"Content-Type": "message/rfc822"}).status == 200
    output = portal.command("quarantine", "release", held(portal, needle)[0]["id"], check=False)
    assert "550" in output
    (delivery,) = held(portal, needle)
    assert delivery["state"] == "held" and "550" in delivery["reason"]
