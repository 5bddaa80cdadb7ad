"""Searches of staff: the pages of a search, and one delivery by its name. The console and the API share this module."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from portal.model.errors import NotFound
from portal.model.message import Delivery, Filter, State, parse_id
from portal.policy.staff import Member, Permission, Staff
from portal.stores import Store
from portal.stores.records import Order, Page, ScoreKey, ScorePage, Total
from portal.web.listing import cursor, name_of

_SCORE = re.compile(r"-?\d{1,20}(?:\.\d{1,20})?(?:e[+-]\d{1,3})?", re.ASCII)


class FoundPage(NamedTuple):
    """One page of a search. ``next``: the text that leads to the next page, None on the last page."""

    deliveries: Sequence[Delivery]
    next: str | None
    is_cut: bool  # see `Page`
    indexed: bool


def found_page(store: Store, wanted: Filter, order: Order, limit: int, before: str) -> FoundPage:
    """Return a page of what a search finds. ``before``: the ``next`` of the page before; any other text is the first
    page."""
    page: Page | ScorePage
    if order is Order.NEWEST:
        page = store.deliveries.search(wanted, limit, cursor(before))
        next = name_of(page.next) if page.next else None
    else:
        page = store.facets.by_score(wanted, limit, _score_key(before), highest_first=order is Order.HIGHEST)
        next = f"{page.next.score!r}_{name_of(page.next.key)}" if page.next else None
    return FoundPage(page.deliveries, next, page.is_cut, page.indexed)


def counted(store: Store, wanted: Filter, order: Order, page: FoundPage, *, is_first: bool) -> Total:
    """Return the number of deliveries that a search finds. A list that is one page needs no counting."""
    is_whole = page.next is None and not page.is_cut and is_first
    if is_whole and order is Order.NEWEST:  # the others leave out messages without a score
        return Total(len(page.deliveries), page.indexed, page.indexed)
    return store.facets.count(wanted, indexed=page.indexed if wanted.needs_facets else None)


def is_place(text: str, order: Order) -> bool:
    """Return whether a text is a `FoundPage.next` of a search in this order."""
    return (cursor(text) if order is Order.NEWEST else _score_key(text)) is not None


def _score_key(text: str) -> ScoreKey | None:
    score, _, name = text.partition("_")
    key = cursor(name)
    return ScoreKey(float(score), key) if key and _SCORE.fullmatch(score) else None


def visible(store: Store, staff: Staff, member: Member, name: str) -> tuple[Delivery, Sequence[Delivery]]:
    """Return the delivery with this name, and the others of its message, all of domains that a person may see.

    A message's id alone names the first one. Raises NotFound, also if it is the delivery of another domain.
    """
    message_id, number = cursor(name) or (parse_id(name), None)
    if message_id is None:
        raise NotFound("there is no such message")
    found = [each for each in store.deliveries.of_message(message_id) if is_visible(staff, member, each)]
    for delivery in found:
        if number in (None, delivery.number):
            return delivery, [each for each in found if each is not delivery]
    raise NotFound("there is no such message")


def is_visible(staff: Staff, member: Member, delivery: Delivery) -> bool:
    """Return whether a person may see a delivery. Those whose time is over are nobody's."""
    return delivery.state is not State.EXPIRED and staff.may_for(member, Permission.SEE_ENVELOPE, delivery)
