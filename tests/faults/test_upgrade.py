"""A full site goes from version 0.2.0 to this one while mail comes, then is backed up and restored: nothing is lost.

`UPGRADE_MESSAGES` is the number of messages of the long form.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from portal.stores import Store, open_store
from tests.builders import ALICE, BOB
from tests.faults.conftest import Report
from tests.faults.fill_older import DELETED, RELEASED, recipients_of, small_mail
from tests.faults.older import Site, fill, version_0_2_0
from tests.faults.serving import Senders, mail_of
from tests.faults.standby import SETTINGS, Server, prepare, program
from tests.faults.test_kills import full, in_words
from tests.paths import ROOT
from tests.ports import free_port

MESSAGES = int(os.environ.get("UPGRADE_MESSAGES", "1000000"))
PAUSE_SECONDS = 5
BUSY_PAUSE_SECONDS = 20  # while other tests run
BACKUP_SECONDS = 3600
Contents = dict[UUID, bytes]  # the SHA-256 of the body, of recipients and states, and of the facts of each message


class Paced:
    """Posts of a busy site: two senders make 100 a second at most, and a site with a million messages gets 4."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def post(self, number: int) -> tuple[int, dict[str, Any]]:
        time.sleep(0.02)
        return self._site.post(number)


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="quarantine-upgrade-", dir="/var/tmp") as place:  # a disk, not memory
        Path(place).chmod(0o755)
        yield Path(place)


@pytest.fixture(params=["files", "postgres"])
def store_url(request: pytest.FixtureRequest, home: Path) -> Iterator[str]:
    """The URL of a store that does not exist yet, in folders or a PostgreSQL of its own."""
    if request.param == "files":
        yield f"files://{home}/store"
        return
    prepare(home)
    server = Server(home / "postgres", free_port())
    program("initdb", "--auth=trust", "--encoding=utf8", "--username=postgres", "-D", server.data)
    with (server.data / "postgresql.conf").open("a") as file:
        file.write(SETTINGS)
    server.start()
    yield url_of(server)
    server.stop()


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def url_of(server: Server, name: str = "postgres") -> str:
    return f"postgresql://postgres@127.0.0.1:{server.port}/{name}"


def contents_of(store_url: str) -> Contents:
    """Return what is in a store."""
    store, ids = open_store(store_url), list[UUID]()
    while page := store.messages.ids(ids[-1] if ids else None, 10_000):
        ids += page
    store.close()
    parts = [(store_url, ids[first : first + 2000]) for first in range(0, len(ids), 2000)]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        return {id: found for part in pool.map(_contents, parts) for id, found in part.items()}


_opened: dict[str, Store] = {}  # in a process of the pool


def _contents(part: tuple[str, list[UUID]]) -> Contents:
    url, ids = part
    store = _opened.setdefault(url, open_store(url))
    found = {}
    for id in ids:
        deliveries = store.deliveries.of_message(id)
        body = hashlib.sha256(b"".join(store.messages.body(id))).digest()
        states = _states([(each.recipient, each.state.value) for each in deliveries])
        found[id] = body + states + hashlib.sha256(repr(deliveries[0].message).encode()).digest()
    return found


def _states(deliveries: list[tuple[str, str]]) -> bytes:
    return hashlib.sha256(repr(sorted(deliveries)).encode()).digest()


def filled(lists: list[Path]) -> dict[UUID, bytes]:
    """Return what the store must have of the messages in these lists, without their facts."""
    expected = {}
    for line in (line for path in lists for line in path.read_text().splitlines()):
        number, id = int(line.split()[0]), UUID(line.split()[1])
        states = ["deleted" if number % 50 == DELETED else "held", "released" if number % 50 == RELEASED else "held"]
        expected[id] = hashlib.sha256(small_mail(number)).digest() + _states([*zip(recipients_of(number), states)])
    return expected


def posted(acknowledged: dict[int, UUID]) -> dict[UUID, bytes]:
    """The same for messages that were posted."""
    states = _states([(ALICE, "held"), (BOB, "held")])
    return {id: hashlib.sha256(mail_of(number)).digest() + states for number, id in acknowledged.items()}


