"""Finding and copying messages. Each store adds how it holds messages and reads their bytes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
from uuid import UUID

from portal.model.message import WAITING, Delivery, DeliveryId, Export, Message, Scan, State, Tier, parse_id
from portal.stores import rules
from portal.stores.contracts import Messages
from portal.stores.journal import announced_line, delivery_line, scan_line
from portal.stores.records import Record
from portal.stores.shared.rows import Rows, add_announced_to, add_event, events
from portal.stores.shared.session import Engine, Session
from portal.stores.shared.verdicts import put_scan, raise_tier

FIRST = UUID(int=0)


class SqlMessages(Messages):
    """See `Messages`."""

    def __init__(self, engine: Engine, rows: Rows) -> None:
        self._engine = engine
        self._rows = rows

    def _raise_tier(self, held: UUID, export: Export, tier: Tier, deadline: float) -> tuple[UUID, ...]:
        """Set this verdict for ``held`` and all messages with the same bytes whose tier is milder. Return their ids.

        Runs after the transaction that holds the mail: if it fails, the sender's retry finishes it. ``deadline`` is in
        time.monotonic().
        """
        raised: list[UUID] = []
        after = FIRST
        while tier.less_harmful:
            ids = self._copies(held, export, tier, after, deadline)
            if ids:
                with self._writing_until(deadline) as session:
                    raised += raise_tier(session, self._rows, ids, export, tier, datetime.now(UTC))
            if len(ids) < rules.RAISED_TOGETHER:
                break
            after = ids[-1]
        return tuple(raised)

    @abstractmethod
    def _copies(self, held: UUID, export: Export, tier: Tier, after: UUID, deadline: float) -> Sequence[UUID]:
        """Return the ids after ``after`` of messages with a milder tier that are ``held`` or have the export's bytes.

        Returns at most `rules.RAISED_TOGETHER`, in order.
        """

    @abstractmethod
    def _writing_until(self, deadline: float) -> AbstractContextManager[Session]:
        """Begin a transaction that waits no longer than the deadline."""

    def record_scan(self, message_id: UUID, scan: Scan, tier: Tier, now: datetime) -> bool:
        with self._engine.writing() as session:
            return put_scan(session, self._rows, message_id, scan, tier, now)

    def find(self, text: str) -> Sequence[Message]:
        id = parse_id(text)
        with self._engine.reading() as session:
            found = self._rows.messages(session, "where id = :id", id=id) if id else []
            found += self._rows.messages(
                session,
                f"where {self._by_queue_id} order by id desc limit :limit",
                text=text,
                limit=rules.FOUND_MAX - len(found),
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


def import_scan(session: Session, rows: Rows, record: Record) -> None:
    """Write the record's virus scan, if it was done or failed; a waiting one was queued with the message."""
    if record.message.scan not in (None, WAITING):
        rows.put_scan(session, record.message)
        session.journal(partial(scan_line, record.message))


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
    for delivery, readers in zip(record.deliveries, record.announced_to, strict=False):
        for reader in readers:
            add_announced_to(session, reader, [delivery.key])
            session.journal(partial(announced_line, reader, [delivery.key]))
