"""Partitions in PostgreSQL: ranges of whole UTC days, created in advance or on demand, and dropped by retention.

A partition has a day, or some more if messages are kept for long (`lifecycle.width_days`), since every statement that
may find its rows in any partition costs time and memory for each of them. Partitions of another width, of an older
program or an earlier `store.retention_days`, stay until they expire. A new one ends at its neighbours, so partitions
have neither gaps nor overlaps. The bounds are read from the catalog.

Handles all locks that creating and dropping tables takes. A new table is created by itself and then attached, which
waits for no other transaction. Old ones are dropped one per transaction, with a short lock_timeout and retries, so that
neither a reader's long transaction nor the purge stops ingest for longer than that timeout. (`PARTITION OF`, and all
DROPs in one transaction, were tried: inserts then wait for any reader, and deadlock with it.)

Dedup keys are not in partitions, since each post would search all of them, 15 to 30 µs each. `seen` has the newer keys,
`seen_before` the older ones. Once all messages of `seen_before` are removed, it is dropped and `seen` takes its place.
Until then keys of removed messages remain, and `hold_mail` replaces them (docs/decisions/object-storage.md).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import LiteralString, NamedTuple, TypeVar
from uuid import UUID

import psycopg
from psycopg import sql

from portal.model.errors import StoreUnavailable
from portal.model.message import first_id, held_at
from portal.stores.lifecycle import RETENTION, new_range, width_days
from portal.stores.postgres.database import OTHER_SECONDS, SCHEMA_LOCK, Connection, Database, begin, translated
from portal.stores.records import Purged

# The order of the purge. Deliveries are first: rows of other tables are kept if their message still has a delivery,
# also one that an `add` inserts during the purge. Bodies are last, when it is known which messages still need them.
TABLES = {
    "delivery": "message_id",
    "event": "message_id",
    "announced_to": "message_id",
    "facet": "message_id",
    "message": "id",
    "body_chunk": "body_id",
}
_KEPT: dict[str, LiteralString] = {
    "delivery": "message_id in (select message_id from delivery where state in ('requested', 'releasing')"
    " and message_id >= {low} and message_id < {high})",
    "event": "message_id in (select message_id from delivery where message_id >= {low} and message_id < {high})",
    "announced_to": "message_id in (select message_id from delivery where message_id >= {low} and message_id < {high})",
    "facet": "message_id in (select message_id from delivery where message_id >= {low} and message_id < {high})",
    "message": "id in (select message_id from delivery where message_id >= {low} and message_id < {high})",
    "body_chunk": "body_id in (select body_id from message where id >= {low} and id < {high})",
}
_DAYS_AHEAD = 7
_DROP_LOCK_SECONDS = 0.1
_DROP_TRIES = 100
_DROP_PAUSE_SECONDS = 0.3
GENERATIONS: tuple[LiteralString, ...] = ("seen_before", "seen")  # of dedup keys, the older one first
_INDEX_SECONDS = 600.0  # for each partition; building an index waits for older transactions, such as a dump
_BUILT_LATER: tuple[tuple[LiteralString, LiteralString, LiteralString], ...] = (  # table, name and columns of indexes
    ("message", "body_idx", "body_sha256, tier"),
    ("event", "at_idx", "at"),
)
_WITHOUT_INDEX: LiteralString = """
    select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = %s::regclass and not exists (
        select from pg_index x join pg_inherits of on of.inhrelid = x.indexrelid
        where x.indrelid = c.oid and of.inhparent = %s::regclass
    ) order by c.relname
"""
Result = TypeVar("Result")
_BOUNDS = re.compile(r"FOR VALUES FROM \('([0-9a-f-]+)'\) TO \('([0-9a-f-]+)'\)")


class Partition(NamedTuple):
    """A partition: its table's name, its lowest id, and the lowest id after it."""

    name: str
    low: UUID
    high: UUID


