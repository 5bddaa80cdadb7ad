"""Fuzzed posts: recorded posts of Rspamd, altered at random. Run as a program, it passes them to the WSGI application
of a store and prints the results as JSON, so that only the portal's memory is measured."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import resource
import sys
import time
import zlib
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WARM_UP = 0.2  # part of the posts before memory is first measured
JUNK = (
    b"", b"\0", b"\xff\xfe", b"\r\n", b"\r\n\r\n", b"\n", b"\x80", b"\xed\xa0\x80", b"{", b"}", b"[" * 3000,
    b'{"a":' * 2000,
    b"]", b'"', b"\\u0000", b"\\ud800", b"\\udc00\\ud800", b"1e999", b"-1e999", b"NaN", b"Infinity", b"null", b"true",
    b"9" * 5000, b"-1", b"0x10", b"=?utf-8?B?\xff?=", b"=?utf-8?Q?" + b"=00" * 40 + b"?=", b"=?x-unknown?q?a?=",
    b"A" * 9000,
    b"%s%n", b"../../etc/passwd", b"<script>", b"unknown", b"{}", b"[]", b'[""]', b"[null]", b'["a",1]', b"\xc1",
    b"\xdf\xff",
    b"\xc6\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\x1f\x8b\x08", b"--", b"gzip",
    b"Content-Disposition: form-data",
)  # fmt: skip
NAMES = ("X-Rspamd-rcpt", "X-Rspamd-from", "X-Rspamd-action", "X-Rspamd-score", "X-Rspamd-symbols", "X-Rspamd-subject",
         "X-Rspamd-qid", "X-Rspamd-ip", "X-Rspamd-user", "X-Rspamd-fuzzy", "Content-Type", "Content-Encoding",
         "Content-Length", "X-Quarantine-rcpt", "X-Other-Action", "Transfer-Encoding", "Host", "Cookie")  # fmt: skip
TYPES = ("text/plain", "application/json", "application/msgpack", "multipart/form-data; boundary=x", "message/rfc822",
         "multipart/form-data", "application/x-www-form-urlencoded", "text/plain; charset=\xff")  # fmt: skip


@dataclass
class Post:
    """One HTTP request; header values as ISO-8859-1."""

    headers: list[tuple[str, str]]
    body: bytes

    def value(self, name: str) -> str:
        return next((value for each, value in self.headers if each.lower() == name.lower()), "")


def seeds() -> list[Post]:
    """Return recorded posts: the larger set next to the checkout if it exists, else the one of the tests."""
    recorded = ROOT.parent / "shared" / "exporter-posts"
    folder = recorded if recorded.is_dir() else ROOT / "tests" / "data" / "exporter"
    found = [read_post(path.read_bytes()) for path in sorted(folder.glob("*.http"))]
    return [post for post in found if len(post.body) < 20_000]


def read_post(data: bytes) -> Post:
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")[1:]
    return Post([(name, value) for name, _, value in (line.partition(": ") for line in lines)], body)


def mutated(seed: Post, source: random.Random) -> Post:
    """Return the post with one to four errors."""
    post = Post(list(seed.headers), seed.body)
    packed = "gzip" in post.value("Content-Encoding") and source.random() < 0.7
    if packed:
        post.body = zlib.decompress(post.body, wbits=31)
    for _ in range(source.randint(1, 4)):
        source.choice(MUTATIONS)(post, source)
    if packed:
        packer = zlib.compressobj(1, wbits=31)
        post.body = packer.compress(post.body) + packer.flush()
    return post


def _octets(data: bytes, source: random.Random) -> bytes:
    """Return the data with some octets flipped, cut, repeated, moved or replaced."""
    at = source.randint(0, len(data))
    to = min(len(data), at + source.choice([1, 2, 7, 100, 5000]))
    kind = source.randrange(6)
    if kind == 0 and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << source.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + data[to:]
    if kind == 3:
        return data[:to] + data[at:to] * source.choice([1, 2, 30]) + data[to:]
    if kind == 4:
        return data[:at] + source.randbytes(source.choice([1, 4, 300])) + data[to:]
    return data[:at] + source.choice(JUNK) + data[to:]


def _body(post: Post, source: random.Random) -> None:
    post.body = _octets(post.body, source)


def _header(post: Post, source: random.Random) -> None:
    if post.headers:
        at = source.randrange(len(post.headers))
        name, value = post.headers[at]
        post.headers[at] = (name, _text(_octets(value.encode("latin-1"), source)))


def _drop(post: Post, source: random.Random) -> None:
    if post.headers:
        del post.headers[source.randrange(len(post.headers))]


def _add(post: Post, source: random.Random) -> None:
    post.headers.append((source.choice(NAMES), _text(source.choice(JUNK))))


def _type(post: Post, source: random.Random) -> None:
    post.headers = [pair for pair in post.headers if pair[0].lower() != "content-type"]
    post.headers.append(("Content-Type", source.choice(TYPES)))


def _encoding(post: Post, source: random.Random) -> None:
    post.headers.append(("Content-Encoding", source.choice(["gzip", "identity", "zstd", "gzip, gzip", "x-gzip", ""])))


def _boundary(post: Post, source: random.Random) -> None:
    post.body = post.body.replace(b"--", source.choice([b"-", b"---", b"\r\n--"]), source.randint(1, 3))


def _text(value: bytes) -> str:
    # Servers reject characters that are invalid in a header, so these never reach the portal.
    return value.replace(b"\r", b"").replace(b"\n", b"").replace(b"\0", b"").decode("latin-1")[:12_000]


MUTATIONS: tuple[Callable[[Post, random.Random], None], ...] = (
    _body, _body, _body, _header, _header, _header, _drop, _add, _type, _encoding, _boundary,
)  # fmt: skip


def environ(post: Post, source: random.Random) -> dict[str, Any]:
    """Return the WSGI environment of a post; in 2 % of cases its length is wrong."""
    length = str(len(post.body))
    if source.random() < 0.02:
        length = source.choice(["", "-1", "abc", "9" * 30, str(len(post.body) + 5), str(len(post.body) // 2), "1e3"])
    made: dict[str, Any] = {
        "REQUEST_METHOD": source.choice(["POST"] * 40 + ["GET", "HEAD", "PUT"]),
        "PATH_INFO": "/quarantine/",
        "SCRIPT_NAME": "",
        "QUERY_STRING": "",
        "REMOTE_ADDR": "127.0.0.1",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(post.body),
        "wsgi.errors": sys.stderr,
        "CONTENT_LENGTH": length,
    }
    for name, value in post.headers:
        key = name.upper().replace("-", "_")
        if key == "CONTENT_TYPE":
            made[key] = value
        elif key != "CONTENT_LENGTH":
            # Servers join repeated fields.
            made[f"HTTP_{key}"] = f"{made[f'HTTP_{key}']}, {value}" if f"HTTP_{key}" in made else value
    return made


class _Faults(logging.Handler):
    """Collects tracebacks in the log, which no post may cause."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.seen.append(self.format(record)[-1500:])


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main(posts: int, seed: int) -> None:
    """Pass ``posts`` posts to the application whose settings are in the environment."""
    from portal.assemble import assemble
    from portal.settings import load
    from portal.web import create_app

    faults = _Faults()
    logging.getLogger().addHandler(faults)
    logging.getLogger("quarantine").propagate = True
    parts = assemble(load(), create=True)
    app = create_app(parts)
    source, found = random.Random(seed), seeds()
    statuses: Counter[str] = Counter()
    wrong: list[dict[str, Any]] = []
    before = 0
    seconds = array("f", bytes(4 * posts))  # allocated now, since memory is measured
    for number in range(posts):
        if number == int(posts * WARM_UP):
            before = rss_bytes()
        post = mutated(source.choice(found), source)
        sent = environ(post, source)
        got: list[Any] = []
        already = len(faults.seen)
        began = time.perf_counter()
        chunks = app(sent, lambda status, headers, *_, got=got: got.append(status))
        answer = b"".join(chunks)
        seconds[number] = time.perf_counter() - began
        status = got[0].split()[0]
        statuses[status] += 1
        if (status[0] == "5" or len(faults.seen) > already) and len(wrong) < 5:
            wrong.append(
                {"status": status, "headers": post.headers, "body": post.body.hex()[:2000], "answer": repr(answer)}
            )
    after = rss_bytes()
    json.dump(
        {
            "statuses": statuses,
            "tracebacks": faults.seen[:5],
            "wrong": wrong,
            "rss_before": before,
            "rss_after": after,
            "p99_seconds": sorted(seconds)[posts * 99 // 100],
        },
        sys.stdout,
    )
    parts.store.close()


if __name__ == "__main__":
    assert os.environ["QUARANTINE_STORE__URL"]
    main(int(sys.argv[1]), int(sys.argv[2]))
