"""Values that all packages use: messages, their symbols and deliveries. No I/O.

A *message* is one export of Rspamd. Each envelope recipient has a *delivery* of it, with its own state and history.
Both are identified by the *quarantine id*, a UUIDv7. Its first 48 bits are the millisecond at which the message was
held (RFC 9562, 5.7), so the id determines the UTC day, and by it the partition or the folder.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import field, fields, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import BinaryIO, NamedTuple
from uuid import UUID

from portal.model.domains import lower_case, to_ascii, to_unicode
from portal.model.record import record


class Tier(StrEnum):
    """The harm that a message could do, by its symbols. It limits the actions that its recipient may take alone."""

    SPAM = "spam"  # release, also automatically under the rules for this
    SUSPICIOUS = "suspicious"  # release, only by a pressed button
    DANGEROUS = "dangerous"  # request release; an administrator decides

    @property
    def less_harmful(self) -> tuple[Tier, ...]:
        """The tiers that are less harmful than this one."""
        tiers = tuple(Tier)
        return tiers[: tiers.index(self)]

    @property
    def more_harmful(self) -> tuple[Tier, ...]:
        """The tiers that are more harmful than this one."""
        tiers = tuple(Tier)
        return tiers[tiers.index(self) + 1 :]


# Rspamd's actions (src/libmime/scan_result.h), as its replies spell them.
ACTIONS = (
    "reject", "discard", "quarantine", "soft reject", "rewrite subject", "add header", "greylist", "no action",
)  # fmt: skip


class State(StrEnum):
    """The state of a delivery."""

    HELD = "held"
    REQUESTED = "requested"  # its recipient requested release from an administrator
    RELEASING = "releasing"  # claimed by a sender; the next try may begin at `next_try_at`
    RELEASED = "released"  # the relay answered 250 after the final dot
    DELETED = "deleted"  # by the recipient or an operator; can be undone until retention ends
    PASSED = "passed"  # let through by an allow rule while Rspamd waited: the mail server delivers it
    BLOCKED = "blocked"  # held because of a block rule: it is in no digest
    EXPIRED = (
        "expired"  # its time is over (`portal.policy.retention`); a row without recipient, found by its message only
    )


# In these, a recipient may release or delete a delivery, or request its release.
RELEASABLE = frozenset({State.HELD, State.PASSED, State.BLOCKED})


class Flag(StrEnum):
    """A problem with an export's metadata. Each makes the message at least *suspicious*."""

    NO_METADATA = "no-metadata"  # the POST had no metadata
    SYMBOLS = "symbols"  # missing, cut or unreadable
    RECIPIENTS = "recipients"  # missing, cut or unreadable: some or all are not notified, an operator can act
    SENDER = "sender"  # missing or unreadable: unknown, which is not the null sender
    ACTION = "action"
    SCORE = "score"
    # The verdict was forced, perhaps before any filter ran, or no symbol was reported: virus scanners may not have been
    # asked.
    FORCED = "forced"


class Symbol(NamedTuple):
    """One rule of Rspamd that fired. A tuple, since its stored form is a JSON list."""

    name: str
    score: float = 0.0
    options: tuple[str, ...] = ()
    description: str = ""  # Rspamd's own, in English; the shipped rule sends it for the symbols with the highest scores


class ScanOutcome(StrEnum):
    """The outcome of a virus scan. The values are kept in stores and journals."""

    WAITING = "waiting"  # none was done yet; a background job is queued
    CLEAN = "clean"
    FOUND = "found"  # a scanner reported a symbol
    FAILED = "failed"  # not scanned: no answer, no scanner, or the message is too large


@record(frozen=True, slots=True)
class Scan:
    """The last virus scan of a message."""

    outcome: ScanOutcome
    at: datetime | None = None  # aware UTC; None: waiting
    symbols: tuple[Symbol, ...] = ()  # those that the scanners reported
    detail: str = ""  # why it failed, in English, for administrators

    @property
    def is_done(self) -> bool:
        """True if a virus scanner read the message."""
        return self.outcome in (ScanOutcome.CLEAN, ScanOutcome.FOUND)


WAITING = Scan(ScanOutcome.WAITING)


@record(frozen=True, slots=True, kw_only=True)
class Facts:
    """Rspamd's report about a message. Stores keep each field in a column of `message`; see `stores.shared.rows`.

    Text fields are valid Unicode without NUL, lone surrogates and control characters.
    """

    envelope_sender: str | None  # "": the null sender; None: unknown
    subject: str
    header_from: str  # the mailboxes of all From fields, decoded, see `from_header.written`; "" if missing
    queue_id: str | None  # the MTA's; the MTA may reuse it
    message_id: str | None  # the header, without < >
    action: str | None  # Rspamd's name: "reject", "add header", …
    score: float | None
    client_ip: str | None
    user: str | None  # the authenticated submitter at the MTA
    symbols: tuple[Symbol, ...]
    flags: frozenset[Flag]
    body_sha256: bytes  # 32 bytes, over the bytes as received
    size_bytes: int
    has_8bit: bool  # any octet above 127
    threshold: float | None = None  # the score at which the action begins; None: unknown, or the action was forced
    from_count: int | None = None  # mailboxes of all From fields, at least one for each; None: held before version 7


