"""The PostgreSQL store, on the tables of quarantine.sql. Any number of hosts may share one database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import LiteralString

from portal.stores.contracts import Store
from portal.stores.postgres import partitions
from portal.stores.postgres.database import INGEST_SECONDS, Database
from portal.stores.postgres.deliveries import PostgresDeliveries
from portal.stores.postgres.digests import PostgresDigests, find_unmarked
from portal.stores.postgres.facets import FACTS, PostgresFacets
from portal.stores.postgres.messages import PostgresMessages
from portal.stores.postgres.session import PostgresEngine, PostgresSession, connection_of
from portal.stores.records import Ending, Purged, Sizes, Stats
from portal.stores.shared import expiry, upkeep
from portal.stores.shared.audit import SqlAudit
from portal.stores.shared.domains import SqlDomainValues
from portal.stores.shared.idempotency import SqlIdempotencyKeys
from portal.stores.shared.jobs import SqlJobs
from portal.stores.shared.notes import SqlNotes
from portal.stores.shared.outbox import SqlOutbox
from portal.stores.shared.outcomes import Outcomes
from portal.stores.shared.passwords import SqlPasswordTries
from portal.stores.shared.recipients import SqlRecipients
from portal.stores.shared.rules import SqlRules
from portal.stores.shared.second_factors import SqlSecondFactors
from portal.stores.shared.sign_ins import SqlSignIns
from portal.stores.shared.spellings import merge_spellings
from portal.stores.shared.staff import SqlStaffRoles
from portal.stores.shared.statistics import SqlStatistics
from portal.stores.shared.tokens import SqlTokens
from portal.stores.shared.votes import SqlVotes

_UPGRADE_SECONDS = 600.0  # a statement may read all deliveries
_SIZES_SECONDS = 120.0
_PING_SECONDS = 1.0  # at most two with the second of waiting for the pool
# A write, since a server with a full disk and a standby still answer queries.
_PING: LiteralString = (
    "insert into setting values ('store.ping', now()::text) on conflict (name) do update set value = excluded.value"
)
_STATS = "select * from store_stats(:now, :heartbeat, :skipped)"


class PostgresStore(Store):
    """A `Store` in PostgreSQL 15 or later."""

    recipients: SqlRecipients
    notes: SqlNotes

    def __init__(self, database: Database) -> None:
        self.database = database
        self.engine = PostgresEngine(database)
        self.messages = PostgresMessages(database)
        self.facets = PostgresFacets(database)
        self.outcomes = Outcomes(self.ping)
        self.deliveries = PostgresDeliveries(database, self.facets, self.outcomes)
        self.digests = PostgresDigests(database, self.outcomes)
        self.recipients = SqlRecipients(self.engine, find_unmarked)
        self.sign_ins = SqlSignIns(self.engine)
        self.passwords = SqlPasswordTries(self.engine)
        self.idempotency = SqlIdempotencyKeys(self.engine)
        self.outbox = SqlOutbox(self.engine, self.outcomes)
        self.jobs = SqlJobs(self.engine)
        self.votes = SqlVotes(self.engine)
        self.rules = SqlRules(self.engine, at_posts=PostgresEngine(database, INGEST_SECONDS))
        self.domains = SqlDomainValues(self.engine, at_requests=PostgresEngine(database, _PING_SECONDS))
        self.audit = SqlAudit(self.engine)
        self.staff = SqlStaffRoles(self.engine)
        self.tokens = SqlTokens(self.engine)
        self.second_factors = SqlSecondFactors(self.engine)
        self.statistics = SqlStatistics(self.engine, FACTS)
        self.notes = SqlNotes(self.engine)

    @classmethod
    def open(cls, url: str, *, create: bool = False) -> PostgresStore:
        """Connect to the database. With ``create``, make or upgrade the schema first.

        Raises StoreUnavailable, StoreUnusable.
        """
        store = cls(Database(url, create=create))
        if create:
            partitions.build_indexes(store.database)
            # Each time, since programs of version 5 that are still running keep writing the other spelling.
            engine = PostgresEngine(store.database, _UPGRADE_SECONDS)
            merge_spellings(engine, SqlRecipients(engine, find_unmarked))
        return store

    def ping(self) -> None:
        with self.database.transaction(_PING_SECONDS, first=_PING):
            pass

    def close_outcomes(self, seconds: float) -> None:
        self.outcomes.close(seconds)
        self.notes.close()

    def close(self, seconds: float = 0.5) -> None:
        self.close_outcomes(seconds)
        self.database.close()

    def heartbeat(self, now: datetime) -> None:
        with self.outcomes.watching():
            self.notes.set(upkeep.HEARTBEAT, now.isoformat())

    def stats(self, now: datetime) -> Stats:
        with self.engine.reading() as session:
            return upkeep.stats(session, now, _STATS)

    def health(self, now: datetime) -> Stats:
        # One transaction, since a monitor asks every few seconds.
        with self.database.transaction(_PING_SECONDS, first=_PING) as connection:
            return upkeep.stats(PostgresSession(connection), now, _STATS)

    def sizes(self) -> Sizes:
        with PostgresEngine(self.database, _SIZES_SECONDS).reading() as session:
            [(size,)] = session.many("select pg_database_size(current_database())")
            return upkeep.sizes(session, size)

    def repair_clock_skew(self, now: datetime) -> int:
        return upkeep.repair_clock_skew(self.engine, now)

    def purge(self, before: datetime, now: datetime) -> Purged:
        """See `Store.purge`. Removes whole partitions only: that of the day of ``before`` is kept."""
        purged = partitions.purge(self.database, before)
        upkeep.remove_expired(self.engine, now)
        self.staff.remove_expired(now)
        self.recipients.remove_unused()
        return purged

    def expire(self, deliveries: Sequence[Ending]) -> int:
        with self.engine.writing() as session:
            count, ids = expiry.forget(session, deliveries)
            if ids:
                partitions.remove_messages(connection_of(session), ids)
        return count

    def prepare_days(self, now: datetime, retention_days: int) -> None:
        partitions.prepare(self.database, now, retention_days)
