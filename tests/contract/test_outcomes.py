"""Outcomes of sent mail while its store is unavailable, on every store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

import pytest

from portal.model.errors import AlreadyDone, QuarantineError, RelayDeferred, RelayRefused, StoreUnavailable
from portal.model.message import DeliveryId, EventKind, Reader, State
from portal.stores import LEASE, Store, open_store
from portal.stores.records import QueuedMail, Unsent
from portal.stores.shared import outcomes
from tests.builders import ALICE, BOB, BY_LINK, hold, now
from tests.contract.helpers import HOUR, claimed, due, unavailable


def kept(store: Store) -> bool:
    return bool(store.outcomes._kept)  # type: ignore[attr-defined]


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
    wait_until(lambda: not kept(store))
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


@pytest.mark.parametrize(
    ("error", "state", "kind"),
    [
        (RelayRefused("550 no such user"), State.HELD, EventKind.FAILED),
        (RelayDeferred("451 try later"), State.RELEASING, EventKind.DEFERRED),
    ],
    ids=["5xx", "4xx"],
)
def test_a_failure_is_recorded_once_the_store_is_back(
    store: Store, error: QuarantineError, state: State, kind: EventKind
) -> None:
    """The reason is shown, and the next try is made as late as the mail server's answer asks."""
    key, at = DeliveryId(hold(store).id, 0), now()
    [who] = due(store, 1, at)
    [digest] = store.digests.claim(at, 1, 10).digests
    release = store.deliveries.releasing(key, {State.HELD}, BY_LINK, at)
    release.__enter__()
    with unavailable(store):
        assert not release.__exit__(type(error), error, None)
        assert not store.digests.settle([], [Unsent(digest, not_before=at + HOUR, failure=str(error))], at)
    wait_until(lambda: not kept(store))
    assert (store.deliveries.get(key).state, store.deliveries.get(key).reason) == (state, str(error))
    assert [event.detail for event in store.deliveries.history(key) if event.kind is kind] == [str(error)]
    assert store.recipients.get(who).failure == str(error)
    assert claimed(store.digests.claim(at + 2 * LEASE, 9, 10)) == []


@contextmanager
def claims_of_all_kinds(store: Store, at: datetime) -> Iterator[tuple[str, DeliveryId]]:
    """Claim a release, a digest and a mail, in a process that dies or has no answer during the block. Yield the
    recipient and the delivery."""
    [who] = due(store, 1, at)
    key = DeliveryId(hold(store).id, 0)
    store.outbox.add(QueuedMail(ALICE, b"Subject: sign in\r\n\r\n"), at)
    store.digests.claim(at, 1, 10)
    with store.deliveries.releasing(key, {State.HELD}, BY_LINK, at), store.outbox.sending(at):
        yield who, key


def taken_over(store: Store, at: datetime, who: str, key: DeliveryId) -> list[str]:
    """Return which of the claims of `claims_of_all_kinds` this process takes over."""
    found = []
    if list(store.deliveries.due_releases(at, 10)) == [key]:
        found.append("due release")
    with suppress(AlreadyDone), store.deliveries.releasing(key, set(), BY_LINK, at):
        found.append("release")
    if claimed(store.digests.claim(at, 9, 10)) == [who]:
        found.append("digest")
    elif claimed(store.digests.claim(at, 9, 10, only=[who], ignore_schedule=True)) == [who]:
        found.append("digest by name")
    with store.outbox.sending(at) as mail:
        if mail is not None:
            found.append("mail")
    return found


