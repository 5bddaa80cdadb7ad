"""Batches are made and run here: `Batches`.

A step plans the next deliveries, records that in the job, acts on them, and records the outcomes with the next plan.
After a crash the planned deliveries are acted on, except those whose history has the id of the batch: the crashed
process had acted on them. So each delivery is acted on, and counted, once.

The reader's right to each delivery is checked when the batch reaches it: a mailbox that they may no longer read is left
alone, and so is a message that became dangerous. A suspicious message is released only if it is one of those whose
cautions the reader has seen.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Protocol
from uuid import UUID, uuid5

from portal.actions import Actions, Check
from portal.batches.batch import (
    CHANGES,
    KIND,
    Act,
    Batch,
    Outcome,
    Progress,
    Selection,
    actor_of,
    is_of,
    newest_first,
    unchanged,
)
from portal.batches.outcomes import last_event, outcome_of, recognized
from portal.batches.parallel import AT_ONCE, in_parallel
from portal.model.errors import (
    BodyDamaged,
    NotConfirmed,
    NotFound,
    RelayUnreachable,
    StoreUnavailable,
)
from portal.model.message import Actor, Delivery, DeliveryId, Event, EventKind, Reader, State, Tier
from portal.model.record import record
from portal.model.rights import ReleaseRight
from portal.model.sender import needs_check
from portal.people import Directory
from portal.stores import Store
from portal.stores.records import Job, Page

log = logging.getLogger("quarantine.batch")

_STEP = 50  # deliveries planned at a time
_COUNTED_AT_ONCE = 500
_REPEATS = 20  # of one form
# No action starts later in a step: with the 75 s that a release may take in the digest process, and 30 s in a request,
# this is below the lease of 90 s and uWSGI's harakiri of 60 s.
_STEP_SECONDS = 10
_RETRY = timedelta(seconds=10)  # after the store failed
_DELETIONS = (EventKind.DELETED, EventKind.CONFIRMED)

Events = Mapping[DeliveryId, Sequence[Event]]
Stopped = Callable[[], bool]
Results = Generator[tuple[Delivery, Delivery | Exception], None, None]


class Release(Protocol):
    """A function that releases deliveries, like `Pages.release_several`."""

    def __call__(
        self, deliveries: Sequence[Delivery], actor: Callable[[Delivery], Actor], check: Check, stopped: Stopped
    ) -> Results: ...


@record(frozen=True, slots=True)
class Batches:
    """Makes batches, and runs them."""

    store: Store
    actions: Actions
    people: Directory
    is_local: Callable[[str], bool]

    def make(self, batch: Batch, actor: Actor, form: UUID, *, claimed: bool) -> Job:
        """Return the job of a batch. ``form`` identifies the posted form: the same form, and another one for an
        equal batch that is not finished, have the same job.

        ``actor``: its ``name`` is the reader. ``claimed``: the caller runs the job if it has a ``lease``.
        """
        for number in range(_REPEATS):
            job = self.store.jobs.add_once(
                _id(form, actor, number), KIND, batch.to_json(), actor, self.actions.now(), claimed=claimed
            )
            if job.finished_at is None or not self._is_undone(job, batch):
                break
        return job

    def made(self, actor: Actor, form: UUID) -> Job | None:
        """Return the job that this form has made, None if it has not."""
        try:
            return self.store.jobs.get(_id(form, actor, 0))
        except NotFound:
            return None

    def _is_undone(self, job: Job, batch: Batch) -> bool:
        """Return whether a delivery of a finished batch can be acted on again: then the same form is a new wish."""
        progress, reader = Progress.from_json(job.progress), self.people.reader(job.actor.name)
        keys = [key for outcome, found in progress.named.items() if outcome.is_done for key in found]
        return any(each.state in CHANGES[batch.act] for each in self.store.deliveries.of_reader(reader, keys))

    def of(self, job_id: UUID, reader: str) -> Job:
        """Return a batch of this reader. Raises NotFound, also for those of others."""
        job = self.store.jobs.get(job_id)
        if not self.is_of_reader(job, reader):
            raise NotFound("there is no such batch")
        return job

    @staticmethod
    def is_of_reader(job: Job, reader: str) -> bool:
        """Return whether a job is a batch of this reader."""
        return job.kind == KIND and job.actor.name == reader

    def undo(self, job: Job) -> Batch:
        """Return the batch that restores what a batch has deleted."""
        batch, progress = Batch.from_json(job.arguments), Progress.from_json(job.progress)
        keys = progress.named.get(Outcome.DELETED, ())
        if progress.counts.get(Outcome.DELETED, 0) == len(keys):
            chosen = Selection(keys)
        else:
            criteria = replace(batch.selection.criteria, states=frozenset({State.DELETED}))
            chosen = replace(batch.selection, criteria=criteria)
        return Batch(Act.RESTORE, chosen, undoes=job.id)

    def matching(self, reader: Reader, selection: Selection, limit: int, before: DeliveryId | None = None) -> Page:
        """Return up to ``limit`` deliveries of a reader that a selection matches, newest first, after a cursor."""
        wanted, keys = selection.criteria, sorted(selection.keys, reverse=True)
        if keys:
            left = [key for key in keys if before is None or key < before]
            found = newest_first(self.store.deliveries.of_reader(reader, left[:limit]))
            return Page(tuple(found), left[limit - 1] if len(left) > limit else None)
        if before is None and selection.ceiling is not None:
            before = DeliveryId(selection.ceiling.message_id, selection.ceiling.number + 1)
        # By now they may read fewer mailboxes, or others, of which they have seen nothing.
        reader = reader.limited_to(selection.identities)
        page = self.store.deliveries.matching(reader, wanted, limit, before)
        found = [each for each in page.deliveries if each.key not in selection.excluded]
        return Page(tuple(found), page.next)

    # ---- running

    def run(self, job: Job, stopped: Stopped, release: Release | None = None) -> Job:
        """Act on the deliveries of a claimed job until it is finished or ``stopped`` returns True. Return the job.

        Raises StoreUnavailable and, if another process has claimed it, AlreadyDone: the job goes on later.
        """
        batch, progress, jobs = Batch.from_json(job.arguments), Progress.from_json(job.progress), self.store.jobs
        try:
            if progress.planned:
                progress = recognized(self.store, job.id, batch.act, progress)
            while not progress.is_finished:
                progress = self._planned(job, batch, progress)
                jobs.keep(job, progress.to_json(), self.actions.now())
                if progress.planned:
                    progress = self._acted(job, batch, progress, stopped, release or self._release)
                if stopped() and not progress.is_finished:
                    jobs.keep(job, progress.to_json(), self.actions.now())
                    jobs.retry(job, self.actions.now(), tried=False)
                    return replace(job, progress=progress.to_json(), lease=None)
        except StoreUnavailable:
            jobs.retry(job, self.actions.now() + _RETRY)
            raise
        now = self.actions.now()
        jobs.keep(job, progress.to_json(), now)
        jobs.finish(job, "finished", now)
        counts = " ".join(f"{outcome}={count}" for outcome, count in sorted(progress.counts.items()))
        log.info("batch finished id=%s recipient=%s act=%s %s", job.id, job.actor.name, batch.act, counts)
        return replace(job, progress=progress.to_json(), finished_at=now, lease=None)

    def _reader(self, name: str) -> Reader | None:
        """Return the reader who made a batch, None if they are not a recipient here any more."""
        return self.people.reader(name) if self.is_local(name) and self.people.is_person(name) else None

    def _planned(self, job: Job, batch: Batch, progress: Progress) -> Progress:
        """Return the progress with the next deliveries planned or, in the pass before, counted."""
        reader = self._reader(job.actor.name)
        if reader is None:
            return replace(progress, is_counted=True, is_last=True, planned=())
        if progress.planned:
            return progress
        if not progress.is_counted and batch.selection.keys:
            progress = replace(progress, is_counted=True, total=len(batch.selection.keys))
        if progress.is_counted:
            page = self.matching(reader, batch.selection, _STEP, progress.cursor)
            keys = tuple(each.key for each in page.deliveries)
            return replace(progress, planned=keys, cursor=page.next, is_last=page.next is None)
        page = self.matching(reader, batch.selection, _COUNTED_AT_ONCE, progress.cursor)
        total = progress.total + len(page.deliveries)
        return replace(progress, total=total, cursor=page.next, is_counted=page.next is None)

    def _acted(self, job: Job, batch: Batch, progress: Progress, stopped: Stopped, release: Release) -> Progress:
        """Act on the planned deliveries. Return the progress with the outcomes of those that were reached."""
        reader, started = self._reader(job.actor.name), time.monotonic()
        found = self.store.deliveries.of_reader(reader, progress.planned) if reader else []
        events = self.store.deliveries.last_events([each.key for each in found]) if batch.undoes else {}
        others = self._untouched(batch.undoes, events, found) if batch.undoes else frozenset()
        found = [each for each in found if each.key not in others]
        outcomes = dict(self._without_action(batch, found, events))
        left = [each for each in found if each.key not in outcomes]
        # Those that were removed in the meantime have no outcome.
        planned = tuple(each.key for each in found)
        progress = replace(progress, planned=planned, total=progress.total - len(others))

        unavailable: StoreUnavailable | None = None

        def too_late() -> bool:
            return unavailable is not None or stopped() or time.monotonic() - started > _STEP_SECONDS

        def actor(delivery: Delivery) -> Actor:
            return actor_of(job.id, self._actor(job.actor, delivery))

        def check(delivery: Delivery) -> None:
            if _needs_confirmation(batch, delivery):
                raise NotConfirmed("the reader has not seen the cautions of this message")

        method = _METHODS[batch.act]
        if batch.act is Act.REQUEST:
            method = partial(Actions.request_release, reason=batch.reason)
        if method is not None:
            results = self._in_parallel(method, left, actor, too_late, 1)
        elif progress.is_queueing:
            results = self._in_parallel(partial(Actions.queue_release, check=check), left, actor, too_late, 1)
        else:
            results = release(left, actor, check, too_late)
        with closing(results):  # an exception ends it only after the releases that were begun have ended
            for delivery, result in results:
                if isinstance(result, StoreUnavailable) and not isinstance(result, BodyDamaged):
                    unavailable = unavailable or result
                    continue
                if isinstance(result, RelayUnreachable):
                    progress = replace(progress, is_queueing=True)
                if (outcome := outcome_of(self.store, job.id, batch.act, delivery, result)) is not None:
                    outcomes[delivery.key] = outcome
        progress = progress.with_outcomes(outcomes.items())
        if unavailable is not None:
            self.store.jobs.keep(job, progress.to_json(), self.actions.now())
            raise unavailable
        return progress

    def _untouched(self, undone: UUID, events: Events, found: Sequence[Delivery]) -> frozenset[DeliveryId]:
        """Return those deliveries that a batch, which is undone, has never acted on: its selection matches them, but
        they were deleted before. ``events``: their last ones."""

        def others(keys: Iterable[DeliveryId], events: Events) -> list[DeliveryId]:
            return [key for key in keys if not any(is_of(undone, event.actor) for event in events.get(key, ()))]

        left = others((each.key for each in found), events)
        # Those that were restored and deleted again since have an event of the batch that is not a last one.
        return frozenset(others(left, self.store.deliveries.histories(left)))

    def _without_action(
        self, batch: Batch, found: Sequence[Delivery], events: Events
    ) -> Iterator[tuple[DeliveryId, Outcome]]:
        """Yield the outcomes of deliveries that this batch must leave alone. ``events``: see `_untouched`."""
        if batch.undoes is not None:
            for each in found:
                deletion = last_event(events.get(each.key, ()), _DELETIONS)
                if each.state is State.DELETED and (deletion is None or not is_of(batch.undoes, deletion.actor)):
                    yield each.key, Outcome.CHANGED
        for each in found:
            right, tier = self.actions.domains.right(each), each.message.tier
            if each.state not in CHANGES[batch.act]:
                yield each.key, unchanged(batch.act, each.state)
            elif batch.act is Act.RELEASE and right is not ReleaseRight.SELF:
                yield each.key, Outcome.NOT_ALLOWED
            elif batch.act is Act.RELEASE and (tier is Tier.DANGEROUS or _needs_confirmation(batch, each)):
                yield each.key, Outcome.TO_CHECK
            elif batch.act is Act.REQUEST and right is ReleaseRight.SELF:
                yield each.key, Outcome.LET_THROUGH if each.state is State.PASSED else Outcome.NOT_NEEDED

    def _actor(self, actor: Actor, delivery: Delivery) -> Actor:
        """Return the reader as the author of an event: by name, unless the delivery is for their own address."""
        own = actor.name == delivery.recipient and not self.people.is_role(delivery.recipient)
        return replace(actor, name="" if own else actor.name)

    def _release(
        self, deliveries: Sequence[Delivery], actor: Callable[[Delivery], Actor], check: Check, stopped: Stopped
    ) -> Results:
        return self._in_parallel(partial(Actions.release, check=check), deliveries, actor, stopped, AT_ONCE)

    def _in_parallel(
        self,
        method: Callable[[Actions, UUID, int, Actor], Delivery],
        deliveries: Sequence[Delivery],
        actor: Callable[[Delivery], Actor],
        stopped: Stopped,
        at_once: int,
    ) -> Results:
        def act(actions: Actions, delivery: Delivery) -> Delivery:
            return method(actions, delivery.id, delivery.number, actor(delivery))

        return in_parallel(self.actions, act, deliveries, at_once, stopped=stopped)


# None: a release, which takes longer than the others.
_METHODS: Mapping[Act, Callable[[Actions, UUID, int, Actor], Delivery] | None] = {
    Act.RELEASE: None,
    Act.DELETE: Actions.delete,
    Act.RESTORE: Actions.restore,
    Act.REQUEST: Actions.request_release,
    Act.WITHDRAW: Actions.withdraw_request,
}


def _needs_confirmation(batch: Batch, delivery: Delivery) -> bool:
    """Return whether a batch must not release a delivery because its reader has not seen its cautions."""
    return needs_check(delivery.message) and delivery.key not in batch.confirmed


def _id(form: UUID, actor: Actor, number: int) -> UUID:
    """Return the id of the job of a form; ``number``: how often it was posted after its job was undone."""
    return uuid5(form, f"{number} {actor.who}")
