"""The contracts of a store. One test suite runs over every implementation.

A store knows nothing of HTTP, SMTP, links, templates or settings, and none of its library's errors leave it: they
become `StoreUnavailable` (try again later) or `StoreUnusable` (an administrator must act). Callers pass the time as
aware UTC ``now``, so that tests can turn the clock.

A claim (of a release, a digest, an outgoing mail) is a committed row with a lease: no connection or lock is held while
something is being sent. When a process dies its lease runs out and another process goes on: at worst a mail is sent
twice, but never silently dropped.

Methods for recipients take the `Reader` or the identity whose data they may see. The other methods have no such limit:
the command line, the background processes, and links, whose token names the delivery, call them.

A delivery is *announced* when a digest notified its recipient. For a delivery that is held under another name of its
reader, or that several people read, the readers who were notified are kept; it is announced when all of them were.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from uuid import UUID

from portal.model.message import (
    Actor,
    Body,
    Delivery,
    DeliveryId,
    Event,
    EventKind,
    Export,
    Filter,
    Message,
    Reader,
    State,
    Tier,
)
from portal.model.schedule import Preferences
from portal.stores.records import (
    Claims,
    Digest,
    DigestRecord,
    DigestRequest,
    Held,
    LinkOpen,
    OutgoingMail,
    Page,
    Person,
    Purged,
    QueuedMail,
    Record,
    SignIn,
    SignInLimits,
    Stats,
    Unsent,
)


class Messages(ABC):
    """Held messages and their bytes."""

    @abstractmethod
    def add(
        self, export: Export, body: Body, tier: Tier, announce: Collection[str], *, at: datetime | None = None
    ) -> Held:
        """Hold a message and return once it is durable: a power cut right after does not lose it.

        The same mail again (equal ``export.sameness``, within retention) returns the first id with ``known`` true,
        also when many processes add it at once. ``announce`` has the identities of those recipients who are notified
        by digest. Recipients are numbered in the order of ``export.recipients``; a message without any gets one
        delivery whose recipient and address are "" (see `Deliveries.assign`). ``at`` is when it was held, for mail
        that was kept elsewhere until now; None: now.

        A ``tier`` worse than that of the known message, or of messages with the same bytes, replaces theirs as long
        as one of their deliveries is not released; tiers never get better. The export's symbols, score, action and
        flags replace theirs, and each delivery's history gets an event `raised`. An export without symbols replaces
        only the tier and adds its flags.

        Raises StoreUnavailable, after which nothing of the message is visible, or all of it (a commit whose answer was
        lost): adding again is always right. Never waits longer than 3 s in all.
        """

    @abstractmethod
    def body(self, message_id: UUID) -> Iterator[bytes]:
        """Return the message exactly as it was received, in pieces of at most 1 MiB.

        Raises NotFound, or BodyMissing when the mail is gone, both before the first piece; BodyDamaged or
        StoreUnavailable when a later piece cannot be read or the SHA-256 differs: then the caller must discard what it
        got so far.
        """

    @abstractmethod
    def find(self, text: str) -> Sequence[Message]:
        """Return messages whose quarantine id or MTA queue id is exactly ``text``, newest first, at most 100."""

    @abstractmethod
    def ids(self, after: UUID | None, limit: int) -> Sequence[UUID]:
        """Return the ids of messages after this one, oldest first."""

    @abstractmethod
    def records(self, ids: Collection[UUID]) -> Mapping[UUID, Record]:
        """Return these messages, at most 1,000, as they are copied to another store. Unknown ids are left out."""

    @abstractmethod
    def import_record(self, record: Record, body: Body | None) -> None:
        """Keep a message of another store under its id, with its states and history. Durable on return.

        A message that is here already gets the record's deliveries and histories instead of its own; ``body`` is only
        needed for one that is not, and None then raises NotFound. Nobody is marked as having news. Where the same mail
        was held here in the meantime, both stay, and it is recognized by the one that was here.
        """


class Deliveries(ABC):
    """Deliveries: lists, histories, releases and other acts."""

    @abstractmethod
    def get(self, key: DeliveryId) -> Delivery:
        """Return a delivery. Raises NotFound."""

    @abstractmethod
    def of_message(self, message_id: UUID) -> Sequence[Delivery]:
        """Return all deliveries of a message, by number. Raises NotFound when there is no such message."""

    @abstractmethod
    def get_for(self, reader: Reader, message_id: UUID, number: int | None = None) -> Delivery:
        """Return this reader's delivery of a message: the one with this number, None: the first.

        Raises NotFound, also when it is somebody else's.
        """

    @abstractmethod
    def list_for(
        self,
        reader: Reader,
        states: Collection[State],
        limit: int,
        before: DeliveryId | None = None,
        *,
        words: str = "",
    ) -> Page:
        """Return this reader's deliveries in any of ``states``, newest message first; ``words`` as in `search`."""

    @abstractmethod
    def search(self, wanted: Filter, limit: int, before: DeliveryId | None = None) -> Page:
        """Return the deliveries of all recipients that match, newest first. Any text is a valid search.

        Answered by indexes, except for a part of a sender that begins no word and for state `held`, which are looked
        for in a bounded stretch of the list: a page may be short, or empty, and still have a ``next``.
        """

    @abstractmethod
    def history(self, key: DeliveryId) -> Sequence[Event]:
        """Return a delivery's events, oldest first, beginning with `held`. Raises NotFound."""

    @abstractmethod
    def last_events(self, keys: Collection[DeliveryId]) -> Mapping[DeliveryId, Sequence[Event]]:
        """Return, for each of these deliveries, the latest event of each kind (`Event.kind`), oldest first.

        Takes at most 1,000 deliveries and asks the database once. `held` is not an event here. Deliveries that have
        no events, or are not known, are left out.
        """

    @abstractmethod
    def released_from(self, recipients: Sequence[str], limit: int) -> Mapping[str, Sequence[str]]:
        """Return the From headers of mail that each of these recipients got released, newest first, at most ``limit``
        each. Recipients without any are left out."""

    @abstractmethod
    def assign(self, key: DeliveryId, address: str, actor: Actor, now: datetime) -> Delivery:
        """Give the delivery without a recipient (``""``) one. Raises NotFound, AlreadyDone when it has one."""

    @abstractmethod
    def move(
        self,
        key: DeliveryId,
        to: State,
        allowed: Collection[State],
        actor: Actor,
        now: datetime,
        *,
        kind: EventKind,
        reason: str = "",
        mail: QueuedMail | None = None,
    ) -> Delivery:
        """Bring a delivery into state ``to`` if it is in one of ``allowed``; record an event of this kind.

        ``reason`` becomes the delivery's reason; ``mail`` is queued in the same transaction. Durable on return. Raises
        NotFound, AlreadyDone (with the delivery as it is) when it is in another state: then nothing is queued.
        """

    @abstractmethod
    def releasing(
        self,
        key: DeliveryId,
        allowed: Collection[State],
        actor: Actor,
        now: datetime,
        answer: Callable[[], str] = str,
    ) -> AbstractContextManager[Delivery]:
        """Claim a delivery for release, yield it as claimed, and record the outcome.

        The claim is state `releasing`, ``attempts`` 1 or, coming from `releasing`, one more, ``next_try_at = now +
        LEASE``, committed before the block runs. A delivery that already is `releasing` can be claimed once its
        ``next_try_at`` has passed, whatever ``allowed`` says. Entering raises NotFound, or AlreadyDone with the
        delivery (released before, deleted, claimed by another process).

        On exit:
        - without an error: `released`; the event's detail is what ``answer`` returns then, the mail server's answer;
        - RelayDeferred: stays `releasing`, the error's text is its reason, ``next_try_at`` = now + back-off (1, 2, 4 …
          minutes, at most 1 h);
        - RelayRefused, NotAllowed, BodyMissing or BodyDamaged: `held` again with the error's text as reason;
        - any other error: as RelayDeferred, with the reason "internal error".
        Events: `releasing` when it comes from another state, then `released`, `deferred` or `failed` per try.
        The exception is raised again in each case. When recording fails, the lease runs out and the delivery is tried
        again: it may arrive twice, but is never dropped. If another process took the claim over in the meantime, only
        success is recorded.
        """

    @abstractmethod
    def due_releases(self, now: datetime, limit: int) -> Sequence[DeliveryId]:
        """Return deliveries in `releasing` whose ``next_try_at`` has passed, longest waiting first."""


