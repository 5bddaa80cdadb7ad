"""A signed-in recipient's pages: the list, one message, preferences.

Every question to the store begins with the recipient of the session, so that another recipient's delivery cannot be
named: it is *not found*, as if it did not exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

from bottle import HTTPResponse

from portal.model.errors import AlreadyDone, BodyDamaged, BodyMissing, NotAllowed, NotFound, RelayDeferred, RelayRefused
from portal.model.message import Delivery, Event, Reader, State, parse_id
from portal.model.text import N_
from portal.web import preview
from portal.web.pages import Row, Web, by_name, sha256
from portal.web.preferences import PreferencePages

_ROWS = 25
_ASKED_CHARS = 200
_EVENTS = 50
_PLACE = ("state", "q", "before")  # in the list's address: what of it is shown
_CURSOR = re.compile(r"([0-9a-f-]{36})\.([0-9]{1,5})", re.ASCII)

# What the links above the list show.
_VIEWS: dict[str, tuple[State, ...]] = {
    "held": (State.HELD,),
    "requested": (State.REQUESTED,),
    "released": (State.RELEASING, State.RELEASED),
    "deleted": (State.DELETED,),
}

_EVENTS_IN_WORDS = {
    "held": N_("held"),
    "requested": N_("asked for"),
    "refused": N_("request refused"),
    "releasing": N_("release begun"),
    "released": N_("released"),
    "deferred": N_("the mail server could not take it yet"),
    "failed": N_("the mail server refused it"),
    "deleted": N_("deleted"),
    "restored": N_("deletion undone"),
    "raised": N_("found more dangerous by a later check"),
    "stopped": N_("release stopped"),
}


class PortalPages:
    """`/`, `/messages/…` and `/preferences`."""

    def __init__(self, web: Web, preferences: PreferencePages) -> None:
        self._web = web
        self._store = web.parts.store
        self._preferences = preferences

    def list(self) -> HTTPResponse:
        """GET /: this recipient's mail in one state, newest first, or what of it has the words asked for."""
        recipient, session = self._session()
        view = self._web.query("state") if self._web.query("state") in _VIEWS else "held"
        asked = self._web.query("q").strip()[:_ASKED_CHARS]
        before = _cursor(self._web.query("before"))
        page = self._store.list_for(self._reader(recipient), _VIEWS[view], _ROWS, before, words=asked)
        return self._web.page(
            "list",
            signed_in=recipient,
            form_token=self._web.parts.links.form_token(session),
            views=tuple(_VIEWS),
            view=view,
            asked=asked,
            rows=[self._web.row(delivery, recipient) for delivery in page.deliveries],
            later=self._web.query("before") != "",
            next=f"{page.next[0]}.{page.next[1]}" if page.next else "",
            done=self._done(recipient),
            here=_place((name, self._web.query(name)) for name in _PLACE),
        )

    def _done(self, recipient: str) -> Row | None:
        """The delivery that a form of the list has just acted on, to tell what came of it."""
        try:
            return self._web.row(self._delivery(recipient, self._web.query("done")), recipient)
        except NotFound:
            return None

    def message(self, id: str) -> HTTPResponse:
        """GET /messages/ID/: why it was held, and its text."""
        recipient, session = self._session()
        delivery = self._delivery(recipient, id)
        row = self._web.row(delivery, recipient)
        return self._web.page(
            "message",
            signed_in=recipient,
            form_token=self._web.parts.links.form_token(session),
            row=row,
            **self._web.findings(delivery.message),
            preview=self._preview(delivery),
            history=[
                (self._web.when(event.at), _EVENTS_IN_WORDS.get(event.what, N_("changed")), *_who(event, row))
                for event in self._store.history(delivery.id, delivery.number)[-_EVENTS:]
            ],
        )

    def _preview(self, delivery: Delivery) -> preview.Preview | None:
        """What the mail says; None when the mail itself is gone, or is not any more what came."""
        try:
            return preview.preview(self._store.body(delivery.id))
        except (BodyDamaged, BodyMissing):
            return None

    def act(self, id: str, act: str) -> HTTPResponse:
        """POST /messages/ID/ACT, then 303 to where the form stood."""
        recipient, _ = self._session_of_form()
        delivery = self._delivery(recipient, id)
        acts, actor = self._web.parts.acts, self._web.actor("portal", delivery, recipient)
        does = {"release": acts.release, "delete": acts.delete, "restore": acts.restore, "ask": acts.ask}[act]
        # Recorded and logged where it happens; the page tells.
        with suppress(AlreadyDone, RelayDeferred, RelayRefused, NotAllowed):
            does(delivery.id, delivery.number, actor)
        page, _, place = self._web.form("from").partition("?")
        if page == "list":
            return self._web.see_other(f"/?{_place([*parse_qsl(place), ('done', id)])}")
        return self._web.see_other(f"/messages/{id}/")

    def preferences(self) -> HTTPResponse:
        """GET /preferences."""
        recipient, session = self._session()
        return self._preferences.show(recipient, form_token=self._web.parts.links.form_token(session))

    def change_preferences(self) -> HTTPResponse:
        """POST /preferences."""
        recipient, session = self._session_of_form()
        token = self._web.parts.links.form_token(session)
        return self._preferences.change(recipient, back="/preferences", form_token=token)

    # ---- whose page this is

    def _session(self) -> tuple[str, str]:
        """The recipient signed in and the session's secret; else raise a 303 to the sign-in page."""
        session = self._web.cookie("session")
        recipient = self._store.session(sha256(session), self._web.now()) if session else None
        parts = self._web.parts
        # A domain that is no longer ours ends its people's sessions, and so does becoming an alias of somebody.
        if (
            session is None
            or recipient is None
            or not (parts.settings.is_local(recipient) and parts.people.is_person(recipient))
        ):
            raise self._web.see_other("/sign-in")
        self._web.speak_to(recipient, self._store.person(recipient).preferences)
        return recipient, session

    def _session_of_form(self) -> tuple[str, str]:
        """The same for a posted form, which must be one of ours."""
        self._web.refuse_foreign()
        recipient, session = self._session()
        self._web.refuse_old_form(session)
        return recipient, session

    def _delivery(self, recipient: str, name: str) -> Delivery:
        """What `Row.name` names: a message, or one of several deliveries of it."""
        message_id, number = _cursor(name) or (parse_id(name), None)
        if message_id is None:
            raise NotFound("no such message")
        return self._store.delivery_for(self._reader(recipient), message_id, number)

    def _reader(self, recipient: str) -> Reader:
        return self._web.parts.people.reader(recipient)


def _place(values: Iterable[tuple[str, str]]) -> str:
    """A query for the list of what belongs there; of two of one name the last."""
    known = {name: value[:_ASKED_CHARS] for name, value in values if value and name in (*_PLACE, "done")}
    return urlencode(known)


def _cursor(text: str) -> tuple[UUID, int] | None:
    match = _CURSOR.fullmatch(text)
    id = parse_id(match[1]) if match else None
    return (id, int(match[2])) if match and id else None


def _who(event: Event, row: Row) -> tuple[str, str]:
    """Who did something in words, and by name where that is another reader's to know. Operators' names and where it
    was done from are the operators' to see; answers of the mail server are nobody's doing."""
    if event.what in ("released", "deferred", "failed"):
        return "", ""
    if event.actor.who == "recipient" and row.mailbox:
        return "", row.mailbox  # who that was before others read it, or nobody else did
    if event.actor.who == "recipient":
        return N_("with a link in a digest") if event.actor.via == "link" else N_("by you"), ""
    return N_("by an administrator") if event.actor.who.startswith("operator") else "", by_name(event.actor)
