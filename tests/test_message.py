"""Quarantine ids: their time, their order, their shape."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from portal.model.message import first_id, held_at, new_id, parse_id


@given(st.datetimes(datetime(1970, 1, 2), datetime(2400, 1, 1), timezones=st.just(UTC)))
def test_an_id_tells_its_millisecond_and_lies_behind_its_days_bound(at: datetime) -> None:
    id = new_id(at)
    assert timedelta(0) <= at - held_at(id) < timedelta(milliseconds=1)
    assert first_id(at) <= id < first_id(at + timedelta(milliseconds=1))
    assert (id.version, id.variant) == (7, "specified in RFC 4122")
    assert parse_id(str(id)) == id


def test_ids_of_one_millisecond_stand_in_the_order_of_their_moments() -> None:
    at = datetime(2026, 11, 22, 7, 0, tzinfo=UTC)
    ids = [new_id(at + timedelta(microseconds=n)) for n in range(0, 3000, 5)]
    assert ids == sorted(ids)


def test_ids_of_one_moment_differ() -> None:
    at = datetime(2026, 11, 22, 7, 0, tzinfo=UTC)
    assert len({new_id(at) for _ in range(1000)}) == 1000
    assert abs(held_at(new_id()) - datetime.now(UTC)) < timedelta(minutes=1)


def test_an_id_beyond_the_last_year_is_none() -> None:
    assert parse_id(str(new_id(datetime(9999, 12, 31, tzinfo=UTC))))
    assert parse_id("ffffffff-ffff-7fff-bfff-ffffffffffff") is None
