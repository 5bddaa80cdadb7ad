"""The parts of messages that break the rules, and those that keep them."""

from __future__ import annotations

import base64
import binascii
import io
import random
from collections.abc import Iterable
from typing import Any

import pytest

from portal.reading import child
from tests.paths import ROOT


def seen(data: bytes | str, sizes: Iterable[int] = ()) -> dict[str, Any]:
    """Return what is read of a message that comes in pieces of these sizes."""
    stream, wanted = io.BytesIO(data.encode() if isinstance(data, str) else data), iter(sizes)
    return child.read(lambda most: stream.read(min(most, next(wanted, most))), lambda: 0)


def files(found: dict[str, Any]) -> list[tuple[str, int | None]]:
    """Return names and sizes of the attachments."""
    return [(name, size) for name, size, *_ in found["attachments"]]


def text(data: bytes | str) -> str:
    lines = [" ".join(line.split()) for line in seen(data)["text"].splitlines()]
    return "\n".join(line for line in lines if line)


def part(body: str, *fields: str) -> str:
    return "\n".join([*fields, "", body, ""])


def multipart(kind: str, *parts: str, boundary: str = "cut") -> str:
    inside = "".join(f"--{boundary}\n{each}" for each in parts)
    return f'Content-Type: multipart/{kind}; boundary="{boundary}"\n\npreamble\n{inside}--{boundary}--\nepilogue\n'


