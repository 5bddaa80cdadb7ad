"""Storage format of a message's symbols in both stores: one compressed text, since no query needs a part of them.

As plain JSON they were half of a message's row. ``zstd -dc`` prints them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import zstandard

from portal.model.fast_json import encode
from portal.model.message import Symbol
from portal.stores import compressors


def pack(symbols: Sequence[Symbol]) -> bytes:
    """Return a zstd frame with the JSON of `to_json`."""
    data = encode(to_json(symbols))
    return compressors.own.plain(len(data)).compress(data)


def unpack(packed: bytes | str) -> tuple[Symbol, ...]:
    """Return the symbols that `pack` packed. Rows of schema versions before 4 have the JSON itself, as text."""
    return from_json(json.loads(packed if isinstance(packed, str) else zstandard.decompress(packed)))


def to_json(symbols: Sequence[Symbol]) -> list[Any]:
    """Return the symbols for a JSON encoder: ``[[name, score, [option, …], description], …]``.

    Empty descriptions are left out, as in versions before 0.3.0, which may still run on another host during an upgrade.
    """
    return [symbol if symbol.description else symbol[:3] for symbol in symbols]


def from_json(value: list[Any]) -> tuple[Symbol, ...]:
    """Return the symbols of the parsed JSON. Raises ValueError, TypeError for other values."""
    return tuple(
        Symbol(name, float(points), tuple(options), *description) for name, points, options, *description in value
    )
