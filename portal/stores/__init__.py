"""The storage contract: what every store does, whichever way it keeps things. One test suite runs over all of them.

A store knows nothing of HTTP, SMTP, links, templates or settings, and lets no error of its library out: what goes
wrong below arrives as `StoreUnavailable` (try again later) or `StoreMisfit` (an operator must act). Times come in as
aware UTC ``now`` from the caller, so that tests can turn the clock.

Claims (a release, a digest, an outgoing mail) are committed rows with a lease: no connection or lock is held while
something is being sent. A process that dies lets its lease run out, and another one goes on: at worst a mail goes
twice, never silently not at all.

Whose data it is stands first in every question a recipient asks (`recipient`, an identity as `message.identity()`
makes it). Where they may read more than what is held for that one, it is a `Reader`; a plain identity reads its own
mail. Methods under "operators" have no such limit and are called by the command line and by links, whose token names
the delivery.

A delivery that one person was told of is *announced*. Of one that they are told of under another name, or with others,
it is kept who was told (``told``), and it counts as announced once all its readers were.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from hashlib import sha256
from typing import Any
from uuid import UUID

from portal.model.errors import AlreadyDone
from portal.model.message import (
    Actor,
    Body,
    Delivery,
    Event,
    EventKind,
    Export,
    Filter,
    Message,
    Reader,
    State,
    Tier,
    identity,
)
from portal.model.schedule import NOTHING_CHOSEN, Preferences
from portal.model.store_url import StoreUrl

LEASE = timedelta(seconds=90)  # longer than any single send may take (30 s) and than uWSGI's harakiri (60 s)
DIGESTS_KEPT = timedelta(days=91)  # longer than any link may live: those at a digest's foot name the digest
SCHEMA_VERSION = 6


@dataclass(frozen=True, slots=True)
class Held:
    """What `Store.add` did: the id of the message, and whether it had been held before."""

    id: UUID
    known: bool
    raised: tuple[UUID, ...] = ()  # messages held before whose tier is worse now


@dataclass(frozen=True, slots=True)
class Page:
    """A stretch of a list, newest first. ``next`` goes into the next call's ``before``; None: that was all."""

    deliveries: tuple[Delivery, ...]
    next: tuple[UUID, int] | None


@dataclass(frozen=True, slots=True)
class Person:
    """What is known about one recipient."""

    recipient: str  # identity
    address: str  # as last written in an envelope
    stopped_at: datetime | None  # they want no digests since then
    links_valid_from: datetime | None  # links issued before are revoked
    news_since: datetime | None  # the oldest mail held and not yet announced
    next_digest_at: datetime | None  # when to tell them; None: not yet decided
    preferences: Preferences = NOTHING_CHOSEN
    failure: str = ""  # what the mail server last said against their digest, until one goes out
    failed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Digest:
    """One digest: claimed by `claim_digests`, or an earlier one looked up again.

    The id stays the same when a claim is taken over after a crash, so that the repeated mail carries the same
    Message-ID. ``issued_at`` is what its links are dated with (whole seconds).
    """

    id: UUID
    recipient: str
    address: str
    issued_at: datetime
    deliveries: tuple[Delivery, ...]  # held, unannounced, oldest first; at most the limit asked for
    preferences: Preferences = NOTHING_CHOSEN  # the recipient's
    failures: int = 0  # how often the mail server said no to it so far
    lease: UUID | None = field(default=None, compare=False, repr=False)  # of the claim
    reader: Reader | None = field(default=None, compare=False)  # of the claim: what its recipient reads


@dataclass(frozen=True, slots=True)
class Claims:
    """What `claim_digests` got."""

    digests: tuple[Digest, ...]
    refused: Mapping[str, AlreadyDone]  # of those asked for by name, why they were not claimed


@dataclass(frozen=True, slots=True)
class Unsent:
    """A claimed digest that did not go out, and when it may."""

    digest: Digest
    not_before: datetime | None = None  # it may be claimed from then on
    due_at: datetime | None = None  # when it is due instead, if it is due now
    failure: str = ""  # what the mail server said against this recipient, for operators


