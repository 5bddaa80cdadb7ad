"""Connections to PostgreSQL: the pool, transactions with time limits, the schema, and psycopg's errors translated.

Hides that servers restart, fail over and stand behind PgBouncer in transaction mode: nothing is prepared, no setting
outlives its transaction, and a connection that died while it waited in the pool is replaced before it is used. Nor does
a server that hangs, or a network that swallows everything, hold up a worker: where the server's own time limits cannot
help, the statement is given up on this side.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import ConnectionPool

from portal import shipped
from portal.model.errors import StoreUnavailable, StoreUnusable
from portal.stores import SCHEMA_VERSION
from portal.stores.postgres.migrations import MIGRATIONS, OLDEST

log = logging.getLogger("quarantine.store")

POOL_WAIT_SECONDS = 1.0
INGEST_SECONDS = 2.0  # statement and lock timeout; with the pool's it stays below Rspamd's 5 s
OTHER_SECONDS = 10.0
_SCHEMA_SECONDS = 600.0
_SCHEMA_LOCK_SECONDS = 0.1
_SCHEMA_PAUSE_SECONDS = 0.3
_SCHEMA_TRIES = 100
_GRACE_SECONDS = 1.0  # the server's own limit comes first, and says more
SCHEMA_LOCK = 0x71756172  # advisory lock: one at a time makes or drops tables, on whichever host

_NO_ANSWER = "the server did not answer in time"
_NOT_SURE = "the server warned about a commit, so it may not be durable"

_NO_WRITES = (
    "the database takes no writes (a standby?): name the primary in store.url, or all hosts with "
    "target_session_attrs=read-write, and promote one"
)

_DEFAULTS = {  # unless store.url says otherwise
    "application_name": "quarantine",
    "connect_timeout": "3",
    "tcp_user_timeout": "10000",  # ms: a host that vanished is noticed before uWSGI's harakiri
    "keepalives_idle": "20",
    "keepalives_interval": "5",
    "keepalives_count": "3",
}


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """Gives up a statement, and itself, when no answer came for ``timeout_seconds``: psycopg waits for ever.

    Keepalives and tcp_user_timeout notice a host that is gone, not one whose kernel still answers (a stopped server, a
    full disk, a proxy, a commit that waits for its standby).

    A commit that the server warns about counts as failed. When the wait for a synchronous standby is cancelled
    (`pg_cancel_backend`, a pooler that forwards a cancel request), PostgreSQL reports success with the warning
    "canceling wait for synchronous replication due to user request" (src/backend/replication/syncrep.c), although a
    failover would lose what was committed.
    """

    timeout_seconds = OTHER_SECONDS + _GRACE_SECONDS

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._warnings: list[str] = []
        self.add_notice_handler(self._take_notice)

    def _take_notice(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self._warnings.append(f"{notice.sqlstate}: {notice.message_primary}")

    @contextmanager
    def expect_no_warning(self) -> Iterator[None]:
        """Run a block that commits. A warning closes the connection and raises psycopg.OperationalError."""
        self._warnings.clear()
        yield
        if self._warnings:
            self.close()
            raise psycopg.OperationalError(f"{_NOT_SURE}: {self._warnings[0]}")

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **named: Any) -> Any:
        """Whatever psycopg waits for goes through here."""
        return super().wait(self._in_time(gen), *args, **named)

    def commit(self) -> None:
        """Commit what was begun; ingest begins nothing, and psycopg takes a while to see that."""
        if self.pgconn.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            with self.expect_no_warning():
                super().commit()

    def _in_time(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        deadline = monotonic() + self.timeout_seconds
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted  # nothing is ready: asked ten times a second
                if not ready and monotonic() > deadline:
                    self.close()  # who knows what is still on its way
                    raise psycopg.OperationalError(_NO_ANSWER)
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value


@contextmanager
def translated() -> Iterator[None]:
    """Whatever psycopg raises inside leaves as StoreUnavailable, logged here once. The only such place.

    Only the primary message is told: details, parameters and connection strings may hold addresses and passwords.
    """
    try:
        yield
    except psycopg.Error as error:
        said = error.diag.message_primary or (str(error).splitlines() or [""])[0]
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            said += "; the role of store.url must own our tables and may create some: make it the database's owner"
        log.warning("postgresql: %s: %s", error.sqlstate or type(error).__name__, said)
        raise StoreUnavailable(f"the database cannot be used now: {said}") from error


class Database:
    """A pool of connections, at most ``max_connections``, to a database whose schema fits. Made after the fork."""

    def __init__(self, url: str, *, create: bool, max_connections: int = 4) -> None:
        """Raises StoreUnavailable when it cannot be reached or written to, StoreUnusable for another schema."""
        conninfo = _conninfo(url)
        with translated(), _connect(conninfo) as connection:
            begin(connection, OTHER_SECONDS)
            if _value(connection, "show transaction_read_only") == "on":
                raise StoreUnavailable(_NO_WRITES)
            if _value(connection, "show synchronous_commit") == "off":
                raise StoreUnusable(
                    "synchronous_commit is off for this database or role, so that a power cut would lose mail that we "
                    "said we hold: run ALTER ROLE … SET synchronous_commit = on, or ALTER DATABASE …"
                )
            try:
                if create:
                    _make_schema(connection)
                _check_schema(connection)
            except (psycopg.errors.UndefinedColumn, psycopg.errors.DuplicateTable) as error:
                raise StoreUnusable(
                    "the database holds tables of something else that are named like ours: name a database of its own "
                    "in store.url; nothing was changed"
                ) from error
            connection.commit()
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            conninfo,
            connection_class=Connection,
            kwargs={"autocommit": True, "prepare_threshold": None},
            min_size=1,
            max_size=max_connections,
            timeout=POOL_WAIT_SECONDS,
            # Short, so that after an outage the next request connects instead of waiting for a long back-off.
            reconnect_timeout=3.0,
            name="quarantine",
            open=True,
        )

    def close(self) -> None:
        """Close every connection; may be called twice."""
        self._pool.close()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """An idle connection in autocommit mode; what was begun is committed on clean exit, else rolled back.

        Raises psycopg.Error: wrap it in `translated`.
        """
        deadline = monotonic() + POOL_WAIT_SECONDS
        while True:
            connection = self._pool.getconn(deadline - monotonic())
            if not _died(connection):
                break
            # The pool's own check asks the server each time and sleeps a second after the second dead one.
            connection.close()
            self._pool.putconn(connection)
        try:
            with connection:
                yield connection
        except psycopg.errors.ReadOnlySqlTransaction:
            connection.close()  # the server became a standby: connect anew, to its successor if store.url names both
            raise
        finally:
            self._pool.putconn(connection)

    @contextmanager
    def transaction(self, seconds: float = OTHER_SECONDS, lock_seconds: float | None = None) -> Iterator[Connection]:
        """A transaction whose every statement may take ``seconds`` and wait ``lock_seconds`` for a lock.

        Committed on clean exit. Raises StoreUnavailable.
        """
        with translated(), self.connection() as connection:
            begin(connection, seconds, lock_seconds)
            yield connection


def _connect(conninfo: str) -> Connection:
    """Raises StoreUnavailable, StoreUnusable."""
    try:
        return Connection.connect(conninfo, autocommit=True, prepare_threshold=None)
    except UnicodeError as error:  # Python's idna, by which psycopg looks for the host
        raise StoreUnusable("store.url: a host name in it cannot be: look for two dots, or a very long part") from error
    except psycopg.OperationalError as error:
        if "session is read-only" in str(error):  # libpq's words for target_session_attrs, of any of the hosts
            raise StoreUnavailable(_NO_WRITES) from error
        said = (str(error).splitlines() or [""])[0]
        raise StoreUnavailable(
            f"the database cannot be used now: {said}; check store.url – host, port, user, password, database – and "
            "that the server runs"
        ) from error


def _conninfo(url: str) -> str:
    try:
        given = conninfo_to_dict(url)
    except psycopg.Error:
        given = {}
    ports = str(given.get("port") or "").replace(",", "")
    # A / in the password makes libpq take its pieces for port and database.
    if not given or (ports and not ports.isdigit()) or "@" in str(given.get("dbname", "")):
        # libpq's own sentence repeats a piece of the URL, which may be of the password; so it is not even chained.
        raise StoreUnusable(
            "store.url is no PostgreSQL address: write postgresql://user:password@host/database, with @ : / and % in "
            "the password as %40 %3A %2F %25"
        )
    return make_conninfo(url, **{name: value for name, value in _DEFAULTS.items() if name not in given})


def begin(connection: Connection, seconds: float, lock_seconds: float | None = None) -> None:
    """Begin a transaction with these limits per statement and per lock. Raises psycopg.Error."""
    # One simple query, one wait. SET LOCAL, since behind PgBouncer a session's setting would meet other sessions.
    locks = seconds if lock_seconds is None else lock_seconds
    limits = f"set local statement_timeout = {seconds * 1000:.0f}; set local lock_timeout = {locks * 1000:.0f}"
    connection.timeout_seconds = seconds + _GRACE_SECONDS
    connection.execute(f"begin; {limits}".encode())


def ask(connection: Connection, statement: bytes, values: Sequence[str | bytes | None], seconds: float) -> list[Any]:
    """Execute one statement with parameters $1, $2 … and return its first row as text; outside of a transaction it is
    committed by then. Texts are sent as they are, bytes as bytea.

    For ingest. psycopg's own way takes 150 µs more, mostly for its adapters; and where the server's time limits cannot
    help, since it hangs or the network is cut, this gives up after ``seconds`` as well and closes the connection.
    Raises psycopg.Error.
    """
    deadline = monotonic() + seconds
    try:
        with connection.expect_no_warning():
            results = _ask(connection.pgconn, statement, values, deadline)
    except BaseException:
        connection.close()  # who knows what is still on its way
        raise
    for result in results:
        if result.status != psycopg.pq.ExecStatus.TUPLES_OK:
            raise psycopg.errors.error_from_result(result)
    return [results[0].get_value(0, column) for column in range(results[0].nfields)]


def _ask(
    pgconn: psycopg.pq.abc.PGconn, statement: bytes, values: Sequence[str | bytes | None], deadline: float
) -> list[psycopg.pq.abc.PGresult]:
    """Send one statement and return its results once the server is ready for the next one."""
    results = []
    poll = select.poll()
    pgconn.send_query_params(
        statement,
        [value.encode() if isinstance(value, str) else value for value in values],
        param_formats=[isinstance(value, bytes) for value in values],
    )
    unsent = pgconn.flush()
    while True:
        if unsent or pgconn.is_busy():
            poll.register(pgconn.socket, select.POLLIN | (select.POLLOUT if unsent else 0))
            if not poll.poll(max(0.0, deadline - monotonic()) * 1000):
                raise psycopg.OperationalError(_NO_ANSWER)
            pgconn.consume_input()
            unsent = unsent and pgconn.flush()
        elif result := pgconn.get_result():
            results.append(result)
        else:
            return results  # an error of the commit would have come before


def _value(connection: Connection, query: str) -> Any:
    row = connection.execute(query.encode()).fetchone()
    return row[0] if row else None


def _make_schema(connection: Connection) -> None:
    """Make or upgrade the tables, beside ingest: an ALTER TABLE that waits behind somebody's long transaction makes
    everybody else wait behind it, so it gives up soon and is tried again. Begins a transaction at the end."""
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
        "a long transaction (a dump?) is in the way of making or upgrading the tables, nothing was changed: run it"
        " again when that is over"
    )


def _version(connection: Connection) -> int:
    """Return the schema's version, 0 if there are no tables of ours."""
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


def _died(connection: Connection) -> bool:
    """Whether an idle connection was closed by the server, without asking it: then there is something to read."""
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if not poll.poll(0):
        return False
    connection.timeout_seconds = POOL_WAIT_SECONDS
    try:
        connection.execute("")  # a parameter's change or a TLS ticket may wait there as well
    except psycopg.Error:
        return True
    return False
