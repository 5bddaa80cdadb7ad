"""The contracts of what processes leave for each other: outgoing mail, background jobs, and notes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any
from uuid import UUID

from portal.model.audit import AuditEntry
from portal.model.message import Actor
from portal.stores.records import Command, Job, OutgoingMail, QueuedMail

_JOBS = 100  # in one query of `Jobs.each`


class Outbox(ABC):
    """Queue of the portal's own mail."""

    @abstractmethod
    def add(self, mail: QueuedMail, now: datetime) -> None:
        """Queue a mail. Durable on return."""

    @abstractmethod
    def sending(self, now: datetime) -> AbstractContextManager[OutgoingMail | None]:
        """Claim one queued mail; yield None when none is due.

        On exit without an error or with RelayRefused the mail is removed. After any other error it is retried with
        exponential backoff (10 s, doubling, at most 15 min; removed after a day). The exception is raised again.
        """


class Jobs(ABC):
    """Background jobs: work that outlives the request that began it. The digest process of any host runs them.

    A job that its process did not finish, because it died or lost the store, is claimed again once its lease expired:
    each step must be safe to repeat. ``kind`` names the function that runs it, ``arguments`` are a JSON object.
    """

    @abstractmethod
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
        """Queue a job and return its id. ``entries``: of the audit, in the same transaction. Durable on return."""

    @abstractmethod
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
        """Queue a job with this id, unless there is one with this id, or an unfinished one with the same kind,
        arguments and actor. Return the new or existing job. Durable on return.

        ``claimed``: a new job is claimed by the caller, and has a lease; otherwise the job that is returned has none.
        ``entries``: of the audit, in the transaction of a new job.
        """

    @abstractmethod
    def get(self, job_id: UUID) -> Job:
        """Return a job. Kept for `JOBS_KEPT` after its end. Raises NotFound."""

    @abstractmethod
    def claim(self, kind: str, count: int, now: datetime) -> Sequence[Job]:
        """Claim up to ``count`` jobs of this kind, the longest due first, until ``now`` + LEASE. Counts a try.

        Paused jobs are left out.
        """

    @abstractmethod
    def keep(
        self, job: Job, progress: Mapping[str, Any], now: datetime, *, mails: Sequence[QueuedMail] = ()
    ) -> Command | None:
        """Record how far a claimed job is, and extend its claim to ``now`` + LEASE. Return its command by now.

        ``mails`` are queued in the same transaction. Raises AlreadyDone if another process claimed it in the meantime:
        the caller must stop.
        """

    @abstractmethod
    def retry(self, job: Job, not_before: datetime, *, tried: bool = True) -> None:
        """End a claim; the job is due again at ``not_before``. ``tried`` False: it was not begun, the try is not
        counted. Does nothing if another process claimed it in the meantime."""

    @abstractmethod
    def finish(self, job: Job, outcome: str | None, now: datetime) -> None:
        """End a job with its outcome, a text for people; None removes it, if its outcome is recorded elsewhere.

        Does nothing if another process claimed it in the meantime.
        """

    @abstractmethod
    def command(
        self, job_id: UUID, command: Command | None, now: datetime, *, entries: Sequence[AuditEntry] = ()
    ) -> bool:
        """Set the command of a job, or None to let it go on. Return False if it has finished, or has it already.

        ``entries``: of the audit, recorded with the change.

        The process that runs the job reads it at its next `keep`. If none does, the job is due at once, but a job that
        was not begun keeps the time of its start, unless it is cancelled.
        """

    @abstractmethod
    def list(self, kind: str, limit: int, *, unfinished: bool = False, before: Job | None = None) -> Sequence[Job]:
        """Return the newest jobs of this kind, newest first, beginning after the job ``before``.

        ``unfinished``: only those that have not ended.
        """

    def each(self, kind: str, *, unfinished: bool = False, before: Job | None = None) -> Iterator[Job]:
        """Yield all jobs that `list` returns. The store is read when they are needed."""
        has_more = True
        while has_more:
            found = self.list(kind, _JOBS, unfinished=unfinished, before=before)
            yield from found
            has_more = len(found) == _JOBS
            before = found[-1] if found else None


class Notes(ABC):
    """Named texts and counters, for the processes that share the store."""

    @abstractmethod
    def get(self, name: str) -> str | None:
        """Return a note, or None."""

    @abstractmethod
    def set(self, name: str, value: str) -> None:
        """Set a note."""

    @abstractmethod
    def set_default(self, name: str, value: str) -> str:
        """Set a note unless it is set; return its value afterwards."""

    @abstractmethod
    def compare_and_set(
        self, name: str, old: str | None, new: str, now: datetime, *, mail: QueuedMail | None = None
    ) -> bool:
        """Set a note if its value is ``old`` (None: not set); return whether it was set. If so, ``mail`` is queued in
        the same transaction."""

    @abstractmethod
    def add_counters(self, amounts: Mapping[str, float]) -> None:
        """Add amounts to counters, by name. Not necessarily durable."""

    @abstractmethod
    def count(self, amounts: Mapping[str, float]) -> None:
        """Add amounts to counters soon, together with those of other calls. Raises nothing, and waits for nothing.

        For what is counted while somebody waits. A process that is killed loses the amounts of some seconds.
        """

    @abstractmethod
    def counters(self) -> Mapping[str, float]:
        """Return all counters."""
