"""Clocks that are wrong, step and jump, and nights with an hour more or less: each message is announced once.

Time is an argument of the process's work; store and mail server are real.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from digest import housekeeping, news, run
from portal.assemble import Parts
from portal.model.links import MARK_HEADER, Action
from portal.model.message import State, Tier
from portal.model.schedule import Preferences
from portal.stores.records import Held, QueuedMail
from tests.builders import ALICE, body, export, mail, now, prefer
from tests.conftest import MakeParts
from tests.faults.conftest import Report
from tests.faults.test_digest_kills import read
from tests.faults.test_kills import full
from tests.smtp_server import SmtpServer
from tests.web_client import Site

HOUR, DAY, YEAR = timedelta(hours=1), timedelta(days=1), timedelta(days=366)
QUARTER = timedelta(minutes=15)
BUSY = "450 4.2.1 busy"


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with SmtpServer() as running:
        yield running
        assert running.violations == []


@dataclass
class World:
    """The true time, and a digest process whose clock is wrong by ``error``."""

    parts: Parts
    server: SmtpServer
    true: datetime = field(default_factory=now)
    error: timedelta = timedelta()
    held: list[Held] = field(default_factory=list)
    letters: list[bytes] = field(default_factory=list)
    # The portal's own mail is given up a day after it was queued, by the clock, when it is rejected or by the purge.
    earliest: dict[bytes, datetime] = field(default_factory=dict)  # the earliest time that the clock showed since then
    may_be_given_up: set[bytes] = field(default_factory=set)
    announced: Counter[tuple[UUID, int]] = field(default_factory=Counter)
    begins: int = 0  # the number of the server's mails before this test

    def __post_init__(self) -> None:
        self.begins = len(self.server.mails)

    @property
    def shown(self) -> datetime:
        """The time that the clock shows."""
        return self.true + self.error

    def hold(self, people: Sequence[str]) -> Held:
        """Hold a new message."""
        data = mail()
        # Each has another sender, or they would be one row.
        made = export(data, recipients=people, header_from=f"{len(self.held)}@example.net")
        self.held.append(self.parts.store.messages.add(made, body(data), Tier.SPAM, people, at=self.shown))
        return self.held[-1]

    def write(self) -> None:
        """Queue a mail of the portal."""
        self.letters.append(f"Subject: sign in {len(self.letters)} {self.true}\r\n\r\n".encode())
        self.earliest[self.letters[-1]] = self.shown
        self.parts.store.outbox.add(QueuedMail(ALICE, self.letters[-1]), self.shown)

    def note(self, *, gives_up: bool) -> None:
        """Note the time that the clock shows, and whether mail that is a day old by the clock is given up."""
        self.earliest = {letter: min(since, self.shown) for letter, since in self.earliest.items()}
        if gives_up:
            self.may_be_given_up |= {letter for letter, since in self.earliest.items() if self.shown - since >= DAY}

    def tick(self, *, busy: bool = False) -> list[str]:
        """Do the work that the process does every few seconds and return the recipients of digests."""
        before = len(self.server.mails)
        self.note(gives_up=busy)
        news.schedule_news(self.parts, self.shown)
        run.send_due(self.parts, self.shown)
        housekeeping.send_queued(self.parts, self.shown)
        digests = [one for one in self.server.mails[before:] if one.recipients != [ALICE]]
        # Read it now: a digest that was sent by a clock that is a year slow is old, and so forgotten, a day later.
        for one in digests:
            mark = self.parts.links.read_mark(read(one)[MARK_HEADER])
            assert mark is not None
            self.announced.update((each.id, each.number) for each in self.parts.store.digests.get(mark[1]).deliveries)
        return [one.recipients[0] for one in digests]

    def pass_days(self, days: float) -> None:
        """Let time pass; the process does its work each hour, and once a day the daily work."""
        for hours in range(int(days * 24)):
            self.true += HOUR
            news.find_news(self.parts, self.shown)
            if hours % 24 == 12:
                housekeeping.daily(self.parts, self.shown)
            self.tick()

    def assert_announced_once(self) -> int:
        """Assert that each message is in one digest and each digest was sent once. Return the number of digests."""
        sent = [one for one in self.server.mails[self.begins :] if one.recipients != [ALICE]]
        written = [one.data for one in self.server.mails[self.begins :] if one.recipients == [ALICE]]
        assert not Counter(written) - Counter(self.letters)
        assert set(self.letters) - set(written) <= self.may_be_given_up
        marks = [self.parts.links.read_mark(read(one)[MARK_HEADER]) for one in sent]
        assert len(set(marks)) == len(marks), "a digest was sent twice"
        there = [(each.id, each.number) for one in self.held for each in self.parts.store.deliveries.of_message(one.id)]
        assert self.announced == dict.fromkeys(there, 1)
        return len(sent)


# ---- steps and jumps

names = (f"p{number}@example.org" for number in itertools.count())


# A message held by a clock a year slow is as old for the purge: it is announced, and removed a day later.
@pytest.mark.parametrize(
    ("step", "retention_days"), [(HOUR, 30), (-HOUR, 30), (YEAR, 30), (-YEAR, 400), (10 * YEAR, 30)]
)
def test_a_clock_that_is_wrong_for_hours_loses_and_duplicates_nothing(
    make_parts: MakeParts, server: SmtpServer, step: timedelta, retention_days: int
) -> None:
    world = World(make_parts(mail__url=server.url, store__retention_days=retention_days), server)
    people = [next(names) for _ in range(3)]
    world.pass_days(1.1)
    world.hold(people)
    world.write()
    world.tick()
    world.hold(people[:1])
    world.error = step
    failures = iter([BUSY, "550 5.1.1 nobody", BUSY])  # so their next attempt has a time
    server.script["RCPT"] = lambda line: None if ALICE.encode() in line else next(failures, None)
    housekeeping.daily(world.parts, world.shown)  # as at the process's start
    news.find_news(world.parts, world.shown)
    world.hold(people)
    world.write()
    world.pass_days(0.3)
    world.hold(people[1:])
    world.write()
    world.tick()
    world.write()
    world.error = timedelta()
    server.script.clear()
    world.hold(people)
    world.pass_days(2.1)
    world.assert_announced_once()


moves = st.tuples(
    st.sampled_from([0, 1, 20, 60, 300]),  # minutes that pass
    st.sampled_from([0, 0, 4, -4, 60, -60, 366 * 1440, -366 * 1440]),  # minutes by which the clock steps
    st.sampled_from(["mail", "mail", "write", "tick", "tick", "start", "busy"]),
)


@pytest.mark.parametrize("walks", [8, full(300, seconds=1_200)])
def test_whatever_the_clock_does_each_mail_is_announced_once(
    make_parts: MakeParts, server: SmtpServer, walks: int, report: Report
) -> None:
    parts = make_parts(mail__url=server.url, store__retention_days=800)
    began = now() + DAY
    done: Counter[str] = Counter()

    @settings(
        max_examples=walks,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],  # shrinking a failure would take an hour
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(st.lists(moves, min_size=4, max_size=25))
    def walk(moves: list[tuple[int, int, str]]) -> None:
        nonlocal began
        parts.store.purge(began - 2 * DAY, began)  # the days of one year of each walk would make the last walks slow
        world = World(parts, server, began)
        people, right = [next(names) for _ in range(3)], began
        for minutes, step, does in moves:
            world.true += timedelta(minutes=minutes)
            world.error += timedelta(minutes=step)
            if abs(world.error) < DAY:
                right = world.true
            elif world.true - right > 12 * HOUR or abs(world.error) > 2 * YEAR:
                world.error = timedelta()  # early enough: after 20 hours the purge would trust the clock
            if does == "mail":
                world.hold(people)
            elif does == "write":
                world.write()
            elif does == "start":
                world.note(gives_up=True)  # by the purge
                news.find_news(parts, world.shown)
                housekeeping.daily(parts, world.shown)
            else:
                server.script["RCPT"] = [None, BUSY] if does == "busy" else []
                world.tick(busy=does == "busy")
                server.script.clear()
        world.error = timedelta()
        world.pass_days(2.1)  # a message held by a clock hours ahead may have missed today's seven o'clock
        done["walks"] += 1
        done["steps"] += sum(1 for _, step, _ in moves if step)
        done["mails"] += len(world.held)
        done["digests"] += world.assert_announced_once()
        began = world.true + DAY

    walk()
    report(
        "17 a clock that steps and jumps",
        f"{done['walks']:,} random walks with {done['steps']:,} steps of 4 minutes to a year: {done['mails']:,} "
        f"messages to 3 people, {done['digests']:,} digests, each message in one",
    )
    assert done["digests"]


# ---- nights with an hour more or less


def nights(zone: ZoneInfo, after: datetime) -> list[datetime]:
    """Return the next times when the zone's clocks go forward and back."""
    found: dict[bool, datetime] = {}
    moment = after.replace(minute=0, second=0, microsecond=0)
    while len(found) < 2:
        before, moment = moment, moment + QUARTER
        was, is_now = (each.astimezone(zone).utcoffset() for each in (before, moment))
        if was != is_now and was is not None and is_now is not None:
            found.setdefault(is_now > was, moment)
    return list(found.values())


