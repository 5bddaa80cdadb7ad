"""`Deliveries.releasing` on every store: claims, leases, outcomes and retries of releases."""

from __future__ import annotations

from contextlib import suppress

import pytest

from portal.model.errors import (
    AlreadyDone,
    BodyMissing,
    NotAllowed,
    NotFound,
    QuarantineError,
    RelayDeferred,
    RelayRefused,
    StoreUnavailable,
)
from portal.model.message import Delivery, DeliveryId, EventKind, State
from portal.stores import LEASE, Store
from portal.stores.records import Held
from tests.builders import ALICE, BY_LINK, hold, now
from tests.contract.helpers import (
    DAY,
    EVERY_STATE,
    HOUR,
    MINUTE,
    SECOND,
    UNKNOWN,
    call_and_exit,
    claim,
    concurrently,
    defer,
    delete,
    release,
)


def test_a_release_is_claimed_then_recorded(store: Store, second: Store) -> None:
    held, at = hold(store), now()
    with claim(store, held, at) as claimed:
        assert claimed.state is State.RELEASING
        assert (claimed.attempts, claimed.state_at, claimed.next_try_at) == (1, at, at + LEASE)
        assert (claimed.recipient, claimed.address) == (ALICE, ALICE)
        assert second.deliveries.get(DeliveryId(held.id, 0)) == claimed
        assert second.deliveries.get(DeliveryId(held.id, 1)).state is State.HELD
    released = store.deliveries.get(DeliveryId(held.id, 0))
    assert (released.state, released.attempts, released.next_try_at) == (State.RELEASED, 1, None)
    assert [e.kind for e in store.deliveries.history(DeliveryId(held.id, 0))] == ["held", "releasing", "released"]
    assert not list(store.deliveries.due_releases(at + DAY, 10))


def test_a_delivery_that_fails_the_check_is_not_claimed(store: Store) -> None:
    held, at, checked = hold(store), now(), []
    key = DeliveryId(held.id, 0)
    before = store.deliveries.get(key)

    def check(delivery: Delivery) -> None:
        checked.append(delivery)
        raise NotAllowed("no")

    releasing = store.deliveries.releasing
    with pytest.raises(NotAllowed), releasing(key, {State.HELD}, BY_LINK, at, check=check):
        raise AssertionError("it was claimed")
    assert checked == [before] == [store.deliveries.get(key)]
    assert [event.kind for event in store.deliveries.history(key)] == ["held"]
    with pytest.raises(AlreadyDone), releasing(key, {State.DELETED}, BY_LINK, at, check=check):
        pass
    defer(store, held, at)
    with releasing(key, set(), BY_LINK, at + HOUR, check=check):
        pass
    assert len(checked) == 1, "neither in another state nor for a retry"


def test_a_release_that_is_only_recorded_is_due_at_once_and_known_to_all_processes(store: Store, second: Store) -> None:
    held, at = hold(store), now()
    key = DeliveryId(held.id, 0)
    defer(store, held, at)
    with pytest.raises(RelayRefused), claim(store, held, at + HOUR):
        raise RelayRefused("550 no")
    at += 2 * HOUR
    queued = store.deliveries.move(
        key, State.RELEASING, {State.HELD}, BY_LINK, at, kind=EventKind.RELEASING, next_try_at=at
    )
    assert (queued.state, queued.attempts, queued.next_try_at, queued.reason) == (State.RELEASING, 0, at, "")
    assert second.deliveries.get(key) == queued
    assert list(second.deliveries.due_releases(at - SECOND, 10)) == []
    assert list(second.deliveries.due_releases(at, 10)) == [key]
    with claim(second, held, at, allowed=frozenset()) as claimed:
        assert claimed.attempts == 1
        assert list(store.deliveries.due_releases(at, 10)) == []
    kinds = [event.kind for event in store.deliveries.history(key)]
    assert kinds == ["held", "releasing", "deferred", "failed", "releasing", "released"]


