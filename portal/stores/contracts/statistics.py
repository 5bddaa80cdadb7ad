"""The contract of the statistics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from datetime import date

from portal.model.statistics import ALL, Count, Line, Part, Sums


class Statistics(ABC):
    """Daily counts of deliveries, which outlive the messages. Days are in UTC."""

    @abstractmethod
    def count(self, day: date) -> None:
        """Count the deliveries that were held, and the events, of a day. Replaces earlier counts of the day.

        Messages that are not indexed for staff yet are left out.
        """

    @abstractmethod
    def close(self, day: date) -> None:
        """Count a day for the last time: `count` leaves it and all earlier days as they are from now on. Durable."""

    @abstractmethod
    def reopen(self, day: date) -> None:
        """Open this day and later ones that were closed: the clock was ahead."""

    @abstractmethod
    def next_day(self) -> date | None:
        """Return the first day that is not closed, but has messages or is later than one that is. None: no messages."""

    @abstractmethod
    def first_day(self) -> date | None:
        """Return the first day that was counted, perhaps in part. None: nothing was counted."""

    @abstractmethod
    def counts(self, part: Part, since: date, until: date, domain: str = ALL) -> Sequence[Count]:
        """Return the counts of the days from ``since`` to ``until``, of one domain or of all together, by day."""

    @abstractmethod
    def sums(
        self, since: date, until: date, domains: Collection[str] = (ALL,), parts: Collection[Part] = tuple(Part)
    ) -> Sums:
        """Return the sums of these parts of the days from ``since`` to ``until``, of these domains together."""

    @abstractmethod
    def by_domain(self, since: date, until: date, domains: Collection[str] | None = None) -> Sequence[Line]:
        """Return the total of each of these domains from ``since`` to ``until``, that with most deliveries first.

        ``domains`` None: of each domain that was counted.
        """

    @abstractmethod
    def totals(self) -> Sequence[tuple[str, str, int]]:
        """Return outcome, tier and number of deliveries of all days and domains together."""

    @abstractmethod
    def expire(self, before: date) -> None:
        """Remove the counts of earlier days, but those of all domains together by tier."""

    @abstractmethod
    def records(self, after: date | None) -> tuple[date, Sequence[Count]] | None:
        """Return the first closed day after this one, with its counts, for a copy. None: there is no other one."""

    @abstractmethod
    def import_records(self, day: date, counts: Sequence[Count]) -> None:
        """Store the counts of a closed day."""
