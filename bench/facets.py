"""Searches by staff over all held messages: by one criterion, by several, in the order of scores, counts and groups.

The rows have no bodies. Their symbols, servers, sizes and domains are those of `_VARIANTS` different messages: a
symbol may be in all messages, in a fraction of them, or in one of `_VARIANTS`.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import statistics
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from functools import partial
from ipaddress import ip_network
from json import dumps
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import psycopg
from psycopg import sql

from bench import fill
from bench.rig import Effort, Row, p99, postgres, print_progress, spread
from portal.model.message import Filter, Message, State, Symbol, Tier
from portal.stores import Store, facets, open_store, search
from portal.stores.contracts.facets import COUNTED_MAX
from portal.stores.files import word_index
from portal.stores.files.database import DATABASE
from portal.stores.postgres import partitions
from portal.stores.postgres.database import Database
from portal.stores.records import GroupBy

HELD, LARGE, EACH, CALLS, PAGE = 1_000_000, 10_000_000, 100, 40, 50
_VARIANTS = 2_000
_SYMBOLS = 20  # of a message; number k is in every (k + 1)th message
_SMALL = "small.example"  # the recipients' domain of one variant
_NAMES = {f"SYMBOL_{n}": n + 1 for n in range(_SYMBOLS)} | {f"RARE_{n}": 100 + n for n in range(_VARIANTS)}
_BAR = "< – / < 300"
_INDEXES = {"message_terms_idx": "message", "facet_terms_idx": "facet"}  # building them afterwards is faster
_FILL = """
    create temp table filled on commit drop as
    select number.n,
        (lpad(to_hex(%(begin)s + (number.n - %(first)s) * 86400000 / %(count)s), 12, '0') || '7'
            || lpad(to_hex(number.n %% 4096), 3, '0') || '8' || left(md5(number.n::text), 15))::uuid as id,
        v.words || array[p.term, number.n::text] as words, v.terms, v.tier, v.score, v.action, v.size_bytes,
        v.sender_domain, v.symbols, v.header_from, v.client_ip, coalesce(v.recipient, p.recipient) as recipient
    from generate_series(%(first)s::bigint, %(first)s::bigint + %(count)s - 1) number (n)
    join variant v on v.n = number.n %% %(variants)s join person p on p.n = number.n %% %(people)s;
    insert into message (id, body_id, tier, envelope_sender, subject, header_from, terms, queue_id, message_id, action,
        score, client_ip, packed_symbols, flags, body_sha256, size_bytes, has_8bit)
    select id, id, tier, %(sender)s, 'Offer ' || n, header_from, array_to_tsvector(words), 'Q' || n, n || '@a.example',
        action, score, client_ip, %(packed)s, '{}', sha256(n::text::bytea), size_bytes, false from filled;
    insert into delivery (message_id, number, recipient, address, state, state_at)
    select id, 0, recipient, recipient, case when n %% 100 = 3 then 'released' else 'held' end, now() from filled;
    insert into facet (message_id, terms, tier, score, action, size_bytes, sender_domain, symbols)
    select id, array_to_tsvector(words || terms), tier, score, action, size_bytes, sender_domain, symbols from filled;