def test_a_release_needs_an_allowed_state(store: Store) -> None:
    held, at = hold(store), now()
    before = delete(store, held, at)
    with pytest.raises(AlreadyDone) as error, claim(store, held, at):
        pytest.fail("entered")
    assert error.value.delivery == before == store.deliveries.get(DeliveryId(held.id, 0))
    with claim(store, held, at, allowed=frozenset({State.DELETED, State.HELD})):
        pass
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASED


def test_released_mail_is_not_released_again(store: Store) -> None:
    held, at = hold(store), now()
    release(store, held, at)
    with pytest.raises(AlreadyDone) as error, claim(store, held, at + DAY):
        pytest.fail("entered")
    assert error.value.delivery == store.deliveries.get(DeliveryId(held.id, 0))


def test_an_operator_may_release_again(store: Store) -> None:
    held, at = hold(store), now()
    release(store, held, at)
    with claim(store, held, at + HOUR, allowed=EVERY_STATE - {State.RELEASING}) as claimed:
        assert claimed.attempts == 1
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASED


def test_a_release_of_an_unknown_delivery_is_not_found(store: Store) -> None:
    held = hold(store)
    for wrong, number in ((Held(UNKNOWN, known=False), 0), (held, 2)):
        with pytest.raises(NotFound), claim(store, wrong, now(), number):
            pytest.fail("entered")


def test_two_claims_at_once_make_one_release(store: Store, second: Store) -> None:
    held, at = hold(store), now()
    with claim(store, held, at):
        for other in (store, second):
            with pytest.raises(AlreadyDone) as error, claim(other, held, at + LEASE - SECOND):
                pytest.fail("entered")
            assert error.value.delivery
            assert error.value.delivery.state is State.RELEASING


def test_of_20_concurrent_claims_exactly_one_sends(store: Store, second: Store) -> None:
    held, at = hold(store), now()
    sent = []

    def work(number: int) -> None:
        with claim((store, second)[number % 2], held, at) as delivery:
            sent.append(delivery)

    results = concurrently(20, work)
    assert len(sent) == 1
    assert sum(isinstance(r, AlreadyDone) for r in results) == 19
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASED


def test_a_deferred_release_is_retried_after_1_2_4_minutes_and_so_on_up_to_an_hour(store: Store) -> None:
    held, at = hold(store), now()
    for attempt, minutes in enumerate([1, 2, 4, 8, 16, 32, 60, 60], start=1):
        defer(store, held, at)
        delivery = store.deliveries.get(DeliveryId(held.id, 0))
        assert (delivery.state, delivery.reason, delivery.attempts) == (State.RELEASING, "451 busy", attempt)
        assert delivery.next_try_at == at + minutes * MINUTE
        with pytest.raises(AlreadyDone), claim(store, held, delivery.next_try_at - SECOND):
            pytest.fail("entered")
        assert not list(store.deliveries.due_releases(delivery.next_try_at - SECOND, 10))
        at = delivery.next_try_at + SECOND
        assert list(store.deliveries.due_releases(at, 10)) == [(held.id, 0)]
    with claim(store, held, at, allowed=frozenset()):  # a retry ignores `allowed`
        pass
    released = store.deliveries.get(DeliveryId(held.id, 0))
    assert (released.state, released.reason, released.next_try_at) == (State.RELEASED, "", None)
    assert [e.kind for e in store.deliveries.history(DeliveryId(held.id, 0))] == [
        "held",
        "releasing",
        *["deferred"] * 8,
        "released",
    ]


@pytest.mark.parametrize("error", [RelayRefused("550 no such user"), BodyMissing("the mail of this message is gone")])
def test_a_refused_release_is_held_again_with_the_reason(store: Store, error: QuarantineError) -> None:
    held, at = hold(store), now()
    defer(store, held, at)
    with pytest.raises(type(error)) as raised, claim(store, held, at + HOUR):
        raise error
    assert raised.value is error
    delivery = store.deliveries.get(DeliveryId(held.id, 0))
    assert (delivery.state, delivery.reason, delivery.next_try_at) == (State.HELD, str(error), None)
    assert [e.kind for e in store.deliveries.history(DeliveryId(held.id, 0))] == [
        "held",
        "releasing",
        "deferred",
        "failed",
    ]
    assert not list(store.deliveries.due_releases(at + DAY, 10))
    with claim(store, held, at + DAY) as claimed:  # a new release counts its own attempts
        assert claimed.attempts == 1
    assert store.deliveries.get(DeliveryId(held.id, 0)).reason == ""


