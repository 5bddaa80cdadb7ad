"""Run a program in a new pseudo-terminal."""

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
    """Run a command; return its exit status, the output on the terminal and that of the other of stdout and stderr."""
    controller, terminal = os.openpty()
    other = "stderr" if shown == "stdout" else "stdout"
    streams: dict[str, Any] = {shown: terminal, other: subprocess.PIPE}
    process: subprocess.Popen[bytes] = subprocess.Popen(
        command,
        env={**env, "TERM": "xterm", "COLUMNS": str(columns)},
        cwd=ROOT,
        **streams,
    )
    os.close(terminal)
    output = b""
    with suppress(OSError):  # the program closed the terminal
        while more := os.read(controller, 65_536):
            output += more
    os.close(controller)
    out, err = process.communicate(timeout=60)
    return process.returncode, output.decode(), (out if other == "stdout" else err) or b""
