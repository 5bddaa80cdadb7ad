"""Mass acts are counted, begun, steered and run here: `MassActs`.

A step plans the next deliveries, records that in the job, acts on them in parallel and records the outcomes, as
`Batches` does. So after a crash each delivery is acted on once, except that a release whose message was being sent is
sent again. Two jobs, or a job and a person, never release a delivery twice: its state decides under the claim.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from uuid import UUID, uuid5

from portal.actions import Actions
from portal.batches.batch import Act, Outcome, Progress, actor_of
from portal.batches.mass import (
    ENDED,
    KIND,
    STATES,
    UNDO_SECONDS,
    DryRun,
    MassAct,
    Obstacle,
    Part,
    Status,
    View,
    Waiting,
    view,
)
from portal.batches.mass_mail import MAIL_PAUSE, MassMail
from portal.batches.mass_rights import PERMISSIONS, MassRights
from portal.batches.outcomes import has_acted, outcome_of, recognized
from portal.batches.parallel import AT_ONCE, in_parallel
from portal.model.audit import Act as Audited
from portal.model.audit import AuditEntry
from portal.model.errors import (
    AlreadyDone,
    BodyDamaged,
    NotAllowed,
    NotConfirmed,
    NotFound,
    RelayDeferred,
    RelayUnreachable,
    StoreUnavailable,
)
from portal.model.message import Actor, Delivery, DeliveryId, EventKind, Filter, State, Tier, identity
from portal.model.record import record
from portal.model.text import shown
from portal.policy.staff import NOT_YOURS, Member, Staff
from portal.stores import Store
from portal.stores.records import Command, Job, QueuedMail

log = logging.getLogger("quarantine.batch")

REASON_CHARS = 300
_STEP = 100  # deliveries planned at a time
_STEP_SECONDS = 10  # no action starts later, as in `run`
_RETRY = timedelta(seconds=10)  # after the store failed
_WAIT_MIN, _WAIT_MAX = timedelta(seconds=10), timedelta(minutes=5)

Stopped = Callable[[], bool]


@record(frozen=True, slots=True)
class MassActs:
    """Mass acts of one store."""

    store: Store
    actions: Actions
    staff: Staff

    @property
    def rights(self) -> MassRights:
        """The rights of staff to mass acts."""
        return MassRights(self.staff)

    # ---- before

    def dry_run(self, act: Act, wanted: Filter, member: Member | None, max_tier: Tier = Tier.DANGEROUS) -> DryRun:
        """Count what a mass act would do to what a search finds.

        ``member`` None: the shell, which may do everything. ``max_tier``: more harmful messages are left alone.
        """
        tally = self.store.facets.tally(wanted)
        parts = []
        for (host, tier, state), count in sorted(tally.counts.items(), key=lambda each: (-each[1], each[0])):
            obstacle = self.rights.obstacle(act, member, host, tier, state)
            if obstacle is None and tier in max_tier.more_harmful:
                obstacle = Obstacle.TOO_HARMFUL
            parts.append(Part(host, tier, state, count, obstacle))
        return DryRun(parts, tally.total)

    def start(self, mass: MassAct, actor: Actor, form: UUID, delay: timedelta = timedelta(seconds=UNDO_SECONDS)) -> Job:
        """Queue a mass act and return its job. The same form is the same job. Raises StoreUnavailable."""
        now, job_id = self.actions.now(), uuid5(form, actor.who)
        ends = min(mass.criteria.until, now) if mass.criteria.until else now
        mass = replace(mass, criteria=replace(mass.criteria, until=ends), reason=shown(mass.reason, REASON_CHARS))
        detail = f"{job_id} {mass.act}: {mass.reason}"
        if len(mass.criteria.domains or ()) < 2:  # what concerns several domains is not shown to each of them
            detail += f" ({'' if mass.is_exact else 'at least '}{mass.total} of {mass.query or 'all'})"
        entries = self._entries(Audited.JOB_STARTED, mass, actor, detail)
        job = self.store.jobs.add_once(job_id, KIND, mass.to_json(), actor, now, now + delay, entries=entries)
        log.info("mass act confirmed id=%s act=%s deliveries=%d by=%s", job.id, mass.act, mass.total, actor.who)
        return job

    def made(self, actor: Actor, form: UUID) -> View | None:
        """Return the mass act that this form has started, None if it has not."""
        try:
            return self.get(uuid5(form, actor.who))
        except NotFound:
            return None

    def retry_failed(self, found: View, actor: Actor, member: Member | None = None) -> Job:
        """Queue a mass act for the failed releases of another one, and return its job.

        Twice is once, until that one has ended: those that it did not reach can be tried again.
        ``member``: the member of staff who does it, whose roles decide from now on; None: the shell.
        """
        criteria = replace(found.mass.criteria, states=frozenset({State.HELD}))
        mass = replace(
            found.mass,
            criteria=criteria,
            total=found.failed,
            is_exact=True,
            member=member.person if member else "",
            method=member.method if member else "",
            retries=found.job.id,
            token=member.token.id if member and member.token else None,
            hold_back=False,  # the search would also find what did not fail
        )
        ended = (each.mass.retries for each in self.newest() if each.status in ENDED)
        number = sum(retries == found.job.id for retries in ended)
        return self.start(mass, actor, uuid5(found.job.id, f"retry {number}"), timedelta())

    # ---- after the confirmation

    def get(self, job_id: UUID) -> View:
        """Return a mass act. Raises NotFound."""
        job = self.store.jobs.get(job_id)
        if job.kind != KIND:
            raise NotFound("there is no such job")
        return view(job, self.actions.now())

    def newest(self, before: View | None = None) -> Iterator[View]:
        """Yield all mass acts that are kept, newest first, beginning after ``before``. They are read when needed."""
        for job in self.store.jobs.each(KIND, before=before.job if before else None):
            yield view(job, self.actions.now())

    def visible(self, member: Member, count: int, before: UUID | None = None) -> Sequence[View]:
        """Return the newest mass acts that a person may see, newest first, beginning after the job ``before``.

        Raises NotFound if they may not see that one.
        """
        start = self.get(before) if before else None
        if start is not None and not self.rights.may_see(member, start.mass):
            raise NotFound("there is no such job")
        found = (each for each in self.newest(start) if self.rights.may_see(member, each.mass))
        return list(islice(found, count))

    def steer(self, found: View, command: Command | None, actor: Actor) -> None:
        """Pause or cancel a mass act, or let it go on (None). Does nothing if it has ended."""
        what = command or "resume"
        entries = self._entries(Audited.JOB_CHANGED, found.mass, actor, f"{found.job.id} {what}")
        if self.store.jobs.command(found.job.id, command, self.actions.now(), entries=entries):
            log.info("mass act changed id=%s command=%s by=%s", found.job.id, what, actor.who)

    def _entries(self, act: Audited, mass: MassAct, actor: Actor, detail: str) -> list[AuditEntry]:
        """Return entries of the audit, one for each domain if the mass act is limited to some."""
        hosts = sorted(mass.criteria.domains or {""})
        return [AuditEntry.new(self.actions.now(), act, actor, host, shown(detail, 500)) for host in hosts]

    # ---- running

    def run(self, job: Job, stopped: Stopped) -> None:
        """Act on the deliveries of a claimed job until it ends, has to wait, or ``stopped`` returns True.

        Raises StoreUnavailable and, if another process has claimed it, AlreadyDone: the job goes on later.
        """
        run = _Run(self, job)
        try:
            run.until(stopped)
        except StoreUnavailable:
            self.store.jobs.retry(job, self.actions.now() + _RETRY)
            raise


class _Run:
    """One turn of a job."""

    def __init__(self, masses: MassActs, job: Job) -> None:
        self._masses = masses
        self._store, self._actions, self._staff = masses.store, masses.actions, masses.staff
        self._job = job
        self._mass = MassAct.from_json(job.arguments)
        self._progress = Progress.from_json(job.progress)
        self._known: dict[DeliveryId, Delivery] = {}  # what was planned in this turn
        self._waits_for: Waiting | None = None

    def until(self, stopped: Stopped) -> None:
        """See `MassActs.run`."""
        status = Status(self._progress.ends_as) if self._progress.ends_as else self._reach(stopped)
        if status is not None and (not self._mass.notify or self._progress.is_mailed or self._mail(status)):
            self._end(status)

    def _reach(self, stopped: Stopped) -> Status | None:
        """Act on deliveries. Return the status of the job if it ends; None: it goes on later."""
        command = self._job.command
        if self._progress.planned:
            self._progress = recognized(self._store, self._job.id, self._mass.act, self._progress)
        while not self._progress.is_finished and command is None:
            if not self._may_go_on():
                return Status.STOPPED
            began = time.monotonic()
            waits_for = self._plan()
            command = self._keep()
            if command is None and self._progress.planned and waits_for is None:
                waits_for = self._act(stopped)
            busy = self._progress.busy_seconds + time.monotonic() - began
            self._progress = replace(self._progress, busy_seconds=busy)
            if waits_for is not None:
                self._wait(waits_for)
                return None
            self._progress = replace(self._progress, waits_for="", waits=0)
            if stopped() and not self._progress.is_finished:
                break
        if self._progress.is_finished:
            return Status.FINISHED
        if command is Command.CANCEL:
            return Status.CANCELLED
        self._keep()
        self._store.jobs.retry(self._job, self._actions.now(), tried=False)
        return None

    def _mail(self, status: Status) -> bool:
        """Queue mails to the next recipients. Return whether they were the last.

        Their progress is in the same transaction, so each is queued once. Not all at once: sign-in links wait behind.
        """
        mails, last = MassMail(self._actions, self._staff.people).next(self._job, self._mass, self._progress)
        self._progress = replace(
            self._progress,
            ends_as=status,
            mailed_until=last,
            is_mailed=not last,
            mailed=self._progress.mailed + len(mails),
        )
        command = self._keep(mails)
        if not last or (command is Command.CANCEL and status is not Status.CANCELLED):
            return True
        self._store.jobs.retry(self._job, self._actions.now() + MAIL_PAUSE)
        return False

    def _keep(self, mails: Sequence[QueuedMail] = ()) -> Command | None:
        return self._store.jobs.keep(self._job, self._progress.to_json(), self._actions.now(), mails=mails)

    def _end(self, status: Status) -> None:
        self._keep()
        self._store.jobs.finish(self._job, status, self._actions.now())
        counts = " ".join(f"{outcome}={count}" for outcome, count in sorted(self._progress.counts.items()))
        log.info("mass act %s id=%s act=%s %s", status, self._job.id, self._mass.act, counts)

    def _wait(self, reason: Waiting) -> None:
        pause = min(_WAIT_MIN * 2 ** min(self._progress.waits, 10), _WAIT_MAX)
        self._progress = replace(self._progress, waits_for=reason, waits=self._progress.waits + 1)
        self._keep()
        log.warning("mass act waits id=%s for=%s seconds=%d", self._job.id, reason, pause.total_seconds())
        self._store.jobs.retry(self._job, self._actions.now() + pause)

    def _member(self) -> Member | None:
        return self._masses.rights.member(self._mass)

    def _may_go_on(self) -> bool:
        member = self._member()
        return member is None or bool(self._masses.rights.reach(self._mass.act, member))

    def _plan(self) -> Waiting | None:
        """Plan the next deliveries, unless some are planned. Return what must be waited for before."""
        if self._progress.planned:
            return None
        states = STATES[self._mass.act]
        wanted = self._mass.criteria.states & states if self._mass.criteria.states else states
        if not wanted:
            self._progress = replace(self._progress, is_counted=True, is_last=True)
            return None
        criteria = replace(self._mass.criteria, states=wanted)
        page = self._store.deliveries.search(criteria, _STEP, self._progress.cursor)
        if page.is_cut and page.next is None:
            return Waiting.SEARCH
        if not page.indexed:
            return Waiting.INDEX
        self._known = {each.key: each for each in page.deliveries}
        self._progress = replace(
            self._progress, is_counted=True, planned=tuple(self._known), cursor=page.next, is_last=page.next is None
        )
        return None

    def _act(self, stopped: Stopped) -> Waiting | None:
        """Act on the planned deliveries. Return what must be waited for before the rest."""
        found = self._of_retried(list(self._planned()))
        outcomes = dict(self._without_action(found))
        started, unavailable = time.monotonic(), list[StoreUnavailable]()
        self._waits_for = None

        def too_late() -> bool:
            return bool(unavailable or self._waits_for or stopped()) or time.monotonic() - started > _STEP_SECONDS

        left = [each for each in found if each.key not in outcomes]
        # Those that were removed in the meantime have no outcome.
        self._progress = replace(self._progress, planned=tuple(each.key for each in found))
        at_once = AT_ONCE if self._mass.act is Act.RELEASE and not self._progress.waits else 1
        with closing(in_parallel(self._actions, self._perform, left, at_once, stopped=too_late)) as results:
            for delivery, result in results:
                if isinstance(result, StoreUnavailable) and not isinstance(result, BodyDamaged):
                    unavailable.append(result)
                    continue
                outcome = outcome_of(self._store, self._job.id, self._mass.act, delivery, result)
                if outcome is None:
                    self._progress = replace(
                        self._progress, planned=tuple(key for key in self._progress.planned if key != delivery.key)
                    )
                else:
                    outcomes[delivery.key] = outcome
        self._progress = self._progress.with_outcomes(outcomes.items())
        if unavailable:
            self._keep()
            raise unavailable[0]
        return self._waits_for

    def _planned(self) -> Iterator[Delivery]:
        """Yield the planned deliveries that still exist."""
        for key in self._progress.planned:
            try:
                yield self._known.get(key) or self._store.deliveries.get(key)
            except NotFound:
                continue

    def _of_retried(self, found: list[Delivery]) -> list[Delivery]:
        """Return the deliveries whose last release was by the mass act that is retried; all without one."""
        retries = self._mass.retries
        if retries is None:
            return found
        events = self._store.deliveries.last_events([each.key for each in found])
        return [each for each in found if has_acted(retries, self._mass.act, events.get(each.key, ()))]

    def _without_action(self, found: Sequence[Delivery]) -> Iterator[tuple[DeliveryId, Outcome]]:
        """Yield the outcomes of deliveries that are left alone: in another state, or more harmful than confirmed."""
        raised = self._raised(found) if self._mass.act is Act.RELEASE else frozenset()
        for each in found:
            if each.state not in STATES[self._mass.act]:
                yield each.key, Outcome.CHANGED
            elif each.key in raised:
                yield each.key, Outcome.TO_CHECK

    def _raised(self, found: Sequence[Delivery]) -> frozenset[DeliveryId]:
        """Return the deliveries whose message has become more harmful since the confirmation."""
        tiers = self._mass.criteria.tiers
        outside = {each.key for each in found if tiers and each.message.tier not in tiers}
        harmful = [each.key for each in found if each.message.tier is not Tier.SPAM]
        for key, events in self._store.deliveries.last_events(harmful).items() if harmful else ():
            if any(each.kind is EventKind.RAISED and each.at >= self._job.created_at for each in events):
                outside.add(key)
        return frozenset(outside)

    def _perform(self, actions: Actions, delivery: Delivery) -> Delivery:
        """Act on one delivery. The person's roles are checked again now."""
        member, act, actor = self._member(), self._mass.act, actor_of(self._job.id, self._job.actor)
        if act is Act.RELEASE:
            return self._release(actions, delivery, member, actor)
        if act is Act.REFUSE:
            self._check_decision(member, delivery)
            return actions.refuse_request(delivery.id, delivery.number, actor, self._mass.reason)
        if member is not None and not any(self._staff.may_for(member, each, delivery) for each in PERMISSIONS[act]):
            raise NotAllowed("the role of the person who confirmed this does not permit it")
        return _METHODS[act](actions, delivery.id, delivery.number, actor)

    def _check_decision(self, member: Member | None, delivery: Delivery) -> None:
        """Raise NotAllowed unless the person who confirmed this may decide about the release of a delivery."""
        if member is not None:
            self._staff.check_release(member, delivery)
        elif self._staff.decides_own(identity(self._job.actor.name), delivery):
            raise NotAllowed(NOT_YOURS)

    def _release(self, actions: Actions, delivery: Delivery, member: Member | None, actor: Actor) -> Delivery:
        def check(found: Delivery) -> None:
            if found.state not in STATES[Act.RELEASE]:  # its recipient has deleted it a moment ago
                raise AlreadyDone("it is in another state by now", found)
            if found.message.tier is not delivery.message.tier:
                raise NotConfirmed("it has become more harmful since the confirmation")
            self._check_decision(member, found)

        try:
            return actions.release(delivery.id, delivery.number, actor, operator=True, check=check)
        except RelayDeferred as error:
            if isinstance(error, RelayUnreachable) or error.portal_rejected:
                self._waits_for = Waiting.MAIL_SERVER  # now: other threads would begin more
            raise


_METHODS: Mapping[Act, Callable[[Actions, UUID, int, Actor], Delivery]] = {
    Act.DELETE: Actions.delete,
    Act.RESTORE: Actions.restore,
    Act.REANNOUNCE: Actions.reannounce,
}
