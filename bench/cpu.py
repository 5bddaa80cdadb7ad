"""Processor time of running processes, by component: a server with its workers, PostgreSQL, Nginx.

Rates depend on the machine and on what else it does. Processor time for each operation can be compared between runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


def postmaster(dsn: str) -> int:
    """Return the process id of the server that `rig.postgres` started."""
    folder = dsn.partition("host=")[2]
    return int((Path(folder) / "postmaster.pid").read_text("ascii").split()[0])


def spent(components: Mapping[str, int]) -> dict[str, float]:
    """Return the seconds of processor time of each component: a process and all its descendants, ended ones included.

    ``components`` maps names to process ids. The kernel counts in steps of 10 ms.
    """
    return {name: _of_tree(process) for name, process in components.items()}


def _of_tree(process: int) -> float:
    folder = Path(f"/proc/{process}")
    try:
        # proc(5): fields 14 to 17, of which the last two are those of children that were waited for.
        fields = (folder / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
        tasks = list((folder / "task").iterdir())
        children = [child for task in tasks for child in (task / "children").read_text("ascii").split()]
    except OSError:  # it has just ended
        return 0.0
    return sum(map(int, fields[11:15])) / _TICK + sum(_of_tree(int(child)) for child in children)


def cell(before: Mapping[str, float], after: Mapping[str, float], count: int) -> str:
    """Return processor time for each of ``count`` operations as text for the table, by component."""
    taken = {name: (after[name] - before[name]) / count for name in before}
    total = sum(taken.values())
    unit, factor, digits = ("ms", 1e3, 1) if total >= 0.01 else ("µs", 1e6, 0)
    parts = ", ".join(f"{name} {seconds * factor:.{digits}f}" for name, seconds in taken.items())
    return f"{total * factor:.{digits}f} {unit}" + (f": {parts}" if len(taken) > 1 else "")
