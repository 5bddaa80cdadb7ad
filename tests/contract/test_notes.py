"""`Notes` on every store: values, counters, compare and set."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from portal.stores import Store
from portal.stores.shared import notes
from tests.builders import now
from tests.contract.helpers import concurrently


def test_totals_are_added_up_by_all(store: Store, second: Store) -> None:
    assert store.notes.counters() == {}
    concurrently(
        10, lambda number: (store, second)[number % 2].notes.add_counters({"sent": 2, "seconds": 0.5, "failed": 0})
    )
    assert second.notes.counters() == {"sent": 20, "seconds": 5, "failed": 0}


def test_what_is_counted_while_somebody_waits_is_written_soon(
    store: Store, second: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes, "COUNT_SECONDS", 0.05)
    concurrently(10, lambda number: store.notes.count({"posts": 2, "seconds": 0.25}))
    wait_until(lambda: second.notes.counters() == {"posts": 20, "seconds": 2.5})
    monkeypatch.setattr(notes, "COUNT_SECONDS", 60.0)
    store.notes.count({"posts": 1})
    store.close()
    assert second.notes.counters()["posts"] == 21


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_counters_are_written_after_an_unexpected_error(
    store: Store, second: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes, "COUNT_SECONDS", 0.01)
    failed = threading.Event()

    def fails(*_: object) -> None:
        failed.set()
        raise ZeroDivisionError

    with monkeypatch.context() as failing:
        failing.setattr(notes.SqlNotes, "add_counters", fails)
        store.notes.count({"posts": 1})
        assert failed.wait(10)
        wait_until(lambda: all(thread.name != "counters" for thread in threading.enumerate()))
    store.notes.count({"posts": 2})
    wait_until(lambda: second.notes.counters().get("posts") == 3)


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(200):
        if is_so():
            return
        time.sleep(0.05)
    pytest.fail("it did not become so")


def test_of_many_concurrent_compare_and_sets_one_succeeds(store: Store, second: Store) -> None:
    for old, new in ((None, "a"), ("a", "b"), ("b", "")):

        def compare_and_set(number: int, old: str | None = old, new: str = new) -> bool:
            return (store, second)[number % 2].notes.compare_and_set("outage", old, new, now())

        results = concurrently(6, compare_and_set)
        assert sorted(results) == [False] * 5 + [True]
        assert store.notes.get("outage") == new
    assert not store.notes.compare_and_set("outage", None, "c", now())


def test_the_first_default_is_kept(store: Store) -> None:
    assert store.notes.set_default("links.key", "one") == "one"
    assert store.notes.set_default("links.key", "two") == "one"
    assert store.notes.set_default("other", "two") == "two"
    store.notes.set("links.key", "three")
    assert store.notes.set_default("links.key", "four") == "three"


def test_20_concurrent_defaults_all_get_the_same_value(store: Store, second: Store) -> None:
    results = concurrently(20, lambda n: (store, second)[n % 2].notes.set_default("links.key", str(n)))
    assert len(set(results)) == 1
