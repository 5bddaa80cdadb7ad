"""Many digest processes and `once` commands at the same time as the web workers: each digest is sent once."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from digest import run
from portal.assemble import Parts
from portal.model.links import MARK_HEADER
from portal.model.message import Reader
from tests.builders import hold, now
from tests.conftest import MakeParts
from tests.digest.test_process import environ, wait_until
from tests.faults.conftest import Report, Serve
from tests.faults.serving import ROOT, all_deliveries
from tests.faults.test_digest_kills import read
from tests.faults.test_kills import full
from tests.smtp_server import SmtpServer

WORKERS = 8
ZONES = ("UTC", "Asia/Kathmandu", "America/New_York", "Pacific/Apia")  # of the hosts, which may differ
SLOW_SECONDS = (0.0, 0.3, 0.05, 1.5)  # delays of replies to the final dot, one after the other


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with SmtpServer() as running:
        yield running
        assert running.violations == []


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(store_url: str, tmp_path: Path, server: SmtpServer) -> Iterator[Start]:
    """``start("run", host=2)`` starts a digest process with that host's folder, copy of the keys, and time zone."""
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str, host: int) -> subprocess.Popen[str]:
        folder = tmp_path / f"host{host}"
        if not folder.exists():
            folder.mkdir()
            shutil.copy2(tmp_path / "links.keys", folder / "links.keys")
        process = subprocess.Popen(
            [sys.executable, "-m", "digest", *words],
            env={**environ(store_url, folder, server.url), "TZ": ZONES[host % len(ZONES)]},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def digest_counts(server: SmtpServer, names: Collection[str]) -> Counter[str]:
    """Return the number of digests that each of them got."""
    return Counter(mail.recipients[0] for mail in list(server.mails) if mail.recipients[0] in names)


def in_digest(parts: Parts, mark: str) -> list[tuple[UUID, int]]:
    """Return the deliveries of the digest with this mark."""
    marked = parts.links.read_mark(mark)
    assert marked is not None
    return [(delivery.id, delivery.number) for delivery in parts.store.digests.get(marked[1]).deliveries]


def ended(process: subprocess.Popen[str]) -> int:
    """Wait for a process without errors and return its exit status."""
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err and "ERROR" not in err, err
    return process.returncode


@pytest.mark.parametrize(
    ("schedulers", "pace", "people", "waves"),
    [
        (2, "slow and fast", 12, 1),
        *(full(number, pace, 120, 4, seconds=600) for number in (2, 4, 8) for pace in ("fast", "slow and fast")),
    ],
)
def test_many_schedulers_notify_everybody_once(
    make_parts: MakeParts,
    store_url: str,
    tmp_path: Path,
    server: SmtpServer,
    serve: Serve,
    start: Start,
    schedulers: int,
    pace: str,
    people: int,
    waves: int,
    report: Report,
) -> None:
    parts = make_parts(mail__url=server.url)
    paces = iter(SLOW_SECONDS * 10_000)
    if pace != "fast":
        server.script["BODY"] = lambda _line: time.sleep(next(paces))
    settings = {"QUARANTINE_MAIL__URL": server.url, "QUARANTINE_LINKS__KEYS_FILE": f"{tmp_path}/links.keys"}
    portal = serve(store_url, workers=WORKERS, **settings)
    # In the meantime mail for Alice and Bob is posted; only `once` notifies them before tomorrow.
    over = threading.Event()
    posted: list[int] = []

    def post() -> None:
        while not over.wait(0.1):
            assert portal.post(len(posted))[0] == 200
            posted.append(200)

    posting = threading.Thread(target=post)
    posting.start()
    names = [f"p{number:03}@example.org" for number in range(people)]
    running: list[subprocess.Popen[str]] = []
    by_hand: list[subprocess.Popen[str]] = []
    try:
        for wave in range(1, waves + 1):
            for name in names:
                hold(parts.store, recipients=[name])
                # As the button does it; other digests would be planned for tomorrow.
                parts.store.digests.request(Reader(name), now(), now())
            if wave == 1:
                running = [start("run", host=host) for host in range(schedulers)]
            if wave == waves:
                by_hand = [start("once", host=host) for host in range(2)]

            def all_notified(mails: int = wave * people) -> bool:
                return digest_counts(server, names).total() >= mails

            wait_until(all_notified)
        assert [ended(process) for process in by_hand] == [0, 0]
        assert len(portal.workers()) == WORKERS
    finally:
        over.set()
        posting.join()
    for process in running:
        process.send_signal(signal.SIGTERM)
    assert [ended(process) for process in running] == [0] * schedulers
    portal.stop()
    server.script.clear()
    run.send_all(parts, now())
    ids = [read(mail)[MARK_HEADER] for mail in server.mails]
    report(
        f"10 {schedulers + 1} schedulers, {pace} mail server",
        f"{WORKERS} web workers, 2 × `once` at the same time; {people} recipients {waves} times, "
        f"{len(posted)} messages posted: {len(ids)} digests, {len(ids) - len(set(ids))} of them duplicates",
    )
    assert portal.tracebacks() == 0
    assert len(set(ids)) == len(ids)
    assert digest_counts(server, names) == dict.fromkeys(names, waves)
    announced = [one for id in ids for one in in_digest(parts, id)]
    assert Counter(announced) == dict.fromkeys(((d.id, d.number) for d in all_deliveries(parts.store)), 1)
