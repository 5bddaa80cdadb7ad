"""Messages that end in the middle for some servers (15), to a strict server and to Debian's Postfix. The short form is
in tests/mail/test_relay.py."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from portal.mail.relay import Relay
from tests.builders import ALICE, SENDER
from tests.envelopes import TRICKS, canonical, smuggled, smuggling_variants
from tests.faults.conftest import Report
from tests.ports import free_port
from tests.smtp_server import SmtpServer
from tests.system.services import Postfix, folder, wait_for

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

_VARIANTS = 4_096  # at least
_AT_ONCE = 8
# The first octets of a message, Postfix's buffers, and the pieces that the relay writes.
_EDGES = (1 << 10, 1 << 12, 1 << 14, 1 << 16)
_HEAD = b"From: <%s>\r\nMessage-ID: <1@example.net>\r\nDate: Thu, 2 Jan 2025 10:00:01 +0000\r\nSubject: x\r\n\r\nhello"


@pytest.fixture
def postfix() -> Iterator[Postfix]:
    """Debian's Postfix with the shipped listener for releases. No mail passes its milters."""
    assert os.geteuid() == 0, "Postfix starts as root"
    with folder() as home, Postfix(home / "postfix", free_port(), free_port()).running() as running:
        yield running


def send_all(url: str) -> list[bytes]:
    """Send all variants by the relay. Return what must arrive, in any order."""
    variants = list(smuggling_variants(_HEAD % SENDER.encode(), _EDGES))
    assert len(variants) >= _VARIANTS
    with Relay(url).reusing_connections() as relay, ThreadPoolExecutor(_AT_ONCE) as pool:

        def send(pieces: list[bytes]) -> None:
            relay.send(SENDER, ALICE, pieces, has_8bit=False)

        assert len(list(pool.map(send, variants))) == len(variants)
    return [canonical(b"".join(pieces)) for pieces in variants]


def send_raw(port: int, data: bytes) -> None:
    """Send a message with the ends of its lines as they are, as a client does that smuggles."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        for line in (
            b"",
            b"EHLO x\r\n",
            b"MAIL FROM:<%s>\r\n" % SENDER.encode(),
            b"RCPT TO:<alice@example.org>\r\n",
            b"DATA\r\n",
        ):
            connection.sendall(line)
            assert connection.recv(1 << 16)[:1] in (b"2", b"3")
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        with suppress(OSError):
            while connection.recv(1 << 16):
                pass


def raw_successes(port: int, to_bob: Callable[[], int]) -> int:
    """Return how many tricks smuggle a second mail to bob if nobody changes the ends of lines."""
    for trick in TRICKS:
        send_raw(port, smuggled(trick, _HEAD % SENDER.encode()))
    return to_bob()


def test_no_variant_is_two_mails_for_a_strict_server(report: Report) -> None:
    with SmtpServer() as server:
        expected = send_all(server.url)
        assert sorted(mail.data for mail in server.mails) == sorted(expected)
        assert {tuple(mail.recipients) for mail in server.mails} == {(ALICE,)}
        assert set(server.verbs) <= {"EHLO", "MAIL", "RCPT", "DATA", "QUIT"}
        assert not server.violations
    with SmtpServer() as server:
        raw = raw_successes(server.port, lambda: sum(mail.recipients != [ALICE] for mail in server.mails))
    report(
        "15 smuggling, to a strict server",
        f"{len(expected):,} variants of {len(TRICKS)} tricks: as many mails arrived, 0 others, 0 commands injected; "
        f"sent without the relay {raw} tricks smuggle a mail",
        "–",
    )
    assert raw


def test_no_variant_is_two_mails_for_postfix(postfix: Postfix, report: Report) -> None:
    expected = send_all(f"smtp://127.0.0.1:{postfix.release}")
    wait_for(lambda: not postfix.queue(), 600)
    arrived = [
        re.sub(rb"\AReceived: .*\r\n(?:[ \t].*\r\n)*", b"", mail) for mail in postfix.maildir("alice@example.org")
    ]
    to_bob = len(postfix.maildir("bob@example.org"))
    assert sorted(arrived) == sorted(expected)
    assert to_bob == 0
    assert not re.search("improper command|non-SMTP command|unknown command", postfix.log())

    def smuggled_to_bob() -> int:
        wait_for(lambda: not postfix.queue(), 600)
        return len(postfix.maildir("bob@example.org"))

    raw = raw_successes(postfix.release, smuggled_to_bob)
    report(
        "15 smuggling, to Postfix",
        f"{len(expected):,} variants of {len(TRICKS)} tricks: as many mails arrived, 0 others, 0 commands injected; "
        f"sent without the relay {raw} tricks smuggle a mail",
        "–",
    )
    assert raw
