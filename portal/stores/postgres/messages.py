"""Messages in PostgreSQL. One call of `hold_mail` holds a message in one round trip: its dedup key, row, deliveries and
the first chunk of its body, which is usually all of it. The row of `seen` decides which process was first."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from time import monotonic
from typing import IO, NamedTuple, cast
from uuid import UUID

import psycopg
import zstandard

from portal.model.errors import BodyDamaged, BodyMissing, NotFound, StoreUnavailable
from portal.model.message import Body, Export, Scan, Start, Tier, held_at, new_id
from portal.stores import compressors
from portal.stores.contracts import NO_STARTS
from portal.stores.lifecycle import RAISED_TOGETHER, with_verdict
from portal.stores.postgres import partitions, rows
from portal.stores.postgres.database import (
    INGEST_SECONDS,
    OTHER_SECONDS,
    Connection,
    Database,
    Raw,
    ask,
    begin,
    translated,
)
from portal.stores.postgres.session import PostgresEngine, PostgresSession
from portal.stores.records import Held, Record
from portal.stores.shared.facet_rows import mark_stale
from portal.stores.shared.messages import SqlMessages, import_deliveries, import_scan

log = logging.getLogger("quarantine.store")

_COPIES = b"select copies_of($1, $2, $3, $4, $5)"
_ADD_SECONDS = 3.0  # for all of `add`, retries included
_CHUNK_BYTES = 1 << 20


class PostgresMessages(SqlMessages):
    """See `Messages`."""

    _by_queue_id = "left(queue_id, 100) = left(:text, 100) and queue_id = :text"

    def __init__(self, database: Database) -> None:
        super().__init__(PostgresEngine(database), rows.ROWS)
        self._database = database

    def add(
        self,
        export: Export,
        body: Body,
        tier: Tier,
        announce: Collection[str],
        *,
        at: datetime | None = None,
        scan: Scan | None = None,
        starts: Mapping[str, Start] | None = NO_STARTS,
    ) -> Held:
        deadline = monotonic() + _ADD_SECONDS
        id = new_id(at)
        values = rows.hold_values(id, export, tier, announce, scan, starts)
        problem: Exception | None = None
        while (seconds_left := deadline - monotonic()) > 0:
            try:
                with translated():
                    try:
                        held = self._hold(id, values, _pieces(body), deadline)
                    except (psycopg.errors.CheckViolation, psycopg.errors.UndefinedTable) as error:
                        problem = error
                        partitions.make_partitions(
                            self._database, held_at(id).date(), min(seconds_left, INGEST_SECONDS)
                        )
                        continue
            except OSError as error:
                raise StoreUnavailable(f"the spooled mail cannot be read: {error.strerror or error}") from error
            if held is not None:
                update = partial(with_verdict, export=export, tier=tier)
                return Held(held, held != id, self._raise_tier(held, export.body_sha256, update, tier, deadline))
        raise StoreUnavailable("the message could not be held in time") from problem

    def _copies(self, id: UUID, body_sha256: bytes, tier: Tier, after: UUID, deadline: float) -> Sequence[UUID]:
        less_harmful = "{" + ",".join(tier.less_harmful) + "}"
        values: list[Raw] = [str(id), body_sha256, less_harmful, str(after), str(RAISED_TOGETHER)]
        with translated(), self._database.connection() as connection:
            (ids,) = ask(connection, _COPIES, values, max(0.001, deadline - monotonic()))
        return [UUID(id) for id in (ids or b"").decode().split()]

    @contextmanager
    def _writing_until(self, deadline: float) -> Iterator[PostgresSession]:
        with self._database.transaction(min(max(0.001, deadline - monotonic()), INGEST_SECONDS)) as connection:
            yield PostgresSession(connection)

    def _hold(self, id: UUID, values: list[Raw], pieces: Iterator[bytes], deadline: float) -> UUID | None:
        """Try once to hold the mail. Return the id under which it is held, None: try again.

        Raises psycopg.Error, OSError.
        """
        first, second = next(pieces), next(pieces, None)
        with self._database.connection() as connection:
            seconds_left = max(0.001, deadline - monotonic())
            seconds = min(seconds_left, INGEST_SECONDS)
            if second is not None:
                begin(connection, seconds)
            held, body_id = rows.hold(connection, values, first, seconds_left, seconds)
            if second is not None and body_id is not None:
                _add_chunks(connection, body_id, chain([second], pieces))
            return held

    def import_record(self, record: Record, body: Body | None) -> None:
        day = record.message.held_at.date()
        try:
            with translated():
                try:
                    self._import(record, body)
                except (psycopg.errors.CheckViolation, psycopg.errors.UndefinedTable):
                    partitions.make_partitions(self._database, day)
                    self._import(record, body)
        except OSError as error:
            raise StoreUnavailable(f"the spooled mail cannot be read: {error.strerror or error}") from error

    def _import(self, record: Record, body: Body | None) -> None:
        id = record.message.id
        with self._database.connection() as connection:
            begin(connection, OTHER_SECONDS)
            row = connection.execute("select tier from message where id = %s", [id]).fetchone()
            if row is not None and row[0] in record.message.verdict_tier.less_harmful:
                self._rows.put_verdict(PostgresSession(connection), record.message)
                mark_stale(PostgresSession(connection), [id])
            if row is None:
                if body is None:
                    raise NotFound("there is no such message")
                if not self._hold_record(connection, record, body):
                    # The same mail is held here under another id, to which the dedup key continues to belong.
                    record = replace(record, dedup_key=None)
                    self._hold_record(connection, record, body)
                if record.dedup_key is None:
                    for table in partitions.GENERATIONS:
                        connection.execute(f"delete from {table} where message_id = %s", [id])
            import_scan(PostgresSession(connection), self._rows, record, datetime.now(UTC))
            import_deliveries(PostgresSession(connection), self._rows, record)

    @staticmethod
    def _hold_record(connection: Connection, record: Record, body: Body) -> bool:
        """Hold the record's mail under the record's id. Return False if the same mail is held under another id.

        Raises psycopg.Error, OSError.
        """
        message = record.message
        values = rows.hold_values(message.id, record.export(), message.verdict_tier, (), message.scan)
        pieces = _pieces(body)
        first, held, body_id = next(pieces), None, None
        while held is None:  # if this removes the key of a message that was purged
            held, body_id = rows.hold(connection, values, first, 2 * OTHER_SECONDS, OTHER_SECONDS)
        if body_id is not None:
            _add_chunks(connection, body_id, pieces)
        return bool(held == message.id)

    def body(self, message_id: UUID) -> Iterator[bytes]:
        with self._database.transaction() as connection:
            row = connection.execute("select * from begin_body(%s)", [message_id], binary=True).fetchone()
        if row is None or row[0] is None:
            raise NotFound("there is no such message")
        body_id, sha256, size_bytes, data, is_last = row
        if data is None:
            raise BodyMissing("the mail of this message is gone")
        first = _Chunk(bytes(data), is_last)
        return self._unpacked(message_id, _Chunks(self._database, body_id, first), sha256, size_bytes)

    def _unpacked(self, message_id: UUID, chunks: _Chunks, sha256: bytes, size_bytes: int) -> Iterator[bytes]:
        digest, size = hashlib.sha256(), 0
        # A stream reader, since its output is bounded: a chunk of zeros unpacks to a thousand times its size.
        unpacked = zstandard.ZstdDecompressor().stream_reader(
            cast(IO[bytes], chunks), read_size=_CHUNK_BYTES, closefd=False
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


class _Chunk(NamedTuple):
    data: bytes
    is_last: bool


def _chunk(connection: Connection, body_id: UUID, n: int) -> _Chunk | None:
    """Return a chunk of a body, None if it does not exist."""
    row = connection.execute(
        "select data, not exists (select from body_chunk where body_id = %(body_id)s and n = %(n)s + 1)"
        " from body_chunk where body_id = %(body_id)s and n = %(n)s",
        {"body_id": body_id, "n": n},
        binary=True,
    ).fetchone()
    return None if row is None else _Chunk(bytes(row[0]), row[1])


class _Chunks:
    """A body's compressed chunks as the source of a zstd reader.

    The caller has read the first one, which is usually all of it, in the transaction that found the body. Each other
    chunk is fetched in its own transaction, so that a slow reader holds neither a connection nor locks.
    """

    def __init__(self, database: Database, body_id: UUID, first: _Chunk) -> None:
        self._database = database
        self._body_id = body_id
        self._next: _Chunk | None = first
        self._n = 0

    def read(self, size: int = -1) -> bytes:
        if self._n and self._next is not None and not self._next.is_last:
            with self._database.transaction() as connection:
                self._next = _chunk(connection, self._body_id, self._n)
        elif self._n:
            return b""
        self._n += 1
        return b"" if self._next is None else self._next.data


def _damaged(message_id: UUID) -> BodyDamaged:
    log.error("stored mail is damaged id=%s", message_id)
    return BodyDamaged(f"the stored mail {message_id} is damaged")


def _pieces(body: Body) -> Iterator[bytes]:
    """Yield the mail as one zstd stream in one or more pieces of at most `_CHUNK_BYTES`. Raises OSError."""
    compressor = compressors.own.plain(body.size_bytes)
    if body.size_bytes <= _CHUNK_BYTES // 2:  # half, since incompressible data grows a little
        yield compressor.compress(b"".join(body.chunks()))
        return
    packer = compressor.compressobj(size=body.size_bytes)
    packed = bytearray()
    for chunk in body.chunks():
        packed += packer.compress(chunk)
        while len(packed) > _CHUNK_BYTES:
            yield bytes(packed[:_CHUNK_BYTES])
            del packed[:_CHUNK_BYTES]
    packed += packer.flush()
    for start in range(0, len(packed), _CHUNK_BYTES):
        yield bytes(packed[start : start + _CHUNK_BYTES])


def _add_chunks(connection: Connection, body_id: UUID, pieces: Iterable[bytes]) -> None:
    """Store the pieces after the first one. Raises psycopg.Error, OSError."""
    for n, piece in enumerate(pieces, 1):
        connection.execute("insert into body_chunk (body_id, n, data) values (%s, %s, %b)", [body_id, n, piece])
