"""The decision about a message by the rules of its recipients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.model.message import Export, Flag, Symbol, Tier
from portal.model.rule import SITE, Effect, Rule, address_keys, network_keys, recipient_scopes
from portal.policy.decision import NOTHING, Decision, WhyNot, decide, sender_keys
from tests.builders import ALICE, BOB, export, rule

PASSED = (Symbol("DMARC_POLICY_ALLOW", 0.0, ("example.net",)),)
DOMAIN = "@example.org"


def mail(**overrides: Any) -> Export:
    return export(b"", **{"symbols": PASSED, "envelope_sender": "bounce@mailer.example", **overrides})


def decided(rules: Sequence[Rule], message: Export | None = None, **overrides: Any) -> Decision:
    """Return the decision for alice."""
    arguments = {"tier": Tier.SPAM, "scanned": True, **overrides}
    return decide(message or mail(), scopes={ALICE: recipient_scopes([ALICE])}, rules=rules, **arguments)[ALICE]


def test_without_a_matching_rule_nothing_is_decided() -> None:
    others = [rule("other.example"), rule("net.example"), rule(scope=BOB), rule(scope="@sub.example.org")]
    assert decided([]) == decided(others) == NOTHING


@pytest.mark.parametrize("sender", ["promo@example.net", "example.net", "net", "198.51.100.0/24", "198.51.100.9/32"])
@pytest.mark.parametrize("scope", [ALICE, DOMAIN, SITE])
@pytest.mark.parametrize("effect", ["allow", "block"])
def test_a_rule_decides(sender: str, scope: str, effect: str) -> None:
    made = rule(sender, effect, scope)
    assert decided([made]) == Decision(Effect(effect), made)


@pytest.mark.parametrize("sender", ["bounce@mailer.example", "mailer.example"])
def test_only_blocks_match_the_envelope_sender(sender: str) -> None:
    block = rule(sender)
    assert decided([block]) == Decision(Effect.BLOCK, block)
    assert decided([rule(sender, "allow")]) == NOTHING


def test_a_block_matches_each_from_address_and_a_sender_written_in_another_way() -> None:
    message = mail(header_from="Promo <a@one.example>, B <b@two.example>")
    for sender in ("one.example", "b@two.example"):
        assert decided([made := rule(sender)], message) == Decision(Effect.BLOCK, made)
    message = mail(header_from="P <PROMO@MÜNCHEN.example>", envelope_sender="Bounce@Mailer.EXAMPLE")
    for sender in ("promo@xn--mnchen-3ya.example", "bounce@mailer.example"):
        assert decided([made := rule(sender)], message) == Decision(Effect.BLOCK, made)


def test_a_message_without_senders_matches_networks_only() -> None:
    message = mail(header_from="", envelope_sender="")
    network = rule("198.51.100.0/24", scope=SITE)
    assert decided([rule("example.net"), network], message) == Decision(Effect.BLOCK, network)
    assert decided([network], mail(envelope_sender=None, client_ip=None)) == NOTHING


# ---- precedence

_BY_SENDER = ["promo@example.net", "example.net", "net", "198.51.100.9/32", "198.51.100.0/24"]  # most specific first


@pytest.mark.parametrize("n", range(len(_BY_SENDER) - 1))
def test_of_one_scope_the_most_specific_sender_decides(n: int) -> None:
    for effects in permutations(("allow", "block")):
        narrow, wide = (rule(s, effect, SITE) for s, effect in zip(_BY_SENDER[n : n + 2], effects, strict=True))
        assert decided([narrow, wide]) == decided([wide, narrow]) == Decision(Effect(effects[0]), narrow)


@pytest.mark.parametrize(("narrow", "wide"), [(ALICE, DOMAIN), (DOMAIN, SITE), (ALICE, SITE)])
def test_the_narrowest_scope_decides_whatever_the_sender(narrow: str, wide: str) -> None:
    for effects in permutations(("allow", "block")):
        mine, theirs = rule("net", effects[0], narrow), rule("promo@example.net", effects[1], wide)
        assert decided([theirs, mine]) == Decision(Effect(effects[0]), mine)


def test_at_equal_rank_block_wins() -> None:
    allow, block = rule("promo@example.net", "allow"), rule("bounce@mailer.example")
    assert decided([allow, block]) == decided([block, allow]) == Decision(Effect.BLOCK, block)


def test_rules_of_several_names_of_one_person_are_of_equal_rank() -> None:
    alias = "al@example.org"
    allow, block = rule("example.net", "allow"), rule("example.net", scope=alias)
    scopes = {alias: recipient_scopes([alias, ALICE])}
    for rules, wanted in (([allow, block], block), ([allow], allow)):
        found = decide(mail(), Tier.SPAM, scopes, rules, scanned=True)
        assert found == {alias: Decision(wanted.effect, wanted)}


@pytest.mark.parametrize("scope", [DOMAIN, SITE])
def test_a_binding_block_overrules_narrower_rules(scope: str) -> None:
    binding = rule("net", scope=scope, binding=True)
    allow = rule("promo@example.net", "allow")
    assert decided([allow, binding]) == Decision(Effect.BLOCK, binding, overruled=allow)
    assert decided([rule("promo@example.net"), binding]) == Decision(Effect.BLOCK, binding)


def test_a_binding_block_of_the_site_overrules_one_of_the_domain() -> None:
    site, domain = rule(scope=SITE, binding=True), rule(scope=DOMAIN, binding=True)
    assert decided([site, domain]) == Decision(Effect.BLOCK, site)
    allow = rule("promo@example.net", "allow", DOMAIN)
    assert decided([site, allow]) == Decision(Effect.BLOCK, site, overruled=allow)


def test_a_binding_block_wins_over_another_block_of_equal_rank() -> None:
    allow = rule("promo@example.net", "allow")
    blocks = [rule("promo@example.net", scope=SITE), rule("bounce@mailer.example", scope=SITE)]
    for binding in (0, 1):
        sites = [replace(block, binding=n == binding) for n, block in enumerate(blocks)]
        assert decided([allow, *sites]) == Decision(Effect.BLOCK, sites[binding], overruled=allow)


def test_a_wider_rule_is_not_overruled_by_a_binding_block() -> None:
    binding, allow = rule(scope=DOMAIN, binding=True), rule("example.net", "allow", SITE)
    assert decided([binding, allow]) == Decision(Effect.BLOCK, binding)


def test_the_closest_of_several_from_addresses_counts() -> None:
    for senders in permutations(["<a@x.example>", "<b@sub.x.example>"]):
        message = mail(header_from=", ".join(senders))
        assert sender_keys(message).rank(rule("x.example")) == 1


def test_an_exception_of_the_same_scope_ends_a_binding_block() -> None:
    binding, exception = rule(scope=SITE, binding=True), rule("promo@example.net", "allow", SITE)
    assert decided([binding, exception]) == Decision(Effect.ALLOW, exception)
    mine = rule("example.net", "block")
    assert decided([binding, exception, mine]) == Decision(Effect.BLOCK, mine)


# ---- allow rules without an effect

_SPF_ONLY = (Symbol("R_SPF_ALLOW", 0.0, ("+ip4:198.51.100.9",)),)


@pytest.mark.parametrize(
    ("why_not", "overrides", "arguments"),
    [
        (WhyNot.MALWARE, {"flags": frozenset({Flag.FORCED})}, {"tier": Tier.DANGEROUS}),
        (WhyNot.FORCED, {"flags": frozenset({Flag.FORCED})}, {"tier": Tier.SUSPICIOUS}),
        (WhyNot.FORCED, {"flags": frozenset({Flag.FORCED})}, {}),
        (WhyNot.SUSPICIOUS, {"symbols": ()}, {"tier": Tier.SUSPICIOUS}),
        (WhyNot.NOT_AUTHENTIC, {"symbols": ()}, {"scanned": False}),
        (WhyNot.NOT_AUTHENTIC, {"symbols": _SPF_ONLY}, {}),
        (WhyNot.NOT_AUTHENTIC, {"symbols": (Symbol("DMARC_POLICY_REJECT"),)}, {}),
        (WhyNot.NOT_AUTHENTIC, {"symbols": (Symbol("R_DKIM_ALLOW", 0.0, ("other.example:s=k",)),)}, {}),
        (WhyNot.NOT_AUTHENTIC, {"header_from": "<promo@example.net>, <b@example.com>"}, {}),
        (WhyNot.NOT_AUTHENTIC, {"from_count": 2}, {}),
        (WhyNot.NOT_AUTHENTIC, {"flags": frozenset({Flag.SYMBOLS})}, {}),
        (WhyNot.NOT_SCANNED, {}, {"scanned": False}),
    ],
)
def test_an_allow_rule_says_why_it_has_no_effect(
    why_not: WhyNot, overrides: dict[str, Any], arguments: dict[str, Any]
) -> None:
    for sender in ("promo@example.net", "198.51.100.0/24"):
        allow = rule(sender, "allow")
        assert decided([allow], mail(**overrides), **arguments) == Decision(None, allow, why_not)
    block = rule()
    assert decided([block], mail(**overrides), **arguments) == Decision(Effect.BLOCK, block)


def test_an_aligned_signature_is_enough_and_subdomains_are_allowed_with_their_domain() -> None:
    signed = (Symbol("R_DKIM_ALLOW", 0.0, ("example.net:s=k",)),)
    message = mail(symbols=signed, header_from="<promo@news.example.net>")
    assert decided([made := rule("example.net", "allow")], message) == Decision(Effect.ALLOW, made)


def test_an_allow_rule_without_an_effect_still_overrides_a_wider_block() -> None:
    allow, block = rule("example.net", "allow"), rule(scope=SITE)
    assert decided([allow, block], mail(symbols=())) == Decision(None, allow, WhyNot.NOT_AUTHENTIC)


def test_each_recipient_has_a_decision() -> None:
    allow, block = rule("example.net", "allow"), rule(scope=BOB)
    scopes = {name: recipient_scopes([name]) for name in (ALICE, BOB, "carol@example.org", "")}
    assert decide(mail(), Tier.SPAM, scopes, [allow, block], scanned=True) == {
        ALICE: Decision(Effect.ALLOW, allow),
        BOB: Decision(Effect.BLOCK, block),
        "carol@example.org": NOTHING,
        "": NOTHING,
    }


# ---- keys


def test_the_scopes_of_a_recipient() -> None:
    assert recipient_scopes([ALICE]) == ((ALICE,), (DOMAIN,), (SITE,))
    assert recipient_scopes(["al@example.com", ALICE]) == (("al@example.com", ALICE), ("@example.com",), (SITE,))
    assert recipient_scopes(["postmaster"]) == (("postmaster",), (), (SITE,))
    assert recipient_scopes([""]) == ((), (), (SITE,))


def test_the_keys_of_addresses_and_hosts() -> None:
    assert address_keys("a@b.example.net") == ("a@b.example.net", "b.example.net", "example.net", "net")
    assert address_keys("b.example.net") == ("b.example.net", "example.net", "net")
    assert address_keys("a@[192.0.2.1]") == ("a@[192.0.2.1]",)
    assert address_keys("postmaster") == ("postmaster",)
    assert network_keys("192.0.2.9")[:2] == ("192.0.2.9/32", "192.0.2.8/31")
    assert network_keys("192.0.2.9")[-1] == "192.0.0.0/8"
    assert network_keys("::ffff:192.0.2.9") == network_keys("192.0.2.9")
    assert network_keys("2001:db8::1")[-1] == "2001::/16"
    assert {"2001:db8::/32", "2001:db8::1/128"} < {*network_keys("2001:db8::1")}
    assert network_keys("unknown") == network_keys("") == network_keys(None) == ()


_LABELS = st.text("abc", min_size=1, max_size=2)
_ADDRESSES = st.builds(lambda local, labels: f"{local}@{'.'.join(labels)}", _LABELS, st.lists(_LABELS, min_size=1))


@given(_ADDRESSES, _ADDRESSES)
def test_a_rule_matches_exactly_what_its_sender_says(address: str, other: str) -> None:
    message = mail(header_from=f"<{address}>", envelope_sender="", client_ip=None)
    for sender in address_keys(other):
        host = address.rpartition("@")[2]
        matches = address == sender if "@" in sender else f".{host}".endswith(f".{sender}")
        assert (sender_keys(message).rank(rule(sender)) is not None) is matches
