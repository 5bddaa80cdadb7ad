"""Fill stores with a million mails in a minute or two: rows like those of `Messages.add`, written directly.

Their search terms are made by the stores' own functions, and `_check` searches a filled store: otherwise a benchmark of
searches could measure how fast nothing is found.
"""

from __future__ import annotations

import hashlib
import os
import random
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import UUID

import psycopg
import zstandard

from bench import load
from portal.exporter.values import symbols as read_symbols
from portal.model.message import Filter, Reader, State, Tier, new_id
from portal.stores import open_store, search, symbols
from portal.stores.files import word_index
from portal.stores.files.database import DATABASE, to_micros
from portal.stores.files.mail import MailFiles
from portal.stores.postgres import partitions as postgres_partitions
from portal.stores.postgres.database import Database

DAYS = 30
DAY_MS = 86_400_000
SYMBOLS = symbols.pack(read_symbols(load.METADATA["symbols"])[0])
FROM = "promo@example.net"
SCORE = 21.5
CHECKED = 25  # rows of a search
_BODY = b"Subject: Offer\r\n\r\n" + random.Random(1).randbytes(400).hex().encode()  # 800 bytes, half of them packed


def person(number: int) -> str:
    """Return the recipient with this number. Mail number n is for recipient n modulo the number of recipients."""
    return f"person{number}@example.org"


def days_back(count: int, days: int = DAYS) -> list[tuple[date, int, int]]:
    """Return (day, number of the first mail, mails) for the last full days, ``count`` mails in total."""
    today = datetime.now(UTC).date()
    starts = [count * n // days for n in range(days + 1)]
    return [(today - timedelta(days=days - n), starts[n], starts[n + 1] - starts[n]) for n in range(days)]


def rare_word(people: int, count: int, recipient: int) -> str:
    """Return a word that only one of the recipient's mails has, among ``count`` mails for all."""
    # The number of the last one. No other number begins with it.
    return str((count - 1 - recipient) // people * people + recipient)


def postgres(
    dsn: str, days: list[tuple[date, int, int]], people: int, *, bodies: bool = False, alike: bool = True
) -> None:
    """Make the schema and hold the mails of these ``days``, one delivery each. With ``bodies`` each mail has 800 bytes
    and its row in `seen`. Unless ``alike``, the mails of a recipient have different senders."""
    open_store(dsn, create=True).close()
    database = Database(dsn, create=False)
    for day in sorted({day for day, _, _ in days}):
        postgres_partitions.make_partitions(database, day)
    database.close()

    def fill_in(part: tuple[date, int, int]) -> None:
        _postgres_day(dsn, *part, people, bodies, alike)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fill_in, days))
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("vacuum analyze")  # as autovacuum does later
        connection.execute("checkpoint")
    os.sync()
    _check(dsn, days, people)


def _postgres_day(dsn: str, day: date, first: int, count: int, people: int, bodies: bool, alike: bool) -> None:
    with psycopg.connect(dsn, client_encoding="utf8") as connection:
        connection.execute("set synchronous_commit = off")
        connection.execute(
            "create temp table filled (n bigint, random text, recipient text, id uuid, header_from text,"
            " terms tsvector) on commit drop"
        )
        with connection.cursor().copy("copy filled from stdin") as copy:
            for n, id, recipient in mails(day, first, count, people):
                header_from = _header_from(n, people, alike)
                terms = " ".join(f"'{term}'" for term in _terms(n, recipient, header_from))
                copy.write(f"{n}\t{id.hex[16:]}{id.hex[16:]}\t{recipient}\t{id}\t{header_from}\t{terms}\n")
        connection.execute(
            "insert into message (id, body_id, tier, envelope_sender, subject, header_from, terms, queue_id,"
            " message_id, action, score, client_ip, packed_symbols, flags, body_sha256, size_bytes, has_8bit)"
            " select id, id, 'spam', %s, 'Offer ' || n, header_from, terms, left(random, 10), n || '@example.net',"
            " 'reject', %s, '198.51.100.7', %s, '{}', coalesce(%s, decode(random || random, 'hex')), %s, false"
            " from filled",
            [
                FROM,
                SCORE,
                SYMBOLS,
                hashlib.sha256(_BODY).digest() if bodies else None,
                len(_BODY) if bodies else 19_000,
            ],
        )
        connection.execute(
            "insert into delivery (message_id, number, recipient, address, state, state_at)"
            " select id, 0, recipient, recipient, 'held', now() from filled"
        )
        if bodies:
            connection.execute("insert into body_chunk select id, 0, %s from filled", [zstandard.compress(_BODY)])
            connection.execute("insert into seen select decode(random || random, 'hex'), id from filled")


