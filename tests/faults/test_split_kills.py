"""kill -9 at each point of a message that some of its recipients get at once: each has it exactly once.

A simulated Rspamd follows the protocol: it delivers to those whom a complete answer names, and without such an answer
the sender tries again. The numbers in the reports are those of the list of promises in docs/reliability.md.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from portal.model.message import State
from portal.stores import Store, open_store
from tests.builders import ALICE, BOB, SENDER, now, rule
from tests.faults.conftest import Report, Serve
from tests.faults.serving import META, PATIENCE_SECONDS, Portal, all_deliveries, children, command, mail_of
from tests.faults.test_kills import full
from tests.rspamd_server import RspamdServer
from tests.smtp_server import SmtpServer

CAROL = "carol@example.org"  # blocks the sender; alice allows them, bob has no rule
RECIPIENTS = [BOB, ALICE, CAROL]
AUTHENTIC = [
    {"name": "BAYES_SPAM", "score": 5.1},
    {"name": "DMARC_POLICY_ALLOW", "score": -0.5, "options": ["example.net", "none"]},
]
HEADERS = {**META, "X-Rspamd-rcpt": json.dumps(RECIPIENTS), "X-Rspamd-symbols": json.dumps(AUTHENTIC)}
AT_THE_POST = (
    "before the rules", "after the rules", "before the scan", "after the scan", "before holding", "while holding",
    "after holding", "before the hits", "after the hits", "before the answer", "in the answer", "after the answer",
)  # fmt: skip
AT_THE_RELEASE = ("before the claim", "after the claim", "before sending", "before the record", "after the record")
ANY_MOMENT = "any moment"


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def rspamd() -> Iterator[RspamdServer]:
    with RspamdServer() as server:
        yield server


class Rspamd:
    """Rspamd with the shipped rule, or with a stock one that delivers to nobody, and a sender who tries again."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal
        self.inbox: Counter[tuple[int, str]] = Counter()
        self.answers: Counter[str] = Counter()

    def receive(self, number: int, *, milter: bool) -> None:
        headers = {**HEADERS, **({"X-Rspamd-Accepts-Deliver": "1"} if milter else {})}
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            status, answer = 0, dict[str, Any]()
            with suppress(OSError, http.client.HTTPException, ValueError):
                status, body = self._portal.request("POST", "/quarantine/", mail_of(number), headers)
                answer = json.loads(body) if status == 200 else {}
            if answer:
                break
            self.answers["deferred"] += 1
            assert status in (0, 200, 502, 503)
            assert time.monotonic() < deadline, f"mail {number} was not accepted"
            time.sleep(0.02)
        deliver = answer.get("deliver", [])
        assert set(deliver) <= set(RECIPIENTS)
        assert milter or not deliver
        for recipient in deliver:
            self.inbox[number, recipient] += 1
        self.answers[f"{answer['status']}, delivered to {len(deliver)}"] += 1


class Strikes:
    """The point at which a process of the portal dies next."""

    def __init__(self, folder: Path) -> None:
        self._at = folder / "strike"
        self._done = folder / "strike.done"
        self.environ = {
            "STRIKE_AT": str(self._at),
            "STRIKE_LEASE": "3",
            "STRIKE_TAKE_OVER": "1",
            "PYTHONPATH": str(Path(__file__).parent / "strike"),
        }

    def prepare(self, point: str) -> None:
        self._done.unlink(missing_ok=True)
        temporary = self._at.with_suffix(".new")
        temporary.write_text(point)
        temporary.rename(self._at)

    def struck(self, seconds: float = 0) -> bool:
        """Wait until a process has died. Return False, and let none die any more, if that does not happen in time."""
        deadline = time.monotonic() + seconds
        while not self._done.exists():
            if time.monotonic() >= deadline:
                self._at.unlink(missing_ok=True)
                return self._done.exists()
            time.sleep(0.02)
        return True


def kill_anything(portal: Portal, dice: random.Random) -> None:
    """Kill a worker or the digest process at random."""
    time.sleep(dice.uniform(0, 0.08))
    below = children(portal.process.pid)
    found = [pid for pid in below if "uwsgi.ini" in command(pid) or "quarantine-digest" in command(pid)]
    with suppress(ProcessLookupError, IndexError):
        os.kill(dice.choice(found), signal.SIGKILL)


def wait_for_releases(store: Store) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while store.stats(now()).releases_waiting:
        assert time.monotonic() < deadline, "releases are not done"
        time.sleep(0.1)


