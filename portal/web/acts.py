"""Actions on one message by its signed-in recipient: those of its page and of a row of the list.

Two buttons do two things: release and allow the sender, delete and block the sender. The rule is made only after the
first action was done, and both can be repeated: a crash in between loses nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from urllib.parse import urlencode
from uuid import UUID

from bottle import HTTPResponse

from portal.batches.outcomes import last_event
from portal.model.errors import AlreadyDone, NotAllowed, QuarantineError, RelayDeferred, RelayRefused
from portal.model.message import RELEASABLE, Actor, Delivery, EventKind, State
from portal.model.rule import Effect
from portal.model.text import N_
from portal.web.auth.session import Sessions
from portal.web.help_desk import ask
from portal.web.limits import check_limit
from portal.web.listing import cursor, name_of, place_of
from portal.web.message import MessagePages
from portal.web.pages import Pages
from portal.web.request import Request
from portal.web.results import keep

log = logging.getLogger("quarantine.web")

# Buttons that also make a rule: the action, the effect, and the states after which the rule is made.
_WITH_RULE = {
    "release-allow": ("release", Effect.ALLOW, (State.RELEASING, State.RELEASED)),
    "delete-block": ("delete", Effect.BLOCK, (State.DELETED,)),
}
# Acts that send a message as it is in these states. The list has a button for each of them.
_SENDS = {"release": RELEASABLE, "again": (State.PASSED, State.RELEASED)}


class MessageActs:
    """POST `/messages/ID/ACT`."""

    def __init__(self, pages: Pages, sessions: Sessions, messages: MessagePages) -> None:
        self._pages = pages
        self._sessions = sessions
        self._messages = messages

    def act(self, request: Request, id: str, act: str) -> HTTPResponse:
        """POST /messages/ID/ACT: perform the action, then redirect (303) to the page of the form."""
        page, place = place_of(request.form("from"))
        to_message = f"/messages/{id}/" + (f"?{urlencode({'list': place})}" if place else "")
        back = f"/{place}" if page == "list" else to_message
        again = f"{back}{'&' if '?' in back else '?'}undone={id}"
        recipient = self._sessions.of_form(request, again, keeps=True).recipient
        delivery, effect = self._messages.delivery(recipient, id), None
        if delivery.state in _SENDS.get(act, ()) and self._pages.is_unchecked(request, delivery):
            # No cookie: scripts read the page that a form leads to before the browser opens it.
            return self._pages.see_other(f"{to_message}{'&' if place else '?'}unchecked={act}")
        if act in _WITH_RULE:
            act, effect = self._with_rule(request, recipient, delivery, act)
        elif act == "question":
            act = self._ask(request, recipient, delivery)
        else:
            act = self._perform(request, recipient, delivery, act)[0]
        # The browser goes on at the next row.
        next = cursor(request.query("next"))
        response = self._pages.see_other(f"{back}#m-{name_of(next)}" if next and page == "list" else back)
        keep(self._pages, response, act, delivery.key, effect)
        return response

    def _perform(self, request: Request, recipient: str, delivery: Delivery, act: str) -> tuple[str, Delivery | None]:
        """Return the result to show, and the delivery after the action; None if it failed."""
        if act == "again":
            check_limit(self._pages, request, recipient, EventKind.RELEASING)
        actions = self._pages.parts.actions
        methods: dict[str, Callable[[UUID, int, Actor], Delivery]] = {
            "release": partial(self._pages.release, request),
            "again": partial(self._pages.send_again, request),
            "delete": actions.delete,
            "spam": actions.confirm_spam,
            "restore": actions.restore,
            "unblock": actions.unblock,
            "ask": partial(actions.request_release, reason=request.form("reason")),
            "withdraw": actions.withdraw_request,
        }
        # The action records the error in the delivery and logs it. The page shows it.
        with suppress(RelayRefused, NotAllowed):
            try:
                return act, methods[act](
                    delivery.id, delivery.number, self._pages.actor(request, "portal", delivery, recipient)
                )
            except AlreadyDone as error:
                return self._late(act, error.delivery), error.delivery
            except RelayDeferred:
                return act, self._pages.parts.store.deliveries.get(delivery.key)
        return act, None

    def _late(self, act: str, delivery: Delivery | None) -> str:
        """Return the result of an act on a delivery that was in another state by then."""
        if act == "again" and delivery is not None and delivery.state in (State.RELEASED, State.PASSED):
            return "wait"
        if act == "spam" and delivery is not None and delivery.state is State.DELETED:
            events = self._pages.parts.store.deliveries.last_events([delivery.key]).get(delivery.key, ())
            deletion = last_event(events, (EventKind.DELETED, EventKind.CONFIRMED))
            return act if deletion is not None and deletion.kind is EventKind.CONFIRMED else "unreported"
        return act

    def _with_rule(self, request: Request, recipient: str, delivery: Delivery, button: str) -> tuple[str, Effect]:
        """Perform the action of a button, then make its rule for the sender. Return the result to show."""
        parts = self._pages.parts
        act, effect, states = _WITH_RULE[button]
        sender = parts.rulebook.sender_at_once(delivery.message, effect)
        if not sender or not self._pages.may_rule(delivery.recipient):
            raise self._pages.notice(
                request,
                N_("Allowed and blocked senders"),
                N_("Nothing was changed: this sender cannot be allowed or blocked together with another action."),
                403,
            )
        _, after = self._perform(request, recipient, delivery, act)
        if after is not None and after.state in states:
            actor, reader = self._pages.actor(request, "portal", delivery, recipient), parts.people.reader(recipient)
            try:
                rule = parts.rulebook.own_rule(reader, delivery.recipient, sender, effect, actor, delivery.message)
                parts.rulebook.add([rule])
            except QuarantineError as error:  # the page says so, and has the form for a rule
                log.error("rule not added after %s id=%s: %s", act, delivery.id, error)
        return act, effect

    def _ask(self, request: Request, recipient: str, delivery: Delivery) -> str:
        """Send a question to the administrator. Return the result to show."""
        check_limit(self._pages, request, recipient, EventKind.ASKED)
        actor = self._pages.actor(request, "portal", delivery, recipient)
        try:
            ask(self._pages.parts.actions, delivery, recipient, actor, request.form("question"))
        except AlreadyDone:
            return "asked"
        return "question"
