"""Block rules in Rspamd: the shipped plugin and rule take off those who block the sender, and never lose a message.

The real servers are Postfix and Rspamd. The map is written as the portal writes it, and the portal answers what a test
says."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.system.answering import AnsweringPortal
from tests.system.conftest import Mx
from tests.system.mails import ALICE, BOB, MALLORY, REJECTED, SENDER, spam
from tests.system.services import Reply, http, send, wait_for
from tests.system.test_deliver import QUOTED, TAGGED, connection, inboxes

pytestmark = pytest.mark.system

DEFERRED = (451, "4.7.1 Try again later")
_versions = itertools.count(1)


@dataclass
class Blocking:
    """Rspamd with a map of block rules, and a portal that holds everything."""

    mx: Mx
    portal: AnsweringPortal

    def rules(self, *lines: str) -> None:
        """Write the map and wait until Rspamd's process behind Postfix uses it."""
        probe = f"v{next(_versions)}.check.invalid"
        self.mx.rspamd.block(*lines, f"*|{probe} block")
        message = f"From: x@{probe}\r\nSubject: probe\r\n\r\nprobe\r\n".encode()

        def is_used() -> bool:
            send(self.mx.postfix.smtp, "", [ALICE], message)
            return any(post.message.startswith(f"From: x@{probe}".encode()) for post in self.portal.posts)

        wait_for(is_used, 20, details=lambda: self.mx.rspamd.log.read_text()[-3000:])
        self.portal.posts.clear()

    def scan(self, recipients: list[str], message: bytes, sender: str = SENDER) -> Reply:
        """Have Rspamd judge a message over HTTP."""
        envelope = {"From": sender, "Rcpt": ",".join(recipients), "IP": "198.51.100.9", "Queue-Id": "scan"}
        return http(f"http://127.0.0.1:{self.mx.rspamd.scan}/checkv2", message, envelope)


@pytest.fixture
def site(mx: Mx) -> Iterator[Blocking]:
    before = mx.switch.target
    with AnsweringPortal() as answering:
        mx.switch.target = answering.port
        blocking = Blocking(mx, answering)
        yield blocking
        mx.switch.set("pass")
        blocking.rules()  # other tests have none
    mx.switch.target = before


def ham(word: str, sender: str = SENDER, headers: dict[str, str] | None = None) -> bytes:
    """Return a mail that Rspamd lets pass."""
    return spam(word, headers or {}).replace(f"From: Promo <{SENDER}>".encode(), f"From: Promo <{sender}>".encode())


def test_blocked_by_one_of_two(site: Blocking, needle: str) -> None:
    site.rules(f"{ALICE}|{SENDER} block")
    assert send(site.mx.postfix.smtp, SENDER, [ALICE, BOB], ham(needle))[0] == 250
    assert inboxes(site.mx.postfix, needle) == [BOB]
    [post] = site.portal.posts
    assert (post.recipients, post.action) == ([ALICE], "discard")
    assert post.symbols[:2] == ["PORTAL_BLOCK", "PORTAL_SPLIT"]
    assert float(post.headers["x-rspamd-score"]) < 4
    assert "x-rspamd-threshold" not in post.headers and "x-rspamd-forced" not in post.headers
    assert post.headers["x-rspamd-accepts-deliver"] == "1"


def test_blocked_by_all(site: Blocking, needle: str) -> None:
    site.rules(f"*|{SENDER} block")
    assert send(site.mx.postfix.smtp, SENDER, [ALICE, BOB], ham(needle))[0] == 250
    assert inboxes(site.mx.postfix, needle) == []
    [post] = site.portal.posts
    assert (post.recipients, post.action) == ([ALICE, BOB], "discard")
    assert post.symbols[0] == "PORTAL_BLOCK" and "PORTAL_SPLIT" not in post.symbols
    assert "x-rspamd-forced" not in post.headers


