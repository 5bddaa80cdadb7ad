"""A hundred thousand digests from a million held mails (ten thousand from files): their rate and whether it stays
constant.

The portal runs real digest processes. The ceiling is a loop in one thread that has the rows already, composes the same
mails and sends them over one connection: no store, no claims, no log.
"""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg

from bench import fill
from bench.processor import Clock, cell, postmaster
from bench.rig import ROOT, Effort, Row, own_folder, p99, postgres, print_progress, spread
from bench.sink import Sink, sink
from digest.run import AHEAD
from portal.assemble import Parts, assemble
from portal.digests.compose import digest_mail
from portal.settings import load_from
from portal.stores import open_store
from portal.stores.files.database import DATABASE, to_micros
from portal.stores.records import Digest

PEOPLE, EACH = 100_000, 10
PEOPLE_OF_FILES = 10_000  # each mail needs its file
SMALL = 10  # the second store is smaller by this factor
READY = 500  # digests whose rows the ceiling has in memory
QUERIES = 500  # of each kind
PROCESSES = 2
WARM_UP = 20  # digests of each process before the measurement


@dataclass(frozen=True)
class _Whole:
    """A run of several processes until the last digest."""

    seconds: float
    count: int
    megabytes: tuple[float, float, float]  # resident memory of the largest process: at the start, half-way, at the end

    @property
    def rate(self) -> float:
        return self.count / self.seconds


