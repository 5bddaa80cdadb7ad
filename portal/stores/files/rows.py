"""Rows of messages and deliveries in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from portal.model.message import Delivery, Message
from portal.stores import search
from portal.stores.files import word_index
from portal.stores.files.session import connection_of, rows_of
from portal.stores.shared import rows
from portal.stores.shared.session import Row, Session

_MESSAGE = ", ".join(f"m.{column}" for column in rows.MESSAGE)
SELECT = f"SELECT {_MESSAGE}, {', '.join(f'd.{column}' for column in rows.DELIVERY)} "  # for `deliveries_from`
# CROSS JOIN keeps SQLite from reordering the join: deliveries are read by their index, then their messages.
_DELIVERIES = SELECT + "FROM delivery d CROSS JOIN message m ON m.id = d.message_id "


class SqliteRows(rows.Rows):
    """See `Rows`."""

    def messages(self, session: Session, rest: str, *, for_update: bool = False, **values: Any) -> list[Message]:
        found = session.many(f"SELECT {_MESSAGE} FROM message m {rest}", **values)
        return [rows.message_from(row) for row in found]

    def deliveries(
        self, session: Session, rest: str, *fields: object, for_update: bool = False, **values: Any
    ) -> list[Delivery]:
        return [_delivery_from(row) for row in session.many(_DELIVERIES + rest, *fields, **values)]

    def add_terms(self, session: Session, message_id: UUID, terms: Sequence[str]) -> None:
        connection = connection_of(session)
        (rowid,) = connection.execute("SELECT rowid FROM message WHERE id = ?", (message_id.bytes,)).fetchone()
        word_index.add(connection, rowid, terms)

    def put_verdict(self, session: Session, message: Message) -> None:
        session.execute(
            "UPDATE message SET tier = :verdict_tier, packed_symbols = :packed_symbols, score = :score, "
            "threshold = :threshold, action = :action, flags = :flags WHERE id = :id",
            message,
            **rows.columns(message),
        )
        self.add_terms(session, message.id, search.verdict_terms(message.tier, message.score))

    def dedup_keys(self, session: Session, ids: Sequence[UUID]) -> dict[UUID, bytes]:
        found = session.many("SELECT id, dedup_key FROM message WHERE id in :ids AND dedup_key IS NOT NULL", ids=ids)
        return dict(found)


def deliveries_from(cursor: sqlite3.Cursor) -> list[Delivery]:
    """Return the deliveries of the rows of a query that begins with `SELECT`."""
    return [_delivery_from(row) for row in rows_of(cursor)]


def _delivery_from(row: Row) -> Delivery:
    columns = len(rows.MESSAGE)
    return rows.delivery_from(row[columns:], rows.message_from(row[:columns]))
