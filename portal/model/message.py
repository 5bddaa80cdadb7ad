"""The values that travel between the rooms: messages, their symbols and deliveries. No I/O here.

A *message* is what Rspamd exported once. Each envelope recipient has a *delivery* of it: a state and a history
of their own. Both are named by the *quarantine id*, a UUIDv7 whose first 48 bits are the millisecond it was held
(RFC 9562, 5.7), so that the UTC day – the partition, the folder – comes out of the id.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import BinaryIO, NamedTuple
from uuid import UUID

from portal.model.domains import lower_case, to_ascii, to_unicode


class Tier(StrEnum):
    """How much harm a message could do, from its symbols; decides what its recipient may do alone."""

    SPAM = "spam"  # release, by itself if the rules for that hold
    SUSPICIOUS = "suspicious"  # release, by a pressed button only
    DANGEROUS = "dangerous"  # ask only; an administrator decides

    @property
    def less_harmful(self) -> tuple[Tier, ...]:
        """The tiers that are less harmful than this one."""
        tiers = tuple(Tier)
        return tiers[: tiers.index(self)]


class State(StrEnum):
    """Where a delivery stands."""

    HELD = "held"
    REQUESTED = "requested"  # its recipient asked an administrator for it
    RELEASING = "releasing"  # claimed by a sender; `next_try_at` says when the next try may begin
    RELEASED = "released"  # the relay said 250 after the final dot
    DELETED = "deleted"  # by the recipient or an operator; can be undone until retention


class Flag(StrEnum):
    """What was wrong with an export's metadata. Each makes the message at least *suspicious*."""

    NO_METADATA = "no-metadata"  # the POST had none at all
    SYMBOLS = "symbols"  # missing, cut or unreadable
    RECIPIENTS = "recipients"  # missing, cut or unreadable: nobody is told, an operator can act
    SENDER = "sender"  # missing or unreadable: not known, which is not the null sender
    ACTION = "action"
    SCORE = "score"


class Symbol(NamedTuple):
    """One rule of Rspamd that fired. A tuple, since a mail has dozens: made, and written as JSON, at once."""

    name: str
    score: float = 0.0
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What Rspamd said about a message. Stores keep each field in a column of `message`; see `stores.shared.rows`.

    Text fields are valid Unicode without NUL, lone surrogates and control characters.
    """

    envelope_sender: str | None  # "" is the null sender, None: not known
    subject: str
    header_from: str  # decoded From header, display name and address; "" when there is none
    queue_id: str | None  # the MTA's; the MTA may use it again
    message_id: str | None  # the header, without < >
    action: str | None  # Rspamd's words: "reject", "add header", …
    score: float | None
    client_ip: str | None
    user: str | None  # the authenticated submitter at the MTA
    symbols: tuple[Symbol, ...]
    flags: frozenset[Flag]
    body_sha256: bytes  # 32 bytes, of the bytes as received
    size_bytes: int
    has_8bit: bool  # any octet above 127


FACTS = tuple(field.name for field in fields(Facts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Export(Facts):
    """What one POST said about one message, before it is held; made by `portal.exporter` alone."""

    recipients: tuple[str, ...]  # addresses as written, the first spelling of each identity; may be empty
    dedup_key: bytes  # 32 bytes, see `exporter.sameness`: equal for a sender's retry of the same mail
    mark: str | None = None  # the first X-Quarantine-Mark header among the mail's own, not yet verified
    identities: tuple[str, ...] = ()  # of the recipients, where they are not just the addresses' own

    @property
    def held_for(self) -> tuple[str, ...]:
        """The identities of the recipients."""
        return self.identities or tuple(map(identity, self.recipients))


@dataclass(frozen=True, slots=True, kw_only=True)
class Message(Facts):
    """A held message."""

    id: UUID
    tier: Tier

    @property
    def held_at(self) -> datetime:
        """When it was held, aware UTC: the id's millisecond."""
        return held_at(self.id)


