"""Deliveries that do not begin as held: blocked, let through, or to be released at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from portal.model.errors import AlreadyDone, RelayRefused, RulesInUse
from portal.model.message import (
    RELEASABLE,
    Actor,
    ActorKind,
    DeliveryId,
    Event,
    EventKind,
    Filter,
    Reader,
    Scan,
    ScanOutcome,
    Start,
    State,
    Tier,
    held_at,
)
from portal.stores import Store, open_store
from portal.stores.files.reindex import reindex
from portal.stores.shared.jobs import SCAN
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, body, export, hold, mail, now, rule
from tests.contract.helpers import MINUTE, UNKNOWN, send_digest

CAROL = "carol@example.org"
RULE = rule("example.net").as_actor
STARTS = {
    ALICE: Start(State.BLOCKED, RULE, "block rule 1"),
    BOB: Start(State.PASSED, Actor(ActorKind.RULE, "promo@example.net", "*"), "allow rule 2"),
    CAROL: Start(State.RELEASING, RULE, "allow rule 3"),
}
EVERYBODY = ("dave@example.org", ALICE, "Bob@Example.org", CAROL)


def states(store: Store, id: object) -> list[State]:
    assert not isinstance(id, str)
    return [d.state for d in store.deliveries.of_message(id)]  # type: ignore[arg-type]


def test_each_delivery_begins_as_decided(store: Store) -> None:
    id = hold(store, recipients=EVERYBODY, announce=["dave@example.org", CAROL], starts=STARTS).id
    assert states(store, id) == [State.HELD, State.BLOCKED, State.PASSED, State.RELEASING]
    for delivery, (recipient, kind) in zip(
        store.deliveries.of_message(id),
        [(None, None), (ALICE, EventKind.BLOCKED), (BOB, EventKind.PASSED), (CAROL, EventKind.RELEASING)],
        strict=True,
    ):
        held, *events = store.deliveries.history(delivery.key)
        assert held.kind is EventKind.HELD
        assert delivery.state_at == held_at(id)
        if recipient and kind:
            assert events == [Event(held_at(id), kind, STARTS[recipient].actor, STARTS[recipient].detail)]
        else:
            assert events == []


def test_only_the_release_is_due(store: Store) -> None:
    id = hold(store, recipients=EVERYBODY, starts=STARTS).id
    assert store.deliveries.due_releases(now(), 10) == [DeliveryId(id, 3)]
    stats = store.stats(now())
    assert (stats.releases_waiting, stats.requests_waiting) == (1, 0)


def test_no_digest_has_them(store: Store) -> None:
    hold(store, recipients=EVERYBODY, starts=STARTS)
    for recipient in (ALICE, BOB, CAROL):
        assert store.digests.unannounced(Reader(recipient), 10) == []
    store.recipients.find_news(now().replace(year=2020), None)
    assert [p.recipient for p in store.recipients.unscheduled(10)] == ["dave@example.org"]


def test_they_are_found_by_state(store: Store) -> None:
    id = hold(store, recipients=EVERYBODY, starts=STARTS).id
    for number, recipient in ((1, ALICE), (2, BOB)):
        state = STARTS[recipient].state
        [found] = store.deliveries.search(Filter(states=frozenset({state})), 10).deliveries
        [listed] = store.deliveries.list_for(Reader(recipient), [state], 10).deliveries
        assert found.key == listed.key == (id, number)
        assert store.deliveries.list_for(Reader(recipient), [State.HELD], 10).deliveries == ()


def test_a_repeated_mail_changes_no_state(store: Store) -> None:
    data = mail()
    first = hold(store, data, recipients=EVERYBODY, starts=STARTS)
    again = hold(store, data, recipients=EVERYBODY)
    assert (again.id, again.known) == (first.id, True)
    assert states(store, first.id) == [State.HELD, State.BLOCKED, State.PASSED, State.RELEASING]
    other = mail()
    first = hold(store, other, recipients=EVERYBODY)
    hold(store, other, recipients=EVERYBODY, starts=STARTS)
    assert set(states(store, first.id)) == {State.HELD}


def test_a_worse_verdict_reaches_blocked_and_passed_deliveries(store: Store) -> None:
    data = mail()
    id = hold(store, data, recipients=EVERYBODY, starts=STARTS).id
    hold(store, data, recipients=EVERYBODY, tier=Tier.DANGEROUS)
    for number in (1, 2):
        delivery = store.deliveries.get(DeliveryId(id, number))
        assert delivery.message.tier is Tier.DANGEROUS
        assert store.deliveries.history(delivery.key)[-1].kind is EventKind.RAISED


def test_a_blocked_delivery_is_put_back_and_announced(store: Store) -> None:
    id = hold(store, recipients=EVERYBODY, announce=(), starts=STARTS).id
    key = DeliveryId(id, 1)
    moved = store.deliveries.move(key, State.HELD, {State.BLOCKED}, BY_LINK, now(), kind=EventKind.UNBLOCKED)
    assert moved.state is State.HELD
    with pytest.raises(AlreadyDone):
        store.deliveries.move(key, State.HELD, {State.BLOCKED}, BY_LINK, now(), kind=EventKind.UNBLOCKED)
    store.recipients.find_news(now().replace(year=2020), None)
    assert send_digest(store, ALICE, now()) == [key]


@pytest.mark.parametrize("number", [1, 2])
def test_they_can_be_released(store: Store, number: int) -> None:
    key = DeliveryId(hold(store, recipients=EVERYBODY, starts=STARTS).id, number)
    with (
        pytest.raises(RelayRefused),
        store.deliveries.releasing(key, {State.BLOCKED, State.PASSED}, BY_LINK, now()),
    ):
        raise RelayRefused("550 no such user")
    assert store.deliveries.get(key).state is State.HELD
    with store.deliveries.releasing(key, {State.HELD}, BY_LINK, now()):
        pass
    assert store.deliveries.get(key).state is State.RELEASED


@pytest.mark.parametrize("size_bytes", [0, 400_000])
def test_undecided_mail_is_held_only_without_rules(store: Store, size_bytes: int) -> None:
    data = mail(size_bytes=size_bytes)

    def add() -> object:
        return store.messages.add(export(data), body(data), Tier.SPAM, (), starts=None)

    [made] = store.rules.add([rule("elsewhere.example", scope="nobody@example.org")], now())
    with pytest.raises(RulesInUse):
        add()
    assert store.messages.ids(None, 10) == []
    assert not store.messages.add(export(data), body(data), Tier.SPAM, (), starts={}).known
    store.rules.remove(made.id, BY_OPERATOR, now())
    data = mail(size_bytes=size_bytes)
    add()
    assert len(store.messages.ids(None, 10)) == 2


def test_a_scan_that_was_done_before_is_kept(store: Store) -> None:
    data, at = mail(), now()
    clean = Scan(ScanOutcome.CLEAN, at)
    id = store.messages.add(export(data), body(data), Tier.SPAM, (), scan=clean).id
    [message] = store.messages.find(str(id))
    assert (message.scan, message.tier) == (clean, Tier.SPAM)
    assert store.jobs.claim(SCAN, 1, at) == []
    [found] = store.deliveries.search(Filter(tiers=frozenset({Tier.SPAM}), recipient=ALICE), 10).deliveries
    assert found.id == id


def test_a_reindex_restores_them_and_begins_no_release(tmp_path: Path) -> None:
    url, data, clean = f"files://{tmp_path}/store", mail(), Scan(ScanOutcome.CLEAN, now())
    store = open_store(url, create=True)
    id = store.messages.add(export(data, recipients=EVERYBODY), body(data), Tier.SPAM, (), scan=clean, starts=STARTS).id
    other = hold(store, recipients=EVERYBODY, starts=STARTS).id
    store.deliveries.move(DeliveryId(other, 1), State.HELD, {State.BLOCKED}, BY_LINK, now(), kind=EventKind.UNBLOCKED)
    third = hold(store, recipients=EVERYBODY, starts=STARTS).id
    for key in (DeliveryId(third, 1), DeliveryId(third, 2)):
        store.deliveries.move(key, State.DELETED, RELEASABLE, BY_LINK, now(), kind=EventKind.DELETED)
        store.deliveries.restore(key, BY_LINK, now())
    histories = [store.deliveries.history(DeliveryId(other, number)) for number in (1, 2)]
    store.close()
    reindex(tmp_path / "store", lambda *_: None)
    store = open_store(url)
    try:
        # The journal, which has the releases that were done, may be lost.
        assert states(store, id) == [State.HELD, State.BLOCKED, State.PASSED, State.HELD]
        assert states(store, other) == [State.HELD, State.HELD, State.PASSED, State.HELD]
        assert states(store, third) == [State.HELD, State.BLOCKED, State.PASSED, State.HELD]
        assert [store.deliveries.history(DeliveryId(other, number)) for number in (1, 2)] == histories
        assert store.deliveries.get(DeliveryId(id, 0)).message.scan == clean
        assert store.deliveries.due_releases(now(), 10) == []
    finally:
        store.close()


@pytest.mark.parametrize("kind", [EventKind.DELETED, EventKind.CONFIRMED])
def test_a_restored_delivery_is_as_it_was_before_it_was_deleted(store: Store, kind: EventKind) -> None:
    id, at = hold(store, recipients=EVERYBODY, starts=STARTS).id, now() + MINUTE
    keys = [DeliveryId(id, number) for number in range(3)]
    before = [store.deliveries.get(key) for key in keys]
    for _ in range(2):
        for key in keys:
            store.deliveries.move(key, State.DELETED, {State.HELD, *RELEASABLE}, BY_LINK, at, kind=kind)
            store.deliveries.restore(key, BY_LINK, at, detail="by mistake")
    assert [store.deliveries.get(key) for key in keys] == [replace(before[0], state_at=at), *before[1:]]
    assert store.deliveries.history(keys[1])[-1] == Event(at, EventKind.RESTORED, BY_LINK, "by mistake")
    with pytest.raises(AlreadyDone):
        store.deliveries.restore(keys[1], BY_LINK, at)


@pytest.mark.parametrize(
    ("state", "kind", "after"),
    [(State.HELD, EventKind.UNBLOCKED, State.HELD), (State.REQUESTED, EventKind.REQUESTED, State.BLOCKED)],
)
def test_only_what_was_blocked_to_the_end_is_so_after_its_deletion_is_undone(
    store: Store, state: State, kind: EventKind, after: State
) -> None:
    key, at = DeliveryId(hold(store, recipients=[ALICE], starts=STARTS).id, 0), now()
    store.deliveries.move(key, state, {State.BLOCKED}, BY_LINK, at, kind=kind)
    store.deliveries.move(key, State.DELETED, {state}, BY_LINK, at, kind=EventKind.DELETED)
    assert store.deliveries.restore(key, BY_LINK, at).state is after


def test_what_became_worse_while_it_was_deleted_was_not_let_through(store: Store) -> None:
    data = mail()
    id = hold(store, data, recipients=EVERYBODY, starts=STARTS).id
    for number in (1, 2):
        store.deliveries.move(DeliveryId(id, number), State.DELETED, RELEASABLE, BY_LINK, now(), kind=EventKind.DELETED)
    hold(store, data, recipients=EVERYBODY, tier=Tier.DANGEROUS)
    restored = [store.deliveries.restore(DeliveryId(id, number), BY_LINK, now()).state for number in (1, 2)]
    assert restored == [State.BLOCKED, State.HELD]


def test_text_from_rules_cannot_break_the_database(store: Store) -> None:
    start = Start(State.BLOCKED, Actor(ActorKind.RULE, 'a"\\{},\0\ud800@example.net', ALICE), "\0'\\\"")
    id = hold(store, recipients=[ALICE], starts={ALICE: start}).id
    [_, event] = store.deliveries.history(DeliveryId(id, 0))
    assert event.actor.name.startswith('a"\\{},')
    assert store.messages.find(str(UNKNOWN)) == []
