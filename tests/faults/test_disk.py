"""Disks that fail, fill up or lose power: what was answered is there; what is half is never seen.

The long forms use strace, which sees SQLite's calls too (`apt-get install strace`); the short ones watch Python's.
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
from portal.model.errors import QuarantineError, StoreUnavailable
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

KEEP = (0.0, 0.5, 1.0, 0.1, 0.9)  # how much of what was not synced survives, by turns


def said(op: Op) -> list[str]:
    return op.data.decode().split()


def acknowledged(ops: Sequence[Op], what: str = "held") -> dict[int, UUID]:
    lines = [said(op) for op in ops if op.kind == "say"]
    return {int(line[1]): UUID(line[2]) for line in lines if line and line[0] == what}


@pytest.fixture
def boots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine may be started anew, and no clock is set back: stores look over only what they must."""
    monkeypatch.setattr(files, "_BOOT_ID", tmp_path / "boot_id")
    monkeypatch.setattr(files, "_CLOCK_MARGIN", timedelta(milliseconds=1))  # ids are cut to it
    boot()


def boot() -> None:
    files._BOOT_ID.write_text(f"{uuid4()}\n")


def assert_survived(folder: Path, ops: Sequence[Op], *, actions: bool) -> None:
    """Open what a power cut left after ``ops`` and compare it with what had been said by then."""
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
        # The one being written, and what was refused after it had been written, may be there as well, but whole.
        mails = {mail_of(number) for number in range(max(held, default=0) + 7)} if len(there) > len(held) else set()
        for id in there - set(held.values()):
            assert read(store, id) in mails
        for number, id in list(held.items())[-2:]:
            assert hold(store, mail_of(number)) == Held(id, known=True)
        hold(store, mail_of(10_001))
    finally:
        store.close()


def cut_power(ops: list[Op], cuts: int, folder: Path, source: random.Random, wal: Path | None = None) -> int:
    """Cut the power ``cuts`` times at random operations; returns how many there were.

    ``wal``: a database and its log, copied beside what is left, the log cut in what had not been synced.
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
    lengths = [op.offset for op in ops if op.kind == "say"]
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
        shim.say("begin")
        for number in range(12):
            held = hold(store, mail_of(number))
            shim.say(f"held {number} {held.id}")
    wal = tmp_path / "wal"
    wal.mkdir()
    for name in ("quarantine.sqlite3", "quarantine.sqlite3-wal"):
        shutil.copy(folder / name, wal)
    store.close()
    begun = next(at for at, op in enumerate(shim.ops) if op.kind == "say")
    assert len(shim.ops) - begun > 12 * 5
    assert cut_power(shim.ops, 30, tmp_path, random.Random(3), wal) == 30


def run_adder(folder: Path, log: Path, mails: int, inject: str = "") -> tuple[list[Op], list[Call]]:
    """Hold mails in a new store in a program under strace."""
    if shutil.which("strace") is None:
        pytest.fail("this test needs strace: apt-get install strace")
    with (log.parent / "said").open("wb") as said:
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
            stdout=said,
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
        "4 power cut, all that was not synced lost, kept or torn",
        f"{done:,} cuts in {len(ops):,} operations of 40 mails and {len(acknowledged(ops, 'deleted'))} acts",
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
            shim.say(f"not-opened {error}")
            return
        for number in range(5):
            try:
                shim.say(f"held {number} {hold(store, mail_of(number)).id}")
            except StoreUnavailable as error:
                shim.say(f"refused {number} {error}")
        store.close()


def assert_synced(folder: Path, ops: Sequence[Op], left: Path) -> None:
    """Everything acknowledged is in the folder, once, and would be there if the power failed now."""
    if folder.exists():
        assert_whole(f"files://{folder}", acknowledged(ops), states=(State.HELD, State.DELETED))
    power = Disk()
    for op in ops:
        power.apply(op)
    power.remains(left, random.Random(5), keep=0.0)
    for database in left.rglob("quarantine.sqlite3*"):
        database.unlink()  # the mail files alone must do
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
OPENING, HOLDING = 5, 16  # so many calls of each name at most, while a new store is opened and afterwards


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
        opening = [call.number for call in calls if call.name == name and call.said < 2]
        holding = [call.number for call in calls if call.name == name and call.said >= 2]
        for number in chosen(opening, OPENING, source) + chosen(holding, HOLDING, source):
            for error in errors:
                folder = tmp_path / f"{name}-{error}-{number}"
                log = tmp_path / "log"
                ops, done = run_adder(folder, log, 6, f"{name}:error={error}:when={number}")
                assert sum(call.injected for call in done) == 1, (name, error, number)
                lines = [said(op)[0] for op in ops if op.kind == "say"]
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
    """Post mails until one is answered ``status``; notes what was acknowledged."""
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
    for round in range(10):
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
    report("5 disk full while mail comes", f"3 times full: {in_words(answers)}", "files")
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
            "5 disk full while mail comes",
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
    refused = release_and_tell(url, 20, fill, small_disk.make_room, make_settings)
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
        # The log has room of its own: files made ahead, which are used up here.
        with suppress(psycopg.Error), psycopg.connect(postgres.url, autocommit=True) as connection:
            for number in range(20):
                connection.execute("select pg_logical_emit_message(true, 'x', %s)", [str(number)])
                connection.execute("select pg_switch_wal()")

    def mend() -> None:
        small_disk.make_room()
        postgres.start()  # it stops itself when its log cannot grow; the service manager starts it again

    try:
        refused = release_and_tell(postgres.url, 3, fill, mend, make_settings)
    finally:
        postgres.stop()
    report("5 disk full during releases and digests", f"3 times full, {refused} releases had to wait", "postgres")
    assert refused


def release_and_tell(
    url: str, rounds: int, fill: Callable[[int], None], mend: Callable[[], None], make_settings: MakeSettings
) -> int:
    """Release mail and send digests while the disk is full, and again when it is not; returns how many had to wait."""
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
            mend()
            wait_until_healthy(site)
            state = site.state(held)
            assert (state is State.RELEASED) <= (delivered == 1)
            refused += state is not State.RELEASED
            site.pass_time(hours=2)  # beyond every lease
            if state is not State.RELEASED:
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
            assert time.monotonic() < deadline, "the store does not come back"
            time.sleep(0.1)
