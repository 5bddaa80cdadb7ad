"""`IdempotencyKeys` on every store."""

from __future__ import annotations

import pytest

from portal.model.errors import AlreadyDone, KeyReused
from portal.stores import LEASE, Store
from tests.builders import now
from tests.contract.helpers import DAY, SECOND, concurrently

KEY, REQUEST, OTHER = b"k" * 32, b"r" * 32, b"o" * 32


def test_a_repeated_request_gets_its_first_answer_for_a_day(store: Store, second: Store) -> None:
    at = now()
    assert store.idempotency.begin(KEY, REQUEST, at) is None
    with pytest.raises(AlreadyDone):
        second.idempotency.begin(KEY, REQUEST, at + SECOND)
    store.idempotency.finish(KEY, at, b"{}")
    assert second.idempotency.begin(KEY, REQUEST, at + DAY - SECOND) == b"{}"
    with pytest.raises(KeyReused):
        second.idempotency.begin(KEY, OTHER, at + SECOND)
    assert second.idempotency.begin(OTHER, OTHER, at) is None, "another key"
    assert second.idempotency.begin(KEY, OTHER, at + DAY) is None, "after a day it is a new one"


def test_a_request_without_an_answer_may_be_repeated(store: Store) -> None:
    at = now()
    assert store.idempotency.begin(KEY, REQUEST, at) is None
    store.idempotency.forget(KEY, at)
    assert store.idempotency.begin(KEY, REQUEST, at) is None
    assert store.idempotency.begin(KEY, REQUEST, at + LEASE) is None, "its process died"


def test_a_late_end_of_a_request_that_began_again_has_no_effect(store: Store) -> None:
    first = now()
    store.idempotency.begin(KEY, REQUEST, first)
    again = first + LEASE
    store.idempotency.begin(KEY, REQUEST, again)
    store.idempotency.finish(KEY, first, b"late")
    store.idempotency.forget(KEY, first)
    with pytest.raises(AlreadyDone):
        store.idempotency.begin(KEY, REQUEST, again + SECOND)
    store.idempotency.finish(KEY, again, b"{}")
    store.idempotency.forget(KEY, again)
    assert store.idempotency.begin(KEY, REQUEST, again + SECOND) == b"{}"


def test_of_equal_requests_at_once_one_is_performed(store: Store, second: Store) -> None:
    at = now()
    results = concurrently(8, lambda number: (store, second)[number % 2].idempotency.begin(KEY, REQUEST, at))
    assert results.count(None) == 1 and sum(isinstance(each, AlreadyDone) for each in results) == 7


def test_old_keys_are_removed_by_the_purge(store: Store) -> None:
    at = now()
    store.idempotency.begin(KEY, REQUEST, at)
    store.idempotency.finish(KEY, at, b"{}")
    store.purge(at - DAY, at + DAY + SECOND)
    assert store.idempotency.begin(KEY, OTHER, at) is None
