"""Mass acts: ``quarantine release --matching …``, and ``quarantine jobs``.

A mass act is a background job of the digest process. The command that begins it only follows it.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import UUID, uuid4

import click

from portal.assemble import Parts
from portal.batches.batch import Act, Outcome
from portal.batches.mass import (
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
from portal.batches.mass_run import MassActs
from portal.cli.common import (
    NotDone,
    WrongCall,
    add_row,
    current_operator,
    guarded,
    json_text,
    new_table,
    open_parts,
    print_table,
    progress,
    say,
)
from portal.cli.options import MATCHING_OPTIONS, Id, typed_filter
from portal.model.domains import shown_address
from portal.model.errors import NotFound
from portal.model.text import shown
from portal.stores.records import Command

_ID = Id("quarantine jobs list")
_LOOKS_PER_SECOND = 2
_LATE = timedelta(seconds=60)  # longer than a job waits for its turn
_WAITS_FOR = {
    Waiting.MAIL_SERVER: "The mail server cannot be reached. The job tries again later.",
    Waiting.INDEX: "Some messages are still being indexed, so the search is not complete. The job tries again later.",
    Waiting.SEARCH: "The search takes too long. Cancel the job, and search for less, for example with --since. "
    "Until then it tries again.",
}
_WHY_NOT = {
    Obstacle.STATE: "already {state}",
    Obstacle.NOT_PERMITTED: "not permitted",
    Obstacle.NO_RECIPIENT: "recipient not known",
}
_CHECKED_AGAIN = (
    "Each message is checked again in its turn. Your own messages, and messages without a virus scan, may end as "
    "not-allowed."
)


def act_on_matching(act: Act, recipient: str | None, options: Mapping[str, Any]) -> None:
    """Count, confirm, begin and follow a mass act."""
    typed = {name: values for name, values in options.items() if name not in MATCHING_OPTIONS and values}
    if recipient is not None:
        typed["recipient"] = (recipient,)
    if not typed:
        raise WrongCall("--matching needs something to search for: give at least one option like --symbol or --since.")
    if options["hold_back"] and act not in HOLDING_BACK:
        raise WrongCall("Leave out --hold-back: digests do not list these messages.")
    if options["notify"] and act not in MAILING:
        raise WrongCall("Leave out --notify: each recipient gets a mail for each request anyway.")
    if not options["reason"] and not options["dry_run"]:
        raise WrongCall("Give a --reason, or look first with --dry-run.")
    wanted = typed_filter(typed)
    if options["hold_back"] and not can_hold_back(act, wanted):
        raise WrongCall("Leave out --hold-back or --rule: digests cannot leave out what a search by rule finds.")
    with open_parts() as parts:
        masses, wanted = _masses(parts), parts.people.searched(wanted)
        found = masses.dry_run(act, wanted, None)
        _print_dry_run(act, found)
        if options["dry_run"]:
            return
        if found.is_empty:
            raise NotDone("There is nothing to do. To see what the search finds: quarantine list")
        if not options["yes"] and not sys.stdin.isatty():
            raise WrongCall("Confirm with --yes, or look first with --dry-run.")
        if not options["yes"] and not click.confirm(f"{act.capitalize()} {_beyond(found)}{found.count} deliveries?"):
            raise NotDone("Nothing was changed.")
        query = urlencode([(name.replace("_", "-"), text) for name, texts in typed.items() for text in texts])
        mass = MassAct(
            act,
            wanted,
            query,
            found.count,
            options["reason"],
            hold_back=options["hold_back"],
            notify=options["notify"],
            is_exact=found.total.exact,
        )
        job = masses.start(mass, current_operator(), uuid4(), timedelta())
        _follow(masses, job.id)


def _print_dry_run(act: Act, found: DryRun) -> None:
    counts: Counter[tuple[str, str, str, str]] = Counter()
    for part in found.parts:
        why = _WHY_NOT[part.obstacle].format(state=part.state) if part.obstacle else ""
        counts[shown_address(part.domain) or "(not known)", part.tier, part.state, why] += part.count
    table = new_table("deliveries", "domain", "tier", "state", "left alone")
    for (host, tier, state, why), count in counts.items():
        add_row(table, str(count), host, tier, state, why)
    if found.parts:
        print_table(table)
    beyond = _beyond(found)
    say(f"{beyond}{found.count} of {beyond}{found.total.count} deliveries to {act}")
    if not found.is_empty and act in (Act.RELEASE, Act.REFUSE):
        say(_CHECKED_AGAIN, err=True)
    if not found.total.indexed:
        say("Some messages are still being indexed: the job begins when that has ended.", err=True)
    elif not found.total.exact:
        say("Only the newest deliveries were counted. The job includes older ones too.", err=True)


def _beyond(found: DryRun) -> str:
    return "" if found.total.exact else "at least "


def _follow(masses: MassActs, job_id: UUID) -> None:
    """Show the progress of a mass act until it ends. Raises NotDone if not everything was done."""
    say(f"job {job_id}")
    told: Status | None = None
    try:
        with progress("deliveries") as report:
            while (found := masses.get(job_id)).status not in ENDED:
                report(found.progress.done, found.total if found.is_exact else None, 0)
                note = _note(masses, found)
                if note and told is not found.status:
                    told = found.status
                    say(note, err=True)
                if found.status is Status.PAUSED:
                    break
                time.sleep(1 / _LOOKS_PER_SECOND)
            report(found.progress.done, found.total if found.is_exact else None, 0)
    except KeyboardInterrupt:
        raise NotDone(
            f"The job goes on without this command. To see it: quarantine jobs show {job_id}\n"
            f"To stop it: quarantine jobs cancel {job_id}"
        ) from None
    _print_job(found)
    if found.status is not Status.FINISHED or found.done < found.progress.done:
        raise NotDone(f"Not everything was done. To see it again: quarantine jobs show {job_id}")


def _note(masses: MassActs, found: View) -> str:
    """Return what people must know about a job that does not go on at the moment."""
    if found.status is Status.WAITING:
        return _WAITS_FOR[Waiting(found.progress.waits_for)]
    if found.status is Status.RUNNING and masses.actions.now() - found.job.not_before > _LATE:
        return (
            "No process runs the job. The digest process does, which the portal starts. Try: journalctl -u quarantine"
        )
    return ""


def _masses(parts: Parts) -> MassActs:
    return MassActs(parts.store, parts.actions, parts.staff)


# ---- quarantine jobs


@click.group()
def jobs() -> None:
    """Releases, deletions and so on of all messages that a search found."""


@jobs.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@guarded
def list_(as_json: bool) -> None:
    """List the jobs of the last 30 days, newest first."""
    with open_parts() as parts:
        found = list(_masses(parts).newest())
        table = new_table("id", "confirmed at (UTC)", "by", "what", "state", "done", "failed", "left")
        for each in found:
            if as_json:
                click.echo(json_text(_job_json(each)))
                continue
            add_row(
                table,
                str(each.job.id),
                f"{each.job.created_at:%Y-%m-%d %H:%M}",
                shown_address(each.job.actor.name, 40),
                each.mass.act,
                each.status,
                *map(str, (each.done, each.failed, "unknown" if each.left is None else each.left)),
            )
        if found and not as_json:
            print_table(table)
        if not found:
            click.echo("There are no jobs. To begin one: quarantine release --matching --symbol … --dry-run", err=True)


def _found(masses: MassActs, id: UUID) -> View:
    """Return the job of an id. Raises NotDone."""
    try:
        return masses.get(id)
    except NotFound as error:
        raise NotDone(f"There is no job {id}. Try: quarantine jobs list") from error


@jobs.command()
@click.argument("id", type=_ID)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@guarded
def show(id: UUID, as_json: bool) -> None:
    """Show how far a job is."""
    with open_parts() as parts:
        masses = _masses(parts)
        found = _found(masses, id)
        if as_json:
            click.echo(json_text(_job_json(found), indent=2))
            return
        _print_job(found)
        if note := _note(masses, found):
            click.echo(note, err=True)


def _steering(name: str, command: Command | None, help: str) -> None:
    """Add a command that pauses, resumes or cancels a job."""

    @jobs.command(name, help=help)
    @click.argument("id", type=_ID)
    @guarded
    def steer(id: UUID) -> None:
        with open_parts() as parts:
            masses = _masses(parts)
            found = _found(masses, id)
            if found.status in ENDED:
                raise NotDone(f"The job has ended: {found.status}. See: quarantine jobs show {id}")
            masses.steer(found, command, current_operator())
            click.echo(f"{id}: {name}")


_steering("pause", Command.PAUSE, "Stop a job after the deliveries that it acts on now. `resume` lets it go on.")
_steering("resume", None, "Let a paused job go on.")
_steering("cancel", Command.CANCEL, "End a job. What it has done stays done.")


@jobs.command()
@click.argument("id", type=_ID)
@guarded
def retry(id: UUID) -> None:
    """Try the failed releases of a job again, as a new job, and show its progress."""
    with open_parts() as parts:
        masses = _masses(parts)
        found = _found(masses, id)
        if found.status not in ENDED:
            raise NotDone(f"The job has not ended yet. See: quarantine jobs show {id}")
        if not found.failed:
            raise NotDone(f"Nothing failed in this job. See: quarantine jobs show {id}")
        _follow(masses, masses.retry_failed(found, current_operator()).id)


COMMANDS = (jobs,)


def _print_job(found: View) -> None:
    left = f"at least {found.total} in all" if found.left is None else f"{found.left} left"
    say(f"{found.job.id}: {found.mass.act} {found.status}, {found.done} done, {found.failed} failed, {left}")
    say(f"  of: {shown(found.mass.query, 500)}")
    say(f"  reason: {shown(found.mass.reason, 500)}")
    say(f"  confirmed by {shown_address(found.job.actor.who)} at {found.job.created_at:%Y-%m-%d %H:%M:%S} UTC")
    for outcome, count in sorted(found.progress.counts.items()):
        say(f"  {outcome}: {count}")
    if found.mass.notify:
        say(f"  recipients mailed: {found.progress.mailed}")
    if found.mass.hold_back and found.status not in ENDED:
        say("  held back from digests until it ends")
    if found.status is Status.RUNNING and found.per_minute:
        time_left = found.time_left
        left = "" if time_left is None else f", {timedelta(seconds=round(time_left.total_seconds()))} left"
        say(f"  {found.per_minute} per minute{left}")


def _job_json(found: View) -> dict[str, Any]:
    return {
        "id": str(found.job.id),
        "act": found.mass.act,
        "status": found.status,
        "query": found.mass.query,
        "reason": found.mass.reason,
        "by": found.job.actor.who,
        "confirmed_at": found.job.created_at.isoformat(),
        "done": found.done,
        "failed": found.failed,
        "left": found.left,
        "per_minute": found.per_minute,
        "outcomes": {Outcome(name).value: count for name, count in found.progress.counts.items()},
        "hold_back": found.mass.hold_back,
        "notify": found.mass.notify,
        "mailed": found.progress.mailed,
        "retries": str(found.mass.retries) if found.mass.retries else None,
    }
