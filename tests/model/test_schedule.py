"""Times of digests: moments in many zones and schedules, and which preferences apply. Pure functions."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from time import tzset
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from portal.model.clock import clock, utc_now
from portal.model.schedule import NO_PREFERENCES, Plan, Preferences, Schedule, plan_for
from portal.settings import DigestSettings
from tests.builders import ALICE

ODD_ZONES = [
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",  # half an hour
    "Africa/Cairo",  # leaves midnight out
    "Asia/Beirut",  # the same
    "America/Nuuk",  # from 23:00 to midnight
    "America/Havana",
    "Africa/Casablanca",  # goes back for Ramadan
    "Antarctica/Troll",  # two hours
    "Asia/Kathmandu",
    "Pacific/Apia",  # had no 30 December 2011
    "Pacific/Kiritimati",
]
WEEKDAY = {name: number for number, name in enumerate(tuple(Schedule)[3:])}
DAY = timedelta(days=1)

zones = st.sampled_from(ODD_ZONES) | st.sampled_from(sorted(available_timezones()))
hours = st.lists(
    st.builds(time, st.integers(0, 23), st.sampled_from([0, 1, 15, 30, 59])), min_size=1, max_size=6, unique=True
).map(lambda found: tuple(sorted(found)))
schedules = st.sampled_from([schedule for schedule in Schedule if schedule is not Schedule.NEVER])
moments = st.datetimes(datetime(2009, 1, 1), datetime(2036, 1, 1)).map(lambda d: d.replace(tzinfo=UTC))


def plan(zone: str, *at: time, schedule: Schedule = Schedule.DAILY) -> Plan:
    return Plan(schedule, at, ZoneInfo(zone), "en")


def following(wanted: Plan, after: datetime, count: int) -> list[datetime]:
    found = []
    for _ in range(count):
        moment = wanted.next_time(after)
        assert moment is not None
        assert moment.tzinfo is UTC
        assert moment > after
        found.append(moment)
        after = moment
    return found


def days_of(schedule: Schedule) -> set[int]:
    every = {Schedule.DAILY: set(range(7)), Schedule.WEEKDAYS: set(range(5))}
    return every.get(schedule) or {WEEKDAY[schedule]}


def instants(wanted: Plan, day: date) -> set[datetime]:
    """All moments of a local day that belong to the plan, found slowly, by checking each minute."""
    if day.weekday() not in days_of(wanted.schedule):
        return set()
    start = datetime.combine(day, time(), UTC) - timedelta(hours=15)  # zones lie between UTC-12 and UTC+14
    walls = [
        (moment, moment.astimezone(wanted.zone).replace(tzinfo=None))
        for moment in (start + timedelta(minutes=n) for n in range(54 * 60))
    ]
    if not any(wall == datetime.combine(day, time(12)) for _, wall in walls):
        return set()  # the zone leaves this day out
    return {next(moment for moment, wall in walls if wall >= datetime.combine(day, at)) for at in wanted.at}


@given(zone=zones, at=hours, schedule=schedules, after=moments)
@settings(max_examples=150, deadline=None)
@pytest.mark.slow
def test_no_moment_is_left_out_and_none_comes_twice(
    zone: str, at: tuple[time, ...], schedule: Schedule, after: datetime
) -> None:
    wanted = plan(zone, *at, schedule=schedule)
    assume(after.astimezone(wanted.zone).utcoffset().seconds % 60 == 0)  # type: ignore[union-attr]
    (found,) = following(wanted, after, 1)
    expected: set[datetime] = set()
    day = after.astimezone(wanted.zone).date() - DAY
    while not expected:
        expected = {moment for moment in instants(wanted, day) | instants(wanted, day + DAY) if moment > after}
        day += DAY
    assert found == min(expected)


@given(zone=zones, at=hours, schedule=schedules, after=moments)
@settings(max_examples=150, deadline=None)
def test_moments_follow_in_order_on_the_right_days_at_the_right_hours(
    zone: str, at: tuple[time, ...], schedule: Schedule, after: datetime
) -> None:
    wanted = plan(zone, *at, schedule=schedule)
    for moment in following(wanted, after, 10):
        wall = moment.astimezone(wanted.zone)
        if wall.time() in at and wall.weekday() in days_of(schedule):
            assert wall.fold == 0
        else:  # the end of a gap in which an hour of the plan lies
            before = (moment - timedelta(seconds=1)).astimezone(wanted.zone)
            lost = [datetime.combine(day, each) for day in (before.date(), wall.date()) for each in at]
            assert any(before.replace(tzinfo=None) < each < wall.replace(tzinfo=None) for each in lost)


@given(zone=zones, at=hours, schedule=schedules, after=moments, step=st.integers(1, 3600))
@settings(max_examples=100, deadline=None)
def test_a_clock_that_steps_back_and_forth_meets_the_same_moments(
    zone: str, at: tuple[time, ...], schedule: Schedule, after: datetime, step: int
) -> None:
    wanted = plan(zone, *at, schedule=schedule)
    first, second = following(wanted, after, 2)
    earlier = following(wanted, after - timedelta(seconds=step), 30)
    assert first in earlier
    assert wanted.next_time(first - timedelta(microseconds=1)) == first
    assert wanted.next_time(first) == second


@given(zone=zones, at=hours, after=moments)
@settings(max_examples=50, deadline=None)
@pytest.mark.slow
def test_a_year_has_as_many_moments_as_days_and_hours(zone: str, at: tuple[time, ...], after: datetime) -> None:
    wanted = plan(zone, *at)
    end, count, moment = after + 365 * DAY, 0, wanted.next_time(after)
    while moment is not None and moment <= end:
        count, moment = count + 1, wanted.next_time(moment)
    # Two hours within one gap are one moment; a day may be left out; the end of the year is within a day.
    assert 365 * len(at) - 3 * len(at) <= count <= 365 * len(at) + len(at)


@pytest.fixture(params=["UTC", "America/Los_Angeles", "Pacific/Kiritimati"])
def host_zone(request: pytest.FixtureRequest) -> Iterator[None]:
    """The time zone of the host, which decides nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        tzset()
        yield
    tzset()


