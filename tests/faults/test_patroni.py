"""Faults of a PostgreSQL that Patroni keeps on three hosts, set up as docs/many-hosts.md says: nothing that was
answered 200 is lost, and mail is accepted again soon after Patroni's ttl."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from tests.faults.cluster import TTL_SECONDS, Cluster
from tests.faults.conftest import Report, Serve
from tests.faults.serving import PATIENCE_SECONDS, Senders, assert_whole
from tests.faults.test_kills import in_words
from tests.system.services import wait_for

pytestmark = [pytest.mark.faults, pytest.mark.alone, pytest.mark.timeout(900)]

PAUSE_SECONDS = TTL_SECONDS + 5
STANDBY_SECONDS = 10
WAYS = {"hosts": "all hosts in the URL", "haproxy": "HAProxy", "pgbouncer": "PgBouncer"}


@contextmanager
def way_to(cluster: Cluster, way: str) -> Iterator[str]:
    """Yield the URL of the database that way: by all hosts' names, HAProxy, or PgBouncer before HAProxy."""
    if way == "haproxy":
        with cluster.haproxy() as url:
            yield url
    elif way == "pgbouncer":
        with cluster.pgbouncer() as url:
            yield url
    else:
        yield cluster.dsn


def replace_leader(cluster: Cluster, fault: str) -> Callable[[], None]:
    """Make another host the leader. Return what repairs the old one."""
    old = cluster.leader()
    if fault == "switchover":
        cluster.run_documented("A planned switchover")
        return lambda: None
    if fault == "link cut":
        # The worst case: the etcds that are left have no leader either.
        cluster.lead_etcd(old)
        old.cut_link()
        return old.mend_link
    old.kill_database()
    return old.start_patroni


def accepted(senders: Senders, number: int) -> bool:
    """Return whether this number of mails was accepted in all. Raises the senders' failure."""
    if senders.failure:
        raise senders.failure
    return senders.done >= number


@pytest.mark.parametrize("fault", ["kill", "link cut", "switchover"])
@pytest.mark.parametrize("way", list(WAYS))
def test_another_leader_has_all_that_was_acknowledged(
    cluster: Cluster, empty_database: str, serve: Serve, way: str, fault: str, report: Report
) -> None:
    with way_to(cluster, way) as url:
        portal = serve(url, workers=2)
        portal.wait_for_all_workers()
        senders, pauses, slow = Senders(portal, threads=2), [], ""
        with senders.sending():
            for _ in range(2):
                cluster.wait_until_healthy()
                old, began, enough = cluster.leader(), time.monotonic(), senders.done + 100
                repair = replace_leader(cluster, fault)
                try:
                    cluster.wait_for_another_leader(old)
                    wait_for(partial(accepted, senders, enough), PATIENCE_SECONDS)
                    pauses.append(senders.longest_pause(began))
                    slow += cluster.details() if pauses[-1] > PAUSE_SECONDS else ""
                finally:
                    repair()
        cluster.wait_until_healthy()
    longest_seconds = max(pauses)
    report(
        f"6 Patroni, {fault}, {WAYS[way]}",
        f"{len(pauses)} × another leader, {senders.done:,} messages: {in_words(senders.answers)}; "
        f"accepted again after at most {longest_seconds:.1f} s",
        "postgres",
    )
    assert portal.tracebacks() == 0
    assert longest_seconds <= PAUSE_SECONDS, slow
    assert_whole(empty_database, senders.acknowledged)


def test_the_standby_with_more_of_the_log_becomes_the_leader(
    cluster: Cluster, empty_database: str, serve: Serve, report: Report
) -> None:
    """Else the other one has to be rewound first, and the new leader may count it as one that has a commit already."""
    portal = serve(empty_database, workers=2)
    portal.wait_for_all_workers()
    senders, pauses, slow = Senders(portal, threads=2), [], ""
    with senders.sending():
        for number in range(2):
            cluster.wait_until_healthy()
            old = cluster.leader()
            ahead, behind = cluster.standbys() if number else reversed(cluster.standbys())
            wait_for(partial(accepted, senders, senders.done + 50), PATIENCE_SECONDS)
            behind.cut_link()
            time.sleep(1)  # the leader's commits reach one standby, and wait for the other one
            cut_at, enough = time.monotonic(), senders.done + 100
            old.cut_link()
            behind.mend_link()
            try:
                cluster.wait_for_another_leader(old)
                assert cluster.leader() is ahead
                wait_for(partial(accepted, senders, enough), PATIENCE_SECONDS)
                pauses.append(senders.longest_pause(cut_at))
                slow += cluster.details() if pauses[-1] > PAUSE_SECONDS else ""
            finally:
                old.mend_link()
        cluster.wait_until_healthy()
    report(
        "6 Patroni, link cut, one standby has more of the log",
        f"{len(pauses)} × another leader, {senders.done:,} messages: {in_words(senders.answers)}; "
        f"accepted again after at most {max(pauses):.1f} s",
        "postgres",
    )
    assert max(pauses) <= PAUSE_SECONDS, slow
    assert portal.tracebacks() == 0
    assert_whole(empty_database, senders.acknowledged)


