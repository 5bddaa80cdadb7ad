"""One message of a signed-in recipient: its page, and what is done with it.

Every query of the store names the recipient of the session. Another recipient's delivery is answered with 404, so that
its existence is not disclosed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl
from uuid import UUID

from bottle import HTTPResponse

from portal.model.attachments import DANGERS_IN_WORDS, KINDS_IN_WORDS
from portal.model.authentication import checks
from portal.model.domains import shown_address
from portal.model.errors import (
    BodyDamaged,
    BodyMissing,
    Busy,
    NotFound,
)
from portal.model.message import Actor, ActorKind, Delivery, Event, EventKind, State, Tier, parse_id
from portal.model.rights import Access, ReleaseRight
from portal.model.rule import Effect
from portal.model.text import N_
from portal.policy.entry import senders_of
from portal.policy.rulebook import HINTS
from portal.reading import Preview, read, read_headers
from portal.reading.raw import raw_source
from portal.web.auth.session import Sessions
from portal.web.help_desk import QUESTION_CHARACTERS, asked_at, has_help_desk
from portal.web.history import history
from portal.web.listing import Listing, cursor
from portal.web.pages import Pages
from portal.web.request import Request
from portal.web.results import forget, kept
from portal.web.rows import Row, Viewer, findings, headers

# What a message in a frame may do: open a link in a new window, which is a window like any other.
SANDBOX = "allow-popups allow-popups-to-escape-sandbox"


@dataclass(frozen=True, slots=True)
class MadeRule:
    """The rule that a button was to make together with its action."""

    effect: str
    sender: str
    id: UUID | None = None  # None: there is no such rule, since the action or the rule failed
    hints: Sequence[str] = ()  # what its author should know, to be translated


class MessagePages:
    """`/messages/ID/…`."""

    def __init__(self, pages: Pages, sessions: Sessions) -> None:
        self._pages = pages
        self._sessions = sessions
        self._store = pages.parts.store
        # How a message can be shown, by the last part of the address: the link's text, and what returns the values of
        # the template `message-VIEW.html`.
        self._views: dict[str, tuple[str, Callable[[Delivery, Viewer], dict[str, Any]]]] = {
            "": (N_("Text"), self._text),
            "formatted": (N_("As the sender made it"), lambda *_: {"sandbox": SANDBOX}),
            "headers": (N_("Headers"), self._headers),
            "source": (N_("Source"), self._source),
        }

    def show(self, request: Request, id: str, view: str = "") -> HTTPResponse:
        """GET /messages/ID/ and /messages/ID/VIEW: show who sent it, why it was held, and what it says."""
        session = self._sessions.of(request)
        delivery = self.delivery(session.recipient, id)
        access = self._pages.parts.domains.access(delivery)
        if view == "formatted":
            self.check_formatted(request, delivery)
        if view == "source" and not access.source:
            raise NotFound("the source of this message is not shown")
        shown = self._views[view][1](delivery, self._pages.viewer(request, session.recipient))
        events = self._store.deliveries.history(delivery.key)
        row = self._pages.row(request, delivery, session.recipient, events)
        result, may_report = kept(request), self._pages.parts.learning.counts(ActorKind.RECIPIENT)
        made = self._made(delivery, result.effect, session.recipient) if result.key == delivery.key else None
        response = self._pages.page(
            request,
            "message",
            signed_in=shown_address(session.recipient),
            form_token=session.form_token,
            row=row,
            act=result.act if result.key == delivery.key else "",
            undone=request.query("undone") != "",
            here=Listing.of(parse_qsl(request.query("list").removeprefix("?"))).query(select=""),
            similar=self._similar(delivery, request) if made is None else "",
            **findings(delivery.message, request.language),
            view=view,
            views=self._links(delivery, access, shown.get("preview")),
            access=access,
            checks=checks(delivery.message),
            **shown,
            blocked_by=self._own_rule(delivery, events, session.recipient),
            may_rule=self._pages.may_rule(delivery.recipient),
            at_once=self._at_once(delivery, row),
            made=made,
            reports_needed=self._pages.parts.learning.agreed if may_report else 0,
            help_desk=has_help_desk(self._pages.parts.actions, delivery),
            asked_at=self._asked_at(events, request, session.recipient),
            question_characters=QUESTION_CHARACTERS,
            senders=[(sender, shown_address(sender)) for sender in senders_of(delivery.message)],
            history=history(events, row, self._pages.viewer(request, session.recipient)),
        )
        if result.act:
            forget(self._pages, response)
        return response

    def _at_once(self, delivery: Delivery, row: Row) -> dict[str, str]:
        """Return the senders of the buttons that also make a rule, by the last parts of their addresses."""
        if not self._pages.may_rule(delivery.recipient):
            return {}
        is_held = delivery.state is State.HELD
        offered = {
            "release-allow": Effect.ALLOW if row.right is ReleaseRight.SELF and is_held else None,
            "delete-block": Effect.BLOCK if is_held else None,
        }
        rulebook = self._pages.parts.rulebook
        found = {act: rulebook.sender_at_once(delivery.message, effect) for act, effect in offered.items() if effect}
        return {act: shown_address(sender) for act, sender in found.items() if sender}

    def _made(self, delivery: Delivery, effect: Effect | None, recipient: str) -> MadeRule | None:
        """Return the rule of a button that was pressed, None if the button makes none."""
        rulebook, reader = self._pages.parts.rulebook, self._pages.parts.people.reader(recipient)
        sender = rulebook.sender_at_once(delivery.message, effect) if effect else ""
        if effect is None or not sender:
            return None
        wanted = rulebook.own_rule(reader, delivery.recipient, sender, effect, Actor(ActorKind.SYSTEM))
        rule, hints = rulebook.in_use(wanted, delivery.message)
        name, texts = shown_address(sender), [HINTS[hint] for hint in hints if hint in HINTS]
        return MadeRule(effect.value, name, rule.id, texts) if rule else MadeRule(effect.value, name)

    def _asked_at(self, events: Sequence[Event], request: Request, recipient: str) -> str:
        at, viewer = asked_at(events, self._pages.now()), self._pages.viewer(request, recipient)
        return viewer.language.moment(at, viewer.zone) if at else ""

    def _links(self, delivery: Delivery, access: Access, preview: Preview | None) -> list[tuple[str, str]]:
        """Return the last parts and the texts of the links to a message's views, without those that show nothing."""
        has_formatted = not self._not_formatted(delivery) and (preview is None or preview.has_html)
        hidden = {"formatted": not has_formatted, "source": not access.source}
        return [(name, label) for name, (label, _) in self._views.items() if not hidden.get(name)]

    def _similar(self, delivery: Delivery, request: Request) -> str:
        """Return the number of held messages that are nearly identical to this one, "" without any."""
        page = self._store.deliveries.near_duplicates(delivery)
        return request.language.number(len(page.deliveries)) + ("+" if page.next else "") if page.deliveries else ""

    def _not_formatted(self, delivery: Delivery) -> str:
        """Return why a message is not shown as its sender formatted it, "" if it is."""
        if delivery.message.tier is Tier.DANGEROUS:
            return N_("The formatted view is not available for messages that may be harmful.")
        if not self._pages.parts.domains.of(delivery.recipient).formatted_view:
            return N_("The formatted view is switched off for your mailbox.")
        return ""

    def check_formatted(self, request: Request, delivery: Delivery) -> None:
        """Raise 404, with the reason, unless a message may be shown as its sender formatted it."""
        if reason := self._not_formatted(delivery):
            raise self._pages.notice(request, N_("Formatted view not available"), reason, 404)

    def _own_rule(self, delivery: Delivery, events: Sequence[Event], recipient: str) -> UUID | None:
        """Return the id of the reader's own rule that blocks a delivery, if it is still in use."""
        if delivery.state is not State.BLOCKED:
            return None
        by = next((event.actor for event in reversed(events) if event.kind is EventKind.BLOCKED), None)
        if by is None or by.kind is not ActorKind.RULE:
            return None
        rule = self._pages.parts.rulebook.own_in_use(self._pages.parts.people.reader(recipient), by.via, by.name)
        return rule.id if rule is not None and rule.effect is Effect.BLOCK else None

    def _text(self, delivery: Delivery, viewer: Viewer) -> dict[str, Any]:
        """Return the text of the message as template values. ``preview`` is None if there is none."""
        found = self._reading(delivery, lambda body: read(body, viewer.reader))
        preview = found["found"]
        return {
            **found,
            "preview": preview,
            "headers": headers(preview.headers, viewer) if preview else [],
            "kinds": KINDS_IN_WORDS,
            "dangers": DANGERS_IN_WORDS,
        }

    def _headers(self, delivery: Delivery, viewer: Viewer) -> dict[str, Any]:
        return self._reading(delivery, lambda body: read_headers(body, viewer.reader))

    def _source(self, delivery: Delivery, _: Viewer) -> dict[str, Any]:
        return self._reading(delivery, raw_source)

    def _reading(self, delivery: Delivery, read: Callable[[Iterator[bytes]], object]) -> dict[str, Any]:
        """Return what is read of the message as template values.

        ``found`` is None if the body is missing or damaged. ``busy``: too many messages are being read, so this one is
        not.
        """
        if not self._pages.previews.acquire(blocking=False):
            return {"found": None, "busy": True}
        try:
            return {"found": read(self._store.messages.body(delivery.id)), "busy": False}
        except Busy:
            return {"found": None, "busy": True}
        except (BodyDamaged, BodyMissing):
            return {"found": None, "busy": False}
        finally:
            self._pages.previews.release()

    def delivery(self, recipient: str, name: str) -> Delivery:
        """Return the delivery with this `Row.name`: a message id, or message id and number. Raises NotFound."""
        message_id, number = cursor(name) or (parse_id(name), None)
        if message_id is None:
            raise NotFound("no such message")
        return self._store.deliveries.get_for(self._pages.parts.people.reader(recipient), message_id, number)
