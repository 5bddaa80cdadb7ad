"""Octets to text: charset labels as in browsers (WHATWG Encoding), and what mail programs do when a label is wrong.

Mail names charsets that do not fit its text: ``us-ascii`` for UTF-8, ``utf-8`` for windows-1252, names that nobody
registered. Only codecs for text are used, found in a fixed table: Python's registry would import modules by names that
the sender chose, keep each of them, and find codecs that need quadratic time (``punycode``) or raise by design.
"""

from __future__ import annotations

import codecs
import re
from contextlib import suppress
from encodings.aliases import aliases
from functools import lru_cache

from webencodings import PYTHON_NAMES
from webencodings.labels import LABELS

_FALLBACK = "cp1252"
_SEPARATORS = re.compile(r"[^0-9a-z]+")
_CODE_PAGE = re.compile(r"x?(?:cs|ms)?(?:cp|windows|win|ms|ibm|dos|oem|pc|codepage)0*([0-9]{3,5})")
# The numbers are EBCDIC: no mail program decodes it, and ASCII read as EBCDIC is not readable.
_NOT_FOR_TEXT = re.compile(
    r".*_codec|rot_13|mbcs|tactis|.*escape|punycode|idna|undefined|charmap|cp(?:037|273|424|500|875|1026|1140)"
)
# Code pages without an alias in Python, or with a number that only Windows uses.
_CODE_PAGES = {
    **{str(number): f"cp{number}" for number in (720, 737, 856, 874, 1006)},
    **{f"{28590 + number}": f"iso8859-{number}" for number in (*range(2, 10), 13, 15)},
    **dict.fromkeys(("28591", "1004"), "cp1252"),
    **dict.fromkeys(("942", "943"), "cp932"),  # IBM's numbers for Shift_JIS
    **dict.fromkeys(("936", "54936", "20936"), "gb18030"),
    **dict.fromkeys(("50220", "50221", "50222"), "iso-2022-jp"),
    **{"65001": "utf-8", "20866": "koi8-r", "21866": "koi8-u", "51932": "euc-jp", "51949": "cp949", "950": "big5hkscs"},
}
_ISO_2022_JP = "iso-2022-jp"
# Codecs in which ASCII octets stand for other characters. Not UTF-16: its line breaks and blanks have a NUL, and text
# without any is text whose label is wrong.
_STATEFUL = re.compile(r"utf.?7|hz|iso.?2022.*")
_WIDE = re.compile(r"utf.?(?:16|32).*")
_UTF_16 = re.compile(r"utf.?16")
_NOT_ASCII = re.compile(rb"([\x80-\xff]+)")
_JIS_SWITCH = re.compile(rb"\x1b(\([BJI]|\$[@B]|\$\([@B]|[^\x1b])")


def _codecs() -> dict[str, str]:
    """Return the codec of each label, spelled without separators. WHATWG's labels win over Python's."""
    found = {}
    for label, codec in aliases.items():
        if not _NOT_FOR_TEXT.fullmatch(codec):
            found[_SEPARATORS.sub("", codec)] = found[_SEPARATORS.sub("", label)] = codec
    for label, name in LABELS.items():
        if name not in ("replacement", "x-user-defined"):  # `replacement` is for what browsers refuse: hz, iso-2022-kr
            found[_SEPARATORS.sub("", label)] = PYTHON_NAMES.get(name, name)
    # WHATWG decodes gbk as gb18030, and iso-2022-jp with the letters that Windows adds; Python's codecs lack them.
    gb18030 = {label: "gb18030" for label, codec in found.items() if codec in ("gbk", "gb2312")}
    japanese = {label: _ISO_2022_JP for label, codec in found.items() if codec.replace("-", "_") == "iso2022_jp"}
    return found | gb18030 | japanese | {"utf8mb4": "utf-8", "unicode11utf7": "utf-7", "iso2022jpms": _ISO_2022_JP}


_CODECS = _codecs()
_ASCII = frozenset(_SEPARATORS.sub("", label) for label, codec in aliases.items() if codec == "ascii") | {"ascii"}


@lru_cache(256)
def codec_of(label: str) -> str | None:
    """Return the name of the codec for a charset label, None for US-ASCII and for labels that nobody knows."""
    plain = _SEPARATORS.sub("", label[:80].partition("*")[0].lower())  # RFC 2231, 5: a language may follow
    if plain in _ASCII:
        return None  # the text is ASCII, or the label is wrong
    match = _CODE_PAGE.fullmatch(plain)
    number = match[1] if match else ""
    spellings = (plain, plain.removeprefix("x"), plain.removeprefix("cs"), f"iso{plain}")
    codec = next((_CODECS[each] for each in spellings if each in _CODECS), None)
    return codec or _CODE_PAGES.get(number) or _CODECS.get(f"cp{number}")


