"""Rows of PostgreSQL as the values of `portal.model.message`, and back.

Deliveries and their messages are read by two statements instead of a join: given the ids, the planner opens only the
days these are in, while a join over all partitions is planned anew, and differently, with every change of statistics.
"""

# ruff: noqa: S608 - queries are put together from LiteralString, which the type checker sees to

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, LiteralString, overload
from uuid import UUID

from portal.model.errors import NotFound
from portal.model.message import (
    Actor,
    Body,
    Delivery,
    Event,
    EventKind,
    Export,
    Flag,
    Message,
    Reader,
    State,
    Tier,
    held_at,
)
from portal.stores import address_of, search, symbols
from portal.stores.postgres.database import Connection, ask

Raw = str | bytes | None  # a parameter of `ask`

_HOLD = b"select hold_mail(" + b",".join(b"$%d" % n for n in range(1, 27)) + b")"
_DAY_MS = 86_400_000
_IMPOSSIBLE = re.compile("[\0\ud800-\udfff]")
DELIVERY: LiteralString = (
    "message_id, number, recipient, address, state, state_at, reason, attempts, next_try_at, announced_at"
)
_MESSAGE: LiteralString = (
    "id, tier, envelope_sender, subject, header_from, queue_id, message_id, action, score, client_ip, username,"
    " symbols, packed_symbols, flags, body_sha256, size_bytes, has_8bit"
)


def messages(connection: Connection, rest: LiteralString, values: Sequence[Any]) -> list[Message]:
    """The messages that ``rest``, what follows FROM, selects. Raises psycopg.Error."""
    return [_message(row) for row in connection.execute(f"select {_MESSAGE} from message {rest}", values)]


def delivery_rows(connection: Connection, rest: LiteralString, values: Sequence[Any]) -> list[tuple[Any, ...]]:
    """The rows of deliveries ``d`` that ``rest`` selects, for `with_messages`. Raises psycopg.Error."""
    return connection.execute(f"select {DELIVERY} from delivery d {rest}", values).fetchall()


def with_messages(connection: Connection, rows: Sequence[Sequence[Any]]) -> list[Delivery]:
    """The deliveries of these rows in their order, but for those whose message retention just took."""
    if not rows:
        return []
    of = {m.id: m for m in messages(connection, "where id = any(%s)", [list({row[0] for row in rows})])}
    return [_delivery(row, of[row[0]]) for row in rows if row[0] in of]


def deliveries(connection: Connection, rest: LiteralString, values: Sequence[Any]) -> list[Delivery]:
    """The deliveries ``d`` that ``rest`` selects. Raises psycopg.Error."""
    return with_messages(connection, delivery_rows(connection, rest, values))


def merged(
    connection: Connection,
    reader: Reader,
    where: LiteralString,
    values: Sequence[Any],
    order: LiteralString,
    limit: int,
) -> list[tuple[Any, ...]]:
    """Rows for `with_messages` of all that a reader reads and ``where`` selects, in order: of each identity its own
    stretch of the index, at most ``limit``, then the first of all. Raises psycopg.Error."""
    return connection.execute(
        f"select {DELIVERY} from unnest(%s::text[]) r (identity) cross join lateral ("
        f"select * from delivery d where d.recipient = r.identity and {where} order by {order} limit %s"
        f") d order by {order} limit %s",
        [[text(identity) for identity in reader.identities], *values, limit, limit],
    ).fetchall()


def one_delivery(connection: Connection, rest: LiteralString, values: Sequence[Any]) -> Delivery:
    """The delivery ``d`` that ``rest`` selects. Raises NotFound, psycopg.Error."""
    found = deliveries(connection, rest, values)
    if not found:
        raise NotFound("there is no such message")
    return found[0]