class Asked(Enum):
    """What came of asking for a digest now."""

    DUE = 1
    TOO_SOON = 2  # one was asked for a short while ago
    NOTHING = 3  # there is nothing to tell, or they stopped digests


@dataclass(frozen=True, slots=True)
class DigestRecord:
    """All that is kept of a digest, for moving it to another store."""

    id: UUID
    recipient: str
    address: str
    issued_at: datetime
    sent_at: datetime | None  # None: begun and not yet known to be sent
    deliveries: tuple[tuple[UUID, int], ...]  # what it announced


@dataclass(frozen=True, slots=True)
class Record:
    """All that is kept of a message but its bytes, for moving it to another store."""

    message: Message
    sameness: bytes | None  # None: another message is the one by which the same mail is known again
    deliveries: tuple[Delivery, ...]  # by number
    histories: tuple[tuple[Event, ...], ...]  # one for each delivery, without its being held
    told: tuple[tuple[str, ...], ...] = ()  # one for each delivery, or nothing: who was told under another name

    def export(self) -> Export:
        """The export that would be held as this record; where there is no sameness, one that no other mail has."""
        message, known = self.message, [delivery for delivery in self.deliveries if delivery.recipient]
        named = tuple(delivery.recipient for delivery in known)
        return Export(
            recipients=tuple(delivery.address for delivery in known),
            identities=named if named != tuple(identity(delivery.address) for delivery in known) else (),
            envelope_sender=message.envelope_sender,
            subject=message.subject,
            header_from=message.header_from,
            queue_id=message.queue_id,
            message_id=message.message_id,
            action=message.action,
            score=message.score,
            client_ip=message.client_ip,
            user=message.user,
            symbols=message.symbols,
            flags=message.flags,
            sameness=self.sameness or sha256(b"quarantine " + message.id.bytes).digest(),
            body_sha256=message.body_sha256,
            size_bytes=message.size_bytes,
            has_8bit=message.has_8bit,
        )


@dataclass(frozen=True, slots=True)
class Opening:
    """One GET of a link: which delivery, when."""

    message_id: UUID
    number: int
    at: datetime


@dataclass(frozen=True, slots=True)
class SignIn:
    """A mailed sign-in that has not been used yet. Hashes are SHA-256; the secrets themselves are not kept."""

    token_sha256: bytes
    code_sha256: bytes
    browser_sha256: bytes  # of the pre-session cookie of the browser that asked
    recipient: str
    client_ip: str
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class SignInLimits:
    """How many sign-in mails may be asked for. Beyond them the request is dropped in silence."""

    per_recipient_minute: int = 1
    per_recipient_hour: int = 5
    per_ip_minute: int = 10
    per_ip_hour: int = 60  # five guesses at a code of six digits each: one host guesses 300 of a million an hour
    all_minute: int = 120


@dataclass(frozen=True, slots=True)
class OutgoingMail:
    """A mail of ours that waits to be sent. An empty ``to`` is a blind: it is dropped instead of sent, so that
    asking for a sign-in costs the same time whether the address is ours or not."""

    id: UUID
    to: str
    mail: bytes
    attempts: int


