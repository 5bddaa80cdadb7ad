"""The file store's messages and deliveries in SQLite: rows to values, lists, acts and releases."""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

from portal.model.errors import (
    AlreadyDone,
    NotFound,
    QuarantineError,
)
from portal.model.message import (
    Actor,
    Delivery,
    Event,
    EventKind,
    Flag,
    Message,
    Reader,
    State,
    Tier,
    held_at,
    identity,
    new_id,
    parse_id,
)
from portal.stores import LEASE, Store, reader_of, rules, symbols
from portal.stores.files import word_index
from portal.stores.files.database import Database, from_micros, to_micros
from portal.stores.files.journal import delivery_line
from portal.stores.search import recipient_term

log = logging.getLogger("quarantine.store")

_FOUND_AT_MOST = 100
_SURROGATES = re.compile("[\ud800-\udfff]")

_MESSAGE = (
    "m.id, m.tier, m.envelope_sender, m.subject, m.header_from, m.queue_id, m.message_id, m.action, m.score, "
    "m.client_ip, m.username, m.packed_symbols, m.flags, m.body_sha256, m.size_bytes, m.has_8bit"
)
_MESSAGE_COLUMNS = 16
COLUMNS = (  # what `delivery_from` takes
    f"SELECT {_MESSAGE}, d.number, d.recipient, d.address, d.state, d.state_at, d.reason, d.attempts, "
    "d.next_try_at, d.announced_at "
)
# CROSS JOIN keeps SQLite from turning the order round: deliveries are walked by their index, messages looked up.
_DELIVERIES = COLUMNS + "FROM delivery d CROSS JOIN message m ON m.id = d.message_id "


