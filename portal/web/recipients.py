"""The page of one recipient in the console: what staff need to know while the recipient is on the phone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from bottle import HTTPResponse

from portal.mail.languages import own_name
from portal.model.domains import shown_address
from portal.model.errors import UnknownRecipient
from portal.model.message import Actor, ActorKind, Delivery, domain
from portal.model.reasons import why
from portal.model.rule import Effect, Rule
from portal.model.schedule import Schedule
from portal.model.sender import sender_shown
from portal.model.text import N_, shown
from portal.policy.recipients import RULES_SHOWN, Profile
from portal.policy.staff import Permission
from portal.stores.records import StartedSession
from portal.web.console import HOME, Console, StaffSession
from portal.web.console_search import STATE_NAMES
from portal.web.pages import Pages
from portal.web.preferences import SCHEDULES
from portal.web.request import Request
from portal.web.rows import TIER_NAMES, Viewer

PATH = "/admin/recipients/"
_TYPED_CHARS = 320
_SYMBOLS = 3
_EFFECTS = {Effect.ALLOW: N_("Allow"), Effect.BLOCK: N_("Block")}
# Ways to sign in, by `Actor.via` of the audit.
_METHODS = {"mailed-link": N_("Mailed link")}


@dataclass(frozen=True, slots=True)
class MessageRow:
    """A delivery as the page lists it."""

    query: str  # that finds it
    held: str
    address: str  # "" if it is the recipient's own one
    sender: str
    subject: str
    reasons: list[str]  # to be translated; the ones that the recipient sees
    symbols: list[str]  # the ones with the highest scores
    score: str
    threshold: str
    tier: str  # to be translated
    state: str  # to be translated
    answer: str  # of the mail server or an administrator


@dataclass(frozen=True, slots=True)
class DigestFacts:
    """A recipient's digests."""

    schedule: str  # to be translated
    at: str
    zone: str
    language: str
    notices: bool
    last: str  # "" if none was sent
    next: str
    failed: str  # when the mail server last refused or deferred one, "" if the last one was sent
    failure: str
    stopped: str
    stopped_by: str  # "" if it is not known


@dataclass(frozen=True, slots=True)
class RuleRow:
    """A rule of a recipient."""

    name: str
    effect: str  # to be translated
    sender: str
    mailbox: str  # "" if it is for the recipient's own address
    added: str
    by: str
    hits: str
    note: str


