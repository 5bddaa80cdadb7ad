"""`/admin/jobs/…`: release, delete … everything that a search finds, and how far that is.

A search of the console leads to a page that counts what would be done and what not, and why. Confirming it makes a
background job, which begins after a minute and whose page has buttons to pause, resume, cancel and retry.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlencode
from uuid import uuid4

from bottle import HTTPResponse

from portal.batches.batch import Act, Outcome
from portal.batches.mass import (
    ACTS,
    ENDED,
    HOLDING_BACK,
    MAILING,
    DryRun,
    MassAct,
    Obstacle,
    Status,
    View,
    Waiting,
    can_hold_back,
)
from portal.batches.mass_run import REASON_CHARS, MassActs
from portal.model import criteria
from portal.model.domains import shown_address
from portal.model.errors import BadCriterion, NotFound
from portal.model.message import Filter
from portal.model.staff import EVERYWHERE
from portal.model.text import N_, is_blank, shown
from portal.model.tiers import TIER_NAMES
from portal.policy.staff import Permission
from portal.stores.records import Command
from portal.web.bulk import uuid_of
from portal.web.console import HOME, Console, StaffSession
from portal.web.console_search import STATE_NAMES, Search, shown_criteria
from portal.web.pages import Pages
from portal.web.request import Request
from portal.web.rows import Viewer

PATH = "/admin/jobs/"
_LISTED = 100  # jobs on a page
_REFRESH_SECONDS = 5
_LATE_SECONDS = 60  # longer than a job waits for its turn
_NAMES = {
    Act.RELEASE: N_("Release"),
    Act.DELETE: N_("Delete"),
    Act.RESTORE: N_("Restore"),
    Act.REFUSE: N_("Deny request"),
    Act.REANNOUNCE: N_("Put into the next digest"),
}
_HEADINGS = {
    Act.RELEASE: N_("Release all messages found"),
    Act.DELETE: N_("Delete all messages found"),
    Act.RESTORE: N_("Restore all messages found"),
    Act.REFUSE: N_("Deny all release requests found"),
    Act.REANNOUNCE: N_("Put all messages found into the next digest"),
}
_BUTTONS = {
    Act.RELEASE: N_("Release all"),
    Act.DELETE: N_("Delete all"),
    Act.RESTORE: N_("Restore all"),
    Act.REFUSE: N_("Deny all"),
    Act.REANNOUNCE: N_("Put all into the next digest"),
}
_STATUS_NAMES = {
    Status.SCHEDULED: N_("Starts soon"),
    Status.RUNNING: N_("Running"),
    Status.WAITING: N_("Waiting"),
    Status.PAUSED: N_("Paused"),
    Status.CANCELLED: N_("Cancelled"),
    Status.STOPPED: N_("Stopped"),
    Status.FINISHED: N_("Finished"),
}
_NOTES = {
    Status.STOPPED: N_("The role of the person who confirmed this no longer permits it. The rest was left alone."),
    Status.CANCELLED: N_("What was done before stays done."),
}
_WAITS_FOR = {
    Waiting.MAIL_SERVER: N_("The mail server cannot be reached. This goes on as soon as it answers."),
    Waiting.INDEX: N_("Some messages are still being indexed. This goes on when that has ended."),
    Waiting.SEARCH: N_("The search takes too long. Cancel this, and choose a shorter time."),
}
_OUTCOME_NAMES = {
    Outcome.RELEASED: N_("Released"),
    Outcome.RELEASING: N_("Release in progress"),
    Outcome.DELETED: N_("Deleted"),
    Outcome.RESTORED: N_("Restored"),
    Outcome.REFUSED: N_("Denied"),
    Outcome.REANNOUNCED: N_("In the next digest"),
    Outcome.NOT_ALLOWED: N_("Not permitted"),
    Outcome.TO_CHECK: N_("Not released, check these first"),
    Outcome.CHANGED: N_("Changed by somebody else before"),
    Outcome.FAILED: N_("Errors"),
}
_WHY_NOT = {
    Obstacle.STATE: N_("In another state"),
    Obstacle.NOT_PERMITTED: N_("Not permitted"),
    Obstacle.NO_RECIPIENT: N_("The recipient is not known"),
}
_CHOICES = (
    ("hold_back", N_("Keep these messages out of digests until this has ended"), HOLDING_BACK),
    ("notify", N_("Mail the recipients how many messages it was, and the reason"), MAILING),
)
_NOT_HELD_BACK = N_("Digests cannot leave out what a search by rule finds.")
_CHANGES = {"pause": Command.PAUSE, "resume": None, "cancel": Command.CANCEL}


@dataclass(frozen=True, slots=True)
class PartRow:
    """Deliveries of a dry run that have something in common."""

    count: str
    domain: str
    tier: str  # to be translated
    state: str  # to be translated
    why_not: str  # to be translated, "" if they would be acted on


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job as the list shows it."""

    id: str
    at: str
    who: str
    act: str  # to be translated
    search: str
    status: str  # to be translated
    done: int
    failed: int
    left: int | None


