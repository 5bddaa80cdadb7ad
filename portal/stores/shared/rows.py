"""Rows of messages, deliveries and events as the values of `portal.model.message`, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from portal.model.errors import NotFound
from portal.model.message import FACTS, Actor, Delivery, DeliveryId, Event, EventKind, Facts, Flag, Message, State, Tier
from portal.stores import lifecycle, scans, symbols
from portal.stores.facets import FacetRow
from portal.stores.journal import delivery_line
from portal.stores.search import attachment_words, names_from, recipient_term, verdict_terms
from portal.stores.shared.audit import put_event
from portal.stores.shared.facet_rows import mark_stale
from portal.stores.shared.session import Row, Session

COLUMN_OF = {"user": "username", "symbols": "packed_symbols"}
# The columns that `message_from` takes.
MESSAGE = ("id", "tier", "scan", "attachments", *(COLUMN_OF.get(field, field) for field in FACTS))
# The columns that `delivery_from` takes, after the message.
DELIVERY = ("number", "recipient", "address", "state", "state_at", "reason", "attempts", "next_try_at", "announced_at")
WHERE_KEY = "where message_id = :message_id and number = :number"  # of a `DeliveryId`
# Since now, not since it was held: a digest that was due at that time would be sent at once. The row of a recipient who
# has news is only read: a lock of it could wait for a digest that waits for the delivery.
_MARK_NEWS = (
    "insert into recipient (recipient, address, news_since) select :recipient, :address, :now"
    " where not exists (select 1 from recipient where recipient = :recipient and news_since is not null)"
    " on conflict (recipient) do update set news_since = coalesce(recipient.news_since, excluded.news_since)"
)
_KEY = "d.message_id = :message_id and d.number = :number and d.state <> 'expired'"
_EVENT = "at, kind, actor, via, address, detail"
# Of an event ``e``, which is joined by `OF_DELIVERY`.
EVENT_OF = ", ".join(f"e.{column}" for column in _EVENT.split(", "))
OF_DELIVERY = "e.message_id = d.message_id and e.number = d.number"


class Rows(ABC):
    """Access to one engine's rows of messages and deliveries, and to their search terms."""

    @abstractmethod
    def messages(self, session: Session, rest: str, *, for_update: bool = False, **values: Any) -> list[Message]:
        """Return the messages ``m`` that ``rest``, the SQL after FROM, selects."""

    @abstractmethod
    def deliveries(
        self, session: Session, rest: str, *fields: object, for_update: bool = False, **values: Any
    ) -> list[Delivery]:
        """Return the deliveries ``d`` that ``rest`` selects, without those whose message was just purged."""

    @abstractmethod
    def of_messages(self, session: Session, ids: Sequence[UUID], condition: str, **values: Any) -> list[Delivery]:
        """Return the deliveries ``d`` of these messages with this condition. Takes one statement.

        The condition may end with an order.
        """

    @abstractmethod
    def with_events(
        self, session: Session, ids: Sequence[UUID], condition: str, **values: Any
    ) -> list[tuple[Delivery, list[Event]]]:
        """Return the same with their `events`."""

    @abstractmethod
    def add_terms(self, session: Session, message_id: UUID, terms: Sequence[str]) -> None:
        """Index a message under these terms as well."""

    @abstractmethod
    def put_verdict(self, session: Session, message: Message) -> None:
        """Write a message's tier, symbols, score, action and flags into its row, and index it under them.

        The earlier terms stay: `search.matches` checks the tier and the score themselves. The caller calls
        `mark_stale` afterwards, for all messages that it changes.
        """

    @abstractmethod
    def put_facets(
        self, session: Session, found: Sequence[FacetRow], symbols: Sequence[bytes], *, replace: bool
    ) -> None:
        """Write rows of `facet`, with their packed symbols, and index the messages under their terms.

        Unless ``replace``, existing rows stay.
        """

    @abstractmethod
    def without_facets(self, session: Session, low: UUID, high: UUID, limit: int) -> list[UUID]:
        """Return ids from ``low`` on and below ``high`` of messages without a row of `facet`, oldest first."""

    @abstractmethod
    def put_bare_facets(self, session: Session, id: UUID) -> None:
        """Write a row of `facet` without what only facets have, unless there is one."""

    def put_scan(self, session: Session, message: Message) -> None:
        """Write a message's last virus scan into its row, and index the message under the tier that follows from it.

        The caller calls `mark_stale` afterwards.
        """
        update = "update message set scan = :packed_scan where id = :message_id"
        session.execute(update, packed_scan=scans.pack(message.scan), message_id=message.id)
        self.add_terms(session, message.id, verdict_terms(message.tier, message.score))

    def put_names(self, session: Session, message_id: UUID, names: Sequence[str]) -> None:
        """Write the names of a message's attachments into its row, and index the message under their words.

        The caller calls `mark_stale` afterwards.
        """
        update = "update message set attachments = :names where id = :id"
        if session.execute(update, names="\n".join(names), id=message_id) and names:
            self.add_terms(session, message_id, attachment_words(names))

    @abstractmethod
    def dedup_keys(self, session: Session, ids: Sequence[UUID]) -> dict[UUID, bytes]:
        """Return the dedup keys of those of these messages that have one."""

    def delivery(self, session: Session, key: DeliveryId, *, for_update: bool = False) -> Delivery:
        """Return a delivery. Raises NotFound."""
        found = self.deliveries(session, f"where {_KEY}", key, for_update=for_update)
        if not found:
            raise NotFound("there is no such delivery")
        return found[0]

    def record(self, session: Session, key: DeliveryId, event: Event) -> Delivery:
        """Add an event to a delivery's history, the audit and the journal. Return the delivery in its current state."""
        add_event(session, key, event)
        delivery = self.delivery(session, key)
        put_event(session, key, delivery.recipient, event)
        session.journal(partial(delivery_line, delivery, [event]))
        return delivery

    def note(self, session: Session, delivery: Delivery, event: Event) -> None:
        """As `record`, but read the delivery's current state only for a store that has a journal."""
        add_event(session, delivery.key, event)
        put_event(session, delivery.key, delivery.recipient, event)
        session.journal(lambda: delivery_line(self.delivery(session, delivery.key), [event]))

    def set_recipient(self, session: Session, key: DeliveryId, recipient: str, address: str) -> None:
        """Set a delivery's recipient, and index the message under it."""
        update = "update delivery set recipient = :recipient, address = :address"
        session.execute(f"{update} {WHERE_KEY}", key, recipient=recipient, address=address)
        self.add_terms(session, key.message_id, [recipient_term(recipient)])
        mark_stale(session, [key.message_id])

    def put(self, session: Session, delivery: Delivery) -> None:
        """Overwrite a delivery, if it exists, with this one. Ends a claim."""
        row = session.one(f"select recipient from delivery {WHERE_KEY}", delivery.key, for_update=True)
        if row is None:
            return
        if row[0] != delivery.recipient:
            self.set_recipient(session, delivery.key, delivery.recipient, delivery.address)
        session.execute(
            "update delivery set state = :state, state_at = :state_at, reason = :reason, attempts = :attempts,"
            f" next_try_at = :next_try_at, announced_at = :announced_at, release_lease = null {WHERE_KEY}",
            delivery,
            delivery.key,
        )