HTML, PLAIN = "Content-Type: text/html", "Content-Type: text/plain"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # Boundaries.
        (multipart("mixed", part("one"), part("two")), "one\ntwo"),
        (multipart("mixed", part("one"), part("--cut2\n--cu\n-- \n--")), "one\n--cut2\n--cu\n--\n--"),
        (multipart("mixed", part("one")).replace("\n", "\r\n"), "one"),
        (multipart("mixed", part("one")).replace("\n", "\r"), "one"),
        (multipart("mixed", part("one")).replace("--cut\n", "--cut \t\n"), "one"),
        (multipart("mixed", part("one")).partition("--cut--")[0], "one"),
        (multipart("mixed", part("one"), boundary="a b").replace('="a b"', '="a\n\tb"'), "one"),
        (multipart("mixed", part("one"), boundary="=_(1)?:").replace('"', ""), "one"),
        (
            multipart("mixed", part("one"))
            .replace("boundary", "boundary*0*=us-ascii''c; boundary*1")
            .replace('"cut"', '"ut"'),
            "one",
        ),
        (multipart("mixed", part("one")).replace('; boundary="cut"', ""), "one"),
        (multipart("mixed", part("one")).replace('"cut"', '""'), "one"),
        (multipart("mixed", part("one")).replace("multipart/mixed", "multipart"), "one"),
        (multipart("mixed", part("one")).replace("multipart/mixed", "MULTIPART/"), "one"),
        (multipart("mixed", part("one"), part("two")).replace('"cut"', '"other"'), "one\ntwo"),
        ("Content-Type: multipart/mixed\n\nNo parts here\n", "No parts here"),
        ("Content-Type: multipart/mixed; boundary=cut\n\nNo parts here\n", "No parts here"),
        ("Content-Type: multipart/mixed; boundary=cut\n\n<html><p>No parts here\n", "No parts here"),
        (
            multipart("mixed", part("No parts", 'Content-Type: multipart/mixed; boundary="x"'), part("two")),
            "No parts\ntwo",
        ),
        (multipart("mixed", multipart("mixed", part("one")), part("two")), "one\ntwo"),
        (multipart("mixed", multipart("mixed", part("one"), boundary="in"), part("two")), "one\ntwo"),
        # The inner multipart is not ended.
        (
            multipart("mixed", multipart("mixed", part("one"), boundary="in").partition("--in--")[0], part("two")),
            "one\ntwo",
        ),
        (multipart("mixed", part("one")).replace("\n\npreamble", ""), "one"),
        # Headers.
        (multipart("mixed", "one\n"), "one"),
        (multipart("mixed", "\none\n"), "one"),
        (multipart("mixed", f"{HTML}\n<p>one</p>\n\ntwo\n"), "one\ntwo"),
        ("From nina@shop.example Mon Nov  2\nSubject: x\n\none", "one"),
        ("Subject: x\nbroken\nX: y\n\none", "one"),
        ("Subject: x\nNo blank line\n\none", "No blank line\none"),
        ("Content-Transfer-Encoding: base64\nBroken line\n\nb25l", "one"),
        ("Content-Transfer-Encoding: base64\nb25l\nb25l\n", "oneone"),
        (multipart("mixed", f"Broken line\n{HTML}\n\n<p>one\n"), "one"),
        (multipart("mixed", "Broken line\nA: field\n\none\n"), "Broken line\nA: field\none"),
        ("Subject: x\n \n\ty\n \nContent-Type: text/html\n\n<p>one", "one"),
        ("\none", "one"),
        ("", ""),
        ("Subject: x", ""),
        ("Subject: x\n y", ""),
        ("Content-Type: text\n\none", "one"),
        ("Content-Type: TEXT/HTML ; charset\n\n<p>one", "one"),
        # Alternatives: the last one, and others that say something else.
        (multipart("alternative", part("Hello Pat", PLAIN), part("<p>Hello <b>Pat</b>", HTML)), "Hello Pat"),
        (multipart("alternative", part("Hello", PLAIN), part("<p> </p>", HTML)), "Hello"),
        (multipart("alternative", part("Pay now", PLAIN), part("<p>Happy birthday", HTML)), "Pay now\nHappy birthday"),
        (
            multipart(
                "alternative",
                part("see https://a.example/very/long", PLAIN),
                multipart("related", part("<a href='//a.example'>see</a>", HTML), boundary="in"),
            ),
            "see [a.example]",
        ),
        (
            multipart("alternative", part("<p>Pay 500 today", HTML), part("Pay today", PLAIN)),
            "Pay 500 today\nPay today",
        ),
        (multipart("alternative", part("<p>Pay", HTML), part("Pay today", PLAIN)), "Pay today"),
        (multipart("alternative", part("Hello", PLAIN), part("<bold>Hello", "Content-Type: text/enriched")), "Hello"),
        (multipart("mixed", part("<p>one", HTML), part("two", PLAIN), part("<p>three", HTML)), "one\ntwo\nthree"),
        (
            multipart(
                "alternative", part("one"), part("<b>one</b>", "Content-Type: text/x-amp-html"), part("<p>one", HTML)
            ),
            "one",
        ),
        # Other kinds of text.
        (
            "Content-Type: text/enriched\n\n<bold>one</bold>\ntwo\n\n<<3\n<color><param>red</param>four</color>",
            "one two\n<3 four",
        ),
        ("Content-Type: text/x-unknown\n\none", "one"),
        (
            "Content-Type: text/calendar\n\nBEGIN:VCALENDAR\nBEGIN:VTIMEZONE\nDTSTART:19700101T000000\nEND:VTIMEZONE\n"
            "BEGIN:VEVENT\nSUMMARY:Budget\n  meeting\\, all\nDTSTART;TZID=Europe/Berlin:20261102T100000\n"
            'DTEND:20261102T110000Z\nLOCATION:Room 1\nORGANIZER;CN="Nina":mailto:nina@shop.example\n'
            "DESCRIPTION:Bring\\nfigures\nEND:VEVENT\nEND:VCALENDAR",
            "Budget meeting, all\n2026-11-02 10:00 – 2026-11-02 11:00 UTC\nRoom 1\nNina mailto:nina@shop.example\n"
            "Bring\nfigures",
        ),
        ("Content-Type: text/calendar\n\nNo calendar", "No calendar"),
        (
            "Content-Type: text/calendar\n\nBEGIN:VEVENT\nBEGIN:VALARM\nDESCRIPTION:Reminder\nEND:VALARM\n"
            "SUMMARY:One\nDESCRIPTION:Words\nEND:VEVENT\nBEGIN:VTODO\nSUMMARY:Two\nDUE:20261103\nEND:VTODO\n"
            "BEGIN:VEVENT\nSUMMARY:Two\nDTSTART:20261103\nURL:https://evil.example/\nBEGIN:VALARM\nDESCRIPTION:End",
            "One\nWords\nTwo\n2026-11-03\nTwo\n2026-11-03\nhttps://evil.example/\nEnd",
        ),
        (
            multipart("report", part("Failed"), part("Status: 5.1.1", "Content-Type: message/global-delivery-status")),
            "Failed\nStatus: 5.1.1",
        ),
        (multipart("mixed", part("one", "Content-Type: text/markdown; name=a.md")), "one"),
        ("Content-Type: text/vcard; name=a.vcf\n\nBEGIN:VCARD", "BEGIN:VCARD"),
        # Attached messages.
        (
            "Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\nU3ViamVjdDogeAoKaW5uZXI=",
            "> Subject: x\n>\n> inner",
        ),
        (
            multipart("digest", part(part("one"), "", "Subject: first"), part(part("two"), "", "From: a@b.example")),
            "> Subject: first\n>\n> one\n> From: a@b.example\n>\n> two",
        ),
        (
            part(
                part("inner"),
                "Content-Type: message/rfc822",
                "",
                "Subject: =?utf-8?q?=C3=BC?=",
                "Content-Type: message/rfc822",
                "",
                "Subject: deep",
            ),
            "> Subject: ü\n>\n> > Subject: deep\n> >\n> > inner",
        ),
    ],
)
def test_the_text_is_what_a_mail_program_shows(data: str, expected: str) -> None:
    assert text(data) == expected


