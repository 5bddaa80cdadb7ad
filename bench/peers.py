"""Posts into other quarantines for Rspamd, in turn with the same posts into this one, all behind Nginx.

``--peers`` names a folder with checkouts: ``sys4`` (github.com/sys4/rspamd-quarantine) and ``mailcow``
(github.com/mailcow/mailcow-dockerized). What is missing is not measured, and the output says so.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from bench import load, mailcow, nginx
from bench.processor import Clock, cell, postmaster
from bench.rig import CLIENTS, Effort, Row, free_port, own_folder, postgres, print_progress, served, spread
from portal.stores import open_store

HELD = 20_000
_BOUNDARY = "bench-boundary"


@dataclass(frozen=True)
class Receiver:
    """Something that takes posts."""

    name: str
    durable: str  # what is on the disk when it has answered 200
    port: int
    post: load.Post
    components: dict[str, int]


@dataclass(frozen=True)
class _Round:
    rate: float  # posts answered 200 in a second
    refused: float  # share of the others
    seconds: dict[str, float]  # processor time by component
    posts: int


def peers(effort: Effort) -> list[Row]:
    """Measure the peers whose sources are there."""
    if effort.peers is None:
        print_progress("not run: --peers names no folder")
        return []
    if not nginx.is_installed():
        print_progress("not run: Nginx is not installed")
        return []
    print_progress("rqwatch: not run, since its libraries come from Composer only")
    rows: list[Row] = []
    with ExitStack() as stack:
        dsn = stack.enter_context(postgres())
        ours = stack.enter_context(_ours(dsn))
        script = effort.peers / "sys4" / "quarantine.py"
        if not script.exists() or importlib.util.find_spec("psycopg2") is None:
            print_progress("the original script: not run, needs sys4/quarantine.py and pip install psycopg2-binary")
        else:
            with _original(script, dsn) as originals:
                rows += _compared(ours, originals, effort)
        absent = mailcow.missing()
        if absent or not (effort.peers / "mailcow").exists():
            print_progress(f"mailcow: not run, needs a checkout in mailcow, and {', '.join(absent) or 'its programs'}")
        else:
            with mailcow.running(effort.peers / "mailcow") as receiver:
                for held in (0, effort.of(HELD)):
                    if held:
                        receiver.hold(held)
                    durable = "each recipient's row by itself"
                    peer = Receiver(
                        f"mailcow with {held:,} held", durable, receiver.port, _multipart_post(), receiver.components
                    )
                    before = receiver.held()
                    rows += _compared(ours, [peer], effort)
                    print_progress(f"{receiver.held()} rows in its table, {before} before")
    return rows


def _compared(ours: Receiver, others: list[Receiver], effort: Effort) -> list[Row]:
    found: dict[str, list[_Round]] = {each.name: [] for each in (ours, *others)}
    for n in range(effort.rounds + 1):
        for receiver in (ours, *others):
            done = _round(receiver, effort.seconds if n else 1)
            if n:  # the first round warms up
                found[receiver.name].append(done)
        if n:
            print_progress(", ".join(f"{name} {rounds[-1].rate:.1f}/s" for name, rounds in found.items()))
    mine = found[ours.name]
    return [_row(ours, mine, receiver, found[receiver.name]) for receiver in others]


def _row(ours: Receiver, mine: list[_Round], other: Receiver, theirs: list[_Round]) -> Row:
    digits = 0 if min(each.rate for each in theirs) >= 10 else 2
    refused = statistics.median(each.refused for each in theirs)
    ratios = [a.rate / b.rate for a, b in zip(mine, theirs, strict=True) if b.rate]  # none: it answered no post
    costs = [cell(_sum(rounds), sum(each.posts for each in rounds)) for rounds in (mine, theirs)]
    return Row(
        f"posts/s beside {other.name}",
        f"{spread([each.rate for each in mine])}; durable: {ours.durable}",
        f"{spread([each.rate for each in theirs], digits)}; durable: {other.durable}"
        + (f"; {refused:.0%} refused" if refused else ""),
        statistics.median(ratios) if ratios else None,
        "–",
        f"{costs[0]}; theirs {costs[1]}",
    )


def _sum(rounds: list[_Round]) -> dict[str, float]:
    return {name: sum(each.seconds[name] for each in rounds) for name in rounds[0].seconds}


_numbers = iter(range(1_000_000_000, 10**15, 100_000_000))


def _round(receiver: Receiver, seconds: float) -> _Round:
    clock = Clock(receiver.components)
    latencies, refused = load.answers(receiver.port, seconds, CLIENTS, next(_numbers), receiver.post)
    # Not by ``seconds``: a post that takes longer ends after them.
    rate = CLIENTS * len(latencies) / (sum(latencies) + sum(refused)) if latencies else 0.0
    total = len(latencies) + len(refused)
    return _Round(rate, len(refused) / total, clock.seconds(), total)


@contextmanager
def _ours(dsn: str) -> Iterator[Receiver]:
    open_store(dsn, create=True).close()
    with served("portal.wsgi:application", QUARANTINE_STORE__URL=dsn) as server, nginx.shipped(server.socket) as front:
        components = {"Nginx": front.master, "workers": server.master, "PostgreSQL": postmaster(dsn)}
        yield Receiver("ours", "message and rows", front.port, _headers_post(), components)


@contextmanager
def _original(script: Path, dsn: str) -> Iterator[list[Receiver]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create database original")
    with psycopg.connect(dsn.replace("/postgres?", "/original?")) as connection:
        connection.execute((script.parent / "quarantine.sql").read_bytes())
    host = dsn.partition("host=")[2]
    modes = {  # (name, durable): the folder of PostgreSQL's socket, and whether it writes files
        ("the original script, SQL and files", "rows, in two commits; files not synced"): (host, True),
        ("the original script, SQL", "rows, in two commits"): (host, False),
        ("the original script, files", "nothing: files not synced"): ("", True),
    }
    with ExitStack() as stack:
        folder = stack.enter_context(own_folder())
        found = []
        for (name, durable), (server, with_files) in modes.items():
            uwsgi = stack.enter_context(
                served(
                    "bench.original:application",
                    QUARANTINE_BENCH_SCRIPT=str(script),
                    QUARANTINE_BENCH_STORE=str(folder) if with_files else "",
                    QUARANTINE_BENCH_SERVER=server,
                )
            )
            port = free_port()
            site = (
                f"server {{ listen 127.0.0.1:{port}; client_max_body_size 80m; location / {{\n"
                f"include /etc/nginx/uwsgi_params; uwsgi_pass unix:{uwsgi.socket}; }} }}\n"
            )
            front = stack.enter_context(nginx.running(port, site))
            components = {"Nginx": front.master, "workers": uwsgi.master}
            if server:
                components["PostgreSQL"] = postmaster(dsn)
            found.append(Receiver(name, durable, port, _headers_post(), components))
        yield found


def _headers_post() -> load.Post:
    return load.rspamd_post(0, metadata=_METADATA)


def _multipart_post() -> load.Post:
    """Return the same mail and metadata in Rspamd's format ``multipart``."""
    mail = load.HEAD + load.words(load.MAIL_BYTES - len(load.HEAD), 1)
    parsed = {name: json.loads(_METADATA[name]) for name in ("rcpt", "symbols", "fuzzy")}
    told = json.dumps(_METADATA | parsed | {"score": 21.5, "size": len(mail)})
    body = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="metadata"\r\nContent-Type: application/json\r\n\r\n'
        f'{told}\r\n--{_BOUNDARY}\r\nContent-Disposition: form-data; name="message"; filename="message.eml"\r\n'
        "Content-Type: message/rfc822\r\n\r\n"
    ).encode() + mail + f"\r\n--{_BOUNDARY}--\r\n".encode()  # fmt: skip
    head = (
        "POST /pipe.php HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nUser-Agent: rspamd-4.1\r\n"
        f"Content-Type: multipart/form-data; boundary={_BOUNDARY}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return load.Post((head.encode() + body).split(load.COUNTER))


_METADATA = load.METADATA | {"qid": load.COUNTER.decode()}  # the original script's primary key is the queue id
