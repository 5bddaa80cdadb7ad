"""Digests in PostgreSQL: claiming and settling them, and recording which deliveries were announced to which readers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID, uuid4

from portal.model.message import Delivery, DeliveryId, Reader, first_id, held_at, new_id
from portal.model.schedule import Preferences
from portal.stores import lifecycle
from portal.stores.postgres import partitions, rows
from portal.stores.postgres.database import Connection, Database
from portal.stores.postgres.session import PostgresEngine, connection_of, rows_of, text
from portal.stores.records import Claims, Digest, DigestRecord, LinkOpen, NoticeClaim, Unsent
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
from portal.stores.shared.session import Row, Session

_IMPORT = (
    "insert into digest (id, recipient, address, issued_at, sent_at, message_ids, numbers, is_notice) values (:id,"
    " :recipient, :address, :issued_at, :sent_at, cast(:ids as uuid[]), cast(:numbers as int[]), :is_notice)"
    " on conflict (id) do update"
    " set address = excluded.address, issued_at = excluded.issued_at, sent_at = excluded.sent_at,"
    " message_ids = excluded.message_ids, numbers = excluded.numbers"
    " where digest.sent_at is null"  # a digest that was sent does not change any more
)
# The row that is added is not visible in the table to the same statement.
_OPEN = (
    "with added as (insert into link_open (recipient, issued_at, message_id, number, at)"
    " values (:recipient, :issued_at, :message_id, :number, :at) returning message_id, number, at, id)"
    " select message_id, number, at from ("
    " select message_id, number, at, id from link_open"
    " where recipient = :recipient and issued_at = :issued_at and at >= :since"
    " union all select * from added order by at desc, id desc limit :at_most"
    ") opened order by at, id"
)


class PostgresDigests(SqlDigests):
    """See `Digests`."""

    _announced = ", message_ids, numbers"
    _jobs = "cast(json_agg(json_build_array(arguments, progress)) as text)"
    _released_from = (
        "select cast(json_agg(header_from) as text) from senders_released_to("
        "array(select json_array_elements_text(cast(:identities as json))), :most)"
    )

    def __init__(self, database: Database, outcomes: Outcomes) -> None:
        super().__init__(PostgresEngine(database), outcomes)
        self._database = database

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
                    f"{CLAIMABLE} where {DUE}{self._outcomes.and_free()}"
                    " order by next_digest_at limit :count for update skip locked",
                    now=now,
                    count=count,
                )
            else:
                row_of = {row[0]: row for row in _lock_recipients(session, CLAIMABLE, only[:count])}
                refused = {
                    recipient: why
                    for recipient in only[:count]
                    if (why := lifecycle.unclaimable(row_of.get(recipient), now, ignore_schedule, may_take_over))
                }
                found = [row_of[recipient] for recipient in only[:count] if recipient not in refused]
            claimed = [readers(row[0]) for row in found]
            complete, unannounced = _unannounced(session, claimed, limit)
            listed = listed_before(session, [row[6] for row in found])
            issued_at = now.replace(microsecond=0)
            # A retry has the same id, but a new date, since the age of links counts from the mail that is really sent.
            digests = tuple(
                Digest(
                    digest_id or new_id(now), recipient, address, issued_at,
                    as_before(unannounced.get(recipient, ()), digest_id, listed),
                    Preferences.from_json(preferences), failures, lease, reader,
                    is_taken_over=digest_id is not None, requested_at=asked_at, is_begun=digest_id in listed,
                )
                for reader, (recipient, address, _, _, _, _, digest_id, preferences, failures, asked_at, _) in zip(
                    claimed[:complete], found, strict=False
                )
            )  # fmt: skip
            if digests:
                _record_claims(connection_of(session), digests, lease, now)
        self._prepare_announced_to(digests)
        return Claims(digests, refused)

    def claim_notices(
        self, now: datetime, count: int, limit: int, *, readers: Callable[[str], Reader] = Reader
    ) -> Sequence[NoticeClaim]:
        claims = super().claim_notices(now, count, limit, readers=readers)
        self._prepare_announced_to([claim.notice for claim in claims])
        return claims

    def _unannounced_since(self, reader: Reader, since: datetime, limit: int) -> Sequence[Delivery]:
        where: LiteralString = "d.message_id >= %s and d.state = 'held' and d.announced_at is null"
        values: list[object] = [first_id(since)]
        if not reader.is_plain:
            where += (
                " and not exists (select from announced_to t"
                " where t.message_id = d.message_id and t.number = d.number and t.reader = %s)"
            )
            values.append(text(reader.identity))
        with self._engine.reading() as session:
            found = rows.merged(connection_of(session), reader, where, values, "d.message_id, d.number", limit)
            return rows.with_messages(session, found)

    def _prepare_announced_to(self, digests: Sequence[Digest]) -> None:
        """Create missing partitions for what will be recorded after sending: if that failed, the mail would be sent
        again."""
        if not all(digest.effective_reader.is_plain for digest in digests):
            partitions.make_missing(
                self._database, "announced_to", {held_at(d.id).date() for each in digests for d in each.deliveries}
            )

    def _settle(self, sent: Sequence[Digest], unsent: Sequence[Unsent], now: datetime) -> None:
        announced = [(digest, delivery) for digest in sent for delivery in digest.deliveries]
        ids, numbers = [delivery.id for _, delivery in announced], [delivery.number for _, delivery in announced]
        empty = [digest.id for digest in sent if not digest.deliveries and not digest.is_taken_over]
        with self._engine.writing() as session:
            connection = connection_of(session)
            if announced:
                read = [(digest.effective_reader, delivery) for digest, delivery in announced]
                _mark_announced(
                    connection, [delivery.key for reader, delivery in read if reader.is_own(delivery.recipient)], now
                )
                shared = [(reader, delivery) for reader, delivery in read if not reader.is_own(delivery.recipient)]
                if shared:
                    _record_announced_to(connection, shared, now)
            notices = [digest for digest in sent if digest.is_notice]
            sent = [digest for digest in sent if not digest.is_notice]
            recipients = [digest.recipient for digest in sent]
            settled = [*recipients, *(each.recipient for each in notices), *(each.digest.recipient for each in unsent)]
            # Locked first, so that an `add` that waits for one of these rows continues after this and sees the result.
            # They are also locked before rows of `digest`, as in a claim.
            _lock_recipients(session, "select from recipient ", settled)
            if announced:
                connection.execute(
                    "update digest g set sent_at = %s, listed = null, message_ids = u.ids, numbers = u.numbers from ("
                    " select digest, array_agg(id order by n) ids, array_agg(number order by n) numbers"
                    " from unnest(%s::uuid[], %s::uuid[], %s::int[]) with ordinality u (digest, id, number, n)"
                    " group by digest) u where g.id = u.digest",
                    [now, [digest.id for digest, _ in announced], ids, numbers],
                )
            if empty:
                connection.execute("delete from digest where id = any(%s) and sent_at is null", [empty])
            for notice in notices:
                settle_sent_notice(session, notice)
            if sent:
                oldest = _oldest_unannounced(connection, [digest.effective_reader for digest in sent])
                connection.execute(
                    "update recipient r set news_since = u.news, next_digest_at = null, lease = null,"
                    " lease_until = null, digest_id = null, notice_id = null, failures = 0, failure = '',"
                    " failed_at = null"
                    " from unnest(%s::text[], %s::uuid[], %s::timestamptz[]) u (recipient, lease, news)"
                    " where r.recipient = u.recipient and r.lease = u.lease",
                    [recipients, [digest.lease for digest in sent], [id and held_at(id) for id in oldest]],
                )
            for each in unsent:
                settle_unsent(session, each, now)

    def unannounced(self, reader: Reader, limit: int) -> Sequence[Delivery]:
        with self._engine.reading() as session:
            return _unannounced(session, [reader], limit)[1].get(reader.identity, [])

    def _announced_by(
        self, session: Session, digest_id: UUID, recipient: str, announced: Sequence[Any]
    ) -> Sequence[Delivery]:
        ids, numbers = announced
        keys = set(zip(ids, numbers, strict=True))
        found = rows.ROWS.of_messages(
            session, ids, "d.number in :numbers order by d.message_id, d.number", numbers=numbers
        )
        return [delivery for delivery in found if delivery.key in keys]

    def _add_link_open(self, session: Session, opened: LinkOpen, values: Mapping[str, Any]) -> Sequence[Row]:
        return session.many(_OPEN, opened, opened.delivery, **values)

    def records(self, after: UUID | None, limit: int) -> Sequence[DigestRecord]:
        with self._engine.reading() as session:
            found = session.many(
                "select id, recipient, address, issued_at, sent_at, message_ids, numbers, is_notice from digest"
                " where id > :after"
                " order by id limit :limit",
                after=after or FIRST,
                limit=limit,
            )
        return [
            DigestRecord(id, recipient, address, issued_at, sent_at, tuple(map(DeliveryId, ids, numbers)), is_notice)
            for id, recipient, address, issued_at, sent_at, ids, numbers, is_notice in found
        ]

    def import_records(self, digests: Sequence[DigestRecord]) -> None:
        with self._engine.writing() as session:
            for digest in digests:
                ids = [key.message_id for key in digest.deliveries]
                session.execute(_IMPORT, digest, ids=ids, numbers=[key.number for key in digest.deliveries])


def _record_claims(connection: Connection, digests: Sequence[Digest], lease: UUID, now: datetime) -> None:
    ids, recipients = [digest.id for digest in digests], [digest.recipient for digest in digests]
    connection.execute(
        "update recipient r set lease = %s, lease_until = %s, digest_id = u.id"
        " from unnest(%s::text[], %s::uuid[]) u (recipient, id) where r.recipient = u.recipient",
        [lease, now + lifecycle.LEASE, recipients, ids],
    )
    # Recorded before the mail is sent, since its recipient may unsubscribe before the sending is recorded.
    connection.execute(
        "insert into digest (id, recipient, address, issued_at)"
        " select *, %s::timestamptz from unnest(%s::uuid[], %s::text[], %s::text[]) on conflict (id)"
        " do update set address = excluded.address, issued_at = excluded.issued_at",
        [digests[0].issued_at, ids, recipients, [digest.address for digest in digests]],
    )


def find_unmarked(session: Session, since: datetime, local: Collection[str] | None) -> list[tuple[str, str, UUID]]:
    """See `FindUnmarked`."""
    found = connection_of(session).execute(
        "select distinct on (d.recipient) d.recipient, d.address, d.message_id from delivery d"
        " where d.message_id >= %s and d.state = 'held' and d.announced_at is null and d.recipient <> ''"
        " and (%s::text[] is null or d.recipient = any(%s) or substring(d.recipient from '[^@]*$') = any(%s))"
        " and not exists (select from recipient r where r.recipient = d.recipient and r.news_since is not null)"
        " order by d.recipient, d.message_id",
        [first_id(since), *[None if local is None else list(local)] * 3],
    )
    return [(recipient, address, oldest) for recipient, address, oldest in found]


def _lock_recipients(session: Session, select: str, recipients: Sequence[str]) -> list[Row]:
    """Return the rows of these recipients, locked in the same order as `hold_mail` locks them."""
    return session.many(
        select + 'where recipient in :recipients order by recipient collate "C" for update', recipients=list(recipients)
    )


def _ask_unannounced(connection: Connection, readers: Sequence[Reader], each_at_most: int, at_most: int) -> list[Row]:
    """Return rows of each reader's oldest unannounced deliveries, in order: the reader's number from 1, `DELIVERY`.

    Raises psycopg.Error.
    """
    read = [(n, identity, reader.identity) for n, reader in enumerate(readers, 1) for identity in reader.identities]
    is_plain = all(reader.is_plain for reader in readers)
    found = connection.execute(
        f"select n, {rows.DELIVERY} from unannounced(%s::int[], %s::text[], %s::text[], %s, %s)",
        [
            [n for n, _, _ in read],
            [text(identity) for _, identity, _ in read],
            None if is_plain else [reader for _, _, reader in read],
            each_at_most,
            at_most,
        ],
    )
    return rows_of(found.fetchall())


def _unannounced(session: Session, readers: Sequence[Reader], limit: int) -> tuple[int, dict[str, list[Delivery]]]:
    """Return (n, deliveries by identity): unannounced deliveries of the first n readers, at least one reader, at most
    ``limit`` deliveries."""
    found = _ask_unannounced(connection_of(session), readers, limit, limit)
    # The last reader of a full result may have more deliveries.
    complete = max(1, found[-1][0] - 1) if len(found) >= limit else len(readers)
    deliveries = rows.with_messages(session, list({tuple(row): None for n, *row in found if n <= complete}))
    by_key = {delivery.key: delivery for delivery in deliveries}
    unannounced: dict[str, list[Delivery]] = {}
    for n, id, number, *_ in found:
        if n <= complete and DeliveryId(id, number) in by_key:  # else its message was just purged
            unannounced.setdefault(readers[n - 1].identity, []).append(by_key[DeliveryId(id, number)])
    return complete, unannounced


def _oldest_unannounced(connection: Connection, readers: Sequence[Reader]) -> list[UUID | None]:
    """Return each reader's oldest message that was not announced to them, None if there is none.

    Raises psycopg.Error.
    """
    oldest: dict[int, UUID] = {}
    for n, id, *_ in _ask_unannounced(connection, readers, 1, sum(len(reader.identities) for reader in readers)):
        oldest.setdefault(n, id)
    return [oldest.get(n) for n in range(1, len(readers) + 1)]


def _mark_announced(connection: Connection, keys: Sequence[DeliveryId], now: datetime) -> None:
    """Mark deliveries as announced. Raises psycopg.Error."""
    ids, numbers = [id for id, _ in keys], [number for _, number in keys]
    if keys:
        connection.execute("select mark_announced(%s, %s::uuid[], %s::int[])", [now, ids, numbers])


def _record_announced_to(connection: Connection, announced: Sequence[tuple[Reader, Delivery]], now: datetime) -> None:
    """Record which readers were notified of deliveries for another identity than their own, or with several readers.

    Mark a delivery as announced once all its readers were notified. Raises psycopg.Error.
    """
    ids, numbers = [delivery.id for _, delivery in announced], [delivery.number for _, delivery in announced]
    # The locks serialize transactions that notify two readers of a delivery: the second one sees the first one's rows.
    connection.execute(
        "select from delivery d join unnest(%s::uuid[], %s::int[]) u (id, n) on d.message_id = u.id and d.number = u.n"
        " where d.message_id = any(%s) order by d.message_id, d.number for update of d",
        [ids, numbers, ids],
    )
    connection.execute(
        "insert into announced_to (message_id, number, reader) select * from unnest(%s::uuid[], %s::int[], %s::text[])"
        " on conflict do nothing",
        [ids, numbers, [reader.identity for reader, _ in announced]],
    )
    notified: dict[tuple[UUID, int], set[str]] = {}
    for id, number, reader in connection.execute(
        "select message_id, number, reader from announced_to where message_id = any(%s)", [list(set(ids))]
    ):
        notified.setdefault((id, number), set()).add(reader)
    complete = {
        delivery.key
        for who, delivery in announced
        if notified[delivery.key].issuperset(who.shared.get(delivery.recipient, ()))
    }
    _mark_announced(connection, sorted(complete), now)