def hold(
    connection: Connection, values: list[Raw], first_chunk: bytes, seconds: float, lock_seconds: float
) -> tuple[UUID | None, UUID | None]:
    """Call hold_mail with `hold_values`; returns the id under which the mail is held, None: call again, and the place
    to which the caller has to add the body's further chunks, None: they are there. Raises psycopg.Error."""
    (said,) = ask(connection, _HOLD, [f"{lock_seconds * 1000:.0f}", *values, first_chunk], seconds)
    held, _, place = (said or b"").decode().partition(" ")
    return UUID(held) if held else None, UUID(place) if place else None


def hold_values(id: UUID, export: Export, body: Body, tier: Tier, announce: Collection[str]) -> list[Raw]:
    """An export as the parameters of hold_mail, but for the first and the last one."""
    addresses = [text(address) for address in export.recipients or ("",)]
    recipients = [text(each) for each in export.held_for or ("",)]
    told = sorted(pair for pair in zip(recipients, addresses, strict=True) if pair[0] in announce)
    if export.identities:
        told = sorted({who: address_of(who, address) for who, address in told}.items())
    terms = search.terms(export.subject, export.envelope_sender, export.header_from, tier, export.score, recipients)
    return [
        str(id),
        str(_place(id, export.body_sha256)),
        export.sameness,
        held_at(id).isoformat(),
        _array(recipients),
        _array(addresses),
        _array(recipient for recipient, _ in told),
        _array(address for _, address in told),
        tier.value,
        text(export.envelope_sender),
        text(export.subject),
        text(export.header_from),
        _array(terms),
        text(export.queue_id),
        text(export.message_id),
        text(export.action),
        None if export.score is None else repr(export.score),
        text(export.client_ip),
        text(export.user),
        symbols.pack(export.symbols),
        _array(flag.value for flag in export.flags),
        export.body_sha256,
        str(body.size_bytes),
        "true" if export.has_8bit else "false",
    ]


def _array(texts: Iterable[str]) -> str:
    """An array as PostgreSQL reads it: in quotes only quotes and backslashes mean something (docs, 8.15.6)."""
    quoted = ['"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"' for item in texts]
    return "{" + ",".join(quoted) + "}"


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
    connection: Connection, message_id: UUID, number: int, at: datetime, kind: EventKind, actor: Actor, detail: str = ""
) -> None:
    """Write a line of a delivery's history. Raises psycopg.Error."""
    connection.execute(
        "insert into event (message_id, number, at, kind, actor, via, address, detail)"
        " values (%s, %s, %s, %s, %s, %s, %s, %s)",
        [message_id, number, at, kind.value, actor.who, actor.via, actor.address, text(detail)],
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
    return value if value is None or value.isprintable() else _IMPOSSIBLE.sub("\ufffd", value)


def _place(id: UUID, sha256: bytes) -> UUID:
    """Where a body of the day of this quarantine id lies: a value between that day's bounds, by its SHA-256."""
    day_ms = (id.int >> 80) // _DAY_MS * _DAY_MS
    return UUID(int=(day_ms << 80) + int.from_bytes(sha256) % (_DAY_MS << 80))


def event_from(row: Sequence[Any]) -> Event:
    """Return the event of a row: at, kind, who, via, address, detail."""
    at, kind, who, via, address, detail = row
    return Event(at.astimezone(UTC), EventKind(kind), Actor(who, via, address), detail)


def utc(at: datetime | None) -> datetime | None:
    """The moment in UTC: psycopg gives it in the session's time zone."""
    return at and at.astimezone(UTC)


def _message(row: tuple[Any, ...]) -> Message:
    id, tier, *texts, plain, packed, flags, body_sha256, size_bytes, has_8bit = row
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
        symbols=symbols.from_json(plain) if packed is None else symbols.unpack(packed),
        flags=frozenset(Flag(flag) for flag in flags),
        body_sha256=body_sha256,
        size_bytes=size_bytes,
        has_8bit=has_8bit,
    )


def _delivery(row: Sequence[Any], message: Message) -> Delivery:
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
