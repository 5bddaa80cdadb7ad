"""Clocks that are wrong, step and jump, and nights that have an hour too many or too few: each mail is told once.

Time is the argument that the process's work takes; store and mail server are real.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest

from digest import run
from portal.assemble import Parts
from portal.links import MARK_HEADER
from portal.message import Tier
from portal.stores import Held
from tests.builders import ALICE, body, export, mail, now
from tests.conftest import MakeParts
from tests.faults.test_digest_kills import read
from tests.smtp_server import SmtpServer

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
    begins: int = 0  # which of the server's mails is our first

    def __post_init__(self) -> None:
        self.begins = len(self.server.mails)

    @property
    def shown(self) -> datetime:
        """What the clock shows."""
        return self.true + self.error

    def hold(self, people: Sequence[str]) -> Held:
        """A mail comes."""
        data = mail()
        # Each of another sender, or they would be one row.
        made = export(data, recipients=people, header_from=f"{len(self.held)}@example.net")
        self.held.append(self.parts.store.add(made, body(data), Tier.SPAM, people, at=self.shown))
        return self.held[-1]

    def write(self) -> None:
        """A mail of our own is queued."""
        self.letters.append(f"Subject: sign in {len(self.letters)} {self.true}\r\n\r\n".encode())
        self.parts.store.queue_mail(ALICE, self.letters[-1], self.shown)

    def tick(self) -> list[str]:
        """What the process does every few seconds; returns who was told."""
        before = len(self.server.mails)
        run.schedule_news(self.parts, self.shown)
        run.send_due(self.parts, self.shown)
        run.send_queued(self.parts, self.shown)
        return [one.recipients[0] for one in self.server.mails[before:] if one.recipients != [ALICE]]

    def pass_days(self, days: float) -> None:
        """Time goes by; the process does its work each hour, and once a day what comes daily."""
        for hours in range(int(days * 24)):
            self.true += HOUR
            run.find_news(self.parts, self.shown)
            if hours % 24 == 12:
                run.daily(self.parts, self.shown)
            self.tick()

    def assert_told_once(self) -> int:
        """Whether each mail stands in exactly one digest, and each digest went out once. Returns how many those are."""
        sent = [one for one in self.server.mails[self.begins :] if one.recipients != [ALICE]]
        written = [one.data for one in self.server.mails[self.begins :] if one.recipients == [ALICE]]
        assert sorted(written) == sorted(self.letters)
        marks = [self.parts.links.read_mark(read(one)[MARK_HEADER]) for one in sent]
        assert len(set(marks)) == len(marks), "a digest went out twice"
        announced = Counter(
            (each.id, each.number) for mark in marks if mark for each in self.parts.store.digest(mark[1]).deliveries
        )
        there = [(each.id, each.number) for one in self.held for each in self.parts.store.deliveries(one.id)]
        assert announced == dict.fromkeys(there, 1)
        return len(sent)


# ---- steps and jumps

names = (f"p{number}@example.org" for number in itertools.count())


# What was held a year too early is as old for the purge: it is told of, and goes a day later.
@pytest.mark.parametrize(
    ("step", "retention_days"), [(HOUR, 30), (-HOUR, 30), (YEAR, 30), (-YEAR, 400), (10 * YEAR, 30)]
)
def test_a_clock_that_is_wrong_for_hours_loses_and_doubles_nothing(
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
    failures = iter([BUSY, "550 5.1.1 nobody", BUSY])  # which have a time for the next try
    server.script["RCPT"] = lambda line: None if ALICE.encode() in line else next(failures, None)
    run.daily(world.parts, world.shown)  # as at the process's start
    run.find_news(world.parts, world.shown)
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
    world.assert_told_once()
