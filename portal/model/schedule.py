"""Times and language of a recipient's digests and notices: their preferences, the defaults, and the resulting plan.

Depends on its arguments alone. The store keeps `Preferences`, `policy.domains` has the defaults, and `plan_for` makes a
`Plan` of both. All code that shows or decides a time of a digest uses the plan.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from functools import cache
from typing import Any, Protocol
from zoneinfo import ZoneInfo, available_timezones

from portal.model.errors import BadPreference
from portal.model.record import record
from portal.model.text import N_, TAGS

log = logging.getLogger("quarantine.schedule")

MAX_TIMES = 6  # digests a day
_TIME = re.compile(r"(\d\d?):([0-5]\d)", re.ASCII)
EVENING, MORNING = time(22), time(7)  # of a recipient's night, in which no notices are sent


class Schedule(StrEnum):
    """The days on which digests are sent, in the recipient's time zone."""

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


@record(frozen=True, slots=True)
class Preferences:
    """The choices of one recipient; None: the default of their domain or of all. A stop of digests is kept elsewhere.

    Texts are kept as chosen: a later tzdata may drop a time zone, then the default applies (`plan_for`).
    """

    schedule: str | None = None
    at: tuple[time, ...] | None = None
    timezone: str | None = None
    language: str | None = None
    notices: bool | None = None
    monthly_report: bool | None = None  # of those who administer domains
    only_wanted: bool | None = None  # see `Plan.only_wanted`

    def to_json(self) -> str | None:
        """Return the text that stores keep, or None if nothing was chosen."""
        at = [f"{each:%H:%M}" for each in self.at] if self.at else None
        values: dict[str, Any] = {
            "schedule": self.schedule,
            "at": at,
            "timezone": self.timezone,
            "language": self.language,
        }
        values |= {name: getattr(self, name) for name in _SWITCHES}
        chosen = {name: value for name, value in values.items() if value is not None}
        return json.dumps(chosen) if chosen else None

    def schedules_like(self, other: Preferences) -> bool:
        """Return whether a digest that is due by these is due by others, too."""
        return replace(self, monthly_report=other.monthly_report) == other

    @classmethod
    def from_json(cls, text: str | None) -> Preferences:
        """Parse a text of `to_json`. Raises ValueError or TypeError for anything else."""
        chosen: Any = json.loads(text or "{}")
        if not isinstance(chosen, dict):
            raise ValueError("stored preferences are not a JSON object")
        at = tuple(time.fromisoformat(each) for each in chosen.get("at", ())) or None
        return cls(chosen.get("schedule"), at, *map(chosen.get, ("timezone", "language", *_SWITCHES)))


_SWITCHES = ("notices", "monthly_report", "only_wanted")
NO_PREFERENCES = Preferences()
TYPED = ("schedule", "at", "timezone", "language")  # the preferences with fields in the form of a recipient
SWITCH = {"on": True, "off": False}  # how people type a switch

_BAD = {
    "schedule": N_("These days are not known. Choose, for example, daily, weekdays or monday."),
    "at": N_("Enter times like 07:00, 15:00, six at most."),
    "timezone": N_("There is no time zone of this name. Enter one like Europe/Berlin."),
    "language": N_("This language is not available."),
    "notices": N_("Enter on or off."),
    "only_wanted": N_("Enter on or off."),
}


def typed_preferences(before: Preferences, typed: Mapping[str, str]) -> Preferences:
    """Return preferences with some changed, as people type them; "" means the default.

    ``typed``: those of `TYPED`, and the switches of digests. ``at`` has times with commas. Raises BadPreference.
    `never` is no days: digests are stopped instead.
    """
    known = {
        "schedule": tuple(Schedule)[1:],
        "timezone": zone_names(),
        "language": TAGS,
        "notices": SWITCH,
        "only_wanted": SWITCH,
    }
    values: dict[str, str | bool | tuple[time, ...] | None] = {}
    for name, text in typed.items():
        if name == "at":
            values[name] = _typed_times(text)
        elif text and text not in known[name]:
            raise BadPreference(_BAD[name])
        elif name == "notices":
            values[name] = SWITCH.get(text)
        elif name == "only_wanted":
            values[name] = SWITCH.get(text) or None  # no domain has another default
        else:
            values[name] = str(text) or None
    return replace(before, **values)  # type: ignore[arg-type]  # checked by name above


