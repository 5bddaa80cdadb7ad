"""Outcomes of sent mail, kept in memory while the store is unavailable.

An accepted mail that is not recorded is sent again when its claim ends. So the process that knows of it remembers it
and records it as soon as the store is available again. Only what a process was sending when it died is sent twice.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from portal.model.errors import QuarantineError, StoreUnavailable

log = logging.getLogger("quarantine.store")

RETRY_SECONDS = 1.0
_FAILURES = 30


@dataclass(slots=True)
class _Kept:
    what: str
    write: Callable[[], None]
    failures: int = 0  # while the store could be written to


class Outcomes:
    """The outcomes of one process that are not recorded yet, oldest first. Thread-safe.

    There are never more than mails were being sent when the store became unavailable, since no claim succeeds then.
    """

    def __init__(self, ping: Callable[[], None]) -> None:
        """``ping``: raises StoreUnavailable if the store cannot be written to."""
        self._ping = ping
        self._kept: deque[_Kept] = deque()
        self._lock = threading.Lock()  # of `_kept` and `_thread`
        self._recording = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def record(self, what: str, write: Callable[[], None]) -> bool:
        """Call ``write`` now, or later if the store is unavailable. Return whether it was called now.

        ``what``: for the log, with ids.
        ``write`` may be called again after it succeeded: the answer to a commit may be lost.
        """
        try:
            write()
        except StoreUnavailable as error:
            log.warning("not recorded yet, kept in memory: %s: %s", what, error)
            self._keep(what, write)
            return False
        return True

    def record_kept(self) -> None:
        """Record all that is kept, before anything new is claimed. Raises StoreUnavailable."""
        while self._kept:
            with self._recording:
                if not self._kept:
                    return
                kept = self._kept[0]
                try:
                    kept.write()
                except StoreUnavailable as error:
                    self._ping()
                    kept.failures += 1
                    if kept.failures < _FAILURES:
                        raise
                    # It would hold up everything else: for example, the partition of its message was removed.
                    log.error("lost, may be sent again: %s: %s", kept.what, error)
                except Exception as error:
                    text = str(error) if isinstance(error, QuarantineError) else "internal error"
                    log.error("lost, may be sent again: %s: %s", kept.what, text, exc_info=text == "internal error")
                else:
                    log.info("recorded later: %s", kept.what)
                self._kept.popleft()

    def close(self) -> None:
        """Record what is kept, if the store is available; then forget it."""
        self._closed.set()
        try:
            self.record_kept()
        except StoreUnavailable as error:
            for kept in self._kept:
                log.error("lost, may be sent again: %s: %s", kept.what, error)

    def _keep(self, what: str, write: Callable[[], None]) -> None:
        with self._lock:
            self._kept.append(_Kept(what, write))
            if self._thread is None:
                self._thread = threading.Thread(target=self._retry, name="outcomes", daemon=True)
                try:
                    self._thread.start()
                except (RuntimeError, MemoryError):  # RLIMIT_NPROC; the next claim records it
                    self._thread = None

    def _retry(self) -> None:
        while not self._closed.wait(RETRY_SECONDS):
            try:
                self.record_kept()
            except StoreUnavailable:
                continue
            with self._lock:
                if not self._kept:
                    self._thread = None
                    return
