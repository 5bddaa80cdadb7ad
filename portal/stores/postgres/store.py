"""The PostgreSQL store: messages, deliveries and bodies on quarantine.sql. Any number of hosts may share one database.

Hides how a mail is held once: its sameness, message, deliveries and (usual) body are one call in one round trip, in
which the row of `seen` decides who was first. Days, people and connections have files of their own beside this.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from time import monotonic
from typing import IO, LiteralString, cast
from uuid import UUID, uuid4

import psycopg
import zstandard

from portal.model.errors import (
    AlreadyDone,
    BodyDamaged,
    BodyMissing,
    NotFound,
    QuarantineError,
    StoreUnavailable,
)
from portal.model.message import (
    Actor,
    Body,
    Delivery,
    Event,
    EventKind,
    Export,
    Filter,
    Message,
    Reader,
    State,
    Tier,
    held_at,
    identity,
    new_id,
    parse_id,
)
from portal.stores import LEASE, Held, Page, Purged, Record, reader_of, rules, search
from portal.stores.postgres import days, rows, verdicts
from portal.stores.postgres.database import INGEST_SECONDS, OTHER_SECONDS, Connection, Database, begin, translated
from portal.stores.postgres.records import PostgresRecords, take_deliveries
from portal.stores.postgres.search import find_page
from portal.stores.postgres.subscribers import queue_mail
from portal.stores.verdict import RAISED_TOGETHER

log = logging.getLogger("quarantine.store")

_ADD_SECONDS = 3.0  # in all, whatever happens
_CHUNK_BYTES = 1 << 20
_ZSTD_LEVEL = 3
_FOUND_AT_MOST = 100
_own = threading.local()  # each thread's compressor: making one takes longer than compressing 10 KB


class PostgresStore(PostgresRecords):
    """A `Store` in PostgreSQL 15 or later."""

    @classmethod
    def open(cls, url: str, *, create: bool = False) -> PostgresStore:
        """Connect; with ``create`` make or upgrade the schema first. Raises StoreUnavailable, StoreMisfit."""
        store = cls(Database(url, create=create))
        if create:
            days.make_days(store.database, datetime.now(UTC))
            days.build_indexes(store.database)
        return store

    def close(self) -> None:
        self.database.close()

    # ---- holding

    def add(
        self, export: Export, body: Body, tier: Tier, announce: Collection[str], *, at: datetime | None = None
    ) -> Held:
        deadline = monotonic() + _ADD_SECONDS
        id = new_id(at)
        values = rows.hold_values(id, export, body, tier, announce)
        while (left := deadline - monotonic()) > 0:
            try:
                with translated():
                    try:
                        held = self._hold(id, values, _pieces(body), deadline)
                    except (psycopg.errors.CheckViolation, psycopg.errors.UndefinedTable):
                        days.make_day(self.database, held_at(id).date(), min(left, INGEST_SECONDS))
                        continue
            except OSError as error:
                raise StoreUnavailable(f"the spooled mail cannot be read: {error.strerror or error}") from error
            if held is not None:
                return Held(held, held != id, self._raise_tier(held, export, tier, deadline))
        raise StoreUnavailable("the message could not be held in time")

    def _raise_tier(self, held: UUID, export: Export, tier: Tier, deadline: float) -> tuple[UUID, ...]:
        """Give ``held`` and all copies of the same bytes this verdict if theirs is milder.

        Not in the transaction that holds the mail: the sender's retry goes on with what a failure leaves undone.
        """
        raised: list[UUID] = []
        after = UUID(int=0)
        while tier.milder:
            left = max(0.001, deadline - monotonic())
            with translated(), self.database.connection() as connection:
                ids = verdicts.copies(connection, held, export, tier, after, left)
                if ids:
                    begin(connection, min(left, INGEST_SECONDS))
                    raised += verdicts.raise_tier(connection, ids, export, tier, datetime.now(UTC))
            if len(ids) < RAISED_TOGETHER:
                break
            after = ids[-1]
        return tuple(raised)

    def _hold(self, id: UUID, values: list[rows.Raw], pieces: Iterator[bytes], deadline: float) -> UUID | None:
        """One try; the id under which the mail is held. Raises psycopg.Error, OSError."""
        first, second = next(pieces), next(pieces, None)
        with self.database.connection() as connection:
            left = max(0.001, deadline - monotonic())
            seconds = min(left, INGEST_SECONDS)
            if second is not None:
                begin(connection, seconds)
            held, place = rows.hold(connection, values, first, left, seconds)
            if second is not None and place is not None:
                _add_chunks(connection, place, chain([second], pieces))
            return held

    def take(self, record: Record, body: Body | None) -> None:
        day = record.message.held_at.date()
        try:
            with translated():
                try:
                    self._take(record, body)
                except (psycopg.errors.CheckViolation, psycopg.errors.UndefinedTable):
                    days.make_day(self.database, day)
                    self._take(record, body)
        except OSError as error:
            raise StoreUnavailable(f"the spooled mail cannot be read: {error.strerror or error}") from error

    def _take(self, record: Record, body: Body | None) -> None:
        id = record.message.id
        with self.database.connection() as connection:
            begin(connection, OTHER_SECONDS)
            row = connection.execute("select tier from message where id = %s", [id]).fetchone()
            if row is not None and row[0] in record.message.tier.milder:
                verdicts.put_verdict(connection, record.message)
            if row is None:
                if body is None:
                    raise NotFound("there is no such message")
                if not self._put(connection, record, body):
                    # The same mail is held here under another id, by which it stays known.
                    record = replace(record, sameness=None)
                    self._put(connection, record, body)
                if record.sameness is None:
                    connection.execute("delete from seen where message_id = %s", [id])
            take_deliveries(connection, record)

    @staticmethod
    def _put(connection: Connection, record: Record, body: Body) -> bool:
        """Hold the record's mail unless the same is held. Raises psycopg.Error, OSError."""
        values = rows.hold_values(record.message.id, record.export(), body, record.message.tier, ())
        pieces = _pieces(body)
        held, place = rows.hold(connection, values, next(pieces), 2 * OTHER_SECONDS, OTHER_SECONDS)
        if place is not None:
            _add_chunks(connection, place, pieces)
        return bool(held == record.message.id)

    def body(self, message_id: UUID) -> Iterator[bytes]:
        with self.database.transaction() as connection:
            row = connection.execute(
                "select body_id, body_sha256, size_bytes from message where id = %s", [message_id]
            ).fetchone()
            if row is None:
                raise NotFound("there is no such message")
            body_id, sha256, size_bytes = row
            if not connection.execute("select from body_chunk where body_id = %s and n = 0", [body_id]).rowcount:
                raise BodyMissing("the mail of this message is gone")
        return self._unpacked(message_id, body_id, sha256, size_bytes)

    def _unpacked(self, message_id: UUID, body_id: UUID, sha256: bytes, size_bytes: int) -> Iterator[bytes]:
        digest, size = hashlib.sha256(), 0
        # A reader with a bounded output: a chunk of zeros unpacks to a thousand times its size.
        unpacked = zstandard.ZstdDecompressor().stream_reader(
            cast(IO[bytes], _Chunks(self.database, body_id)), read_size=_CHUNK_BYTES, closefd=False
        )
        while True:
            try:
                piece = unpacked.read(_CHUNK_BYTES)
            except zstandard.ZstdError as error:
                raise _damaged(message_id) from error
            if not piece:
                break
            digest.update(piece)
            size += len(piece)
            yield piece
        if digest.digest() != sha256 or size != size_bytes:
            raise _damaged(message_id)

    # ---- lists

    def list_for(
        self,
        recipient: str | Reader,
        states: Collection[State],
        limit: int,
        before: tuple[UUID, int] | None = None,
        *,
        words: str = "",
    ) -> Page:
        if not states or not reader_of(recipient).identities:
            return Page((), None)
        return self.search(search.of_reader(recipient, states, words), limit, before)

    def search(self, wanted: Filter, limit: int, before: tuple[UUID, int] | None = None) -> Page:
        return find_page(self.database, wanted, limit, before)

    def delivery_for(self, recipient: str | Reader, message_id: UUID, number: int | None = None) -> Delivery:
        with self.database.transaction() as connection:
            return rows.one_delivery(
                connection,
                "where d.message_id = %s and d.recipient = any(%s) and d.number = coalesce(%s, d.number)"
                " order by d.number limit 1",
                [message_id, list(reader_of(recipient).identities), number],
            )

    def released_from(self, recipients: Sequence[str], limit: int) -> Mapping[str, Sequence[str]]:
        with self.database.transaction() as connection:
            released = connection.execute(
                "select u.recipient, d.message_id from unnest(%s::text[]) u (recipient) cross join lateral ("
                " select message_id from delivery where recipient = u.recipient and state = 'released'"
                " order by message_id desc limit %s) d order by u.recipient, d.message_id desc",
                [list(recipients), limit],
            ).fetchall()
            if not released:
                return {}
            headers = dict(
                connection.execute(
                    "select id, header_from from message where id = any(%s)", [list({id for _, id in released})]
                ).fetchall()
            )
        found: dict[str, list[str]] = {}
        for recipient, id in released:
            if id in headers:  # else retention just took it
                found.setdefault(recipient, []).append(headers[id])
        return found

    def delivery(self, message_id: UUID, number: int) -> Delivery:
        with self.database.transaction() as connection:
            return _one(connection, message_id, number)

    def deliveries(self, message_id: UUID) -> Sequence[Delivery]:
        with self.database.transaction() as connection:
            found = rows.deliveries(connection, "where d.message_id = %s order by d.number", [message_id])
        if not found:
            raise NotFound("there is no such message")
        return found

    def find(self, text: str) -> Sequence[Message]:
        with self.database.transaction() as connection:
            id = parse_id(text)
            found = rows.messages(connection, "where id = %s", [id]) if id else []
            found += rows.messages(
                connection,
                "where left(queue_id, 100) = left(%s, 100) and queue_id = %s order by id desc limit %s",
                [rows.text(text), rows.text(text), _FOUND_AT_MOST - len(found)],
            )
        return found

    def history(self, message_id: UUID, number: int) -> Sequence[Event]:
        with self.database.transaction() as connection:
            _one(connection, message_id, number)
            found = connection.execute(
                "select at, kind, actor, via, address, detail from event where message_id = %s and number = %s"
                " order by seq",
                [message_id, number],
            ).fetchall()
        return [Event(held_at(message_id), EventKind.HELD, Actor("system")), *map(rows.event_from, found)]

    def last_events(self, deliveries: Collection[tuple[UUID, int]]) -> Mapping[tuple[UUID, int], Sequence[Event]]:
        wanted = set(deliveries)
        found: dict[tuple[UUID, int], list[Event]] = {}
        if not wanted:
            return found
        with self.database.transaction() as connection:
            # By id alone, so that the days they belong to are known before the statement is run.
            for id, number, _, *row in connection.execute(
                "select * from (select distinct on (message_id, number, kind)"
                " message_id, number, seq, at, kind, actor, via, address, detail"
                " from event where message_id = any(%s) order by message_id, number, kind, seq desc) as latest"
                " order by seq",
                [list({id for id, _ in wanted})],
            ):
                if (id, number) in wanted:
                    found.setdefault((id, number), []).append(rows.event_from(row))
        return found

    # ---- acts

    def assign(self, message_id: UUID, number: int, address: str, actor: Actor, now: datetime) -> Delivery:
        with self.database.transaction() as connection:
            delivery = _one(connection, message_id, number, lock=True)
            if delivery.recipient:
                raise AlreadyDone("this delivery has a recipient", delivery)
            rows.set_recipient(connection, message_id, number, identity(address), address)
            rows.note(connection, message_id, number, now, EventKind.ASSIGNED, actor, address)
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
        with self.database.transaction() as connection:
            delivery = _one(connection, message_id, number, lock=True)
            if delivery.state not in allowed:
                raise AlreadyDone(f"this delivery is {delivery.state.value}", delivery)
            connection.execute(
                "update delivery set state = %s, state_at = %s, reason = %s, next_try_at = null, lease = null"
                " where message_id = %s and number = %s",
                [to.value, now, rows.text(reason), message_id, number],
            )
            rows.note(connection, message_id, number, now, kind, actor, reason)
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
        lease = uuid4()
        delivery = self._claim_release(message_id, number, allowed, actor, now, lease)
        try:
            yield delivery
        except BaseException as error:
            try:
                self._record_failure(delivery, actor, now, lease, error)
            except QuarantineError as unrecorded:
                # The lease runs out and the delivery is tried again; what happened first is what the caller needs.
                log.error("release outcome not recorded id=%s number=%d: %s", message_id, number, unrecorded)
            raise
        with self.database.transaction() as connection:
            # Whoever holds the claim by now: the mail server has it.
            connection.execute(
                "update delivery set state = 'released', state_at = %s, reason = '', next_try_at = null, lease = null"
                " where message_id = %s and number = %s and state <> 'released'",
                [now, message_id, number],
            )
            rows.note(connection, message_id, number, now, EventKind.RELEASED, actor, answer())

    def _claim_release(
        self, message_id: UUID, number: int, allowed: Collection[State], actor: Actor, now: datetime, lease: UUID
    ) -> Delivery:
        with self.database.transaction() as connection:
            delivery = _one(connection, message_id, number, lock=True)
            again = rules.is_retry(delivery, allowed, now)
            connection.execute(
                "update delivery set state = 'releasing', state_at = %s, reason = %s, attempts = %s, next_try_at = %s,"
                " lease = %s where message_id = %s and number = %s",
                [
                    delivery.state_at if again else now,
                    delivery.reason if again else "",
                    delivery.attempts + 1 if again else 1,
                    now + LEASE,
                    lease,
                    message_id,
                    number,
                ],
            )
            if not again:
                rows.note(connection, message_id, number, now, EventKind.RELEASING, actor)
            return _one(connection, message_id, number)

    def _record_failure(
        self, delivery: Delivery, actor: Actor, now: datetime, lease: UUID, error: BaseException
    ) -> None:
        failed = rules.failed_release(delivery, error, now)
        reason = rows.text(failed.reason)
        with self.database.transaction() as connection:
            changed = connection.execute(
                "update delivery set state = %s, state_at = %s, reason = %s, next_try_at = %s, lease = null"
                " where message_id = %s and number = %s and lease = %s",
                [
                    failed.state.value,
                    failed.state_at,
                    reason,
                    failed.next_try_at,
                    delivery.id,
                    delivery.number,
                    lease,
                ],
            ).rowcount
            if changed:
                rows.note(connection, delivery.id, delivery.number, now, failed.kind, actor, reason)

    def due_releases(self, now: datetime, limit: int) -> Sequence[tuple[UUID, int]]:
        with self.database.transaction() as connection:
            return connection.execute(
                "select message_id, number from delivery where state = 'releasing' and next_try_at <= %s"
                " order by next_try_at limit %s",
                [now, limit],
            ).fetchall()

    # ---- age

    def purge(self, before: datetime, now: datetime) -> Purged:
        """See `Store.purge`. Whole UTC days only: what is left of the day of ``before`` stays until that is over."""
        purged = days.purge_days(self.database, before)
        self.sweep(now)
        return purged

    def prepare_days(self, now: datetime) -> None:
        days.make_days(self.database, now)


