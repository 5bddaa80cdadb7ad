"""Sizes of the store for `/metrics`: counting is too slow for a scrape, so the digest process does it before."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

from digest.stopping import Stopped, never
from portal.assemble import Parts
from portal.stores import notes

_EVERY = timedelta(minutes=5)  # at most, and at most a twentieth of the time is spent counting
_LONGEST = timedelta(days=1)


def measure(parts: Parts, now: datetime, *, stopped: Stopped = never) -> None:
    """Count what the store has, unless that was done a short while ago. Raises StoreUnavailable."""
    known = notes.SIZES.get(parts.store)
    # A time far ahead is that of a clock that was ahead.
    if stopped() or (known is not None and now < known.due_at < now + _LONGEST):
        return
    began = time.monotonic()
    sizes = parts.store.sizes()
    pause = timedelta(seconds=20 * (time.monotonic() - began))
    notes.SIZES.set(parts.store, notes.Measurement(now + min(max(_EVERY, pause), _LONGEST / 2), sizes))
