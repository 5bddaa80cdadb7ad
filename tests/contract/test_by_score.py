"""Lists of what staff search for in the order of the score, on both stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_network
from typing import Any

import pytest

from portal.model.message import Delivery, DeliveryId, Filter, State, Symbol
from portal.stores import Store
from portal.stores.records import ScoreKey, ScorePage
from portal.stores.shared import facet_scores, facet_searches
from tests.builders import ALICE, BOB, hold, now
from tests.contract.helpers import DAY, SLOW

BAD = (Symbol("FUZZY_DENIED", 12.0),)
SCORES = (15.0, 7.25, 15.0, 99.5, -3.0, 15.0)

Pages = Callable[..., list[Delivery]]


@pytest.fixture(params=["sorted", "read in order"])
def pages(request: pytest.FixtureRequest, store: Store, monkeypatch: pytest.MonkeyPatch) -> Pages:
    """Return all deliveries of a search, two on a page; each page begins where the last one ended."""
    if request.param != "sorted":
        monkeypatch.setattr(facet_scores, "_FEW", 0)
        monkeypatch.setattr(facet_scores, "_SORTED_MAX", 0)  # as if the search found much

    def read(*, highest_first: bool = True, **wanted: Any) -> list[Delivery]:
        found: list[Delivery] = []
        after: ScoreKey | None = None
        for _ in range(50):
            page = store.facets.by_score(Filter(**wanted), 2, after, highest_first=highest_first)
            assert len(page.deliveries) <= 2
            found += page.deliveries
            after = page.next
            if after is None:
                return found
        raise AssertionError("the pages do not end")

    return read


def test_deliveries_are_in_the_order_of_the_score(store: Store, pages: Pages) -> None:
    held = [hold(store, score=score, recipients=[ALICE, BOB], at=now() - DAY * n) for n, score in enumerate(SCORES)]
    hold(store, score=None)  # is left out
    store.facets.recheck()
    while store.facets.index():
        pass
    keys = sorted(
        (ScoreKey(score, DeliveryId(each.id, n)) for each, score in zip(held, SCORES, strict=True) for n in (0, 1)),
        reverse=True,
    )
    assert [delivery.key for delivery in pages()] == [key.key for key in keys]
    assert [delivery.key for delivery in pages(highest_first=False)] == [key.key for key in reversed(keys)]
    some = [key.key for key in keys if key.key.message_id in {held[1].id, held[2].id}]
    assert [each.key for each in pages(since=now() - 2.5 * DAY, until=now() - 0.5 * DAY)] == some


@pytest.mark.parametrize(
    "wanted",
    [
        {"symbols": ("FUZZY_DENIED",)},
        {"symbols": ("FUZZY_DENIED",), "sender": "hop.ex"},
        {"words": "bargain"},
        {"client": ip_network("192.0.2.0/24")},
        {"recipient": "carol@example.com"},
        {"domains": frozenset({"example.com"}), "states": frozenset({State.HELD})},
        {"score_min": 20.0},
    ],
)
def test_only_what_matches_is_listed(store: Store, pages: Pages, wanted: dict[str, Any]) -> None:
    first, second = (
        hold(
            store,
            symbols=BAD,
            recipients=["carol@example.com"],
            subject="A bargain",
            header_from="a@shop.example",
            client_ip="192.0.2.77",
            score=score,
        )
        for score in (30.0, 40.0)
    )
    for score in (1.0, 10.0, 16.0):
        hold(store, score=score)
    assert [delivery.id for delivery in pages(**wanted)] == [second.id, first.id]


def test_a_list_by_score_ends_in_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(store, symbols=BAD)
    while store.facets.index():
        pass
    monkeypatch.setattr(facet_searches.Search, "is_over", True)
    page = store.facets.by_score(Filter(symbols=("FUZZY_DENIED",)), 1)
    assert (len(page.deliveries), page.next is None, page.is_cut) == (1, False, False)
    assert store.facets.by_score(Filter(symbols=("ABSENT",)), 1) == ScorePage((), None)


@pytest.mark.parametrize("highest_first", [True, False])
def test_hits_that_are_far_apart_are_sorted_if_reading_scores_takes_too_long(
    store: Store, monkeypatch: pytest.MonkeyPatch, highest_first: bool
) -> None:
    scores = (9_000.0, 10.0, 20.0, 20.0, -4_000.0)
    held = {hold(store, symbols=BAD, score=score, recipients=[ALICE]).id: score for score in scores}
    hold(store, score=20_000.0)
    read = type(store.facets)._hits_by_score  # type: ignore[attr-defined]

    def slow(self: Any, session: Any, terms: Any, *rest: Any, **more: Any) -> Iterator[Any]:
        yield from session.many(f"select 1 where {SLOW}") if terms else read(self, session, terms, *rest, **more)

    monkeypatch.setattr(type(store.facets), "_hits_by_score", slow)
    monkeypatch.setattr(facet_scores, "_FEW", 0)
    monkeypatch.setattr(facet_scores, "_SORTED_MAX", 0)
    monkeypatch.setattr(facet_scores, "_SCORES_SECONDS", 0.3)
    wanted, found, after = Filter(symbols=("FUZZY_DENIED",)), list[float](), None
    while len(found) < len(scores):
        page = store.facets.by_score(wanted, 2, after, highest_first=highest_first)
        found += [held[delivery.id] for delivery in page.deliveries]
        after = page.next
        assert not page.is_cut
    assert found == sorted(scores, reverse=highest_first)
    assert after is None
    monkeypatch.setattr(facet_scores, "_IN_RANGE_MAX", 0)
    assert store.facets.by_score(wanted, 9).is_cut
