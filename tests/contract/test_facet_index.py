"""The index for searches of staff: what is written when, and what a search says about messages that are not in it."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, tzinfo
from typing import Any
from uuid import UUID

import pytest

from portal.model.message import Filter, Message, Symbol, Tier
from portal.stores import Store
from portal.stores.facets import FacetRow, facet_row
from portal.stores.files import facets as of_files
from portal.stores.files.session import SqliteEngine
from portal.stores.postgres import facets as of_postgres
from portal.stores.postgres.session import PostgresEngine
from portal.stores.postgres.store import PostgresStore
from portal.stores.records import GroupBy, Page, Total
from portal.stores.shared import facet_hits, facet_index, facet_rows
from portal.stores.shared import facets as shared
from tests.builders import hold, mail, now
from tests.contract.helpers import DAY, SLOW

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
BAD = (Symbol("FUZZY_DENIED", 12.0),)
WANTED = Filter(symbols=("FUZZY_DENIED",))


def index(store: Store) -> None:
    while store.facets.index():
        pass


def found(store: Store) -> list[UUID]:
    return [delivery.id for delivery in store.facets.page(WANTED, 50).deliveries]


def set_clock(monkeypatch: pytest.MonkeyPatch, ahead: timedelta) -> None:
    """Set the store's clock."""
    for engine in (SqliteEngine, PostgresEngine):
        clock = f"cast(cast({engine.clock} as double precision) + {ahead.total_seconds()} as text)"
        monkeypatch.setattr(engine, "clock", clock)


def test_a_statement_that_takes_too_long_is_ended(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(store, symbols=BAD)
    index(store)
    conditions = facet_hits.conditions
    for engine in (of_files, of_postgres):
        monkeypatch.setattr(engine, "conditions", lambda *some: ([*conditions(*some)[0], SLOW], conditions(*some)[1]))
    for name in ("_PAGE_SECONDS", "_COUNT_SECONDS", "_GROUPS_SECONDS"):
        monkeypatch.setattr(shared, name, 0.3)
    began = time.monotonic()
    assert store.facets.page(WANTED, 9) == Page((), None, is_cut=True)
    assert store.facets.count(WANTED) == Total(0, exact=False)
    assert not store.facets.groups(Filter(), GroupBy.SYMBOL).total.exact
    assert time.monotonic() - began < 8
    monkeypatch.undo()
    assert len(found(store)) == 2


def test_what_was_found_before_that_is_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = (hold(store, symbols=BAD, recipients=["a@example.org"], at=now() - DAY * n) for n in (9, 0))
    index(store)
    conditions = facet_hits.conditions

    def slow(*some: Any) -> tuple[list[str], dict[str, Any]]:
        where, values = conditions(*some)
        is_old = f"case when d.message_id <= :old_id then {SLOW} else 1 = 1 end"
        return [*where, is_old], {**values, "old_id": old.id}

    for engine in (of_files, of_postgres):
        monkeypatch.setattr(engine, "conditions", slow)
    monkeypatch.setattr(shared, "_PAGE_SECONDS", 0.3)
    page = store.facets.page(WANTED, 1)
    assert [delivery.id for delivery in page.deliveries] in ([new.id], [])  # files search all days at once
    assert page.is_cut
    assert bool(page.next) == bool(page.deliveries)


def test_a_clock_that_is_ahead_hides_no_messages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(store, symbols=BAD)
    set_clock(monkeypatch, HOUR)
    index(store)
    store.facets.count(WANTED)
    monkeypatch.undo()
    assert hold(store, symbols=BAD).id in found(store)


@pytest.mark.parametrize("by_search", [True, False])
def test_a_cursor_in_the_future_is_set_back(store: Store, monkeypatch: pytest.MonkeyPatch, by_search: bool) -> None:
    hold(store)
    index(store)
    set_clock(monkeypatch, HOUR)
    hold(store, symbols=BAD, at=now() + HOUR)  # by a program on the same host
    assert len(found(store)) == 2
    monkeypatch.undo()
    held = hold(store, symbols=BAD, at=now() + timedelta(seconds=1))
    if not by_search:
        assert store.repair_clock_skew(now()) == 1
        assert store.repair_clock_skew(now()) == 0
    assert held.id in found(store)
    assert not store.facets.count(WANTED).indexed  # others may have been missed since
    index(store)
    assert store.facets.count(WANTED) == Total(4, exact=True)


@pytest.mark.parametrize("ahead", [10 * MINUTE, -10 * MINUTE])
def test_hosts_whose_clocks_differ_do_not_index_everything_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, ahead: timedelta
) -> None:
    hold(store, symbols=BAD, recipients=["a@example.org"], at=now() - 3 * DAY)
    index(store)
    for count in (3, 5):
        with monkeypatch.context() as patch:  # a program on the other host
            patch.setattr(facet_index, "datetime", clock_of(ahead))
            hold(store, symbols=BAD, recipients=["a@example.org"], at=None if is_of_files(store) else now() + ahead)
            store.facets.index()
            assert store.repair_clock_skew(now() + ahead) == 0
        hold(store, symbols=BAD, recipients=["a@example.org"])
        assert store.facets.count(WANTED) == Total(count, exact=True)
        assert store.repair_clock_skew(now()) == 0


