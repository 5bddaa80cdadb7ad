"""The result of one check of ``quarantine check``, and the name of the socket that several checks mention."""

from __future__ import annotations

from dataclasses import dataclass

SOCKET = "/run/quarantine.sock"  # deploy/systemd/quarantine.socket


@dataclass(frozen=True, slots=True)
class Finding:
    """A result of a check. ``ok``: True if it passed, False for a problem, None for a note."""

    ok: bool | None
    topic: str
    text: str
