"""Training of Debian's Rspamd with Redis: wrong decisions of one person, and agreement.

Its statistics have learned 100 messages of spam and 100 others, made of sentences. Then people of a portal release
spam.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from digest.housekeeping import learn_waiting
from portal.assemble import Parts, assemble
from portal.cli import rspamd_checks
from portal.model.message import EventKind, Filter, Symbol
from portal.settings import load_from
from tests.builders import BY_LINK, BY_OPERATOR, hold, now
from tests.ports import free_port
from tests.smtp_server import SmtpServer
from tests.system.services import Rspamd, exporter_conf, http, process, rspamd, wait_for

pytestmark = pytest.mark.system

PEOPLE = tuple(f"{name}@example.org" for name in ("alice", "bob", "carol"))
SIGNED = (Symbol("DMARC_POLICY_ALLOW", -0.5, ("example.net", "none")), Symbol("BAYES_SPAM", 5.1))
FRESH = 20  # messages of spam that are judged at each step


class Texts:
    """Messages of spam and others. Two in five sentences of each are common to both."""

    def __init__(self) -> None:
        self._random = random.Random(5)
        self._spam, self._ham, self._common = map(self._sentences, (1, 2, 3))

    @staticmethod
    def _sentences(seed: int) -> list[str]:
        chosen = random.Random(seed)
        words = [
            "".join(chosen.choice("bcdfghklmnprstvw") + chosen.choice("aeiou") for _ in range(chosen.randint(2, 4)))
            for _ in range(400)
        ]
        return [" ".join(chosen.choice(words) for _ in range(9)) for _ in range(30)]

    def spam(self) -> bytes:
        return self._mail("promo@example.net", "offer", self._spam)

    def ham(self) -> bytes:
        return self._mail("ann@example.com", "lunch", self._ham)

    def _mail(self, sender: str, subject: str, own: list[str]) -> bytes:
        lines = [self._random.choice(own if self._random.random() < 0.6 else self._common) for _ in range(8)]
        head = (
            f"From: <{sender}>\r\nTo: <{PEOPLE[0]}>\r\nSubject: {subject}\r\n"
            f"Message-ID: <{self._random.getrandbits(64)}@example.net>\r\nDate: Sat, 28 Nov 2026 08:00:00 +0000\r\n"
        )
        return f"{head}MIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\n{chr(10).join(lines)}\n".encode()


@dataclass
class Trained:
    """An Rspamd with statistics."""

    rspamd: Rspamd
    texts: Texts

    def learn(self, path: str, data: bytes) -> None:
        reply = http(
            f"http://127.0.0.1:{self.rspamd.controller}/{path}", data, {"Password": "portal-test", "Rcpt": "x"}
        )
        assert reply.status in (200, 204), reply

    def recognised(self) -> int:
        """Return how many of `FRESH` new messages of spam are called spam with a probability above 90 %."""
        found = 0
        for _ in range(FRESH):
            envelope = {"From": "promo@example.net", "Rcpt": PEOPLE[0], "IP": "198.51.100.9"}
            reply = http(f"http://127.0.0.1:{self.rspamd.scan}/checkv2", self.texts.spam(), envelope)
            options = json.loads(reply.body)["symbols"].get("BAYES_SPAM", {}).get("options", ["0"])
            found += float(options[0].rstrip("%")) > 90
        return found


@pytest.fixture(scope="module")
def trained(place: Path) -> Iterator[Trained]:
    home, port = place / "learning", free_port()
    home.mkdir()
    modules = {
        "redis": f'servers = "127.0.0.1:{port}";\n',
        "classifier-bayes": "min_learns = 2;\n",
    }
    redis = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(home)]
    with ExitStack() as stack:
        stack.enter_context(process(redis, home / "redis.log"))
        conf = exporter_conf("metadata_exporter.conf", "http://127.0.0.1:9/")
        filter = Trained(stack.enter_context(rspamd(home / "rspamd", conf, modules=modules)), Texts())
        for _ in range(100):
            filter.learn("learnspam", filter.texts.spam())
            filter.learn("learnham", filter.texts.ham())
        yield filter


@pytest.fixture
def portal(trained: Trained, tmp_path: Path) -> Iterator[Parts]:
    with SmtpServer() as relay:
        (tmp_path / "quarantine.toml").write_text(
            f'local_domains = ["example.org"]\nmail.from_address = "q@example.org"\nrelay.url = "{relay.url}"\n'
            f'store.url = "files://{tmp_path}/store"\n'
            f'rspamd = {{url = "http://127.0.0.1:{trained.rspamd.controller}", password = "portal-test", '
            'scan_groups = [], learn = "agreed"}\n'
        )
        settings, _, _ = load_from({"QUARANTINE_CONFIG": str(tmp_path / "quarantine.toml")})
        parts = assemble(settings, create=True)
        yield parts
        parts.store.close()


def release(portal: Parts, person: str, data: bytes, subject: str, *, operator: bool = False) -> list[EventKind]:
    """Hold a message, release it, and let the digest process learn. Return what the history says about learning."""
    held = hold(portal.store, data, [person], subject=subject, symbols=SIGNED)
    actor = BY_OPERATOR if operator else BY_LINK
    key = portal.actions.release(held.id, 0, actor, operator=operator).key
    learn_waiting(portal, now())
    return [event.kind for event in portal.store.deliveries.history(key) if event.kind.startswith("learned")]


def test_wrong_decisions_of_one_person_change_no_verdict(trained: Trained, portal: Parts) -> None:
    before = trained.recognised()
    assert before >= FRESH * 0.8
    for number in range(20):
        assert release(portal, PEOPLE[0], trained.texts.spam(), f"offer {number}") == []
    assert trained.recognised() >= before - 1  # of other messages


def test_what_people_agree_on_is_learned_and_can_be_unlearned(trained: Trained, portal: Parts) -> None:
    assert [finding.ok for finding in rspamd_checks.learning(portal.settings)] == [True]
    results = [release(portal, person, trained.texts.spam(), "offer 7") for person in PEOPLE]
    assert results == [[], [], [EventKind.LEARNED_HAM]]
    learned = [
        delivery
        for delivery in portal.store.deliveries.search(Filter(), 9).deliveries
        if EventKind.LEARNED_HAM in {event.kind for event in portal.store.deliveries.history(delivery.key)}
    ]
    assert len(learned) == 3
    for delivery in learned:
        assert portal.learning.unlearn([delivery], BY_OPERATOR, now()) == "ham"
    learn_waiting(portal, now())
    for delivery in learned:
        last = portal.store.deliveries.history(delivery.key)[-1]
        assert (last.kind, last.detail) == (EventKind.LEARNED_SPAM, "answer 200, by operator:root")


def test_without_the_rule_the_same_decisions_spoil_the_statistics(trained: Trained, portal: Parts) -> None:
    """Otherwise the first test could not fail. The last one of this module, since it spoils them."""
    before = trained.recognised()
    for number in range(20):
        release(portal, PEOPLE[0], trained.texts.spam(), f"offer {number}", operator=True)
    wait_for(lambda: trained.recognised() < before * 0.7)


def test_rspamd_without_statistics_is_a_problem(place: Path, tmp_path: Path) -> None:
    """It answers 200 or 204 to what is to be learned, and learns nothing."""
    conf = exporter_conf("metadata_exporter.conf", "http://127.0.0.1:9/")
    with rspamd(place / "unlearned", conf) as running:
        url = f"http://127.0.0.1:{running.controller}"
        (tmp_path / "quarantine.toml").write_text(f'rspamd = {{url = "{url}", learn = "agreed"}}\n')
        settings, _, _ = load_from({"QUARANTINE_CONFIG": str(tmp_path / "quarantine.toml")})
        [finding] = rspamd_checks.learning(settings)
        assert (finding.ok, "has no statistics" in finding.text) == (False, True)
