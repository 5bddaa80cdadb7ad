"""Outcomes of sent mail while its store is unavailable, on every store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from portal.model.errors import StoreUnavailable
from portal.model.message import DeliveryId, EventKind, Reader, State
from portal.stores import LEASE, Store, open_store
from portal.stores.records import QueuedMail
from tests.builders import ALICE, BY_LINK, hold, now
from tests.contract.helpers import MINUTE, SECOND, claimed, due, unavailable


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_release_that_the_mail_server_accepted_is_recorded_once_the_store_is_back(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    key, at = DeliveryId(hold(store).id, 0), now()
    with unavailable(store):
        pass
    release = store.deliveries.releasing(key, {State.HELD}, BY_LINK, at, lambda: "250 taken")
    release.__enter__()
    with unavailable(store):
        release.__exit__(None, None, None)
    wait_until(lambda: store.deliveries.get(key).state is State.RELEASED)
    assert [event.detail for event in store.deliveries.history(key) if event.kind is EventKind.RELEASED] == [
        "250 taken"
    ]
    assert "kept in memory" in caplog.text


def test_nothing_is_claimed_before_what_is_known_is_recorded(store: Store) -> None:
    """However long the store is unavailable: the claims have ended when it is back."""
    at = now()
    [who] = due(store, 1, at)
    key = DeliveryId(hold(store).id, 0)
    store.outbox.add(QueuedMail(ALICE, b"Subject: sign in\r\n\r\n"), at)
    release, mail = store.deliveries.releasing(key, {State.HELD}, BY_LINK, at), store.outbox.sending(at)
    release.__enter__()
    mail.__enter__()
    digests = store.digests.claim(at, 1, 10).digests
    with unavailable(store):
        release.__exit__(None, None, None)
        mail.__exit__(None, None, None)
        store.digests.settle(digests, [], at)
        with pytest.raises(StoreUnavailable):
            store.digests.claim(at + 2 * LEASE, 1, 10)
    later = at + 2 * LEASE
    assert claimed(store.digests.claim(later, 9, 10)) == []
    assert list(store.deliveries.due_releases(later, 10)) == []
    assert store.recipients.get(who).news_since is None
    assert store.deliveries.get(key).state is State.RELEASED
    with store.outbox.sending(later) as outgoing:
        assert outgoing is None


def test_an_answer_to_a_commit_that_was_lost_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store recorded the outcome and then failed: it is recorded again."""
    key, at = DeliveryId(hold(store).id, 0), now()
    engine = store.deliveries._engine  # type: ignore[attr-defined]
    writing = engine.writing

    @contextmanager
    def committed_and_lost(**values: object) -> Iterator[object]:
        with writing(**values) as session:
            yield session
        monkeypatch.undo()
        raise StoreUnavailable("the connection was closed")

    with store.deliveries.releasing(key, {State.HELD}, BY_LINK, at, lambda: "250 taken"):
        monkeypatch.setattr(engine, "writing", committed_and_lost)
    wait_until(lambda: not store.outcomes._kept)  # type: ignore[attr-defined]
    assert [event.kind for event in store.deliveries.history(key)].count(EventKind.RELEASED) == 1


def test_a_store_that_is_closed_records_what_it_can(store_url: str, store: Store) -> None:
    [who] = due(store, 1, at := now())
    digests = store.digests.claim(at, 1, 10).digests
    with unavailable(store):
        store.digests.settle(digests, [], at)
    store.close()
    reopened = open_store(store_url)
    assert list(reopened.digests.unannounced(Reader(who), 10)) == []
    reopened.close()


def test_an_outcome_that_can_never_be_recorded_stops_nothing_else(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise StoreUnavailable("no partition of relation")

    outcomes = store.outcomes  # type: ignore[attr-defined]
    outcomes.record("release id=1", fail)
    for _ in range(100):
        with suppress(StoreUnavailable):
            outcomes.record_kept()
    assert "lost, may be sent again: release id=1: no partition" in caplog.text
    assert claimed(store.digests.claim(now(), 1, 10)) == []


def test_a_failure_is_not_kept(store: Store) -> None:
    """It is tried again when its claim ends, which sends nothing twice."""
    key, at = DeliveryId(hold(store).id, 0), now()
    release = store.deliveries.releasing(key, {State.HELD}, BY_LINK, at)
    release.__enter__()
    with unavailable(store):
        assert not release.__exit__(RuntimeError, RuntimeError("x"), None)
    assert store.deliveries.get(key).state is State.RELEASING
    assert list(store.deliveries.due_releases(at + LEASE + SECOND, 10)) == [key]
    assert not list(store.deliveries.due_releases(at + MINUTE, 10))