def add_event(session: Session, key: DeliveryId, event: Event) -> None:
    """Add an event to a delivery's history."""
    insert = (
        "insert into event (message_id, number, at, kind, actor, via, address, detail)"
        " values (:message_id, :number, :at, :kind, :who, :via, :address, :detail)"
    )
    session.execute(insert, key, event.actor, event, who=event.actor.who)


def events(
    session: Session, ids: Collection[UUID], numbers: Collection[int] | None = None
) -> dict[DeliveryId, list[Event]]:
    """Return the histories of these messages' deliveries without the event `held`.

    ``numbers``: of the deliveries with these numbers only.
    """
    only = "" if numbers is None else "and number in :numbers"
    found: dict[DeliveryId, list[Event]] = {}
    for id, number, *row in session.many(
        f"select message_id, number, {_EVENT} from event where message_id in :ids {only} order by seq",
        ids=list(ids),
        numbers=list(numbers or ()),
    ):
        found.setdefault(DeliveryId(id, number), []).append(event_from(row))
    return found


def history(session: Session, key: DeliveryId) -> list[Event]:
    """Return the history of one delivery without the event `held`, in one statement. Raises NotFound."""
    rows = session.many(
        f"select {_EVENT} from (select 1 from delivery d where {_KEY}) found left join event"
        " on message_id = :message_id and number = :number order by seq",
        key,
    )
    if not rows:
        raise NotFound("there is no such delivery")
    return [event_from(row) for row in rows if row[0] is not None]


