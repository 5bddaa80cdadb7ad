"""The contracts of held messages and their deliveries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from types import MappingProxyType
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
    Scan,
    Start,
    State,
    Tier,
)
from portal.stores.records import Counts, Ending, Held, Page, QueuedMail, Record

NO_STARTS: Mapping[str, Start] = MappingProxyType({})


class Messages(ABC):
    """Held messages and their bytes."""

    @abstractmethod
    def add(
        self,
        export: Export,
        body: Body,
        tier: Tier,
        announce: Collection[str],
        *,
        at: datetime | None = None,
        scan: Scan | None = None,
        starts: Mapping[str, Start] | None = NO_STARTS,
    ) -> Held:
        """Hold a message and return once it is durable: a power cut right after does not lose it.

        Adding the same mail again (equal ``export.dedup_key``, within retention) returns the first id with ``known``
        true, also when many processes add it at once. ``announce`` has the identities of the recipients who are
        notified by digest. Deliveries are numbered in the order of ``export.recipients``; a message without recipients
        gets one delivery whose recipient and address are "" (see `Deliveries.assign`). ``at`` is when the message was
        held, for mail imported from elsewhere; None: now. ``scan``: the virus scan of the message; for `WAITING` a
        background job `SCAN` is queued in the same transaction. ``starts``: how the deliveries of these identities
        begin, all others are `held`; each is the first event of the delivery's history. With None all are `held` if
        the store has no rules in use; otherwise nothing is held and RulesInUse is raised, so that the caller decides.

        A ``tier`` worse than that of the known message, or of messages with the same bytes, replaces theirs as long
        as one of their deliveries is not released; tiers never get better. The export's symbols, score, action and
        flags replace theirs, and each delivery's history gets an event `raised`. An export without symbols replaces
        only the tier and adds its flags.

        Raises RulesInUse; StoreUnavailable. Then the message is either not held, or held completely because only the
        answer to the commit was lost; adding it again is always safe. Takes at most 3 s in total.
        """

    @abstractmethod
    def body(self, message_id: UUID) -> Iterator[bytes]:
        """Return the message exactly as it was received, in pieces of at most 1 MiB.

        Raises NotFound, or BodyMissing when the mail is gone, both before the first piece; BodyDamaged or
        StoreUnavailable when a later piece cannot be read or the SHA-256 differs: then the caller must discard the
        pieces that it received.
        """

    @abstractmethod
    def record_scan(self, message_id: UUID, scan: Scan, tier: Tier, now: datetime) -> Message:
        """Record a virus scan that was done or failed. Return the message as it is stored afterwards.

        ``tier`` is the tier by the scan's symbols. If it is worse than that of the message, or of messages with the
        same bytes, it replaces theirs as long as one of their deliveries is not released, the scan and its symbols are
        added to theirs, and each of these deliveries gets an event `raised`. Tiers never get better; a scan that found
        something is kept whatever later ones say, and one that was done is not replaced by one that failed. Durable
        on return. Raises NotFound.
        """

    @abstractmethod
    def without_names(self, low: UUID, high: UUID, limit: int, *, newest_first: bool = False) -> Sequence[Message]:
        """Return messages with ids from ``low`` on and below ``high``, in order, for which `record_names` was not
        called."""

    @abstractmethod
    def record_names(self, message_id: UUID, names: Sequence[str]) -> None:
        """Record the names of a message's attachments: cleaned, without line ends. Searches find their words.

        Does nothing for an unknown message. A power cut may undo it.
        """

    @abstractmethod
    def find(self, text: str) -> Sequence[Message]:
        """Return messages whose quarantine id or MTA queue id is exactly ``text``, newest first, at most 100."""

    @abstractmethod
    def ids(self, after: UUID | None, limit: int) -> Sequence[UUID]:
        """Return up to ``limit`` message ids after this one (None: from the first one on), oldest first."""

    @abstractmethod
    def records(self, ids: Collection[UUID]) -> Mapping[UUID, Record]:
        """Return the records of these messages, at most 1,000, for a copy. Unknown ids are left out."""

    @abstractmethod
    def import_record(self, record: Record, body: Body | None) -> None:
        """Hold a message of another store under its id, with its states and history. Durable on return.

        If this store has the message already, the record's deliveries and histories replace its own. ``body`` is only
        needed if it does not; None then raises NotFound. No recipient is marked as having news. If this store held the
        same mail in the meantime, both messages stay, and the one held here keeps the dedup key.
        """


class Deliveries(ABC):
    """Deliveries: lists, histories, releases and other actions."""

    @abstractmethod
    def get(self, key: DeliveryId) -> Delivery:
        """Return a delivery. Raises NotFound."""

    @abstractmethod
    def of_message(self, message_id: UUID) -> Sequence[Delivery]:
        """Return all deliveries of a message, by number. Raises NotFound when there is no such message."""

    @abstractmethod
    def get_for(self, reader: Reader, message_id: UUID, number: int | None = None) -> Delivery:
        """Return this reader's delivery of a message: the one with this number, or the first one for None.

        Raises NotFound, also when the delivery is another reader's.
        """

    @abstractmethod
    def list_for(
        self,
        reader: Reader,
        states: Collection[State],
        limit: int,
        before: DeliveryId | None = None,
    ) -> Page:
        """Return this reader's deliveries in any of ``states``, newest message first."""

    @abstractmethod
    def matching(
        self,
        reader: Reader,
        wanted: Filter,
        limit: int,
        before: DeliveryId | None = None,
        *,
        down_to: DeliveryId | None = None,
    ) -> Page:
        """Return this reader's deliveries that match, as `search` does. The recipients of ``wanted`` are ignored.

        With ``down_to`` the page ends with this delivery or, if it does not match, the next newer one. It is still
        newest first, and its ``next`` is the ``down_to`` of the page before it; None: there are no newer ones.
        """

    @abstractmethod
    def near_duplicates(self, delivery: Delivery) -> Page:
        """Return other held deliveries of the same recipient that are nearly identical to this one (`Likeness`).

        They are searched among the newest 1,000 held ones, by one query. The page has at most 200 of them, and a
        ``next`` if there may be more.
        """

    @abstractmethod
    def of_reader(self, reader: Reader, keys: Collection[DeliveryId]) -> Sequence[Delivery]:
        """Return those of these deliveries that are this reader's, in the order of ``keys``."""

    @abstractmethod
    def with_last_events(
        self, reader: Reader, message_ids: Collection[UUID]
    ) -> Mapping[DeliveryId, tuple[Delivery, Sequence[Event]]]:
        """Return this reader's deliveries of these messages in order, each with its `last_events`, in one query."""

    @abstractmethod
    def counts(self, reader: Reader, at_most: int, senders: int = 0, since: DeliveryId | None = None) -> Counts:
        """Count the newest deliveries of a reader by state: ``at_most`` of each of their identities.

        So it takes as long for a large mailbox as for a small one. With what `released_from` returns, ``senders`` of
        each identity, and the deliveries that are not older than ``since``. Runs one query, for up to 100 identities.
        """

    @abstractmethod
    def search(self, wanted: Filter, limit: int, before: DeliveryId | None = None) -> Page:
        """Return the deliveries of all recipients that match, newest first. Any text is a valid search.

        Uses indexes, except for a part of a sender that does not begin a word and for state `held`. For these, one call
        examines a bounded number of deliveries, so a page may be short or empty and still have a ``next``.
        """

    @abstractmethod
    def history(self, key: DeliveryId) -> Sequence[Event]:
        """Return a delivery's events, oldest first, beginning with `held`. Raises NotFound."""

    @abstractmethod
    def histories(self, keys: Collection[DeliveryId]) -> Mapping[DeliveryId, Sequence[Event]]:
        """Return all events of these deliveries, oldest first. Otherwise as `last_events`."""

    @abstractmethod
    def last_events(self, keys: Collection[DeliveryId]) -> Mapping[DeliveryId, Sequence[Event]]:
        """Return, for each of these deliveries, the latest event of each kind (`Event.kind`), oldest first.

        Takes at most 1,000 deliveries and runs one database query. The event `held` is not included. Unknown deliveries
        and deliveries without events are left out.
        """

    @abstractmethod
    def released_from(self, recipients: Sequence[str], limit: int) -> Mapping[str, Sequence[str]]:
        """Return the From headers of the mail released to each of these recipients, newest first, at most ``limit``
        each. Recipients without released mail are left out."""

    @abstractmethod
    def assign(self, key: DeliveryId, address: str, actor: Actor, now: datetime) -> Delivery:
        """Set the recipient of a delivery that has none (``""``). Raises NotFound, AlreadyDone when it has one."""

    @abstractmethod
    def ending(self, state: State, before: datetime, limit: int, after: DeliveryId | None = None) -> Sequence[Ending]:
        """Return deliveries in a state, other than `held`, of messages held before ``before``, oldest first, beginning
        after the delivery ``after``."""

    @abstractmethod
    def requested(self, domains: Collection[str] | None, limit: int) -> Sequence[Delivery]:
        """Return the deliveries with an open release request, longest waiting first. ``domains``: only those of
        recipients there; None: all."""

    @abstractmethod
    def count_requested(self, domains: Collection[str] | None, at_most: int) -> int:
        """Return the number of what `requested` returns, not more than ``at_most``."""

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
        detail: str = "",
        mails: Sequence[QueuedMail] = (),
        next_try_at: datetime | None = None,
    ) -> Delivery:
        """Change a delivery's state to ``to`` if it is in one of ``allowed``; record an event of this kind.

        ``reason`` becomes the delivery's reason and the event's detail; ``detail`` is that of an event without a
        reason. ``mails`` are queued in the same transaction, but those of an event
        `requested` only once a day for each delivery, and again after a denial. ``next_try_at`` is for the
        state `releasing`: nobody has claimed the release, and its first try may begin at this time. Durable on return.
        Raises NotFound; AlreadyDone (with the current delivery) when it is in another state, and then nothing is
        queued.
        """

    @abstractmethod
    def restore(self, key: DeliveryId, actor: Actor, now: datetime, *, detail: str = "") -> Delivery:
        """Undo the deletion of a delivery: it is blocked or let through again if it was so before, otherwise held, with
        the reason that it had.

        Records an event with this detail. Durable on return. Raises NotFound; AlreadyDone if it is not deleted.
        """

    @abstractmethod
    def end_request(self, key: DeliveryId, event: Event, mails: Sequence[QueuedMail] = ()) -> Delivery:
        """End a release request by an event `withdrawn` or `refused`: the delivery is in its state before again.

        The detail of a denial becomes the delivery's reason. ``mails`` are queued in the same transaction. Durable on
        return. Raises NotFound; AlreadyDone if there is no open request, and then nothing is queued.
        """

    @abstractmethod
    def reannounce(self, key: DeliveryId, actor: Actor, now: datetime, *, detail: str = "") -> Delivery:
        """Make a held delivery unannounced to all its readers: the first digest after ``now`` lists it again.

        Records an event with this detail. Durable on return. Raises NotFound; AlreadyDone if it is not held.
        """

    @abstractmethod
    def record(
        self,
        key: DeliveryId,
        event: Event,
        *,
        allowed: Collection[State] = frozenset(State),
        mails: Sequence[QueuedMail] = (),
        interval: timedelta = timedelta(),
    ) -> None:
        """Add an event that changes no state. Durable on return.

        ``mails`` are queued in the same transaction. Raises NotFound; AlreadyDone if the state is not ``allowed`` or an
        event of this kind was recorded less than ``interval`` before, and then nothing is queued.
        """

    @abstractmethod
    def releasing(
        self,
        key: DeliveryId,
        allowed: Collection[State],
        actor: Actor,
        now: datetime,
        answer: Callable[[], str] = str,
        *,
        check: Callable[[Delivery], object] = bool,
        detail: str = "",
    ) -> AbstractContextManager[Delivery]:
        """Claim a delivery for release, yield it as claimed, and record the outcome.

        The claim sets state `releasing`, ``next_try_at = now + LEASE``, and ``attempts``: 1, or one more if the state
        was `releasing` before. It is committed before the block runs. A delivery that already is `releasing` can be
        claimed once its ``next_try_at`` has passed, whatever ``allowed`` contains; but if that is the end of another
        process's claim, only by a retry (``allowed`` is empty) and not shortly after an outage of the store
        (`Outcomes`). Entering raises NotFound, or
        AlreadyDone with the delivery (already released, deleted, claimed by another process). Before a delivery in an
        allowed state is claimed, ``check`` is called with it, under the lock of its row: if it raises, nothing changes.
        ``detail`` is that of the event `releasing`.

        On exit:
        - no error: `released`; the event's detail is the return value of ``answer``, the mail server's answer;
        - RelayDeferred: stays `releasing` with the error's text as reason, ``next_try_at`` = now + back-off (1, 2, 4 …
          minutes, at most 1 h);
        - RelayRefused, NotAllowed, BodyMissing or BodyDamaged: `held` again with the error's text as reason;
        - any other error: as RelayDeferred, with the reason "internal error".
        Events: `releasing` if the state was another one before; then, for each try, `released`, `deferred`, `failed`
        or, for NotAllowed, `stopped`.
        The exception is raised again in each case. While the store is unavailable, the outcome is kept in memory
        (`Outcomes`). If the process dies, the lease expires and the release is retried: the mail may arrive twice, but
        is never dropped. If another process took the claim over in the meantime, only success is recorded.
        """

    @abstractmethod
    def aged(
        self, since: datetime, before: datetime, limit: int, after: DeliveryId | None = None
    ) -> Sequence[tuple[Ending, Tier]]:
        """Return deliveries of messages held from ``since`` to ``before``, each with its message's tier, oldest first,
        beginning after the delivery ``after``. Those that are requested, releasing or forgotten are left out."""

    @abstractmethod
    def due_releases(self, now: datetime, limit: int) -> Sequence[DeliveryId]:
        """Return deliveries in `releasing` whose ``next_try_at`` has passed, longest waiting first."""
