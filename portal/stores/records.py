"""Values that stores take and return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from datetime import date, datetime
from enum import Enum, StrEnum
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID

from portal.model.errors import AlreadyDone
from portal.model.message import (
    FACTS,
    Actor,
    Delivery,
    DeliveryId,
    Event,
    Export,
    Message,
    Reader,
    State,
    Tier,
    identity,
)
from portal.model.record import record
from portal.model.rule import Effect
from portal.model.schedule import NO_PREFERENCES, Preferences
from portal.model.staff import Grant


@record(frozen=True, slots=True)
class Held:
    """Result of `Messages.add`: the id of the message, and whether the same mail was held before."""

    id: UUID
    known: bool
    raised: tuple[UUID, ...] = ()  # messages held before whose tier is worse now


@record(frozen=True, slots=True)
class Page:
    """One page of a list, newest first. ``next`` is the cursor that the next call takes, as ``before`` or ``down_to``;
    None on the last page."""

    deliveries: tuple[Delivery, ...]
    next: DeliveryId | None
    is_cut: bool = False  # the search took too long, so there may be more, also without a ``next``
    indexed: bool = True  # False: there may be more among messages that are not indexed yet


class Order(StrEnum):
    """Order of a list for staff."""

    NEWEST = "newest"
    HIGHEST = "highest-score"
    LOWEST = "lowest-score"


class ScoreKey(NamedTuple):
    """The place of a delivery in a list by score, and the cursor of its pages."""

    score: float
    key: DeliveryId


@record(frozen=True, slots=True)
class ScorePage:
    """One page of a list by score. The fields are those of `Page`."""

    deliveries: tuple[Delivery, ...]
    next: ScoreKey | None
    is_cut: bool = False
    indexed: bool = True


class GroupBy(StrEnum):
    """Criterion by which `Facets.groups` counts deliveries."""

    SYMBOL = "symbol"
    SENDER_DOMAIN = "sender-domain"
    DOMAIN = "domain"  # the recipient's
    HOUR = "hour"  # UTC


@record(frozen=True, slots=True)
class Total:
    """The number of deliveries that a search finds.

    Not ``exact`` if there are more, or may be: the search took too long, or messages are not indexed yet.
    """

    count: int
    exact: bool
    indexed: bool = True  # whether all messages are indexed


@record(frozen=True, slots=True)
class Group:
    """Deliveries that have something in common."""

    name: str  # a symbol, a domain ("" if unknown), or an hour like "2026-11-28T03"
    count: int
    points: float = 0.0  # of a symbol: the sum of its scores


@record(frozen=True, slots=True)
class Groups:
    """Result of `Facets.groups`: of all deliveries that a search finds, or of the newest if there are too many."""

    groups: tuple[Group, ...]
    total: Total  # of the deliveries that were counted
    since: datetime | None  # when the oldest of them was held; None: there are none
    # The first and the last day whose numbers are from the statistics, with what was removed since; None: no day is.
    whole_days: tuple[date, date] | None = None


@record(frozen=True, slots=True)
class Tally:
    """Result of `Facets.tally`: how many deliveries there are of each recipient domain, tier and state."""

    counts: Mapping[tuple[str, Tier, State], int]
    total: Total


class ActiveRule(NamedTuple):
    """The part of a rule that `Rules.active` yields: what it does, and not who made it."""

    scope: str
    sender: str
    effect: Effect
    binding: bool
    expires_at: datetime | None


@record(frozen=True, slots=True)
class Counts:
    """Result of `Deliveries.counts`."""

    of: Mapping[State, int]  # without states that no delivery has
    complete: bool  # False: there may be more
    released_from: tuple[str, ...] = ()  # From headers of mail that was released to the reader
    since: Mapping[State, int] | None = None  # those that are not older than one delivery; None: not known


@record(frozen=True, slots=True)
class Person:
    """One recipient: when they are notified, and their preferences."""

    recipient: str  # identity
    address: str  # as last written in an envelope
    stopped_at: datetime | None  # when they stopped digests
    links_valid_from: datetime | None  # links issued before this time are revoked
    news_since: datetime | None  # when the oldest unannounced message was held
    next_digest_at: datetime | None  # when the next digest is due; None: not scheduled yet
    preferences: Preferences = NO_PREFERENCES
    failure: str = ""  # the mail server's answer to their last digest, until one is sent
    failed_at: datetime | None = None
    devices_valid_from: datetime | None = None  # a button pressed before this time does not make a browser known


@record(frozen=True, slots=True)
class Digest:
    """One digest or notice: claimed by `Digests.claim` or `Digests.claim_notices`, or sent earlier.

    When the mail of an earlier claim may have arrived, for example after a crash, a claim has the same id, so that both
    mails have the same Message-ID. It has no deliveries that the first mail did not list (`Digests.begin`): mail
    programs may drop the second one.
    ``issued_at`` is the date of its links, in whole seconds.
    """

    id: UUID
    recipient: str
    address: str
    issued_at: datetime
    deliveries: tuple[Delivery, ...]  # held, unannounced, oldest first; at most the requested limit
    preferences: Preferences = NO_PREFERENCES  # the recipient's
    failures: int = 0  # number of failed attempts so far
    lease: UUID | None = field(default=None, compare=False, repr=False)  # of the claim
    reader: Reader | None = field(default=None, compare=False)  # of the claim
    is_notice: bool = False
    # An earlier claim made the id. Its mail may have been delivered, so its links must work. The claim says so, and not
    # the times of both, since the clock may have been set back between them.
    is_taken_over: bool = field(default=False, compare=False)
    requested_at: datetime | None = field(default=None, compare=False)  # when its recipient last requested a digest
    is_begun: bool = field(default=False, compare=False)  # the earlier claim began to send it, see `Digests.begin`

    def is_requested(self, last_sent_at: datetime | None, now: datetime) -> bool:
        """Return whether its recipient requested it after their last digest was sent."""
        return (
            self.requested_at is not None
            and self.requested_at <= now
            and (last_sent_at is None or last_sent_at < self.requested_at)
        )

    @property
    def effective_reader(self) -> Reader:
        """The claim's reader, or else a reader with the recipient as the only identity."""
        return self.reader or Reader(self.recipient)


