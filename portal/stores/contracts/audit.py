"""The contract of the audit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from portal.model.audit import AuditEntry, AuditFilter


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
    def expire(self, before: datetime) -> int:
        """Remove entries older than ``before`` in small transactions; return how many."""

    @abstractmethod
    def records(self, after: UUID | None, limit: int) -> Sequence[AuditEntry]:
        """Return entries after this id, oldest first, for a copy."""
