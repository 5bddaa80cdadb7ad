"""All fields of the header of a message as text."""

from __future__ import annotations

from portal.model.encoded_words import decode_field
from portal.model.text import shown
from portal.reading.fields import field_name
from portal.reading.source import Source

FIELDS = 500
_FIELD_BYTES = 1 << 14
_FIELD_CHARACTERS = 4_000
_ALL_BYTES = 1 << 18


def all_fields(source: Source) -> tuple[list[tuple[str, str]], bool]:
    """Return names and decoded, cleaned texts of all fields in order, and whether there are more.

    A line that is no field has the name "".
    """
    if source.peek(3) == b"\xef\xbb\xbf":
        source.skip(3)
    fields: list[bytearray] = []
    while line := source.peek_line():
        if not line.strip() or source.position > _ALL_BYTES or len(fields) > FIELDS:
            break
        source.skip(len(line))
        is_new = line[:1] not in (b" ", b"\t") or not fields
        if is_new:
            fields.append(bytearray())
        fields[-1] += line[: _FIELD_BYTES - len(fields[-1])]
    is_cut = bool(line.strip()) or len(fields) > FIELDS
    return [_field(bytes(field)) for field in fields[:FIELDS]], is_cut


def _field(octets: bytes) -> tuple[str, str]:
    name, _, value = octets.partition(b":") if field_name(octets) is not None else (b"", b"", octets)
    text = decode_field(value.replace(b"\r", b"").replace(b"\n", b""))
    return shown(name.decode("ascii", "replace"), 100), shown(text, _FIELD_CHARACTERS)
