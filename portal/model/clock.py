"""The current time, as functions that are passed as arguments."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta


def utc_now() -> datetime:
    """Return the current time, aware UTC."""
    return datetime.now(UTC)


def clock(now: datetime) -> Callable[[], datetime]:
    """Return a clock that starts at ``now`` and advances with the monotonic time."""
    started = time.monotonic()
    return lambda: now + timedelta(seconds=time.monotonic() - started)
