"""The disk space of held mail, and the time to purge a day of it."""

from __future__ import annotations

import io
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import psycopg

from bench import fill, load
from bench.rig import Effort, Row, own_folder, postgres, print_progress
from portal import exporter
from portal.model.message import Body, Tier
from portal.stores import Store, compressors, open_store

MAILS = 3_000
DROPPED, PARTS, DAYS_AGO = 1_000_000, 8, 40
PEOPLE = ("alice@example.org", "bob@example.org")


def stored_files(effort: Effort) -> list[Row]:
    """Measure the blocks of all files and folders of the store, as ``du`` does."""
    with own_folder() as path:
        store = open_store(f"files://{path}/store")
        held, packed = _hold_all(store, effort.of(MAILS))
        store.close()
        everything = [path / "store", *(path / "store").rglob("*")]
        return [_stored("files", sum(p.lstat().st_blocks * 512 for p in everything), held, packed)]


def stored_postgres(effort: Effort) -> list[Row]:
    """Measure all tables with indexes and TOAST after a checkpoint, those of empty days included, and separately the
    WAL, which backups and standbys have to transfer."""
    with postgres() as dsn:
        store = open_store(dsn, create=True)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("checkpoint")
            ((start,),) = connection.execute("select pg_current_wal_lsn()").fetchall()
            held, packed = _hold_all(store, effort.of(MAILS))
            store.close()
            ((wal,),) = connection.execute("select pg_current_wal_lsn() - %s::pg_lsn", [start]).fetchall()
            connection.execute("checkpoint")
            ((taken,),) = connection.execute(
                "select sum(pg_total_relation_size(oid)) from pg_class"
                " where relkind = 'r' and relnamespace = 'public'::regnamespace"
            ).fetchall()
        mail = f"{held / 1e6:.1f} of mail"
        return [
            _stored("PostgreSQL", int(taken), held, packed),
            Row("written to the WAL for that, MB", f"{float(wal) / 1e6:.1f}", mail, float(wal) / held, "–"),
        ]


def _stored(store: str, taken: int, held: int, packed: int) -> Row:
    mail = f"{held / 1e6:.1f} of mail, {packed / 1e6:.1f} compressed"
    return Row(f"taken on the disk by {store}, MB", f"{taken / 1e6:.1f}", mail, taken / held, "≤ 0.6")


def _hold_all(store: Store, count: int) -> tuple[int, int]:
    """Hold this many mails; return their total size, and their total size if each is compressed by zstd."""
    held = packed = 0
    headers = {f"x-rspamd-{name}": value for name, value in load.METADATA.items()} | {"content-type": "text/plain"}
    for mail in mixed_mails(count):
        posted = exporter.parse(headers, Body(io.BytesIO(mail), 0, len(mail)), 1 << 26)
        assert posted is not None
        try:
            store.messages.add(posted.export, posted.body, Tier.SPAM, PEOPLE)
        finally:
            posted.close()
        held += len(mail)
        packed += len(compressors.own.plain(len(mail)).compress(mail))
    print_progress(f"{count} mails of {held / count / 1000:.1f} KB held")
    return held, packed


def mixed_mails(count: int) -> Iterator[bytes]:
    """Generate mails like text of 4 to 60 KB, 19 KB on average: parts of one long text."""
    source = random.Random(1)
    text = load.words(8_000_000, 1)
    for number in range(count):
        size = min(60_000, 4_000 + int(source.expovariate(1 / 15_500)))
        start = source.randrange(len(text) - size)
        head = load.mail_head(number)
        yield head + text[start : start + size - len(head)]


def drop_postgres(effort: Effort) -> list[Row]:
    """Measure the purge of a day while a client holds mail."""
    count = effort.of(DROPPED)
    now = datetime.now(UTC)
    day = (now - timedelta(days=DAYS_AGO)).date()
    with postgres() as dsn:
        starts = [count * n // PARTS for n in range(PARTS + 1)]
        fill.postgres(dsn, [(day, a, b - a) for a, b in pairwise(starts)], 1_000, bodies=True)
        print_progress(f"{count} mails of one day held, {_megabytes(dsn, day):.0f} MB")
        store, client = open_store(dsn), Client(dsn)
        try:
            before = now - timedelta(days=DAYS_AGO - 5)
            quiet = client.longest(lambda: time.sleep(5))
            dropping = client.longest(lambda: store.purge(before, now))
        finally:
            client.close()
            store.close()
        for what, (seconds, slowest, mails) in {"quiet": quiet, "drop": dropping}.items():
            print_progress(
                f"{what}: {seconds:.2f} s, {mails} mails held concurrently, the slowest in {slowest * 1000:.0f} ms"
            )
        if _megabytes(dsn, day):
            raise RuntimeError("the day is still there")
    return [
        Row(
            f"dropping a day of {count:,} messages from PostgreSQL, s",
            f"{dropping[0]:.2f}", "with its dedup keys", None, "≤ 1",
        ),
        Row(
            "the slowest ingest during that, ms",
            f"{dropping[1] * 1000:.0f}", f"{quiet[1] * 1000:.0f} in 5 s of quiet", dropping[1] / quiet[1],
            "waits ≤ 100 longer",
        ),
    ]  # fmt: skip


def _megabytes(dsn: str, day: date) -> float:
    with psycopg.connect(dsn) as connection:
        ((megabytes,),) = connection.execute(
            "select coalesce(sum(pg_total_relation_size(oid)), 0)::float / 1e6 from pg_class"
            " where relkind = 'r' and relname like %s",
            [f"%\\_{day:%Y%m%d}"],
        ).fetchall()
    return float(megabytes)


class Client:
    """A thread that holds mail continuously."""

    def __init__(self, dsn: str) -> None:
        self._store = open_store(dsn)
        self._taken: list[tuple[float, float]] = []  # (start, seconds)
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        headers = {f"x-rspamd-{name}": value for name, value in load.METADATA.items()} | {"content-type": "text/plain"}
        text, number = load.words(load.MAIL_BYTES, 1), 0
        try:
            while not self._stop.is_set():
                number += 1
                mail = load.mail_head(number) + text
                posted = exporter.parse(headers, Body(io.BytesIO(mail), 0, len(mail)), 1 << 26)
                assert posted is not None
                began = time.perf_counter()
                self._store.messages.add(posted.export, posted.body, Tier.SPAM, PEOPLE)
                self._taken.append((began, time.perf_counter() - began))
                posted.close()
        except Exception as error:
            self._error = error

    def longest(self, act: Callable[[], object]) -> tuple[float, float, int]:
        """Run ``act``; return its seconds, those of the slowest mail held concurrently, and the number of these."""
        began = time.perf_counter()
        act()
        ended = time.perf_counter()
        time.sleep(0.5)  # for the mail whose holding began before the end
        if self._error:
            raise self._error
        taken = [seconds for at, seconds in self._taken if at + seconds > began and at < ended]
        return ended - began, max(taken, default=0.0), len(taken)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._store.close()
