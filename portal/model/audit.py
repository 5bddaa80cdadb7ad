"""The audit: what people did, with their names. It is kept longer than the messages."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from portal.model.message import Actor, ActorKind, DeliveryId, Event, EventKind, domain, identity, new_id
from portal.model.record import record
from portal.model.rule import SITE

_PEOPLE = frozenset({ActorKind.RECIPIENT, ActorKind.OPERATOR})


class Act(StrEnum):
    """An act that is not an event of a delivery. The values are kept in stores and journals."""

    SIGNED_IN = "signed-in"
    SIGNED_OUT = "signed-out"  # one session or several were ended
    RULE_ADDED = "rule-added"
    RULE_REMOVED = "rule-removed"
    DOMAIN_SET = "domain-set"  # a setting of a domain
    ROLE_GIVEN = "role-given"  # to a member of staff
    ROLE_REMOVED = "role-removed"
    TOKEN_CREATED = "token-created"  # noqa: S105 - an API token, no password
    TOKEN_REVOKED = "token-revoked"  # noqa: S105
    SECOND_FACTOR_SET = "second-factor-set"  # a new one, or new recovery codes
    SECOND_FACTOR_RESET = "second-factor-reset"  # it was removed
    SECOND_FACTOR_REFUSED = "second-factor-refused"  # so many wrong codes that no more are compared for a while
    RECOVERY_CODE_USED = "recovery-code-used"
    PREFERENCES_SET = "preferences-set"
    DIGESTS_STOPPED = "digests-stopped"
    DIGESTS_RESUMED = "digests-resumed"
    DIGEST_REQUESTED = "digest-requested"  # a digest outside the schedule
    LINK_SENT = "link-sent"  # by staff: a sign-in link to a recipient
    LINKS_REVOKED = "links-revoked"
    RECIPIENT_FORGOTTEN = "recipient-forgotten"  # all that the store had for a recipient was removed
    BODY_READ = "body-read"  # somebody who is not the recipient read a message
    JOB_STARTED = "job-started"  # a mass act; what it did to each delivery is in entries of its own
    JOB_CHANGED = "job-changed"  # somebody paused, resumed or cancelled a mass act
    UNLEARNED = "unlearned"  # Rspamd is to learn a message as the opposite
    EXPORTED = "exported"  # somebody exported the audit, the rules or preferences, or copied the store
    # By commands only:
    SCANNED = "scanned"  # Rspamd judged a message again
    PURGED = "purged"  # old messages were removed before the daily purge
    IMPORTED = "imported"  # messages of the original quarantine.py were added
    REINDEXED = "reindexed"  # the database of the file store was rebuilt
    LINK_KEYS_ACCEPTED = "link-keys-accepted"  # the store is used with other keys than before


ACTS = tuple(sorted({*map(str, Act), *map(str, EventKind)}))
COLUMNS = ("at", "act", "who", "via", "address", "subject", "id", "number", "detail")  # of exports


@record(frozen=True, slots=True)
class AuditEntry:
    """One act of one person."""

    id: UUID  # sorts by time
    at: datetime
    act: str  # an `Act`, or the `EventKind` of an event of a delivery
    actor: Actor
    subject: str = ""  # the recipient or domain that the act concerns, in the spelling of `identity`
    delivery: DeliveryId | None = None
    detail: str = ""
    domain: str = ""  # whose staff see the entry: that of the subject, for a role its own; "": all domains

    @classmethod
    def new(
        cls,
        at: datetime,
        act: Act,
        actor: Actor,
        subject: str = "",
        detail: str = "",
        *,
        delivery: DeliveryId | None = None,
        domain: str | None = None,
    ) -> AuditEntry:
        """Return a new entry. ``domain``: None for that of the subject."""
        host = domain_of(subject) if domain is None else domain
        return cls(new_id(at), at, act, _named(actor, subject), subject, delivery, detail, host)

    @classmethod
    def of_export(cls, at: datetime, actor: Actor, hosts: Collection[str], detail: str) -> list[AuditEntry]:
        """Return entries about data that leaves the portal, one for each of these domains, so that their staff see it.

        If "", which stands for all domains, is among them, there is only one entry.
        """
        return [cls.new(at, Act.EXPORTED, actor, host, detail) for host in ([""] if "" in hosts else sorted(hosts))]

    @classmethod
    def of_event(cls, event: Event, delivery: DeliveryId, recipient: str) -> AuditEntry | None:
        """Return the entry of an event of a delivery, None if no person caused it.

        Equal events have equal ids, so that recording them again changes nothing.
        """
        if event.actor.kind not in _PEOPLE:
            return None
        actor = _named(event.actor, recipient)
        key = f"{delivery.message_id} {delivery.number} {event.at.isoformat()} {event.kind} {actor.who} {actor.via}"
        digest = int.from_bytes(hashlib.sha256(key.encode(errors="replace")).digest()[:8])
        # The time of `new_id`, then whether it is the outcome of an act that began at the same time, then the digest.
        time, is_outcome = new_id(event.at).int >> 62, event.kind is not EventKind.RELEASING
        id = UUID(int=time << 62 | is_outcome << 61 | digest & (1 << 61) - 1)
        return cls(id, event.at, event.kind, actor, recipient, delivery, event.detail, domain_of(recipient))

    def values(self) -> tuple[str | int | None, ...]:
        """Return the values of `COLUMNS`."""
        message_id, number = self.delivery or (None, None)
        return (
            self.at.isoformat(),
            str(self.act),
            self.actor.who,
            self.actor.via,
            self.actor.address,
            self.subject,
            None if message_id is None else str(message_id),
            number,
            self.detail,
        )


@record(frozen=True, slots=True)
class AuditFilter:
    """Selects entries of the audit. Empty values select all."""

    person: str = ""  # an operator's name or a recipient's identity
    act: str = ""
    subject: str = ""
    domains: frozenset[str] | None = None  # of the subjects
    message_id: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def subjects(self) -> tuple[str, ...]:
        """The subject in all its spellings: that of a rule for a domain begins with @. Empty: all."""
        if not self.subject:
            return ()
        return (self.subject,) if "@" in self.subject else (self.subject, f"@{self.subject}")


def domain_of(subject: str) -> str:
    """Return the domain of the subject of an entry, "" for what concerns all domains."""
    return "" if subject == SITE else domain(subject)


def person_typed(text: str) -> str:
    """Return the name of an operator, or the identity of an address, for `AuditFilter.person`."""
    return identity(text) if "@" in text else text


def subject_typed(text: str) -> str:
    """Return the identity of an address, or a domain, for `AuditFilter.subject`."""
    return identity(text) if "@" in text[1:] else domain(text)


def _named(actor: Actor, subject: str) -> Actor:
    """Return the actor with a name: that of a recipient who acts on their own messages is left out elsewhere."""
    if actor.kind is ActorKind.RECIPIENT and not actor.name:
        return Actor(actor.kind, subject, actor.via, actor.address)
    return actor
