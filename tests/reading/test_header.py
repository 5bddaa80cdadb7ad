"""All header fields of a message, and its source."""

from portal.reading import read_headers
from portal.reading.raw import raw_source
from tests.builders import ALICE


def fields(data: bytes) -> tuple[tuple[str, str], ...]:
    found = read_headers([data], ALICE)
    assert found is not None and not found.cut
    return found.fields


def test_all_fields_are_shown_in_order_unfolded_and_decoded() -> None:
    data = (
        b"Received: from a.example\r\n\tby b.example; x\r\nReceived: two\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n"
        b"X-Raw: caf\xc3\xa9\r\nno field at all\r\n\r\nBody: none\r\n"
    )
    assert fields(data) == (
        ("Received", "from a.example by b.example; x"),
        ("Received", "two"),
        ("Subject", "Grüße"),
        ("X-Raw", "café"),
        ("", "no field at all"),
    )


def test_hostile_fields_are_cleaned_and_bounded() -> None:
    data = b"X\x80: a\r\nX-Bidi: a\xe2\x80\xaeb\x00\x1b[31m\r\nX-Long: " + b"y" * 100_000 + b"\r\n\r\n"
    found = dict(fields(data))
    assert found["X-Bidi"] == "ab[31m"
    assert len(found["X-Long"]) == 4_000


def test_a_header_without_end_is_cut() -> None:
    for data in (
        b"X-A: 1\r\n" * 100_000,
        b"X-A: " + b"z" * 1_000_000,
        b"\xf0\x9f\x98\x80: \xf0\x9f\x98\x80\n" * 90_000,
    ):
        found = read_headers([data], ALICE)
        assert found is not None and found.cut
        assert len(found.fields) <= 500
    assert fields(b"") == ()


def test_the_source_is_printable_ascii() -> None:
    found = raw_source([b"Subject: \xc3\xa9\x1b[2J\r", b"\n\r\n<script>\x00\t"])
    assert (found.text, found.cut) == ("Subject: \\xc3\\xa9\\x1b[2J\n\n<script>\\x00\t", False)


def test_the_source_is_bounded() -> None:
    found = raw_source(b"\xff" * (1 << 18) for _ in range(1_000))
    assert found.cut
    assert found.text == "\\xff" * (1 << 17)