def _typed_times(text: str) -> tuple[time, ...] | None:
    found = set()
    for part in filter(None, map(str.strip, text.split(","))):
        match = _TIME.fullmatch(part)
        if match is None or int(match[1]) > 23:
            raise BadPreference(_BAD["at"])
        found.add(time(int(match[1]), int(match[2])))
    if len(found) > MAX_TIMES:
        raise BadPreference(_BAD["at"])
    return tuple(sorted(found)) or None


@record(frozen=True, slots=True)
class Plan:
    """The schedule and language of one recipient's digests."""

    schedule: Schedule
    at: tuple[time, ...]  # in order, at least one
    zone: ZoneInfo
    language: str
    notices: bool = False  # whether a notice is sent soon after a message was held that may be wanted
    only_wanted: bool = False  # whether a digest without messages that may be wanted is put off, for a week at most

    def end_of_night(self, now: datetime) -> datetime | None:
        """Return when the recipient's present night ends, aware UTC; None during the day."""
        local = now.astimezone(self.zone)
        if MORNING <= local.time() < EVENING:
            return None
        day = local.date() + timedelta(days=local.time() >= EVENING)
        while not _exists(day, self.zone):
            day += timedelta(days=1)
        return _moment(day, MORNING, self.zone)

    def next_time(self, after: datetime) -> datetime | None:
        """Return the first digest time later than ``after``, aware UTC, or None if the schedule is `never`.

        Each time of ``at`` occurs once on each local day of the schedule. A time in the gap of a change to summer time
        is moved to the end of the gap, and two such times become one. Of a time that occurs twice, when summer time
        ends, the first counts (PEP 495, ``fold=0``). A day that the zone skips has no times (Pacific/Apia had no
        30 December 2011).
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
    # Gaps of hours are at night. Only a gap of a day, at the date line, contains noon.
    noon = datetime.combine(day, time(12), zone)
    return noon.astimezone(UTC).astimezone(zone).date() == day


def _moment(day: date, at: time, zone: ZoneInfo) -> datetime:
    wall = datetime.combine(day, at, zone)
    moment = wall.astimezone(UTC)
    if moment.astimezone(zone).replace(tzinfo=None) == wall.replace(tzinfo=None):
        return moment
    # In a gap fold=0 uses the offset before the gap, which gives a time after it; fold=1 gives one before it (PEP 495).
    # Search the end of the gap between the two.
    before, after = wall.replace(fold=1).astimezone(UTC), moment
    while after - before > timedelta(seconds=1):
        middle = before + (after - before) // 2
        if middle.astimezone(zone).utcoffset() == after.astimezone(zone).utcoffset():
            after = middle
        else:
            before = middle
    return after.replace(microsecond=0)


class Defaults(Protocol):
    """The values that hold for recipients without preferences."""

    @property
    def schedule(self) -> Schedule:
        """The days on which digests are sent."""

    @property
    def at(self) -> tuple[time, ...]:
        """The times of these days, in order, at least one."""

    @property
    def timezone(self) -> str:
        """The IANA name of their time zone."""

    @property
    def language(self) -> str:
        """The tag of the language."""

    @property
    def notices(self) -> bool:
        """True if notices are sent."""


def plan_for(defaults: Defaults, recipient: str, preferences: Preferences) -> Plan:
    """Return a recipient's plan: each value from their preferences, else from the defaults that hold for them.

    A value that is no longer known (a time zone that tzdata dropped) is logged and ignored.
    """

    def chosen(name: str, known: Iterable[str]) -> str | None:
        value: str | None = getattr(preferences, name)
        if value is None or value in known:
            return value
        log.warning("recipient=%s chose a %s that is no longer known: using the default", recipient, name)
        return None

    return Plan(
        Schedule(chosen("schedule", tuple(Schedule)) or defaults.schedule),
        tuple(preferences.at or defaults.at),
        ZoneInfo(chosen("timezone", zone_names()) or defaults.timezone),
        chosen("language", TAGS) or defaults.language,
        defaults.notices if preferences.notices is None else preferences.notices,
        bool(preferences.only_wanted),
    )


@cache
def zone_names() -> frozenset[str]:
    """Return the IANA names of all time zones."""
    return frozenset(available_timezones())
