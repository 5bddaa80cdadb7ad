"""The routes of jobs: release, delete and so on everything that a search finds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated
from urllib.parse import urlencode
from uuid import UUID, uuid4

from pydantic import AfterValidator, Field

from portal.batches.batch import Act
from portal.batches.mass import ACTS, ENDED, HOLDING_BACK, MAILING, DryRun, MassAct, Obstacle, Status, View
from portal.batches.mass_run import REASON_CHARS, MassActs
from portal.model.errors import AlreadyDone, NotAllowed, NotFound
from portal.model.message import State, Tier
from portal.policy.staff import Permission
from portal.stores.lifecycle import IDEMPOTENCY_KEPT, is_past
from portal.stores.records import Command
from portal.web.api.problems import FieldProblem, invalid
from portal.web.api.route import FILLED, READABLE, Caller, Model, Name, Route
from portal.web.api.search import Count, Search, with_criteria
from portal.web.pages import Pages

_LIMIT, _LIMIT_MAX = 100, 500  # jobs in an answer
_CURSOR = "The value of next in the answer before."
_EXAMPLE = "01a2b3c4-d5e6-5f01-8a2b-3c4d5e6f7a8b"
_NAME = Name("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "The id of a job.", _EXAMPLE)
_STEERING = {
    "pause": (Command.PAUSE, "Pause a job", "Stops a job after the deliveries that it acts on now."),
    "resume": (None, "Resume a job", "Lets a paused job go on."),
    "cancel": (Command.CANCEL, "Cancel a job", "Ends a job. What it has done stays done."),
}
_NOT_BY_RULE = "Digests cannot leave out what a search by rule finds."
_OF_ACT = "The token also needs the permission for what the job does, in one of its domains at least."


# ---- requests and answers


def _for(acts: Collection[Act]) -> str:
    return f"Only for {', '.join(sorted(acts))}."


def _of_staff(act: str) -> str:
    if act not in ACTS:
        raise ValueError(f"use one of {', '.join(ACTS)}")
    return act


JobSearch = with_criteria("JobSearch", Search)


class JobRequest(Model):
    """An act on everything that a search finds."""

    act: Annotated[str, AfterValidator(_of_staff)] = Field(
        description="What to do.", json_schema_extra={"enum": [*ACTS]}
    )
    search: JobSearch = Field(description="At least one criterion. Messages that arrive later are not included.")  # type: ignore[valid-type]  # it is made of the criteria
    reason: Annotated[str, FILLED, Field(max_length=REASON_CHARS), READABLE] = Field(
        description="For the audit and the history. The recipients read that of `refuse`."
    )
    max_tier: Tier = Field(
        Tier.SPAM,
        description="Of a release: more harmful messages are left alone, so that none is released by mistake.",
    )
    hold_back: bool = Field(
        False,
        description=f"Whether digests leave the messages out until the job has ended. {_for(HOLDING_BACK)} "
        "Not with a search by rule.",
    )
    notify: bool = Field(
        False,
        description="Whether to mail each recipient the number of their messages and the reason afterwards. "
        f"{_for(MAILING)}",
    )
    dry_run: bool = Field(False, description="Whether to count only, and change nothing.")


class JobQuery(Model):
    """The jobs to list."""

    limit: int = Field(_LIMIT, ge=1, le=_LIMIT_MAX)
    cursor: UUID | None = Field(None, description=_CURSOR)


class JobPart(Model):
    """Deliveries that have the domain of the recipient, the tier and the state in common."""

    domain: str
    tier: Tier
    state: State
    count: int
    obstacle: Obstacle | None = Field(description="Why the job leaves them alone; null: it acts on them.")


class JobDetail(Model):
    """A job, and how far it is."""

    id: str
    act: str
    status: Status
    search: str = Field(description="The search, as in the address of the console's page.")
    reason: str
    by: str
    via: str
    created_at: datetime
    waits_for: str = Field(
        description='What the job waits for: "mail-server", "index", or "search", which takes too long; "" if nothing.'
    )
    done: int = Field(description="Deliveries that it acted on.")
    failed: int = Field(description="Deliveries whose release failed; retry tries them again.")
    left: int | None = Field(description="null: unknown, since there were more deliveries than could be counted.")
    per_minute: int
    outcomes: dict[str, int] = Field(description="The number of deliveries with each outcome.")
    hold_back: bool
    notify: bool
    retries: str | None = Field(description="The job whose failed releases this one tries again.")


class StartedJob(Model):
    """A new job, or a dry run, with a count of what it acts on."""

    job: JobDetail | None = Field(description="null for a dry run, and if there is nothing to do.")
    count: int = Field(
        description="Deliveries that it acts on, or more if total is not exact. If it releases or denies, the owner's "
        "own messages, and those without a virus scan, may end as not permitted."
    )
    total: Count = Field(description="Of what the search finds.")
    parts: list[JobPart]


class JobList(Model):
    """The jobs of the last 30 days that the token may see, the newest first."""

    jobs: list[JobDetail]
    next: str | None = Field(description="The cursor of the next page; null on the last one.")


def _detail(found: View) -> JobDetail:
    return JobDetail(
        id=str(found.job.id),
        act=found.mass.act,
        status=found.status,
        search=f"?{found.mass.query}" if found.mass.query else "",
        reason=found.mass.reason,
        by=found.job.actor.who,
        via=found.job.actor.via,
        created_at=found.job.created_at,
        waits_for=found.progress.waits_for if found.status is Status.WAITING else "",
        done=found.done,
        failed=found.failed,
        left=found.left,
        per_minute=found.per_minute,
        outcomes={outcome.value: count for outcome, count in sorted(found.progress.counts.items())},
        hold_back=found.mass.hold_back,
        notify=found.mass.notify,
        retries=str(found.mass.retries) if found.mass.retries else None,
    )


# ---- routes


class JobRoutes:
    """/jobs and what is below."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._parts = pages.parts
        self._masses = MassActs(pages.parts.store, pages.parts.actions, pages.parts.staff)

    def table(self) -> Sequence[Route]:
        """Return the routes."""
        see, names = Permission.SEE_ENVELOPE, {"id": _NAME}
        return (
            Route(
                method="GET", path="/jobs", permission=see, operation="listJobs", summary="List jobs",
                text="Lists the jobs of the last 30 days, those of the token and those about its domains only.",
                handler=self.list, query=JobQuery, answer=JobList, example="limit=10",
            ),
            Route(
                method="POST", path="/jobs", permission=see, operation="startJob", summary="Start a job",
                text=f"Acts on everything that a search finds, in the background. Try `dry_run` first. {_OF_ACT}",
                handler=self.start, body=JobRequest, answer=StartedJob,
                example='{"act": "release", "search": {"symbol": ["BAYES_SPAM"], "since": "12h"}, '
                '"reason": "wrong rule", "dry_run": true}',
            ),
            Route(
                method="GET", path="/jobs/{id}", permission=see, operation="getJob", summary="Show a job",
                text="Returns how far a job is.", handler=self.show, answer=JobDetail, names=names,
            ),
            *(
                Route(
                    method="POST", path=f"/jobs/{{id}}/{name}", permission=see, operation=f"{name}Job",
                    summary=summary, text=f"{text} {_OF_ACT}", handler=partial(self._steer, command),
                    answer=JobDetail, names=names,
                )
                for name, (command, summary, text) in _STEERING.items()
            ),
            Route(
                method="POST", path="/jobs/{id}/retry", permission=see, operation="retryJob", summary="Retry a job",
                text=f"Tries the failed releases of a job that has ended again, in a new job. {_OF_ACT}",
                handler=self.retry, answer=JobDetail, names=names,
            ),
        )  # fmt: skip

    def list(self, caller: Caller, query: JobQuery) -> JobList:
        """GET /jobs."""
        try:
            found = self._masses.visible(caller.member, query.limit + 1, query.cursor)
        except NotFound as error:
            raise invalid(FieldProblem(name="cursor", detail=_CURSOR)) from error
        shown = [_detail(each) for each in found[: query.limit]]
        return JobList(jobs=shown, next=shown[-1].id if len(found) > query.limit else None)

    def show(self, caller: Caller, id: str) -> JobDetail:
        """GET /jobs/{id}."""
        return _detail(self._found(caller, id))

    def start(self, caller: Caller, body: JobRequest) -> StartedJob:
        """POST /jobs."""
        act = Act(body.act)
        if not self._masses.rights.reach(act, caller.member):
            raise NotAllowed("this token may not do this anywhere")
        asked: Search = body.search
        search = _searched(body)
        max_tier = body.max_tier if act is Act.RELEASE else Tier.DANGEROUS
        with self._pages.searching():
            found = self._masses.dry_run(act, asked.filter(self._parts, caller.member), caller.member, max_tier)
        made = None if body.dry_run else self._masses.made(caller.actor, caller.request)
        if made and not is_past(made.job.created_at, IDEMPOTENCY_KEPT, self._pages.now()):
            return _started(found, _detail(made))
        if body.dry_run or found.is_empty:
            return _started(found, None)
        query = urlencode(search.texts(), doseq=True)
        mass = MassAct(
            act,
            search.filter(self._parts, caller.member),
            query,
            found.count,
            body.reason,
            caller.member.person,
            token=caller.token,
            hold_back=body.hold_back,
            notify=body.notify,
            is_exact=found.total.exact,
        )
        job = self._masses.start(mass, caller.actor, uuid4() if made else caller.request, timedelta())
        return _started(found, _detail(self._masses.get(job.id)))

    def retry(self, caller: Caller, id: str) -> JobDetail:
        """POST /jobs/{id}/retry."""
        found = self._steerable(caller, id)
        if found.status not in ENDED or not found.failed:
            raise AlreadyDone("the job has not ended, or nothing failed in it")
        job = self._masses.retry_failed(found, caller.actor, caller.member)
        return _detail(self._masses.get(job.id))

    def _steer(self, command: Command | None, caller: Caller, id: str) -> JobDetail:
        """POST /jobs/{id}/pause, /resume and /cancel."""
        found = self._steerable(caller, id)
        if found.status in ENDED:
            raise AlreadyDone("the job has ended")
        self._masses.steer(found, command, caller.actor)
        return _detail(self._masses.get(found.job.id))

    def _steerable(self, caller: Caller, id: str) -> View:
        """Return a job that the token may steer. Raises NotFound, NotAllowed."""
        found = self._found(caller, id)
        if not self._masses.rights.may_steer(caller.member, found.mass):
            raise NotAllowed("this token may not steer this job")
        return found

    def _found(self, caller: Caller, id: str) -> View:
        """Return a job. Raises NotFound, also for one that the token may not see."""
        found = self._masses.get(UUID(id))
        if not self._masses.rights.may_see(caller.member, found.mass):
            raise NotFound("there is no such job")
        return found


