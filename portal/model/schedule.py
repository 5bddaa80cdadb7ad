"""When and how a recipient is told: what they chose, the defaults for the rest, and the moments that come of it.

Depends on its arguments alone. The store keeps `Preferences`, the settings hold the defaults, `plan_for` makes a
`Plan` of both; whoever shows or decides a time asks the plan.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from functools import cache
from typing import Any, Protocol
from zoneinfo import ZoneInfo, available_timezones

from portal.model.message import domain
from portal.model.text import TAGS

log = logging.getLogger("quarantine.schedule")

MAX_TIMES = 6  # digests a day


class Schedule(StrEnum):
    """On which days digests go out, in the recipient's time zone."""

    NEVER = "never"
    DAILY = "daily"
    WEEKDAYS = "weekdays"  # Monday to Friday
    MONDAY = "monday"
    TUESDAY = "tuesday"
    WEDNESDAY = "wednesday"
    THURSDAY = "thursday"
    FRIDAY = "friday"
    SATURDAY = "saturday"
    SUNDAY = "sunday"


_WEEK = tuple(Schedule)[3:]  # date.weekday() counts from Monday as 0
_DAYS = {
    Schedule.NEVER: frozenset[int](),
    Schedule.DAILY: frozenset(range(7)),
    Schedule.WEEKDAYS: frozenset(range(5)),
    **{day: frozenset({number}) for number, day in enumerate(_WEEK)},
}


@dataclass(frozen=True, slots=True)
class Preferences:
    """What one recipient chose; None: the default of their domain or of all. Stopping is kept apart from these.

    Texts are kept as chosen: a time zone may go with a later tzdata, then the default holds (`plan_for`).
    """

    schedule: str | None = None
    at: tuple[time, ...] | None = None
    timezone: str | None = None
    language: str | None = None

    def to_json(self) -> str | None:
        """As stores keep it; None when nothing was chosen."""
        at = [f"{each:%H:%M}" for each in self.at] if self.at else None
        values = {"schedule": self.schedule, "at": at, "timezone": self.timezone, "language": self.language}
        chosen = {name: value for name, value in values.items() if value is not None}
        return json.dumps(chosen) if chosen else None

    @classmethod
    def from_json(cls, text: str | None) -> Preferences:
        """What `to_json` made. Raises ValueError, TypeError for anything else."""
        chosen: Any = json.loads(text or "{}")
        if not isinstance(chosen, dict):
            raise ValueError("not what a recipient chose")
        at = tuple(time.fromisoformat(each) for each in chosen.get("at", ())) or None
        return cls(chosen.get("schedule"), at, chosen.get("timezone"), chosen.get("language"))


NO_PREFERENCES = Preferences()


@dataclass(frozen=True, slots=True)
class Plan:
    """When and how one recipient is told."""

    schedule: Schedule
    at: tuple[time, ...]  # in order, at least one
    zone: ZoneInfo
    language: str

    def next_time(self, after: datetime) -> datetime | None:
        """The first moment later than ``after``, aware UTC; None when the schedule is `never`.

        Each hour comes once on each local day of the schedule. One that a spring night leaves out is the moment the
        gap ends, and two such are one moment; one that an autumn night has twice is the first of the two (PEP 495,
        ``fold=0``). A day that the zone leaves out as a whole has none (Pacific/Apia had no 30 December 2011).
        """
        days = _DAYS[self.schedule]
        if not days:
            return None
        day = after.astimezone(self.zone).date() - timedelta(days=1)
        while True:
            if day.weekday() in days and _exists(day, self.zone):
                moments = [_moment(day, at, self.zone) for at in self.at]
                later = [moment for moment in moments if moment > after]
                if later:
                    return min(later)
            day += timedelta(days=1)


def _exists(day: date, zone: ZoneInfo) -> bool:
    # Gaps of hours lie at night; only a gap of a day, at the date line, leaves out a noon.
    noon = datetime.combine(day, time(12), zone)
    return noon.astimezone(UTC).astimezone(zone).date() == day


def _moment(day: date, at: time, zone: ZoneInfo) -> datetime:
    wall = datetime.combine(day, at, zone)
    moment = wall.astimezone(UTC)
    if moment.astimezone(zone).replace(tzinfo=None) == wall.replace(tzinfo=None):
        return moment
    # In a gap fold=0 counts with the offset before it and so lands behind it, fold=1 before it (PEP 495).
    before, behind = wall.replace(fold=1).astimezone(UTC), moment
    while behind - before > timedelta(seconds=1):
        middle = before + (behind - before) // 2
        if middle.astimezone(zone).utcoffset() == behind.astimezone(zone).utcoffset():
            behind = middle
        else:
            before = middle
    return behind.replace(microsecond=0)


class Defaults(Protocol):
    """The settings of section ``digest``: `schedule`, `at`, `timezone` and `language` for all, and for a domain."""

    @property
    def domains(self) -> Mapping[str, object]:
        """By lower-case domain; what one does not set is None."""


def plan_for(settings: Defaults, recipient: str, preferences: Preferences) -> Plan:
    """What holds for a recipient: each thing as they chose it, else as their domain has it, else as all have it.

    A choice that is not known any more (a time zone that tzdata dropped) is logged and counts as none.
    """
    there = settings.domains.get(domain(recipient))

    def default(name: str) -> Any:
        own = getattr(there, name, None)
        return getattr(settings, name) if own is None else own

    def chosen(name: str, known: Iterable[str]) -> str | None:
        value: str | None = getattr(preferences, name)
        if value is None or value in known:
            return value
        log.warning("recipient=%s chose a %s that is not known any more: the default holds", recipient, name)
        return None

    return Plan(
        Schedule(chosen("schedule", tuple(Schedule)) or default("schedule")),
        tuple(preferences.at or default("at")),
        ZoneInfo(chosen("timezone", zone_names()) or default("timezone")),
        chosen("language", TAGS) or default("language"),
    )


@cache
def zone_names() -> frozenset[str]:
    """All time zones by their IANA names."""
    return frozenset(available_timezones())