def partitions_of(connection: Connection, table: str) -> list[Partition]:
    """Return the partitions of a table, oldest first. Raises psycopg.Error."""
    rows = connection.execute(
        "select c.relname, pg_get_expr(c.relpartbound, c.oid)"
        " from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = %s::regclass",
        [table],
    )
    # Matched here, since regexp_match takes 30 µs for each of them.
    found = ((name, _BOUNDS.fullmatch(bounds)) for name, bounds in rows)
    return sorted((Partition(name, UUID(each[1]), UUID(each[2])) for name, each in found if each), key=lambda p: p.low)


def make_partitions(database: Database, day: date, seconds: float = OTHER_SECONDS) -> None:
    """Create the missing partitions for one UTC day. Concurrent calls of several processes wait for each other.

    Each statement may take ``seconds``. Raises StoreUnavailable.
    """
    with database.transaction(seconds) as connection:
        connection.execute("select pg_advisory_xact_lock(%s)", [SCHEMA_LOCK])
        noted = connection.execute("select value::int from setting where name = %s", [RETENTION]).fetchone()
        width = width_days(noted[0]) if noted else 1
        for table in TABLES:
            existing = partitions_of(connection, table)
            if not _covers(existing, day):
                partition = _between(table, existing, day, width)
                _create(connection, partition.name, table)
                _attach(connection, partition, table)


def prepare(database: Database, now: datetime, retention_days: int) -> None:
    """Create the partitions for today and the next 7 days, and those that an older program did not create.

    Partitions that are created later on demand also get the width of this retention. Raises StoreUnavailable.
    """
    with database.transaction() as connection:
        connection.execute(
            "insert into setting (name, value) values (%s, %s) on conflict (name) do update set value = excluded.value",
            [RETENTION, str(retention_days)],
        )
    for ahead in range(_DAYS_AHEAD + 1):
        make_partitions(database, now.astimezone(UTC).date() + timedelta(days=ahead))
    make_as_deliveries(database)


def make_as_deliveries(database: Database) -> None:
    """Create the partitions of newer tables for the days for which an older program created only those of deliveries.

    Raises StoreUnavailable.
    """
    with database.transaction() as connection:
        days = {held_at(partition.low).date() for partition in partitions_of(connection, "delivery")}
    for table in ("announced_to", "facet"):
        make_missing(database, table, days)


def make_facets(database: Database) -> None:
    """Create the partitions of `facet` for the days that have one of `message`. Raises StoreUnavailable."""
    with database.transaction() as connection:
        held = [(held_at(each.low), held_at(each.high)) for each in partitions_of(connection, "message")]
    days = {(low + timedelta(days=n)).date() for low, high in held for n in range((high - low).days)}
    make_missing(database, "facet", days)


def build_indexes(database: Database) -> None:
    """Build the indexes `_BUILT_LATER` for partitions that are older than they, without stopping ingest.

    Building one on the whole table would stop ingest for seconds (measured: 4 s for a million messages). After an
    interruption the next call continues. Raises StoreUnavailable.
    """
    with translated(), database.connection() as connection:
        connection.timeout_seconds = _INDEX_SECONDS
        for table, suffix, columns in _BUILT_LATER:
            whole = f"{table}_{suffix}"
            for (name,) in connection.execute(_WITHOUT_INDEX, [table, whole]).fetchall():
                names = {
                    "index": sql.Identifier(f"{name}_{suffix}"),
                    "table": sql.Identifier(name),
                    "whole": sql.Identifier(whole),
                    "columns": sql.SQL(columns),
                }
                for statement in (
                    "drop index if exists {index}",  # invalid, left by an interrupted build
                    "create index concurrently {index} on {table} ({columns})",
                    "alter index {whole} attach partition {index}",
                ):
                    connection.execute(sql.SQL(statement).format(**names))


def make_missing(database: Database, table: str, days: Collection[date]) -> None:
    """Create the partitions for those days for which this table has none. Raises StoreUnavailable."""
    if days:
        with database.transaction() as connection:
            existing = partitions_of(connection, table)
        for day in sorted(days):
            if not _covers(existing, day):
                make_partitions(database, day)


