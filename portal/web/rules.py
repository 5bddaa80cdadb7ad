"""A signed-in recipient's allowed and blocked senders: the lists, and the form for the sender of one message.

A rule has a lasting effect, so it needs a session: links in digests only lead to the form. Each query of the store is
limited to the identities that the recipient reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from urllib.parse import urlencode

from bottle import HTTPResponse

from portal.model.domains import shown_address
from portal.model.errors import AlreadyDone, BadRule, NotFound, TooManyRules
from portal.model.message import Actor, ActorKind, held_at, parse_id
from portal.model.rule import Effect, Rule
from portal.model.text import N_, shown
from portal.policy.entry import senders_of
from portal.policy.rulebook import HINTS
from portal.web.auth.kept_form import NO_FORM
from portal.web.auth.session import Session, Sessions
from portal.web.message import MessagePages
from portal.web.pages import Pages
from portal.web.request import Request
from portal.web.rows import Viewer

_SENDER_CHARACTERS = 400  # of a typed sender; longer ones are rejected
_WORDS_CHARACTERS = 200  # of a search
_FIRST = 20  # rules of each effect on the page of both
_PAGE = 50  # rules on a page of one effect
_MAX_PAGE = 9_999
_LIMIT = N_("Your list is full. Remove a sender first.")


@dataclass(frozen=True, slots=True)
class Selection:
    """The rules that a page shows, by the parameters of its address. The forms of the page have them, too."""

    words: str  # of a search
    effect: str  # "": both effects, the newest rules of each
    page: int  # from 1 on, of one effect

    @classmethod
    def of(cls, value: Callable[[str], str]) -> Selection:
        """Return the selection of a request. ``value``: returns a parameter by its name, "" if it is missing."""
        effect, page = value("show"), value("page")
        is_page = page.isascii() and page.isdigit() and len(page) < len(str(_MAX_PAGE)) + 1
        return cls(
            shown(value("q"), _WORDS_CHARACTERS),
            effect if effect in tuple(Effect) else "",
            max(1, int(page)) if is_page and effect else 1,
        )

    def fields(self) -> list[tuple[str, str]]:
        """Return the parameters that are not empty, by name."""
        pairs = [("q", self.words), ("show", self.effect), ("page", str(self.page) if self.page > 1 else "")]
        return [pair for pair in pairs if pair[1]]

    def query(self, **more: str) -> str:
        """Return the query string of a page with this selection, beginning with "?"."""
        return f"?{urlencode([*more.items(), *self.fields()])}"

    def finds(self, rule: Rule) -> bool:
        """Return whether a rule has all words of the search: in its sender, note, mailbox or author."""
        names = (rule.sender, rule.scope, rule.actor.name)
        text = " ".join((rule.note, *names, *map(shown_address, names))).casefold()
        return all(word in text for word in self.words.casefold().split())


@dataclass(frozen=True, slots=True)
class Group:
    """The rules of one effect on a page."""

    effect: str
    count: int  # of those that match the search
    rows: Sequence[RuleRow]
    pages: Sequence[tuple[str, str]]  # "all", "newer" or "older", each with the query string of that page


@dataclass(frozen=True, slots=True)
class RuleRow:
    """A rule as the page lists it."""

    name: str  # in URLs
    sender: str
    words: str  # that find its messages in a list
    effect: str
    mailbox: str  # the role mailbox or alias that it is for, "" if it is for the reader's own address
    added: str
    by: str  # to be translated, "" if `who` names somebody
    who: str  # another reader of the mailbox
    message: str  # the name of the message that it was made from, "" if there is none or it is no longer kept
    note: str
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
        return self._list(request, self._sessions.of(request), Selection.of(request.query))

    def add(self, request: Request) -> HTTPResponse:
        """POST /rules: add a typed sender, or that of a message, then redirect (303) to the list with the result."""
        page = f"/messages/{name}/sender" if (name := request.form("message")) else "/rules"
        session = self._sessions.of_form(request, f"{page}?undone=1", keeps=True)
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
        selection = Selection.of(request.form)
        session = self._sessions.of_form(request, f"/rules{selection.query(undone='1')}", keeps=True)
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
            return self._list(request, session, selection, error=_LIMIT)
        return self._pages.see_other(f"/rules{selection.query(done=str(rule_id))}")

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
            was_signed_out=request.query("undone") != "",
            chosen=self._sessions.kept_form(request, session, is_shown=request.query("undone") != "").get("sender"),
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

    def _list(
        self,
        request: Request,
        session: Session,
        selection: Selection = Selection("", "", 1),
        *,
        typed: str = "",
        error: str = "",
    ) -> HTTPResponse:
        kept = NO_FORM if error else self._sessions.kept_form(request, session, is_shown=request.query("undone") != "")
        people = self._pages.parts.people
        reader = people.reader(session.recipient)
        viewer = self._pages.viewer(request, session.recipient)
        done = None if error else self._changed(session, request.query("done"))
        rules = self._rulebook.own(reader)
        return self._pages.page(
            request,
            "rules",
            400 if error else 200,
            signed_in=shown_address(session.recipient),
            form_token=session.form_token,
            total=len(rules),
            groups=_groups(rules, selection, lambda rule: self._row(rule, viewer)),
            selection=selection,
            done=self._row(done, viewer) if done else None,
            hints=self._hints(done) if done and done.is_active(self._pages.now()) else [],
            mailboxes=[(name, shown_address(name)) for name in (session.recipient, *reader.shared)]
            if reader.shared.keys() - {session.recipient}
            else [],
            may_rule=request.policy.recipient_rules,
            typed=shown(typed or kept.get("sender"), _SENDER_CHARACTERS),
            mailbox=kept.get("recipient"),
            was_signed_out=not error and request.query("undone") != "",
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
        return [HINTS[hint] for hint in self._rulebook.hints(rule, message) if hint in HINTS]

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
            effect=rule.effect.value,
            mailbox="" if own else shown_address(rule.scope),
            added=language.date(rule.created_at, zone),
            by=by,
            who=who,
            message=self._message_of(rule),
            note=rule.note,
            hits=rule.hits,
            last_hit=language.date(rule.last_hit_at, zone) if rule.last_hit_at else "",
            expires=language.date(rule.expires_at, zone) if rule.expires_at else "",
            is_removed=not rule.is_active(self._pages.now()),
        )

    def _message_of(self, rule: Rule) -> str:
        """Return the name of the message that a rule was made from, "" if none is kept any more.

        Its age alone decides, so that a page with many rules needs no query for them.
        """
        if rule.message_id is None:
            return ""
        kept = timedelta(days=min(self._pages.parts.domains.of(rule.scope).retention_days.values()))
        return str(rule.message_id) if held_at(rule.message_id) + kept > self._pages.now() else ""


def _groups(rules: Sequence[Rule], selection: Selection, row: Callable[[Rule], RuleRow]) -> list[Group]:
    """Return the groups of a page: blocked and allowed senders, or a page of one of them."""
    found = [rule for rule in rules if selection.finds(rule)] if selection.words else rules
    groups = []
    for effect in (Effect.BLOCK, Effect.ALLOW):
        of_effect = [rule for rule in found if rule.effect is effect]
        chosen, start, size = replace(selection, effect=effect.value), 0, _FIRST
        pages = []
        if not selection.effect:
            pages += [("all", chosen.query())] if len(of_effect) > size else []
        elif selection.effect == effect:
            start, size = (selection.page - 1) * _PAGE, _PAGE
            pages += [("newer", replace(chosen, page=chosen.page - 1).query())] if start else []
            pages += [("older", replace(chosen, page=chosen.page + 1).query())] if len(of_effect) > start + size else []
        else:
            continue
        rows = [row(rule) for rule in of_effect[start : start + size]]
        groups.append(Group(effect.value, len(of_effect), rows, pages))
    return groups
