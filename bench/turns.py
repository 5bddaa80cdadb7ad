"""Two ways to do the same, in turn in one process, compared by processor time.

Rates depend on what else the machine does, processor time hardly. PostgreSQL's server processes are included.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from io import BytesIO
from itertools import count, islice
from pathlib import Path
from typing import Any
from unittest.mock import patch
from wsgiref.util import setup_testing_defaults

import psycopg
from bottle import HTTPResponse, request

from bench import load
from bench.rig import Effort, Row, spread
from digest import run
from portal.assemble import Parts, assemble
from portal.model import log_lines
from portal.settings import load_from
from portal.web import create_app

TURNS = 12  # of each way, in a round
WARM_UP = 2  # posts or digests

Work = Callable[[int], object]  # does so many of the same
Way = Callable[[], AbstractContextManager[object]]  # another way to do it, as long as the block lasts


def in_turn(what: str, work: Work, number: int, other: Way, effort: Effort, dsn: str = "") -> Row:
    """Return the row of a comparison in microseconds; ``number`` posts or digests are a turn."""
    pairs: list[tuple[float, float]] = []
    with psycopg.connect(dsn, autocommit=True) if dsn else nullcontext() as connection:
        for turn in range(TURNS * effort.rounds + 1):
            taken = [0.0, 0.0]
            for side in (0, 1) if turn % 2 else (1, 0):
                with other() if side else nullcontext():
                    work(WARM_UP)
                    processes = servers(connection) if connection else []
                    began = spent(processes)
                    work(number)
                    taken[side] = (spent(processes) - began) / number * 1e6
            if turn:  # the first one warms up
                pairs.append((taken[0], taken[1]))
    mine, others = (spread([pair[side] for pair in pairs]) for side in (0, 1))
    ratio = statistics.median(other / mine for mine, other in pairs)
    return Row(what, mine, others, ratio, "≥ 1.03")


def needed(number: int, effort: Effort) -> int:
    """Return how many posts or digests a row takes."""
    return 2 * (TURNS * effort.rounds + 1) * (number + WARM_UP)


def servers(connection: psycopg.Connection[Any]) -> list[Path]:
    """Return the files of the processor times of PostgreSQL's processes for the portal, for `spent`."""
    found = connection.execute("select pid from pg_stat_activity where application_name = 'quarantine'")
    return [Path(f"/proc/{pid}/schedstat") for (pid,) in found]


def spent(processes: Sequence[Path]) -> float:
    """Return the processor time of this process and of these server processes, in seconds."""
    return time.process_time() + sum(int(each.read_text("ascii").split()[0]) for each in processes) / 1e9


@contextmanager
def posts(url: str, folder: Path, recipients: Sequence[str] = ()) -> Iterator[Work]:
    """Return the work of holding different messages in this store, for these recipients or those of `load.METADATA`.

    Bottle has a second route to the endpoint.
    """
    environment = {
        "QUARANTINE_CONFIG": os.devnull,
        "QUARANTINE_STORE__URL": url,
        "QUARANTINE_LOCAL_DOMAINS": "example.org",
        "QUARANTINE_MAIL__FROM_ADDRESS": "quarantine@example.org",
        "QUARANTINE_LINKS__KEYS_FILE": f"{folder}/links.keys",
    }
    numbers, text = count(), load.words(load.MAIL_BYTES, 1)
    metadata = load.METADATA | ({"rcpt": json.dumps(recipients)} if recipients else {})
    with _assembled(environment) as parts:
        app = create_app(parts)

        def through_bottle() -> HTTPResponse:
            started: list[Any] = []
            body = app._export(request.environ, lambda *start: started.extend(start))
            return HTTPResponse(b"".join(body), started[0], dict(started[1]))

        def post(number: int) -> None:
            for n in islice(numbers, number):
                data = load.mail_head(n) + text
                environ: dict[str, Any] = {f"HTTP_X_RSPAMD_{name.upper()}": v for name, v in metadata.items()}
                environ |= {"CONTENT_LENGTH": str(len(data)), "CONTENT_TYPE": "text/plain", "REMOTE_ADDR": "127.0.0.1"}
                environ |= {"REQUEST_METHOD": "POST", "PATH_INFO": "/quarantine/", "wsgi.input": BytesIO(data)}
                setup_testing_defaults(environ)
                app(environ, _check)

        app._bottle.route("/", "POST", through_bottle)
        yield post


def _check(status: str, *_: object) -> None:
    if status != "200 OK":
        raise RuntimeError(f"answered {status}")


@contextmanager
def sending(environment: dict[str, str]) -> Iterator[Work]:
    """Return the work of claiming, composing, sending and recording digests that are due."""
    with _assembled(environment) as parts:

        def send(number: int) -> None:
            if len(run.send_due(parts, datetime.now(UTC), number).sent) != number:
                raise RuntimeError("some digests were not sent")

        yield send


@contextmanager
def _assembled(environment: dict[str, str]) -> Iterator[Parts]:
    """Open the parts, with the log of the service written to nowhere."""
    log = logging.getLogger("quarantine")
    with open(os.devnull, "w") as nowhere, patch.multiple(logging, **log_lines.UNUSED):
        handler = logging.StreamHandler(nowhere)
        handler.setFormatter(log_lines.LineFormatter())
        log.addHandler(handler)
        level, log.level = log.level, logging.INFO
        try:
            parts = assemble(load_from(environment)[0], create=True)
            try:
                yield parts
            finally:
                parts.store.close()
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