@record(frozen=True, slots=True)
class Claims:
    """Result of `Digests.claim`."""

    digests: tuple[Digest, ...]
    refused: Mapping[str, AlreadyDone]  # the reason for each recipient of ``only`` whose digest was not claimed


@record(frozen=True, slots=True)
class NoticeClaim:
    """A recipient whose unannounced mail may be worth a notice, claimed by `Digests.claim_notices`."""

    notice: Digest  # with all deliveries that were not searched before
    next_digest_at: datetime | None
    sent_at: tuple[datetime, ...]  # of the notices of the last day, oldest first


@record(frozen=True, slots=True)
class Upcoming:
    """Result of `Digests.upcoming`."""

    digest: Digest  # not claimed; without deliveries there will be none
    stopped_at: datetime | None = None  # when the recipient stopped digests
    due_at: datetime | None = None  # None: not scheduled yet
    last_sent_at: datetime | None = None  # of the recipient's last digest
    jobs: tuple[tuple[Mapping[str, Any], Mapping[str, Any]], ...] = ()  # arguments and progress of unfinished jobs
    released_from: tuple[str, ...] = ()  # From headers of mail that was released to the reader

    @property
    def is_first(self) -> bool:
        """True if the recipient was sent none before."""
        return self.last_sent_at is None


@record(frozen=True, slots=True)
class Unsent:
    """A claimed digest that was not sent, and when it may be claimed again."""

    digest: Digest
    not_before: datetime | None = None  # the earliest time of the next claim
    due_at: datetime | None = None  # its new due time, if it is due now
    failure: str = ""  # the mail server's answer, for operators
    may_have_arrived: bool = False  # the connection was lost at the final dot, for example
    is_put_off: bool = False  # it waits for wanted mail: earlier failures do not count any more


class DigestRequest(Enum):
    """Result of `Digests.request`."""

    DUE = 1
    TOO_SOON = 2  # the recipient requested one a short while ago
    NOTHING = 3  # nothing is held, or the recipient stopped digests