class DeliveryId(NamedTuple):
    """The name of a delivery: its message, and its number among the message's recipients."""

    message_id: UUID
    number: int  # 0 … 65535


@dataclass(frozen=True, slots=True)
class Delivery:
    """One recipient's copy of a message."""

    message: Message
    number: int  # 0 … 65535, the place among the message's recipients
    recipient: str  # identity, see `identity()`
    address: str  # as the envelope wrote it: where a release goes
    state: State
    state_at: datetime  # aware UTC, when the state was entered
    reason: str  # why the last release failed or a request was refused; "" if neither
    attempts: int  # tries of the current or last release
    next_try_at: datetime | None  # while `releasing`: lease end or next try
    announced_at: datetime | None  # when a digest told the recipient

    @property
    def id(self) -> UUID:
        """The quarantine id."""
        return self.message.id

    @property
    def key(self) -> DeliveryId:
        """The delivery's name."""
        return DeliveryId(self.message.id, self.number)


class ActorKind(StrEnum):
    """What an actor is. The values are kept in stores and journals."""

    RECIPIENT = "recipient"
    OPERATOR = "operator"
    DIGEST = "digest"  # the digest process
    SYSTEM = "system"  # ingest


@dataclass(frozen=True, slots=True)
class Actor:
    """Who did something, for the history: shown to operators, never to other recipients."""

    kind: ActorKind
    name: str = ""  # of an operator; the identity of a recipient who reads under another name, or with others
    via: str = ""  # "link", "portal", "cli"
    address: str = ""  # the client's IP address

    @property
    def who(self) -> str:
        """Kind and name as they are kept: "recipient", "operator:NAME", …"""
        return f"{self.kind}:{self.name}" if self.name else str(self.kind)

    @classmethod
    def kept(cls, who: str, via: str, address: str) -> Actor:
        """Return an actor as it is kept. Raises ValueError for another kind."""
        kind, _, name = who.partition(":")
        return cls(ActorKind(kind), name, via, address)


class EventKind(StrEnum):
    """What happened to a delivery. The values are kept in stores and journals."""

    HELD = "held"  # is never stored: the message's id has the time
    ASSIGNED = "assigned"  # an operator named the recipient of a message without one
    REQUESTED = "requested"  # by its recipient, from an administrator
    REFUSED = "refused"  # that request, by an operator
    RELEASING = "releasing"  # a release was begun
    DEFERRED = "deferred"  # the mail server could not take it; it is tried again
    RELEASED = "released"
    FAILED = "failed"  # the release, for good: held again
    STOPPED = "stopped"  # the release: by now only an administrator may release the message
    DELETED = "deleted"
    RESTORED = "restored"
    RAISED = "raised"  # the tier: the same mail came with a worse verdict


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a delivery's history."""

    at: datetime
    kind: EventKind
    actor: Actor
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Body:
    """Where a message's bytes lie while they are being held: a window into an open, seekable binary file.

    A window, since in a multipart POST the message is a stretch of a spooled request body: a 50 MB mail is never
    copied nor held in memory.
    """

    file: BinaryIO
    start: int
    size_bytes: int

    def chunks(self, chunk_bytes: int = 1 << 18) -> Iterable[bytes]:
        """The bytes in order, at most ``chunk_bytes`` at a time; may be called again. Raises OSError."""
        self.file.seek(self.start)
        left = self.size_bytes
        while left:
            chunk = self.file.read(min(left, chunk_bytes))
            if not chunk:
                raise OSError("spooled message is shorter than it was")
            left -= len(chunk)
            yield chunk


@dataclass(frozen=True, slots=True)
class Reader:
    """A person and the identities whose mail they read, as `people.Directory` knows; without more than a name, their
    own mail alone."""

    identity: str  # who is told, whose preferences and links these are
    alone: tuple[str, ...] | None = None  # identities that nobody else reads; None: their own one
    shared: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # role mailboxes, each with all its readers

    @property
    def identities(self) -> tuple[str, ...]:
        """All of them."""
        return (*((self.identity,) if self.alone is None else self.alone), *self.shared)

    @property
    def is_plain(self) -> bool:
        """Whether they read their own mail, nothing else, and nobody else ever did."""
        return not self.shared and self.alone is None  # else there is an alias file, which may have said otherwise

    def is_own(self, recipient: str) -> bool:
        """Whether what is held for this identity is told to this person under that very name, and to nobody else."""
        return recipient == self.identity and recipient not in self.shared


