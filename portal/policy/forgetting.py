"""Forget a person who left: no digests and sessions, no preferences and rules, and none of their messages.

`Forgetting.begin` does what takes effect at once, `Forgetting.remove` removes the deliveries in small transactions.
Both may be repeated: after a crash, the same call goes on. See docs/decisions/forgetting.md.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from uuid import UUID

from portal.model.audit import Act, AuditEntry
from portal.model.errors import AlreadyDone, BadGrant, NotAllowed
from portal.model.message import Actor, DeliveryId, Filter, Reader, State, domain
from portal.model.record import record
from portal.model.rule import RULES_PER_RECIPIENT
from portal.model.staff import Grant
from portal.model.text import N_, shown
from portal.people import Directory
from portal.policy.rulebook import Rulebook
from portal.policy.staff import Member, Staff
from portal.stores import Store
from portal.stores.records import Counts, Ending, Person

log = logging.getLogger("quarantine.recipients")

FORGET = "forget"  # the kind of background jobs that remove deliveries
COUNTED = 100_000  # deliveries of each address, before a person is forgotten
_AT_ONCE = 200  # deliveries in one transaction, so that ingest never waits for long
_OF_SETTINGS = N_("The settings file gives this person a role. Remove it there first.")
_ROLES = N_("This person has roles that you may not remove. An administrator can forget them.")
_OWN = N_("You cannot forget yourself.")


@record(frozen=True, slots=True)
class Leaver:
    """A person to be forgotten, and how much there is of them."""

    recipient: str
    identities: tuple[str, ...]  # whose deliveries are removed: nobody else reads them
    counts: Counts
    sessions: int
    rules: int
    grants: tuple[Grant, ...]
    tokens: int  # of the API, that were not revoked
    has_factor: bool
    person: Person

    @property
    def is_known(self) -> bool:
        """True if the store has anything about them."""
        is_stored = self.person != Person(self.recipient, self.recipient, None, None, None, None)
        of_staff = self.grants or self.tokens or self.has_factor
        return bool(is_stored or self.counts.of or self.sessions or self.rules or of_staff)


@record(frozen=True, slots=True)
class Forgetting:
    """Forgets people. Thread-safe; one for each process."""

    store: Store
    people: Directory
    rulebook: Rulebook
    staff: Staff

    def leaver(self, recipient: str, now: datetime, may_manage: Callable[[str], bool] = lambda _: True) -> Leaver:
        """Return what forgetting a person removes. Raises StoreUnavailable.

        ``may_manage``: whether the actor may do so in a domain. Their aliases in other domains are left out.
        """
        reader = self.people.reader(recipient)
        alone = (recipient,) if reader.alone is None else reader.alone
        identities = tuple(each for each in alone if may_manage(domain(each)))
        person, contacts = self.store.recipients.contacts(recipient, now)
        return Leaver(
            recipient,
            identities,
            self.store.deliveries.counts(Reader(recipient, identities), COUNTED)
            if identities
            else Counts({}, complete=True),
            len(contacts.sessions),
            len(self._rules(identities, now)),
            tuple(self.store.staff.of(recipient)),
            sum(token.owner == recipient and token.revoked_at is None for token in self.store.tokens.all()),
            self.store.second_factors.get(recipient) is not None,
            person,
        )

    def check(self, leaver: Leaver, by: Member | None = None) -> None:
        """Raise NotAllowed if a person may not be forgotten, with a text to be translated.

        ``by``: the member of staff who does it; None: the command line.
        """
        if any(map(self.staff.is_of_settings, self.staff.member(leaver.recipient, stored=leaver.grants).grants)):
            raise NotAllowed(_OF_SETTINGS)
        if by is None:
            return
        if by.person == leaver.recipient:
            raise NotAllowed(_OWN)
        if not all(self.staff.may_give(by, each.role, each.domain, leaver.recipient) for each in leaver.grants):
            raise NotAllowed(_ROLES)
        if leaver.has_factor:
            try:
                self.staff.check_reset(leaver.recipient, by)
            except NotAllowed as error:
                raise NotAllowed(_ROLES) from error

    def begin(
        self,
        leaver: Leaver,
        actor: Actor,
        now: datetime,
        reason: str = "",
        by: Member | None = None,
        *,
        in_background: bool = False,
    ) -> None:
        """Remove everything but the deliveries. ``by`` as in `check`. Raises NotAllowed, StoreUnavailable.

        Digests are stopped, so nothing of what is left or held later is sent until somebody resumes them.
        ``in_background``: queue a job that removes the deliveries, in the transaction of the audit's entry: after a
        crash neither is without the other.
        """
        self.check(leaver, by)
        recipient = leaver.recipient
        entry = AuditEntry.new(now, Act.RECIPIENT_FORGOTTEN, actor, recipient, shown(reason, 300) if reason else "")
        if in_background and leaver.identities:
            arguments = {"identities": leaver.identities, "until": now.isoformat()}
            self.store.jobs.add(FORGET, arguments, actor, now, entries=[entry])
        else:
            self.store.audit.record(entry)
        self.staff.end_groups(recipient)
        for grant in leaver.grants:
            with suppress(BadGrant):  # by a group, or somebody else removed it
                self.staff.remove(recipient, grant.role, grant.domain, actor, by)
        for token in self.store.tokens.all():
            if token.owner == recipient:
                self.store.tokens.revoke(token.id, actor, now)
        self.staff.reset_factor(recipient, actor)
        self.store.recipients.forget(recipient, now)
        for rule in self._rules(leaver.identities, now):
            with suppress(AlreadyDone):
                self.rulebook.remove(rule, actor)
        log.info("recipient forgotten recipient=%s by=%s", recipient, actor.who)

    def remove(
        self,
        identities: Sequence[str],
        until: datetime,
        stopped: Callable[[], bool] = lambda: False,
        report: Callable[[int], object] = lambda _: None,
    ) -> int:
        """Remove the deliveries of these identities that were held before ``until``. Return how many are left, since
        they are being released.

        ``stopped``: whether to return early; then more may be left. ``report`` is called with how many were removed in
        a transaction. Raises StoreUnavailable.
        """
        reader, left = Reader(identities[0], tuple(identities)), 0
        before: DeliveryId | None = None
        while not stopped():
            page = self.store.deliveries.matching(reader, Filter(until=until), _AT_ONCE, before)
            # A release must end first: it would record its outcome in a row without a recipient.
            ended = [each for each in page.deliveries if each.state is not State.RELEASING]
            left += len(page.deliveries) - len(ended)
            report(self.store.expire([Ending(each.key, each.state, each.recipient) for each in ended]))
            if page.next is None:
                return left
            before = page.next
        return left

    def _rules(self, identities: Sequence[str], now: datetime) -> list[UUID]:
        limit = RULES_PER_RECIPIENT * len(identities)
        return [rule.id for rule in self.store.rules.list(identities, limit, now)] if identities else []
