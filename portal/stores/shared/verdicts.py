"""Messages that were received again with a worse verdict."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from uuid import UUID

from portal.model.message import Actor, ActorKind, Delivery, Event, EventKind, Export, Tier
from portal.stores import rules
from portal.stores.journal import delivery_line, verdict_line
from portal.stores.shared.rows import Rows, add_event
from portal.stores.shared.session import Session


def raise_tier(
    session: Session, rows: Rows, ids: Sequence[UUID], export: Export, tier: Tier, now: datetime
) -> Sequence[UUID]:
    """Set the export's verdict for those of these messages that have a milder tier and an unreleased delivery.

    Returns their ids.
    """
    unreleased: dict[UUID, list[Delivery]] = {}
    for delivery in rows.deliveries(
        session, "where d.message_id in :ids order by d.message_id, d.number", ids=list(ids)
    ):
        if delivery.state in rules.OPEN_STATES:
            unreleased.setdefault(delivery.id, []).append(delivery)
    # All transactions lock messages in the order of ids, so that two calls never wait for each other.
    messages = rows.messages(session, "where id in :ids order by id", for_update=True, ids=list(unreleased))
    raised = [message for message in messages if message.tier in tier.less_harmful]
    for message in raised:
        updated = rules.with_verdict(message, export, tier)
        rows.put_verdict(session, updated)
        session.journal(partial(verdict_line, updated))
        event = Event(now, EventKind.RAISED, Actor(ActorKind.SYSTEM), rules.verdict_change(message, tier))
        for delivery in unreleased[message.id]:
            add_event(session, delivery.key, event)
            session.journal(partial(delivery_line, delivery, [event]))
    return [message.id for message in raised]
