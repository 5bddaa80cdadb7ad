"""Limits and interruptions of the work of the digest process: its pace, and what a stop or Ctrl-C may interrupt."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

Stopped = Callable[[], bool]  # True: stop before the next mail


def never() -> bool:
    return False


def or_after(seconds: float, stopped: Stopped) -> Stopped:
    """Return a function that is true as soon as ``stopped`` is, or these seconds are over."""
    end = time.monotonic() + seconds
    return lambda: stopped() or time.monotonic() > end


class Pace:
    """A limit of mails a minute over all runs of a process; 0: no limit. Thread-safe."""

    def __init__(self, per_minute: int = 0) -> None:
        self.per_minute = per_minute
        self._next = 0.0  # in time.monotonic()
        self._lock = threading.Lock()

    def wait(self, stopped: Stopped) -> None:
        """Return when it is the caller's turn, or when `stopped`."""
        if not self.per_minute:
            return
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + 60 / self.per_minute
        while (left := turn - time.monotonic()) > 0 and not stopped():
            time.sleep(min(left, 0.2))


@contextmanager
def interrupt_delayed() -> Iterator[None]:
    """Delay ctrl-C until the block ends. Do nothing outside the main thread, since only that one receives it."""
    if threading.current_thread() is not threading.main_thread() or not callable(signal.getsignal(signal.SIGINT)):
        yield
        return
    pressed: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if pressed:
            signal.raise_signal(signal.SIGINT)


def join_all(threads: Sequence[threading.Thread]) -> KeyboardInterrupt | None:
    """Wait until these threads have ended. Return the KeyboardInterrupt if ctrl-C was pressed during the wait.

    Ctrl-C does not shorten the wait: a mail takes 30 s at most, and the interpreter would wait for the threads as well.
    """
    interrupt = None
    for thread in threads:
        while thread.is_alive():
            try:
                thread.join()
            except KeyboardInterrupt as pressed:
                interrupt = pressed
    return interrupt
