"""Kill a process of `victim` at a named point, from within it or from a mail server that it talks to."""

from __future__ import annotations

import multiprocessing
import os
import random
import select
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime

import psycopg

from tests.faults import victim
from tests.faults.victim import Point
from tests.smtp_server import SmtpServer

_VERBS = ("BANNER", "EHLO", "MAIL", "RCPT", "DATA", "INPUT", "BODY", "QUIT")


class Killer:
    """Runs processes with these settings. ``killer(point, at, nth, dice)`` runs one as of ``at`` and returns whether it
    died at the ``nth`` occurrence of the point."""

    def __init__(self, environ: Mapping[str, str], store_url: str, server: SmtpServer) -> None:
        self._environ = {name: value for name, value in environ.items() if "QUARANTINE" in name}
        self._store_url, self._server = store_url, server
        self._prepared = multiprocessing.get_context("forkserver")
        # Before the first process, or each child would load pytest again.
        self._prepared.set_forkserver_preload(["__main__", victim.__name__])

    def __call__(self, point: Point, at: datetime, nth: int, dice: random.Random, **environ: str) -> bool:
        settings = {**self._environ, **environ}
        process = self._prepared.Process(target=victim.work, args=(settings, point, at, nth, dice.randint(1, 8)))
        started = threading.Event()

        def strike(_line: bytes) -> None:
            started.wait()
            with suppress(ProcessLookupError):
                pidfd = os.pidfd_open(process.pid or 0)
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                select.select([pidfd], [], [])  # until it is dead, so that no reply reaches it
                os.close(pidfd)

        if point.where in _VERBS:
            self._server.script[point.where] = [None] * (nth - 1) + [strike]
        process.start()
        started.set()
        process.join()
        self._server.script.clear()
        code = process.exitcode
        process.close()
        self._wait_for_backends()
        self._wait_until_quiet()
        assert code in (0, -signal.SIGKILL), f"{point.name}: the process failed"
        return code != 0

    def _wait_for_backends(self) -> None:
        """Wait until PostgreSQL runs no statement for the dead process: its locks last until then."""
        if self._store_url.startswith("postgresql"):
            busy = "select from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
            with psycopg.connect(self._store_url, autocommit=True) as connection:
                deadline = time.monotonic() + 10
                while (
                    time.monotonic() < deadline
                    and connection.execute(f"{busy} and state <> 'idle'").fetchone() is not None
                ):
                    time.sleep(0.001)

    def _wait_until_quiet(self) -> None:
        """Wait until no connection is open, so that all data of a dead process is counted."""
        deadline = time.monotonic() + 10
        while self._server._sockets and time.monotonic() < deadline:
            time.sleep(0.001)
