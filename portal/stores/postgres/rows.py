"""Rows of PostgreSQL, and the parameters of `hold_mail`.

Deliveries and their messages are read by two statements, or by a join with the ids as parameters for both tables. So
the planner opens only the partitions of their days; a join over all partitions gets a new and different plan with every
change of the statistics.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import NoneType
from typing import Any, LiteralString
from uuid import UUID

from portal.model.errors import RulesInUse
from portal.model.message import (
    FACTS,
    WAITING,
    Delivery,
    Event,
    Export,
    Message,
    Reader,
    Scan,
    Start,
    Tier,
    held_at,
    new_id,
    scanned_tier,
)
from portal.stores import scans, search, symbols
from portal.stores.contracts import NO_STARTS
from portal.stores.facets import FacetRow
from portal.stores.lifecycle import address_of
from portal.stores.postgres.database import Connection, Raw, ask
from portal.stores.postgres.session import rows_of, text
from portal.stores.shared import rows
from portal.stores.shared.session import Row, Session

_HOLD = b"select hold_mail(" + b",".join(b"$%d" % n for n in range(1, len(FACTS) + 17)) + b")"
_DAY_MS = 86_400_000
DELIVERY: LiteralString = (  # the message's id, and `shared.rows.DELIVERY`
    "message_id, number, recipient, address, state, state_at, reason, attempts, next_try_at, announced_at"
)
# Rows written before schema version 4 have their symbols as JSON.
_MESSAGE = ", ".join(rows.MESSAGE) + ", case when packed_symbols is null then symbols::text end"
# Of a message ``m``, also as a column of that type.
MESSAGE_OF: LiteralString = (
    ", ".join(f"(m).{column}" for column in rows.MESSAGE)
    + ", case when (m).packed_symbols is null then (m).symbols::text end"
)
_SYMBOLS = rows.MESSAGE.index("packed_symbols")

_INSERT_FACETS = """
    insert into facet (message_id, terms, tier, score, action, size_bytes, sender_domain, symbols)
    select m.id, m.terms || array_to_tsvector(r.terms), r.tier, r.score, r.action, r.size_bytes, r.sender_domain,
        decode(r.symbols, 'base64')
    from json_to_recordset(cast(:rows as json)) r (
        id uuid, terms text[], tier text, score double precision, action text, size_bytes bigint, sender_domain text,
        symbols text
    ) join message m on m.id = r.id where m.id in :ids
"""
_REPLACE_FACETS = """
    on conflict (message_id) do update set terms = excluded.terms, tier = excluded.tier, score = excluded.score,
        action = excluded.action, symbols = excluded.symbols
