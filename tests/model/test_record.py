"""Records are compared by their fields of one class, as frozen dataclasses are."""

from __future__ import annotations

from dataclasses import field

from portal.model.record import record


@record(frozen=True, slots=True)
class Empty:
    pass


@record(frozen=True, slots=True)
class Note:
    text: str = field(compare=False)


@record(frozen=True, slots=True)
class Pair:
    name: str
    number: int


def test_records_of_one_class_are_equal_if_their_compared_fields_are() -> None:
    for one, same in ((Empty(), Empty()), (Note("a"), Note("b")), (Pair("a", 1), Pair("a", 1))):
        assert one == same and hash(one) == hash(same)
    assert Pair("a", 1) != Pair("a", 2) and len({Empty(), Note("a"), Note("b"), Pair("a", 1)}) == 3
