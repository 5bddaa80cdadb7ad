"""The connection to PostgreSQL is lost: a failover to a standby, or a network that drops all packets."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.faults.conftest import Report, Serve
from tests.faults.gate import Gate
from tests.faults.serving import BIN, OwnPostgres, Senders, assert_whole
from tests.faults.standby import Pair
from tests.faults.test_kills import full, in_words


@pytest.mark.parametrize("failovers", [1, full(10, seconds=600)])
def test_a_failover_to_a_synchronous_standby_costs_one_request_a_connection_at_most(
    serve: Serve, pair: Pair, failovers: int, report: Report
) -> None:
    portal = serve(pair.url)
    portal.wait_for_all_workers()
    senders, connections, failed, slowest_seconds = Senders(portal), 0, 0, 0.0
    workers = portal.workers()
    with senders.sending():
        for number in range(failovers):
            if number:
                pair.add_standby()
            wait_for(senders, 100)
            lost = pair.connections()
            pair.fail_over()
            promoted_at = time.monotonic()
            wait_for(senders, 1)
            slowest_seconds = max(slowest_seconds, time.monotonic() - promoted_at)
            wait_for(senders, 200)
            after = sum(at > promoted_at for at in list(senders.failed_at))
            assert after <= lost, f"{after} requests failed after the promotion, {lost} connections were lost"
            connections += lost
            failed += after
    report(
        "6 failover to a synchronous standby",
        f"{failovers} × primary killed and standby promoted, {senders.done:,} messages: {in_words(senders.answers)}; "
        f"{connections} connections lost, {failed} requests failed after a promotion; serving again after at most "
        f"{slowest_seconds:.1f} s",
        "postgres",
    )
    assert connections  # one quick promotion may cost no request at all
    assert failovers == 1 or senders.answers["503"] + senders.answers["broken"]
    assert portal.workers() == workers
    assert portal.tracebacks() == 0
    assert_whole(pair.url, senders.acknowledged)


def wait_for(senders: Senders, mails: int) -> None:
    """Return when this many more mails were accepted."""
    until = senders.done + mails
    while senders.done < until and not senders.failure:
        time.sleep(0.005)


@pytest.fixture
def gate(own_postgres: OwnPostgres) -> Iterator[Gate]:
    info = conninfo_to_dict(own_postgres.url)
    opened = Gate(socket.AF_UNIX, f"{info['host']}/.s.PGSQL.{info.get('port') or 5432}")
    yield opened
    opened.close()


FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def sessions(postgres: OwnPostgres) -> int:
    """Return the number of the portal's connections."""
    with psycopg.connect(postgres.url) as connection:
        return connection.execute("select from pg_stat_activity where application_name = 'quarantine'").rowcount


def together(calls: Sequence[Callable[[], int]]) -> list[tuple[int, float]]:
    """Start all calls at once and return the result of each and its seconds."""

    def timed(call: Callable[[], int]) -> tuple[int, float]:
        began = time.monotonic()
        return call(), time.monotonic() - began

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(timed, calls))


def through(gate: Gate) -> str:
    return f"postgresql://postgres@127.0.0.1:{gate.port}/postgres"


HARAKIRI_SECONDS = 60  # from uwsgi.ini; a worker that waits this long is killed with all its requests


@pytest.mark.parametrize("cuts", [1, full(10, seconds=900)])
def test_a_network_that_drops_all_packets_blocks_no_worker(
    serve: Serve, own_postgres: OwnPostgres, gate: Gate, cuts: int, report: Report
) -> None:
    portal = serve(through(gate))
    portal.wait_for_all_workers()
    workers, senders, numbers = portal.workers(), Senders(portal), iter(range(2_000_001, 3_000_000))
    connections = failed = 0
    slowest_seconds = health_seconds = 0.0
    waited: Counter[str] = Counter()

    def posted(number: int) -> int:
        return portal.post(number)[0]

    for cut in range(cuts):
        with senders.sending():  # every worker has connections
            wait_for(senders, 100)
        before = sessions(own_postgres)
        gate.open.clear()
        time.sleep(5.5)  # each worker reads the values of domains again
        # First requests with several statements: mails that are stored in several statements, and pages.
        large = [1_000_050 + 1000 * cut + 100 * n for n in range(4)]
        answers = together(
            [partial(posted, number) for number in large]
            + [lambda: portal.request("GET", "/quarantine/healthz")[0]] * 4
            + [lambda: portal.request("POST", "/quarantine/sign-in", b"address=alice@example.org", FORM)[0]] * 4
        )
        answers += together([partial(posted, next(numbers)) for _ in range(16)])
        for status, seconds in answers:
            waited[str(status)] += 1
            slowest_seconds = max(slowest_seconds, seconds)
        health_seconds = max(health_seconds, *(seconds for _, seconds in answers[4:8]))
        gate.open.set()
        healed_at = time.monotonic()
        with senders.sending():
            wait_for(senders, 200)
        after = sum(at > healed_at for at in senders.failed_at)
        connections += before
        failed += after
        assert after <= before
    report(
        "6 network cut, packets dropped",
        f"{cuts} × cut: {in_words(waited)} answered after at most {slowest_seconds:.1f} s, health checks after "
        f"{health_seconds:.1f} s; {connections} connections hung, {failed} requests failed after it was restored",
        "postgres",
    )
    assert set(waited) == {"503"}
    assert slowest_seconds < HARAKIRI_SECONDS / 3
    assert health_seconds < 8  # a time limit of the values of domains, and one of its own
    assert portal.workers() == workers
    assert portal.tracebacks() == 0
    assert_whole(own_postgres.url, senders.acknowledged, maybe=waited["503"])


def test_a_read_only_server_is_reported_with_what_to_do(pair: Pair, tmp_path: Path) -> None:
    alone = f"postgresql://postgres@127.0.0.1:{pair.standby.port}/postgres"
    for url in (alone, f"{alone}?target_session_attrs=read-write"):
        for command in (["check"], ["init"], ["list"]):
            output = quarantine(tmp_path, url, *command)
            assert "takes no writes" in output and "target_session_attrs=read-write" in output, (url, command, output)
    pair.primary.kill()  # and the standby is not promoted yet
    assert "promote one" in quarantine(tmp_path, pair.url, "check")


def quarantine(folder: Path, store_url: str, *words: str) -> str:
    """Return the output of a command for operators, which must refuse the store."""
    (folder / "quarantine.toml").touch()
    done = subprocess.run(
        [str(BIN / "quarantine"), *words],
        env={
            **os.environ,
            "QUARANTINE_CONFIG": str(folder / "quarantine.toml"),
            "QUARANTINE_STORE__URL": store_url,
            "QUARANTINE_LINKS__KEYS_FILE": str(folder / "links.keys"),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr
