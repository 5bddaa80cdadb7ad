"""The PostgreSQL store's messages whose mail came again with a worse verdict."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from portal.model.message import Actor, DeliveryId, Event, EventKind, Export, Message, Tier
from portal.stores import search, symbols
from portal.stores.postgres import rows
from portal.stores.postgres.database import Connection, ask
from portal.stores.shared.rows import add_event
from portal.stores.shared.session import Session
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


def raise_tier(session: Session, ids: Sequence[UUID], export: Export, tier: Tier, now: datetime) -> Sequence[UUID]:
    """Give those of these messages that have a milder tier, and a delivery that is not released, the export's verdict.

    Returns their ids.
    """
    unreleased: dict[UUID, list[DeliveryId]] = {}
    for key in session.many(
        "select message_id, number from delivery where message_id in :ids and state in :states order by 1, 2",
        ids=list(ids),
        states=list(OPEN_STATES),
    ):
        unreleased.setdefault(key[0], []).append(DeliveryId(*key))
    # Locked in the order of ids, as everybody does, so that two calls never wait for each other.
    messages = rows.ROWS.messages(
        session,
        "where id in :ids and tier in :tiers order by id",
        for_update=True,
        ids=list(unreleased),
        tiers=list(tier.milder),
    )
    for message in messages:
        put_verdict(session, with_verdict(message, export, tier))
        event = Event(now, EventKind.RAISED, Actor("system"), change(message, tier))
        for key in unreleased[message.id]:
            add_event(session, key, event)
    return [message.id for message in messages]


def put_verdict(session: Session, message: Message) -> None:
    """Write a message's tier, symbols, score, action and flags into its row, and index it under them."""
    session.execute(
        "update message set tier = :tier, score = :score, action = :action, flags = :flags, symbols = null,"
        " packed_symbols = :packed_symbols where id = :id",
        tier=message.tier.value,
        score=message.score,
        action=message.action,
        flags=[flag.value for flag in message.flags],
        packed_symbols=symbols.pack(message.symbols),
        id=message.id,
    )
    # The terms of before stay: `search.fits` looks at the tier and the score themselves.
    rows.ROWS.add_terms(session, message.id, search.verdict_terms(message.tier, message.score))
