"""The way from one message to the next or the previous one of the list that the reader came from.

The neighbour is looked up when its link is followed, not when the page is shown. So the page needs no more statements,
and a neighbour that was released or deleted in the meantime is skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from urllib.parse import urlencode

from bottle import HTTPResponse

from portal.model.message import Delivery, DeliveryId
from portal.model.ranking import ranked
from portal.stores.senders import known_senders
from portal.web.auth.session import Sessions
from portal.web.listing import RANKED_MAX, Listing
from portal.web.message import MessagePages
from portal.web.pages import Pages
from portal.web.request import Request
from portal.web.rows import name_in_urls


class Neighbours:
    """`/messages/ID/previous` and `/messages/ID/next`."""

    def __init__(self, pages: Pages, sessions: Sessions, messages: MessagePages) -> None:
        self._pages = pages
        self._sessions = sessions
        self._messages = messages
        self._store = pages.parts.store

    def go(self, request: Request, id: str, way: str) -> HTTPResponse:
        """GET /messages/ID/WAY: redirect (303) to the next or previous message, or to the list if there is none."""
        session = self._sessions.of(request)
        delivery = self._messages.delivery(session.recipient, id)
        listing = Listing.of_query(request.query("list"))
        found = self._neighbour(delivery, listing, session.recipient, way, request)
        here = listing.query(select="")
        if found is None:
            return self._pages.see_other(f"/{here}")
        query = f"?{urlencode({'list': here})}" if here else ""
        # The address that the row has, so that browsers know it as opened.
        role = self._pages.parts.people.is_role(found.recipient)
        return self._pages.see_other(f"/messages/{name_in_urls(found, session.recipient, role=role)}/{query}")

    def _neighbour(
        self, delivery: Delivery, listing: Listing, recipient: str, way: str, request: Request
    ) -> Delivery | None:
        reader = self._pages.parts.people.reader(recipient)
        criteria = listing.criteria(self._pages.viewer(request, recipient).zone)
        wanted, matching = listing.reader(reader), self._store.deliveries.matching
        if listing.is_ranked:
            others = [each for each in matching(wanted, criteria, RANKED_MAX).deliveries if each.key != delivery.key]
            # The message itself may have been acted on: its place is the one that it would have, also among equals.
            newest = sorted([*others, delivery], key=lambda each: each.key, reverse=True)
            groups = ranked(newest, known_senders(self._store, [reader]).get(reader.identity, ()))
            order = list(chain.from_iterable((group.newest, *group.others) for group in groups))
            return _beside(order, delivery.key, way)
        id, number = key = delivery.key
        if way == "next":
            page = matching(wanted, criteria, 1, key)
        else:
            page = matching(wanted, criteria, 1, down_to=DeliveryId(id, number + 1))
        return page.deliveries[0] if page.deliveries else None


def _beside(order: Sequence[Delivery], key: DeliveryId, way: str) -> Delivery | None:
    place = [each.key for each in order].index(key) + (1 if way == "next" else -1)
    return order[place] if 0 <= place < len(order) else None
