"""A program on a terminal of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from tests.paths import ROOT


def on_terminal(
    command: Sequence[str], env: Mapping[str, str], columns: int, *, shown: str = "stdout"
) -> tuple[int, str, bytes]:
    """Run it; returns its exit status, what the terminal got, and what went to the other of stdout and stderr."""
    ours, terminal = os.openpty()
    other = "stderr" if shown == "stdout" else "stdout"
    streams: dict[str, Any] = {shown: terminal, other: subprocess.PIPE}
    process: subprocess.Popen[bytes] = subprocess.Popen(
        command,
        env={**env, "TERM": "xterm", "COLUMNS": str(columns)},
        cwd=ROOT,
        **streams,
    )
    os.close(terminal)
    seen = b""
    with suppress(OSError):  # the terminal's other side is closed
        while more := os.read(ours, 65_536):
            seen += more
    os.close(ours)
    out, err = process.communicate(timeout=60)
    return process.returncode, seen.decode(), (out if other == "stdout" else err) or b""
