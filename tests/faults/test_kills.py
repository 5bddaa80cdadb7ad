"""kill -9 of workers and databases, restarts, and many senders at once: mail that was answered 200 is held, once.

The numbers in the reports are those of the list of promises in docs/reliability.md.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from uuid import UUID

import pytest

from portal.stores import open_store
from tests.faults.conftest import Report, Serve
from tests.faults.serving import META, OwnPostgres, Portal, Senders, all_deliveries, assert_whole, mail_of, read

BACK_SECONDS = 10  # to serve again after PostgreSQL accepts connections


def full(*values: object, seconds: int, alone: bool = False) -> object:
    """Return the values of a long form, which may take this time. ``alone``: it runs beside no other test."""
    marks = [pytest.mark.faults, pytest.mark.timeout(seconds), *([pytest.mark.alone] if alone else [])]
    return pytest.param(*values, marks=marks)


def in_words(answers: Counter[str]) -> str:
    return ", ".join(f"{number:,} × {answer}" for answer, number in sorted(answers.items()))


@pytest.mark.parametrize("posts", [300, full(10_000, seconds=600)])
def test_killed_workers_lose_nothing_and_duplicate_nothing(
    serve: Serve, store_url: str, posts: int, report: Report
) -> None:
    portal = serve(store_url)
    senders, source, kills = Senders(portal), random.Random(1), 0
    with senders.sending(posts):
        while senders.done < posts and not senders.failure:
            time.sleep(source.uniform(0.3, 1.5))
            workers = portal.workers()
            if workers:
                with suppress(ProcessLookupError):
                    os.kill(source.choice(workers), signal.SIGKILL)
                    kills += 1
    report("1 kill -9 of a uWSGI worker at random", f"{posts:,} messages, {kills} kills: {in_words(senders.answers)}")
    assert kills
    assert portal.tracebacks() == 0
    assert_whole(store_url, senders.acknowledged)


@pytest.mark.parametrize("kills", [3, full(200, seconds=900)])
def test_a_killed_postgresql_loses_nothing_and_the_portal_serves_again(
    serve: Serve, own_postgres: OwnPostgres, kills: int, report: Report
) -> None:
    portal = serve(own_postgres.url)
    senders, source = Senders(portal, threads=4), random.Random(2)
    slowest_seconds = 0.0
    with senders.sending():
        for kill in range(kills):
            time.sleep(source.uniform(0.05, 0.4))
            own_postgres.kill(source, postmaster=kill % 4 == 2)
            own_postgres.start()
            back_at, before = time.monotonic(), senders.done
            while senders.done == before and not senders.failure:
                time.sleep(0.01)
            slowest_seconds = max(slowest_seconds, time.monotonic() - back_at)
            if senders.failure:
                break
    report(
        "2 kill -9 of PostgreSQL",
        f"{kills} kills ({len(range(2, kills, 4))} of the postmaster), {senders.done:,} messages: "
        f"{in_words(senders.answers)}; serving again after at most {slowest_seconds:.1f} s",
        "postgres",
    )
    assert slowest_seconds <= BACK_SECONDS
    assert_whole(own_postgres.url, senders.acknowledged)


def test_workers_that_start_while_postgresql_is_down_serve_once_it_is_up(
    serve: Serve, own_postgres: OwnPostgres
) -> None:
    portal = serve(own_postgres.url)
    own_postgres.kill(random.Random(7), postmaster=True)
    for worker in portal.workers():
        os.kill(worker, signal.SIGKILL)
    refused = 0
    while refused < 8:  # by every worker
        with suppress(OSError, http.client.HTTPException):
            status, body = portal.request("POST", "/quarantine/", mail_of(refused), META)
            assert status == 503, body
            refused += 1
    assert portal.request("GET", "/quarantine/healthz")[0] == 503
    own_postgres.start()
    senders = Senders(portal)
    with senders.sending(50):
        pass
    assert_whole(own_postgres.url, senders.acknowledged)


@pytest.mark.parametrize(("terminations", "restarts"), [(1, 1), full(50, 10, seconds=600)])
def test_lost_connections_cost_one_request_each_at_most(
    serve: Serve, own_postgres: OwnPostgres, terminations: int, restarts: int, report: Report
) -> None:
    portal = serve(own_postgres.url)
    portal.wait_for_all_workers()
    numbers = iter(range(1_000_000))
    acknowledged: dict[int, UUID] = {}
    unanswered: list[int] = []
    connections = 0

    def post() -> None:
        number = next(numbers)
        status, body = portal.post(number)
        if status == 200:
            acknowledged[number] = UUID(body["id"])
        else:
            assert status == 503
            unanswered.append(number)

    def post_some(times: int) -> None:
        for _ in range(times):
            post()

    def post_many(times: int) -> None:
        threads = [threading.Thread(target=post_some, args=(times,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    for n in range(terminations + restarts):
        post_many(4)
        lost = own_postgres.terminate_sessions()
        if n >= terminations:
            own_postgres.restart()
        failed = len(unanswered)
        post_many(8)
        assert len(unanswered) - failed <= lost
        connections += lost
        for _ in range(4):
            failed = len(unanswered)
            post()
            assert len(unanswered) == failed
    report(
        "6 pg_terminate_backend, PostgreSQL restarted",
        f"{terminations} × all connections ended, {restarts} restarts: {connections} connections lost, "
        f"{len(unanswered)} of {len(acknowledged) + len(unanswered):,} requests failed",
        "postgres",
    )
    assert_whole(own_postgres.url, acknowledged, maybe=len(unanswered))


def post_and_hang_up(portal: Portal, data: bytes) -> None:
    """Post without waiting for the reply, as Rspamd does after its time-out."""
    lines = [f"POST /quarantine/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in META.items()]
    with socket.create_connection(("127.0.0.1", portal.port)) as connection:
        connection.sendall("".join([*lines, "\r\n"]).encode() + data)


@pytest.mark.parametrize("rounds", [2, full(20, seconds=600)])
def test_the_same_mail_a_hundred_times_at_once_and_after_lost_answers_is_one_message(
    serve: Serve, store_url: str, rounds: int, report: Report
) -> None:
    portal = serve(store_url)
    answers: Counter[str] = Counter()
    acknowledged: dict[int, UUID] = {}
    for number in range(rounds):
        together = threading.Barrier(100)
        ids: set[str] = set()

        def post(number: int = number, together: threading.Barrier = together, ids: set[str] = ids) -> None:
            together.wait()
            while True:
                with suppress(OSError, http.client.HTTPException):
                    status, body = portal.request("POST", "/quarantine/", mail_of(number), META)
                    if status == 200:
                        reply = json.loads(body)
                        answers[reply["status"]] += 1
                        ids.add(reply["id"])
                        return
                    assert status == 503
                answers["tried again"] += 1

        threads = [threading.Thread(target=post) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (id,) = ids
        post_and_hang_up(portal, mail_of(number))
        assert portal.post(number) == (200, {"status": "known", "id": id})
        acknowledged[number] = UUID(id)
        # A new mail whose first reply was lost.
        post_and_hang_up(portal, mail_of(-1 - number))
        status, body = portal.post(-1 - number)
        assert status == 200
        acknowledged[-1 - number] = UUID(body["id"])
    report("8 the same message 100 times at once", f"{rounds} messages: {in_words(answers)}; and after lost replies")
    assert answers["held"] + answers["known"] == 100 * rounds
    assert answers["held"] <= rounds
    time.sleep(1)  # posts without a waiting client may still be processed
    assert_whole(store_url, acknowledged)


def test_the_checks_notice_lost_and_duplicated_mail(store_url: str) -> None:
    """The checks of this folder notice a lost and a duplicated mail."""
    from tests.builders import hold

    store = open_store(store_url)
    first, second = hold(store, mail_of(1)), hold(store, mail_of(2))
    both = {1: first.id, 2: second.id}
    assert_whole(store_url, both)
    assert len(list(all_deliveries(store))) == 4 and read(store, first.id) == mail_of(1)
    store.close()
    with pytest.raises(AssertionError, match="never acknowledged"):
        assert_whole(store_url, {1: first.id})
    with pytest.raises(AssertionError, match="has changed"):
        assert_whole(store_url, {3: first.id, 2: second.id})
    with pytest.raises(AssertionError, match="are gone"):
        assert_whole(store_url, {**both, 3: UUID(int=7 << 76)})
