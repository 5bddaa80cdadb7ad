"""Groups of whole days from the statistics, on both stores: the same numbers as counting deliveries one by one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from itertools import product

import pytest

from portal.model.message import Actor, ActorKind, Filter, Start, State, Symbol, Tier
from portal.stores import Store
from portal.stores.records import GroupBy
from portal.stores.shared import grouping
from tests.builders import hold, now
from tests.contract.helpers import DAY, HOUR, delete, release

PEOPLE = ("alice@example.org", "bob@example.org", "carol@example.com", "dora@xn--mnchen-3ya.example")
BY_RULE = Actor(ActorKind.SYSTEM, "rule")
DAYS = 4
ALL_OF_THEM = 1_000_000
FIRST = datetime.combine(now().date(), time(), UTC) - DAYS * DAY
ZONES = (timedelta(0), timedelta(hours=-12), timedelta(hours=14), timedelta(hours=5, minutes=30))


@pytest.fixture
def filled(store: Store) -> Iterator[Store]:
    """A store with random deliveries of some days, all of which but today are closed."""
    chance = random.Random(7)  # noqa: S311 - reproducible
    store.prepare_days(FIRST, 30)
    for number in range(60):
        at = FIRST + chance.random() * (DAYS + 0.2) * DAY
        people = chance.sample(PEOPLE, chance.randint(0, 3))
        starts = {who: Start(State.PASSED, BY_RULE) for who in people if chance.random() < 0.2}
        held = hold(
            store,
            recipients=people,
            announce=[],
            starts=starts,
            at=min(at, now()),
            tier=chance.choice([*Tier]),
            header_from=f"a@{chance.choice('xyz')}.example",
            symbols=tuple(
                Symbol(name, chance.choice((0.0, 2.5, -1.0))) for name in chance.sample(("A", "B", "C_D", "E"), 3)
            ),
        )
        if not starts and chance.random() < 0.3:
            (release if number % 2 else delete)(store, held, at + HOUR)
    store.facets.recheck()
    while store.facets.index():
        pass
    for day in range(DAYS):
        store.statistics.close((FIRST + day * DAY).date())
    yield store


@pytest.mark.parametrize("by", [by for by in GroupBy if by is not GroupBy.HOUR])
def test_groups_of_whole_days_are_those_of_the_deliveries(filled: Store, by: GroupBy) -> None:
    domains = (None, frozenset({"example.org"}), frozenset({"example.com", "xn--mnchen-3ya.example"}))
    tiers = (frozenset[Tier](), frozenset({Tier.SPAM, Tier.DANGEROUS})) if by is GroupBy.DOMAIN else (frozenset(),)
    compared = 0
    for zone, hosts, chosen, until in product(ZONES, domains, tiers, (None, FIRST + 3 * DAY)):
        wanted = Filter(since=FIRST - zone, until=until and until - zone, domains=hosts, tiers=chosen)
        expected = filled.facets.groups(wanted, by, ALL_OF_THEM)
        assert expected.whole_days is None
        found = filled.facets.groups(wanted, by, expected.total.count * 2 // 3)
        if found.whole_days is not None:  # else so many are not in whole days
            compared += 1
            assert (found.groups, found.total) == (expected.groups, expected.total)
    assert compared > 8
    whole = filled.facets.groups(Filter(since=FIRST, until=FIRST + 3 * DAY), by, 1)
    assert whole.whole_days == (FIRST.date(), (FIRST + 2 * DAY).date()) and whole.total.exact


def test_what_the_statistics_do_not_know_is_counted_one_by_one(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    since = FIRST
    for wanted, by in (
        (Filter(), GroupBy.SYMBOL),  # all that is kept, and the statistics go further back
        (Filter(since=since), GroupBy.HOUR),
        (Filter(since=since, tiers=frozenset({Tier.SPAM})), GroupBy.SYMBOL),
        (Filter(since=since, states=frozenset({State.HELD})), GroupBy.DOMAIN),
        (Filter(since=since, symbols=("A",)), GroupBy.SENDER_DOMAIN),
        (Filter(since=since, words="offer"), GroupBy.DOMAIN),
        (Filter(since=now() - HOUR), GroupBy.DOMAIN),
    ):
        found = filled.facets.groups(wanted, by, 1)
        assert found.whole_days is None and found.total.count <= 1, wanted
    monkeypatch.setattr(grouping, "names_max", lambda domain, outcome: 2)
    assert filled.facets.groups(Filter(since=since), GroupBy.SYMBOL, 1).whole_days is None, "some were not kept"


def test_what_was_removed_is_counted_nevertheless(filled: Store) -> None:
    wanted = Filter(since=FIRST, until=FIRST + 2 * DAY)
    before = filled.facets.groups(wanted, GroupBy.DOMAIN, 1)
    filled.purge(FIRST + 3 * DAY, now())
    assert filled.facets.groups(wanted, GroupBy.DOMAIN, 1) == before


@pytest.mark.parametrize(
    ("by", "tiers"), [(GroupBy.DOMAIN, ()), (GroupBy.DOMAIN, (Tier.SPAM,)), (GroupBy.SYMBOL, ())], ids=str
)
def test_days_whose_counts_were_removed_are_counted_one_by_one(
    filled: Store, by: GroupBy, tiers: tuple[Tier, ...]
) -> None:
    wanted = Filter(since=FIRST, until=FIRST + DAYS * DAY, tiers=frozenset(tiers))
    expected = filled.facets.groups(wanted, by, ALL_OF_THEM)
    on_first = filled.facets.groups(replace(wanted, until=FIRST + DAY), by, ALL_OF_THEM).total.count
    filled.statistics.expire((FIRST + DAY).date())
    found = filled.facets.groups(wanted, by, on_first)
    assert found.whole_days == ((FIRST + DAY).date(), (FIRST + (DAYS - 1) * DAY).date())
    assert (found.groups, found.total) == (expected.groups, expected.total)
