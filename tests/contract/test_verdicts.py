"""A mail that comes again with a worse verdict gets this verdict, on both stores."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from portal.model.message import Delivery, DeliveryId, EventKind, Filter, Flag, State, Symbol, Tier
from portal.stores import Store, open_store
from portal.stores.files.reindex import reindex
from portal.stores.records import Held
from tests.builders import ALICE, BOB, BY_LINK, body, hold, mail, now

VIRUS = (Symbol("CLAM_VIRUS", 0.0, ("Eicar",)),)
MACRO = (Symbol("OLETOOLS_MACRO_SUSPICIOUS", 6.0),)


def first(store: Store, held: Held) -> Delivery:
    return store.deliveries.get(DeliveryId(held.id, 0))


def event_kinds(store: Store, held: Held, number: int = 0) -> list[str]:
    return [event.kind for event in store.deliveries.history(DeliveryId(held.id, number))]


def test_a_worse_verdict_is_stored_with_its_symbols(store: Store) -> None:
    data = mail()
    held = hold(store, data)
    again = hold(store, data, tier=Tier.DANGEROUS, symbols=VIRUS, score=3.5, action="discard")
    assert (again.id, again.known, again.raised) == (held.id, True, (held.id,))
    for number in (0, 1):
        message = store.deliveries.get(DeliveryId(held.id, number)).message
        assert (message.tier, message.symbols, message.score) == (Tier.DANGEROUS, VIRUS, 3.5)
        assert message.action == "discard"
        [*_, event] = store.deliveries.history(DeliveryId(held.id, number))
        assert (event.kind, event.actor.who, event.detail) == ("raised", "system", "spam -> dangerous")


def test_a_better_or_equal_verdict_changes_nothing(store: Store) -> None:
    data = mail()
    held = hold(store, data, tier=Tier.SUSPICIOUS, symbols=MACRO)
    for tier in (Tier.SPAM, Tier.SUSPICIOUS):
        assert hold(store, data, tier=tier, symbols=(Symbol("BAYES_HAM", -3),)).raised == ()
    message = first(store, held).message
    assert (message.tier, message.symbols) == (Tier.SUSPICIOUS, MACRO)
    assert event_kinds(store, held) == ["held"]


def test_a_tier_is_raised_step_by_step_and_never_lowered(store: Store) -> None:
    data = mail()
    held = hold(store, data)
    for tier, symbols in ((Tier.SUSPICIOUS, MACRO), (Tier.DANGEROUS, VIRUS), (Tier.SPAM, ()), (Tier.SUSPICIOUS, MACRO)):
        hold(store, data, tier=tier, symbols=symbols)
    assert first(store, held).message.tier is Tier.DANGEROUS
    assert first(store, held).message.symbols == VIRUS
    assert event_kinds(store, held) == ["held", "raised", "raised"]


def test_copies_of_the_same_bytes_for_others_are_raised(store: Store) -> None:
    data, other = mail(), mail()
    copies = [hold(store, data, [f"user{n}@example.org"]) for n in range(3)]
    from_another = hold(store, data, envelope_sender="other@example.net")
    unlike = hold(store, other)
    worse = hold(store, data, [BOB], tier=Tier.DANGEROUS, symbols=VIRUS)
    assert not worse.known
    assert set(worse.raised) == {held.id for held in (*copies, from_another)}
    for held in (*copies, from_another, worse):
        assert first(store, held).message.tier is Tier.DANGEROUS
        assert first(store, held).message.symbols == VIRUS
    assert first(store, unlike).message.tier is Tier.SPAM
    assert event_kinds(store, worse) == ["held"]


def test_a_known_mail_whose_trace_fields_differ_is_raised(store: Store) -> None:
    data = mail()
    dedup_key = hashlib.sha256(b"one").digest()
    held = hold(store, data, dedup_key=dedup_key)
    again = hold(
        store, b"Received: by mx.example.net; another try\r\n" + data, dedup_key=dedup_key, tier=Tier.DANGEROUS
    )
    assert again.known
    assert held.id in again.raised
    assert first(store, held).message.tier is Tier.DANGEROUS


def test_more_copies_than_fit_in_one_transaction_are_raised(store: Store) -> None:
    data = mail()
    copies = [hold(store, data, [f"user{n}@example.org"]) for n in range(230)]
    worse = hold(store, data, [BOB], tier=Tier.SUSPICIOUS, symbols=MACRO)
    assert sorted(worse.raised) == sorted(held.id for held in copies)
    assert all(first(store, held).message.tier is Tier.SUSPICIOUS for held in copies)


@pytest.mark.parametrize("state", [State.DELETED, State.REQUESTED, State.HELD])
def test_mail_that_can_still_be_released_is_raised(store: Store, state: State) -> None:
    data = mail()
    held = hold(store, data, [ALICE])
    if state is not State.HELD:
        store.deliveries.move(DeliveryId(held.id, 0), state, {State.HELD}, BY_LINK, now(), kind=EventKind(state.value))
    hold(store, data, [ALICE], tier=Tier.DANGEROUS)
    assert first(store, held).message.tier is Tier.DANGEROUS
    assert first(store, held).state is state


def test_released_mail_keeps_its_verdict_unless_another_recipient_waits(store: Store) -> None:
    alone, shared = mail(), mail()
    to_alice, to_both = hold(store, alone, [ALICE]), hold(store, shared, [ALICE, BOB])
    for held in (to_alice, to_both):
        with store.deliveries.releasing(DeliveryId(held.id, 0), {State.HELD}, BY_LINK, now()):
            pass
    hold(store, alone, [ALICE], tier=Tier.DANGEROUS)
    hold(store, shared, [ALICE, BOB], tier=Tier.DANGEROUS)
    assert first(store, to_alice).message.tier is Tier.SPAM
    assert first(store, to_both).message.tier is Tier.DANGEROUS
    assert "raised" not in event_kinds(store, to_alice)
    assert "raised" not in event_kinds(store, to_both, 0)
    assert event_kinds(store, to_both, 1) == ["held", "raised"]


def test_an_export_without_symbols_keeps_those_known_before(store: Store) -> None:
    data = mail()
    held = hold(store, data, symbols=MACRO, score=12.0, flags=frozenset({Flag.SENDER}))
    flags = frozenset({Flag.SYMBOLS, Flag.RECIPIENTS, Flag.NO_METADATA})
    hold(store, data, tier=Tier.SUSPICIOUS, symbols=(), score=None, flags=flags)
    message = first(store, held).message
    assert (message.tier, message.symbols, message.score) == (Tier.SUSPICIOUS, MACRO, 12.0)
    assert message.flags == {Flag.SENDER, Flag.SYMBOLS}
    hold(store, data, tier=Tier.DANGEROUS, symbols=VIRUS, flags=frozenset())
    assert first(store, held).message.flags == {Flag.SENDER}


def test_raised_mail_is_found_by_its_new_tier_and_score_only(store: Store) -> None:
    data = mail()
    held = hold(store, data, [ALICE], score=17.5)
    hold(store, mail(), [ALICE], score=17.5)
    hold(store, data, [ALICE], tier=Tier.DANGEROUS, symbols=VIRUS, score=99.0)
    for wanted, count in (
        (Filter(tiers=frozenset({Tier.DANGEROUS})), 1),
        (Filter(tiers=frozenset({Tier.SPAM})), 1),
        (Filter(tiers=frozenset({Tier.SPAM, Tier.DANGEROUS})), 2),
        (Filter(score_min=90), 1),
        (Filter(score_max=20), 1),
    ):
        found = store.deliveries.search(wanted, 10).deliveries
        assert len(found) == count, wanted
        assert (held.id in {delivery.id for delivery in found}) == (
            Tier.DANGEROUS in wanted.tiers or wanted.score_min is not None
        )


def test_a_raised_mail_outlives_a_rebuild(files_url: str) -> None:
    store = open_store(files_url)
    data, waiting = mail(), mail()
    held, requested = hold(store, data), hold(store, waiting, [ALICE])
    hold(store, data, tier=Tier.DANGEROUS, symbols=VIRUS, score=None, action="discard")
    hold(store, waiting, [ALICE], tier=Tier.DANGEROUS, symbols=VIRUS)
    store.deliveries.move(
        DeliveryId(requested.id, 0), State.REQUESTED, {State.HELD}, BY_LINK, now(), kind=EventKind.REQUESTED
    )
    before = [(first(store, each), store.deliveries.history(DeliveryId(each.id, 0))) for each in (held, requested)]
    store.close()
    for _ in range(2):
        done = reindex(files_url.removeprefix("files://"), lambda *_: None)
        assert done.unreadable_lines == 0
        store = open_store(files_url)
        after = [(first(store, each), store.deliveries.history(DeliveryId(each.id, 0))) for each in (held, requested)]
        assert after == before
        found = store.deliveries.search(Filter(tiers=frozenset({Tier.DANGEROUS})), 10).deliveries
        assert {delivery.id for delivery in found} == {held.id, requested.id}
        store.close()


def test_a_record_brings_a_worse_verdict_and_never_a_better_one(store: Store, tmp_path: Path) -> None:
    """`copy` runs again after the verdict got worse in the source, then in the other direction."""
    source = open_store(f"files://{tmp_path}/source")
    data = mail()
    held = hold(source, data, symbols=MACRO)
    [mild] = source.messages.records([held.id]).values()
    store.messages.import_record(mild, body(data))
    hold(source, data, tier=Tier.DANGEROUS, symbols=VIRUS)
    [raised] = source.messages.records([held.id]).values()
    source.close()
    for record in (raised, mild):
        store.messages.import_record(record, None)
        assert first(store, held).message.tier is Tier.DANGEROUS
        assert first(store, held).message.symbols == VIRUS
