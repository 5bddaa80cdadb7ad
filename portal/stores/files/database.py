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

from portal.model.errors import QuarantineError, StoreMisfit, StoreUnavailable
from portal.stores import SCHEMA_VERSION
from portal.stores.files.journal import Journal

DATABASE = "quarantine.sqlite3"
_IN_USE = "in-use"
LOCK_WAIT_SECONDS = 2.0  # what ingest may wait; the exporter gives up after 5 s

# Ids are the UUID's 16 bytes, whose order is time; times are microseconds since 1970 UTC; states are State's values.
# message keeps its rowid: its rows are long, and long rows in an index tree (WITHOUT ROWID) spill a page each. It is
# made from the id (`word_index.key`), for the tables words_YYYYMMDD that are made when needed.
_SCHEMA = """
CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE message (
    id BLOB NOT NULL UNIQUE,
    sameness BLOB UNIQUE,               -- NULL once the same mail was held anew, this one's file being gone
    tier TEXT NOT NULL,
    envelope_sender TEXT,
    subject TEXT NOT NULL,
    header_from TEXT NOT NULL,
    queue_id TEXT,
    message_id TEXT,
    action TEXT,
    score REAL,
    client_ip TEXT,
    user TEXT,
    symbols TEXT NOT NULL,              -- see symbols.pack; rows of before have its JSON as text
    flags TEXT NOT NULL,                -- Flag values, a blank between
    body_sha256 BLOB NOT NULL,
    size_bytes INTEGER NOT NULL,
    has_8bit INTEGER NOT NULL
);
CREATE TABLE unindexed (                -- messages, see word_index
    key INTEGER PRIMARY KEY,
    terms TEXT NOT NULL
);
CREATE INDEX message_queue_id ON message (queue_id, id) WHERE queue_id IS NOT NULL;
CREATE INDEX message_body ON message (body_sha256, tier);

CREATE TABLE delivery (
    message_id BLOB NOT NULL,
    number INTEGER NOT NULL,
    recipient TEXT NOT NULL,
    address TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'held',
    state_at INTEGER NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    attempts INTEGER NOT NULL DEFAULT 0,
    next_try_at INTEGER,
    claim BLOB,                         -- random, of the process that is releasing it
    announced_at INTEGER,
    digest_id BLOB,
    PRIMARY KEY (message_id, number)
) WITHOUT ROWID;
CREATE INDEX delivery_recipient ON delivery (recipient, message_id, number, state, announced_at);
CREATE INDEX delivery_due ON delivery (next_try_at) WHERE state = 'releasing';
CREATE INDEX delivery_acted ON delivery (message_id, number, state) WHERE state <> 'held';
CREATE INDEX delivery_waiting ON delivery (state, message_id, number) WHERE state IN ('requested', 'releasing');

CREATE TABLE event (                    -- being held has no row, the id tells when that was
    message_id BLOB NOT NULL,
    number INTEGER NOT NULL,
    at INTEGER NOT NULL,
    what TEXT NOT NULL,
    who TEXT NOT NULL,
    via TEXT NOT NULL,
    address TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE INDEX event_delivery ON event (message_id, number);

CREATE TABLE told (                     -- who was told of a delivery under another name, or with others
    message_id BLOB NOT NULL,
    number INTEGER NOT NULL,
    reader TEXT NOT NULL,
    digest_id BLOB,
    PRIMARY KEY (message_id, number, reader)
) WITHOUT ROWID;
CREATE INDEX told_digest ON told (digest_id) WHERE digest_id IS NOT NULL;

CREATE TABLE person (
    recipient TEXT PRIMARY KEY,
    address TEXT NOT NULL,
    stopped_at INTEGER,
    links_valid_from INTEGER,
    news_since INTEGER,
    next_digest_at INTEGER,
    preferences TEXT,                   -- JSON of what they chose (portal/model/schedule.py); NULL: nothing
    asked_at INTEGER,                   -- when they last asked for a digest out of turn
    failures INTEGER NOT NULL DEFAULT 0,
    failure TEXT NOT NULL DEFAULT '',   -- what the mail server said against their digest, until one goes out
    failed_at INTEGER,
    claim BLOB,
    claim_until INTEGER,
    digest_id BLOB                      -- of the digest begun and not yet finished, kept for another try
) WITHOUT ROWID;
CREATE INDEX person_due ON person (next_digest_at) WHERE news_since IS NOT NULL AND stopped_at IS NULL;

CREATE INDEX person_failing ON person (failed_at) WHERE failed_at IS NOT NULL;

CREATE TABLE digest (
    id BLOB PRIMARY KEY,
    recipient TEXT NOT NULL,
    address TEXT NOT NULL,
    issued_at INTEGER NOT NULL,
    sent_at INTEGER
) WITHOUT ROWID;
CREATE INDEX digest_recipient ON digest (recipient, issued_at) WHERE sent_at IS NOT NULL;
CREATE INDEX digest_issued_at ON digest (issued_at);

CREATE TABLE opening (
    recipient TEXT NOT NULL, issued_at INTEGER NOT NULL, message_id BLOB NOT NULL, number INTEGER NOT NULL,
    at INTEGER NOT NULL
);
CREATE INDEX opening_digest ON opening (recipient, issued_at, at);
CREATE INDEX opening_at ON opening (at);

CREATE TABLE outgoing (
    id BLOB PRIMARY KEY, recipient TEXT NOT NULL, mail BLOB NOT NULL, queued_at INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, next_try_at INTEGER NOT NULL, claim BLOB
);
CREATE INDEX outgoing_due ON outgoing (next_try_at);

CREATE TABLE sign_in (
    token_sha256 BLOB PRIMARY KEY, code_sha256 BLOB NOT NULL, browser_sha256 BLOB NOT NULL, recipient TEXT NOT NULL,
    client_ip TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL,
    wrong_codes INTEGER NOT NULL DEFAULT 0, used_at INTEGER
) WITHOUT ROWID;
CREATE INDEX sign_in_recipient ON sign_in (recipient, created_at);
CREATE INDEX sign_in_client_ip ON sign_in (client_ip, created_at);
CREATE INDEX sign_in_browser ON sign_in (browser_sha256, created_at);
CREATE INDEX sign_in_created_at ON sign_in (created_at);

CREATE TABLE session (
    session_sha256 BLOB PRIMARY KEY, recipient TEXT NOT NULL, started_at INTEGER NOT NULL, used_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX session_used_at ON session (used_at);
"""

