"""One action on several messages, by a form of a digest's link or of the list."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing

from portal.actions import Actions
from portal.batches.parallel import in_parallel
from portal.model.errors import (
    AlreadyDone,
    BodyDamaged,
    NotAllowed,
    NotFound,
    RelayDeferred,
    RelayRefused,
    StoreUnavailable,
)
from portal.model.message import Actor, Delivery
from portal.web.pages import Pages

log = logging.getLogger("quarantine.web")

_MAX_SECONDS = 20  # no action starts later: with 30 s for a release, this is below uWSGI's harakiri of 60 s
_RECORDED = (AlreadyDone, BodyDamaged, NotAllowed, NotFound, RelayDeferred, RelayRefused)


def apply(pages: Pages, act: str, chosen: Sequence[Delivery], actor: Callable[[Delivery], Actor]) -> int:
    """Release, delete or restore deliveries. Return how many are left. An error is recorded in its delivery.

    ``act``: ``release``, ``delete`` or ``restore``. Raises what is not about one delivery.
    """
    started, unavailable = time.monotonic(), False

    def stopped() -> bool:
        return unavailable or time.monotonic() - started > _MAX_SECONDS

    def change(actions: Actions, delivery: Delivery) -> Delivery:
        method = actions.delete if act == "delete" else actions.restore
        return method(delivery.id, delivery.number, actor(delivery))

    if act == "release":
        outcomes = pages.release_several(chosen, actor, stopped)
    else:
        outcomes = in_parallel(pages.parts.actions, change, chosen, 1, stopped=stopped)
    done = 0
    with closing(outcomes):  # an exception ends it only after the releases that were begun have ended
        for delivery, outcome in outcomes:
            if isinstance(outcome, _RECORDED):
                log.info("bulk action failed id=%s number=%d: %s", delivery.id, delivery.number, outcome)
            elif isinstance(outcome, StoreUnavailable) and delivery is not chosen[0]:
                log.error("bulk action failed id=%s number=%d: %s", delivery.id, delivery.number, outcome)
                unavailable = True
                continue
            elif isinstance(outcome, Exception):
                raise outcome
            done += 1
    return len(chosen) - done
