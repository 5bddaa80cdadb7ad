"""Posts and mails made to break the portal: fuzzed exports, and bombs. They cause no failure and no memory growth."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from portal.assemble import Parts
from tests.builders import ALICE, SENDER
from tests.faults.conftest import Report, Serve
from tests.faults.hostile import Post, mutated, seeds
from tests.faults.serving import META, ROOT, Portal, percentile_99, read, repeating
from tests.faults.test_kills import full, in_words
from tests.web_client import Site

GROWTH = 1.2  # of memory, the largest allowed


def fed(store_url: str, folder: Path, posts: int, processes: int) -> list[dict[str, Any]]:
    """Run programs at the same time that pass fuzzed posts to the application, and return the results of each."""
    (folder / "quarantine.toml").touch()
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.faults.hostile", str(posts // processes), str(posts + number)],
            cwd=ROOT,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("QUARANTINE_")},
                "QUARANTINE_CONFIG": str(folder / "quarantine.toml"),
                "QUARANTINE_STORE__URL": store_url,
                "QUARANTINE_LOCAL_DOMAINS": "example.org",
                "QUARANTINE_MAIL__FROM_ADDRESS": "quarantine@example.org",
                "QUARANTINE_LINKS__KEYS_FILE": str(folder / "links.keys"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    with ThreadPoolExecutor(processes) as threads:
        outputs = list(threads.map(lambda process: process.communicate(), running))
    for process, (_, errors) in zip(running, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(out) for out, _ in outputs]


@pytest.fixture(params=["files", "postgres"])
def store_name(request: pytest.FixtureRequest) -> str:
    """The kind of store: files or postgres."""
    return str(request.param)


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory if possible: fsync, which is tested elsewhere, would take half of the time."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 4 << 30
    with tempfile.TemporaryDirectory(prefix="quarantine-fuzz-", dir=memory if roomy else tmp_path) as folder:
        yield Path(folder)


@pytest.mark.parametrize(("posts", "processes"), [(1500, 1), full(500_000, 2, seconds=1500)])
def test_fuzzed_posts_are_held_or_refused_and_never_break_anything(
    request: pytest.FixtureRequest, store_name: str, memory_folder: Path, posts: int, processes: int, report: Report
) -> None:
    url = request.getfixturevalue("postgres_dsn") if store_name == "postgres" else f"files://{memory_folder}/quarantine"
    found = fed(url, memory_folder, posts, processes)
    growth = max(each["rss_after"] / each["rss_before"] for each in found)
    slow_seconds = max(each["p99_seconds"] for each in found)
    statuses = sum((Counter(each["statuses"]) for each in found), Counter[str]())
    report(
        "18 fuzzed posts to the WSGI application",
        f"{statuses.total():,} posts in {processes} processes: {in_words(statuses)}; 99 % answered within "
        f"{slow_seconds * 1000:.0f} ms; memory × {growth:.2f}",
    )
    assert statuses.total() == posts
    for each in found:
        assert each["wrong"] == []
        assert each["tracebacks"] == []
    assert growth <= GROWTH
    assert statuses["200"] > posts / 5


def send(portal: Portal, post: Post) -> str:
    """Send a post unchanged and return the first line of the reply, or "" if there is none."""
    lines = ["POST /quarantine/ HTTP/1.1", f"Content-Length: {len(post.body)}"]
    lines += [
        f"{name}: {value}" for name, value in post.headers if name.lower() not in ("content-length", "connection")
    ]
    answer = b""
    with socket.create_connection(("127.0.0.1", portal.port), timeout=20) as connection:
        try:
            connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + post.body)
            while chunk := connection.recv(4096):
                answer += chunk
        except ConnectionError:  # rejected before the body was read
            pass
    return answer.partition(b"\r\n")[0].decode("latin-1")


@pytest.mark.parametrize("posts", [300, full(5_000, seconds=300)])
def test_fuzzed_posts_kill_no_worker(serve: Serve, store_url: str, posts: int, report: Report) -> None:
    portal = serve(store_url)
    source, found, statuses = random.Random(posts), seeds(), Counter[str]()
    workers, before = portal.workers(), 0
    for number in range(posts):
        if number == posts // 5:
            before = portal.rss_bytes()
        line = send(portal, mutated(source.choice(found), source))
        statuses[line.split(" ")[1] if line else "none (uWSGI)"] += 1
    growth = portal.rss_bytes() / before
    report("18 fuzzed posts through uWSGI", f"{posts:,} posts: {in_words(statuses)}; memory × {growth:.2f}")
    assert not [status for status in statuses if status.startswith("5")]
    assert portal.tracebacks() == 0
    assert portal.workers() == workers
    if posts > 1000:  # earlier, each worker is still filling its caches
        assert growth <= GROWTH


# ---- bombs

HEAD = f"From: Promo <{SENDER}>\r\nTo: {ALICE}\r\nSubject: Offer\r\nMIME-Version: 1.0\r\n".encode()


def zeros() -> bytes:
    return HEAD + b"\r\n" + bytes(60_000_000)


def parts(number: int = 100_000) -> bytes:
    part = b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n"
    return HEAD + b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n' + part * number + b"--b--\r\n"


def depth(number: int = 10_000) -> bytes:
    opened = b"".join(
        b'Content-Type: multipart/mixed; boundary="%d"\r\n\r\n--%d\r\n' % (level, level) for level in range(number)
    )
    return HEAD + opened + b"Content-Type: text/plain\r\n\r\ndeep\r\n"


def recipients() -> bytes:
    return HEAD + b"Cc: " + b",\r\n ".join(b"a%d@example.org" % n for n in range(100_000)) + b"\r\n\r\nBuy!\r\n"


def nested_html() -> bytes:
    # Text in front, too: a slow machine does not get to the end in the time that reading may take.
    return HEAD + b"Content-Type: text/html\r\n\r\nBuy!" + b"<div>" * 200_000 + b"Buy!"


def encoded_words() -> bytes:
    return HEAD + b"Reply-To: " + b"=?utf-8?q?a?=\r\n " * 20_000 + b"\r\n\r\nBuy!\r\n"


def charset() -> bytes:
    return HEAD + b"Content-Type: text/plain; charset=" + b"x" * 100_000 + b"\r\n\r\nBuy!\r\n"


def references() -> bytes:
    return HEAD + b"Content-Type: text/html\r\n\r\n" + b"&#x110000;&" + b"&amp" * 200_000 + b"<!" * 50_000


BOMBS = (zeros, parts, depth, recipients, nested_html, encoded_words, charset, references)

MEASURE = """
import json, re, sys, time
from portal.reading import child
child.prepare()
# The largest size of a process in getrusage is that of its parent, if that was larger when it was started.
with open(sys.argv[1], "rb") as file, open("/proc/self/status") as status:
    child.restrict()
    before = time.process_time()
    seen = child.read(file.read, lambda: time.process_time() - before)
    seconds = time.process_time() - before
    memory_kb = int(re.search(r"VmHWM:\\s*([0-9]+)", status.read())[1])
