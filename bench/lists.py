"""The list of a recipient with a million and with ten thousand mails held: does it get slower as the store grows?

Each recipient has a hundred mails in both stores, so both show the same page of 25.
"""

from __future__ import annotations

import random
import statistics
import time
import urllib.request
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from bench import fill
from bench.rig import Effort, Row, own_folder, p99, postgres, print_progress, served
from portal.model.message import Reader, State, random_token
from portal.stores import Store, open_store
from portal.web.pages import sha256

SMALL, LARGE, EACH, PAGE = 10_000, 1_000_000, 100, 25
CALLS, PAGES, SESSIONS = 500, 200, 30  # in a round


def list_postgres(effort: Effort) -> list[Row]:
    """Measure two databases in one server."""
    with postgres() as dsn:
        urls = []
        for count in (SMALL, effort.of(LARGE)):
            urls.append(_database(dsn, f"held_{count}"))
            fill.postgres(urls[-1], fill.days_back(count), count // EACH)
            print_progress(f"{count} mails held")
        return _rows("PostgreSQL", urls[0], urls[1], effort)


def list_files(effort: Effort) -> list[Row]:
    with own_folder() as path:
        urls = []
        for count in (SMALL, effort.of(LARGE)):
            fill.files(path / f"held-{count}", fill.days_back(count), count // EACH)
            urls.append(f"files://{path}/held-{count}")
            print_progress(f"{count} mails held")
        return _rows("files", urls[0], urls[1], effort)


def _database(dsn: str, name: str) -> str:
    import psycopg

    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"create database {name}")
    return dsn.replace("/postgres?", f"/{name}?")


def _rows(store: str, small: str, large: str, effort: Effort) -> list[Row]:
    counts = (SMALL, effort.of(LARGE))
    stores = [open_store(url) for url in (small, large)]
    try:
        lists = [partial(_list, opened, count // EACH) for opened, count in zip(stores, counts, strict=True)]
        rows = [_compared(f"a list of {PAGE} from {store} with {counts[1]:,} held", lists, CALLS, effort)]
        sessions = []
        for opened, count in zip(stores, counts, strict=True):
            sessions.append({random_token(32): fill.person(random.randrange(count // EACH)) for _ in range(SESSIONS)})
            for session, recipient in sessions[-1].items():
                opened.sign_ins.start_session(sha256(session), recipient, datetime.now(UTC))
        with (
            own_folder() as keys,
            served("portal.wsgi:application", workers=1, **_environment(small, keys / "small")) as small_site,
            served("portal.wsgi:application", workers=1, **_environment(large, keys / "large")) as large_site,
        ):
            pages = [
                partial(_page, site.port, list(names))
                for site, names in zip((small_site, large_site), sessions, strict=True)
            ]
            rows.append(_compared(f"the page GET / from {store} with {counts[1]:,} held", pages, PAGES, effort))
        return rows
    finally:
        for opened in stores:
            opened.close()


def _environment(url: str, keys: Path) -> dict[str, str]:
    return {"QUARANTINE_STORE__URL": url, "QUARANTINE_LINKS__KEYS_FILE": str(keys)}


def _list(store: Store, people: int) -> None:
    """Read the list of a random recipient among the first ``people``."""
    deliveries = store.deliveries.list_for(Reader(fill.person(random.randrange(people))), [State.HELD], PAGE).deliveries
    if len(deliveries) != PAGE:
        raise RuntimeError(f"a page of {len(deliveries)} rows")


def _page(port: int, sessions: list[str]) -> None:
    """Get the page of a random one of these sessions."""
    session = random.choice(sessions)
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/quarantine/", headers={"Cookie": f"__Host-quarantine-session={session}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        if answer.read().count(b"promo@example.net") < PAGE:
            raise RuntimeError("not a recipient's page")


def _compared(what: str, calls: Sequence[Callable[[], None]], count: int, effort: Effort) -> Row:
    """Measure both calls alternately."""
    found: list[tuple[float, float]] = []
    for n in range(effort.rounds + 1):
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(count):
            for call, taken in zip(calls, seconds, strict=True):
                began = time.perf_counter()
                call()
                taken.append(time.perf_counter() - began)
        if n:  # the first round warms up
            found.append((p99(seconds[0]) * 1000, p99(seconds[1]) * 1000))
            (small, large), medians = found[-1], statistics.median(seconds[1]) / statistics.median(seconds[0])
            print_progress(f"{large:.2f} ms / {small:.2f} ms = {large / small:.2f}; of the medians {medians:.2f}")
    small, large = (statistics.median(pair[which] for pair in found) for which in (0, 1))
    ratio = statistics.median(b / a for a, b in found)
    return Row(f"{what}, p99 in ms", f"{large:.2f}", f"{small:.2f} with {SMALL:,}", ratio, "≤ 1.3")
