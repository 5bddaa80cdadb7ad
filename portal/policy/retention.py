"""The end of each delivery, and the job that forgets deliveries at their end. See docs/decisions/retention.md."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta

from portal.model.message import Delivery, DeliveryId, State, Tier, held_at
from portal.policy.domains import Domains
from portal.stores import Store, notes

_FIRST = datetime(1970, 1, 1, tzinfo=UTC)
_DAY = timedelta(days=1)
_SOON = timedelta(days=5)
_KEPT_WHILE = (State.REQUESTED, State.RELEASING)  # states that wait for an administrator or the mail server
_AT_ONCE = 200  # deliveries in one transaction, so that ingest never waits for long


def end_of(domains: Domains, recipient: str, tier: Tier, state: State, held_at: datetime) -> datetime:
    """Return when a delivery is forgotten, by its recipient's domain, its message's tier and its state.

    The only place that decides it. No end is later than the removal of whole days (`Store.purge`).
    """
    days = domains.of(recipient).retention_days[tier]
    if state is State.BLOCKED:
        days = min(days, domains.blocked_retention_days)
    return held_at + timedelta(days=days)


def removal_of(domains: Domains, delivery: Delivery, now: datetime) -> tuple[datetime | None, bool]:
    """Return when a delivery is forgotten, and whether that is soon: in the last days, which are at most a third of its
    time. None: it is kept as long as it is in its state."""
    if delivery.state in _KEPT_WHILE:
        return None, False
    begin = delivery.message.held_at
    end = end_of(domains, delivery.recipient, delivery.message.tier, delivery.state, begin)
    return end, now >= end - min(_SOON, (end - begin) / 3)


def removal_time(store: Store, now: datetime) -> datetime:
    """Return the time as of which deliveries are removed: ``now``, or earlier while the statistics still count a day.

    A retention is a day at least, so what is removed as of the midnight after a day was held before it. It is never
    more than a day earlier: counting may fail for long, and messages are not kept for it. Raises StoreUnavailable.
    """
    day = store.statistics.next_day()
    if day is None:
        return now
    return min(now, max(datetime.combine(day + _DAY, time(), UTC), now - _DAY))


def expire_ended(
    store: Store, domains: Domains, now: datetime, *, all_of_them: bool = False, stopped: Callable[[], bool] = bool
) -> int:
    """Forget the deliveries that ended. Return how many.

    It looks at those that ended since the last call, unless ``all_of_them`` is given or a retention was changed: others
    came into the store later, or waited for somebody until then. Raises StoreUnavailable.
    """
    longest, version = domains.longest_retention_days, domains.retention_version()
    last = notes.EXPIRED.get(store)
    since = last.until if last is not None and last.version == version and not all_of_them else None
    shorter = sorted(days for days in domains.retention_periods() if days < longest)
    count = _expire_blocked(store, domains, now, stopped)
    for days in shorter if since is not None else shorter[:1]:
        age = timedelta(days=days)
        begin = _FIRST if since is None else since - age
        count += _expire_between(store, domains, begin, now - age, now, stopped)
    if not stopped():
        notes.EXPIRED.set(store, notes.Expired(version, now))
    return count


def _expire_blocked(store: Store, domains: Domains, now: datetime, stopped: Callable[[], bool]) -> int:
    before, after, count = now - timedelta(days=domains.blocked_retention_days), None, 0
    if domains.blocked_retention_days >= domains.longest_retention_days:
        return 0
    while not stopped():
        found = store.deliveries.ending(State.BLOCKED, before, _AT_ONCE, after)
        count += store.expire(found)
        if len(found) < _AT_ONCE:
            break
        after = found[-1].key
    return count


def _expire_between(
    store: Store, domains: Domains, begin: datetime, end: datetime, now: datetime, stopped: Callable[[], bool]
) -> int:
    after: DeliveryId | None = None
    count = 0
    while not stopped():
        found = store.deliveries.aged(begin, end, _AT_ONCE, after)
        count += store.expire(
            [
                each
                for each, tier in found
                if end_of(domains, each.recipient, tier, each.state, held_at(each.key.message_id)) <= now
            ]
        )
        if len(found) < _AT_ONCE:
            break
        after = found[-1][0].key
    return count
