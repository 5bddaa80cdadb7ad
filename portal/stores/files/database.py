"""The file store's SQLite file: connections, the write lock, the schema, and the translation of SQLite's errors.

Writers queue at a `flock` before they use SQLite, since SQLite's own waiting sleeps for up to 100 ms at a time: with
the lock, the slowest commit of 4 processes was ten times faster. Every write begins with BEGIN IMMEDIATE. A transaction
that begins with a plain BEGIN, reads and then writes fails at once if another process wrote in between, regardless of
the timeout.

Write-ahead logging (https://www.sqlite.org/wal.html): with ``synchronous=NORMAL`` a commit survives a crash of the
program but not a power cut; with ``FULL`` it survives both. A FULL commit syncs the whole log, so all earlier commits
are durable as well. Ingest uses NORMAL, since its mail files are durable and contain all data of the rows
(`FileStore.open` reads them after a power cut); everything else uses FULL.
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
from portal.stores import SCHEMA_VERSION, search
from portal.stores.files import migrations, schema
from portal.stores.files.journal import Journal

DATABASE = "quarantine.sqlite3"
_IN_USE = "in-use"
LOCK_WAIT_SECONDS = 2.0  # the longest wait of ingest; Rspamd's exporter gives up after 5 s

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_micros(at: datetime) -> int:
    """Return microseconds since 1970 UTC, the format of times in the database."""
    return (at - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """Return the time as aware UTC."""
    return _EPOCH + timedelta(microseconds=micros)


@contextmanager
def unused(folder: Path) -> Iterator[None]:
    """Lock the database in ``folder`` so that no process can open it.

    Raises StoreUnavailable when a process has it open, OSError.
    """
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
    """Connections to one quarantine.sqlite3, shared by the threads of one process. Opened after the fork."""

    def __init__(self, folder: Path, *, must_exist: bool = False) -> None:
        """Open the database in ``folder``, which exists. Create or upgrade it unless ``must_exist`` is set.

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
        self._journal_lines: list[dict[str, Any]] = []  # of the current write transaction
        self._thread_lock = threading.Lock()  # flock is per open file, which all threads of the process share
        # Two kinds of connections instead of one whose pragma changes: SQLite runs pragmas when a statement is
        # prepared, and Python keeps prepared statements.
        self._idle: dict[str, deque[sqlite3.Connection]] = {"FULL": deque(), "NORMAL": deque()}
        with self.translated():
            self._lock_file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._in_use = os.open(folder / _IN_USE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with self.translated():
                try:
                    fcntl.flock(self._in_use, fcntl.LOCK_SH | fcntl.LOCK_NB)  # held until `close` or exit, see `unused`
                except BlockingIOError as error:
                    raise StoreUnavailable(
                        f"`quarantine reindex` is rebuilding {folder}: wait until it has finished"
                    ) from error
                # SQLite would create it readable by all users; the -wal and -shm files inherit its mode.
                os.close(os.open(folder / DATABASE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._prepare(must_exist=must_exist)
        except BaseException:
            self.close()
            raise

    def _prepare(self, *, must_exist: bool) -> None:
        """Create the tables in a new file, or upgrade an old one unless ``must_exist`` is set."""
        path = self.folder / DATABASE
        with self.read() if must_exist else self.write(wait_seconds=30) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if 0 < version < migrations.OLDEST:
                raise StoreUnusable(
                    f"{path} has schema version {version}, this program upgrades {migrations.OLDEST} and later: run "
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
                migrations.migrate(connection, later)
            if version < SCHEMA_VERSION:
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        if version > SCHEMA_VERSION:
            raise StoreUnusable(
                f"{path} has version {version}, this program knows {SCHEMA_VERSION}: it was used by "
                "a newer program, upgrade this one"
            )

    def close(self) -> None:
        """Close all connections and files. SQLite moves the log into the file when the last process closes it."""
        self._closed = True
        with self._thread_lock:  # wait for a running write: the number of a closed descriptor is soon used again
            for idle in self._idle.values():
                while idle:
                    with suppress(sqlite3.Error):  # nothing is lost: all commits are in the log
                        idle.pop().close()
            for descriptor in (self._lock_file, self._in_use):
                if descriptor >= 0:
                    os.close(descriptor)
            self._lock_file = self._in_use = -1

    @property
    def is_closed(self) -> bool:
        """True after `close` was called."""
        return self._closed

    @contextmanager
    def exclusive(self, folder: Path) -> Iterator[None]:
        """Hold a lock on ``folder``, independent of the write lock. Waits without a limit. Raises StoreUnavailable."""
        with self.translated():
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection for queries. Each statement sees all commits made before it began. Raises
        StoreUnavailable."""
        with self._connection("NORMAL") as connection:
            yield connection

    @contextmanager
    def write(self, *, durable: bool = True, wait_seconds: float = LOCK_WAIT_SECONDS) -> Iterator[sqlite3.Connection]:
        """Begin a transaction that is committed on exit, or rolled back by any exception.

        ``durable``: on return it survives a power cut. Raises StoreUnavailable, also when the write lock is not free
        within ``wait_seconds``.
        """
        # The lock comes first: two processes must not switch a new file to write-ahead logging at the same time.
        with self._locked(wait_seconds), self._connection("FULL" if durable else "NORMAL") as connection:
            connection.execute("BEGIN IMMEDIATE")
            self._journal_lines.clear()
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            written = self.journal.append(self._journal_lines) if self._journal_lines else None
        if written is not None:
            self.journal.sync(written)

    def journal_after_commit(self, line: dict[str, Any]) -> None:
        """Write this line to the audit journal (see `journal`) once the current transaction is committed."""
        self._journal_lines.append(line)

    def write_journal(self, make_lines: Callable[[], Sequence[dict[str, Any]]]) -> bool:
        """Write lines to the audit journal outside of a transaction; return whether they are durable.

        ``make_lines`` is called under the write lock. Otherwise the line of a concurrent change could precede these
        lines, which would revert the change in a rebuild.
        """
        with self._locked(LOCK_WAIT_SECONDS):
            lines = make_lines()
            written = self.journal.append(lines) if lines else None
        return not lines or (written is not None and self.journal.sync(written))

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Translate OSError and sqlite3.Error into StoreUnavailable or StoreUnusable, with a message for operators."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._from_sqlite(error) from error
        except OSError as error:
            detail = error.strerror or str(error)
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                detail += "; check owner, permissions and mount"
            elif error.errno in (errno.EISDIR, errno.ENOTDIR):
                detail += f" ({error.filename}); move away files that do not belong to the store"
            raise StoreUnavailable(f"the file store in {self.folder} cannot be used: {detail}") from error

    def _from_sqlite(self, error: sqlite3.Error) -> QuarantineError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code: https://www.sqlite.org/rescode.html
        path = self.folder / DATABASE
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return StoreUnusable(
                f"{path} is damaged ({error}): stop the programs and run `quarantine reindex`. It rebuilds the file "
                "from the mail files and the audit journal; sign-ins are lost, but no mail"
            )
        if code == sqlite3.SQLITE_FULL:
            return StoreUnavailable(f"the disk of {self.folder} is full: free space, then ingest resumes by itself")
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
            except QuarantineError:  # raised by our own code: the connection is intact
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
            timeout=LOCK_WAIT_SECONDS,  # matters only while another process opens or closes the file
            isolation_level=None,
            check_same_thread=False,  # threads share connections, but use each one at a time
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            # 40 MB of log between checkpoints instead of 4, see docs/decisions/speed.md.
            connection.execute("PRAGMA wal_autocheckpoint = 10000")
            connection.create_function("has_words", 5, search.has_words, deterministic=True)
            connection.create_function("has_terms", 2, search.has_terms, deterministic=True)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _locked(self, wait_seconds: float) -> Iterator[None]:
        # flock has no timeout (an alarm signal would work, but in the main thread only), so it is polled. A commit
        # takes a quarter of a millisecond; the pauses are as short.
        deadline = time.monotonic() + wait_seconds
        if not self._thread_lock.acquire(timeout=wait_seconds):
            raise self._lock_timeout(wait_seconds)
        try:
            self._check_open()
            pause_seconds = 0.0001
            while True:
                try:
                    fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise self._lock_timeout(wait_seconds) from None
                    time.sleep(pause_seconds)
                    pause_seconds = min(pause_seconds * 1.5, 0.002)
            try:
                yield
            finally:
                fcntl.flock(self._lock_file, fcntl.LOCK_UN)
        finally:
            self._thread_lock.release()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"the file store in {self.folder} was closed")

    def _lock_timeout(self, wait_seconds: float) -> StoreUnavailable:
        return StoreUnavailable(f"other processes kept {self.folder} locked for {wait_seconds:g} s")
