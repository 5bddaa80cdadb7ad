"""Encoded words (RFC 2047) in header fields: one decoder for metadata, the message's own fields and its page."""

from __future__ import annotations

import encodings.aliases
import subprocess
import time
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.exporter.values import own_fields
from portal.model.encoded_words import decode_words
from portal.web import preview


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("", ""),
        ("=?utf-8?q?Gr=C3=BC=C3=9Fe_aus?= =?utf-8?b?S8O2bG4=?=", "Grüße ausKöln"),
        ("=?utf-8?q?Gr=C3=BC=C3=9Fe?= aus =?utf-8?b?S8O2bG4?=", "Grüße aus Köln"),  # base64 without padding
        ("=?utf-8?q?=C3?=\t=?UTF-8?b?vA==?=", "ü"),  # one character in two words
        ("Gr=?utf-8?q?=C3=BC?=n", "Grün"),  # no space around the word
        ('"=?utf-8?q?J=C3=BCrgen?=" <j@example.org>', '"Jürgen" <j@example.org>'),
        ("=?utf-8?q?J=C3=BCrgen?= <j@example.org>", "Jürgen <j@example.org>"),
        ("=?utf-8*de?q?J=C3=BCrgen?=", "Jürgen"),  # RFC 2231, 5
        ("=?iso-8859-15*de?q?=A4?=", "€"),
        ("=?iso-8859-1?q?=FC?= =?utf-8?q?=C3=BC?=", "üü"),
        ("=?utf-8?q?Noch_Fragen??= Ja", "Noch Fragen? Ja"),
        ("=?utf-8?q?1+1==2_=3d_=?=", "1+1==2 = ="),
        ("=?utf-8?q?1_+_1_=zz_2?=", "1 + 1 =zz 2"),
        ("=?utf-8?q?a b?=", "a b"),
        ("=?utf-8?q?ü=C3=BC?=", "üü"),
        ("=?utf-8?b?üw7w=?=", "ü"),  # what is no base64 is left out
        ("=?utf-8?q?=FF?=", "\ufffd"),
        # Not words, or not to be decoded.
        ("=?utf-8?q?a", "=?utf-8?q?a"),
        ("=?utf-8?q?a=?utf-8?q?b?=", "=?utf-8?q?ab"),
        ("=?utf-8?x?a?=", "=?utf-8?x?a?="),
        ("=?utf-8?b?w?=", "=?utf-8?b?w?="),
        ("=?utf-8?b?w?= =?utf-8?q?=C3=BC?= and =?utf-8?q?=C3=BC?=", "=?utf-8?b?w?= =?utf-8?q?=C3=BC?= and ü"),
        # No charset that Python knows: UTF-8 where it can be, else Latin-1.
        ("=?nonsense?q?x?= =?hex?q?y?= =??q?z?=", "xyz"),
        ("=?x-unknown?q?Gr=C3=BCn?=", "Grün"),
        ("=?x-unknown?q?Gr=FCn?=", "Grün"),
        ("=?undefined?q?x?=", "x"),
        ("=?a\0b?q?x?=", "x"),
    ],
)
def test_words_are_decoded_leniently(text: str, expected: str) -> None:
    assert decode_words(text) == expected


@pytest.mark.parametrize(
    "text",
    ["=?utf-8?q?" * 100_000, "=?utf-8?q?" + "=" * 500_000, "=?utf-8?q?" + "a?" * 500_000, "=?=" * 100_000]
    + ["=?utf-8?q?a?= " * 50_000, "=?utf-8?q?a?=" + " " * 500_000],
    ids=lambda text: text[:16],
)
def test_time_is_linear_in_the_length_of_the_text(text: str) -> None:
    began = time.process_time()
    decode_words(text)
    assert time.process_time() - began < 2


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*sorted(set(encodings.aliases.aliases.values())), "idna", "undefined", "punycode", "a\0"]),
            st.sampled_from("qb"),
            st.text(max_size=20),
        ),
        max_size=4,
    )
)
def test_no_charset_and_no_text_raises(words: list[tuple[str, str, str]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unicode_escape
        decode_words(" ".join(f"=?{charset}?{encoding}?{data}?=" for charset, encoding, data in words))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("=?utf-8?q?J=C3=BCrgen?=\r\n <j@example.org>", "Jürgen <j@example.org>"),
        ("=?utf-8?q?J=C3=BC?=\r\n\t=?utf-8?q?rgen?= <j@example.org>", "Jürgen <j@example.org>"),
        ("=?utf-8?q?J=C3=BC\r\n rgen?= <j@example.org>", "Jü rgen <j@example.org>"),
        ("=?utf-8*de?q?J=C3=BCrgen?= <j@example.org>", "Jürgen <j@example.org>"),
        ("=?utf-8?b?w?= x =?utf-8?q?J=C3=BCrgen?=", "=?utf-8?b?w?= x Jürgen"),
    ],
)
def test_the_page_and_the_list_decode_alike(value: str, expected: str) -> None:
    mail = f"From: {value}\r\nTo: {value}\r\n\r\nBuy!\r\n".encode()
    page = preview.preview([mail])
    assert (own_fields(mail)["from"], dict(page.headers)["To"]) == (expected, expected)


def test_the_child_loads_nothing_but_the_standard_library_and_the_decoder() -> None:
    """It is started for each page."""
    command = [preview._python(), "-I", "-S", "-X", "importtime", preview.__file__]
    done = subprocess.run(command, input=b"", env={}, capture_output=True, check=True)
    ours = {line.rpartition(b"|")[2].strip() for line in done.stderr.splitlines()}
    assert {name for name in ours if name.startswith(b"portal")} == {
        b"portal",
        b"portal.model",
        b"portal.model.encoded_words",
    }
    assert not ours & {b"rich", b"bottle", b"pydantic", b"jinja2", b"idna", b"site"}
