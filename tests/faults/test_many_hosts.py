"""Three portal hosts on a PostgreSQL that Patroni keeps on three hosts: another host becomes the leader while they hold
mail, send digests and release messages."""

from __future__ import annotations

import email
import re
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import psycopg
import pytest

from portal.assemble import Parts, assemble
from portal.model.message import DeliveryId, Reader, State, Symbol
from portal.stores import LEASE
from tests.builders import ALICE, BY_LINK, hold, now
from tests.conftest import MakeSettings
from tests.faults.cluster import Cluster
from tests.faults.conftest import Report, Serve
from tests.faults.serving import PATIENCE_SECONDS, Posts, Senders, all_deliveries, mail_of, read
from tests.faults.test_kills import in_words
from tests.faults.test_patroni import PAUSE_SECONDS, WAYS, accepted, replace_leader, way_to
from tests.smtp_server import SmtpServer
from tests.system.services import wait_for

pytestmark = [pytest.mark.alone, pytest.mark.timeout(900)]

SYMBOLS = (Symbol("BAYES_SPAM", 5.1, ("99 %",)),)  # without descriptions, which version 0.2.0 cannot read


class Hosts:
    """Several portals, which take posts in turn."""

    def __init__(self, portals: Sequence[Posts]) -> None:
        self._turns = cycle(portals)

    def post(self, number: int) -> tuple[int, dict[str, Any]]:
        return next(self._turns).post(number)


@pytest.mark.system
def test_the_documented_checks_show_a_healthy_cluster(cluster: Cluster) -> None:
    cluster.wait_until_healthy()
    printed = cluster.run_documented("Check the cluster")
    assert printed.count("is healthy") == 3
    assert printed.count("| Leader ") == 1
    assert printed.count("| Sync Standby ") == 2
    with psycopg.connect(cluster.dsn) as connection:
        for setting, value in {
            "wal_keep_size": "4GB",
            "wal_sender_timeout": "5s",
            "statement_timeout": "0",
            "synchronous_commit": "on",
        }.items():
            assert connection.execute(f"show {setting}").fetchone() == (value,)


CASES = [
    pytest.param("kill", "haproxy", 30, marks=pytest.mark.system),
    pytest.param("switchover", "pgbouncer", 30, marks=pytest.mark.system),
    pytest.param("kill", "haproxy", 100, marks=pytest.mark.faults),
    pytest.param("link cut", "pgbouncer", 100, marks=pytest.mark.faults),
    pytest.param("switchover", "haproxy", 100, marks=pytest.mark.faults),
]


@pytest.mark.parametrize(("fault", "third_way", "people"), CASES)
def test_three_hosts_lose_nothing_and_repeat_no_release_and_no_digest(
    cluster: Cluster,
    empty_database: str,
    serve: Serve,
    make_settings: MakeSettings,
    tmp_path: Path,
    fault: str,
    third_way: str,
    people: int,
    report: Report,
) -> None:
    with SmtpServer() as server, way_to(cluster, third_way) as third_url:
        settings = {"mail__url": server.url, "relay__url": server.url}
        parts = assemble(make_settings(empty_database, **settings), create=True)
        environ = {f"QUARANTINE_{name.upper()}": value for name, value in settings.items()}
        environ["QUARANTINE_LINKS__KEYS_FILE"] = f"{tmp_path}/links.keys"
        portals = [serve(url, workers=2, **environ) for url in (empty_database, empty_database, third_url)]
        senders = Senders(Hosts(portals), threads=3)
        server.script["BODY"] = lambda _line: time.sleep(0.5)  # so that the fault falls into the middle of it
        readers, keys = give_work(parts, range(people))
        began = time.monotonic()
        with senders.sending():
            wait_for(lambda: len(server.mails) >= people // 2 and senders.done >= 50, 120)
            old, fault_at = cluster.leader(), time.monotonic()
            repair = replace_leader(cluster, fault)
            try:
                cluster.wait_for_another_leader(old)
                wait_for(partial(accepted, senders, senders.done + 100), PATIENCE_SECONDS)
                pause_seconds = senders.longest_pause(fault_at)
                wait_for(lambda: all_arrived(server, readers, people), 3 * LEASE.total_seconds())
            finally:
                repair()
        wait_for(lambda: states(parts, keys) == {State.RELEASED}, 2 * LEASE.total_seconds())
        digests, releases = sent(server)
        repeated = sum(len(ids) > 1 for ids in digests.values())
        report(
            f"6 Patroni, {fault}, three portal hosts, one by {WAYS[third_way]}",
            f"{senders.done:,} messages: {in_words(senders.answers)}; {people} digests and {people} releases; accepted "
            f"again after {pause_seconds:.1f} s, all sent after {time.monotonic() - began:.0f} s; {repeated} digests "
            f"twice, {sum(number > 1 for number in releases.values())} releases twice",
            "postgres",
        )
        assert pause_seconds <= PAUSE_SECONDS, cluster.details()
        assert [portal.tracebacks() for portal in portals] == [0, 0, 0]
        assert [portal.request("GET", "/quarantine/healthz")[0] for portal in portals] == [200, 200, 200]
        assert set(digests) == set(readers)
        assert all(len(set(ids)) == 1 for ids in digests.values())
        assert set(releases) == {(f"owner{number}@example.org", str(number)) for number in range(people)}
        # The processes live: none repeats what the mail server accepted.
        assert repeated == 0 and set(releases.values()) == {1}
        held = Counter(delivery.id for delivery in all_deliveries(parts.store) if delivery.recipient == ALICE)
        assert held == Counter(senders.acknowledged.values())
        for number, id in senders.acknowledged.items():
            assert read(parts.store, id) == mail_of(number)
        parts.store.close()
    cluster.wait_until_healthy()


def give_work(parts: Parts, numbers: Collection[int]) -> tuple[list[str], list[DeliveryId]]:
    """Request a digest for each reader, and queue a release for each owner."""
    readers = [f"reader{number}@example.org" for number in numbers]
    for reader in readers:
        hold(parts.store, recipients=[reader], symbols=SYMBOLS)
        parts.store.digests.request(Reader(reader), now(), now())
    keys = []
    for number in numbers:
        mail = f"Subject: release {number}\r\nMessage-ID: <r{number}@example.net>\r\n\r\nHello\r\n".encode()
        held = hold(parts.store, mail, [f"owner{number}@example.org"], announce=[], symbols=SYMBOLS)
        keys.append(DeliveryId(held.id, 0))
        parts.actions.queue_release(*keys[-1], BY_LINK)
    return readers, keys


def sent(server: SmtpServer) -> tuple[dict[str, list[str]], Counter[tuple[str, str]]]:
    """Return the Message-IDs of the digests of each reader, and the number of mails of each owner and release."""
    digests, releases = defaultdict(list), Counter[tuple[str, str]]()
    for mail in list(server.mails):
        message = email.message_from_bytes(mail.data)
        if found := re.fullmatch(r"release (\d+)", str(message["Subject"])):
            releases[mail.recipients[0], found[1]] += 1
        elif mail.recipients[0].startswith("reader"):
            digests[mail.recipients[0]].append(str(message["Message-ID"]))
    return digests, releases


def all_arrived(server: SmtpServer, readers: Collection[str], people: int) -> bool:
    digests, releases = sent(server)
    return len(digests) == len(readers) and len(releases) == people


def states(parts: Parts, keys: list[DeliveryId]) -> set[State]:
    return {parts.store.deliveries.get(key).state for key in keys}
