"""The syntax of From fields."""

from __future__ import annotations

import re
import time
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from portal.model import from_header
from portal.model.from_header import Mailbox, normal_address, parse, read, written

EVIL = "evil@bad.example"
TRAP = "service@bank.example"

# Pieces that may form addresses, words, strings and comments in any order.
PIECES = st.lists(
    st.sampled_from(
        [*'"\\()<>,;:@.[]= \t?\n', "=?utf-8?Q?", "?=", "=22", "a", "ä", "\udcfc", "b.c", EVIL, TRAP, "@x.y"]
    )
).map("".join)
WORDS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=30)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("Nina Berg <nina@shop.example>", [("Nina Berg", "nina@shop.example")]),
        ("nina@shop.example", [("", "nina@shop.example")]),
        ("<nina@shop.example>", [("", "nina@shop.example")]),
        ('"Berg, Nina" <nina@shop.example>', [("Berg, Nina", "nina@shop.example")]),
        ("Berg, Nina <nina@shop.example>", [("Berg, Nina", "nina@shop.example")]),
        ("nina@shop.example (Nina (Berg))", [("Nina (Berg)", "nina@shop.example")]),
        ("Nina (Shop) <nina@shop.example>", [("Nina (Shop)", "nina@shop.example")]),
        (r'"Joe \(sales\) \\ Miller" <joe@shop.example>', [("Joe (sales) \\ Miller", "joe@shop.example")]),
        ("JOE@shop.example <joe@shop.example>", [("", "joe@shop.example")]),
        ("'joe@shop.example' <joe@shop.example>", [("", "joe@shop.example")]),
        ("MAILER DAEMON <>", [("MAILER DAEMON", "")]),
        ("root", [("root", "")]),
        ("", [("", "")]),
        ('<"nina"@shop.example>', [("", "nina@shop.example")]),
        ('<"nina berg"@shop.example>', [("", '"nina berg"@shop.example')]),
        ('<"a\\"b"@shop.example>', [("", '"a\\"b"@shop.example')]),
        ("nina (x) @ (y) shop.example", [("x y", "nina@shop.example")]),
        ("<@relay.example,@b.example:nina@shop.example>", [("", "nina@shop.example")]),
        ("nina@[192.0.2.1]", [("", "nina@[192.0.2.1]")]),
        ("Shop: nina@shop.example, joe@shop.example;", [("Shop:", "nina@shop.example"), ("", "joe@shop.example")]),
        ("undisclosed-recipients:;", [("undisclosed-recipients:", "")]),
        (f"Nina <{EVIL}", [("Nina", EVIL)]),
        (f'"Nina <{EVIL}>', [('"Nina', EVIL)]),
        (f"Nina ({TRAP}", [(f"Nina ({TRAP})", "")]),
        (f"{TRAP} <{EVIL}>", [(TRAP, EVIL)]),
        (f'"{TRAP}" <{EVIL}>', [(TRAP, EVIL)]),
        (f"{EVIL} (Bank <{TRAP}>)", [(f"Bank <{TRAP}>", EVIL)]),
        (f"=?utf-8?Q?Bank <{TRAP}>?= <{EVIL}>", [(f"Bank <{TRAP}>", EVIL)]),
        (f"=?utf-8?B?PHNlcnZpY2VAYmFuay5leGFtcGxlPg==?= <{EVIL}>", [(f"<{TRAP}>", EVIL)]),
        ("=?utf-8?Q?service=40bank.example?=", [(TRAP, "")]),
        (f'"{TRAP}"', [(TRAP, "")]),
        (f"<=?utf-8?Q?{TRAP}?=>", [(TRAP, "")]),
        ('nina@"bank.example"', [("nina@bank.example", "")]),
        ("<a@b@c.example>", [("a@b@c.example", "")]),
        (f"<{TRAP}> <{EVIL}>", [("", TRAP), ("", EVIL)]),
        (f"Nina <{EVIL}> {TRAP}", [("Nina", EVIL), ("", TRAP)]),
        (f"<{EVIL}, {TRAP}>", [("", EVIL), ("", TRAP)]),
        (f"Nina <>, {EVIL}", [("Nina", ""), ("", EVIL)]),
        ("=?utf-8?B?SsO8cmdlbg=== <j@shop.example>", [("Jürgen", "j@shop.example")]),
        ("=?iso-8859-1?Q?J\udcfcrgen?= <j@shop.example>", [("Jürgen", "j@shop.example")]),
        ("J\udcfcrgen <j@k\udce4se.example>", [("Jürgen", "j@käse.example")]),
        ("J\udcc3\udcbcrgen <j@k\udcc3\udca4se.example>", [("Jürgen", "j@käse.example")]),
        ("x" * 330 + "@shop.example", [("x" * 330 + "@shop.example", "")]),
    ],
)
def test_mailboxes_are_found_by_the_syntax(field: str, expected: list[tuple[str, str]]) -> None:
    assert read([field]) == tuple(expected)
    assert parse(written(read([field]))) == tuple(expected)