class Digests(ABC):
    """Digests: claimed, sent, and those of before."""

    @abstractmethod
    def due(self, now: datetime | None, limit: int, after: str = "") -> Sequence[str]:
        """Return the identities of recipients with news, not stopped, not claimed, and ``next_digest_at <= now``.

        ``now`` None: all with news, whatever the hour, in order of identity after ``after``; else the longest due
        first, and ``after`` is not used.
        """

    @abstractmethod
    def claim(
        self,
        now: datetime,
        count: int,
        limit: int,
        *,
        only: Sequence[str] | None = None,
        ignore_schedule: bool = False,
        readers: Callable[[str], Reader] = Reader,
    ) -> Claims:
        """Claim up to ``count`` digests until ``now`` + LEASE; committed on return, so that each has one claimant.

        The longest due, without waiting for other processes that claim; or those of ``only``, and the others of them
        are returned as refused: another process has the claim or failed a moment ago, it is not due, or they stopped
        digests. ``ignore_schedule`` ignores when it is due, and the next try that `settle` recorded.

        A digest holds up to ``limit`` deliveries that its recipient reads (``readers``), all `held` and not announced
        to them. There are fewer digests than asked for, but at least one, when together they would hold more than
        that. A digest without ``deliveries`` (all were acted on in the meantime) must not be sent; settling it as sent
        clears the news.
        """

    @abstractmethod
    def settle(self, sent: Sequence[Digest], unsent: Sequence[Unsent], now: datetime) -> None:
        """End claims: deliveries that were sent are announced, also when another process took the claim over in the
        meantime; all others stay unannounced. Durable on return."""

    @abstractmethod
    def unannounced(self, reader: Reader, limit: int) -> Sequence[Delivery]:
        """Return the deliveries that a claim would hold, without claiming."""

    @abstractmethod
    def request(self, reader: Reader, now: datetime, since: datetime) -> DigestRequest:
        """Make a reader's digest due now, unless they asked for one after ``since``.

        It holds unannounced deliveries. When there are none, deliveries of their last digest that are still held count
        as unannounced again.
        """

    @abstractmethod
    def last(self, recipient: str) -> Digest | None:
        """Return the last digest that was sent to a recipient, with those of its deliveries that are still kept."""

    @abstractmethod
    def get(self, digest_id: UUID) -> Digest:
        """Return a digest with those of its deliveries that are still kept, oldest first; without any until it is
        recorded as sent. Kept for `DIGESTS_KEPT`. Raises NotFound."""

    @abstractmethod
    def recipient_of(self, digest_id: UUID) -> str:
        """Return the recipient of a digest. Kept for `DIGESTS_KEPT`. Raises NotFound."""

    @abstractmethod
    def record_link_open(
        self, recipient: str, issued_at: datetime, opened: LinkOpen, since: datetime
    ) -> Sequence[LinkOpen]:
        """Record that a link of the digest (``recipient``, ``issued_at``) was opened.

        Returns the opens of that digest from ``since`` on, this one included, oldest first, at most 500. Not
        necessarily durable.
        """

    @abstractmethod
    def records(self, after: UUID | None, limit: int) -> Sequence[DigestRecord]:
        """Return digests after this id, oldest first, as they are copied to another store."""

    @abstractmethod
    def import_records(self, digests: Sequence[DigestRecord]) -> None:
        """Keep digests of another store, so that their links open and `last` finds them. Durable on return.

        Deliveries that are not known here are left out.
        """


