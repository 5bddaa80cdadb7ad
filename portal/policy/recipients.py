"""Recipients as staff see them: who an address stands for, their messages, digests, sign-ins and rules; and what staff
change for them.

Each act is recorded in the audit with its actor and, if one was given, a reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from enum import StrEnum

from portal.model.audit import Act, AuditEntry
from portal.model.errors import UnknownRecipient
from portal.model.message import (
    Actor,
    Delivery,
    DeliveryId,
    EventKind,
    Filter,
    Reader,
    State,
    domain,
    is_address,
)
from portal.model.record import record
from portal.model.rule import Rule
from portal.model.schedule import Plan, typed_preferences
from portal.model.text import N_, shown
from portal.people import Directory
from portal.policy.domains import Domains
from portal.stores import Store
from portal.stores.records import Contacts, Counts, DigestRequest, Person

log = logging.getLogger("quarantine.recipients")

REASON_CHARACTERS = 300
COUNTED = 1_000  # deliveries of each address
_NEWEST = 8  # deliveries
RULES_SHOWN = 50

NO_CONTACTS = Contacts(None, (), (), None)

NOT_AN_ADDRESS = N_("This is not an email address. Enter one like name@example.org.")
NOT_IN_DOMAINS = N_("This address is not in your domains.")
NOT_LOCAL = N_(
    "This address is not a recipient here: neither it nor its domain is one of local_domains. Check the spelling."
)


class DigestAct(StrEnum):
    """A change of the digests of people, alone or many at once."""

    STOP = "stop"
    RESUME = "resume"
    SET = "set"  # days, times, zone and language


_AUDITED = {
    DigestAct.STOP: Act.DIGESTS_STOPPED,
    DigestAct.RESUME: Act.DIGESTS_RESUMED,
    DigestAct.SET: Act.PREFERENCES_SET,
}


@record(frozen=True, slots=True)
class Mailbox:
    """The recipient that an address stands for."""

    recipient: str  # identity of a person or a shared mailbox
    readers: tuple[str, ...] = ()  # the people who read a shared mailbox; empty for a person

    @property
    def is_person(self) -> bool:
        """True if it gets digests and can sign in."""
        return not self.readers


@record(frozen=True, slots=True)
class Profile:
    """Everything that is known about a recipient. For a shared mailbox without what only people have."""

    mailbox: Mailbox
    reader: Reader  # with those of their addresses that the viewer may see
    person: Person
    plan: Plan
    counts: Counts
    newest: Sequence[Delivery]
    answers: Mapping[DeliveryId, str]  # of the mail server, for those of `newest` that were released
    rules: Sequence[Rule]  # at most `RULES_SHOWN` + 1
    contacts: Contacts
    due_at: datetime | None  # of the next digest, if there is something for it

    @property
    def is_known(self) -> bool:
        """True if the store has anything about them."""
        person = self.person
        chosen = person.preferences.to_json() or person.stopped_at or person.links_valid_from or person.news_since
        return bool(self.counts.of or chosen or self.rules or self.contacts != NO_CONTACTS)


@record(frozen=True, slots=True)
class Recipients:
    """Looks recipients up for staff, and acts for them. Thread-safe; one for each process."""

    store: Store
    people: Directory
    domains: Domains

    def find(self, address: str, may_see: Callable[[str], bool] = lambda _: True) -> Mailbox:
        """Return the recipient that an address stands for: also that of an alias, an extension or a U-label.

        ``may_see``: whether the viewer may see the recipients of a domain. Raises UnknownRecipient.
        """
        if not is_address(address):
            raise UnknownRecipient(NOT_AN_ADDRESS)
        person = self.people.person(address)
        recipient = person or self.people.held_as(address)
        if not may_see(domain(recipient)):
            raise UnknownRecipient(NOT_IN_DOMAINS)
        if not self.people.is_notified(address):
            raise UnknownRecipient(NOT_LOCAL)
        return Mailbox(recipient, () if person else self.people.readers(recipient))

    def matching(self, part: str, domains: Collection[str] | None, limit: int) -> Sequence[str]:
        """Return addresses that contain a text, in order: recipients for whom something is stored, and those of the
        alias file. ``domains``: of the addresses, None for all. Raises StoreUnavailable."""
        part = part.lower()
        in_file = [
            each
            for each in self.people.names().readers
            if part in each and (domains is None or domain(each) in domains) and self.people.is_notified(each)
        ]
        return sorted({*self.store.recipients.names(part, domains, limit), *in_file})[:limit]

    def profile(self, mailbox: Mailbox, now: datetime, may_see: Callable[[str], bool] = lambda _: True) -> Profile:
        """Return what is known about a recipient. Raises StoreUnavailable.

        ``may_see`` as in `find`: messages and rules of addresses in other domains are left out.
        """
        store, recipient = self.store, mailbox.recipient
        reader = self.people.reader(recipient) if mailbox.is_person else Reader(recipient)
        reader = reader.limited_to([each for each in reader.identities if may_see(domain(each))])
        person, contacts = store.recipients.contacts(recipient, now)
        plan = self.domains.plan(recipient, person.preferences)
        counts = store.deliveries.counts(reader, COUNTED) if reader.identities else Counts({}, complete=True)
        newest = store.deliveries.matching(reader, Filter(), _NEWEST).deliveries if counts.of else ()
        answers = self._answers(newest)
        rules = store.rules.list(reader.identities, RULES_SHOWN + 1, now)
        contacts = contacts if mailbox.is_person else NO_CONTACTS
        due_at = None if person.stopped_at else person.next_digest_at or plan.next_time(now)
        return Profile(mailbox, reader, person, plan, counts, newest, answers, rules, contacts, due_at)

    def _answers(self, deliveries: Sequence[Delivery]) -> dict[DeliveryId, str]:
        """Return what the mail server answered when it accepted these deliveries. Raises StoreUnavailable."""
        keys = [each.key for each in deliveries if each.state is State.RELEASED]
        events = self.store.deliveries.last_events(keys) if keys else {}
        return {
            key: event.detail for key, found in events.items() for event in found if event.kind is EventKind.RELEASED
        }

    # ---- acts

    def send_digest(self, recipient: str, actor: Actor, now: datetime, reason: str = "") -> bool:
        """Make a digest of a person due now. Return False if there is nothing for it, or they stopped digests.

        It lists what is new; if nothing is, what their last digest listed and is still held. Raises StoreUnavailable.
        """
        # Not limited to one in an hour as for recipients: staff may repeat one that was lost.
        result = self.store.digests.request(self.people.reader(recipient), now, now)
        if result is DigestRequest.DUE:
            self._record(Act.DIGEST_REQUESTED, recipient, actor, now, reason)
        return result is not DigestRequest.NOTHING

    def change(
        self,
        act: DigestAct,
        typed: Mapping[str, Mapping[str, str]],
        actor: Actor,
        now: datetime,
        reason: str = "",
    ) -> Sequence[str]:
        """Stop, resume or set the digests of people, and return those that were changed: others were so already.

        ``typed``: for each of them, the preferences as `typed_preferences` takes them, which only `set` uses. Raises
        BadPreference, StoreUnavailable.
        """
        changed = self.store.recipients.change(
            [*typed],
            lambda person: after(act, person, typed[person.recipient], now),
            lambda person: self._entry(_AUDITED[act], person.recipient, actor, now, reason, _detail(act, person)),
        )
        if len(typed) > 1:
            log.info("staff act=%s recipients=%d by=%s", _AUDITED[act], len(changed), actor.who)
        elif changed:
            log.info("staff act=%s recipient=%s by=%s", _AUDITED[act], changed[0], actor.who)
        return changed

    def choose_report(self, person: str, actor: Actor, now: datetime, *, wanted: bool) -> None:
        """Send a member of staff the monthly report from now on, or do not. Raises StoreUnavailable."""
        self.store.recipients.change(
            [person],
            lambda each: replace(each, preferences=replace(each.preferences, monthly_report=wanted)),
            lambda each: self._entry(Act.PREFERENCES_SET, person, actor, now, "", _detail(DigestAct.SET, each)),
        )
        log.info("staff act=%s recipient=%s by=%s", Act.PREFERENCES_SET, person, actor.who)

    def end_sessions(self, recipient: str, actor: Actor, now: datetime, reason: str = "") -> int:
        """Sign a person out everywhere, and return from how many browsers. Raises StoreUnavailable.

        Release links no longer submit themselves in browsers known until now.
        """
        self.store.recipients.forget_devices(recipient, now)
        count = self.store.sign_ins.end_sessions(recipient)
        self._record(Act.SIGNED_OUT, recipient, actor, now, reason, f"{count} sessions")
        return count

    def record_link(self, recipient: str, actor: Actor, now: datetime, reason: str = "") -> None:
        """Record that a sign-in link was sent to a person. Raises StoreUnavailable."""
        self._record(Act.LINK_SENT, recipient, actor, now, reason)

    def _record(self, act: Act, recipient: str, actor: Actor, now: datetime, reason: str, detail: str = "") -> None:
        self.store.audit.record(self._entry(act, recipient, actor, now, reason, detail))
        log.info("staff act=%s recipient=%s by=%s", act, recipient, actor.who)

    @staticmethod
    def _entry(act: Act, recipient: str, actor: Actor, now: datetime, reason: str, detail: str) -> AuditEntry:
        text = ": ".join(filter(None, (detail, shown(reason, REASON_CHARACTERS) if reason else "")))
        return AuditEntry.new(now, act, actor, recipient, text)


def after(act: DigestAct, person: Person, typed: Mapping[str, str], now: datetime) -> Person:
    """Return a person as an act leaves them, equal to ``person`` if it changes nothing. Raises BadPreference."""
    if act is DigestAct.STOP:
        return replace(person, stopped_at=person.stopped_at or now)
    if act is DigestAct.RESUME:
        return replace(person, stopped_at=None)
    return replace(person, preferences=typed_preferences(person.preferences, typed))


def _detail(act: DigestAct, person: Person) -> str:
    """Return the detail of the audit entry about a person who was changed."""
    return (person.preferences.to_json() or "defaults") if act is DigestAct.SET else ""
