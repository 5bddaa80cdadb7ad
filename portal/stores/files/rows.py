"""Rows of messages and deliveries in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

from portal.model.message import Delivery, Event, Message
from portal.stores import search
from portal.stores.facets import FacetRow
from portal.stores.files import word_index
from portal.stores.files.session import connection_of, converter, iterate_rows, rows_of
from portal.stores.shared import rows
from portal.stores.shared.session import Row, Session

_MESSAGE = ", ".join(f"m.{column}" for column in rows.MESSAGE)
SELECT = f"SELECT {_MESSAGE}, {', '.join(f'd.{column}' for column in rows.DELIVERY)} "  # for `iterate`
NO_DELIVERY = ", ".join(["NULL"] * (len(rows.MESSAGE) + len(rows.DELIVERY)))  # instead of these columns
_NUMBER = len(rows.MESSAGE)  # the column of the delivery's number there
# CROSS JOIN keeps SQLite from reordering the join: deliveries are read by their index, then their messages.
_DELIVERIES = SELECT + "FROM delivery d CROSS JOIN message m ON m.id = d.message_id "
_OF_KEYS = SELECT + (
    "FROM ({keys}) w CROSS JOIN delivery d ON d.message_id = w.message_id AND d.number = w.number "
    "CROSS JOIN message m ON m.id = d.message_id ORDER BY d.message_id, d.number LIMIT :limit"
)
_PARTS = 400  # SELECTs in one statement; SQLite allows 500 (SQLITE_MAX_COMPOUND_SELECT)


class SqliteRows(rows.Rows):
    """See `Rows`."""

    def messages(self, session: Session, rest: str, *, for_update: bool = False, **values: Any) -> list[Message]:
        found = session.many(f"SELECT {_MESSAGE} FROM message m {rest}", **values)
        return [rows.message_from(row) for row in found]

    def deliveries(
        self, session: Session, rest: str, *fields: object, for_update: bool = False, **values: Any
    ) -> list[Delivery]:
        return [_delivery_from(row) for row in session.many(_DELIVERIES + rest, *fields, **values)]

    def oldest_of_each(
        self, session: Session, recipients: Sequence[str], where: str, limit: int, **values: Any
    ) -> list[Delivery]:
        """Return the oldest ``limit`` deliveries ``d`` of these recipients that meet the condition ``where``."""
        of_one = f"WHERE d.recipient = :recipient AND {where} ORDER BY d.message_id, d.number LIMIT :limit"
        if len(recipients) == 1:  # as nearly always: the index has the order, so nothing is sorted
            return self.deliveries(session, of_one, recipient=recipients[0], limit=limit, **values)
        found = [
            _delivery_from(row)
            for keys, names in for_each(recipients, f"SELECT d.message_id, d.number FROM delivery d {of_one}")
            for row in session.many(_OF_KEYS.format(keys=keys), limit=limit, **names, **values)
        ]
        return sorted(found, key=lambda delivery: delivery.key)[:limit]

    def of_keys(self, session: Session, keys: str, **values: Any) -> list[Delivery]:
        """Return the deliveries with the keys that this query selects, oldest first."""
        return [_delivery_from(row) for row in session.many(_OF_KEYS.format(keys=keys), limit=-1, **values)]

    def of_messages(self, session: Session, ids: Sequence[UUID], condition: str, **values: Any) -> list[Delivery]:
        return self.deliveries(session, f"where d.message_id in :ids and {condition}", ids=list(ids), **values)

    def with_events(
        self, session: Session, ids: Sequence[UUID], condition: str, **values: Any
    ) -> list[tuple[Delivery, list[Event]]]:
        found = session.many(
            f"{SELECT.rstrip()}, {rows.EVENT_OF} FROM delivery d CROSS JOIN message m ON m.id = d.message_id"
            f" LEFT JOIN event e ON {rows.OF_DELIVERY} WHERE d.message_id in :ids AND {condition} ORDER BY e.seq",
            ids=list(ids),
            **values,
        )
        width = len(rows.MESSAGE) + len(rows.DELIVERY)
        return rows.by_delivery((_delivery_from(row[:width]), row[width:]) for row in found)

    def add_terms(self, session: Session, message_id: UUID, terms: Sequence[str]) -> None:
        connection = connection_of(session)
        [message] = self.messages(session, "WHERE m.id = :id", id=message_id)
        of_message = "FROM message m JOIN delivery d ON d.message_id = m.id WHERE m.id = :id"
        found = session.many(f"SELECT m.rowid, d.recipient {of_message}", id=message_id)
        # With all others, since each waiting message is compared with a search by itself.
        others = search.terms(
            *(message.subject, message.envelope_sender, message.header_from, message.tier, message.score),
            [recipient for _, recipient in found],
            message.attachments,
        )
        word_index.add(connection, found[0][0], dict.fromkeys([*others, *terms]))

    def put_facets(
        self, session: Session, found: Sequence[FacetRow], symbols: Sequence[bytes], *, replace: bool
    ) -> None:
        connection = connection_of(session)
        insert = "INSERT OR REPLACE" if replace else "INSERT OR IGNORE"
        for row, packed in zip(found, symbols, strict=True):
            (rowid,) = connection.execute("SELECT rowid FROM message WHERE id = ?", (row.id.bytes,)).fetchone()
            connection.execute(
                f"{insert} INTO facet (key, tier, score, action, size_bytes, sender_domain, symbols) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (rowid, row.tier.value, row.score, row.action, row.size_bytes, row.sender_domain, packed),
            )
            word_index.add(connection, rowid, row.terms)
        word_index.index_waiting(connection)

    def put_bare_facets(self, session: Session, id: UUID) -> None:
        session.execute(
            "INSERT OR IGNORE INTO facet (key, tier, score, action, size_bytes, sender_domain, symbols) "
            "SELECT rowid, tier, score, '', size_bytes, '', x'' FROM message WHERE id = :id",
            id=id,
        )

    def without_facets(self, session: Session, low: UUID, high: UUID, limit: int) -> list[UUID]:
        rows = session.many(
            "SELECT m.id FROM message m WHERE m.id >= :low AND m.id < :high "
            "AND NOT EXISTS (SELECT 1 FROM facet f WHERE f.key = m.rowid) ORDER BY m.id LIMIT :limit",
            low=low,
            high=high,
            limit=limit,
        )
        return [id for (id,) in rows]

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


def for_each(recipients: Sequence[str], select: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield SQL that runs ``select``, which has the parameter ``:recipient``, for many recipients at once, and its
    parameters. An index with the order of ``select`` is used for each of them, which it is not for a list in ``IN``."""
    for start in range(0, len(recipients), _PARTS):
        names = {f"recipient_{n}": one for n, one in enumerate(recipients[start : start + _PARTS])}
        parts = (f"SELECT * FROM ({select.replace(':recipient', f':{name}')})" for name in names)
        yield " UNION ALL ".join(parts), names


def placed_from(cursor: sqlite3.Cursor) -> list[tuple[Delivery, int]]:
    """Return the deliveries of the rows of a query that begins with `SELECT`, each with the number that follows."""
    return [(_delivery_from(row[:-1]), row[-1]) for row in rows_of(cursor)]


def iterate(cursor: sqlite3.Cursor) -> Iterator[Delivery]:
    """Yield the deliveries of the rows of a query that begins with `SELECT`, each one when SQLite reads it."""
    return map(_delivery_from, iterate_rows(cursor))


def iterate_with(cursor: sqlite3.Cursor, columns: int) -> Iterator[tuple[Delivery | None, Row]]:
    """Yield the deliveries likewise, None for a row without one, each with the last ``columns`` as SQLite has them."""
    convert = converter(cursor)
    for row in cursor:
        yield (None if row[_NUMBER] is None else _delivery_from(convert(row)[:-columns])), row[-columns:]


def _delivery_from(row: Row) -> Delivery:
    columns = len(rows.MESSAGE)
    return rows.delivery_from(row[columns:], rows.message_from(row[:columns]))