class Recipients(ABC):
    """Recipients: preferences, opt-outs, and when they are notified."""

    @abstractmethod
    def get(self, recipient: str) -> Person:
        """Return a recipient; an empty Person when nothing is known."""

    @abstractmethod
    def set_digests_stopped(
        self, recipient: str, stopped_at: datetime | None, *, mail: QueuedMail | None = None
    ) -> bool:
        """Stop (a time) or resume (None) a recipient's digests. Mail held while stopped is announced after resuming.

        Returns whether that changed anything; stopping twice keeps the first time. ``mail`` is queued in the same
        transaction if digests were stopped by this call.
        """

    @abstractmethod
    def set_preferences(self, recipient: str, preferences: Preferences) -> None:
        """Set a recipient's preferences. Their next digest is to be scheduled again, see `unscheduled`."""

    @abstractmethod
    def revoke_links(self, recipient: str, issued_before: datetime) -> None:
        """Revoke this recipient's links that were issued before this moment."""

    @abstractmethod
    def unscheduled(self, limit: int) -> Sequence[Person]:
        """Return recipients with news, not stopped, whose next digest is not scheduled."""

    @abstractmethod
    def schedule(self, recipient: str, at: datetime) -> None:
        """Set when a recipient's next digest is due, if it is not scheduled by now."""

    @abstractmethod
    def failing(self, limit: int) -> Sequence[Person]:
        """Return recipients whose last digest failed, the latest failure first."""

    @abstractmethod
    def pass_news_on(self, recipient: str, people: Sequence[str]) -> None:
        """Give the news of an identity to those who read its mail: they have news from then on, unless they had some,
        and the identity has none unless it is one of them. Durable on return. Idempotent."""

    @abstractmethod
    def with_unannounced(self, recipients: Collection[str], since: datetime) -> Sequence[str]:
        """Return which of these identities have held mail from ``since`` on that is not announced to all readers."""

    @abstractmethod
    def find_news(self, since: datetime, local: Collection[str] | None) -> int:
        """Mark recipients who have held, unannounced mail from ``since`` on as having news; return how many.

        Repairs the rare race of `Messages.add` with `Digests.settle`, and announces older mail when a domain becomes
        local. ``local`` has domains and whole addresses; None: everybody.
        """

    @abstractmethod
    def records(self, after: str, limit: int) -> Sequence[Person]:
        """Return recipients after this identity, in order, as they are copied to another store."""

    @abstractmethod
    def import_records(self, people: Sequence[Person], *, preferences: bool) -> None:
        """Keep recipients of another store. Durable on return.

        ``preferences``: replace the opt-out, preferences and schedule of those known here. Otherwise only news and
        revoked links are added to theirs.
        """


