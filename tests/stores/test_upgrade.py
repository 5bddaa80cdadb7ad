"""Stores of older programs are upgraded while mail comes; versions that do not fit are reported.

`data/quarantine-4.sql` and `data/quarantine-4-sqlite.sql` are the schemas of version 4; files with a 5 or 6 are of
these versions.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from portal.model.errors import StoreUnavailable, StoreUnusable
from portal.model.message import FACTS, DeliveryId, Filter, Reader, Symbol, Tier
from portal.model.sender import authentic, sender_shown
from portal.stores import SCHEMA_VERSION, open_store
from portal.stores.files import database as sqlite
from portal.stores.files import messages as files_messages
from portal.stores.files.store import FileStore
from portal.stores.postgres import database as postgres_database
from portal.stores.postgres import partitions as postgres_partitions
from portal.stores.postgres import rows as postgres_rows
from portal.stores.postgres.store import PostgresStore
from portal.stores.shared import rows as shared_rows
from portal.stores.shared.spellings import merge_spellings
from tests.builders import ALICE, MALLORY, digesting, hold, now
from tests.faults.serving import BIN, assert_whole, mail_of
from tests.paths import DATA

pytestmark = pytest.mark.system  # minutes: most tests start programs


def execute(store_url: str, statement: str) -> Any:
    """Execute a statement in the database directly; return the first value of its result."""
    if store_url.startswith("files:"):
        with sqlite3.connect(Path(store_url.removeprefix("files://")) / "quarantine.sqlite3") as connection:
            row = connection.execute(statement).fetchone()
    else:
        with psycopg.connect(store_url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            row = cursor.fetchone() if cursor.description else None
    return row and row[0]


def version(store_url: str) -> int:
    query = (
        "PRAGMA user_version"
        if store_url.startswith("files")
        else ("select value from setting where name = 'schema_version'")
    )
    return int(execute(store_url, query))


def set_version(store_url: str, number: int) -> None:
    statement = (
        f"PRAGMA user_version = {number}"
        if store_url.startswith("files")
        else (f"update setting set value = '{number}' where name = 'schema_version'")
    )
    execute(store_url, statement)


def make_version(store_url: str, number: int) -> None:
    if store_url.startswith("files:"):
        folder = Path(store_url.removeprefix("files://"))
        folder.mkdir()
        with sqlite3.connect(folder / "quarantine.sqlite3") as connection:
            connection.executescript((DATA / f"quarantine-{number}-sqlite.sql").read_text("utf-8"))
    else:
        execute(store_url, "drop schema public cascade")
        execute(store_url, "create schema public")
        with psycopg.connect(store_url, autocommit=True) as connection:
            connection.execute((DATA / f"quarantine-{number}.sql").read_bytes())


def quarantine(store_url: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "quarantine.toml").touch()
    return subprocess.run(
        [str(BIN / "quarantine"), *words],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("QUARANTINE_")},
            "QUARANTINE_CONFIG": str(folder / "quarantine.toml"),
            "QUARANTINE_STORE__URL": store_url,
            "QUARANTINE_LINKS__KEYS_FILE": str(folder / "links.keys"),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )


def mark_news_as_before(
    table: str, connection: sqlite3.Connection, recipient: str, address: str, since_micros: int
) -> None:
    connection.execute(
        f"INSERT INTO {table} (recipient, address, news_since) VALUES (?, ?, ?) ON CONFLICT (recipient) DO UPDATE SET "
        "address = excluded.address, news_since = coalesce(news_since, excluded.news_since)",
        (recipient, address, since_micros),
    )


# The facts of a message that programs of version 6 store.
_FACTS_OF_6 = (
    "envelope_sender", "subject", "header_from", "queue_id", "message_id", "action", "score", "client_ip", "user",
    "symbols", "flags", "body_sha256", "size_bytes", "has_8bit",
)  # fmt: skip
_NAMES_BEFORE_6 = {"dedup_key": "sameness", "username": "user", "packed_symbols": "symbols"}


class Posting:
    """Threads that hold mail as programs of versions 4 to 6 do, with retries until it is accepted."""

    def __init__(self, store_url: str, number: int) -> None:
        self._older = pytest.MonkeyPatch()
        with self._older.context() as opening:
            opening.setattr(postgres_database, "SCHEMA_VERSION", number)
            opening.setattr(sqlite, "SCHEMA_VERSION", number)
            self._store = open_store(store_url)
        tables = {table: key for table, key in postgres_partitions.TABLES.items() if table != "facet"}
        if number < 6:
            tables = {"told" if table == "announced_to" else table: key for table, key in tables.items()}
        self._older.setattr(postgres_partitions, "TABLES", tables)
        facts = tuple(fact for fact in FACTS if fact in _FACTS_OF_6)
        columns = ["rowid", "id", "dedup_key", "tier", *(shared_rows.COLUMN_OF.get(fact, fact) for fact in facts)]
        names = _NAMES_BEFORE_6 if number < 6 else {}
        self._older.setattr(
            files_messages,
            "_INSERT_MESSAGE",
            f"INSERT INTO message ({', '.join(names.get(column, column) for column in columns)})"
            f" VALUES (:{', :'.join(columns)}) ON CONFLICT DO NOTHING",
        )
        self._older.setattr(postgres_rows, "FACTS", facts)
        parameters = ",".join(f"${n}" for n in range(1, len(facts) + 13))
        self._older.setattr(postgres_rows, "_HOLD", f"select hold_mail({parameters})".encode())
        hold_values = postgres_rows.hold_values
        self._older.setattr(postgres_rows, "hold_values", lambda *values: hold_values(*values)[:-4])  # no scan
        mark_news = partial(mark_news_as_before, "person" if number < 6 else "recipient")
        self._older.setattr(files_messages, "mark_news", mark_news)
        if number < 6:
            # The look-up of large messages would use the new name of a column, and fail again and again.
            self._older.setattr(files_messages, "_LOOK_UP_BYTES", 1 << 40)
        self._numbers = count()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]
        self.held: dict[int, UUID] = {}
        self.refused = 0

    def __enter__(self) -> Posting:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._store.close()
        self._older.undo()

    def restart(self) -> None:
        """Continue as the current program."""
        self._older.undo()

    def wait_for(self, mails: int) -> None:
        until = len(self.held) + mails
        while len(self.held) < until:
            assert any(thread.is_alive() for thread in self._threads)
            time.sleep(0.005)

    def _run(self) -> None:
        while not self._stop.is_set():
            number = next(self._numbers)
            while number not in self.held and not self._stop.is_set():
                try:
                    self.held[number] = hold(self._store, mail_of(number)).id
                except StoreUnavailable:
                    self.refused += 1
            time.sleep(0.02)  # all mail is compared at the end


@pytest.mark.parametrize("number", [4, 5, 6])
def test_an_older_store_is_upgraded_while_mail_comes(store_url: str, tmp_path: Path, number: int) -> None:
    make_version(store_url, number)
    is_postgres = store_url.startswith("postgresql")
    with Posting(store_url, number) as posting:
        posting.wait_for(50)
        done = quarantine(store_url, tmp_path, "init")
        assert done.returncode == 0, done.stderr
        assert version(store_url) == SCHEMA_VERSION
        again = quarantine(store_url, tmp_path, "init")
        assert again.returncode == 0, again.stderr
        if is_postgres:
            posting.wait_for(50)  # the old program continues
            assert posting.refused == 0
        posting.restart()
        posting.wait_for(50)
    assert_whole(store_url, posting.held)
    store = open_store(store_url)
    while store.facets.index():
        pass
    assert store.facets.count(Filter(symbols=("BAYES_SPAM",))).count == 2 * len(posting.held)
    before_the_upgrade = min(posting.held)
    known = hold(store, mail_of(before_the_upgrade), [MALLORY], tier=Tier.DANGEROUS)
    passed = (Symbol("DMARC_POLICY_ALLOW", -0.5, ("example.net", "reject")),)
    before, after = (
        replace(store.deliveries.get(DeliveryId(id, 0)).message, symbols=passed)
        for id in (posting.held[before_the_upgrade], posting.held[max(posting.held)])
    )
    store.close()
    assert known.raised == (posting.held[before_the_upgrade],)
    assert str(sender_shown(before)) == str(sender_shown(after)) == "Promo <promo@example.net>"
    assert (authentic(before), authentic(after)) == (False, True), "nothing is known about the other From fields"
    if is_postgres:
        assert (
            execute(store_url, "select indisvalid from pg_index where indexrelid = 'message_body_idx'::regclass")
            is True
        )


def test_an_index_whose_creation_was_interrupted_is_created_again(postgres_dsn: str, tmp_path: Path) -> None:
    make_version(postgres_dsn, 4)
    with psycopg.connect(postgres_dsn, autocommit=True) as admin:
        admin.execute("create table message_20261101 (like message including all)")
        admin.execute(
            "alter table message attach partition message_20261101 for values from"
            " ('019a3d00-0000-0000-0000-000000000000') to ('019a4300-0000-0000-0000-000000000000')"
        )
        admin.execute("create index message_20261101_body_idx on message_20261101 (tier)")
        admin.execute("update pg_index set indisvalid = false where indexrelid = 'message_20261101_body_idx'::regclass")
    for _ in range(2):
        done = quarantine(postgres_dsn, tmp_path, "init")
        assert done.returncode == 0, done.stderr
    assert (
        execute(postgres_dsn, "select indisvalid from pg_index where indexrelid = 'message_body_idx'::regclass") is True
    )
    assert "(body_sha256, tier)" in execute(
        postgres_dsn, "select pg_get_indexdef('message_20261101_body_idx'::regclass)"
    )


def test_an_upgrade_waits_for_a_long_transaction_while_mail_is_held(postgres_dsn: str, tmp_path: Path) -> None:
    make_version(postgres_dsn, 4)
    with Posting(postgres_dsn, 4) as posting, psycopg.connect(postgres_dsn) as dump:
        dump.execute("select count(*) from recipient, message, delivery, body_chunk, seen")
        upgrade = threading.Thread(target=quarantine, args=(postgres_dsn, tmp_path, "init"))
        upgrade.start()
        time.sleep(4)  # longer than mail may wait
        assert upgrade.is_alive()
        assert version(postgres_dsn) == 4
        posting.wait_for(50)
        dump.rollback()
        upgrade.join()
        assert version(postgres_dsn) == SCHEMA_VERSION
    assert posting.refused == 0
    assert_whole(postgres_dsn, posting.held)


@pytest.mark.parametrize("words", [["check"], ["init"], ["list"], ["purge"]])
def test_a_store_of_a_newer_program_is_left_alone(store_url: str, tmp_path: Path, words: list[str]) -> None:
    open_store(store_url).close()
    set_version(store_url, 99)
    done = quarantine(store_url, tmp_path, *words)
    assert done.returncode in (1, 2)
    output = done.stdout + done.stderr
    assert "version 99" in output
    assert "upgrade this" in output
    assert "Traceback" not in output
    assert version(store_url) == 99


@pytest.mark.parametrize("number", [4, 5, 6])
def test_a_store_of_an_older_program_names_the_command_to_run(store_url: str, tmp_path: Path, number: int) -> None:
    make_version(store_url, number)
    if store_url.startswith("files"):
        (Path(store_url.removeprefix("files://")) / "mail").mkdir()
    for words in (["check"], ["list"], ["copy", store_url, f"files://{tmp_path}/new"]):
        done = quarantine(store_url, tmp_path, *words)
        assert done.returncode in (1, 2)
        assert f"schema version {number}, this program needs {SCHEMA_VERSION}: run `quarantine init`" in (
            done.stdout + done.stderr
        )
        assert version(store_url) == number


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_store_that_is_too_old_names_the_version_to_run_first(store_url: str, tmp_path: Path, number: int) -> None:
    make_version(store_url, 4)
    set_version(store_url, number)
    if store_url.startswith("files"):
        (Path(store_url.removeprefix("files://")) / "mail").mkdir()
    for words in (["init"], ["check"], ["list"]):
        done = quarantine(store_url, tmp_path, *words)
        assert done.returncode in (1, 2)
        output = done.stdout + done.stderr
        assert f"schema version {number}" in output
        assert "run `quarantine init` of version 0.1.1 first" in output
        assert version(store_url) == number


def test_the_heartbeat_of_an_old_digest_process_is_read(store_url: str) -> None:
    store = open_store(store_url)
    at = datetime(2026, 11, 27, 12, tzinfo=UTC)
    store.notes.set("store.heartbeat", str(int(at.timestamp() * 1e6)))
    assert store.stats(at).heartbeat_at == at
    store.close()


def test_the_functions_of_a_newer_program_are_left_alone(postgres_dsn: str) -> None:
    open_store(postgres_dsn, create=True).close()
    execute(postgres_dsn, "drop function copies_of")
    set_version(postgres_dsn, SCHEMA_VERSION + 1)
    with pytest.raises(StoreUnusable, match="upgrade this program"):
        open_store(postgres_dsn, create=True)
    assert execute(postgres_dsn, "select count(*) from pg_proc where proname = 'copies_of'") == 0


def test_merging_two_spellings_keeps_the_news_of_other_readers(store_url: str) -> None:
    store = open_store(store_url)
    assert isinstance(store, FileStore | PostgresStore)
    old, new = "info@münchen.example", "info@xn--mnchen-3ya.example"
    hold(store, recipients=["alice@example.org"])
    with store.engine.writing() as session:
        session.execute("update delivery set recipient = :old, address = :old", old=old)
    both = {old: (old, ALICE)}
    store.recipients.pass_news_on(ALICE, [old, ALICE])
    with digesting(store, Reader(old, (), both), now(), 10, ignore_schedule=True) as digest:
        assert len(digest.deliveries) == 1
    merge_spellings(store.engine, store.recipients)
    assert len(store.digests.unannounced(Reader(ALICE, (ALICE,), {new: (new, ALICE)}), 10)) == 1
    assert store.digests.unannounced(Reader(new, (), {new: (new, ALICE)}), 10) == []
    merge_spellings(store.engine, store.recipients)
    assert [d.recipient for d in store.digests.get(digest.id).deliveries] == [new]
    store.close()


def columns_of(store_url: str) -> set[tuple[str, str]]:
    """Return all tables and columns, without partitions."""
    if store_url.startswith("files:"):
        with sqlite3.connect(Path(store_url.removeprefix("files://")) / "quarantine.sqlite3") as connection:
            return set(
                connection.execute(
                    "SELECT m.name, c.name FROM sqlite_schema m, pragma_table_info(m.name) c WHERE m.type = 'table' "
                    "AND m.name NOT LIKE '%words%'"
                )
            )
    with psycopg.connect(store_url) as connection:
        return set(
            connection.execute(
                "select table_name, column_name from information_schema.columns where table_schema = 'public'"
                " and table_name !~ '_[0-9]{8}$'"
            )
        )


def indexes_of(store_url: str) -> set[str]:
    """Return the definitions of all indexes, without names, white space and those of partitions."""
    if store_url.startswith("files:"):
        with sqlite3.connect(Path(store_url.removeprefix("files://")) / "quarantine.sqlite3") as connection:
            rows = connection.execute(
                "SELECT sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"
            ).fetchall()
    else:
        with psycopg.connect(store_url) as connection:
            rows = connection.execute(
                "select indexdef from pg_indexes where schemaname = 'public' and tablename !~ '_[0-9]{8}$'"
            ).fetchall()
    return {"".join(re.sub(r"INDEX \S+ ON", "INDEX ON", text).split()) for (text,) in rows}


@pytest.mark.parametrize("number", [4, 5, 6])
def test_an_upgraded_store_has_the_tables_and_indexes_of_a_new_one(store_url: str, tmp_path: Path, number: int) -> None:
    open_store(store_url, create=True).close()
    new, indexes = columns_of(store_url), indexes_of(store_url)
    if store_url.startswith("files"):
        shutil.rmtree(store_url.removeprefix("files://"))
    make_version(store_url, number)
    assert quarantine(store_url, tmp_path, "init").returncode == 0
    assert columns_of(store_url) == new
    assert indexes_of(store_url) == indexes


def test_both_stores_use_the_same_names(postgres_dsn: str, tmp_path: Path) -> None:
    open_store(f"files://{tmp_path}/store").close()
    files, postgres = columns_of(f"files://{tmp_path}/store"), columns_of(postgres_dsn)
    of_one = {
        *(("message", "terms"), ("message", "body_id"), ("message", "symbols"), ("message", "dedup_key")),
        *(("body_chunk", column) for column in ("body_id", "n", "data")),
        *((table, column) for table in ("seen", "seen_before") for column in ("dedup_key", "message_id")),
        *(("unindexed", column) for column in ("key", "terms")),
        *(("facet", column) for column in ("message_id", "terms", "key")),
        *(("delivery", "digest_id"), ("announced_to", "digest_id")),
        *(("digest", "message_ids"), ("digest", "numbers")),
    }
    assert files ^ postgres == of_one
