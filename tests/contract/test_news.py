"""A delivery that is held again and that no digest has announced is news, however old it is, on every store."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import pytest

from portal.model.errors import RelayRefused
from portal.model.message import Actor, ActorKind, DeliveryId, Event, EventKind, Start, State, held_at
from portal.stores import Store
from tests.builders import ALICE, BY_OPERATOR, hold, now
from tests.contract.helpers import send_digest

Again = Callable[[Store, DeliveryId], None]
RULE = Actor(ActorKind.RULE, ALICE)


def undo_deletion(store: Store, key: DeliveryId) -> None:
    store.deliveries.move(key, State.DELETED, set(State), BY_OPERATOR, now(), kind=EventKind.DELETED)
    store.deliveries.restore(key, BY_OPERATOR, now())


def fail_release(store: Store, key: DeliveryId) -> None:
    with suppress(RelayRefused), store.deliveries.releasing(key, set(State), RULE, now()):
        raise RelayRefused("550 no such user")


def stop(store: Store, key: DeliveryId) -> None:
    store.deliveries.move(key, State.HELD, set(State), BY_OPERATOR, now(), kind=EventKind.STOPPED)


def deny(store: Store, key: DeliveryId) -> None:
    store.deliveries.move(key, State.REQUESTED, set(State), BY_OPERATOR, now(), kind=EventKind.REQUESTED)
    store.deliveries.record(key, Event(now(), EventKind.STOPPED, BY_OPERATOR))
    store.deliveries.end_request(key, Event(now(), EventKind.REFUSED, BY_OPERATOR, "no"))


@pytest.mark.parametrize("again", [undo_deletion, fail_release, stop, deny])
def test_what_a_rule_let_through_days_ago_causes_a_digest_when_it_is_held(store: Store, again: Again) -> None:
    """`find_news` looks back for two days only."""
    held = hold(store, recipients=[ALICE], starts={ALICE: Start(State.PASSED, RULE)}, at=now() - timedelta(days=5))
    key = DeliveryId(held.id, 0)
    assert store.recipients.get(ALICE).news_since is None
    store.deliveries.record(key, Event(now(), EventKind.STOPPED, BY_OPERATOR))  # it was not delivered in the end
    again(store, key)
    assert store.deliveries.get(key).state is State.HELD
    assert [person.recipient for person in store.recipients.unscheduled(10)] == [ALICE]
    assert send_digest(store, ALICE, now()) == [(held.id, 0)]


@pytest.mark.parametrize("again", [undo_deletion, fail_release])
def test_what_a_digest_announced_is_no_news_when_it_is_held_again(store: Store, again: Again) -> None:
    held = hold(store, recipients=[ALICE])
    send_digest(store, ALICE, now())
    again(store, DeliveryId(held.id, 0))
    assert store.recipients.get(ALICE).news_since is None


def test_older_news_keep_their_time(store: Store) -> None:
    first, other = hold(store, recipients=[ALICE]), hold(store, recipients=[ALICE])
    undo_deletion(store, DeliveryId(other.id, 0))
    assert store.recipients.get(ALICE).news_since == held_at(first.id)
