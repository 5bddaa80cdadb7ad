"""Days in PostgreSQL: one partition of each table per UTC day, created in advance or on demand, dropped by retention.

Handles all locks that creating and dropping tables takes. A new day's table is created by itself and then attached,
which waits for no other transaction. An old day is dropped one table per transaction, with a short lock_timeout and
retries, so that neither a reader's long transaction nor the purge stops ingest for longer than that timeout.
(`PARTITION OF`, and all DROPs in one transaction, were tried: inserts then wait for any reader, and deadlock with it.)
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from datetime import UTC, date, datetime, timedelta
from typing import LiteralString
from uuid import UUID

import psycopg
from psycopg import sql

from portal.model.errors import StoreUnavailable
from portal.model.message import first_id
from portal.stores.postgres.database import OTHER_SECONDS, SCHEMA_LOCK, Connection, Database, begin, translated
from portal.stores.records import Purged

# The order of the purge. Deliveries are first: rows of other tables are kept if their message still has a delivery,
# also one that an `add` inserts during the purge. Bodies are last, when it is known which messages still need them.
TABLES = {
    "delivery": "message_id",
    "event": "message_id",
    "announced_to": "message_id",
    "message": "id",
    "body_chunk": "body_id",
}
_KEPT: dict[str, LiteralString] = {
    "delivery": "message_id in (select message_id from delivery where state in ('requested', 'releasing')"
    " and message_id >= {low} and message_id < {high})",
    "event": "message_id in (select message_id from delivery where message_id >= {low} and message_id < {high})",
    "announced_to": "message_id in (select message_id from delivery where message_id >= {low} and message_id < {high})",
    "message": "id in (select message_id from delivery where message_id >= {low} and message_id < {high})",
    "body_chunk": "body_id in (select body_id from message where id >= {low} and id < {high})",
}
_NAME = re.compile(r"(?:" + "|".join(TABLES) + r")_(\d{4})(\d\d)(\d\d)")
_DAYS_AHEAD = 7
_DROP_LOCK_SECONDS = 0.1
_DROP_TRIES = 100
_DROP_PAUSE_SECONDS = 0.3
_DEDUP_KEY_BATCH = 5000
_INDEX_SECONDS = 600.0  # for each day; building an index waits for older transactions, such as a dump
_WITHOUT_INDEX: LiteralString = """
    select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'message'::regclass and not exists (
        select from pg_index x join pg_inherits of on of.inhrelid = x.indexrelid
        where x.indrelid = c.oid and of.inhparent = 'message_body_idx'::regclass
    ) order by c.relname
