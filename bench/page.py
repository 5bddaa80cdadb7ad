"""docs/benchmarks.md: a table of rows, each with the run that measured it.

A run replaces the rows that it measured again and leaves the others, so that the page is made of any number of runs.
The texts of this module contain no numbers: all numbers of the page were measured or describe the run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.rig import Row

_HEAD = """\
# Benchmarks

Written by `python -m bench --write`. The last column names the [run](#runs) that measured a row. The figures are
medians (lowest–highest round); the ratio is the median of the ratios of all rounds, in which ours and the ceiling take
turns. The processor time of an operation is ours, by component. Machines are noisy: read the ratios and the processor
time. [benchmarks-notes.md](benchmarks-notes.md) describes the rows, and where the time goes.

| what | ours | ceiling, or compared with | ratio | bar | processor time | run |
"""
_RULE = "| --- | --- | --- | --- | --- | --- | --- |\n"
_RUNS = "\n## Runs\n\n"
_ROW = re.compile(r"(\| (.*?) \| .*) \| (\d+) \|")
_RUN = re.compile(r"(\d+)\. (.*)")


@dataclass(frozen=True)
class Measured:
    """A row of the table as text, up to its run, and that run: when, by which command, on which machine."""

    what: str
    cells: str
    run: str


def measured(rows: Iterable[Row], run: str) -> list[Measured]:
    """Return the rows of one run."""
    return [Measured(row.what, str(row).removesuffix(" |"), run) for row in rows]


def read(text: str) -> list[Measured]:
    """Return the rows of the page. Raises ValueError for a row without a run."""
    table, _, listed = text.partition(_RUNS)
    runs = {run[1]: run[2] for run in map(_RUN.fullmatch, listed.splitlines()) if run}
    found = []
    for line in table.partition(_RULE)[2].splitlines():
        row = _ROW.fullmatch(line)
        if row is None or row[3] not in runs:
            raise ValueError(f"docs/benchmarks.md: this row names no run of the list below: {line}")
        found.append(Measured(row[2], row[1], runs[row[3]]))
    if not found:
        raise ValueError("docs/benchmarks.md has no rows")
    return found


def merged(old: Sequence[Measured], new: Sequence[Measured]) -> list[Measured]:
    """Return the old rows with the new ones in the places of those of the same name, or at the end."""
    rows = {row.what: row for row in old} | {row.what: row for row in new}
    return list(rows.values())


def written(rows: Sequence[Measured]) -> str:
    """Return the page. Runs are numbered in the order of their rows; runs without rows are not listed."""
    runs = list(dict.fromkeys(row.run for row in rows))
    table = "".join(f"{row.cells} | {runs.index(row.run) + 1} |\n" for row in rows)
    return _HEAD + _RULE + table + _RUNS + "".join(f"{number}. {run}\n" for number, run in enumerate(runs, 1))
