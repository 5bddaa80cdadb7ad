"""One message of a signed-in recipient: its page, and what is done with it.

Every query of the store names the recipient of the session. Another recipient's delivery is answered with 404, so that
its existence is not disclosed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl
from uuid import UUID

from bottle import HTTPResponse

from portal.model.authentication import checks
from portal.model.domains import shown_address
from portal.model.errors import NotFound
from portal.model.message import Actor, ActorKind, Delivery, Event, EventKind, State
from portal.model.rights import ReleaseRight
from portal.model.rule import Effect
from portal.policy.entry import senders_of
from portal.policy.release_requests import REQUEST_REASON_CHARACTERS
from portal.policy.rulebook import HINTS
from portal.web.auth.kept_form import NO_FORM
from portal.web.auth.session import Sessions
from portal.web.help_desk import QUESTION_CHARACTERS, asked_at, has_help_desk
from portal.web.history import history
from portal.web.listing import Listing, named_message
from portal.web.pages import Pages
from portal.web.release_request import release_request
from portal.web.request import Request
from portal.web.results import check_undone, forget, kept
from portal.web.rows import Row, findings
from portal.web.views import MessageViews


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
        self.views = MessageViews(pages)

    def show(self, request: Request, id: str, view: str = "") -> HTTPResponse:
        """GET /messages/ID/ and /messages/ID/VIEW: show who sent it, why it was held, and what it says."""
        session = self._sessions.of(request)
        check_undone(self._pages, request)
        delivery = self.delivery(session.recipient, id)
        access = self._pages.parts.domains.access(delivery)
        self.views.check(request, delivery, access, view)
        shown = self.views.values(view, delivery, self._pages.viewer(request, session.recipient))
        events = self._store.deliveries.history(delivery.key)
        row = self._pages.row(request, delivery, session.recipient, events)
        result, may_report = kept(request), self._pages.parts.learning.counts(ActorKind.RECIPIENT)
        typed = self._sessions.kept_form(request, session, is_shown=result.undone != "")
        typed = typed if typed.path.startswith(f"/messages/{id}/") else NO_FORM
        made = self._made(delivery, result.effect, session.recipient) if result.key == delivery.key else None
        response = self._pages.page(
            request,
            "message",
            signed_in=shown_address(session.recipient),
            form_token=session.form_token,
            row=row,
            act=result.act if result.key == delivery.key else "",
            undone=result.undone != "",
            unchecked=request.query("unchecked"),
            here=Listing.of(parse_qsl(request.query("list").removeprefix("?"))).query(select=""),
            typed=typed,
            # Not where the result of an act, or a kept form, is the news: the page would take more statements.
            similar=self._similar(delivery, request) if made is None and not typed.path else "",
            **findings(delivery.message, request.language),
            view=view,
            views=self.views.links(delivery, access, shown.get("preview")),
            at=f"messages/{row.name}",
            access=access,
            checks=checks(delivery.message),
            **shown,
            blocked_by=self._own_rule(delivery, events, session.recipient),
            may_rule=self._pages.may_rule(delivery.recipient),
            at_once=self._at_once(delivery, row),
            made=made,
            asked=release_request(events, self._pages.viewer(request, session.recipient)),
            reason_characters=REQUEST_REASON_CHARACTERS,
            reports_needed=self._pages.parts.learning.agreed if may_report else 0,
            help_desk=has_help_desk(self._pages.parts.actions, delivery),
            asked_at=self._asked_at(events, request, session.recipient),
            question_characters=QUESTION_CHARACTERS,
            senders=[(sender, shown_address(sender)) for sender in senders_of(delivery.message)],
            history=history(events, row, self._pages.viewer(request, session.recipient)),
        )
        if result.act or result.undone:
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

    def _similar(self, delivery: Delivery, request: Request) -> str:
        """Return the number of held messages that are nearly identical to this one, "" without any."""
        page = self._store.deliveries.near_duplicates(delivery)
        return request.language.number(len(page.deliveries)) + ("+" if page.next else "") if page.deliveries else ""

    def _own_rule(self, delivery: Delivery, events: Sequence[Event], recipient: str) -> UUID | None:
        """Return the id of the reader's own rule that blocks a delivery, if it is still in use."""
        if delivery.state is not State.BLOCKED:
            return None
        by = next((event.actor for event in reversed(events) if event.kind is EventKind.BLOCKED), None)
        if by is None or by.kind is not ActorKind.RULE:
            return None
        rule = self._pages.parts.rulebook.own_in_use(self._pages.parts.people.reader(recipient), by.via, by.name)
        return rule.id if rule is not None and rule.effect is Effect.BLOCK else None

    def delivery(self, recipient: str, name: str) -> Delivery:
        """Return the delivery with this `Row.name`: a message id, or message id and number. Raises NotFound."""
        message_id, number = named_message(name)
        if message_id is None:
            raise NotFound("no such message")
        return self._store.deliveries.get_for(self._pages.parts.people.reader(recipient), message_id, number)