@pytest.mark.parametrize(
    ("encoding", "body", "expected"),
    [
        ("base64", base64.b64encode("Grüße".encode()).decode(), "Grüße"),
        ("BASE64 ", "R3LDvMOfZQ", "Grüße"),  # no padding
        ('"base64"', "R3LD vMOf\n!ZQ==", "Grüße"),
        ("base64 (RFC 2045)", "YQ==\nYg==\n", "ab"),
        ("Quoted-Printable;", "Gr=C3=BC=\n=C3=9Fe =zz =", "Grüße =zz"),
        ("(comment) base64", "YQ==", "a"),
        ("quoted_printable", "=41", "A"),
        ("x-uuencode", "begin 644 a\n#8F%R\n`\nend\n", "bar"),
        ("uuencoded", "begin 644 a\n#8F%R\n`\nend\n", "bar"),
        ("(a (b)) x-base64.", "YQ==", "a"),
        ("quoted-printable", "Gr=C3=BC= \t\n=C3=9Fe", "Grüße"),
        ("QP", "=41", "A"),
        ("7bit", "bar", "bar"),
        ("nonsense", "bar", "bar"),
    ],
)
def test_transfer_encodings_go_by_their_first_token(encoding: str, body: str, expected: str) -> None:
    data = f"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: {encoding}\n\n{body}"
    assert text(data) == expected


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ('Content-Disposition: attachment; filename="a.pdf"', "a.pdf"),
        ("Content-Disposition: attachment; filename=Rechnung 4711.pdf; size=1", "Rechnung 4711.pdf"),
        ('Content-Type: application/pdf; name="=?utf-8?q?M=C3=BCller.pdf?="', "Müller.pdf"),
        ('Content-Type: application/pdf; name="Müller.pdf"', "Müller.pdf"),
        ("Content-Type: application/pdf; name*=iso-8859-1'de'M%FCller.pdf", "Müller.pdf"),
        ("Content-Type: application/pdf; name*0*=utf-8''M%C3; name*1*=%BCller; name*2=.pdf", "Müller.pdf"),
        ('Content-Type: application/pdf; name="a\\"b.pdf"', 'a"b.pdf'),
        ('Content-Disposition: attachment; filename="a.exe"; filename="b.pdf"', "a.exe"),
        ('Content-Type: a/b; name="in.txt"\nContent-Disposition: attachment; filename="shown.exe"', "shown.exe"),
        ('Content-Type: application/pdf; name="not ended.pdf', "not ended.pdf"),
        ("Content-Disposition: attachment", ""),
        ('Content-Disposition: attachment filename="a.exe"', "a.exe"),
        ("Content-Type: application/pdf, name=a.exe", "a.exe"),
        ("Content-Disposition: attachment; name=a.exe", "a.exe"),
        ("Content-Type: application/pdf; filename=a.exe", "a.exe"),
    ],
)
def test_names_of_attachments(fields: str, name: str) -> None:
    data = multipart("mixed", part("hello"), part("x", *fields.split("\n")))
    assert [each[0] for each in seen(data)["attachments"]] == [name]