def clock_of(ahead: timedelta) -> type[datetime]:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + ahead

    return Clock


def is_of_files(store: Store) -> bool:
    """Return whether all programs that use the store run on one host."""
    return not isinstance(store, PostgresStore)


def test_only_the_index_writes_its_rows(store: Store) -> None:
    """A worse verdict does not wait for the index, and is found by the next search."""
    data = mail()
    held = hold(store, data)
    index(store)
    with store.engine.reading() as session:  # type: ignore[attr-defined]
        before = session.many("select tier, symbols from facet")
    hold(store, data, tier=Tier.DANGEROUS, symbols=BAD)
    with store.engine.reading() as session:  # type: ignore[attr-defined]
        assert session.many("select tier, symbols from facet") == before
    assert set(found(store)) == {held.id}
    with store.engine.reading() as session:  # type: ignore[attr-defined]
        assert session.many("select * from stale_facet") == []


def test_counts_are_not_exact_while_older_messages_are_not_indexed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(store, symbols=BAD, recipients=["a@example.org"], at=now() - 3 * DAY)
    hold(store, symbols=BAD, recipients=["a@example.org"])
    assert store.facets.count(WANTED) == Total(1, exact=False, indexed=False)
    assert store.facets.groups(Filter(), GroupBy.HOUR).total == Total(1, exact=False, indexed=False)
    assert not store.facets.page(WANTED, 9).indexed
    index(store)
    assert store.facets.count(WANTED) == Total(2, exact=True)
    assert store.facets.page(WANTED, 9).indexed
    monkeypatch.setattr(facet_index, "_CATCH_UP", 0)  # more wait than a search indexes
    hold(store, symbols=BAD)
    assert store.facets.count(WANTED) == Total(2, exact=False, indexed=False)


def test_copied_messages_are_missing_until_they_are_indexed(store: Store) -> None:
    index(store)
    hold(store, symbols=BAD, at=now() - 3 * DAY)
    store.facets.recheck()
    assert store.facets.count(WANTED).indexed
    store.facets.recheck(are_missing=True)
    assert not store.facets.count(WANTED).indexed
    index(store)
    assert store.facets.count(WANTED) == Total(2, exact=True)


@pytest.mark.parametrize("is_of_store", [False, True])
def test_a_message_that_cannot_be_indexed_is_skipped(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_of_store: bool
) -> None:
    def row(message: Message, *rest: Any) -> FacetRow:
        made = facet_row(message, *rest)
        if message.subject == "Not indexed":
            if not is_of_store:
                raise ValueError(message.subject)
            made = made._replace(action="\ud800", size_bytes=1 << 64)  # neither engine stores both
        return made

    monkeypatch.setattr(facet_rows, "facet_row", row)
    bad = hold(store, subject="Not indexed", symbols=BAD)
    good = hold(store, subject="Indexed", symbols=BAD)
    assert set(found(store)) == {good.id}
    assert f"id={bad.id}" in caplog.text
    assert "Not indexed" not in caplog.text
    caplog.clear()
    index(store)
    assert not caplog.text  # once
    assert store.stats(now()).not_indexed == 1
    assert store.facets.count(Filter()) == Total(4, exact=True)
