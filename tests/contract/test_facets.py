"""Search by symbols, servers, sizes and domains over all recipients, on both stores."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any
from uuid import UUID

import pytest

from portal.model.message import DeliveryId, Filter, Scan, ScanOutcome, Start, State, Symbol, Tier
from portal.stores import Store
from portal.stores.facets import matcher
from portal.stores.records import GroupBy, Total
from portal.stores.shared import facets as shared
from tests.builders import ALICE, BOB, BY_OPERATOR, hold, mail, now, rule
from tests.contract.helpers import DAY, every_page, release

RELEASED = {"states": frozenset({State.RELEASED})}
BAD = (Symbol("FUZZY_DENIED", 12.0), Symbol("R_SPF_ALLOW", -0.2))


def found(store: Store, limit: int = 7, **wanted: Any) -> list[UUID]:
    """Return the ids of the messages found, newest first."""
    pages = every_page(lambda before: store.facets.page(Filter(**wanted), limit, before))
    assert len(pages) == store.facets.count(Filter(**wanted)).count
    return list(dict.fromkeys(delivery.id for delivery in pages))


def fitting(store: Store, **wanted: Any) -> list[UUID]:
    """Return the ids of the messages that fit without a search, newest first."""
    fits = matcher(Filter(**wanted))
    return list(dict.fromkeys(each.id for each in store.facets.page(Filter(), 100).deliveries if fits(each)))


def names(store: Store, by: GroupBy, **wanted: Any) -> dict[str, int]:
    groups = store.facets.groups(Filter(**wanted), by)
    assert groups.total.exact
    return {group.name: group.count for group in groups.groups}


@pytest.mark.parametrize(
    "wanted",
    [
        {"symbols": ("FUZZY_DENIED",)},
        {"symbols": ("fuzzy_denied", "R_SPF_ALLOW")},
        {"actions": frozenset({"add header", "greylist"})},
        {"client": ip_network("192.0.2.77")},
        {"client": ip_network("192.0.2.64/27")},
        {"client": ip_network("192.0.0.0/8", strict=False)},
        {"size_min": 5_000},
        {"size_min": 5_000, "size_max": 8_000},
        {"sender_domain": "shop.example"},
        {"domains": frozenset({"example.com", "example.edu"})},
        {"symbols": ("FUZZY_DENIED",), "words": '"a bargain"', "sender": "hop.ex", "score_min": 20, "score_max": 20.5},
        {"symbols": ("FUZZY_DENIED",), "recipient": "carol@example.com", "tiers": frozenset({Tier.SUSPICIOUS})},
        {"recipient": "x@example.com", "also": ("carol@example.com",), "states": frozenset({State.HELD})},
        {"domains": frozenset({"example.com"}), "words": "barg"},
        {"domains": frozenset({"example.com"}), "since": now() - DAY, "until": now() + DAY},
    ],
)  # fmt: skip
def test_each_criterion_finds_its_messages(store: Store, wanted: dict[str, Any]) -> None:
    held = hold(
        store,
        mail(size_bytes=6_000),
        recipients=["carol@example.com"],
        tier=Tier.SUSPICIOUS,
        symbols=BAD,
        action="add header",
        client_ip="192.0.2.77",
        header_from="Shop <a@shop.example>",
        subject="A bargain",
        score=20.4,
    )
    other = hold(store, client_ip="2001:db8::1")
    assert found(store, **wanted) == fitting(store, **wanted) == [held.id]
    # The store may look at all that was released, instead of what the index finds.
    release(store, held, now())
    release(store, other, now())
    assert found(store, **wanted | RELEASED) == fitting(store, **wanted | RELEASED) == [held.id]


@pytest.mark.parametrize(
    "wanted",
    [
        {"symbols": ("FUZZY",)},
        {"symbols": ("BAYES_SPAM", "FUZZY_DENIED")},
        {"actions": frozenset({"no action"})},
        {"client": ip_network("198.51.100.8")},
        {"client": ip_network("2001:db8::/32")},
        {"size_min": 1_000_000},
        {"size_min": 2, "size_max": 1},
        {"sender_domain": "net"},
        {"domains": frozenset()},
        {"domains": frozenset({"ample.org"})},
        {"rule": "example.net"},
        {"actions": frozenset({"reject"}), "sender": "nobody"},
        {"actions": frozenset({"reject"}), "words": '"promo offer"'},
        {"actions": frozenset({"reject"}), "score_min": 17.6},
        {"actions": frozenset({"reject"}), "states": frozenset({State.DELETED})},
        {"actions": frozenset({"reject"}), "words": "fer"},
        {"actions": frozenset({"reject"}), "recipient": "carol@example.com"},
        {"domains": frozenset({"example.org"}), "until": now() - DAY},
        {"domains": frozenset({"example.org"}), "since": now() + DAY},
    ],
)  # fmt: skip
def test_other_messages_are_not_found(store: Store, wanted: dict[str, Any]) -> None:
    held = hold(store)
    assert found(store, **wanted) == []
    release(store, held, now())
    assert found(store, **RELEASED | wanted) == []
    assert fitting(store, **wanted) == [] or "rule" in wanted
    assert store.facets.count(Filter()) == Total(2, exact=True)


def test_only_deliveries_of_the_domains_are_found(store: Store) -> None:
    """Another recipient of the same message stays hidden from the administrator of a domain."""
    hold(store, recipients=[ALICE, "carol@example.com", "x@a_b.example", "x@aab.example"])
    page = store.facets.page(Filter().within(["example.com"]), 10)
    assert [delivery.recipient for delivery in page.deliveries] == ["carol@example.com"]
    assert names(store, GroupBy.DOMAIN, domains=frozenset({"a_b.example"})) == {"a_b.example": 1}
    assert Filter(domains=frozenset({"example.org"})).within(["example.com"]).domains == frozenset()


def test_deliveries_are_counted_by_what_they_have_in_common(store: Store) -> None:
    hold(store, recipients=["carol@example.com"], symbols=BAD, header_from="a@shop.example", at=now() - 2 * DAY)
    hold(store, symbols=(*BAD, Symbol("BAYES_SPAM", 5.0)), header_from="a@shop.example")
    hold(store)
    store.facets.recheck()
    while store.facets.index():
        pass
    assert names(store, GroupBy.DOMAIN) == {"example.org": 4, "example.com": 1}
    assert names(store, GroupBy.SENDER_DOMAIN) == {"shop.example": 3, "example.net": 2}
    assert sum(names(store, GroupBy.HOUR).values()) == 5
    by_symbol = store.facets.groups(Filter(), GroupBy.SYMBOL)
    assert [(group.name, group.count, round(group.points, 1)) for group in by_symbol.groups] == [
        ("FUZZY_DENIED", 3, 36.0),
        ("BAYES_SPAM", 4, 20.2),
        ("R_SPF_FAIL", 2, 2.0),
        ("R_SPF_ALLOW", 3, -0.6),
    ]
    assert names(store, GroupBy.SENDER_DOMAIN, symbols=("R_SPF_FAIL",)) == {"example.net": 2}
    assert by_symbol.since is not None
    assert by_symbol.since < now() - DAY


def test_counts_end_at_their_limits(store: Store) -> None:
    for _ in range(3):
        hold(store)
    assert store.facets.count(Filter(), 6) == Total(6, exact=True)
    assert store.facets.count(Filter(), 5) == Total(5, exact=False)
    groups = store.facets.groups(Filter(), GroupBy.DOMAIN, 4)
    assert (groups.total, groups.groups[0].count) == (Total(4, exact=False), 4)


def test_a_search_ends_in_time_and_goes_on_where_it_ended(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    held = [hold(store, symbols=BAD, recipients=[ALICE]).id for _ in range(3)]
    monkeypatch.setattr(shared, "_PAGE_SECONDS", -1.0)
    monkeypatch.setattr(shared, "_COUNT_SECONDS", -1.0)
    assert not store.facets.count(Filter(symbols=("FUZZY_DENIED",))).exact
    wanted = Filter(symbols=("FUZZY_DENIED",), states=frozenset({State.HELD}))
    assert [d.id for d in every_page(lambda before: store.facets.page(wanted, 2, before))] == held[::-1]


def test_states_and_rules_are_those_of_each_delivery(store: Store) -> None:
    by_rule = rule("example.net").as_actor
    held = hold(store, starts={BOB: Start(State.BLOCKED, by_rule)})
    other = hold(store)
    release(store, other, now())
    page = store.facets.page(Filter(rule="example.net"), 10)
    assert [delivery.key for delivery in page.deliveries] == [DeliveryId(held.id, 1)]
    assert found(store, actions=frozenset({"reject"}), states=frozenset({State.RELEASED})) == [other.id]
    assert store.facets.count(Filter(states=frozenset({State.RELEASED, State.BLOCKED}))).count == 2


def test_a_new_verdict_is_found(store: Store) -> None:
    data = mail()
    held = hold(store, data)
    assert found(store, symbols=("BAYES_SPAM",)) == [held.id]
    hold(store, data, tier=Tier.DANGEROUS, symbols=BAD, action="discard", score=30.0)
    assert found(store, symbols=("FUZZY_DENIED",), tiers=frozenset({Tier.DANGEROUS}), score_min=30.0) == [held.id]
    assert found(store, symbols=("BAYES_SPAM",)) == []
    assert found(store, actions=frozenset({"reject"})) == []
    scan = Scan(ScanOutcome.FOUND, now(), (Symbol("CLAM_VIRUS"),))
    other = hold(store)
    assert found(store, tiers=frozenset({Tier.SPAM}), actions=frozenset({"reject"})) == [other.id]
    store.messages.record_scan(other.id, scan, Tier.DANGEROUS, now())
    assert found(store, symbols=("CLAM_VIRUS",), tiers=frozenset({Tier.DANGEROUS})) == [other.id]


def test_a_count_goes_on_behind_messages_that_only_the_index_finds(store: Store) -> None:
    had = [mail() for _ in range(4)]
    for data in had[:2]:
        hold(store, data, recipients=[ALICE])
    others = {hold(store, recipients=[ALICE]).id for _ in range(3)}
    for data in had[2:]:
        hold(store, data, recipients=[ALICE])
    wanted = Filter(symbols=("BAYES_SPAM",))
    assert store.facets.count(wanted) == Total(7, exact=True)
    for data in had:
        hold(store, data, tier=Tier.DANGEROUS, symbols=BAD)
    assert store.facets.count(wanted, 3) == Total(3, exact=True)
    assert store.facets.count(wanted, 2) == Total(2, exact=False)
    assert {each.id for each in store.facets.by_score(wanted, 9).deliveries} == others


def test_an_assigned_recipient_is_found(store: Store) -> None:
    held = hold(store, recipients=[])
    assert found(store, domains=frozenset({"example.org"})) == []
    store.deliveries.assign(DeliveryId(held.id, 0), ALICE, BY_OPERATOR, now())
    assert found(store, domains=frozenset({"example.org"})) == [held.id]


def test_older_messages_are_indexed_in_the_background(store: Store) -> None:
    old = [hold(store, at=now() - days * DAY).id for days in (2, 9)]
    new = hold(store, at=now() - DAY).id
    assert not store.facets.is_complete()
    while store.facets.index():
        pass
    assert store.facets.is_complete()
    assert found(store, symbols=("BAYES_SPAM",)) == [new, *old]
    late = hold(store, at=now() - 3 * DAY).id
    assert late not in found(store, symbols=("BAYES_SPAM",))
    store.facets.recheck()
    while store.facets.index():
        pass
    assert late in found(store, symbols=("BAYES_SPAM",))


def test_removed_messages_leave_no_facets(store: Store) -> None:
    hold(store, at=now() - 40 * DAY)
    kept = hold(store)
    while store.facets.index():
        pass
    store.purge(now() - 30 * DAY, now())
    assert found(store, symbols=("BAYES_SPAM",)) == [kept.id]
    with store.engine.reading() as session:  # type: ignore[attr-defined]
        assert session.many("select count(*) from facet") == [(1,)]
    assert store.facets.knows_symbol("bayes_spam")
    assert not store.facets.knows_symbol("BAYES")