@pytest.mark.parametrize("since", ["outage", "start"])
def test_claims_of_others_are_taken_over_some_seconds_after_an_outage(
    store: Store, second: Store, since: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then the processes that made them, if they live, have recorded what they know."""
    later = (at := now()) + 2 * LEASE
    with claims_of_all_kinds(store, at) as claims:
        if since == "outage":
            monkeypatch.setattr(outcomes, "TAKE_OVER_SECONDS", 0)
            second.heartbeat(at)
            with unavailable(second), pytest.raises(StoreUnavailable):
                second.heartbeat(at)
            assert taken_over(second, later, *claims) == []  # it is back, but this process has not noticed it yet
            monkeypatch.undo()
        second.heartbeat(at)
        assert taken_over(second, later, *claims) == []
        monkeypatch.setattr(outcomes, "TAKE_OVER_SECONDS", 0)
        assert taken_over(second, later, *claims) == ["due release", "release", "digest", "mail"]


def test_what_nobody_sends_does_not_wait_after_an_outage(store: Store, second: Store) -> None:
    later = (at := now()) + 2 * LEASE
    key = DeliveryId(hold(store, recipients=[BOB]).id, 0)
    store.recipients.schedule(BOB, at)
    release = store.deliveries.releasing(DeliveryId(hold(store).id, 0), {State.HELD}, BY_LINK, at)
    with suppress(RelayDeferred), release as deferred:
        raise RelayDeferred("451 try later")
    with claims_of_all_kinds(store, at):
        second.heartbeat(at)
        assert claimed(second.digests.claim(later, 9, 10)) == [BOB]
        assert list(second.deliveries.due_releases(later, 10)) == [deferred.key]
        for each, allowed in ((deferred.key, set()), (key, {State.HELD})):
            with second.deliveries.releasing(each, allowed, BY_LINK, later):
                pass


def test_only_a_retry_takes_a_release_over(store: Store, second: Store) -> None:
    """The digest process continues it within seconds. A web worker does not notice outages."""
    later = (at := now()) + 2 * LEASE
    with claims_of_all_kinds(store, at) as (_, key):
        with pytest.raises(AlreadyDone), second.deliveries.releasing(key, {State.HELD}, BY_LINK, later):
            pass
        with second.deliveries.releasing(key, set(), BY_LINK, later):
            pass


@pytest.mark.parametrize("answer", ["250", "550"])
def test_an_outcome_recorded_after_a_takeover_counts(store: Store, second: Store, answer: str) -> None:
    """A host that was cut off for longer than the lease counts as dead, and another one sends the message again."""
    key, at = DeliveryId(hold(store).id, 0), now()
    release = store.deliveries.releasing(key, {State.HELD}, BY_LINK, at, lambda: "250 first")
    release.__enter__()
    with unavailable(store):
        release.__exit__(None, None, None)
        retry = second.deliveries.releasing(key, set(), BY_LINK, at + 2 * LEASE, lambda: "250 second")
        with suppress(RelayRefused), retry:
            if answer == "550":
                raise RelayRefused("550 seen before")
    wait_until(lambda: not kept(store))
    assert store.deliveries.get(key).state is State.RELEASED
    kinds = [(event.kind, event.detail) for event in store.deliveries.history(key)]
    other = (EventKind.RELEASED, "250 second") if answer == "250" else (EventKind.FAILED, "550 seen before")
    assert set(kinds) >= {(EventKind.RELEASED, "250 first"), other}


def test_a_connection_that_was_lost_is_no_outage(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [StoreUnavailable("terminating connection")]

    def write() -> None:
        if failures:
            raise failures.pop()

    assert store.outcomes.record("release id=1", write)  # type: ignore[attr-defined]
    assert not caplog.text


def test_a_process_that_ends_waits_for_the_store(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    [who] = due(store, 1, at := now())
    digests = store.digests.claim(at, 1, 10).digests
    with unavailable(store):
        store.digests.settle(digests, [], at)
        ending = threading.Thread(target=store.close_outcomes, args=[20.0])
        ending.start()
        wait_until(lambda: "waiting up to 20 s for the store, to record: digests id=" in caplog.text)
    ending.join()
    assert list(store.digests.unannounced(Reader(who), 10)) == []
    assert "lost" not in caplog.text


def test_a_process_that_ends_names_what_it_could_not_record(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """In time, also if the store neither answers nor fails."""
    is_asked, may_end = threading.Event(), threading.Event()

    def hang() -> None:
        is_asked.set()
        may_end.wait()
        raise StoreUnavailable("the server did not answer in time")

    may_end.set()
    store.outcomes.record("release id=1", hang)  # type: ignore[attr-defined]
    may_end.clear()
    is_asked.clear()
    assert is_asked.wait(20)
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        store.digests.claim(now(), 1, 10)  # nor does a request wait for as long as the store
    store.close_outcomes(0.1)
    assert time.monotonic() - began < 5
    assert "lost, may be sent again: release id=1: the process ends" in caplog.text
    may_end.set()


def test_an_outcome_that_can_never_be_recorded_stops_nothing_else(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise StoreUnavailable("no partition of relation")

    monkeypatch.setattr(outcomes, "_GIVE_UP_SECONDS", 0)
    store.outcomes.record("release id=1", fail)  # type: ignore[attr-defined]
    assert claimed(store.digests.claim(now(), 1, 10)) == []
    assert "lost, may be sent again: release id=1: no partition" in caplog.text