class _Chunks:
    """A body's compressed chunks as a zstd reader's source, each fetched by itself: a slow reader holds nothing."""

    def __init__(self, database: Database, body_id: UUID) -> None:
        self._database = database
        self._body_id = body_id
        self._n = 0

    def read(self, size: int = -1) -> bytes:
        with self._database.transaction() as connection:
            row = connection.execute(
                "select data from body_chunk where body_id = %s and n = %s", [self._body_id, self._n], binary=True
            ).fetchone()
        self._n += 1
        return bytes(row[0]) if row else b""


def _damaged(message_id: UUID) -> BodyDamaged:
    log.error("stored mail is damaged id=%s", message_id)
    return BodyDamaged(f"the stored mail {message_id} is damaged")


def _pieces(body: Body) -> Iterator[bytes]:
    """The mail as one zstd stream, at least one piece, each at most a chunk. Raises OSError."""
    if not hasattr(_own, "compressor"):
        _own.compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
    if body.size_bytes <= _CHUNK_BYTES // 2:  # what does not compress grows a little
        yield _own.compressor.compress(b"".join(body.chunks()))
        return
    packer = _own.compressor.compressobj(size=body.size_bytes)
    waiting = bytearray()
    for chunk in body.chunks():
        waiting += packer.compress(chunk)
        while len(waiting) > _CHUNK_BYTES:
            yield bytes(waiting[:_CHUNK_BYTES])
            del waiting[:_CHUNK_BYTES]
    waiting += packer.flush()
    for start in range(0, len(waiting), _CHUNK_BYTES):
        yield bytes(waiting[start : start + _CHUNK_BYTES])


def _add_chunks(connection: Connection, place: UUID, pieces: Iterable[bytes]) -> None:
    """Put the pieces behind the first one. Raises psycopg.Error, OSError."""
    for n, piece in enumerate(pieces, 1):
        connection.execute("insert into body_chunk (body_id, n, data) values (%s, %s, %b)", [place, n, piece])


def _one(connection: Connection, message_id: UUID, number: int, *, lock: bool = False) -> Delivery:
    """Raises NotFound. ``lock``: as it is once nobody else is changing it, and kept so until the transaction's end."""
    tail: LiteralString = " for update" if lock else ""
    return rows.one_delivery(connection, "where d.message_id = %s and d.number = %s" + tail, [message_id, number])
