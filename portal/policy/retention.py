"""The time for which a delivery is kept. The only place that decides it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from portal.model.message import State
from portal.settings import Settings


@dataclass(frozen=True, slots=True)
class Retention:
    """The times after which deliveries are forgotten. None is later than the removal of whole days (`Store.purge`)."""

    longest: timedelta
    blocked: timedelta

    @classmethod
    def of(cls, settings: Settings) -> Retention:
        """Return the times according to the settings."""
        longest, blocked = settings.store.retention_days, settings.store.blocked_retention_days
        return cls(timedelta(days=longest), timedelta(days=min(longest, blocked)))

    def end(self, state: State, held_at: datetime) -> datetime:
        """Return when a delivery in this state is forgotten."""
        return held_at + (self.blocked if state is State.BLOCKED else self.longest)
