"""A process that dies at a named point: the real code, forked from a prepared process, killed by SIGKILL.

Points outside of the process, at the mail server, are in the test. Points inside are reached through wrappers, in the
child alone, of a store's claims and statements, the composing of a mail, and the socket.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import psycopg

import digest.__main__  # noqa: F401 - loaded before the fork
from digest import housekeeping, news, run
from portal.assemble import Parts, assemble
from portal.batches.parallel import retry_due
from portal.mail.render import Render
from portal.model.clock import clock
from portal.model.message import Filter
from portal.settings import load_from
from portal.stores.files.digests import FileDigests
from portal.stores.files.store import FileStore
from portal.stores.postgres.digests import PostgresDigests
from portal.stores.postgres.store import PostgresStore
from portal.stores.shared.deliveries import SqlDeliveries
from portal.stores.shared.outbox import SqlOutbox
from portal.stores.shared.recipients import SqlRecipients
from tests.builders import BY_LINK


def retry_releases(parts: Parts, at: datetime) -> None:
    """Send the releases that wait, as the digest process does."""
    retry_due(replace(parts.actions, now=clock(at)))


def release_newest(parts: Parts, at: datetime) -> None:
    """Release the newest delivery, as a request of its recipient does."""
    [delivery] = parts.store.deliveries.search(Filter(), 1).deliveries
    replace(parts.actions, now=clock(at)).release(*delivery.key, BY_LINK)


JOBS: Mapping[str, Callable[[Parts, datetime], object]] = {
    "find-news": news.find_news,
    "schedule-news": news.schedule_news,
    "digests": run.send_due,
    "mails": housekeeping.send_queued,
    "daily": housekeeping.daily,
    "releases": retry_releases,
    "press": release_newest,
}


@dataclass(frozen=True)
class Point:
    """A point at which a process dies."""

    name: str
    jobs: tuple[str, ...]  # the work of the process, in order
    where: str  # a verb of the mail server, or a name of `_Striker`
    repeats: bool = False  # whether the mail may have arrived and may be repeated

    @property
    def of_each(self) -> bool:
        """True if the point is reached for every mail, and not once."""
        return not any(word in self.where for word in ("BANNER", "EHLO", "QUIT", "find_news", "purge", "days"))


def work(environ: Mapping[str, str], point: Point, at: datetime, nth: int, statement: int) -> None:
    """Do the point's jobs as of ``at`` and die at its ``nth`` occurrence; within a transaction at that statement."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is handled by the test
    _Striker(point.where, nth, statement).surround()
    parts = assemble(load_from(dict(environ))[0], create=True)
    if point.where == "any moment":
        threading.Thread(target=_die_later, args=(random.Random(nth * 100 + statement).uniform(0, 0.06),)).start()
    for job in point.jobs:
        JOBS[job](parts, at)
    parts.store.close()


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_later(seconds: float) -> None:
    time.sleep(seconds)
    _die()


class _Striker:
    """Counts how often ``where`` is reached, and kills the process the ``nth`` time."""

    def __init__(self, where: str, nth: int, statement: int) -> None:
        self.where, self.left, self.statement = where, nth, statement
        self.statements = 0  # left until the process dies, while it is in the chosen transaction, else 0

    def reach(self, moment: str) -> None:
        if moment == self.where:
            self.left -= 1
            if self.left == 0:
                _die()

    @contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Mark the begin and end of an operation of the store, whose statements are counted."""
        self.reach(f"before {name}")
        if self.where in (f"in {name}", f"commit of {name}"):
            self.left -= 1
            self.statements = self.statement if self.left == 0 else 0
        yield
        if self.statements:
            _die()  # the transaction had fewer statements
        self.reach(f"after {name}")

    def execute(self, statement: object) -> None:
        if self.statements and self.where.startswith("in "):
            self.statements -= 1
            if self.statements == 0:
                _die()

    def commits(self) -> bool:
        return bool(self.statements) and self.where.startswith("commit of ")

    def surround(self) -> None:
        for part, name, moment in (
            *((SqlRecipients, name, name) for name in ("find_news", "schedule")),
            *((store, name, name) for store in (FileStore, PostgresStore) for name in ("purge", "prepare_days")),
            *((digests, "claim", "claim") for digests in (FileDigests, PostgresDigests)),
            *((digests, "settle", "record") for digests in (FileDigests, PostgresDigests)),
        ):
            self._round_a_call(part, name, moment)
        self._round_a_claim(SqlOutbox, "sending")
        self._round_a_claim(SqlDeliveries, "releasing")
        self._round_statements()
        self._round_the_socket()
        make = Render.mail

        def mail(render: Render, *args: Any, **more: Any) -> Any:
            self.reach("before composing")
            made = make(render, *args, **more)
            self.reach("after composing")
            return made

        Render.mail = mail  # type: ignore[method-assign,assignment]

    def _round_a_call(self, part: type[object], name: str, moment: str) -> None:
        real = getattr(part, name)

        def call(*args: Any, **more: Any) -> Any:
            with self.within(moment):
                return real(*args, **more)

        setattr(part, name, call)

    def _round_a_claim(self, part: type[object], name: str) -> None:
        real = getattr(part, name)

        @contextmanager
        def claim(*args: Any, **more: Any) -> Iterator[Any]:
            claiming = real(*args, **more)
            with self.within("claim"):
                claimed = claiming.__enter__()
            try:
                yield claimed
            except BaseException as error:
                if not claiming.__exit__(type(error), error, error.__traceback__):
                    raise
            else:
                with self.within("record"):
                    claiming.__exit__(None, None, None)

        setattr(part, name, claim)

    def _round_statements(self) -> None:
        connect, execute, commit = sqlite3.connect, psycopg.Connection.execute, psycopg.Connection.commit

        def connected(*args: Any, **more: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*args, **more)

            def traced(statement: str) -> None:
                self.execute(statement)
                if statement == "COMMIT" and self.commits():
                    _die()

            connection.set_trace_callback(traced)
            return connection

        def executed(connection: Any, query: Any, *args: Any, **more: Any) -> Any:
            self.execute(query)
            return execute(connection, query, *args, **more)

        def committed(connection: Any) -> None:
            if self.commits():
                # The server has got the command; no reply says whether it committed.
                connection.pgconn.send_query(b"COMMIT")
                connection.pgconn.flush()
                _die()
            self.execute("COMMIT")
            commit(connection)

        sqlite3.connect = connected  # type: ignore[assignment]
        psycopg.Connection.execute = executed  # type: ignore[method-assign,assignment]
        psycopg.Connection.commit = committed  # type: ignore[method-assign,assignment]

    def _round_the_socket(self) -> None:
        real = socket.socket.send

        def send(sock: socket.socket, data: Any, *flags: Any) -> int:
            ends = bytes(data) in (b".\r\n", b"\r\n.\r\n")  # the final dot is sent by itself
            command = bytes(data[:4]) in (b"ehlo", b"MAIL", b"RCPT", b"DATA", b"RSET", b"QUIT")
            if self.where == "half of a mail" and not ends and not command:
                self.left -= 1
                if self.left == 0:
                    real(sock, data[: len(data) // 2], *flags)
                    _die()
            sent = real(sock, data, *flags)
            if ends and sent == len(data):
                self.reach("final dot")
            return sent

        socket.socket.send = send  # type: ignore[method-assign,assignment]
