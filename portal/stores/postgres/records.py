"""The PostgreSQL store's records: everything kept, read out and taken in whole, for moving between stores."""

# ruff: noqa: S608 - queries are put together from LiteralString, which the type checker sees to

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC
from typing import LiteralString
from uuid import UUID

from portal.model.message import Delivery, Event
from portal.stores import DigestRecord, Person, Record
from portal.stores.postgres import rows
from portal.stores.postgres.database import Connection
from portal.stores.postgres.digests import PostgresPeople
from portal.stores.postgres.rows import utc
from portal.stores.postgres.subscribers import PERSON, person_from

_FIRST = UUID(int=0)


class PostgresRecords(PostgresPeople):
    """What `Store` says about moving, but for `take`."""

    def message_ids(self, after: UUID | None, limit: int) -> Sequence[UUID]:
        with self.database.transaction() as connection:
            found = connection.execute(
                "select id from message where id > %s order by id limit %s", [after or _FIRST, limit]
            ).fetchall()
        return [id for (id,) in found]

    def records(self, ids: Collection[UUID]) -> Mapping[UUID, Record]:
        wanted = list(ids)
        deliveries: dict[UUID, list[Delivery]] = {}
        histories: dict[tuple[UUID, int], list[Event]] = {}
        with self.database.transaction() as connection:
            connection.execute("set transaction isolation level repeatable read")  # one moment for all of them
            for delivery in rows.deliveries(
                connection, "where d.message_id = any(%s) order by d.message_id, d.number", [wanted]
            ):
                deliveries.setdefault(delivery.id, []).append(delivery)
            for id, number, *event in connection.execute(
                "select message_id, number, at, kind, actor, via, address, detail from event where message_id = any(%s)"
                " order by seq",
                [wanted],
            ):
                histories.setdefault((id, number), []).append(rows.event_from(event))
            told: dict[tuple[UUID, int], list[str]] = {}
            for id, number, reader in connection.execute(
                "select message_id, number, reader from announced_to where message_id = any(%s) order by reader",
                [wanted],
            ):
                told.setdefault((id, number), []).append(reader)
            samenesses: dict[UUID, bytes] = {
                id: bytes(sameness)
                for id, sameness in connection.execute(
                    "select message_id, dedup_key from seen where message_id = any(%s)", [wanted]
                )
            }
        return {
            id: Record(
                found[0].message,
                samenesses.get(id),
                tuple(found),
                tuple(tuple(histories.get((id, delivery.number), ())) for delivery in found),
                tuple(tuple(told.get((id, delivery.number), ())) for delivery in found),
            )
            for id, found in deliveries.items()
        }

    # ---- people and digests

    def people(self, after: str, limit: int) -> Sequence[Person]:
        with self.database.transaction() as connection:
            found = connection.execute(
                PERSON + "where recipient > %s order by recipient limit %s", [after, limit]
            ).fetchall()
        return [person_from(row) for row in found]

    def take_people(self, people: Sequence[Person], *, preferences: bool) -> None:
        clash: LiteralString = (
            "stopped_at = excluded.stopped_at, news_since = excluded.news_since,"
            " next_digest_at = excluded.next_digest_at, preferences = excluded.preferences"
            if preferences
            else "news_since = least(recipient.news_since, excluded.news_since)"
        )
        with self.database.transaction() as connection:
            for person in people:
                connection.execute(
                    "insert into recipient (recipient, address, stopped_at, links_valid_from, news_since,"
                    " next_digest_at, preferences) values (%s, %s, %s, %s, %s, %s, %s)"
                    " on conflict (recipient) do update set address = excluded.address,"
                    " links_valid_from = greatest(recipient.links_valid_from, excluded.links_valid_from), " + clash,
                    [
                        *(rows.text(person.recipient), rows.text(person.address), person.stopped_at),
                        *(person.links_valid_from, person.news_since, person.next_digest_at),
                        person.preferences.to_json(),
                    ],
                )

    def digests(self, after: UUID | None, limit: int) -> Sequence[DigestRecord]:
        with self.database.transaction() as connection:
            found = connection.execute(
                "select id, recipient, address, issued_at, sent_at, message_ids, numbers from digest where id > %s"
                " order by id limit %s",
                [after or _FIRST, limit],
            ).fetchall()
        return [
            DigestRecord(
                id, recipient, address, issued_at.astimezone(UTC), utc(sent_at), tuple(zip(ids, numbers, strict=True))
            )
            for id, recipient, address, issued_at, sent_at, ids, numbers in found
        ]

    def take_digests(self, digests: Sequence[DigestRecord]) -> None:
        with self.database.transaction() as connection:
            for digest in digests:
                connection.execute(
                    "insert into digest (id, recipient, address, issued_at, sent_at, message_ids, numbers)"
                    " values (%s, %s, %s, %s, %s, %s::uuid[], %s::int[])"
                    " on conflict (id) do update set address = excluded.address, issued_at = excluded.issued_at,"
                    " sent_at = excluded.sent_at, message_ids = excluded.message_ids, numbers = excluded.numbers"
                    " where digest.sent_at is null",  # what was sent does not change any more
                    [
                        *(digest.id, rows.text(digest.recipient), rows.text(digest.address)),
                        *(digest.issued_at, digest.sent_at),
                        *([id for id, _ in digest.deliveries], [number for _, number in digest.deliveries]),
                    ],
                )


def take_deliveries(connection: Connection, record: Record) -> None:
    """Give the message, which has its rows, the record's deliveries and histories. Raises psycopg.Error."""
    id = record.message.id
    # The order in which acts lock: the delivery's row first.
    for delivery in record.deliveries:
        was = connection.execute(
            "update delivery set state = %s, state_at = %s, reason = %s, attempts = %s, next_try_at = %s,"
            " announced_at = %s, lease = null where message_id = %s and number = %s returning recipient",
            [
                *(delivery.state.value, delivery.state_at, rows.text(delivery.reason), delivery.attempts),
                *(delivery.next_try_at, delivery.announced_at, id, delivery.number),
            ],
        ).fetchone()
        if was is not None and was[0] != rows.text(delivery.recipient):
            rows.set_recipient(connection, id, delivery.number, delivery.recipient, delivery.address)
    connection.execute("delete from event where message_id = %s", [id])
    for delivery, events in zip(record.deliveries, record.histories, strict=True):
        for event in events:
            rows.note(connection, id, delivery.number, event.at, event.kind, event.actor, event.detail)
    for delivery, readers in zip(record.deliveries, record.told, strict=False):
        if readers:
            connection.execute(
                "insert into announced_to (message_id, number, reader) select %s, %s, * from unnest(%s::text[])"
                " on conflict do nothing",
                [id, delivery.number, [rows.text(reader) for reader in readers]],
            )
