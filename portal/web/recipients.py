"""The page of one recipient in the console: what staff need to know and do while the recipient is on the phone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from bottle import HTTPResponse

from portal.mail.languages import own_name
from portal.model.domains import shown_address
from portal.model.errors import AlreadyDone, BadPreference, LinkInvalid, NotFound, UnknownRecipient
from portal.model.message import Actor, ActorKind, Delivery, domain, is_address, parse_id
from portal.model.reasons import why
from portal.model.rule import Effect, Rule
from portal.model.schedule import TYPED, Schedule
from portal.model.sender import sender_shown
from portal.model.staff import EVERYWHERE
from portal.model.text import N_, TAGS, shown
from portal.model.tiers import TIER_NAMES
from portal.policy.recipients import NOT_IN_DOMAINS, REASON_CHARACTERS, RULES_SHOWN, DigestAct, Profile
from portal.policy.staff import Permission
from portal.stores.records import StartedSession
from portal.web.auth.mailed_link import MailedLinks
from portal.web.auth.session import method_name
from portal.web.console import HOME, Console, StaffSession
from portal.web.console_search import STATE_NAMES
from portal.web.listing import name_of
from portal.web.pages import Pages
from portal.web.preferences import SCHEDULES
from portal.web.request import Request
from portal.web.rows import Viewer

PATH = "/admin/recipients/"
_TYPED_CHARS = 320
_SYMBOLS = 3
_MATCHES = 20
_EFFECTS = {Effect.ALLOW: N_("Allow"), Effect.BLOCK: N_("Block")}
# The permission that each act needs in the domain of the recipient.
_ACTS = {
    "send-link": Permission.SEND_LINK,
    "send-digest": Permission.MANAGE_RECIPIENTS,
    "stop": Permission.MANAGE_RECIPIENTS,
    "resume": Permission.MANAGE_RECIPIENTS,
    "preferences": Permission.MANAGE_RECIPIENTS,
    "sign-out": Permission.MANAGE_RECIPIENTS,
    "remove-rule": Permission.MANAGE_RECIPIENTS,
}
# The text after an act, by the query parameter `done`: whether it was done, and the text.
_RESULTS = {
    "link": (True, N_("A sign-in link is on its way to the recipient. It is valid for 15 minutes.")),
    "link-limit": (False, N_("No link was sent: one was sent a moment ago. Try again in some minutes.")),
    "digest": (True, N_("A digest is on its way to the recipient.")),
    "no-digest": (False, N_("No digest was sent: nothing is held that it could list, or digests are stopped.")),
    "stopped": (True, N_("Digests stopped.")),
    "resumed": (True, N_("Digests resumed.")),
    "saved": (True, N_("Preferences saved.")),
    "signed-out": (True, N_("The recipient is signed out everywhere.")),
    "forgotten": (True, N_("The recipient is forgotten. Their messages are being removed.")),
    "rule": (True, N_("Sender removed from the list.")),
    "unchanged": (True, N_("Nothing was changed: it was so already.")),
}


@dataclass(frozen=True, slots=True)
class MessageRow:
    """A delivery as the page lists it."""

    path: str  # of its page
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
    only_wanted: bool
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

    def __init__(self, pages: Pages, console: Console, links: MailedLinks) -> None:
        self._pages = pages
        self._console = console
        self._links = links
        self._parts = pages.parts

    def with_slash(self, _: Request, __: StaffSession) -> HTTPResponse:
        """GET /admin/recipients: redirect to the page, for people who type the address."""
        return self._pages.see_other(PATH)

    def show(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """GET /admin/recipients/: the form for an address, and what is known about its recipient."""
        typed = request.query("address").strip()[:_TYPED_CHARS]
        if not typed or is_address(typed):
            return self._page(request, staff, typed)
        reach = self._parts.staff.reach(staff.member, Permission.SEE_ENVELOPE)
        with self._pages.searching():
            domains = None if EVERYWHERE in reach else reach
            found = self._parts.recipients.matching(typed, domains, _MATCHES + 1)
        if len(found) == 1 and is_address(found[0]):
            return self._pages.see_other(query_of(found[0]))
        return self._page(request, staff, typed, matches=found)

    def act(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """POST /admin/recipients/: act for a recipient, then redirect (303) to their page with the result."""
        typed, act = request.form("address").strip()[:_TYPED_CHARS], request.form("act")
        permission = _ACTS.get(act)
        try:
            mailbox = self._parts.recipients.find(typed, self._may(staff, permission or Permission.SEE_ENVELOPE))
        except UnknownRecipient as unknown:
            if str(unknown) == NOT_IN_DOMAINS:
                return self._console.forbidden(request)
            return self._page(request, staff, typed, 400)
        if permission is None or not mailbox.is_person:
            return self._pages.notice(
                request, N_("No action selected"), N_("Go back and press one of the buttons."), 400
            )
        try:
            done = self._act(request, staff, mailbox.recipient, act)
        except (BadPreference, LinkInvalid) as bad:
            text = str(bad) if isinstance(bad, BadPreference) else N_("This recipient cannot sign in.")
            return self._page(request, staff, mailbox.recipient, 400, wrong=text)
        return self._pages.see_other(f"{query_of(mailbox.recipient)}&done={done}")

    def _act(self, request: Request, staff: StaffSession, recipient: str, act: str) -> str:
        """Perform an act and return the name of its result."""
        desk, now, actor = self._parts.recipients, self._pages.now(), staff.actor
        reason = request.form("reason").strip()
        match act:
            case "send-link":
                if not self._links.send_link(recipient, request.peer):
                    return "link-limit"
                desk.record_link(recipient, actor, now, reason)
                return "link"
            case "send-digest":
                return "digest" if desk.send_digest(recipient, actor, now, reason) else "no-digest"
            case "stop":
                return "stopped" if desk.change(DigestAct.STOP, {recipient: {}}, actor, now, reason) else "unchanged"
            case "resume":
                return "resumed" if desk.change(DigestAct.RESUME, {recipient: {}}, actor, now, reason) else "unchanged"
            case "preferences":
                typed = {name: request.form(name).strip() for name in TYPED}
                return "saved" if desk.change(DigestAct.SET, {recipient: typed}, actor, now, reason) else "unchanged"
            case "sign-out":
                desk.end_sessions(recipient, actor, now, reason)
                return "signed-out"
        return self._remove_rule(request, staff, recipient)

    def _remove_rule(self, request: Request, staff: StaffSession, recipient: str) -> str:
        may_manage = self._may(staff, Permission.MANAGE_RECIPIENTS)
        reader, rule_id = self._parts.people.reader(recipient), parse_id(request.form("rule"))
        if rule_id is None:
            raise NotFound("there is no such rule")
        with suppress(AlreadyDone):  # the list shows it
            visible = reader.limited_to([each for each in reader.identities if may_manage(domain(each))])
            self._parts.rulebook.remove_own(visible, rule_id, staff.actor)
        return "rule"

    def _page(
        self,
        request: Request,
        staff: StaffSession,
        typed: str,
        status: int = 200,
        *,
        wrong: str = "",
        matches: Sequence[str] = (),
    ) -> HTTPResponse:
        """Return the page.

        ``wrong``: why a form was rejected, whose values are shown again; ``matches``: the addresses that contain what
        was typed, if it is only a part of one.
        """
        viewer = self._pages.viewer(request, staff.member.person)
        error, found = "", {}
        if typed and not matches:
            try:
                found = self._found(staff, typed, viewer)
            except UnknownRecipient as unknown:
                error = str(unknown)
        good, result = _RESULTS.get(request.query("done"), (True, ""))
        if wrong:
            found["fields"] = {name: shown(request.form(name), _TYPED_CHARS) for name in TYPED}
        values: dict[str, Any] = {
            "typed": shown(typed, _TYPED_CHARS),
            "error": error,
            "wrong": wrong,
            "good": good,
            "result": result,
            "recipient": None,
            "matches": [
                (shown_address(each), query_of(each) if is_address(each) else _search(each))
                for each in matches[:_MATCHES]
            ],
            "has_more_matches": len(matches) > _MATCHES,
            "may_change_many": bool(self._parts.staff.reach(staff.member, Permission.MANAGE_RECIPIENTS)),
            **found,
        }
        return self._console.page(request, staff, "recipient", status, **values)

    def _found(self, staff: StaffSession, typed: str, viewer: Viewer) -> dict[str, object]:
        may_see = self._may(staff, Permission.SEE_ENVELOPE)
        mailbox = self._parts.recipients.find(typed, may_see)
        profile = self._parts.recipients.profile(mailbox, self._pages.now(), may_see)
        recipient, reader, host = mailbox.recipient, profile.reader, domain(mailbox.recipient)
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
            "rows": [
                _message_row(each, recipient, profile.answers.get(each.key, ""), viewer) for each in profile.newest
            ],
            "digests": _digest_facts(profile, viewer) if mailbox.is_person else None,
            "sign_ins": [_sign_in(*each, viewer) for each in profile.contacts.sign_ins],
            "sessions": [_session(each, viewer) for each in profile.contacts.sessions],
            "rules": [_rule_row(each, recipient, viewer) for each in profile.rules[:RULES_SHOWN]],
            "has_more_rules": len(profile.rules) > RULES_SHOWN,
            "identity": recipient,
            "may_send_link": mailbox.is_person and self._may(staff, Permission.SEND_LINK)(host),
            "may_manage": mailbox.is_person and self._may(staff, Permission.MANAGE_RECIPIENTS)(host),
            "fields": _fields(profile),
            "forget_query": f"{PATH}forget?{urlencode({'address': recipient})}",
            "schedules": [(day.value, text) for day, text in SCHEDULES.items() if day is not Schedule.NEVER],
            "languages": [(tag, own_name(tag)) for tag in TAGS],
            "reason_characters": REASON_CHARACTERS,
        }

    def _may(self, staff: StaffSession, permission: Permission) -> Callable[[str], bool]:
        """Return the function that says in which domains somebody may do this."""
        return lambda host: self._parts.staff.may(staff.member, permission, host)


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


def _message_row(delivery: Delivery, recipient: str, answer: str, viewer: Viewer) -> MessageRow:
    """Return a row. ``answer``: that of the mail server to the release, "" if it was not released."""
    message, language = delivery.message, viewer.language
    highest = sorted((s for s in message.symbols if s.score > 0), key=lambda s: -s.score)[:_SYMBOLS]
    return MessageRow(
        path=f"{HOME}messages/{name_of(delivery.key)}/",
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
        answer=shown(answer or delivery.reason, 300),
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
        only_wanted=plan.only_wanted,
        last=moment(profile.contacts.digest_at),
        next=moment(profile.due_at),
        failed=moment(person.failed_at),
        failure=shown(person.failure, 500),
        stopped=moment(person.stopped_at),
        stopped_by=_who(profile.contacts.stopped_by) if profile.contacts.stopped_by else "",
    )


def _fields(profile: Profile) -> dict[str, str]:
    """Return the preferences that a recipient chose, as `typed_preferences` reads them."""
    chosen = profile.person.preferences
    return {
        "schedule": chosen.schedule or "",
        "at": ", ".join(f"{each:%H:%M}" for each in chosen.at or ()),
        "timezone": chosen.timezone or "",
        "language": chosen.language or "",
    }


def _who(actor: Actor) -> str:
    """Return who did something, and how."""
    name = shown_address(actor.name) or actor.who
    return f"{name} ({actor.via})" if actor.via else name


def _sign_in(at: datetime, via: str, client: str, viewer: Viewer) -> tuple[str, str, str]:
    """Return when somebody signed in, the way, to be translated, and the browser."""
    return viewer.language.moment(at, viewer.zone), method_name(via), shown(client, 80)


def _session(session: StartedSession, viewer: Viewer) -> tuple[str, str, str, str]:
    """Return the browser of a session, the way, to be translated, and when it began and was last used."""
    moment, zone = viewer.language.short_moment, viewer.zone
    return session.client, method_name(session.method), moment(session.started_at, zone), moment(session.used_at, zone)


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
