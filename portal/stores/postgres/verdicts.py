"""The PostgreSQL store's messages whose mail came again with a worse verdict."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from portal.model.message import Actor, EventKind, Export, Message, Tier
from portal.stores import search, symbols
from portal.stores.postgres import rows
from portal.stores.postgres.database import Connection, ask
from portal.stores.verdict import OPEN_STATES, RAISED_TOGETHER, change, with_verdict

_COPIES = b"select copies_of($1, $2, $3, $4, $5)"


def copies(
    connection: Connection, held: UUID, export: Export, tier: Tier, after: UUID, seconds: float
) -> Sequence[UUID]:
    """Return the next messages, by id, that are ``held`` or have the export's bytes, and have a milder tier.

    Raises psycopg.Error, also after ``seconds``.
    """
    milder = "{" + ",".join(tier.milder) + "}"
    values: list[rows.Raw] = [str(held), export.body_sha256, milder, str(after), str(RAISED_TOGETHER)]
    (ids,) = ask(connection, _COPIES, values, seconds)
    return [UUID(id) for id in ids.decode().split()]


def raise_tier(
    connection: Connection, ids: Sequence[UUID], export: Export, tier: Tier, now: datetime
) -> Sequence[UUID]:
    """Give those of these messages that have a milder tier, and a delivery that is not released, the export's verdict.

    Returns their ids. Raises psycopg.Error.
    """
    open_deliveries: dict[UUID, list[int]] = {}
    for id, number in connection.execute(
        "select message_id, number from delivery where message_id = any(%s) and state = any(%s) order by 1, 2",
        [list(ids), list(OPEN_STATES)],
    ):
        open_deliveries.setdefault(id, []).append(number)
    # Locked in the order of ids, as everybody does, so that two calls never wait for each other crosswise.
    messages = rows.messages(
        connection,
        "where id = any(%s) and tier = any(%s) order by id for update",
        [list(open_deliveries), list(tier.milder)],
    )
    for message in messages:
        put_verdict(connection, with_verdict(message, export, tier))
        for number in open_deliveries[message.id]:
            rows.note(connection, message.id, number, now, EventKind.RAISED, Actor("system"), change(message, tier))
    return [message.id for message in messages]


def put_verdict(connection: Connection, message: Message) -> None:
    """Write a message's tier, symbols, score, action and flags into its row, and index it under them.

    Raises psycopg.Error.
    """
    connection.execute(
        "update message set tier = %s, score = %s, action = %s, flags = %s, symbols = null, packed_symbols = %s,"
        # What it was indexed under stays: `search.fits` looks at the tier and the score themselves.
        " terms = terms || array_to_tsvector(%s) where id = %s",
        [
            *(message.tier.value, message.score, rows.text(message.action)),
            *([flag.value for flag in message.flags], symbols.pack(message.symbols)),
            *(search.verdict_terms(message.tier, message.score), message.id),
        ],
    )