class RecipientPages:
    """`/admin/recipients/`."""

    def __init__(self, pages: Pages, console: Console) -> None:
        self._pages = pages
        self._console = console
        self._parts = pages.parts

    def with_slash(self, _: Request, __: StaffSession) -> HTTPResponse:
        """GET /admin/recipients: redirect to the page, for people who type the address."""
        return self._pages.see_other(PATH)

    def show(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """GET /admin/recipients/: the form for an address, and what is known about its recipient."""
        typed = request.query("address").strip()[:_TYPED_CHARS]
        return self._page(request, staff, typed)

    def _page(self, request: Request, staff: StaffSession, typed: str) -> HTTPResponse:
        viewer = self._pages.viewer(request, staff.member.person)
        error, found = "", {}
        if typed:
            try:
                found = self._found(staff, typed, viewer)
            except UnknownRecipient as unknown:
                error = str(unknown)
        values: dict[str, Any] = {"typed": shown(typed, _TYPED_CHARS), "error": error, "recipient": None, **found}
        return self._console.page(request, staff, "recipient", **values)

    def _found(self, staff: StaffSession, typed: str, viewer: Viewer) -> dict[str, object]:
        may_see = self._may_see(staff)
        mailbox = self._parts.recipients.find(typed, may_see)
        profile = self._parts.recipients.profile(mailbox, self._pages.now(), may_see)
        recipient, reader = mailbox.recipient, profile.reader
        others = [each for each in reader.identities if each != recipient]
        return {
            "recipient": shown_address(recipient),
            "is_person": mailbox.is_person,
            "is_known": profile.is_known,
            "retention_days": self._parts.domains.longest_retention_days,
            "typed_for": shown_address(typed) if self._parts.people.held_as(typed) != recipient else "",
            "readers": [(shown_address(each), query_of(each)) for each in mailbox.readers if may_see(domain(each))],
            "aliases": [(shown_address(each), _search(each)) for each in others if each not in reader.shared],
            "shared": [(shown_address(each), query_of(each)) for each in reader.shared if each != recipient],
            "counts": _counts(profile, viewer, is_alone=not others),
            "is_counted": profile.counts.complete,
            "all_query": _search(recipient),
            "rows": [_message_row(each, recipient, viewer) for each in profile.newest],
            "digests": _digest_facts(profile, viewer) if mailbox.is_person else None,
            "sign_ins": [_sign_in(*each, viewer) for each in profile.contacts.sign_ins],
            "sessions": [_session(each, viewer) for each in profile.contacts.sessions],
            "rules": [_rule_row(each, recipient, viewer) for each in profile.rules[:RULES_SHOWN]],
            "has_more_rules": len(profile.rules) > RULES_SHOWN,
        }

    def _may_see(self, staff: StaffSession) -> Callable[[str], bool]:
        return lambda host: self._parts.staff.may(staff.member, Permission.SEE_ENVELOPE, host)


def query_of(address: str) -> str:
    """Return the address of the page of a recipient. It is a query, since local parts may have a slash."""
    return f"{PATH}?{urlencode({'address': address})}"


def _search(recipient: str, state: str = "") -> str:
    """Return the address of a search for the deliveries of an identity."""
    return f"{HOME}?{urlencode({'recipient': recipient} | ({'state': state} if state else {}))}"


def _counts(profile: Profile, viewer: Viewer, *, is_alone: bool) -> list[tuple[str, str, str]]:
    """Return the states that deliveries have: name, to be translated, their number and the search that finds them.

    A search finds the deliveries of one address. If the numbers are of several, there is none.
    """
    recipient, of = profile.mailbox.recipient, profile.counts.of
    return [
        (text, viewer.language.number(of[state]), _search(recipient, state.value) if is_alone else "")
        for state, text in STATE_NAMES.items()
        if of.get(state)
    ]


def _message_row(delivery: Delivery, recipient: str, viewer: Viewer) -> MessageRow:
    message, language = delivery.message, viewer.language
    highest = sorted((s for s in message.symbols if s.score > 0), key=lambda s: -s.score)[:_SYMBOLS]
    return MessageRow(
        query=_search(delivery.recipient, delivery.state.value),
        held=language.short_moment(message.held_at, viewer.zone),
        address="" if delivery.recipient == recipient else shown_address(delivery.address),
        sender=str(sender_shown(message)),
        subject=shown(message.subject, 120),
        reasons=why(message),
        symbols=[f"{shown(s.name, 60)} {language.score(s.score)}" for s in highest],
        score="" if message.score is None else language.score(message.score),
        threshold="" if message.threshold is None else language.threshold(message.threshold),
        tier=TIER_NAMES[message.tier],
        state=STATE_NAMES.get(delivery.state, ""),
        answer=shown(delivery.reason, 300),
    )


def _digest_facts(profile: Profile, viewer: Viewer) -> DigestFacts:
    person, plan, language = profile.person, profile.plan, viewer.language

    def moment(at: datetime | None) -> str:
        return language.moment(at, viewer.zone) if at else ""

    return DigestFacts(
        schedule=SCHEDULES[plan.schedule],
        at=language.times_of_day(plan.at) if plan.schedule is not Schedule.NEVER else "",
        zone=plan.zone.key.replace("_", " "),
        language=own_name(plan.language),
        notices=plan.notices,
        last=moment(profile.contacts.digest_at),
        next=moment(profile.due_at),
        failed=moment(person.failed_at),
        failure=shown(person.failure, 500),
        stopped=moment(person.stopped_at),
        stopped_by=_who(profile.contacts.stopped_by) if profile.contacts.stopped_by else "",
    )


def _who(actor: Actor) -> str:
    """Return who did something, and how."""
    name = shown_address(actor.name) or actor.who
    return f"{name} ({actor.via})" if actor.via else name


def _sign_in(at: datetime, via: str, client: str, viewer: Viewer) -> tuple[str, str, str]:
    """Return when somebody signed in, the way, to be translated, and the browser."""
    return viewer.language.moment(at, viewer.zone), _METHODS.get(via, shown(via, 40)), shown(client, 80)


def _session(session: StartedSession, viewer: Viewer) -> tuple[str, str, str]:
    """Return the browser of a session, and when it began and was last used."""
    moment, zone = viewer.language.short_moment, viewer.zone
    return session.client, moment(session.started_at, zone), moment(session.used_at, zone)


def _rule_row(rule: Rule, recipient: str, viewer: Viewer) -> RuleRow:
    by = rule.actor.name if rule.actor.kind is not ActorKind.RECIPIENT or rule.actor.name != recipient else ""
    return RuleRow(
        name=str(rule.id),
        effect=_EFFECTS[rule.effect],
        sender=shown_address(rule.sender),
        mailbox="" if rule.scope == recipient else shown_address(rule.scope),
        added=viewer.language.date(rule.created_at, viewer.zone),
        by=shown_address(by),
        hits=viewer.language.number(rule.hits),
        note=rule.note,
    )
