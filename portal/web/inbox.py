"""A signed-in recipient's pages: the list, and one message.

Every query of the store begins with the recipient of the session. Another recipient's delivery is *not found*, as if
it did not exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from urllib.parse import parse_qsl, urlencode

from bottle import HTTPResponse

from portal.model.domains import shown_address
from portal.model.errors import AlreadyDone, BodyDamaged, BodyMissing, NotAllowed, NotFound, RelayDeferred, RelayRefused
from portal.model.message import Delivery, DeliveryId, Reader, State, parse_id
from portal.web import preview
from portal.web.auth.session import Sessions
from portal.web.pages import Pages
from portal.web.request import Request
from portal.web.rows import findings, history

_ROWS = 25
_QUERY_CHARACTERS = 200
_PLACE = ("state", "q", "before")  # in the list's address: what of it is shown
_CURSOR = re.compile(r"([0-9a-f-]{36})\.([0-9]{1,5})", re.ASCII)

# What the links above the list show.
_VIEWS: dict[str, tuple[State, ...]] = {
    "held": (State.HELD,),
    "requested": (State.REQUESTED,),
    "released": (State.RELEASING, State.RELEASED),
    "deleted": (State.DELETED,),
}


class Inbox:
    """`/` and `/messages/…`."""

    def __init__(self, pages: Pages, sessions: Sessions) -> None:
        self._pages = pages
        self._sessions = sessions
        self._store = pages.parts.store

    def list(self, request: Request) -> HTTPResponse:
        """GET /: this recipient's mail in one state, newest first, or what of it has the words asked for."""
        session = self._sessions.of(request)
        view = request.query("state") if request.query("state") in _VIEWS else "held"
        words = request.query("q").strip()[:_QUERY_CHARACTERS]
        before = _cursor(request.query("before"))
        page = self._store.deliveries.list_for(
            self._reader(session.recipient), _VIEWS[view], _ROWS, before, words=words
        )
        done = self._done(session.recipient, request.query("done"))
        rows = self._pages.rows(request, [*page.deliveries, *done], session.recipient)
        return self._pages.page(
            request,
            "list",
            signed_in=shown_address(session.recipient),
            form_token=session.form_token,
            views=tuple(_VIEWS),
            view=view,
            asked=words,
            rows=rows[: len(page.deliveries)],
            later=request.query("before") != "",
            next=f"{page.next[0]}.{page.next[1]}" if page.next else "",
            done=rows[-1] if done else None,
            here=_place((name, request.query(name)) for name in _PLACE),
        )

    def _done(self, recipient: str, name: str) -> Sequence[Delivery]:
        """Return the delivery that a form of the list has just acted on, so that the list shows what came of it."""
        try:
            return (self._delivery(recipient, name),)
        except NotFound:
            return ()

    def message(self, request: Request, id: str) -> HTTPResponse:
        """GET /messages/ID/: why it was held, and its text."""
        session = self._sessions.of(request)
        delivery = self._delivery(session.recipient, id)
        row = self._pages.row(request, delivery, session.recipient)
        events = self._store.deliveries.history(delivery.key)
        return self._pages.page(
            request,
            "message",
            signed_in=shown_address(session.recipient),
            form_token=session.form_token,
            row=row,
            **findings(delivery.message, request.language),
            preview=self._preview(delivery),
            history=history(events, row, self._pages.viewer(request, session.recipient)),
        )

    def _preview(self, delivery: Delivery) -> preview.Preview | None:
        """Return the text of the mail, None when the mail is gone or damaged."""
        try:
            return preview.preview(self._store.messages.body(delivery.id))
        except (BodyDamaged, BodyMissing):
            return None

    def act(self, request: Request, id: str, act: str) -> HTTPResponse:
        """POST /messages/ID/ACT, then 303 to the page of the form."""
        recipient = self._sessions.of_form(request).recipient
        delivery = self._delivery(recipient, id)
        actions, actor = self._pages.parts.actions, self._pages.actor(request, "portal", delivery, recipient)
        does = {
            "release": actions.release,
            "delete": actions.delete,
            "restore": actions.restore,
            "ask": actions.request_release,
        }[act]
        # Recorded in the delivery and logged by the act; the page shows it.
        with suppress(AlreadyDone, RelayDeferred, RelayRefused, NotAllowed):
            does(delivery.id, delivery.number, actor)
        page, _, place = request.form("from").partition("?")
        if page == "list":
            return self._pages.see_other(f"/?{_place([*parse_qsl(place), ('done', id)])}")
        return self._pages.see_other(f"/messages/{id}/")

    def _delivery(self, recipient: str, name: str) -> Delivery:
        """Return what `Row.name` names: a message, or one of several deliveries of it. Raises NotFound."""
        message_id, number = _cursor(name) or (parse_id(name), None)
        if message_id is None:
            raise NotFound("no such message")
        return self._store.deliveries.get_for(self._reader(recipient), message_id, number)

    def _reader(self, recipient: str) -> Reader:
        return self._pages.parts.people.reader(recipient)


def _place(values: Iterable[tuple[str, str]]) -> str:
    """Return the query of a list's address from the values that belong there; of two of one name the last."""
    known = {name: value[:_QUERY_CHARACTERS] for name, value in values if value and name in (*_PLACE, "done")}
    return urlencode(known)


def _cursor(text: str) -> DeliveryId | None:
    match = _CURSOR.fullmatch(text)
    id = parse_id(match[1]) if match else None
    return DeliveryId(id, int(match[2])) if match and id else None