def test_a_text_is_an_attachment_if_it_says_so() -> None:
    data = multipart(
        "mixed",
        part("hello", 'Content-Type: text/plain; name="body.txt"'),
        part("notes", PLAIN, "Content-Disposition: attachment"),
        part("a;b", 'Content-Type: text/csv; name="a.csv"'),
    )
    found = seen(data)
    assert found["text"].strip() == "hello"
    assert files(found) == [("body.txt", 5), ("", 5), ("a.csv", 3)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 18])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_pieces_and_line_ends_change_nothing(size: int, newline: str) -> None:
    inner = part("inner words", "From: boss@corp.example", "Subject: Transfer")
    data = multipart(
        "mixed",
        part("hello\n--\n--cu\n\n", PLAIN),
        part(
            base64.b64encode(b"x" * 1000).decode(), 'Content-Type: a/b; name="a"', "Content-Transfer-Encoding: base64"
        ),
        part("=41=\n=42", 'Content-Type: a/b; name="q"', "Content-Transfer-Encoding: quoted-printable"),
        part(inner.rstrip("\n"), "Content-Type: message/rfc822"),
    ).replace("\n", newline)
    found = seen(data, iter(lambda: size, 0))
    assert found["text"].split() == [
        "hello",
        "--",
        "--cu",
        ">",
        "From:",
        "boss@corp.example",
        ">",
        "Subject:",
        "Transfer",
        ">",
        ">",
        "inner",
        "words",
    ]
    message_bytes = len(inner.rstrip("\n").replace("\n", newline))
    assert files(found) == [
        ("a", 1000),
        ("q", 2),
        ("boss@corp.example: Transfer", message_bytes),
    ]


def test_every_attachment_of_a_large_message_is_listed_with_its_size() -> None:
    block = (base64.b64encode(b"x" * 57) + b"\r\n") * 10_000
    fields = b'Content-Type: application/pdf; name="%d.pdf"\r\nContent-Transfer-Encoding: base64\r\n\r\n'
    data = b"Content-Type: multipart/mixed; boundary=cut\r\n\r\n--cut\r\n\r\nhello\r\n"
    data += b"".join(b"--cut\r\n" + fields % number + block * 4 for number in range(17)) + b"--cut--\r\n"
    assert len(data) > 50_000_000
    found = seen(data)
    assert files(found) == [(f"{number}.pdf", 57 * 40_000) for number in range(17)]
    assert not found["cut"]


def test_more_uuencoded_files_than_the_limit_are_cut() -> None:
    for number, is_cut in ((1_000, False), (1_001, True)):
        found = seen("Subject: x\n\n" + f"begin 644 a.exe\n{uuencoded(b'x')}`\nend\n" * number)
        assert (len(found["attachments"]), found["cut"]) == (1_000, is_cut)


def test_more_parts_than_the_limit_are_cut() -> None:
    found = seen(multipart("mixed", part("hello"), *[part("x", "Content-Type: a/b") for _ in range(2_000)]))
    assert found["text"] == "hello"
    assert len(found["attachments"]) == 998
    assert found["cut"]


PIECES = [
    *(
        b"--",
        b"\r\n",
        b"\n\n",
        b"\0",
        b"\xff\xfe",
        b"=?utf-8?q?",
        b"\x1b$B\xff",
        b"~{",
        b"<style>.a{",
        b"<p style='font:0",
        b"&#",
    ),
    *(b"boundary=", b"charset=utf-7", b"charset=iso-2022-jp", b"name*0*=", b"Content-Type: message/rfc822\n\n"),
    *(b"Content-Transfer-Encoding: base64\n", b"Content-Type: text/calendar\n", b"Content-Type: text/enriched\n"),
]


