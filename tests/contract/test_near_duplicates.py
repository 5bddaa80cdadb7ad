"""Near-duplicates of a delivery on every store: counted for its page, and as a filter of lists."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID

import pytest

from portal.model.message import Delivery, DeliveryId, Filter, Reader, State, Symbol, Tier
from portal.stores import Store, search
from tests.builders import ALICE, BOB, MALLORY, hold, mail, now
from tests.contract.helpers import UNKNOWN, delete, every_page

HELD = frozenset({State.HELD})
PROVEN = (Symbol("DMARC_POLICY_ALLOW", 0.0, ("example.net",)),)


def like(store: Store, held: UUID, reader: Reader | None = None, **criteria: Any) -> list[UUID]:
    """Return the messages of a reader's list that are like Alice's delivery of this message."""
    wanted = Filter(**{"states": HELD, "like": DeliveryId(held, 0), **criteria})
    return [each.id for each in store.deliveries.matching(reader or Reader(ALICE), wanted, 50).deliveries]


def others(store: Store, held: UUID) -> tuple[list[UUID], bool]:
    """Return the near-duplicates of Alice's delivery of this message, and whether there may be more."""
    page = store.deliveries.near_duplicates(store.deliveries.get(DeliveryId(held, 0)))
    return [each.id for each in page.deliveries], page.next is not None


def test_near_duplicates_share_the_body_or_the_sender_and_the_subject_without_numbers(store: Store) -> None:
    data = mail()
    first = hold(store, data, subject="Invoice 17 of May", header_from="Shop <Bill@Shop.example>").id
    number_two = hold(store, subject="invoice 2 of may", header_from='"Other name" <bill@shop.example>')
    numbered = number_two.id
    same_body = hold(store, data, subject="Win", header_from="x <x@example.net>", recipients=(ALICE, MALLORY)).id
    hold(store, subject="Another invoice", header_from="Shop <bill@shop.example>")
    hold(store, subject="Invoice 17 of May", header_from="Shop <bill@other.example>")
    hold(store, subject="Invoice 18 of May", header_from="Shop <bill@shop.example>", tier=Tier.SUSPICIOUS)
    hold(store, subject="Invoice 19 of May", header_from="Shop <bill@shop.example>", recipients=[BOB])
    assert others(store, first) == ([same_body, numbered], False)
    assert like(store, first) == [same_body, numbered, first]
    delete(store, number_two, now())
    assert others(store, first) == ([same_body], False)
    assert like(store, first, states=frozenset({State.DELETED})) == [numbered]
    assert like(store, numbered) == [first], "it may have been deleted itself"


def test_a_forged_message_is_not_like_a_proven_one(store: Store) -> None:
    proven = hold(store, subject="Your order", symbols=PROVEN).id
    forged = hold(store, subject="Your order").id
    assert others(store, proven) == others(store, forged) == ([], False)
    assert like(store, proven) == [proven]


@pytest.mark.parametrize("sender", ["", "Büro <büro@müller.example>", "<a@b.example>", "50%_off <a'b@c.example>"])
def test_any_sender_has_near_duplicates(store: Store, sender: str) -> None:
    first, second = (hold(store, subject="Offer", header_from=sender).id for _ in range(2))
    assert others(store, first) == ([second], False)


def test_it_combines_with_other_filters_and_pages(store: Store) -> None:
    found = [hold(store, subject=f"Prize {n}", symbols=(Symbol("HAS_ATTACHMENT"),) * (n % 2)).id for n in range(7)]
    hold(store, subject="Other")
    assert like(store, found[0]) == found[::-1]
    assert like(store, found[0], has_attachment=True) == found[5::-2]
    assert like(store, found[0], words="prize 3") == [found[3]]
    assert like(store, found[0], words="prize other") == like(store, found[0], words="?!") == []
    assert like(store, found[0], tiers=frozenset({Tier.SUSPICIOUS})) == []
    wanted = Filter(states=HELD, like=DeliveryId(found[0], 0))
    paged = every_page(lambda before: store.deliveries.matching(Reader(ALICE), wanted, 3, before))
    assert [each.id for each in paged] == found[::-1]


def test_deliveries_of_others_are_like_nothing(store: Store) -> None:
    alices, mallorys = hold(store, subject="Prize").id, hold(store, subject="Prize", recipients=[MALLORY]).id
    assert like(store, alices, Reader(MALLORY)) == like(store, UNKNOWN, Reader(MALLORY)) == []
    assert like(store, mallorys) == []
    assert like(store, mallorys, Reader(MALLORY)) == [mallorys]


def test_the_work_of_a_call_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hold(store, subject="Prize").id
    for _ in range(5):
        hold(store, subject="Other", header_from="x <x@example.com>")
    last = hold(store, subject="Prize").id
    monkeypatch.setattr(search, "NEWEST_MAX", 3)
    monkeypatch.setattr(search, "EXAMINED_MAX", 5)
    assert others(store, last) == ([], True)
    wanted = Filter(states=HELD, like=DeliveryId(last, 0))
    list_page = partial(store.deliveries.matching, Reader(ALICE), wanted, 9)
    page = list_page()
    assert [each.id for each in page.deliveries] == [last] and page.next is not None

    def rest(before: DeliveryId | None) -> Any:
        return list_page(before or page.next)

    assert [each.id for each in every_page(rest)] == [first]
    monkeypatch.setattr(search, "CANDIDATES_MAX", -7)  # so 2 of them for a page of 9
    found: list[Delivery] = every_page(list_page)
    assert [each.id for each in found] == [last, first]
