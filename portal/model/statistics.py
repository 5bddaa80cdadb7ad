"""Statistics: what happened to deliveries on each day, by tier, symbol and domain of the sender. Days are in UTC."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from enum import StrEnum
from typing import NamedTuple

from portal.model.message import EventKind
from portal.model.record import record
from portal.model.text import N_

ALL = ""  # the domain of rows that count all domains together
NAMES_MAX = 50  # symbols or senders that are kept for a day, a domain and an outcome: the most frequent ones
NAMES_OF_ALL_MAX = 1_000  # of what came for all domains together
# How long after the link to it was first opened a message was released or deleted.
DELAYS = {
    "within a minute": timedelta(minutes=1),
    "within 10 minutes": timedelta(minutes=10),
    "within an hour": timedelta(hours=1),
    "within a day": timedelta(days=1),
}
LATER = "later"
DELAY_NAMES = {
    "within a minute": N_("Within a minute"),
    "within 10 minutes": N_("Within 10 minutes"),
    "within an hour": N_("Within an hour"),
    "within a day": N_("Within a day"),
    LATER: N_("Later"),
}


class Outcome(StrEnum):
    """Outcome of a delivery. The values are kept in stores."""

    HELD = "held"
    PASSED = "passed"  # an allow rule let it through
    BLOCKED = "blocked"  # a block rule keeps it out of the digests
    RELEASED = "released"
    DELETED = "deleted"
    CONFIRMED = "confirmed"  # deleted as spam
    REQUESTED = "requested"
    REFUSED = "refused"  # the request was denied


OUTCOME_NAMES = {
    Outcome.HELD: N_("Held"),
    Outcome.RELEASED: N_("Released"),
    Outcome.DELETED: N_("Deleted"),
    Outcome.CONFIRMED: N_("Reported as spam"),
    Outcome.REQUESTED: N_("Requested"),
    Outcome.REFUSED: N_("Denied"),
    Outcome.BLOCKED: N_("Blocked"),
    Outcome.PASSED: N_("Let through"),
}


class Part(StrEnum):
    """Criterion by which the deliveries of an outcome are counted. The values are kept in stores."""

    TOTAL = "total"
    TIER = "tier"
    SYMBOL = "symbol"
    SENDER = "sender"  # domain of the sender
    DELAY = "delay"  # a key of `DELAYS`, or `LATER`


# The events that are counted. A delivery that was deleted, restored and deleted again is counted twice.
OUTCOMES = {EventKind(outcome.value): outcome for outcome in Outcome if outcome is not Outcome.HELD}


def names_max(domain: str, outcome: str) -> int:
    """Return how many symbols or senders of a day are kept for a domain and an outcome."""
    return NAMES_OF_ALL_MAX if domain == ALL and outcome in (Outcome.HELD, Outcome.PASSED) else NAMES_MAX


class Fact(NamedTuple):
    """Facts of a delivery that is counted."""

    domain: str  # of its recipient
    tier: str
    sender_domain: str  # "": not known
    symbols: Sequence[int]  # numbers of their names
    points: Sequence[int] = ()  # of these symbols, in hundredths


class Count(NamedTuple):
    """The number of deliveries of a domain with this outcome on a day."""

    domain: str  # `ALL`: of all domains together
    part: str  # Part
    day: str  # 2026-01-31
    outcome: str  # Outcome
    name: str  # of the tier, symbol, sender or delay; "" for a total or if it is not known
    number: int
    points: int = 0  # of a symbol in all these deliveries, in hundredths


@dataclass(slots=True)
class DayCounts:
    """Counts the deliveries of one day."""

    day: str
    _counts: dict[tuple[str, str, str], Counter[int | str]] = field(default_factory=dict)
    _points: dict[tuple[str, str], Counter[int]] = field(default_factory=dict)  # by domain and outcome

    def add(self, outcome: Outcome, fact: Fact, delay: timedelta | None = None) -> None:
        """Count a delivery. ``delay``: from the first opening of a link to it until now."""
        for domain in {ALL, fact.domain}:
            self._counter(domain, Part.TOTAL, outcome)[""] += 1
            self._counter(domain, Part.TIER, outcome)[fact.tier] += 1
            self._counter(domain, Part.SENDER, outcome)[fact.sender_domain] += 1
            self._counter(domain, Part.SYMBOL, outcome).update(fact.symbols)
            points = self._points.setdefault((domain, outcome.value), Counter())
            for symbol, number in zip(fact.symbols, fact.points, strict=False):
                points[symbol] += number
            if delay is not None:
                self._counter(domain, Part.DELAY, outcome)[_delay(delay)] += 1

    def symbols(self) -> set[int]:
        """Return the numbers of the symbols that `rows` names."""
        return {
            int(name)
            for (domain, part, outcome), counter in self._counts.items()
            if part == Part.SYMBOL
            for name, _ in counter.most_common(names_max(domain, outcome))
        }

    def rows(self, symbol_names: dict[int, str]) -> Iterator[Count]:
        """Yield the counts, of symbols and senders the most frequent ones."""
        for (domain, part, outcome), counter in self._counts.items():
            for name, number in counter.most_common(names_max(domain, outcome)):
                known = symbol_names.get(int(name)) if part == Part.SYMBOL else str(name)
                points = self._points[domain, outcome][int(name)] if part == Part.SYMBOL else 0
                if known is not None:
                    yield Count(domain, part, self.day, outcome, known, number, points)

    def _counter(self, domain: str, part: Part, outcome: Outcome) -> Counter[int | str]:
        return self._counts.setdefault((domain, part.value, outcome.value), Counter())


@record(frozen=True, slots=True)
class Line:
    """The numbers of one day, tier, symbol, domain or delay."""

    name: str
    numbers: dict[str, int]  # by Outcome; those that are 0 are left out

    def number(self, outcome: str) -> int:
        """Return the number of deliveries with an outcome."""
        return self.numbers.get(outcome, 0)

    @property
    def mistakes(self) -> float | None:
        """The share of released deliveries among those held, 0 to 1; None if none was held.

        It may exceed 1: a message may be released days after it was held, and twice.
        """
        held = self.number(Outcome.HELD)
        return self.number(Outcome.RELEASED) / held if held else None


Sums = Mapping[Part, Sequence[Line]]  # of some days, by name, those with most deliveries first


@record(frozen=True, slots=True)
class Month:
    """A calendar month of days in UTC."""

    first: date

    @property
    def last(self) -> date:
        """Its last day."""
        return (self.first + timedelta(days=31)).replace(day=1) - timedelta(days=1)

    @property
    def before(self) -> Month:
        """The month before."""
        return Month((self.first - timedelta(days=1)).replace(day=1))

    def __str__(self) -> str:
        return f"{self.first:%Y-%m}"


def lines(counts: Iterable[Count], *, by_day: bool = False) -> list[Line]:
    """Return the sums of counts: by day in order, or else by name, those with most deliveries first."""
    sums: dict[str, Counter[str]] = {}
    for count in counts:
        sums.setdefault(count.day if by_day else count.name, Counter())[count.outcome] += count.number
    found = [Line(name, dict(numbers)) for name, numbers in sums.items()]
    if by_day:
        return sorted(found, key=lambda line: line.name)
    return sorted(found, key=lambda line: (-line.number(Outcome.HELD), -sum(line.numbers.values()), line.name))


def _delay(delay: timedelta) -> str:
    return next((name for name, limit in DELAYS.items() if delay <= limit), LATER)
