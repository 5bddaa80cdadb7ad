"""Partitions of the PostgreSQL store: their width, changes of the retention, and the purge of partitions of weeks."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
import pytest

from portal.model.message import DeliveryId, EventKind, Filter, Reader, State, Tier, held_at
from portal.stores.lifecycle import width_days
from portal.stores.postgres import partitions as postgres_partitions
from portal.stores.postgres.store import PostgresStore
from portal.stores.records import Held
from tests.builders import ALICE, BOB, BY_LINK, body, digesting, export, mail, now
from tests.statements import Statements

DAY = timedelta(days=1)
TABLES = ("announced_to", "body_chunk", "delivery", "event", "message")
# How version 0.2.0 reads the day that it believes a partition to have. It drops partitions of old days.
NAME_IN_0_2_0 = re.compile(r"(?:" + "|".join(TABLES) + r")_(\d{4})(\d\d)(\d\d)")
MONDAY = datetime(2026, 11, 30, tzinfo=UTC)
WEEKS = 315  # a retention with partitions of seven days


class Range(NamedTuple):
    """The first time of a partition, and the first time after it."""

    first: datetime
    end: datetime

    @property
    def days(self) -> float:
        return (self.end - self.first) / DAY


@pytest.fixture
def admin(postgres_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def store(postgres_dsn: str, admin: psycopg.Connection[Any]) -> Iterator[PostgresStore]:
    """A store without partitions."""
    for table in (*TABLES, "facet"):
        for name in names(admin, table):
            admin.execute(f"drop table {name}")
    opened = PostgresStore.open(postgres_dsn)
    yield opened
    opened.close()


def names(admin: psycopg.Connection[Any], table: str) -> list[str]:
    rows = admin.execute("select inhrelid::regclass::text from pg_inherits where inhparent = %s::regclass", [table])
    return [name for (name,) in rows]


def ranges(admin: psycopg.Connection[Any], table: str = "message") -> list[Range]:
    """Return the ranges of a table's partitions as the server has them, oldest first."""
    rows = admin.execute(
        "select pg_get_expr(c.relpartbound, c.oid) from pg_inherits i join pg_class c on c.oid = i.inhrelid"
        " where i.inhparent = %s::regclass",
        [table],
    )
    return sorted(Range(*(held_at(UUID(bound)) for bound in re.findall(r"'(.+?)'", text))) for (text,) in rows)


def hold_at(
    store: PostgresStore,
    at: datetime,
    data: bytes | None = None,
    recipients: Sequence[str] = (ALICE,),
    subject: str = "Offer",
) -> Held:
    data = mail() if data is None else data
    exported = export(data, recipients=tuple(recipients), subject=subject)
    return store.messages.add(exported, body(data), Tier.SPAM, recipients, at=at)


def held(store: PostgresStore) -> list[UUID]:
    return [delivery.id for delivery in store.deliveries.list_for(Reader(ALICE), {State.HELD}, 1000).deliveries]


def assert_contiguous(admin: psycopg.Connection[Any]) -> None:
    """Check that all tables have the same partitions, without gaps (the server refuses overlaps)."""
    for table in TABLES:
        assert ranges(admin, table) == ranges(admin)
    assert all(one.end == other.first for one, other in itertools.pairwise(ranges(admin)))


@pytest.mark.parametrize(
    ("retention_days", "days"),
    [(1, 1), (30, 1), (45, 1), (46, 2), (90, 2), (WEEKS, 7), (365, 9), (1350, 30), (3650, 82)],
)
def test_the_width_follows_the_retention(
    store: PostgresStore, admin: psycopg.Connection[Any], retention_days: int, days: int
) -> None:
    store.prepare_days(MONDAY, retention_days)
    for day in (*range(0, retention_days, min(days, 7)), retention_days - 1):
        postgres_partitions.make_partitions(store.database, (MONDAY - day * DAY).date())
    assert {each.days for each in ranges(admin)} == {days}
    assert ranges(admin)[0].first <= MONDAY - (retention_days - 1) * DAY
    assert ranges(admin)[-1].end >= MONDAY + 8 * DAY
    assert len(ranges(admin)) <= 54
    assert_contiguous(admin)


