"""Sizes of the store for `/metrics`: counting is too slow for a scrape, so the digest process does it before."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import datetime, timedelta

from digest.stopping import Stopped, never
from portal.assemble import Parts
from portal.model.errors import StoreUnavailable
from portal.stores import notes

_EVERY = timedelta(minutes=5)  # at most, and at most a twentieth of the time is spent counting
_LONGEST = timedelta(days=1)


def measure(parts: Parts, now: datetime, *, stopped: Stopped = never) -> None:
    """Count what the store has, unless that was done, or failed, a short while ago. Raises StoreUnavailable."""
    known = notes.SIZES.get(parts.store)
    waits_for = (known and known.due_at, notes.SIZES_FAILED.get(parts.store))
    # A time far ahead is that of a clock that was ahead.
    if stopped() or any(at is not None and now < at < now + _LONGEST for at in waits_for):
        return
    began = time.monotonic()

    def due_at() -> datetime:
        pause = timedelta(seconds=20 * (time.monotonic() - began))
        return now + min(max(_EVERY, pause), _LONGEST / 2)

    try:
        sizes = parts.store.sizes()
    except StoreUnavailable:
        with suppress(StoreUnavailable):  # a store that is not available at all is tried again soon
            notes.SIZES_FAILED.set(parts.store, due_at())
        raise
    notes.SIZES.set(parts.store, notes.Measurement(due_at(), sizes))
