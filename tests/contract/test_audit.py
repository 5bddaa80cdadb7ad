"""The audit, in both stores."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from portal.model.audit import Act, AuditEntry, AuditFilter, person_typed, subject_typed
from portal.model.domain_value import DomainValue
from portal.model.errors import AlreadyDone, RelayRefused
from portal.model.message import Actor, ActorKind, DeliveryId, Event, EventKind, State, new_id
from portal.stores import Store
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, hold, now, rule

ALL = AuditFilter()
BY_DIGEST = Actor(ActorKind.DIGEST)


def entry(act: Act = Act.SIGNED_IN, who: str = ALICE, days_ago: float = 0, **more: Any) -> AuditEntry:
    actor = Actor(ActorKind.RECIPIENT, who, "portal", "192.0.2.7")
    return AuditEntry.new(now() - timedelta(days=days_ago), act, actor, who, **more)


def delete(store: Store, key: DeliveryId, actor: Actor, at: datetime | None = None) -> None:
    at = at or now()
    store.deliveries.move(key, State.DELETED, {State.HELD}, actor, at, kind=EventKind.DELETED, reason="spam")


def test_what_people_do_to_deliveries_is_recorded_with_their_names(store: Store) -> None:
    held = hold(store, recipients=[ALICE, BOB])
    own, shared = DeliveryId(held.id, 0), DeliveryId(held.id, 1)
    times = [now() + timedelta(seconds=n) for n in range(4)]
    delete(store, own, BY_LINK, times[0])
    delete(store, shared, BY_OPERATOR, times[1])
    with suppress(RelayRefused), store.deliveries.releasing(own, {State.DELETED}, BY_LINK, times[2]):
        raise RelayRefused("550 no such user")
    with store.deliveries.releasing(shared, {State.DELETED}, BY_OPERATOR, times[3], lambda: "250 OK"):
        pass
    found = store.audit.list(ALL, 9)
    assert [(each.act, each.actor.who, each.subject, each.delivery, each.detail) for each in reversed(found)] == [
        ("deleted", f"recipient:{ALICE}", ALICE, own, "spam"),
        ("deleted", "operator:root", BOB, shared, "spam"),
        ("releasing", f"recipient:{ALICE}", ALICE, own, ""),
        ("failed", f"recipient:{ALICE}", ALICE, own, "550 no such user"),
        ("releasing", "operator:root", BOB, shared, ""),
        ("released", "operator:root", BOB, shared, "250 OK"),
    ]
    assert {(each.actor.via, each.actor.address) for each in found} == {("link", "192.0.2.7"), ("cli", "")}


def test_what_programs_do_is_not_recorded(store: Store) -> None:
    held = hold(store)
    with store.deliveries.releasing(DeliveryId(held.id, 0), {State.HELD}, BY_DIGEST, now()):
        pass
    assert store.audit.list(ALL, 9) == []


def test_an_act_that_was_not_done_is_not_recorded(store: Store) -> None:
    key = DeliveryId(hold(store).id, 0)
    delete(store, key, BY_OPERATOR)
    with pytest.raises(AlreadyDone):
        delete(store, key, BY_LINK)
    assert [each.actor.who for each in store.audit.list(ALL, 9)] == ["operator:root"]


def test_the_audit_outlives_the_message(store: Store) -> None:
    held = hold(store)
    delete(store, DeliveryId(held.id, 0), BY_LINK)
    store.purge(now() + timedelta(days=9), now())
    assert store.messages.records([held.id]) == {}
    assert [each.act for each in store.audit.list(AuditFilter(message_id=held.id), 9)] == ["deleted"]


def test_rules_and_values_of_domains_are_recorded(store: Store) -> None:
    at = now()
    [made] = store.rules.add([rule("shop.example", "allow")], at)
    store.rules.add([rule("shop.example", "allow")], at)  # exists already
    store.rules.remove(made.id, BY_OPERATOR, at)
    store.rules.restore(made.id, BY_LINK, at)
    value = DomainValue(new_id(), "example.org", "language", "fr", at, BY_OPERATOR)
    for each in (value, value, replace(value, id=new_id(), value=None)):
        store.domains.set([each])
    found = {(each.act, each.actor.who, each.subject, each.detail) for each in store.audit.list(ALL, 9)}
    assert found == {
        ("rule-added", f"recipient:{ALICE}", ALICE, "allow shop.example"),
        ("rule-removed", "operator:root", ALICE, "allow shop.example"),
        ("domain-set", "operator:root", "example.org", "language = fr"),
        ("domain-set", "operator:root", "example.org", "language: as in the settings file"),
    }
    assert len(store.audit.list(ALL, 9)) == 5  # putting back is recorded like adding


def test_entries_are_found_by_each_of_their_parts(store: Store) -> None:
    key = DeliveryId(new_id(), 3)
    old, signed_in, read = entry(days_ago=5), entry(), entry(Act.BODY_READ, "carol", delivery=key)
    read = replace(read, actor=BY_OPERATOR, subject=BOB)
    store.audit.record(old, signed_in, read)
    for wanted, expected in (
        (ALL, [read, signed_in, old]),
        (AuditFilter(person=ALICE), [signed_in, old]),
        (AuditFilter(person="root"), [read]),
        (AuditFilter(person="roo"), []),
        (AuditFilter(act="body-read"), [read]),
        (AuditFilter(subject=BOB), [read]),
        (AuditFilter(message_id=key.message_id), [read]),
        (AuditFilter(since=now() - timedelta(days=1)), [read, signed_in]),
        (AuditFilter(until=now() - timedelta(days=1)), [old]),
        (AuditFilter(person=ALICE, act="signed-in", subject=ALICE, since=now() - timedelta(days=1)), [signed_in]),
    ):
        assert sorted(store.audit.list(wanted, 9), key=lambda each: each.id) == sorted(expected, key=lambda e: e.id)


def test_entries_of_a_domain_include_those_of_its_rules(store: Store) -> None:
    at = now()
    store.rules.add([rule("shop.example", "block", scope="@example.org"), rule("shop.example", "block")], at)
    store.domains.set([DomainValue(new_id(), "example.org", "language", "fr", at, BY_OPERATOR)])
    for typed in ("example.org", "@Example.org"):
        found = store.audit.list(AuditFilter(subject=subject_typed(typed)), 9)
        assert {(each.act, each.subject) for each in found} == {
            ("rule-added", "@example.org"),
            ("domain-set", "example.org"),
        }


def test_entries_are_read_in_pages(store: Store) -> None:
    made = [entry(days_ago=days) for days in range(5)]
    store.audit.record(*made)
    assert store.audit.list(ALL, 2) == made[:2]
    assert store.audit.list(ALL, 2, made[1].id) == made[2:4]
    assert store.audit.records(None, 2) == [made[4], made[3]]
    assert store.audit.records(made[3].id, 9) == [made[2], made[1], made[0]]


def test_an_entry_is_never_changed(store: Store) -> None:
    made = entry()
    store.audit.record(made)
    store.audit.record(replace(made, detail="something else"))
    with pytest.raises(Exception, match="append-only"), store.audit._engine.writing() as session:  # type: ignore[attr-defined]
        session.execute("update audit set detail = 'something else'")
    assert store.audit.list(ALL, 9) == [made]


def test_old_entries_are_removed(store: Store) -> None:
    old, new = [entry(days_ago=days) for days in (400, 399)], entry()
    store.audit.record(*old, new)
    assert store.audit.expire(now() - timedelta(days=365)) == 2
    assert store.audit.expire(now() - timedelta(days=365)) == 0
    assert store.audit.list(ALL, 9) == [new]


def test_the_same_event_has_the_same_id() -> None:
    key, event = DeliveryId(new_id(), 0), Event(now(), EventKind.DELETED, BY_LINK, "x")
    first, second = AuditEntry.of_event(event, key, ALICE), AuditEntry.of_event(event, key, ALICE)
    other = AuditEntry.of_event(event, DeliveryId(key.message_id, 1), ALICE)
    assert first == second
    assert first is not None and other is not None and first.id != other.id
    assert first.id.version == 7


def test_what_people_type_is_in_the_spelling_of_the_entries() -> None:
    assert subject_typed("MÜNCHEN.example") == "xn--mnchen-3ya.example"
    assert subject_typed("Bob@Example.org") == BOB
    assert subject_typed("") == ""
    assert person_typed("Bob@Example.org") == BOB
    assert person_typed("Root") == "Root"


def test_what_an_actor_did_is_read_once_in_the_order_of_its_first_entries(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("portal.stores.shared.audit._PAGE", 4)
    at, other = now(), replace(BY_OPERATOR, via="cli/other")
    for number, (actor, person) in enumerate(
        [(BY_OPERATOR, "b"), (other, "x"), (BY_OPERATOR, "a"), (BY_OPERATOR, "b"), (BY_OPERATOR, "c")]
        + [(BY_OPERATOR, "a")] * 9
        + [(BY_OPERATOR, "d"), (BY_OPERATOR, "b")]
    ):
        held = hold(store, recipients=[f"{person}@example.org"])
        delete(store, DeliveryId(held.id, 0), actor, at + timedelta(seconds=number))
    acted = (BY_OPERATOR, EventKind.DELETED, at)
    found, after = list[str](), None
    for _ in range(9):
        page, after = store.audit.acted_on(*acted, 2, after)
        assert len(page) <= 2
        found += page
        if after is None:
            break
        known = {name[0] for name in store.audit.acted_before(*acted, [f"{n}@example.org" for n in "abcdx"], after)}
        assert known == {name[0] for name in found}
    assert [name[0] for name in found] == ["b", "a", "c", "d"] and after is None
    tally = store.audit.tally(*acted, ["a@example.org", "d@example.org", "x@example.org"])
    assert tally == {"a@example.org": {State.DELETED: 10}, "d@example.org": {State.DELETED: 1}}
    assert store.audit.acted_on(BY_OPERATOR, EventKind.DELETED, at + timedelta(days=1), 9) == ([], None)