@dataclass(frozen=True, slots=True)
class Purged:
    """What `Store.purge` removed; ``kept`` counts old messages that stay since a delivery is requested or releasing."""

    messages: int
    kept: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What monitoring wants to know; every number comes from a small index, none counts a table."""

    releases_waiting: int
    requests_waiting: int
    mails_waiting: int
    digests_due: int
    digests_failing: int  # recipients whose last digest the mail server did not take
    oldest_digest_due_at: datetime | None
    oldest_untried_due_at: datetime | None  # of those against whom the mail server has said nothing
    heartbeat_at: datetime | None  # the digest process's last sign of life


class Store(ABC):
    """Everything the portal keeps. Thread-safe; opened after the fork, one per process.

    Every method may raise `StoreUnavailable`.
    """

    # ---- life

    @abstractmethod
    def ping(self) -> None:
        """Return when the store can be written to now, within 2 s."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections. May be called twice."""

    @abstractmethod
    def remember(self, name: str, value: str, *, replace: bool = False) -> str:
        """Keep ``value`` under ``name`` unless there is one already (or ``replace``); return what is kept now."""

    @abstractmethod
    def recall(self, name: str) -> str | None:
        """What `remember` keeps under ``name``, or None."""

    @abstractmethod
    def swap(self, name: str, old: str | None, new: str, *, mail: tuple[str, bytes, datetime] | None = None) -> bool:
        """Keep ``new`` under ``name`` if ``old`` is kept there now (None: nothing is); whether it was.

        ``mail``: its address, itself and the time now, queued when it was, both or neither.
        """

    @abstractmethod
    def tally(self, amounts: Mapping[str, float]) -> None:
        """Add to running totals, each under its name."""

    @abstractmethod
    def tallies(self) -> Mapping[str, float]:
        """All running totals."""

    @abstractmethod
    def heartbeat(self, now: datetime) -> None:
        """The digest process is alive."""

    @abstractmethod
    def figures(self, now: datetime) -> Figures:
        """The numbers for `/healthz` and `/metrics`."""

    # ---- holding

    @abstractmethod
    def add(
        self, export: Export, body: Body, tier: Tier, announce: Collection[str], *, at: datetime | None = None
    ) -> Held:
        """Hold a message and return once it is durable: a power cut right after must not lose it.

        The same mail again (equal ``export.sameness``, within retention) returns the first id with ``known`` true,
        also when many processes add it at once. ``announce`` are the identities of those recipients who will be
        told by digest. Recipients are numbered in the order of ``export.recipients``; a message without any gets
        one delivery whose recipient and address are "" (see `assign`). ``at`` is when it was held, for mail that lay
        elsewhere until now; None: now.

        A ``tier`` worse than that of the known message, or of messages with the same bytes, becomes theirs as long as
        a delivery of them is not released; tiers never get better. The export's symbols, score, action and flags
        replace theirs, and each delivery's history gets an event "raised". An export without symbols replaces only the
        tier and adds its flags.

        Raises StoreUnavailable, after which nothing of the message is visible, or it is wholly there (a commit
        whose answer was lost): adding again is always right. Never waits longer than 3 s in all.
        """

    # ---- a recipient's own

    @abstractmethod
    def list_for(
        self,
        recipient: str | Reader,
        states: Collection[State],
        limit: int,
        before: tuple[UUID, int] | None = None,
        *,
        words: str = "",
    ) -> Page:
        """This recipient's deliveries in any of ``states``, newest message first, as `search` finds them."""

    @abstractmethod
    def delivery_for(self, recipient: str | Reader, message_id: UUID, number: int | None = None) -> Delivery:
        """This recipient's delivery of a message: the one with this number, None: the first. Raises NotFound, also
        when it is only somebody else's."""

    @abstractmethod
    def released_from(self, recipients: Sequence[str], limit: int) -> Mapping[str, Sequence[str]]:
        """From headers of what each of these recipients has got released, newest mail first, at most ``limit`` each;
        those without any are left out."""

    @abstractmethod
    def person(self, recipient: str) -> Person:
        """What is known about a recipient; an empty Person when nothing is."""

    @abstractmethod
    def set_digests_stopped(
        self, recipient: str, stopped_at: datetime | None, *, mail: tuple[str, bytes] | None = None
    ) -> bool:
        """Stop (a time) or resume (None) a recipient's digests. Mail held meanwhile is announced after resuming.

        Returns whether that changed anything; stopped twice is stopped since the first time. If so ``mail``, whom to
        tell and what, is queued in the same transaction.
        """

    @abstractmethod
    def set_preferences(self, recipient: str, preferences: Preferences) -> None:
        """Keep what a recipient chose. When they are told next is undecided then, see `unscheduled`."""

    @abstractmethod
    def ask_for_digest(self, recipient: str | Reader, now: datetime, since: datetime) -> Asked:
        """Make a recipient's digest due now, unless they asked for one after ``since``.

        It holds what was never announced. When there is no such mail, what is still held of their last digest counts
        as not announced any more, so that it is told once again.
        """

    @abstractmethod
    def revoke_links(self, recipient: str, issued_before: datetime) -> None:
        """Links of this recipient that were issued before this moment are no longer valid."""

    @abstractmethod
    def record_opening(
        self, recipient: str, issued_at: datetime, opening: Opening, since: datetime
    ) -> Sequence[Opening]:
        """Note that a link of the digest (``recipient``, ``issued_at``) was opened.

        Returns that digest's openings from ``since`` on, this one included, oldest first, at most 500.
        Need not be durable.
        """

    # ---- operators, links, and the processes

    @abstractmethod
    def delivery(self, message_id: UUID, number: int) -> Delivery:
        """One delivery by its name. Raises NotFound."""

    @abstractmethod
    def deliveries(self, message_id: UUID) -> Sequence[Delivery]:
        """All deliveries of a message by number. Raises NotFound when there is no such message."""

    @abstractmethod
    def body(self, message_id: UUID) -> Iterator[bytes]:
        """The message exactly as it was received, in pieces of at most 1 MiB.

        Raises NotFound, or BodyMissing when the mail is gone, both before the first piece; StoreUnavailable when a
        later piece cannot be read or what is stored is damaged (its SHA-256 differs): then the reader must not use
        what it got so far.
        """

    @abstractmethod
    def find(self, text: str) -> Sequence[Message]:
        """Messages whose quarantine id, or whose MTA queue id, is exactly ``text``; newest first, at most 100."""

    @abstractmethod
    def search(self, wanted: Filter, limit: int, before: tuple[UUID, int] | None = None) -> Page:
        """Deliveries of all recipients that fit, newest first. Whatever the text, it finds something or nothing.

        Answered by indexes but for a sender's part that begins no word and for state `held`, which are looked for in
        a bounded stretch of the list: a page may be short, or empty, and still have a ``next`` to go on from.
        """

    @abstractmethod
    def history(self, message_id: UUID, number: int) -> Sequence[Event]:
        """What happened to a delivery, oldest first; begins with its being held."""

    @abstractmethod
    def last_events(self, deliveries: Collection[tuple[UUID, int]]) -> Mapping[tuple[UUID, int], Sequence[Event]]:
        """Return, for each of these deliveries, the latest event of each kind (`Event.kind`), oldest first.

        Takes at most 1,000 deliveries and asks the database once. Being held is not an event here. Deliveries that have
        no events, or are not known, are left out.
        """

    @abstractmethod
    def assign(self, message_id: UUID, number: int, address: str, actor: Actor, now: datetime) -> Delivery:
        """Give the delivery without a recipient (``""``) one. Raises NotFound, AlreadyDone when it has one."""

    # ---- acts

    @abstractmethod
    def move(
        self,
        message_id: UUID,
        number: int,
        to: State,
        allowed: Collection[State],
        actor: Actor,
        now: datetime,
        *,
        kind: EventKind,
        reason: str = "",
        mail: tuple[str, bytes] | None = None,
    ) -> Delivery:
        """Bring a delivery into state ``to`` if it is in one of ``allowed``; record an event of this kind.

        ``reason`` becomes the delivery's reason; ``mail``, whom to tell and what, is queued in the same transaction.
        Durable on return. Raises NotFound, AlreadyDone (with the delivery as it is) when it is in another state: then
        nothing is queued.
        """

    @abstractmethod
    def releasing(
        self,
        message_id: UUID,
        number: int,
        allowed: Collection[State],
        actor: Actor,
        now: datetime,
        answer: Callable[[], str] = str,
    ) -> AbstractContextManager[Delivery]:
        """Claim a delivery for release, yield it as claimed, and record the outcome.

        The claim is state `releasing`, ``attempts`` 1 or, coming from `releasing`, one more, ``next_try_at = now +
        LEASE``, committed before the block runs. A delivery that already is `releasing` can be claimed once its
        ``next_try_at`` has passed, whatever ``allowed`` says. Entering raises NotFound, or AlreadyDone with the
        delivery (released before, deleted, another one is at it).

        Leaving the block:
        - cleanly: `released`; the event's detail is what ``answer`` returns then, the mail server's words;
        - by RelayDeferred: stays `releasing`, the error's text is its reason, ``next_try_at`` = now + back-off (1,
          2, 4 … minutes, at most 1 h; ± nothing);
        - by RelayRefused, NotAllowed, BodyMissing or BodyDamaged: `held` again with the error's text as reason;
        - by anything else: as RelayDeferred, with the reason "internal error".
        Events: `releasing` when it comes from another state, then `released`, `deferred` or `failed` per try.
        The exception goes on to the caller in each case. When recording fails the lease runs out and the delivery
        is tried again: it may arrive twice, never not at all. If the claim was taken over by another process
        meanwhile, only a clean outcome is recorded.
        """

    @abstractmethod
    def due_releases(self, now: datetime, limit: int) -> Sequence[tuple[UUID, int]]:
        """Deliveries in `releasing` whose ``next_try_at`` has passed, longest waiting first."""

    # ---- digests

    @abstractmethod
    def unscheduled(self, limit: int) -> Sequence[Person]:
        """Recipients with news, not stopped, whose next digest has no time yet."""

    @abstractmethod
    def schedule(self, recipient: str, at: datetime, *, instead_of: datetime | None = None) -> None:
        """Decide when a recipient is told, provided that it still is undecided or the moment ``instead_of``: somebody
        may have asked for a digest meanwhile."""

    @abstractmethod
    def mend_times(self, now: datetime) -> int:
        """Undo what a clock that was ahead left behind; returns how many recipients, releases and mails that concerned.

        Digests planned more than ten days ahead are undecided again, claims and retries that live for more than a day
        are over, of digests, releases and our own mail, and digests asked for later than ``now`` were not.
        """

    @abstractmethod
    def due_digests(self, now: datetime | None, limit: int, after: str = "") -> Sequence[str]:
        """Identities of recipients to tell: news, not stopped, no live claim, ``next_digest_at <= now``.

        ``now`` None: all with news, whatever the hour, in order of identity beyond ``after``; else the longest due
        first and ``after`` is not used.
        """

    @abstractmethod
    def claim_digests(
        self,
        now: datetime,
        count: int,
        limit: int,
        *,
        only: Sequence[str] | None = None,
        at_once: bool = False,
        readers: Callable[[str], Reader] = Reader,
    ) -> Claims:
        """Claim up to ``count`` digests until ``now`` + LEASE; committed on return, so that each has one claimant.

        The longest due, without waiting for who else claims; or those of ``only``, of whom the others are told as
        refused: another process has the claim or failed a moment ago, it is not due, or they stopped digests.
        ``at_once`` ignores when it is due, and what `settle_digests` says of a next try.

        A digest holds up to ``limit`` deliveries of what ``readers`` says that its recipient reads, all `held` and
        never announced to them. There are fewer digests than asked for, but at least one, when together they would
        hold more than that. When ``deliveries`` is empty (all were acted on meanwhile) nothing must be sent; settled
        as sent, the news are cleared.
        """

    @abstractmethod
    def settle_digests(self, sent: Sequence[Digest], unsent: Sequence[Unsent], now: datetime) -> None:
        """End claims: what was sent is announced, also when another process took the claim over meanwhile; the rest
        stays news. What arrived or did not fit meanwhile stays news as well. Durable on return."""

    @abstractmethod
    def failing(self, limit: int) -> Sequence[Person]:
        """Recipients whose last digest the mail server did not take, the latest failure first."""

    @abstractmethod
    def unannounced(self, recipient: str | Reader, limit: int) -> Sequence[Delivery]:
        """What a claim would hold, claiming nothing."""

    @abstractmethod
    def pass_news_on(self, recipient: str, people: Sequence[str]) -> None:
        """Give the news of an identity to those who read its mail: they have news from then on, unless they had, and
        it has none unless it is one of them. Durable on return; done twice, or with no news there, it changes nothing.
        """

    @abstractmethod
    def untold(self, recipients: Collection[str], since: datetime) -> Sequence[str]:
        """Which of these identities have held mail from ``since`` on that is not announced to all its readers."""

    @abstractmethod
    def last_digest(self, recipient: str) -> Digest | None:
        """The last digest that was sent to a recipient, with those of its deliveries that are still kept."""

    @abstractmethod
    def digest(self, digest_id: UUID) -> Digest:
        """A digest with those of its deliveries that are still kept, oldest first; none as long as it is not recorded
        as sent. Raises NotFound. Known for `DIGESTS_KEPT` at least."""

    @abstractmethod
    def digest_recipient(self, digest_id: UUID) -> str:
        """Whose digest that was. Raises NotFound. Known for `DIGESTS_KEPT` at least."""

    @abstractmethod
    def find_news(self, since: datetime, local: Collection[str] | None) -> int:
        """Mark recipients who have held, unannounced mail from ``since`` on as having news; returns how many were.

        Heals the rare race of `add` with `settle_digests`, and announces older mail when a domain becomes
        local. ``local`` holds domains and whole addresses; None: everybody.
        """

    # ---- our own mail

    @abstractmethod
    def queue_mail(self, to: str, mail: bytes, now: datetime) -> None:
        """Put a mail of ours in the queue that `sending` empties. Durable on return."""

    @abstractmethod
    def sending(self, now: datetime) -> AbstractContextManager[OutgoingMail | None]:
        """Claim one queued mail, or yield None when none is due. Clean exit and RelayRefused remove it,
        RelayDeferred and anything else keep it with a back-off (10 s, doubling, at most 15 min; removed after a day).
        Exceptions go on to the caller."""

    # ---- signing in

    @abstractmethod
    def start_sign_in(self, sign_in: SignIn, limits: SignInLimits, to: str, mail: bytes) -> bool:
        """Record a sign-in and queue its mail, in one transaction; False (and nothing kept) beyond the limits."""

    @abstractmethod
    def sign_in(self, token_sha256: bytes, now: datetime) -> SignIn:
        """Look at a sign-in that is neither used nor expired. Raises LinkInvalid. Changes nothing."""

    @abstractmethod
    def use_sign_in(self, token_sha256: bytes, now: datetime) -> SignIn:
        """Use a sign-in up: exactly one caller gets it. Raises LinkInvalid."""

    @abstractmethod
    def use_sign_in_code(self, browser_sha256: bytes, code_sha256: bytes, now: datetime) -> SignIn:
        """Use up the newest live sign-in of this browser if the code is right. Raises LinkInvalid; the fifth wrong
        code kills that sign-in."""

    @abstractmethod
    def start_session(self, session_sha256: bytes, recipient: str, now: datetime) -> None:
        """Begin a session: 12 h without use or 7 days end it."""

    @abstractmethod
    def session(self, session_sha256: bytes, now: datetime) -> str | None:
        """Whose session this is, else None. Notes its use, at most once a minute."""

    @abstractmethod
    def end_session(self, session_sha256: bytes) -> None:
        """Sign out."""

    # ---- age

    @abstractmethod
    def purge(self, before: datetime, now: datetime) -> Purged:
        """Remove messages held before ``before`` with all that belongs to them, except those with a delivery that is
        `requested` or `releasing`; sweep leftovers of crashes, expired sign-ins, sessions, openings and digests.
        Runs beside everything else without stopping ingest for longer than 100 ms at a time."""

    @abstractmethod
    def prepare_days(self, now: datetime) -> None:
        """Make what the coming days need (partitions), so that no `add` has to. Called daily; `add` also copes
        without."""

    # ---- moving to another store, see portal.moving

    @abstractmethod
    def message_ids(self, after: UUID | None, limit: int) -> Sequence[UUID]:
        """Ids of messages beyond ``after``, oldest first."""

    @abstractmethod
    def records(self, ids: Collection[UUID]) -> Mapping[UUID, Record]:
        """What is kept of these messages, at most 1,000; those that are not (any more) known are left out."""

    @abstractmethod
    def take(self, record: Record, body: Body | None) -> None:
        """Keep a message as another store had it, under the same id, with its states and history. Durable on return.

        A message that is here already gets the record's deliveries and histories instead of its own; ``body`` is
        only needed for one that is not, and None then raises NotFound. Nobody is marked as having news. Where the same
        mail was held here meanwhile, both stay, and that one is the one by which it is known.
        """

    @abstractmethod
    def people(self, after: str, limit: int) -> Sequence[Person]:
        """Everybody of whom something is known, by identity, beyond ``after``."""

    @abstractmethod
    def take_people(self, people: Sequence[Person], *, preferences: bool) -> None:
        """Keep what another store knew of people. Durable on return.

        ``preferences``: as it says, also of those known here. Else what they wish (`stopped_at`) and when they are told
        stays for those known here, and only news and revoked links come to it.
        """

    @abstractmethod
    def digests(self, after: UUID | None, limit: int) -> Sequence[DigestRecord]:
        """Digests beyond the id ``after``, oldest first."""

    @abstractmethod
    def take_digests(self, digests: Sequence[DigestRecord]) -> None:
        """Keep digests as another store had them, so that their links open and `last_digest` finds them. Durable on
        return. Deliveries that are not known here are left out."""


