"""Allow and block rules on the whole path: Postfix, Rspamd with DKIM, DMARC and SPF, and the portal with its map."""

from __future__ import annotations

import itertools
import shutil
import smtplib
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import dkim
import pytest

from portal.model.clock import utc_now
from portal.model.message import Reader, State
from portal.model.rule import Rule
from portal.stores import Store, open_store
from tests.builders import BY_LINK, rule
from tests.system.mails import ALICE, BOB, MALLORY, REJECTED, spam
from tests.system.name_server import NameServer
from tests.system.services import BLOCK_MAP, Portal, Postfix, Rspamd, Switch, exporter_conf, rspamd, wait_for
from tests.system.test_deliver import inboxes
from tests.system.test_mail_path import DATA, _inner

pytestmark = pytest.mark.system

HOST = "198.51.100.7"  # the host that sends, by XCLIENT
STRICT, WITHOUT, EVIL = "strict-test.com", "without-test.com", "evil-test.com"
KEY = "v=DKIM1; k=rsa; p=" + _inner((DATA / "dkim.pub").read_bytes()).decode()
ZONES = {
    STRICT: f"v=spf1 ip4:{HOST} -all",
    f"_dmarc.{STRICT}": "v=DMARC1; p=reject",
    WITHOUT: f"v=spf1 ip4:{HOST} -all",
    EVIL: f"v=spf1 ip4:{HOST} -all",
    f"news.{STRICT}": f"v=spf1 ip4:{HOST} -all",
    **{f"s._domainkey.{host}": KEY for host in (STRICT, WITHOUT, EVIL, f"news.{STRICT}")},
}
NEWS = f"news@{STRICT}"
_versions = itertools.count(1)


@dataclass
class Site:
    """Servers of a site with rules."""

    postfix: Postfix
    rspamd: Rspamd
    switch: Switch
    portal: Portal
    block_map: Path
    store: Store
    current: list[Rule] = field(default_factory=list)

    def send(self, sender: str, recipients: list[str], mail: bytes) -> int:
        """Send a mail from `HOST` and return the last reply's code."""
        with smtplib.SMTP("127.0.0.1", self.postfix.smtp, "mx.strict-test.com", timeout=60) as client:
            client.ehlo()
            assert client.docmd("XCLIENT", f"ADDR={HOST} NAME=mx.strict-test.com")[0] == 220
            client.ehlo()
            assert client.docmd(f"MAIL FROM:<{sender}>")[0] == 250
            assert all(client.docmd(f"RCPT TO:<{recipient}>")[0] == 250 for recipient in recipients)
            return client.data(mail)[0]

    def rules(self, *rules: Rule) -> None:
        """Make these rules the only ones, and wait until Rspamd's process behind Postfix knows them."""
        self.switch.set("pass")
        mark = f"v{next(_versions)}.check-test.com"
        now = utc_now()
        for old in self.current:
            self.store.rules.remove(old.id, BY_LINK, now)
        self.current = [*rules, rule(mark, scope="*")]
        self.store.rules.add(self.current, now)
        wait_for(lambda: f"*|{mark} block" in self.block_map.read_text())

        def is_blocked() -> bool:
            word = f"probe{next(_versions)}"
            assert self.send(f"x@{mark}", [ALICE], mail(word, f"x@{mark}", None, {})) == 250
            return inboxes(self.postfix, word) == []

        wait_for(is_blocked, details=lambda: self.rspamd.log.read_text()[-3000:])

    def states(self, word: str) -> dict[str, str]:
        """Return the states of a mail's deliveries by recipient."""
        lists = [self.store.deliveries.list_for(Reader(who), list(State), 200) for who in (ALICE, BOB, MALLORY)]
        found = [delivery for each in lists for delivery in each.deliveries]
        return {each.recipient: each.state.value for each in found if word in (each.message.subject or "")}


