"""Authority over rules, and the hints for their authors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from portal.assemble import Parts
from portal.model.errors import BadRule, NotFound
from portal.model.message import Actor, ActorKind, Symbol, Tier
from portal.model.rule import SITE, Effect, Rule
from portal.policy import entry, rulebook
from portal.policy.decision import NOTHING, Decision
from portal.policy.rulebook import Hint, Rulebook
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, MALLORY, export, hold, rule
from tests.contract.helpers import DAY, MINUTE

INFO, ALIAS = "info@example.org", "al@example.org"
PASSED = (Symbol("DMARC_POLICY_ALLOW", 0.0, ("example.net",)),)
BY_BOB = Actor(ActorKind.RECIPIENT, BOB, "portal")


@pytest.fixture
def book(make_parts: Callable[..., Parts], tmp_path: Path) -> Rulebook:
    """Alice has an alias, and reads the role mailbox together with bob."""
    aliases = tmp_path / "virtual"
    aliases.write_text(f"{ALIAS} {ALICE}\n{INFO} {ALICE}, {BOB}\n")
    return make_parts(people__alias_file=aliases, people__recipient_delimiter="+").rulebook


def added(book: Rulebook, *rules: Rule) -> list[Rule]:
    return list(book.add(rules))


def by_operator(book: Rulebook, scope: str, sender: str, effect: str = "block", **more: Any) -> Rule:
    return book.rule(scope, sender, Effect(effect), BY_OPERATOR, **more)


def test_a_person_makes_rules_for_what_they_read_and_only_for_that(book: Rulebook) -> None:
    alice, bob = book.people.reader(ALICE), book.people.reader(BOB)
    for recipient, owner in ((ALICE, ALICE), (ALIAS, ALICE), (INFO, INFO)):
        made = book.own_rule(alice, recipient, "Promo@Example.net", Effect.BLOCK, BY_LINK)
        assert (made.scope, made.sender, made.actor, made.binding) == (owner, "promo@example.net", BY_LINK, False)
    for reader, recipient in ((bob, ALICE), (bob, ALIAS), (bob, "@example.org"), (alice, SITE)):
        with pytest.raises(NotFound):
            book.own_rule(reader, recipient, "promo@example.net", Effect.BLOCK, BY_LINK)


def test_a_rule_made_from_a_message_names_it(book: Rulebook) -> None:
    held = hold(book.store)
    message = book.store.deliveries.of_message(held.id)[0].message
    made = book.own_rule(book.people.reader(ALICE), ALICE, "example.net", Effect.BLOCK, BY_LINK, message)
    assert made.message_id == held.id


def test_readers_of_a_role_mailbox_change_its_rules_and_nobody_else_does(book: Rulebook) -> None:
    alice, bob, mallory = map(book.people.reader, (ALICE, BOB, MALLORY))
    own = book.own_rule(alice, ALICE, "a.example", Effect.BLOCK, BY_LINK)
    shared = book.own_rule(bob, INFO, "b.example", Effect.BLOCK, BY_BOB)
    wide = [by_operator(book, "example.org", "c.example"), by_operator(book, "site", "d.example")]
    added(book, own, shared, *wide)
    assert {each.id for each in book.own(alice)} == {own.id, shared.id}
    assert list(book.own(bob)) == [shared]
    assert list(book.own(mallory)) == []
    for each in (own, shared, *wide):
        for act in (
            book.own_by_id,
            lambda r, i: book.remove_own(r, i, BY_LINK),
            lambda r, i: book.restore_own(r, i, BY_LINK),
        ):
            with pytest.raises(NotFound):
                act(mallory, each.id)
    removed = book.remove_own(alice, shared.id, BY_LINK)
    assert (removed.actor, removed.removed_by) == (BY_BOB, BY_LINK)
    assert book.restore_own(bob, shared.id, BY_BOB) == shared
    for each in wide:
        with pytest.raises(NotFound):
            book.remove_own(alice, each.id, BY_LINK)
        assert book.remove(each.id, BY_OPERATOR).removed_by == BY_OPERATOR


def test_rules_hold_for_all_names_of_a_person(book: Rulebook) -> None:
    message = export(b"", symbols=PASSED)

    def decisions() -> object:
        return book.decide(message, Tier.SPAM, [ALICE, ALIAS, INFO, BOB], scanned=True)

    assert decisions() == dict.fromkeys((ALICE, ALIAS, INFO, BOB), NOTHING)
    [mine] = added(book, book.own_rule(book.people.reader(ALICE), ALIAS, "example.net", Effect.ALLOW, BY_LINK))
    [role] = added(book, book.own_rule(book.people.reader(ALICE), INFO, "example.net", Effect.BLOCK, BY_LINK))
    allowed, blocked = Decision(Effect.ALLOW, mine), Decision(Effect.BLOCK, role)
    assert decisions() == {ALICE: allowed, ALIAS: allowed, INFO: blocked, BOB: NOTHING}


def test_hits_count_deliveries_that_a_rule_decided(book: Rulebook) -> None:
    block, unused = added(
        book, by_operator(book, "site", "example.net"), by_operator(book, BOB, "example.net", "allow")
    )
    decisions = book.decide(export(b""), Tier.SPAM, [ALICE, BOB, MALLORY], scanned=True)
    book.count(decisions)
    book.count({})
    hits = {each.id: (each.hits, each.last_hit_at is not None) for each in book.store.rules.list(None, 9, book.now())}
    assert hits == {block.id: (2, True), unused.id: (0, False)}  # bob's is not authentic


def test_an_operator_makes_rules_for_everybody(book: Rulebook) -> None:
    for scope, stored in (
        (ALIAS, ALICE),
        ("Alice+news@example.org", ALICE),
        (INFO, INFO),
        ("example.org", "@example.org"),
    ):
        assert by_operator(book, scope, "example.net").scope == stored
    end = book.now() + DAY
    made = by_operator(book, "site", "192.0.2.0/24", binding=True, expires_at=end, note="abuse\x1b[31m")
    assert (made.scope, made.sender, made.binding, made.expires_at, made.note) == (
        SITE, "192.0.2.0/24", True, end, "abuse[31m",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "more", "sentence"),
    [
        ((ALICE, "192.0.2.1"), {}, rulebook.NETWORK_SCOPE),
        ((ALICE, "example.net"), {"binding": True}, rulebook.BINDING),
        (("site", "example.net", "allow"), {"binding": True}, rulebook.BINDING),
        (("site", "example.net"), {"note": "x" * 201}, rulebook.NOTE),
        (("site", "example.org", "allow"), {}, entry.LOCAL),
        (("site", "gmail.com", "allow"), {}, entry.FREEMAIL),
        (("somebody", "example.net"), {}, entry.NEITHER),
    ],
)
def test_an_operator_is_told_what_is_wrong(
    book: Rulebook, arguments: tuple[str, ...], more: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BadRule) as caught:
        by_operator(book, *arguments, **more)
    assert str(caught.value) == sentence


def test_a_rule_that_has_ended_is_not_made(book: Rulebook) -> None:
    with pytest.raises(BadRule, match=rulebook.EXPIRED):
        by_operator(book, "site", "example.net", expires_at=book.now() - MINUTE)


@pytest.mark.parametrize(
    ("wider", "mine", "hints"),
    [
        ([], ("allow", "promo@example.net"), []),
        ([("site", "example.net", True)], ("allow", "promo@example.net"), [Hint.OVERRULED]),
        ([("site", "net", True)], ("allow", "example.net"), [Hint.OVERRULED]),
        ([("example.org", "example.net", True)], ("allow", "example.net"), [Hint.OVERRULED]),
        ([("site", "example.net", True)], ("block", "example.net"), []),
        ([("site", "example.net", False)], ("allow", "promo@example.net"), [Hint.OVERRIDES]),
        ([("site", "example.net", False)], ("block", "promo@example.net"), []),
        ([("site", "promo@example.net", False)], ("allow", "example.net"), []),
        ([("example.com", "example.net", True)], ("allow", "example.net"), []),
    ],
)
def test_conflicts_with_wider_rules_are_told(
    book: Rulebook, wider: list[tuple[str, str, bool]], mine: tuple[str, str], hints: list[Hint]
) -> None:
    added(book, *(by_operator(book, scope, sender, binding=binding) for scope, sender, binding in wider))
    assert book.hints(rule(mine[1], mine[0])) == hints


def test_conflicts_are_told_to_operators_too(book: Rulebook) -> None:
    added(book, by_operator(book, "site", "192.0.0.0/16", binding=True), by_operator(book, "site", "a.example"))
    assert book.hints(by_operator(book, "example.org", "192.0.2.0/24", "allow")) == [Hint.OVERRULED]
    assert book.hints(by_operator(book, "example.org", "192.0.0.0/16", "allow")) == [Hint.OVERRULED]
    assert book.hints(by_operator(book, "example.org", "192.0.0.0/15", "allow")) == []
    assert book.hints(by_operator(book, "example.org", "a.example", "allow")) == [Hint.OVERRIDES]
    assert book.hints(by_operator(book, "site", "a.example", "allow")) == [Hint.REPLACES]
    added(book, by_operator(book, "example.org", "b.example", "allow"))
    assert book.hints(rule("x@b.example")) == [Hint.OVERRIDES]
    added(book, by_operator(book, "site", "b.example"))
    assert book.hints(rule("b.example", "allow")) == []  # the domain's own rule comes first
    added(book, by_operator(book, "site", "b.example", binding=True))
    added(book, by_operator(book, "site", "x@b.example", "allow"))
    assert book.hints(rule("x@b.example", "allow")) == []  # an exception of the site


@pytest.mark.parametrize(
    "sender",
    [
        "bounce-1234567@example.net", "bounces+123-abcd-alice=example.org@example.net", "prvs=123@example.net",
        "srs0=hhh=tt=example.com=bob@example.net", "0102018f3a7bd2c4-11aa@example.net", "return.x@example.net",
        "msprvs1=19x@example.net",
    ],
)  # fmt: skip
def test_addresses_that_change_with_each_message_are_told(book: Rulebook, sender: str) -> None:
    assert book.hints(rule(sender)) == [Hint.CHANGING_ADDRESS]


@pytest.mark.parametrize(
    "sender", ["promo@example.net", "john.smith1984@example.net", "bounce@example.net", "returns.example"]
)
def test_addresses_of_people_and_shops_are_not(book: Rulebook, sender: str) -> None:
    assert book.hints(rule(sender)) == []


def test_other_hints(book: Rulebook) -> None:
    assert book.hints(rule("boss@example.org", "allow")) == [Hint.OWN_DOMAIN]
    assert book.hints(rule("example.org", "block")) == [Hint.OWN_DOMAIN]
    assert book.hints(rule("xn--pypal-4ve.com", "allow")) == [Hint.LOOKS_ALIKE]
    assert book.hints(rule("xn--pypal-4ve.com", "block")) == []
    assert book.hints(rule(scope="x@foreign.example")) == book.hints(rule(scope="@foreign.example")) == [Hint.NOT_LOCAL]


def test_an_allow_rule_from_a_message_that_is_not_authentic(book: Rulebook) -> None:
    message = book.store.deliveries.of_message(hold(book.store).id)[0].message
    assert book.hints(rule("example.net", "allow"), message) == [Hint.NOT_AUTHENTIC]
    assert book.hints(rule("example.net"), message) == []
    assert book.hints(rule("example.net", "allow"), replace(message, symbols=PASSED)) == []