FACTS = tuple(field.name for field in fields(Facts))


@record(frozen=True, slots=True, kw_only=True)
class Export(Facts):
    """The content of one POST, before the message is held. Only `portal.exporter` makes it."""

    recipients: tuple[str, ...]  # addresses as written, one spelling for each identity; may be empty
    dedup_key: bytes  # 32 bytes, see `exporter.dedup_key`: equal for a sender's retry of the same message
    mark: str | None = None  # the message's first X-Quarantine-Mark header, not yet verified
    identities: tuple[str, ...] = ()  # one for each recipient; empty: those of the addresses

    @property
    def held_for(self) -> tuple[str, ...]:
        """The identities of the recipients."""
        return self.identities or tuple(map(identity, self.recipients))


@record(frozen=True, slots=True, kw_only=True)
class Message(Facts):
    """A held message."""

    id: UUID
    verdict_tier: Tier  # the worst tier of all verdicts and virus scans
    scan: Scan | None = None  # None: no scan was asked for
    attachments: tuple[str, ...] = ()  # cleaned names, which are read some time after the message was held

    @property
    def tier(self) -> Tier:
        """The tier that counts: at least *suspicious* as long as a scan is asked for and not done."""
        return scanned_tier(self.verdict_tier, self.scan)

    @property
    def held_at(self) -> datetime:
        """The time at which it was held, aware UTC: the id's millisecond."""
        return held_at(self.id)


def scanned_tier(verdict_tier: Tier, scan: Scan | None) -> Tier:
    """Return the tier of a message with this verdict and this virus scan."""
    not_scanned = scan is not None and not scan.is_done
    return Tier.SUSPICIOUS if not_scanned and verdict_tier is Tier.SPAM else verdict_tier


class DeliveryId(NamedTuple):
    """The id of a delivery: its message, and its number among the message's recipients."""

    message_id: UUID
    number: int  # 0 … 65535


@record(frozen=True, slots=True)
class Delivery:
    """One recipient's copy of a message."""

    message: Message
    number: int  # 0 … 65535, the position among the message's recipients
    recipient: str  # identity, see `identity()`
    address: str  # as in the envelope: a release is sent to it
    state: State
    state_at: datetime  # aware UTC, time of entering the state
    reason: str  # reason for which the last release failed or the request was denied; "" if neither
    attempts: int  # tries of the current or last release
    next_try_at: datetime | None  # while `releasing`: end of the lease or time of the next try
    announced_at: datetime | None  # time of the digest that listed it

    @property
    def id(self) -> UUID:
        """The quarantine id."""
        return self.message.id

    @property
    def key(self) -> DeliveryId:
        """The delivery's id."""
        return DeliveryId(self.message.id, self.number)


class ActorKind(StrEnum):
    """The kind of an actor. The values are kept in stores and journals."""

    RECIPIENT = "recipient"
    OPERATOR = "operator"
    DIGEST = "digest"  # the digest process
    SYSTEM = "system"  # ingest
    RULE = "rule"  # an allow or block rule, see `rule.Rule.as_actor`


CONSOLE, API = "console", "api"  # `Actor.via` of staff


@record(frozen=True, slots=True)
class Actor:
    """The author of an event in the history: shown to operators, never to other recipients."""

    kind: ActorKind
    name: str = ""  # an operator's name; a person's identity if they acted on an alias or role mailbox; a rule's sender
    via: str = ""  # "link", "portal", "console", "api:TOKEN", "cli"; a rule's scope
    address: str = ""  # the client's IP address

    @property
    def who(self) -> str:
        """Kind and name as stored: "recipient", "operator:NAME", …"""
        return f"{self.kind}:{self.name}" if self.name else str(self.kind)

    @property
    def is_limited(self) -> bool:
        """True for staff who acted in the console or by the API, where roles limit what they may do."""
        way = self.via.partition("/")[0].partition(":")[0]  # without the job and the token
        return self.kind is ActorKind.OPERATOR and way in (CONSOLE, API)

    @property
    def is_job(self) -> bool:
        """True for a background job, which acts on messages that nobody looks at one by one."""
        return "/" in self.via

    @classmethod
    def from_stored(cls, who: str, via: str, address: str) -> Actor:
        """Return an actor from its stored values. Raises ValueError for an unknown kind."""
        kind, _, name = who.partition(":")
        return cls(ActorKind(kind), name, via, address)


