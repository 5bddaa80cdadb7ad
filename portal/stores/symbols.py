"""A message's symbols as both stores keep them: one compressed text, since nothing ever asks for a part of them.

As plain JSON they were half of a message's row. ``zstd -dc`` prints them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable

import zstandard

from portal.message import Symbol

_TO_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_own = threading.local()  # each thread's compressor: making one takes longer than using it


def pack(symbols: Iterable[Symbol]) -> bytes:
    """A zstd frame of the JSON ``[[name, score, [option, …]], …]``."""
    if not hasattr(_own, "compressor"):
        _own.compressor = zstandard.ZstdCompressor(level=3)
    # The exporter promises valid text; should it ever fail, a replaced character beats a mail that cannot be held.
    packed: bytes = _own.compressor.compress(_TO_JSON(tuple(symbols)).encode("utf-8", "replace"))
    return packed


def unpack(packed: bytes) -> tuple[Symbol, ...]:
    """What `pack` was given."""
    return from_json(json.loads(zstandard.ZstdDecompressor().decompress(packed)))


def from_json(value: list[tuple[str, float, list[str]]]) -> tuple[Symbol, ...]:
    """Symbols from the JSON's value."""
    return tuple(Symbol(name, float(points), tuple(options)) for name, points, options in value)
