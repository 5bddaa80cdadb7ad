"""Disks that fail, fill up or lose power: acknowledged mail is in the store, and incomplete mail is never shown.

The long forms use strace, which sees SQLite's calls too (`apt-get install strace`); the short ones record Python's.
"""

from __future__ import annotations

import errno
import http.client
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from digest import news, run
from portal.assemble import assemble
from portal.model.errors import AlreadyDone, QuarantineError, StoreUnavailable
from portal.model.message import DeliveryId, EventKind, State
from portal.stores.files import store as files
from portal.stores.files.store import FileStore
from portal.stores.records import Held
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, hold, mail, now
from tests.conftest import MakeSettings
from tests.faults import disk
from tests.faults.conftest import Report, Serve
from tests.faults.disk import Call, Disk, Op, Shim
from tests.faults.serving import ROOT, OwnPostgres, Portal, SmallDisk, all_deliveries, assert_whole, mail_of, read
from tests.faults.test_kills import in_words
from tests.smtp_server import SmtpServer
from tests.web_client import Site

KEEP = (0.0, 0.5, 1.0, 0.1, 0.9)  # the share of unsynced data that survives, by turns


def words_of(op: Op) -> list[str]:
    return op.data.decode().split()


def acknowledged(ops: Sequence[Op], what: str = "held") -> dict[int, UUID]:
    lines = [words_of(op) for op in ops if op.kind == "output"]
    return {int(line[1]): UUID(line[2]) for line in lines if line and line[0] == what}