@pytest.mark.parametrize("seed", range(4))
def test_damaged_messages_raise_nothing(seed: int) -> None:
    source = random.Random(seed)
    seeds = [path.read_bytes()[:4_000] for path in sorted((ROOT / "tests/data/mail-cases").glob("*.eml"))]
    for _ in range(1_000):
        data = bytearray(source.choice(seeds))
        for _ in range(source.randrange(1, 12)):
            at = source.randrange(len(data) + 1)
            data[at : at + source.choice((0, 1, 5, 200))] = source.choice(
                [*PIECES, source.choice(seeds)[at : at + 500], b""]
            )
        seen(bytes(data))


FILLER = "filler\n" * 50_000


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("--x y\n" * 2_000 + "--decoy\nContent-Type: text/plain\n\nInnocent\n--decoy--\n", "WORDS"),
        (FILLER, "WORDS"),
        (f"--decoy\nContent-Type: text/plain\n\nInnocent\n--decoy--\n{FILLER}", "WORDS"),
        (f"--decoy\nContent-Type: text/plain\n\nInnocent\n{FILLER * 4}", "WORDS"),
        (f"--decoy\nContent-Type: message/rfc822\n\nSubject: x\n\nInnocent\n{FILLER}", "WORDS"),
        (f"--decoy\n{HTML}; boundary=in\n\n{FILLER}--decoy\n\nInnocent\n", "WORDS"),
    ],
)
def test_what_comes_before_the_named_boundary_is_not_shown(before: str, expected: str) -> None:
    body = f"{before}--real\n{HTML}\n\n<p>WORDS\n--real--\n"
    found = seen(f'Content-Type: multipart/mixed; boundary="real"\n\n{body}')
    assert found["text"].strip() == expected
    assert not found["cut"]


def test_parts_with_another_boundary_than_the_named_one_are_shown_however_long_they_are() -> None:
    attached = part(FILLER, 'Content-Type: a/b; name="a"')
    found = seen(multipart("mixed", part("one"), attached, part("two")).replace('"cut"', '"other"'))
    assert found["text"].split() == ["one", "two"]
    assert files(found) == [("a", len(FILLER))]


@pytest.mark.parametrize("boundary", ["=?utf-8?q?a?=", "Trennlinie-\xfc", "a--", "a.*b", "x" * 200])
def test_a_boundary_is_octets(boundary: str) -> None:
    data = multipart("mixed", part("one"), part("two", PLAIN), boundary=boundary).encode("latin-1")
    assert text(data) == "one\ntwo"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (f"{HTML}\n\n<meta charset=utf-16><p>Grüße", "Grüße"),
        (f"{HTML}\n\n<!-- <meta charset=koi8-r> --><p>Grüße", "Grüße"),
        (f"{HTML}\n\n<p title='<meta charset=koi8-r>'>Grüße", "Grüße"),
        (f"{HTML}\n\n<meta name=description content='charset=koi8-r'><p>Grüße", "Grüße"),
        (f"{HTML}\n\n<meta content='text/html; charset=koi8-r' http-equiv=Content-Type><p>ü", "ц╪"),
        (f"{HTML}\n\n<META CHARSET = 'koi8-r'/><p>ü", "ц╪"),
        (f"{HTML}\n\n<?xml version='1.0' encoding='koi8-r'?><p>ü", "ц╪"),
        (f"{HTML}\n\n<?xml encoding='koi8-r'?><meta charset=utf-8><p>ü", "ü"),
    ],
)
def test_html_names_its_charset_in_a_tag(data: str, expected: str) -> None:
    assert text(data) == expected


@pytest.mark.parametrize(
    "parameters",
    [
        " charset=koi8-r",
        ", charset=koi8-r",
        "; charset:koi8-r",
        "; format=flowed charset=koi8-r",
        "; (c) charset=koi8-r",
        "; charset=koi8-r name=a.txt",
        '; charset="koi8-r; format=flowed',
        "; charset = 'KOI8-R', en",
    ],
)
def test_a_charset_is_found_without_semicolons(parameters: str) -> None:
    assert text(f"{PLAIN}{parameters}\n\n".encode() + "Счёт".encode("koi8-r")) == "Счёт"
    assert text(f'{PLAIN}; name="charset=koi8-r"\n\nü') == "ü"