"""


class PostgresRows(rows.Rows):
    """See `Rows`."""

    def messages(self, session: Session, rest: str, *, for_update: bool = False, **values: Any) -> list[Message]:
        rest += " for update" if for_update else ""
        return list(map(_message, session.many(f"select {_MESSAGE} from message {rest}", **values)))

    def deliveries(
        self, session: Session, rest: str, *fields: object, for_update: bool = False, **values: Any
    ) -> list[Delivery]:
        rest += " for update of d" if for_update else ""
        return with_messages(session, session.many(f"select {DELIVERY} from delivery d {rest}", *fields, **values))

    def of_messages(self, session: Session, ids: Sequence[UUID], condition: str, **values: Any) -> list[Delivery]:
        found = session.many(
            f"select {', '.join(f'd.{column}' for column in rows.DELIVERY)}, {MESSAGE_OF}"
            " from delivery d join message m on m.id = d.message_id"
            f" where d.message_id in :ids and m.id in :ids and {condition}",
            ids=list(ids),
            **values,
        )
        return list(map(joined, found))

    def with_events(
        self, session: Session, ids: Sequence[UUID], condition: str, **values: Any
    ) -> list[tuple[Delivery, list[Event]]]:
        found = session.many(
            f"select {rows.EVENT_OF}, {', '.join(f'd.{column}' for column in rows.DELIVERY)}, {MESSAGE_OF}"
            " from delivery d join message m on m.id = d.message_id"
            f" left join event e on {rows.OF_DELIVERY} and e.message_id in :ids"
            f" where d.message_id in :ids and m.id in :ids and {condition} order by e.seq",
            ids=list(ids),
            **values,
        )
        width = rows.EVENT_OF.count(",") + 1
        return rows.by_delivery((joined(row[width:]), row[:width]) for row in found)

    def add_terms(self, session: Session, message_id: UUID, terms: Sequence[str]) -> None:
        session.execute(
            "update message set terms = terms || array_to_tsvector(:terms) where id = :id",
            terms=list(terms),
            id=message_id,
        )

    def put_facets(
        self, session: Session, found: Sequence[FacetRow], symbols: Sequence[bytes], *, replace: bool
    ) -> None:
        # As JSON, since each message has an array of terms. `action`, `score` and so on are columns of `message`, too.
        values = [
            {
                **row._asdict(),
                "score": None if row.score is None or math.isnan(row.score) else row.score,
                "symbols": b64encode(packed).decode(),
            }
            for row, packed in zip(found, symbols, strict=True)
        ]
        session.execute(
            _INSERT_FACETS + (_REPLACE_FACETS if replace else "on conflict do nothing"),
            rows=json.dumps(values, default=str),
            ids=[row.id for row in found],
        )

    def put_bare_facets(self, session: Session, id: UUID) -> None:
        session.execute(
            "insert into facet (message_id, terms, tier, score, action, size_bytes, sender_domain, symbols)"
            " select id, terms, tier, score, '', size_bytes, '', '' from message where id = :id on conflict do nothing",
            id=id,
        )

    def without_facets(self, session: Session, low: UUID, high: UUID, limit: int) -> list[UUID]:
        rows = session.many(
            "select m.id from message m where m.id >= :low and m.id < :high and not exists ("
            "select from facet f where f.message_id = m.id and f.message_id >= :low and f.message_id < :high"
            ") order by m.id limit :limit",
            low=low,
            high=high,
            limit=limit,
        )
        return [id for (id,) in rows]

    def put_verdict(self, session: Session, message: Message) -> None:
        session.execute(
            "update message set tier = :verdict_tier, score = :score, threshold = :threshold, action = :action,"
            " flags = :flag_array, symbols = null, packed_symbols = :packed_symbols where id = :id",
            message,
            **rows.columns(message) | {"flag_array": [flag.value for flag in message.flags]},
        )
        self.add_terms(session, message.id, search.verdict_terms(message.tier, message.score))

    def dedup_keys(self, session: Session, ids: Sequence[UUID]) -> dict[UUID, bytes]:
        found = session.many(
            "select message_id, dedup_key from seen where message_id in :ids"
            " union all select message_id, dedup_key from seen_before where message_id in :ids",
            ids=list(ids),
        )
        return {id: bytes(key) for id, key in found}


ROWS = PostgresRows()


def with_messages(session: Session, found: Sequence[Row]) -> list[Delivery]:
    """Return the deliveries of rows of `DELIVERY`, in their order, without those whose message was just purged."""
    if not found:
        return []
    messages = ROWS.messages(session, "where id in :ids", ids=list({row[0] for row in found}))
    of = {message.id: message for message in messages}
    return [rows.delivery_from(row[1:], of[row[0]]) for row in found if row[0] in of]


def delivery_rows(connection: Connection, rest: LiteralString, values: Sequence[Any]) -> list[Row]:
    """Return the rows of deliveries ``d`` that ``rest`` selects, for `with_messages`. Raises psycopg.Error."""
    return rows_of(connection.execute(f"select {DELIVERY} from delivery d {rest}", values).fetchall())


def merged(
    connection: Connection,
    reader: Reader,
    where: LiteralString,
    values: Sequence[Any],
    order: LiteralString,
    limit: int,
) -> list[Row]:
    """Return rows for `with_messages`: the first ``limit`` of a reader's deliveries that ``where`` selects, in order.

    Each identity has its own scan of the index, which ends after ``limit`` rows. Raises psycopg.Error.
    """
    found = connection.execute(
        f"select {DELIVERY} from unnest(%s::text[]) r (identity) cross join lateral ("
        f"select * from delivery d where d.recipient = r.identity and {where} order by {order} limit %s"
        f") d order by {order} limit %s",
        [[text(identity) for identity in reader.identities], *values, limit, limit],
    ).fetchall()
    return rows_of(found)


def joined(row: Row) -> Delivery:
    """Return the delivery of a row of `shared.rows.DELIVERY` and `MESSAGE_OF`."""
    width = len(rows.DELIVERY)
    return rows.delivery_from(row[:width], _message(row[width:]))


def _message(row: Row) -> Message:
    *values, plain = row
    if plain is not None:
        values[_SYMBOLS] = plain
    return rows.message_from(tuple(values))


def hold(
    connection: Connection, values: list[Raw], first_chunk: bytes, seconds: float, lock_seconds: float
) -> tuple[UUID | None, UUID | None]:
    """Call hold_mail with `hold_values` and return (message id, body id).

    The mail is held under the message id; None means: call again. The caller must add the body's further chunks under
    the body id; None means that they are stored already. Raises RulesInUse, psycopg.Error.
    """
    (result,) = ask(connection, _HOLD, [f"{lock_seconds * 1000:.0f}", *values, first_chunk], seconds)
    if result == b"rules":
        raise RulesInUse
    held, _, place = (result or b"").decode().partition(" ")
    return UUID(held) if held else None, UUID(place) if place else None


def hold_values(
    id: UUID,
    export: Export,
    tier: Tier,
    announce: Collection[str],
    scan: Scan | None = None,
    starts: Mapping[str, Start] | None = NO_STARTS,
) -> list[Raw]:
    """Return an export as the parameters of hold_mail, without the first and the last one.

    The arguments are those of `Messages.add`.
    """
    addresses = [text(address) for address in export.recipients or ("",)]
    recipients = [text(each) for each in export.held_for or ("",)]
    notified = sorted(
        {who: address_of(who, at) for who, at in zip(recipients, addresses, strict=True) if who in announce}.items()
    )
    facts = [_RAW[type(value)](value) for value in (getattr(export, field) for field in FACTS)]
    terms = search.terms(
        export.subject,
        export.envelope_sender,
        export.header_from,
        scanned_tier(tier, scan),
        export.score,
        recipients,
    )
    facts.insert(FACTS.index("header_from") + 1, _array(terms))
    return [
        str(id),
        str(_place(id, export.body_sha256)),
        export.dedup_key,
        held_at(id).isoformat(),
        _array(recipients),
        _array(addresses),
        _array(recipient for recipient, _ in notified),
        _array(address for _, address in notified),
        tier.value,
        *facts,
        scans.pack(scan),
        str(new_id()) if scan == WAITING else None,
        _starts(recipients, starts) if starts else None,
        "true" if starts is None else None,
    ]


def _starts(recipients: Sequence[str], starts: Mapping[str, Start]) -> str:
    """Return the states and first events of deliveries as the JSON that hold_mail takes."""
    return json.dumps(
        [
            {
                "number": number,
                "state": start.state,
                "kind": start.kind,
                "actor": text(start.actor.who),
                "via": text(start.actor.via),
                "address": start.actor.address,
                "detail": text(start.detail),
            }
            for number, start in enumerate(map(starts.get, recipients))
            if start is not None
        ]
    )


def _array(texts: Iterable[str]) -> str:
    """Return an array literal of PostgreSQL. In a quoted element only quotes and backslashes are special (docs,
    8.15.6).

    Texts have no NUL, which PostgreSQL does not accept.
    """
    items = list(texts)
    if not items:
        return "{}"
    quoted = "\0".join(items).replace("\\", "\\\\").replace('"', '\\"').replace("\0", '","')
    return f'{{"{quoted}"}}'


# How hold_mail takes the facts, by their type.
_RAW: dict[type, Callable[[Any], Raw]] = {
    NoneType: lambda _: None,
    str: text,
    bytes: bytes,
    bool: lambda value: "true" if value else "false",
    int: str,
    float: repr,
    tuple: symbols.pack,
    frozenset: _array,
}


def _place(id: UUID, sha256: bytes) -> UUID:
    """Return the id of a body that arrived on the day of this quarantine id: its SHA-256, mapped into the day's range
    of ids."""
    day_ms = (id.int >> 80) // _DAY_MS * _DAY_MS
    return UUID(int=(day_ms << 80) + int.from_bytes(sha256) % (_DAY_MS << 80))
