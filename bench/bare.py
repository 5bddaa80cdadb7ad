"""The ceilings: bare WSGI functions that do the same durable work as ingest and nothing else.

uWSGI loads ``bench.bare:files`` or ``bench.bare:postgres``; QUARANTINE_BENCH_STORE names a store that `open_store` has
made, so tables and indexes are its own. All rows of a mail are written, its search terms included, by the shortest
code: values are taken from the headers unchanged or were made before, nothing of the mail is read except for its
SHA-256, and nothing checks whether the mail or its recipients are known. No login, no formats, no tiers, no logging, no
limits, no errors.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
import struct
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID
from wsgiref.types import StartResponse, WSGIEnvironment

import zstandard
from psycopg_pool import ConnectionPool

from portal.model.message import new_id
from portal.stores.files import word_index
from portal.stores.files.database import DATABASE

_local = threading.local()
_guard = threading.Lock()

_PEOPLE = ("alice@example.org", "bob@example.org")
_TERMS = ["offer", "of", "the", "day", "promo", "example", "net", "=spam", f"=r{1:016x}", f"=r{2:016x}", "=s041"]


def _answer(start_response: StartResponse, id: UUID) -> list[bytes]:
    body = json.dumps({"status": "held", "id": str(id)}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def _compress(data: bytes) -> bytes:
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(level=1)
    packed: bytes = _local.compressor.compress(data)
    return packed


def _compressed(environ: WSGIEnvironment) -> tuple[bytes, bytes, int]:
    data = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    return _compress(data), hashlib.sha256(data).digest(), len(data)


def files(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """Write one compressed file, fsync it, rename it and fsync its folder; commit the rows of one message, of its terms
    and of two deliveries; write the index of words for 64 mails at a time."""
    folder = os.environ["QUARANTINE_BENCH_STORE"]
    id = new_id()
    if environ["REQUEST_METHOD"] == "GET":  # checks that the server runs
        return _answer(start_response, id)
    packed, digest, size = _compressed(environ)
    symbols = environ["HTTP_X_RSPAMD_SYMBOLS"]
    tail = _compress("\n".join(value for name, value in environ.items() if name.startswith("HTTP_X_")).encode())
    day = f"{folder}/mail/{datetime.now(UTC):%Y/%m/%d}/{id.hex[-2:]}"
    if not hasattr(_local, "db"):
        _open(Path(folder), day)
    being_written = f"{folder}/tmp/{id}"
    descriptor = os.open(being_written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(descriptor, packed + struct.pack("<II", 0x184D2A51, len(tail)) + tail)
    os.fsync(descriptor)
    os.close(descriptor)
    os.rename(being_written, f"{day}/{id}.eml.zst")
    descriptor = os.open(day, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)
    db, rowid = _local.db, word_index.key(id)
    sender, now = environ["HTTP_X_RSPAMD_FROM"], time.time_ns() // 1000
    with _guard:
        fcntl.flock(_local.lock, fcntl.LOCK_EX)
        db.execute("BEGIN IMMEDIATE")
        db.execute(
            "INSERT INTO message (rowid, id, dedup_key, tier, envelope_sender, subject, header_from, queue_id,"
            " message_id, action, score, client_ip, packed_symbols, flags, body_sha256, size_bytes, has_8bit)"
            " VALUES (?,?,?,'spam',?,?,?,?,'x@example.net','reject',21.5,?,?,'',?,?,0)",
            (rowid, id.bytes, digest[::-1], sender, environ["HTTP_X_RSPAMD_SUBJECT"], sender,
             environ["HTTP_X_RSPAMD_QID"], environ["HTTP_X_RSPAMD_IP"], _compress(symbols.encode()), digest, size),
        )  # fmt: skip
        db.execute("INSERT INTO unindexed (key, terms) VALUES (?,?)", (rowid, " ".join(_TERMS)))
        if rowid % 64 == 0:
            word_index.index_waiting(db)
        db.executemany(
            "INSERT INTO delivery (message_id, number, recipient, address, state_at) VALUES (?,?,?,?,?)",
            [(id.bytes, number, recipient, recipient, now) for number, recipient in enumerate(_PEOPLE)],
        )
        db.execute("COMMIT")
        fcntl.flock(_local.lock, fcntl.LOCK_UN)
    return _answer(start_response, id)


def _open(folder: Path, day: str) -> None:
    Path(day).parent.mkdir(parents=True, exist_ok=True)
    for number in range(256):
        (Path(day).parent / f"{number:02x}").mkdir(exist_ok=True)
    _local.lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    _local.db = sqlite3.connect(folder / DATABASE, timeout=10, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "wal_autocheckpoint=10000"):
        _local.db.execute(f"PRAGMA {pragma}")


_pool_guard = threading.Lock()
_pool: ConnectionPool[Any] | None = None

# All rows of one mail in the tables of the store, indexes included, in one statement (faster than five).
_INSERTS = """
with s as (insert into seen (dedup_key, message_id) values (%(sha)s, %(id)s)),
m as (insert into message (id, body_id, tier, envelope_sender, subject, header_from, terms, queue_id,
        message_id, action, score, client_ip, packed_symbols, flags, body_sha256, size_bytes, has_8bit)
    values (%(id)s, %(id)s, 'spam', %(sender)s, %(subject)s, %(sender)s, array_to_tsvector(%(terms)s), %(qid)s,
        'x@example.net', 'reject', 21.5, %(ip)s, %(symbols)b, '{}', %(sha)s, %(size)s, false)),
d as (insert into delivery (message_id, number, recipient, address, state, state_at)
    values (%(id)s, 0, 'alice@example.org', 'alice@example.org', 'held', now()),
        (%(id)s, 1, 'bob@example.org', 'bob@example.org', 'held', now()))
insert into body_chunk (body_id, n, data) values (%(id)s, 0, %(data)b)
"""


def postgres(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """Write one message and two deliveries in one transaction: prepared statements, no limits, no look-ups."""
    global _pool
    if _pool is None:
        with _pool_guard:
            if _pool is None:
                _pool = ConnectionPool(os.environ["QUARANTINE_BENCH_STORE"], min_size=1, max_size=4, open=True)
    id = new_id()
    if environ["REQUEST_METHOD"] == "GET":  # checks that the server runs
        return _answer(start_response, id)
    packed, digest, size = _compressed(environ)
    with _pool.connection() as connection:
        connection.execute(
            _INSERTS,
            {
                "id": id,
                "terms": _TERMS,
                "sha": digest,
                "size": size,
                "data": packed,
                "sender": environ["HTTP_X_RSPAMD_FROM"],
                "subject": environ["HTTP_X_RSPAMD_SUBJECT"],
                "qid": environ["HTTP_X_RSPAMD_QID"],
                "ip": environ["HTTP_X_RSPAMD_IP"],
                "symbols": _compress(environ["HTTP_X_RSPAMD_SYMBOLS"].encode()),
            },
        )
    return _answer(start_response, id)
