"""Allow and block rules, in both stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from portal.model.errors import AlreadyDone, NotFound, TooManyRules
from portal.model.message import Actor, ActorKind, held_at
from portal.model.rule import BLOCKS_PER_SITE, RULES_PER_RECIPIENT, SITE, Effect, Rule
from portal.stores import Store
from portal.stores.lifecycle import RULES_KEPT
from portal.stores.shared import rules as shared_rules
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, now, rule
from tests.contract.helpers import HOUR, MINUTE, SECOND, UNKNOWN, concurrently

ROLE_READER = Actor(ActorKind.RECIPIENT, BOB, "portal", "192.0.2.9")


def senders(rules: Sequence[Rule]) -> list[str]:
    return [each.sender for each in rules]


def test_a_rule_keeps_what_it_was_given(store: Store) -> None:
    at = now()
    made = rule(
        "promo@example.net", "allow", actor=ROLE_READER, message_id=UNKNOWN, expires_at=at + HOUR, note="Grüße",
        created_at=at,
    )  # fmt: skip
    assert store.rules.add([made], at) == [made]
    assert store.rules.get(made.id) == made
    binding = rule("192.0.2.0/24", scope="@example.org", binding=True, actor=BY_OPERATOR)
    store.rules.add([binding], at)
    assert store.rules.get(binding.id) == binding
    with pytest.raises(NotFound):
        store.rules.get(UNKNOWN)


def test_the_same_rule_is_added_once(store: Store) -> None:
    at = now()
    [first] = store.rules.add([rule()], at)
    assert store.rules.add([rule()], at) == [first]
    assert store.rules.list([ALICE], 10, at) == [first]


@pytest.mark.parametrize(
    "change", [{"effect": Effect.ALLOW}, {"note": "other"}, {"expires_at": now() + HOUR}], ids=lambda c: next(iter(c))
)
def test_a_changed_rule_replaces_the_one_before(store: Store, change: dict[str, object]) -> None:
    at = now()
    [first] = store.rules.add([rule()], at)
    second = replace(rule(actor=ROLE_READER), **change)  # type: ignore[arg-type]
    assert store.rules.add([second], at + MINUTE) == [second]
    assert store.rules.list([ALICE], 10, at + MINUTE) == [second]
    replaced = replace(first, removed_at=at + MINUTE, removed_by=ROLE_READER)
    assert store.rules.list([ALICE], 10, at + MINUTE, removed=True) == [replaced]


def test_of_two_rules_of_one_call_for_the_same_sender_the_last_is_added(store: Store) -> None:
    first, last = rule("a.example"), rule("a.example", "allow")
    assert store.rules.add([first, last], now()) == [last]
    with pytest.raises(NotFound):
        store.rules.get(first.id)


def test_an_expired_rule_has_no_effect_and_can_be_made_again(store: Store) -> None:
    at = now()
    [short] = store.rules.add([rule(expires_at=at + HOUR)], at)
    assert store.rules.matching([ALICE], ["example.net"], [], at + HOUR - SECOND) == [short]
    assert store.rules.matching([ALICE], ["example.net"], [], at + HOUR) == []
    assert store.rules.list([ALICE], 10, at + HOUR) == []
    assert store.rules.list([ALICE], 10, at + HOUR, removed=True) == [short]
    again = rule(expires_at=at + HOUR)
    assert store.rules.add([again], at + HOUR) == [again]


def test_removing_says_who_did_it_and_can_be_undone(store: Store) -> None:
    at = now()
    [made] = store.rules.add([rule()], at)
    removed = replace(made, removed_at=at + MINUTE, removed_by=ROLE_READER)
    assert store.rules.remove(made.id, ROLE_READER, at + MINUTE) == removed
    assert store.rules.matching([ALICE], ["example.net"], [], at) == []
    assert store.rules.list([ALICE], 10, at) == []
    with pytest.raises(AlreadyDone):
        store.rules.remove(made.id, BY_LINK, at)
    assert store.rules.get(made.id) == removed
    assert store.rules.restore(made.id, BY_OPERATOR, at) == made
    assert store.rules.matching([ALICE], ["example.net"], [], at) == [made]
    with pytest.raises(AlreadyDone):
        store.rules.restore(made.id, BY_OPERATOR, at)
    with pytest.raises(NotFound):
        store.rules.remove(UNKNOWN, BY_LINK, at)
    with pytest.raises(NotFound):
        store.rules.restore(UNKNOWN, BY_OPERATOR, at)


def test_a_rule_is_not_put_back_beside_a_newer_one(store: Store) -> None:
    at = now()
    [first] = store.rules.add([rule()], at)
    [second] = store.rules.add([rule(effect="allow")], at)
    with pytest.raises(AlreadyDone):
        store.rules.restore(first.id, BY_OPERATOR, at)
    assert store.rules.list([ALICE], 10, at) == [second]


def test_rules_are_listed_by_scope_newest_first_in_pages(store: Store) -> None:
    at = now()
    mine = [rule(f"{n}.example", created_at=at + n * SECOND) for n in range(5)]
    others = [rule(scope=BOB), rule(scope="@example.org"), rule(scope=SITE)]
    store.rules.add([*mine, *others], at)
    first = store.rules.list([ALICE], 3, at)
    assert senders(first) == ["4.example", "3.example", "2.example"]
    assert senders(store.rules.list([ALICE], 3, at, first[-1].id)) == ["1.example", "0.example"]
    assert {each.scope for each in store.rules.list([BOB, "@example.org"], 9, at)} == {BOB, "@example.org"}
    assert len(store.rules.list(None, 99, at)) == 8
    assert store.rules.list([], 9, at) == []


def test_rules_of_a_message_are_found_by_scope_and_sender(store: Store) -> None:
    at = now()
    rules = [
        rule("promo@example.net"), rule("example.net"), rule("other.example"), rule("promo@example.net", scope=BOB),
        rule("net", scope="@example.org"), rule("example.net", scope=SITE), rule("192.0.2.0/24", scope=SITE),
        rule("192.0.2.0/24", scope="@example.com"),
    ]  # fmt: skip
    store.rules.add(rules, at)
    found = store.rules.matching(
        [ALICE, "@example.org", SITE], ["promo@example.net", "example.net", "net"], ["192.0.2.0/24"], at
    )
    assert {each.id for each in found} == {rules[n].id for n in (0, 1, 4, 5, 6)}
    assert store.rules.matching([], ["example.net"], [], at) == []
    assert store.rules.matching([SITE], [], [], at) == []


def test_rules_of_more_recipients_than_one_statement_takes_are_found(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_rules, "_SCOPES", 3)
    scopes = [f"{n}@example.org" for n in range(10)]
    store.rules.add([rule(scope=scope) for scope in scopes], now())
    found = store.rules.matching(scopes, ["example.net"], [], now())
    assert sorted(each.scope for each in found) == sorted(scopes)


def test_hits_are_added_up(store: Store) -> None:
    at = now()
    one, two = store.rules.add([rule(), rule("other.example")], at)
    store.rules.count_hits({one.id: 2, two.id: 1}, at)
    store.rules.count_hits({one.id: 3, UNKNOWN: 1}, at + MINUTE)
    assert store.rules.get(one.id) == replace(one, hits=5, last_hit_at=at + MINUTE)
    assert store.rules.get(two.id) == replace(two, hits=1, last_hit_at=at)


def test_a_recipient_has_a_limit_and_nothing_of_what_exceeds_it_is_added(store: Store) -> None:
    at = now()
    store.rules.add([rule(f"{n}.example") for n in range(RULES_PER_RECIPIENT - 1)], at)
    with pytest.raises(TooManyRules):
        store.rules.add([rule("a.example"), rule("b.example")], at)
    [last] = store.rules.add([rule("a.example")], at)
    assert store.rules.add([rule("a.example")], at) == [last]  # it is there already
    store.rules.add([rule("a.example", "allow")], at)  # it replaces one
    gone = store.rules.list([ALICE], 1, at)[0]
    store.rules.remove(gone.id, BY_LINK, at)
    store.rules.add([rule("b.example")], at)
    with pytest.raises(TooManyRules):
        store.rules.restore(gone.id, BY_OPERATOR, at)
    store.rules.add([rule("b.example", scope=BOB)], at)
    assert len(store.rules.list([ALICE], 2 * RULES_PER_RECIPIENT, at)) == RULES_PER_RECIPIENT


def test_of_a_recipient_who_changes_rules_all_day_the_last_removed_ones_are_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_rules, "RULES_PER_RECIPIENT", 3)
    at = now()
    [other] = store.rules.add([rule("other.example", scope=BOB)], at)
    store.rules.remove(other.id, BY_OPERATOR, at)
    for n in range(6):
        [made] = store.rules.add([rule(f"{n}.example")], at + n * SECOND)
        store.rules.remove(made.id, BY_LINK, at + n * SECOND)
    [kept] = store.rules.add([rule("kept.example")], at + MINUTE)
    assert sorted(senders(store.rules.list([ALICE], 9, at, removed=True))) == ["3.example", "4.example", "5.example"]
    assert store.rules.list([ALICE], 9, at) == [kept]
    assert senders(store.rules.list([BOB], 9, at, removed=True)) == ["other.example"]


def test_a_site_has_a_limit_of_blocks_of_all_scopes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert BLOCKS_PER_SITE == 100_000
    monkeypatch.setattr(shared_rules, "BLOCKS_PER_SITE", 3)
    at = now()
    store.rules.add([rule(), rule(scope=BOB), rule(scope=SITE)], at)
    with pytest.raises(TooManyRules):
        store.rules.add([rule("b.example")], at)
    store.rules.add([rule("b.example", "allow")], at)
    [gone] = store.rules.list([BOB], 9, at)
    store.rules.remove(gone.id, BY_LINK, at)
    store.rules.add([rule("c.example", expires_at=at + HOUR)], at)
    store.rules.add([rule("d.example")], at + HOUR)  # the one before has expired


def test_two_who_add_at_once_do_not_exceed_a_limit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_rules, "RULES_PER_RECIPIENT", 3)

    def add(n: int) -> bool:
        try:
            store.rules.add([rule(f"{n}.example")], now())
        except TooManyRules:
            return False
        return True

    assert sum(concurrently(8, add)) == 3
    assert len(store.rules.list([ALICE], 99, now())) == 3


def test_rules_that_ended_are_kept_for_a_while(store: Store) -> None:
    at = now()
    removed, expiring, kept = store.rules.add(
        [rule("a.example"), rule("b.example", expires_at=at + HOUR), rule("c.example")], at
    )
    store.rules.remove(removed.id, BY_LINK, at)
    store.purge(at - HOUR, at + RULES_KEPT)
    assert sorted(senders(store.rules.records(None, 9))) == ["a.example", "b.example", "c.example"]
    store.purge(at - HOUR, at + RULES_KEPT + MINUTE)
    assert sorted(senders(store.rules.records(None, 9))) == ["b.example", "c.example"]
    store.purge(at - HOUR, at + RULES_KEPT + HOUR + MINUTE)
    assert store.rules.records(None, 9) == [kept]


def test_imported_rules_replace_those_with_their_id_and_keys(store: Store) -> None:
    at = now()
    mine, other = store.rules.add([rule("a.example"), rule("b.example")], at)
    changed = replace(mine, hits=7, last_hit_at=at)
    rival = rule("b.example", "allow")
    store.rules.import_records([changed, rival], at, replace_changed=True)
    assert store.rules.get(mine.id) == changed
    assert {each.id for each in store.rules.list([ALICE], 9, at)} == {mine.id, rival.id}
    assert store.rules.get(other.id).removed_at == at


def test_imported_rules_leave_those_of_a_store_in_use(store: Store) -> None:
    at = now()
    mine, other = store.rules.add([rule("a.example"), rule("b.example")], at)
    rival, fresh, past = (
        rule("b.example", "allow"),
        rule("c.example"),
        rule("b.example", removed_at=at, removed_by=BY_LINK),
    )
    store.rules.import_records([replace(mine, hits=7), rival, fresh, past], at, replace_changed=False)
    assert {each.id for each in store.rules.list([ALICE], 9, at)} == {mine.id, other.id, fresh.id}
    assert store.rules.get(mine.id) == mine
    assert store.rules.get(past.id) == past


def test_each_change_of_rules_is_noted_and_nothing_else_is(store: Store, second: Store) -> None:
    at = now()
    assert store.rules.last_change() is None
    [added] = store.rules.add([rule()], at)
    seen = [second.rules.last_change()]
    store.rules.add([rule()], at)  # it is there already
    store.rules.count_hits({added.id: 1}, at)
    with pytest.raises(AlreadyDone):
        store.rules.restore(added.id, BY_OPERATOR, at)
    assert second.rules.last_change() == seen[0]
    store.rules.remove(added.id, BY_LINK, at + MINUTE)
    seen.append(second.rules.last_change())
    store.rules.restore(added.id, BY_OPERATOR, at)
    seen.append(second.rules.last_change())
    store.rules.import_records([rule("other.example")], at, replace_changed=False)
    seen.append(second.rules.last_change())
    assert None not in seen and len(set(seen)) == 4
    assert seen[1] is not None and abs(held_at(seen[1]) - (at + MINUTE)) < SECOND


def test_active_rules_of_recipients_and_of_wider_scopes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_rules, "_PAGE", 2)
    at = now()
    mine = [rule(f"{n}.example", scope=scope) for scope in (ALICE, BOB) for n in range(3)]
    wide = [rule("a.example", scope="@example.org", binding=True), rule("a.example", "allow", scope=SITE)]
    ended = rule("ended.example", expires_at=at + MINUTE)
    removed = rule("removed.example")
    store.rules.add([*mine, *wide, ended, removed], at)
    store.rules.remove(removed.id, BY_LINK, at)
    found = list(store.rules.active(at + MINUTE, recipients=True))
    assert sorted((each.scope, each.sender) for each in found) == sorted((each.scope, each.sender) for each in mine)
    scopes = [each.scope for each in found]
    assert scopes == sorted(scopes)  # those of one scope follow each other
    assert sorted(store.rules.active(at, recipients=False)) == [
        (SITE, "a.example", Effect.ALLOW, False, None),
        ("@example.org", "a.example", Effect.BLOCK, True, None),
    ]
