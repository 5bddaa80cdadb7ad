"""The file store's records in SQLite: everything kept, read out and taken in whole, for moving between stores."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from portal.message import Actor, Delivery, Event, State
from portal.stores import DigestRecord, Person, Record
from portal.stores.journal import delivery_line, digest_line, person_line
from portal.stores.sqlite import from_micros, to_micros
from portal.stores.sqlite_deliveries import add_event, deliveries_of
from portal.stores.sqlite_people import PERSON, person_from
from portal.stores.sqlite_sign_ins import SqliteSignIns

_EVENT = "SELECT message_id, number, at, what, who, via, address, detail FROM event "


class SqliteRecords(SqliteSignIns):
    """What `Store` says about moving, but for the mail files."""

    def message_ids(self, after: UUID | None, limit: int) -> Sequence[UUID]:
        with self.db.read() as connection:
            rows = connection.execute(
                "SELECT id FROM message WHERE id > ? ORDER BY id LIMIT ?", (after.bytes if after else b"", limit)
            ).fetchall()
        return [UUID(bytes=id) for (id,) in rows]

    def records(self, ids: Collection[UUID]) -> Mapping[UUID, Record]:
        keys = [id.bytes for id in ids]
        among = f"({', '.join('?' * len(keys))})"
        deliveries: dict[UUID, list[Delivery]] = {}
        histories: dict[tuple[UUID, int], list[Event]] = {}
        with self.db.read() as connection:
            connection.execute("BEGIN")  # one moment for all three; nothing is written
            try:
                for delivery in deliveries_of(connection, keys):
                    deliveries.setdefault(delivery.id, []).append(delivery)
                for id, number, at, what, who, via, address, detail in connection.execute(
                    f"{_EVENT} WHERE message_id IN {among} ORDER BY rowid", keys
                ):
                    event = Event(from_micros(at), what, Actor(who, via, address), detail)
                    histories.setdefault((UUID(bytes=id), number), []).append(event)
                samenesses = dict(
                    connection.execute(f"SELECT id, sameness FROM message WHERE id IN {among}", keys).fetchall()  # noqa: S608
                )
            finally:
                connection.execute("COMMIT")
        return {
            id: Record(
                found[0].message,
                samenesses[id.bytes],
                tuple(found),
                tuple(tuple(histories.get((id, delivery.number), ())) for delivery in found),
            )
            for id, found in deliveries.items()
        }

    def _take_deliveries(self, connection: sqlite3.Connection, record: Record) -> None:
        """Give the message, which has its rows, the record's deliveries and histories."""
        connection.execute("DELETE FROM event WHERE message_id = ?", (record.message.id.bytes,))
        for delivery, events in zip(record.deliveries, record.histories, strict=True):
            connection.execute(
                "UPDATE delivery SET recipient = ?, address = ?, state = ?, state_at = ?, reason = ?, attempts = ?, "
                "next_try_at = ?, announced_at = ?, claim = NULL WHERE message_id = ? AND number = ?",
                (
                    *(delivery.recipient, delivery.address, delivery.state.value, to_micros(delivery.state_at)),
                    *(delivery.reason, delivery.attempts, _micros(delivery.next_try_at)),
                    *(_micros(delivery.announced_at), delivery.id.bytes, delivery.number),
                ),
            )
            for event in events:
                add_event(connection, delivery.id, delivery.number, event)
            if events or delivery.state is not State.HELD or delivery.announced_at:
                self.db.note(delivery_line(delivery, events))

    # ---- people and digests

    def people(self, after: str, limit: int) -> Sequence[Person]:
        with self.db.read() as connection:
            rows = connection.execute(PERSON + "WHERE recipient > ? ORDER BY recipient LIMIT ?", (after, limit))
            return [person_from(row) for row in rows]

    def take_people(self, people: Sequence[Person], *, preferences: bool) -> None:
        clash = (
            "stopped_at = excluded.stopped_at, news_since = excluded.news_since, "
            "next_digest_at = excluded.next_digest_at"
            if preferences
            else "news_since = coalesce(min(news_since, excluded.news_since), news_since, excluded.news_since)"
        )
        with self.db.write() as connection:
            for person in people:
                before = connection.execute(PERSON + "WHERE recipient = ?", (person.recipient,)).fetchone()
                connection.execute(
                    "INSERT INTO person (recipient, address, stopped_at, links_valid_from, news_since, next_digest_at) "  # noqa: S608
                    "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (recipient) DO UPDATE SET address = excluded.address, "
                    "links_valid_from = coalesce(max(links_valid_from, excluded.links_valid_from), links_valid_from, "
                    f"excluded.links_valid_from), {clash}",
                    (
                        *(person.recipient, person.address, _micros(person.stopped_at)),
                        *(_micros(person.links_valid_from), _micros(person.news_since)),
                        _micros(person.next_digest_at),
                    ),
                )
                after = connection.execute(PERSON + "WHERE recipient = ?", (person.recipient,)).fetchone()
                if after[2:4] != (before[2:4] if before else (None, None)):
                    self.db.note(person_line(person_from(after)))

    def digests(self, after: UUID | None, limit: int) -> Sequence[DigestRecord]:
        with self.db.read() as connection:
            rows = connection.execute(
                "SELECT id, recipient, address, issued_at, sent_at FROM digest WHERE id > ? ORDER BY id LIMIT ?",
                (after.bytes if after else b"", limit),
            ).fetchall()
            found = []
            for id, recipient, address, issued_at, sent_at in rows:
                told = connection.execute(
                    "SELECT message_id, number FROM delivery WHERE recipient = ? AND digest_id = ? "
                    "ORDER BY message_id, number",
                    (recipient, id),
                )
                deliveries = tuple((UUID(bytes=message_id), number) for message_id, number in told)
                at = None if sent_at is None else from_micros(sent_at)
                found.append(DigestRecord(UUID(bytes=id), recipient, address, from_micros(issued_at), at, deliveries))
        return found

    def take_digests(self, digests: Sequence[DigestRecord]) -> None:
        with self.db.write() as connection:
            for digest in digests:
                sent = connection.execute("SELECT sent_at FROM digest WHERE id = ?", (digest.id.bytes,)).fetchone()
                if sent is not None and sent[0] is not None:
                    continue  # it is here: what was sent does not change any more
                take_digest(connection, digest)
                if digest.sent_at is not None:
                    self.db.note(digest_line(digest))


def take_digest(connection: sqlite3.Connection, digest: DigestRecord) -> None:
    """Keep a digest, and with its deliveries that it announced them."""
    connection.execute(
        "INSERT OR REPLACE INTO digest (id, recipient, address, issued_at, sent_at) VALUES (?, ?, ?, ?, ?)",
        (
            *(digest.id.bytes, digest.recipient, digest.address, to_micros(digest.issued_at)),
            _micros(digest.sent_at),
        ),
    )
    if digest.sent_at is not None:
        connection.executemany(
            "UPDATE delivery SET digest_id = ?, announced_at = coalesce(announced_at, ?) "
            "WHERE message_id = ? AND number = ?",
            [
                (digest.id.bytes, to_micros(digest.sent_at), message_id.bytes, number)
                for message_id, number in digest.deliveries
            ],
        )


def _micros(at: datetime | None) -> int | None:
    return None if at is None else to_micros(at)