# Lines of the map; the senders in the envelope and in From; which of ALICE and BOB get the message.
DECISIONS: list[tuple[list[str], str, str, list[str]]] = [
    ([], SENDER, SENDER, [ALICE, BOB]),
    ([f"{ALICE}|example.net block"], SENDER, SENDER, [BOB]),
    ([f"{ALICE}|example.net block"], "", "x@sub.example.net", [BOB]),
    ([f"{ALICE}|net block"], SENDER, SENDER, [BOB]),
    ([f"{ALICE}|example.net block"], "x@example.com", "x@notexample.net", [ALICE, BOB]),
    # the envelope or the From field is enough for a block
    ([f"{ALICE}|bounce@example.com block"], "bounce@example.com", SENDER, [BOB]),
    ([f"{ALICE}|{SENDER} block"], "bounce@example.com", SENDER, [BOB]),
    ([f"{ALICE}|{SENDER} block"], "", "PROMO@Example.NET", [BOB]),
    # the scope that is more specific wins
    (["example.org|example.net block"], SENDER, SENDER, []),
    (["example.org|example.net block", f"{ALICE}|{SENDER} allow"], SENDER, SENDER, [ALICE]),
    (["*|example.net block", "example.org|net allow", f"{BOB}|net block"], SENDER, SENDER, [ALICE]),
    (["sub.example.org|example.net block"], SENDER, SENDER, [ALICE, BOB]),
    # within a scope the sender that is more specific, then block
    ([f"{ALICE}|example.net block", f"{ALICE}|{SENDER} allow"], SENDER, SENDER, [ALICE, BOB]),
    ([f"{ALICE}|example.net allow", f"{ALICE}|{SENDER} block"], SENDER, SENDER, [BOB]),
    ([f"{ALICE}|a@x.example allow", f"{ALICE}|{SENDER} block"], "", f"a@x.example>, <{SENDER}", [BOB]),
    # an allow rule does not look at the envelope
    ([f"{ALICE}|example.net block", f"{ALICE}|{SENDER} allow"], SENDER, "other@example.net", [BOB]),
    # a binding block is not overridden by a narrower scope, but by its own
    (["example.org|example.net binding", f"{ALICE}|{SENDER} allow"], SENDER, SENDER, []),
    (["*|example.net binding", f"example.org|{SENDER} allow", f"{ALICE}|{SENDER} allow"], SENDER, SENDER, []),
    (["*|example.net binding", f"*|{SENDER} allow"], SENDER, SENDER, [ALICE, BOB]),
    # networks come after domains, and not for single recipients
    (["example.org|127.0.0.0/8 block"], SENDER, SENDER, []),
    (["*|127.0.0.1/32 block", "*|net allow"], SENDER, SENDER, [ALICE, BOB]),
    (["*|127.0.0.0/8 binding", f"{ALICE}|{SENDER} allow"], SENDER, SENDER, []),
    (["*|127.0.0.0/8 block", "*|127.0.0.1/32 allow"], SENDER, SENDER, [ALICE, BOB]),
    ([f"{ALICE}|127.0.0.0/8 block"], SENDER, SENDER, [ALICE, BOB]),
    (["*|10.0.0.0/8 block"], SENDER, SENDER, [ALICE, BOB]),
    # lines that are damaged, or of a later version
    ([f"{ALICE}|{SENDER}", f"{BOB}|{SENDER} other"], SENDER, SENDER, [ALICE, BOB]),
]


@pytest.mark.parametrize(("lines", "envelope", "shown", "arrived"), DECISIONS)
def test_decisions(
    site: Blocking, needle: str, lines: list[str], envelope: str, shown: str, arrived: list[str]
) -> None:
    site.rules(*lines)
    assert send(site.mx.postfix.smtp, envelope, [ALICE, BOB], ham(needle, shown))[0] == 250
    assert inboxes(site.mx.postfix, needle) == arrived
    assert [post.recipients for post in site.portal.posts] == (
        [] if len(arrived) == 2 else [[who for who in (ALICE, BOB) if who not in arrived]]
    )


def test_both_of_two_from_fields_are_looked_at(site: Blocking, needle: str) -> None:
    site.rules(f"{ALICE}|first@x.example block", f"{BOB}|second@x.example block")
    mail = b"From: first@x.example\r\n" + ham(needle, "second@x.example")
    assert send(site.mx.postfix.smtp, SENDER, [ALICE, BOB, MALLORY], mail)[0] == 250
    assert inboxes(site.mx.postfix, needle) == [MALLORY]


def test_thousands_of_senders_do_not_stop_rspamd(site: Blocking, needle: str) -> None:
    site.rules(f"{ALICE}|x0@many.example block", f"{BOB}|x2999@many.example block")
    many = ">, <".join(f"x{n}@many.example" for n in range(3000))
    assert send(site.mx.postfix.smtp, SENDER, [ALICE, BOB], ham(needle, many))[0] == 250
    assert inboxes(site.mx.postfix, needle) == [BOB]  # the first ones are looked up


@pytest.mark.parametrize("delimiter", ["", "+", "-+"])
def test_address_extensions(site: Blocking, needle: str, delimiter: str) -> None:
    """They count as the portal's people.recipient_delimiter says: without one, they name other people."""
    site.rules(f"{ALICE}|{SENDER} block", *([f"recipient_delimiter| {delimiter}"] if delimiter else []))
    recipients = [TAGGED, "Alice@Example.org", BOB]
    assert send(site.mx.postfix.smtp, SENDER, recipients, ham(needle))[0] == 250
    assert inboxes(site.mx.postfix, needle) == ([BOB] if delimiter else [TAGGED, BOB])


