"""The parts of a message (RFC 2045, RFC 2046), read as mail programs do whatever is wrong with them.

One pass over the octets: texts are kept up to a limit, of everything else only the size.
"""

from __future__ import annotations

import binascii
import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from portal.model.encoded_words import decode_field, from_base64
from portal.reading.fields import Fields, field_name
from portal.reading.source import CHUNK_BYTES, Late, Source

TEXT_BYTES = 1 << 20  # kept of all texts together, still encoded
PARTS = 1_000
_DEPTH = 50
_HEADER_BYTES = 1 << 18  # of one part; what follows is skipped
_FIELD_BYTES = 1 << 16
_MESSAGES = ("message/rfc822", "message/global", "message/news")
_NOT_BASE64 = bytes(set(range(256)) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"))
_LIKELY_BOUNDARY = re.compile(rb"(?:\A|\n)--(?!-*\s)(\S[^\r\n]{0,200}?)[ \t]*\r?\n(?=[!-9;-~]+[ \t]*:|\r?\n)")
_BLANKS = re.compile(r"\s+")


@dataclass(slots=True)
class Part:
    """A message or part. Either it has parts, or content."""

    fields: Fields
    type: str  # of media; what it means, not what is written
    parts: list[Part] = field(default_factory=list)
    octets: bytes = b""  # of a text, decoded from base64 or quoted-printable
    size_bytes: int = 0  # likewise
    is_cut: bool = False  # the text is longer

    @property
    def is_message(self) -> bool:
        return self.type in _MESSAGES and bool(self.parts)


@dataclass(slots=True)
class _Delimiter:
    level: int  # the depth of the multipart it belongs to
    closes: bool


class Parser:
    """Reads one message into `root`. `is_cut`: it has more parts, or more text, than were read."""

    def __init__(self, read: Callable[[int], bytes], is_late: Callable[[], bool]) -> None:
        self.root = Part(Fields(), "text/plain")
        self.is_cut = False
        self._is_late = is_late
        self._levels: dict[str, list[int]] = {}  # the depths of the open multiparts by boundary
        self._delimiter: _Delimiter | None = None  # that ended what was read last
        self._parts = 0
        self._text_bytes_left = TEXT_BYTES
        try:
            self._source = Source(read, is_late)
            if self._source.peek(3) == b"\xef\xbb\xbf":
                self._source.skip(3)
            self._entity(self.root, "text/plain", 0)
        except Late:
            self.is_cut = True

    # ---- structure

    def _entity(self, part: Part, default_type: str, depth: int) -> None:
        self._delimiter = None
        self._parts += 1
        if self._parts > PARTS:
            raise Late
        is_ended = self._header(part.fields, is_message=depth == 0 or default_type == "message")
        part.type = part.fields.content_type or ("text/plain" if default_type == "message" else default_type)
        if is_ended:
            return
        if part.type.startswith("multipart/") and depth < _DEPTH:
            self._multipart(part, depth)
        elif part.type in _MESSAGES and depth < _DEPTH and part.fields.encoding in ("", "7bit", "8bit", "binary"):
            self._message(part, depth)
        else:
            if depth == _DEPTH and part.type.startswith(("multipart/", "message/")):
                part.type, self.is_cut = "text/plain", True
            self._content(part)
            if part.type in _MESSAGES and part.octets:  # encoded, which RFC 2046, 5.2.1 forbids
                inner = Parser(io.BytesIO(part.octets).read, self._is_late)
                part.parts.append(inner.root)
                self.is_cut = self.is_cut or inner.is_cut or part.is_cut

    def _message(self, part: Part, depth: int) -> None:
        before = self._source.position
        inner = Part(Fields(), "text/plain")
        part.parts.append(inner)
        try:
            self._entity(inner, "message", depth + 1)
        finally:
            part.size_bytes = max(self._source.body_end - before, 0)

    def _multipart(self, part: Part, depth: int) -> None:
        boundary = self._boundary(part.fields)
        if not boundary:  # the header is wrong: it is a text
            is_html = self._source.peek(200).lstrip().lower().startswith((b"<html", b"<!doctype"))
            part.type = "text/html" if is_html else "text/plain"
            self._content(part)
            return
        self._levels.setdefault(boundary, []).append(depth)
        self._skip()  # the preamble
        default_type = "message/rfc822" if part.type == "multipart/digest" else "text/plain"
        while (delimiter := self._delimiter) and delimiter.level == depth and not delimiter.closes:
            inner = Part(Fields(), default_type)
            part.parts.append(inner)
            self._entity(inner, default_type, depth + 1)
        self._levels[boundary].pop()
        if not self._levels[boundary]:
            del self._levels[boundary]
        if delimiter and delimiter.level == depth:
            self._skip()  # the epilogue

    def _boundary(self, fields: Fields) -> str:
        """Return the boundary of a multipart: the one it names, if it occurs, or one that does. "": there is none."""
        named, beginning = _plain(fields.boundary), self._source.peek(CHUNK_BYTES)
        if named and any(_plain(decode_field(line)) in (named, named + "--") for line in _delimiter_lines(beginning)):
            return named
        for match in _LIKELY_BOUNDARY.finditer(beginning):
            found = _plain(decode_field(match[1]))
            if found not in self._levels and found.removesuffix("--") not in self._levels:
                return found
            break  # the part ends here
        return ""

    def _is_delimiter(self, line: bytes) -> bool:
        if not self._levels:
            return False
        text = _plain(decode_field(line[2:]))
        for boundary in (text, text.removesuffix("--")):
            if boundary in self._levels:
                self._delimiter = _Delimiter(self._levels[boundary][-1], closes=text != boundary)
                return True
        return False

    def _skip(self) -> None:
        self._delimiter = None
        for _ in self._source.body(self._is_delimiter):
            pass

    # ---- header

    def _header(self, fields: Fields, *, is_message: bool) -> bool:
        """Read the header. Return True if the part ended with it.

        Lines that are no field are skipped, if fields follow. Otherwise the blank line is missing, and the text begins.
        """
        pending = bytearray()  # a field, until the next one begins
        start, has_fields, in_line = self._source.position, is_message, False
        while True:
            line = self._source.peek_line()
            if not in_line and line.startswith(b"--") and self._is_delimiter(line.rstrip(b"\r\n")):
                self._source.body_end = self._source.position
                self._source.skip(len(line))
                fields.add(bytes(pending))
                return True
            if not line or (not line.strip() and not in_line and not self._is_fold(line)):
                self._source.skip(len(line))
                break
            is_continued = in_line or (line[:1] in (b" ", b"\t") and bool(pending))
            is_field = is_continued or field_name(line) is not None
            if not is_field and (line.startswith(b"--") or not has_fields or not self._fields_follow(len(line))):
                break
            self._source.skip(len(line))
            has_fields, in_line = True, not line.endswith(b"\n")
            if not is_continued:
                fields.add(bytes(pending))
                pending.clear()
            if is_field and len(pending) < _FIELD_BYTES:
                pending += line
            if self._source.position - start > _HEADER_BYTES:
                self.is_cut = True
                self._source.skip_header()
                break
        fields.add(bytes(pending))
        return False

    def _is_fold(self, line: bytes) -> bool:
        """Return whether a line of blanks is within a header (RFC 5322, 4.2): a field or the rest of one follows."""
        if line[:1] not in (b" ", b"\t"):
            return False
        following = self._source.peek(len(line) + 200)[len(line) :].partition(b"\n")[0]
        return bool(following.strip()) and (following[:1] in (b" ", b"\t") or field_name(following) is not None)

    def _fields_follow(self, size: int) -> bool:
        """Return whether a field begins after the next ``size`` octets, before a blank line."""
        for line in self._source.peek(size + 2_000)[size:].split(b"\n"):
            if not line.strip():
                return False
            if field_name(line) is not None:
                return True
        return False

    # ---- content

    def _content(self, part: Part) -> None:
        """Read the content of a part that has no parts."""
        self._delimiter = None
        encoding = part.fields.encoding
        kept, units = bytearray(), 0
        is_text = part.type.startswith(("text/", "message/")) or part.type == "application/xhtml+xml"
        try:
            for octets in _whole_lines(self._source.body(self._is_delimiter), encoding):
                units += _units(octets, encoding)
                part.size_bytes = units * 3 // 4 if encoding == "base64" else units
                if is_text:
                    kept += octets[: self._text_bytes_left]
                    part.is_cut = part.is_cut or len(octets) > self._text_bytes_left
                    self._text_bytes_left -= min(len(octets), self._text_bytes_left)
        finally:
            part.octets = decoded(bytes(kept), encoding)


_UUENCODED = ("x-uuencode", "uuencode", "x-uue")
_LINE_ENCODINGS = ("quoted-printable", *_UUENCODED)


def _plain(boundary: str) -> str:
    """Return a boundary as it is compared: folding may have changed its blanks."""
    return _BLANKS.sub(" ", boundary).strip()


def _delimiter_lines(data: bytes) -> Iterator[bytes]:
    for count, match in enumerate(re.finditer(rb"(?:\A|\n)--([^\n]{1,300})", data)):
        if count > 1_000:
            return
        yield match[1]


# ---- transfer encodings


def decoded(octets: bytes, encoding: str) -> bytes:
    """Return the octets that a transfer encoding stands for. Unknown encodings stand for themselves."""
    if encoding == "base64":
        return from_base64(octets)
    if encoding == "quoted-printable":
        return binascii.a2b_qp(octets)
    if encoding in _UUENCODED:
        return b"".join(map(_uu_line, octets.splitlines()))
    return octets


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


def _whole_lines(pieces: Iterable[bytes], encoding: str) -> Iterator[bytes]:
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


def _units(octets: bytes, encoding: str) -> int:
    """Return the number of decoded octets; for base64 of letters, of which four make three octets."""
    if encoding == "base64":
        return len(octets.translate(None, _NOT_BASE64))
    return len(decoded(octets, encoding)) if encoding in _LINE_ENCODINGS else len(octets)
