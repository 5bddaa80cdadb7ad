"""Rates of held posts through uWSGI, compared with `bare`."""

from __future__ import annotations

import statistics

from bench import load
from bench.rig import CLIENTS, Effort, Row, own_folder, postgres, print_progress, served
from portal.stores import open_store


def ingest_files(effort: Effort) -> list[Row]:
    """Measure posts of 19 KB held per second: file store and a bare write, fsync, rename, fsync and SQLite commit."""
    with own_folder() as path:
        open_store(f"files://{path}/bare").close()  # with the tables and indexes of the store
        return [_ingest("ingest into files, posts/s", f"files://{path}/store", f"{path}/bare", "files", effort)]


def ingest_postgres(effort: Effort) -> list[Row]:
    """Measure posts of 19 KB held per second: PostgreSQL and the bare INSERTs."""
    with postgres() as dsn:
        open_store(dsn, create=True).close()
        return [_ingest("ingest into PostgreSQL, posts/s", dsn, dsn, "postgres", effort)]


def _ingest(what: str, url: str, bare_store: str, bare: str, effort: Effort) -> Row:
    ours, ceiling = [], []
    first = 0
    with (
        served("portal.wsgi:application", QUARANTINE_STORE__URL=url) as our,
        served(f"bench.bare:{bare}", QUARANTINE_BENCH_STORE=bare_store) as ceilings,
    ):
        for n in range(effort.rounds + 1):
            pair = []
            for server in (our, ceilings):
                first += 100_000_000
                pair.append(load.run(server.port, effort.seconds if n else 1, CLIENTS, first)[0])
            if n:  # the first round warms up
                ours.append(pair[0])
                ceiling.append(pair[1])
                print_progress(f"{pair[0]:.0f} / {pair[1]:.0f} = {pair[0] / pair[1]:.2f}")
    ratio = statistics.median(a / b for a, b in zip(ours, ceiling, strict=True))
    return Row(what, f"{statistics.median(ours):.0f}", f"{statistics.median(ceiling):.0f}", ratio, "≥ 0.8")