@pytest.mark.usefixtures("host_zone")
@pytest.mark.parametrize(
    ("zone", "at", "after", "expected"),
    [
        ("Europe/Berlin", "07:00", "2026-11-22T05:59:59", "2026-11-22T06:00"),
        ("Europe/Berlin", "07:00", "2026-11-22T06:00:00", "2026-11-23T06:00"),
        ("Europe/Berlin", "02:30", "2026-03-29T00:00:00", "2026-03-29T01:00"),  # 02:00-03:00 is left out
        ("Europe/Berlin", "02:10 02:50 03:00", "2026-03-29T00:00:00", "2026-03-29T01:00 2026-03-30T00:10"),
        ("Europe/Berlin", "02:30", "2026-10-24T23:00:00", "2026-10-25T00:30"),  # the first of two
        ("Europe/Berlin", "02:30", "2026-10-25T00:30:00", "2026-10-26T01:30"),  # and not the second
        ("Africa/Cairo", "00:30", "2026-04-23T21:00:00", "2026-04-23T22:00"),  # 00:00-01:00 is left out
        ("America/Nuuk", "23:30", "2026-03-28T12:00:00", "2026-03-29T01:00 2026-03-30T00:30"),  # 23:00-24:00
        ("Australia/Lord_Howe", "02:15", "2026-10-03T12:00:00", "2026-10-03T15:30"),  # 02:00-02:30 is left out
        ("Pacific/Apia", "07:00", "2011-12-29T18:00:00", "2011-12-30T17:00"),  # no 30 December there
        # 25 hours west of Kiritimati
        ("Pacific/Pago_Pago", "23:45", "2026-11-22T10:30:00", "2026-11-22T10:45"),
        ("Europe/Berlin", "07:00 13:00 18:30", "2026-11-22T06:00:00", "2026-11-22T12:00 2026-11-22T17:30"),
    ],
)
def test_moments_in_nights_with_a_clock_change(zone: str, at: str, after: str, expected: str) -> None:
    wanted = plan(zone, *(time.fromisoformat(each) for each in at.split()))
    moments = [datetime.fromisoformat(each).replace(tzinfo=UTC) for each in expected.split()]
    assert following(wanted, datetime.fromisoformat(after).replace(tzinfo=UTC), len(moments)) == moments


def test_schedules_choose_their_days() -> None:
    sunday = datetime(2026, 11, 22, 12, tzinfo=UTC)

    def days(schedule: Schedule, count: int) -> list[int]:
        return [moment.day for moment in following(plan("UTC", time(7), schedule=schedule), sunday, count)]

    assert days(Schedule.DAILY, 3) == [23, 24, 25]
    assert days(Schedule.WEEKDAYS, 6) == [23, 24, 25, 26, 27, 30]
    assert days(Schedule.WEDNESDAY, 2) == [25, 2]
    assert days(Schedule.SUNDAY, 1) == [29]
    assert plan("UTC", time(7), schedule=Schedule.NEVER).next_time(sunday) is None


def test_a_weekday_that_a_zone_left_out_waits_for_the_next_week() -> None:
    friday = plan("Pacific/Apia", time(7), schedule=Schedule.FRIDAY)
    (found,) = following(friday, datetime(2011, 12, 29, 18, tzinfo=UTC), 1)
    assert found.astimezone(friday.zone).date() == date(2012, 1, 6)


def test_a_clock_goes_on_from_the_moment_it_was_set_to(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: seconds[0])
    start = datetime(2026, 11, 22, 7, tzinfo=UTC)
    now = clock(start)
    assert now() == start
    seconds[0] += 1.5
    assert now() == start + timedelta(seconds=1.5)
    assert utc_now().tzinfo is UTC
    assert abs(utc_now() - datetime.now(UTC)) < timedelta(minutes=1)


# ---- which preferences apply

SITE = DigestSettings(at=(time(6),), timezone="Europe/Berlin")


def test_preferences_precede_the_defaults() -> None:
    assert plan_for(SITE, ALICE, NO_PREFERENCES) == plan("Europe/Berlin", time(6))
    chosen = Preferences("sunday", (time(9), time(21)), "America/New_York", "en")
    assert plan_for(SITE, "bob@example.net", chosen) == plan(
        "America/New_York", time(9), time(21), schedule=Schedule.SUNDAY
    )


def test_preferences_that_are_no_longer_known_count_as_not_set(caplog: pytest.LogCaptureFixture) -> None:
    chosen = Preferences("fortnightly", (time(9),), "Mars/Olympus", "tlh")
    with caplog.at_level(logging.WARNING):
        assert plan_for(SITE, ALICE, chosen) == plan("Europe/Berlin", time(9))
    assert [word in caplog.text for word in ("schedule", "timezone", "language")] == [True] * 3


@given(
    st.builds(
        Preferences,
        st.none() | schedules.map(str),
        st.none() | hours,
        st.none() | st.sampled_from(ODD_ZONES),
        st.none() | st.just("en"),
    )
)
@settings(deadline=None)
def test_preferences_are_the_same_after_being_kept(chosen: Preferences) -> None:
    assert Preferences.from_json(chosen.to_json()) == chosen
    assert (chosen.to_json() is None) == (chosen == NO_PREFERENCES)
