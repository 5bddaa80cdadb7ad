"""The outcomes of a job's action for its deliveries, also of what a process did before it died."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from uuid import UUID

from portal.batches.batch import DONE_IN_STATE, Act, Outcome, Progress, is_of
from portal.model.errors import (
    AlreadyDone,
    BodyDamaged,
    BodyMissing,
    NotAllowed,
    NotConfirmed,
    NotFound,
    RelayDeferred,
    RelayRefused,
)
from portal.model.message import Delivery, DeliveryId, Event, EventKind, State
from portal.stores import Store

log = logging.getLogger("quarantine.batch")

# The events by which it is recognized that a job has acted on a delivery.
_EVENTS = {
    Act.RELEASE: (EventKind.RELEASING,),
    Act.DELETE: (EventKind.DELETED,),
    Act.RESTORE: (EventKind.RESTORED,),
    Act.REQUEST: (EventKind.REQUESTED,),
    Act.WITHDRAW: (EventKind.WITHDRAWN,),
    Act.REFUSE: (EventKind.REFUSED,),
    Act.REANNOUNCE: (EventKind.REANNOUNCED,),
}
# The outcome of a release that has ended without success, by its event: the delivery is held again.
_FAILURES = {EventKind.FAILED: Outcome.FAILED, EventKind.STOPPED: Outcome.NOT_ALLOWED}


def recognized(store: Store, job_id: UUID, act: Act, progress: Progress) -> Progress:
    """Return the progress with the outcomes of planned deliveries that a process had acted on before it died.

    Somebody may have changed them back since then.
    """
    events = store.deliveries.last_events(progress.planned)
    done = [key for key in progress.planned if has_acted(job_id, act, events.get(key, ()))]
    outcomes = [(key, _earlier_outcome(store, job_id, act, key)) for key in done]
    return progress.with_outcomes((key, outcome) for key, outcome in outcomes if outcome is not None)


def outcome_of(
    store: Store, job_id: UUID, act: Act, delivery: Delivery, result: Delivery | Exception
) -> Outcome | None:
    """Return the outcome of an action, None if the delivery is gone."""
    match result:
        case Delivery():
            return DONE_IN_STATE[act, result.state]
        case AlreadyDone():
            return _earlier_outcome(store, job_id, act, delivery.key)
        case RelayDeferred():
            return Outcome.RELEASING
        case NotConfirmed():
            return Outcome.TO_CHECK
        case NotAllowed():
            return Outcome.NOT_ALLOWED
        case RelayRefused() | BodyDamaged() | BodyMissing():
            return Outcome.FAILED
        case NotFound():
            return None
        case _:
            log.error("action failed id=%s number=%d", delivery.id, delivery.number, exc_info=result)
            return Outcome.FAILED


def has_acted(job_id: UUID, act: Act, events: Sequence[Event]) -> bool:
    """Return whether a job caused the last event of its action."""
    event = last_event(events, _EVENTS[act])
    return event is not None and is_of(job_id, event.actor)


def last_event(events: Sequence[Event], kinds: Collection[EventKind]) -> Event | None:
    """Return the last event of these kinds, or None."""
    return next((event for event in reversed(events) if event.kind in kinds), None)


def _earlier_outcome(store: Store, job_id: UUID, act: Act, key: DeliveryId) -> Outcome | None:
    """Return the outcome of a delivery in another state: of this job, if a process died after it had acted."""
    try:
        state = store.deliveries.get(key).state
    except NotFound:
        return None
    events = store.deliveries.last_events([key]).get(key, ())
    if not has_acted(job_id, act, events):
        return Outcome.CHANGED
    if act is Act.RELEASE and state is State.HELD:  # the release failed, unless somebody deleted and restored it since
        last = last_event(events, (*_FAILURES, EventKind.RESTORED))
        return _FAILURES.get(last.kind, Outcome.CHANGED) if last else Outcome.CHANGED
    return DONE_IN_STATE.get((act, state), Outcome.CHANGED)
