"""The file store's people in SQLite: who is told when, and their digests."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from portal.model.errors import NotFound
from portal.model.message import Delivery, Reader, domain, first_id, held_at, new_id
from portal.model.schedule import Preferences
from portal.stores import (
    LEASE,
    Claims,
    Digest,
    DigestRecord,
    Figures,
    Opening,
    Person,
    Unsent,
    address_of,
    reader_of,
    unclaimable,
)
from portal.stores.files.database import from_micros, to_micros
from portal.stores.files.deliveries import announced_in, delivery_from, news_left, oldest_unannounced, queue_mail
from portal.stores.files.journal import digest_line, told_line
from portal.stores.files.subscribers import PERSON, SqliteWishes, at, person_from

log = logging.getLogger("quarantine.store")

_PLANNED_AT_MOST = timedelta(days=10)  # once a week, and a day that a zone left out
_CLAIMED_AT_MOST = timedelta(days=1)
_OPENINGS_AT_MOST = 500
BATCH = 500  # rows a transaction may touch, so that ingest is let in between

_TALLY = "tally."
_HAS_NEWS = "news_since IS NOT NULL AND stopped_at IS NULL"
_CLAIMABLE = (
    "SELECT recipient, address, stopped_at, news_since, next_digest_at, lease_until, digest_id, preferences, failures, "
    "lease FROM recipient"
)
_ANNOUNCE = (
    "UPDATE delivery SET announced_at = ?, digest_id = ? WHERE message_id = ? AND number = ? AND announced_at IS NULL"
)


class SqlitePeople(SqliteWishes):
    """What `Store` says about openings and digests."""

    # ---- notes

    def remember(self, name: str, value: str, *, replace: bool = False) -> str:
        with self.db.write() as connection:
            if replace:
                connection.execute("INSERT OR REPLACE INTO setting (name, value) VALUES (?, ?)", (name, value))
            else:
                connection.execute("INSERT OR IGNORE INTO setting (name, value) VALUES (?, ?)", (name, value))
            return str(connection.execute("SELECT value FROM setting WHERE name = ?", (name,)).fetchone()[0])

    def recall(self, name: str) -> str | None:
        with self.db.read() as connection:
            row = connection.execute("SELECT value FROM setting WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else None

    def swap(self, name: str, old: str | None, new: str, *, mail: tuple[str, bytes, datetime] | None = None) -> bool:
        with self.db.write() as connection:
            if old is None:
                changed = connection.execute("INSERT OR IGNORE INTO setting (name, value) VALUES (?, ?)", (name, new))
            else:
                changed = connection.execute(
                    "UPDATE setting SET value = ? WHERE name = ? AND value = ?", (new, name, old)
                )
            swapped = bool(changed.rowcount)
            if swapped and mail:
                queue_mail(connection, *mail)
            return swapped

    def tally(self, amounts: Mapping[str, float]) -> None:
        # Not durable: they are only counts.
        with self.db.write(durable=False) as connection:
            connection.executemany(
                "INSERT INTO setting (name, value) VALUES (?, ?) "
                "ON CONFLICT (name) DO UPDATE SET value = CAST(value AS REAL) + CAST(excluded.value AS REAL)",
                [(_TALLY + name, repr(float(amount))) for name, amount in amounts.items()],
            )

    def tallies(self) -> Mapping[str, float]:
        with self.db.read() as connection:
            rows = connection.execute(
                "SELECT name, value FROM setting WHERE name >= ? AND name < ?", (_TALLY, _TALLY + "\U0010ffff")
            ).fetchall()
        return {name.removeprefix(_TALLY): float(value) for name, value in rows}

    def figures(self, now: datetime) -> Figures:
        due = f"FROM recipient WHERE {_HAS_NEWS} AND next_digest_at <= ?"
        with self.db.read() as connection:
            ask = connection.execute
            waiting = dict(
                ask("SELECT state, count(*) FROM delivery WHERE state IN ('requested', 'releasing') GROUP BY state")
            )
            mails = ask("SELECT count(*) FROM outbox").fetchone()[0]
            failing = ask("SELECT count(*) FROM recipient WHERE failed_at IS NOT NULL").fetchone()[0]
            digests, oldest, untried = ask(
                f"SELECT count(*), min(next_digest_at), min(next_digest_at) FILTER (WHERE failed_at IS NULL) {due}",
                (to_micros(now),),
            ).fetchone()
            beat = ask("SELECT value FROM setting WHERE name = 'store.heartbeat'").fetchone()
        return Figures(
            releases_waiting=waiting.get("releasing", 0),
            requests_waiting=waiting.get("requested", 0),
            mails_waiting=mails,
            digests_due=digests,
            digests_failing=failing,
            oldest_digest_due_at=at(oldest),
            oldest_untried_due_at=at(untried),
            heartbeat_at=from_micros(int(beat[0])) if beat else None,
        )

    # ---- openings

    def record_opening(
        self, recipient: str, issued_at: datetime, opening: Opening, since: datetime
    ) -> Sequence[Opening]:
        digest = (recipient, to_micros(issued_at))
        with self.db.write(durable=False) as connection:
            connection.execute(
                "INSERT INTO link_open (recipient, issued_at, message_id, number, at) VALUES (?, ?, ?, ?, ?)",
                (*digest, opening.message_id.bytes, opening.number, to_micros(opening.at)),
            )
            rows = connection.execute(
                "SELECT message_id, number, at FROM link_open WHERE recipient = ? AND issued_at = ? AND at >= ? "
                "ORDER BY at DESC, rowid DESC LIMIT ?",
                (*digest, to_micros(since), _OPENINGS_AT_MOST),
            ).fetchall()
        return [Opening(UUID(bytes=id), number, from_micros(at)) for id, number, at in reversed(rows)]

    # ---- digests

    def unscheduled(self, limit: int) -> Sequence[Person]:
        with self.db.read() as connection:
            rows = connection.execute(
                PERSON + f"WHERE {_HAS_NEWS} AND next_digest_at IS NULL LIMIT ?", (limit,)
            ).fetchall()
        return [person_from(row) for row in rows]

    def schedule(self, recipient: str, at: datetime, *, instead_of: datetime | None = None) -> None:
        # Not durable: whoever lost it by a power cut is unscheduled again.
        with self.db.write(durable=False) as connection:
            connection.execute(
                "UPDATE recipient SET next_digest_at = ? WHERE recipient = ? AND next_digest_at IS ?",
                (to_micros(at), recipient, None if instead_of is None else to_micros(instead_of)),
            )

    def mend_times(self, now: datetime) -> int:
        planned, claimed, at = (to_micros(now + much) for much in (_PLANNED_AT_MOST, _CLAIMED_AT_MOST, timedelta()))
        with self.db.write() as connection:
            mended = connection.execute(
                "UPDATE recipient SET next_digest_at = iif(next_digest_at <= ?1, next_digest_at, NULL), "
                "lease_until = iif(lease_until <= ?2, lease_until, NULL), "
                "asked_at = iif(asked_at <= ?3, asked_at, NULL) "
                "WHERE next_digest_at > ?1 OR lease_until > ?2 OR asked_at > ?3",
                (planned, claimed, at),
            ).rowcount
            mended += connection.execute(
                "UPDATE delivery SET next_try_at = ? WHERE state = 'releasing' AND next_try_at > ?", (at, claimed)
            ).rowcount
            mended += connection.execute(
                "UPDATE outbox SET next_try_at = ?1, queued_at = min(queued_at, ?1) WHERE next_try_at > ?2",
                (at, claimed),
            ).rowcount
        return mended

    def due_digests(self, now: datetime | None, limit: int, after: str = "") -> Sequence[str]:
        with self.db.read() as connection:
            if now is None:
                rows = connection.execute(
                    f"SELECT recipient FROM recipient WHERE recipient > ? AND {_HAS_NEWS} "  # noqa: S608 - a constant
                    "ORDER BY recipient LIMIT ?",
                    (after, limit),
                ).fetchall()
            else:
                rows = connection.execute(
                    f"SELECT recipient FROM recipient WHERE {_HAS_NEWS} AND next_digest_at <= ?1 "  # noqa: S608
                    "AND (lease_until IS NULL OR lease_until <= ?1) ORDER BY next_digest_at LIMIT ?2",
                    (to_micros(now), limit),
                ).fetchall()
        return [row[0] for row in rows]

    def claim_digests(
        self,
        now: datetime,
        count: int,
        limit: int,
        *,
        only: Sequence[str] | None = None,
        at_once: bool = False,
        readers: Callable[[str], Reader] = Reader,
    ) -> Claims:
        claim = os.urandom(16)
        with self.db.write() as connection:
            if only is None:
                found = connection.execute(
                    f"{_CLAIMABLE} WHERE {_HAS_NEWS} AND next_digest_at <= ?1 "
                    "AND (lease_until IS NULL OR lease_until <= ?1) ORDER BY next_digest_at LIMIT ?2",
                    (to_micros(now), count),
                ).fetchall()
                refused = {}
            else:
                rows = [
                    (who, connection.execute(f"{_CLAIMABLE} WHERE recipient = ?", (who,)).fetchone())
                    for who in only[:count]
                ]
                refused = {who: why for who, row in rows if (why := unclaimable(row, to_micros(now), at_once))}
                found = [row for who, row in rows if who not in refused]
            claimed = [
                Digest(
                    UUID(bytes=digest_id) if digest_id else new_id(now), recipient, address,
                    now.replace(microsecond=0), (), Preferences.from_json(preferences), failures, UUID(bytes=claim),
                    readers(recipient),
                )
                for recipient, address, _, _, _, _, digest_id, preferences, failures, _ in found
            ]  # fmt: skip
            connection.executemany(
                "UPDATE recipient SET lease = ?, lease_until = ?, digest_id = ? WHERE recipient = ?",
                [(claim, to_micros(now + LEASE), digest.id.bytes, digest.recipient) for digest in claimed],
            )
            # Known before the mail goes out: its recipient may unsubscribe before we note that it was sent.
            connection.executemany(
                "INSERT OR REPLACE INTO digest (id, recipient, address, issued_at) VALUES (?, ?, ?, ?)",
                [(d.id.bytes, d.recipient, d.address, to_micros(d.issued_at)) for d in claimed],
            )
        return Claims(self._filled(claimed, limit, now), refused)

    def _filled(self, claimed: Sequence[Digest], limit: int, now: datetime) -> tuple[Digest, ...]:
        """As many of these digests, at least one, as together hold up to ``limit`` deliveries; gives the rest back."""
        filled: list[Digest] = []
        gone: list[Delivery] = []
        room = limit
        for digest in claimed:
            found, passed_over = self._pending(_reader(digest), limit)
            if filled and len(found) > room:
                break
            filled.append(replace(digest, deliveries=tuple(found)))
            gone += passed_over
            room -= len(found)
        if gone:
            # Their file is gone. Never to be told, or they would be news for ever.
            with self.db.write() as connection:
                connection.executemany(_ANNOUNCE, [(to_micros(now), None, d.id.bytes, d.number) for d in gone])
        if len(filled) < len(claimed):
            self.settle_digests([], [Unsent(digest) for digest in claimed[len(filled) :]], now)
        return tuple(filled)

    def _pending(self, reader: Reader, limit: int) -> tuple[list[Delivery], list[Delivery]]:
        """What to announce, and what was passed over since its file is gone."""
        found: list[Delivery] = []
        passed_over: list[Delivery] = []
        with self.db.read() as connection:
            for identity in reader.identities:
                wanted, after, more = limit, (b"", 0), True
                while wanted and more:
                    rows = oldest_unannounced(connection, identity, after, wanted, reader)
                    more = len(rows) == wanted
                    for row in rows:
                        delivery = delivery_from(row)
                        there = self._has_mail(delivery.id)
                        (found if there else passed_over).append(delivery)
                        wanted, after = wanted - there, (delivery.id.bytes, delivery.number)
        found.sort(key=lambda delivery: (delivery.id, delivery.number))
        return found[:limit], passed_over

    def settle_digests(self, sent: Sequence[Digest], unsent: Sequence[Unsent], now: datetime) -> None:
        with self.db.write() as connection:
            for digest in sent:
                self._settle_sent(connection, digest, now)
            for each in unsent:
                _settle_unsent(connection, each, to_micros(now))

    def _settle_sent(self, connection: sqlite3.Connection, digest: Digest, now: datetime) -> None:
        reader = _reader(digest)
        own = [d for d in digest.deliveries if reader.is_own(d.recipient)]
        connection.executemany(_ANNOUNCE, [(to_micros(now), digest.id.bytes, d.id.bytes, d.number) for d in own])
        if len(own) < len(digest.deliveries):
            self._tell(connection, digest, [d for d in digest.deliveries if not reader.is_own(d.recipient)], now)
        if digest.deliveries:
            connection.execute("UPDATE digest SET sent_at = ? WHERE id = ?", (to_micros(now), digest.id.bytes))
            told = tuple((d.id, d.number) for d in digest.deliveries)
            self.db.note(
                digest_line(DigestRecord(digest.id, digest.recipient, digest.address, digest.issued_at, now, told))
            )
        else:
            connection.execute("DELETE FROM digest WHERE id = ? AND sent_at IS NULL", (digest.id.bytes,))
        connection.execute(
            "UPDATE recipient SET news_since = ?, next_digest_at = NULL, lease = NULL, lease_until = NULL, "
            "digest_id = NULL, failures = 0, failure = '', failed_at = NULL WHERE recipient = ? AND lease = ?",
            (news_left(connection, reader), digest.recipient, _claim(digest)),
        )

    def _tell(
        self, connection: sqlite3.Connection, digest: Digest, deliveries: Sequence[Delivery], now: datetime
    ) -> None:
        """Note that a reader was told of deliveries that are held for another name, or that others read as well; those
        that all were told of are announced."""
        reader = _reader(digest)
        connection.executemany(
            "INSERT OR REPLACE INTO announced_to (message_id, number, reader, digest_id) VALUES (?, ?, ?, ?)",
            [(d.id.bytes, d.number, reader.identity, digest.id.bytes) for d in deliveries],
        )
        for delivery in deliveries:
            readers = reader.shared.get(delivery.recipient, (reader.identity,))
            connection.execute(
                "UPDATE delivery SET announced_at = ?1 WHERE message_id = ?2 AND number = ?3 "
                "AND announced_at IS NULL AND NOT EXISTS (SELECT 1 FROM json_each(?4) WHERE value NOT IN "
                "(SELECT reader FROM announced_to WHERE message_id = ?2 AND number = ?3))",
                (to_micros(now), delivery.id.bytes, delivery.number, json.dumps(readers)),
            )
        self.db.note(told_line(reader.identity, [(d.id, d.number) for d in deliveries]))

    def failing(self, limit: int) -> Sequence[Person]:
        with self.db.read() as connection:
            rows = connection.execute(
                PERSON + "WHERE failed_at IS NOT NULL ORDER BY failed_at DESC LIMIT ?", (limit,)
            ).fetchall()
        return [person_from(row) for row in rows]

    def unannounced(self, recipient: str | Reader, limit: int) -> Sequence[Delivery]:
        return self._pending(reader_of(recipient), limit)[0]

    def pass_news_on(self, recipient: str, people: Sequence[str]) -> None:
        with self.db.write() as connection:
            row = connection.execute("SELECT news_since FROM recipient WHERE recipient = ?", (recipient,)).fetchone()
            if row is None or row[0] is None:
                return
            connection.executemany(
                "INSERT INTO recipient (recipient, address, news_since) VALUES (?1, ?1, ?2) "
                "ON CONFLICT (recipient) DO UPDATE SET news_since = coalesce(news_since, excluded.news_since)",
                [(person, row[0]) for person in people],
            )
            if recipient not in people:
                connection.execute(
                    "UPDATE recipient SET news_since = NULL, next_digest_at = NULL WHERE recipient = ?", (recipient,)
                )

    def untold(self, recipients: Collection[str], since: datetime) -> Sequence[str]:
        with self.db.read() as connection:
            rows = connection.execute(
                "SELECT value FROM json_each(?) WHERE EXISTS (SELECT 1 FROM delivery d WHERE d.recipient = value "
                "AND d.message_id >= ? AND d.state = 'held' AND d.announced_at IS NULL)",
                (json.dumps(list(recipients)), first_id(since).bytes),
            )
            return [row[0] for row in rows]

    def last_digest(self, recipient: str) -> Digest | None:
        with self.db.read() as connection:
            row = connection.execute(
                _DIGEST + "WHERE recipient = ? AND sent_at IS NOT NULL ORDER BY issued_at DESC, id DESC LIMIT 1",
                (recipient,),
            ).fetchone()
            return self._digest_from(connection, row) if row else None

    def digest(self, digest_id: UUID) -> Digest:
        with self.db.read() as connection:
            row = connection.execute(_DIGEST + "WHERE id = ?", (digest_id.bytes,)).fetchone()
            if row is None:
                raise NotFound("there is no such digest")
            return self._digest_from(connection, row)

    def _digest_from(self, connection: sqlite3.Connection, row: Sequence[Any]) -> Digest:
        id, recipient, address, issued_at, preferences = row
        deliveries = [delivery_from(found) for found in announced_in(connection, recipient, id)]
        kept = tuple(delivery for delivery in deliveries if self._has_mail(delivery.id))
        chosen = Preferences.from_json(preferences)
        return Digest(UUID(bytes=id), recipient, address, from_micros(issued_at), kept, chosen)

    def digest_recipient(self, digest_id: UUID) -> str:
        with self.db.read() as connection:
            row = connection.execute("SELECT recipient FROM digest WHERE id = ?", (digest_id.bytes,)).fetchone()
        if row is None:
            raise NotFound("there is no such digest")
        return str(row[0])

    def find_news(self, since: datetime, local: Collection[str] | None) -> int:
        with self.db.read() as connection:
            rows = connection.execute(
                "SELECT d.recipient, d.address, min(d.message_id) FROM delivery d "
                "LEFT JOIN recipient p USING (recipient) WHERE d.message_id >= ? AND d.state = 'held' "
                "AND d.announced_at IS NULL AND d.recipient <> '' "
                "AND p.news_since IS NULL GROUP BY d.recipient",
                (first_id(since).bytes,),
            ).fetchall()
        news = [
            (recipient, address_of(recipient, address), to_micros(held_at(UUID(bytes=oldest))))
            for recipient, address, oldest in rows
            if local is None or recipient in local or domain(recipient) in local
        ]
        for start in range(0, len(news), BATCH):
            with self.db.write() as connection:
                for entry in news[start : start + BATCH]:
                    mark_news(connection, *entry)
        return len(news)

    # ---- age

    def _forget_strangers(self) -> None:
        """Remove people of whom nothing is held, told or wished: made-up addresses would pile up for ever."""
        unknown = (
            "news_since IS NULL AND stopped_at IS NULL AND links_valid_from IS NULL AND preferences IS NULL "
            "AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.recipient = recipient.recipient)"
        )
        after: str | None = ""
        while after is not None:
            with self.db.read() as connection:
                names = connection.execute(
                    "SELECT recipient FROM recipient WHERE recipient > ? ORDER BY recipient LIMIT ?", (after, BATCH)
                ).fetchall()
                strangers = [
                    name
                    for name in names
                    if connection.execute(
                        f"SELECT 1 FROM recipient WHERE recipient = ? AND {unknown}",  # noqa: S608 - a constant
                        name,
                    ).fetchone()
                ]
            after = names[-1][0] if len(names) == BATCH else None
            if strangers:
                with self.db.write(durable=False) as connection:
                    connection.executemany(f"DELETE FROM recipient WHERE recipient = ? AND {unknown}", strangers)  # noqa: S608


_DIGEST = (
    "SELECT id, recipient, address, issued_at, "
    "(SELECT preferences FROM recipient WHERE recipient.recipient = digest.recipient) FROM digest "
)


def mark_news(connection: sqlite3.Connection, recipient: str, address: str, since_micros: int) -> None:
    """Note that there is something to tell a recipient; writes nothing when that is known."""
    connection.execute(
        "INSERT INTO recipient (recipient, address, news_since) VALUES (?, ?, ?) "
        "ON CONFLICT (recipient) DO UPDATE SET "
        "address = excluded.address, news_since = coalesce(news_since, excluded.news_since) "
        "WHERE address <> excluded.address OR news_since IS NULL",
        (recipient, address, since_micros),
    )


def _reader(digest: Digest) -> Reader:
    return digest.reader or Reader(digest.recipient)


def _claim(digest: Digest) -> bytes:
    return digest.lease.bytes if digest.lease else b""


def _settle_unsent(connection: sqlite3.Connection, each: Unsent, now: int) -> None:
    connection.execute(
        "UPDATE recipient SET lease = NULL, lease_until = ?1, "
        "next_digest_at = iif(next_digest_at <= ?2, coalesce(?3, next_digest_at), next_digest_at), "
        "failures = failures + (?4 <> ''), failure = iif(?4 = '', failure, ?4), "
        "failed_at = iif(?4 = '', failed_at, ?2) WHERE recipient = ?5 AND lease = ?6",
        (
            None if each.not_before is None else to_micros(each.not_before),
            now,
            None if each.due_at is None else to_micros(each.due_at),
            each.failure,
            each.digest.recipient,
            _claim(each.digest),
        ),
    )