@pytest.fixture
def boots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that can be restarted and whose clock is never set back, so that stores check only recent files."""
    monkeypatch.setattr(files, "_BOOT_ID", tmp_path / "boot_id")
    monkeypatch.setattr(files, "_CLOCK_MARGIN", timedelta(milliseconds=1))  # the precision of ids
    boot()


def boot() -> None:
    files._BOOT_ID.write_text(f"{uuid4()}\n")


def assert_survived(folder: Path, ops: Sequence[Op], *, actions: bool) -> None:
    """Open the store that a power cut left after ``ops`` and compare it with the results that were printed before."""
    held, deleted = acknowledged(ops), acknowledged(ops, "deleted")
    boot()
    store = FileStore.open(str(folder))
    try:
        for number, id in held.items():
            assert read(store, id) == mail_of(number), f"mail {number} was acknowledged and is not there"
            assert [d.recipient for d in store.deliveries.of_message(id)] == [ALICE, BOB]
        if actions:
            for id in deleted.values():
                assert store.deliveries.get(DeliveryId(id, 1)).state is State.DELETED
        there = {delivery.id for delivery in all_deliveries(store)}
        # The mail being written, and mails that were refused after they were written, may exist too, but whole.
        mails = {mail_of(number) for number in range(max(held, default=0) + 7)} if len(there) > len(held) else set()
        for id in there - set(held.values()):
            assert read(store, id) in mails
        for number, id in list(held.items())[-2:]:
            assert hold(store, mail_of(number)) == Held(id, known=True)
        hold(store, mail_of(10_001))
    finally:
        store.close()


def cut_power(ops: list[Op], cuts: int, folder: Path, source: random.Random, wal: Path | None = None) -> int:
    """Cut the power ``cuts`` times at random operations and return the number of cuts.

    ``wal``: a folder with a database and its log, which are copied to the remains; the log is cut in its unsynced part.
    """
    done = 0
    wanted = sorted(source.choices(range(len(ops) + 1), k=cuts))
    power = Disk()
    for at in range(len(ops) + 1):
        for _ in range(wanted.count(at)):
            left = folder / f"cut{done}"
            power.remains(left, source, KEEP[done % len(KEEP)])
            if wal is not None:
                _cut_database(wal, left / "quarantine", ops[:at], source)
            if (left / "quarantine").exists():
                assert_survived(left / "quarantine", ops[:at], actions=wal is None)
            else:
                assert not acknowledged(ops[:at])
            shutil.rmtree(left)
            done += 1
        if at < len(ops):
            power.apply(ops[at])
    return done


def _cut_database(wal: Path, folder: Path, ops: Sequence[Op], source: random.Random) -> None:
    lengths = [op.offset for op in ops if op.kind == "output"]
    if not lengths:
        return
    folder.mkdir(exist_ok=True)
    shutil.copy(wal / "quarantine.sqlite3", folder)
    log = bytearray((wal / "quarantine.sqlite3-wal").read_bytes()[: lengths[-1]])
    for at in range(lengths[0], len(log), disk.BLOCK_BYTES):
        if source.random() < 0.2:
            log[at : at + disk.BLOCK_BYTES] = bytes(len(log[at : at + disk.BLOCK_BYTES]))
    del log[source.randint(lengths[0], len(log)) :]
    (folder / "quarantine.sqlite3-wal").write_bytes(log)


def test_a_power_cut_loses_no_acknowledged_mail(tmp_path: Path, boots: None) -> None:
    folder = tmp_path / "quarantine"
    shim = Shim(folder)
    with shim.recording():
        store = FileStore.open(str(folder))
        shim.write_line("begin")
        for number in range(12):
            held = hold(store, mail_of(number))
            shim.write_line(f"held {number} {held.id}")
    wal = tmp_path / "wal"
    wal.mkdir()
    for name in ("quarantine.sqlite3", "quarantine.sqlite3-wal"):
        shutil.copy(folder / name, wal)
    store.close()
    begun = next(at for at, op in enumerate(shim.ops) if op.kind == "output")
    assert len(shim.ops) - begun > 12 * 5
    assert cut_power(shim.ops, 30, tmp_path, random.Random(3), wal) == 30


def run_adder(folder: Path, log: Path, mails: int, inject: str = "") -> tuple[list[Op], list[Call]]:
    """Run a program under strace that holds mails in a new store."""
    if shutil.which("strace") is None:
        pytest.fail("this test needs strace: apt-get install strace")
    with (log.parent / "output").open("wb") as output:
        process = subprocess.run(
            [
                *disk.strace_command(log, inject),
                sys.executable,
                "-m",
                "tests.faults.adder",
                str(folder),
                "0",
                str(mails),
            ],
            cwd=ROOT,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"},
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
        )
    assert process.returncode == 0, process.stderr
    return disk.from_strace(log, folder)


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_power_cut_anywhere_loses_no_acknowledged_mail_and_no_action(
    tmp_path: Path, boots: None, report: Report
) -> None:
    ops, _ = run_adder(tmp_path / "quarantine", tmp_path / "log", 40)
    assert len(acknowledged(ops)) == 40
    done = cut_power(ops, 1000, tmp_path, random.Random(4))
    report(
        "4 power cut, unsynced data lost, kept or torn",
        f"{done:,} cuts in {len(ops):,} operations of 40 messages and {len(acknowledged(ops, 'deleted'))} actions",
        "files",
    )
    assert done == 1000


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename", "mkdir"])
def test_a_call_that_fails_never_acknowledges_mail_that_is_not_stored(tmp_path: Path, boots: None, call: str) -> None:
    counting = Shim(tmp_path / "counting")
    add_with(counting, tmp_path / "counting")
    calls = counting.counts[call]
    assert calls
    for number in sorted({*range(min(calls, 8)), calls - 1}):
        folder = tmp_path / f"{call}{number}"
        shim = Shim(folder, fail=(call, number), error=errno.ENOSPC if call == "write" else errno.EIO)
        add_with(shim, folder)
        assert shim.failed
        refused = [op for op in shim.ops if op.data.startswith((b"refused", b"not-opened"))]
        assert len(refused) <= 1
        assert_synced(folder, shim.ops, tmp_path / f"left{call}{number}")


def add_with(shim: Shim, folder: Path) -> None:
    with shim.recording():
        try:
            store = FileStore.open(str(folder))
        except StoreUnavailable as error:
            shim.write_line(f"not-opened {error}")
            return
        for number in range(5):
            try:
                shim.write_line(f"held {number} {hold(store, mail_of(number)).id}")
            except StoreUnavailable as error:
                shim.write_line(f"refused {number} {error}")
        store.close()


def assert_synced(folder: Path, ops: Sequence[Op], left: Path) -> None:
    """Assert that all acknowledged mail is in the folder, once, and would survive a power cut now."""
    if folder.exists():
        assert_whole(f"files://{folder}", acknowledged(ops), states=(State.HELD, State.DELETED))
    power = Disk()
    for op in ops:
        power.apply(op)
    power.remains(left, random.Random(5), keep=0.0)
    for database in left.rglob("quarantine.sqlite3*"):
        database.unlink()  # the mail files alone must be enough
    if (left / folder.name).exists():
        assert_survived(left / folder.name, ops, actions=False)
    else:
        assert not acknowledged(ops)


INJECTED = {
    "openat": ("EIO", "ENOSPC"),
    "write": ("EIO", "ENOSPC"),
    "pwrite64": ("EIO", "ENOSPC"),
    "fsync": ("EIO",),
    "fdatasync": ("EIO",),
    "rename": ("EIO", "ENOSPC"),
    "mkdir": ("EIO", "ENOSPC"),
    "ftruncate": ("EIO",),
    "unlink": ("EIO",),
}
OPENING, HOLDING = 5, 16  # the most calls of each name, while a new store is opened and afterwards


def chosen(numbers: list[int], most: int, source: random.Random) -> list[int]:
    return sorted(source.sample(numbers, min(most, len(numbers))))


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_no_system_call_that_fails_acknowledges_mail_that_is_not_stored(
    tmp_path: Path, boots: None, report: Report
) -> None:
    _, calls = run_adder(tmp_path / "counting", tmp_path / "log", 6)
    source, injected, refused = random.Random(6), Counter[str](), 0
    for name, errors in INJECTED.items():
        opening = [call.number for call in calls if call.name == name and call.lines_written < 2]
        holding = [call.number for call in calls if call.name == name and call.lines_written >= 2]
        for number in chosen(opening, OPENING, source) + chosen(holding, HOLDING, source):
            for error in errors:
                folder = tmp_path / f"{name}-{error}-{number}"
                log = tmp_path / "log"
                ops, done = run_adder(folder, log, 6, f"{name}:error={error}:when={number}")
                assert sum(call.injected for call in done) == 1, (name, error, number)
                lines = [words_of(op)[0] for op in ops if op.kind == "output"]
                assert lines.count("refused") + lines.count("not-opened") <= 1, (name, error, number)
                refused += lines.count("refused") + lines.count("not-opened")
                assert_synced(folder, ops, tmp_path / f"left-{name}-{error}-{number}")
                injected[f"{name} {error}"] += 1
    report(
        "3 a system call fails (strace -e inject)",
        f"{sum(injected.values())} runs: {in_words(injected)}; {refused} times refused",
        "files",
    )


# ---- full disks


def post_until(portal: Portal, numbers: range, status: int, held: dict[int, UUID]) -> Counter[str]:
    """Post mails until one is answered ``status``; add the acknowledged ones to ``held``."""
    answers = Counter[str]()
    for number in numbers:
        got = 0
        body: dict[str, Any] = {}
        with suppress(OSError, http.client.HTTPException):
            got, body = portal.post(number)
        answers[str(got or "broken")] += 1
        if got == 200:
            held[number] = UUID(body["id"])
        else:
            assert got == 503, f"mail {number} answered {got}"
        if got == status:
            return answers
        time.sleep(0.02 if got == 503 else 0)
    raise AssertionError(f"no {status} among {answers}")


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_full_disk_refuses_mail_and_recovers_alone_on_files(
    small_disk: SmallDisk, serve: Serve, report: Report
) -> None:
    url = f"files://{small_disk.folder}/quarantine"
    portal = serve(url)
    held: dict[int, UUID] = {}
    answers = Counter[str]()
    rounds = 10
    for round in range(rounds):
        first = round * 100_000
        answers += post_until(portal, range(first, first + 1000), 200, held)
        small_disk.fill(leave_bytes=round * 150_000)
        answers += post_until(portal, range(first + 1000, first + 20_000), 503, held)
        for number in range(first + 20_000, first + 20_030):
            status, body = portal.post(number)
            answers[str(status)] += 1
            assert status in (200, 503)
            if status == 200:
                held[number] = UUID(body["id"])
        small_disk.make_room()
        status, body = portal.post(first + 30_000)
        assert status == 200  # at once, without a restart
        held[first + 30_000] = UUID(body["id"])
    report("5 disk full while mail arrives", f"{rounds} times full: {in_words(answers)}", "files")
    assert answers["503"] >= 10
    assert_whole(url, held)


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_full_disk_refuses_mail_and_recovers_alone_on_postgres(
    small_disk: SmallDisk, serve: Serve, report: Report
) -> None:
    postgres = OwnPostgres(small_disk.folder / "data")
    try:
        portal = serve(postgres.url)
        held: dict[int, UUID] = {}
        answers = Counter[str]()
        for round in range(3):
            first = round * 100_000
            answers += post_until(portal, range(first, first + 1000), 200, held)
            small_disk.fill(leave_bytes=round * 2_000_000)
            answers += post_until(portal, range(first + 1000, first + 50_000), 503, held)
            small_disk.make_room()
            postgres.start()  # it stops itself when its log cannot grow; the service manager starts it again
            answers += post_until(portal, range(first + 60_000, first + 61_000), 200, held)
        report(
            "5 disk full while mail arrives",
            f"3 times full: {in_words(answers)}",
            "postgres",
        )
        assert_whole(postgres.url, held, maybe=answers["503"])
    finally:
        postgres.stop()


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_on_a_full_disk_releases_and_digests_wait_and_nothing_is_lost_on_files(
    small_disk: SmallDisk, make_settings: MakeSettings, report: Report
) -> None:
    def fill(round: int) -> None:
        small_disk.fill(leave_bytes=round * 4096)

    url = f"files://{small_disk.folder}/quarantine"
    refused = release_and_send_digests(url, 20, fill, small_disk.make_room, make_settings)
    report("5 disk full during releases and digests", f"20 times full, {refused} releases had to wait", "files")
    assert refused


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_on_a_full_disk_releases_and_digests_wait_and_nothing_is_lost_on_postgres(
    small_disk: SmallDisk, make_settings: MakeSettings, report: Report
) -> None:
    postgres = OwnPostgres(small_disk.folder / "data")

    def fill(round: int) -> None:
        small_disk.fill(leave_bytes=round * 4096)
        # The log has reserved space, files that were made in advance; this uses it up.
        with suppress(psycopg.Error), psycopg.connect(postgres.url, autocommit=True) as connection:
            for number in range(20):
                connection.execute("select pg_logical_emit_message(true, 'x', %s)", [str(number)])
                connection.execute("select pg_switch_wal()")

    def repair() -> None:
        small_disk.make_room()
        postgres.start()  # it stops itself when its log cannot grow; the service manager starts it again

    try:
        refused = release_and_send_digests(postgres.url, 3, fill, repair, make_settings)
    finally:
        postgres.stop()
    report("5 disk full during releases and digests", f"3 times full, {refused} releases had to wait", "postgres")
    assert refused


def release_and_send_digests(
    url: str, rounds: int, fill: Callable[[int], None], repair: Callable[[], None], make_settings: MakeSettings
) -> int:
    """Release mail and send digests while the disk is full and afterwards. Return the number of waiting releases."""
    refused = 0
    with SmtpServer() as server:
        site = Site(assemble(make_settings(url, relay__url=server.url, mail__url=server.url), create=True))
        for round in range(rounds):
            data = mail(size_bytes=round * 20_000)
            held = hold(site.store, data)
            fill(round)
            with suppress(QuarantineError):
                site.parts.actions.release(held.id, 0, BY_LINK)
            delivered = len(server.mails)
            with suppress(QuarantineError):
                run.send_due(site.parts, site.now + timedelta(days=1))
            repair()
            wait_until_healthy(site)
            state = site.state(held)
            assert (state is State.RELEASED) <= (delivered == 1)
            refused += state is not State.RELEASED
            site.pass_time(hours=2)  # after every lease
            if state is not State.RELEASED:
                with suppress(AlreadyDone):  # what was kept in memory is recorded by now
                    site.parts.actions.release(held.id, 0, BY_LINK)
            assert site.state(held) is State.RELEASED
            copies = [got for got in server.mails if got.recipients == [ALICE] and data in got.data]
            assert 1 <= len(copies) <= 2
            site.pass_time(days=2)
            news.schedule_news(site.parts, site.now)
            site.pass_time(days=2)
            run.send_due(site.parts, site.now)
            assert any(got.recipients == [BOB] for got in server.mails)
            server.mails.clear()
            site.store.deliveries.move(
                DeliveryId(held.id, 1), State.DELETED, {State.HELD}, BY_OPERATOR, now(), kind=EventKind.DELETED
            )
        site.store.close()
    return refused


def wait_until_healthy(site: Site) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            site.store.ping()
            return
        except StoreUnavailable:
            assert time.monotonic() < deadline, "the store does not recover"
            time.sleep(0.1)
