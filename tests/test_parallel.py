"""Several releases at once, on both stores and real SMTP servers: how many run, in which order, over how many
connections, and what is begun after a stop signal."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from portal.actions import Actions
from portal.assemble import Parts
from portal.batches.parallel import AT_ONCE, in_parallel, retry_due
from portal.mail.relay import Relay
from portal.model.clock import utc_now
from portal.model.errors import RelayRefused
from portal.model.message import Delivery, DeliveryId, State
from portal.stores import LEASE, Store
from tests.builders import BY_LINK, hold
from tests.paths import ROOT
from tests.smtp_server import DROP, SmtpServer

SECONDS = 60.0  # until a test that waits for something fails


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def actions(make_parts: Callable[..., Parts], smtp: SmtpServer) -> Actions:
    return make_parts(relay__url=smtp.url).actions


def address(number: int) -> str:
    return f"person{number}@example.org"


def held(actions: Actions, count: int) -> list[DeliveryId]:
    """Hold this many messages, each for another recipient."""
    return [DeliveryId(hold(actions.store, recipients=[address(n)]).id, 0) for n in range(count)]


def queued(actions: Actions, count: int) -> list[DeliveryId]:
    keys = held(actions, count)
    for key in keys:
        actions.queue_release(*key, BY_LINK)
    return keys


def release(actions: Actions, key: DeliveryId) -> Delivery:
    return actions.release(*key, BY_LINK)


def states(store: Store, keys: list[DeliveryId]) -> list[State]:
    return [store.deliveries.get(key).state for key in keys]


def arrived(smtp: SmtpServer) -> list[str]:
    return sorted(recipient for mail in smtp.mails for recipient in mail.recipients)


def wait_for(condition: Callable[[], bool]) -> None:
    paused = threading.Event()
    for _ in range(int(SECONDS / 0.02)):
        if condition():
            return
        paused.wait(0.02)
    raise AssertionError("it did not happen")


@pytest.mark.parametrize("at_once", [1, 3])
def test_as_many_run_at_once_as_allowed_over_as_many_connections(
    actions: Actions, smtp: SmtpServer, at_once: int
) -> None:
    together, lock, running, most = threading.Barrier(at_once), threading.Lock(), 0, 0

    def body(_: bytes) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(SECONDS)
        with lock:
            running -= 1

    smtp.script["BODY"] = body
    keys = held(actions, 4 * at_once)
    outcomes = list(in_parallel(actions, release, keys, at_once))
    assert [key for key, _ in outcomes] == keys
    assert [delivery.key for _, delivery in outcomes if isinstance(delivery, Delivery)] == keys
    assert most == smtp.connections == at_once
    assert states(actions.store, keys) == [State.RELEASED] * len(keys)
    assert arrived(smtp) == sorted(map(address, range(len(keys))))
    assert smtp.verbs.count("QUIT") == at_once
    assert not smtp.violations


def test_outcomes_keep_the_order_of_the_items(actions: Actions, smtp: SmtpServer) -> None:
    keys = held(actions, 6)

    def others_first(line: bytes) -> None:
        if line == address(0).encode():
            wait_for(lambda: len(smtp.mails) == len(keys) - 1)

    smtp.script["BODY"] = others_first
    assert [key for key, _ in in_parallel(actions, release, keys, 3)] == keys
    assert smtp.mails[-1].recipients == [address(0)]


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_refused_recipient_in_the_middle_leaves_the_others(actions: Actions, smtp: SmtpServer, at_once: int) -> None:
    smtp.script["RCPT"] = lambda line: "550 5.1.1 no such user" if address(5).encode() in line else None
    keys = held(actions, 10)
    outcomes = [outcome for _, outcome in in_parallel(actions, release, keys, at_once)]
    assert [number for number, outcome in enumerate(outcomes) if isinstance(outcome, RelayRefused)] == [5]
    assert states(actions.store, keys) == [State.RELEASED] * 5 + [State.HELD] + [State.RELEASED] * 4
    assert smtp.connections <= at_once  # fewer if a thread begins so late that nothing is left
    if at_once == 1:
        assert smtp.verbs.count("RSET") == 1, "the refused transaction is ended, not the connection"
    assert arrived(smtp) == sorted(map(address, {*range(10)} - {5}))
    assert not smtp.violations


def test_a_server_that_drops_the_connection_after_each_message(actions: Actions, smtp: SmtpServer) -> None:
    keys = held(actions, 5)
    for _ in in_parallel(actions, release, keys, 1):
        smtp.drop_connections()
    assert states(actions.store, keys) == [State.RELEASED] * len(keys)
    assert smtp.connections == len(keys)
    assert arrived(smtp) == sorted(map(address, range(len(keys))))


def test_each_connection_logs_in_once(make_parts: Callable[..., Parts]) -> None:
    with SmtpServer(users={"portal": "secret"}) as server:
        actions = make_parts(relay__url=server.url.replace("//", "//portal:secret@")).actions
        keys = held(actions, 6)
        list(in_parallel(actions, release, keys, 2))
        assert states(actions.store, keys) == [State.RELEASED] * len(keys)
        assert server.connections <= 2
        assert server.verbs.count("EHLO") == server.verbs.count("AUTH") == server.connections
        assert server.verbs.count("MAIL") == len(keys)


@pytest.mark.parametrize("reply", ["421 4.3.2 shutting down", DROP])
def test_a_server_that_ends_a_reused_connection_gets_a_new_one(actions: Actions, smtp: SmtpServer, reply: str) -> None:
    smtp.script["MAIL"] = [None, reply, None, None, reply, None]
    keys = held(actions, 4)
    assert len(list(in_parallel(actions, release, keys, 1))) == len(keys)
    assert states(actions.store, keys) == [State.RELEASED] * len(keys)
    assert smtp.connections == 3
    assert arrived(smtp) == sorted(map(address, range(len(keys))))


def test_a_server_that_says_421_after_each_message(actions: Actions, smtp: SmtpServer) -> None:
    smtp.script["BODY"] = "250 2.0.0 queued\r\n421 4.7.0 one message a connection\r\n"
    keys = held(actions, 8)
    list(in_parallel(actions, release, keys, 4))
    assert states(actions.store, keys) == [State.RELEASED] * len(keys)
    assert smtp.connections == len(keys)
    assert arrived(smtp) == sorted(map(address, range(len(keys))))


def test_a_server_that_accepts_no_connection_defers_all(actions: Actions, smtp: SmtpServer) -> None:
    smtp.script["BANNER"] = "421 4.7.0 too many connections"
    keys = held(actions, 6)
    list(in_parallel(actions, release, keys, 3))
    deliveries = [actions.store.deliveries.get(key) for key in keys]
    assert {(each.state, each.attempts) for each in deliveries} == {(State.RELEASING, 1)}
    assert smtp.connections == len(keys), "one try each"


def test_nothing_is_begun_after_a_stop_signal(actions: Actions, smtp: SmtpServer) -> None:
    keys, stop, gate = queued(actions, 3 * AT_ONCE), threading.Event(), threading.Event()

    def hang(_: bytes) -> None:
        gate.wait()

    smtp.script["BANNER"] = hang
    patient = replace(actions, relay=Relay(smtp.url, reply_seconds=300, total_seconds=300))
    with ThreadPoolExecutor(1) as pool:
        try:
            tried = pool.submit(retry_due, patient, stopped=stop.is_set)
            wait_for(lambda: smtp.connections == AT_ONCE)
            stop.set()
        finally:
            gate.set()
        assert tried.result() == AT_ONCE
    assert smtp.connections == AT_ONCE
    deliveries = [actions.store.deliveries.get(key) for key in keys]
    assert [each.state for each in deliveries].count(State.RELEASED) == AT_ONCE
    assert [each.attempts for each in deliveries].count(0) == 2 * AT_ONCE, "the others can be claimed at once"
    assert retry_due(actions, stopped=stop.is_set) == 0


def test_a_caller_that_stops_waits_for_what_was_begun(actions: Actions, smtp: SmtpServer) -> None:
    keys = held(actions, 50)
    outcomes = in_parallel(actions, release, keys, 2)
    next(outcomes)
    outcomes.close()
    released = states(actions.store, keys).count(State.RELEASED)
    assert len(smtp.mails) == released < len(keys)
    assert states(actions.store, keys).count(State.HELD) == len(keys) - released


def test_all_due_releases_are_tried_in_one_call(actions: Actions, smtp: SmtpServer) -> None:
    keys = queued(actions, 7)
    assert retry_due(actions, 3) == len(keys)
    assert states(actions.store, keys) == [State.RELEASED] * len(keys)
    assert retry_due(actions, 3) == 0


@pytest.mark.slow
def test_a_killed_process_repeats_only_what_it_was_sending(
    actions: Actions, smtp: SmtpServer, store_url: str, tmp_path: Path
) -> None:
    keys = queued(actions, 10 * AT_ONCE)
    settings = {
        "QUARANTINE_CONFIG": os.devnull,
        "QUARANTINE_STORE__URL": store_url,
        "QUARANTINE_RELAY__URL": smtp.url,
        "QUARANTINE_LINKS__KEYS_FILE": str(tmp_path / "links.keys"),
    }
    retry = (
        "from portal import assemble, settings; from portal.batches import parallel; "
        "parallel.retry_due(assemble.assemble(settings.load()).actions)"
    )
    with subprocess.Popen([sys.executable, "-c", retry], cwd=ROOT, env=os.environ | settings) as process:
        try:
            wait_for(lambda: len(smtp.mails) >= 4 * AT_ONCE)
        finally:
            process.kill()
    assert State.RELEASING in states(actions.store, keys), "it was killed too late"
    retry_due(replace(actions, now=lambda: utc_now() + 2 * LEASE))
    assert states(actions.store, keys) == [State.RELEASED] * len(keys)
    received = Counter(arrived(smtp))
    assert set(received) == set(map(address, range(len(keys))))
    assert set(received.values()) <= {1, 2}
    assert list(received.values()).count(2) <= AT_ONCE
    assert all(len(mail.recipients) == 1 for mail in smtp.mails + smtp.unanswered)


def test_a_call_in_which_nothing_is_released_ends(actions: Actions, smtp: SmtpServer) -> None:
    queued(actions, 7)
    smtp.script["RCPT"] = "450 4.2.0 busy"
    assert [retry_due(actions, 3) for _ in range(4)] == [3, 3, 1, 0]


@pytest.mark.parametrize("threads", [0, 2])
def test_fewer_threads_than_wanted_release_all(
    actions: Actions, smtp: SmtpServer, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    started = 0

    class Refused(threading.Thread):
        def start(self) -> None:
            nonlocal started
            if started == threads:
                raise RuntimeError("can't start new thread")
            started += 1
            super().start()

    keys = held(actions, 6)
    some: Any = SimpleNamespace(Thread=Refused, Event=threading.Event)
    monkeypatch.setattr("portal.batches.parallel.threading", some)
    assert [key for key, _ in in_parallel(actions, release, keys, 4)] == keys
    assert states(actions.store, keys) == [State.RELEASED] * len(keys)
    assert 1 <= smtp.connections <= max(1, threads)