def test_posts_wait_for_any_standby_and_are_not_acknowledged_without_one(
    cluster: Cluster, empty_database: str, serve: Serve, report: Report
) -> None:
    portal = serve(empty_database, workers=2)
    senders = Senders(portal, threads=2)
    first, second = cluster.standbys()
    with senders.sending():
        wait_for(partial(accepted, senders, 50), PATIENCE_SECONDS)
        killed_at = time.monotonic()
        first.kill_database()
        try:
            wait_for(partial(accepted, senders, senders.done + 100), PATIENCE_SECONDS)
            pause_seconds = senders.longest_pause(killed_at)
            second.kill_database()
            time.sleep(2)  # for replies on their way
            alone = senders.done
            time.sleep(10)
            assert senders.done == alone
        finally:
            first.start_patroni()
            second.start_patroni()
        wait_for(partial(accepted, senders, alone + 100), PATIENCE_SECONDS)
    report(
        "6 Patroni, standbys killed",
        f"one: {senders.done:,} messages, accepted again after {pause_seconds:.1f} s; both: nothing "
        f"was acknowledged until one was back; {in_words(senders.answers)}",
        "postgres",
    )
    assert pause_seconds <= STANDBY_SECONDS
    cluster.wait_until_healthy()
    assert_whole(empty_database, senders.acknowledged)


def test_posts_wait_seconds_for_a_standby_whose_link_is_cut(
    cluster: Cluster, empty_database: str, serve: Serve, report: Report
) -> None:
    portal = serve(empty_database, workers=2)
    portal.wait_for_all_workers()
    senders, pauses = Senders(portal, threads=2), []
    with senders.sending():
        for _ in range(2):
            cluster.wait_until_healthy()
            leader, standby = cluster.leader(), cluster.standbys()[0]
            wait_for(partial(accepted, senders, senders.done + 50), PATIENCE_SECONDS)
            cluster.lead_etcd(standby)
            cut_at, enough = time.monotonic(), senders.done + 100
            standby.cut_link()
            try:
                wait_for(partial(accepted, senders, enough), PATIENCE_SECONDS)
                pauses.append(senders.longest_pause(cut_at))
                assert cluster.leader() is leader
            finally:
                standby.mend_link()
        cluster.wait_until_healthy()
    report(
        "6 Patroni, link of a standby cut",
        f"{len(pauses)} × cut, {senders.done:,} messages: {in_words(senders.answers)}; accepted again after at most "
        f"{max(pauses):.1f} s",
        "postgres",
    )
    assert max(pauses) <= STANDBY_SECONDS, cluster.details()
    assert portal.tracebacks() == 0
    assert_whole(empty_database, senders.acknowledged)


def test_one_etcd_may_fail_and_with_two_nothing_is_acknowledged_until_one_is_back(
    cluster: Cluster, empty_database: str, serve: Serve, report: Report
) -> None:
    portal = serve(empty_database, workers=2)
    portal.wait_for_all_workers()
    senders = Senders(portal, threads=2)
    leader = cluster.leader()
    one = [host for host in cluster.hosts if host is not leader][0]
    with senders.sending():
        wait_for(partial(accepted, senders, 50), PATIENCE_SECONDS)
        killed_at = time.monotonic()
        leader.kill_etcd()  # the one that the leader's Patroni may use
        time.sleep(2 * TTL_SECONDS)
        one_seconds = max(senders.longest_pause(killed_at), time.monotonic() - senders.accepted_at[-1])
        assert cluster.leader() is leader
        killed_at = time.monotonic()
        one.kill_etcd()
        try:
            wait_for(lambda: time.monotonic() - senders.accepted_at[-1] > 5, TTL_SECONDS + 10)
            stopped_seconds, alone = senders.accepted_at[-1] - killed_at, senders.done
            time.sleep(TTL_SECONDS)
            assert senders.done == alone
        finally:
            one.start_etcd()
            back_at = time.monotonic()
            leader.start_etcd()
        wait_for(partial(accepted, senders, alone + 100), PATIENCE_SECONDS)
        back_seconds = next(at for at in senders.accepted_at if at > back_at) - back_at
    report(
        "6 Patroni, etcds killed",
        f"the leader's: {senders.done:,} messages in all, longest pause {one_seconds:.1f} s; another one too: nothing "
        f"was acknowledged after {stopped_seconds:.1f} s, again {back_seconds:.1f} s after they were back; "
        f"{in_words(senders.answers)}",
        "postgres",
    )
    assert one_seconds <= STANDBY_SECONDS
    assert stopped_seconds <= TTL_SECONDS
    assert back_seconds <= TTL_SECONDS + 5
    assert portal.tracebacks() == 0
    cluster.wait_until_healthy()
    assert_whole(empty_database, senders.acknowledged)
