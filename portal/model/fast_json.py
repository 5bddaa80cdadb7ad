"""JSON for code that runs once per message, by msgspec. Row of the bench: "a post without msgspec".

The only user of msgspec. msgspec is strict; callers read JSON that it rejects with a lenient parser.
"""

from __future__ import annotations

import json

import msgspec

_encode = msgspec.json.Encoder().encode
_lenient = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class ReportedSymbol(msgspec.Struct):
    """A symbol as Rspamd reports it."""

    name: str
    score: float = 0.0
    options: list[str] = []
    description: str = ""


_reported_symbols = msgspec.json.Decoder(list[ReportedSymbol]).decode


def reported_symbols(text: str) -> list[ReportedSymbol] | None:
    """Parse Rspamd's symbols. Return None if anything about them is unusual."""
    try:
        return _reported_symbols(text)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return None


def encode(value: object) -> bytes:
    """Return compact JSON in UTF-8. Lone surrogates, which should not occur, become question marks."""
    try:
        return _encode(value)
    except UnicodeError:
        return _lenient(value).encode("utf-8", "replace")
