"""Deliveries in the file store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from portal.model.message import Delivery, Filter
from portal.model.ranking import Likeness
from portal.stores.files.database import Database
from portal.stores.files.facets import FileFacets
from portal.stores.files.rows import SqliteRows, for_each
from portal.stores.files.search import candidates, find_page
from portal.stores.files.session import SqliteEngine, connection_of
from portal.stores.files.word_index import Catalog
from portal.stores.records import Page
from portal.stores.shared.deliveries import SqlDeliveries
from portal.stores.shared.outcomes import Outcomes
from portal.stores.shared.session import Row, Session
from portal.stores.span import Span

_PARTS = 100  # SELECTs in one statement; SQLite accepts up to 500 (SQLITE_MAX_COMPOUND_SELECT)


class FileDeliveries(SqlDeliveries):
    """See `Deliveries`."""

    def __init__(self, database: Database, facets: FileFacets, outcomes: Outcomes) -> None:
        super().__init__(SqliteEngine(database), SqliteRows(), outcomes)
        self._database = database
        self._facets = facets
        self._catalog = Catalog()

    def _find_page(self, wanted: Filter, limit: int, span: Span) -> Page:
        if wanted.needs_facets:
            return self._facets.page(wanted, limit, span.high)
        return find_page(self._database, self._catalog, wanted, limit, span)

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
        part = (
            "SELECT :{0}, state, count(*), sum((message_id, number) >= (:since_id, :since_number)), NULL"
            " FROM (SELECT message_id, number, state FROM delivery WHERE recipient = :{0}"
            " ORDER BY message_id DESC, number DESC LIMIT :at_most) GROUP BY state"
        )
        if values["senders"]:
            part += (
                " UNION ALL SELECT * FROM (SELECT d.recipient, NULL, NULL, NULL, m.header_from FROM delivery d"
                " CROSS JOIN message m ON m.id = d.message_id WHERE d.recipient = :{0} AND d.state = 'released'"
                " ORDER BY d.message_id DESC LIMIT :senders)"
            )
        found: list[Row] = []
        for start in range(0, len(identities), _PARTS):
            names = {f"r{n}": each for n, each in enumerate(identities[start : start + _PARTS])}
            union = " UNION ALL ".join(map(part.format, names))
            found += session.many(union, **values, **names)
        return found

    def released_from(self, recipients: Sequence[str], limit: int) -> Mapping[str, Sequence[str]]:
        part = (
            "SELECT d.recipient, m.header_from, d.message_id, d.number FROM delivery d "
            "CROSS JOIN message m ON m.id = d.message_id WHERE d.recipient = :recipient AND d.state = 'released' "
            "ORDER BY d.message_id DESC, d.number DESC LIMIT :limit"
        )
        found: dict[str, list[str]] = {}
        with self._engine.reading() as session:
            for union, names in for_each(recipients, part):
                select = f"SELECT recipient, header_from FROM ({union}) ORDER BY message_id DESC, number DESC"
                for recipient, header in session.many(select, limit=limit, **names):
                    found.setdefault(recipient, []).append(header)
        return found
