"""Roles of staff, and who has them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from portal.model.message import Actor
from portal.model.record import record

EVERYWHERE = ""  # the domain of a role that holds for all mail of the site


class Role(StrEnum):
    """A role. `portal.policy.staff` says what each may do. The values are kept in stores and journals."""

    ADMINISTRATOR = "administrator"
    DOMAIN_ADMINISTRATOR = "domain-administrator"
    HELP_DESK = "help-desk"
    AUDITOR = "auditor"


@record(frozen=True, slots=True)
class Grant:
    """A role that a person has, for one domain or for all mail."""

    person: str  # identity
    role: Role
    domain: str  # in lower case, with A-labels, or EVERYWHERE
    given_at: datetime
    actor: Actor  # who gave it
    source: str = ""  # the sign-in method that named the person's groups, "" if a person or the settings gave the role
    group: str = ""  # the group for which `staff.groups` gives it
    expires_at: datetime | None = None  # only of a role by a group; the next sign-in moves it


def fits(role: Role, host: str) -> bool:
    """Return whether a role can be given for this domain, or for EVERYWHERE."""
    if role is Role.ADMINISTRATOR:
        return host == EVERYWHERE
    return role is not Role.DOMAIN_ADMINISTRATOR or host != EVERYWHERE
