"""Daily counts of deliveries, on both stores."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import date, datetime, timedelta
from urllib.parse import urlsplit

import psycopg
import pytest

from portal.model.message import (
    RELEASABLE,
    Actor,
    ActorKind,
    DeliveryId,
    EventKind,
    Start,
    State,
    Symbol,
    Tier,
)
from portal.model.statistics import LATER, NAMES_MAX, Count, DayCounts, Fact, Month, Outcome, Part, lines
from portal.stores import Store
from portal.stores.files.database import DATABASE
from portal.stores.files.store import FileStore
from portal.stores.records import LinkOpen
from tests.builders import ALICE, BOB, BY_LINK, hold, mail, now
from tests.contract.helpers import DAY, HOUR, MINUTE, delete, release

CAROL = "carol@example.com"
BAD = (Symbol("FUZZY_DENIED", 12.0), Symbol("R_SPF_ALLOW", -0.2))


def yesterday() -> datetime:
    return now().replace(hour=12, minute=0, second=0) - DAY


def counted(store: Store, part: Part, day: datetime, domain: str = "") -> dict[tuple[str, str], int]:
    """Count a day again and return its numbers by outcome and name."""
    store.facets.recheck()  # the messages were held in the past
    while store.facets.index():
        pass
    store.statistics.count(day.date())
    found = store.statistics.counts(part, day.date(), day.date(), domain)
    assert {count.day for count in found} <= {day.date().isoformat()}
    return {(count.outcome, count.name): count.number for count in found}


def test_deliveries_are_counted_by_what_happened_to_them_on_that_day(store: Store) -> None:
    at = yesterday()
    one = hold(store, recipients=[ALICE, BOB, CAROL], symbols=BAD, header_from="a@shop.example", at=at)
    other = hold(store, recipients=[ALICE], tier=Tier.SUSPICIOUS, at=at + HOUR)
    hold(store, recipients=[ALICE], at=at - DAY)
    release(store, one, at + HOUR)
    delete(store, other, at + HOUR)
    assert counted(store, Part.TOTAL, at) == {("held", ""): 4, ("released", ""): 1, ("deleted", ""): 1}
    assert counted(store, Part.TIER, at) == {
        ("held", "spam"): 3, ("held", "suspicious"): 1, ("released", "spam"): 1, ("deleted", "suspicious"): 1,
    }  # fmt: skip
    assert counted(store, Part.SYMBOL, at)["held", "FUZZY_DENIED"] == 3
    assert counted(store, Part.SYMBOL, at)["released", "FUZZY_DENIED"] == 1
    assert counted(store, Part.SENDER, at)["held", "shop.example"] == 3
    assert counted(store, Part.TOTAL, at, "example.com") == {("held", ""): 1}
    assert counted(store, Part.TOTAL, at, "example.org")["held", ""] == 3
    assert counted(store, Part.TOTAL, at - DAY) == {("held", ""): 1}
    assert counted(store, Part.TOTAL, at - 2 * DAY) == {}


def test_what_is_done_later_counts_on_the_day_when_it_is_done(store: Store) -> None:
    held = hold(store, recipients=[ALICE], at=yesterday() - 3 * DAY, symbols=BAD)
    release(store, held, yesterday())
    assert counted(store, Part.TOTAL, yesterday()) == {("released", ""): 1}
    assert counted(store, Part.SYMBOL, yesterday())["released", "FUZZY_DENIED"] == 1


def test_what_rules_let_through_or_block_is_counted(store: Store) -> None:
    by_rule = Actor(ActorKind.SYSTEM, "rule")
    starts = {ALICE: Start(State.PASSED, by_rule), BOB: Start(State.BLOCKED, by_rule)}
    id = hold(store, recipients=[ALICE, BOB, CAROL], starts=starts, at=yesterday()).id
    numbers = {("held", ""): 2, ("passed", ""): 1, ("blocked", ""): 1}
    assert counted(store, Part.TOTAL, yesterday()) == numbers
    for key in (DeliveryId(id, 0), DeliveryId(id, 1)):  # also after a deletion that was undone
        store.deliveries.move(key, State.DELETED, RELEASABLE, BY_LINK, yesterday(), kind=EventKind.DELETED)
        store.deliveries.restore(key, BY_LINK, yesterday())
    assert counted(store, Part.TOTAL, yesterday()) == {**numbers, ("deleted", ""): 2}


@pytest.mark.parametrize(
    ("after", "name"), [(30 * timedelta(seconds=1), "within a minute"), (HOUR, "within an hour"), (DAY, "within a day")]
)
def test_how_long_after_its_link_was_opened_a_message_is_released(store: Store, after: timedelta, name: str) -> None:
    at = yesterday() - DAY
    held = hold(store, recipients=[ALICE], at=at)
    for opened in (at + MINUTE, at + MINUTE + after / 2):
        store.digests.record_link_open(ALICE, at, LinkOpen(DeliveryId(held.id, 0), opened), at)
    release(store, held, at + MINUTE + after)
    assert counted(store, Part.DELAY, at + MINUTE + after) == {("released", name): 1}


def test_what_was_let_through_counts_once_whatever_happens_to_it(store: Store) -> None:
    starts = {who: Start(State.PASSED, Actor(ActorKind.SYSTEM, "rule")) for who in (ALICE, BOB, CAROL)}
    held = hold(store, recipients=[ALICE, BOB, CAROL], announce=[], starts=starts, at=yesterday())
    store.deliveries.move(
        DeliveryId(held.id, 0), State.DELETED, {State.PASSED}, BY_LINK, yesterday(), kind=EventKind.DELETED
    )
    store.deliveries.move(
        DeliveryId(held.id, 1), State.HELD, {State.PASSED}, BY_LINK, yesterday(), kind=EventKind.STOPPED
    )
    assert counted(store, Part.TOTAL, yesterday()) == {("passed", ""): 2, ("held", ""): 1, ("deleted", ""): 1}


def test_what_was_let_through_and_then_stopped_stays_held(store: Store) -> None:
    at = yesterday()
    starts = {who: Start(State.PASSED, Actor(ActorKind.SYSTEM, "rule")) for who in (ALICE, BOB, CAROL)}
    held = hold(store, recipients=[ALICE, BOB, CAROL], announce=[], starts=starts, at=at)
    assert counted(store, Part.TOTAL, at) == {("passed", ""): 3}
    keys = [DeliveryId(held.id, number) for number in range(2)]
    for key in keys:
        store.deliveries.move(key, State.HELD, {State.PASSED}, BY_LINK, at + HOUR, kind=EventKind.STOPPED)
    numbers = {("passed", ""): 1, ("held", ""): 2}
    assert counted(store, Part.TOTAL, at) == numbers
    store.deliveries.move(keys[0], State.DELETED, RELEASABLE, BY_LINK, at + 2 * HOUR, kind=EventKind.DELETED)
    assert counted(store, Part.TOTAL, at) == numbers | {("deleted", ""): 1}
    store.deliveries.move(keys[1], State.RELEASED, RELEASABLE, BY_LINK, at + 2 * HOUR, kind=EventKind.RELEASED)
    assert counted(store, Part.TOTAL, at) == numbers | {("deleted", ""): 1, ("released", ""): 1}


def test_a_delivery_without_a_recipient_counts_once(store: Store) -> None:
    hold(store, recipients=[], at=yesterday(), announce=())
    assert counted(store, Part.TOTAL, yesterday()) == {("held", ""): 1}


def test_a_day_that_is_counted_again_has_its_new_numbers(store: Store) -> None:
    at = yesterday()
    hold(store, recipients=[ALICE], at=at)
    assert counted(store, Part.TOTAL, at) == {("held", ""): 1}
    hold(store, recipients=[ALICE], at=at)
    assert counted(store, Part.TOTAL, at) == {("held", ""): 2}


def test_what_leaves_before_its_day_is_over_was_held_nevertheless(store: Store) -> None:
    at = yesterday()
    blocked = Start(State.BLOCKED, Actor(ActorKind.SYSTEM, "rule"))
    for name in ("one", "other"):
        hold(store, mail(name), recipients=[ALICE], starts={ALICE: blocked}, at=at)
    assert counted(store, Part.TOTAL, at)["held", ""] == 2
    assert store.expire(store.deliveries.ending(State.BLOCKED, now(), 9)) == 2
    hold(store, recipients=[ALICE], tier=Tier.DANGEROUS, at=at)
    numbers = counted(store, Part.TIER, at)
    assert (numbers["held", "spam"], numbers["held", "dangerous"]) == (2, 1)
    assert counted(store, Part.TOTAL, at)["held", ""] == 3


def test_what_a_domain_had_was_held_nevertheless_if_its_recipient_is_forgotten(store: Store) -> None:
    at = yesterday()
    held = hold(
        store, recipients=[ALICE, CAROL], starts={CAROL: Start(State.BLOCKED, Actor(ActorKind.SYSTEM, "rule"))}, at=at
    )
    release(store, held, at + MINUTE)
    before = [counted(store, Part.TOTAL, at, host) for host in ("", "example.com", "example.org")]
    assert store.expire(store.deliveries.ending(State.BLOCKED, now(), 9)) == 1
    assert [counted(store, Part.TOTAL, at, host) for host in ("", "example.com", "example.org")] == before
    hold(store, recipients=[ALICE], at=at)
    assert counted(store, Part.TOTAL, at)["held", ""] == 3
    assert counted(store, Part.TOTAL, at, "example.com") == {("held", ""): 1, ("blocked", ""): 1}


def test_a_closed_day_outlives_its_messages(store: Store, second: Store) -> None:
    at = yesterday()
    hold(store, recipients=[ALICE, CAROL], at=at, symbols=BAD)
    before = counted(store, Part.SYMBOL, at)
    assert store.statistics.next_day() == at.date()
    store.statistics.close(at.date())
    store.purge(now(), now())
    assert store.messages.ids(None, 9) == []
    assert counted(second, Part.SYMBOL, at) == before
    assert second.statistics.next_day() == at.date() + DAY
    second.statistics.close(at.date())
    assert store.statistics.totals() == [("held", "spam", 2)]


def test_a_clock_that_is_behind_for_a_moment_loses_nothing(store: Store) -> None:
    """It opens closed days again, whose messages may be gone."""
    at = yesterday()
    hold(store, recipients=[ALICE], at=at, symbols=BAD)
    before = counted(store, Part.SYMBOL, at)
    store.statistics.close(at.date())
    store.purge(now(), now())
    store.statistics.reopen(at.date() - 9 * DAY)
    store.statistics.close(at.date())
    assert counted(store, Part.SYMBOL, at) == before


def test_days_that_a_clock_ahead_closed_are_open_again(store: Store) -> None:
    today = now().date()
    hold(store, recipients=[ALICE], at=yesterday())
    store.statistics.close(today + 300 * DAY)
    store.statistics.reopen(today)
    assert store.statistics.next_day() == today
    store.statistics.reopen(today)
    hold(store, recipients=[ALICE])
    assert counted(store, Part.TOTAL, now()) == {("held", ""): 1}


def test_old_days_are_removed_but_for_the_totals(store: Store) -> None:
    at = yesterday()
    hold(store, recipients=[ALICE], at=at, symbols=BAD)
    counted(store, Part.TOTAL, at)
    store.statistics.expire(at.date())
    assert len(store.statistics.counts(Part.SYMBOL, at.date(), at.date())) == 2
    store.statistics.expire(at.date() + DAY)
    assert store.statistics.counts(Part.SYMBOL, at.date(), at.date()) == []
    assert store.statistics.totals() == [("held", "spam", 1)]


def test_sums_of_days_and_domains(store: Store) -> None:
    """As the counts of the single days and domains."""
    at = yesterday()
    for days, people in ((0, [ALICE, CAROL]), (1, [ALICE, BOB]), (2, [CAROL])):
        held = hold(store, recipients=people, symbols=BAD, header_from="a@shop.example", at=at - days * DAY)
        release(store, held, at - days * DAY + HOUR)
        counted(store, Part.TOTAL, at - days * DAY)
    since, until = (at - DAY).date(), at.date()
    for domains in ([""], ["example.com"], ["example.com", "example.org"], ["example.com", "absent.example"]):
        sums = store.statistics.sums(since, until, domains)
        for part in Part:
            singles = [count for name in domains for count in store.statistics.counts(part, since, until, name)]
            assert sums[part] == lines(singles)
    assert store.statistics.sums(since, until) == store.statistics.sums(since, until, ["example.com", "example.org"])
    assert [(line.name, line.numbers) for line in store.statistics.by_domain(since, until, ["example.org", "x"])] == [
        ("example.org", {"held": 3, "released": 2})
    ]
    assert store.statistics.by_domain(since, until, []) == []
    every = store.statistics.by_domain(since, until)
    assert every[0] == store.statistics.by_domain(since, until, ["example.org"])[0]
    assert {line.name for line in every} == {"example.com", "example.org"}


def test_closed_days_are_records(store: Store) -> None:
    at = yesterday()
    for days in (0, 1, 3):
        hold(store, recipients=[ALICE], at=at - days * DAY)
        counted(store, Part.TOTAL, at - days * DAY)
    store.statistics.close((at - DAY).date())
    found: list[date] = []
    after = None
    while (record := store.statistics.records(after)) is not None:
        after, counts = record
        found.append(after)
        assert Count("", "total", after.isoformat(), "held", "", 1) in counts
    assert found == [(at - 3 * DAY).date(), (at - DAY).date()]


def test_an_empty_store_has_nothing_to_count(store: Store) -> None:
    assert store.statistics.next_day() is None
    assert store.statistics.totals() == []
    assert store.statistics.records(None) is None


def test_counting_a_day_reads_only_the_events_of_that_day(store: Store, store_url: str) -> None:
    """It is done each minute, so its cost must not grow with the number of all events."""
    hold(store, at=yesterday())
    statement = (
        f"select message_id from event where at >= {'0' if isinstance(store, FileStore) else 'now()'}"
        " and kind in ('released', 'deleted')"
    )
    if isinstance(store, FileStore):
        with closing(sqlite3.connect(f"{urlsplit(store_url).path}/{DATABASE}")) as database:
            plan = str(database.execute(f"explain query plan {statement}").fetchall())
        assert "event_at" in plan, plan
    else:
        with psycopg.connect(store_url) as connection:
            connection.execute("set enable_seqscan = off")  # the table is empty
            plan = str(connection.execute(f"explain {statement}").fetchall())
        assert "at_idx" in plan and "Seq Scan" not in plan, plan


# ---- without a store


def test_the_most_frequent_names_are_kept() -> None:
    counts = DayCounts("2026-01-31")
    for number in range(2 * NAMES_MAX):
        for _ in range(1 + (number < NAMES_MAX)):
            counts.add(Outcome.HELD, Fact("example.org", "spam", f"d{number}.example", (number,)))
    rows = [*counts.rows({number: f"S{number}" for number in counts.symbols()})]
    kept = {row.name for row in rows if row.part == Part.SYMBOL and row.domain}
    assert len({row.name for row in rows if row.part == Part.SYMBOL and not row.domain}) == 2 * NAMES_MAX
    assert kept == {f"S{number}" for number in range(NAMES_MAX)}
    assert sum(row.part == Part.SENDER and row.domain != "" for row in rows) == NAMES_MAX


def test_lines_sum_days_and_outcomes() -> None:
    counts = [
        Count("", "symbol", "2026-01-30", "held", "A", 3),
        Count("", "symbol", "2026-01-31", "held", "A", 1),
        Count("", "symbol", "2026-01-31", "released", "A", 1),
        Count("", "symbol", "2026-01-31", "held", "B", 5),
        Count("", "symbol", "2026-01-31", "deleted", "C", 5),
    ]
    found = lines(counts)
    assert [line.name for line in found] == ["B", "A", "C"]
    assert [line.mistakes for line in found] == [0, 0.25, None]
    assert [line.number("held") for line in lines(counts, by_day=True)] == [3, 6]


@pytest.mark.parametrize(
    ("first", "last", "before"),
    [
        ("2026-01-01", "2026-01-31", "2025-12"),
        ("2028-02-01", "2028-02-29", "2028-01"),
        ("2026-12-01", "2026-12-31", "2026-11"),
    ],
)
def test_months_end_and_follow_each_other(first: str, last: str, before: str) -> None:
    month = Month(date.fromisoformat(first))
    assert (month.last.isoformat(), str(month.before), str(month)) == (last, before, first[:7])


def test_long_delays_have_a_name() -> None:
    counts = DayCounts("2026-01-31")
    counts.add(Outcome.RELEASED, Fact("", "", "", ()), 2 * DAY)
    assert [row.name for row in counts.rows({}) if row.part == Part.DELAY] == [LATER]


def test_the_outcomes_are_kinds_of_events() -> None:
    assert {EventKind(outcome.value) for outcome in Outcome} >= {EventKind.RELEASED, EventKind.HELD}
