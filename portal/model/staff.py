"""Roles of staff, and who has them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from portal.model.message import Actor

EVERYWHERE = ""  # the domain of a role that holds for all mail of the site


class Role(StrEnum):
    """A role. `portal.policy.staff` says what each may do. The values are kept in stores and journals."""

    ADMINISTRATOR = "administrator"
    DOMAIN_ADMINISTRATOR = "domain-administrator"
    HELP_DESK = "help-desk"
    AUDITOR = "auditor"


@dataclass(frozen=True, slots=True)
class Grant:
    """A role that a person has, for one domain or for all mail."""

    person: str  # identity
    role: Role
    domain: str  # in lower case, with A-labels, or EVERYWHERE
    given_at: datetime
    actor: Actor  # who gave it