def codec_names() -> set[str]:
    """Return the names of Python's codecs that `decode` may use."""
    return (set(_CODECS.values()) | set(_CODE_PAGES.values()) | {"utf-16", "utf-8", _FALLBACK, "cp932"}) - {
        _ISO_2022_JP
    }


def decode(octets: bytes, label: str = "") -> str:
    """Return the text of octets. Never raises; needs linear time.

    A byte order mark decides, then the label if the octets fit it, then UTF-8 if they fit that, then the label again
    with U+FFFD for each invalid octet; without a label that means something windows-1252. An incomplete last character
    is left out, since senders and limits cut anywhere.
    """
    if octets.startswith(codecs.BOM_UTF8):
        return _unicode_or_windows(octets[len(codecs.BOM_UTF8) :])
    codec_name = codec_of(label)
    is_wide = codec_name is None or _UTF_16.match(codec_name)
    if octets.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and is_wide:
        return _lenient(octets, "utf-16")
    if codec_name is None and (b"\x1b$B" in octets or b"\x1b$@" in octets):
        codec_name = _ISO_2022_JP  # nothing else has these
    if octets.isascii() and not (codec_name and (_STATEFUL.fullmatch(codec_name) or b"\0" in octets)):
        return octets.decode("ascii")
    if codec_name == _ISO_2022_JP:
        return _iso_2022_jp(octets)
    if codec_name is None or codec_name == "utf-8":
        return _unicode_or_windows(octets)
    if _WIDE.fullmatch(codec_name) and b"\0" not in octets:
        with suppress(UnicodeError):
            return octets.decode("utf-8")
    with suppress(UnicodeError):
        return codecs.getincrementaldecoder(codec_name)("strict").decode(octets)
    if _STATEFUL.fullmatch(codec_name):
        # One error must not let the rest be read as ASCII, which mail programs do not show. Octets that are not ASCII
        # are no part of these charsets.
        pieces = _NOT_ASCII.split(octets)
        return "".join(_unicode_or_windows(x) if at % 2 else _lenient(x, codec_name) for at, x in enumerate(pieces))
    with suppress(UnicodeError):
        return octets.decode("utf-8")
    return _lenient(octets, codec_name)


def _lenient(octets: bytes, codec: str) -> str:
    try:
        return codecs.getincrementaldecoder(codec)("replace").decode(octets)
    except UnicodeError:  # stateful codecs ignore the error handler in some places
        return octets.decode(_FALLBACK, "replace")


def _unicode_or_windows(octets: bytes) -> str:
    """Return damaged UTF-8, or windows-1252 if the octets have more errors than characters of UTF-8."""
    with suppress(UnicodeError):
        return octets.decode("utf-8")
    text = _lenient(octets, "utf-8")
    errors = text.count("\ufffd")
    characters = sum(map(len, re.findall(r"[^\x00-\x7f\ufffd]+", text)))
    return text if characters > errors else octets.decode(_FALLBACK, "replace")


def _iso_2022_jp(octets: bytes) -> str:
    """Return ISO-2022-JP as browsers read it: with the letters of code page 932, such as ① and 髙."""
    pieces, start, mode = [], 0, b"(B"
    for switch in _JIS_SWITCH.finditer(octets):
        pieces.append(_japanese(octets[start : switch.start()], mode))
        start, mode = switch.end(), switch[1]
    pieces.append(_japanese(octets[start:], mode))
    return "".join(pieces)


def _japanese(octets: bytes, mode: bytes) -> str:
    if mode == b"(I":  # half-width katakana
        return bytes(octet | 0x80 if octet > 0x20 else octet for octet in octets).decode("cp932", "replace")
    if not mode.startswith(b"$"):
        return decode(octets)
    lines = re.split(rb"([\r\n]+)", octets)
    return b"".join(_shift_jis(line) if at % 2 == 0 else line for at, line in enumerate(lines)).decode(
        "cp932", "replace"
    )


def _shift_jis(octets: bytes) -> bytes:
    """Return two-octet characters of JIS X 0208 as Shift_JIS."""
    shifted = bytearray()
    for first, second in zip(octets[::2], octets[1::2], strict=False):
        if not (0x21 <= first <= 0x7E and 0x21 <= second <= 0x7E):
            shifted += b"?"
            continue
        shifted.append((first + 1) // 2 + (0x70 if first < 0x5F else 0xB0))
        shifted.append(second + ((0x1F if second < 0x60 else 0x20) if first % 2 else 0x7E))
    return bytes(shifted)