"""


def facets_postgres(effort: Effort) -> list[Row]:
    """Measure searches over a million messages in PostgreSQL."""
    with postgres() as url:
        return _facets(url, "PostgreSQL", effort.of(HELD), _BAR, effort)


def facets_large(effort: Effort) -> list[Row]:
    """Measure searches over ten million messages. Filling them in takes up to half an hour and 20 GB."""
    with postgres() as url:
        return _facets(url, "PostgreSQL", effort.of(LARGE), "< – / < 1,000", effort)


def facets_files(effort: Effort) -> list[Row]:
    """Measure searches over a million messages in files. Filling them in takes some minutes."""
    with tempfile.TemporaryDirectory(prefix="quarantine-bench-") as folder:
        return _facets(f"files://{folder}", "files", effort.of(HELD), _BAR, effort)


def _facets(url: str, where: str, held: int, bar: str, effort: Effort) -> list[Row]:
    """``bar``: of all but groups."""
    began = time.monotonic()
    if url.startswith("files:"):
        _fill_files(Path(url.removeprefix("files://")), held)
    else:
        fill_facets(url, held)
    print_progress(f"{held} mails held in {time.monotonic() - began:.0f} s")
    store = open_store(url)
    try:
        _check(store, held)
        return [
            measured(f"{what}, {held:,} held in {where}, p50 / p99 in ms", call, its_bar, effort)
            for what, call, its_bar in calls(store, bar)
        ]
    finally:
        store.close()


def _check(store: Store, held: int) -> None:
    """Raise RuntimeError unless searches find the messages: else it would be measured how fast nothing is found."""
    wanted = Filter(actions=frozenset({"add header"}), symbols=("SYMBOL_0",))
    expected = min(-(-held // 10), COUNTED_MAX)
    if store.facets.count(wanted).count != expected:
        raise RuntimeError(f"a search in the filled store does not find {expected} messages")


def fill_facets(dsn: str, held: int) -> None:
    """Hold so many messages, one delivery each, of which every 100th is released, and index them.

    The server makes the rows, so that ten million are possible.
    """
    open_store(dsn, create=True).close()
    days = fill.days_back(held)
    database = Database(dsn, create=False)
    for day, _, _ in days:
        partitions.make_partitions(database, day)
    database.close()
    with psycopg.connect(dsn, autocommit=True) as connection:
        for index in _INDEXES:
            connection.execute(sql.SQL("drop index {}").format(sql.Identifier(index)))
        _make_variants(connection, max(1, held // EACH))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(partial(_fill_day, dsn, max(1, held // EACH)), days))
        list(pool.map(partial(_build_index, dsn), _INDEXES))
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("drop table person, variant")
        newest = connection.execute("select id from message order by id desc limit 1").fetchone()
        connection.execute("vacuum analyze")
        connection.execute("checkpoint")
        for name in ("until", "complete"):
            connection.execute("insert into setting values (%s, %s)", [f"facets.{name}", str(newest and newest[0])])


class _Variant(NamedTuple):
    message: Message
    row: facets.FacetRow
    words: Sequence[str]  # the terms of the word index, without those of the recipient
    symbols: bytes  # of `facet.symbols`
    recipient: str | None  # None: any person


def _variants() -> list[_Variant]:
    made = []
    for n in range(_VARIANTS):
        message, recipient = _message(n), f"x@{_SMALL}" if n == 7 else None
        row = facets.facet_row(message, [recipient or fill.person(0)], [])
        words = search.terms("Offer", fill.FROM, message.header_from, message.tier, message.score, [])
        packed = facets.pack((_NAMES[name], facets.hundredths(score)) for name, score in row.symbols)
        made.append(_Variant(message, row, words, packed, recipient))
    return made


def _make_variants(connection: psycopg.Connection, people: int) -> None:
    """Make the tables from which `_fill_day` makes its rows."""
    variants = [
        {
            **each.row._asdict(),
            "header_from": each.message.header_from,
            "client_ip": each.message.client_ip,
            "recipient": each.recipient,
            "n": n,
            "words": each.words,
            "symbols": b64encode(each.symbols).decode(),
        }
        for n, each in enumerate(_variants())
    ]
    connection.execute(
        "create table variant as select n, words, terms, tier, score, action, size_bytes, sender_domain,"
        " decode(symbols, 'base64') as symbols, header_from, client_ip, recipient from json_to_recordset(%s::json) v ("
        "n int, words text[], terms text[], tier text, score double precision, action text, size_bytes bigint,"
        " sender_domain text, symbols text, header_from text, client_ip text, recipient text)",
        [dumps(variants, default=str)],
    )
    connection.execute("create table person (n int, recipient text, term text)")
    with connection.cursor() as cursor:
        with cursor.copy("copy person from stdin") as copy:
            for n in range(people):
                copy.write_row((n, fill.person(n), search.recipient_term(fill.person(n))))
        insert = "insert into symbol_name overriding system value values (%s, %s)"
        cursor.executemany(insert, [(number, name) for name, number in _NAMES.items()])
    connection.execute("analyze variant, person")


def _fill_day(dsn: str, people: int, part: tuple[date, int, int]) -> None:
    day, first, count = part
    values = {
        "begin": int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000),
        "first": first,
        "count": count,
        "variants": _VARIANTS,
        "people": people,
        "sender": fill.FROM,
        "packed": fill.SYMBOLS,
    }
    with psycopg.connect(dsn, cursor_factory=psycopg.ClientCursor) as connection:  # several statements at once
        connection.execute("set synchronous_commit = off")
        connection.execute(_FILL, values)


def _fill_files(folder: Path, held: int) -> None:
    """Hold the same messages in files, without files of mails, which searches do not read."""
    open_store(f"files://{folder}").close()
    variants, people = _variants(), max(1, held // EACH)
    connection = sqlite3.connect(folder / DATABASE)
    connection.execute("pragma journal_mode = off")
    connection.execute("pragma synchronous = off")
    connection.executemany("insert into symbol_name (name, id) values (?, ?)", _NAMES.items())
    newest = UUID(int=0)
    for day, first, count in fill.days_back(held):
        for n, newest, person in fill.mails(day, first, count, people):
            variant, key = variants[n % _VARIANTS], word_index.key(newest)
            message, recipient = variant.message, variant.recipient or person
            connection.execute(
                "insert into message (rowid, id, dedup_key, tier, envelope_sender, subject, header_from, queue_id,"
                " message_id, action, score, client_ip, packed_symbols, flags, body_sha256, size_bytes, has_8bit)"
                " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '', ?, ?, 0)",
                (
                    key,
                    newest.bytes,
                    hashlib.sha256(newest.bytes).digest(),
                    message.tier,
                    fill.FROM,
                    f"Offer {n}",
                    message.header_from,
                    f"Q{n}",
                    f"{n}@a.example",
                    message.action,
                    message.score,
                    message.client_ip,
                    fill.SYMBOLS,
                    hashlib.sha256(newest.bytes).digest(),
                    message.size_bytes,
                ),
            )
            connection.execute(
                "insert into delivery (message_id, number, recipient, address, state, state_at)"
                " values (?, 0, ?, ?, ?, ?)",
                (newest.bytes, recipient, recipient, "released" if n % 100 == 3 else "held", time.time_ns() // 1000),
            )
            row = variant.row
            connection.execute(
                "insert into facet (key, tier, score, action, size_bytes, sender_domain, symbols)"
                " values (?, ?, ?, ?, ?, ?, ?)",
                (key, row.tier, row.score, row.action, row.size_bytes, row.sender_domain, variant.symbols),
            )
            terms = (*variant.words, search.recipient_term(recipient), str(n), *row.terms)
            word_index.add(connection, key, terms)
        word_index.index_waiting(connection)
        connection.commit()
    connection.executemany(
        "insert into setting (name, value) values (?, ?)",
        [(f"facets.{name}", str(newest)) for name in ("until", "complete")],
    )
    connection.execute("analyze")
    connection.commit()
    connection.close()
    os.sync()


def _build_index(dsn: str, name: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("set maintenance_work_mem = '256MB'")
        connection.execute("set max_parallel_maintenance_workers = 0")  # there are two of these connections
        statement = "create index {} on {} using gin (terms) with (gin_pending_list_limit = 1024)"
        names = (sql.Identifier(name), sql.Identifier(_INDEXES[name]))
        connection.execute(sql.SQL(statement).format(*names))


def _message(n: int) -> Message:
    symbols = [Symbol(f"SYMBOL_{k}", k - 2.0) for k in range(_SYMBOLS) if n % (k + 1) == 0]
    return Message(
        id=UUID(int=0),
        verdict_tier=list(Tier)[n % 50 == 0],
        envelope_sender=None,
        subject="",
        header_from=f"a@shop{n % 500}.example",
        queue_id=None,
        message_id=None,
        action="reject" if n % 10 else "add header",
        score=fill.SCORE - n % 150 / 10,
        client_ip=f"198.51.{n % 250}.{n // 250}",
        user=None,
        symbols=(*symbols, Symbol(f"RARE_{n}", 1.0)),
        flags=frozenset(),
        body_sha256=b"",
        size_bytes=1_000 + n * n,
        has_8bit=False,
    )


def calls(store: Store, bar: str) -> list[tuple[str, Callable[[], object], str]]:
    """Return what is measured, the calls, and their bars: ``bar`` for all but groups."""
    searches = {
        "nothing": Filter(),
        "a symbol of all messages": Filter(symbols=("SYMBOL_0",)),
        "a symbol of one in 2,000": Filter(symbols=("RARE_700",)),
        "an unknown symbol": Filter(symbols=("ABSENT",)),
        "two symbols that no message has together": Filter(symbols=("SYMBOL_19", "RARE_701")),
        "an action": Filter(actions=frozenset({"add header"})),
        "the network of a server": Filter(client=ip_network("198.51.100.0/24")),
        "a size": Filter(size_min=3_900_000),
        "the domain of a sender": Filter(sender_domain="shop499.example"),
        "the domain of a recipient": Filter(domains=frozenset({_SMALL})),
        "a state and a symbol": Filter(states=frozenset({State.RELEASED}), symbols=("SYMBOL_0",)),
        "a state and a symbol, nothing": Filter(states=frozenset({State.REQUESTED}), symbols=("SYMBOL_0",)),
        "a recipient and a symbol": Filter(recipient=fill.person(5), symbols=("SYMBOL_0",)),
        "a tier, a score, a symbol and a word": Filter(
            tiers=frozenset({Tier.SUSPICIOUS}), score_min=20, symbols=("SYMBOL_9",), words="offer"
        ),
        "a part of a sender that nobody has": Filter(sender="ops.exa", symbols=("SYMBOL_1",)),
        "a part of a sender and a symbol": Filter(sender="hop499.exa", symbols=("SYMBOL_0",)),
    }
    return [
        *((f"search: {what}", partial(store.facets.page, wanted, PAGE), bar) for what, wanted in searches.items()),
        *(
            (f"by score: {what}", partial(store.facets.by_score, wanted, PAGE), bar)
            for what, wanted in searches.items()
        ),
        *((f"count: {what}", partial(store.facets.count, wanted), bar) for what, wanted in searches.items()),
        *((f"groups: {by.value}", partial(store.facets.groups, Filter(), by), "–") for by in GroupBy),
    ]


def measured(what: str, call: Callable[[], object], bar: str, effort: Effort) -> Row:
    """Measure a call: the median and the 99th percentile of each round, in ms."""
    rounds = []
    call()
    for _ in range(effort.rounds):
        seconds = []
        for _ in range(CALLS):
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
        rounds.append((statistics.median(seconds) * 1000, p99(seconds) * 1000))
    p50s, p99s = ([each[which] for each in rounds] for which in (0, 1))
    return Row(what, f"{spread(p50s, 1)} / {spread(p99s, 1)}", "–", None, bar)