def purge(database: Database, before: datetime) -> Purged:
    """Drop all partitions whose days ended at ``before`` or earlier, except messages with a requested or releasing
    delivery.

    Raises StoreUnavailable; the next call then continues where this one stopped.
    """
    until = first_id(_midnight(before.astimezone(UTC).date()))
    with database.transaction() as connection:
        expired = [
            (partition, table)
            for table in TABLES
            for partition in partitions_of(connection, table)
            if partition.high <= until
        ]
        # Not ``until``, since messages of a partition that is not dropped yet are still held.
        end = max((partition.high for partition, _ in expired), default=UUID(int=0))
        kept = _kept_messages(connection, end)
    dropped = 0
    for partition, table in sorted(expired, key=lambda each: each[0].high):  # it is stable: tables stay in order
        removed = _drop(database, table, partition)
        dropped += removed if table == "message" else 0
    drop_dedup_keys(database, end, kept)
    return Purged(dropped, len(kept))


def remove_messages(connection: Connection, ids: Sequence[UUID]) -> None:
    """Remove messages before their partition is dropped, with the bodies that no other message has.

    Raises psycopg.Error.
    """
    for generation in GENERATIONS:  # first, as `hold_mail` does
        connection.execute(
            sql.SQL("delete from {} where message_id = any(%s)").format(sql.Identifier(generation)), [list(ids)]
        )
    removed = connection.execute(
        "delete from message where id = any(%s) returning body_id, body_sha256", [list(ids)]
    ).fetchall()
    for table in ("event", "announced_to", "facet", "delivery"):
        connection.execute(
            sql.SQL("delete from {} where message_id = any(%s)").format(sql.Identifier(table)), [list(ids)]
        )
    for body_id, body_sha256 in sorted(removed):
        connection.execute(
            "delete from body_chunk where body_id = %s"
            " and not exists (select from message where body_sha256 = %s and body_id = %s)",
            [body_id, body_sha256, body_id],
        )


def _kept_messages(connection: Connection, end: UUID) -> list[UUID]:
    rows = connection.execute(
        "select distinct message_id from delivery where state in ('requested', 'releasing') and message_id < %s", [end]
    )
    return [id for (id,) in rows]


def drop_dedup_keys(database: Database, end: UUID, kept: list[UUID]) -> None:
    """Drop the older generation of dedup keys, except those of ``kept``, and begin a new one.

    Does nothing unless all messages of the older generation have lower ids than ``end``, and one of the newer
    generation has. Raises StoreUnavailable.
    """
    _with_short_locks(database, "seen", partial(_try_to_drop_dedup_keys, end=end, kept=kept))


def _try_to_drop_dedup_keys(connection: Connection, end: UUID, kept: list[UUID]) -> None:
    connection.execute("select pg_advisory_xact_lock(%s)", [SCHEMA_LOCK])
    # Sorted, so that the planner reads one row of an index, whatever the statistics say.
    newest = connection.execute("select message_id from seen_before order by message_id desc limit 1").fetchone()
    oldest = connection.execute("select message_id from seen order by message_id limit 1").fetchone()
    if oldest is None or oldest[0] >= end or (newest is not None and newest[0] >= end):
        return
    # In the order of `hold_mail`. A call of it that has searched the older generation ends before this goes on.
    for table in GENERATIONS:
        connection.execute(f"lock table {table} in access exclusive mode")
    connection.execute(
        "insert into seen select * from seen_before where message_id = any(%s) on conflict do nothing", [kept]
    )
    connection.execute("drop table seen_before")
    connection.execute("alter table seen rename to seen_before")
    connection.execute("create table seen (like seen_before including all)")


def _drop(database: Database, table: str, partition: Partition) -> int:
    """Drop a partition, except the rows to keep. Return the number of removed rows.

    If the whole partition is dropped, its rows are counted for `message` only, and the number is 0 for other tables.
    Raises StoreUnavailable.
    """
    return _with_short_locks(database, partition.name, partial(_try_to_drop, table=table, partition=partition))