@pytest.mark.parametrize(
    "error", [RuntimeError("secret detail"), StoreUnavailable("secret detail"), KeyboardInterrupt()]
)
def test_any_other_error_keeps_the_release_for_a_retry(store: Store, error: BaseException) -> None:
    held, at = hold(store), now()
    with pytest.raises(type(error)) as raised, claim(store, held, at):
        raise error
    assert raised.value is error
    delivery = store.deliveries.get(DeliveryId(held.id, 0))
    assert (delivery.state, delivery.reason) == (State.RELEASING, "internal error")
    assert delivery.next_try_at == at + MINUTE
    assert store.deliveries.history(DeliveryId(held.id, 0))[-1].kind == "deferred"


def test_a_claim_whose_process_died_can_be_taken_over(store: Store, store_url: str) -> None:
    held, at = hold(store), now()
    dead = call_and_exit(store_url, "deliveries.releasing", DeliveryId(held.id, 0), {State.HELD}, BY_LINK, at)
    assert dead.state is State.RELEASING
    with pytest.raises(AlreadyDone), claim(store, held, at + LEASE - SECOND):
        pytest.fail("entered")
    assert not list(store.deliveries.due_releases(at + LEASE - SECOND, 10))
    later = at + LEASE + SECOND
    assert list(store.deliveries.due_releases(later, 10)) == [(held.id, 0)]
    with claim(store, held, later, allowed=frozenset()) as claimed:
        assert (claimed.attempts, claimed.next_try_at) == (2, later + LEASE)
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASED


def test_a_failure_after_a_takeover_is_not_recorded(store: Store, second: Store) -> None:
    held, at = hold(store), now()
    later = at + LEASE + SECOND
    taken = claim(second, held, later, allowed=frozenset())
    with pytest.raises(RelayRefused), claim(store, held, at):
        owned = taken.__enter__()
        raise RelayRefused("550 too slow")
    assert store.deliveries.get(DeliveryId(held.id, 0)) == owned
    taken.__exit__(None, None, None)
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASED


def test_a_success_after_a_takeover_is_recorded_and_stays(store: Store, second: Store) -> None:
    held, at = hold(store), now()
    taken = claim(second, held, at + LEASE + SECOND, allowed=frozenset())
    with claim(store, held, at):
        taken.__enter__()
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASED
    with suppress(RelayDeferred):
        error = RelayDeferred("451 slow")
        taken.__exit__(RelayDeferred, error, None)
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASED
    assert not list(store.deliveries.due_releases(at + DAY, 10))


def test_two_successes_after_a_takeover_are_both_fine(store: Store, second: Store) -> None:
    held, at = hold(store), now()
    with claim(store, held, at), claim(second, held, at + LEASE + SECOND, allowed=frozenset()):
        pass
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASED


def test_a_late_failure_does_not_change_later_acts(store: Store, second: Store) -> None:
    held, at = hold(store), now()
    with pytest.raises(RelayDeferred), claim(store, held, at):
        with pytest.raises(RelayRefused), claim(second, held, at + LEASE + SECOND, allowed=frozenset()):
            raise RelayRefused("550 no")
        after = delete(second, held, at + LEASE + MINUTE)
        raise RelayDeferred("451 late")
    assert store.deliveries.get(DeliveryId(held.id, 0)) == after


def test_due_releases_begin_with_the_longest_waiting(store: Store) -> None:
    at = now()
    helds = [hold(store) for _ in range(4)]
    for n, held in enumerate(helds):
        defer(store, held, at - n * HOUR)
    expected = [(held.id, 0) for held in reversed(helds)]
    assert list(store.deliveries.due_releases(at + HOUR, 10)) == expected
    assert list(store.deliveries.due_releases(at + HOUR, 2)) == expected[:2]
    assert list(store.deliveries.due_releases(at - 2 * HOUR + 2 * MINUTE, 10)) == expected[:2]