class MassActPages:
    """`/admin/jobs/` and what is below."""

    def __init__(self, pages: Pages, console: Console) -> None:
        self._pages = pages
        self._console = console
        self._parts = pages.parts
        self._masses = MassActs(pages.parts.store, pages.parts.actions, pages.parts.staff)

    # ---- before

    def ask(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """GET /admin/jobs/new: count what would be done, and a form to confirm it."""
        search = Search.of_query(request.query_string).without("by", "before")
        return self._ask(request, staff, search, _act(request.query("act")))

    def start(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """POST /admin/jobs/: make the job, then redirect (303) to its page."""
        search = Search.of_query(request.form("search").removeprefix("?")).without("by", "before")
        act, reason = _act(request.form("act")), request.form("reason").strip()
        if act is None or not self._masses.rights.reach(act, staff.member) or is_blank(reason):
            return self._ask(request, staff, search, act, 400, error=N_("Enter a reason."))
        self._console.check_fresh(request, staff, _page_of(search, act))
        wanted = self._wanted(request, staff, search)
        if wanted is None:
            return self._pages.see_other(HOME + search.query())
        hold_back = act in HOLDING_BACK and request.form("hold_back") != ""
        if hold_back and not can_hold_back(act, wanted):
            return self._ask(request, staff, search, act, 400, error=_NOT_HELD_BACK)
        with self._pages.searching():
            found = self._masses.dry_run(act, wanted, staff.member)
        if found.is_empty:
            return self._pages.see_other(_page_of(search, act))
        query = search.query().removeprefix("?")
        mass = MassAct(
            act,
            wanted,
            query,
            found.count,
            reason,
            staff.member.person,
            hold_back=hold_back,
            notify=act in MAILING and request.form("notify") != "",
            method=staff.member.method,
            is_exact=found.total.exact,
        )
        job = self._masses.start(mass, staff.actor, uuid_of(request.form("form")) or uuid4())
        return self._pages.see_other(f"{PATH}{job.id}/")

    def _ask(
        self, request: Request, staff: StaffSession, search: Search, act: Act | None, status: int = 200, error: str = ""
    ) -> HTTPResponse:
        if act is not None and not self._masses.rights.reach(act, staff.member):
            return self._console.forbidden(request)
        wanted = self._wanted(request, staff, search)
        if act is None or wanted is None:
            return self._pages.see_other(HOME + search.query())
        self._console.check_fresh(request, staff, _page_of(search, act))
        with self._pages.searching():
            found = self._masses.dry_run(act, wanted, staff.member)
        viewer = self._pages.viewer(request, staff.member.person)
        left_out = {"hold_back"} if act in HOLDING_BACK and not can_hold_back(act, wanted) else set()
        return self._console.page(
            request,
            staff,
            "mass-act",
            status,
            act=act,
            heading=_HEADINGS[act],
            button=_BUTTONS[act],
            form=uuid4(),
            search=search.query(),
            criteria=shown_criteria(search, viewer),
            parts=_part_rows(found, viewer),
            count=found.count,
            total=found.total,
            is_empty=found.is_empty,
            reason=shown(request.form("reason"), REASON_CHARS) if request.method == "POST" else "",
            reason_chars=REASON_CHARS,
            choices=[
                (name, text, request.form(name) != "")
                for name, text, acts in _CHOICES
                if act in acts and name not in left_out
            ],
            note=_NOT_HELD_BACK if left_out and not error else "",
            error=error,
        )

    def _wanted(self, request: Request, staff: StaffSession, search: Search) -> Filter | None:
        """Return the search within the domains whose messages this person sees, None if it is empty or wrong."""
        reach = self._parts.staff.reach(staff.member, Permission.SEE_ENVELOPE)
        zone = self._pages.viewer(request, staff.member.person).zone
        try:
            wanted = criteria.read(search.typed(), zone, self._pages.now())
        except BadCriterion:
            return None
        if not search.typed():
            return None
        return self._parts.people.searched(wanted).within(None if EVERYWHERE in reach else reach)

    # ---- after the confirmation

    def list(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """GET /admin/jobs/: one page of the jobs of the last 30 days, newest first."""
        viewer, before = self._pages.viewer(request, staff.member.person), uuid_of(request.query("before"))
        found = self._masses.visible(staff.member, _LISTED + 1, before)
        return self._console.page(
            request,
            staff,
            "jobs",
            rows=[_job_row(each, viewer) for each in found[:_LISTED]],
            older=f"{PATH}?before={found[_LISTED - 1].job.id}" if len(found) > _LISTED else "",
            is_first=before is None,
        )

    def show(self, request: Request, staff: StaffSession, id: str) -> HTTPResponse:
        """GET /admin/jobs/ID/: how far a job is. The page reloads itself until the job ends."""
        found, viewer = self._found(staff, id), self._pages.viewer(request, staff.member.person)
        is_ended, stays = found.status in ENDED, request.query("pause") != ""
        seconds = (found.job.not_before - self._pages.now()).total_seconds()
        is_late = found.status is Status.RUNNING and -seconds > _LATE_SECONDS
        note = _NOTES.get(found.status, "")
        if found.status is Status.WAITING:
            note = _WAITS_FOR[Waiting(found.progress.waits_for)]
        response = self._console.page(
            request,
            staff,
            "job",
            heading=_HEADINGS[found.mass.act],
            row=_job_row(found, viewer),
            found=found,
            search=f"?{found.mass.query}",
            reason=shown(found.mass.reason, REASON_CHARS),
            note=note,
            is_late=is_late,
            is_ended=is_ended,
            stays=stays,
            seconds=max(0, round(seconds)) if found.status is Status.SCHEDULED else None,
            minutes=max(1, round(found.time_left.total_seconds() / 60)) if found.time_left else None,
            outcomes=[(_OUTCOME_NAMES[name], count) for name, count in sorted(found.progress.counts.items())],
            may_steer=self._masses.rights.may_steer(staff.member, found.mass),
        )
        if not is_ended and not stays and found.status is not Status.PAUSED:
            response.set_header("Refresh", str(_REFRESH_SECONDS))
        return response

    def change(self, request: Request, staff: StaffSession, id: str) -> HTTPResponse:
        """POST /admin/jobs/ID/: pause, resume, cancel or retry a job, then redirect (303) to its page."""
        found, change = self._found(staff, id), request.form("change")
        if not self._masses.rights.may_steer(staff.member, found.mass):
            return self._console.forbidden(request)
        if change in _CHANGES:
            self._masses.steer(found, _CHANGES[change], staff.actor)
        elif change == "retry" and found.status in ENDED and found.failed:
            self._console.check_fresh(request, staff, f"{PATH}{found.job.id}/")
            job = self._masses.retry_failed(found, staff.actor, staff.member)
            return self._pages.see_other(f"{PATH}{job.id}/")
        return self._pages.see_other(f"{PATH}{found.job.id}/")

    def _found(self, staff: StaffSession, name: str) -> View:
        """Return the job with this id. Raises NotFound, also for a job of other domains."""
        id = uuid_of(name)
        if id is not None:
            found = self._masses.get(id)
            if self._masses.rights.may_see(staff.member, found.mass):
                return found
        raise NotFound("there is no such job")


def _act(name: str) -> Act | None:
    return next((act for act in ACTS if act.value == name), None)


def _page_of(search: Search, act: Act) -> str:
    return f"{PATH}new?{urlencode([*search.values, ('act', act.value)])}"


def _part_rows(found: DryRun, viewer: Viewer) -> list[PartRow]:
    return [
        PartRow(
            count=viewer.language.number(part.count),
            domain=shown_address(part.domain),
            tier=TIER_NAMES[part.tier],
            state=STATE_NAMES.get(part.state, ""),
            why_not=_WHY_NOT[part.obstacle] if part.obstacle else "",
        )
        for part in found.parts
    ]


def _job_row(found: View, viewer: Viewer) -> JobRow:
    return JobRow(
        id=str(found.job.id),
        at=viewer.language.short_moment(found.job.created_at, viewer.zone),
        who=shown_address(found.job.actor.name),
        act=_NAMES[found.mass.act],
        search=shown_criteria(Search.of_query(found.mass.query), viewer),
        status=_STATUS_NAMES[found.status],
        done=found.done,
        failed=found.failed,
        left=found.left,
    )
