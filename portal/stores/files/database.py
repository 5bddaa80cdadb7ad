"""The SQLite file beside the mail files: connections, the write lock, the schema, and SQLite's errors in our words.

Writers queue at a `flock` before they reach SQLite, since SQLite's own waiting sleeps for up to 100 ms at a time:
with the lock the slowest of 4 processes' commits was ten times faster. Every write begins with BEGIN IMMEDIATE; a
plain BEGIN that reads first and writes then fails at once when somebody else wrote in between, whatever the timeout.

Write-ahead logging (https://www.sqlite.org/wal.html): with ``synchronous=NORMAL`` a commit is safe from a crash of
the program but not from a power cut, with ``FULL`` from both. A FULL commit syncs the whole log, so everything
committed before it is safe as well. Ingest uses NORMAL, since its mail files are durable and hold all that the rows
say (`files.FileStore.open` reads them after a power cut); everything else uses FULL.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from portal.model.errors import QuarantineError, StoreUnavailable, StoreUnusable
from portal.stores import SCHEMA_VERSION
from portal.stores.files import schema
from portal.stores.files.journal import Journal

DATABASE = "quarantine.sqlite3"
_IN_USE = "in-use"
LOCK_WAIT_SECONDS = 2.0  # what ingest may wait; the exporter gives up after 5 s

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_micros(at: datetime) -> int:
    """Microseconds since 1970 UTC, how times are kept."""
    return (at - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """Aware UTC."""
    return _EPOCH + timedelta(microseconds=micros)


@contextmanager
def unused(folder: Path) -> Iterator[None]:
    """Nobody has the database in ``folder`` open, nor can open it, inside. Raises StoreUnavailable, OSError."""
    descriptor = os.open(folder / _IN_USE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreUnavailable(
                f"programs are using {folder}: stop the portal, the digest process and other commands first"
            ) from error
        yield
    finally:
        os.close(descriptor)


class Database:
    """Connections to one quarantine.sqlite3, to be shared by the threads of one process. Opened after the fork."""

    def __init__(self, folder: Path, *, must_exist: bool = False) -> None:
        """Open the database in ``folder``, which exists; make or upgrade it unless it ``must_exist`` as it is.

        Raises StoreUnavailable, StoreUnusable.
        """
        if must_exist and not (folder / DATABASE).exists():
            raise StoreUnusable(
                f"{folder / DATABASE} is missing. If there is mail in the store, run `quarantine reindex` as the "
                "service's user, else `quarantine init`"
            )
        self.folder = folder
        self._closed = False
        self._lock_file = self._in_use = -1
        self.journal = Journal(folder)
        self._noted: list[dict[str, Any]] = []  # by the one who is writing, for the journal
        self._guard = threading.Lock()  # between threads: flock is per open file, and the process has one
        # Two kinds of connections instead of one whose pragma changes: SQLite handles pragmas when a statement is
        # prepared, and Python keeps prepared statements.
        self._idle: dict[str, deque[sqlite3.Connection]] = {"FULL": deque(), "NORMAL": deque()}
        with self.translated():
            self._lock_file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._in_use = os.open(folder / _IN_USE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with self.translated():
                try:
                    fcntl.flock(self._in_use, fcntl.LOCK_SH | fcntl.LOCK_NB)  # until we close it or die, see `unused`
                except BlockingIOError as error:
                    raise StoreUnavailable(f"{folder} is being rebuilt by `quarantine reindex`: wait for it") from error
                # SQLite would make it readable for all; the -wal and -shm files inherit its mode.
                os.close(os.open(folder / DATABASE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._prepare(must_exist=must_exist)
        except BaseException:
            self.close()
            raise

    def _prepare(self, *, must_exist: bool) -> None:
        """Make the tables in a new file, upgrade an old one unless it ``must_exist`` as it is."""
        path = self.folder / DATABASE
        with self.read() if must_exist else self.write(wait_seconds=30) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if 0 < version < schema.OLDEST:
                raise StoreUnusable(
                    f"{path} has schema version {version}, this program upgrades {schema.OLDEST} and later: run "
                    "`quarantine init` of version 0.1.1 first, then of this one"
                )
            if must_exist and version < SCHEMA_VERSION:
                raise StoreUnusable(
                    f"{path} has schema version {version}, this program needs {SCHEMA_VERSION}: run `quarantine init` "
                    "as the service's user"
                )
            if version == 0:
                schema.create(connection)
            for later in range(version + 1, SCHEMA_VERSION + 1) if version else ():
                schema.migrate(connection, later)
            if version < SCHEMA_VERSION:
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        if version > SCHEMA_VERSION:
            raise StoreUnusable(
                f"{path} has version {version}, this program knows {SCHEMA_VERSION}: it was used by "
                "a newer program, upgrade this one"
            )

    def close(self) -> None:
        """Let go of everything. SQLite moves the log into the file when the last process closes it."""
        self._closed = True
        with self._guard:  # whoever is writing ends first; a number of a closed file soon means another one
            for idle in self._idle.values():
                while idle:
                    with suppress(sqlite3.Error):  # nothing is lost: what was committed stands in the log
                        idle.pop().close()
            for descriptor in (self._lock_file, self._in_use):
                if descriptor >= 0:
                    os.close(descriptor)
            self._lock_file = self._in_use = -1

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @contextmanager
    def exclusive(self, folder: Path) -> Iterator[None]:
        """Hold ``folder`` locked, however long that takes; apart from the writers' lock. Raises StoreUnavailable."""
        with self.translated():
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection to ask; every statement sees what was committed when it began. Raises StoreUnavailable."""
        with self._connection("NORMAL") as connection:
            yield connection

    @contextmanager
    def write(self, *, durable: bool = True, wait_seconds: float = LOCK_WAIT_SECONDS) -> Iterator[sqlite3.Connection]:
        """One transaction, committed on clean exit, rolled back by any exception.

        ``durable``: on return it survives a power cut. Raises StoreUnavailable, also when other writers do not let us
        in within ``wait_seconds``.
        """
        # The lock first: turning a new file's log on must not meet another process doing the same.
        with self._locked(wait_seconds), self._connection("FULL" if durable else "NORMAL") as connection:
            connection.execute("BEGIN IMMEDIATE")
            self._noted.clear()
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            written = self.journal.append(self._noted) if self._noted else None
        if written is not None:
            self.journal.sync(written)

    def note(self, *lines: dict[str, Any]) -> None:
        """Have these lines written to the audit journal (see `journal`) once the transaction we are in is committed."""
        self._noted += lines

    def write_journal(self, make: Callable[[], Sequence[dict[str, Any]]]) -> bool:
        """Write lines that no change goes with; whether they are durable. They are made while nobody else writes: the
        line of a change that came in between would stand before them, and they would undo it in a rebuild."""
        with self._locked(LOCK_WAIT_SECONDS):
            lines = make()
            written = self.journal.append(lines) if lines else None
        return not lines or (written is not None and self.journal.sync(written))

    @contextmanager
    def translated(self) -> Iterator[None]:
        """The one place where OSError and sqlite3.Error become sentences for people."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._from_sqlite(error) from error
        except OSError as error:
            detail = error.strerror or str(error)
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                detail += "; check owner, permissions and mount"
            elif error.errno in (errno.EISDIR, errno.ENOTDIR):
                detail += f" ({error.filename}); move away what is none of the store's"
            raise StoreUnavailable(f"the file store in {self.folder} cannot be used: {detail}") from error

    def _from_sqlite(self, error: sqlite3.Error) -> QuarantineError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code: https://www.sqlite.org/rescode.html
        path = self.folder / DATABASE
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return StoreUnusable(
                f"{path} is damaged ({error}): stop the programs and run `quarantine reindex`. It is made anew from "
                "the mail files and the audit journal; sign-ins are lost, no mail"
            )
        if code == sqlite3.SQLITE_FULL:
            return StoreUnavailable(f"the disk of {self.folder} is full: make room, ingest goes on by itself")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return StoreUnavailable(f"{path} cannot be written ({error}): check owner, permissions and mount")
        return StoreUnavailable(f"{path} cannot be used: {error}")

    @contextmanager
    def _connection(self, synchronous: str) -> Iterator[sqlite3.Connection]:
        with self.translated():
            self._check_open()
            try:
                connection = self._idle[synchronous].pop()
            except IndexError:
                connection = self._connect(synchronous)
            reusable = False
            try:
                yield connection
                reusable = True
            except QuarantineError:  # a refusal of ours, nothing is wrong with the connection
                reusable = True
                raise
            finally:
                if reusable and not self._closed:
                    self._idle[synchronous].append(connection)
                else:
                    connection.close()

    def _connect(self, synchronous: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.folder / DATABASE,
            timeout=LOCK_WAIT_SECONDS,  # met only while another process opens or closes the file
            isolation_level=None,
            check_same_thread=False,  # handed from thread to thread, used by one at a time
            cached_statements=200,
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            # 40 MB of log between checkpoints instead of 4: 5 to 10 % more commits a second.
            connection.execute("PRAGMA wal_autocheckpoint = 10000")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _locked(self, wait_seconds: float) -> Iterator[None]:
        # flock cannot wait with a limit (an alarm signal would do it, for the main thread only), so it is asked again
        # and again. A commit takes a quarter of a millisecond, the naps are as short.
        deadline = time.monotonic() + wait_seconds
        if not self._guard.acquire(timeout=wait_seconds):
            raise self._too_busy(wait_seconds)
        try:
            self._check_open()
            nap_seconds = 0.0001
            while True:
                try:
                    fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise self._too_busy(wait_seconds) from None
                    time.sleep(nap_seconds)
                    nap_seconds = min(nap_seconds * 1.5, 0.002)
            try:
                yield
            finally:
                fcntl.flock(self._lock_file, fcntl.LOCK_UN)
        finally:
            self._guard.release()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"the file store in {self.folder} was closed")

    def _too_busy(self, wait_seconds: float) -> StoreUnavailable:
        return StoreUnavailable(f"other processes kept {self.folder} locked for {wait_seconds:g} s")
