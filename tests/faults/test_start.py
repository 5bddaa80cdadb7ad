"""Startup: opening a file store reads no more when it held more messages before its last checkpoint.

The short form counts the files and folders that Python opens, the long one all calls of the program, by strace.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from bench import fill
from portal.model.message import held_at
from portal.stores import open_store
from portal.stores.files.database import DATABASE
from portal.stores.files.mail import MailFiles
from tests.builders import hold
from tests.faults.conftest import Report
from tests.faults.serving import ROOT

AFTER = 3  # mails since the last checkpoint
SLACK = 40  # calls: months and years are folders too

OPEN = """
import sys
from portal.stores import open_store
calls = 0
def count(event, arguments):
    global calls
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(sys.argv[1]):
        calls += 1
sys.addaudithook(count)
store = open_store("files://" + sys.argv[1])
print(calls, len(store.messages.ids(None, 1)))
"""

HOLD_AND_DIE = """
import os, sys
from portal.stores import open_store
from tests.builders import hold
store = open_store("files://" + sys.argv[1])
for _ in range(int(sys.argv[2])):
    hold(store, os.urandom(200))
os._exit(9)
"""


def program(text: str, *words: str | Path, before: tuple[str, ...] = ()) -> str:
    """Run a program, which may die, and return its output."""
    command = [*before, sys.executable, "-c", text, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 9), done.stderr
    return done.stdout


def by_python(folder: Path) -> int:
    """Return how many files and folders of the store are opened when the store is opened."""
    return int(program(OPEN, folder).split()[0])


def by_strace(folder: Path) -> int:
    """Return the number of accesses to files and folders of the store while it is opened."""
    if shutil.which("strace") is None:
        pytest.fail("this test needs strace: apt-get install strace")
    log = folder.parent / "strace.log"
    calls = "trace=getdents64,openat,newfstatat"
    program(OPEN, folder, before=("strace", "-f", "--seccomp-bpf", "-y", "-s", "4096", "-o", str(log), "-e", calls))
    return len(re.findall(re.escape(str(folder)), log.read_text("utf-8", "replace")))


def fill_days(folder: Path, mails: int, days: int) -> None:
    """Make a store with mails in the days before yesterday, each with rows and an empty file, at a checkpoint.

    After a power cut an hour before the last checkpoint is read again: just after midnight that is a part of yesterday.
    """
    today = datetime.now(UTC).date()
    past = [(day - timedelta(days=1), first, count) for day, first, count in fill.days_back(mails, days)]
    fill.files(folder, past, people=100)
    files = MailFiles(folder)
    with closing(sqlite3.connect(folder / DATABASE)) as connection:
        for (id,) in connection.execute("select id from message order by id"):
            path = files.path(UUID(bytes=id))
            if not path.parent.exists():
                for number in range(256):
                    (path.parent.parent / f"{number:02x}").mkdir(parents=True)
            path.touch()
    assert held_at(UUID(bytes=id)).date() < today
    open_store(f"files://{folder}").close()


def power_cut(folder: Path) -> None:
    """Simulate a restart of the machine that lost the rows of the last mails."""
    with closing(sqlite3.connect(folder / DATABASE)) as connection, connection:
        connection.execute("update setting set value = 'another' where name = 'store.boot_id'")
        last = [id for (id,) in connection.execute(f"select id from message order by id desc limit {AFTER}")]
        for id in last:
            connection.execute("delete from delivery where message_id = ?", (id,))
            connection.execute("delete from message where id = ?", (id,))


def counts(folder: Path, mails: int, days: int, count: Callable[[Path], int]) -> dict[str, int]:
    """Return the accesses of a startup after a stop, a crash and a power cut."""
    fill_days(folder, mails, days)
    found = {}
    store = open_store(f"files://{folder}")
    for _ in range(AFTER):
        hold(store, os.urandom(200))
    store.close()
    found["stop"] = count(folder)
    program(HOLD_AND_DIE, folder, str(AFTER))
    found["crash"] = count(folder)
    program(HOLD_AND_DIE, folder, str(AFTER))
    power_cut(folder)
    found["power cut"] = count(folder)
    with closing(sqlite3.connect(folder / DATABASE)) as connection:
        assert connection.execute("select count(*) from message").fetchone() == (mails + 3 * AFTER,)
    shutil.rmtree(folder)  # a million files
    return found


@pytest.mark.parametrize(
    ("mails", "days", "count"),
    [
        pytest.param(4_000, 10, by_python, id="short"),
        pytest.param(1_000_000, 30, by_strace, id="long", marks=[pytest.mark.faults, pytest.mark.timeout(3600)]),
    ],
)
def test_startup_reads_no_more_of_a_large_store(
    tmp_path: Path, report: Report, mails: int, days: int, count: Callable[[Path], int]
) -> None:
    small = counts(tmp_path / "small", 200, 2, count)
    large = counts(tmp_path / "large", mails, days, count)
    report(
        "4 startup reads only messages since the last checkpoint",
        f"file and folder accesses with {mails:,} messages (with 200): "
        + ", ".join(f"after a {what} {large[what]:,} ({small[what]:,})" for what in large),
        "files",
    )
    for what, calls in large.items():
        assert calls <= small[what] + SLACK, what
    assert max(small["stop"], small["crash"]) < 256 < small["power cut"], "the folders of one day, if any"
