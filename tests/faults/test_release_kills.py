"""kill -9 at each step of a release (11): the message arrives, twice only if its final dot may have been sent.

The short form of `test_a_release_killed_at_any_step_arrives` runs with the system tests. tests/test_actions.py kills a
process at three verbs.
"""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta

import pytest

from portal.model.message import DeliveryId, EventKind, State
from portal.stores import LEASE
from tests.builders import ALICE, BY_LINK, hold, mail, now
from tests.conftest import MakeParts
from tests.envelopes import canonical
from tests.faults.conftest import Report
from tests.faults.killing import Killer
from tests.faults.test_kills import full
from tests.faults.victim import JOBS, Point
from tests.smtp_server import SmtpServer

# Where it happens, and whether the whole message may have been sent by then.
STEPS = {
    "before the claim": ("before claim", False),
    "in the claim's transaction": ("in claim", False),
    "in the claim's commit": ("commit of claim", False),
    "after the claim": ("after claim", False),
    "when connected": ("BANNER", False),
    "after EHLO": ("EHLO", False),
    "after MAIL": ("MAIL", False),
    "after RCPT": ("RCPT", False),
    "after DATA": ("DATA", False),
    "at the start of the message": ("INPUT", True),
    "after half of the message": ("half of a mail", False),
    "after the final dot was sent": ("final dot", True),
    "after the final dot was received": ("BODY", True),
    "after the reply": ("before record", True),
    "in the record's transaction": ("in record", True),
    "in the record's commit": ("commit of record", True),
    "after the record": ("after record", False),
    "at the end of the connection": ("QUIT", True),  # for the request of a recipient before the record
    "at any moment": ("any moment", True),
}
POINTS = [
    Point(f"{who}: {name}", (job,), where, repeats)
    for who, job in (("a request", "press"), ("the digest process", "releases"))
    for name, (where, repeats) in STEPS.items()
]


@pytest.mark.parametrize(
    "runs", [pytest.param(len(POINTS), marks=pytest.mark.timeout(300)), full(1_000, seconds=3_600)]
)
def test_a_release_killed_at_any_step_arrives(
    make_parts: MakeParts, server: SmtpServer, kill_at: Killer, runs: int, report: Report
) -> None:
    parts, dice, at = make_parts(relay__url=server.url), random.Random(11), now()
    kills, again = Counter[str](), Counter[str]()
    for number in range(runs):
        point = POINTS[number % len(POINTS)]
        where = f"{point.name}, run {number}"
        data = mail(size_bytes=1 << 18 if number % 5 == 0 else 0)
        key = DeliveryId(hold(parts.store, data, recipients=[ALICE]).id, 0)
        if point.jobs == ("releases",):
            parts.actions.queue_release(*key, BY_LINK)
        kills[point.name] += kill_at(point, at, 1, dice)
        assert parts.store.deliveries.get(key).state in (State.HELD, State.RELEASING, State.RELEASED), where
        # The lease ends after a minute and a half. Then another process continues without any repair.
        at += LEASE + timedelta(seconds=1)
        JOBS["releases"](parts, at)
        if parts.store.deliveries.get(key).state is State.HELD:
            JOBS["press"](parts, at)
        assert parts.store.deliveries.get(key).state is State.RELEASED, where
        assert [event.kind for event in parts.store.deliveries.history(key)].count(EventKind.RELEASED) == 1, where
        assert {tuple(each.recipients) for each in server.mails} == {(ALICE,)}, where
        assert all(each.data.endswith(canonical(data)) for each in server.mails), where
        assert not server.unanswered, where
        repeated = len(server.mails) - 1
        assert 0 <= repeated <= point.repeats, where
        again[point.name] += repeated
        server.mails.clear()
    report(
        "11 kill -9 at a step of a release",
        f"{runs:,} releases at {len(POINTS)} points, {kills.total():,} kills: all arrived, {again.total()} of them "
        f"twice: {', '.join(f'{count} {name}' for name, count in again.items() if count)}",
    )
    spared = {name for name in kills if not kills[name]}
    assert spared <= {point.name for point in POINTS if point.where == "any moment"}, "a point was never reached"
