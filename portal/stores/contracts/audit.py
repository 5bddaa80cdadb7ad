"""The contract of the audit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from datetime import datetime
from uuid import UUID

from portal.model.audit import AuditEntry, AuditFilter
from portal.model.message import Actor


class Audit(ABC):
    """The audit of what people did: append-only, in order of time.

    The store itself adds an entry for each event of a delivery that a person caused, for rules and for values of
    domains, in the transaction of the change. Everything else is recorded by its caller.
    """

    @abstractmethod
    def record(self, *entries: AuditEntry) -> None:
        """Add entries. Those that exist stay as they are. Durable on return."""

    @abstractmethod
    def list(self, wanted: AuditFilter, limit: int, before: UUID | None = None) -> Sequence[AuditEntry]:
        """Return the entries that match, newest first, beginning after the entry ``before``."""

    @abstractmethod
    def tally(
        self,
        actor: Actor,
        act: str,
        failed: Collection[str],
        since: datetime,
        limit: int,
        *,
        after: str = "",
        subjects: Collection[str] | None = None,
    ) -> Sequence[tuple[str, int]]:
        """Return how often an actor did something for each subject since a time, sorted by subject, beginning after the
        subject ``after``, or only for these ``subjects``.

        The way of the actor (`Actor.via`) must be the same. An act of ``failed`` takes one of the others back.
        """

    @abstractmethod
    def expire(self, before: datetime) -> int:
        """Remove entries older than ``before`` in small transactions; return how many."""

    @abstractmethod
    def records(self, after: UUID | None, limit: int) -> Sequence[AuditEntry]:
        """Return entries after this id, oldest first, for a copy."""
