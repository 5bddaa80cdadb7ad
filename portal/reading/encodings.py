"""Transfer encodings of bodies (RFC 2045, 6), decoded as mail programs do whatever is wrong with them."""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Iterator

from portal.model.encoded_words import from_base64

_NOT_BASE64 = bytes(set(range(256)) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"))
_NEITHER_NOR_PADDING = _NOT_BASE64.replace(b"=", b"")
_LINE_ENCODINGS = ("quoted-printable", "x-uuencode")
# Blanks at the end of a line do not count, also after a soft line break (RFC 2045, 6.7).
_SOFT_BREAK = re.compile(rb"=[ \t]++(?=\r?\n)")


def decoded(octets: bytes, encoding: str) -> bytes:
    """Return the octets that a transfer encoding stands for. Unknown encodings stand for themselves."""
    if encoding == "base64":
        return from_base64(octets)
    if encoding == "quoted-printable":
        return binascii.a2b_qp(_SOFT_BREAK.sub(b"=", octets))
    if encoding == "x-uuencode":
        return b"".join(map(_uu_line, octets.splitlines()))
    return octets


class Decoder:
    """Decodes a body as `decoded` does, without keeping all of it. It comes in pieces, see `whole_lines`."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._rest = b""

    def decode(self, octets: bytes) -> bytes:
        """Return the octets that the next ones stand for."""
        if self._encoding != "base64":
            return decoded(octets, self._encoding)
        data = self._rest + octets.translate(None, _NEITHER_NOR_PADDING)
        end = data.rfind(b"=") + 1  # more base64 may follow the padding
        end += (len(data) - end) // 4 * 4
        self._rest = data[end:]
        return from_base64(data[:end])

    def end(self) -> bytes:
        """Return the octets that the last characters stand for."""
        return from_base64(self._rest)


def decoding(pieces: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """Yield the octets that a body in pieces stands for."""
    decoder = Decoder(encoding)
    for octets in whole_lines(pieces, encoding):
        yield decoder.decode(octets)
    yield decoder.end()


def _uu_line(line: bytes) -> bytes:
    if line.startswith((b"begin ", b"end")) or not line:
        return b""
    try:
        return binascii.a2b_uu(line)
    except binascii.Error:  # encoders differ in what they write after the last octet
        size = (line[0] - 32 & 63) * 4 // 3 + 2
        try:
            return binascii.a2b_uu(line[:size])
        except binascii.Error:
            return b""


# Full lines, and at most one shorter line. Any other line ends the file and is shown, since a sender could begin a text
# like a file. A line begins with its length in octets, so few lines of text are mistaken for data.
_UU_BLOCK = re.compile(
    rb"^begin [0-7]{3,4} +([^\r\n]{1,255})\r?\n((?:M[ -`]{60,61}\r?\n)*+)(?:([!-L])([ -`]{4,61})\r?\n)?"
    rb"(?:[` ]?\r?\n)?(?:end[ \t]*(?:\r?\n|\Z)|M[ -`]{0,61}\Z)?",
    re.MULTILINE,
)


def uuencoded_files(octets: bytes) -> tuple[bytes, list[tuple[bytes, int | None]]]:
    """Return a text without the files in it, which mail programs list as attachments, and their names and sizes.

    The size is None if the text ends within the file.
    """
    files: list[tuple[bytes, int | None]] = []

    def listed(block: re.Match[bytes]) -> bytes:
        last_bytes = block[3][0] - 32 if block[3] else 0
        has_last = last_bytes > 0 and 0 <= len(block[4]) - (last_bytes + 2) // 3 * 4 <= 1
        if not block[2] and not has_last:
            return block[0]
        full_lines = block[2].count(b"\n")
        is_whole = block.end() < len(octets) or block[0].rstrip().endswith(b"end")
        files.append((block[1].strip(), full_lines * 45 + last_bytes * has_last if is_whole else None))
        return b"" if has_last or not block[3] else block[0][block.start(3) - block.start() :]

    return _UU_BLOCK.sub(listed, octets), files


def whole_lines(pieces: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """Yield the octets, divided between lines where lines matter for the size."""
    if encoding not in _LINE_ENCODINGS:
        yield from pieces
        return
    rest: list[bytes] = []
    for piece in pieces:
        end = piece.rfind(b"\n") + 1
        if end:
            yield b"".join([*rest, piece[:end]])
            rest = []
        rest.append(piece[end:])
    yield b"".join(rest)


def units_of(octets: bytes, encoding: str) -> int:
    """Return the number of decoded octets; for base64 of letters, of which four make three octets."""
    if encoding == "base64":
        return len(octets.translate(None, _NOT_BASE64))
    return len(decoded(octets, encoding)) if encoding in _LINE_ENCODINGS else len(octets)