class SignIns(ABC):
    """Mailed sign-ins, and sessions. Only SHA-256 hashes of their secrets are kept."""

    @abstractmethod
    def start(self, sign_in: SignIn, limits: SignInLimits, mail: QueuedMail) -> bool:
        """Record a sign-in and queue its mail in one transaction; return False, and keep nothing, beyond the limits."""

    @abstractmethod
    def get(self, token_sha256: bytes, now: datetime) -> SignIn:
        """Return a sign-in that is neither used nor expired. Raises LinkInvalid."""

    @abstractmethod
    def use(self, token_sha256: bytes, now: datetime) -> SignIn:
        """Use a sign-in up: exactly one caller gets it. Raises LinkInvalid."""

    @abstractmethod
    def use_code(self, browser_sha256: bytes, code_sha256: bytes, now: datetime) -> SignIn:
        """Use up the newest valid sign-in of this browser if the code is right. Raises LinkInvalid; the fifth wrong
        code invalidates that sign-in."""

    @abstractmethod
    def start_session(self, session_sha256: bytes, recipient: str, now: datetime) -> None:
        """Begin a session. It ends after 12 h without use, or after 7 days."""

    @abstractmethod
    def session(self, session_sha256: bytes, now: datetime) -> str | None:
        """Return whose session this is, else None. Records its use, at most once a minute."""

    @abstractmethod
    def end_session(self, session_sha256: bytes) -> None:
        """End a session."""


class Outbox(ABC):
    """Our own mail that waits to be sent."""

    @abstractmethod
    def add(self, mail: QueuedMail, now: datetime) -> None:
        """Queue a mail. Durable on return."""

    @abstractmethod
    def sending(self, now: datetime) -> AbstractContextManager[OutgoingMail | None]:
        """Claim one queued mail; yield None when none is due.

        On exit without an error or with RelayRefused it is removed; any other error keeps it with a back-off (10 s,
        doubling, at most 15 min; removed after a day). The exception is raised again.
        """


class Notes(ABC):
    """Small texts and counters by name, for the processes that share the store."""

    @abstractmethod
    def get(self, name: str) -> str | None:
        """Return a note, or None."""

    @abstractmethod
    def set(self, name: str, value: str) -> None:
        """Set a note."""

    @abstractmethod
    def set_default(self, name: str, value: str) -> str:
        """Set a note unless it is set; return its value afterwards."""

    @abstractmethod
    def compare_and_set(
        self, name: str, old: str | None, new: str, now: datetime, *, mail: QueuedMail | None = None
    ) -> bool:
        """Set a note if its value is ``old`` (None: not set); return whether it was. If so, ``mail`` is queued in the
        same transaction."""

    @abstractmethod
    def add_counters(self, amounts: Mapping[str, float]) -> None:
        """Add to counters, each by its name. Not necessarily durable."""

    @abstractmethod
    def counters(self) -> Mapping[str, float]:
        """Return all counters."""


class Store(ABC):
    """Everything the portal keeps. Thread-safe; opened after the fork, one per process.

    Every method of it and of its parts may raise `StoreUnavailable`.
    """

    messages: Messages
    deliveries: Deliveries
    digests: Digests
    recipients: Recipients
    sign_ins: SignIns
    outbox: Outbox
    notes: Notes

    @abstractmethod
    def ping(self) -> None:
        """Return when the store can be written to now, within 2 s."""

    @abstractmethod
    def close(self) -> None:
        """Close files and connections. May be called twice."""

    @abstractmethod
    def heartbeat(self, now: datetime) -> None:
        """Record that the digest process is alive."""

    @abstractmethod
    def stats(self, now: datetime) -> Stats:
        """Return the numbers for `/healthz` and `/metrics`."""

    @abstractmethod
    def repair_clock_skew(self, now: datetime) -> int:
        """Undo what a clock that was ahead left; return how many recipients, releases and mails were changed.

        Digests scheduled more than ten days ahead are unscheduled, claims and retries that end more than a day ahead
        are over, and digests asked for later than ``now`` were not.
        """

    @abstractmethod
    def purge(self, before: datetime, now: datetime) -> Purged:
        """Remove messages held before ``before`` with all that belongs to them, except those with a delivery that is
        `requested` or `releasing`; remove leftovers of crashes, expired sign-ins, sessions, link opens and digests.
        Never stops ingest for longer than 100 ms at a time."""

    @abstractmethod
    def prepare_days(self, now: datetime) -> None:
        """Make the partitions or folders of the coming days, so that no `Messages.add` has to. Called daily; `add` also
        works without."""
