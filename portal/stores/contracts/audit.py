"""The contract of the audit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from portal.model.audit import AuditEntry, AuditFilter
from portal.model.message import Actor, State


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
    def sign_in_methods(self, person: str) -> Collection[str]:
        """Return the names of the methods with which a person has signed in, as long as the audit is kept."""

    @abstractmethod
    def acted_on(
        self, actor: Actor, act: str, since: datetime, limit: int, after: UUID | None = None
    ) -> tuple[Sequence[str], UUID | None]:
        """Return the next subjects to whom an actor did something since a time, each once, and a cursor; None: nobody
        follows.

        ``after``: such a cursor, None to begin. ``limit``: of subjects; there may be less. A subject is returned where
        its first entry is, so that all calls together read each entry once. The way of the actor (`Actor.via`) must be
        the same.
        """

    @abstractmethod
    def acted_before(
        self, actor: Actor, act: str, since: datetime, subjects: Collection[str], until: UUID
    ) -> Collection[str]:
        """Return those of these subjects that `acted_on` returns with this cursor or an earlier one."""

    @abstractmethod
    def tally(
        self, actor: Actor, act: str, since: datetime, subjects: Collection[str]
    ) -> Mapping[str, Mapping[State | None, int]]:
        """Return to how many deliveries of each of these subjects an actor did something since a time, by their state
        now. Deliveries that were removed have the state None."""

    @abstractmethod
    def expire(self, before: datetime) -> int:
        """Remove entries older than ``before`` in small transactions; return how many."""

    @abstractmethod
    def records(self, after: UUID | None, limit: int) -> Sequence[AuditEntry]:
        """Return entries after this id, oldest first, for a copy."""
