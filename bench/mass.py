"""A mass act of 3,000 releases, and posts of Rspamd beside it. The mail server accepts everything at once."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from uuid import uuid4

from bench import fill, releases, turns
from bench.rig import Effort, Row, own_folder, p99, postgres
from bench.sink import sink
from digest.housekeeping import run_mass_acts
from portal.assemble import Parts
from portal.batches.batch import Act
from portal.batches.mass import MassAct, Status
from portal.batches.mass_run import MassActs
from portal.model.message import Actor, ActorKind, Filter
from portal.stores import open_store
from tests.system import services

DELIVERIES = 3_000
_LARGE, _PEOPLE = 100_000, 1_000
_OPERATOR = Actor(ActorKind.OPERATOR, "bench", "cli")
_PAUSE_SECONDS = 0.02  # between two posts


def mass_files(effort: Effort) -> list[Row]:
    """Release from a file store."""
    with own_folder() as folder:
        return _rows("files", f"files://{folder}/store", folder, effort)


def mass_postgres(effort: Effort) -> list[Row]:
    """Release from PostgreSQL."""
    with own_folder() as folder, postgres() as dsn:
        open_store(dsn, create=True).close()
        return _rows("PostgreSQL", dsn, folder, effort)


def mass_scanned(effort: Effort) -> list[Row]:
    """Release from a file store, after Rspamd and clamd have scanned each message. Needs root and Debian's packages."""
    with services.folder() as home, own_folder() as folder, ExitStack() as running:
        clamd = running.enter_context(services.Clamd(home / "clamd").running())
        rspamd = running.enter_context(services.rspamd(home / "rspamd", "", modules={"antivirus": clamd.rspamd_conf()}))
        scanner = {
            "QUARANTINE_RSPAMD__URL": f"http://127.0.0.1:{rspamd.controller}",
            "QUARANTINE_RSPAMD__SCAN_VALID_MINUTES": "0",
        }
        [row, _] = _rows("files and clamd", f"files://{folder}/store", folder, effort, scanner)
        return [replace(row, bar="–")]


def mass_large(effort: Effort) -> list[Row]:
    """Release 100,000 deliveries from PostgreSQL: the last tenth as fast as the first one, in as much memory."""
    count = effort.of(_LARGE)
    with own_folder() as folder, postgres() as dsn, sink() as server:
        open_store(dsn, create=True).close()
        fill.postgres(dsn, fill.days_back(count, 1), _PEOPLE, bodies=True)
        with turns._assembled(releases._environment(dsn, folder, server.url)) as parts:
            while parts.store.facets.index():
                pass
            with _watching(parts) as seen:
                seconds = _released(parts, count)
        if server.got().mails != count:
            raise RuntimeError("not every delivery was released once")
    tenth = count // 10
    first, last = _seconds(seen, tenth, 2 * tenth), _seconds(seen, count - tenth, count)
    memory = [each.megabytes for each in seen if each.done >= tenth]
    return [
        Row(f"{count} releases of a mass act, PostgreSQL, s", f"{seconds:.0f}", f"{count / seconds:.0f}/s", None, "–"),
        Row("its last tenth and its second one, s", f"{last:.1f}", f"{first:.1f}", last / first, "< 1.5"),
        Row("its memory at the end and after a tenth, MB", f"{memory[-1]:.0f}", f"{memory[0]:.0f}",
            memory[-1] / memory[0], "< 1.2"),
    ]  # fmt: skip


@dataclass(frozen=True)
class _Seen:
    """The progress of a job at a moment."""

    at: float  # time.monotonic()
    done: int
    megabytes: float  # of this process


@contextmanager
def _watching(parts: Parts) -> Iterator[list[_Seen]]:
    """Look at the newest mass act in another thread until the block ends, and yield what was seen."""
    seen, ended = list[_Seen](), threading.Event()
    masses = MassActs(parts.store, parts.actions, parts.staff)

    def work() -> None:
        while not ended.wait(0.2):
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
            for found in islice(masses.newest(), 1):
                seen.append(_Seen(time.monotonic(), found.done, resident))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield seen
    finally:
        time.sleep(0.5)  # one more look
        ended.set()
        thread.join()


def _seconds(seen: list[_Seen], begin: int, end: int) -> float:
    """Return the time between these numbers of deliveries."""
    return next(each.at for each in seen if each.done >= end) - next(each.at for each in seen if each.done >= begin)


def _rows(
    name: str, url: str, folder: Path, effort: Effort, more: Mapping[str, str] = MappingProxyType({})
) -> list[Row]:
    count = round(DELIVERIES * effort.share)
    with turns.posts(url, folder) as post, sink() as server:
        post(count // 2)  # of two recipients each
        with turns._assembled({**releases._environment(url, folder, server.url), **more}) as parts:
            while parts.store.facets.index():
                pass
            with _posting(post) as taken:
                seconds = _released(parts, count)
            if more:
                _check_scans(parts)
        if server.got().mails != count:
            raise RuntimeError("not every delivery was released once")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    speed = f"{count / seconds:.0f} releases/s, {memory:.0f} MB of memory"
    return [
        Row(f"{count} releases of a mass act, {name}, s", f"{seconds:.1f}", speed, None, "< 60"),
        Row(f"a post beside it, {name}, p99 in ms", f"{p99(taken) * 1000:.0f}", f"{len(taken)} posts", None, "< 1000"),
    ]


def _check_scans(parts: Parts) -> None:
    for id in parts.store.messages.ids(None, 10):
        [message] = parts.store.messages.find(str(id))
        if message.scan is None or not message.scan.is_done:
            raise RuntimeError("a message was released without a scan")


def _released(parts: Parts, count: int) -> float:
    masses = MassActs(parts.store, parts.actions, parts.staff)
    wanted = Filter(symbols=("BENCH_SYMBOL_13",))
    job = masses.start(MassAct(Act.RELEASE, wanted, "", count, "bench"), _OPERATOR, uuid4(), timedelta())
    began = time.monotonic()
    while masses.get(job.id).status is not Status.FINISHED:
        run_mass_acts(parts, datetime.now(UTC))
    return time.monotonic() - began


@contextmanager
def _posting(post: turns.Work) -> Iterator[list[float]]:
    """Post messages in another thread, and collect the seconds that each took."""
    taken, ended = list[float](), threading.Event()

    def work() -> None:
        while not ended.wait(_PAUSE_SECONDS):
            began = time.monotonic()
            post(1)
            taken.append(time.monotonic() - began)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield taken
    finally:
        ended.set()
        thread.join()