def number_of(message_id: bytes | str | None) -> int:
    """Return the number of the mail with this Message-ID."""
    found = re.search(r"(\d+)@example\.net", message_id.decode() if isinstance(message_id, bytes) else message_id or "")
    assert found is not None
    return int(found[1])


def assert_each_has_it_once(store: Store, rspamd: Rspamd, smtp: SmtpServer, points: Sequence[str]) -> int:
    """Assert that each mail is one message, and that each recipient has it in the inbox or in the quarantine, once.

    ``points``: where the portal died, of each mail. A release may arrive twice; return how many did.
    """
    inbox = rspamd.inbox.copy()
    for mail in [*smtp.mails, *smtp.unanswered]:
        header = mail.data.partition(b"\r\n\r\n")[0]
        for recipient in mail.recipients:
            inbox[number_of(header[header.index(b"Message-ID:") :]), recipient] += 1
    seen: list[dict[str, State]] = [{} for _ in points]
    ids: list[set[object]] = [set() for _ in points]
    for delivery in all_deliveries(store):
        number = number_of(delivery.message.message_id)
        seen[number][delivery.recipient] = delivery.state
        ids[number].add(delivery.id)
    twice = 0
    for number, (point, states) in enumerate(zip(points, seen, strict=True)):
        assert len(ids[number]) == 1, f"mail {number} ({point}) is {len(ids[number])} messages"
        copies = inbox[number, ALICE]
        where = f"mail {number} ({point}): {states}, {copies} in the inbox"
        assert (states[BOB], states[CAROL]) == (State.HELD, State.BLOCKED), where
        assert inbox[number, BOB] == inbox[number, CAROL] == 0, where
        assert states[ALICE] in (State.PASSED, State.RELEASED), where
        assert copies == 1 or (copies == 2 and states[ALICE] is State.RELEASED), where
        twice += copies == 2
    return twice


@pytest.mark.parametrize("runs", [0, full(500, seconds=3600)])
def test_each_recipient_of_a_split_delivery_has_it_once(
    serve: Serve,
    store_url: str,
    tmp_path: Path,
    smtp: SmtpServer,
    rspamd: RspamdServer,
    runs: int,
    report: Report,
) -> None:
    """Without ``runs``: each point once."""
    store = open_store(store_url, create=True)
    store.rules.add([rule(SENDER, "allow", scope=ALICE), rule("example.net", "block", scope=CAROL)], now())
    strikes, dice = Strikes(tmp_path), random.Random(9)
    portal = serve(store_url, QUARANTINE_RELAY__URL=smtp.url, QUARANTINE_RSPAMD__URL=rspamd.url, **strikes.environ)
    portal.wait_for_all_workers()
    points = [*AT_THE_POST, *AT_THE_RELEASE]
    if runs:
        # A digest process needs seconds to start again, so it dies less often.
        chosen = [dice.choice([*AT_THE_POST, ANY_MOMENT]) for _ in range(runs * 9 // 10)]
        points = [*points, *chosen, *(dice.choice(AT_THE_RELEASE) for _ in range(runs - len(chosen) - len(points)))]
        dice.shuffle(points)
    client, killed = Rspamd(portal), Counter[str]()
    for number, point in enumerate(points):
        # Sometimes the scanner does not answer, so that the release waits for it.
        at_release = point in AT_THE_RELEASE
        scanner_fails = dice.random() < (0.5 if at_release else 0.03)
        milter = scanner_fails or not at_release
        rspamd.status = 500 if scanner_fails else 200
        if point == ANY_MOMENT:
            killer = threading.Thread(target=kill_anything, args=(portal, dice))
            killer.start()
            client.receive(number, milter=milter)
            killer.join()
            killed[point] += 1
        else:
            strikes.prepare(point)
            client.receive(number, milter=milter)
            rspamd.status = 200
            killed[point] += strikes.struck(30 if at_release else 0.2)
        rspamd.status = 200
        if at_release or scanner_fails:
            wait_for_releases(store)  # so that one kill can repeat one release
    twice = assert_each_has_it_once(store, client, smtp, points)
    report(
        "1 kill -9 at a point of a split delivery",
        f"{len(points)} messages to three people at {len(killed)} points, {killed.total()} kills: "
        + ", ".join(f"{count} × {answer}" for answer, count in sorted(client.answers.items()))
        + f"; {len(smtp.mails)} released by the mail server, {twice} twice",
    )
    assert twice <= killed["before the record"]
    assert not set(points) - {point for point, count in killed.items() if count}, killed
    assert portal.tracebacks() == 0
    store.close()
