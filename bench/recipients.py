"""Processor time of posts with thousands of recipients: it grows with their number, and not faster."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack

import psycopg

from bench import fill
from bench.rig import Effort, Row, own_folder, postgres, print_progress, spread
from bench.turns import posts, servers, spent
from portal.stores import open_store

FEW, MANY = 100, 5_000
TURN = 20_000  # recipients in a turn


def recipients_files(effort: Effort) -> list[Row]:
    """Posts into a file store."""
    with own_folder() as folder:
        return [_row("files", f"files://{folder}/store", lambda: spent(()), effort)]


def recipients_postgres(effort: Effort) -> list[Row]:
    """Posts into PostgreSQL."""
    with postgres() as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        open_store(dsn, create=True).close()
        return [_row("PostgreSQL", dsn, lambda: spent(servers(connection)), effort)]


def _row(name: str, url: str, clock: Callable[[], float], effort: Effort) -> Row:
    found: list[list[float]] = []  # for each turn µs for a recipient, with few and with many
    with own_folder() as folder, ExitStack() as stack:
        works = {
            number: stack.enter_context(posts(url, folder, list(map(fill.person, range(number)))))
            for number in (FEW, MANY)
        }
        for _ in range(effort.rounds + 1):  # the first one warms up
            found.append([])
            for number, work in works.items():
                began = clock()
                work(TURN // number)
                found[-1].append((clock() - began) / TURN * 1e6)
            print_progress(f"{found[-1][1]:.1f} µs; {found[-1][0]:.1f} µs")
    return Row(
        f"a recipient of a post with {MANY:,}, {name}, µs",
        spread([many for _, many in found[1:]], 1),
        f"{statistics.median(few for few, _ in found[1:]):.1f} with {FEW}",
        statistics.median(many / few for few, many in found[1:]),
        "≤ 1: linear",
    )
