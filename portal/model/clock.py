"""The time, as functions that callers pass on."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta


def utc_now() -> datetime:
    """The current time, aware UTC."""
    return datetime.now(UTC)


def clock(now: datetime) -> Callable[[], datetime]:
    """A clock that shows ``now`` at this moment and goes on from there."""
    started = time.monotonic()
    return lambda: now + timedelta(seconds=time.monotonic() - started)
