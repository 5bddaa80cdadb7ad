"""The portal under uWSGI with the shipped uwsgi.ini, clients that retry as senders do, and the check after every fault:
each message that was answered 200 is in the store, whole, and once."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count, pairwise
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import psycopg

from portal.model.message import Delivery, Filter, State
from portal.stores import Store, open_store
from tests.builders import ALICE, BOB, SENDER, now
from tests.conftest import _pgserver
from tests.ports import free_port

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
PATIENCE_SECONDS = 60  # for one message, in spite of all faults


def mail_of(number: int) -> bytes:
    """Return the mail with this number, always the same: most are small, some 150 KB, few need several statements."""
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
    """uWSGI with the shipped uwsgi.ini: ``workers`` workers, their threads, and the digest process."""

    def __init__(self, store_url: str, folder: Path, environ: dict[str, str], workers: int = 4) -> None:
        folder.mkdir()
        self._workers = workers
        self.log = folder / "uwsgi.log"
        self.port = free_port()
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
        log = self.log.read_text("utf-8", "replace")
        self.stop()
        raise AssertionError(f"the portal did not start:\n{log}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            # A worker that is loading the application misses the signal; uWSGI waits a minute for it.
            for pid in [*children(self.process.pid), self.process.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()

    def wait_for_all_workers(self) -> None:
        """Return when all have loaded the application; the first one answers before."""
        for _ in range(300):
            if self.log.read_bytes().count(b" ready in ") >= self._workers:
                return
            time.sleep(0.1)
        raise AssertionError("not all workers came up")

    def workers(self) -> list[int]:
        """Return the pids of the running workers."""
        return [pid for pid in children(self.process.pid) if "uwsgi.ini" in command(pid)]

    def rss_bytes(self) -> int:
        """Return the memory of all workers."""
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.workers()) * 4096

    def tracebacks(self) -> int:
        """Return the number of tracebacks that the portal logged. uWSGI's master sleeps when workers die too fast. If
        its pipe is full by then, log lines are lost, and that causes a traceback which is not counted."""
        log = self.log.read_bytes()
        return log.count(b"Traceback (most recent call last)") - log.count(b"BlockingIOError: [Errno 11] write could")

    def request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Send a request and return status and body. Raises OSError and HTTPException."""
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
        # A worker that has no store yet answers in plain text.
        return status, json.loads(body) if status == 200 else {}


def children(pid: int) -> list[int]:
    with suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    return ""


class Posts(Protocol):
    """A portal, or several that take posts in turn."""

    def post(self, number: int) -> tuple[int, dict[str, Any]]: ...


class Senders:
    """Threads that post numbered mails and retry each until it is accepted, like a sender after a deferral."""

    def __init__(self, portal: Posts, threads: int = 8) -> None:
        self._portal = portal
        self._threads = threads
        self._numbers = count()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.acknowledged: dict[int, UUID] = {}
        self.answers: Counter[str] = Counter()  # "200 held", "503", "broken"
        self.accepted_at: list[float] = []  # the times of the answers 200
        self.failed_at: list[float] = []  # the start times of posts that were not answered 200
        self.failure: BaseException | None = None

    @contextmanager
    def sending(self, posts: int | None = None) -> Iterator[None]:
        """Send during the block. At its end, wait until ``posts`` mails are accepted, or stop sending if None."""
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

    def longest_pause(self, since: float) -> float:
        """Return the longest time in seconds without an answer 200, from ``since`` (time.monotonic) to the last one."""
        times = sorted([since, *(at for at in self.accepted_at if at > since)])
        return max((after - before for before, after in pairwise(times)), default=0.0)

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
        """Post one mail until it is accepted."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            began = time.monotonic()
            try:
                status, body = self._portal.post(number)
                outcome = f"{status} {body.get('status', '')}".strip()
            except (OSError, http.client.HTTPException, ValueError):
                status, body, outcome = 0, {}, "broken"
            with self._lock:
                self.answers[outcome] += 1
                if status == 200:
                    assert body["status"] in ("held", "known")
                    self.acknowledged[number] = UUID(body["id"])
                    self.accepted_at.append(time.monotonic())
                    return
                self.failed_at.append(began)
            assert status in (0, 502, 503), f"mail {number} answered {status} {body}"
            assert time.monotonic() < deadline, f"mail {number} was not accepted for {PATIENCE_SECONDS} s"
            time.sleep(0.02)


@contextmanager
def repeating(request: Callable[[int], int]) -> Iterator[list[tuple[int, float]]]:
    """Call ``request`` with the numbers from 0, two at a time, during the block. Yield the list of the statuses that it
    returned and its seconds."""
    answered: list[tuple[int, float]] = []
    done = threading.Event()

    def run(first: int) -> None:
        for number in count(first, 2):
            if done.is_set():
                return
            began = time.monotonic()
            status = request(number)
            answered.append((status, time.monotonic() - began))

    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(run, first) for first in range(2)]
        try:
            yield answered
        finally:
            done.set()
        for each in running:
            each.result()


def percentile_99(answered: Collection[tuple[int, float]]) -> float:
    """Return the seconds within which 99 % of the requests of `repeating` were answered."""
    return sorted(seconds for _, seconds in answered)[len(answered) * 99 // 100]


def all_deliveries(store: Store) -> Iterator[Delivery]:
    """Yield all deliveries of a store."""
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
    """Assert that a store holds exactly the acknowledged mails, byte-identical, once, for both recipients.

    ``maybe``: the number of further mails, whole ones, that may be there because their replies were lost.
    """
    assert len(set(acknowledged.values())) == len(acknowledged), "two mails have the same id"
    store = open_store(store_url)
    try:
        # A kill may leave files without rows; purge repairs them once they are an hour old.
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
            "select count(*) from message m where not exists (select from seen s where s.message_id = m.id)"
            " and not exists (select from seen_before s where s.message_id = m.id)",
        ):
            assert connection.execute(query.encode()).fetchone() == (0,), query


class OwnPostgres:
    """A PostgreSQL that may be killed and started again."""

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
        """Start the server if it is not running, and wait until it accepts connections."""
        deadline = time.monotonic() + 60
        while True:
            try:
                with psycopg.connect(self.url, connect_timeout=2):
                    return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, "PostgreSQL did not start again"
            if not self._is_running():
                # This fails while processes of the killed server still exist.
                with suppress(subprocess.SubprocessError):
                    self._server.ensure_postgres_running()
            time.sleep(0.02)

    def halt(self) -> None:
        """Stop the server until `start` is called: all connections are ended, and new ones refused."""
        self._server.stop()

    def restart(self) -> None:
        self.halt()
        self.start()

    def kill(self, source: random.Random, postmaster: bool) -> None:
        """Kill -9 the postmaster, or one of its processes: a session of the portal if there is one."""
        pid = self._server.get_pid()
        if not postmaster:
            below = children(pid)
            sessions = [child for child in below if "[local]" in command(child)]
            pid = source.choice(sessions or below or [pid])
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        # A postmaster that recovers ignores the death of another process (HandleChildCrash in postmaster.c). If that
        # was the startup process, it waits for it without a limit. So it must notice this kill before the next one.
        while not postmaster and Path(f"/proc/{pid}").exists():
            time.sleep(0.001)

    def terminate_sessions(self) -> int:
        """Call pg_terminate_backend for every connection of the portal and return their number."""
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
        """Fill the disk but for ``leave_bytes``."""
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
