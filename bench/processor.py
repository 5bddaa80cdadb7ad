"""Processor time of running servers, from /proc: it depends less on the machine's other work than rates do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psycopg

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")


class Clock:
    """The processor time of components of a server, each a process with all its descendants."""

    def __init__(self, roots: Mapping[str, int]) -> None:
        """Begin to measure. ``roots``: the process ids of the components, by their names."""
        self._roots = dict(roots)
        self._began = {name: _spent(pid) for name, pid in roots.items()}

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each component since the beginning; those of threads that ended are missing.

        Those of child processes that ended are included.
        """
        return {
            name: sum(ns - self._began[name].get(thread, 0) for thread, ns in _spent(pid).items()) / 1e9
            for name, pid in self._roots.items()
        }


def cell(seconds: Mapping[str, float], count: int) -> str:
    """Return the processor time for each of ``count`` operations as text for the table, by component."""
    total = sum(seconds.values()) / count
    unit, factor, digits = ("ms", 1e3, 1) if total >= 0.01 else ("µs", 1e6, 0)
    parts = ", ".join(f"{name} {taken / count * factor:.{digits}f}" for name, taken in seconds.items())
    return f"{total * factor:.{digits}f} {unit}" + (f": {parts}" if len(seconds) > 1 else "")


def postmaster(dsn: str) -> int:
    """Return the process id of a local PostgreSQL."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute("show data_directory").fetchone()
    assert row is not None
    return int(Path(row[0], "postmaster.pid").read_text("ascii").split()[0])


def _spent(pid: int) -> dict[str, int]:
    """Return the nanoseconds that each thread of a process and of its descendants ran, and its ended children: proc(5),
    schedstat and the fields cutime and cstime of stat."""
    found: dict[str, int] = {}
    with suppress(FileNotFoundError, ProcessLookupError):  # it ended
        fields = (_PROC / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        found[f"children of {pid}"] = (int(fields[13]) + int(fields[14])) * 1_000_000_000 // _TICKS
        for task in (_PROC / str(pid) / "task").iterdir():
            found[task.name] = int((task / "schedstat").read_text("ascii").split()[0])
            for child in (task / "children").read_text("ascii").split():
                found |= _spent(int(child))
    return found
