"""A mass act: staff release, delete … everything that a search finds. Values and their JSON, without I/O.

Like a batch of a reader it is a background job (`store.jobs`). The search is kept with the time of the confirmation as
its end, so mail that arrives later is not included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from portal.batches.batch import Act, Outcome, Progress, criteria_from_json, criteria_to_json
from portal.model.message import Filter, State, Tier
from portal.model.record import record
from portal.stores.records import Command, Job, Total

KIND = "mass"  # of the job
UNDO_SECONDS = 60  # before a mass act of the console begins
ACTS = (Act.RELEASE, Act.DELETE, Act.RESTORE, Act.REFUSE, Act.REANNOUNCE)
# The states that each changes. Unlike a single action by an operator, it leaves what recipients have deleted.
STATES = {
    Act.RELEASE: frozenset({State.HELD, State.BLOCKED, State.REQUESTED}),
    Act.DELETE: frozenset({State.HELD, State.BLOCKED, State.REQUESTED}),
    Act.RESTORE: frozenset({State.DELETED}),
    Act.REFUSE: frozenset({State.REQUESTED}),
    Act.REANNOUNCE: frozenset({State.HELD}),
}
HOLDING_BACK = tuple(act for act in ACTS if State.HELD in STATES[act])  # those of messages that digests could list
MAILING = tuple(act for act in ACTS if act is not Act.REFUSE)  # each denial has a mail of its own


def can_hold_back(act: Act, criteria: Filter) -> bool:
    """Return whether digests can leave out what a mass act is about, see `mass_hold`."""
    return act in HOLDING_BACK and criteria.rule is None


class Status(StrEnum):
    """The status of a mass act."""

    SCHEDULED = "scheduled"  # the time in which it can be cancelled before anything happens
    RUNNING = "running"
    WAITING = "waiting"  # see `Waiting`
    PAUSED = "paused"
    CANCELLED = "cancelled"
    STOPPED = "stopped"  # the person who confirmed it may not do this any more
    FINISHED = "finished"


ENDED = frozenset({Status.CANCELLED, Status.STOPPED, Status.FINISHED})


class Waiting(StrEnum):
    """The reason for which a mass act waits. The values are kept in stores."""

    MAIL_SERVER = "mail-server"
    INDEX = "index"  # messages are not indexed yet
    SEARCH = "search"  # it takes too long and finds nothing in that time


class Obstacle(StrEnum):
    """The reason for which a mass act leaves deliveries alone."""

    STATE = "state"  # it is not one of `STATES`
    NOT_PERMITTED = "not-permitted"
    NO_RECIPIENT = "no-recipient"
    TOO_HARMFUL = "too-harmful"  # than the call allows


@record(frozen=True, slots=True)
class MassAct:
    """The request of a member of staff or an operator."""

    act: Act
    criteria: Filter  # ``until`` is not after the confirmation
    query: str  # the search as it was typed, for people
    total: int  # deliveries to act on, as the dry run counted them
    reason: str
    member: str = ""  # identity of the member of staff whose roles decide; "": the shell, which may do everything
    retries: UUID | None = None  # the mass act whose failed releases are tried again
    token: UUID | None = None  # of the API: its rights decide instead of those of the member
    hold_back: bool = False  # what it is about is left out of digests until it has ended, see `mass_hold`
    notify: bool = False  # its recipients are mailed after it, see `mass_mail`
    method: str = ""  # name of the sign-in method of the member's session, whose groups give roles to the job as well
    is_exact: bool = True  # False: there were more deliveries than the dry run could count

    def to_json(self) -> dict[str, Any]:
        """Return the arguments of the job."""
        return {
            "act": self.act.value,
            "criteria": criteria_to_json(self.criteria),
            "query": self.query,
            "total": self.total,
            "reason": self.reason,
            "member": self.member,
            "retries": str(self.retries) if self.retries else None,
            "token": str(self.token) if self.token else None,
            "hold_back": self.hold_back,
            "notify": self.notify,
            "method": self.method,
            "is_exact": self.is_exact,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> MassAct:
        """Return the mass act of a job's arguments."""
        return cls(
            Act(found["act"]),
            criteria_from_json(found["criteria"]),
            found["query"],
            found["total"],
            found["reason"],
            found["member"],
            UUID(found["retries"]) if found["retries"] else None,
            UUID(found["token"]) if found["token"] else None,
            found["hold_back"],
            found["notify"],
            found["method"],
            found["is_exact"],
        )


@record(frozen=True, slots=True)
class Part:
    """Deliveries of a dry run with the same recipient domain, tier and state."""

    domain: str
    tier: Tier
    state: State
    count: int
    obstacle: Obstacle | None  # None: they would be acted on


@record(frozen=True, slots=True)
class DryRun:
    """Result of a dry run: the effect of a mass act. The largest parts are first."""

    parts: Sequence[Part]
    total: Total  # of what the search finds

    @property
    def count(self) -> int:
        """The number of deliveries that would be acted on."""
        return sum(part.count for part in self.parts if part.obstacle is None)

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to do. Only the newest deliveries may have been counted: then there may be."""
        return self.total.exact and not self.count


@record(frozen=True, slots=True)
class View:
    """A mass act and how far it is, for pages and commands."""

    job: Job
    mass: MassAct
    progress: Progress
    status: Status

    @property
    def done(self) -> int:
        """The number of deliveries on which the act was performed."""
        return sum(count for outcome, count in self.progress.counts.items() if outcome.is_done)

    @property
    def failed(self) -> int:
        """The number of deliveries whose release failed."""
        return self.progress.counts.get(Outcome.FAILED, 0)

    @property
    def total(self) -> int:
        """The number of deliveries to reach. Some may be added or removed after the dry run."""
        return self.progress.done if self.status is Status.FINISHED else max(self.mass.total, self.progress.done)

    @property
    def is_exact(self) -> bool:
        """False if there may be more deliveries to reach than `total`."""
        return self.mass.is_exact or self.status is Status.FINISHED

    @property
    def left(self) -> int | None:
        """The number of deliveries that were not reached yet, None if that is unknown."""
        return self.total - self.progress.done if self.is_exact else None

    @property
    def per_minute(self) -> int:
        """The speed while a process runs it, 0 at first."""
        return round(60 * self.progress.done / self.progress.busy_seconds) if self.progress.busy_seconds else 0

    @property
    def time_left(self) -> timedelta | None:
        """The time that the rest takes at this speed, None if that is unknown."""
        return None if self.left is None or not self.per_minute else timedelta(minutes=self.left / self.per_minute)


def view(job: Job, now: datetime) -> View:
    """Return a mass act as it is now."""
    progress = Progress.from_json(job.progress)
    if job.finished_at is not None:
        status = Status(job.outcome or Status.FINISHED)
    elif job.command is Command.PAUSE:
        status = Status.PAUSED
    elif not job.tries and job.not_before > now:
        status = Status.SCHEDULED
    elif progress.waits_for:
        status = Status.WAITING
    else:
        status = Status.RUNNING
    return View(job, MassAct.from_json(job.arguments), progress, status)
