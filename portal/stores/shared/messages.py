"""Finding and copying messages. Each store adds how it holds messages and reads their bytes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from uuid import UUID

from portal.model.message import (
    WAITING,
    Delivery,
    DeliveryId,
    EventKind,
    Message,
    Scan,
    ScanOutcome,
    State,
    Tier,
    parse_id,
)
from portal.stores import lifecycle
from portal.stores.contracts import Messages
from portal.stores.journal import announced_line, delivery_line, scan_line
from portal.stores.records import Record
from portal.stores.shared.facet_rows import mark_stale
from portal.stores.shared.jobs import add_scan
from portal.stores.shared.rows import Rows, add_announced_to, add_event, events
from portal.stores.shared.session import Engine, Session
from portal.stores.shared.verdicts import put_scan, raise_tier

FIRST = UUID(int=0)
_COPIES_SECONDS = 10.0


class SqlMessages(Messages):
    """See `Messages`."""

    def __init__(self, engine: Engine, rows: Rows) -> None:
        self._engine = engine
        self._rows = rows

    def _raise_tier(
        self, id: UUID, body_sha256: bytes, update: Callable[[Message], Message], tier: Tier, deadline: float
    ) -> tuple[UUID, ...]:
        """Update ``id`` and all messages with the same bytes whose tier is milder. Return their ids.

        Runs after the transaction that holds the mail: if it fails, the sender's retry finishes it. ``update`` returns
        a message with this tier; ``deadline`` is in time.monotonic().
        """
        raised: list[UUID] = []
        after = FIRST
        while tier.less_harmful:
            ids = self._copies(id, body_sha256, tier, after, deadline)
            if ids:
                with self._writing_until(deadline) as session:
                    raised += raise_tier(session, self._rows, ids, update, tier, datetime.now(UTC))
            if len(ids) < lifecycle.RAISED_TOGETHER:
                break
            after = ids[-1]
        return tuple(raised)

    @abstractmethod
    def _copies(self, id: UUID, body_sha256: bytes, tier: Tier, after: UUID, deadline: float) -> Sequence[UUID]:
        """Return the ids after ``after`` of messages with a milder tier that are ``id`` or have these bytes.

        Returns at most `lifecycle.RAISED_TOGETHER`, in order.
        """

    @abstractmethod
    def _writing_until(self, deadline: float) -> AbstractContextManager[Session]:
        """Begin a transaction that waits no longer than the deadline."""

    def record_scan(self, message_id: UUID, scan: Scan, tier: Tier, now: datetime) -> Message:
        with self._engine.writing() as session:
            message = put_scan(session, self._rows, message_id, scan, tier, now)
        if scan.outcome is ScanOutcome.FOUND:
            deadline = monotonic() + _COPIES_SECONDS
            update = partial(lifecycle.with_scan, scan=scan, tier=tier)
            self._raise_tier(message_id, message.body_sha256, update, tier, deadline)
        return message

    def without_names(self, low: UUID, high: UUID, limit: int, *, newest_first: bool = False) -> Sequence[Message]:
        order = "desc" if newest_first else "asc"
        with self._engine.reading() as session:
            return self._rows.messages(
                session,
                f"where id >= :low and id < :high and attachments is null order by id {order} limit :limit",
                low=low,
                high=high,
                limit=limit,
            )

    def record_names(self, message_id: UUID, names: Sequence[str]) -> None:
        with self._engine.writing(durable=False) as session:
            self._rows.put_names(session, message_id, names)
            mark_stale(session, [message_id])

    def find(self, text: str) -> Sequence[Message]:
        id = parse_id(text)
        with self._engine.reading() as session:
            found = self._rows.messages(session, "where id = :id", id=id) if id else []
            found += self._rows.messages(
                session,
                f"where {self._by_queue_id} order by id desc limit :limit",
                text=text,
                limit=lifecycle.FOUND_MAX - len(found),
            )
        return found

    _by_queue_id = "queue_id = :text"  # must match the engine's index

    def ids(self, after: UUID | None, limit: int) -> Sequence[UUID]:
        with self._engine.reading() as session:
            rows = session.many(
                "select id from message where id > :after order by id limit :limit", after=after or FIRST, limit=limit
            )
        return [id for (id,) in rows]

    def records(self, ids: Collection[UUID]) -> Mapping[UUID, Record]:
        wanted = list(ids)
        deliveries: dict[UUID, list[Delivery]] = {}
        readers: dict[DeliveryId, list[str]] = {}
        with self._engine.reading(snapshot=True) as session:
            for delivery in self._rows.deliveries(
                session, "where d.message_id in :ids order by d.message_id, d.number", ids=wanted
            ):
                deliveries.setdefault(delivery.id, []).append(delivery)
            histories = events(session, wanted)
            for id, number, reader in session.many(
                "select message_id, number, reader from announced_to where message_id in :ids order by reader",
                ids=wanted,
            ):
                readers.setdefault(DeliveryId(id, number), []).append(reader)
            dedup_keys = self._rows.dedup_keys(session, wanted)
        return {
            id: Record(
                found[0].message,
                dedup_keys.get(id),
                tuple(found),
                tuple(tuple(histories.get(delivery.key, ())) for delivery in found),
                tuple(tuple(readers.get(delivery.key, ())) for delivery in found),
            )
            for id, found in deliveries.items()
        }


def import_scan(session: Session, rows: Rows, record: Record, now: datetime) -> None:
    """Record the virus scan of a record, and queue it if it was not done. The message's rows exist."""
    scan = record.message.scan
    if scan is None:
        return
    [message] = rows.messages(session, "where id = :id", id=record.message.id)
    kept = lifecycle.last_scan(message.scan, scan)
    if kept != message.scan:
        updated = replace(message, scan=kept)
        rows.put_scan(session, updated)
        mark_stale(session, [message.id])
        session.journal(partial(scan_line, updated))
    if not kept.is_done and scan != WAITING:  # a waiting one was queued when the message was inserted
        add_scan(session, message.id, now)


def import_deliveries(session: Session, rows: Rows, record: Record) -> None:
    """Replace the deliveries and histories of a message, whose rows exist, with the record's."""
    for delivery in record.deliveries:  # first, since every action locks the delivery's row first
        rows.put(session, delivery)
    session.execute("delete from event where message_id = :id", id=record.message.id)
    for delivery, history in zip(record.deliveries, record.histories, strict=True):
        for event in history:
            add_event(session, delivery.key, event)
        if history or delivery.state is not State.HELD or delivery.announced_at:
            session.journal(partial(delivery_line, delivery, history))
    forget = "delete from announced_to where message_id = :message_id and number = :number and not (reader in :readers)"
    announced = zip(record.deliveries, record.histories, record.announced_to, strict=False)
    for delivery, history, readers in announced:
        if any(event.kind is EventKind.REANNOUNCED for event in history):
            session.execute(forget, delivery.key, readers=list(readers))
        for reader in readers:
            add_announced_to(session, reader, [delivery.key])
            session.journal(partial(announced_line, reader, [delivery.key]))
