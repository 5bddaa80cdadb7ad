"""The portal's answer to a post names recipients who get the message: the shipped rule takes the others off.

The real servers are Postfix and Rspamd. The portal answers what a test says, also what the real one never does."""

from __future__ import annotations

import re
import smtplib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.system.answering import AnsweringPortal
from tests.system.conftest import Mx
from tests.system.mails import ALICE, BOB, MALLORY, REJECTED, SENDER, spam
from tests.system.services import Postfix, exporter_conf, http, rspamd, send, wait_for

pytestmark = pytest.mark.system

TAGGED, QUOTED, JUERGEN = "alice+news@example.org", '"quo ted"@example.org', "jürgen@example.org"
HELD = {"status": "held", "id": "0"}


@pytest.fixture
def portal(mx: Mx) -> Iterator[AnsweringPortal]:
    before = mx.switch.target
    with AnsweringPortal() as answering:
        mx.switch.target = answering.port
        yield answering
    mx.switch.target = before


def inboxes(postfix: Postfix, word: str) -> list[str]:
    """Return the addresses for which a mail with this subject arrived, each as often as it did, once the queue is
    empty."""
    wait_for(lambda: postfix.queue() == "", details=postfix.queue)
    mails = [path.read_bytes() for path in (postfix.home / "mail").glob("*/new/*")]
    mails = [mail for mail in mails if f"Subject: {word} ".encode() in mail]
    return sorted(re.findall(rb"^X-Original-To: (.*)$", mail, re.MULTILINE)[0].decode() for mail in mails)


@contextmanager
def connection(port: int) -> Iterator[Callable[..., int]]:
    """An SMTP connection: call it with recipients and a mail for the code of the last reply."""
    with smtplib.SMTP("127.0.0.1", port, "client.example.net", timeout=60) as client:
        client.ehlo()

        def deliver(recipients: list[str], data: bytes) -> int:
            assert client.docmd(f"MAIL FROM:<{SENDER}>")[0] == 250
            assert all(client.docmd(f"RCPT TO:<{recipient}>")[0] == 250 for recipient in recipients)
            return client.data(data)[0]

        yield deliver


def send_utf8(port: int, recipients: list[str], data: bytes) -> tuple[int, bytes]:
    """Send a mail by SMTP with SMTPUTF8 (RFC 6531) and return the last reply."""
    with smtplib.SMTP("127.0.0.1", port, "client.example.net", timeout=60) as client:
        client.ehlo()
        client.command_encoding = "utf-8"
        for line in (f"MAIL FROM:<{SENDER}> SMTPUTF8", *(f"RCPT TO:<{recipient}>" for recipient in recipients)):
            code, text = client.docmd(line)
            assert code == 250, text
        return client.data(data)


@pytest.mark.parametrize("discarding", [False, True], ids=["rejecting", "discarding"])
@pytest.mark.parametrize("headers", [REJECTED, {"X-Test-Force": "discard"}], ids=["scored", "forced discard"])
def test_only_the_named_recipient_of_three_gets_the_message_unchanged(
    mx: Mx, portal: AnsweringPortal, needle: str, discarding: bool, headers: dict[str, str]
) -> None:
    portal.delivers(ALICE)
    mail = spam(needle, headers, body="Grüße\r\n.\r\n..two\r\n".encode())
    port = mx.postfix.smtp_discarding if discarding else mx.postfix.smtp
    assert send(port, SENDER, [ALICE, BOB, MALLORY], mail)[0] == 250
    assert inboxes(mx.postfix, needle) == [ALICE]
    [delivered] = [mail for mail in mx.postfix.maildir(ALICE) if needle.encode() in mail]
    above, _, rest = delivered.partition(mail)
    assert rest in (b"", b"\r\n") and re.findall(rb"^([A-Za-z-]+):", above, re.MULTILINE) == [b"Received"]
    [post] = portal.posts
    assert post.recipients == [ALICE, BOB, MALLORY]
    assert post.headers["x-rspamd-accepts-deliver"] == "1"


