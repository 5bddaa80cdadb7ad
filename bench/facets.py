"""Searches by staff over all held messages in PostgreSQL: by one criterion, by several, counts and groups.

The rows have no bodies. Their symbols, servers, sizes and domains are those of `_VARIANTS` different messages: a
symbol may be in all messages, in a fraction of them, or in one of `_VARIANTS`.
"""

from __future__ import annotations

import statistics
import time
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_network
from json import dumps
from uuid import UUID

import psycopg

from bench import fill
from bench.rig import Effort, Row, p99, postgres, print_progress, spread
from portal.model.message import Filter, Message, State, Symbol, Tier, first_id
from portal.stores import Store, facets, open_store
from portal.stores.records import GroupBy

HELD, EACH, CALLS, PAGE = 1_000_000, 100, 40, 50
_VARIANTS = 2_000
_SYMBOLS = 20  # of a message; number k is in every (k + 1)th message
_SMALL = "small.example"  # the recipients' domain of one variant


def facets_postgres(effort: Effort) -> list[Row]:
    with postgres() as url:
        held = effort.of(HELD)
        fill.postgres(url, fill.days_back(held), held // EACH, alike=False)
        fill_facets(url)
        print_progress(f"{held} mails held")
        store = open_store(url)
        try:
            return [
                _measured(f"{what}, {held:,} held, p50 / p99 in ms", call, bar, effort)
                for what, call, bar in calls(store)
            ]
        finally:
            store.close()


def fill_facets(dsn: str) -> None:
    """Write the facets of all messages, and release every 100th delivery."""
    names = {f"SYMBOL_{n}": n + 1 for n in range(_SYMBOLS)} | {f"RARE_{n}": 100 + n for n in range(_VARIANTS)}
    variants = []
    for n in range(_VARIANTS):
        row = facets.facet_row(_message(n), [f"x@{_SMALL}"] if n == 7 else ["x@example.org"], [])
        packed = facets.pack((names[name], facets.hundredths(score)) for name, score in row.symbols)
        variants.append({**row._asdict(), "n": n, "symbols": b64encode(packed).decode()})
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("set synchronous_commit = off")
        with connection.cursor() as cursor:
            insert = "insert into symbol_name overriding system value values (%s, %s)"
            cursor.executemany(insert, [(number, name) for name, number in names.items()])
        number = "split_part(m.subject, ' ', 2)::int"
        connection.execute(
            "update delivery d set recipient = 'x@' || %s from message m"
            f" where m.id = d.message_id and {number} %% {_VARIANTS} = 7",
            [_SMALL],
        )
        connection.execute(
            f"update delivery d set state = 'released' from message m where m.id = d.message_id and {number} % 100 = 3"
        )
        connection.execute(
            f"insert into facet select m.id, m.terms || array_to_tsvector(v.terms), v.tier, m.score, v.action,"
            " v.size_bytes, v.sender_domain, decode(v.symbols, 'base64')"
            " from json_to_recordset(%s::json) v (n int, terms text[], tier text, action text, size_bytes bigint,"
            f" sender_domain text, symbols text) join message m on {number} %% {_VARIANTS} = v.n",
            [dumps(variants, default=str)],
        )
        connection.execute("insert into setting values ('facets.until', %s)", [str(first_id(datetime.now(UTC)))])
        connection.execute("vacuum analyze")
        connection.execute("checkpoint")


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
        score=None,
        client_ip=f"198.51.{n % 250}.{n // 250}",
        user=None,
        symbols=(*symbols, Symbol(f"RARE_{n}", 1.0)),
        flags=frozenset(),
        body_sha256=b"",
        size_bytes=1_000 + n * n,
        has_8bit=False,
    )


def calls(store: Store) -> list[tuple[str, Callable[[], object], str]]:
    """Return what is measured, the calls, and their bars."""
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
    bar = "< – / < 300"
    return [
        *((f"search: {what}", partial(store.facets.page, wanted, PAGE), bar) for what, wanted in searches.items()),
        *((f"count: {what}", partial(store.facets.count, wanted), "–") for what, wanted in searches.items()),
        *((f"groups: {by.value}", partial(store.facets.groups, Filter(), by), "–") for by in GroupBy),
    ]


def _measured(what: str, call: Callable[[], object], bar: str, effort: Effort) -> Row:
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