def _with_short_locks(database: Database, table: str, act: Callable[[Connection], Result]) -> Result:
    """Run a transaction that takes a lock of this table that stops ingest.

    Retried while another transaction holds a conflicting lock. Raises StoreUnavailable after half a minute of retries.
    """
    with translated():
        for _ in range(_DROP_TRIES):
            try:
                with database.connection() as connection:
                    begin(connection, OTHER_SECONDS, _DROP_LOCK_SECONDS)
                    return act(connection)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                time.sleep(_DROP_PAUSE_SECONDS)
    raise StoreUnavailable(f"{table} is in use by a long transaction: the next purge will retry it")


def _try_to_drop(connection: Connection, table: str, partition: Partition) -> int:
    connection.execute("select pg_advisory_xact_lock(%s)", [SCHEMA_LOCK])
    if partition not in partitions_of(connection, table):
        return 0
    name = sql.Identifier(partition.name)
    low, high = (sql.Literal(str(bound)) for bound in (partition.low, partition.high))
    # This lock does not block readers. Only DROP takes the lock that blocks them, and ingest, for a few milliseconds.
    connection.execute(sql.SQL("lock table {} in share row exclusive mode").format(name))
    # While a delivery of these days is kept, so are the other tables, even empty: its next event needs a partition.
    if not (_any_in_use(connection, partition) if table == "delivery" else _any_deliveries(connection, partition)):
        # The purge reports messages, so only this table is counted.
        removed = _count(connection, name, sql.SQL("true")) if table == "message" else 0
        connection.execute(sql.SQL("drop table {}").format(name))
        return removed
    kept = sql.SQL(_KEPT[table]).format(low=low, high=high)
    removed = _count(connection, name, sql.SQL("({}) is not true").format(kept))
    if removed:
        rest = f"{partition.name}_rest"
        _create(connection, rest, table)
        connection.execute(sql.SQL("insert into {} select * from {} where {}").format(sql.Identifier(rest), name, kept))
        connection.execute(sql.SQL("drop table {}").format(name))
        connection.execute(sql.SQL("alter table {} rename to {}").format(sql.Identifier(rest), name))
        _attach(connection, partition, table)
    return removed


def _any_in_use(connection: Connection, partition: Partition) -> bool:
    """Return True if a delivery in these days is requested or releasing. Reads two small indexes and no rows."""
    query = "select from delivery where state = '{}' and message_id >= %s and message_id < %s limit 1"
    bounds = [partition.low, partition.high]
    return any(connection.execute(query.format(state), bounds).rowcount for state in ("requested", "releasing"))


def _any_deliveries(connection: Connection, partition: Partition) -> bool:
    """Return True if `delivery` still has a partition in these days."""
    deliveries = partitions_of(connection, "delivery")
    return any(each.low < partition.high and partition.low < each.high for each in deliveries)


def _count(connection: Connection, name: sql.Identifier, which: sql.Composable) -> int:
    row = connection.execute(sql.SQL("select count(*) from {} where {}").format(name, which)).fetchone()
    return int(row[0]) if row else 0


def _covers(existing: Collection[Partition], day: date) -> bool:
    id = first_id(_midnight(day))
    return any(partition.low <= id < partition.high for partition in existing)


def _between(table: str, existing: Collection[Partition], day: date, width: int) -> Partition:
    """Return the partition to create for a day: as many days as ``width``, but only up to its neighbours."""
    ranges = [(held_at(each.low), held_at(each.high)) for each in existing]
    begin, end = new_range(_midnight(day), width, ranges)
    # Not the name of a day for several days: programs up to version 0.2.0 drop by it what has the name of an old day.
    days = "" if end - begin == timedelta(days=1) else "from_"
    return Partition(f"{table}_{days}{begin:%Y%m%d}", first_id(begin), first_id(end))


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _create(connection: Connection, name: str, table: str) -> None:
    connection.execute(
        sql.SQL("create table {} (like {} including all)").format(sql.Identifier(name), sql.Identifier(table))
    )


def _attach(connection: Connection, partition: Partition, table: str) -> None:
    low, high = (sql.Literal(str(bound)) for bound in (partition.low, partition.high))
    connection.execute(
        sql.SQL("alter table {} attach partition {} for values from ({}) to ({})").format(
            sql.Identifier(table), sql.Identifier(partition.name), low, high
        )
    )