def _searched(body: JobRequest) -> Search:
    """Return the search of a request; for a release without more harmful tiers. Raises 422."""
    search: Search = body.search
    if not search.texts():
        raise invalid(FieldProblem(name="search", detail="Name at least one criterion, like symbol or since."))
    for name, chosen, acts in (("hold_back", body.hold_back, HOLDING_BACK), ("notify", body.notify, MAILING)):
        if chosen and body.act not in acts:
            raise invalid(FieldProblem(name=name, detail=_for(acts)))
    if body.hold_back and search.texts().get("rule"):
        raise invalid(FieldProblem(name="hold_back", detail=_NOT_BY_RULE))
    if body.act != Act.RELEASE:
        return search
    allowed = [tier for tier in Tier if tier not in body.max_tier.more_harmful]
    tiers = [tier for tier in search.texts().get("tier", [*Tier]) if tier in allowed]
    if not tiers:
        raise invalid(FieldProblem(name="max_tier", detail="The search is for more harmful messages only: set it."))
    return search.model_copy(update={"tier": tiers}) if len(tiers) < len(Tier) else search


def _started(found: DryRun, job: JobDetail | None) -> StartedJob:
    parts = [
        JobPart(domain=part.domain, tier=part.tier, state=part.state, count=part.count, obstacle=part.obstacle)
        for part in found.parts
    ]
    return StartedJob(job=job, count=found.count, total=Count.of(found.total), parts=parts)
