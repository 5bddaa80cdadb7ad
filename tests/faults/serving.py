"""The portal as it runs at a site – uWSGI, the shipped uwsgi.ini – with clients that retry as senders do, and the one
question after every fault: is what was answered 200 there, whole, and once?"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from portal.model.message import Delivery, Filter, State
from portal.stores import Store, open_store
from tests.builders import ALICE, BOB, SENDER, now
from tests.conftest import _pgserver

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
META = {
    "X-Rspamd-rcpt": json.dumps([ALICE, BOB]),
    "X-Rspamd-from": SENDER,
    "X-Rspamd-action": "reject",
    "X-Rspamd-score": "17.5",
    "X-Rspamd-symbols": json.dumps([{"name": "BAYES_SPAM", "score": 5.1, "options": ["99 %"]}]),
    "X-Rspamd-subject": "Offer",
    "X-Rspamd-ip": "198.51.100.9",
    "Content-Type": "text/plain",
}
PATIENCE_SECONDS = 60  # for one mail, through all faults


def mail_of(number: int) -> bytes:
    """The mail with this number, always the same: mostly small, some 150 KB, few above what a store does at once."""
    source = random.Random(number)
    head = (
        f"From: Promo <{SENDER}>\r\nTo: {ALICE}, {BOB}\r\nSubject: Offer {number}\r\n"
        f"Message-ID: <{number}@example.net>\r\n\r\n"
    ).encode()
    if number % 100 == 50:
        return head + source.randbytes(1_600_000)
    if number % 10 == 5:
        return head + source.randbytes(150_000)
    return head + b" ".join(source.choices([b"buy", b"now", b"cheap", b"pills", b"\r\n"], k=source.randint(10, 1500)))


class Portal:
    """uWSGI with the shipped uwsgi.ini: four workers or as many as said, its threads, and the digest process."""

    def __init__(self, store_url: str, folder: Path, environ: dict[str, str], workers: int = 4) -> None:
        folder.mkdir()
        self._workers = workers
        self.log = folder / "uwsgi.log"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        (folder / "quarantine.toml").touch()
        self.process = subprocess.Popen(
            [
                str(BIN / "uwsgi"),
                "--ini",
                "uwsgi.ini",
                "--processes",
                str(workers),
                "--http-socket",
                f"127.0.0.1:{self.port}",
                "--logto",
                str(self.log),
            ],
            cwd=ROOT,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("QUARANTINE_")},
                "PATH": f"{BIN}:{os.environ['PATH']}",  # the digest process is started by name
                "QUARANTINE_CONFIG": str(folder / "quarantine.toml"),
                "QUARANTINE_SOCKET": f"{folder}/socket",
                "QUARANTINE_STORE__URL": store_url,
                "QUARANTINE_LOCAL_DOMAINS": "example.org",
                "QUARANTINE_MAIL__FROM_ADDRESS": "quarantine@example.org",
                "QUARANTINE_LINKS__KEYS_FILE": f"{folder}/links.keys",
                **environ,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(300):
            with suppress(OSError, http.client.HTTPException):
                if self.request("GET", "/quarantine/healthz")[0] == 200:
                    return
            time.sleep(0.1)
        said = self.log.read_text("utf-8", "replace")
        self.stop()
        raise AssertionError(f"the portal did not start:\n{said}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            # A worker that is just loading the application misses the signal; uWSGI waits a minute for it.
            for pid in [*children(self.process.pid), self.process.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()

    def wait_for_all_workers(self) -> None:
        """Return when each has loaded the application; the first answers while the others still load."""
        for _ in range(300):
            if self.log.read_bytes().count(b" ready in ") >= self._workers:
                return
            time.sleep(0.1)
        raise AssertionError("not all workers came up")

    def workers(self) -> list[int]:
        """The pids of the workers that live now."""
        return [pid for pid in children(self.process.pid) if "uwsgi.ini" in command(pid)]

    def rss_bytes(self) -> int:
        """The memory of all workers."""
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.workers()) * 4096

    def tracebacks(self) -> int:
        """How many the portal logged. A full pipe to uWSGI's master, which sleeps when workers die too fast, costs
        log lines and says so with one as well."""
        log = self.log.read_bytes()
        return log.count(b"Traceback (most recent call last)") - log.count(b"BlockingIOError: [Errno 11] write could")

    def request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """One request: status and body. Raises OSError and HTTPException."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def post(self, number: int) -> tuple[int, dict[str, Any]]:
        """Post the mail with this number once."""
        status, body = self.request("POST", "/quarantine/", mail_of(number), META)
        # A worker that has no store yet says so in words.
        return status, json.loads(body) if status == 200 else {}


