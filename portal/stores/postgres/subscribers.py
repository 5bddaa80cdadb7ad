"""The PostgreSQL store's people and what they wish: preferences, stopped digests, digests asked for, revoked links."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, LiteralString

from portal.model.message import Reader, State, new_id
from portal.model.schedule import Preferences
from portal.stores import Asked, Person, Store, address_of, reader_of
from portal.stores.postgres.database import Connection, Database
from portal.stores.postgres.rows import utc

PERSON: LiteralString = (
    "select recipient, address, stopped_at, links_valid_from, news_since, next_digest_at, preferences, failure,"
    " failed_at from recipient "
)


class PostgresWishes(Store):
    """What `Store` says about a recipient's wishes."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def person(self, recipient: str) -> Person:
        with self.database.transaction() as connection:
            row = connection.execute(PERSON + "where recipient = %s", [recipient]).fetchone()
        return person_from(row) if row else Person(recipient, recipient, None, None, None, None)

    def set_digests_stopped(
        self, recipient: str, stopped_at: datetime | None, *, mail: tuple[str, bytes] | None = None
    ) -> bool:
        # Without a time the next digest after resuming is planned anew instead of going out at once.
        with self.database.transaction() as connection:
            changed = connection.execute(
                "insert into recipient (recipient, address, stopped_at) values (%s, %s, %s)"
                " on conflict (recipient) do update set stopped_at = excluded.stopped_at, next_digest_at = null"
                " where (recipient.stopped_at is null) <> (excluded.stopped_at is null)",
                [recipient, recipient, stopped_at],
            ).rowcount
            if changed and mail and stopped_at is not None:
                queue_mail(connection, *mail, stopped_at)
        return bool(changed)

    def set_preferences(self, recipient: str, preferences: Preferences) -> None:
        with self.database.transaction() as connection:
            connection.execute(
                "insert into recipient (recipient, address, preferences) values (%s, %s, %s)"
                " on conflict (recipient) do update set preferences = excluded.preferences, next_digest_at = null",
                [recipient, recipient, preferences.to_json()],
            )

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
        with self.database.transaction() as connection:
            asked = connection.execute(
                "insert into recipient (recipient, address, news_since, next_digest_at, asked_at)"
                " values (%s, %s, %s, %s, %s) on conflict (recipient) do update set"
                " news_since = coalesce(recipient.news_since, excluded.news_since),"
                " next_digest_at = excluded.next_digest_at, asked_at = excluded.asked_at"
                " where recipient.asked_at is null or recipient.asked_at <= %s",
                [recipient, address_of(recipient, wanted[0].address), wanted[0].message.held_at, now, now, since],
            ).rowcount
            if asked and again:
                ids, numbers = [d.id for d in wanted], [d.number for d in wanted]
                connection.execute(
                    "update delivery d set announced_at = null from unnest(%s::uuid[], %s::int[]) u (id, number)"
                    " where d.message_id = u.id and d.number = u.number and d.message_id = any(%s)"
                    " and d.recipient = any(%s) and d.state = 'held'",
                    [ids, numbers, ids, list(mine)],
                )
                connection.execute(
                    "delete from announced_to t using unnest(%s::uuid[], %s::int[]) u (id, number)"
                    " where t.message_id = u.id and t.number = u.number and t.message_id = any(%s) and t.reader = %s",
                    [ids, numbers, ids, recipient],
                )
        return Asked.DUE if asked else Asked.TOO_SOON

    def revoke_links(self, recipient: str, issued_before: datetime) -> None:
        with self.database.transaction() as connection:
            connection.execute(
                "insert into recipient (recipient, address, links_valid_from) values (%s, %s, %s)"
                " on conflict (recipient) do update"
                " set links_valid_from = greatest(recipient.links_valid_from, excluded.links_valid_from)",
                [recipient, recipient, issued_before],
            )


def person_from(row: Sequence[Any]) -> Person:
    """A row of `PERSON`."""
    recipient, address, stopped_at, links_valid_from, news_since, next_digest_at, preferences, *failed = row
    return Person(
        recipient,
        address,
        utc(stopped_at),
        utc(links_valid_from),
        utc(news_since),
        utc(next_digest_at),
        Preferences.from_json(preferences),
        failed[0],
        utc(failed[1]),
    )


def queue_mail(connection: Connection, to: str, mail: bytes, now: datetime) -> None:
    """Put a mail of ours into the queue. Raises psycopg.Error."""
    connection.execute(
        "insert into outbox (id, address, mail, queued_at, next_try_at) values (%s, %s, %b, %s, %s)",
        [new_id(now), to, mail, now, now],
    )
