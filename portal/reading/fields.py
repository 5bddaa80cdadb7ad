"""Header fields of a message or part, and the parameters of Content-Type and Content-Disposition. Nothing raises."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from portal.model.charsets import codec_of, decode
from portal.model.encoded_words import decode_field

VALUE_BYTES = 1 << 14  # of a field that is kept
_FIELD = re.compile(rb"([^\s:\x00-\x1f]+)[ \t]*:")
_KNOWN = frozenset(
    b"from to cc reply-to date subject content-type content-transfer-encoding content-disposition content-id".split()
)
_NAMING = (b"content-disposition", b"content-type")
_FILENAME = ("filename", "name")
_FOLD = re.compile(rb"[\r\n]+")
_TYPE = re.compile(rb"[ \t]*([A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+)")
_TOKEN = re.compile(rb"[A-Za-z0-9!#$&^_.+-]+")
# Some programs forget the semicolon before the first one.
_PARAMETER = re.compile(
    rb"(?:;\s*+|\A[^;=\"]*?[\s,])([^\s=;,\"]++)\s*+=\s*+(?:\"((?:[^\"\\]|\\.)*+)\"?|([^;]*+))", re.DOTALL
)
_QUOTED_PAIR = re.compile(rb"\\([\"\\])")
_EXTENDED = re.compile(r"([^*]+)(?:\*([0-9]{1,3}))?(\*)?")
_COMMENT = re.compile(rb"\([^()]*+\)")
_CHARSET = re.compile(rb"charset[\s=:]++[\"']?([^\s;,\"'()]++)", re.IGNORECASE)
_QUOTED = re.compile(rb'"[^"]*+"')
_PARAMETERS = 100
_PARAMETER_BYTES = 4_096  # decoded; a name is shown with 200 characters
_COMMENTS = 10  # in one another
# How programs begin the names of transfer encodings, without "x-" and hyphens.
_ENCODINGS = {
    "base64": "base64",
    "b64": "base64",
    "quoted": "quoted-printable",
    "qp": "quoted-printable",
    "uu": "x-uuencode",
}


def field_name(line: bytes) -> bytes | None:
    """Return the name of the field that a line begins, in lower case, None if the line is not the first of a field."""
    match = _FIELD.match(line)
    return match[1].lower() if match else None


@dataclass(slots=True)
class Fields:
    """The first field of each name that the reader needs, as octets without line breaks."""

    values: dict[str, bytes] = field(default_factory=dict)
    last: dict[str, bytes] = field(default_factory=dict)  # of fields that name a file and are repeated

    def add(self, line: bytes) -> None:
        """Add a whole field."""
        name = field_name(line)
        if name in _KNOWN:
            value = _FOLD.sub(b"", line[line.index(b":") + 1 :][:VALUE_BYTES]).strip(b" \t")
            kept = self.values.setdefault(name.decode(), value)
            if name in _NAMING and kept is not value:
                self.last[name.decode()] = value

    def text(self, name: str) -> str:
        """Return a field decoded for people, "" if it is missing."""
        return decode_field(self.values.get(name, b"")).strip()

    @property
    def content_type(self) -> str:
        """The media type in lower case, "" if it is missing or not one (RFC 2045, 5.2: then it is text/plain)."""
        value = self.values.get("content-type", b"")
        match = _TYPE.match(value)
        if match is None and value.lower().startswith(b"multipart"):
            return "multipart/mixed"
        return match[1].decode().lower() if match else ""

    @property
    def encoding(self) -> str:
        """The first token of Content-Transfer-Encoding: programs write quotes, comments and blanks around it."""
        return _encoding(self.values.get("content-transfer-encoding", b""))

    @property
    def disposition(self) -> str:
        """Return `inline`, `attachment` or another disposition, "" if it is missing."""
        match = _TOKEN.search(self.values.get("content-disposition", b"").partition(b";")[0])
        return match[0].decode().lower() if match else ""

    @property
    def file_name(self) -> str:
        """The name of the file, "" if it has none."""
        return next(self._file_names(), "")

    @property
    def file_names(self) -> tuple[str, ...]:
        """All names that mail programs give the file, the likeliest first.

        They disagree about two names in one field or in two, and of fields and parameters that are repeated they take
        the first or the last one.
        """
        return tuple(dict.fromkeys(self._file_names()))

    def _file_names(self) -> Iterator[str]:
        for field_, parameters in (("content-disposition", _FILENAME), ("content-type", _FILENAME[::-1])):
            for fields in (self.values, self.last):
                yield from _texts(fields.get(field_, b""), *parameters)

    @property
    def charset(self) -> str:
        """The label of the charset, "" if it is missing.

        Programs write other characters than semicolons between parameters, and more words after the label.
        """
        value = self.values.get("content-type", b"")
        label = _without_comment(_parameter(value, "charset"))
        if codec_of(label) or not (match := _CHARSET.search(_QUOTED.sub(b"", value))):
            return label
        return match[1].decode("latin-1")

    @property
    def boundary(self) -> bytes:
        """The boundary of a multipart with single blanks, b"" if it is missing. It is not text: octets are compared."""
        found = _raw_parameters(self.values.get("content-type", b"")).get("boundary")
        return b" ".join(found[0][0].split()) if found else b""


@lru_cache(16)
def _encoding(value: bytes) -> str:
    for _ in range(_COMMENTS):
        value = _COMMENT.sub(b"", value)
    match = _TOKEN.search(value)
    name = match[0].decode().lower().removeprefix("x-") if match else ""
    plain = re.sub("[^a-z0-9]", "", name)
    return next((_ENCODINGS[begin] for begin in _ENCODINGS if plain.startswith(begin)), name)


def _without_comment(value: str) -> str:
    return re.sub(r"\(.*", "", value, flags=re.DOTALL).strip(" \t\"'")


def _parameter(value: bytes, name: str) -> str:
    """Return the first parameter of this name that is not empty, "" without any."""
    return next(_texts(value, name), "")


def _texts(value: bytes, *names: str) -> Iterator[str]:
    """Yield all parameters of these names that are not empty."""
    parameters = _raw_parameters(value)
    for name in names:
        for octets, charset in parameters.get(name, ()):
            octets = octets[:_PARAMETER_BYTES]
            if text := (decode(octets, charset) if charset else decode_field(octets)).strip():
                yield text


def _raw_parameters(value: bytes) -> dict[str, list[tuple[bytes, str]]]:
    """Return octets and charset of the parameters: RFC 2045, RFC 2231, and what programs write instead.

    The charset is "" if the value does not name one: then it is read like a header field. A parameter that is written
    more than once has all its values, that of RFC 2231 first.
    """
    plain: dict[str, list[tuple[bytes, str]]] = {}
    pieces: dict[str, dict[int, tuple[bytes, bool]]] = {}
    for count, match in enumerate(_PARAMETER.finditer(value)):
        if count >= _PARAMETERS:
            break
        octets = _QUOTED_PAIR.sub(rb"\1", match[2]) if match[2] is not None else (match[3] or b"").strip()
        extended = _EXTENDED.fullmatch(match[1].decode("latin-1").lower())
        if extended is None:
            continue
        name, number, is_encoded = extended[1], extended[2], extended[3] is not None
        if number is None and not is_encoded:
            plain.setdefault(name, []).append((octets, ""))
        else:
            pieces.setdefault(name, {}).setdefault(int(number or 0), (octets, is_encoded))
    for name, numbered in pieces.items():
        plain.setdefault(name, []).insert(0, _joined(numbered))
    return plain


def _joined(numbered: dict[int, tuple[bytes, bool]]) -> tuple[bytes, str]:
    """Return a value of RFC 2231: percent-encoded, in a charset that its first piece names, or divided into pieces."""
    charset, octets = "", bytearray()
    for number, (piece, is_encoded) in sorted(numbered.items()):
        if is_encoded and number == min(numbered):
            label, quote, rest = piece.partition(b"'")
            if quote:
                charset, piece = label.decode("latin-1"), rest.partition(b"'")[2]
        octets += unquote_to_bytes(piece) if is_encoded else piece
    return bytes(octets), charset
