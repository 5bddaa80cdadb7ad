"""Virus scans of held messages by Debian's Rspamd and ClamAV, after holding and before a release."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from portal.keys import read_keys
from portal.model.links import Action, Links
from tests.smtp_server import SmtpServer
from tests.system.mails import ALICE, REJECTED, SENDER, spam
from tests.system.services import VIRUS, Clamd, Portal, Rspamd, Switch, exporter_conf, http, rspamd, wait_for
from tests.system.test_mail_path import held, meta

pytestmark = pytest.mark.system
NEW_VIRUS = b"X-VIRUS-THAT-IS-NEW"
FORCED = {"X-Test-Force": "reject"}


@dataclass
class Scanned:
    """A portal whose Rspamd has a virus scanner."""

    clamd: Clamd
    rspamd: Rspamd
    switch: Switch
    portal: Portal
    relay: SmtpServer

    def hold(self, word: str, headers: dict[str, str], body: bytes = b"Buy!\r\n") -> None:
        """Have Rspamd scan and export a mail."""
        envelope = {"From": SENDER, "Rcpt": ALICE, "IP": "198.51.100.9", "Queue-Id": word}
        reply = http(f"http://127.0.0.1:{self.rspamd.scan}/checkv2", spam(word, headers, body), envelope)
        assert reply.status == 200, reply.body
        wait_for(lambda: held(self.portal, word))

    def outcome(self, word: str) -> str:
        """Return the outcome of the background scan, once there is one."""
        wait_for(lambda: meta(self.portal, word)["scan"]["outcome"] != "waiting")
        return str(meta(self.portal, word)["scan"]["outcome"])

    def press(self, word: str) -> None:
        """Press the release link of a digest."""
        keys = read_keys(self.portal.home.parent / "store/links.keys", create=False)
        links = Links(keys, self.portal.nginx.public_url, timedelta(days=14))
        url = links.url(Action.RELEASE, UUID(held(self.portal, word)[0]["id"]), 0, datetime.now(UTC))
        origin = "/".join(self.portal.nginx.public_url.split("/")[:3])
        browser = {"Origin": origin, "Sec-Fetch-Site": "same-origin", "Sec-Fetch-User": "?1"}
        assert http(url, b"pressed=1&checked=suspicious", browser).status == 303

    def release(self, word: str) -> str:
        return self.portal.command("quarantine", "release", held(self.portal, word)[0]["id"], check=False)


@pytest.fixture(scope="module")
def scanned(place: Path) -> Iterator[Scanned]:
    home, switch, clamd = place / "scans", Switch(), Clamd(place / "scans/clamd")
    conf = exporter_conf("metadata_exporter.conf", f"http://127.0.0.1:{switch.port}/")
    with ExitStack() as stack:
        stack.callback(switch.close)
        filter = stack.enter_context(rspamd(home / "rspamd", conf, modules={"antivirus": clamd.rspamd_conf()}))
        relay = stack.enter_context(SmtpServer())
        settings = {
            "QUARANTINE_RELAY__URL": relay.url,
            "QUARANTINE_MAIL__URL": relay.url,
            "QUARANTINE_RSPAMD__URL": f"http://127.0.0.1:{filter.controller}",
            "QUARANTINE_RSPAMD__SCAN_VALID_MINUTES": "0",
        }
        portal = stack.enter_context(Portal(home / "portal", f"files://{home}/store", settings).running())
        switch.target = portal.nginx.exporter
        switch.set("pass")
        yield Scanned(clamd, filter, switch, portal, relay)


def test_a_virus_behind_a_forced_verdict_is_found(scanned: Scanned, needle: str) -> None:
    with scanned.clamd.running():
        scanned.hold(needle, FORCED, VIRUS + b"\r\n")
        taken = scanned.switch.taken
        assert scanned.outcome(needle) == "found"
        found = meta(scanned.portal, needle)
        assert found["tier"] == "dangerous"
        assert [symbol["name"] for symbol in found["symbols"]] == ["CLAM_VIRUS"]
        assert scanned.switch.taken == taken  # the scan is not exported
        assert len(held(scanned.portal, needle)) == 1


def test_a_clean_message_is_spam_and_released(scanned: Scanned, needle: str) -> None:
    with scanned.clamd.running():
        scanned.hold(needle, REJECTED)
        assert scanned.outcome(needle) == "clean"
        assert meta(scanned.portal, needle)["tier"] == "spam"
        scanned.relay.mails.clear()
        scanned.release(needle)
        assert [mail.recipients for mail in scanned.relay.mails] == [[ALICE]]


def test_a_virus_that_the_scanner_learned_meanwhile_stops_the_release(scanned: Scanned, needle: str) -> None:
    with scanned.clamd.running():
        scanned.hold(needle, REJECTED, NEW_VIRUS + b"\r\n")
        assert scanned.outcome(needle) == "clean"
    scanned.clamd.knows(VIRUS, NEW_VIRUS)
    with scanned.clamd.running():
        scanned.relay.mails.clear()
        assert "the virus scan reported a problem" in scanned.release(needle)
        assert scanned.relay.mails == []
        assert meta(scanned.portal, needle)["tier"] == "dangerous"


def test_a_scanner_that_hangs_is_not_mistaken_for_one_that_found_nothing(scanned: Scanned, needle: str) -> None:
    """Rspamd gives up after its task_timeout of 8 s, before it repeats the question, and then reports no symbol."""
    with scanned.clamd.hanging():
        scanned.hold(needle, FORCED, VIRUS + b"\r\n")
        assert scanned.outcome(needle) == "failed"
        assert meta(scanned.portal, needle)["tier"] == "suspicious"


def test_without_an_answer_of_the_scanner_releases_wait(scanned: Scanned, needle: str) -> None:
    scanned.hold(needle, FORCED)
    assert scanned.outcome(needle) == "failed"
    scanned.relay.mails.clear()
    scanned.press(needle)
    assert scanned.relay.mails == []
    [delivery] = held(scanned.portal, needle)
    assert (delivery["state"], delivery["reason"]) == ("releasing", "the release waits for the virus scanner")
    report = scanned.portal.command("quarantine", "check", check=False)
    assert "CLAM_VIRUS_FAIL" in report
    with scanned.clamd.running():
        assert "scans (CLAM_VIRUS" in scanned.portal.command("quarantine", "check", check=False)


def test_a_message_is_judged_again_without_being_exported(scanned: Scanned, needle: str) -> None:
    with scanned.clamd.running():
        scanned.hold(needle, REJECTED | {"X-Test-Options": "1"})
        assert scanned.outcome(needle) == "clean"
        before, taken = meta(scanned.portal, needle), scanned.switch.taken
        output = scanned.portal.command("quarantine", "scan", before["id"])
    assert "action: reject\n" in output, output
    assert "virus scan: clean\n" in output
    assert "tier: spam\n" in output
    assert "TEST_" not in output  # the same score and symbols
    assert scanned.switch.taken == taken
    assert [d["id"] for d in held(scanned.portal, needle)] == [before["id"]]
    after = meta(scanned.portal, needle)
    assert {**after, "scan": None} == {**before, "scan": None}


def test_judged_again_a_virus_that_the_scanner_learned_makes_the_message_dangerous(
    scanned: Scanned, needle: str
) -> None:
    later = b"X-VIRUS-OF-ANOTHER-DAY"
    scanned.clamd.knows(VIRUS)
    with scanned.clamd.running():
        scanned.hold(needle, REJECTED, later + b"\r\n")
        assert scanned.outcome(needle) == "clean"
    scanned.clamd.knows(VIRUS, later)
    with scanned.clamd.running():
        output = scanned.portal.command("quarantine", "scan", held(scanned.portal, needle)[0]["id"])
    assert "tier: spam -> dangerous" in output
    assert re.search(r"^new +CLAM_VIRUS ", output, re.MULTILINE), output
