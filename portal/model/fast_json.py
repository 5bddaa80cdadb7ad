"""JSON for code that runs once per message, by msgspec. Row of the bench: "a post without msgspec".

The only user of msgspec. msgspec is strict; callers read JSON that it rejects with a lenient parser.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta

_encode = msgspec.json.Encoder().encode
_lenient = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


# Symbols that exceed one of these are truncated, which takes the lenient way.
SYMBOLS, OPTIONS = 1_000, 50
NAME_CHARACTERS, OPTION_CHARACTERS, DESCRIPTION_CHARACTERS = 1_000, 500, 300
SCORE_MAX = 1e6  # the highest absolute value


class ReportedSymbol(msgspec.Struct):
    """A symbol as Rspamd reports it, within the limits."""

    name: Annotated[str, Meta(min_length=1, max_length=NAME_CHARACTERS)]
    score: Annotated[float, Meta(ge=-SCORE_MAX, le=SCORE_MAX)] = 0.0
    options: Annotated[tuple[Annotated[str, Meta(max_length=OPTION_CHARACTERS)], ...], Meta(max_length=OPTIONS)] = ()
    description: Annotated[str, Meta(max_length=DESCRIPTION_CHARACTERS)] = ""


_reported_symbols: Callable[[str], list[ReportedSymbol]] = msgspec.json.Decoder(
    Annotated[list[ReportedSymbol], Meta(max_length=SYMBOLS)]
).decode


def reported_symbols(text: str) -> list[ReportedSymbol] | None:
    """Parse Rspamd's symbols. Return None if they exceed a limit or anything else about them is unusual."""
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