@pytest.fixture(scope="module")
def site(place: Path) -> Iterator[Site]:
    home, switch = place / "policy", Switch()
    block_map = home / "map/block.map"
    block_map.parent.mkdir(parents=True)
    shutil.chown(block_map.parent, group="_rspamd")
    block_map.parent.chmod(0o2755)
    conf = exporter_conf("metadata_exporter.conf", f"http://127.0.0.1:{switch.port}/")
    conf = conf.replace(BLOCK_MAP, str(block_map))
    with ExitStack() as stack:
        stack.callback(switch.close)
        names = stack.enter_context(NameServer(ZONES, HOST))
        checks = dict.fromkeys(("dkim", "dmarc", "spf"), "")
        running = stack.enter_context(rspamd(home / "rspamd", conf, modules=checks, dns_port=names.port))
        postfix = stack.enter_context(Postfix(home / "postfix", running.milter, running.milter).running())
        settings = {
            "QUARANTINE_RELAY__URL": f"smtp://127.0.0.1:{postfix.release}",
            "QUARANTINE_MAIL__URL": f"smtp://127.0.0.1:{postfix.release}",
            "QUARANTINE_RSPAMD__URL": f"http://127.0.0.1:{running.controller}",
            "QUARANTINE_RSPAMD__SCAN": "off",
            "QUARANTINE_RSPAMD__BLOCK_MAP": str(block_map),
            "QUARANTINE_PEOPLE__RECIPIENT_DELIMITER": "+",
        }
        portal = stack.enter_context(Portal(home / "portal", f"files://{home}/store", settings).running())
        switch.target = portal.nginx.exporter
        switch.set("pass")
        store = stack.enter_context(closing(open_store(portal.environment["QUARANTINE_STORE__URL"])))
        yield Site(postfix, running, switch, portal, block_map, store)


def mail(word: str, sender: str, signer: str | None, headers: dict[str, str]) -> bytes:
    """Return a mail with this From field, signed by a domain."""
    text = spam(word, headers).replace(b"From: Promo <promo@example.net>", f"From: {sender}".encode())
    if signer is None:
        return text
    names = [b"from", b"to", b"subject", b"date", b"message-id"]
    key = (DATA / "dkim.key").read_bytes()
    signature: bytes = dkim.sign(text, b"s", signer.encode(), key, include_headers=names)
    return signature + text


def allows() -> list[Rule]:
    """Return new rules of alice."""
    return [rule(STRICT, "allow"), rule(WITHOUT, "allow")]


@pytest.mark.parametrize(
    ("sender", "envelope", "signer", "headers", "passes"),
    [
        pytest.param(NEWS, NEWS, STRICT, {}, True, id="DKIM and DMARC"),
        pytest.param(f"x@news.{STRICT}", NEWS, f"news.{STRICT}", {}, True, id="a subdomain that signs"),
        pytest.param(f"x@{WITHOUT}", f"x@{WITHOUT}", WITHOUT, {}, True, id="no DMARC record, aligned DKIM"),
        pytest.param(f"x@{WITHOUT}", f"x@{WITHOUT}", None, {}, False, id="no DMARC record, SPF only"),
        pytest.param(NEWS, f"x@{EVIL}", None, {}, False, id="forged From"),
        pytest.param(NEWS, f"x@{EVIL}", EVIL, {}, False, id="signed by another domain"),
        pytest.param(f"{NEWS}, x@{EVIL}", NEWS, STRICT, {}, False, id="two addresses in From"),
        pytest.param(f"{NEWS}\r\nFrom: x@{EVIL}", NEWS, STRICT, {}, False, id="two From fields"),
        pytest.param(NEWS, NEWS, STRICT, {"X-Test-Virus": "1"}, False, id="virus"),
        pytest.param(NEWS, NEWS, STRICT, {"X-Test-Force": "reject"}, False, id="forced verdict"),
    ],
)
def test_one_of_three_allows_the_sender(
    site: Site, needle: str, sender: str, envelope: str, signer: str | None, headers: dict[str, str], passes: bool
) -> None:
    site.rules(*allows())
    message = mail(needle, sender, signer, REJECTED | headers)
    code = site.send(envelope, [ALICE, BOB, MALLORY], message)
    assert code == (250 if passes else 554)
    assert inboxes(site.postfix, needle) == ([ALICE] if passes else [])
    state = "passed" if passes else "held"
    assert site.states(needle) == {ALICE: state, BOB: "held", MALLORY: "held"}


def test_a_retry_after_the_answer_was_lost_gets_the_same_recipients(site: Site, needle: str) -> None:
    site.rules(*allows())
    message = mail(needle, NEWS, STRICT, REJECTED)
    site.switch.set("lose")  # the portal holds it, and Rspamd gets no answer
    assert site.send(NEWS, [ALICE, BOB], message) == 451
    assert inboxes(site.postfix, needle) == []
    assert site.states(needle) == {ALICE: "passed", BOB: "held"}
    site.switch.set("pass")
    site.rules()  # the promise holds although the rule is gone
    assert site.send(NEWS, [ALICE, BOB], message) == 250
    assert inboxes(site.postfix, needle) == [ALICE]
    assert site.states(needle) == {ALICE: "passed", BOB: "held"}


