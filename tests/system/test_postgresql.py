"""Other PostgreSQL servers than the one of `make test`: Debian's 15, directly and behind PgBouncer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from portal.model.message import DeliveryId, Filter, Reader, State
from portal.stores import open_store
from tests.builders import ALICE, BY_LINK, digesting, hold, now
from tests.system.services import ROOT, folder, pgbouncer, postgres

pytestmark = [pytest.mark.system, pytest.mark.apart, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with folder() as path:
        yield path


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[str]:
    """A PostgreSQL 15."""
    with postgres(home / "postgresql") as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("alter system set fsync = off")  # no crashes here
            connection.execute("select pg_reload_conf()")
        yield url


@pytest.fixture(scope="module")
def pooler(home: Path, server: str) -> Iterator[str]:
    """Host and port of a PgBouncer in front of the server."""
    with pgbouncer(home / "pgbouncer", server) as address:
        yield address


def suite(*words: str) -> None:
    """Run tests of `make test` on another server."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


def test_the_contract_holds_on_postgresql_15(server: str) -> None:
    with psycopg.connect(server) as connection:
        assert connection.info.server_version // 10_000 == 15
    suite(
        "tests/contract", "tests/contract/test_search.py", "tests/stores/test_postgres.py", "-k", "postgres",
        f"--postgres-dsn={server}",
    )  # fmt: skip


def test_the_contract_holds_behind_pgbouncer(server: str, pooler: str) -> None:
    suite(
        "tests/contract", "tests/contract/test_search.py", "-k", "postgres and not postgresql",
        f"--postgres-dsn={server}", f"--postgres-through={pooler}",
    )  # fmt: skip


def test_no_session_state_stays_with_the_pooler(server: str, pooler: str) -> None:
    url = f"postgresql://postgres@{pooler}/quarantine"
    store = open_store(url, create=True)
    store.prepare_days(now(), 30)
    held = hold(store, subject="invoice")
    assert [
        d.id
        for d in store.deliveries.matching(
            Reader(ALICE), Filter(states=frozenset({State.HELD}), words="invoice"), 5
        ).deliveries
    ] == [held.id]
    with store.deliveries.releasing(DeliveryId(held.id, 0), {State.HELD}, BY_LINK, now()):
        pass
    with digesting(store, ALICE, now(), 10, ignore_schedule=True):
        pass
    store.purge(now(), now())
    assert len(store.deliveries.search(Filter(), 5).deliveries) == 2
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
        for setting in ("statement_timeout", "lock_timeout"):
            assert connection.execute(f"show {setting}").fetchone() == ("0",)
        assert connection.execute("select count(*) from pg_prepared_statements").fetchone() == (0,)
        assert connection.execute("select count(*) from pg_locks where locktype = 'advisory'").fetchone() == (0,)
    store.close()


def test_news_are_found_in_the_order_in_which_mail_is_held_whatever_the_databases_language(
    server: str,
) -> None:
    first, second = "bob1@example.org", "bob@example.org"  # the opposite of the order in English
    with psycopg.connect(server, autocommit=True) as admin, ExitStack() as stack:
        admin.execute("create database english template template0 locale_provider icu icu_locale 'en'")
        stack.callback(admin.execute, "drop database english with (force)")
        url = urlsplit(server)._replace(path="/english").geturl()
        store = open_store(url, create=True)
        stack.callback(store.close)
        hold(store, recipients=[second, first], announce=[])
        ingest = stack.enter_context(psycopg.connect(url))
        row = "insert into recipient (recipient, address, news_since) values (%s, '', now()) on conflict do nothing"
        ingest.execute(row, [first])
        with ThreadPoolExecutor() as pool:
            found = pool.submit(store.recipients.find_news, now() - timedelta(days=1), None)
            while not admin.execute("select from pg_locks where not granted").rowcount:
                assert not found.done()
            ingest.execute(row, [second])
            ingest.commit()
            assert found.result() == 0
