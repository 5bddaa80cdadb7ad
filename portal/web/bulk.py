"""One action on several messages, by a form of a digest's link or of the list: a batch, run in the request."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from uuid import UUID, uuid4, uuid5

from portal.batches.batch import Batch, text_of
from portal.model.errors import AlreadyDone, StoreUnavailable
from portal.model.message import Actor, ActorKind, Delivery, DeliveryId
from portal.stores.records import Job
from portal.web.pages import Pages
from portal.web.request import Request

log = logging.getLogger("quarantine.web")

_MAX_SECONDS = 20  # no action starts later: with 30 s for a release, this is below uWSGI's harakiri of 60 s


def perform(pages: Pages, batch: Batch, actor: Actor, form: UUID, *, now: bool) -> Job:
    """Make a batch and, with ``now``, run it for at most `_MAX_SECONDS`. Return its job.

    The digest process does what is left if the time is up, or if the store fails.
    """
    job = pages.batches.make(batch, actor, form, claimed=now)
    if job.lease is not None:
        end = time.monotonic() + _MAX_SECONDS
        try:
            with suppress(AlreadyDone):
                job = pages.batches.run(job, lambda: time.monotonic() > end, pages.release_several)
        except StoreUnavailable as error:
            log.error("batch interrupted id=%s: %s", job.id, error)
    return job


def actor_of(request: Request, recipient: str, via: str) -> Actor:
    """Return a reader as the author of a batch."""
    return Actor(ActorKind.RECIPIENT, recipient, via, request.peer)


def confirmed_of(request: Request, to_check: Sequence[Delivery]) -> frozenset[DeliveryId]:
    """Return those of suspicious deliveries whose release a form confirms: the page `check` has shown them."""
    shown = request.form("confirmed").split() if request.form("suspicious") == "release" else []
    return frozenset(each.key for each in to_check if confirmation_of([each]) in shown)


def confirmation_of(to_check: Sequence[Delivery]) -> str:
    """Return the field that confirms the release of deliveries, each with the tier whose cautions its page shows."""
    return " ".join(f"{text_of(each.key)}.{each.message.tier}" for each in to_check)


def form_id(request: Request, names: Sequence[str]) -> UUID:
    """Return an id of a posted form with these fields: the same if it is posted again."""
    page = uuid_of(request.form("form")) or uuid4()
    return uuid5(page, repr([[*map(request.form, names)], request.all_of_form("mail")]))


def uuid_of(text: str) -> UUID | None:
    """Return the id in a text, None if it is not an id."""
    try:
        return UUID(text)
    except ValueError:
        return None
