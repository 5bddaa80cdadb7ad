"""A failover while digests and releases are sent: what a living process knows is not sent again."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest

from digest import news, run
from portal.assemble import Parts, assemble
from portal.batches.parallel import retry_due
from portal.model.errors import QuarantineError
from portal.model.message import DeliveryId, State
from portal.stores import LEASE
from tests.builders import BY_LINK, hold, now, with_parts
from tests.conftest import MakeSettings
from tests.faults.conftest import Report
from tests.faults.standby import Pair
from tests.faults.test_kills import full
from tests.smtp_server import SmtpServer


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with SmtpServer() as running:
        yield running


@pytest.mark.parametrize("failovers", [1, full(10, seconds=900)])
def test_a_failover_repeats_nothing_of_a_living_process(
    pair: Pair, make_settings: MakeSettings, server: SmtpServer, failovers: int, report: Report
) -> None:
    parts = assemble(make_settings(pair.url, mail__url=server.url, relay__url=server.url), create=True)
    arrived: Counter[str] = Counter()
    try:
        for number in range(failovers):
            if number:
                pair.add_standby()
            server.mails.clear()
            expected = _send_during_a_failover(parts, pair, server, number)
            arrived.update(mail.recipients[0] for mail in server.mails)
            assert Counter(mail.recipients[0] for mail in server.mails) == expected
    finally:
        parts.store.close()
    report(
        "6 failover while mail is sent",
        f"{failovers} × primary killed while digests and releases are sent, standby promoted, claims ended: "
        f"{arrived.total():,} mails, none twice",
        "postgres",
    )


def _send_during_a_failover(parts: Parts, pair: Pair, server: SmtpServer, number: int) -> Counter[str]:
    """Fail over in the middle of 60 digests and 60 releases. Return how many mails each recipient should have."""
    readers, owners = ([f"{kind}{number}-{each}@example.org" for each in range(60)] for kind in ("reader", "owner"))
    at = now()
    for reader in readers:
        hold(parts.store, recipients=[reader], at=at)
    news.schedule_news(parts, at)
    keys = [DeliveryId(hold(parts.store, recipients=[owner], at=at).id, 0) for owner in owners]
    for key in keys:
        parts.actions.queue_release(*key, BY_LINK)
    half = threading.Event()

    def answer_slowly(_line: bytes) -> None:
        time.sleep(0.02)  # so that both are in the middle of it
        if len(server.mails) >= 40:
            half.set()

    server.script["BODY"] = answer_slowly
    digests = threading.Thread(target=_quietly(lambda: run.send_all(parts, at, recipient=readers)))
    releases = threading.Thread(target=_quietly(lambda: retry_due(parts.actions)))
    for thread in (digests, releases):
        thread.start()
    assert half.wait(60)
    pair.fail_over()
    for thread in (digests, releases):
        thread.join()
    server.script.clear()
    later = at + 2 * LEASE
    for _ in range(3):  # connections made earlier fail once each
        with suppress(QuarantineError):
            run.send_all(parts, later, recipient=readers)
    parts = _at(parts, later - now())
    for _ in range(3):
        retry_due(parts.actions)
    assert {parts.store.deliveries.get(key).state for key in keys} == {State.RELEASED}
    return Counter([*readers, *owners])


def _quietly(work: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        with suppress(QuarantineError):
            work()

    return run


def _at(parts: Parts, ahead: timedelta) -> Parts:
    """Return the parts with a clock that is ahead."""
    return with_parts(parts, actions=replace(parts.actions, now=lambda: now() + ahead))