@pytest.mark.parametrize(("before", "after"), [(30, WEEKS), (WEEKS, 30), (30, 500)])
def test_a_changed_retention_leaves_no_gap_between_old_and_new_partitions(
    store: PostgresStore, admin: psycopg.Connection[Any], before: int, after: int
) -> None:
    for day in range(60):  # as the daily job runs; the day of the change is a Wednesday
        at = MONDAY + day * DAY
        store.prepare_days(at, before if day < 30 else after)
        assert any(each.first <= at + 7 * DAY < each.end for each in ranges(admin))
    assert_contiguous(admin)
    old, new = (width_days(retention) for retention in (before, after))
    assert ranges(admin)[0].days == old
    assert ranges(admin)[-1].days == new
    ids = [hold_at(store, MONDAY + day * DAY).id for day in range(60)]
    assert held(store) == ids[::-1]


def test_gaps_are_filled_on_demand_up_to_the_neighbours(store: PostgresStore, admin: psycopg.Connection[Any]) -> None:
    """Hold mail on both sides of every midnight, of a clock that is ahead, and after days without a daily job."""
    store.prepare_days(MONDAY + 2 * DAY, 30)  # day partitions from Wednesday to Wednesday
    store.prepare_days(MONDAY + 17 * DAY, WEEKS)
    for day in (60, 3, 14, 25, 11, -1, 12):
        hold_at(store, MONDAY + day * DAY)
    for day in range(-2, 61):
        for offset in (-1, 0):
            hold_at(store, MONDAY + day * DAY + timedelta(milliseconds=offset))
    assert_contiguous(admin)
    found = held(store)
    assert len(found) == 7 + 2 * 63
    assert all(b"".join(store.messages.body(id)) for id in found)
    assert [each.days for each in ranges(admin)] == [7, 2, *[1] * 8, 4, *[7] * 7]


def test_partitions_of_several_days_are_not_dropped_by_an_older_program(
    store: PostgresStore, admin: psycopg.Connection[Any]
) -> None:
    """Version 0.2.0 drops partitions by the day in their name, also if they have more days."""
    store.prepare_days(MONDAY, WEEKS)
    assert [name for table in TABLES for name in names(admin, table) if NAME_IN_0_2_0.search(name)] == []
    store.prepare_days(MONDAY + 60 * DAY, 30)
    assert [name for table in TABLES for name in names(admin, table) if NAME_IN_0_2_0.search(name)]


def test_the_purge_drops_a_week_when_all_its_days_are_past(
    store: PostgresStore, admin: psycopg.Connection[Any]
) -> None:
    store.prepare_days(MONDAY, WEEKS)
    data = mail()
    first = hold_at(store, MONDAY, data)
    last = hold_at(store, MONDAY + 7 * DAY - timedelta(milliseconds=1))
    following = hold_at(store, MONDAY + 7 * DAY)
    assert store.purge(MONDAY + 7 * DAY - timedelta(seconds=1), now()).messages == 0
    assert held(store) == [following.id, last.id, first.id]
    again = hold_at(store, MONDAY + 8 * DAY, data)
    assert (again.id, again.known) == (first.id, True), "it is still held, so it is not held twice"
    assert store.purge(MONDAY + 7 * DAY, now()).messages == 2
    assert held(store) == [following.id]
    assert ranges(admin)[0].first == MONDAY + 7 * DAY
    assert_contiguous(admin)
    assert not hold_at(store, MONDAY + 8 * DAY, data).known


