"""Allow or block the senders of the selected messages: a page that names each of them, and its form.

Rules are made like those of the page of one message (`portal.web.rules`): for the recipient of each message, by the
rulebook, which checks the reader, the sender and the limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bottle import HTTPResponse

from portal.model.domains import shown_address
from portal.model.errors import BadRule, TooManyRules
from portal.model.message import Actor, ActorKind, Delivery, Tier
from portal.model.rule import Effect, Rule
from portal.model.text import N_
from portal.policy.entry import senders_of
from portal.policy.rulebook import HINTS
from portal.web.auth.session import Session, Sessions
from portal.web.listing import cursor, name_of, place_of
from portal.web.pages import Pages
from portal.web.request import Request
from portal.web.results import keep_rules

_MAX = 50  # senders of one form, each with a message
_FIELD = "sender."  # followed by the key of a message


@dataclass(frozen=True, slots=True)
class Option:
    """A sender for whom a rule can be made."""

    value: str
    text: str
    hints: Sequence[str]  # to be translated
    error: str  # why the rule cannot be made, to be translated; "" if it can


@dataclass(frozen=True, slots=True)
class Choice:
    """The senders that some of the messages name: an address, and its domain."""

    field: str  # the name of the field
    mailbox: str  # the role mailbox or alias that the rule is for, "" if it is for the reader's own address
    count: int  # messages
    options: Sequence[Option]

    @property
    def first(self) -> str:
        """The value that is chosen at first, "" for none."""
        return next((each.value for each in self.options if not each.error), "")


class _Group(NamedTuple):
    """Messages that name the same senders."""

    owner: str  # who keeps the rules for them
    senders: tuple[str, ...]
    deliveries: Sequence[Delivery]


class SelectedSenders:
    """The page of POST `/messages` with *Always allow* or *Always block*, and POST `/rules/senders`."""

    def __init__(self, pages: Pages, sessions: Sessions) -> None:
        self._pages = pages
        self._sessions = sessions
        self._rulebook = pages.parts.rulebook

    def choose(
        self,
        request: Request,
        session: Session,
        effect: Effect,
        deliveries: Sequence[Delivery],
        *,
        is_cut: bool = False,
        error: str = "",
    ) -> HTTPResponse:
        """Return the page that names the senders of these messages, with what the reader should know.

        ``is_cut``: these are the newest of more messages.
        """
        # An allow rule does not deliver suspicious or dangerous messages, so their senders are left out.
        fit = [each for each in deliveries if effect is Effect.BLOCK or each.message.tier is Tier.SPAM]
        groups = self._groups(fit)
        return self._pages.page(
            request,
            "senders",
            400 if error else 200,
            signed_in=shown_address(session.recipient),
            form_token=session.form_token,
            place=place_of(request.form("from"))[1],
            effect=effect,
            choices=self._choices(request, session, effect, groups[:_MAX]),
            more=max(0, len(groups) - _MAX),
            newest=len(deliveries) if is_cut else 0,
            none=sum(not senders_of(each.message) for each in fit),
            harmful=len(deliveries) - len(fit),
            error=error,
        )

    def add(self, request: Request) -> HTTPResponse:
        """POST /rules/senders: make the rules, then redirect (303) to the list of messages."""
        _, place = place_of(request.form("from"))
        session = self._sessions.of_form(request, f"/{place}{'&' if place else '?'}undone=several", keeps=True)
        if request.form("effect") not in tuple(Effect):
            raise self._pages.notice(
                request, N_("No action selected"), N_("Go back and press one of the buttons."), 400
            )
        effect = Effect(request.form("effect"))
        deliveries, rules = self._deliveries(request, session), list[Rule]()
        try:
            for each in deliveries:
                if sender := request.form(f"{_FIELD}{name_of(each.key)}"):
                    rules.append(self._rule(request, session, effect, each, sender))
            if rules:
                self._rulebook.add(rules)
        except TooManyRules:
            return self.choose(
                request, session, effect, deliveries, error=N_("Your list is full. Remove a sender first.")
            )
        except BadRule as error:
            return self.choose(request, session, effect, deliveries, error=str(error))
        if not rules:
            return self._pages.see_other(f"/{place}")
        response = self._pages.see_other(f"/{place}")
        keep_rules(self._pages, response, effect, len({(rule.scope, rule.sender) for rule in rules}))
        return response

    def _deliveries(self, request: Request, session: Session) -> Sequence[Delivery]:
        """Return the messages of the form that the reader may read."""
        names = request.all_of_form("message")[:_MAX]
        keys = [key for name in dict.fromkeys(names) if (key := cursor(name))]
        return self._pages.parts.store.deliveries.of_reader(self._pages.parts.people.reader(session.recipient), keys)

    def _groups(self, deliveries: Sequence[Delivery]) -> list[_Group]:
        """Return the messages for whose senders the reader may make rules by sender, those with most messages first."""
        groups: dict[tuple[str, tuple[str, ...]], list[Delivery]] = {}
        for each in deliveries:
            if self._pages.may_rule(each.recipient) and (senders := tuple(senders_of(each.message))):
                groups.setdefault((self._rulebook.owner(each.recipient), senders), []).append(each)
        found = [_Group(owner, senders, messages) for (owner, senders), messages in groups.items()]
        return sorted(found, key=lambda group: -len(group.deliveries))

    def _choices(self, request: Request, session: Session, effect: Effect, groups: Sequence[_Group]) -> list[Choice]:
        made: dict[tuple[str, str], tuple[Rule, Delivery]] = {}
        errors: dict[tuple[str, str], str] = {}
        for owner, senders, found in groups:
            for sender in senders:
                try:
                    made[owner, sender] = (self._rule(request, session, effect, found[0], sender), found[0])
                except BadRule as error:
                    errors[owner, sender] = str(error)
        hints = self._rulebook.hints_of([(rule, delivery.message) for rule, delivery in made.values()]) if made else []
        hints_of = dict(zip(made, hints, strict=True))
        return [
            Choice(
                field=f"{_FIELD}{name_of(found[0].key)}",
                mailbox="" if owner == session.recipient else shown_address(owner),
                count=len(found),
                options=[
                    Option(
                        sender,
                        shown_address(sender),
                        [HINTS[hint] for hint in hints_of.get((owner, sender), ()) if hint in HINTS],
                        errors.get((owner, sender), ""),
                    )
                    for sender in senders
                ],
            )
            for owner, senders, found in groups
        ]

    def _rule(self, request: Request, session: Session, effect: Effect, delivery: Delivery, sender: str) -> Rule:
        """Return a rule from a message. Raises BadRule, also where the domain's recipients make no rules."""
        people, recipient = self._pages.parts.people, delivery.recipient
        if not self._pages.may_rule(recipient) or sender not in senders_of(delivery.message):
            raise BadRule(N_("Your administrator allows and blocks senders for your organization."))
        own = recipient == session.recipient and not people.is_role(recipient)
        actor = Actor(ActorKind.RECIPIENT, "" if own else session.recipient, "portal", request.peer)
        return self._rulebook.own_rule(
            people.reader(session.recipient), recipient, sender, effect, actor, delivery.message
        )
