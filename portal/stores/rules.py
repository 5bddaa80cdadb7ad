"""Rules that both stores follow. Pure functions, tested without a database."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from portal.model.errors import AlreadyDone, BodyDamaged, BodyMissing, NotAllowed, RelayDeferred, RelayRefused
from portal.model.message import Delivery, EventKind, State

_BACK_OFF_MAX = timedelta(hours=1)  # between two tries of a release


@dataclass(frozen=True, slots=True)
class FailedRelease:
    """What becomes of a delivery whose release failed, and the event that is recorded."""

    kind: EventKind
    state: State
    state_at: datetime
    reason: str
    next_try_at: datetime | None  # None: it is not tried again


def is_retry(delivery: Delivery, allowed: Collection[State], now: datetime) -> bool:
    """Return whether claiming this delivery for release continues a release that was begun before.

    Raises AlreadyDone if it cannot be claimed: another process holds the claim, or its state is not ``allowed``.
    """
    if delivery.state is State.RELEASING:
        if delivery.next_try_at is not None and delivery.next_try_at > now:
            raise AlreadyDone("this delivery is being released", delivery)
        return True
    if delivery.state not in allowed:
        raise AlreadyDone(f"this delivery is {delivery.state.value}", delivery)
    return False


def failed_release(delivery: Delivery, error: BaseException, now: datetime) -> FailedRelease:
    """Return what becomes of a claimed delivery after this error: held again, or tried again with exponential backoff.

    The pauses are 1, 2, 4 … minutes, at most one hour.
    """
    if isinstance(error, RelayRefused | NotAllowed | BodyMissing | BodyDamaged):
        kind = EventKind.STOPPED if isinstance(error, NotAllowed) else EventKind.FAILED
        return FailedRelease(kind, State.HELD, now, str(error), None)
    reason = str(error) if isinstance(error, RelayDeferred) else "internal error"
    pause = min(timedelta(minutes=2 ** min(delivery.attempts - 1, 10)), _BACK_OFF_MAX)
    return FailedRelease(EventKind.DEFERRED, State.RELEASING, delivery.state_at, reason, now + pause)
