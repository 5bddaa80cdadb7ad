"""Encoded words in header fields (RFC 2047), decoded leniently.

This module uses the standard library alone, since the child process of the message page imports it too.
"""

from __future__ import annotations

import binascii
import re
from contextlib import suppress

# A word may be anywhere, also without spaces around it, and its text may contain spaces and question marks: RFC 2047, 2
# forbids both, but mail programs write them. An unfinished word ends where another one begins. The possessive
# quantifiers keep the time linear.
_DATA = r"[^?]*+(?:(?<!=)\?(?!=)[^?]*+)*+"
_WORD = re.compile(rf"=\?([^?\s]{{0,60}})\?([qQbB])\?({_DATA})\?=")
_ANY_WORD = rf"=\?[^?\s]{{0,60}}\?[qQbB]\?{_DATA}\?="
RUNS = re.compile(rf"{_ANY_WORD}(?:\s*{_ANY_WORD})*")
_STRAY = re.compile(rb"=(?![0-9A-Fa-f]{2})")


def decode_words(text: str, runs: re.Pattern[str] = RUNS, *, ascii_too: bool = True) -> str:
    """Return an unfolded header field with its encoded words decoded. Never raises.

    Each match of ``runs`` is one or more adjacent words. Their octets are joined before decoding, since Rspamd before
    3.14.2 and many mail programs divide one character between two words. A run with invalid base64 stays as it is, and
    so does one that encodes pure ASCII if ``ascii_too`` is False. The result can have control characters.
    """
    return runs.sub(lambda run: _decoded(run[0], ascii_too), text) if "=?" in text else text


def _decoded(run: str, ascii_too: bool) -> str:
    pieces: list[tuple[str, bytearray]] = []
    for charset, encoding, data in _WORD.findall(run):
        octets = data.encode("utf-8", "replace")
        try:
            octets = binascii.a2b_base64(octets + b"==") if encoding in "bB" else _quoted(octets)
        except binascii.Error:
            return run
        charset = charset.partition("*")[0].lower()  # RFC 2231, 5: a language may follow
        if pieces and pieces[-1][0] == charset:
            pieces[-1][1].extend(octets)
        else:
            pieces.append((charset, bytearray(octets)))
    if not ascii_too and all(octets.isascii() for _, octets in pieces):
        return run
    return "".join(_text(octets, charset) for charset, octets in pieces)


def _quoted(data: bytes) -> bytes:
    """Return the octets of "Q" encoded data. An equals sign without two hexadecimal digits stands for itself."""
    return binascii.a2b_qp(_STRAY.sub(b"=3D", data), header=True)


def _text(octets: bytearray, charset: str) -> str:
    with suppress(Exception):  # the sender chose the codec, and codecs raise what they like
        return octets.decode(charset, "replace")
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        return octets.decode("latin-1")
