"""Search by facets in PostgreSQL: a statement for the newest partition, then for two, four and so on."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from uuid import UUID

import psycopg

from portal.model.errors import StoreUnavailable
from portal.model.message import DeliveryId, Filter, first_id
from portal.stores.postgres import partitions
from portal.stores.postgres.database import Database
from portal.stores.postgres.rows import ROWS, PostgresRows
from portal.stores.postgres.search import HIGHEST, LOWEST, ranges, tsquery
from portal.stores.postgres.session import PostgresEngine, connection_of
from portal.stores.search import Terms, needs_texts
from portal.stores.shared.facet_index import FacetIndex
from portal.stores.shared.facets import Batch, SqlFacets, batch_of, columns, conditions
from portal.stores.shared.session import Session


class _PostgresFacetIndex(FacetIndex):
    """See `FacetIndex`."""

    def __init__(self, database: Database, engine: PostgresEngine, rows: PostgresRows) -> None:
        super().__init__(engine, rows)
        self._database = database

    def _index_new(self, seconds: float | None = None) -> bool:
        return self._with_partitions(partial(super()._index_new, seconds))

    def _index_older(self) -> bool:
        return self._with_partitions(super()._index_older)

    def _with_partitions(self, index: Callable[[], bool]) -> bool:
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
        self, session: Session, wanted: Filter, terms: Terms, before: DeliveryId | None, at_once: int
    ) -> Generator[Batch]:
        # Starting workers and compiling take longer than most searches do.
        session.many("select set_config('max_parallel_workers_per_gather', '0', true), set_config('jit', 'off', true)")
        # Each table has its own range, from which the planner learns which partitions it can skip.
        tables = {"f": "facet f", "d": "delivery d"} | ({"m": "message m"} if needs_texts(wanted) else {})
        between = [f"{name}.{'id' if name == 'm' else 'message_id'} {bound}" for name in tables for bound in _BOUNDS]
        joins = ["f.message_id = d.message_id", *(["m.id = f.message_id"] if needs_texts(wanted) else [])]
        indexed = ["f.terms @@ cast(:terms as tsquery)"] if terms else []
        since = LOWEST if wanted.since is None else first_id(wanted.since)
        until = HIGHEST if wanted.until is None else first_id(wanted.until)
        if before is not None:  # the page may end between two deliveries of a message
            until = min(until, UUID(int=before.message_id.int + bool(before.number)))
        for low, high in ranges(connection_of(session), "facet", since, until):
            found = at_once
            while found == at_once:
                if before is not None:
                    high = min(high, UUID(int=before.message_id.int + bool(before.number)))
                where, values = conditions(wanted, before)
                rows = session.many(
                    f"select {columns(wanted)} from {', '.join(tables.values())}"
                    f" where {' and '.join([*joins, *between, *indexed, *where])}"
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


_BOUNDS = (">= :low", "< :high")