class EventKind(StrEnum):
    """The kind of an event of a delivery. The values are kept in stores and journals."""

    HELD = "held"  # is never stored: the message's id contains the time
    ASSIGNED = "assigned"  # an operator named the recipient of a message without one
    REQUESTED = "requested"  # the recipient requested release from an administrator, for the reason in the detail
    WITHDRAWN = "withdrawn"  # the recipient withdrew the release request
    REMINDED = "reminded"  # those who decide about the release request got a second mail
    REFUSED = "refused"  # an operator denied the release request
    RELEASING = "releasing"  # a release was started
    DEFERRED = "deferred"  # the mail server deferred the release; it is tried again
    RELEASED = "released"
    FAILED = "failed"  # the release failed permanently: held again
    CONFIRMED = "confirmed"  # deleted as spam
    LEARNED_HAM = "learned-ham"  # Rspamd's statistics were trained with the message
    LEARNED_SPAM = "learned-spam"
    STOPPED = (
        "stopped"  # the release was stopped, or what a rule let through was not delivered, for the reason in the detail
    )
    DELETED = "deleted"
    RESTORED = "restored"
    RAISED = "raised"  # the tier was raised: the same message was exported with a worse verdict
    PASSED = "passed"  # an allow rule let it through
    BLOCKED = "blocked"  # a block rule keeps it out of the digests
    UNBLOCKED = "unblocked"  # it counts as held from now on
    REANNOUNCED = "reannounced"  # it is put into the next digest again
    ASKED = "asked"  # a reader asked the administrator about it, with the question that the detail has
    DOWNLOADED = "downloaded"  # a reader took the message, or the attachment that the detail names, as a file


@record(frozen=True, slots=True)
class Event:
    """One line of a delivery's history."""

    at: datetime
    kind: EventKind
    actor: Actor
    detail: str = ""


@record(frozen=True, slots=True)
class Start:
    """The state in which a delivery begins, if it is not `held`, and who is responsible for it.

    A delivery that begins as `releasing` is due at once.
    """

    state: State  # a key of `_EVENT_OF_START`
    actor: Actor
    detail: str = ""

    @property
    def kind(self) -> EventKind:
        """The kind of the first event of its history."""
        return _EVENT_OF_START[self.state]


_EVENT_OF_START = {
    State.PASSED: EventKind.PASSED,
    State.BLOCKED: EventKind.BLOCKED,
    State.RELEASING: EventKind.RELEASING,
}


@record(frozen=True, slots=True)
class Body:
    """The bytes of a message while it is being stored: a window into an open, seekable binary file.

    It is a window since in a multipart POST the message is a section of a spooled request body: a message of 50 MB is
    neither copied nor read into memory.
    """

    file: BinaryIO
    start: int
    size_bytes: int

    def chunks(self, chunk_bytes: int = 1 << 18) -> Iterable[bytes]:
        """Yield the bytes in order, at most ``chunk_bytes`` at a time. Can be called again. Raises OSError."""
        self.file.seek(self.start)
        left = self.size_bytes
        while left:
            chunk = self.file.read(min(left, chunk_bytes))
            if not chunk:
                raise OSError("the spool file was truncated while the message was read")
            left -= len(chunk)
            yield chunk


@record(frozen=True, slots=True)
class Reader:
    """A person and the identities whose messages they read, from `people.Directory`.

    With ``identity`` alone, the person reads only their own messages.
    """

    identity: str  # the one that is notified and has the preferences and links
    alone: tuple[str, ...] | None = None  # identities that no other person reads; None: only ``identity``
    shared: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # role mailboxes, each with all its readers

    @property
    def identities(self) -> tuple[str, ...]:
        """All identities whose messages the person reads."""
        return (*((self.identity,) if self.alone is None else self.alone), *self.shared)

    def limited_to(self, identities: Collection[str]) -> Reader:
        """Return the person as a reader of those of their identities that are among these."""
        left = tuple(each for each in self.identities if each in identities)
        return self if left == self.identities else Reader(self.identity, left)

    @property
    def is_plain(self) -> bool:
        """True if the person reads only their own messages and no other person ever did."""
        return not self.shared and self.alone is None  # otherwise an alias file exists, and earlier versions may differ

    def is_own(self, recipient: str) -> bool:
        """Return whether only this person is notified of messages for this identity, and by this name."""
        return recipient == self.identity and recipient not in self.shared


