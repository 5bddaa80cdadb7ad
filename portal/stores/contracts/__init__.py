"""The contracts of a store. One test suite runs over every implementation.

A store does not depend on HTTP, SMTP, links, templates or settings. It translates the errors of its library into
`StoreUnavailable` (try again later) or `StoreUnusable` (an administrator must act). Callers pass the time as aware UTC
``now``, so that tests can set the clock.

A claim (of a release, a digest, an outgoing mail) is a committed row with a lease: no connection or lock is held while
something is being sent. When a process dies, its lease expires and another process takes over: at worst a mail is sent
twice, but it is never silently dropped.

Methods for recipients take the `Reader` or the identity whose data they may see. The other methods are not limited to
one recipient: they are for the command line, the background processes, and links, whose token names the delivery.

A delivery is *announced* once a digest has notified its recipient. If a delivery is held under another name of its
reader, or if several people read it, the store records each reader who was notified; the delivery is announced once
all its readers were notified.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime

from portal.stores.contracts.audit import Audit
from portal.stores.contracts.facets import Facets
from portal.stores.contracts.idempotency import IdempotencyKeys
from portal.stores.contracts.mail import NO_STARTS, Deliveries, Messages
from portal.stores.contracts.passwords import PasswordTries
from portal.stores.contracts.people import Digests, Recipients, SignIns
from portal.stores.contracts.policy import DomainValues, Rules, Votes
from portal.stores.contracts.staff import SecondFactors, StaffRoles
from portal.stores.contracts.statistics import Statistics
from portal.stores.contracts.tokens import ApiTokens
from portal.stores.contracts.work import Jobs, Notes, Outbox
from portal.stores.records import Ending, Purged, Sizes, Stats

__all__ = [
    "NO_STARTS",
    "ApiTokens",
    "Audit",
    "Deliveries",
    "Digests",
    "DomainValues",
    "Facets",
    "IdempotencyKeys",
    "Jobs",
    "Messages",
    "Notes",
    "Outbox",
    "PasswordTries",
    "Recipients",
    "Rules",
    "SecondFactors",
    "SignIns",
    "StaffRoles",
    "Statistics",
    "Store",
    "Votes",
]


class Store(ABC):
    """All data of the portal. Thread-safe; opened after the fork, one per process.

    Every method of it and of its parts may raise `StoreUnavailable`.
    """

    messages: Messages
    deliveries: Deliveries
    facets: Facets
    digests: Digests
    recipients: Recipients
    sign_ins: SignIns
    passwords: PasswordTries
    idempotency: IdempotencyKeys
    outbox: Outbox
    jobs: Jobs
    votes: Votes
    rules: Rules
    domains: DomainValues
    audit: Audit
    staff: StaffRoles
    tokens: ApiTokens
    second_factors: SecondFactors
    statistics: Statistics
    notes: Notes

    @abstractmethod
    def ping(self) -> None:
        """Return if the store can be written to now, within 2 s."""

    @abstractmethod
    def close(self, seconds: float = 0.5) -> None:
        """Close files and connections, after `close_outcomes`. May be called twice."""

    @abstractmethod
    def close_outcomes(self, seconds: float) -> None:
        """Record the outcomes that are kept in memory, in at most ``seconds``, or log that they are lost: the process
        ends."""

    @abstractmethod
    def heartbeat(self, now: datetime) -> None:
        """Record that the digest process is alive.

        A process that calls this every few seconds notices outages of the store by it. For some seconds after its first
        call and after an outage it takes no claims over, since the processes that made them may live (`Outcomes`).
        """

    @abstractmethod
    def stats(self, now: datetime) -> Stats:
        """Return the numbers for `/healthz` and `/metrics`."""

    @abstractmethod
    def sizes(self) -> Sizes:
        """Return how much the store has. Reads all deliveries, which takes seconds."""

    def health(self, now: datetime) -> Stats:
        """Return the numbers of `stats` if the store can be written to now, as `ping` does."""
        self.ping()
        return self.stats(now)

    @abstractmethod
    def repair_clock_skew(self, now: datetime) -> int:
        """Repair times that a clock that was ahead left; return how many recipients, releases and mails were changed.

        Digests scheduled more than ten days ahead are unscheduled, claims and retries that end more than a day ahead
        end now, and times of digest requests later than ``now`` are cleared.
        """

    @abstractmethod
    def purge(self, before: datetime, now: datetime) -> Purged:
        """Remove messages held before ``before`` with all their data, except those with a delivery that is `requested`
        or `releasing`; remove leftovers of crashes, expired sign-ins, sessions, link opens and digests.

        Never blocks ingest for longer than 100 ms at a time.
        """

    @abstractmethod
    def expire(self, deliveries: Sequence[Ending]) -> int:
        """Forget deliveries unless their state has changed: recipients and operators cannot find them any more.

        A message without other deliveries is removed with all its data, as by `purge`. Returns how many were forgotten.
        """

    @abstractmethod
    def prepare_days(self, now: datetime, retention_days: int) -> None:
        """Create the partitions or folders for the coming days, so that `Messages.add` need not. Called daily; `add`
        also works without it.

        ``retention_days``: how long messages are kept, which determines how many days a new partition has, or a new
        index of words.
        """