class SqliteDeliveries(Store):
    """What `Store` says about deliveries."""

    db: Database

    @abstractmethod
    def _has_mail(self, message_id: UUID) -> bool:
        """Whether the message's file is there. Raises OSError."""

    # ---- lists

    def delivery_for(self, recipient: str | Reader, message_id: UUID, number: int | None = None) -> Delivery:
        with self.db.read() as connection:
            row = connection.execute(
                _DELIVERIES + "WHERE d.message_id = ?1 AND d.recipient IN (SELECT value FROM json_each(?2)) "  # noqa: S608
                "AND (?3 IS NULL OR d.number = ?3) ORDER BY d.number LIMIT 1",
                (message_id.bytes, json.dumps(reader_of(recipient).identities), number),
            ).fetchone()
        if row is None:
            raise NotFound("there is no such message")
        return delivery_from(row)

    def released_from(self, recipients: Sequence[str], limit: int) -> Mapping[str, Sequence[str]]:
        found = {}
        with self.db.read() as connection:
            for recipient in recipients:
                rows = connection.execute(
                    "SELECT m.header_from FROM delivery d CROSS JOIN message m ON m.id = d.message_id "
                    "WHERE d.recipient = ? AND d.state = 'released' ORDER BY d.message_id DESC, d.number DESC LIMIT ?",
                    (recipient, limit),
                ).fetchall()
                if rows:
                    found[recipient] = [row[0] for row in rows]
        return found

    def delivery(self, message_id: UUID, number: int) -> Delivery:
        with self.db.read() as connection:
            return _one(connection, message_id, number)

    def deliveries(self, message_id: UUID) -> Sequence[Delivery]:
        with self.db.read() as connection:
            rows = connection.execute(
                _DELIVERIES + "WHERE d.message_id = ? ORDER BY d.number", (message_id.bytes,)
            ).fetchall()
        if not rows:
            raise NotFound("there is no such message")
        return [delivery_from(row) for row in rows]

    def find(self, text: str) -> Sequence[Message]:
        wanted = parse_id(text)
        with self.db.read() as connection:
            rows = connection.execute(
                f"SELECT {_MESSAGE} FROM message m WHERE m.id = ?",  # noqa: S608 - a constant
                (wanted.bytes if wanted else b"",),
            ).fetchall()
            rows += connection.execute(
                f"SELECT {_MESSAGE} FROM message m WHERE m.queue_id = ? ORDER BY m.id DESC LIMIT ?",  # noqa: S608
                (storable(text), _FOUND_AT_MOST - len(rows)),
            ).fetchall()
        return [_message_from(row) for row in rows]

    def history(self, message_id: UUID, number: int) -> Sequence[Event]:
        with self.db.read() as connection:
            _one(connection, message_id, number)
            rows = connection.execute(
                "SELECT at, kind, actor, via, address, detail FROM event WHERE message_id = ? AND number = ? "
                "ORDER BY rowid",
                (message_id.bytes, number),
            ).fetchall()
        return [Event(held_at(message_id), EventKind.HELD, Actor("system")), *map(event_from, rows)]

    def last_events(self, deliveries: Collection[tuple[UUID, int]]) -> Mapping[tuple[UUID, int], Sequence[Event]]:
        names = [value for id, number in deliveries for value in (id.bytes, number)]
        found: dict[tuple[UUID, int], list[Event]] = {}
        if not names:
            return found
        # With max() the other columns are those of its row (https://www.sqlite.org/lang_select.html#bareagg).
        statement = (
            f"WITH wanted (id, number) AS (VALUES {','.join(['(?,?)'] * (len(names) // 2))}) "  # noqa: S608
            "SELECT event.message_id, event.number, at, kind, actor, via, address, detail, max(event.rowid) AS place "
            "FROM wanted CROSS JOIN event ON event.message_id = wanted.id AND event.number = wanted.number "
            "GROUP BY event.message_id, event.number, kind ORDER BY place"
        )
        with self.db.read() as connection:
            for id, number, *row, _ in connection.execute(statement, names):
                found.setdefault((UUID(bytes=id), number), []).append(event_from(row))
        return found

    # ---- acts

    def assign(self, message_id: UUID, number: int, address: str, actor: Actor, now: datetime) -> Delivery:
        with self.db.write() as connection:
            delivery = _one(connection, message_id, number)
            if delivery.recipient:
                raise AlreadyDone("this delivery has a recipient", delivery)
            set_recipient(connection, message_id, number, identity(address), address)
            self._note(connection, message_id, number, now, EventKind.ASSIGNED, actor, address)
            return _one(connection, message_id, number)

    def move(
        self,
        message_id: UUID,
        number: int,
        to: State,
        allowed: Collection[State],
        actor: Actor,
        now: datetime,
        *,
        kind: EventKind,
        reason: str = "",
        mail: tuple[str, bytes] | None = None,
    ) -> Delivery:
        with self.db.write() as connection:
            delivery = _one(connection, message_id, number)
            if delivery.state not in allowed:
                raise AlreadyDone(f"this delivery is {delivery.state.value}", delivery)
            connection.execute(
                "UPDATE delivery SET state = ?, state_at = ?, reason = ?, next_try_at = NULL, lease = NULL "
                "WHERE message_id = ? AND number = ?",
                (to.value, to_micros(now), reason, message_id.bytes, number),
            )
            self._note(connection, message_id, number, now, kind, actor, reason)
            if mail is not None:
                queue_mail(connection, *mail, now)
            return _one(connection, message_id, number)

    @contextmanager
    def releasing(
        self,
        message_id: UUID,
        number: int,
        allowed: Collection[State],
        actor: Actor,
        now: datetime,
        answer: Callable[[], str] = str,
    ) -> Iterator[Delivery]:
        claim = os.urandom(16)
        delivery = self._claim_release(message_id, number, allowed, actor, now, claim)
        try:
            yield delivery
        except BaseException as error:
            try:
                self._record_failure(delivery, claim, actor, now, error)
            except QuarantineError as unrecorded:
                # The lease runs out and the delivery is tried again; what happened first is what the caller needs.
                log.error("release outcome not recorded id=%s number=%d: %s", message_id, number, unrecorded)
            raise
        with self.db.write() as connection:
            # Whoever holds the claim by now: the mail server has it.
            connection.execute(
                "UPDATE delivery SET state = 'released', state_at = ?, reason = '', next_try_at = NULL, lease = NULL "
                "WHERE message_id = ? AND number = ? AND state <> 'released'",
                (to_micros(now), message_id.bytes, number),
            )
            self._note(connection, message_id, number, now, EventKind.RELEASED, actor, answer())

    def _claim_release(
        self, message_id: UUID, number: int, allowed: Collection[State], actor: Actor, now: datetime, claim: bytes
    ) -> Delivery:
        with self.db.write() as connection:
            delivery = _one(connection, message_id, number)
            again = rules.is_retry(delivery, allowed, now)
            connection.execute(
                "UPDATE delivery SET state = 'releasing', state_at = ?, reason = ?, attempts = ?, next_try_at = ?, "
                "lease = ? WHERE message_id = ? AND number = ?",
                (
                    to_micros(delivery.state_at if again else now),
                    delivery.reason if again else "",
                    delivery.attempts + 1 if again else 1,
                    to_micros(now + LEASE),
                    claim,
                    message_id.bytes,
                    number,
                ),
            )
            if not again:
                self._note(connection, message_id, number, now, EventKind.RELEASING, actor)
            return _one(connection, message_id, number)

    def _record_failure(
        self, delivery: Delivery, claim: bytes, actor: Actor, now: datetime, error: BaseException
    ) -> None:
        failed = rules.failed_release(delivery, error, now)
        with self.db.write() as connection:
            changed = connection.execute(
                "UPDATE delivery SET state = ?, state_at = ?, reason = ?, next_try_at = ?, lease = NULL "
                "WHERE message_id = ? AND number = ? AND lease = ?",
                (
                    failed.state.value,
                    to_micros(failed.state_at),
                    failed.reason,
                    None if failed.next_try_at is None else to_micros(failed.next_try_at),
                    delivery.id.bytes,
                    delivery.number,
                    claim,
                ),
            )
            if changed.rowcount:
                self._note(connection, delivery.id, delivery.number, now, failed.kind, actor, failed.reason)

    def _note(
        self,
        connection: sqlite3.Connection,
        message_id: UUID,
        number: int,
        at: datetime,
        kind: EventKind,
        actor: Actor,
        detail: str = "",
    ) -> None:
        """Write into the history and the audit journal what was just done; the row is as it is to be."""
        event = Event(at, kind, actor, detail)
        add_event(connection, message_id, number, event)
        self.db.note(delivery_line(_one(connection, message_id, number), [event]))

    def due_releases(self, now: datetime, limit: int) -> Sequence[tuple[UUID, int]]:
        with self.db.read() as connection:
            rows = connection.execute(
                "SELECT message_id, number FROM delivery WHERE state = 'releasing' AND next_try_at <= ? "
                "ORDER BY next_try_at LIMIT ?",
                (to_micros(now), limit),
            ).fetchall()
        return [(UUID(bytes=id), number) for id, number in rows]


