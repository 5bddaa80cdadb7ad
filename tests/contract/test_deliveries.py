"""`Deliveries` on every store: lists, searches, histories, and changes of state."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from portal.model.errors import AlreadyDone, BodyMissing, NotFound, RelayDeferred
from portal.model.message import (
    Delivery,
    DeliveryId,
    Event,
    EventKind,
    Filter,
    Reader,
    State,
    Symbol,
    Tier,
    held_at,
    new_id,
)
from portal.stores import Store
from portal.stores.records import Counts, Held, Page, QueuedMail
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, MALLORY, SENDER, hold, now
from tests.contract.helpers import (
    DAY,
    EVERY_STATE,
    HOUR,
    MINUTE,
    SECOND,
    UNKNOWN,
    claim,
    concurrently,
    defer,
    delete,
    every_page,
    keys,
    release,
    request_release,
)

CAROL = "carol@example.org"


def test_mallory_sees_nothing(store: Store) -> None:
    held = hold(store)
    assert store.deliveries.list_for(Reader(MALLORY), EVERY_STATE, 10) == Page((), None)
    assert not list(store.digests.unannounced(Reader(MALLORY), 10))
    assert store.digests.last(MALLORY) is None
    with pytest.raises(NotFound) as forbidden:
        store.deliveries.get_for(Reader(MALLORY), held.id)
    with pytest.raises(NotFound) as unknown:
        store.deliveries.get_for(Reader(MALLORY), UNKNOWN)
    assert type(forbidden.value) is type(unknown.value) is NotFound
    assert str(forbidden.value).replace(str(held.id), "") == str(unknown.value).replace(str(UNKNOWN), "")


def test_each_recipient_gets_their_own_delivery(store: Store) -> None:
    held = hold(store)
    assert store.deliveries.get_for(Reader(ALICE), held.id).number == 0
    assert store.deliveries.get_for(Reader(BOB), held.id).number == 1
    assert store.deliveries.get_for(Reader(BOB), held.id) == store.deliveries.get(DeliveryId(held.id, 1))
    assert keys(store.deliveries.list_for(Reader(BOB), {State.HELD}, 10).deliveries) == [(held.id, 1)]


def test_a_list_is_narrowed_by_criteria(store: Store) -> None:
    plain = hold(store, header_from="Shop <news@shop.example>").id
    file = hold(store, symbols=(Symbol("HAS_ATTACHMENT", 0.0), Symbol("FORGED_SENDER", 5.0))).id
    macro = hold(store, tier=Tier.SUSPICIOUS, symbols=(Symbol("FORGED_SENDER", 5.0),)).id

    def found(**criteria: Any) -> list[UUID]:
        page = store.deliveries.matching(Reader(ALICE), Filter(states=frozenset({State.HELD}), **criteria), 10)
        return [delivery.id for delivery in page.deliveries]

    reason = "The From address differs from the sending address"
    assert found(has_attachment=True) == [file]
    assert found(reason=reason) == [macro, file]
    assert found(reason=reason, tiers=frozenset({Tier.SPAM})) == [file]
    assert found(sender="SHOP.example") == [plain]
    assert found(reason="x") == []
    assert found(recipient=BOB) == [macro, file, plain], "the reader decides whose messages are listed"
    page = store.deliveries.matching(Reader(ALICE), Filter(states=frozenset({State.HELD}), reason=reason), 1)
    assert page.next is not None
    rest = store.deliveries.matching(Reader(ALICE), Filter(states=frozenset({State.HELD}), reason=reason), 5, page.next)
    assert [delivery.id for delivery in (*page.deliveries, *rest.deliveries)] == [macro, file]


def test_several_deliveries_of_a_reader_are_found_in_the_order_of_their_keys(store: Store) -> None:
    first, second, foreign = hold(store), hold(store, recipients=[BOB, ALICE]), hold(store, recipients=[MALLORY])
    wanted = [DeliveryId(each.id, number) for each in (second, foreign, first) for number in (1, 0)]
    alices = store.deliveries.of_reader(Reader(ALICE), [*wanted, DeliveryId(UNKNOWN, 0)])
    assert keys(tuple(alices)) == [(second.id, 1), (first.id, 0)]
    both = Reader(ALICE, shared={BOB: (ALICE, BOB)})
    assert keys(tuple(store.deliveries.of_reader(both, wanted))) == [
        (second.id, 1),
        (second.id, 0),
        (first.id, 1),
        (first.id, 0),
    ]
    assert list(store.deliveries.of_reader(Reader(ALICE), [])) == []


def test_several_deliveries_of_a_reader_are_found_with_their_last_events(store: Store) -> None:
    first, second, foreign = hold(store), hold(store, recipients=[BOB, ALICE]), hold(store, recipients=[MALLORY])
    delete(store, first, now())
    found = store.deliveries.with_last_events(Reader(ALICE), [second.id, foreign.id, first.id, UNKNOWN])
    assert list(found) == [(first.id, 0), (second.id, 1)]
    for key, (delivery, events) in found.items():
        assert delivery == store.deliveries.get(key)
        assert list(events) == list(store.deliveries.last_events([key]).get(key, ()))
    assert [event.kind for event in found[DeliveryId(first.id, 0)][1]] == [EventKind.DELETED]
    assert store.deliveries.with_last_events(Reader(ALICE), []) == {}


def test_the_newest_deliveries_are_counted_by_state(store: Store) -> None:
    held = [hold(store) for _ in range(5)]
    hold(store, recipients=[BOB])
    delete(store, held[0], now())
    assert store.deliveries.counts(Reader(ALICE), 6) == Counts({State.HELD: 4, State.DELETED: 1}, complete=True)
    assert store.deliveries.counts(Reader(ALICE), 5) == Counts({State.HELD: 4, State.DELETED: 1}, complete=False)
    assert store.deliveries.counts(Reader(ALICE), 4) == Counts({State.HELD: 4}, complete=False)
    both = Reader(ALICE, shared={BOB: (ALICE, BOB)})
    assert store.deliveries.counts(both, 10) == Counts({State.HELD: 10, State.DELETED: 1}, complete=True)
    assert store.deliveries.counts(Reader(MALLORY), 10) == Counts({}, complete=True)


def test_the_deliveries_before_a_page_are_counted(store: Store) -> None:
    oldest, *held = [hold(store, recipients=[ALICE, CAROL]) for _ in range(5)]
    hold(store, recipients=[BOB])
    delete(store, held[3], now())
    both = Reader(ALICE, shared={CAROL: (ALICE, BOB)})

    def since(reader: Reader, key: DeliveryId, at_most: int = 10) -> dict[State, int] | None:
        found = store.deliveries.counts(reader, at_most, since=key).since
        return {state: number for state, number in found.items() if number} if found is not None else None

    assert store.deliveries.counts(both, 10).since is None
    assert since(Reader(ALICE), DeliveryId(held[0].id, 0)) == {State.HELD: 3, State.DELETED: 1}
    assert since(both, DeliveryId(held[0].id, 1)) == {State.HELD: 6, State.DELETED: 1}
    assert since(both, DeliveryId(held[0].id, 0)) == {State.HELD: 7, State.DELETED: 1}
    assert since(both, DeliveryId(held[0].id, 0), 5) == {State.HELD: 7, State.DELETED: 1}
    assert since(both, DeliveryId(held[0].id, 0), 4) is None, "there may be more"
    assert since(both, DeliveryId(UUID(int=0), 0), 5) is None
    assert since(both, DeliveryId(oldest.id, 0), 6) == {State.HELD: 9, State.DELETED: 1}


def test_a_list_is_newest_first_and_complete_over_its_pages(store: Store) -> None:
    ids = [hold(store).id for _ in range(7)]
    hold(store, recipients=[BOB])
    found = every_page(lambda before: store.deliveries.list_for(Reader(ALICE), {State.HELD}, 3, before))
    assert [d.id for d in found] == sorted(ids, reverse=True)
    assert {d.recipient for d in found} == {ALICE}


def test_a_page_holds_no_more_than_its_limit_and_the_last_says_so(store: Store) -> None:
    for _ in range(4):
        hold(store)
    first = store.deliveries.list_for(Reader(ALICE), {State.HELD}, 2)
    assert len(first.deliveries) == 2
    assert first.next is not None
    last = store.deliveries.list_for(Reader(ALICE), {State.HELD}, 2, first.next)
    assert len(last.deliveries) == 2
    assert last.next is None


def test_mail_that_comes_between_pages_makes_no_doubles(store: Store) -> None:
    ids = [hold(store).id for _ in range(6)]

    def list_then_hold(before: DeliveryId | None) -> Page:
        page = store.deliveries.list_for(Reader(ALICE), {State.HELD}, 2, before)
        hold(store)
        return page

    assert [d.id for d in every_page(list_then_hold)] == sorted(ids, reverse=True)


def test_mail_that_is_deleted_between_pages_hides_nothing(store: Store) -> None:
    ids = sorted((hold(store) for _ in range(6)), key=lambda held: held.id, reverse=True)
    page = store.deliveries.list_for(Reader(ALICE), {State.HELD}, 3)
    for held in ids[:3]:
        delete(store, held, now())
    assert [d.id for d in store.deliveries.list_for(Reader(ALICE), {State.HELD}, 9, page.next).deliveries] == [
        h.id for h in ids[3:]
    ]


def test_a_list_shows_the_requested_states(store: Store) -> None:
    held, deleted, released, requested, releasing = (hold(store) for _ in range(5))
    delete(store, deleted, now())
    release(store, released, now())
    request_release(store, requested, now())
    defer(store, releasing, now())

    def ids(*states: State) -> set[UUID]:
        return {d.id for d in store.deliveries.list_for(Reader(ALICE), states, 10).deliveries}

    assert ids(State.HELD) == {held.id}
    assert ids(State.DELETED) == {deleted.id}
    assert ids(State.RELEASED) == {released.id}
    assert ids(State.REQUESTED, State.RELEASING) == {requested.id, releasing.id}
    assert len(ids(*State)) == 5
    assert ids() == set()
    assert len(store.deliveries.list_for(Reader(BOB), {State.HELD}, 10).deliveries) == 5


def test_an_unknown_delivery_is_not_found(store: Store) -> None:
    held = hold(store)
    with pytest.raises(NotFound):
        store.deliveries.get(DeliveryId(UNKNOWN, 0))
    with pytest.raises(NotFound):
        store.deliveries.get(DeliveryId(held.id, 2))
    with pytest.raises(NotFound):
        store.deliveries.get(DeliveryId(held.id, 65535))
    with pytest.raises(NotFound):
        store.deliveries.of_message(UNKNOWN)
    with pytest.raises(NotFound) as missing:
        next(iter(store.messages.body(UNKNOWN)))
    assert not isinstance(missing.value, BodyMissing)


def test_a_delivery_of_a_day_long_past_or_far_ahead_is_not_found(store: Store) -> None:
    for year in (1971, 2400):
        id = new_id(datetime(year, 1, 1, tzinfo=UTC))
        with pytest.raises(NotFound):
            store.deliveries.get(DeliveryId(id, 0))
        with pytest.raises(NotFound):
            store.deliveries.get_for(Reader(ALICE), id)
        with pytest.raises(NotFound):
            delete(store, Held(id, known=False), now())
        with pytest.raises(NotFound):
            next(iter(store.messages.body(id)))
        assert not list(store.messages.find(str(id)))


def test_search_without_a_filter_shows_everything_newest_first(store: Store) -> None:
    ids = [hold(store).id for _ in range(5)] + [hold(store, recipients=()).id]
    found = every_page(lambda before: store.deliveries.search(Filter(), 4, before))
    assert [d.id for d in found] == sorted((d.id for d in found), reverse=True)
    assert sorted(keys(found)) == sorted([(id, n) for id in ids[:5] for n in (0, 1)] + [(ids[5], 0)])


def test_search_goes_on_within_a_message_with_many_recipients(store: Store) -> None:
    held = hold(store, recipients=[f"p{n}@example.org" for n in range(10)])
    hold(store)
    found = every_page(lambda before: store.deliveries.search(Filter(), 3, before))
    assert len(found) == len(set(keys(found))) == 12
    assert sorted(d.number for d in found if d.id == held.id) == list(range(10))


def test_search_by_recipient(store: Store) -> None:
    one, _ = hold(store), hold(store, recipients=[ALICE])
    assert keys(store.deliveries.search(Filter(recipient=BOB), 10).deliveries) == [(one.id, 1)]
    assert not store.deliveries.search(Filter(recipient=MALLORY), 10).deliveries
    assert not store.deliveries.search(Filter(recipient="bob"), 10).deliveries


@pytest.mark.parametrize("part", [SENDER, "promo", "EXAMPLE.NET", "o@e"])
def test_search_by_a_part_of_the_envelope_sender(store: Store, part: str) -> None:
    held = hold(store, recipients=[ALICE], header_from="")
    hold(store, recipients=[ALICE], envelope_sender="other@example.com", header_from="Other <x@example.com>")
    assert keys(store.deliveries.search(Filter(sender=part), 10).deliveries) == [(held.id, 0)]


@pytest.mark.parametrize("part", ["Bank", "JÜRGEN", "jürgen", "en from the bank <J", "100%_"])
def test_search_by_a_part_of_the_from_header(store: Store, part: str) -> None:
    sent_as = "Jürgen from the Bank <j@bank.example> 100%_"
    held = hold(store, recipients=[ALICE], envelope_sender=None, header_from=sent_as)
    hold(store, recipients=[ALICE], envelope_sender="", header_from="Other <x@example.com> 1000_")
    assert keys(store.deliveries.search(Filter(sender=part), 10).deliveries) == [(held.id, 0)]


@pytest.mark.parametrize("part", ["%", "_", "\\", "'", "p%o", "*", "promo_example"])
def test_search_takes_a_sender_literally(store: Store, part: str) -> None:
    hold(store)
    assert not store.deliveries.search(Filter(sender=part), 10).deliveries


@pytest.mark.parametrize("text", ["\0", "a\0", "\udcff", "x" * 100_000])
def test_strange_text_finds_nothing(store: Store, text: str) -> None:
    """The terminal of an operator may pass any bytes."""
    hold(store)
    assert not list(store.messages.find(text))
    assert not store.deliveries.search(Filter(sender=text), 10).deliveries
    assert not store.deliveries.search(Filter(recipient=text), 10).deliveries
    assert not store.deliveries.list_for(Reader(text), EVERY_STATE, 10).deliveries


def test_search_since(store: Store) -> None:
    held = hold(store)
    at = held_at(held.id)
    assert len(store.deliveries.search(Filter(since=at), 10).deliveries) == 2
    assert not store.deliveries.search(Filter(since=at + timedelta(milliseconds=1)), 10).deliveries
    assert len(store.deliveries.search(Filter(since=at - 400 * DAY), 10).deliveries) == 2
    assert len(store.deliveries.search(Filter(since=datetime(1, 1, 1, tzinfo=UTC)), 10).deliveries) == 2
    assert not store.deliveries.search(Filter(until=datetime(1, 1, 1, tzinfo=UTC)), 10).deliveries


def test_search_by_state(store: Store) -> None:
    held = hold(store)
    release(store, held, now(), 1)
    assert keys(store.deliveries.search(Filter(states=frozenset({State.HELD})), 10).deliveries) == [(held.id, 0)]
    assert keys(store.deliveries.search(Filter(states=frozenset({State.RELEASED})), 10).deliveries) == [(held.id, 1)]
    assert len(store.deliveries.search(Filter(states=EVERY_STATE), 10).deliveries) == 2


def test_search_by_everything_at_once_over_pages(store: Store) -> None:
    wanted = [hold(store) for _ in range(5)]
    since = held_at(wanted[0].id)
    for held in wanted:
        delete(store, held, now())
    hold(store)
    delete(store, hold(store, envelope_sender="x@example.com", header_from=""), now())
    everything = Filter(recipient=ALICE, sender="PROMO", since=since, states=frozenset({State.DELETED}))
    found = every_page(lambda before: store.deliveries.search(everything, 2, before))
    assert keys(found) == [(id, 0) for id in sorted((h.id for h in wanted), reverse=True)]


def test_history_shows_who_did_what_in_order(store: Store) -> None:
    held, at = hold(store), now()
    delete(store, held, at)
    store.deliveries.move(
        DeliveryId(held.id, 0), State.HELD, {State.DELETED}, BY_OPERATOR, at + SECOND, kind=EventKind.RESTORED
    )
    defer(store, held, at + 2 * SECOND)
    release(store, held, at + 2 * MINUTE)
    events = store.deliveries.history(DeliveryId(held.id, 0))
    assert [e.kind for e in events] == ["held", "deleted", "restored", "releasing", "deferred", "released"]
    assert events[0].at == held_at(held.id)
    assert [e.at for e in events[1:4]] == [at, at + SECOND, at + 2 * SECOND]
    assert [e.actor for e in events[1:4]] == [BY_LINK, BY_OPERATOR, BY_LINK]
    assert [e.kind for e in store.deliveries.history(DeliveryId(held.id, 1))] == ["held"]
    with pytest.raises(NotFound):
        store.deliveries.history(DeliveryId(UNKNOWN, 0))


def test_history_keeps_what_the_mail_server_answered_to_a_release(store: Store) -> None:
    held, answers = hold(store), [""]
    with store.deliveries.releasing(DeliveryId(held.id, 0), {State.HELD}, BY_LINK, now(), lambda: answers[-1]):
        answers.append("250 2.0.0 Ok: queued as 4XYZ")  # known only inside of the block
    assert [(e.kind, e.detail) for e in store.deliveries.history(DeliveryId(held.id, 0))][-2:] == [
        ("releasing", ""),
        ("released", "250 2.0.0 Ok: queued as 4XYZ"),
    ]
    with pytest.raises(NotFound):
        store.deliveries.history(DeliveryId(held.id, 2))


def test_last_events_are_the_latest_of_each_kind_of_these_deliveries(store: Store) -> None:
    first, second, third, at = hold(store), hold(store), hold(store), now()
    for n in range(3):
        delete(store, first, at + 2 * n * SECOND)
        store.deliveries.move(
            DeliveryId(first.id, 0),
            State.HELD,
            {State.DELETED},
            BY_OPERATOR,
            at + (2 * n + 1) * SECOND,
            kind=EventKind.RESTORED,
        )
    defer(store, second, at)
    release(store, second, at + 2 * MINUTE)
    store.deliveries.move(
        DeliveryId(second.id, 1), State.DELETED, {State.HELD}, BY_OPERATOR, at, kind=EventKind.DELETED
    )
    requested_keys = [DeliveryId(id, 0) for id in (first.id, second.id, third.id, UNKNOWN)]
    found = store.deliveries.last_events(requested_keys)
    assert set(found) == {(first.id, 0), (second.id, 0)}
    assert [event.kind for event in found[requested_keys[1]]] == ["releasing", "deferred", "released"]
    deleted, restored = found[requested_keys[0]]
    assert (deleted.kind, deleted.at, deleted.actor) == ("deleted", at + 4 * SECOND, BY_LINK)
    assert (restored.kind, restored.at, restored.actor) == ("restored", at + 5 * SECOND, BY_OPERATOR)
    delete(store, third, at + 10 * SECOND)
    store.deliveries.move(
        DeliveryId(third.id, 0), State.HELD, {State.DELETED}, BY_OPERATOR, at, kind=EventKind.RESTORED
    )  # after a clock was set back
    assert [event.kind for event in store.deliveries.last_events([requested_keys[2]])[requested_keys[2]]] == [
        "deleted",
        "restored",
    ]
    assert store.deliveries.last_events([]) == {}
    thousand = [requested_keys[0]] * 2 + [DeliveryId(second.id, n) for n in range(998)]
    assert len(store.deliveries.last_events(thousand)) == 3


def test_a_delivery_without_recipient_can_be_assigned_once(store: Store) -> None:
    held = hold(store, recipients=())
    at = now() - HOUR  # by a clock that is an hour behind
    delivery = store.deliveries.assign(DeliveryId(held.id, 0), "Alice@Example.org", BY_OPERATOR, at)
    assert (delivery.recipient, delivery.address, delivery.state) == (ALICE, "Alice@Example.org", State.HELD)
    assert store.deliveries.get(DeliveryId(held.id, 0)) == delivery == store.deliveries.get_for(Reader(ALICE), held.id)
    assert keys(store.deliveries.list_for(Reader(ALICE), {State.HELD}, 10).deliveries) == [(held.id, 0)]
    event = store.deliveries.history(DeliveryId(held.id, 0))[-1]
    assert (event.kind, event.at, event.actor, event.detail) == ("assigned", at, BY_OPERATOR, "Alice@Example.org")
    with pytest.raises(AlreadyDone) as error:
        store.deliveries.assign(DeliveryId(held.id, 0), BOB, BY_OPERATOR, now())
    assert error.value.delivery is None or error.value.delivery.recipient == ALICE
    assert store.deliveries.get(DeliveryId(held.id, 0)).recipient == ALICE


def test_a_delivery_with_a_recipient_cannot_be_assigned(store: Store) -> None:
    held = hold(store)
    with pytest.raises(AlreadyDone):
        store.deliveries.assign(DeliveryId(held.id, 1), MALLORY, BY_OPERATOR, now())
    with pytest.raises(NotFound):
        store.deliveries.assign(DeliveryId(held.id, 2), MALLORY, BY_OPERATOR, now())
    with pytest.raises(NotFound):
        store.deliveries.assign(DeliveryId(UNKNOWN, 0), MALLORY, BY_OPERATOR, now())
    assert [d.recipient for d in store.deliveries.of_message(held.id)] == [ALICE, BOB]


def test_of_20_events_of_a_kind_an_interval_has_one_with_its_mail(store: Store, second: Store) -> None:
    held, at = hold(store), now()
    key = DeliveryId(held.id, 0)

    def ask(store: Store, at: datetime) -> None:
        event = Event(at, EventKind.ASKED, BY_LINK, "Why?")
        store.deliveries.record(key, event, mails=[QueuedMail("it@example.org", b"mail")], interval=DAY)

    outcomes = concurrently(20, lambda number: ask((store, second)[number % 2], at))
    assert outcomes.count(None) == 1
    assert sum(isinstance(outcome, AlreadyDone) for outcome in outcomes) == 19
    with pytest.raises(AlreadyDone):
        ask(store, at + DAY - SECOND)
    assert store.stats(at).mails_waiting == 1
    store.deliveries.record(key, Event(at, EventKind.DOWNLOADED, BY_LINK, "message"))
    ask(store, at + DAY)
    assert store.stats(at).mails_waiting == 2
    kinds = [event.kind for event in store.deliveries.history(key)]
    assert kinds == [EventKind.HELD, EventKind.ASKED, EventKind.DOWNLOADED, EventKind.ASKED]


def test_a_move_is_recorded(store: Store) -> None:
    held, at = hold(store), now()
    moved = request_release(store, held, at)
    assert (moved.state, moved.state_at) == (State.REQUESTED, at)
    refused = store.deliveries.move(
        DeliveryId(held.id, 0),
        State.HELD,
        {State.REQUESTED},
        BY_OPERATOR,
        at + HOUR,
        kind=EventKind.REFUSED,
        reason="It is a virus.",
    )
    assert (refused.state, refused.state_at, refused.reason) == (State.HELD, at + HOUR, "It is a virus.")
    assert refused == store.deliveries.get(DeliveryId(held.id, 0))
    assert store.deliveries.get(DeliveryId(held.id, 1)).state is State.HELD
    again = request_release(store, held, at + 2 * HOUR)
    assert again.reason == ""


def test_a_move_from_another_state_changes_nothing_and_shows_the_delivery(store: Store) -> None:
    held, at = hold(store), now()
    release(store, held, at)
    before = store.deliveries.get(DeliveryId(held.id, 0))
    with pytest.raises(AlreadyDone) as error:
        delete(store, held, at + SECOND)
    assert error.value.delivery == before == store.deliveries.get(DeliveryId(held.id, 0))
    assert "deleted" not in [e.kind for e in store.deliveries.history(DeliveryId(held.id, 0))]


def test_what_is_being_released_cannot_be_moved(store: Store) -> None:
    held, at = hold(store), now()
    with claim(store, held, at), pytest.raises(AlreadyDone) as error:
        delete(store, held, at)
    assert error.value.delivery
    assert error.value.delivery.state is State.RELEASING
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASED


def test_an_unknown_delivery_cannot_be_moved(store: Store) -> None:
    held = hold(store)
    with pytest.raises(NotFound):
        delete(store, Held(UNKNOWN, known=False), now())
    with pytest.raises(NotFound):
        delete(store, held, now(), 2)


def test_of_20_concurrent_moves_exactly_one_succeeds(store: Store, second: Store) -> None:
    held, at = hold(store), now()
    results = concurrently(20, lambda n: delete((store, second)[n % 2], held, at + n * SECOND))
    winners = [r for r in results if isinstance(r, Delivery)]
    losers = [r for r in results if isinstance(r, AlreadyDone)]
    assert (len(winners), len(losers)) == (1, 19)
    assert {loser.delivery for loser in losers} == {winners[0]} == {store.deliveries.get(DeliveryId(held.id, 0))}
    assert [e.kind for e in store.deliveries.history(DeliveryId(held.id, 0))] == ["held", "deleted"]


def test_senders_are_known_whose_mail_a_recipient_got_released(store: Store) -> None:
    at = now()
    first, second, third, fourth = (hold(store, header_from=f"P{n} <p{n}@example.net>") for n in range(4))
    assert store.deliveries.released_from([ALICE], 10) == {}
    release(store, first, at)
    release(store, third, at)
    delete(store, second, at)
    release(store, fourth, at, number=1)
    with pytest.raises(RelayDeferred), claim(store, fourth, at):
        raise RelayDeferred("451")
    hers, his = ["P2 <p2@example.net>", "P0 <p0@example.net>"], ["P3 <p3@example.net>"]
    assert store.deliveries.released_from([ALICE, MALLORY, BOB], 10) == {ALICE: hers, BOB: his}
    assert store.deliveries.released_from([ALICE], 1) == {ALICE: hers[:1]}
    assert store.deliveries.released_from([MALLORY], 10) == {}
    assert store.deliveries.released_from([], 10) == {}
    both = Reader(ALICE, shared={BOB: (ALICE, BOB)})
    assert sorted(store.deliveries.counts(both, 10, senders=10).released_from) == sorted([*hers, *his])
    assert store.deliveries.counts(Reader(ALICE), 10, senders=1).released_from == tuple(hers[:1])
