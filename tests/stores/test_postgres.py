"""The PostgreSQL store: query plans, partitions, the schema version, lost connections."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import re
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Event as Signal
from threading import Thread
from time import monotonic
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import psycopg
import pytest
import zstandard
from psycopg import sql

from portal import shipped
from portal.model.audit import Act, AuditEntry
from portal.model.errors import StoreUnavailable, StoreUnusable
from portal.model.message import (
    Body,
    DeliveryId,
    EventKind,
    Filter,
    Reader,
    State,
    Symbol,
    Tier,
    first_id,
    held_at,
    new_id,
)
from portal.model.schedule import Preferences
from portal.stores import SCHEMA_VERSION, Store
from portal.stores.postgres import messages as postgres
from portal.stores.postgres import partitions as postgres_partitions
from portal.stores.postgres import rows as postgres_rows
from portal.stores.postgres.store import PostgresStore
from portal.stores.records import Held
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, SENDER, body, digesting, export, hold, mail, now, prefer
from tests.paths import DATA

DAY = timedelta(days=1)
TABLES = ("body_chunk", "delivery", "event", "message")
FUNCTION = re.compile(
    r"\b(deliveries_of|first_with|search_of|near_duplicates|unannounced|senders_released_to|mark_announced)\("
)


@pytest.fixture
def store(postgres_dsn: str) -> Iterator[PostgresStore]:
    opened = PostgresStore.open(postgres_dsn)
    yield opened
    opened.close()


@pytest.fixture
def admin(postgres_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection in addition to those of the store."""
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        yield connection


def midnight(days: int = 0) -> datetime:
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + days * DAY


def hold_at(monkeypatch: pytest.MonkeyPatch, store: Store, at: datetime, **arguments: Any) -> Held:
    """Hold a mail at another time."""
    with monkeypatch.context() as clock:
        clock.setattr(postgres, "new_id", lambda *_: new_id(at))
        return hold(store, **arguments)


def partitions(admin: psycopg.Connection[Any], table: str) -> list[str]:
    return [
        name
        for (name,) in admin.execute(
            "select inhrelid::regclass::text from pg_inherits where inhparent = %s::regclass order by 1", [table]
        )
    ]


# ---- plans

IN_FIRST = "select * from deliveries_of(%s::text[], %s::text[], %s, %s, %s, %s, %s, %s)"


@pytest.fixture
def plans(
    monkeypatch: pytest.MonkeyPatch, store: PostgresStore, admin: psycopg.Connection[Any]
) -> Callable[[Callable[[], Any]], list[str]]:
    """Return a function that calls the store and returns the executed plan of each query. Six days have mail."""
    helds = [hold_at(monkeypatch, store, midnight(-day) + n * DAY / 40) for day in range(6) for n in range(30)]
    for n, held in enumerate(helds[::5]):
        if n % 2:
            store.deliveries.move(
                DeliveryId(held.id, 0), State.REQUESTED, {State.HELD}, BY_LINK, now(), kind=EventKind.REQUESTED
            )
    store.recipients.schedule(ALICE, now())
    admin.execute("analyze")
    admin.execute("set enable_seqscan = off")  # the planner would rightly scan tables this small

    def explain(call: Callable[[], Any]) -> list[str]:
        queries = queries_of(monkeypatch, call)
        # `first_with` calls `deliveries_of`.
        called = [(IN_FIRST, params[1:]) for query, params in queries if " first_with(" in query]
        return [plan_of(admin, query, params) for query, params in [*called, *queries]]

    return explain


