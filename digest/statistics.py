"""Daily statistics: count the days that are not closed, and close those that are over.

docs/decisions/statistics.md has the reasons.
"""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day

from digest.stopping import Stopped, never
from portal.assemble import Parts
from portal.monitoring import count_deliveries
from portal.stores import notes

_DAY = timedelta(days=1)
_CLOSED_AFTER = timedelta(hours=1)  # the end of a day; clocks of hosts differ, and an `add` takes seconds
_EVERY = timedelta(minutes=1)  # at most, and at most a twentieth of the time is spent counting
_LEASE = timedelta(minutes=30)  # of a host that counts


def count_days(parts: Parts, now: datetime, *, stopped: Stopped = never) -> None:
    """Count the days that are not closed, unless that was done a short while ago. Raises StoreUnavailable."""
    store, due = parts.store, notes.STATISTICS_DUE
    text = due.text(store)
    at = None if text is None else due.from_text(text)
    # A time far ahead is that of a clock that was ahead.
    if at is not None and now < at < now + _DAY:
        return
    if not store.notes.compare_and_set(due.name, text, due.to_text(now + _LEASE), now):
        return  # another host counts
    began = time.monotonic()
    try:
        _count(parts, now, stopped)
        count_deliveries(store)
    finally:
        due.set(store, now + max(_EVERY, timedelta(seconds=20 * (time.monotonic() - began))))


def _count(parts: Parts, now: datetime, stopped: Stopped) -> None:
    statistics, today = parts.store.statistics, now.date()
    statistics.reopen(today)
    day = statistics.next_day() or today
    if not parts.store.facets.is_complete():
        day = max(day, today - _DAY)  # older messages are still indexed, so their days are counted later
        is_open = True
    else:
        is_open = False
    while day <= today and not stopped():
        if is_open or now < _end(day) + _CLOSED_AFTER:
            statistics.count(day)
        else:
            statistics.close(day)
        day += _DAY


def _end(day: date) -> datetime:
    return datetime.combine(day + _DAY, time_of_day(), UTC)
