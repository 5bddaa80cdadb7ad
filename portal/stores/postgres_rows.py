"""Rows of PostgreSQL as the values of `portal.message`, and back.

Deliveries and their messages are read by two statements instead of a join: given the ids, the planner opens only the
days these are in, while a join over all partitions is planned anew, and differently, with every change of statistics.
"""

# ruff: noqa: S608 - queries are put together from LiteralString, which the type checker sees to

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, LiteralString, overload
from uuid import UUID

from portal.errors import NotFound
from portal.message import Actor, Body, Delivery, Export, Flag, Message, State, Symbol, Tier, held_at, identity
from portal.stores import search
from portal.stores.postgres_database import Connection

_IMPOSSIBLE = re.compile("[\0\ud800-\udfff]")
_DELIVERY: LiteralString = (
    "message_id, number, recipient, address, state, state_at, reason, attempts, next_try_at, announced_at"
)
_MESSAGE: LiteralString = (
    "id, tier, envelope_sender, subject, header_from, queue_id, message_id, action, score, client_ip, username,"
    " symbols, flags, body_sha256, size_bytes, has_8bit"
)


def messages(connection: Connection, rest: LiteralString, values: Sequence[Any]) -> list[Message]:
    """The messages that ``rest``, what follows FROM, selects. Raises psycopg.Error."""
    return [_message(row) for row in connection.execute(f"select {_MESSAGE} from message {rest}", values)]


def delivery_rows(connection: Connection, rest: LiteralString, values: Sequence[Any]) -> list[tuple[Any, ...]]:
    """The rows of deliveries ``d`` that ``rest`` selects, for `with_messages`. Raises psycopg.Error."""
    return connection.execute(f"select {_DELIVERY} from delivery d {rest}", values).fetchall()


def with_messages(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> list[Delivery]:
    """The deliveries of these rows in their order, but for those whose message retention just took."""
    if not rows:
        return []
    of = {m.id: m for m in messages(connection, "where id = any(%s)", [list({row[0] for row in rows})])}
    return [_delivery(row, of[row[0]]) for row in rows if row[0] in of]


def deliveries(connection: Connection, rest: LiteralString, values: Sequence[Any]) -> list[Delivery]:
    """The deliveries ``d`` that ``rest`` selects. Raises psycopg.Error."""
    return with_messages(connection, delivery_rows(connection, rest, values))


def one_delivery(connection: Connection, rest: LiteralString, values: Sequence[Any]) -> Delivery:
    """The delivery ``d`` that ``rest`` selects. Raises NotFound, psycopg.Error."""
    found = deliveries(connection, rest, values)
    if not found:
        raise NotFound("there is no such message")
    return found[0]


def hold_values(id: UUID, export: Export, body: Body, tier: Tier) -> dict[str, Any]:
    """An export as parameters of the INSERTs into message and delivery."""
    addresses = export.recipients or ("",)
    return {
        "id": id,
        "at": held_at(id),
        "sameness": export.sameness,
        "recipients": [text(identity(address)) for address in addresses],
        "addresses": [text(address) for address in addresses],
        "tier": tier.value,
        "envelope_sender": text(export.envelope_sender),
        "subject": text(export.subject),
        "header_from": text(export.header_from),
        "terms": search.terms(
            export.subject, export.envelope_sender, export.header_from, tier, export.score, map(identity, addresses)
        ),
        "queue_id": text(export.queue_id),
        "message_id": text(export.message_id),
        "action": text(export.action),
        "score": export.score,
        "client_ip": text(export.client_ip),
        "username": text(export.user),
        "symbols": json.dumps(
            [[text(s.name), s.score, [text(option) for option in s.options]] for s in export.symbols],
            ensure_ascii=False,
            separators=(",", ":"),
        ),
        "flags": [flag.value for flag in export.flags],
        "body_sha256": export.body_sha256,
        "size_bytes": body.size_bytes,
        "has_8bit": export.has_8bit,
    }


def set_recipient(connection: Connection, message_id: UUID, number: int, recipient: str, address: str) -> None:
    """Give a delivery a recipient, by whom it is then found. Raises psycopg.Error."""
    connection.execute(
        "update delivery set recipient = %s, address = %s where message_id = %s and number = %s",
        [text(recipient), text(address), message_id, number],
    )
    connection.execute(
        "update message set terms = terms || array_to_tsvector(%s) where id = %s",
        [[search.recipient_term(recipient)], message_id],
    )


def note(
    connection: Connection, message_id: UUID, number: int, at: datetime, what: str, actor: Actor, detail: str = ""
) -> None:
    """Write a line of a delivery's history. Raises psycopg.Error."""
    connection.execute(
        "insert into event (message_id, number, at, what, who, via, address, detail)"
        " values (%s, %s, %s, %s, %s, %s, %s, %s)",
        [message_id, number, at, what, actor.who, actor.via, actor.address, text(detail)],
    )


@overload
def text(value: str) -> str: ...
@overload
def text(value: str | None) -> str | None: ...
def text(value: str | None) -> str | None:
    """Text as PostgreSQL takes it: U+FFFD instead of NUL and lone surrogates.

    The exporter promises valid text; should it ever fail, a replaced character beats a mail that cannot be held.
    What operators type and mail servers answer promises nothing.
    """
    return value if value is None or value.isalnum() else _IMPOSSIBLE.sub("\ufffd", value)


def utc(at: datetime | None) -> datetime | None:
    """The moment in UTC: psycopg gives it in the session's time zone."""
    return at and at.astimezone(UTC)


def _message(row: tuple[Any, ...]) -> Message:
    id, tier, *texts, symbols, flags, body_sha256, size_bytes, has_8bit = row
    envelope_sender, subject, header_from, queue_id, message_id, action, score, client_ip, user = texts
    return Message(
        id=id,
        held_at=held_at(id),
        tier=Tier(tier),
        envelope_sender=envelope_sender,
        subject=subject,
        header_from=header_from,
        queue_id=queue_id,
        message_id=message_id,
        action=action,
        score=score,
        client_ip=client_ip,
        user=user,
        symbols=tuple(Symbol(name, float(points), tuple(options)) for name, points, options in symbols),
        flags=frozenset(Flag(flag) for flag in flags),
        body_sha256=body_sha256,
        size_bytes=size_bytes,
        has_8bit=has_8bit,
    )


def _delivery(row: tuple[Any, ...], message: Message) -> Delivery:
    _, number, recipient, address, state, state_at, reason, attempts, next_try_at, announced_at = row
    return Delivery(
        message=message,
        number=number,
        recipient=recipient,
        address=address,
        state=State(state),
        state_at=state_at.astimezone(UTC),
        reason=reason,
        attempts=attempts,
        next_try_at=utc(next_try_at),
        announced_at=utc(announced_at),
    )
