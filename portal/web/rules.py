"""A signed-in recipient's allowed and blocked senders: the list, and the form for the sender of one message.

A rule has a lasting effect, so it needs a session: links in digests only lead to the form. Each query of the store is
limited to the identities that the recipient reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bottle import HTTPResponse

from portal.model.domains import shown_address
from portal.model.errors import AlreadyDone, BadRule, NotFound, TooManyRules
from portal.model.message import Actor, ActorKind, parse_id
from portal.model.rule import Effect, Rule
from portal.model.sender import LOOKS_ALIKE
from portal.model.text import N_, shown
from portal.policy.entry import senders_of
from portal.policy.rulebook import Hint
from portal.web.auth.session import Session, Sessions
from portal.web.message import MessagePages
from portal.web.pages import Pages
from portal.web.request import Request
from portal.web.rows import Viewer

_SENDER_CHARACTERS = 400  # of a typed sender; longer ones are rejected
_LIMIT = N_("Your list is full. Remove a sender first.")
_HINTS = {
    Hint.OVERRULED: N_("Your administrator blocks this sender, so messages are still held."),
    Hint.OVERRIDES: N_("Your administrator has another rule for this sender. Yours takes precedence for you."),
    Hint.NOT_AUTHENTIC: N_("This message is not authenticated. Only authenticated messages are let through."),
    Hint.CHANGING_ADDRESS: N_("This address probably changes with each message. Add its domain instead."),
    Hint.OWN_DOMAIN: N_("This sender belongs to your own organization."),
    Hint.LOOKS_ALIKE: LOOKS_ALIKE,
}


@dataclass(frozen=True, slots=True)
class RuleRow:
    """A rule as the page lists it."""

    name: str  # in URLs
    sender: str
    words: str  # that find its messages in a list
    is_allowed: bool
    mailbox: str  # the role mailbox or alias that it is for, "" if it is for the reader's own address
    added: str
    by: str  # to be translated, "" if `who` names somebody
    who: str  # another reader of the mailbox
    hits: int
    last_hit: str
    expires: str  # "" if it has no end
    is_removed: bool


class RulePages:
    """`/rules…`, and `/messages/ID/sender`."""

    def __init__(self, pages: Pages, sessions: Sessions, messages: MessagePages) -> None:
        self._pages = pages
        self._sessions = sessions
        self._messages = messages
        self._rulebook = pages.parts.rulebook

    def list(self, request: Request) -> HTTPResponse:
        """GET /rules: list the rules, newest first. ``done`` names the one that was just changed."""
        return self._list(request, self._sessions.of(request))

    def add(self, request: Request) -> HTTPResponse:
        """POST /rules: add a typed sender, or that of a message, then redirect (303) to the list with the result."""
        page = f"/messages/{name}/sender" if (name := request.form("message")) else "/rules"
        session = self._sessions.of_form(request, page)
        reader = self._pages.parts.people.reader(session.recipient)
        effect, typed = request.form("effect"), request.form("sender")[:_SENDER_CHARACTERS]
        if effect not in tuple(Effect):
            raise self._pages.notice(
                request, N_("No action selected"), N_("Go back and press one of the buttons."), 400
            )
        delivery = self._messages.delivery(session.recipient, name) if name else None
        recipient = delivery.recipient if delivery else request.form("recipient") or session.recipient
        message = delivery.message if delivery else None
        self._check_allowed(request, recipient)
        try:
            rule = self._rulebook.own_rule(
                reader, recipient, typed, Effect(effect), self._actor(request, session, recipient), message
            )
            [in_use] = self._rulebook.add([rule])
        except TooManyRules:
            return self._list(request, session, typed=typed, error=_LIMIT)
        except BadRule as error:
            return self._list(request, session, typed=typed, error=str(error))
        return self._pages.see_other(f"/rules?done={in_use.id}")

    def act(self, request: Request, rule: str, change: str) -> HTTPResponse:
        """POST /rules/RULE/CHANGE: remove a rule or put it back, then redirect (303) to the list with the result."""
        session = self._sessions.of_form(request, "/rules")
        reader, rule_id = self._pages.parts.people.reader(session.recipient), parse_id(rule)
        if rule_id is None:
            raise NotFound("there is no such rule")
        scope = self._rulebook.own_by_id(reader, rule_id).scope
        if change == "restore":
            self._check_allowed(request, scope)
        actor = self._actor(request, session, scope)
        method = self._rulebook.remove_own if change == "remove" else self._rulebook.restore_own
        try:
            method(reader, rule_id, actor)
        except AlreadyDone:
            pass  # the list shows it
        except TooManyRules:
            return self._list(request, session, error=_LIMIT)
        return self._pages.see_other(f"/rules?done={rule_id}")

    def sender(self, request: Request, id: str) -> HTTPResponse:
        """GET /messages/ID/sender: the form for the sender of one message, for the link in a digest's page."""
        session = self._sessions.of(request)
        delivery = self._messages.delivery(session.recipient, id)
        self._check_allowed(request, delivery.recipient)
        return self._pages.page(
            request,
            "sender",
            signed_in=shown_address(session.recipient),
            form_token=session.form_token,
            row=self._pages.row(request, delivery, session.recipient),
            senders=[(sender, shown_address(sender)) for sender in senders_of(delivery.message)],
        )

    def _check_allowed(self, request: Request, recipient: str) -> None:
        """Raise 403 if `Pages.may_rule` is False. Rules that exist can be removed."""
        if not self._pages.may_rule(recipient):
            raise self._pages.notice(
                request,
                N_("Allowed and blocked senders"),
                N_("Your administrator allows and blocks senders for your organization."),
                403,
            )

    def _list(self, request: Request, session: Session, *, typed: str = "", error: str = "") -> HTTPResponse:
        people = self._pages.parts.people
        reader = people.reader(session.recipient)
        viewer = self._pages.viewer(request, session.recipient)
        done = None if error else self._changed(session, request.query("done"))
        return self._pages.page(
            request,
            "rules",
            400 if error else 200,
            signed_in=shown_address(session.recipient),
            form_token=session.form_token,
            rows=[self._row(rule, viewer) for rule in self._rulebook.own(reader)],
            done=self._row(done, viewer) if done else None,
            hints=self._hints(done) if done and done.is_active(self._pages.now()) else [],
            mailboxes=[(name, shown_address(name)) for name in (session.recipient, *reader.shared)]
            if reader.shared.keys() - {session.recipient}
            else [],
            may_rule=request.policy.recipient_rules,
            typed=shown(typed, _SENDER_CHARACTERS),
            error=error,
        )

    def _changed(self, session: Session, name: str) -> Rule | None:
        """Return the rule that a form has just changed, so that the list shows the result."""
        rule_id = parse_id(name)
        try:
            reader = self._pages.parts.people.reader(session.recipient)
            return self._rulebook.own_by_id(reader, rule_id) if rule_id else None
        except NotFound:
            return None

    def _hints(self, rule: Rule) -> Sequence[str]:
        message = None
        if rule.message_id is not None:
            try:
                message = self._pages.parts.store.deliveries.of_message(rule.message_id)[0].message
            except NotFound:
                message = None  # purged
        return [_HINTS[hint] for hint in self._rulebook.hints(rule, message) if hint in _HINTS]

    def _actor(self, request: Request, session: Session, recipient: str) -> Actor:
        people = self._pages.parts.people
        own = recipient == session.recipient and not people.is_role(recipient)
        return Actor(ActorKind.RECIPIENT, "" if own else session.recipient, "portal", request.peer)

    def _row(self, rule: Rule, viewer: Viewer) -> RuleRow:
        language, zone = viewer.language, viewer.zone
        by, who = "", ""
        if rule.actor.kind is not ActorKind.RECIPIENT:
            by = N_("by an administrator")
        elif rule.actor.name in ("", viewer.reader):
            by = N_("by you")
        else:
            who = shown_address(rule.actor.name)
        own = rule.scope == viewer.reader and not self._pages.parts.people.is_role(rule.scope)
        return RuleRow(
            name=str(rule.id),
            sender=shown_address(rule.sender),
            words=rule.sender,
            is_allowed=rule.effect is Effect.ALLOW,
            mailbox="" if own else shown_address(rule.scope),
            added=language.moment(rule.created_at, zone),
            by=by,
            who=who,
            hits=rule.hits,
            last_hit=language.moment(rule.last_hit_at, zone) if rule.last_hit_at else "",
            expires=language.moment(rule.expires_at, zone) if rule.expires_at else "",
            is_removed=not rule.is_active(self._pages.now()),
        )