def moments(zone: ZoneInfo, hours: Iterable[time], start: datetime, end: datetime) -> set[datetime]:
    """Search the times when a recipient is notified: each local day's first quarter at or past the hours."""
    quarters = [start + n * QUARTER for n in range(-96, (end - start) // QUARTER + 1)]
    walls = [(quarter, quarter.astimezone(zone).replace(tzinfo=None)) for quarter in quarters]
    days = {wall.date() for _, wall in walls[96:]}
    found = set()
    for wanted in (datetime.combine(day, hour) for day in days for hour in hours):
        first = next((quarter for quarter, wall in walls if wall >= wanted), None)
        if first is not None and first > start and walls[0][1] < wanted:
            found.add(first)
    return found


ALL_NIGHT = [(time(n // 2, n % 2 * 30),) for n in range(0, 48)]
AT_NIGHT = [(time(0),), (time(0, 30),), (time(2),), (time(2, 15),), (time(3),), (time(0, 30), time(2, 30), time(22))]


@pytest.mark.parametrize(
    ("zones", "wanted"),
    [
        (["Australia/Lord_Howe", "America/Santiago"], AT_NIGHT),
        full(
            ["Europe/Berlin", "Australia/Lord_Howe", "America/Santiago", "Africa/Casablanca", "Pacific/Chatham"],
            [*ALL_NIGHT, *AT_NIGHT],
            seconds=1_200,
        ),
    ],
)
def test_nights_with_a_clock_change_skip_and_duplicate_nothing(
    make_parts: MakeParts, server: SmtpServer, zones: list[str], wanted: list[tuple[time, ...]], report: Report
) -> None:
    parts = make_parts(mail__url=server.url, store__retention_days=3650)
    changes = sorted((night, zone) for zone in zones for night in nights(ZoneInfo(zone), now()))
    world = World(parts, server)
    digests = 0
    for number, (night, name) in enumerate(changes):
        zone = ZoneInfo(name)
        people = {f"n{number}-{n}@example.org": hours for n, hours in enumerate(wanted)}
        for person, hours in people.items():
            prefer(parts.store, person, Preferences("daily", hours, name))
        start, end = night - 26 * HOUR, night + 26 * HOUR
        world.true = start
        sent_at: dict[str, set[datetime]] = {person: set() for person in people}
        while world.true < end:
            # All recipients have news at any hour.
            if world.true == start or world.true.minute == 0:
                world.hold(list(people))
            world.true += QUARTER
            for person in world.tick():
                assert world.true not in sent_at[person]
                sent_at[person].add(world.true)
        for person, hours in people.items():
            assert sent_at[person] == moments(zone, hours, start, end), f"{name} {night} {hours}"
        digests += sum(map(len, sent_at.values()))
        world.true += DAY
        world.tick()
        assert world.tick() == []
    report(
        "17 nights with a clock change",
        f"{len(changes)} nights in {len(zones)} zones, {len(wanted)} people each: {digests:,} digests, each at its "
        "time",
    )
    world.assert_announced_once()


# ---- links


def test_links_of_the_last_five_minutes_stay_valid_when_the_clock_steps_back(
    make_parts: MakeParts, server: SmtpServer
) -> None:
    site = Site(make_parts(mail__url=server.url, relay__url=server.url))
    person = next(names)
    world = World(site.parts, server, site.now)
    held = [world.hold([person]) for _ in range(4)]
    run.send_all(site.parts, site.now, recipient=person)
    part = read(server.mails[-1]).get_body(("plain",))
    assert part is not None
    found = {}
    for token in re.findall(r"/link/(\S+)/", part.get_content()):
        link = site.parts.links.verify(token, site.now)
        if link.action is Action.RELEASE:
            found[link.id] = f"/link/{token}/"
    sent_at = site.now
    for one, minutes in zip(held, (0, -5, 60, 366 * 1440), strict=True):
        site.now = sent_at + timedelta(minutes=minutes)
        answer = site.browser().post(found[one.id], {"pressed": "1"})
        if minutes <= 60:
            assert site.state(one) is State.RELEASED
        else:
            assert answer.status == 410
    # After a larger step the link waits until the clock is near again; nothing is done and nothing is lost.
    site.now = sent_at - HOUR
    last = found[held[-1].id]
    assert site.browser().post(last, {"pressed": "1"}).status == 404
    site.now = sent_at - timedelta(minutes=5)
    site.browser().post(last, {"pressed": "1"})
    assert site.state(held[-1]) is State.RELEASED
