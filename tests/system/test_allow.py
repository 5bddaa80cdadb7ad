"""Allow rules with the real servers: Postfix, Rspamd with the shipped rule, and the portal, which decides.

The portal trusts mail without a virus scan here; tests/flows/test_allow.py has the scans."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.system.conftest import Mx
from tests.system.mails import ALICE, BOB, MALLORY, REJECTED, SENDER, spam
from tests.system.services import Portal, folder, http, send, wait_for
from tests.system.test_deliver import connection, inboxes
from tests.system.test_mail_path import held

pytestmark = pytest.mark.system

WANTED = {**REJECTED, "X-Test-Dmarc": "example.net"}
TAGGED, QUOTED = "alice+news@example.org", '"quo ted"@example.org'


@contextmanager
def portal_for(mx: Mx, **settings: str) -> Iterator[Portal]:
    before = mx.switch.target
    with folder() as home:
        relay = {"QUARANTINE_RELAY__URL": f"smtp://127.0.0.1:{mx.postfix.release}"}
        portal = Portal(home, f"files://{home}/store", {**relay, **settings})
        with portal.running():
            mx.switch.target = portal.nginx.exporter
            yield portal
    mx.switch.target = before


@pytest.fixture(scope="module")
def portal(running_mx: Mx) -> Iterator[Portal]:
    """A portal in which alice allows the sender, and nobody else has a rule."""
    with portal_for(running_mx, QUARANTINE_RSPAMD__SCAN="off") as portal:
        add(portal, "allow", SENDER, "--recipient", ALICE)
        yield portal


def add(portal: Portal, *words: str) -> str:
    """Add a rule and return its id."""
    return portal.command("quarantine", "rules", "add", *words).split()[0]


def states(portal: Portal, word: str) -> dict[str, str]:
    return {delivery["recipient"]: delivery["state"] for delivery in held(portal, word)}


@pytest.mark.parametrize("discarding", [False, True], ids=["rejecting", "discarding"])
def test_one_of_three_recipients_allows_the_sender(mx: Mx, portal: Portal, needle: str, discarding: bool) -> None:
    mail = spam(needle, WANTED, body="Grüße\r\n.\r\n..two\r\n".encode())
    port = mx.postfix.smtp_discarding if discarding else mx.postfix.smtp
    assert send(port, SENDER, [MALLORY, ALICE, BOB], mail)[0] == 250
    assert inboxes(mx.postfix, needle) == [ALICE]
    assert states(portal, needle) == {ALICE: "passed", BOB: "held", MALLORY: "held"}
    [delivered] = [each for each in mx.postfix.maildir(ALICE) if needle.encode() in each]
    assert mail in delivered
    assert b"X-Quarantine-Mark" not in delivered


@pytest.mark.parametrize(
    "headers",
    [
        REJECTED,  # not authentic
        {**REJECTED, "X-Test-Dmarc": "other.example"},
        {**WANTED, "X-Test-Virus": "1"},
        {**WANTED, "X-Test-Force": "reject"},
    ],
    ids=["forged", "of another domain", "virus", "forced"],
)
def test_what_no_rule_lets_through_is_held_for_all(
    mx: Mx, portal: Portal, needle: str, headers: dict[str, str]
) -> None:
    assert send(mx.postfix.smtp, SENDER, [ALICE, BOB], spam(needle, headers))[0] == 554
    assert states(portal, needle) == {ALICE: "held", BOB: "held"}
    assert inboxes(mx.postfix, needle) == []


def test_a_rule_of_the_domain_yields_to_one_of_a_recipient(mx: Mx, portal: Portal, needle: str) -> None:
    added = [
        add(portal, "allow", "example.net", "--domain", "example.org"),
        add(portal, "block", SENDER, "--recipient", BOB),
    ]
    try:
        assert send(mx.postfix.smtp, SENDER, [ALICE, BOB, MALLORY], spam(needle, WANTED))[0] == 250
        assert inboxes(mx.postfix, needle) == [ALICE, MALLORY]
        assert states(portal, needle) == {ALICE: "passed", BOB: "blocked", MALLORY: "passed"}
    finally:
        portal.command("quarantine", "rules", "remove", *added)


@pytest.mark.parametrize("recipient", [TAGGED, QUOTED, "Alice@Example.org"])
def test_addresses_are_delivered_as_the_envelope_writes_them(
    mx: Mx, portal: Portal, needle: str, recipient: str
) -> None:
    add(portal, "allow", SENDER, "--recipient", recipient)
    assert send(mx.postfix.smtp, SENDER, [BOB, recipient], spam(needle, WANTED))[0] == 250
    assert inboxes(mx.postfix, needle) == [recipient]


def test_each_mail_of_a_connection_is_decided_by_itself(mx: Mx, portal: Portal, needle: str) -> None:
    with connection(mx.postfix.smtp) as deliver:
        assert deliver([ALICE, BOB], spam(f"{needle}a", WANTED)) == 250
        assert deliver([ALICE, BOB], spam(f"{needle}b", REJECTED)) == 554
        assert deliver([BOB, ALICE], spam(f"{needle}c", WANTED)) == 250
    assert [inboxes(mx.postfix, f"{needle}{n}") for n in "abc"] == [[ALICE], [], [ALICE]]


def test_nobody_loses_it_while_the_portal_is_down(mx: Mx, portal: Portal, needle: str) -> None:
    mail = spam(needle, WANTED)
    for failure in ("refuse", "500", "break"):
        mx.switch.set(failure)
        assert send(mx.postfix.smtp, SENDER, [ALICE, BOB], mail)[0] == 451
    mx.switch.set("pass")
    assert send(mx.postfix.smtp, SENDER, [ALICE, BOB], mail)[0] == 250
    assert inboxes(mx.postfix, needle) == [ALICE]
    # The sender missed the reply: as without the portal, it arrives once more, and nobody else gets it.
    assert send(mx.postfix.smtp, SENDER, [ALICE, BOB], mail)[0] == 250
    assert inboxes(mx.postfix, needle) == [ALICE, ALICE]
    assert states(portal, needle) == {ALICE: "passed", BOB: "held"}


def test_many_at_once_reach_those_who_allow_them(mx: Mx, portal: Portal, needle: str) -> None:
    def one(number: int) -> int:
        return send(mx.postfix.smtp, SENDER, [ALICE, BOB], spam(f"{needle}{number:02}", WANTED))[0]

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(one, range(20))) == {250}
    assert [inboxes(mx.postfix, f"{needle}{number:02}") for number in range(20)] == [[ALICE]] * 20


def test_over_http_it_is_released_by_the_mail_server(mx: Mx, portal: Portal, needle: str) -> None:
    envelope = {"From": SENDER, "Rcpt": ALICE, "IP": "198.51.100.9", "Queue-Id": needle}
    reply = http(f"http://127.0.0.1:{mx.rspamd.scan}/checkv2", spam(needle, WANTED), envelope)
    assert json.loads(reply.body)["action"] == "reject"
    wait_for(lambda: states(portal, needle) == {ALICE: "released"})
    assert inboxes(mx.postfix, needle) == [ALICE]


def test_without_a_virus_scanner_nothing_passes(mx: Mx, needle: str) -> None:
    with portal_for(mx, QUARANTINE_RSPAMD__URL=f"http://127.0.0.1:{mx.rspamd.controller}") as portal:
        add(portal, "allow", SENDER, "--recipient", ALICE)
        assert send(mx.postfix.smtp, SENDER, [ALICE, BOB], spam(needle, WANTED))[0] == 554
        assert states(portal, needle) == {ALICE: "held", BOB: "held"}
    assert inboxes(mx.postfix, needle) == []
