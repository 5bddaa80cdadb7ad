"""Storage format of a message's symbols in both stores: one compressed text, since no query needs a part of them.

As plain JSON they were half of a message's row. ``zstd -dc`` prints them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence

import zstandard

from portal.model.fast_json import encode, stored_symbols
from portal.model.message import Symbol

_thread = threading.local()  # the thread's compressor and decompressor: creating one takes longer than using it


def pack(symbols: Sequence[Symbol]) -> bytes:
    """Return a zstd frame with the JSON ``[[name, score, [option, …]], …]``."""
    if not hasattr(_thread, "compressor"):
        _thread.compressor = zstandard.ZstdCompressor(level=3)
    packed: bytes = _thread.compressor.compress(encode(symbols))
    return packed


def unpack(packed: bytes | str) -> tuple[Symbol, ...]:
    """Return the symbols that `pack` packed. Rows of schema versions before 4 have the JSON itself, as text."""
    if isinstance(packed, str):
        return from_json(json.loads(packed))
    if not hasattr(_thread, "decompressor"):
        _thread.decompressor = zstandard.ZstdDecompressor()
    text: bytes = _thread.decompressor.decompress(packed)
    kept = stored_symbols(text)
    return from_json(json.loads(text)) if kept is None else kept


def from_json(value: list[tuple[str, float, list[str]]]) -> tuple[Symbol, ...]:
    """Return the symbols of the parsed JSON."""
    return tuple(Symbol(name, float(points), tuple(options)) for name, points, options in value)