def queries_of(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> list[tuple[str, Any]]:
    """Return the queries of a call of the store, and their parameters."""
    queries: list[tuple[str, Any]] = []
    execute = psycopg.Cursor.execute

    def record(cursor: Any, query: Any, params: Any = None, **options: Any) -> Any:
        statement = query.decode() if isinstance(query, bytes) else str(query)
        if statement.startswith("select") and (" from " in statement or FUNCTION.search(statement)):
            queries.append((statement, params))
        return execute(cursor, query, params, **options)

    with monkeypatch.context() as patch:
        patch.setattr(psycopg.Cursor, "execute", record)
        call()
    assert queries
    return queries


def plan_of(admin: psycopg.Connection[Any], query: str, params: Any) -> str:
    """Return the executed plan of a query; if it calls a function of quarantine.sql, the generic plan of the statement
    in the function, with the function's settings."""
    cursor = psycopg.ClientCursor(admin)
    execution = query
    with admin.transaction(force_rollback=True):
        if function := FUNCTION.search(query):
            source, names, types, settings = admin.execute(
                "select prosrc, proargnames, proargtypes::regtype[]::text[], proconfig from pg_proc where proname = %s",
                [function[1]],
            ).fetchall()[0]
            (statement, *others) = re.findall(r"(?:return query|begin)\s+((?:select|update) .*?);", source, re.DOTALL)
            if others and function[1] == "unannounced" and params[2] is not None:  # with readers
                (statement,) = others
            if function[1] == "deliveries_of" and not params[-2]:  # newest first
                (statement,) = others
            for n, name in enumerate(names[: len(types)], 1):
                statement = re.sub(rf"\b{name}\b(?! =)", f"${n}", statement)
            admin.execute(f"prepare in_function ({', '.join(types)}) as {statement}".encode())
            for setting in settings:
                admin.execute("select set_config(split_part(%s, '=', 1), split_part(%s, '=', 2), true)", [setting] * 2)
            execution = f"execute in_function ({', '.join(f'%s::{each}' for each in types)})"
        cursor.execute(f"explain (analyze, costs off, timing off) {execution}".encode(), params)
        plan = "\n".join(line for (line,) in cursor)
        if function:
            admin.execute("deallocate in_function")
        return plan


def assert_indexed(plan: str) -> None:
    assert not re.search(r"Seq Scan on (message|delivery|event|body_chunk|recipient)", plan), plan


def test_a_list_reads_only_the_days_that_fill_its_page(plans: Any, store: PostgresStore) -> None:
    first = store.deliveries.list_for(Reader(ALICE), {State.HELD}, 20)
    held = Filter(states=frozenset({State.HELD}))
    for place in ({}, {"before": first.next}, {"down_to": DeliveryId(first_id(midnight(-3)), 0)}):
        deliveries, messages = plans(lambda place=place: store.deliveries.matching(Reader(ALICE), held, 20, **place))
        for plan in (deliveries, messages):
            assert_indexed(plan)
        assert deliveries.count("Sort Key") == 1, "only the page is sorted"
        assert_read_at_most(deliveries, 21)
        assert "Merge Append" not in deliveries, deliveries
        assert deliveries.count("never executed") >= 3, deliveries
        assert len(set(re.findall(r"on (message_\d+) \S+ \(actual", messages))) <= 2, messages


def test_the_list_of_an_operator_is_read_in_order_too(plans: Any, store: PostgresStore) -> None:
    (deliveries, _) = plans(lambda: store.deliveries.search(Filter(), 20))
    assert_indexed(deliveries)
    assert "Sort" not in deliveries, deliveries
    assert deliveries.count("never executed") >= 3, deliveries


def test_a_lookup_by_id_reads_one_day(plans: Any, store: PostgresStore) -> None:
    id = store.deliveries.list_for(Reader(ALICE), {State.HELD}, 1).deliveries[0].id
    for call in (
        lambda: store.deliveries.get_for(Reader(ALICE), id),
        lambda: store.deliveries.get(DeliveryId(id, 0)),
        lambda: store.deliveries.of_message(id),
        lambda: store.messages.find(str(id)),
    ):
        for plan in plans(call):
            assert_indexed(plan)
            if "queue_id" not in plan:
                assert len(set(re.findall(r"on (?:message|delivery)_(\d+)", plan))) == 1, plan


def test_frequent_queries_of_processes_use_small_indexes(plans: Any, store: PostgresStore) -> None:
    for call in (
        lambda: store.digests.due(now(), 10),
        lambda: store.digests.due(None, 10),
        lambda: store.recipients.unscheduled(10),
        lambda: store.digests.unannounced(Reader(ALICE), 10),
        lambda: store.deliveries.due_releases(now(), 10),
        lambda: store.messages.find("4XyZq1abc"),
        lambda: store.stats(now()),
    ):
        for plan in plans(call):
            assert_indexed(plan)


@pytest.fixture
def reader(store: PostgresStore) -> Reader:
    """Alice with an alias and a role mailbox. There is mail for both and for herself; some of it was announced."""
    for n in range(90):  # late in the day they are the newest, and a second page still has 21 of each
        hold(store, recipients=["sales@example.org" if n % 2 else "info@example.org"])
    store.recipients.pass_news_on("info@example.org", [ALICE, BOB])
    whole = Reader(ALICE, (ALICE, "sales@example.org"), {"info@example.org": (ALICE, BOB)})
    with digesting(store, whole, now(), 50, ignore_schedule=True):
        pass
    return whole


def test_a_list_of_several_identities_reads_a_range_of_the_index_of_each(
    plans: Any, store: PostgresStore, reader: Reader
) -> None:
    first = store.deliveries.list_for(reader, {State.HELD}, 20)
    held = Filter(states=frozenset({State.HELD}))
    for place in ({}, {"before": first.next}, {"down_to": DeliveryId(first_id(midnight(-3)), 0)}):
        deliveries, messages = plans(lambda place=place: store.deliveries.matching(reader, held, 20, **place))
        assert_indexed(deliveries)
        assert_indexed(messages)
        assert "Merge Append" not in deliveries, deliveries
        assert deliveries.count("never executed") >= 3, deliveries
        assert_read_at_most(deliveries, 21)


def test_mail_not_announced_to_a_reader_is_read_by_index_day_by_day(
    plans: Any, store: PostgresStore, reader: Reader
) -> None:
    deliveries, _ = plans(lambda: store.digests.unannounced(reader, 10))
    assert_indexed(deliveries)
    assert "Seq Scan on announced_to" not in deliveries, deliveries
    assert "never executed" in deliveries, deliveries


def assert_read_at_most(plan: str, rows: int) -> None:
    """Check that no index scan reads more rows than a page has."""
    read = re.findall(r"Scan (?:Backward )?using delivery_\d+_recipient\S* on \S+ \S+ \(actual rows=([\d.]+)", plan)
    assert read, plan
    assert max(map(float, read)) <= rows, plan


def test_unannounced_mail_is_read_in_order(plans: Any, store: PostgresStore) -> None:
    deliveries, _ = plans(lambda: store.digests.unannounced(Reader(ALICE), 10))
    assert deliveries.count("Sort Key") == 1, "only what is returned is sorted"
    assert_read_at_most(deliveries, 10)
    assert "never executed" in deliveries, deliveries


def test_statements_over_all_partitions_are_planned_once(
    monkeypatch: pytest.MonkeyPatch, plans: Any, store: PostgresStore, reader: Reader, admin: psycopg.Connection[Any]
) -> None:
    """The server reports each time that it plans a statement, also one in a function."""
    planned: list[str] = []
    admin.add_notice_handler(lambda notice: planned.append(notice.message_primary or ""))
    admin.execute("set client_min_messages = log")

    def settle() -> None:
        with digesting(store, reader, now(), 50, ignore_schedule=True):
            hold(store)

    delivery = store.deliveries.get(DeliveryId(hold(store).id, 0))
    calls = (
        lambda: store.deliveries.list_for(Reader(ALICE), {State.HELD}, 20),
        lambda: store.deliveries.list_for(reader, {State.HELD}, 20),
        lambda: store.deliveries.matching(reader, Filter(states=frozenset({State.HELD}), words="offer"), 20),
        lambda: store.deliveries.matching(reader, Filter(states=frozenset({State.HELD}), has_attachment=True), 20),
        lambda: store.deliveries.near_duplicates(delivery),
        lambda: store.deliveries.released_from([ALICE], 5),
        lambda: store.digests.unannounced(Reader(ALICE), 10),
        lambda: store.digests.unannounced(reader, 10),
        settle,
    )
    hold(store)
    seen = set()
    for query, params in itertools.chain.from_iterable(queries_of(monkeypatch, call) for call in calls):
        if function := FUNCTION.search(query):
            seen.add(function[1])
            admin.execute(query.encode(), params)
            admin.execute("set log_planner_stats = on")
            for _ in range(3):  # the server may analyze a table in between, which ends all plans that read it
                planned.clear()
                admin.execute(query.encode(), params)
                if planned.count("PLANNER STATISTICS") == 1:
                    break
            else:
                pytest.fail(f"{function[1]}: not only the call is planned, but also the statement in the function")
            admin.execute("set log_planner_stats = off")
    assert seen == {
        "first_with",
        "search_of",
        "near_duplicates",
        "unannounced",
        "senders_released_to",
        "mark_announced",
    }


def test_near_duplicates_are_read_by_indexes(plans: Any, store: PostgresStore) -> None:
    delivery = store.deliveries.list_for(Reader(ALICE), {State.HELD}, 1).deliveries[0]
    [plan] = plans(lambda: store.deliveries.near_duplicates(delivery))
    assert_indexed(plan)
    assert "Sort" not in plan and "Hash" not in plan, plan


def test_who_was_sent_a_digest_is_read_from_an_index(plans: Any, store: PostgresStore) -> None:
    [plan] = plans(lambda: store.digests.last_sent([ALICE]))
    assert_indexed(plan)


def test_the_statement_that_marks_announced_mail_reads_single_rows(
    monkeypatch: pytest.MonkeyPatch, plans: Any, store: PostgresStore
) -> None:
    hold(store)

    def settle() -> None:
        with digesting(store, ALICE, now(), 50, ignore_schedule=True) as digest:
            assert len(digest.deliveries) == 50

    marks = [plan for plan in plans(settle) if plan.startswith("Update on delivery")]
    assert len(marks) == 1
    assert_indexed(marks[0])
    assert not re.search(r"\(actual rows=(?!(?:0|1|50)(?:\.0+)? )[\d.]+ loops=\d+\)", marks[0]), marks[0]
    assert "Filter: (message_id" not in marks[0]


# ---- holding


def test_the_same_bytes_are_kept_once_a_day(
    monkeypatch: pytest.MonkeyPatch, store: PostgresStore, admin: psycopg.Connection[Any]
) -> None:
    data = os.urandom(2_500_000)
    helds = [hold(store, data, recipients=[f"p{n}@example.org"]) for n in range(3)]
    other_day = hold_at(monkeypatch, store, midnight(-1), data=data, recipients=[ALICE])
    assert admin.execute("select count(distinct body_id), count(*) from body_chunk").fetchone() == (2, 6)
    for held in (*helds, other_day):
        assert b"".join(store.messages.body(held.id)) == data


def test_a_day_that_was_not_prepared_is_created_when_mail_needs_it(
    monkeypatch: pytest.MonkeyPatch, postgres_dsn: str, store: PostgresStore, admin: psycopg.Connection[Any]
) -> None:
    far = midnight(40)
    monkeypatch.setattr(postgres, "new_id", lambda *_: new_id(far))
    second = PostgresStore.open(postgres_dsn)
    mails = [mail() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        helds = list(pool.map(lambda n: hold((store, second)[n % 2], mails[n]), range(8)))
    second.close()
    assert [b"".join(store.messages.body(held.id)) for held in helds] == mails
    for table in TABLES:
        assert f"{table}_{far:%Y%m%d}" in partitions(admin, table)


def test_today_and_a_week_are_prepared(store: PostgresStore, admin: psycopg.Connection[Any]) -> None:
    store.prepare_days(midnight(20), 30)
    for table in TABLES:
        assert set(partitions(admin, table)) >= {f"{table}_{midnight(20 + n):%Y%m%d}" for n in range(8)}


def test_a_day_dropped_by_hand_does_not_make_its_mail_known(
    store: PostgresStore, admin: psycopg.Connection[Any]
) -> None:
    data = mail()
    first = hold(store, data)
    for table in TABLES:
        admin.execute(f"drop table {table}_{held_at(first.id):%Y%m%d}")
    again = hold(store, data)
    assert not again.known
    assert b"".join(store.messages.body(again.id)) == data


def test_text_that_postgresql_cannot_store_does_not_prevent_holding(store: PostgresStore) -> None:
    held = hold(store, subject="a\0b\ud800c", queue_id="x\0", recipients=["al\0ice@example.org"])
    assert store.deliveries.get(DeliveryId(held.id, 0)).message.subject == "a\ufffdb\ufffdc"


def test_a_mail_of_50_mb_is_never_in_memory(store: PostgresStore, tmp_path: Any) -> None:
    path = tmp_path / "spooled"
    with path.open("wb") as file:
        for _ in range(50):
            file.write(os.urandom(1 << 19) + bytes(1 << 19))
    digest = hashlib.sha256(path.read_bytes()).digest()
    hold(store)  # memory for imports and connections does not count
    tracemalloc.start()
    with path.open("rb") as file:
        exported = export(b"", body_sha256=digest, size_bytes=50 << 20)
        held = store.messages.add(exported, Body(file, 0, 50 << 20), Tier.SPAM, ())
    assert sum(map(len, store.messages.body(held.id))) == 50 << 20
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 << 20


def test_a_mail_of_zeros_is_unpacked_piece_by_piece(store: PostgresStore) -> None:
    data = bytes(30 << 20)
    held = hold(store, data)
    tracemalloc.start()
    assert sum(map(len, store.messages.body(held.id))) == len(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 << 20


@pytest.mark.parametrize(
    "damage",
    [
        "update body_chunk set data = set_byte(data, 5000, 255 - get_byte(data, 5000)) where n = 1",
        "delete from body_chunk where n = 2",
        "update message set body_sha256 = sha256('')",
        "update body_chunk set data = '\\x00' where n = 0",
    ],
)
def test_damage_is_noticed(store: PostgresStore, admin: psycopg.Connection[Any], damage: str) -> None:
    held = hold(store, os.urandom(2_500_000))
    admin.execute(damage)
    with pytest.raises(StoreUnavailable, match="damaged"):
        for _ in store.messages.body(held.id):
            pass


def test_a_slow_reader_holds_no_connection(store: PostgresStore) -> None:
    data = os.urandom(2_500_000)
    held = hold(store, data)
    readers = [store.messages.body(held.id) for _ in range(12)]
    begun = [next(reader) for reader in readers]
    assert not hold(store).known
    assert {first + b"".join(reader) for first, reader in zip(begun, readers, strict=True)} == {data}


# ---- connections and the schema


def test_lost_connections_fail_no_request(store: PostgresStore, admin: psycopg.Connection[Any]) -> None:
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(store.database.transaction())
    ours = "from pg_stat_activity where datname = current_database() and application_name = 'quarantine'"
    admin.execute(f"select pg_terminate_backend(pid) {ours}")
    while admin.execute(f"select {ours}").rowcount:
        pass
    for _ in range(8):
        assert not hold(store).known


def test_a_connection_lost_inside_a_statement_is_unavailable(
    store: PostgresStore, admin: psycopg.Connection[Any]
) -> None:
    with pytest.raises(StoreUnavailable), store.database.transaction() as connection:
        admin.execute("select pg_terminate_backend(%s)", [connection.info.backend_pid])
        connection.execute("select 1")
    store.ping()


def test_a_used_up_pool_is_unavailable_soon(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal.stores.postgres.database.POOL_WAIT_SECONDS", 1.0)  # as it is; tests wait longer
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(store.database.transaction())
        begun = monotonic()
        with pytest.raises(StoreUnavailable):
            hold(store)
        assert monotonic() - begun < 3
    assert not hold(store).known


def test_a_locked_table_makes_ingest_unavailable_within_its_deadline(
    store: PostgresStore, admin: psycopg.Connection[Any]
) -> None:
    with admin.transaction():
        admin.execute("lock table seen in access exclusive mode")
        begun = monotonic()
        with pytest.raises(StoreUnavailable):
            hold(store)
        assert monotonic() - begun < 4
    assert not hold(store).known


def test_a_server_that_hangs_makes_ingest_unavailable_within_its_deadline(
    store: PostgresStore, admin: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_ADD_SECONDS", 3.0)  # other tests are more patient
    admin.execute(
        "create function hang() returns trigger language plpgsql as 'begin perform pg_sleep(6); return new; end'"
    )
    admin.execute("create trigger hang before insert on seen for each row execute function hang()")
    begun = monotonic()
    with pytest.raises(StoreUnavailable):
        hold(store)
    assert monotonic() - begun < 4
    admin.execute("drop trigger hang on seen")
    assert not hold(store).known


def test_an_error_at_commit_is_seen(store: PostgresStore, admin: psycopg.Connection[Any]) -> None:
    admin.execute("create function fail() returns trigger language plpgsql as 'begin raise ''no''; end'")
    admin.execute(
        "create constraint trigger fail after insert on seen deferrable initially deferred for each row"
        " execute function fail()"
    )
    with pytest.raises(StoreUnavailable):
        hold(store)
    admin.execute("drop trigger fail on seen")
    assert not hold(store).known


def test_a_database_without_our_tables_names_the_command(postgres_dsn: str, admin: psycopg.Connection[Any]) -> None:
    admin.execute("drop schema public cascade; create schema public")
    with pytest.raises(StoreUnusable, match="quarantine init"):
        PostgresStore.open(postgres_dsn)
    PostgresStore.open(postgres_dsn, create=True).close()
    PostgresStore.open(postgres_dsn).close()


@pytest.mark.parametrize(("version", "advice"), [("0", "quarantine init"), ("99", "upgrade this program")])
def test_another_schema_version_says_what_to_do(
    postgres_dsn: str, admin: psycopg.Connection[Any], version: str, advice: str
) -> None:
    admin.execute("update setting set value = %s where name = 'schema_version'", [version])
    with pytest.raises(StoreUnusable, match=advice):
        PostgresStore.open(postgres_dsn)


def test_mail_that_version_3_held_is_still_read(
    postgres_dsn: str, store: PostgresStore, admin: psycopg.Connection[Any]
) -> None:
    """Rows of version 3 have the symbols as JSON."""
    admin.execute("drop schema public cascade; create schema public")
    admin.execute((DATA / "quarantine-4.sql").read_bytes())
    with pytest.MonkeyPatch.context() as older:
        older.setattr(
            postgres_partitions,
            "TABLES",
            {
                "told" if table == "announced_to" else table: key
                for table, key in postgres_partitions.TABLES.items()
                if table != "facet"
            },
        )
        postgres_partitions.make_partitions(store.database, now().date())
    before = held_by_version_3(admin)
    PostgresStore.open(postgres_dsn, create=True).close()
    message = store.deliveries.get(DeliveryId(before, 0)).message
    assert message.symbols == (Symbol("BAYES_SPAM", 5.0, ("99.99%",)),)
    assert b"".join(store.messages.body(before)) == b"Hello"
    assert [m.id for m in store.messages.find("4Old")] == [before]
    assert [d.id for d in store.deliveries.search(Filter(words="offer"), 10).deliveries] == [before]


def held_by_version_3(admin: psycopg.Connection[Any]) -> UUID:
    """Return the id of a mail held as version 3 of the program held it."""
    id, data = new_id(), b"Hello"
    row = admin.execute(
        "select * from hold_message(2000, %s, %b, now(), %s, %s, '{}', '{}', 'spam', %s, 'Offer', '', '{offer}',"
        " '4Old', null, 'reject', 17.5, null, null, %s, '{}', %b, %s, false, %b)",
        [
            id,
            os.urandom(32),
            [ALICE],
            [ALICE],
            SENDER,
            '[["BAYES_SPAM", 5, ["99.99%"]]]',
            hashlib.sha256(data).digest(),
            len(data),
            zstandard.compress(data),
        ],
    ).fetchone()
    assert row == (id, id)
    return id


def test_two_bodies_with_one_place_are_both_kept(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """No such mails are known, but if somebody makes them, both must be kept."""
    monkeypatch.setattr(
        postgres_rows, "_place", lambda id, sha256: first_id(held_at(id).replace(hour=0, minute=0, second=0))
    )
    mails = [os.urandom(size) for size in (2_000, 2_000, 2_500_000, 2_500_000)]
    helds = [hold(store, data) for data in mails]
    assert [b"".join(store.messages.body(held.id)) for held in helds] == mails


def test_a_missing_server_is_unavailable_and_no_password_is_shown() -> None:
    with pytest.raises(StoreUnavailable) as error:
        PostgresStore.open("postgresql://quarantine:s3cret@127.0.0.1:1/quarantine")
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://quarantine:s3/cret@127.0.0.1/quarantine",
        "postgresql://quarantine:33/cret@127.0.0.1/quarantine",
        "postgresql://quarantine:s3%cret@127.0.0.1/quarantine",
        "postgresql://quarantine@[::1/cret",
        "postgresql://127.0.0.1/quarantine?pasword=cret",
    ],
)
def test_an_invalid_url_is_a_misfit_and_no_password_is_shown(url: str) -> None:
    with pytest.raises(StoreUnusable, match="store.url") as error:
        PostgresStore.open(url)
    assert not re.search("s3|cret|33", str(error.value))


def test_a_database_that_takes_no_writes_is_unavailable(postgres_dsn: str, admin: psycopg.Connection[Any]) -> None:
    admin.execute(f'alter database "{urlsplit(postgres_dsn).path[1:]}" set default_transaction_read_only = on')
    with pytest.raises(StoreUnavailable, match="read-write"):
        PostgresStore.open(postgres_dsn)


def test_the_schema_can_be_applied_again_while_mail_is_held(
    postgres_dsn: str, store: PostgresStore, admin: psycopg.Connection[Any]
) -> None:
    done, errors = Signal(), []

    def keep_holding() -> None:
        while not done.is_set():
            try:
                hold(store)
            except Exception as error:
                errors.append(error)

    holder = Thread(target=keep_holding)
    holder.start()
    for _ in range(5):
        admin.execute(shipped("quarantine.sql").read_bytes())
        PostgresStore.open(postgres_dsn, create=True).close()
    done.set()
    holder.join()
    assert errors == []
    assert admin.execute("select value from setting where name = 'schema_version'").fetchone() == (str(SCHEMA_VERSION),)


# ---- retention


def test_retention_drops_days_and_keeps_requested_mail(
    monkeypatch: pytest.MonkeyPatch, store: PostgresStore, admin: psycopg.Connection[Any]
) -> None:
    old, older, recent = midnight(-31), midnight(-40), midnight(-2)
    data = os.urandom(2_500_000)
    gone = hold_at(monkeypatch, store, older)
    owner = hold_at(monkeypatch, store, old, data=data, recipients=[BOB])
    kept = hold_at(monkeypatch, store, old + timedelta(hours=1), data=data, recipients=[ALICE])
    stays = hold_at(monkeypatch, store, recent)
    store.deliveries.move(
        DeliveryId(kept.id, 0), State.REQUESTED, {State.HELD}, BY_LINK, now(), kind=EventKind.REQUESTED
    )
    purged = store.purge(now() - 30 * DAY, now())
    assert (purged.messages, purged.kept) == (2, 1)
    assert b"".join(store.messages.body(kept.id)) == data  # although the bytes were stored for another message
    assert [m.id for m in store.messages.find("4XyZq1abc")] == [stays.id, kept.id]
    for table in TABLES:
        names = partitions(admin, table)
        assert f"{table}_{older:%Y%m%d}" not in names
        assert {f"{table}_{old:%Y%m%d}", f"{table}_{recent:%Y%m%d}"} <= set(names)
    assert (
        store.deliveries.move(
            DeliveryId(kept.id, 0), State.HELD, {State.REQUESTED}, BY_LINK, now(), kind=EventKind.REFUSED
        ).state
        is State.HELD
    )
    assert store.purge(now() - 30 * DAY, now()).messages == 1
    for table in TABLES:
        assert f"{table}_{old:%Y%m%d}" not in partitions(admin, table)
    assert gone.id != owner.id


def generations(admin: psycopg.Connection[Any]) -> list[set[UUID]]:
    """Return the messages of the older and of the newer dedup keys."""
    return [
        {id for (id,) in admin.execute(f"select message_id from {table}")} for table in postgres_partitions.GENERATIONS
    ]


def test_dedup_keys_are_dropped_in_generations(
    monkeypatch: pytest.MonkeyPatch, store: PostgresStore, admin: psycopg.Connection[Any]
) -> None:
    """Mail is known as long as it is held, and mail like a removed one is held again."""
    removed, held = [[(data, hold_at(monkeypatch, store, at, data=data)) for data in (mail(), mail(), mail())]
                     for at in (midnight(-31), midnight(-2))]  # fmt: skip
    assert store.purge(midnight(-40), now()).messages == 0
    assert generations(admin) == [set(), {each.id for _, each in (*removed, *held)}]
    assert store.purge(midnight(-30), now()).messages == 3
    assert generations(admin) == [{each.id for _, each in (*removed, *held)}, set()]
    for data, before in held:
        assert hold(store, data) == Held(before.id, True)
    records = store.messages.records([each.id for _, each in held])
    assert [records[each.id].dedup_key for _, each in held] == [export(data).dedup_key for data, _ in held]
    again = []
    for data, before in removed:
        again.append((data, hold(store, data)))
        assert not again[-1][1].known
        assert again[-1][1].id != before.id
        assert hold(store, data) == Held(again[-1][1].id, True)
    assert generations(admin) == [{each.id for _, each in held}, {each.id for _, each in again}]
    late = [(data, hold_at(monkeypatch, store, midnight(-31), data=data)) for data in (mail(),)]
    assert store.purge(midnight(-30), now()).messages == 1
    assert generations(admin)[0] == {each.id for _, each in held}, "these are still held"
    assert store.purge(midnight(-1), now()).messages == 3
    assert generations(admin) == [{each.id for _, each in (*again, *late)}, set()]
    for data, before in again:
        assert hold(store, data) == Held(before.id, True)
    for data, _ in (*held, *late):
        assert not hold(store, data).known


def test_a_purged_message_can_be_copied_back_with_its_dedup_key(
    monkeypatch: pytest.MonkeyPatch, store: PostgresStore, admin: psycopg.Connection[Any]
) -> None:
    data = mail()
    held = hold_at(monkeypatch, store, midnight(-31), data=data)
    record = store.messages.records([held.id])[held.id]
    store.purge(midnight(-30), now())
    assert generations(admin) == [{held.id}, set()], "the key of a message that is gone"
    store.messages.import_record(record, body(data))
    assert generations(admin) == [set(), {held.id}]
    assert hold(store, data) == Held(held.id, True)


def test_dedup_keys_of_requested_messages_stay(
    monkeypatch: pytest.MonkeyPatch, store: PostgresStore, admin: psycopg.Connection[Any]
) -> None:
    data = mail()
    kept = hold_at(monkeypatch, store, midnight(-31), data=data)
    store.deliveries.move(
        DeliveryId(kept.id, 0), State.REQUESTED, {State.HELD}, BY_LINK, now(), kind=EventKind.REQUESTED
    )
    for _ in range(3):
        hold_at(monkeypatch, store, midnight(-31))
        assert store.purge(midnight(-30), now()).messages == 1
        assert kept.id in generations(admin)[0]
        assert hold(store, data) == Held(kept.id, True)


def test_known_mail_of_the_older_generation_writes_to_its_row(
    monkeypatch: pytest.MonkeyPatch, store: PostgresStore, admin: psycopg.Connection[Any]
) -> None:
    """Only a commit that wrote something waits for a synchronous standby."""
    hold_at(monkeypatch, store, midnight(-31))
    data = mail()
    held = hold(store, data)
    store.purge(midnight(-30), now())
    assert generations(admin)[1] == set()
    locked_by = "select xmax::text from seen_before where message_id = %s"
    before = admin.execute(locked_by, [held.id]).fetchone()
    assert hold(store, data) == Held(held.id, True)
    assert admin.execute(locked_by, [held.id]).fetchone() != before


def test_concurrent_posts_of_one_mail_are_held_once_while_dedup_keys_are_dropped(store: PostgresStore) -> None:
    everything = UUID(int=(1 << 128) - 1)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            hold(store)
            mails = [mail() for _ in range(10)]
            posts = [pool.submit(lambda: [hold(store, data).id for data in mails]) for _ in range(4)]  # noqa: B023
            postgres_partitions.drop_dedup_keys(store.database, everything, [])  # those of the round before
            first, *others = [post.result() for post in posts]
            assert others == [first] * 3


def test_a_day_with_remaining_mail_stays_complete(monkeypatch: pytest.MonkeyPatch, store: PostgresStore) -> None:
    held = hold_at(monkeypatch, store, midnight(-31))
    assert store.purge(midnight(-31) + timedelta(hours=23), now()).messages == 0
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.HELD
    assert store.purge(midnight(-30), now()).messages == 1


def test_a_purge_waits_for_a_long_reader_while_mail_is_held(
    monkeypatch: pytest.MonkeyPatch, store: PostgresStore, admin: psycopg.Connection[Any]
) -> None:
    hold_at(monkeypatch, store, midnight(-31))
    with ThreadPoolExecutor(1) as pool:
        with admin.transaction():
            admin.execute("select count(*) from delivery").fetchone()
            purge = pool.submit(store.purge, midnight(-30), now())
            longest = 0.0
            for _ in range(60):
                begun = monotonic()
                hold(store)
                longest = max(longest, monotonic() - begun)
            assert not purge.done()
        assert purge.result(timeout=30).messages == 1
    assert longest < 1.5


def test_a_purge_that_never_gets_its_lock_fails_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, store: PostgresStore, admin: psycopg.Connection[Any]
) -> None:
    held = hold_at(monkeypatch, store, midnight(-31))
    monkeypatch.setattr(postgres_partitions, "_DROP_TRIES", 2)
    with admin.transaction():
        admin.execute("select count(*) from delivery").fetchone()
        with pytest.raises(StoreUnavailable, match="long transaction"):
            store.purge(midnight(-30), now())
        assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.HELD
    assert store.purge(midnight(-30), now()).messages == 1


def test_a_body_that_ends_too_early_leaves_no_part_of_a_large_mail(
    store: PostgresStore, admin: psycopg.Connection[Any]
) -> None:
    data = os.urandom(3_000_000)
    with pytest.raises(StoreUnavailable):
        store.messages.add(export(data), Body(io.BytesIO(data[:-1]), 0, len(data)), Tier.SPAM, ())
    for table in (*TABLES, "seen", "recipient"):
        assert admin.execute(f"select count(*) from {table}").fetchone() == (0,)
    assert not store.messages.add(export(data), body(data), Tier.SPAM, ()).known


def test_a_database_that_answers_before_mail_is_durable_is_refused(postgres_dsn: str) -> None:
    name = urlsplit(postgres_dsn).path[1:]
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(sql.Identifier(name)))
    with pytest.raises(StoreUnusable, match="synchronous_commit"):
        PostgresStore.open(postgres_dsn)
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = local").format(sql.Identifier(name)))
    PostgresStore.open(postgres_dsn).close()


def test_a_change_of_many_recipients_waits_for_their_own_act(
    store: PostgresStore, admin: psycopg.Connection[Any]
) -> None:
    """Otherwise it would write back what it read before."""
    prefer(store, ALICE, Preferences(language="fr"))

    def change() -> None:
        store.recipients.change(
            [ALICE],
            lambda person: replace(person, preferences=Preferences(language="de")),
            lambda person: AuditEntry.new(now(), Act.PREFERENCES_SET, BY_OPERATOR, person.recipient),
        )

    with ThreadPoolExecutor(1) as pool:
        with admin.transaction():
            admin.execute("update recipient set stopped_at = now() where recipient = %s", [ALICE])
            changed = pool.submit(change)
            with psycopg.connect(admin.info.dsn, autocommit=True) as other:
                waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
                while not other.execute(waiting).fetchone()[0]:  # type: ignore[index]
                    assert not changed.done()
        changed.result()
    person = store.recipients.get(ALICE)
    assert person.stopped_at is not None and person.preferences.language == "de"