@pytest.mark.parametrize("failure", ["refuse", "500", "break", "lose"])
def test_the_portal_is_down_while_one_of_two_blocks(site: Site, needle: str, failure: str) -> None:
    site.rules(rule(STRICT))
    message = mail(needle, NEWS, STRICT, {})
    site.switch.set("refuse")
    site.switch.set(failure)
    assert site.send(NEWS, [ALICE, BOB], message) == 451
    assert inboxes(site.postfix, needle) == []
    site.switch.set("pass")
    assert site.send(NEWS, [ALICE, BOB], message) == 250
    assert inboxes(site.postfix, needle) == [BOB]
    assert site.states(needle) == {ALICE: "blocked"}


def test_blocked_by_one_of_two_and_by_both(site: Site, needle: str) -> None:
    site.rules(rule(STRICT), rule(NEWS, scope=BOB))
    assert site.send(NEWS, [ALICE, MALLORY], mail(f"{needle}a", NEWS, STRICT, {})) == 250
    assert inboxes(site.postfix, f"{needle}a") == [MALLORY]
    assert site.states(f"{needle}a") == {ALICE: "blocked"}
    assert site.send(NEWS, [ALICE, BOB], mail(f"{needle}b", NEWS, STRICT, {})) == 250
    assert inboxes(site.postfix, f"{needle}b") == []
    assert site.states(f"{needle}b") == {ALICE: "blocked", BOB: "blocked"}
    tagged = "alice+news@example.org"
    assert site.send(NEWS, [tagged, MALLORY], mail(f"{needle}c", NEWS, STRICT, {})) == 250
    assert inboxes(site.postfix, f"{needle}c") == [MALLORY]
    assert site.states(f"{needle}c") == {ALICE: "blocked"}


def test_a_spam_that_one_allows_and_another_blocks(site: Site, needle: str) -> None:
    site.rules(rule(STRICT, "allow"), rule(STRICT, scope=BOB))
    assert site.send(NEWS, [ALICE, BOB, MALLORY], mail(needle, NEWS, STRICT, REJECTED)) == 250
    assert inboxes(site.postfix, needle) == [ALICE]
    assert site.states(needle) == {ALICE: "passed", BOB: "blocked", MALLORY: "held"}


@pytest.mark.parametrize("headers", [{}, REJECTED], ids=["ham", "spam"])
def test_the_domain_allows_and_a_recipient_blocks(site: Site, needle: str, headers: dict[str, str]) -> None:
    site.rules(rule(STRICT, "allow", "@example.org"), rule(STRICT))
    assert site.send(NEWS, [ALICE, BOB], mail(needle, NEWS, STRICT, headers)) == 250
    assert inboxes(site.postfix, needle) == [BOB]
    assert site.states(needle) == {ALICE: "blocked"} | ({BOB: "passed"} if headers else {})


def test_the_site_blocks_and_a_recipient_allows_a_sender_that_is_not_authentic(site: Site, needle: str) -> None:
    site.rules(rule(WITHOUT, scope="*"), rule(WITHOUT, "allow"))
    sender = f"x@{WITHOUT}"
    assert site.send(sender, [ALICE, BOB], mail(f"{needle}a", sender, None, {})) == 250
    assert inboxes(site.postfix, f"{needle}a") == [ALICE]  # Rspamd's verdict decides
    assert site.states(f"{needle}a") == {BOB: "blocked"}
    assert site.send(sender, [ALICE, BOB], mail(f"{needle}b", sender, None, REJECTED)) == 554
    assert site.states(f"{needle}b") == {ALICE: "held", BOB: "blocked"}


def test_a_binding_block_wins(site: Site, needle: str) -> None:
    site.rules(rule(STRICT, scope="@example.org", binding=True), rule(NEWS, "allow"))
    assert site.send(NEWS, [ALICE, BOB], mail(needle, NEWS, STRICT, {})) == 250
    assert inboxes(site.postfix, needle) == []
    assert site.states(needle) == {ALICE: "blocked", BOB: "blocked"}


def test_check_says_that_rspamd_uses_the_block_rules(site: Site) -> None:
    site.rules(rule(STRICT))
    text = f"block rules: Rspamd at http://127.0.0.1:{site.rspamd.controller} uses the present map"
    wait_for(lambda: text in site.portal.command("quarantine", "check", check=False))  # it asks another process
