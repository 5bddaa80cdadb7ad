"""The contract of checks of passwords."""

from __future__ import annotations

from abc import ABC, abstractmethod

from portal.stores.records import Admission, PasswordLimits, PasswordTry


class PasswordTries(ABC):
    """Checks of passwords by the directory or the mail server. They are counted for the rate limits, nothing else."""

    @abstractmethod
    def begin(self, attempt: PasswordTry, limits: PasswordLimits) -> Admission:
        """Record that a password is being checked, if it may be. Then `wrong`, `right` or `unanswered` must follow.

        A check whose process died counts as a wrong password, and no longer prevents others after `lifecycle.LEASE`.
        """

    @abstractmethod
    def wrong(self, attempt: PasswordTry) -> None:
        """Record that the password was wrong."""

    @abstractmethod
    def right(self, attempt: PasswordTry) -> None:
        """Forget this check, and the wrong passwords of the same mailbox from the same client."""

    @abstractmethod
    def unanswered(self, attempt: PasswordTry) -> None:
        """Forget this check, since no server answered."""