def assert_all_there(found: Contents, expected: dict[UUID, bytes]) -> None:
    wrong = [id for id, value in expected.items() if found.get(id, b"")[:64] != value]
    assert not wrong, f"{len(wrong)} of {len(expected)} messages are lost or have changed, such as {wrong[0]}"


@pytest.mark.parametrize("messages", [1000, full(MESSAGES, seconds=6 * 3600, alone=True)])
def test_a_full_site_is_upgraded_backed_up_and_restored_while_mail_comes(
    home: Path, store_url: str, messages: int, closing: ExitStack, report: Report
) -> None:
    older = version_0_2_0(home)
    site = Site(store_url, home / "site", older)
    closing.callback(site.close)
    site.command("init")
    expected = filled(fill(older, store_url, messages, home))
    site.start()
    senders = Senders(Paced(site), threads=2)
    with senders.sending():
        time.sleep(2)
        began = time.monotonic()
        site.code = ROOT
        site.command("init")
        initialised = time.monotonic() - began
        stopped, started = site.stop(), site.start()
        time.sleep(5 if messages < MESSAGES else 60)  # for what the new program does first
        pause_seconds = senders.longest_pause(began)
        before = dict(senders.acknowledged)
        backup_began = time.monotonic()
        restored = restore_while_mail_comes(site, store_url, home, closing)
        backed_up = time.monotonic() - backup_began
    report(
        "26 upgrade of a full site from version 0.2.0, backup and restore",
        f"{messages:,} messages, and {senders.done:,} during it: {in_words(senders.answers)}; init {initialised:.1f} s,"
        f" stop {stopped:.1f} s, start {started:.1f} s, longest time without an accepted post {pause_seconds:.1f} s; "
        f"backups and restores {backed_up:.0f} s, {len(restored)} compared",
    )
    assert site.tracebacks() == 0
    assert pause_seconds <= (BUSY_PAUSE_SECONDS if messages < MESSAGES else PAUSE_SECONDS)
    found = contents_of(store_url)
    assert_all_there(found, expected | posted(senders.acknowledged))
    assert len(found) == messages + senders.done
    wanted = {id: found[id] for id in [*expected, *before.values()]}
    for name, url in restored.items():
        copied = contents_of(url)
        assert {id: copied.get(id) for id in wanted} == wanted, name


def restore_while_mail_comes(site: Site, store_url: str, home: Path, closing: ExitStack) -> dict[str, str]:
    """Back up and restore as docs/operate.md says, in each way. Return the URLs of the restored stores."""
    if store_url.startswith("files:"):
        copy = home / "restored"
        copy.mkdir()
        archive = home / "quarantine.tar"
        subprocess.run(["tar", "-C", home / "store", "-cf", archive, "mail", "journal"], check=True)
        subprocess.run(["tar", "-C", copy, "-xpf", archive], check=True)
        archive.unlink()
        site.command("reindex", store_url=f"files://{copy}")
        return {"tar": f"files://{copy}"}
    server = Server(home / "base-backup", free_port())
    dump = home / "dump"
    of_site = Server(home / "postgres", int(store_url.rpartition(":")[2].partition("/")[0]))
    program("pg_dump", "-Fc", "-f", dump, "-d", of_site.dsn, seconds=BACKUP_SECONDS)
    of_site.query("create database restored encoding 'UTF8' template template0")
    to = url_of(of_site, "restored")
    program("pg_restore", "--exit-on-error", "-d", to, dump, seconds=BACKUP_SECONDS)
    site.command("init", store_url=to)
    program("pg_basebackup", "-X", "stream", "-c", "fast", "-d", of_site.dsn, "-D", server.data, seconds=BACKUP_SECONDS)
    server.start()
    closing.callback(server.stop)
    site.command("init", store_url=url_of(server))
    return {"pg_dump": to, "base backup": url_of(server)}
