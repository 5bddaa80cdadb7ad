"""A value of a domain's policy that an administrator set in the store."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from portal.model.message import Actor
from portal.model.record import record


@record(frozen=True, slots=True)
class DomainValue:
    """One change: the value that a setting of a domain got, and who gave it. It never changes, except that it is
    replaced."""

    id: UUID
    domain: str  # in lower case, with A-labels
    name: str  # of the setting
    value: str | None  # as the settings file would have it, lists with commas; None: the value was removed
    set_at: datetime
    actor: Actor
    replaced_at: datetime | None = None  # None: in use
