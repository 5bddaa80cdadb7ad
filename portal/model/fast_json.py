"""JSON where each mail passes: several times as fast as the standard library's, which took a tenth of holding a mail
and as much of a digest.

The only user of msgspec. It is strict; what it refuses, callers read or write the lenient way.
"""

from __future__ import annotations

import json

import msgspec

from portal.model.message import Symbol

_encode = msgspec.json.Encoder().encode
_lenient = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class ReportedSymbol(msgspec.Struct, gc=False):
    """A symbol as Rspamd tells it."""

    name: str
    score: float = 0.0
    options: list[str] = []


_kept_symbols = msgspec.json.Decoder(tuple[Symbol, ...]).decode
_reported_symbols = msgspec.json.Decoder(list[ReportedSymbol]).decode


def reported_symbols(text: str) -> list[ReportedSymbol] | None:
    """Rspamd's symbols; None when there is anything unusual about them."""
    try:
        return _reported_symbols(text)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return None


def kept_symbols(text: bytes) -> tuple[Symbol, ...] | None:
    """Symbols as `encode` wrote them; None when somebody else did."""
    try:
        return _kept_symbols(text)
    except (msgspec.MsgspecError, ValueError):
        return None


def encode(value: object) -> bytes:
    """Compact JSON in UTF-8; lone surrogates, which nothing here should have, become question marks."""
    try:
        return _encode(value)
    except UnicodeError:
        return _lenient(value).encode("utf-8", "replace")