# What brings a file to each version; made while others may have it open, so what is there keeps its meaning.
_UPGRADES = {
    2: (
        "ALTER TABLE person ADD COLUMN failures INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE person ADD COLUMN failure TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE person ADD COLUMN failed_at INTEGER",
        "CREATE INDEX person_failing ON person (failed_at) WHERE failed_at IS NOT NULL",
    ),
    3: (
        "CREATE TABLE told (message_id BLOB NOT NULL, number INTEGER NOT NULL, reader TEXT NOT NULL, digest_id BLOB, "
        "PRIMARY KEY (message_id, number, reader)) WITHOUT ROWID",
        "CREATE INDEX told_digest ON told (digest_id) WHERE digest_id IS NOT NULL",
    ),
    4: (),  # symbols are packed from here on, see `symbols`
    5: ("CREATE INDEX message_body ON message (body_sha256, tier)",),
}

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

        Raises StoreUnavailable, StoreMisfit.
        """
        if must_exist and not (folder / DATABASE).exists():
            raise StoreMisfit(
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
        if must_exist:
            with self.read() as connection:
                version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version < SCHEMA_VERSION:
                raise StoreMisfit(
                    f"{self.folder / DATABASE} has schema version {version}, this program needs {SCHEMA_VERSION}: run "
                    "`quarantine init` as the service's user"
                )
        with self.write(wait_seconds=30) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _SCHEMA.split(";\n"):
                    connection.execute(statement)
            for later in range(version + 1, SCHEMA_VERSION + 1):
                for statement in _UPGRADES.get(later, ()) if version else ():
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {later}")
        if version > SCHEMA_VERSION:
            raise StoreMisfit(
                f"{self.folder / DATABASE} has version {version}, this program knows {SCHEMA_VERSION}: it was used by "
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
            return StoreMisfit(
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
