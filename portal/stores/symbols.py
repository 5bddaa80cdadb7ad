"""Storage format of a message's symbols in both stores: one compressed text, since no query needs a part of them.

As plain JSON they were half of a message's row. ``zstd -dc`` prints them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import zstandard

from portal.model.fast_json import encode
from portal.model.message import Symbol
from portal.stores import compressors


def pack(symbols: Sequence[Symbol]) -> bytes:
    """Return a zstd frame with the JSON ``[[name, score, [option, …]], …]``."""
    return compressors.own.plain.compress(encode(symbols))


def unpack(packed: bytes | str) -> tuple[Symbol, ...]:
    """Return the symbols that `pack` packed. Rows of schema versions before 4 have the JSON itself, as text."""
    return from_json(json.loads(packed if isinstance(packed, str) else zstandard.decompress(packed)))


def from_json(value: list[tuple[str, float, list[str]]]) -> tuple[Symbol, ...]:
    """Return the symbols of the parsed JSON."""
    return tuple(Symbol(name, float(points), tuple(options)) for name, points, options in value)