@dataclass(frozen=True, slots=True)
class Filter:
    """What an operator or a recipient looks for. Empty fields do not restrict."""

    recipient: str | None = None  # identity
    also: tuple[str, ...] = ()  # further identities, beside ``recipient``
    sender: str | None = None  # envelope sender or From, a part of it; case and accents do not matter
    since: datetime | None = None  # held then or later
    states: frozenset[State] = field(default_factory=frozenset)
    words: str = ""  # each is a word, or the beginning of one, of the subject, the envelope sender or From
    until: datetime | None = None  # held before then
    score_min: float | None = None  # mail without a score has neither a low nor a high one
    score_max: float | None = None
    tiers: frozenset[Tier] = field(default_factory=frozenset)


def identity(address: str) -> str:
    """Return the recipient's identity: the address in lower case, its domain with A-labels (`domains.to_ascii`).

    Local parts are case-sensitive by RFC 5321, 2.4, yet no site has two people told apart by case alone; a
    recipient who signs in as Alice@Example.org must see the mail for alice@example.org. An international domain has
    two spellings, of which mail without SMTPUTF8 has the one with A-labels. Idempotent.
    """
    if address.isascii():
        return address.lower()
    local, at, host = address.rpartition("@")
    return f"{lower_case(local)}@{to_ascii(host)}" if at else lower_case(address)


def domain(address: str) -> str:
    """Return the domain of an address as in its identity: what follows the *last* @ (quoted local parts may hold more).

    A domain alone is returned in the same form.
    """
    return to_ascii(address.rpartition("@")[2])


def spellings(recipient: str) -> tuple[str, ...]:
    """Return an identity and, for an international domain, the one with U-labels that versions up to 0.1.1 made."""
    local, at, host = recipient.rpartition("@")
    readable = to_unicode(host)
    return (recipient,) if readable == host else (recipient, f"{local}{at}{readable}")


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def new_id(at: datetime | None = None) -> UUID:
    """A new quarantine id: UUIDv7 (RFC 9562, 5.7) of the moment ``at`` or now, 62 bits of it random.

    The twelve bits behind the millisecond are its fraction (6.2, method 3), so that mail held in the same millisecond
    is still listed in the order in which it came.
    """
    nanoseconds = time.time_ns() if at is None else (at - _EPOCH) // timedelta(microseconds=1) * 1000
    ms, rest = divmod(nanoseconds, 1_000_000)
    return UUID(int=ms << 80 | 7 << 76 | rest * 4096 // 1_000_000 << 64 | 2 << 62 | secrets.randbits(62))


def held_at(quarantine_id: UUID) -> datetime:
    """When a message was held: the millisecond in its id, aware UTC."""
    return _EPOCH + timedelta(milliseconds=quarantine_id.int >> 80)


def first_id(at: datetime) -> UUID:
    """The lowest UUIDv7-ordered value of a moment: ids held at or after ``at`` are >= it. A partition's bound.

    Nothing was held before 1970: such a moment has the lowest id of all.
    """
    return UUID(int=max(0, (at - _EPOCH) // timedelta(milliseconds=1)) << 80)


def parse_id(text: str) -> UUID | None:
    """A quarantine id from text in its canonical lower-case spelling, else None."""
    try:
        value = uuid.UUID(text)
        held_at(value)  # its 48 bits reach beyond the last year that a date can have
    except (ValueError, OverflowError):
        return None
    return value if str(value) == text and value.version == 7 else None


def random_token(octets: int = 16) -> str:
    """An unguessable URL-safe text with ``octets`` random octets."""
    return secrets.token_urlsafe(octets)