def digests_postgres(effort: Effort) -> list[Row]:
    """Two databases in one server, one for each size."""
    with postgres() as dsn, own_folder() as folder:
        large, small = effort.of(PEOPLE), max(1, effort.of(PEOPLE) // SMALL)
        environments = {}
        for people in (large, small):
            environments[people] = _environment(_filled(dsn, people), folder / str(people))
            print_progress(f"{people:,} recipients, {people * EACH:,} mails held")
        rows = _query(environments[small], small, environments[large], large, effort)
        return rows + _rates("PostgreSQL", environments, _due_again, effort)


def digests_files(effort: Effort) -> list[Row]:
    with own_folder() as folder:
        large, small = effort.of(PEOPLE_OF_FILES), max(1, effort.of(PEOPLE_OF_FILES) // SMALL)
        environments = {}
        for people in (large, small):
            environments[people] = _environment(_filled_files(folder / f"store-{people}", people), folder / str(people))
            print_progress(f"{people:,} recipients, {people * EACH:,} mails held")
        return _rates("files", environments, _due_again_files, effort)


def _rates(
    store: str, environments: dict[int, dict[str, str]], due_again: Callable[[dict[str, str]], None], effort: Effort
) -> list[Row]:
    """Measure the large and the small store of ``environments``, by number of recipients."""
    large, small = environments
    pairs = _pairs(environments[large], effort)
    rates = [own.rate for own, _ in pairs]
    ratio = statistics.median(own.rate / bare for own, bare in pairs)
    spent = {name: sum(own.seconds[name] for own, _ in pairs) for name in pairs[0][0].seconds}
    due_again(environments[large])
    turns = _processes_in_turn(environments[large], effort)
    spent_by_several = {name: sum(several.seconds[name] for _, several in turns) for name in turns[0][1].seconds}
    for environment in environments.values():
        due_again(environment)
    few, many = (_whole(environments[people], people) for people in (small, large))
    return [
        Row(
            f"digests/s of one process, {store}", spread(rates), spread([bare for _, bare in pairs]), ratio, "≥ 0.75",
            cell(spent, sum(own.count for own, _ in pairs)),
        ),
        Row(
            f"digests/s of {PROCESSES} processes, {store}", spread([several.rate for _, several in turns]),
            f"{spread([one.rate for one, _ in turns])} of one",
            statistics.median(several.rate / one.rate for one, several in turns), "≥ 1.7",
            cell(spent_by_several, sum(several.count for _, several in turns)),
        ),
        Row(
            f"seconds until the last of {many.count:,} digests, {PROCESSES} processes, {store}", f"{many.seconds:.0f}",
            f"{few.seconds:.1f} for {few.count:,}", many.seconds / few.seconds, f"{large // small}: linear",
        ),
        Row(
            f"memory of a digest process, {store}, MB", f"{many.megabytes[2]:.0f} at the end",
            f"{many.megabytes[0]:.0f} at the start, {many.megabytes[1]:.0f} half-way",
            many.megabytes[2] / many.megabytes[1], "flat",
        ),
    ]  # fmt: skip


def _filled(dsn: str, people: int) -> str:
    """Return a database with ten different mails held for each recipient. All digests are due since this morning."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"create database digests_{people}")
    url = dsn.replace("/postgres?", f"/digests_{people}?")
    fill.postgres(url, fill.days_back(people * EACH), people, alike=False)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "insert into recipient (recipient, address, news_since, next_digest_at)"
            " select recipient, recipient, now() - interval '1 day', now() - interval '1 minute'"
            " from (select 'person' || n || '@example.org' as recipient from generate_series(0, %s - 1) n)",
            [people],
        )
        connection.execute("vacuum analyze recipient")
        connection.execute("checkpoint")
    return url


def _filled_files(folder: Path, people: int) -> str:
    """Return a file store like `_filled`. The mails' files are empty, since a digest only needs that they exist."""
    fill.files(folder, fill.days_back(people * EACH), people, alike=False, with_files=True)
    with sqlite3.connect(folder / DATABASE) as connection:
        due = to_micros(datetime.now(UTC) - timedelta(minutes=1))
        connection.executemany(
            "insert into recipient (recipient, address, news_since, next_digest_at) values (?, ?, ?, ?)",
            [(fill.person(n), fill.person(n), due, due) for n in range(people)],
        )
        connection.execute("analyze")
    connection.close()
    return f"files://{folder}"


def _environment(url: str, folder: Path) -> dict[str, str]:
    folder.mkdir()
    return {
        "QUARANTINE_CONFIG": os.devnull,
        "QUARANTINE_STORE__URL": url,
        "QUARANTINE_STORE__RETENTION_DAYS": "60",
        "QUARANTINE_PUBLIC_URL": "https://quarantine.example.org/quarantine",
        "QUARANTINE_LOCAL_DOMAINS": "example.org",
        "QUARANTINE_MAIL__FROM_ADDRESS": "quarantine@example.org",
        "QUARANTINE_LINKS__KEYS_FILE": str(folder / "links.keys"),
    }


def _due_again(environment: dict[str, str]) -> None:
    """Reset the database to the state before anything was sent."""
    with psycopg.connect(environment["QUARANTINE_STORE__URL"], autocommit=True) as connection:
        connection.execute("update delivery set announced_at = null where announced_at is not null")
        connection.execute(
            "update recipient set news_since = now() - interval '1 day', next_digest_at = now() - interval '1 minute',"
            " lease = null, lease_until = null, digest_id = null where news_since is null or lease_until is not null"
        )
        connection.execute("truncate digest")
        connection.execute("vacuum analyze")
        connection.execute("checkpoint")


def _due_again_files(environment: dict[str, str]) -> None:
    """Reset the file store to the state before anything was sent."""
    with sqlite3.connect(Path(environment["QUARANTINE_STORE__URL"].removeprefix("files://")) / DATABASE) as connection:
        due = to_micros(datetime.now(UTC) - timedelta(minutes=1))
        connection.execute("update delivery set announced_at = null, digest_id = null where announced_at is not null")
        connection.execute(
            "update recipient set news_since = ?, next_digest_at = ?, lease = null, lease_until = null,"
            " digest_id = null",
            [due, due],
        )
        connection.execute("delete from digest")
    connection.close()


# ---- the query for due digests


def _query(small: dict[str, str], few: int, large: dict[str, str], many: int, effort: Effort) -> list[Row]:
    """Measure the query for due digests, of many and of few in turn. Each round has new connections, since on two cores
    the time depends on the core that a server process runs on."""
    urls = [environment["QUARANTINE_STORE__URL"] for environment in (small, large)]
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(effort.rounds * 4):
        stores = [open_store(url) for url in urls]
        pairs = list(zip(stores, seconds, strict=True))
        try:
            for turn in range(-5, QUERIES // 4):
                for store, taken in pairs[:: -1 if number % 2 else 1]:
                    began = time.perf_counter()
                    if len(store.digests.due(datetime.now(UTC), AHEAD)) != AHEAD:
                        raise RuntimeError("they are not due")
                    if turn >= 0:  # earlier turns warm up
                        taken.append(time.perf_counter() - began)
        finally:
            for store in stores:
                store.close()
    plan = _plan(large["QUARANTINE_STORE__URL"])
    if "Index Scan using recipient_next_digest_at_idx" not in plan or "Seq Scan" in plan:
        raise RuntimeError(f"no index range:\n{plan}")
    print_progress(plan)
    median, slow = ([what(taken) * 1000 for taken in seconds] for what in (statistics.median, p99))
    return [
        Row(f"due query with {many:,} due, p50 in ms", f"{median[1]:.2f}", f"{median[0]:.2f} with {few:,}",
            median[1] / median[0], "≤ 1.3"),
        Row(f"due query with {many:,} due, p99 in ms", f"{slow[1]:.2f}", f"{slow[0]:.2f} with {few:,}",
            slow[1] / slow[0], "≤ 1.3"),
    ]  # fmt: skip


def _plan(url: str) -> str:
    """Return the plan by which PostgreSQL finds the digests of a claim."""
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "explain (analyze, costs off, timing off, summary off) select recipient from recipient"
            " where news_since is not null and stopped_at is null and next_digest_at <= now()"
            " and (lease_until is null or lease_until <= now()) order by next_digest_at limit 16 for update skip locked"
        )
        return "\n".join(line for (line,) in found)


# ---- rates


@dataclass(frozen=True)
class _Own:
    """The digests of some processes in a round."""

    count: int
    rate: float  # digests per second
    seconds: dict[str, float]  # of processor time, by component


def _pairs(environment: dict[str, str], effort: Effort) -> list[tuple[_Own, float]]:
    """Return what one process did and digests per second of the ceiling, measured alternately."""
    with ExitStack() as stack:
        for name, value in environment.items():
            stack.callback(os.environ.pop, name, None)
            os.environ[name] = value
        parts = assemble(load_from(dict(os.environ))[0], create=True)
        stack.callback(parts.store.close)
        ready = _ready(parts)
        pairs = []
        for number in range(effort.rounds + 1):
            ours, bare = _processes(environment, 1, effort.seconds), _bare(parts, ready, effort.seconds)
            if number:  # the first round warms up
                pairs.append((ours, bare))
                print_progress(f"{ours.rate:.0f}/s / {bare:.0f}/s = {ours.rate / bare:.2f}")
        return pairs


def _ready(parts: Parts) -> list[Digest]:
    claims = parts.store.digests.claim(datetime.now(UTC), READY, READY * EACH * 2)
    if sum(len(digest.deliveries) for digest in claims.digests) < len(claims.digests) * EACH:
        raise RuntimeError("not all rows are there")
    return list(claims.digests)


def _bare(parts: Parts, ready: list[Digest], seconds: float) -> float:
    from portal.mail.relay import Relay

    with sink() as server, Relay(server.url).connection() as connection:
        count, began = 0, time.perf_counter()
        while (taken := time.perf_counter() - began) < seconds:
            digest = ready[count % len(ready)]
            mail = digest_mail(parts, digest, datetime.now(UTC), digest.id, ()).as_bytes()
            connection.send("", digest.address, [mail], has_8bit=not mail.isascii())
            count += 1
        return count / taken


def _processes_in_turn(environment: dict[str, str], effort: Effort) -> list[tuple[_Own, _Own]]:
    """Return what one process and what several did, measured alternately."""
    turns = []
    for _ in range(effort.rounds):
        one, several = (_processes(environment, number, effort.seconds) for number in (1, PROCESSES))
        turns.append((one, several))
        print_progress(f"{several.rate:.0f}/s / {one.rate:.0f}/s = {several.rate / one.rate:.2f}")
    return turns


def _processes(environment: dict[str, str], number: int, seconds: float) -> _Own:
    url = environment["QUARANTINE_STORE__URL"]
    database = {} if url.startswith("files:") else {"PostgreSQL": postmaster(url)}
    with sink() as server, ExitStack() as stack:
        processes = [stack.enter_context(_process(environment, server)) for _ in range(number)]
        _wait_for(server, WARM_UP * number)
        clock = Clock({f"digest {n}": process.pid for n, process in enumerate(processes)} | database)
        before, began = server.got().mails, time.perf_counter()
        time.sleep(seconds)
        got, taken = server.got(), time.perf_counter() - began
        if got.mails == before:
            raise RuntimeError("all were sent before the time was over: take a larger --share, or shorter --seconds")
        spent = clock.seconds()
    of_processes = sum(spent[name] for name in spent if name not in database)
    return _Own(
        got.mails - before,
        (got.mails - before) / taken,
        {"digest": of_processes} | {name: spent[name] for name in database},
    )


def _whole(environment: dict[str, str], people: int) -> _Whole:
    """Send all digests with several processes."""
    with sink() as server, ExitStack() as stack:
        processes = [stack.enter_context(_process(environment, server)) for _ in range(PROCESSES)]
        memory = []
        for mails in (people // 10, people // 2, people):
            _wait_for(server, mails)
            memory.append(max(_resident(process.pid) for process in processes))
        time.sleep(1)  # for digests that are sent twice
        got = server.got()
        if (got.mails, got.recipients) != (people, people):
            raise RuntimeError(f"{got.mails} mails to {got.recipients} of {people} recipients")
        whole = _Whole(got.last_at - got.first_at, people, (memory[0], memory[1], memory[2]))
    print_progress(
        f"{whole.count:,} digests of {got.octets / people / 1000:.0f} KB in {whole.seconds:.1f} s: {whole.rate:.0f}/s"
    )
    print_progress("memory " + ", ".join(f"{each:.0f} MB" for each in memory))
    return whole


def _wait_for(server: Sink, mails: int) -> None:
    latest, since = -1, time.monotonic()
    while (got := server.got().mails) < mails:
        if got != latest:
            latest, since = got, time.monotonic()
        if time.monotonic() - since > 60:
            raise RuntimeError(f"nothing was sent for a minute, after {got} mails")
        time.sleep(0.02)


@contextmanager
def _process(environment: dict[str, str], server: Sink) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``quarantine-digest run``, as in a service of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "digest", "run"],
        cwd=ROOT,
        env=os.environ | environment | {"QUARANTINE_MAIL__URL": server.url},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def _resident(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return int(re.findall(r"VmRSS:\s+([0-9]+) kB", status)[0]) / 1000