def by_delivery(found: Iterable[tuple[Delivery, Sequence[Any]]]) -> list[tuple[Delivery, list[Event]]]:
    """Return each delivery with its events, from a delivery and `EVENT_OF` of each event, nulls if there are none."""
    of: dict[DeliveryId, tuple[Delivery, list[Event]]] = {}
    for delivery, event in found:
        events = of.setdefault(delivery.key, (delivery, []))[1]
        events += [event_from(event)] if event[0] is not None else []
    return list(of.values())


def event_from(row: Sequence[Any]) -> Event:
    """Return the event of a row: at, kind, actor, via, address, detail."""
    at, kind, who, via, address, detail = row
    return Event(at, EventKind(kind), Actor.from_stored(who, via, address), detail)


def add_announced_to(session: Session, reader: str, keys: Sequence[DeliveryId]) -> None:
    """Record that this reader was notified of these deliveries; unknown deliveries are left out."""
    insert = (
        "insert into announced_to (message_id, number, reader) select message_id, number, :reader from delivery"
        f" {WHERE_KEY} on conflict (message_id, number, reader) do nothing"
    )
    for key in keys:
        session.execute(insert, key, reader=reader)


def make_unannounced(session: Session, key: DeliveryId) -> None:
    """Record that no reader was notified of a delivery."""
    session.execute(f"update delivery set announced_at = null {WHERE_KEY}", key)
    session.execute(f"delete from announced_to {WHERE_KEY}", key)


def mark_news(session: Session, delivery: Delivery, now: datetime) -> None:
    """Record that a recipient has news if a delivery is held that no digest has announced.

    For deliveries that are held again: those that were held days ago are not found by `find_news`.
    """
    if delivery.state is State.HELD and delivery.announced_at is None and delivery.recipient:
        address = lifecycle.address_of(delivery.recipient, delivery.address)
        session.execute(_MARK_NEWS, recipient=delivery.recipient, address=address, now=now)


def columns(facts: Facts) -> dict[str, Any]:
    """Return the values of a message's columns, except for its id and tier."""
    values = {COLUMN_OF.get(field, field): getattr(facts, field) for field in FACTS}
    return values | {"packed_symbols": symbols.pack(facts.symbols), "flags": " ".join(sorted(facts.flags))}


def message_from(row: Row) -> Message:
    """Return the message of a row of the columns `MESSAGE`."""
    id, tier, scan, attachments, *values = row
    facts = dict(zip(FACTS, values, strict=True))
    flags = facts["flags"]
    facts["symbols"] = symbols.unpack(facts["symbols"])
    facts["flags"] = frozenset(map(Flag, flags.split() if isinstance(flags, str) else flags))
    facts["has_8bit"] = bool(facts["has_8bit"])
    return Message(
        id=id, verdict_tier=Tier(tier), scan=scans.unpack(scan), attachments=names_from(attachments), **facts
    )


def delivery_from(row: Sequence[Any], message: Message) -> Delivery:
    """Return the delivery of a row of the columns `DELIVERY`."""
    number, recipient, address, state, *rest = row
    return Delivery(message, number, recipient, address, State(state), *rest)
