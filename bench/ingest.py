"""Rates of held posts through uWSGI and their processor time, compared with `bare`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from bench import load, nginx
from bench.processor import Clock, postmaster
from bench.rig import CLIENTS, Effort, Row, own_folder, postgres, print_progress, served, spread
from portal.stores import open_store


def ingest_files(effort: Effort) -> list[Row]:
    """Measure posts of 19 KB held: file store and a bare write, fsync, rename, fsync and SQLite commit."""
    with own_folder() as path:
        open_store(f"files://{path}/bare").close()  # with the tables and indexes of the store
        return _ingest("files", f"files://{path}/store", f"{path}/bare", "files", {}, effort)


def ingest_postgres(effort: Effort) -> list[Row]:
    """Measure posts of 19 KB held: PostgreSQL and the bare INSERTs."""
    with postgres() as dsn:
        open_store(dsn, create=True).close()
        return _ingest("PostgreSQL", dsn, dsn, "postgres", {"PostgreSQL": postmaster(dsn)}, effort)


def ingest_nginx(effort: Effort) -> list[Row]:
    """Measure posts through the shipped Nginx file's server for Rspamd, ours and the bare INSERTs."""
    if not nginx.is_installed():
        print_progress("not run: Nginx is not installed")
        return []
    with postgres() as dsn:
        open_store(dsn, create=True).close()
        database = {"PostgreSQL": postmaster(dsn)}
        return _ingest("PostgreSQL behind Nginx", dsn, dsn, "postgres", database, effort, behind_nginx=True)


@dataclass(frozen=True)
class _Round:
    rate: float  # posts per second
    micros: dict[str, float]  # processor time of a post, by component


def _ingest(
    what: str,
    url: str,
    bare_store: str,
    bare: str,
    database: dict[str, int],
    effort: Effort,
    *,
    behind_nginx: bool = False,
) -> list[Row]:
    """``database``: the process id of the database, if it has processes. SQLite runs in the workers."""
    ours, ceiling = list[_Round](), list[_Round]()
    first = 0
    with ExitStack() as stack:
        our = stack.enter_context(served("portal.wsgi:application", QUARANTINE_STORE__URL=url))
        bare_server = stack.enter_context(served(f"bench.bare:{bare}", QUARANTINE_BENCH_STORE=bare_store))
        ways = [(server.port, {"workers": server.master} | database) for server in (our, bare_server)]
        if behind_nginx:
            fronts = [stack.enter_context(nginx.shipped(server.socket)) for server in (our, bare_server)]
            ways = [
                (front.port, {"Nginx": front.master} | components)
                for front, (_, components) in zip(fronts, ways, strict=True)
            ]
        for n in range(effort.rounds + 1):
            pair = []
            for port, components in ways:
                first += 100_000_000
                pair.append(_round(port, components, effort.seconds if n else 1, first))
            if n:  # the first round warms up
                ours.append(pair[0])
                ceiling.append(pair[1])
                rates, times = [each.rate for each in pair], [sum(each.micros.values()) for each in pair]
                print_progress(
                    f"{rates[0]:.0f} / {rates[1]:.0f} posts/s = {rates[0] / rates[1]:.2f}, "
                    f"{times[0]:.0f} / {times[1]:.0f} µs = {times[1] / times[0]:.2f}"
                )
    ratio = statistics.median(a.rate / b.rate for a, b in zip(ours, ceiling, strict=True))
    shown = [spread([each.rate for each in rounds]) for rounds in (ours, ceiling)]
    share = statistics.median(
        sum(b.micros.values()) / sum(a.micros.values()) for a, b in zip(ours, ceiling, strict=True)
    )
    return [
        Row(f"ingest into {what}, posts/s", shown[0], shown[1], ratio, "≥ 0.85"),
        Row(f"processor time of a post into {what}, µs", _components(ours), _components(ceiling), share, "≥ 0.85"),
    ]


def _round(port: int, components: dict[str, int], seconds: float, first: int) -> _Round:
    clock = Clock(components)
    rate, latencies = load.run(port, seconds, CLIENTS, first)
    return _Round(rate, {name: spent / len(latencies) * 1e6 for name, spent in clock.seconds().items()})


def _components(rounds: Sequence[_Round]) -> str:
    """Return the median time of each component, and of all if there are several."""
    parts = {name: statistics.median(each.micros[name] for each in rounds) for name in rounds[0].micros}
    total = f"{sum(parts.values()):.0f}"
    return (
        total if len(parts) == 1 else f"{total}: " + ", ".join(f"{name} {micros:.0f}" for name, micros in parts.items())
    )
