"""The contracts of roles and second factors of staff."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import datetime

from portal.model.message import Actor
from portal.model.second_factor import FactorAnswer, SecondFactor
from portal.model.staff import Grant, Role
from portal.stores.records import QueuedMail


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


class SecondFactors(ABC):
    """The second factors that people have set up, at most one each."""

    @abstractmethod
    def get(self, person: str) -> SecondFactor | None:
        """Return the second factor of a person, None if there is none."""

    @abstractmethod
    def all(self) -> Sequence[SecondFactor]:
        """Return the second factors of all people, ordered by person."""

    @abstractmethod
    def put(
        self,
        factor: SecondFactor,
        replaces: str,
        session_sha256: bytes,
        actor: Actor,
        now: datetime,
        *,
        mail: QueuedMail | None = None,
    ) -> bool:
        """Set up a second factor, or change the recovery codes. Durable on return.

        ``replaces``: the `SecondFactor.version` of the present one, "" for none. Return False, with nothing changed, if
        this is not the present one any more. The factor counts as given in this session of the person, and in no other
        if its secret is new. ``mail`` is queued in the same transaction, if something was changed.
        """

    @abstractmethod
    def check(
        self,
        person: str,
        session_sha256: bytes,
        step_of: Callable[[SecondFactor], int | None],
        recovery_sha256: str,
        actor: Actor,
        now: datetime,
        *,
        mail_of: Callable[[FactorAnswer], QueuedMail | None] = lambda _: None,
    ) -> FactorAnswer:
        """Compare a code; if it is right, the factor counts as given in this session. Durable on return.

        ``step_of``: returns the time step whose code was typed, None if no such code is valid now. A step that is not
        later than the last one is refused, so that each code works once. ``recovery_sha256``: of the recovery code
        that was typed instead, "" if none was; it is used up. After `lifecycle.FACTOR_TRIES_MAX` wrong codes of the app
        no more are compared for `lifecycle.factor_pause`, in no process. Recovery codes are not limited.
        ``mail_of``: returns the mail about an answer, without queries to the store. It is queued in the same
        transaction.
        """

    @abstractmethod
    def put_set_up_code(
        self, factor: SecondFactor, actor: Actor, now: datetime, *, mail: QueuedMail | None = None
    ) -> None:
        """Replace what a person has by a factor with a set-up code, and end the use of the console as `reset` does.
        ``mail`` is queued in the same transaction. Durable on return."""

    @abstractmethod
    def reset(self, person: str, actor: Actor, now: datetime, *, mail: QueuedMail | None = None) -> bool:
        """Remove the second factor of a person, and end the use of the console in all their sessions. Durable on
        return. Return False if there is none. ``mail`` is queued in the same transaction, if there was one."""

    @abstractmethod
    def replace_all(self, factors: Sequence[SecondFactor]) -> None:
        """Replace all second factors by those of another store. Durable on return."""
