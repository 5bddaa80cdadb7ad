"""Recipients as staff see them: who an address stands for, their messages, digests, sign-ins and rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from portal.model.errors import UnknownRecipient
from portal.model.message import Delivery, Filter, Reader, domain, is_address
from portal.model.rule import Rule
from portal.model.schedule import Plan
from portal.model.text import N_
from portal.people import Directory
from portal.policy.domains import Domains
from portal.stores import Store
from portal.stores.records import Contacts, Counts, Person

COUNTED = 1_000  # deliveries of each address
_NEWEST = 8  # deliveries
RULES_SHOWN = 50

NO_CONTACTS = Contacts(None, (), (), None)

NOT_AN_ADDRESS = N_("This is not an email address. Enter one like name@example.org.")
NOT_IN_DOMAINS = N_("This address is not in your domains.")
NOT_LOCAL = N_("This address is not a recipient here: neither it nor its domain is one of local_domains.")


@dataclass(frozen=True, slots=True)
class Mailbox:
    """The recipient that an address stands for."""

    recipient: str  # identity of a person or a shared mailbox
    readers: tuple[str, ...] = ()  # the people who read a shared mailbox; empty for a person

    @property
    def is_person(self) -> bool:
        """True if it gets digests and can sign in."""
        return not self.readers


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything that is known about a recipient. For a shared mailbox without what only people have."""

    mailbox: Mailbox
    reader: Reader  # with those of their addresses that the viewer may see
    person: Person
    plan: Plan
    counts: Counts
    newest: Sequence[Delivery]
    rules: Sequence[Rule]  # at most `RULES_SHOWN` + 1
    contacts: Contacts
    due_at: datetime | None  # of the next digest, if there is something for it

    @property
    def is_known(self) -> bool:
        """True if the store has anything about them."""
        person = self.person
        chosen = person.preferences.to_json() or person.stopped_at or person.links_valid_from or person.news_since
        return bool(self.counts.of or chosen or self.rules or self.contacts != NO_CONTACTS)


@dataclass(frozen=True, slots=True)
class Recipients:
    """Looks recipients up for staff. Thread-safe; one for each process."""

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

    def profile(self, mailbox: Mailbox, now: datetime, may_see: Callable[[str], bool] = lambda _: True) -> Profile:
        """Return what is known about a recipient. Raises StoreUnavailable.

        ``may_see`` as in `find`: messages and rules of addresses in other domains are left out.
        """
        store, recipient = self.store, mailbox.recipient
        reader = self.people.reader(recipient) if mailbox.is_person else Reader(recipient)
        reader = reader.limited_to([each for each in reader.identities if may_see(domain(each))])
        person = store.recipients.get(recipient)
        plan = self.domains.plan(recipient, person.preferences)
        counts = store.deliveries.counts(reader, COUNTED) if reader.identities else Counts({}, complete=True)
        newest = store.deliveries.matching(reader, Filter(), _NEWEST).deliveries if counts.of else ()
        rules = store.rules.list(reader.identities, RULES_SHOWN + 1, now)
        contacts = store.recipients.contacts(recipient, now) if mailbox.is_person else NO_CONTACTS
        due_at = None if person.stopped_at else person.next_digest_at or plan.next_time(now)
        return Profile(mailbox, reader, person, plan, counts, newest, rules, contacts, due_at)
