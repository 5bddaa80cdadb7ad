"""Outcomes of sending, kept in memory while the store is unavailable.

A mail whose outcome is not recorded is sent again when its claim ends. So the process that knows the mail server's
answer remembers it and records it as soon as the store is available again, and no other process takes the claim over
until it had time to do so. Only what a process was sending when it died is sent twice. See docs/decisions/outcomes.md.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from portal.model.errors import QuarantineError, StoreUnavailable

log = logging.getLogger("quarantine.store")

RETRY_SECONDS = 1.0
# After an outage a living process connects within some 8 s, if two of three hosts do not answer, and then records.
TAKE_OVER_SECONDS = 15.0
_AT_ONCE_SECONDS = 1.0  # a failure that took longer is not a lost connection, and the caller may be a web request
_BUSY_SECONDS = 1.0  # the longest wait of a claim for another thread that records
_GIVE_UP_SECONDS = 30.0
_POLL_SECONDS = 0.02


@dataclass(slots=True)
class _Kept:
    what: str
    write: Callable[[], None]
    failing_since: float | None = None  # while the store could be written to; monotonic


class Outcomes:
    """The outcomes of one process that are not recorded yet, oldest first. Thread-safe.

    There are never more than mails were being sent when the store became unavailable, since nothing is claimed before
    they are recorded.
    """

    def __init__(self, ping: Callable[[], None]) -> None:
        """``ping``: raises StoreUnavailable if the store cannot be written to."""
        self._ping = ping
        self._kept: deque[_Kept] = deque()
        self._lock = threading.Lock()  # of `_kept` and `_thread`
        self._recording = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wake, self._closed = threading.Event(), threading.Event()
        self._is_watched = False
        self._back_at: float | None = None  # monotonic; None: the store is unavailable, or nobody watches it

    # ---- outcomes of this process

    def record(self, what: str, write: Callable[[], None]) -> bool:
        """Call ``write`` now, or later if the store is unavailable. Return whether it is recorded now.

        ``what``: for the log, with ids.
        ``write`` may be called again after it succeeded: the answer to a commit may be lost.
        """
        began = time.monotonic()
        try:
            try:
                write()
            except StoreUnavailable:
                if time.monotonic() - began > _AT_ONCE_SECONDS:
                    raise
                self._repeat(write)  # a connection that was closed is replaced
        except StoreUnavailable as error:
            log.warning("not recorded yet, kept in memory: %s: %s", what, error)
            self._keep(what, write)
            return False
        return True

    def record_kept(self) -> None:
        """Record all that is kept, before anything new is claimed. Raises StoreUnavailable."""
        while self._kept:
            # Otherwise requests would wait for each other's time limits during a network outage, until uWSGI kills the
            # worker and its memory is lost.
            if not self._recording.acquire(timeout=_BUSY_SECONDS):
                raise StoreUnavailable("what was sent before is recorded first")
            try:
                if self._kept:
                    self._record_first(self._kept[0])
                    self._kept.popleft()
            finally:
                self._recording.release()

    def close(self, seconds: float) -> None:
        """Record what is kept, in at most ``seconds``, however long the store takes; log what is lost. The process
        ends."""
        if self._closed.is_set():
            return
        deadline = time.monotonic() + seconds
        if self._kept:
            names = "; ".join(kept.what for kept in self._kept)
            log.warning("waiting up to %g s for the store, to record: %s", seconds, names)
            self._wake.set()
            with self._lock:
                self._start()
        try:
            while self._kept and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        finally:  # also at Ctrl-C
            self._closed.set()
            for kept in list(self._kept):
                log.error("lost, may be sent again: %s: the process ends", kept.what)

    def _record_first(self, kept: _Kept) -> None:
        """Record this outcome, or log that it can never be recorded. Raises StoreUnavailable."""
        try:
            self._repeat(kept.write)
        except StoreUnavailable as error:
            self._ping()
            now = time.monotonic()
            kept.failing_since = kept.failing_since or now
            if now - kept.failing_since < _GIVE_UP_SECONDS:
                raise
            # It would hold up everything else: for example, the partition of its message was removed.
            log.error("lost, may be sent again: %s: %s", kept.what, error)
        except Exception as error:
            text = str(error) if isinstance(error, QuarantineError) else "internal error"
            log.error("lost, may be sent again: %s: %s", kept.what, text, exc_info=text == "internal error")
        else:
            log.info("recorded later: %s", kept.what)

    def _repeat(self, write: Callable[[], None]) -> None:
        """Call ``write`` again, durably. Raises StoreUnavailable."""
        # If the failed commit was done, this one may write nothing, and so wait for no standby. A ping writes, and its
        # commit waits for all earlier ones.
        write()
        self._ping()

    def _keep(self, what: str, write: Callable[[], None]) -> None:
        with self._lock:
            self._kept.append(_Kept(what, write))
            self._start()

    def _start(self) -> None:
        """Start the thread that records, unless it runs. Called with the lock."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._retry, name="outcomes", daemon=True)
            try:
                self._thread.start()
            except (RuntimeError, MemoryError):  # RLIMIT_NPROC; the next claim records it
                self._thread = None

    def _retry(self) -> None:
        while not self._closed.is_set():
            self._wake.wait(RETRY_SECONDS)
            self._wake.clear()
            try:
                self.record_kept()
            except StoreUnavailable:
                continue
            with self._lock:
                if not self._kept:
                    self._thread = None
                    return

    # ---- outcomes of other processes

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Run a write that the process repeats every few seconds, by which it notices outages of the store."""
        self._is_watched = True
        try:
            yield
        except StoreUnavailable:
            self._back_at = None
            raise
        if self._back_at is None:
            self._back_at = time.monotonic()

    @property
    def may_take_over(self) -> bool:
        """True if this process may take over claims of other processes that have ended.

        A process that watches the store does so after `TAKE_OVER_SECONDS` without an outage: by then those that live
        have recorded what they kept.
        """
        if not self._is_watched:
            return True
        return self._back_at is not None and time.monotonic() - self._back_at >= TAKE_OVER_SECONDS

    def and_free(self, column: str = "lease") -> str:
        """Return an SQL condition, after "and", for rows that this process may claim now; "" for all.

        ``column``: the lease, which is null unless a process has claimed the row and not recorded an outcome.
        """
        return "" if self.may_take_over else f" and {column} is null"
