"""Search by facets in PostgreSQL: a statement for the newest partition, then for two, four and so on."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import psycopg

from portal.model.errors import StoreUnavailable
from portal.model.message import DeliveryId, Filter, first_id
from portal.stores.postgres import partitions
from portal.stores.postgres.database import Database
from portal.stores.postgres.rows import ROWS, PostgresRows
from portal.stores.postgres.search import HIGHEST, LOWEST, ranges, tsquery
from portal.stores.postgres.session import PostgresEngine, connection_of
from portal.stores.records import ScoreKey
from portal.stores.search import Terms, needs_texts
from portal.stores.shared.facet_hits import Batch, batch_by_score, batch_of, columns, conditions
from portal.stores.shared.facet_index import FacetIndex
from portal.stores.shared.facets import SqlFacets
from portal.stores.shared.session import Session

_EXAMINED_AT_ONCE = 2_000  # if texts are compared one by one
# The offset keeps the planner from reading all deliveries of a rare state for each message.
_OF_MESSAGE = "lateral (select * from delivery d where d.message_id = f.message_id offset 0) d"
FACTS = "from delivery d left join facet f on f.message_id = d.message_id{}"

T = TypeVar("T")


class _PostgresFacetIndex(FacetIndex):
    """See `FacetIndex`."""

    def __init__(self, database: Database, engine: PostgresEngine, rows: PostgresRows) -> None:
        super().__init__(engine, rows)
        self._database = database

    def _index_new(self, seconds: float | None = None) -> tuple[bool, bool]:
        return self._with_partitions(partial(super()._index_new, seconds))

    def _index_older(self) -> bool:
        return self._with_partitions(super()._index_older)

    def _with_partitions(self, index: Callable[[], T]) -> T:
        try:
            return index()
        except StoreUnavailable as error:
            if not isinstance(error.__cause__, psycopg.errors.CheckViolation):
                raise
        # There are messages on days that have no partition of `facet`: a program of an older schema, which still runs,
        # held them, or a purge was interrupted that had dropped it.
        partitions.make_facets(self._database)
        return index()


class PostgresFacets(SqlFacets):
    """See `Facets`."""

    def __init__(self, database: Database) -> None:
        engine = PostgresEngine(database)
        super().__init__(engine, ROWS, _PostgresFacetIndex(database, engine, ROWS))

    def _hits(
        self,
        session: Session,
        terms: Terms,
        wanted: Filter,
        before: DeliveryId | None,
        at_once: int,
        *,
        with_facts: bool,
    ) -> Generator[Batch]:
        _plan_simply(session)
        source, (since, until) = _source(wanted, terms), _period(wanted)
        if before is not None:  # the page may end between two deliveries of a message
            until = min(until, UUID(int=before.message_id.int + bool(before.number)))
        for low, high in ranges(connection_of(session), "facet", since, until):
            found = at_once
            while found == at_once:
                if before is not None:
                    high = min(high, UUID(int=before.message_id.int + bool(before.number)))
                where, values = conditions(wanted, before)
                rows = session.many(
                    f"select {columns(wanted, with_facts=with_facts)} from {' and '.join([source, *where])}"
                    " order by d.message_id desc, d.number desc limit :limit",
                    **values,
                    terms=tsquery(terms),
                    low=low,
                    high=high,
                    limit=at_once,
                )
                found = len(rows)
                batch = batch_of(rows, None if found == at_once else DeliveryId(low, 0))
                before = batch.lowest
                yield batch

    def _sources(
        self, session: Session, terms: Terms, wanted: Filter, at_most: int
    ) -> Generator[tuple[str, dict[str, Any]]]:
        _plan_simply(session)
        where, values = conditions(wanted, None)
        source, (since, until) = " and ".join([_source(wanted, terms), *where]), _period(wanted)
        for low, high in ranges(connection_of(session), "facet", since, until):
            yield source, values | {"terms": tsquery(terms), "low": low, "high": high}

    def _hits_by_score(
        self, session: Session, terms: Terms, wanted: Filter, after: ScoreKey | None, limit: int, *, highest_first: bool
    ) -> Generator[Batch]:
        _plan_simply(session)
        # For a search that finds much, the plan that begins with the index of scores is the better one.
        for setting in ("seqscan", "bitmapscan", "hashjoin", "mergejoin", "sort"):
            session.execute(f"set local enable_{setting} = off")
        source, (low, high) = _source(wanted, terms, _OF_MESSAGE), _period(wanted)
        direction, sign = ("desc", "<") if highest_first else ("asc", ">")
        order = f"f.score {direction}, f.message_id {direction}, d.number {direction}"
        found = at_once = _EXAMINED_AT_ONCE if needs_texts(wanted) else limit + 1
        while found == at_once:
            where, values = conditions(wanted, None)
            where.append("f.score is not null")
            if after is not None:  # the first condition is one of the index
                where.append(f"(f.score, f.message_id) {sign}= (:key_score, :key_id)")
                where.append(f"(f.score, f.message_id, d.number) {sign} (:key_score, :key_id, :key_number)")
                values |= {"key_score": after.score, "key_id": after.key.message_id, "key_number": after.key.number}
            rows = session.many(
                f"select {columns(wanted)} from {' and '.join([source, *where])} order by {order} limit :limit",
                **values,
                terms=tsquery(terms),
                low=low,
                high=high,
                limit=at_once,
            )
            found = len(rows)
            if rows:
                batch = batch_by_score(rows)
                after = ScoreKey(batch.score, batch.lowest)
                yield batch


def _plan_simply(session: Session) -> None:
    """Start no parallel workers and compile nothing for a search: both take longer than most searches do.

    Partitions are joined one by one (docs/decisions/facets.md).
    """
    connection_of(session).execute(
        b"set local max_parallel_workers_per_gather = 0; set local jit = off; set local enable_partitionwise_join = on"
    )


def _source(wanted: Filter, terms: Terms, deliveries: str = "delivery d") -> str:
    """Return the tables of a search and the conditions that join them, with the parameters low, high and terms."""
    tables = {"f": "facet f", "d": deliveries} | ({"m": "message m"} if needs_texts(wanted) else {})
    joins = ["f.message_id = d.message_id", *(["m.id = f.message_id"] if needs_texts(wanted) else [])]
    # Each table has its own range, from which the planner learns which partitions it can skip.
    ids = [f"{name}.{'id' if name == 'm' else 'message_id'}" for name in tables]
    between = [f"{id} >= :low and {id} < :high" for id in ids]
    indexed = ["f.terms @@ cast(:terms as tsquery)"] if terms else []
    return f"{', '.join(tables.values())} where {' and '.join([*joins, *between, *indexed])}"


def _period(wanted: Filter) -> tuple[UUID, UUID]:
    return (
        LOWEST if wanted.since is None else first_id(wanted.since),
        HIGHEST if wanted.until is None else first_id(wanted.until),
    )