def files(
    folder: Path, days: list[tuple[date, int, int]], people: int, *, alike: bool = True, with_files: bool = False
) -> None:
    """Make the store and the rows of the mails of these ``days``, one delivery each. No mail files, which lists and
    searches do not read; ``with_files`` makes empty ones. ``alike`` is described at `postgres`."""
    open_store(f"files://{folder}").close()
    mail_files = MailFiles(folder)
    connection = sqlite3.connect(folder / DATABASE)
    connection.execute("pragma journal_mode = off")
    connection.execute("pragma synchronous = off")
    for part in days:
        of_day = list(mails(*part, people))
        connection.executemany(
            "insert into message (rowid, id, dedup_key, tier, envelope_sender, subject, header_from, queue_id,"
            " message_id, action, score, client_ip, packed_symbols, flags, body_sha256, size_bytes, has_8bit)"
            f" values (?, ?, ?, 'spam', '{FROM}', ?, ?, ?, ?, 'reject', {SCORE}, '198.51.100.7',"
            f" x'{SYMBOLS.hex()}', '', ?, 19000, 0)",
            (
                (
                    word_index.key(id),
                    id.bytes,
                    os.urandom(32),
                    f"Offer {n}",
                    _header_from(n, people, alike),
                    f"4{n:09x}",
                    f"{n}@example.net",
                    hashlib.sha256(id.bytes).digest(),
                )
                for n, id, _ in of_day
            ),
        )
        connection.executemany(
            "insert into delivery (message_id, number, recipient, address, state_at) values (?, 0, ?, ?, ?)",
            ((id.bytes, recipient, recipient, to_micros(_start(part[0]))) for _, id, recipient in of_day),
        )
        for n, id, recipient in of_day:
            word_index.put(connection, word_index.key(id), _terms(n, recipient, _header_from(n, people, alike)))
        for _, id, _ in of_day if with_files else ():
            path = mail_files.path(id)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        connection.commit()
    word_index.index_waiting(connection)
    connection.commit()
    connection.close()
    os.sync()  # otherwise the disk is still busy during the measurement
    _check(f"files://{folder}", days, people)


def mails(day: date, first: int, count: int, people: int) -> Iterator[tuple[int, UUID, str]]:
    """Yield number, id and recipient of the mails of a day."""
    for n in range(count):
        id = new_id(_start(day) + timedelta(milliseconds=n * DAY_MS // count))
        yield first + n, id, person((first + n) % people)


def _header_from(n: int, people: int, alike: bool) -> str:
    return f"Promo <{'' if alike else f'n{n // people}.'}{FROM}>"


def _terms(n: int, recipient: str, header_from: str) -> list[str]:
    return search.terms(f"Offer {n}", FROM, header_from, Tier.SPAM, SCORE, [recipient])


def _check(url: str, days: list[tuple[date, int, int]], people: int) -> None:
    """Search for all mails of the recipient of the last one, and for that one. Raises RuntimeError if others are
    found."""
    count = sum(mails for _, _, mails in days)
    recipient = (count - 1) % people
    of_recipient = range(recipient, count, people)
    store = open_store(url)
    try:
        for word, expected in {"offer": min(len(of_recipient), CHECKED), str(count - 1): 1, "absent": 0}.items():
            wanted = Filter(states=frozenset({State.HELD}), words=word)
            found = store.deliveries.matching(Reader(person(recipient)), wanted, CHECKED).deliveries
            if len(found) != expected:
                raise RuntimeError(f"a search for {word!r} in the filled store does not find {expected} messages")
    finally:
        store.close()


def _start(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