class DigestOfLink(NamedTuple):
    """The recipient of a digest, and those of its deliveries that are still kept, oldest first."""

    person: Person
    deliveries: Sequence[Delivery]


@record(frozen=True, slots=True)
class DigestRecord:
    """A digest as it is copied to another store."""

    id: UUID
    recipient: str
    address: str
    issued_at: datetime
    sent_at: datetime | None  # None: claimed and not yet recorded as sent
    deliveries: tuple[DeliveryId, ...]  # the deliveries it announced
    is_notice: bool = False


@record(frozen=True, slots=True)
class Record:
    """A message without its bytes, as it is copied to another store."""

    message: Message
    dedup_key: bytes | None  # None: another message has the dedup key of this mail
    deliveries: tuple[Delivery, ...]  # by number
    histories: tuple[tuple[Event, ...], ...]  # one for each delivery, without the event `held`
    announced_to: tuple[tuple[str, ...], ...] = ()  # empty, or for each delivery the readers recorded as notified

    def export(self) -> Export:
        """Return the export that would be held as this record. A record without a dedup key gets one that no mail
        has."""
        assigned = [delivery for delivery in self.deliveries if delivery.recipient]
        identities = tuple(delivery.recipient for delivery in assigned)
        return Export(
            **{field: getattr(self.message, field) for field in FACTS},
            recipients=tuple(delivery.address for delivery in assigned),
            identities=identities if identities != tuple(identity(delivery.address) for delivery in assigned) else (),
            dedup_key=self.dedup_key or sha256(b"quarantine " + self.message.id.bytes).digest(),
        )


@record(frozen=True, slots=True)
class LinkOpen:
    """One GET of a link in a digest."""

    delivery: DeliveryId
    at: datetime


@record(frozen=True, slots=True)
class SignIn:
    """A mailed sign-in that has not been used yet. Hashes are SHA-256; the secrets themselves are not kept."""

    token_sha256: bytes
    code_sha256: bytes
    browser_sha256: bytes  # of the pre-session cookie of the browser that requested it
    recipient: str
    client_ip: str
    created_at: datetime
    expires_at: datetime
    destination: str = ""  # the page to show after signing in, see `Sessions.begin`


@record(frozen=True, slots=True)
class SignInLimits:
    """Rate limits of sign-in mails. Requests that exceed them are dropped silently.

    A sign-in is valid for 15 minutes, so with the limit for ten minutes a request is dropped only while the link of an
    earlier mail is valid for five minutes or longer: others' requests cannot keep a recipient out.
    """

    per_mailbox_minute: int = 1  # of a mailbox only sign-ins that were not used are counted
    per_mailbox_ten_minutes: int = 2
    per_ip_minute: int = 10
    per_ip_hour: int = 60
    per_56_minute: int = 15
    per_56_hour: int = 90
    per_48_minute: int = 20
    per_48_hour: int = 120
    unknown_minute: int = 120


@record(frozen=True, slots=True)
class Method:
    """The way in which a session began. A provider that ends the session names it by its own names."""

    name: str = "mailed-link"  # as in the audit: "mailed-link", "oidc:NAME", …
    subject: str = ""  # the provider's name of the person, "" for methods without one
    session: str = ""  # the provider's name of its session

    @property
    def has_own_factor(self) -> bool:
        """True if the method asks staff for a second factor itself: providers do, and password servers do not."""
        return self.name.startswith("oidc:")


MAILED_LINK = Method()


@record(frozen=True, slots=True)
class PasswordTry:
    """One check of a password by the directory or the mail server. The password itself is never stored."""

    id: UUID
    recipient: str  # identity
    client_ip: str  # as in `SignIn`
    tried_at: datetime
    is_local: bool  # whether the recipient is local: foreign addresses are counted apart for networks


@record(frozen=True, slots=True)
class PasswordLimits:
    """Rate limits of checks of passwords. Only wrong passwords count, and those whose check has not ended.

    Spellings that directories do not distinguish are one mailbox, see `lifecycle.account`.
    """

    per_pair_quarter_hour: int = 5  # of one mailbox, from one client
    per_mailbox_hour: int = 20
    # Of a network, each mailbox counts at most so often. So one person with a wrong password does not lock out others.
    of_mailbox_in_network: int = 5
    per_ip_hour: int = 30
    per_56_hour: int = 45
    per_48_hour: int = 60