def children(pid: int) -> list[int]:
    with suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    return ""


class Senders:
    """Threads that post numbered mails and, like a sender that was told to try later, again until it is taken."""

    def __init__(self, portal: Portal, threads: int = 8) -> None:
        self._portal = portal
        self._threads = threads
        self._numbers = count()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.acknowledged: dict[int, UUID] = {}
        self.answers: Counter[str] = Counter()  # "200 held", "503", "broken"
        self.failed_at: list[float] = []  # when posts began that were not answered 200
        self.failure: BaseException | None = None

    @contextmanager
    def sending(self, posts: int | None = None) -> Iterator[None]:
        """Send beside the block; leaving it waits until ``posts`` mails are taken, or ends the sending."""
        self._stop.clear()
        running = [threading.Thread(target=self._run, args=(posts,)) for _ in range(self._threads)]
        for thread in running:
            thread.start()
        try:
            yield
            if posts is None:
                self._stop.set()
        except BaseException:
            self._stop.set()
            raise
        finally:
            for thread in running:
                thread.join()
        if self.failure:
            raise self.failure

    @property
    def done(self) -> int:
        return len(self.acknowledged)

    def _run(self, posts: int | None) -> None:
        try:
            while not self._stop.is_set() and not self.failure:
                with self._lock:
                    number = next(self._numbers)
                if posts is not None and number >= posts:
                    return
                self.deliver(number)
        except BaseException as error:
            self.failure = error

    def deliver(self, number: int) -> None:
        """Post one mail until it is taken."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            began = time.monotonic()
            try:
                status, body = self._portal.post(number)
                said = f"{status} {body.get('status', '')}".strip()
            except (OSError, http.client.HTTPException, ValueError):
                status, body, said = 0, {}, "broken"
            with self._lock:
                self.answers[said] += 1
                if status == 200:
                    assert body["status"] in ("held", "known")
                    self.acknowledged[number] = UUID(body["id"])
                    return
                self.failed_at.append(began)
            assert status in (0, 502, 503), f"mail {number} answered {status} {body}"
            assert time.monotonic() < deadline, f"mail {number} was not taken for {PATIENCE_SECONDS} s"
            time.sleep(0.02)


def all_deliveries(store: Store) -> Iterator[Delivery]:
    """Everything in a store."""
    before = None
    while True:
        page = store.deliveries.search(Filter(), 500, before)
        yield from page.deliveries
        if page.next is None:
            return
        before = page.next


def read(store: Store, id: UUID) -> bytes:
    return b"".join(store.messages.body(id))


def assert_whole(
    store_url: str, acknowledged: dict[int, UUID], *, maybe: int = 0, states: Collection[State] = (State.HELD,)
) -> None:
    """Whether a store holds exactly what was acknowledged: byte-identical, once, for both recipients, nothing half.

    ``maybe``: so many mails more may be there, whole, whose answer never came.
    """
    assert len(set(acknowledged.values())) == len(acknowledged), "two mails were given one id"
    store = open_store(store_url)
    try:
        # Files without rows, left by a kill between the two, are settled by purge once they are an hour old.
        store.purge(now() - timedelta(days=30), now() + timedelta(hours=2))
        there: dict[UUID, list[Delivery]] = {}
        for delivery in all_deliveries(store):
            there.setdefault(delivery.id, []).append(delivery)
        lost = set(acknowledged.values()) - set(there)
        assert not lost, f"{len(lost)} acknowledged mails are gone"
        more = set(there) - set(acknowledged.values())
        assert len(more) <= maybe, f"{len(more)} messages are there twice or were never acknowledged"
        for deliveries in there.values():
            assert sorted(d.recipient for d in deliveries) == [ALICE, BOB]
            assert all(d.state in states for d in deliveries)
        for number, id in acknowledged.items():
            assert read(store, id) == mail_of(number), f"mail {number} has changed"
        bodies = [read(store, id) for id in more]
        assert len(set(bodies)) == len(bodies)
        if acknowledged:
            assert store.recipients.get(ALICE).news_since is not None
        if store_url.startswith("files:"):
            _assert_only_whole_files(Path(store_url.removeprefix("files://")), set(there))
        else:
            _assert_only_whole_rows(store_url)
    finally:
        store.close()


def _assert_only_whole_files(folder: Path, ids: set[UUID]) -> None:
    files = [path.name for path in (folder / "mail").rglob("*") if path.is_file()]
    assert sorted(files) == sorted(f"{id}.eml.zst" for id in ids)
    assert list((folder / "tmp").iterdir()) == []


def _assert_only_whole_rows(url: str) -> None:
    with psycopg.connect(url) as connection:
        for query in (
            "select count(*) from delivery d where not exists (select from message m where m.id = d.message_id)",
            "select count(*) from body_chunk c where not exists (select from message m where m.body_id = c.body_id)",
            "select count(*) from seen s where not exists (select from message m where m.id = s.message_id)",
            "select count(*) from message m where not exists (select from delivery d where d.message_id = m.id)",
            "select count(*) from message m where not exists (select from seen s where s.message_id = m.id)",
        ):
            assert connection.execute(query.encode()).fetchone() == (0,), query


class OwnPostgres:
    """A PostgreSQL that may be killed and comes back."""

    def __init__(self, data: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._server = _pgserver().get_server(data, cleanup_mode="stop")
        self.url = str(self._server.get_uri())
        with psycopg.connect(self.url) as connection:
            for setting in ("fsync", "synchronous_commit", "full_page_writes"):
                assert connection.execute(f"show {setting}").fetchone() == ("on",)
        open_store(self.url, create=True).close()

    def stop(self) -> None:
        self.start()
        self._server.cleanup()

    def start(self) -> None:
        """Start it if it does not run, and wait until it takes connections."""
        deadline = time.monotonic() + 60
        while True:
            try:
                with psycopg.connect(self.url, connect_timeout=2):
                    return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, "PostgreSQL did not come back"
            if not self._is_running():
                # Fails while processes of the killed one are still there.
                with suppress(subprocess.SubprocessError):
                    self._server.ensure_postgres_running()
            time.sleep(0.02)

    def restart(self) -> None:
        self._server.stop()
        self.start()

    def kill(self, source: random.Random, postmaster: bool) -> None:
        """kill -9 of the postmaster, or of one of its processes: a session of the portal where there is one."""
        pid = self._server.get_pid()
        if not postmaster:
            below = children(pid)
            sessions = [child for child in below if "[local]" in command(child)]
            pid = source.choice(sessions or below or [pid])
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        # A postmaster that recovers takes no notice of another death (HandleChildCrash in its postmaster.c), and waits
        # for ever for a startup process that is killed then: the next kill must not come before it saw this one.
        while not postmaster and Path(f"/proc/{pid}").exists():
            time.sleep(0.001)

    def terminate_sessions(self) -> int:
        """pg_terminate_backend for every connection of the portal; returns how many there were."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'quarantine'"
            ).rowcount

    def _is_running(self) -> bool:
        return Path(f"/proc/{self._server.get_pid()}").exists()


class SmallDisk:
    """A file system that may be filled up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, leave_bytes: int = 0) -> None:
        """Use up all room but ``leave_bytes``."""
        with (self.folder / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(1 << 16))
        with (self.folder / "filler2").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(512))
        if leave_bytes:
            os.truncate(self.folder / "filler", (self.folder / "filler").stat().st_size - leave_bytes)

    def make_room(self) -> None:
        for name in ("filler", "filler2"):
            (self.folder / name).unlink(missing_ok=True)
