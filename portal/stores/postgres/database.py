"""Connections to PostgreSQL: the pool, transactions with time limits, the schema, and psycopg's errors translated.

Handles servers that restart, fail over or run behind PgBouncer in transaction mode: nothing is prepared, no setting
outlives its transaction, and a connection that died in the pool is replaced before it is used. A server that hangs, or
a network that drops all packets, does not block a worker: where the server's own time limits cannot help, the
statement is aborted on this side.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, LiteralString

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.generators import execute
from psycopg_pool import ConnectionPool

from portal import shipped
from portal.model.errors import StoreUnavailable, StoreUnusable
from portal.stores import SCHEMA_VERSION
from portal.stores.postgres.migrations import MIGRATIONS, OLDEST

log = logging.getLogger("quarantine.store")

Raw = str | bytes | None  # a parameter of `ask`: str is sent as text, bytes as bytea

POOL_WAIT_SECONDS = 1.0
INGEST_SECONDS = 2.0  # statement and lock timeout; with the pool's it stays below Rspamd's 5 s
OTHER_SECONDS = 10.0
_SCHEMA_SECONDS = 600.0
_SCHEMA_LOCK_SECONDS = 0.1
_SCHEMA_PAUSE_SECONDS = 0.3
_SCHEMA_TRIES = 100
_GRACE_SECONDS = 1.0  # so that the server's own limit ends the statement first: its error says more
SCHEMA_LOCK = 0x71756172  # advisory lock: only one process on all hosts creates or drops tables at a time

_NO_ANSWER = "the server did not answer in time"
_NOT_DURABLE = "the server warned about a commit, so it may not be durable"

_NO_WRITES = (
    "the database takes no writes, it may be a standby: name the primary in store.url, or all hosts with "
    "target_session_attrs=read-write, and promote one"
)

_DEFAULTS = {  # unless store.url says otherwise
    "application_name": "quarantine",
    "connect_timeout": "3",
    "tcp_user_timeout": "10000",  # ms: detects an unreachable host before uWSGI's harakiri
    # An idle connection to a host that is gone is closed after 11 s, before a failover ends: it costs no request then.
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
}


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that aborts a statement and closes itself after ``timeout_seconds`` without an answer.

    psycopg waits without a limit. Keepalives and tcp_user_timeout detect an unreachable host, but not a host whose
    kernel still answers (a stopped server, a full disk, a proxy, a commit that waits for its standby).

    A commit that the server warns about counts as failed. When the wait for a synchronous standby is cancelled
    (`pg_cancel_backend`, a pooler that forwards a cancel request), PostgreSQL reports success with the warning
    "canceling wait for synchronous replication due to user request" (src/backend/replication/syncrep.c), although a
    failover would lose the committed data.
    """

    timeout_seconds = OTHER_SECONDS + _GRACE_SECONDS

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._warnings: list[str] = []
        self.add_notice_handler(self._record_warning)

    def _record_warning(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self._warnings.append(f"{notice.sqlstate}: {notice.message_primary}")

    @contextmanager
    def expect_no_warning(self) -> Iterator[None]:
        """Run a block that commits. A warning closes the connection and raises psycopg.OperationalError."""
        self._warnings.clear()
        yield
        if self._warnings:
            self.close()
            raise psycopg.OperationalError(f"{_NOT_DURABLE}: {self._warnings[0]}")

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **named: Any) -> Any:
        """Wait for the server with the time limit. psycopg calls this for everything that it waits for."""
        return super().wait(self._with_time_limit(gen), *args, **named)

    def commit(self) -> None:
        """Commit the transaction, if there is one. Raises psycopg.OperationalError if the server warns about it."""
        with self.expect_no_warning():
            super().commit()

    def _with_time_limit(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        deadline = monotonic() + self.timeout_seconds
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted  # psycopg resumes this ten times a second while nothing is ready
                if not ready and monotonic() > deadline:
                    self.close()  # the state of the protocol is unknown
                    raise psycopg.OperationalError(_NO_ANSWER)
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value


@contextmanager
def translated() -> Iterator[None]:
    """Raise StoreUnavailable for each psycopg.Error in the block, and log it here once. No other place does this.

    Only the primary message is reported: details, parameters and connection strings may hold addresses and passwords.
    """
    try:
        yield
    except psycopg.Error as error:
        message = error.diag.message_primary or (str(error).splitlines() or [""])[0]
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            message += (
                "; the role of store.url must own the quarantine's tables and be allowed to create tables: make it the "
                "database's owner"
            )
        log.warning("postgresql: %s: %s", error.sqlstate or type(error).__name__, message)
        raise StoreUnavailable(f"the database cannot be used now: {message}") from error


class Database:
    """A pool of at most ``max_connections`` connections to a database with this program's schema version.

    Create it after the fork.
    """

    def __init__(self, url: str, *, create: bool, max_connections: int = 4) -> None:
        """Connect and check the schema; with ``create`` make or upgrade it first.

        Raises StoreUnavailable when the database cannot be reached or written to, StoreUnusable when its schema or its
        settings do not fit.
        """
        conninfo = _conninfo(url)
        with translated(), _connect(conninfo) as connection:
            begin(connection, OTHER_SECONDS)
            if _value(connection, "show transaction_read_only") == "on":
                raise StoreUnavailable(_NO_WRITES)
            if _value(connection, "show synchronous_commit") == "off":
                raise StoreUnusable(
                    "synchronous_commit is off for this database or role, so that a power cut would lose mail that was "
                    "acknowledged as held: run ALTER ROLE … SET synchronous_commit = on, or ALTER DATABASE …"
                )
            try:
                if create:
                    _make_schema(connection)
                _check_schema(connection)
            except (psycopg.errors.UndefinedColumn, psycopg.errors.DuplicateTable) as error:
                raise StoreUnusable(
                    "the database has tables of another program with the same names as the quarantine's: name a "
                    "separate database in store.url; nothing was changed"
                ) from error
            connection.commit()
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            conninfo,
            connection_class=Connection,
            kwargs={"autocommit": True, "prepare_threshold": None},
            min_size=1,
            max_size=max_connections,
            timeout=POOL_WAIT_SECONDS,
            # The pool tries once more after this time. Short, so that after an outage the next request connects instead
            # of waiting for a long backoff.
            reconnect_timeout=0.5,
            name="quarantine",
            open=True,
        )

    def close(self) -> None:
        """Close all connections. Calling it again does nothing."""
        self._pool.close()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend an idle connection in autocommit mode. A transaction that the block begins is committed when the block
        ends, or rolled back when it raises.

        Raises psycopg.Error: wrap it in `translated`.
        """
        deadline = monotonic() + POOL_WAIT_SECONDS
        while True:
            connection = self._pool.getconn(deadline - monotonic())
            if not _is_dead(connection):
                break
            # The pool's own check queries the server each time, and sleeps a second after the second dead connection.
            connection.close()
            self._pool.putconn(connection)
        try:
            with connection:
                yield connection
        except psycopg.errors.ReadOnlySqlTransaction:
            # The server became a standby. The next connection goes to the new primary if store.url names both.
            connection.close()
            raise
        finally:
            self._pool.putconn(connection)

    @contextmanager
    def transaction(
        self, seconds: float = OTHER_SECONDS, lock_seconds: float | None = None, *, first: LiteralString = ""
    ) -> Iterator[Connection]:
        """Run the block in a transaction. Each statement may take ``seconds`` and wait ``lock_seconds`` for a lock.

        ``first``: a statement without parameters that is executed before the block, in the same round trip.

        The transaction is committed when the block ends, or rolled back when it raises. Raises StoreUnavailable.
        """
        with translated(), self.connection() as connection:
            begin(connection, seconds, lock_seconds, first)
            yield connection


def _connect(conninfo: str) -> Connection:
    """Open a connection in autocommit mode. Raises StoreUnavailable, StoreUnusable."""
    try:
        return Connection.connect(conninfo, autocommit=True, prepare_threshold=None)
    except UnicodeError as error:  # from Python's idna codec, with which psycopg resolves the host
        raise StoreUnusable(
            "store.url: invalid host name (empty label, or one longer than 63 characters): correct the address"
        ) from error
    except psycopg.OperationalError as error:
        if "session is read-only" in str(error):  # libpq's message for target_session_attrs, for any of the hosts
            raise StoreUnavailable(_NO_WRITES) from error
        message = (str(error).splitlines() or [""])[0]
        raise StoreUnavailable(
            f"the database cannot be used now: {message}; check store.url – host, port, user, password, database – and "
            "that the server runs"
        ) from error


def _conninfo(url: str) -> str:
    try:
        given = conninfo_to_dict(url)
    except psycopg.Error:
        given = {}
    ports = str(given.get("port") or "").replace(",", "")
    # With a / in the password, libpq reads parts of the password as port and database.
    if not given or (ports and not ports.isdigit()) or "@" in str(given.get("dbname", "")):
        # libpq's message quotes a part of the URL, which may be a part of the password; so the error is not chained.
        raise StoreUnusable(
            "store.url is not a valid PostgreSQL address: write postgresql://user:password@host/database, with @ : / "
            "and % in the password as %40 %3A %2F %25"
        )
    return make_conninfo(url, **{name: value for name, value in _DEFAULTS.items() if name not in given})


def begin(connection: Connection, seconds: float, lock_seconds: float | None = None, first: LiteralString = "") -> None:
    """Begin a transaction with these limits for each statement and each lock, and execute a statement if there is one.

    Raises psycopg.Error.
    """
    # One simple query, one round trip. SET LOCAL, since behind PgBouncer SET would affect other clients' transactions.
    locks = seconds if lock_seconds is None else lock_seconds
    limits = f"set local statement_timeout = {seconds * 1000:.0f}; set local lock_timeout = {locks * 1000:.0f}"
    connection.timeout_seconds = seconds + _GRACE_SECONDS
    connection.execute(f"begin; {limits}; {first}".encode())


def ask(connection: Connection, statement: bytes, values: Sequence[Raw], seconds: float) -> list[bytes | None]:
    """Execute one statement with parameters $1, $2 … and return the fields of its first row as text, each in bytes.

    Outside of a transaction the statement is committed on return. Where the server's time limits cannot help, since it
    hangs or the network is down, this function aborts after ``seconds`` and closes the connection. Raises
    psycopg.Error.

    For ingest: libpq gets the parameters as they are, without psycopg's cursor and adapters. Row of the bench: "a post
    without parameters as text".
    """
    connection.timeout_seconds = seconds
    with connection.expect_no_warning():
        connection.pgconn.send_query_params(
            statement,
            [value.encode() if isinstance(value, str) else value for value in values],
            param_formats=[isinstance(value, bytes) for value in values],
        )
        results = connection.wait(execute(connection.pgconn))
    for result in results:  # an error of the commit is among them
        if result.status != psycopg.pq.ExecStatus.TUPLES_OK:
            raise psycopg.errors.error_from_result(result)
    return [results[0].get_value(0, column) for column in range(results[0].nfields)]


def _value(connection: Connection, query: str) -> Any:
    row = connection.execute(query.encode()).fetchone()
    return row[0] if row else None


def _make_schema(connection: Connection) -> None:
    """Create or upgrade the tables while ingest goes on.

    An ALTER TABLE that waits for a long transaction blocks all other statements, so its lock_timeout is short and it is
    retried. A new transaction is open on return. Raises StoreUnavailable, StoreUnusable, psycopg.Error.
    """
    for _ in range(_SCHEMA_TRIES):
        connection.rollback()
        begin(connection, _SCHEMA_SECONDS, _SCHEMA_LOCK_SECONDS)
        try:
            connection.execute("select pg_advisory_xact_lock(%s)", [SCHEMA_LOCK])
            version = _version(connection)
            if version:
                _check_known(version)
            for later in range(version + 1, SCHEMA_VERSION + 1) if version else ():
                connection.execute(MIGRATIONS[later])
                connection.execute("update setting set value = %s where name = 'schema_version'", [str(later)])
            connection.execute(shipped("quarantine.sql").read_bytes())
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            time.sleep(_SCHEMA_PAUSE_SECONDS)
            continue
        connection.commit()
        begin(connection, OTHER_SECONDS)
        return
    raise StoreUnavailable(
        "a long transaction, such as a dump, prevents creating or upgrading the tables; nothing was changed: run the "
        "command again when that transaction has ended"
    )


def _version(connection: Connection) -> int:
    """Return the schema's version, 0 if the database has no quarantine tables."""
    if not _value(connection, "select to_regclass('setting')"):
        return 0
    return int(_value(connection, "select value from setting where name = 'schema_version'") or 0)


def _check_known(version: int) -> None:
    if version > SCHEMA_VERSION:
        raise StoreUnusable(
            f"the database has schema version {version}, this program knows {SCHEMA_VERSION}: upgrade this program"
        )
    if version < OLDEST:
        raise StoreUnusable(
            f"the database has schema version {version}, this program upgrades {OLDEST} and later: run "
            "`quarantine init` of version 0.1.1 first, then of this one"
        )


def _check_schema(connection: Connection) -> None:
    version = _version(connection)
    if version == 0:
        raise StoreUnusable("the database has no quarantine tables yet: run `quarantine init`")
    _check_known(version)
    if version < SCHEMA_VERSION:
        raise StoreUnusable(
            f"the database has schema version {version}, this program needs {SCHEMA_VERSION}: run `quarantine init`"
        )


def _is_dead(connection: Connection) -> bool:
    """Return True if the server has closed an idle connection.

    Costs a round trip only if there is unread data, as a closed connection has.
    """
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if not poll.poll(0):
        return False
    connection.timeout_seconds = POOL_WAIT_SECONDS
    try:
        connection.execute("")  # the unread data may also be a changed parameter or a TLS session ticket
    except psycopg.Error:
        return True
    return False