@record(frozen=True, slots=True)
class Filter:
    """The search criteria of an operator or a recipient. Empty fields do not restrict."""

    recipient: str | None = None  # identity
    also: tuple[str, ...] = ()  # more identities in addition to ``recipient``
    sender: str | None = None  # a part of the envelope sender or From; case and accents are ignored
    since: datetime | None = None  # held at this time or later
    states: frozenset[State] = field(default_factory=frozenset)
    words: str = ""  # of subject, sender or attachments' names; each may be the beginning of a word; "…": a phrase
    attachment: str = ""  # words likewise, of the names of attachments only
    until: datetime | None = None  # held before this time
    score_min: float | None = None  # messages without a score match neither limit
    score_max: float | None = None
    tiers: frozenset[Tier] = field(default_factory=frozenset)
    reason: str = ""  # one of the texts that `reasons.why` returns
    has_attachment: bool = False  # see `reasons.has_attachment`
    like: DeliveryId | None = None  # near-duplicates of this delivery and itself; none unless it is one of the readers'
    symbols: tuple[str, ...] = ()  # the message has all of them; case is ignored
    actions: frozenset[str] = field(default_factory=frozenset)  # of Rspamd
    client: IPv4Network | IPv6Network | None = None  # the sending server's address is in it
    size_min: int | None = None  # bytes
    size_max: int | None = None
    sender_domain: str | None = None  # of From, or else of the envelope sender, see `domain`
    domains: frozenset[str] | None = None  # the recipient's is one of them
    rule: str | None = None  # the sender of an allow or block rule that decided the delivery

    @property
    def needs_facets(self) -> bool:
        """True if it has criteria that only `stores.contracts.Facets` knows."""
        has_size = self.size_min is not None or self.size_max is not None
        others = self.symbols or self.actions or self.client or self.sender_domain or self.rule
        return has_size or self.domains is not None or bool(others)

    def within(self, domains: Collection[str] | None) -> Filter:
        """Return the same criteria for recipients of these domains only; None: of all domains."""
        if domains is None:
            return self
        kept = frozenset(domains)
        return replace(self, domains=kept if self.domains is None else self.domains & kept)


ANY = Filter()


def identity(address: str) -> str:
    """Return the recipient's identity: the address in lower case, its domain with A-labels (`domains.to_ascii`).

    Local parts are case-sensitive by RFC 5321, 2.4, but no site has two people whose addresses differ only in case: a
    recipient who signs in as Alice@Example.org must see the messages for alice@example.org. An international domain
    has two spellings; without SMTPUTF8, envelopes have the one with A-labels. Idempotent.
    """
    if address.isascii():
        return address.lower()
    local, at, host = address.rpartition("@")
    return f"{lower_case(local)}@{to_ascii(host)}" if at else lower_case(address)


def domain(address: str) -> str:
    """Return the domain of an address as in its identity: the text after the *last* @ (quoted local parts may have @).

    A domain alone is returned in the same form.
    """
    return to_ascii(address.rpartition("@")[2])


def is_address(text: str) -> bool:
    """Return True if this can be a recipient's address. Other input must not reach the store or mail headers."""
    return text.count("@") == 1 and text.isprintable() and not any(c.isspace() or c in '<>,;:"\\()' for c in text)


def spellings(recipient: str) -> tuple[str, ...]:
    """Return an identity and, for an international domain, its spelling with U-labels from versions up to 0.1.1."""
    local, at, host = recipient.rpartition("@")
    readable = to_unicode(host)
    return (recipient,) if readable == host else (recipient, f"{local}{at}{readable}")


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def new_id(at: datetime | None = None) -> UUID:
    """Return a new quarantine id: a UUIDv7 (RFC 9562, 5.7) for the time ``at`` or now, with 62 random bits.

    The twelve bits after the millisecond are its fraction (6.2, method 3), so that messages held in the same
    millisecond are listed in the order of their arrival.
    """
    nanoseconds = time.time_ns() if at is None else (at - _EPOCH) // timedelta(microseconds=1) * 1000
    ms, rest = divmod(nanoseconds, 1_000_000)
    return UUID(int=ms << 80 | 7 << 76 | rest * 4096 // 1_000_000 << 64 | 2 << 62 | secrets.randbits(62))


def held_at(quarantine_id: UUID) -> datetime:
    """Return the time at which a message was held: the millisecond in its id, aware UTC."""
    return _EPOCH + timedelta(milliseconds=quarantine_id.int >> 80)


def first_id(at: datetime) -> UUID:
    """Return the lower bound of the ids of messages held at or after ``at``: the bound of a partition.

    The result for a time before 1970 is the lowest id of all.
    """
    return UUID(int=max(0, (at - _EPOCH) // timedelta(milliseconds=1)) << 80)


def parse_id(text: str) -> UUID | None:
    """Return the quarantine id of a text in the canonical lower-case spelling, else None."""
    try:
        value = uuid.UUID(text)
        held_at(value)  # the 48 bits can exceed the last year of a datetime
    except (ValueError, OverflowError):
        return None
    return value if str(value) == text and value.version == 7 else None


def random_token(octets: int = 16) -> str:
    """Return an unguessable URL-safe text made of ``octets`` random octets."""
    return secrets.token_urlsafe(octets)