@pytest.mark.parametrize(
    ("html", "plain", "expected"),
    [
        ("<a href='http://EVIL.example/'>Sign in</a>", "Sign in", "Sign in [EVIL.example]\nSign in"),
        (
            "<a href='http://shop.example/'>Sign in</a>",
            "Sign in https://shop.example/x",
            "Sign in https://shop.example/x",
        ),
        (
            "<a href='http://evil.example/'>Sign in</a>",
            "Sign in not-evil.example",
            "Sign in [evil.example]\nSign in not-evil.example",
        ),
    ],
)
def test_an_html_alternative_with_another_target_is_shown(html: str, plain: str, expected: str) -> None:
    for first in (part(html, HTML), multipart("related", part(html, HTML), boundary="in")):
        assert text(multipart("alternative", first, part(plain, PLAIN))) == expected


@pytest.mark.parametrize("fields", [(HTML,), (PLAIN, 'Content-Disposition: attachment; filename="a.txt"')])
def test_a_message_that_is_one_part_is_shown_though_it_is_an_attachment(fields: tuple[str, ...]) -> None:
    fields = (*fields, "Content-Disposition: attachment")
    assert text(part("WORDS", *fields)) == "WORDS"
    assert len(seen(part("WORDS", *fields))["attachments"]) == 1
    inner = part(part("WORDS", *fields), "Content-Type: message/rfc822", "", "Subject: x")
    assert "> WORDS" in text(inner)


def test_a_long_attachment_leaves_room_for_the_text() -> None:
    for fields in ("Content-Type: text/csv; name=log.csv", f"{PLAIN}\nContent-Disposition: attachment"):
        found = seen(multipart("mixed", part("a;b\n" * 300_000, fields), part("WORDS")))
        assert found["text"] == "WORDS"
        assert not found["cut"]


def uuencoded(octets: bytes) -> str:
    return b"".join(binascii.b2a_uu(octets[at : at + 45], backtick=True) for at in range(0, len(octets), 45)).decode()


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("size", [1, 45, 46, 1_000])
@pytest.mark.parametrize("end", ["`\nend\n", " \nend\n", "end\n", ""])
def test_a_file_that_is_uuencoded_in_a_text_is_an_attachment(newline: str, size: int, end: str) -> None:
    body = f"before\nbegin 644 virus 1.exe\n{uuencoded(b'x' * size)}{end}after\n"
    found = seen(f"Subject: x\n\n{body}".replace("\n", newline))
    assert found["text"].split() == ["before", "after"]
    assert files(found) == [("virus 1.exe", size)]


@pytest.mark.parametrize(
    "body",
    [
        "begin 644 a.exe",
        "begin 644 a.exe\nWORDS\nend",
        "begin 644 a.exe\nMONDAY MEETING\nend",
        "begin 12 the work\nM" + "A" * 60,
        "Please begin 644 a.exe\nM" + "A" * 60,
    ],
)
def test_a_text_that_only_looks_uuencoded_is_shown(body: str) -> None:
    assert text(f"Subject: x\n\n{body}") == body
    assert not seen(f"Subject: x\n\n{body}")["attachments"]


def test_text_after_the_lines_of_a_file_is_shown() -> None:
    found = seen(f"Subject: x\n\nbegin 644 a.exe\n{uuencoded(b'x' * 45)}HELLO AND PAY NOW\nWORDS\nend\n")
    assert found["text"].split("\n")[:2] == ["HELLO AND PAY NOW", "WORDS"]
    assert files(found) == [("a.exe", 45)]


def test_the_size_of_a_part_that_was_not_read_is_unknown() -> None:
    calls = iter(range(1_000_000))
    data = multipart("mixed", part("one"), part("x" * 3_000_000, 'Content-Type: a/b; name="a"')).encode()
    found = child.read(io.BytesIO(data).read, lambda: float(next(calls) > 8))
    assert files(found) == [("a", None)]
    assert found["cut"]
