"""Posts like those of Rspamd, and processes that send them as fast as the server answers."""

from __future__ import annotations

import json
import multiprocessing
import random
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

MAIL_BYTES = 19_000
COUNTER = b"0000000000000000"
_SYMBOLS = [
    {"name": f"BENCH_SYMBOL_{n:02d}", "score": n / 4, "weight": 1, "group": "bench", "groups": ["bench"],
     "options": [f"option-{n}.example.net"]}
    for n in range(14)
]  # fmt: skip
HEAD = (
    b"Received: from x.example.net (x.example.net [198.51.100.7]) by mx1.example.org with ESMTP; "
    b"Sun, 22 Nov 2026 07:00:00 +0000\r\n"
    b"From: Promo <promo@example.net>\r\nTo: alice@example.org\r\nSubject: Offer of the day\r\n"
    b"Message-ID: <" + COUNTER + b"@example.net>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\n"
)
METADATA = {  # as Rspamd sends it in headers with a prefix
    "qid": "4Bench",
    "action": "reject",
    "score": "21.5",
    "ip": "198.51.100.7",
    "user": "unknown",
    "from": "promo@example.net",
    "subject": "Offer of the day",
    "rcpt": '["alice@example.org","bob@example.org"]',
    "symbols": json.dumps(_SYMBOLS, separators=(",", ":")),
    "fuzzy": "[]",
}


def words(size_bytes: int, seed: int) -> bytes:
    """Return text that compresses like mail: words by Zipf's law, lines of 70, some noise like base64."""
    source = random.Random(seed)
    vocabulary = ["".join(source.choices("etaoinshrdlucmfwyp", k=source.randint(2, 9))) for _ in range(4000)]
    weights = [1 / (n + 1) for n in range(len(vocabulary))]
    out, line = [], ""
    total = 0
    while total < size_bytes:
        for word in source.choices(vocabulary, weights, k=200):
            line += word + " "
            if len(line) > 70:
                out.append(line.encode() + b"\r\n")
                total += len(line) + 2
                line = ""
    return b"".join(out)[:size_bytes]


@dataclass(frozen=True)
class Post:
    """One request in pieces: a new counter makes a different mail without composing it again."""

    pieces: list[bytes]

    def numbered(self, number: int) -> bytes:
        return (b"%016d" % number).join(self.pieces)


def rspamd_post(port: int, path: str = "/quarantine/", seed: int = 1, metadata: Mapping[str, str] = METADATA) -> Post:
    """Return a `default` post with metadata headers: 14 symbols, two recipients, a mail of 19 KB."""
    mail = HEAD + words(MAIL_BYTES - len(HEAD), seed)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\nContent-Type: text/plain\r\n"
        f"Content-Length: {len(mail)}\r\nUser-Agent: rspamd-3.4\r\n"
        + "".join(f"X-Rspamd-{name}: {value}\r\n" for name, value in metadata.items())
        + "\r\n"
    ).encode()
    return Post((head + mail).split(COUNTER))


def mail_head(number: int) -> bytes:
    """Return the header of the mail with this number."""
    return HEAD.replace(COUNTER, b"%016d" % number)


def run(port: int, seconds: float, clients: int, first: int, path: str = "/quarantine/") -> tuple[float, list[float]]:
    """Return (answers 200 per second, their latencies in seconds) of ``clients`` processes. Other answers raise."""
    latencies, refused = answers(port, seconds, clients, first, rspamd_post(port, path))
    if refused:
        raise RuntimeError(f"{len(refused)} posts were not answered 200")
    return len(latencies) / seconds, latencies


def answers(port: int, seconds: float, clients: int, first: int, post: Post) -> tuple[list[float], list[float]]:
    """Return the seconds until answers 200 and until other answers, to posts of ``clients`` processes."""
    with multiprocessing.Pool(clients) as pool:
        results = pool.starmap(
            _client, [(port, seconds, first + n * 10_000_000, post) for n in range(clients)], chunksize=1
        )
    return [each for taken, _ in results for each in taken], [each for _, taken in results for each in taken]


def _client(port: int, seconds: float, number: int, post: Post) -> tuple[list[float], list[float]]:
    latencies, refused = list[float](), list[float]()
    end = time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        number += 1
        with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
            connection.sendall(post.numbered(number))
            answer = b""
            while chunk := connection.recv(4096):
                answer += chunk
        (latencies if b" 200 " in answer[:20] else refused).append(time.monotonic() - began)
    return latencies, refused
