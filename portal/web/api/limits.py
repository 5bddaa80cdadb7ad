"""Limits of requests. They are counted in memory: a limit in the store would add a write to each read."""

from __future__ import annotations

import threading
import time

_SECONDS = 60
_NAMES_MAX = 10_000  # so that many addresses do not fill the memory


class RequestLimit:
    """At most so many requests a minute for each name, in this process. Thread-safe."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._began = 0.0

    def wait_seconds(self, name: str) -> int:
        """Count a request, and return in how many seconds the next one is accepted; 0: this one is."""
        now = time.monotonic()
        with self._lock:
            if now - self._began >= _SECONDS or len(self._counts) > _NAMES_MAX:
                self._counts, self._began = {}, now
            self._counts[name] = self._counts.get(name, 0) + 1
            return 0 if self._counts[name] <= self._number else max(1, int(self._began + _SECONDS - now))