def test_an_extension_with_readers_of_its_own(site: Blocking, needle: str) -> None:
    """Nobody may withhold mail that others read."""
    site.rules(f"{ALICE}|{SENDER} block", "recipient_delimiter| +", f"{TAGGED.lower()}| whole")
    other = TAGGED.replace("@", "x@")
    assert send(site.mx.postfix.smtp, SENDER, [TAGGED, other, ALICE, BOB], ham(needle))[0] == 250
    assert inboxes(site.mx.postfix, needle) == sorted([TAGGED, BOB])


def test_quotes_spaces_and_repeated_recipients(site: Blocking, needle: str) -> None:
    site.rules(f'"quo ted@example.org|{SENDER}" block')
    recipients = [QUOTED, BOB, '"bob"@example.org', QUOTED]
    assert send(site.mx.postfix.smtp, SENDER, recipients, ham(needle))[0] == 250
    arrived = inboxes(site.mx.postfix, needle)
    assert BOB in arrived and QUOTED not in arrived
    assert set(site.portal.posts[0].recipients) == {QUOTED}


def test_an_internationalized_sender(site: Blocking, needle: str) -> None:
    site.rules(f"{ALICE}|jürgen@example.net block", f"{BOB}|münchen.example block")
    assert send(site.mx.postfix.smtp, SENDER, [ALICE, BOB], ham(needle, "JÜRGEN@example.net"))[0] == 250
    assert inboxes(site.mx.postfix, needle) == [BOB]


@pytest.mark.parametrize("recipients", [[ALICE, BOB], [ALICE]], ids=["some", "all"])
@pytest.mark.parametrize("failure", ["refuse", "500", "break"])
def test_nobody_loses_a_message_while_the_portal_is_down(
    site: Blocking, needle: str, failure: str, recipients: list[str]
) -> None:
    site.rules(f"{ALICE}|{SENDER} block")
    site.mx.switch.set("refuse")
    site.mx.switch.set(failure)
    assert send(site.mx.postfix.smtp, SENDER, recipients, ham(needle)) == DEFERRED
    assert inboxes(site.mx.postfix, needle) == []
    site.mx.switch.set("pass")
    assert send(site.mx.postfix.smtp, SENDER, recipients, ham(needle))[0] == 250
    assert inboxes(site.mx.postfix, needle) == recipients[1:]


@pytest.mark.parametrize("recipients", [[ALICE, BOB], [ALICE]], ids=["some", "all"])
def test_what_the_portal_does_not_hold_is_delivered(site: Blocking, needle: str, recipients: list[str]) -> None:
    site.rules(f"{ALICE}|{SENDER} block")
    site.portal.answer = lambda _: {"status": "not-selected", "id": None}
    assert send(site.mx.postfix.smtp, SENDER, recipients, ham(needle))[0] == 250
    assert inboxes(site.mx.postfix, needle) == recipients


def test_the_answer_may_name_those_who_block(site: Blocking, needle: str) -> None:
    """The portal's rules are newer than the map."""
    site.rules(f"{ALICE}|{SENDER} block", f"{BOB}|{SENDER} block")
    site.portal.delivers(ALICE)
    assert send(site.mx.postfix.smtp, SENDER, [ALICE, BOB, MALLORY], ham(f"{needle}a"))[0] == 250
    assert inboxes(site.mx.postfix, f"{needle}a") == [ALICE, MALLORY]
    assert send(site.mx.postfix.smtp, SENDER, [ALICE, BOB], ham(f"{needle}b"))[0] == 250
    assert inboxes(site.mx.postfix, f"{needle}b") == [ALICE]
    site.portal.delivers(MALLORY)  # not posted: an invalid answer
    assert send(site.mx.postfix.smtp, SENDER, [ALICE, BOB, MALLORY], ham(f"{needle}c"))[0] == 250
    assert inboxes(site.mx.postfix, f"{needle}c") == [MALLORY]


@pytest.mark.parametrize("headers", [REJECTED, {"X-Test-Force": "reject"}, {"X-Test-Force": "soft reject"}], ids=repr)
def test_a_withheld_message_is_posted_as_without_rules(site: Blocking, needle: str, headers: dict[str, str]) -> None:
    site.rules(f"{ALICE}|{SENDER} block")
    code = send(site.mx.postfix.smtp, SENDER, [ALICE, BOB], ham(needle, headers=headers))[0]
    assert inboxes(site.mx.postfix, needle) == []
    if headers.get("X-Test-Force") == "soft reject":
        assert code == 451 and not site.portal.posts
        return
    assert code == 554
    [post] = site.portal.posts
    assert (post.recipients, post.action) == ([ALICE, BOB], "reject")
    assert not {"PORTAL_BLOCK", "PORTAL_SPLIT"} & set(post.symbols)