@pytest.mark.parametrize(
    ("recipients", "named", "arrived"),
    [
        ([ALICE], [ALICE], [ALICE]),
        ([ALICE, BOB], [ALICE, BOB], [ALICE, BOB]),
        ([ALICE, BOB], [BOB, BOB], [BOB]),
        ([TAGGED, ALICE, BOB], [TAGGED], [TAGGED]),
        ([TAGGED, ALICE, BOB], [ALICE], [ALICE]),
        ([QUOTED, BOB], [QUOTED], [QUOTED]),
        ([QUOTED, BOB], [BOB], [BOB]),
        (["Alice@Example.org", BOB], ["Alice@Example.org"], ["Alice@Example.org"]),
        (["Alice@Example.org", BOB], [BOB], [BOB]),
    ],
)
def test_addresses_count_as_the_envelope_writes_them(
    mx: Mx, portal: AnsweringPortal, needle: str, recipients: list[str], named: list[str], arrived: list[str]
) -> None:
    portal.delivers(*named)
    assert send(mx.postfix.smtp, SENDER, recipients, spam(needle, REJECTED))[0] == 250
    assert inboxes(mx.postfix, needle) == sorted(arrived)
    assert portal.posts[0].recipients == recipients


@pytest.mark.parametrize("named", [ALICE, JUERGEN])
def test_a_recipient_beyond_ascii_is_taken_off_only_if_rspamd_reports_it(
    mx: Mx, portal: AnsweringPortal, needle: str, named: str
) -> None:
    """Rspamd 3.4 reports no address that is not ASCII: its owner then gets what another recipient gets, and a message
    that nobody gets is rejected. Nobody loses it."""
    portal.delivers(named)
    code, _ = send_utf8(mx.postfix.smtp, [ALICE, JUERGEN], spam(needle, REJECTED))
    [post] = portal.posts
    arrived = inboxes(mx.postfix, needle)
    if post.recipients == [ALICE]:
        assert (code, arrived) == ((250, [ALICE, JUERGEN]) if named == ALICE else (554, []))
    else:
        assert post.recipients == [ALICE, JUERGEN]
        assert (code, arrived) == (250, [named])


@pytest.mark.parametrize("named", ["Alice@example.org", '"alice"@example.org', ALICE])
def test_a_recipient_in_several_spellings_is_not_taken_off(
    mx: Mx, portal: AnsweringPortal, needle: str, named: str
) -> None:
    """Postfix takes off every recipient whose address is the same in lower case and without quotes."""
    portal.delivers(named)
    recipients = [ALICE, BOB, "Alice@example.org", '"alice"@example.org']
    assert send(mx.postfix.smtp, SENDER, recipients, spam(needle, REJECTED))[0] == 250
    arrived = inboxes(mx.postfix, needle)
    assert BOB not in arrived and len(arrived) >= 1


@pytest.mark.parametrize(
    "answer",
    [
        HELD,
        HELD | {"deliver": []},
        HELD | {"deliver": None},
        HELD | {"deliver": True},
        HELD | {"deliver": ALICE},
        HELD | {"deliver": {"0": ALICE}},
        HELD | {"deliver": [[ALICE]]},
        HELD | {"deliver": [None, ALICE]},
        HELD | {"deliver": [ALICE, None]},
        HELD | {"deliver": [ALICE, 1]},
        HELD | {"deliver": [ALICE, ""]},
        HELD | {"deliver": [ALICE, "foreign@example.com"]},
        HELD | {"deliver": ["alice@example.org "]},
        HELD | {"deliver": ["ALICE@example.org"]},
        HELD | {"deliver": [f"<{ALICE}>"]},
        HELD | {"deliver": ["*"]},
        [HELD | {"deliver": [ALICE]}],
        HELD | {"more": {"deliver": [ALICE]}},
        b"",
        b"OK",
        b"[" * 50_000,
        b'{"deliver":["alice@example.org"]',
        b'{"deliver":["alice@example.org"],"deliver":["foreign@example.com"]}',
        b'.include(try=true) "/etc/hostname"\ndeliver = 1\n',
        b"\0" * 1000,
        b'{"deliver":["alice\0@example.org"]}',
        b'{"deliver":["alice@example.org\\r\\n250 2.0.0"]}',
    ],
    ids=repr,
)
def test_any_other_answer_holds_the_message_for_all(mx: Mx, portal: AnsweringPortal, needle: str, answer: Any) -> None:
    portal.answer = lambda _: answer
    assert send(mx.postfix.smtp, SENDER, [ALICE, BOB], spam(needle, REJECTED))[0] == 554
    assert inboxes(mx.postfix, needle) == []
    portal.delivers(ALICE)  # Rspamd still works
    assert send(mx.postfix.smtp, SENDER, [ALICE, BOB], spam(needle, REJECTED))[0] == 250
    assert inboxes(mx.postfix, needle) == [ALICE]


