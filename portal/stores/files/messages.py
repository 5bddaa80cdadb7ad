"""Messages in the file store: first a durable file with the message and all its metadata is written, then its rows."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

from portal.model.errors import BodyDamaged, BodyMissing, NotFound, QuarantineError, RulesInUse
from portal.model.message import (
    FACTS,
    WAITING,
    Actor,
    Body,
    DeliveryId,
    Event,
    Export,
    Flag,
    Scan,
    Start,
    State,
    Tier,
    held_at,
    identity,
    new_id,
    scanned_tier,
)
from portal.model.record import record
from portal.stores import scans, search, symbols
from portal.stores.contracts import NO_STARTS
from portal.stores.files import word_index
from portal.stores.files.database import LOCK_WAIT_SECONDS, Database, to_micros
from portal.stores.files.mail import DamagedFile, MailFiles
from portal.stores.files.rows import SqliteRows
from portal.stores.files.session import SqliteEngine, SqliteSession
from portal.stores.journal import verdict_line
from portal.stores.lifecycle import RAISED_TOGETHER, address_of, with_verdict
from portal.stores.records import Held, Record
from portal.stores.shared.facet_rows import mark_stale
from portal.stores.shared.jobs import add_scan
from portal.stores.shared.messages import SqlMessages, import_deliveries, import_scan
from portal.stores.shared.rows import MESSAGE, WHERE_KEY, add_event, columns

log = logging.getLogger("quarantine.store")

_ADD_SECONDS = 3.0  # the longest duration of `add`
_LOOK_UP_BYTES = 1 << 18  # smaller mail is written without looking it up first: most of it is not known


class FileMessages(SqlMessages):
    """See `Messages`."""

    def __init__(self, database: Database, mail: MailFiles) -> None:
        super().__init__(SqliteEngine(database), SqliteRows())
        self._database = database
        self._mail = mail

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
        deadline = time.monotonic() + _ADD_SECONDS
        id = new_id(at)
        first = self._find_known(export) if body.size_bytes > _LOOK_UP_BYTES else None
        if starts is None and self._has_rules():
            raise RulesInUse
        if first is None:
            first = self._write(id, body, _Metadata(export, tier, frozenset(announce), scan, starts or {}))
        update = partial(with_verdict, export=export, tier=tier)
        return Held(first, first != id, self._raise_tier(first, export.body_sha256, update, tier, deadline))

    def _has_rules(self) -> bool:
        with self._database.read() as connection:
            return connection.execute("SELECT 1 FROM rule WHERE removed_at IS NULL LIMIT 1").fetchone() is not None

    def _find_known(self, export: Export) -> UUID | None:
        with self._database.read() as connection:
            known = _find_by_dedup_key(connection, export.dedup_key)
            is_whole = known is not None and _is_whole(connection, known, export)
        return known if known is not None and is_whole and self._mail.has(known) else None

    def _write(self, id: UUID, body: Body, metadata: _Metadata) -> UUID:
        """Write the file and the rows of a message. Return its id, or that of the message that has the same mail."""
        with self._database.translated():
            self._mail.write(id, body, metadata.to_json(id))
        try:
            first = self._insert(id, metadata)
        except QuarantineError:
            with suppress(OSError):  # purge makes the rows of a file that stays: that mail may be held twice
                self._mail.remove(id)
            raise
        if first != id:
            with suppress(OSError):
                self._mail.remove(id)
        return first

    def _copies(self, id: UUID, body_sha256: bytes, tier: Tier, after: UUID, deadline: float) -> Sequence[UUID]:
        select = (
            "SELECT id FROM message WHERE (id = :id OR body_sha256 = :sha256) AND tier in :tiers "
            f"AND id > :after ORDER BY id LIMIT {RAISED_TOGETHER}"
        )
        with self._engine.reading() as session:
            rows = session.many(select, id=id, sha256=body_sha256, tiers=list(tier.less_harmful), after=after)
        return [id for (id,) in rows]

    @contextmanager
    def _writing_until(self, deadline: float) -> Iterator[SqliteSession]:
        left = min(LOCK_WAIT_SECONDS, max(0.0, deadline - time.monotonic()))
        with self._database.write(wait_seconds=left) as connection:
            yield SqliteSession(connection, self._database)

    def _insert(self, id: UUID, metadata: _Metadata) -> UUID:
        """Insert the rows of a message whose file is durable. Return its id, or that of the message that has the same
        mail."""
        dedup_key = metadata.export.dedup_key
        with self._database.write(durable=False) as connection:
            while not _insert_rows(SqliteSession(connection, self._database), id, dedup_key, metadata):
                known = _find_by_dedup_key(connection, dedup_key)
                if known is not None:
                    if _is_whole(connection, known, metadata.export) and self._mail.has(known):
                        return known
                    connection.execute("UPDATE message SET dedup_key = NULL WHERE id = ?", (known.bytes,))
        return id

    def import_record(self, record: Record, body: Body | None) -> None:
        """See `Messages.import_record`. Unlike in `add` the rows are durable at once, since the recovery after a power
        cut only reads files of recently held messages."""
        id, scan = record.message.id, record.message.scan
        metadata = _Metadata(record.export(), record.message.verdict_tier, frozenset(), scan)
        if body is not None:
            with self._database.translated():
                self._mail.remove_unfinished(id)  # of a copy that was killed
                self._mail.write(id, body, metadata.to_json(id))
        with self._database.write() as connection:
            session = SqliteSession(connection, self._database)
            row = connection.execute("SELECT tier FROM message WHERE id = ?", (id.bytes,)).fetchone()
            if row is None:
                if body is None:
                    raise NotFound("there is no such message")
                taken = record.dedup_key is None or _find_by_dedup_key(connection, record.dedup_key) is not None
                _insert_rows(session, id, None if taken else record.dedup_key, metadata)
            elif row[0] in record.message.verdict_tier.less_harmful:
                self._rows.put_verdict(session, record.message)
                mark_stale(session, [id])
                session.journal(partial(verdict_line, record.message))
            import_scan(session, self._rows, record, datetime.now(UTC))
            import_deliveries(session, self._rows, record)

    def body(self, message_id: UUID) -> Iterator[bytes]:
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT size_bytes, body_sha256 FROM message WHERE id = ?", (message_id.bytes,)
            ).fetchone()
        if row is None:
            raise NotFound("there is no such message")
        with self._translated(message_id):
            pieces = self._mail.read(message_id, *row)
        return self._translated_pieces(message_id, pieces)

    def _translated_pieces(self, message_id: UUID, pieces: Iterator[bytes]) -> Iterator[bytes]:
        while True:
            with self._translated(message_id):
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    @contextmanager
    def _translated(self, message_id: UUID) -> Iterator[None]:
        try:
            with self._database.translated():
                try:
                    yield
                except FileNotFoundError as error:
                    raise BodyMissing(f"the mail file of {message_id} was deleted") from error
        except DamagedFile as error:
            raise BodyDamaged(f"the mail file of {message_id} is damaged: {error}") from error

    # ---- rows from files

    def rebuild_rows(self, message_id: UUID) -> None:
        """Insert the rows of a message from its file, for `reindex`: never removes a file.

        No release begins: the journal, which shows that it was done, may be lost.

        Raises DamagedFile, OSError, StoreUnavailable.
        """
        with _metadata_errors():
            metadata = self._metadata(message_id)
            starts = {who: each for who, each in metadata.starts.items() if each.state is not State.RELEASING}
            metadata = replace(metadata, starts=starts)
            with self._database.write(durable=False) as connection:
                is_first = _find_by_dedup_key(connection, metadata.export.dedup_key) is None
                session = SqliteSession(connection, self._database)
                _insert_rows(session, message_id, metadata.export.dedup_key if is_first else None, metadata)

    def _metadata(self, message_id: UUID) -> _Metadata:
        return _Metadata.from_json(self._mail.metadata(message_id))

    def recover_rows(self, message_id: UUID) -> bool:
        """Insert the rows of a message from its file if they are missing. Return whether they were inserted.

        Removes the file if another message holds the same mail. Logs a damaged file and leaves it for inspection.
        """
        if self.has_rows(message_id):
            return False
        try:
            with _metadata_errors():
                first = self._insert(message_id, self._metadata(message_id))
        except FileNotFoundError:
            return False
        except DamagedFile as error:
            log.error("mail file is damaged, restore it from a backup id=%s: %s", message_id, error)
            return False
        if first != message_id:
            self._mail.remove(message_id)
        return first == message_id

    def has_rows(self, message_id: UUID) -> bool:
        """Return whether the database has the rows of a message."""
        with self._database.read() as connection:
            return connection.execute("SELECT 1 FROM message WHERE id = ?", (message_id.bytes,)).fetchone() is not None


@record(frozen=True, slots=True)
class _Metadata:
    """Metadata of a message in its mail file."""

    export: Export
    tier: Tier
    announce: frozenset[str]  # identities of recipients who are notified by digest
    scan: Scan | None = None
    starts: Mapping[str, Start] = field(default_factory=dict)  # by identity

    def to_json(self, id: UUID) -> dict[str, Any]:
        export = self.export
        return {
            "version": 1,
            "id": str(id),
            "recipients": export.recipients,
            "announce": sorted(self.announce),
            **({"identities": export.identities} if export.identities else {}),
            "tier": self.tier.value,
            **({"scan": scans.to_json(self.scan)} if self.scan else {}),
            **({"starts": {who: _start_json(start) for who, start in self.starts.items()}} if self.starts else {}),
            **{field: getattr(export, field) for field in FACTS},
            "symbols": symbols.to_json(export.symbols),
            "flags": sorted(flag.value for flag in export.flags),
            "sameness": export.dedup_key.hex(),
            "body_sha256": export.body_sha256.hex(),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> _Metadata:
        """Return the metadata that `to_json` encoded. Raises KeyError, ValueError, TypeError or AttributeError for
        other values."""
        facts = {field: value[field] for field in FACTS if field in value}  # older files lack newer fields
        facts["symbols"] = symbols.from_json(value["symbols"])
        facts["flags"] = frozenset(map(Flag, value["flags"]))
        facts["body_sha256"] = bytes.fromhex(value["body_sha256"])
        export = Export(
            **facts,
            recipients=tuple(value["recipients"]),
            identities=tuple(map(identity, value.get("identities") or ())),  # with U-labels up to version 0.1.1
            dedup_key=bytes.fromhex(value["sameness"]),
        )
        scan, starts = value.get("scan"), value.get("starts", {})
        return cls(
            export,
            Tier(value["tier"]),
            frozenset(map(identity, value["announce"])),
            scans.from_json(scan) if scan else None,
            {who: _start_from(start) for who, start in starts.items()},
        )


def _start_json(start: Start) -> dict[str, str]:
    actor = start.actor
    values = {"state": start.state.value, "who": actor.who, "via": actor.via, "address": actor.address}
    return values | {"detail": start.detail}


def _start_from(value: Mapping[str, str]) -> Start:
    """Return the start that `_start_json` encoded. Raises KeyError, ValueError, TypeError for other values."""
    actor = Actor.from_stored(str(value["who"]), str(value["via"]), str(value["address"]))
    return Start(State(value["state"]), actor, str(value["detail"]))


@contextmanager
def _metadata_errors() -> Iterator[None]:
    """Raise DamagedFile for the errors of `_Metadata.from_json`."""
    try:
        yield
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise DamagedFile("its metadata cannot be read") from error


_COLUMNS = ("rowid", "dedup_key", *MESSAGE)
_INSERT_MESSAGE = f"INSERT INTO message ({', '.join(_COLUMNS)}) VALUES (:{', :'.join(_COLUMNS)}) ON CONFLICT DO NOTHING"


def _is_whole(connection: sqlite3.Connection, known: UUID, export: Export) -> bool:
    """Return whether a known message still has all of its deliveries: otherwise "known" would lose this mail."""
    row = connection.execute(
        "SELECT count(*) FROM delivery WHERE message_id = ? AND state <> 'expired'", (known.bytes,)
    ).fetchone()
    return int(row[0]) >= len(export.recipients or ("",))


def _find_by_dedup_key(connection: sqlite3.Connection, dedup_key: bytes) -> UUID | None:
    row = connection.execute("SELECT id FROM message WHERE dedup_key = ?", (dedup_key,)).fetchone()
    return UUID(bytes=row[0]) if row else None


def _insert_rows(session: SqliteSession, id: UUID, dedup_key: bytes | None, metadata: _Metadata) -> bool:
    """Insert the rows of a message. Return False, without any change, if a message has this dedup key already."""
    connection, export, tier, rowid = session.connection, metadata.export, metadata.tier, word_index.key(id)
    scan = metadata.scan
    row = (
        columns(export)
        | {"id": id.bytes, "dedup_key": dedup_key, "tier": tier.value, "scan": scans.pack(scan)}
        | {"attachments": None}
    )
    # Insert first and look for the conflict if that fails: a query costs as much as inserting a row.
    while not connection.execute(_INSERT_MESSAGE, row | {"rowid": rowid}).rowcount:
        if dedup_key is not None and _find_by_dedup_key(connection, dedup_key) is not None:
            return False
        if connection.execute("SELECT 1 FROM message WHERE rowid = ?", (rowid,)).fetchone() is None:
            raise sqlite3.IntegrityError(f"message {id} exists already")
        rowid += 1
    held_for = export.held_for or ("",)
    shown_tier = scanned_tier(tier, scan)
    terms = search.terms(export.subject, export.envelope_sender, export.header_from, shown_tier, export.score, held_for)
    word_index.put(connection, rowid, terms)
    at = to_micros(held_at(id))
    if scan == WAITING:
        add_scan(session, id, held_at(id))
    people = list(zip(held_for, export.recipients or ("",), strict=True))
    connection.executemany(
        "INSERT INTO delivery (message_id, number, recipient, address, state_at) VALUES (?, ?, ?, ?, ?)",
        [(id.bytes, number, recipient, address, at) for number, (recipient, address) in enumerate(people)],
    )
    if metadata.starts:
        _begin(session, id, held_for, metadata.starts)
    for recipient, address in people:
        if recipient in metadata.announce:
            mark_news(connection, recipient, address_of(recipient, address), at)
    return True


def _begin(session: SqliteSession, id: UUID, held_for: Sequence[str], starts: Mapping[str, Start]) -> None:
    """Set how the deliveries of a new message begin, and record their first events."""
    at = held_at(id)
    for number, start in enumerate(map(starts.get, held_for)):
        if start is not None:
            key = DeliveryId(id, number)
            session.execute(
                f"UPDATE delivery SET state = :state, next_try_at = :due_at {WHERE_KEY}",
                key,
                state=start.state.value,
                due_at=at if start.state is State.RELEASING else None,
            )
            add_event(session, key, Event(at, start.kind, start.actor, start.detail))


def mark_news(connection: sqlite3.Connection, recipient: str, address: str, since_micros: int) -> None:
    """Record that a recipient has news, and may get a notice. Writes nothing if that is recorded already, with the same
    address."""
    is_noticed = "notices AND (notice_at IS NULL OR notice_at > excluded.news_since)"
    connection.execute(
        "INSERT INTO recipient (recipient, address, news_since) VALUES (?, ?, ?) "
        "ON CONFLICT (recipient) DO UPDATE SET "
        "address = excluded.address, news_since = coalesce(news_since, excluded.news_since), "
        f"notice_at = CASE WHEN {is_noticed} THEN excluded.news_since ELSE notice_at END "
        f"WHERE address <> excluded.address OR news_since IS NULL OR ({is_noticed})",
        (recipient, address, since_micros),
    )
