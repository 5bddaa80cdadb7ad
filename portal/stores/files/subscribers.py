"""The file store's people and what they wish: preferences, stopped digests, digests asked for, revoked links."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from portal.model.message import Reader, State
from portal.model.schedule import Preferences
from portal.stores import Asked, Person, address_of, reader_of
from portal.stores.files.database import from_micros, to_micros
from portal.stores.files.deliveries import queue_mail
from portal.stores.files.journal import person_line
from portal.stores.files.search import SqliteSearch

PERSON = (
    "SELECT recipient, address, stopped_at, links_valid_from, news_since, next_digest_at, preferences, failure, "
    "failed_at FROM recipient "
)


class SqliteWishes(SqliteSearch):
    """What `Store` says about a recipient's wishes."""

    def person(self, recipient: str) -> Person:
        with self.db.read() as connection:
            row = connection.execute(PERSON + "WHERE recipient = ?", (recipient,)).fetchone()
        return person_from(row) if row else Person(recipient, recipient, None, None, None, None)

    def set_digests_stopped(
        self, recipient: str, stopped_at: datetime | None, *, mail: tuple[str, bytes] | None = None
    ) -> bool:
        # Without a time the next digest after resuming is planned anew instead of going out at once.
        with self.db.write() as connection:
            changed = connection.execute(
                "INSERT INTO recipient (recipient, address, stopped_at) VALUES (?, ?, ?) "
                "ON CONFLICT (recipient) DO UPDATE SET stopped_at = excluded.stopped_at, next_digest_at = NULL "
                "WHERE (stopped_at IS NULL) <> (excluded.stopped_at IS NULL)",
                (recipient, recipient, None if stopped_at is None else to_micros(stopped_at)),
            ).rowcount
            if changed and mail and stopped_at is not None:
                queue_mail(connection, *mail, stopped_at)
            if changed:
                self._note_person(connection, recipient)
        return bool(changed)

    def set_preferences(self, recipient: str, preferences: Preferences) -> None:
        with self.db.write() as connection:
            connection.execute(
                "INSERT INTO recipient (recipient, address, preferences) VALUES (?, ?, ?) "
                "ON CONFLICT (recipient) DO UPDATE SET preferences = excluded.preferences, next_digest_at = NULL",
                (recipient, recipient, preferences.to_json()),
            )
            self._note_person(connection, recipient)

    def ask_for_digest(self, recipient: str | Reader, now: datetime, since: datetime) -> Asked:
        reader = reader_of(recipient)
        recipient = reader.identity
        if self.person(recipient).stopped_at is not None:
            return Asked.NOTHING
        wanted, again = self.unannounced(reader, 1), False
        if not wanted:
            last, mine = self.last_digest(recipient), set(reader.identities)
            kept = last.deliveries if last else ()
            wanted, again = [d for d in kept if d.state is State.HELD and d.recipient in mine], True
        if not wanted:
            return Asked.NOTHING
        at_micros, news_since = to_micros(now), to_micros(wanted[0].message.held_at)
        with self.db.write() as connection:
            asked = connection.execute(
                "INSERT INTO recipient (recipient, address, news_since, next_digest_at, asked_at) "
                "VALUES (?, ?, ?, ?, ?) ON CONFLICT (recipient) DO UPDATE SET "
                "news_since = coalesce(news_since, excluded.news_since), next_digest_at = excluded.next_digest_at, "
                "asked_at = excluded.asked_at "
                "WHERE asked_at IS NULL OR asked_at <= ?",
                (
                    recipient,
                    address_of(recipient, wanted[0].address),
                    news_since,
                    at_micros,
                    at_micros,
                    to_micros(since),
                ),
            ).rowcount
            if asked and again:
                connection.executemany(
                    "UPDATE delivery SET announced_at = NULL "
                    "WHERE message_id = ? AND number = ? AND recipient = ? AND state = 'held'",
                    [(d.id.bytes, d.number, d.recipient) for d in wanted],
                )
                connection.executemany(
                    "DELETE FROM announced_to WHERE message_id = ? AND number = ? AND reader = ?",
                    [(d.id.bytes, d.number, recipient) for d in wanted],
                )
        return Asked.DUE if asked else Asked.TOO_SOON

    def revoke_links(self, recipient: str, issued_before: datetime) -> None:
        with self.db.write() as connection:
            connection.execute(
                "INSERT INTO recipient (recipient, address, links_valid_from) VALUES (?, ?, ?) "
                "ON CONFLICT (recipient) DO UPDATE SET "
                "links_valid_from = max(coalesce(links_valid_from, 0), excluded.links_valid_from)",
                (recipient, recipient, to_micros(issued_before)),
            )
            self._note_person(connection, recipient)

    def _note_person(self, connection: sqlite3.Connection, recipient: str) -> None:
        person = person_from(connection.execute(PERSON + "WHERE recipient = ?", (recipient,)).fetchone())
        self.db.note(person_line(person))


def person_from(row: Sequence[Any]) -> Person:
    """A row of `PERSON`."""
    recipient, address, stopped_at, links_valid_from, news_since, next_digest_at, preferences, failure, failed_at = row
    return Person(
        recipient,
        address,
        at(stopped_at),
        at(links_valid_from),
        at(news_since),
        at(next_digest_at),
        Preferences.from_json(preferences),
        failure,
        at(failed_at),
    )


def at(micros: int | None) -> datetime | None:
    """A time as it is kept, if there is one."""
    return None if micros is None else from_micros(micros)