def test_all_fields_count() -> None:
    assert read([]) == ()
    assert read([f"Bank <{TRAP}>", "", EVIL]) == (("Bank", TRAP), ("", ""), ("", EVIL))
    assert len(read([", ".join([EVIL] * 60)] * 2)) == 100


def test_what_is_not_read_is_not_trusted_to_be_empty() -> None:
    assert read([f"{TRAP}, ({'x' * 9_000}) {EVIL}"]) == (("", TRAP), ("", ""))
    assert read([f"({'x' * 9_000}) {EVIL}"]) == (("", ""),)
    assert read([f"{TRAP} ({'x' * 8_000})", "x" * 200 + EVIL])[1:] == (("", ""),)


@given(st.one_of(PIECES, st.text()))
@example('"' * 9)
@example("(" * 9)
@example("=?utf-8?Q?")
def test_any_field_is_read_and_the_same_when_it_is_read_again(field: str) -> None:
    found = read([field])
    assert found
    again = parse(written(found))
    assert again == found[: len(again)]
    assert len(again) == len(found) or len(written(found)) > 1_000
    assert parse(field)
    for name, address in (*found, *parse(field)):
        assert not set(name + address) & set("\n\t\x00")
        assert not address or normal_address(address) == address


@given(WORDS, PIECES)
def test_no_address_is_taken_from_a_quoted_string_a_comment_or_a_word(name: str, trap: str) -> None:
    quoted = '"' + (name + trap).replace("\\", "\\\\").replace('"', '\\"') + '"'
    comment = "(" + (name + trap).replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)") + ")"
    encoded = "".join(f"={octet:02X}" for octet in (name + trap).encode("utf-8", "replace"))
    word = f"=?utf-8?Q?{encoded}?="
    for field in (
        f"{quoted} <{EVIL}>",
        f"{EVIL} {comment}",
        f"{comment} {EVIL}",
        f"{word} <{EVIL}>",
        f"<{EVIL}> {word}",
    ):
        assert [address for _, address in read([field])] == [EVIL]


@given(st.lists(st.builds(Mailbox, WORDS.map(lambda text: " ".join(text.split())), st.just(EVIL)), min_size=1))
def test_names_are_written_so_that_they_are_read_again(mailboxes: list[Mailbox]) -> None:
    plain = [each for each in mailboxes if each.name.strip("'\"<> ").lower() != EVIL]
    again = parse(written(plain)) if plain else ()
    assert list(again) == plain[: len(again)]


@pytest.mark.parametrize(
    "piece",
    [
        '"',
        "(",
        "<",
        "\\",
        "=?a?q?",
        "a,",
        "a@b,",
        "@",
        '"a"@',
        "<a@b>",
        "()",
        "=?a?q?x?=",
        '\\"',
        '" \\"',
        "[",
        ":",
        "<@",
    ],
)
def test_hostile_fields_take_little_time(piece: str) -> None:
    field = piece * (1_000_000 // len(piece))
    started = time.process_time()
    assert read([field] * 3)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("field", "addresses"),
    [
        ("Boss <ceo@bank.example .evil.example>", ["ceo@bank.example.evil.example"]),
        ("Boss <ceo@bank.example (a) . (b) evil.example>", ["ceo@bank.example.evil.example"]),
        ("Boss <a . b @ c.example>", ["a.b@c.example"]),
        ("a . b@c.example", ["a.b@c.example"]),
        ("Boss <ceo@bank.example evil.example>", ["ceo@bank.example", ""]),
        ('Boss <ceo@bank.example "x">', ["ceo@bank.example", ""]),
        ("Boss <@relay.example,@other.example:ann@shop.example>", ["ann@shop.example"]),
        ("Boss <ann@shop.example (at work)>", ["ann@shop.example"]),
    ],
)
def test_blanks_and_comments_beside_a_dot_belong_to_the_address(field: str, addresses: list[str]) -> None:
    found = read([field])
    assert [mailbox.address for mailbox in found] == addresses
    again = parse(written(found))
    assert ([m.address for m in again][:1], len(again)) == (addresses[:1], len(addresses))


@given(st.from_regex(from_header._SIMPLE, fullmatch=True))
@example("Promo <promo@example.net>")
@example("bounce <<a@b.c>")
def test_the_expression_for_simple_fields_changes_nothing(field: str) -> None:
    with patch.object(from_header, "_SIMPLE", re.compile("(?!)")):
        by_syntax = read([field])
    assert read([field]) == by_syntax
