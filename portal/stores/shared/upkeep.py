"""Functions over several tables: numbers for monitoring, repairs and expiry."""

from __future__ import annotations

from datetime import UTC, datetime

from portal.stores import lifecycle
from portal.stores.records import Sizes, Stats
from portal.stores.shared import facet_index
from portal.stores.shared.recipients import HAS_NEWS
from portal.stores.shared.session import Engine, Session

HEARTBEAT = "store.heartbeat"
_DUE = f"from recipient where {HAS_NEWS} and next_digest_at <= :now"
# For SQLite: the conditions on the state are those of its partial indexes. In parts, since each is then read from an
# index, and of the times just the first entry. Their names end with `_at`, by which the file store knows times.
STATS = (
    "select count(*) filter (where state = 'releasing'), count(*) filter (where state = 'requested'),"
    " (select count(*) from outbox),"
    " (select count(*) from job where finished_at is null),"
    " (select count(*) from recipient where failed_at is not null),"
    f" (select count(*) {_DUE}),"
    f" (select min(next_digest_at) {_DUE}) as due_at,"
    f" (select min(next_digest_at) {_DUE} and failed_at is null) as untried_at,"
    " (select value from setting where name = :heartbeat),"
    " (select value from setting where name = :skipped)"
    " from delivery where state in ('requested', 'releasing')"
)
_BATCH = 500  # rows that one transaction may delete, so that ingest can run in between


def stats(session: Session, now: datetime, statement: str = STATS) -> Stats:
    """See `Store.stats`. ``statement``: the engine's way to select what `STATS` selects."""
    row = session.one(statement, heartbeat=HEARTBEAT, skipped=facet_index.SKIPPED, now=now)
    assert row is not None  # noqa: S101 - an aggregate always has a row
    releases, requests, mails, jobs, failing, due, oldest, untried, heartbeat, skipped = row
    return Stats(
        releases_waiting=releases,
        requests_waiting=requests,
        mails_waiting=mails,
        jobs_waiting=jobs,
        digests_due=due,
        digests_failing=failing,
        oldest_digest_due_at=oldest,
        oldest_untried_due_at=untried,
        heartbeat_at=_moment(heartbeat) if heartbeat else None,
        not_indexed=int(skipped or 0),
    )


def sizes(session: Session, bytes: int | None) -> Sizes:
    """See `Store.sizes`."""
    states = session.many("select state, count(*) from delivery group by state")
    # Without a next digest its recipient wants none.
    oldest = f"select min(news_since) as oldest_at from recipient where {HAS_NEWS} and next_digest_at is not null"
    row = session.one(oldest)
    return Sizes(dict(states), row[0] if row else None, bytes)


def _moment(text: str) -> datetime:
    # Programs of schema version 5, which may still be running, write microseconds in a file store.
    return datetime.fromtimestamp(int(text) / 1e6, UTC) if text.isdigit() else datetime.fromisoformat(text)


def repair_clock_skew(engine: Engine, now: datetime) -> int:
    """See `Store.repair_clock_skew`."""
    planned, claimed = now + lifecycle.PLANNED_MAX, now + lifecycle.CLAIMED_MAX
    with engine.writing() as session:
        repaired = session.execute(
            "update recipient set next_digest_at = case when next_digest_at <= :planned then next_digest_at end,"
            " lease_until = case when lease_until <= :claimed then lease_until end,"
            " asked_at = case when asked_at <= :now then asked_at end"
            " where next_digest_at > :planned or lease_until > :claimed or asked_at > :now",
            planned=planned,
            claimed=claimed,
            now=now,
        )
        repaired += session.execute(
            "update delivery set next_try_at = :now where state = 'releasing' and next_try_at > :claimed",
            now=now,
            claimed=claimed,
        )
        repaired += session.execute(
            "update outbox set next_try_at = :now,"
            " queued_at = case when queued_at > :now then :now else queued_at end where next_try_at > :claimed",
            now=now,
            claimed=claimed,
        )
        repaired += session.execute(
            "update job set not_before = :now where finished_at is null"
            " and (created_at > :claimed or (lease is not null and not_before > :claimed))",
            now=now,
            claimed=claimed,
        )
        repaired += facet_index.repair(session, engine.clock)
    return repaired


def remove_expired(engine: Engine, now: datetime) -> None:
    """Remove expired rows (`lifecycle.EXPIRING`) in small transactions. Raises StoreUnavailable."""
    for table, key, column, kept in lifecycle.EXPIRING:
        removed = _BATCH
        while removed == _BATCH:
            with engine.writing(durable=False) as session:
                keys = session.many(
                    f"select {key} from {table} where {column} < :before limit :limit",
                    before=now - kept,
                    limit=_BATCH,
                )
                removed = len(keys)
                if removed:
                    session.execute(f"delete from {table} where {key} in :keys", keys=[value for (value,) in keys])
