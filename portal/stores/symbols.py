"""A message's symbols as both stores keep them: one compressed text, since nothing ever asks for a part of them.

As plain JSON they were half of a message's row. ``zstd -dc`` prints them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence

import zstandard

from portal.model.fast_json import encode, stored_symbols
from portal.model.message import Symbol

_own = threading.local()  # each thread's: making one takes longer than using it


def pack(symbols: Sequence[Symbol]) -> bytes:
    """A zstd frame of the JSON ``[[name, score, [option, …]], …]``."""
    if not hasattr(_own, "compressor"):
        _own.compressor = zstandard.ZstdCompressor(level=3)
    packed: bytes = _own.compressor.compress(encode(symbols))
    return packed


def unpack(packed: bytes | str) -> tuple[Symbol, ...]:
    """Return what `pack` was given. Rows made before schema version 4 have the JSON itself, as text."""
    if isinstance(packed, str):
        return from_json(json.loads(packed))
    if not hasattr(_own, "decompressor"):
        _own.decompressor = zstandard.ZstdDecompressor()
    text: bytes = _own.decompressor.decompress(packed)
    kept = stored_symbols(text)
    return from_json(json.loads(text)) if kept is None else kept


def from_json(value: list[tuple[str, float, list[str]]]) -> tuple[Symbol, ...]:
    """Symbols from the JSON's value."""
    return tuple(Symbol(name, float(points), tuple(options)) for name, points, options in value)
