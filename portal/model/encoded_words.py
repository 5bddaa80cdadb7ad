"""Header fields as text: encoded words (RFC 2047) and raw octets, decoded leniently as mail programs do."""

from __future__ import annotations

import binascii
import re
from contextlib import suppress

from portal.model.charsets import codec_of, decode

# A word may be anywhere, also without spaces around it, and its text may contain spaces and question marks: RFC 2047, 2
# forbids both, but mail programs write them. A word that is not ended goes on as far as its encoding can: base64 to the
# first other character, "Q" to the quote or bracket that ends a display name. Both end where another word begins. The
# possessive quantifiers keep the time linear.
_DATA = r"[^?]*+(?:(?<!=)\?(?!=)[^?]*+)*+"
_OPEN_DATA = r"(?:(?<=[bB]\?)[A-Za-z0-9+/]++=*+\??|(?<=[qQ]\?)(?:[^?<\"=]++|=(?!\?)|\?)*+)"
_WORD = re.compile(rf"=\?([^?\s]{{0,60}})\?([qQbB])\?(?:({_DATA})\?=|({_OPEN_DATA}))")
_ANY_WORD = rf"=\?[^?\s]{{0,60}}\?[qQbB]\?(?:{_DATA}\?=|{_OPEN_DATA})"
_RUNS = re.compile(rf"{_ANY_WORD}(?:\s*{_ANY_WORD})*")
_CUT_END = re.compile(r"\?([ \t]*)\Z")  # of a word that lost its last character
_STRAY = re.compile(rb"=(?![0-9A-Fa-f]{2})")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/=]+")
_RAW_OCTET = re.compile("[\udc80-\udcff]")
_LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def decode_field(body: bytes) -> str:
    """Return the body of an unfolded header field as text. Never raises."""
    return decode_words(body.decode("ascii", "surrogateescape"))


def decode_words(text: str) -> str:
    """Return an unfolded header field with its encoded words decoded. Never raises.

    ``text`` may have raw octets, as the codec error handler `surrogateescape` writes them; these are UTF-8, otherwise
    windows-1252, and in a word they are of its charset. The octets of adjacent words are joined before decoding, since
    many mail programs divide one character between two words. A run without any base64 stays as it is. The result can
    have control characters.
    """
    if "=?" not in text:
        return _raw(text)
    pieces, start = [], 0
    for run in _RUNS.finditer(text):
        pieces += [_raw(text[start : run.start()]), _decoded(run[0])]
        start = run.end()
    return "".join([*pieces, _raw(text[start:])])


def from_base64(data: bytes) -> bytes:
    """Return the octets of base64, whatever else is in it. Padding may be missing, or be followed by more base64."""
    return b"".join(map(_block, _NOT_BASE64.sub(b"", data).split(b"=")))


def _block(data: bytes) -> bytes:
    surplus = len(data) % 4
    if surplus == 1:  # six bits, which are no octet
        data, surplus = data[:-1], 0
    return binascii.a2b_base64(data + b"=" * (-surplus % 4))


def _decoded(run: str) -> str:
    pieces: list[tuple[str, bytearray]] = []
    end, is_word = 0, True
    for word in _WORD.finditer(run):
        charset, encoding, ended, opened = word.groups(default="")
        data = _octets(ended or _CUT_END.sub(r"\1", opened), charset)
        octets = from_base64(data) if encoding in "bB" else _quoted(data)
        was_word, is_word = is_word, bool(octets) or (not data and word[3] is not None)
        if not is_word:
            charset, octets = "", _octets(word[0], "")
        if not (is_word and was_word):  # only blanks between two words do not count
            octets = run[end : word.start()].encode() + octets
        end, charset = word.end(), charset.lower()
        if pieces and pieces[-1][0] == charset:
            pieces[-1][1].extend(octets)
        else:
            pieces.append((charset, bytearray(octets)))
    return "".join(decode(bytes(octets), charset) for charset, octets in pieces)


def _octets(text: str, charset: str) -> bytes:
    """Return the octets of text, its characters beyond ASCII as they are in the charset, otherwise in UTF-8."""
    if not text.isascii() and (codec := codec_of(charset)):
        with suppress(UnicodeError):  # the charset lacks the character
            return text.encode(codec, "surrogateescape")
    return _LONE_SURROGATE.sub("\ufffd", text).encode("utf-8", "surrogateescape")


def _quoted(data: bytes) -> bytes:
    """Return the octets of "Q" encoded data. An equals sign without two hexadecimal digits stands for itself."""
    return binascii.a2b_qp(_STRAY.sub(b"=3D", data), header=True)


def _raw(text: str) -> str:
    """Return text that is no word, with its raw octets decoded, also those of ISO-2022-JP."""
    if not _RAW_OCTET.search(text) and "\x1b$" not in text:
        return text
    return decode(_octets(text, ""))
