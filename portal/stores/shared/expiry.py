"""Deliveries that are forgotten before their day is removed.

The row stays, without its recipient, as long as the message has other deliveries: their numbers count from the first
recipient. The last one to be forgotten takes the message with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from portal.model.message import DeliveryId, State, Tier, first_id
from portal.stores.records import Ending
from portal.stores.shared.rows import WHERE_KEY
from portal.stores.shared.session import Session

_FORGET = (
    "update delivery set state = 'expired', recipient = '', address = '', reason = '', next_try_at = null,"
    f" release_lease = null {WHERE_KEY} and state = :state"
)


def ending(session: Session, state: State, before: datetime, after: DeliveryId | None, limit: int) -> Sequence[Ending]:
    """See `Deliveries.ending`."""
    key = after or DeliveryId(UUID(int=0), 0)
    # The state is a constant, and compared with `held` as well, so that both engines use the index without held ones.
    rows = session.many(
        f"select message_id, number, recipient from delivery where state = '{state.value}'"
        " and state <> 'held' and message_id < :before_id"
        " and (message_id, number) > (:after_id, :after_number) order by message_id, number limit :limit",
        before_id=first_id(before),
        after_id=key.message_id,
        after_number=key.number,
        limit=limit,
    )
    return [Ending(DeliveryId(id, number), state, recipient) for id, number, recipient in rows]


def aged(
    session: Session, since: datetime, before: datetime, after: DeliveryId | None, limit: int
) -> Sequence[tuple[Ending, Tier]]:
    """See `Deliveries.aged`."""
    key = after or DeliveryId(first_id(since), -1)
    rows = session.many(
        "select d.message_id, d.number, d.recipient, d.state, m.tier from delivery d join message m"
        " on m.id = d.message_id where d.message_id >= :after_id and d.message_id < :before_id"
        " and (d.message_id, d.number) > (:after_id, :after_number)"
        " and d.state not in ('requested', 'releasing', 'expired') order by d.message_id, d.number limit :limit",
        before_id=first_id(before),
        after_id=key.message_id,
        after_number=key.number,
        limit=limit,
    )
    return [
        (Ending(DeliveryId(id, number), State(state), recipient), Tier(tier))
        for id, number, recipient, state, tier in rows
    ]


def forget(session: Session, deliveries: Sequence[Ending]) -> tuple[int, list[UUID]]:
    """Forget these deliveries unless their state has changed.

    Return how many there were, and the messages that have no other delivery: the caller removes them with all rows.
    """
    forgotten = [each.key for each in deliveries if session.execute(_FORGET, each.key, state=each.state.value)]
    if not forgotten:
        return 0, []
    rows = session.many(
        "select distinct message_id from delivery where message_id in :ids and state <> 'expired'",
        ids=[key.message_id for key in forgotten],
    )
    kept = {id for (id,) in rows}
    for key in forgotten:
        if key.message_id in kept:
            session.execute(f"delete from event {WHERE_KEY}", key)
            session.execute(f"delete from announced_to {WHERE_KEY}", key)
    return len(forgotten), sorted({key.message_id for key in forgotten} - kept)


def all_forgotten(session: Session, after: UUID, limit: int) -> list[UUID]:
    """Return messages after this id whose deliveries were all forgotten, oldest first, since a crash left them."""
    rows = session.many(
        "select distinct message_id from delivery d where state = 'expired' and state <> 'held'"
        " and message_id > :after_id"
        " and not exists (select 1 from delivery o where o.message_id = d.message_id and o.state <> 'expired')"
        " order by message_id limit :limit",
        after_id=after,
        limit=limit,
    )
    return [id for (id,) in rows]
