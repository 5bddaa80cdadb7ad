"""Fill stores with a million mails in a minute: rows like those of `Messages.add`, written directly."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import UUID

import psycopg

from bench import load
from portal.exporter.values import symbols as read_symbols
from portal.model.message import first_id, new_id
from portal.stores import open_store, symbols
from portal.stores.files import word_index
from portal.stores.files.database import DATABASE, to_micros
from portal.stores.files.mail import MailFiles
from portal.stores.postgres import days as postgres_days
from portal.stores.postgres.database import Database

DAYS = 30
DAY_MS = 86_400_000
SYMBOLS = symbols.pack(read_symbols(load.METADATA["symbols"])[0])
FROM = "promo@example.net"


def person(number: int) -> str:
    """Return the recipient with this number. Mail number n is for recipient n modulo the number of recipients."""
    return f"person{number}@example.org"


def days_back(count: int) -> list[tuple[date, int, int]]:
    """Return (day, number of the first mail, mails) for the last 30 full days, ``count`` mails in total."""
    today = datetime.now(UTC).date()
    starts = [count * n // DAYS for n in range(DAYS + 1)]
    return [(today - timedelta(days=DAYS - n), starts[n], starts[n + 1] - starts[n]) for n in range(DAYS)]


def postgres(
    dsn: str, days: list[tuple[date, int, int]], people: int, *, bodies: bool = False, alike: bool = True
) -> None:
    """Make the schema and hold the mails of these ``days``, one delivery each. With ``bodies`` each mail has 800 bytes
    and its row in `seen`. Unless ``alike``, the mails of a recipient have different senders."""
    open_store(dsn, create=True).close()
    database = Database(dsn, create=False)
    for day in {day for day, _, _ in days}:
        postgres_days.make_day(database, day)
    database.close()

    def fill_in(part: tuple[date, int, int]) -> None:
        _postgres_day(dsn, *part, people, bodies, alike)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fill_in, days))
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("vacuum analyze")  # as autovacuum does later
        connection.execute("checkpoint")
    os.sync()


def _postgres_day(dsn: str, day: date, first: int, count: int, people: int, bodies: bool, alike: bool) -> None:
    values = {
        "start": first_id(datetime(day.year, day.month, day.day, tzinfo=UTC)).int >> 80,
        "first": first, "count": count, "people": people, "symbols": SYMBOLS, "from": FROM, "day_ms": DAY_MS,
        "alike": alike,
    }  # fmt: skip
    with psycopg.connect(dsn, client_encoding="utf8") as connection:
        connection.execute("set synchronous_commit = off")
        connection.execute(
            "create temp table filled on commit drop as select n, md5(n::text) as random,"
            " 'person' || n %% %(people)s || '@example.org' as recipient,"
            " (lpad(to_hex(%(start)s + (n - %(first)s) * %(day_ms)s / %(count)s), 12, '0') || '7'"
            " || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid as id"
            " from generate_series(%(first)s::bigint, %(first)s::bigint + %(count)s - 1) n",
            values,
        )
        connection.execute(
            "insert into message (id, body_id, tier, envelope_sender, subject, header_from, terms, queue_id,"
            " message_id, action, score, client_ip, packed_symbols, flags, body_sha256, size_bytes, has_8bit)"
            " select id, id, 'spam', %(from)s, 'Offer ' || n,"
            " 'Promo <' || case when %(alike)s then '' else 'n' || n / %(people)s || '.' end || %(from)s || '>',"
            " array_to_tsvector(array['offer', n::text, 'promo', 'example', 'net', '=spam', '=s21',"
            " '=r' || left(md5(recipient), 16)]), left(random, 10), n || '@example.net', 'reject', 21.5,"
            " '198.51.100.7', %(symbols)s, '{}', decode(random || random, 'hex'), 19000, false from filled",
            values,
        )
        connection.execute(
            "insert into delivery (message_id, number, recipient, address, state, state_at)"
            " select id, 0, recipient, recipient, 'held', now() from filled"
        )
        if bodies:
            connection.execute("insert into body_chunk select id, 0, decode(repeat(random, 50), 'hex') from filled")
            connection.execute("insert into seen select decode(random || random, 'hex'), id from filled")


def files(
    folder: Path, days: list[tuple[date, int, int]], people: int, *, alike: bool = True, with_files: bool = False
) -> None:
    """Make the store and the rows of the mails of these ``days``, one delivery each. No mail files and no index of
    words: lists without words to search for read neither. ``with_files`` makes empty mail files. ``alike`` is described
    at `postgres`."""
    open_store(f"files://{folder}").close()
    mail = MailFiles(folder)
    connection = sqlite3.connect(folder / DATABASE)
    connection.execute("pragma journal_mode = off")
    connection.execute("pragma synchronous = off")
    for part in days:
        connection.executemany(
            "insert into message (rowid, id, dedup_key, tier, envelope_sender, subject, header_from, queue_id,"
            " message_id, action, score, client_ip, packed_symbols, flags, body_sha256, size_bytes, has_8bit)"
            f" values (?, ?, ?, 'spam', '{FROM}', ?, ?, ?, ?, 'reject', 21.5, '198.51.100.7',"
            f" x'{SYMBOLS.hex()}', '', ?, 19000, 0)",
            (
                (
                    word_index.key(id),
                    id.bytes,
                    os.urandom(32),
                    f"Offer {n}",
                    f"Promo <{FROM}>" if alike else f"Promo <n{n // people}.{FROM}>",
                    f"4{n:09x}",
                    f"{n}@example.net",
                    sha,
                )
                for n, id, sha in _mails(*part)
            ),
        )
        rows = connection.execute("select id from message where id >= ? order by id", (_low(part[0]),)).fetchall()
        connection.executemany(
            "insert into delivery (message_id, number, recipient, address, state_at) values (?, 0, ?, ?, ?)",
            [
                (id, person((part[1] + n) % people), person((part[1] + n) % people), to_micros(_start(part[0])))
                for n, (id,) in enumerate(rows)
            ],
        )
        for (id,) in rows if with_files else ():
            path = mail.path(UUID(bytes=id))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        connection.commit()
    connection.close()
    os.sync()  # otherwise the disk is still busy during the measurement


def _mails(day: date, first: int, count: int) -> Iterator[tuple[int, UUID, bytes]]:
    for n in range(count):
        id = new_id(_start(day) + timedelta(milliseconds=n * DAY_MS // count))
        yield first + n, id, hashlib.sha256(id.bytes).digest()


def _start(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _low(day: date) -> bytes:
    return first_id(_start(day)).bytes
