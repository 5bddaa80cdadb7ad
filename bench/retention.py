"""Pages, searches and digests with messages of 365 and of 30 days: what does a longer retention cost?

Both stores have the same number of messages. Costs are processor time in one process, PostgreSQL's included, in turn.
"""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from io import BytesIO
from pathlib import Path
from urllib.parse import urlencode
from wsgiref.util import setup_testing_defaults

import psycopg

from bench import fill, turns
from bench.lists import ROW
from bench.rig import Effort, Row, own_folder, postgres, print_progress
from bench.sink import sink
from portal.assemble import assemble
from portal.model.message import random_token
from portal.settings import load_from
from portal.stores import open_store
from portal.web import create_app
from portal.web.pages import sha256

MONTH, YEAR = 30, 365
PEOPLE, EACH = 365, 100  # for pages
ROWS = 10  # of a digest
RECIPIENT = 7
TURNS = 4  # in a round
CALLS, DIGESTS = 10, 24  # in a turn
BAR = "≤ 1.3"

Call = Callable[[], object]
_PAGES = {
    "the page GET /": "",
    "a search for a word of one message": fill.rare_word(PEOPLE, PEOPLE * EACH, RECIPIENT),
    "a search that finds nothing": "absent",
}


def retention_postgres(effort: Effort) -> list[Row]:
    """Databases in one server, one for each retention."""
    with postgres() as dsn, own_folder() as folder, psycopg.connect(dsn, autocommit=True) as admin:
        urls = [_database(admin, dsn, days, PEOPLE, PEOPLE * EACH) for days in (YEAR, MONTH)]
        rows = _pages("PostgreSQL", urls, folder, admin, effort)
        readers = 2 * (TURNS * effort.rounds + 1) * DIGESTS
        urls = [_database(admin, dsn, days, readers, readers * ROWS) for days in (YEAR, MONTH)]
        return rows + _digests(urls, folder, admin, effort)


def retention_files(effort: Effort) -> list[Row]:
    with own_folder() as folder:
        urls = [f"files://{folder}/days-{days}" for days in (YEAR, MONTH)]
        for days, url in zip((YEAR, MONTH), urls, strict=True):
            _prepare(url, days)
            some = fill.days_back(PEOPLE * EACH, days)
            fill.files(folder / f"days-{days}", some, PEOPLE, alike=False, with_files=True)
            _purge(url)
        return _pages("files", urls, folder, None, effort)


def _database(admin: psycopg.Connection, dsn: str, days: int, people: int, count: int) -> str:
    """Make a database with this many messages in these days, and digests that are due."""
    name = f"days_{days}_{people}"
    admin.execute(f"create database {name}".encode())
    url = dsn.replace("/postgres?", f"/{name}?")
    _prepare(url, days)
    fill.postgres(url, fill.days_back(count, days), people, alike=False)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "insert into recipient (recipient, address, news_since, next_digest_at)"
            " select recipient, recipient, now() - interval '1 day', now() - interval '1 minute'"
            " from (select distinct recipient from delivery) d"
        )
        connection.execute("vacuum analyze recipient")
    print_progress(f"{count:,} messages of {days} days held")
    return url


def _prepare(url: str, days: int) -> None:
    store = open_store(url, create=True)
    store.prepare_days(datetime.now(UTC), days)
    store.close()


def _purge(url: str) -> None:
    """Run the purge of each night. It removes nothing, and merges the index of words."""
    store = open_store(url)
    now = datetime.now(UTC)
    if store.purge(now - timedelta(days=2 * YEAR), now).messages:
        raise RuntimeError("messages were removed")
    store.close()


def _pages(name: str, urls: Sequence[str], folder: Path, admin: psycopg.Connection | None, effort: Effort) -> list[Row]:
    with ExitStack() as stack:
        sites = [stack.enter_context(_site(_environment(url, folder))) for url in urls]
        rows = [
            _compared(f"{what} from {name}", [partial(site, words) for site in sites], CALLS, admin, effort)
            for what, words in _PAGES.items()
        ]
        return [row for row, _ in rows]


