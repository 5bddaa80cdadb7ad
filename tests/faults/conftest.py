"""Fixtures of the fault tests: a table of results, a PostgreSQL that may be killed, a disk that can be filled."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from portal.stores import open_store
from tests.digest.test_process import environ
from tests.faults.cluster import Cluster
from tests.faults.killing import Killer
from tests.faults.serving import OwnPostgres, Portal, SmallDisk
from tests.faults.standby import Pair
from tests.smtp_server import SmtpServer
from tests.system.services import folder

Report = Callable[..., None]
Serve = Callable[..., Portal]


_ROW = "row of the table"  # a property of a test's result, so that it also comes from pytest-xdist's processes


def pytest_itemcollected(item: pytest.Item) -> None:
    """Run the short forms with the system tests, apart: they take minutes, and need time limits that hold.

    pytest calls this for the tests of this folder only.
    """
    if not item.get_closest_marker("faults"):
        item.add_marker(pytest.mark.system)
        if not item.get_closest_marker("alone"):
            item.add_marker(pytest.mark.apart)


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """``report("1 kill -9 of workers", "9 messages, 3 kills", "files")`` adds a row to the table of `make test-faults`.

    Only the long forms add rows. Call it before assertions that may fail: the row is printed in both cases.
    """
    node = request.node
    words = node.callspec.params.values() if hasattr(node, "callspec") else ()
    of_this_test = next((word for word in words if word in ("files", "postgres")), "")

    def add_row(what: str, done: str, store: str = of_this_test) -> None:
        if node.get_closest_marker("faults"):
            node.user_properties.append((_ROW, (what, store, done)))

    return add_row


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    results = [
        result
        for outcome in ("passed", "failed")
        for result in terminalreporter.stats.get(outcome, [])
        if result.when == "call"
    ]
    rows = [(*row, result) for result in results for name, row in result.user_properties if name == _ROW]
    if not rows:
        return
    terminalreporter.section("faults")
    terminalreporter.write_line("| test | store | what was done | result | seconds |")
    terminalreporter.write_line("| --- | --- | --- | --- | --- |")
    for what, store, done, result in sorted(rows, key=lambda row: (int(row[0].split()[0]), *row[:3])):
        terminalreporter.write_line(f"| {what} | {store} | {done} | {result.outcome} | {result.duration:.0f} |")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """``serve(store_url, workers=8, QUARANTINE_…="…")`` runs the portal under uWSGI with the shipped uwsgi.ini."""
    running: list[Portal] = []

    def start(store_url: str, workers: int = 4, **environ: str) -> Portal:
        running.append(Portal(store_url, tmp_path / f"portal{len(running)}", environ, workers))
        return running[-1]

    yield start
    for portal in running:
        portal.stop()


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    """A mail server that finds no mistake in what it is sent."""
    with SmtpServer() as running:
        yield running
        assert running.violations == []


@pytest.fixture
def kill_at(store_url: str, tmp_path: Path, server: SmtpServer) -> Killer:
    """Kill processes on the store of this test, which send releases and other mail to ``server``."""
    return Killer(environ(store_url, tmp_path, server.url, QUARANTINE_RELAY__URL=server.url), store_url, server)


@pytest.fixture
def own_postgres() -> Iterator[OwnPostgres]:
    """A PostgreSQL for this test alone, fully durable, with our schema."""
    with tempfile.TemporaryDirectory(prefix="qpg-faults-", ignore_cleanup_errors=True) as folder:
        server = OwnPostgres(Path(folder) / "data")
        yield server
        server.stop()


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A PostgreSQL whose commits wait for a standby."""
    with tempfile.TemporaryDirectory(prefix="qpg-pair-", ignore_cleanup_errors=True) as folder:
        servers = Pair(Path(folder))
        yield servers
        servers.stop()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three database hosts under Patroni, whose database is empty."""
    with folder() as home, Cluster(home).running() as running:
        yield running


@pytest.fixture
def empty_database(cluster: Cluster) -> str:
    """The URL of an empty database with our schema, on a cluster with both standbys."""
    cluster.wait_until_healthy()
    with psycopg.connect(cluster.dsn, autocommit=True) as connection:
        connection.execute("drop schema public cascade")
        connection.execute("create schema public")
    open_store(cluster.dsn, create=True).close()
    return cluster.dsn


@pytest.fixture
def small_disk() -> Iterator[SmallDisk]:
    """A file system of its own that may be filled up."""
    with tempfile.TemporaryDirectory(prefix="quarantine-disk-") as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=300m,mode=755", "none", folder], capture_output=True, text=True
        )
        if mounted.returncode:
            pytest.fail(f"this test fills a small tmpfs and must be allowed to mount it, as root: {mounted.stderr}")
        try:
            yield SmallDisk(Path(folder))
        finally:
            # A server that was killed may still have files open there.
            subprocess.run(["umount", "--lazy", folder], check=True)