@pytest.mark.parametrize("headers", [{"X-Test-Force": "no action"}, {"X-Test-Score": "7"}], ids=["forced", "marked"])
def test_a_message_that_passes_with_another_verdict_is_blocked(
    site: Blocking, needle: str, headers: dict[str, str]
) -> None:
    site.rules(f"{ALICE}|{SENDER} block")
    assert send(site.mx.postfix.smtp, SENDER, [ALICE, BOB], ham(needle, headers=headers))[0] == 250
    assert inboxes(site.mx.postfix, needle) == [BOB]
    [post] = site.portal.posts
    assert (post.recipients, post.action) == ([ALICE], "discard")
    assert post.headers.get("x-rspamd-forced") == ("1" if "X-Test-Force" in headers else None)


def test_settings_decide_whether_a_message_is_judged(site: Blocking, needle: str) -> None:
    site.rules(f"{ALICE}|{SENDER} block")
    lax = ham(f"{needle}a", headers=REJECTED | {"X-Test-Lax": "1"})
    assert send(site.mx.postfix.smtp, SENDER, [ALICE, BOB], lax)[0] == 250
    assert inboxes(site.mx.postfix, f"{needle}a") == [BOB]
    [post] = site.portal.posts
    assert (post.recipients, post.action) == ([ALICE], "discard")
    assert float(post.headers["x-rspamd-score"]) > 15 and "x-rspamd-threshold" not in post.headers
    skipped = ham(f"{needle}b", headers=REJECTED | {"X-Test-Skip": "1"})
    assert send(site.mx.postfix.smtp, SENDER, [ALICE, BOB], skipped)[0] == 250
    assert inboxes(site.mx.postfix, f"{needle}b") == [ALICE, BOB]
    assert len(site.portal.posts) == 1


def test_the_messages_of_one_connection_are_independent(site: Blocking, needle: str) -> None:
    site.rules(f"{ALICE}|{SENDER} block")
    with connection(site.mx.postfix.smtp) as deliver:
        assert deliver([ALICE, BOB], ham(f"{needle}a")) == 250
        assert deliver([ALICE, BOB], ham(f"{needle}b", "other@example.com")) == 250
        assert deliver([ALICE, BOB], spam(f"{needle}c", REJECTED)) == 554
        assert deliver([ALICE], ham(f"{needle}d")) == 250
        assert deliver([BOB], ham(f"{needle}e")) == 250
        assert deliver([BOB], spam(f"{needle}f", REJECTED)) == 554
    arrived = {letter: inboxes(site.mx.postfix, needle + letter) for letter in "abcdef"}
    assert arrived == {"a": [BOB], "b": [BOB], "c": [], "d": [], "e": [BOB], "f": []}


def test_over_http_a_message_is_withheld_only_if_all_block_it(site: Blocking, needle: str) -> None:
    site.rules(f"{ALICE}|{SENDER} block")

    def decide(who: list[str]) -> Reply:
        return site.scan(who, ham(needle))

    wait_for(lambda: b"PORTAL_BLOCK" in decide([ALICE]).body)
    assert b'"action":"discard"' in decide([ALICE]).body
    site.portal.posts.clear()
    both = decide([ALICE, BOB]).body
    assert b'"action":"discard"' not in both and b"PORTAL_SPLIT" in both and b"del_rcpt" not in both
    assert site.portal.posts == []


def test_hundreds_of_recipients_block(site: Blocking, needle: str) -> None:
    site.rules("example.org|example.net block", f"{BOB}|example.net allow")
    recipients = [BOB, *(f"alice+{n:03}@example.org" for n in range(899))]
    assert send(site.mx.postfix.smtp, SENDER, recipients, ham(needle))[0] == 250
    assert inboxes(site.mx.postfix, needle) == [BOB]
    assert site.portal.posts[0].recipients == recipients[1:]


def test_recipients_that_nginx_would_drop_are_not_taken_off(site: Blocking, needle: str) -> None:
    site.rules("example.org|example.net block", f"{BOB}|example.net allow")
    recipients = [BOB, *(f"alice+{'x' * 54}{n:03}@example.org" for n in range(600))]
    assert send(site.mx.postfix.smtp, SENDER, recipients, ham(needle))[0] == 250
    assert len(inboxes(site.mx.postfix, needle)) == 601
    assert site.portal.posts == []
