"""Deliveries that are forgotten before their day is removed, in both stores."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest

from digest import housekeeping
from portal.assemble import Parts
from portal.model.errors import NotFound
from portal.model.message import DeliveryId, EventKind, Filter, Reader, Start, State, held_at
from portal.policy import retention
from portal.stores import Store, notes
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, hold, mail, now, rule
from tests.conftest import MakeParts
from tests.contract.helpers import DAY, EVERY_STATE, HOUR

BLOCKED = Start(State.BLOCKED, rule("example.net").as_actor, "block rule 1")


def block(store: Store, data: bytes | None = None, *, days: float = 8, recipients: tuple[str, ...] = (ALICE,)) -> UUID:
    """Hold a message that the last recipient blocks, as it was some days ago."""
    at = now() - timedelta(days=days)
    store.prepare_days(at, 30)
    return hold(store, data, recipients=recipients, announce=[], at=at, starts={recipients[-1]: BLOCKED}).id


def expire(store: Store, *, days: float = 7) -> int:
    found = store.deliveries.ending(State.BLOCKED, now() - timedelta(days=days), 100)
    return store.expire(found)


def is_gone(store: Store, id: UUID) -> bool:
    for get in (lambda: store.messages.body(id), lambda: store.deliveries.of_message(id)):
        with pytest.raises(NotFound):
            get()
    return not store.messages.find(str(id)) and not store.messages.ids(None, 10)


def test_a_message_without_other_deliveries_is_removed(store: Store) -> None:
    id = block(store, mail("one"))
    assert expire(store) == 1
    assert is_gone(store, id)
    assert expire(store) == 0
    again = hold(store, mail("one"))  # its dedup key is free
    assert not again.known and b"".join(store.messages.body(again.id))


def test_a_forgotten_delivery_of_a_message_that_another_recipient_has_is_not_listed(store: Store) -> None:
    id = block(store, recipients=(BOB, ALICE))
    assert expire(store) == 1
    for words in ("", "offer"):
        for states in (frozenset[State](), EVERY_STATE, frozenset({State.EXPIRED})):
            found = store.deliveries.search(Filter(states=states, words=words), 10).deliveries
            assert [each.key for each in found] == ([DeliveryId(id, 0)] if State.HELD in states or not states else [])


def test_a_message_stays_for_its_other_recipients(store: Store) -> None:
    id = block(store, recipients=(BOB, ALICE))
    assert expire(store) == 1
    bob, alice = store.deliveries.of_message(id)
    assert (bob.state, bob.recipient, bob.number) == (State.HELD, BOB, 0)
    assert (alice.state, alice.recipient, alice.address, alice.reason) == (State.EXPIRED, "", "", "")
    assert b"".join(store.messages.body(id))
    key = DeliveryId(id, 1)
    with pytest.raises(NotFound):
        store.deliveries.get(key)
    with pytest.raises(NotFound):
        store.deliveries.get_for(Reader(ALICE), id)
    with pytest.raises(NotFound):
        store.deliveries.history(key)
    with pytest.raises(NotFound):
        store.deliveries.move(key, State.HELD, EVERY_STATE, BY_OPERATOR, now(), kind=EventKind.UNBLOCKED)
    with pytest.raises(NotFound), store.deliveries.releasing(key, EVERY_STATE, BY_OPERATOR, now()):
        pass
    assert store.deliveries.list_for(Reader(ALICE), EVERY_STATE, 10).deliveries == ()
    assert store.deliveries.search(Filter(recipient=ALICE), 10).deliveries == ()
    assert len(store.deliveries.list_for(Reader(BOB), EVERY_STATE, 10).deliveries) == 1


def test_the_last_delivery_takes_the_message_with_it(store: Store) -> None:
    at = now() - 8 * DAY
    store.prepare_days(at, 30)
    id = hold(store, recipients=(BOB, ALICE), announce=[], at=at, starts={BOB: BLOCKED, ALICE: BLOCKED}).id
    first, second = store.deliveries.ending(State.BLOCKED, now(), 10)
    assert store.expire([first]) == 1 and b"".join(store.messages.body(id))
    assert store.expire([second]) == 1 and is_gone(store, id)


def test_a_body_stays_for_other_messages_of_the_day(store: Store) -> None:
    at, data = now() - 8 * DAY, mail("same")
    store.prepare_days(at, 30)
    id = hold(store, data, (ALICE,), announce=[], at=at, starts={ALICE: BLOCKED}).id
    other = hold(store, data, announce=[], at=at + timedelta(seconds=1), envelope_sender="x@example.net").id
    assert id != other and expire(store) == 1
    assert list(store.messages.ids(None, 10)) == [other]
    assert b"".join(store.messages.body(other)) == data


def test_younger_deliveries_and_other_states_stay(store: Store) -> None:
    young, old = block(store, mail("young"), days=6), block(store, mail("old"))
    released = block(store, mail("released"))
    found = store.deliveries.ending(State.BLOCKED, now() - 7 * DAY, 10)
    with store.deliveries.releasing(DeliveryId(released, 0), {State.BLOCKED}, BY_LINK, now()):
        pass  # in the meantime
    assert store.expire(found) == 1
    assert list(store.messages.ids(None, 10)) == sorted([young, released])
    assert old not in store.messages.ids(None, 10)


def test_deliveries_are_found_in_pages_from_the_oldest_on(store: Store) -> None:
    ids = sorted(block(store, mail(str(n)), days=20 - n) for n in range(5))
    first = store.deliveries.ending(State.BLOCKED, now(), 3)
    second = store.deliveries.ending(State.BLOCKED, now(), 3, first[-1].key)
    assert [each.key for each in (*first, *second)] == [DeliveryId(id, 0) for id in ids]
    assert {each.recipient for each in first} == {ALICE}
    before = held_at(ids[2])
    assert len(store.deliveries.ending(State.BLOCKED, before, 10)) == 2


# ---- the background job


def steady(parts: Parts) -> None:
    """Make the clock trusted, as if the process had run for days."""
    at = now()
    notes.CLOCK.set(parts.store, notes.Period(at - 5 * DAY, at - HOUR))


def test_blocked_messages_end_sooner_than_others(make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_AT_ONCE", 2)
    parts = make_parts(store__blocked_retention_days=3)
    kept = {block(parts.store, mail(f"young {n}"), days=2.9) for n in range(3)}
    for n in range(5):
        block(parts.store, mail(f"old {n}"), days=3.1)
    held = hold(parts.store, mail("held"), announce=[], at=now() - 20 * DAY).id
    assert housekeeping.expire(parts, now()) == 0  # the clock is not trusted yet
    steady(parts)
    parts.store.statistics.close(now().date())
    assert housekeeping.expire(parts, now()) == 5
    assert set(parts.store.messages.ids(None, 20)) == {*kept, held}


def test_what_was_put_back_is_kept_as_long_as_others(parts: Parts) -> None:
    id = block(parts.store)
    parts.actions.unblock(id, 0, BY_LINK)
    steady(parts)
    assert housekeeping.expire(parts, now()) == 0
    assert parts.store.deliveries.get(DeliveryId(id, 0)).state is State.HELD


def test_a_longer_time_than_that_of_the_store_has_no_effect(make_parts: MakeParts) -> None:
    parts = make_parts(store__retention_days=5, store__blocked_retention_days=30)
    block(parts.store)
    steady(parts)
    assert housekeeping.expire(parts, now()) == 0