class Admission(StrEnum):
    """The decision if a password is checked now."""

    GRANTED = "granted"
    BUSY = "busy"  # another password of the same mailbox is being checked
    LIMITED = "limited"  # too many passwords were wrong


@record(frozen=True, slots=True)
class SignedIn:
    """A session, and the preferences and roles of its recipient: what each page needs, in one statement."""

    recipient: str  # identity
    preferences: Preferences
    authenticated_at: datetime | None  # when the person last proved who they are, None if that is not known
    staff_until: datetime | None  # the end of its use of the console, None if it was ended
    grants: tuple[Grant, ...] = ()  # all roles of the recipient in the store, as `StaffRoles.of` returns them
    method: Method = MAILED_LINK
    has_factor: bool = False  # whether the recipient has set up a second factor
    factor_given: bool = False  # whether it was given in this session
    job: Job | None = None  # that was asked for


@record(frozen=True, slots=True)
class StartedSession:
    """A session as its recipient sees it."""

    session_sha256: bytes
    client: str  # the browser and its system, "" if unknown
    started_at: datetime
    used_at: datetime  # recorded at most once a minute
    method: str = "mailed-link"  # Method.name


@record(frozen=True, slots=True)
class Contacts:
    """Result of `Recipients.contacts`: what staff need to know when a recipient calls."""

    digest_at: datetime | None  # when their last digest was sent, None if none was
    sign_ins: tuple[tuple[datetime, str, str], ...]  # the last ones, newest first: time, way and browser
    sessions: tuple[StartedSession, ...]  # those that have not ended, the last used first
    stopped_by: Actor | None  # who stopped their digests last


@record(frozen=True, slots=True)
class QueuedMail:
    """A mail of the portal itself, to be put into the outbox.

    Without an address ``to`` it is a decoy that is dropped instead of sent, so that a sign-in request takes the same
    time for known and unknown addresses.
    """

    to: str
    content: bytes


@record(frozen=True, slots=True)
class OutgoingMail:
    """A claimed mail of the outbox."""

    id: UUID
    to: str
    mail: bytes
    attempts: int


class Command(StrEnum):
    """An instruction of a person to the process that runs a job. The values are kept in stores."""

    PAUSE = "pause"
    CANCEL = "cancel"


@record(frozen=True, slots=True)
class Job:
    """A background job, see `Jobs`."""

    id: UUID
    kind: str
    arguments: Mapping[str, Any]
    actor: Actor  # who began it
    created_at: datetime
    not_before: datetime  # of the next claim; while it is claimed: the end of its lease
    tries: int
    progress: Mapping[str, Any]  # as `Jobs.keep` recorded it; empty at first
    command: Command | None = None
    outcome: str | None = None
    finished_at: datetime | None = None  # None: waiting or running
    lease: UUID | None = field(default=None, compare=False, repr=False)  # of the claim


class Ending(NamedTuple):
    """A delivery whose time may be over."""

    key: DeliveryId
    state: State
    recipient: str  # identity


@record(frozen=True, slots=True)
class Purged:
    """Result of `Store.purge`. ``kept`` counts old messages that stay because a delivery is requested or releasing."""

    messages: int
    kept: int


@record(frozen=True, slots=True)
class Stats:
    """Numbers for monitoring. Each is read from a small index."""

    releases_waiting: int
    requests_waiting: int
    mails_waiting: int
    jobs_waiting: int
    digests_due: int
    digests_failing: int  # recipients whose last digest failed
    oldest_digest_due_at: datetime | None
    oldest_untried_due_at: datetime | None  # of the due digests without a failure
    heartbeat_at: datetime | None  # of the digest process
    not_indexed: int  # messages that could not be indexed for searches of staff


class Sizes(NamedTuple):
    """Numbers about the content of a store."""

    states: Mapping[str, int]  # deliveries by state
    oldest_unannounced_at: datetime | None
    bytes: int | None  # of the database; None: of a file store
