"""The file store's index of words: how many days a table has, and changes of the retention."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from portal.model.message import Filter, Tier, held_at
from portal.stores.files.search import index_waiting
from portal.stores.files.store import FileStore
from tests.builders import ALICE, BOB, body, export, mail, now

DAY = timedelta(days=1)
MONDAY = datetime(2026, 11, 30, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStore]:
    opened = FileStore.open(tmp_path / "store")
    yield opened
    opened.close()


def hold_at(store: FileStore, at: datetime) -> UUID:
    data = mail()
    return store.messages.add(export(data, recipients=(ALICE,)), body(data), Tier.SPAM, (), at=at).id


def found(store: FileStore, since: datetime | None = None, until: datetime | None = None) -> list[UUID]:
    page = store.deliveries.search(Filter(words="offer", since=since, until=until), 1000)
    return [delivery.id for delivery in page.deliveries]


def tables(store: FileStore) -> list[str]:
    index_waiting(store.db)
    with store.db.read() as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return sorted(name for name in names if re.fullmatch(r"(gone_)?words_\d{8}(_\d+)?", name))


@pytest.mark.parametrize(("retention_days", "most"), [(30, 40), (365, 43), (3650, 46)])
def test_the_number_of_tables_does_not_grow_with_the_retention(
    store: FileStore, retention_days: int, most: int
) -> None:
    store.prepare_days(MONDAY, retention_days)
    days = range(0, retention_days, max(1, retention_days // 100))
    ids = [hold_at(store, MONDAY - day * DAY) for day in days]
    assert found(store) == ids
    assert len(tables(store)) <= most


def test_a_changed_retention_leaves_no_message_out(store: FileStore) -> None:
    """Tables of days and of weeks are next to each other, with messages on both sides of every midnight."""
    ids = []
    for first, retention_days in ((0, 30), (10, 315), (40, 30)):
        store.prepare_days(MONDAY, retention_days)
        for day in range(first, first + 10):
            ids += [
                hold_at(store, MONDAY + day * DAY + offset) for offset in (timedelta(0), DAY - timedelta(seconds=1))
            ]
        assert found(store) == sorted(ids, reverse=True)
        index_waiting(store.db)
    ids += [hold_at(store, MONDAY + day * DAY) for day in range(20, 40)]
    assert found(store) == sorted(ids, reverse=True)
    since, until = MONDAY + 9 * DAY, MONDAY + 22 * DAY
    expected = [id for id in sorted(ids, reverse=True) if since <= held_at(id) < until]
    assert found(store, since, until) == expected
    assert "words_20261210_4" in tables(store), "from Thursday to Sunday, after the last day of the earlier width"
    assert "words_20261214_7" in tables(store)


def test_the_purge_merges_the_index_of_past_days(store: FileStore) -> None:
    """A search reads each segment, and each transaction that indexes messages writes one."""
    days = (0, 3)
    ids = []
    for day in days:
        for _ in range(6):
            ids.append(hold_at(store, now() - day * DAY))
            assert len(found(store)) == len(ids)
            index_waiting(store.db)
    today, past = (f"words_{now() - day * DAY:%Y%m%d}" for day in days)
    assert segments(store, past) == segments(store, today) == 6
    store.purge(now() - 30 * DAY, now())
    assert segments(store, past) == 1
    assert segments(store, today) == 6, "it still gets messages"
    assert found(store) == sorted(ids, reverse=True)


def segments(store: FileStore, table: str) -> int:
    with store.db.read() as connection:
        (count,) = connection.execute(f"SELECT count(DISTINCT segid) FROM {table}_idx").fetchone()
    return int(count)


def test_a_table_is_removed_when_all_its_messages_are(store: FileStore) -> None:
    store.prepare_days(MONDAY, 315)
    ids = [hold_at(store, MONDAY + day * DAY) for day in range(9)]
    assert found(store) == ids[::-1]
    assert tables(store) == ["words_20261130_7", "words_20261207_7"]
    store.purge(MONDAY + 6 * DAY, now())
    assert found(store) == ids[:5:-1]
    assert tables(store) == ["words_20261130_7", "words_20261207_7"]
    store.purge(MONDAY + 7 * DAY, now())
    assert found(store) == ids[:6:-1]
    assert tables(store) == ["words_20261207_7"]


def test_a_search_writes_nothing_and_finds_what_waits_for_the_index(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a message that waits again with more terms, and one of a day that has no table yet."""
    monkeypatch.setattr("portal.stores.files.word_index._BATCH", 1 << 62)  # by chance, a post would index them
    first = hold_at(store, now() - 2 * DAY)
    index_waiting(store.db)
    data = mail()
    held = store.messages.add(export(data, recipients=(ALICE,)), body(data), Tier.SPAM, ()).id
    index_waiting(store.db)
    with store.db.write() as connection:
        connection.execute("CREATE TRIGGER no_delete BEFORE DELETE ON unindexed BEGIN SELECT RAISE(ABORT, ''); END")
    store.messages.add(export(data, recipients=(BOB,)), body(data), Tier.DANGEROUS, ())
    old = hold_at(store, now() - 4 * DAY)
    dangerous = Filter(words="offer", tiers=frozenset({Tier.DANGEROUS}), recipient=ALICE)
    assert [each.id for each in store.deliveries.search(dangerous, 10).deliveries] == [held]
    assert set(found(store)) == {first, held, old, *store.messages.ids(held, 10)}
    assert found(store) == sorted(found(store), reverse=True)
    assert len(set(found(store))) == len(found(store))
