"""Posts into a store with millions of dedup keys, compared with ten thousand; and the removal of expired keys.

A dedup key is random, so each post reads and changes another page of the index. After a checkpoint, PostgreSQL writes
that whole page to the WAL. Each turn begins with a checkpoint.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from uuid import UUID

import psycopg

from bench import fill
from bench.rig import Effort, Row, own_folder, postgres, print_progress, spread
from bench.size import Client
from bench.turns import Work, posts, servers, spent
from portal.stores import open_store
from portal.stores.postgres import partitions
from portal.stores.postgres.database import Database

FEW, MANY, MANY_FILES, EACH = 10_000, 20_000_000, 1_000_000, 100
POSTS = 400  # in a turn
_KEY = "decode(md5(n::text) || md5((-n)::text), 'hex')"
_ID = "(lpad(to_hex((extract(epoch from now()) * 1000)::bigint - {back} + n), 12, '0') || '70008000000000000000')::uuid"
_ALL = UUID(int=(1 << 128) - 1)


def seen_postgres(effort: Effort) -> list[Row]:
    """Measure the processor time and the WAL of a post, with the keys in two generations, and the end of the older."""
    many = effort.of(MANY)
    with postgres() as dsn, own_folder() as folder, ExitStack() as stack:
        connection = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        urls = [_filled(connection, dsn, number) for number in (FEW, many)]
        works = [stack.enter_context(posts(url, folder)) for url in urls]

        def wal() -> float:
            ((written,),) = connection.execute("select pg_current_wal_lsn() - '0/0'").fetchall()
            return float(written)

        found: list[
            list[tuple[float, float]]
        ] = []  # for each turn (µs, bytes of WAL) of a post, with few and with many
        for turn in range(effort.rounds + 1):
            found.append([])
            for work in works:
                connection.execute("checkpoint")
                before = wal()
                micros = _micros(work, lambda: spent(servers(connection)))
                found[-1].append((micros, (wal() - before) / POSTS))
            print_progress("; ".join(f"{micros:.0f} µs, {octets:.0f} bytes" for micros, octets in found[-1]))
        database, client = Database(urls[1], create=False), Client(urls[1])
        try:
            _, quiet, _ = client.longest(lambda: time.sleep(2))
            seconds, slowest, _ = client.longest(lambda: partitions.drop_dedup_keys(database, _ALL, []))
        finally:
            client.close()
            database.close()
    octets = [[written for _, written in turn] for turn in found[1:]]
    return [
        _compared(
            f"a post with {many:,} dedup keys, PostgreSQL, µs", [[taken for taken, _ in turn] for turn in found[1:]]
        ),
        Row(
            "written to the WAL for that, KB",
            spread([large / 1000 for _, large in octets], 1),
            f"{statistics.median(small for small, _ in octets) / 1000:.1f} with {FEW:,}",
            statistics.median(large / small for small, large in octets),
            "–",
        ),
        Row(f"dropping {many // 2:,} dedup keys, s", f"{seconds:.2f}", "with posts at the same time", None, "–"),
        Row("the slowest post during that, ms", f"{slowest * 1000:.0f}", f"{quiet * 1000:.0f} before", None, "≤ 1,000"),
    ]


def seen_files(effort: Effort) -> list[Row]:
    """Measure the processor time of a post. In a file store the key is a column of the message."""
    many = effort.of(MANY_FILES)
    with own_folder() as folder, ExitStack() as stack:
        works = []
        for name, number in (("few", FEW), ("many", many)):
            fill.files(folder / name, fill.days_back(number), max(1, number // EACH))
            works.append(stack.enter_context(posts(f"files://{folder}/{name}", folder)))
        found = []
        for _ in range(effort.rounds + 1):
            found.append([_micros(work, lambda: spent(())) for work in works])
            print_progress("; ".join(f"{micros:.0f} µs" for micros in found[-1]))
    return [_compared(f"a post with {many:,} dedup keys, files, µs", found[1:])]


def _micros(work: Work, clock: Callable[[], float]) -> float:
    began = clock()
    work(POSTS)
    return (clock() - began) / POSTS * 1e6


def _compared(what: str, found: list[list[float]]) -> Row:
    return Row(
        what,
        spread([large for _, large in found]),
        f"{statistics.median(small for small, _ in found):.0f} with {FEW:,}",
        statistics.median(small / large for small, large in found),
        "≥ 0.9",
    )


def _filled(connection: psycopg.Connection[tuple[object, ...]], dsn: str, number: int) -> str:
    """Return a database with this many keys, half of them in each generation."""
    connection.execute(f"create database keys_{number}")
    url = dsn.replace("/postgres?", f"/keys_{number}?")
    open_store(url, create=True).close()
    with psycopg.connect(url, autocommit=True) as filling:
        filling.execute("set maintenance_work_mem = '512MB'")
        filling.execute("set synchronous_commit = off")
        for part, table in enumerate(partitions.GENERATIONS):
            # Indexes are made afterwards: in the order of random keys that would take ten times as long.
            filling.execute(f"drop table {table}")
            filling.execute(f"create table {table} (dedup_key bytea not null, message_id uuid not null)")
            first, last = number * part // 2, number * (part + 1) // 2
            filling.execute(
                f"insert into {table} select {_KEY}, {_ID.format(back=number)}"
                " from generate_series(%s::bigint, %s::bigint) n",
                [first, last - 1],
            )
            filling.execute(f"alter table {table} add primary key (dedup_key)")
            filling.execute(f"create index on {table} (message_id)")
        filling.execute("vacuum analyze seen_before, seen")
        filling.execute("checkpoint")
        sizes = filling.execute(
            "select pg_total_relation_size('seen') + pg_total_relation_size('seen_before')"
        ).fetchall()
    print_progress(f"{number:,} keys, {sizes[0][0] / 1e6:.0f} MB")
    return url
