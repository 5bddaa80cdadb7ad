"""Daily counts by the digest process, on both stores, and what monitoring shows of them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from digest import housekeeping
from digest.housekeeping import index_facets
from digest.statistics import count_days
from portal.assemble import Parts
from portal.model.message import Actor, ActorKind, Start, State
from portal.model.statistics import Part
from portal.monitoring import deliveries
from tests.builders import ALICE, hold, now
from tests.conftest import MakeParts
from tests.contract.helpers import DAY, HOUR, MINUTE


def held(parts: Parts, days: int) -> list[int]:
    """Return the numbers of held deliveries of the last days, oldest first."""
    today = now().date()
    counts = parts.store.statistics.counts(Part.TOTAL, today - timedelta(days=days), today)
    return [count.number for count in counts]


def test_days_that_are_over_are_closed_and_today_is_counted_again(parts: Parts) -> None:
    at = now()
    for days in (3, 3, 1, 0):
        hold(parts.store, recipients=[ALICE], at=at - days * DAY)
    index_facets(parts)
    count_days(parts, at)
    assert held(parts, 5) == [2, 1, 1]
    assert parts.store.statistics.next_day() == (at - HOUR).date()
    for days in (3, 0):
        hold(parts.store, recipients=[ALICE], at=at - days * DAY)
    index_facets(parts)
    count_days(parts, at + timedelta(seconds=1))
    assert held(parts, 5) == [2, 1, 1], "counted a moment ago"
    count_days(parts, at + 30 * MINUTE)
    assert held(parts, 5) == [2, 1, 2]
    assert deliveries(parts.store.notes.counters()) == {"held.spam": 5}


def test_days_are_counted_again_after_a_clock_was_ahead(parts: Parts) -> None:
    at = now()
    hold(parts.store, recipients=[ALICE], at=at)
    index_facets(parts)
    count_days(parts, at + 40 * DAY)
    hold(parts.store, recipients=[ALICE], at=at)
    index_facets(parts)
    count_days(parts, at)
    assert held(parts, 1) == [2]


def test_counters_never_go_down(parts: Parts) -> None:
    at = now()
    one = hold(parts.store, recipients=[ALICE], at=at)
    hold(parts.store, recipients=[ALICE], at=at)
    index_facets(parts)
    count_days(parts, at)
    parts.store.purge(at + DAY, at)
    assert parts.store.messages.records([one.id]) == {}
    count_days(parts, at + 30 * MINUTE)
    assert held(parts, 1) == [2], "what is gone was held nevertheless"
    assert deliveries(parts.store.notes.counters()) == {"held.spam": 2}


def test_deliveries_are_not_removed_before_their_day_is_counted(make_parts: MakeParts) -> None:
    parts = make_parts(store__blocked_retention_days=1)
    midnight = now().replace(hour=0, minute=0, second=0) - DAY
    parts.store.prepare_days(midnight, 30)
    blocked = Start(State.BLOCKED, Actor(ActorKind.SYSTEM, "rule"))
    for day in range(2):  # the second one is a day in which nothing was counted
        hold(parts.store, recipients=[ALICE], starts={ALICE: blocked}, at=midnight + day * DAY + MINUTE)
    for day in (2, 1):
        housekeeping.expire(parts, midnight - day * DAY)  # the clock is trusted
    counted: list[int] = []
    for hours, minutes in ((24, 30), (25, 5), (49, 5), (72, 5)):
        at = midnight + timedelta(hours=hours, minutes=minutes)
        housekeeping.expire(parts, at)
        counted.append(len(parts.store.messages.ids(None, 9)))
        if hours == 25:
            index_facets(parts)
            count_days(parts, at)
            housekeeping.expire(parts, at)
            counted.append(len(parts.store.messages.ids(None, 9)))
    assert counted == [2, 2, 1, 1, 0], "kept until the day is counted, but never for a day longer"
    assert held(parts, 5)[0] == 1


def test_messages_that_are_not_indexed_yet_leave_their_day_open(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    at = now()
    hold(parts.store, recipients=[ALICE], at=at - 5 * DAY)
    with monkeypatch.context() as patch:
        patch.setattr(parts.store.facets, "is_complete", lambda: False)
        count_days(parts, at)
    assert parts.store.statistics.next_day() == (at - 5 * DAY).date()
    index_facets(parts)
    count_days(parts, at + 30 * MINUTE)
    assert held(parts, 9) == [1]
    assert parts.store.statistics.next_day() == (at + 30 * MINUTE - HOUR).date()