def storable(text: str) -> str:
    """What is looked for, with NUL, which is never kept, for the lone surrogates that a terminal may hand over: SQLite
    takes valid Unicode only."""
    return _SURROGATES.sub("\0", text)


def _one(connection: sqlite3.Connection, message_id: UUID, number: int) -> Delivery:
    row = connection.execute(
        _DELIVERIES + "WHERE d.message_id = ? AND d.number = ?", (message_id.bytes, number)
    ).fetchone()
    if row is None:
        raise NotFound("there is no such delivery")
    return delivery_from(row)


def deliveries_of(connection: sqlite3.Connection, message_ids: Sequence[bytes]) -> list[Delivery]:
    """The deliveries of these messages, by message and number."""
    rows = connection.execute(
        f"{_DELIVERIES} WHERE d.message_id IN ({', '.join('?' * len(message_ids))}) ORDER BY d.message_id, d.number",
        message_ids,
    )
    return [delivery_from(row) for row in rows]


def set_recipient(connection: sqlite3.Connection, message_id: UUID, number: int, recipient: str, address: str) -> None:
    """Give a delivery a recipient, by whom it is then found."""
    connection.execute(
        "UPDATE delivery SET recipient = ?, address = ? WHERE message_id = ? AND number = ?",
        (recipient, address, message_id.bytes, number),
    )
    rowid = connection.execute("SELECT rowid FROM message WHERE id = ?", (message_id.bytes,)).fetchone()[0]
    word_index.add(connection, rowid, [recipient_term(recipient)])


