"""Three portal hosts on a PostgreSQL that Patroni keeps on three hosts: the leader is killed while all of them hold
mail, send digests and release messages."""

from __future__ import annotations

import email
import re
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from portal.assemble import Parts, assemble
from portal.model.message import DeliveryId, Reader, State, Symbol
from portal.stores import LEASE
from tests.builders import BY_LINK, hold, now
from tests.conftest import MakeSettings
from tests.faults.cluster import TTL_SECONDS, Cluster
from tests.faults.conftest import Report, Serve
from tests.faults.serving import Posts, Senders, mail_of, read
from tests.faults.test_kills import full
from tests.smtp_server import SmtpServer
from tests.system.services import wait_for

SYMBOLS = (Symbol("BAYES_SPAM", 5.1, ("99 %",)),)  # without descriptions, which version 0.2.0 cannot read


class Hosts:
    """Several portals, which take posts in turn."""

    def __init__(self, portals: Sequence[Posts]) -> None:
        self._turns = cycle(portals)

    def post(self, number: int) -> tuple[int, dict[str, Any]]:
        return next(self._turns).post(number)


@pytest.mark.parametrize("people", [full(100, seconds=900)])
def test_three_hosts_repeat_no_release_and_a_digest_only_as_it_was(
    cluster: Cluster,
    empty_database: str,
    serve: Serve,
    make_settings: MakeSettings,
    tmp_path: Path,
    people: int,
    report: Report,
) -> None:
    with SmtpServer() as server, cluster.haproxy() as by_haproxy:
        settings = {"mail__url": server.url, "relay__url": server.url}
        parts = assemble(make_settings(empty_database, **settings), create=True)
        environ = {f"QUARANTINE_{name.upper()}": value for name, value in settings.items()}
        environ["QUARANTINE_LINKS__KEYS_FILE"] = f"{tmp_path}/links.keys"
        portals = [serve(url, workers=2, **environ) for url in (empty_database, by_haproxy, empty_database)]
        senders = Senders(Hosts(portals), threads=3)
        server.script["BODY"] = lambda _line: time.sleep(0.2)  # so that the kill falls into the middle of it
        readers, keys = give_work(parts, range(people))
        began = time.monotonic()
        with senders.sending():
            wait_for(lambda: len(server.mails) >= people // 2, 120)
            killed = cluster.leader()
            killed_at = time.monotonic()
            killed.kill_database()
            try:
                cluster.wait_for_another_leader(killed)
                wait_for(lambda: senders.accepted_at and senders.accepted_at[-1] > killed_at + TTL_SECONDS, 60)
                pause_seconds = senders.longest_pause(killed_at)
                wait_for(lambda: all_arrived(server, readers, people), 3 * LEASE.total_seconds())
            finally:
                killed.start_patroni()
        wait_for(lambda: not states(parts, keys) - {State.RELEASED}, 2 * LEASE.total_seconds())
        digests, releases = sent(server)
        repeated = sum(len(ids) > 1 for ids in digests.values())
        report(
            "6 Patroni, leader killed under three portal hosts",
            f"{senders.done:,} messages, {people} digests and {people} releases: accepted again after "
            f"{pause_seconds:.1f} s, all sent after {time.monotonic() - began:.0f} s; {repeated} digests twice, "
            f"{sum(number > 1 for number in releases.values())} releases twice",
            "postgres",
        )
        assert pause_seconds <= TTL_SECONDS + 5
        assert [portal.tracebacks() for portal in portals] == [0, 0, 0]
        assert set(digests) == set(readers)
        assert all(len(set(ids)) == 1 for ids in digests.values())
        assert set(releases) == {(f"owner{number}@example.org", str(number)) for number in range(people)}
        # The processes live: none repeats what the mail server accepted.
        assert repeated == 0 and set(releases.values()) == {1}
        for number, id in senders.acknowledged.items():
            assert read(parts.store, id) == mail_of(number)
        parts.store.close()


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
