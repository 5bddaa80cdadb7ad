"""The file store's records in SQLite: everything kept, read out and taken in whole, for moving between stores."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from portal.model.message import Delivery, Event, EventKind, Message, Reader, State
from portal.model.schedule import NOTHING_CHOSEN
from portal.stores import DIGESTS_KEPT, DigestRecord, Person, Record
from portal.stores.files.database import from_micros, to_micros
from portal.stores.files.deliveries import add_event, deliveries_of, event_from, news_left, set_recipient
from portal.stores.files.journal import delivery_line, digest_line, person_line, told_line, verdict_line
from portal.stores.files.sign_ins import SqliteSignIns
from portal.stores.files.subscribers import PERSON, person_from
from portal.stores.files.verdicts import put_verdict

_BATCH = 500
_TOLD_FOR = DIGESTS_KEPT + timedelta(days=1)
_NO_WISHES = (None, None, NOTHING_CHOSEN)
_EVENT = "SELECT message_id, number, at, kind, actor, via, address, detail FROM event "


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
                for id, number, *event in connection.execute(
                    f"{_EVENT} WHERE message_id IN {among} ORDER BY rowid", keys
                ):
                    histories.setdefault((UUID(bytes=id), number), []).append(event_from(event))
                told: dict[tuple[UUID, int], list[str]] = {}
                for id, number, reader in connection.execute(
                    f"SELECT message_id, number, reader FROM announced_to WHERE message_id IN {among} ORDER BY reader",  # noqa: S608
                    keys,
                ):
                    told.setdefault((UUID(bytes=id), number), []).append(reader)
                samenesses = dict(
                    connection.execute(f"SELECT id, dedup_key FROM message WHERE id IN {among}", keys).fetchall()  # noqa: S608
                )
            finally:
                connection.execute("COMMIT")
        return {
            id: Record(
                found[0].message,
                samenesses[id.bytes],
                tuple(found),
                tuple(tuple(histories.get((id, delivery.number), ())) for delivery in found),
                tuple(tuple(told.get((id, delivery.number), ())) for delivery in found),
            )
            for id, found in deliveries.items()
        }

    def _take_deliveries(self, connection: sqlite3.Connection, record: Record) -> None:
        """Give the message, which has its rows, the record's deliveries and histories."""
        connection.execute("DELETE FROM event WHERE message_id = ?", (record.message.id.bytes,))
        for delivery, events in zip(record.deliveries, record.histories, strict=True):
            take_delivery(connection, delivery)
            for event in events:
                add_event(connection, delivery.id, delivery.number, event)
            if events or delivery.state is not State.HELD or delivery.announced_at:
                self.db.note(delivery_line(delivery, events))
        for delivery, readers in zip(record.deliveries, record.told, strict=False):
            for reader in readers:
                take_told(connection, reader, [(delivery.id, delivery.number)])
                self.db.note(told_line(reader, [(delivery.id, delivery.number)]))

    # ---- the audit journal's age

    def _shorten_journal(self, before: datetime, now: datetime) -> None:
        """Remove the journal's days that only tell of messages held before ``before`` and of digests that nobody asks
        for any more; what of them still holds is written down anew first."""
        until = min(before, now - _TOLD_FOR).date()
        with self.db.translated():
            old = [day for day in self.db.journal.days() if day < until]
        if old and self._carry_forward():
            with self.db.translated():
                self.db.journal.remove(old)

    def _carry_forward(self) -> bool:
        """Write what everybody wishes, and what is requested or releasing, into today's journal; False: it failed."""
        people: Sequence[Person] = [Person("", "", None, None, None, None)]

        def wishes() -> list[dict[str, Any]]:
            nonlocal people
            people = self.people(people[-1].recipient, _BATCH)
            return [person_line(person) for person in people if _wishes(person) != _NO_WISHES]

        while people:
            if not self.db.write_journal(wishes):
                return False
        with self.db.read() as connection:
            rows = connection.execute(
                "SELECT DISTINCT message_id FROM delivery WHERE state IN ('requested', 'releasing')"
            ).fetchall()
        ids = [UUID(bytes=id) for (id,) in rows]
        for start in range(0, len(ids), _BATCH):
            if not self.db.write_journal(partial(self._delivery_lines, ids[start : start + _BATCH])):
                return False
        return True

    def _delivery_lines(self, ids: Collection[UUID]) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        for record in self.records(ids).values():
            if any(event.kind is EventKind.RAISED for events in record.histories for event in events):
                lines.append(verdict_line(record.message))
            lines += map(delivery_line, record.deliveries, record.histories)
        return lines

    # ---- after a rebuild: what the audit journal says, which must not be written into it again

    def act_again(self, delivery: Delivery, events: Sequence[Event]) -> None:
        """Bring a delivery to what is said here, and add those events to its history that are not in it."""
        with self.db.write(durable=False) as connection:
            take_delivery(connection, delivery)
            known = {
                (at, kind, actor, via, address, detail)
                for _, _, at, kind, actor, via, address, detail in connection.execute(
                    f"{_EVENT} WHERE message_id = ? AND number = ?", (delivery.id.bytes, delivery.number)
                )
            }
            for event in events:
                actor = event.actor
                if (to_micros(event.at), event.kind, actor.who, actor.via, actor.address, event.detail) not in known:
                    add_event(connection, delivery.id, delivery.number, event)

    def judge_again(self, message_id: UUID, judge: Callable[[Message], Message]) -> None:
        """Give a message, if it is here, the verdict that it got when it came again."""
        with self.db.write(durable=False) as connection:
            deliveries = deliveries_of(connection, [message_id.bytes])
            if deliveries:
                judged = judge(deliveries[0].message)
                if deliveries[0].message.tier in judged.tier.milder:
                    put_verdict(connection, judged)

    def wish_again(self, person: Person) -> None:
        """Keep what a person wishes."""
        with self.db.write(durable=False) as connection:
            connection.execute(
                "INSERT INTO recipient (recipient, address, stopped_at, links_valid_from, preferences) "
                "VALUES (?, ?, ?, ?, ?) ON CONFLICT (recipient) DO UPDATE SET stopped_at = excluded.stopped_at, "
                "links_valid_from = excluded.links_valid_from, preferences = excluded.preferences",
                (
                    *(person.recipient, person.address, _micros(person.stopped_at)),
                    *(_micros(person.links_valid_from), person.preferences.to_json()),
                ),
            )

    def tell_again(self, reader: str, deliveries: Sequence[tuple[UUID, int]]) -> None:
        """Keep who was told of deliveries under another name, or with others."""
        with self.db.write(durable=False) as connection:
            take_told(connection, reader, deliveries)

    def announce_again(self, digest: DigestRecord) -> None:
        """Keep a digest that was sent."""
        with self.db.write(durable=False) as connection:
            take_digest(connection, digest)

    def settle_news(self) -> None:
        """Leave those with news who have some."""
        after = ""
        while people := self.people(after, _BATCH):
            after = people[-1].recipient
            with self.db.write(durable=False) as connection:
                for person in people:
                    if person.news_since is not None:
                        connection.execute(
                            "UPDATE recipient SET news_since = ? WHERE recipient = ?",
                            (news_left(connection, Reader(person.recipient)), person.recipient),
                        )

    # ---- people and digests

    def people(self, after: str, limit: int) -> Sequence[Person]:
        with self.db.read() as connection:
            rows = connection.execute(PERSON + "WHERE recipient > ? ORDER BY recipient LIMIT ?", (after, limit))
            return [person_from(row) for row in rows]

    def take_people(self, people: Sequence[Person], *, preferences: bool) -> None:
        clash = (
            "stopped_at = excluded.stopped_at, news_since = excluded.news_since, "
            "next_digest_at = excluded.next_digest_at, preferences = excluded.preferences"
            if preferences
            else "news_since = coalesce(min(news_since, excluded.news_since), news_since, excluded.news_since)"
        )
        with self.db.write() as connection:
            for person in people:
                before = connection.execute(PERSON + "WHERE recipient = ?", (person.recipient,)).fetchone()
                connection.execute(
                    "INSERT INTO recipient (recipient, address, stopped_at, links_valid_from, news_since, "  # noqa: S608
                    "next_digest_at, preferences) VALUES (?, ?, ?, ?, ?, ?, ?) "
                    "ON CONFLICT (recipient) DO UPDATE SET address = excluded.address, "
                    "links_valid_from = coalesce(max(links_valid_from, excluded.links_valid_from), links_valid_from, "
                    f"excluded.links_valid_from), {clash}",
                    (
                        *(person.recipient, person.address, _micros(person.stopped_at)),
                        *(_micros(person.links_valid_from), _micros(person.news_since)),
                        *(_micros(person.next_digest_at), person.preferences.to_json()),
                    ),
                )
                after = connection.execute(PERSON + "WHERE recipient = ?", (person.recipient,)).fetchone()
                now = person_from(after)
                if _wishes(now) != (_wishes(person_from(before)) if before else _NO_WISHES):
                    self.db.note(person_line(now))

    def digests(self, after: UUID | None, limit: int) -> Sequence[DigestRecord]:
        with self.db.read() as connection:
            rows = connection.execute(
                "SELECT id, recipient, address, issued_at, sent_at FROM digest WHERE id > ? ORDER BY id LIMIT ?",
                (after.bytes if after else b"", limit),
            ).fetchall()
            found = []
            for id, recipient, address, issued_at, sent_at in rows:
                told = connection.execute(
                    "SELECT message_id, number FROM delivery WHERE recipient = ?1 AND digest_id = ?2 "
                    "UNION SELECT message_id, number FROM announced_to WHERE digest_id = ?2 AND reader = ?1 "
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


def take_delivery(connection: sqlite3.Connection, delivery: Delivery) -> bool:
    """Bring a delivery's row to what is said here, with no claim; whether there is one."""
    key = (delivery.id.bytes, delivery.number)
    row = connection.execute("SELECT recipient FROM delivery WHERE message_id = ? AND number = ?", key).fetchone()
    if row is None:
        return False
    if row[0] != delivery.recipient:
        set_recipient(connection, delivery.id, delivery.number, delivery.recipient, delivery.address)
    connection.execute(
        "UPDATE delivery SET state = ?, state_at = ?, reason = ?, attempts = ?, next_try_at = ?, announced_at = ?, "
        "lease = NULL WHERE message_id = ? AND number = ?",
        (
            *(delivery.state.value, to_micros(delivery.state_at), delivery.reason, delivery.attempts),
            *(_micros(delivery.next_try_at), _micros(delivery.announced_at), *key),
        ),
    )
    return True


def take_digest(connection: sqlite3.Connection, digest: DigestRecord) -> None:
    """Keep a digest, and with its deliveries that it announced them."""
    connection.execute(
        "INSERT OR REPLACE INTO digest (id, recipient, address, issued_at, sent_at) VALUES (?, ?, ?, ?, ?)",
        (
            *(digest.id.bytes, digest.recipient, digest.address, to_micros(digest.issued_at)),
            _micros(digest.sent_at),
        ),
    )
    if digest.sent_at is None:
        return
    for message_id, number in digest.deliveries:
        key = (message_id.bytes, number, digest.recipient)
        connection.execute(
            "UPDATE delivery SET digest_id = ?, announced_at = coalesce(announced_at, ?) "
            "WHERE message_id = ?3 AND number = ?4 AND recipient = ?5 "
            "AND NOT EXISTS (SELECT 1 FROM announced_to WHERE message_id = ?3 AND number = ?4 AND reader = ?5)",
            (digest.id.bytes, to_micros(digest.sent_at), *key),
        )
        # What is held for another name was told to this reader, perhaps not to all.
        connection.execute(
            "INSERT INTO announced_to (message_id, number, reader, digest_id) "
            "SELECT message_id, number, ?3, ?4 FROM delivery WHERE message_id = ?1 AND number = ?2 "
            "AND (recipient <> ?3 OR EXISTS (SELECT 1 FROM announced_to t "
            "WHERE t.message_id = ?1 AND t.number = ?2 AND t.reader = ?3)) "
            "ON CONFLICT (message_id, number, reader) DO UPDATE SET digest_id = excluded.digest_id",
            (*key, digest.id.bytes),
        )


def take_told(connection: sqlite3.Connection, reader: str, deliveries: Sequence[tuple[UUID, int]]) -> None:
    """Keep who was told of deliveries, those that are here."""
    connection.executemany(
        "INSERT OR IGNORE INTO announced_to (message_id, number, reader) "
        "SELECT message_id, number, ? FROM delivery WHERE message_id = ? AND number = ?",
        [(reader, id.bytes, number) for id, number in deliveries],
    )


def _micros(at: datetime | None) -> int | None:
    return None if at is None else to_micros(at)


def _wishes(person: Person) -> tuple[Any, ...]:
    return person.stopped_at, person.links_valid_from, person.preferences
