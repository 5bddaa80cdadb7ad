"""The ceilings: bare WSGI functions that do the same durable work as ingest and nothing else.

No login, no formats, no tiers, no sameness, no logging, no errors: read the body, compress, write, commit, answer.
uWSGI loads ``bench.bare:files`` or ``bench.bare:postgres``; QUARANTINE_BENCH_STORE says where to write.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import zstandard
from psycopg_pool import ConnectionPool

from portal.message import new_id

_local = threading.local()
_guard = threading.Lock()


def _answer(start_response, id):
    body = json.dumps({"status": "held", "id": str(id)}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def _compressed(environ) -> tuple[bytes, bytes, int]:
    data = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    return zstandard.ZstdCompressor(level=3).compress(data), hashlib.sha256(data).digest(), len(data)


def files(environ, start_response):
    """One compressed file written, fsynced, renamed, its folder fsynced; one message and two deliveries committed."""
    folder = Path(os.environ["QUARANTINE_BENCH_STORE"])
    id = new_id()
    if environ["REQUEST_METHOD"] == "GET":  # is the server there?
        return _answer(start_response, id)
    packed, digest, size = _compressed(environ)
    day = folder / "mail" / f"{datetime.now(UTC):%Y/%m/%d}" / id.hex[-2:]
    if not day.is_dir():
        day.mkdir(parents=True, exist_ok=True)
    being_written = folder / f"{id}.tmp"
    descriptor = os.open(being_written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(descriptor, packed + environ["HTTP_X_RSPAMD_SYMBOLS"].encode())
    os.fsync(descriptor)
    os.close(descriptor)
    os.rename(being_written, day / f"{id}.eml.zst")
    descriptor = os.open(day, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)
    db, lock = _sqlite(folder)
    with _guard:
        fcntl.flock(lock, fcntl.LOCK_EX)
        db.execute("BEGIN IMMEDIATE")
        db.execute(
            "INSERT INTO message VALUES (?,?,?,?,?,?,?,?)",
            (id.bytes, digest, environ["HTTP_X_RSPAMD_FROM"], environ["HTTP_X_RSPAMD_SUBJECT"],
             environ["HTTP_X_RSPAMD_QID"], 21.5, environ["HTTP_X_RSPAMD_SYMBOLS"], size),
        )  # fmt: skip
        for number, recipient in enumerate(("alice@example.org", "bob@example.org")):
            db.execute("INSERT INTO delivery VALUES (?,?,?,'held',?)", (id.bytes, number, recipient, time.time()))
        db.execute("COMMIT")
        fcntl.flock(lock, fcntl.LOCK_UN)
    return _answer(start_response, id)


def _sqlite(folder: Path):
    if not hasattr(_local, "db"):
        _local.lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        _local.db = sqlite3.connect(folder / "bare.sqlite3", timeout=10, isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "wal_autocheckpoint=10000"):
            _local.db.execute(f"PRAGMA {pragma}")
        with _guard:
            fcntl.flock(_local.lock, fcntl.LOCK_EX)
            _local.db.executescript(
                "CREATE TABLE IF NOT EXISTS message (id BLOB UNIQUE, sha BLOB UNIQUE, sender, subject, qid, score,"
                " symbols, size); CREATE TABLE IF NOT EXISTS delivery (id BLOB, number, recipient, state, at,"
                " PRIMARY KEY (id, number)) WITHOUT ROWID;"
                "CREATE INDEX IF NOT EXISTS delivery_recipient ON delivery (recipient, id)"
            )
            fcntl.flock(_local.lock, fcntl.LOCK_UN)
    return _local.db, _local.lock


_pool_guard = threading.Lock()
_pool = None

_TERMS = ["day", "example", "net", "of", "offer", "promo", "the", "=spam", "=s21", f"=r{1:016x}", f"=r{2:016x}"]
# What one mail leaves in the store's own tables, its indexes included, in one statement (faster than five).
_INSERTS = """
with s as (insert into seen (sameness, message_id) values (%(sha)s, %(id)s)),
m as (insert into message (id, body_id, tier, envelope_sender, subject, header_from, terms, queue_id,
        message_id, action, score, client_ip, symbols, flags, body_sha256, size_bytes, has_8bit)
    values (%(id)s, %(id)s, 'spam', %(sender)s, %(subject)s, %(sender)s, array_to_tsvector(%(terms)s), %(qid)s,
        'x@example.net', 'reject', 21.5, '198.51.100.7', %(symbols)s::jsonb, '{}', %(sha)s, %(size)s, false)),
d as (insert into delivery (message_id, number, recipient, address, state, state_at)
    values (%(id)s, 0, 'alice@example.org', 'alice@example.org', 'held', now()),
        (%(id)s, 1, 'bob@example.org', 'bob@example.org', 'held', now()))
insert into body_chunk (body_id, n, data) values (%(id)s, 0, %(data)b)
"""


def postgres(environ, start_response):
    """The rows of one message and two deliveries in one transaction; prepared by psycopg, no limits, no look-ups."""
    global _pool
    if _pool is None:
        with _pool_guard:
            if _pool is None:
                _pool = ConnectionPool(os.environ["QUARANTINE_BENCH_STORE"], min_size=1, max_size=4, open=True)
    id = new_id()
    if environ["REQUEST_METHOD"] == "GET":  # is the server there?
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
                "symbols": environ["HTTP_X_RSPAMD_SYMBOLS"],
            },
        )
    return _answer(start_response, id)