"""


def bounds(day: date) -> tuple[UUID, UUID]:
    """Return the lowest id of a UTC day and that of the next day."""
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return first_id(start), first_id(start + timedelta(days=1))


def make_day(database: Database, day: date, seconds: float = OTHER_SECONDS) -> None:
    """Create the missing partitions of one UTC day. Concurrent calls of several processes wait for each other.

    Each statement may take ``seconds``. Raises StoreUnavailable.
    """
    with database.transaction(seconds) as connection:
        connection.execute("select pg_advisory_xact_lock(%s)", [SCHEMA_LOCK])
        for table in TABLES:
            if day not in days_of(connection, table):
                name = _partition(table, day)
                _create(connection, name, table)
                _attach(connection, name, table, day)


def make_days(database: Database, now: datetime) -> None:
    """Create the partitions of today and the next 7 days, and those that an older program did not create.

    Raises StoreUnavailable.
    """
    for ahead in range(_DAYS_AHEAD + 1):
        make_day(database, now.astimezone(UTC).date() + timedelta(days=ahead))
    with database.transaction() as connection:
        days = days_of(connection, "delivery")
    make_missing(database, "announced_to", days)


def build_indexes(database: Database) -> None:
    """Build the index of `message` on bodies for partitions that are older than it, without stopping ingest.

    Building it on the whole table would stop ingest for seconds (measured: 4 s for a million messages). After an
    interruption the next call continues. Raises StoreUnavailable.
    """
    with translated(), database.connection() as connection:
        connection.timeout_seconds = _INDEX_SECONDS
        for (name,) in connection.execute(_WITHOUT_INDEX).fetchall():
            table, index = sql.Identifier(name), sql.Identifier(f"{name}_body_idx")
            for statement in (
                "drop index if exists {index}",  # invalid, left by an interrupted build
                "create index concurrently {index} on {table} (body_sha256, tier)",
                "alter index message_body_idx attach partition {index}",
            ):
                connection.execute(sql.SQL(statement).format(index=index, table=table))


def make_missing(database: Database, table: str, days: Collection[date]) -> None:
    """Create the partitions of those days for which this table has none. Raises StoreUnavailable."""
    if days:
        with database.transaction() as connection:
            missing = set(days) - days_of(connection, table)
        for day in sorted(missing):
            make_day(database, day)


def purge_days(database: Database, before: datetime) -> Purged:
    """Drop all UTC days that ended at ``before`` or earlier, except messages with a requested or releasing delivery.

    Raises StoreUnavailable; the next call then continues where this one stopped.
    """
    until = before.astimezone(UTC).date()
    with database.transaction() as connection:
        days = sorted({day for table in TABLES for day in days_of(connection, table) if day < until})
        kept = _kept_messages(connection, until)
    # First, since mail whose dedup key is stored is answered "known", which must never happen after it was dropped.
    _delete_dedup_keys(database, until, kept)
    dropped = 0
    for day in days:
        for table in TABLES:
            removed = _drop_day(database, table, day)
            dropped += removed if table == "message" else 0
    return Purged(dropped, len(kept))


def _kept_messages(connection: Connection, until: date) -> list[UUID]:
    rows = connection.execute(
        "select distinct message_id from delivery where state in ('requested', 'releasing') and message_id < %s",
        [bounds(until)[0]],
    )
    return [id for (id,) in rows]


def _delete_dedup_keys(database: Database, until: date, kept: list[UUID]) -> None:
    """Delete the dedup keys of messages held before the day ``until``, except those of ``kept``.

    In batches: one DELETE of 500,000 rows blocked inserts for 91 ms, and one of more rows would block them for longer.
    """
    deleted = _DEDUP_KEY_BATCH
    while deleted == _DEDUP_KEY_BATCH:
        with database.transaction() as connection:
            deleted = connection.execute(
                "delete from seen where dedup_key = any(array(select dedup_key from seen"
                " where message_id < %s and message_id <> all(%s) limit %s))",
                [bounds(until)[0], kept, _DEDUP_KEY_BATCH],
            ).rowcount


def _drop_day(database: Database, table: str, day: date) -> int:
    """Drop a day of one table except the rows to keep. Return the number of removed rows.

    If the whole partition is dropped, its rows are counted for `message` only, and the number is 0 for other tables.
    Retried while another transaction holds a conflicting lock. Raises StoreUnavailable after half a minute of retries.
    """
    with translated():
        for _ in range(_DROP_TRIES):
            try:
                with database.connection() as connection:
                    begin(connection, OTHER_SECONDS, _DROP_LOCK_SECONDS)
                    return _try_to_drop_day(connection, table, day)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                time.sleep(_DROP_PAUSE_SECONDS)
    raise StoreUnavailable(f"{_partition(table, day)} is in use by a long transaction: the next purge will retry it")


def _try_to_drop_day(connection: Connection, table: str, day: date) -> int:
    connection.execute("select pg_advisory_xact_lock(%s)", [SCHEMA_LOCK])
    if day not in days_of(connection, table):
        return 0
    name = sql.Identifier(_partition(table, day))
    low, high = (sql.Literal(str(bound)) for bound in bounds(day))
    # This lock does not block readers. Only DROP takes the lock that blocks them, and ingest, for a few milliseconds.
    connection.execute(sql.SQL("lock table {} in share row exclusive mode").format(name))
    # While a delivery of that day is kept, so are the other tables, even empty: its next event needs a partition.
    if not (_any_in_use(connection, day) if table == "delivery" else day in days_of(connection, "delivery")):
        # The purge reports messages, so only this table is counted.
        removed = _count(connection, name, sql.SQL("true")) if table == "message" else 0
        connection.execute(sql.SQL("drop table {}").format(name))
        return removed
    kept = sql.SQL(_KEPT[table]).format(low=low, high=high)
    removed = _count(connection, name, sql.SQL("({}) is not true").format(kept))
    if removed:
        rest = _partition(table, day) + "_rest"
        _create(connection, rest, table)
        connection.execute(sql.SQL("insert into {} select * from {} where {}").format(sql.Identifier(rest), name, kept))
        connection.execute(sql.SQL("drop table {}").format(name))
        connection.execute(sql.SQL("alter table {} rename to {}").format(sql.Identifier(rest), name))
        _attach(connection, _partition(table, day), table, day)
    return removed


def _any_in_use(connection: Connection, day: date) -> bool:
    """Return True if a delivery of that day is requested or releasing. Reads two small indexes and no rows."""
    low, high = bounds(day)
    query = "select from delivery where state = '{}' and message_id >= %s and message_id < %s limit 1"
    return any(connection.execute(query.format(state), [low, high]).rowcount for state in ("requested", "releasing"))


def _count(connection: Connection, name: sql.Identifier, which: sql.Composable) -> int:
    row = connection.execute(sql.SQL("select count(*) from {} where {}").format(name, which)).fetchone()
    return int(row[0]) if row else 0


def days_of(connection: Connection, table: str) -> set[date]:
    """Return the UTC days for which a table has partitions."""
    rows = connection.execute(
        "select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = %s::regclass",
        [table],
    )
    return {date(int(y), int(m), int(d)) for (name,) in rows for y, m, d in _NAME.findall(name)}


def _partition(table: str, day: date) -> str:
    return f"{table}_{day:%Y%m%d}"


def _create(connection: Connection, name: str, table: str) -> None:
    connection.execute(
        sql.SQL("create table {} (like {} including all)").format(sql.Identifier(name), sql.Identifier(table))
    )


def _attach(connection: Connection, name: str, table: str, day: date) -> None:
    low, high = (sql.Literal(str(bound)) for bound in bounds(day))
    connection.execute(
        sql.SQL("alter table {} attach partition {} for values from ({}) to ({})").format(
            sql.Identifier(table), sql.Identifier(name), low, high
        )
    )