print(json.dumps([seconds, memory_kb * 1024, len(seen["text"])]))
"""


def previewed(data: bytes, folder: Path) -> tuple[int, float, int]:
    """Make the text of a mail's page in a separate process: characters, CPU seconds, bytes of memory."""
    (folder / "mail").write_bytes(data)
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder / "mail")], cwd=ROOT, capture_output=True, check=True
    )
    cpu_seconds, memory_bytes, characters = json.loads(measured.stdout)
    assert cpu_seconds <= 2.0
    assert memory_bytes <= 100 << 20
    return characters, cpu_seconds, memory_bytes


@pytest.mark.parametrize("make", BOMBS)
def test_a_bomb_is_held_and_its_page_shows_what_can_be_read(
    parts: Parts, tmp_path: Path, make: Callable[[], bytes]
) -> None:
    site, data = Site(parts), make()
    rspamd = site.browser()
    rspamd.peer = "127.0.0.1"
    packed = gzip.compress(data, 6)
    if make is zeros:
        assert len(data) / len(packed) > 900
    answer = rspamd.request("POST", "/", body=packed, headers={**META, "Content-Encoding": "gzip"})
    assert answer.status == 200
    id = UUID(answer.json["id"])
    assert read(site.store, id) == data
    page = site.signed_in(ALICE).get(f"/messages/{id}/")
    assert page.status == 200
    assert len(page.body) < 2_000_000
    characters, _, _ = previewed(data, tmp_path)
    assert characters
    assert "cannot be displayed" not in page.text


@pytest.mark.parametrize("rounds", [1, full(3, seconds=300)])
def test_bombs_through_uwsgi_leave_the_workers_small_and_others_are_answered(
    serve: Serve, store_url: str, tmp_path: Path, rounds: int, report: Report
) -> None:
    portal = serve(store_url)
    portal.wait_for_all_workers()
    workers, before = portal.workers(), portal.rss_bytes()
    held = 0
    with repeating(partial(small_request, portal)) as answered:
        for _ in range(rounds):
            for make in BOMBS:
                body = gzip.compress(make(), 6)
                status, answer = portal.request("POST", "/quarantine/", body, {**META, "Content-Encoding": "gzip"})
                assert status == 200, (make, answer)
                held += json.loads(answer)["status"] in ("held", "known")
    too_large = gzip.compress(bytes(90 << 20), 1)
    assert portal.request("POST", "/quarantine/", too_large, {**META, "Content-Encoding": "gzip"})[0] == 413
    grown = (portal.rss_bytes() - before) / len(workers)
    pages = [previewed(make(), tmp_path) for make in BOMBS]
    slow_seconds = percentile_99(answered)
    report(
        "19 bombs",
        f"{held} posts of {len(BOMBS)} bombs held, memory of a worker + {grown / 1e6:.0f} MB; text for the page in at "
        f"most {max(page[1] for page in pages):.1f} s of CPU and {max(page[2] for page in pages) / 1e6:.0f} MB; of "
        f"{len(answered):,} other requests 99 % answered within {slow_seconds * 1000:.0f} ms",
    )
    assert rounds == 1 or slow_seconds < 0.5  # the short form has too few requests
    assert {status for status, _ in answered} == {200}
    assert portal.workers() == workers
    assert portal.tracebacks() == 0
    assert grown <= 120e6


def small_request(portal: Portal, number: int) -> int:
    """Request a page or post a small mail, in turns. Return the status."""
    if number % 4 < 2:
        return portal.request("POST", "/quarantine/", b"Subject: Offer %d\r\n\r\nBuy!\r\n" % number, META)[0]
    return portal.request("GET", "/quarantine/sign-in")[0]
