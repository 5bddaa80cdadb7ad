"""The contract of roles of staff."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime

from portal.model.message import Actor
from portal.model.staff import Grant, Role


class StaffRoles(ABC):
    """Roles that were given to people. Those of the settings are not in the store."""

    @abstractmethod
    def of(self, person: str) -> Sequence[Grant]:
        """Return the roles of a person, ordered by role and domain."""

    @abstractmethod
    def all(self) -> Sequence[Grant]:
        """Return the roles of all people, ordered by person, role and domain."""

    @abstractmethod
    def give(self, grant: Grant) -> bool:
        """Give a role. Durable on return. Return False, with nothing changed, if the person has it already."""

    @abstractmethod
    def remove(self, person: str, role: Role, domain: str, actor: Actor, now: datetime) -> bool:
        """Remove a role. Durable on return. Return False if the person does not have it.

        Ends the use of the console in all sessions of the person, see `SignIns.extend_staff_use`.
        """

    @abstractmethod
    def put_groups(self, person: str, source: str, grants: Sequence[Grant], now: datetime) -> None:
        """Replace the roles that groups of this source give to a person. Durable on return.

        A role that is gone ends the use of the console, as `remove` does. Roles from other sources stay. These roles
        are not in the journal: the next sign-in restores them.
        """

    @abstractmethod
    def remove_expired(self, now: datetime) -> None:
        """Remove the roles by groups that have expired, each with an audit entry."""

    @abstractmethod
    def replace_all(self, grants: Sequence[Grant]) -> None:
        """Replace all roles by those of another store, except roles by groups. Durable on return."""
