"""The parts of a message (RFC 2045, RFC 2046), read as mail programs do whatever is wrong with them.

One pass over the octets: texts are kept up to a limit, of everything else only the size.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from portal.reading.encodings import Decoder, decoded, decoding, units_of, whole_lines
from portal.reading.fields import Fields, field_name
from portal.reading.kinds import Inspector
from portal.reading.source import CHUNK_BYTES, DELIMITER_BYTES, Late, Source

TEXT_BYTES = 1 << 20  # kept of all texts together, still encoded
PICTURE_BYTES = 12 << 20  # likewise, of all pictures that an HTML text may show
INSPECTED_BYTES = 12 << 20  # of all archives and documents together, still encoded, and the beginning of each file
PARTS = 1_000
_DEPTH = 50
_HEADER_BYTES = 1 << 18  # of one part; what follows is skipped
_FIELD_BYTES = 1 << 16
_MESSAGES = ("message/rfc822", "message/global", "message/news")
# The last two are other forms of the same message, for Gmail and for watches.
HTML_TYPES = ("text/html", "application/xhtml+xml", "text/x-amp-html", "text/watch-html")
# The parts of reports that are for people too, as fields of a header.
REPORT_TYPES = (
    "message/delivery-status",
    "message/global-delivery-status",
    "message/disposition-notification",
    "message/global-disposition-notification",
    "message/feedback-report",
)
_SHOWN_TYPES = (*HTML_TYPES, *REPORT_TYPES, "text/plain", "text/enriched", "text/richtext", "text/calendar")
_ATTACHED_TEXTS = (
    "text/csv",
    "text/vcard",
    "text/x-vcard",
    "text/directory",
    "text/xml",
    "text/css",
    "text/javascript",
    "text/rtf",
)
_BASE64_LINE = re.compile(rb"[A-Za-z0-9+/=]*+\s*+")
_LIKELY_BOUNDARY = re.compile(rb"\n--(?!-*\s)(\S[^\r\n]{0,200}?)[ \t]*\r?\n(?=[!-9;-~]+[ \t]*:|\r?\n)")
_BOUNDARY_BYTES = 300  # longer ones do not count (RFC 2046, 5.1.1: 70)


@dataclass(slots=True)
class Part:
    """A message or part. Either it has parts, or content."""

    fields: Fields
    type: str  # of media; what it means, not what is written
    parts: list[Part] = field(default_factory=list)
    is_message_itself: bool = False  # not a part of a multipart
    octets: bytes = b""  # of a text or picture that is shown, decoded from base64 or quoted-printable
    size_bytes: int | None = 0  # likewise, of all parts; None: it was not read to its end
    is_cut: bool = False  # the text is longer
    number: int = 0  # in the order of the message, by which `Parser` finds it again; 0: it does not
    inspector: Inspector | None = None  # has seen the octets of a part that is a file

    @property
    def is_message(self) -> bool:
        return self.type in _MESSAGES and bool(self.parts)

    @property
    def is_file(self) -> bool:
        """Return whether it is listed as an attachment."""
        return not self.is_shown or bool(self.fields.file_name) or self.fields.disposition == "attachment"

    @property
    def is_shown(self) -> bool:
        """Return whether mail programs show it as text: also with a file name, unless it is an attachment.

        A message that is a text is shown whatever its disposition is.
        """
        is_text = self.type in _SHOWN_TYPES or self.type.startswith("text/")
        if self.is_message_itself:
            return is_text
        return is_text and self.fields.disposition != "attachment" and self.type not in _ATTACHED_TEXTS


@dataclass(slots=True)
class _Delimiter:
    boundary: bytes
    depth: int  # of the multipart it belongs to
    closes: bool


class _Reached(Exception):
    """The wanted part begins here."""


class Parser:
    """Reads one message into `root`. `is_cut`: it has more parts, or more text, than were read.

    ``picture_bytes``: how much is kept of parts that an HTML text can show by their Content-ID.
    ``wanted``: the number of a part that is not read with the message. Its octets come from `content`, once, and what
    follows it is not read. `content` is None if there is no such part.
    """

    def __init__(
        self, read: Callable[[int], bytes], is_late: Callable[[], bool], picture_bytes: int = 0, wanted: int = 0
    ) -> None:
        self.root = Part(Fields(), "text/plain", is_message_itself=True)
        self.is_cut = False
        self._is_late = is_late
        self._depths: dict[bytes, list[int]] = {}  # of the open multiparts by boundary
        self._delimiters = _delimiter_pattern(())  # of the open multiparts
        self._next_field = (0, False)  # the position up to which no field begins, and whether one begins there
        self._likely = (0, b"")  # the position up to which no boundary occurs, and the one that occurs there
        self._delimiter: _Delimiter | None = None  # that ended what was read last
        self._parts = 0
        self._text_bytes_left = TEXT_BYTES
        self._picture_bytes_left = picture_bytes
        self._inspected_bytes_left = INSPECTED_BYTES
        self._wanted = wanted
        self.content: Iterator[bytes] | None = None
        self.file_name = ""  # of the wanted part
        try:
            self._source = Source(read, is_late)
            if self._source.peek(3) == b"\xef\xbb\xbf":
                self._source.skip(3)
            self._entity(self.root, "text/plain", 0)
        except Late:
            self.is_cut = True
        except _Reached:
            pass  # the delimiters that can end it stay open

    # ---- structure

    def _entity(self, part: Part, default_type: str, depth: int) -> None:
        self._delimiter = None
        self._parts += 1
        if self._parts > PARTS or self._is_late():
            raise Late
        part.number = self._parts
        is_ended = self._header(part.fields, is_message=depth == 0 or default_type == "message")
        part.type = part.fields.content_type or ("text/plain" if default_type == "message" else default_type)
        if part.number == self._wanted:
            self.file_name = part.fields.file_name
            self.content = iter(()) if is_ended else decoding(self._body(), part.fields.encoding)
            raise _Reached
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
                _without_numbers(inner.root)  # they count from one again
                part.parts.append(inner.root)
                self.is_cut = self.is_cut or inner.is_cut or part.is_cut

    def _message(self, part: Part, depth: int) -> None:
        before = self._source.position
        inner = Part(Fields(), "text/plain", is_message_itself=True)
        part.parts.append(inner)
        part.size_bytes = None
        self._entity(inner, "message", depth + 1)
        part.size_bytes = max(self._source.body_end - before, 0)

    def _multipart(self, part: Part, depth: int) -> None:
        named, type_, text_bytes_left = part.fields.boundary, part.type, self._text_bytes_left
        self._open(named, depth)
        if self._occurs(named):
            self._skip()  # the preamble
        else:
            self._without_its_boundary(part, depth)
            if self._is_at(named, depth):
                # The boundary occurs farther on than can be looked ahead. What was read is the preamble, which mail
                # programs do not show.
                part.type, part.parts, part.octets, part.size_bytes, part.is_cut = type_, [], b"", 0, False
                self._text_bytes_left = text_bytes_left
        self._inner(part, named, depth)
        self._close(named)
        if self._is_at(named, depth):
            self._skip()  # the epilogue

    def _without_its_boundary(self, part: Part, depth: int) -> None:
        """Read a multipart whose header is wrong: with the boundary that its parts have, or else as a text."""
        boundary = self._likely_boundary()
        if not boundary:
            is_html = self._source.peek(200).lstrip().lower().startswith((b"<html", b"<!doctype"))
            part.type = "text/html" if is_html else "text/plain"
            self._content(part)
            return
        self._open(boundary, depth)
        self._skip()
        self._inner(part, boundary, depth)
        self._close(boundary)
        if self._is_at(boundary, depth):
            self._skip()

    def _inner(self, part: Part, boundary: bytes, depth: int) -> None:
        """Read the parts of a multipart, from the delimiter of the first one."""
        default_type = "message/rfc822" if part.type == "multipart/digest" else "text/plain"
        while self._is_at(boundary, depth) and self._delimiter and not self._delimiter.closes:
            inner = Part(Fields(), default_type)
            part.parts.append(inner)
            self._entity(inner, default_type, depth + 1)

    def _is_at(self, boundary: bytes, depth: int) -> bool:
        """Return whether a delimiter of this multipart was read last."""
        delimiter = self._delimiter
        return delimiter is not None and delimiter.depth == depth and delimiter.boundary == boundary

    def _open(self, boundary: bytes, depth: int) -> None:
        """Let the delimiters of a boundary end what is read."""
        if 0 < len(boundary) <= _BOUNDARY_BYTES:
            self._depths.setdefault(boundary, []).append(depth)
            self._delimiters = _delimiter_pattern(self._depths)

    def _close(self, boundary: bytes) -> None:
        if boundary in self._depths:
            self._depths[boundary].pop()
            if not self._depths[boundary]:
                del self._depths[boundary]
            self._delimiters = _delimiter_pattern(self._depths)

    def _occurs(self, boundary: bytes) -> bool:
        """Return whether a boundary is among the next octets."""
        if boundary not in self._depths:
            return False
        return _delimiter_pattern((boundary,)).search(b"\n" + self._source.peek(CHUNK_BYTES)) is not None

    def _likely_boundary(self) -> bytes:
        """Return the boundary that the next octets have, whatever the header names. b"": there is none.

        The search goes on where the last one ended: each of many multiparts would look through the same octets again.
        """
        position = self._source.position
        begin, found = self._likely
        if begin < position or not found:
            beginning = b"\n" + self._source.peek(CHUNK_BYTES)
            searched = max(begin - position, 0)
            match = _LIKELY_BOUNDARY.search(beginning, searched)
            found = _plain(match[1]) if match else b""
            place = match.start() if match else max(len(beginning) - DELIMITER_BYTES, searched)
            self._likely = (position + place, found)
        is_of_outer = found in self._depths or found.removesuffix(b"--") in self._depths
        return b"" if is_of_outer else found

    def _ended_by(self, delimiter: re.Match[bytes] | None) -> bool:
        """Keep the delimiter that ended what was read. Return whether there is one."""
        self._delimiter = None
        if delimiter:
            boundary = _plain(delimiter[1])
            self._delimiter = _Delimiter(boundary, self._depths[boundary][-1], closes=delimiter[2] is not None)
        return delimiter is not None

    def _skip(self) -> None:
        for _ in self._body():
            pass

    def _body(self) -> Iterator[bytes]:
        """Yield the octets up to the next delimiter, which is read too."""
        yield from self._source.body(self._delimiters)
        self._ended_by(self._source.delimiter)

    # ---- header

    def _header(self, fields: Fields, *, is_message: bool) -> bool:
        """Read the header. Return True if the part ended with it.

        Lines that are no field are skipped, if fields follow. Otherwise the blank line is missing, and the text begins,
        unless it is base64 and the line is not.
        """
        pending = bytearray()  # a field, until the next one begins
        start, has_fields, in_line = self._source.position, is_message, False
        while True:
            line = self._source.peek_line()
            if not in_line and self._ended_by(self._delimiters.match(b"\n" + line.removesuffix(b"\n"))):
                self._source.body_end = self._source.position
                self._source.skip(len(line))
                fields.add(bytes(pending))
                return True
            if not line or (not line.strip() and not in_line and not self._is_fold(line)):
                self._source.skip(len(line))
                break
            is_continued = in_line or (line[:1] in (b" ", b"\t") and bool(pending))
            is_field = is_continued or field_name(line) is not None
            if not is_continued:
                fields.add(bytes(pending))
                pending.clear()
            if not is_field and (
                line.startswith(b"--")
                or not (
                    self._fields_follow(len(line), b"" if has_fields else b"content-")
                    or (fields.encoding == "base64" and not _BASE64_LINE.fullmatch(line))
                )
            ):
                break
            self._source.skip(len(line))
            has_fields, in_line = True, not line.endswith(b"\n")
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

    def _fields_follow(self, size: int, begin: bytes) -> bool:
        """Return whether a field whose name begins like this follows the next ``size`` octets, before a blank line.

        Each of many lines that are no field would look through the same lines again, so what was found is kept.
        """
        position = self._source.position + size
        until, found = self._next_field
        if position <= until:
            return found
        found = False
        for line in self._source.peek(size + 2_000)[size:].split(b"\n"):
            name = field_name(line)
            found = name is not None and name.startswith(begin)
            if found or not line.strip():
                break
            position += len(line) + 1
        self._next_field = (position, found)
        return found

    # ---- content

    def _content(self, part: Part) -> None:
        """Read the content of a part that has no parts."""
        encoding = part.fields.encoding
        kept, units, decoder = bytearray(), 0, Decoder(encoding)
        inspector = part.inspector = Inspector() if part.is_file else None
        is_kept = part.is_shown or part.type in _MESSAGES
        is_picture = not is_kept and "content-id" in part.fields.values
        part.size_bytes = None
        try:
            for octets in whole_lines(self._body(), encoding):
                units += units_of(octets, encoding)
                if inspector is not None and (
                    inspector.needs_head or (inspector.needs_more and self._inspected_bytes_left > 0)
                ):
                    self._inspected_bytes_left -= len(octets)
                    inspector.add(decoder.decode(octets))
                if is_kept:
                    kept += octets[: self._text_bytes_left]
                    part.is_cut = part.is_cut or len(octets) > self._text_bytes_left
                    self._text_bytes_left -= min(len(octets), self._text_bytes_left)
                elif is_picture:
                    kept += octets[: self._picture_bytes_left]
                    part.is_cut = part.is_cut or len(octets) > self._picture_bytes_left
                    self._picture_bytes_left -= min(len(octets), self._picture_bytes_left)
            part.size_bytes = units * 3 // 4 if encoding == "base64" else units
        finally:
            part.octets = decoded(bytes(kept), encoding)
            if inspector is not None and inspector.needs_more:
                inspector.add(decoder.end())


def _without_numbers(part: Part) -> None:
    part.number = 0
    for each in part.parts:
        _without_numbers(each)


def _plain(boundary: bytes) -> bytes:
    """Return a boundary as it is compared: folding may have changed its blanks."""
    return b" ".join(boundary.split())


def _delimiter_pattern(boundaries: Iterable[bytes]) -> re.Pattern[bytes]:
    """Return what matches a delimiter with the line end before it: its boundary, and the hyphens that close.

    Python would need a second for each million of lines that begin with two hyphens. Every delimiter is shorter than
    `DELIMITER_BYTES`.
    """
    longest_first = sorted(boundaries, key=len, reverse=True)  # "a--" is a boundary, too
    words = (rb"[ \t]{1,4}".join(map(re.escape, boundary.split())) for boundary in longest_first)
    return re.compile(rb"\n--[ \t]{0,9}(%s)(--)?[ \t\r]{0,99}(?=\n|\Z)" % (b"|".join(words) or b"(?!)"))