def _digests(urls: Sequence[str], folder: Path, admin: psycopg.Connection, effort: Effort) -> list[Row]:
    with ExitStack() as stack:
        server = stack.enter_context(sink())
        environments = [_environment(url, folder) | {"QUARANTINE_MAIL__URL": server.url} for url in urls]
        works = [stack.enter_context(turns.sending(environment)) for environment in environments]
        row, parts = _compared(
            f"a digest of {ROWS} rows from PostgreSQL",
            [partial(work, DIGESTS) for work in works],
            1,
            admin,
            effort,
            DIGESTS,
        )
        memory = [max(map(_anonymous_mb, _backends(admin, url))) for url in urls]
    year, month = ([part[side] for part in parts] for side in (0, 1))
    return [
        row,
        Row(
            f"PostgreSQL's part of it, ms, {YEAR} days", f"{statistics.median(year):.2f}",
            f"{statistics.median(month):.2f} with {MONTH}", statistics.median(map(_ratio, parts)), "≤ 2 ms",
        ),
        Row(
            f"memory of a backend after that, MB, {YEAR} days", f"{memory[0]:.0f}", f"{memory[1]:.0f} with {MONTH}",
            memory[0] / memory[1], "< 30 MB",
        ),
    ]  # fmt: skip


def _compared(
    what: str, calls: Sequence[Call], number: int, admin: psycopg.Connection | None, effort: Effort, operations: int = 1
) -> tuple[Row, list[tuple[float, float]]]:
    """Measure the calls of the year and of the month in turn, ``number`` of them in each, with so many ``operations``
    each. Return the row in ms for an operation, and of each turn PostgreSQL's part."""
    totals, parts = list[tuple[float, float]](), list[tuple[float, float]]()
    for turn in range(TURNS * effort.rounds + 1):
        total, part = [0.0, 0.0], [0.0, 0.0]
        for side in (0, 1) if turn % 2 else (1, 0):
            calls[side]()  # warms up after the other one
            servers = turns.servers(admin) if admin else []
            began, began_all = _of(servers), turns.spent(servers)
            for _ in range(number):
                calls[side]()
            total[side] = (turns.spent(servers) - began_all) * 1000 / number / operations
            part[side] = (_of(servers) - began) * 1000 / number / operations
        if turn:  # the first one warms up
            totals.append((total[0], total[1]))
            parts.append((part[0], part[1]))
    year, month = (statistics.median(total[side] for total in totals) for side in (0, 1))
    row = Row(
        f"{what}, processor time in ms, {YEAR} days", f"{year:.1f}", f"{month:.1f} with {MONTH}",
        statistics.median(map(_ratio, totals)), BAR,
    )  # fmt: skip
    return row, parts


def _ratio(pair: tuple[float, float]) -> float:
    return pair[0] / pair[1]


def _of(servers: Sequence[Path]) -> float:
    return sum(int(each.read_text("ascii").split()[0]) for each in servers) / 1e9


def _backends(admin: psycopg.Connection, url: str) -> list[int]:
    name = url.partition("?")[0].rpartition("/")[2]
    found = admin.execute(
        "select pid from pg_stat_activity where application_name = 'quarantine' and datname = %s", [name]
    )
    return [pid for (pid,) in found]


def _anonymous_mb(pid: int) -> float:
    """Return a process's own memory: without shared memory and files."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return int(re.findall(r"RssAnon:\s+([0-9]+) kB", status)[0]) / 1000


@contextmanager
def _site(environment: dict[str, str]) -> Iterator[Callable[[str], None]]:
    """Return a function that gets a recipient's list, or the results of a search."""
    parts = assemble(load_from(environment)[0], create=True)
    try:
        app, session = create_app(parts), random_token(32)
        parts.store.sign_ins.start_session(sha256(session), fill.person(RECIPIENT), datetime.now(UTC))

        def get(words: str) -> None:
            environ = {
                "PATH_INFO": "/quarantine/", "QUERY_STRING": urlencode({"q": words}), "REMOTE_ADDR": "127.0.0.1",
                "HTTP_COOKIE": f"__Host-quarantine-session={session}", "wsgi.input": BytesIO(),
            }  # fmt: skip
            setup_testing_defaults(environ)
            statuses: list[str] = []
            page = b"".join(app(environ, lambda status, *_: statuses.append(status)))
            rows = page.count(ROW)
            if statuses != ["200 OK"] or (rows != 25 if not words else rows != (words != "absent")):
                raise RuntimeError(f"{statuses}: {rows} rows for {words!r}")

        yield get
    finally:
        parts.store.close()


def _environment(url: str, folder: Path) -> dict[str, str]:
    return {
        "QUARANTINE_CONFIG": os.devnull,
        "QUARANTINE_STORE__URL": url,
        "QUARANTINE_PUBLIC_URL": "https://quarantine.example.org/quarantine",
        "QUARANTINE_LOCAL_DOMAINS": "example.org",
        "QUARANTINE_MAIL__FROM_ADDRESS": "quarantine@example.org",
        "QUARANTINE_LINKS__KEYS_FILE": str(folder / "links.keys"),
    }