@pytest.mark.parametrize("status", [201, 204, 302, 404, 500, 503])
def test_another_status_never_delivers(mx: Mx, portal: AnsweringPortal, needle: str, status: int) -> None:
    portal.delivers(ALICE)
    portal.status = status
    assert send(mx.postfix.smtp, SENDER, [ALICE, BOB], spam(needle, REJECTED))[0] == 451
    assert inboxes(mx.postfix, needle) == []


@pytest.mark.parametrize("discarding", [False, True], ids=["rejecting", "discarding"])
def test_the_messages_of_one_connection_are_independent(
    mx: Mx, portal: AnsweringPortal, needle: str, discarding: bool
) -> None:
    """Rspamd keeps parts of a milter reply for the later messages of a connection."""
    withheld = 250 if discarding else 554
    with connection(mx.postfix.smtp_discarding if discarding else mx.postfix.smtp) as deliver:
        portal.delivers(ALICE)
        assert deliver([ALICE, BOB], spam(f"{needle}a", REJECTED)) == 250
        portal.answer = lambda _: HELD
        assert deliver([ALICE, BOB], spam(f"{needle}b", REJECTED)) == withheld
        assert deliver([ALICE, BOB], spam(f"{needle}c", {})) == 250
        portal.answer = lambda _: {"status": "not-selected", "id": None}
        assert deliver([ALICE, BOB], spam(f"{needle}d", REJECTED)) == 554
        portal.delivers(BOB)
        assert deliver([ALICE, BOB], spam(f"{needle}e", REJECTED)) == 250
        portal.answer = lambda _: HELD
        assert deliver([ALICE, BOB], spam(f"{needle}f", REJECTED)) == withheld
    arrived = {letter: inboxes(mx.postfix, needle + letter) for letter in "abcdef"}
    assert arrived == {"a": [ALICE], "b": [], "c": [ALICE, BOB], "d": [], "e": [BOB], "f": []}


def test_over_http_no_recipient_can_be_named(mx: Mx, portal: AnsweringPortal, needle: str) -> None:
    portal.delivers(ALICE)
    envelope = {"From": SENDER, "Rcpt": ALICE, "IP": "198.51.100.9", "Queue-Id": needle}
    reply = http(f"http://127.0.0.1:{mx.rspamd.scan}/checkv2", spam(needle, REJECTED), envelope)
    assert b'"action":"reject"' in reply.body and b"del_rcpt" not in reply.body
    assert "x-rspamd-accepts-deliver" not in portal.posts[0].headers


def test_hundreds_of_recipients(mx: Mx, portal: AnsweringPortal, needle: str) -> None:
    recipients = [ALICE, *(f"bob+{n:03}@example.org" for n in range(899))]
    portal.delivers(ALICE, recipients[-1])
    assert send(mx.postfix.smtp, SENDER, recipients, spam(needle, REJECTED))[0] == 250
    assert inboxes(mx.postfix, needle) == [ALICE, recipients[-1]]
    assert portal.posts[0].recipients == recipients


def test_many_connections_to_several_workers(mx: Mx, portal: AnsweringPortal, place: Path, needle: str) -> None:
    """Each message gets the answer to its own post."""
    portal.answer = lambda post: HELD | ({"deliver": post.recipients[:1]} if len(post.recipients) > 2 else {})
    conf = exporter_conf("metadata_exporter.conf", f"http://127.0.0.1:{mx.switch.port}/")
    with rspamd(place / f"rspamd-{needle}", conf, proxies=3) as several:
        postfix = Postfix(place / f"postfix-{needle}", several.milter, several.milter)
        with postfix.running():

            def converse(who: int) -> list[int]:
                with connection(postfix.smtp) as deliver:
                    recipients = [ALICE, BOB, MALLORY] if who % 2 else [BOB, MALLORY]
                    return [deliver(recipients, spam(f"{needle}{who}", REJECTED)) for _ in range(4)]

            with ThreadPoolExecutor(12) as pool:
                codes = list(pool.map(converse, range(12)))
            assert codes == [[250] * 4 if who % 2 else [554] * 4 for who in range(12)]
            arrived = [inboxes(postfix, f"{needle}{who}") for who in range(12)]
            assert arrived == [[ALICE] * 4 if who % 2 else [] for who in range(12)]
