"""The accident of docs/operate.md: a rule held 3,000 wanted messages. The time that each of its commands takes.

The commands are processes of their own, as people start them, on PostgreSQL with the digest process. The mail server
accepts everything at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import releases, turns
from bench.rig import Effort, Row, own_folder, postgres
from bench.sink import sink
from portal.stores import open_store

MESSAGES = 3_000  # of one recipient each
PEOPLE = 20
_FOUND = ("--symbol", "BENCH_SYMBOL_13", "--since", "24h")
_RELEASE = ("release", "--matching", *_FOUND)
_PROGRAMS = Path(sys.executable).parent


def accident_postgres(effort: Effort) -> list[Row]:
    """From the search for the symbol to the last release."""
    count = effort.of(MESSAGES)
    with own_folder() as folder, postgres() as dsn, sink() as server:
        open_store(dsn, create=True).close()
        for person in range(PEOPLE):
            with turns.posts(dsn, folder, [f"p{person}@example.org"]) as post:
                post(len(range(person, count, PEOPLE)))
        environment = {**os.environ, **releases._environment(dsn, folder, server.url)}
        environment["QUARANTINE_MAIL__URL"] = server.url
        rows: list[Row] = []

        def run(what: str, *words: str) -> str:
            began = time.monotonic()
            done = subprocess.run(
                [_PROGRAMS / "quarantine", *words], env=environment, text=True, capture_output=True, check=True
            )
            command = "quarantine " + " ".join(words[: words.index("--since")] if "--since" in words else words)
            rows.append(Row(what, f"{time.monotonic() - began:.1f}", f"`{command} …`", None, "–"))
            return done.stdout

        began = time.monotonic()
        with _digest_process(environment):
            run("symbols, s", "list", "--group-by", "symbol", "--since", "24h")
            run("when it began, s", "list", *_FOUND, "--group-by", "hour")
            if f"{count} of {count} deliveries to release" not in run("dry run, s", *_RELEASE, "--dry-run"):
                raise RuntimeError("the dry run found others")
            reason = ("--hold-back", "--notify", "--reason", "A rule was wrong.", "--yes")
            ended = run("releases, and mails to the recipients, s", *_RELEASE, *reason)
            if f"{count} done, 0 failed, 0 left" not in ended:
                raise RuntimeError(f"not every message was released: {ended}")
            run("jobs, s", "jobs", "list")
            if run("what is left, s", "list", *_FOUND, "--state", "held", "--count").strip() != "0":
                raise RuntimeError("some are still held")
        seconds = time.monotonic() - began
    return [*rows, Row(f"accident of {count} messages, PostgreSQL, s", f"{seconds:.0f}", "–", None, "< 300")]


@contextmanager
def _digest_process(environment: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen([_PROGRAMS / "quarantine-digest", "run"], env=environment, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
