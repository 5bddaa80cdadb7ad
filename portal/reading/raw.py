"""The source of a message as text: its octets, one for one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_BYTES = 1 << 17
_SAFE = {*range(0x20, 0x7F), 0x09, 0x0A} - {ord("\\")}
_TEXT = {octet: f"\\x{octet:02x}" for octet in range(256) if octet not in _SAFE}


@dataclass(frozen=True, slots=True)
class RawSource:
    """The beginning of a message in printable ASCII."""

    text: str
    cut: bool  # there is more


def raw_source(chunks: Iterable[bytes]) -> RawSource:
    """Return the source of a message, the backslash and all but printable ASCII as hexadecimal escapes.

    Nothing is decoded or interpreted, so this needs no process of its own. Raises the errors of ``chunks``.
    """
    found = bytearray()
    for chunk in chunks:
        found += chunk[: _BYTES + 1 - len(found)]
        if len(found) > _BYTES:
            break
    text = bytes(found[:_BYTES]).replace(b"\r\n", b"\n").decode("latin-1").translate(_TEXT)
    return RawSource(text, len(found) > _BYTES)
