"""Octets to text, for every label that a sender may write."""

from __future__ import annotations

import encodings.aliases
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.model.charsets import codec_of, decode


@pytest.mark.parametrize(
    ("label", "octets", "expected"),
    [
        # WHATWG Encoding, 4.2: what the labels mean in browsers.
        ("iso-8859-1", b"It\x92s \x93ready\x94 \x96 5 \x80", "It’s “ready” – 5 €"),
        ("Latin1", b"5 \x80", "5 €"),
        ("gb2312", bytes.fromhex("e946 cfc8 c9fa"), "镕先生"),
        ("GBK", "㐀 𠀀".encode("gb18030"), "㐀 𠀀"),
        ("shift_jis", bytes.fromhex("8740 eee0 8bb4"), "①髙橋"),
        ("iso-2022-jp", b"\x1b$B-!F|K\\\x1b(B ABC\r\n\x1b(I6@\x1b(B", "①日本 ABC\r\nｶﾀ"),
        ("iso-2022-jp", b"\x1b$BF|\xff\xff \x00K\\\x1b(B", "日??本"),
        ("iso-2022-jp-ms", "日本語".encode("iso2022_jp"), "日本語"),
        ("ks_c_5601-1987", "똠방".encode("cp949"), "똠방"),
        ("big5", "香港嘅".encode("big5hkscs"), "香港嘅"),
        ("iso-8859-9", "Ağ €".encode("cp1254"), "Ağ €"),
        ("iso-8859-11", "สวัสดี".encode("cp874"), "สวัสดี"),
        ("windows-874", "สวัสดี".encode("cp874"), "สวัสดี"),
        ("visual", "שלום".encode("iso8859_8"), "שלום"),
        # Labels that browsers do not know.
        ("cp-850", "Größe".encode("cp850"), "Größe"),
        ("IBM437", "Größe".encode("cp437"), "Größe"),
        ("windows-936", "镕先生".encode("gbk"), "镕先生"),
        ("cp932", "①".encode("cp932"), "①"),
        ("win-1251", "Счёт".encode("cp1251"), "Счёт"),
        ("x-cp1250", "žluťoučký".encode("cp1250"), "žluťoučký"),
        ("x-mac-greek", "Αθήνα".encode("mac_greek"), "Αθήνα"),
        ("cp65001", "Größe".encode(), "Größe"),
        ("pc850", "Größe".encode("cp850"), "Größe"),
        ("8859-2", "žluť".encode("iso8859_2"), "žluť"),
        ("csWindows31J", "①".encode("cp932"), "①"),
        ("x-ms-cp932", "①".encode("cp932"), "①"),
        ("ibm-943", "①".encode("cp932"), "①"),
        ("utf-7", b"Gr+APYA3w-e", "Größe"),
        ("hz-gb-2312", b"~{Q'~} abc", "学 abc"),
        ("iso-2022-kr", "안녕".encode("iso2022_kr"), "안녕"),
        ("utf-8*de", "Größe".encode(), "Größe"),
        (' "UTF8" ', "Größe".encode(), "Größe"),
        # Labels that do not fit, or mean nothing.
        ("", b"Gr\xfc\xdfe, 50 \x80", "Grüße, 50 €"),
        ("", "Größe: 2 m²".encode(), "Größe: 2 m²"),
        ("us-ascii", "日本".encode("iso2022_jp"), "日本"),
        ("us-ascii", "Größe".encode(), "Größe"),
        ("ANSI_X3.4-1968", b"Gr\xf6\xdfe", "Größe"),
        ("x-unknown", "Größe".encode(), "Größe"),
        ("unknown-8bit", b"Gr\xf6\xdfe", "Größe"),
        ("utf-8", b"Fra\xeeche pr\xe8s du ch\xe2teau", "Fraîche près du château"),
        ("utf-8", b"Caf\xe9", "Café"),
        ("utf-8", "Größe: 2 m²".encode() + b" \xff", "Größe: 2 m² \ufffd"),
        ("iso-2022-kr", "Größe".encode(), "Größe"),
        ("euc-jp", "日本".encode("euc_jp") + b"\xff\xff", "日本\ufffd"),
        ("utf-16", b"plain text", "plain text"),
        ("utf-16", "plain téxt".encode(), "plain téxt"),
        ("utf-16le", "日本".encode("utf-16-le"), "日本"),
        ("utf-7", b"1 + 1: +AFcATwBSAEQAUw-", "1 \ufffd1: WORDS"),
        ("utf-7", b"caf\xc3\xa9 + +AFcATwBSAEQAUw-", "café \ufffdWORDS"),
        ("hz", b"~q ~{VPND~}", "\ufffdq 中文"),
        ("ibm037", "WORDS é".encode(), "WORDS é"),
        ("cp875", "WORDS é".encode(), "WORDS é"),
        ("base64", "Größe".encode(), "Größe"),
        ("punycode", b"Mnchen-3ya", "Mnchen-3ya"),
        ("unicode_escape", rb"\u00fc", rb"\u00fc".decode()),
        # A byte order mark decides. An incomplete last character is left out.
        ("iso-8859-1", b"\xef\xbb\xbf" + "Größe".encode(), "Größe"),
        ("", "Größe".encode("utf-16"), "Größe"),
        ("utf-16", "Größe".encode("utf-16-le"), "Größe"),
        ("utf-16", b"\xfe\xff" + "Größe".encode("utf-16-be"), "Größe"),
        ("unicode", b"\xff\xfe" + "Größe".encode("utf-16-le"), "Größe"),
        ("utf-16be", b"\xfe\xff" + "Größe".encode("utf-16-be"), "Größe"),
        ("", "Größe für".encode() + b" \xe2\x82", "Größe für "),
        ("gbk", "镕先".encode("gbk")[:-1], "镕"),
    ],
)
def test_text_is_decoded_as_mail_programs_do(label: str, octets: bytes, expected: str) -> None:
    assert decode(octets, label) == expected


@given(st.one_of(st.sampled_from(sorted(encodings.aliases.aliases)), st.text(max_size=100)), st.binary(max_size=40))
def test_no_label_and_no_octets_raise(label: str, octets: bytes) -> None:
    for prefix in (b"", b"\x1b$B", b"\x1b(I", b"\x0e", b"~{", b"+"):
        decode(prefix + octets, label)
        decode(prefix + octets, "iso-2022-jp")
    assert not (codec_of(label) or "").endswith(("_codec", "escape", "punycode", "idna", "rot_13"))


@pytest.mark.slow
@pytest.mark.parametrize("label", sorted({codec_of(label) or "" for label in encodings.aliases.aliases}))
@pytest.mark.parametrize(
    "pattern", [b"\x80", b"\xe3\x81", b"+", b"~{", b"\x1b$B", b"\x1b$B!", b"\x0e!", b"A\x00"], ids=repr
)
def test_time_is_linear_in_the_length_of_the_text(label: str, pattern: bytes) -> None:
    began = time.process_time()
    decode(pattern * (500_000 // len(pattern)), label)
    assert time.process_time() - began < 2
