"""Claiming, settling and copying digests in the file store."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from portal.model.message import Delivery, DeliveryId, EventKind, Reader, domain, first_id, held_at, new_id
from portal.model.schedule import Preferences
from portal.stores import lifecycle
from portal.stores.files.database import from_micros
from portal.stores.files.mail import MailFiles
from portal.stores.files.rows import SqliteRows
from portal.stores.files.session import SqliteEngine
from portal.stores.journal import announced_line, digest_line
from portal.stores.records import Claims, Digest, DigestRecord, LinkOpen, Unsent
from portal.stores.shared.digests import (
    CLAIMABLE,
    DUE,
    SqlDigests,
    as_before,
    listed_before,
    settle_sent_notice,
    settle_unsent,
)
from portal.stores.shared.messages import FIRST
from portal.stores.shared.outcomes import Outcomes
from portal.stores.shared.rows import WHERE_KEY
from portal.stores.shared.session import Row, Session

_ROWS = SqliteRows()
_BEFORE_ALL = DeliveryId(FIRST, 0)
_ANNOUNCE = f"UPDATE delivery SET announced_at = :now, digest_id = :digest_id {WHERE_KEY} AND announced_at IS NULL"
_DIGEST = "id, recipient, address, issued_at, sent_at, is_notice"
_PUT = (
    f"INSERT INTO digest ({_DIGEST}) VALUES (:id, :recipient, :address, :issued_at, :sent_at, :is_notice) "
    "ON CONFLICT (id) DO UPDATE SET recipient = excluded.recipient, address = excluded.address, "
    "issued_at = excluded.issued_at, sent_at = excluded.sent_at, is_notice = excluded.is_notice"
)
# One statement: subqueries of RETURNING see the row that is added (https://www.sqlite.org/lang_returning.html).
_OPEN = (
    "INSERT INTO link_open (recipient, issued_at, message_id, number, at) "
    "VALUES (:recipient, :issued_at, :message_id, :number, :at) RETURNING ("
    "SELECT json_group_array(json_array(hex(message_id), number, at)) FROM ("
    "SELECT message_id, number, at FROM link_open WHERE recipient = :recipient AND issued_at = :issued_at "
    "AND at >= :since ORDER BY at DESC, id DESC LIMIT :at_most)) AS opened"
)


class FileDigests(SqlDigests):
    """See `Digests`. Deliveries whose mail file is missing are left out."""

    _jobs = "json_group_array(json_array(arguments, progress))"
    _released_from = (
        "SELECT json_group_array(h.value) FROM json_each(:identities) i CROSS JOIN json_each((SELECT"
        " json_group_array(header_from) FROM (SELECT m.header_from FROM delivery d"
        " CROSS JOIN message m ON m.id = d.message_id WHERE d.recipient = i.value AND d.state = 'released'"
        " ORDER BY d.message_id DESC LIMIT :most))) h"
    )

    def __init__(self, engine: SqliteEngine, mail: MailFiles, outcomes: Outcomes) -> None:
        super().__init__(engine, outcomes)
        self._mail = mail

    def claim(
        self,
        now: datetime,
        count: int,
        limit: int,
        *,
        only: Sequence[str] | None = None,
        ignore_schedule: bool = False,
        readers: Callable[[str], Reader] = Reader,
    ) -> Claims:
        self._outcomes.record_kept()
        lease, refused, may_take_over = uuid4(), {}, self._outcomes.may_take_over
        with self._engine.writing() as session:
            if only is None:
                found = session.many(
                    f"{CLAIMABLE} WHERE {DUE}{self._outcomes.and_free()} ORDER BY next_digest_at LIMIT :count",
                    now=now,
                    count=count,
                )
            else:
                rows = {name: session.one(CLAIMABLE + "WHERE recipient = :name", name=name) for name in only[:count]}
                refused = {
                    name: error
                    for name, row in rows.items()
                    if (error := lifecycle.unclaimable(row, now, ignore_schedule, may_take_over))
                }
                found = [row for name, row in rows.items() if row is not None and name not in refused]
            claimed = [
                Digest(
                    digest_id or new_id(now), recipient, address, now.replace(microsecond=0), (),
                    Preferences.from_json(preferences), failures, lease, readers(recipient),
                    is_taken_over=digest_id is not None, requested_at=asked_at,
                )
                for recipient, address, _, _, _, _, digest_id, preferences, failures, asked_at, _ in found
            ]  # fmt: skip
            claim = "SET lease = :lease, lease_until = :until, digest_id = :id WHERE recipient = :recipient"
            for digest in claimed:
                session.execute(f"UPDATE recipient {claim}", digest, until=now + lifecycle.LEASE)
                # The row must exist before the mail is sent: the recipient may unsubscribe before `settle` is called.
                session.execute(_PUT, digest, sent_at=None)
        return Claims(self._with_deliveries(claimed, limit, now), refused)

    def _with_deliveries(self, claimed: Sequence[Digest], limit: int, now: datetime) -> tuple[Digest, ...]:
        """Return as many of these digests, at least one, as together hold up to ``limit`` deliveries. End the claims of
        the others."""
        filled: list[Digest] = []
        missing: list[Delivery] = []
        remaining = limit
        with self._engine.reading() as session:
            listed = listed_before(session, [digest.id if digest.is_taken_over else None for digest in claimed])
        for digest in claimed:
            found, without_file = self._pending(digest.effective_reader, limit)
            if filled and len(found) > remaining:
                break
            earlier = digest.id if digest.is_taken_over else None
            unsent = as_before(found, earlier, listed)
            filled.append(replace(digest, deliveries=unsent, is_begun=earlier in listed))
            missing += without_file
            remaining -= len(found)
        if missing:
            # Mark them as announced; otherwise each claim would check their files again.
            with self._engine.writing() as session:
                for delivery in missing:
                    session.execute(_ANNOUNCE, delivery.key, now=now, digest_id=None)
        if len(filled) < len(claimed):
            self._settle([], [Unsent(digest) for digest in claimed[len(filled) :]], now)
        return tuple(filled)

    def _unannounced_since(self, reader: Reader, since: datetime, limit: int) -> Sequence[Delivery]:
        return self._pending(reader, limit, DeliveryId(first_id(since), 0))[0]

    def _pending(
        self, reader: Reader, limit: int, after: DeliveryId = _BEFORE_ALL
    ) -> tuple[list[Delivery], list[Delivery]]:
        """Return the deliveries to announce, and those that were skipped since their mail file is missing."""
        found: list[Delivery] = []
        without_file: list[Delivery] = []
        wanted, more = limit, True
        with self._engine.reading() as session:
            while wanted and more:
                deliveries = _oldest_unannounced(session, reader, wanted, after)
                more = len(deliveries) == wanted
                for delivery in deliveries:
                    has_file = self._mail.has(delivery.id)
                    (found if has_file else without_file).append(delivery)
                    wanted, after = wanted - has_file, delivery.key
        return found, without_file

    def _settle(self, sent: Sequence[Digest], unsent: Sequence[Unsent], now: datetime) -> None:
        with self._engine.writing() as session:
            for digest in sent:
                _settle_sent(session, digest, now)
            for each in unsent:
                settle_unsent(session, each, now)

    def unannounced(self, reader: Reader, limit: int) -> Sequence[Delivery]:
        return self._pending(reader, limit)[0]

    def _announced_by(
        self, session: Session, digest_id: UUID, recipient: str, announced: Sequence[Any]
    ) -> Sequence[Delivery]:
        found = _ROWS.of_keys(
            session,
            "SELECT message_id, number FROM delivery WHERE recipient = :recipient AND digest_id = :digest_id "
            "UNION SELECT message_id, number FROM announced_to WHERE digest_id = :digest_id AND reader = :recipient",
            recipient=recipient,
            digest_id=digest_id,
        )
        return [delivery for delivery in found if self._mail.has(delivery.id)]

    def _add_link_open(self, session: Session, opened: LinkOpen, values: Mapping[str, Any]) -> Sequence[Row]:
        [(found,)] = session.many(_OPEN, opened, opened.delivery, **values)
        rows = ((UUID(id), number, from_micros(at)) for id, number, at in json.loads(found))
        return list(rows)[::-1]

    def records(self, after: UUID | None, limit: int) -> Sequence[DigestRecord]:
        select = f"SELECT {_DIGEST} FROM digest WHERE id > :after ORDER BY id LIMIT :limit"
        announced = (
            "SELECT message_id, number FROM delivery WHERE recipient = :recipient AND digest_id = :id "
            "UNION SELECT message_id, number FROM announced_to WHERE digest_id = :id AND reader = :recipient "
            "ORDER BY message_id, number"
        )
        found = []
        with self._engine.reading() as session:
            rows = session.many(select, after=after or FIRST, limit=limit)
            for id, recipient, address, issued_at, sent_at, is_notice in rows:
                keys = tuple(DeliveryId(*key) for key in session.many(announced, recipient=recipient, id=id))
                found.append(DigestRecord(id, recipient, address, issued_at, sent_at, keys, bool(is_notice)))
        return found

    def import_records(self, digests: Sequence[DigestRecord]) -> None:
        with self._engine.writing() as session:
            for digest in digests:
                row = session.one("SELECT sent_at FROM digest WHERE id = :id", id=digest.id)
                if row is not None and row[0] is not None:
                    continue  # a digest that was sent does not change any more
                import_digest(session, digest)
                if digest.sent_at is not None:
                    session.journal(partial(digest_line, digest))


def find_unmarked(session: Session, since: datetime, local: Collection[str] | None) -> list[tuple[str, str, UUID]]:
    """See `FindUnmarked`."""
    rows = session.many(
        "SELECT d.recipient, d.address, min(d.message_id) AS message_id FROM delivery d "
        "LEFT JOIN recipient r USING (recipient) WHERE d.message_id >= :since_id AND d.state = 'held' "
        "AND d.announced_at IS NULL AND d.recipient <> '' AND r.news_since IS NULL GROUP BY d.recipient",
        since_id=first_id(since),
    )
    return [
        (recipient, address, oldest)
        for recipient, address, oldest in rows
        if local is None or recipient in local or domain(recipient) in local
    ]


def oldest_news(session: Session, reader: Reader) -> datetime | None:
    """Return when the oldest message was held that is not announced to this reader, or None."""
    found = _oldest_unannounced(session, reader, 1)
    return held_at(found[0].id) if found else None


def import_digest(session: Session, digest: DigestRecord) -> None:
    """Store a digest, and record that it announced its deliveries, but for those that were put into a later one."""
    session.execute(_PUT, digest)
    if digest.sent_at is None:
        return
    reannounced = f"SELECT 1 FROM event {WHERE_KEY} AND kind = '{EventKind.REANNOUNCED}' AND at > :now"
    for key in digest.deliveries:
        values = {"digest_id": digest.id, "now": digest.sent_at, "reader": digest.recipient}
        session.execute(
            f"UPDATE delivery SET digest_id = :digest_id, announced_at = CASE WHEN EXISTS ({reannounced}) "
            f"THEN announced_at ELSE coalesce(announced_at, :now) END {WHERE_KEY} "
            f"AND recipient = :reader AND NOT EXISTS (SELECT 1 FROM announced_to {WHERE_KEY} AND reader = :reader)",
            key,
            **values,
        )
        # A delivery held under another name was announced to this reader, but perhaps not to all its readers.
        session.execute(
            "INSERT INTO announced_to (message_id, number, reader, digest_id) "
            f"SELECT message_id, number, :reader, :digest_id FROM delivery {WHERE_KEY} AND (recipient <> :reader "
            f"OR EXISTS (SELECT 1 FROM announced_to {WHERE_KEY} AND reader = :reader)) AND NOT EXISTS ({reannounced}) "
            "ON CONFLICT (message_id, number, reader) DO UPDATE SET digest_id = excluded.digest_id",
            key,
            **values,
        )


def _oldest_unannounced(
    session: Session, reader: Reader, limit: int, after: DeliveryId = _BEFORE_ALL
) -> list[Delivery]:
    """Return deliveries that are held for a reader and not announced to them, oldest first."""
    not_to_reader = ""
    if not reader.is_plain:
        not_to_reader = (
            " AND NOT EXISTS (SELECT 1 FROM announced_to t "
            "WHERE t.message_id = d.message_id AND t.number = d.number AND t.reader = :reader)"
        )
    return _ROWS.oldest_of_each(
        session,
        reader.identities,
        "d.state = 'held' AND d.announced_at IS NULL "
        f"AND (d.message_id, d.number) > (:after_id, :after_number){not_to_reader}",
        limit,
        after_id=after.message_id,
        after_number=after.number,
        reader=reader.identity,
    )


def _settle_sent(session: Session, digest: Digest, now: datetime) -> None:
    reader = digest.effective_reader
    others: list[Delivery] = []
    for delivery in digest.deliveries:
        if reader.is_own(delivery.recipient):
            session.execute(_ANNOUNCE, delivery.key, now=now, digest_id=digest.id)
        else:
            others.append(delivery)
    if others:
        _announce_to(session, digest, others, now)
    if digest.deliveries:
        session.execute("UPDATE digest SET sent_at = :now, listed = NULL WHERE id = :id", now=now, id=digest.id)
        announced = tuple(delivery.key for delivery in digest.deliveries)
        record = DigestRecord(
            digest.id, digest.recipient, digest.address, digest.issued_at, now, announced, digest.is_notice
        )
        session.journal(partial(digest_line, record))
    elif not digest.is_taken_over:
        session.execute("DELETE FROM digest WHERE id = :id AND sent_at IS NULL", id=digest.id)
    if digest.is_notice:
        settle_sent_notice(session, digest)
        return
    session.execute(
        "UPDATE recipient SET news_since = :news_since, next_digest_at = NULL, lease = NULL, lease_until = NULL, "
        "digest_id = NULL, notice_id = NULL, failures = 0, failure = '', failed_at = NULL "
        "WHERE recipient = :recipient AND lease = :lease",
        digest,
        news_since=oldest_news(session, reader),
    )


def _announce_to(session: Session, digest: Digest, deliveries: Sequence[Delivery], now: datetime) -> None:
    """Record that a reader was notified of deliveries that are held under another name, or that others read as well.

    Mark those of which all readers were notified as announced.
    """
    reader = digest.effective_reader
    insert = (
        "INSERT OR REPLACE INTO announced_to (message_id, number, reader, digest_id) "
        "VALUES (:message_id, :number, :reader, :digest_id)"
    )
    for delivery in deliveries:
        session.execute(insert, delivery.key, reader=reader.identity, digest_id=digest.id)
        readers = set(reader.shared.get(delivery.recipient, (reader.identity,)))
        notified = session.many(f"SELECT reader FROM announced_to {WHERE_KEY}", delivery.key)
        if readers <= {name for (name,) in notified}:
            announce = f"UPDATE delivery SET announced_at = :now {WHERE_KEY} AND announced_at IS NULL"
            session.execute(announce, delivery.key, now=now)
    session.journal(partial(announced_line, reader.identity, [delivery.key for delivery in deliveries]))
