"""The PostgreSQL store's deliveries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from portal.model.message import Delivery, Filter
from portal.model.ranking import Likeness
from portal.stores.postgres.database import Database
from portal.stores.postgres.facets import PostgresFacets
from portal.stores.postgres.rows import ROWS
from portal.stores.postgres.search import candidates, find_page
from portal.stores.postgres.session import PostgresEngine, connection_of
from portal.stores.records import Page
from portal.stores.shared.deliveries import SqlDeliveries
from portal.stores.shared.outcomes import Outcomes
from portal.stores.shared.session import Row, Session
from portal.stores.span import Span


class PostgresDeliveries(SqlDeliveries):
    """See `Deliveries`."""

    def __init__(self, database: Database, facets: PostgresFacets, outcomes: Outcomes) -> None:
        super().__init__(PostgresEngine(database), ROWS, outcomes)
        self._database = database
        self._facets = facets

    def _find_page(self, wanted: Filter, limit: int, span: Span) -> Page:
        if wanted.needs_facets:
            return self._facets.page(wanted, limit, span.high)
        return find_page(self._database, wanted, limit, span)

    def _candidates(
        self,
        session: Session,
        likeness: Likeness,
        wanted: Filter,
        span: Span,
        examined: int,
        at_most: int,
    ) -> Sequence[tuple[Delivery, int]]:
        return candidates(connection_of(session), likeness, wanted, span, examined, at_most)

    def _counts(self, session: Session, identities: Sequence[str], **values: Any) -> Sequence[Row]:
        select = (
            "select recipient, state, n, n_since, null from states_of(cast(:identities as text[]), :at_most,"
            " cast(:since_id as uuid), cast(:since_number as int))"
        )
        if values["senders"]:
            select += (
                " union all select recipient, null, null, null, header_from"
                " from senders_released_to(cast(:identities as text[]), :senders)"
            )
        return session.many(select, identities=list(identities), **values)

    def released_from(self, recipients: Sequence[str], limit: int) -> Mapping[str, Sequence[str]]:
        found: dict[str, list[str]] = {}
        if not recipients:
            return found
        with self._database.transaction() as connection:
            for recipient, header_from in connection.execute(
                "select recipient, header_from from senders_released_to(%s::text[], %s)", [list(recipients), limit]
            ):
                found.setdefault(recipient, []).append(header_from)
        return found
