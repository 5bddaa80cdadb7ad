"""The result of one check of ``quarantine check``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """A result of a check. ``ok``: True if it passed, False for a problem, None for a note."""

    ok: bool | None
    topic: str
    text: str
