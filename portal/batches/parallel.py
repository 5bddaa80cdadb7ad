"""Several releases at once: those that a person selected, and those whose next try is due.

A release waits for the store's disk and for the mail server most of the time, so several run in parallel, over
connections that are reused. Each is checked, claimed, sent and recorded by itself, as `Actions` describes.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from typing import TypeVar

from portal.actions import Actions
from portal.model.errors import AlreadyDone, NotAllowed, QuarantineError, RelayDeferred, RelayRefused
from portal.model.message import Delivery, DeliveryId

log = logging.getLogger("quarantine.release")

AT_ONCE = 8  # where no posts of Rspamd have to be answered
T = TypeVar("T")


def _never() -> bool:
    return False


def in_parallel(
    actions: Actions,
    act: Callable[[Actions, T], Delivery],
    items: Sequence[T],
    at_once: int,
    *,
    stopped: Callable[[], bool] = _never,
) -> Generator[tuple[T, Delivery | Exception], None, None]:
    """Call ``act`` with each item, for at most ``at_once`` of them at a time. Yield the outcomes in the order of the
    items, an error as a value. The actions passed to ``act`` reuse connections to the mail server.

    Begins no item after ``stopped`` returned True or the caller stopped iterating, and leaves those out. Ends when all
    that were begun have ended. Items are begun in order. With one at a time everything happens in this thread, so that
    ctrl-C also interrupts a mail server that hangs.
    """
    with actions.relay.reusing_connections() as relay:
        reusing = replace(actions, relay=relay)

        def outcome(item: T) -> Delivery | Exception:
            try:
                return act(reusing, item)
            except Exception as error:
                return error

        if min(at_once, len(items)) > 1:
            yield from _by_threads(outcome, items, at_once, stopped)
        else:
            for item in items:
                if stopped():
                    return
                yield item, outcome(item)


def _by_threads(
    act: Callable[[T], Delivery | Exception], items: Sequence[T], count: int, stopped: Callable[[], bool]
) -> Generator[tuple[T, Delivery | Exception], None, None]:
    outcomes: list[Future[Delivery | Exception]] = [Future() for _ in items]
    waiting = deque(zip(items, outcomes, strict=True))
    ended = threading.Event()

    def work() -> None:
        while True:
            try:
                item, outcome = waiting.popleft()
            except IndexError:
                return
            if ended.is_set() or stopped():
                outcome.cancel()
            else:
                outcome.set_result(act(item))

    # Not a ThreadPoolExecutor: if the system refuses a thread, it is unknown whether that item will be done.
    threads: list[threading.Thread] = []
    try:
        for _ in range(min(count, len(items))):
            thread = threading.Thread(target=work)
            try:
                thread.start()
            except (RuntimeError, MemoryError) as error:  # RLIMIT_NPROC
                log.error("releases: %d of %d connections are used: %s", max(1, len(threads)), count, error)
                break
            threads.append(thread)
        if not threads:
            work()
        for item, outcome in zip(items, outcomes, strict=True):
            try:
                result = outcome.result()
            except CancelledError:
                continue
            yield item, result
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def retry_due(actions: Actions, limit: int = 100, *, stopped: Callable[[], bool] = _never) -> int:
    """Continue all releases whose next try is due, ``limit`` at a time. Return how many were tried.

    A failure of one does not affect the others. Raises StoreUnavailable.
    """
    tried = 0
    while not stopped():
        due = actions.store.deliveries.due_releases(actions.now(), limit)
        released = 0
        for key, outcome in in_parallel(actions, _retry, due, AT_ONCE, stopped=stopped):
            tried += 1
            if isinstance(outcome, Delivery):
                released += 1
            elif isinstance(outcome, (RelayDeferred, RelayRefused, AlreadyDone, NotAllowed)):
                pass  # already recorded and logged
            elif isinstance(outcome, QuarantineError):
                log.error("release failed id=%s number=%d: %s", *key, outcome)
            else:
                log.error("release failed id=%s number=%d", *key, exc_info=outcome)
        if len(due) < limit or not released:
            break
    return tried


def _retry(actions: Actions, key: DeliveryId) -> Delivery:
    return actions.retry(*key)