def add_event(connection: sqlite3.Connection, message_id: UUID, number: int, event: Event) -> None:
    """Write a line of a delivery's history."""
    actor = event.actor
    connection.execute(
        "INSERT INTO event (message_id, number, at, kind, actor, via, address, detail) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(message_id.bytes, number, to_micros(event.at), event.kind.value),
            *(actor.who, actor.via, actor.address, event.detail),
        ),
    )


def event_from(row: Sequence[Any]) -> Event:
    """Return the event of a row: at, kind, who, via, address, detail."""
    at, kind, who, via, address, detail = row
    return Event(from_micros(at), EventKind(kind), Actor(who, via, address), detail)


def queue_mail(connection: sqlite3.Connection, to: str, mail: bytes, now: datetime) -> None:
    """Put a mail of ours in the queue."""
    at = to_micros(now)
    connection.execute(
        "INSERT INTO outbox (id, recipient, mail, queued_at, next_try_at) VALUES (?, ?, ?, ?, ?)",
        (new_id(now).bytes, to, mail, at, at),
    )


def oldest_unannounced(
    connection: sqlite3.Connection, recipient: str, after: tuple[bytes, int], limit: int, reader: Reader
) -> list[Any]:
    """Rows for `delivery_from`: held for this identity and never announced to its reader, oldest first, beyond the key
    ``after``."""
    untold, values = "", [recipient, *after]
    if not reader.is_plain:
        untold = (
            "AND NOT EXISTS (SELECT 1 FROM announced_to t "
            "WHERE t.message_id = d.message_id AND t.number = d.number AND t.reader = ?) "
        )
        values.append(reader.identity)
    return connection.execute(
        _DELIVERIES + "WHERE d.recipient = ? AND d.state = 'held' AND d.announced_at IS NULL "
        f"AND (d.message_id, d.number) > (?, ?) {untold}ORDER BY d.message_id, d.number LIMIT ?",
        (*values, limit),
    ).fetchall()


def news_left(connection: sqlite3.Connection, reader: Reader) -> int | None:
    """When the oldest mail was held that its reader was not told of."""
    found: list[Any] = []
    for recipient in reader.identities:
        found += oldest_unannounced(connection, recipient, (b"", 0), 1, reader)
    return min((to_micros(delivery_from(row).message.held_at) for row in found), default=None)


def announced_in(connection: sqlite3.Connection, recipient: str, digest_id: bytes) -> list[Any]:
    """Rows for `delivery_from`: what a digest announced and is still kept, oldest first."""
    rows = connection.execute(
        _DELIVERIES + "WHERE d.recipient = ? AND d.digest_id = ?", (recipient, digest_id)
    ).fetchall()
    rows += connection.execute(
        COLUMNS + "FROM announced_to t CROSS JOIN delivery d ON d.message_id = t.message_id AND d.number = t.number "
        "CROSS JOIN message m ON m.id = d.message_id WHERE t.digest_id = ? AND t.reader = ?",
        (digest_id, recipient),
    ).fetchall()
    return sorted(rows, key=lambda row: (row[0], row[_MESSAGE_COLUMNS]))


def delivery_from(row: Sequence[Any]) -> Delivery:
    """A delivery from a row of the queries here."""
    number, recipient, address, state, state_at, reason, attempts, next_try_at, announced_at = row[_MESSAGE_COLUMNS:]
    return Delivery(
        message=_message_from(row[:_MESSAGE_COLUMNS]),
        number=number,
        recipient=recipient,
        address=address,
        state=State(state),
        state_at=from_micros(state_at),
        reason=reason,
        attempts=attempts,
        next_try_at=None if next_try_at is None else from_micros(next_try_at),
        announced_at=None if announced_at is None else from_micros(announced_at),
    )


def _message_from(row: Sequence[Any]) -> Message:
    id = UUID(bytes=row[0])
    _, tier, envelope_sender, subject, header_from, queue_id, message_id, action, score, client_ip, user = row[:11]
    packed, flags, body_sha256, size_bytes, has_8bit = row[11:]
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
        symbols=symbols.from_json(json.loads(packed)) if isinstance(packed, str) else symbols.unpack(packed),
        flags=frozenset(Flag(flag) for flag in flags.split()),
        body_sha256=body_sha256,
        size_bytes=size_bytes,
        has_8bit=bool(has_8bit),
    )
