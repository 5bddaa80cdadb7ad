"""The slowest posts of Rspamd while pages do slow work: releases to a mail server that hangs, and previews."""

from __future__ import annotations

import http.client
import json
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from bench import fill, load
from bench.rig import CLIENTS, WORKERS, Effort, Row, Served, own_folder, p99, postgres, print_progress, served, spread
from portal.keys import read_keys
from portal.model.links import Action, Links
from portal.model.message import random_token
from portal.stores import open_store
from portal.web.pages import sha256

THREADS = 16  # as in uwsgi.ini
PRESSED = WORKERS * THREADS
PREVIEWS = 31
ORIGIN = "http://127.0.0.1:8080"  # the default of public_url
BUSY = b"Too many messages are being opened"
FILL_SECONDS = 5.0
SECONDS_MAX = 7.0  # a release waits ten seconds for a reply


def beside_files(effort: Effort) -> list[Row]:
    """Measure the p99 of ingest into files."""
    with own_folder() as path:
        return _rows("files", f"files://{path}/store", path / "links.keys", effort)


def beside_postgres(effort: Effort) -> list[Row]:
    """Measure the p99 of ingest into PostgreSQL."""
    with own_folder() as path, postgres() as dsn:
        open_store(dsn, create=True).close()
        return _rows("PostgreSQL", dsn, path / "links.keys", effort)


def _rows(name: str, url: str, keys: Path, effort: Effort) -> list[Row]:
    environment = {"QUARANTINE_STORE__URL": url, "QUARANTINE_LINKS__KEYS_FILE": str(keys)}
    links = Links(read_keys(keys, create=True), f"{ORIGIN}/quarantine", timedelta(days=14))
    with (
        _silent_server() as silent,
        served(
            "portal.wsgi:application", THREADS, workers=WORKERS, QUARANTINE_RELAY__URL=silent.url, **environment
        ) as site,
    ):
        load.run(site.port, FILL_SECONDS, CLIENTS, 100_000_000)
        bench = _Bench(site, url, links, _ids(url), silent, effort)
        return [
            bench.row(f"a post beside {PRESSED} releases that hang, {name}, p99 in ms", bench.releases),
            bench.row(f"a post beside {PREVIEWS} previews at once, {name}, p99 in ms", bench.previews),
        ]


def _ids(url: str) -> list[UUID]:
    store = open_store(url)
    try:
        return list(store.messages.ids(None, 100_000))
    finally:
        store.close()


class _Bench:
    def __init__(
        self, site: Served, url: str, links: Links, held: list[UUID], silent: _SilentServer, effort: Effort
    ) -> None:
        self._site, self._url, self._links, self._held = site, url, links, held
        self._silent, self._effort = silent, effort
        self._first = 200_000_000

    def row(self, what: str, beside: Callable[[], Iterator[None]]) -> Row:
        busy, quiet = [], []
        for _ in range(self._effort.rounds):
            quiet.append(self._p99())
            with contextmanager(beside)():
                busy.append(self._p99())
            print_progress(f"{busy[-1]:.0f} ms / {quiet[-1]:.0f} ms alone")
        ratio = statistics.median(a / b for a, b in zip(busy, quiet, strict=True))
        return Row(what, spread(busy), f"{spread(quiet)} alone", ratio, "≤ 1,000")

    def _p99(self) -> float:
        self._first += 100_000_000
        _, latencies = load.run(self._site.port, min(self._effort.seconds, SECONDS_MAX), CLIENTS, self._first)
        return p99(latencies) * 1000

    def releases(self) -> Iterator[None]:
        """Press links at once and wait until only those that hang have no answer. Afterwards let them end."""
        now = datetime.now(UTC)
        tokens = [  # of a digest each: the links of one digest have a rate limit
            self._links.token(Action.RELEASE, self._held.pop(), 0, now - timedelta(seconds=n)) for n in range(PRESSED)
        ]
        with ThreadPoolExecutor(PRESSED) as pool:
            pressed = [pool.submit(self._press, token) for token in tokens]
            _wait_for(lambda: self._silent.waiting and self._silent.waiting == _open(pressed))
            yield
            self._silent.end()

    def previews(self) -> Iterator[None]:
        """Let each recipient of one message open it again and again."""
        sessions = {random_token(32): fill.person(number) for number in range(PREVIEWS)}
        path = f"/quarantine/messages/{self._hold(list(sessions.values()))}/"
        store = open_store(self._url)
        for session, recipient in sessions.items():
            store.sign_ins.start_session(sha256(session), recipient, datetime.now(UTC))
        store.close()
        ended = threading.Event()
        shown: list[str] = []
        busy: list[str] = []

        def client(session: str) -> None:
            while not ended.is_set():
                page = self._request("GET", path, {"Cookie": f"__Host-quarantine-session={session}"}, b"", 200)
                (busy if BUSY in page else shown).append(session)

        with ThreadPoolExecutor(PREVIEWS) as pool:
            clients = [pool.submit(client, session) for session in sessions]
            _wait_for(lambda: shown)
            yield
            ended.set()
            for each in clients:
                each.result()
        print_progress(f"{len(shown)} previews shown, {len(busy)} pages without one")

    def _hold(self, recipients: list[str]) -> UUID:
        values = load.METADATA | {"rcpt": json.dumps(recipients)}
        headers = {f"X-Rspamd-{name}": value for name, value in values.items()} | {"Content-Type": "text/plain"}
        self._first += 1
        mail = load.mail_head(self._first) + load.words(load.MAIL_BYTES, seed=1)
        return UUID(json.loads(self._request("POST", "/quarantine/", headers, mail, 200))["id"])

    def _press(self, token: str) -> None:
        headers = {"Origin": ORIGIN, "Content-Type": "application/x-www-form-urlencoded"}
        self._request("POST", f"/quarantine/link/{token}/", headers, b"pressed=1", 303)

    def _request(self, method: str, path: str, headers: dict[str, str], body: bytes, status: int) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self._site.port, timeout=60)
        connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if answer.status != status:
            raise RuntimeError(f"{path} answered {answer.status}")
        return content


def _open(answers: list[Future[None]]) -> int:
    return sum(not answer.done() for answer in answers)


def _wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("the work beside the posts did not begin")
        time.sleep(0.02)


class _SilentServer:
    """A mail server that accepts connections and says nothing."""

    def __init__(self, listener: socket.socket) -> None:
        self.url = f"smtp://127.0.0.1:{listener.getsockname()[1]}"
        self._listener = listener
        self._connections: list[socket.socket] = []

    @property
    def waiting(self) -> int:
        return len(self._connections)

    def serve(self) -> None:
        while True:
            try:
                self._connections.append(self._listener.accept()[0])
            except OSError:
                return

    def end(self) -> None:
        """Close all connections."""
        while self._connections:
            self._connections.pop().close()


@contextmanager
def _silent_server() -> Iterator[_SilentServer]:
    with socket.create_server(("127.0.0.1", 0), backlog=PRESSED) as listener:
        silent = _SilentServer(listener)
        threading.Thread(target=silent.serve, daemon=True).start()
        yield silent
        listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        silent.end()
