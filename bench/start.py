"""The start of a command: the processor time of its process, from the first to the last instruction.

The message of `release` does not exist, so nothing is sent. The ceiling is Python without any module.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench import releases
from bench.rig import Effort, Row, own_folder, postgres, spread
from portal.stores import open_store

STARTS = 10  # in a round
_COMMANDS = {
    "quarantine list": ["list"],
    "quarantine release": ["release", "0190163d-8694-7398-8000-000000000000"],
}


def start_files(effort: Effort) -> list[Row]:
    """Measure the start of commands with an empty file store."""
    with own_folder() as folder:
        return _rows(f"files://{folder}/store", folder, "files", effort)


def start_postgres(effort: Effort) -> list[Row]:
    """Measure the start of commands with an empty PostgreSQL, without the processor time of the server."""
    with own_folder() as folder, postgres() as dsn:
        return _rows(dsn, folder, "PostgreSQL", effort)


def _rows(url: str, folder: Path, where: str, effort: Effort) -> list[Row]:
    open_store(url, create=True).close()
    environment = {**os.environ, **releases._environment(url, folder, "smtp://127.0.0.1:9")}
    program = str(Path(sys.executable).parent / "quarantine")
    rows = []
    for what, words in _COMMANDS.items():
        ours, bare = list[float](), list[float]()
        for _ in range(effort.rounds):
            pairs = [
                (_started([program, *words], environment), _started([sys.executable, "-I", "-c", ""], environment))
                for _ in range(STARTS)
            ]
            for values, found in zip((ours, bare), zip(*pairs, strict=True), strict=True):
                values.append(sorted(found)[STARTS // 2] * 1000)
        what = f"start of `{what}`, {where}, ms of processor time"
        rows.append(Row(what, spread(ours), f"{spread(bare)} Python alone", None, "< 300"))
    return rows


def _started(command: list[str], environment: dict[str, str]) -> float:
    """Return the processor time of a process, in seconds."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, used = os.wait4(process.pid, 0)
    process.returncode = 0  # it was waited for
    return used.ru_utime + used.ru_stime
