"""A signed-in recipient's pages: the list of messages, and one message.

Every query of the store names the recipient of the session. Another recipient's delivery is answered with 404, so that
its existence is not disclosed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

from bottle import HTTPResponse

from portal.model.domains import shown_address
from portal.model.errors import (
    AlreadyDone,
    BodyDamaged,
    BodyMissing,
    Busy,
    NotAllowed,
    NotFound,
    RelayDeferred,
    RelayRefused,
)
from portal.model.message import ActorKind, Delivery, DeliveryId, Event, EventKind, Reader, State, parse_id
from portal.model.rule import Effect
from portal.policy.entry import senders_of
from portal.reading import read
from portal.web.auth.session import Sessions
from portal.web.pages import Pages
from portal.web.request import Request
from portal.web.results import Result, forget, keep, kept
from portal.web.rows import Viewer, findings, headers, history

_ROWS = 25
_QUERY_CHARACTERS = 200
_LIST_PARAMETERS = ("state", "q", "before")  # query parameters that select the part of the list
_CURSOR = re.compile(r"([0-9a-f-]{36})\.([0-9]{1,5})", re.ASCII)

# The links above the list, and the states that each of them shows.
_VIEWS: dict[str, tuple[State, ...]] = {
    "held": (State.HELD,),
    "requested": (State.REQUESTED,),
    "released": (State.RELEASING, State.RELEASED, State.PASSED),
    "blocked": (State.BLOCKED,),
    "deleted": (State.DELETED,),
}


class Inbox:
    """`/` and `/messages/…`."""

    def __init__(self, pages: Pages, sessions: Sessions) -> None:
        self._pages = pages
        self._sessions = sessions
        self._store = pages.parts.store

    def list(self, request: Request) -> HTTPResponse:
        """GET /: list the recipient's messages in one state, newest first. A search narrows the list."""
        session = self._sessions.of(request)
        view = request.query("state") if request.query("state") in _VIEWS else "held"
        words = request.query("q").strip()[:_QUERY_CHARACTERS]
        before = _cursor(request.query("before"))
        page = self._store.deliveries.list_for(
            self._reader(session.recipient), _VIEWS[view], _ROWS, before, words=words
        )
        result, undone = kept(request), self._found(session.recipient, request.query("undone"))
        done = self._changed(session.recipient, result)
        rows = self._pages.rows(request, [*page.deliveries, *done, *undone], session.recipient)
        response = self._pages.page(
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
            act=result.act,
            done=rows[len(page.deliveries)] if done else None,
            undone=rows[-1] if undone else None,
            here=_list_query((name, request.query(name)) for name in _LIST_PARAMETERS),
        )
        if result.act:
            forget(self._pages, response)
        return response

    def _changed(self, recipient: str, result: Result) -> Sequence[Delivery]:
        """Return the delivery that a form on the list has just changed, so that the list shows the result."""
        return self._found(recipient, f"{result.keys[0].message_id}.{result.keys[0].number}") if result.keys else ()

    def _found(self, recipient: str, name: str) -> Sequence[Delivery]:
        try:
            return (self.delivery(recipient, name),) if name else ()
        except NotFound:
            return ()

    def message(self, request: Request, id: str) -> HTTPResponse:
        """GET /messages/ID/: show the reasons, the text and the history of one message."""
        session = self._sessions.of(request)
        delivery = self.delivery(session.recipient, id)
        row = self._pages.row(request, delivery, session.recipient)
        events = self._store.deliveries.history(delivery.key)
        result = kept(request)
        response = self._pages.page(
            request,
            "message",
            signed_in=shown_address(session.recipient),
            form_token=session.form_token,
            row=row,
            act=result.act if result.keys == (delivery.key,) else "",
            undone=request.query("undone") != "",
            here=_list_query(parse_qsl(request.query("list"))),
            **findings(delivery.message, request.language),
            **self._preview(delivery, session.recipient, self._pages.viewer(request, session.recipient)),
            blocked_by=self._own_rule(delivery, events, session.recipient),
            may_rule=self._pages.may_rule(delivery.recipient),
            may_report=self._pages.parts.learning.counts(ActorKind.RECIPIENT),
            senders=[(sender, shown_address(sender)) for sender in senders_of(delivery.message)],
            history=history(events, row, self._pages.viewer(request, session.recipient)),
        )
        if result.act:
            forget(self._pages, response)
        return response

    def _own_rule(self, delivery: Delivery, events: Sequence[Event], recipient: str) -> UUID | None:
        """Return the id of the reader's own rule that blocks a delivery, if it is still in use."""
        if delivery.state is not State.BLOCKED:
            return None
        by = next((event.actor for event in reversed(events) if event.kind is EventKind.BLOCKED), None)
        if by is None or by.kind is not ActorKind.RULE:
            return None
        rule = self._pages.parts.rulebook.own_in_use(self._reader(recipient), by.via, by.name)
        return rule.id if rule is not None and rule.effect is Effect.BLOCK else None

    def _preview(self, delivery: Delivery, recipient: str, viewer: Viewer) -> dict[str, Any]:
        """Return the text of the message as template values.

        The value is None if the body is missing or damaged. ``busy``: too many messages are being read, so this one is
        not.
        """
        if not self._pages.previews.acquire(blocking=False):
            return {"preview": None, "headers": [], "busy": True}
        try:
            preview = read(self._store.messages.body(delivery.id), recipient)
            return {"preview": preview, "headers": headers(preview.headers, viewer), "busy": False}
        except Busy:
            return {"preview": None, "headers": [], "busy": True}
        except (BodyDamaged, BodyMissing):
            return {"preview": None, "headers": [], "busy": False}
        finally:
            self._pages.previews.release()

    def act(self, request: Request, id: str, act: str) -> HTTPResponse:
        """POST /messages/ID/ACT: perform the action, then redirect (303) to the page of the form."""
        page, _, query = request.form("from").partition("?")
        place = _list_query(parse_qsl(query))
        if page == "list":
            back = f"/?{place}" if place else "/"
        else:
            back = f"/messages/{id}/{'?' + urlencode({'list': place}) if place else ''}"
        recipient = self._sessions.of_form(request, f"{back}{'&' if '?' in back else '?'}undone={id}").recipient
        delivery = self.delivery(recipient, id)
        actions, actor = self._pages.parts.actions, self._pages.actor(request, "portal", delivery, recipient)
        method = {
            "release": self._pages.release,
            "delete": actions.delete,
            "spam": actions.confirm_spam,
            "restore": actions.restore,
            "unblock": actions.unblock,
            "ask": actions.request_release,
        }[act]
        # The action records the error in the delivery and logs it. The page shows it.
        with suppress(AlreadyDone, RelayDeferred, RelayRefused, NotAllowed):
            method(delivery.id, delivery.number, actor)
        response = self._pages.see_other(back)
        keep(self._pages, response, act, [delivery.key])
        return response

    def delivery(self, recipient: str, name: str) -> Delivery:
        """Return the delivery with this `Row.name`: a message id, or message id and number. Raises NotFound."""
        message_id, number = _cursor(name) or (parse_id(name), None)
        if message_id is None:
            raise NotFound("no such message")
        return self._store.deliveries.get_for(self._reader(recipient), message_id, number)

    def _reader(self, recipient: str) -> Reader:
        return self._pages.parts.people.reader(recipient)


def _list_query(values: Iterable[tuple[str, str]]) -> str:
    """Return the list's query string. Drops unknown and empty values; the last value of a name wins."""
    known = {name: value[:_QUERY_CHARACTERS] for name, value in values if value and name in _LIST_PARAMETERS}
    return urlencode(known)


def _cursor(text: str) -> DeliveryId | None:
    match = _CURSOR.fullmatch(text)
    id = parse_id(match[1]) if match else None
    return DeliveryId(id, int(match[2])) if match and id else None
