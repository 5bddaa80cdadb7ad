"""Verdicts that came after a message was held: it was received again, or a virus scanner read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from uuid import UUID

from portal.model.errors import NotFound
from portal.model.message import Actor, ActorKind, Delivery, Event, EventKind, Message, Scan, Tier
from portal.stores import lifecycle
from portal.stores.journal import delivery_line, scan_line, verdict_line
from portal.stores.shared.facet_rows import mark_stale
from portal.stores.shared.rows import Rows, add_event
from portal.stores.shared.session import Session


def raise_tier(
    session: Session, rows: Rows, ids: Sequence[UUID], update: Callable[[Message], Message], tier: Tier, now: datetime
) -> Sequence[UUID]:
    """Update those of these messages that have a milder tier and an unreleased delivery, and return their ids.

    ``update`` returns a message with this tier.
    """
    unreleased: dict[UUID, list[Delivery]] = {}
    for delivery in rows.deliveries(
        session, "where d.message_id in :ids order by d.message_id, d.number", ids=list(ids)
    ):
        if delivery.state in lifecycle.OPEN_STATES:
            unreleased.setdefault(delivery.id, []).append(delivery)
    # All transactions lock messages in the order of ids, so that two calls never wait for each other.
    messages = rows.messages(session, "where id in :ids order by id", for_update=True, ids=list(unreleased))
    raised = [message for message in messages if message.verdict_tier in tier.less_harmful]
    for message in raised:
        _put(session, rows, message, update(message), unreleased[message.id], now)
    mark_stale(session, [message.id for message in raised])
    return [message.id for message in raised]


def put_scan(session: Session, rows: Rows, message_id: UUID, scan: Scan, tier: Tier, now: datetime) -> Message:
    """Record a virus scan of one message, see `Messages.record_scan`. Return the message as it is stored afterwards."""
    # As in `raise_tier`: deliveries are read before the message is locked.
    deliveries = rows.deliveries(session, "where d.message_id = :id order by d.number", id=message_id)
    found = rows.messages(session, "where id = :id", for_update=True, id=message_id)
    if not found:
        raise NotFound("there is no such message")
    [message] = found
    updated = lifecycle.with_scan(message, scan, tier)
    if updated.verdict_tier is not message.verdict_tier:
        _put(session, rows, message, updated, [d for d in deliveries if d.state in lifecycle.OPEN_STATES], now)
    elif updated.scan != message.scan:
        rows.put_scan(session, updated)
        session.journal(partial(scan_line, updated))
    mark_stale(session, [message_id])
    return updated


def _put(
    session: Session, rows: Rows, before: Message, after: Message, unreleased: Sequence[Delivery], now: datetime
) -> None:
    """Write a worse verdict, and an event into the history of each unreleased delivery."""
    rows.put_verdict(session, after)
    session.journal(partial(verdict_line, after))
    if after.scan != before.scan:
        rows.put_scan(session, after)
        session.journal(partial(scan_line, after))
    event = Event(now, EventKind.RAISED, Actor(ActorKind.SYSTEM), lifecycle.verdict_change(before, after.verdict_tier))
    for delivery in unreleased:
        add_event(session, delivery.key, event)
        session.journal(partial(delivery_line, delivery, [event]))
