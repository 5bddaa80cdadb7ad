"""Background jobs, in table `job`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from portal.model.audit import AuditEntry
from portal.model.errors import AlreadyDone, NotFound
from portal.model.message import Actor, ActorKind, new_id
from portal.stores import lifecycle
from portal.stores.contracts import Jobs
from portal.stores.records import Command, Job, QueuedMail
from portal.stores.shared.audit import record
from portal.stores.shared.outbox import queue
from portal.stores.shared.session import Engine, Row, Session

SCAN = "scan"  # scans the message named by argument "message"; hold_mail of quarantine.sql queues it as well
COLUMNS = (
    *("id", "kind", "arguments", "actor", "via", "address", "created_at", "not_before", "tries", "progress"),
    *("command", "outcome", "finished_at", "lease"),
)
_COLUMNS = ", ".join(COLUMNS)
_CLAIM = "update job set tries = :tries, not_before = :not_before, lease = :lease where id = :id"
_CLAIMED = "where id = :id and lease = :lease and finished_at is null"


class SqlJobs(Jobs):
    """See `Jobs`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(
        self,
        kind: str,
        arguments: Mapping[str, Any],
        actor: Actor,
        now: datetime,
        not_before: datetime | None = None,
        *,
        entries: Sequence[AuditEntry] = (),
    ) -> UUID:
        with self._engine.writing() as session:
            record(session, entries)
            return add_job(session, kind, arguments, actor, now, not_before)

    def add_once(
        self,
        job_id: UUID,
        kind: str,
        arguments: Mapping[str, Any],
        actor: Actor,
        now: datetime,
        not_before: datetime | None = None,
        *,
        claimed: bool = False,
        entries: Sequence[AuditEntry] = (),
    ) -> Job:
        same = "id = :id or (kind = :kind and finished_at is null and arguments = :text and actor = :who)"
        with self._engine.writing() as session:
            session.lock(f"jobs of {actor.who}")  # of two equal forms, one waits for the other
            row = session.one(
                f"select {_COLUMNS} from job where {same} limit 1",
                id=job_id,
                kind=kind,
                text=json.dumps(arguments),
                who=actor.who,
            )
            if row is not None:
                return replace(job_of(row), lease=None)
            record(session, entries)
            add_job(session, kind, arguments, actor, now, not_before, job_id)
            job = job_of(session.one(f"select {_COLUMNS} from job where id = :id", id=job_id) or ())
            if not claimed:
                return job
            job = replace(job, tries=1, not_before=now + lifecycle.LEASE, lease=uuid4())
            session.execute(_CLAIM, tries=job.tries, not_before=job.not_before, lease=job.lease, id=job.id)
            return job

    def get(self, job_id: UUID) -> Job:
        with self._engine.reading() as session:
            row = session.one(f"select {_COLUMNS} from job where id = :id", id=job_id)
        if row is None:
            raise NotFound("there is no such job")
        return job_of(row)

    def claim(self, kind: str, count: int, now: datetime) -> Sequence[Job]:
        claimed: list[Job] = []
        until = now + lifecycle.LEASE
        with self._engine.writing() as session:
            while len(claimed) < count:
                row = session.one(
                    f"select {_COLUMNS} from job where kind = :kind and not_before <= :now and finished_at is null"
                    " and (command is null or command <> 'pause') order by not_before limit 1",
                    for_update=True,
                    skip_locked=True,
                    kind=kind,
                    now=now,
                )
                if row is None:
                    break
                due = job_of(row)
                job = replace(due, tries=due.tries + 1, not_before=until, lease=uuid4())
                session.execute(_CLAIM, tries=job.tries, not_before=until, lease=job.lease, id=job.id)
                claimed.append(job)
        return claimed

    def keep(
        self, job: Job, progress: Mapping[str, Any], now: datetime, *, mails: Sequence[QueuedMail] = ()
    ) -> Command | None:
        update = f"update job set progress = :text, not_before = :until {_CLAIMED}"
        with self._engine.writing() as session:
            row = session.one("select command from job where id = :id", id=job.id)
            kept = session.execute(
                update, text=json.dumps(progress), until=now + lifecycle.LEASE, id=job.id, lease=job.lease
            )
            if not kept:
                raise AlreadyDone("another process claimed this job")
            for mail in mails:
                queue(session, mail, now)
        return Command(row[0]) if row and row[0] else None

    def retry(self, job: Job, not_before: datetime, *, tried: bool = True) -> None:
        update = f"update job set not_before = :not_before, tries = :tries, lease = null {_CLAIMED}"
        with self._engine.writing() as session:
            session.execute(update, not_before=not_before, tries=job.tries - (not tried), id=job.id, lease=job.lease)

    def finish(self, job: Job, outcome: str | None, now: datetime) -> None:
        statement = f"delete from job {_CLAIMED}"
        if outcome is not None:
            statement = f"update job set outcome = :outcome, finished_at = :now, lease = null {_CLAIMED}"
        with self._engine.writing() as session:
            session.execute(statement, outcome=outcome, now=now, id=job.id, lease=job.lease)

    def command(
        self, job_id: UUID, command: Command | None, now: datetime, *, entries: Sequence[AuditEntry] = ()
    ) -> bool:
        update = (
            "update job set command = :command, not_before = case"
            " when lease is null and (tries > 0 or :text = 'cancel') then :now else not_before end"
            " where id = :id and finished_at is null and coalesce(command, '') not in (:text, 'cancel')"
        )
        with self._engine.writing() as session:
            is_changed = session.execute(update, command=command, text=command or "", now=now, id=job_id) > 0
            record(session, entries if is_changed else ())
        return is_changed

    def list(self, kind: str, limit: int, *, unfinished: bool = False, before: Job | None = None) -> Sequence[Job]:
        where = "kind = :kind" + (" and finished_at is null" if unfinished else "")
        end: dict[str, Any] = {}
        if before is not None:
            where += " and (created_at, id) < (:before_at, :before_id)"
            end = {"before_at": before.created_at, "before_id": before.id}
        with self._engine.reading() as session:
            rows = session.many(
                f"select {_COLUMNS} from job where {where} order by created_at desc, id desc limit :limit",
                kind=kind,
                limit=limit,
                **end,
            )
        return [job_of(row) for row in rows]


def add_job(
    session: Session,
    kind: str,
    arguments: Mapping[str, Any],
    actor: Actor,
    now: datetime,
    not_before: datetime | None = None,
    id: UUID | None = None,
) -> UUID:
    """Queue a job in this transaction, and return its id."""
    id = id or new_id(now)
    session.execute(
        "insert into job (id, kind, arguments, actor, via, address, created_at, not_before)"
        " values (:id, :kind, :text, :who, :via, :address, :now, :not_before)",
        actor,
        id=id,
        kind=kind,
        text=json.dumps(arguments),
        who=actor.who,
        now=now,
        not_before=not_before or now,
    )
    return id


def add_scan(session: Session, message_id: UUID, now: datetime) -> None:
    """Queue the virus scan of a message in this transaction."""
    add_job(session, SCAN, {"message": str(message_id)}, Actor(ActorKind.SYSTEM), now)


def job_of(row: Row) -> Job:
    """Return the job of a row of `COLUMNS`."""
    id, kind, arguments, who, via, address, created_at, not_before, tries, progress, command, *ended = row
    return Job(
        id,
        kind,
        json.loads(arguments),
        Actor.from_stored(who, via, address),
        created_at,
        not_before,
        tries,
        json.loads(progress or "{}"),
        Command(command) if command else None,
        *ended,
    )
