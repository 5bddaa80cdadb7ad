"""Deliveries in the file store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from portal.model.message import DeliveryId, Filter
from portal.stores.files.database import Database
from portal.stores.files.rows import SqliteRows
from portal.stores.files.search import find_page
from portal.stores.files.session import SqliteEngine
from portal.stores.records import Page
from portal.stores.shared.deliveries import SqlDeliveries


class FileDeliveries(SqlDeliveries):
    """See `Deliveries`."""

    def __init__(self, database: Database) -> None:
        super().__init__(SqliteEngine(database), SqliteRows())
        self._database = database

    def search(self, wanted: Filter, limit: int, before: DeliveryId | None = None) -> Page:
        return find_page(self._database, wanted, limit, before)

    def released_from(self, recipients: Sequence[str], limit: int) -> Mapping[str, Sequence[str]]:
        found = {}
        with self._engine.reading() as session:
            for recipient in recipients:
                rows = session.many(
                    "SELECT m.header_from FROM delivery d CROSS JOIN message m ON m.id = d.message_id "
                    "WHERE d.recipient = :recipient AND d.state = 'released' "
                    "ORDER BY d.message_id DESC, d.number DESC LIMIT :limit",
                    recipient=recipient,
                    limit=limit,
                )
                if rows:
                    found[recipient] = [header for (header,) in rows]
        return found
