"""Encoded words (RFC 2047) in header fields: one decoder for metadata, the message's own fields and its page."""

from __future__ import annotations

import encodings.aliases
import time
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.exporter.values import own_fields
from portal.model.encoded_words import decode_words
from portal.reading import read


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
        ("=?utf-8?q?=FF=C3=BC=C3=BC?=", "\ufffdüü"),
        ("=?utf-8?q?Gr=FCn?=", "Grün"),  # not UTF-8 at all
        ("=?utf-8?b?SsO8cmdlbg==SsO8cmdlbg==?=", "JürgenJürgen"),  # base64 past its padding
        ("=?utf-8?q??=", ""),
        # Words that are not ended.
        ("=?utf-8?q?a", "a"),
        ("=?utf-8?q?a=?utf-8?q?b?=", "ab"),
        ("=?UTF-8?Q?Caf=C3=A9_im_M=C3=A4rz", "Café im März"),
        ("=?UTF-8?Q?Caf=C3=A9? im M=C3=A4rz?", "Café? im März"),
        ("=?utf-8?q?J=C3=BCrgen? <j@example.org>", "Jürgen <j@example.org>"),
        ("=?utf-8?B?SsO8cmdlbg=== <j@example.org>", "Jürgen <j@example.org>"),
        ("=?utf-8?B?SsO8cmdlbg==? <j@example.org>", "Jürgen <j@example.org>"),
        ("=?utf-8?q?J=C3=BCrgen_K <j_k@example.org>", "Jürgen K <j_k@example.org>"),
        ('"=?utf-8?q?J=C3=BCrgen" <j_k@example.org>', '"Jürgen" <j_k@example.org>'),
        # Octets beside and in words: the charset is the word's, outside UTF-8 or windows-1252.
        ("K\udcc3\udca4se =?iso-8859-1?q?K=E4se_und_Gem\udcfcse?= f\udcfcr", "Käse Käse und Gemüse für"),
        ("=?iso-8859-1?q?Gemü=FC?=", "Gemüü"),
        ("Gr\udcfc\udcdfe aus M\udcfcnchen", "Grüße aus München"),
        ("Gr\udcc3\udcbc\udcc3\udc9fe \udce2\udc82", "Grüße "),  # cut in a character
        ("Gr\udcc3\udcbc\udcc3\udc9fe \udcff, Pat", "Grüße \ufffd, Pat"),  # one bad octet
        ("\ud800 =?utf-8?q?\ud800?=", "\ud800 \ufffd"),  # JSON can have any surrogate
        ("\x1b$BF|K\\\x1b(B =?utf-8?q?a?=", "日本 a"),  # raw ISO-2022-JP
        ("\x1b$ =?utf-8?q?a?=", "\x1b$ a"),
        # Not words, or not to be decoded.
        ("=?utf-8?x?a?=", "=?utf-8?x?a?="),
        ("=?utf-8?b?w?=", "=?utf-8?b?w?="),
        ("=?utf-8?b?w?= =?utf-8?q?=C3=BC?= and =?utf-8?q?=C3=BC?=", "=?utf-8?b?w?= ü and ü"),
        # No charset that anybody knows: UTF-8 where it can be, otherwise windows-1252.
        ("=?nonsense?q?x?= =?hex?q?y?= =??q?z?=", "xyz"),
        ("=?x-unknown?q?Gr=C3=BCn?=", "Grün"),
        ("=?x-unknown?q?Gr=FCn?=", "Grün"),
        ("=?undefined?q?x?=", "x"),
        ("=?a\0b?q?x?=", "x"),
    ],
)
def test_words_are_decoded_leniently(text: str, expected: str) -> None:
    assert decode_words(text) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    ["=?utf-8?q?" * 100_000, "=?utf-8?q?" + "=" * 500_000, "=?utf-8?q?" + "a?" * 500_000, "=?=" * 100_000]
    + ["=?utf-8?q?a?= " * 50_000, "=?utf-8?q?a?=" + " " * 500_000, "=?utf-8?q?<" * 100_000, "=?u?b?A" * 100_000]
    + ["=?utf-8?b?" + "A" * 500_000, "=?utf-8?b?" + "YQ==" * 100_000 + "?=", "\udcfc=?u?q?" * 50_000],
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
    mail = f"Subject: {value}\r\nTo: {value}\r\n\r\nBuy!\r\n".encode()
    page = read([mail], "alice@example.org")
    assert (own_fields(mail).subject, dict(page.headers)["To"]) == (expected, expected)
