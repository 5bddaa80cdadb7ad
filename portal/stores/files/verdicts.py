"""The file store's messages whose mail came again with a worse verdict."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import partial
from uuid import UUID

from portal.model.message import Actor, Event, EventKind, Export, Message, Tier
from portal.stores import search, symbols
from portal.stores.files import word_index
from portal.stores.files.rows import SqliteRows
from portal.stores.files.session import connection_of
from portal.stores.journal import delivery_line, verdict_line
from portal.stores.shared.rows import add_event
from portal.stores.shared.session import Session
from portal.stores.verdict import OPEN_STATES, RAISED_TOGETHER, change, with_verdict


def copies(connection: sqlite3.Connection, held: UUID, export: Export, tier: Tier, after: UUID) -> Sequence[UUID]:
    """Return the next messages, by id, that are ``held`` or have the export's bytes, and have a milder tier."""
    rows = connection.execute(
        "SELECT id FROM message WHERE (id = ? OR body_sha256 = ?) AND tier IN (SELECT value FROM json_each(?)) "
        "AND id > ? ORDER BY id LIMIT ?",
        (held.bytes, export.body_sha256, json.dumps(tier.milder), after.bytes, RAISED_TOGETHER),
    )
    return [UUID(bytes=id) for (id,) in rows]


def raise_tier(session: Session, ids: Iterable[UUID], export: Export, tier: Tier, now: datetime) -> list[UUID]:
    """Give those of these messages that have a milder tier, and a delivery that is not released, the export's verdict.

    Returns their ids.
    """
    raised: list[UUID] = []
    for id in ids:
        found = SqliteRows().deliveries(session, "WHERE d.message_id = :id ORDER BY d.number", id=id)
        deliveries = [each for each in found if each.state in OPEN_STATES]
        if not deliveries or deliveries[0].message.tier not in tier.milder:
            continue
        message = with_verdict(deliveries[0].message, export, tier)
        put_verdict(connection_of(session), message)
        raised.append(id)
        session.journal(partial(verdict_line, message))
        event = Event(now, EventKind.RAISED, Actor("system"), change(deliveries[0].message, tier))
        for delivery in deliveries:
            add_event(session, delivery.key, event)
            session.journal(partial(delivery_line, delivery, [event]))
    return raised


def put_verdict(connection: sqlite3.Connection, message: Message) -> None:
    """Write a message's tier, symbols, score, action and flags into its row, and index it under them."""
    (rowid,) = connection.execute("SELECT rowid FROM message WHERE id = ?", (message.id.bytes,)).fetchone()
    connection.execute(
        "UPDATE message SET tier = ?, packed_symbols = ?, score = ?, action = ?, flags = ? WHERE rowid = ?",
        (
            *(message.tier.value, symbols.pack(message.symbols), message.score, message.action),
            *(" ".join(sorted(message.flags)), rowid),
        ),
    )
    # What it was indexed under stays: `search.fits` looks at the tier and the score themselves.
    word_index.add(connection, rowid, search.verdict_terms(message.tier, message.score))