def unclaimable(row: Sequence[Any] | None, now: Any, at_once: bool) -> AlreadyDone | None:
    """Why `claim_digests` must not claim a recipient, by their row: recipient, address, and the times stopped_at,
    news_since, next_digest_at and the lease's end, as the store keeps times, then more, and last the lease."""
    if row is None or row[3] is None:
        return AlreadyDone("there is nothing to tell this recipient")
    _, _, stopped_at, _, next_digest_at, lease_until, *_ = row
    if stopped_at is not None:
        return AlreadyDone("this recipient stopped digests")
    if lease_until is not None and lease_until > now and (row[-1] is not None or not at_once):
        return AlreadyDone("another process is sending this digest, or failed to a moment ago")
    if not at_once and (next_digest_at is None or next_digest_at > now):
        return AlreadyDone("this digest is not due")
    return None


def reader_of(recipient: str | Reader) -> Reader:
    """Who reads: a plain identity reads its own mail."""
    return recipient if isinstance(recipient, Reader) else Reader(recipient)


def address_of(recipient: str, address: str) -> str:
    """Where to tell somebody of mail for an address: as its envelope wrote it, if that is their own one."""
    return address if identity(address) == recipient else recipient


def open_store(
    url: StoreUrl | str, *, create: bool = False, must_exist: bool = False, must_be_ours: bool = False
) -> Store:
    """Open the store that ``url`` names.

    ``create``: make or upgrade it, as `quarantine init` does. A file store is made or upgraded anyway unless it
    ``must_exist`` as it is; with ``must_be_ours`` only in an empty folder. Raises ValueError for another kind of URL,
    StoreUnavailable when the store cannot be reached, StoreMisfit when it is missing or has another schema (the message
    names the command to run).
    """
    place = url if isinstance(url, StoreUrl) else StoreUrl.parse(url)
    if place.folder is not None:
        from portal.stores.files.store import FileStore

        return FileStore.open(place.folder, must_exist=must_exist, must_be_ours=must_be_ours)
    from portal.stores.postgres.store import PostgresStore

    return PostgresStore.open(place.dsn, create=create)