def test_the_purge_of_a_week_keeps_requested_mail(store: PostgresStore, admin: psycopg.Connection[Any]) -> None:
    store.prepare_days(MONDAY, WEEKS)
    data = mail()
    for day in range(7):
        hold_at(store, MONDAY + day * DAY, recipients=[BOB])
    kept = hold_at(store, MONDAY + 3 * DAY, data)
    key = DeliveryId(kept.id, 0)
    store.deliveries.move(key, State.REQUESTED, {State.HELD}, BY_LINK, now(), kind=EventKind.REQUESTED)
    purged = store.purge(MONDAY + 7 * DAY, now())
    assert (purged.messages, purged.kept) == (7, 1)
    assert b"".join(store.messages.body(kept.id)) == data
    assert hold_at(store, MONDAY + 8 * DAY, data).id == kept.id
    assert ranges(admin)[0] == Range(MONDAY, MONDAY + 7 * DAY)
    store.deliveries.move(key, State.HELD, {State.REQUESTED}, BY_LINK, now(), kind=EventKind.REFUSED)
    assert store.purge(MONDAY + 7 * DAY, now()).messages == 1
    assert ranges(admin)[0].first == MONDAY + 7 * DAY


def test_a_table_with_other_partitions_than_the_rest_is_purged_as_well(
    store: PostgresStore, admin: psycopg.Connection[Any]
) -> None:
    """An older program did not create `announced_to`; it gets weeks where the other tables have days."""
    store.prepare_days(MONDAY, 30)
    for name in names(admin, "announced_to"):
        admin.execute(f"drop table {name}")
    store.prepare_days(MONDAY, WEEKS)
    reader = Reader(ALICE, (), {ALICE: (ALICE, BOB)})
    for day in range(8):
        hold_at(store, MONDAY + day * DAY)
    with digesting(store, reader, now(), 20, ignore_schedule=True) as digest:
        assert len(digest.deliveries) == 8
    assert [each.days for each in ranges(admin, "announced_to")] == [7, 7]
    assert store.purge(MONDAY + 3 * DAY, now()).messages == 3
    assert store.digests.unannounced(reader, 20) == []
    assert store.purge(MONDAY + 7 * DAY, now()).messages == 4
    assert ranges(admin, "announced_to") == [Range(MONDAY + 7 * DAY, MONDAY + 14 * DAY)]


def test_a_purge_that_was_interrupted_does_not_keep_the_index_busy(
    store: PostgresStore, admin: psycopg.Connection[Any]
) -> None:
    """Messages of days without other partitions: the index ends, and finds what else there is."""
    store.prepare_days(MONDAY, WEEKS)
    for day in (3, 9):
        hold_at(store, MONDAY + day * DAY)
    for table in ("delivery", "event", "announced_to", "facet"):  # those that a purge drops before `message`
        for name in names(admin, table)[:1]:
            admin.execute(f"drop table {name}")
    turns = 0
    while store.facets.index():
        turns += 1
        assert turns < 10
    assert store.facets.is_complete()
    assert store.facets.count(Filter()).count == 1


def test_a_search_over_a_year_takes_few_statements(
    monkeypatch: pytest.MonkeyPatch, store: PostgresStore, postgres_dsn: str
) -> None:
    today = now()
    store.prepare_days(today, 365)
    ids = [hold_at(store, today - day * DAY, subject="special").id for day in range(0, 365, 7)]
    statements = Statements(monkeypatch)
    counted = PostgresStore.open(postgres_dsn)
    for words, found in (("absent", []), ("special", ids)):
        with statements.of() as sent:
            page = counted.deliveries.search(Filter(words=words), 100)
        assert [delivery.id for delivery in page.deliveries] == found
        queries = [statement for statement in sent if "@@" in statement]
        assert len(queries) <= 7, "one for each partition would be 43"
    pages, before = [], None
    while True:
        page = counted.deliveries.search(Filter(words="special"), 5, before)
        pages += [delivery.id for delivery in page.deliveries]
        if (before := page.next) is None:
            break
    assert pages == ids
    since, until = today - 100 * DAY, today - 50 * DAY
    page = counted.deliveries.search(Filter(words="special", since=since, until=until), 100)
    assert [delivery.id for delivery in page.deliveries] == [id for id in ids if since <= held_at(id) < until]
    counted.close()
