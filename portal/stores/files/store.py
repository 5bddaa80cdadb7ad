"""The store on one host's file system: mail files, and a SQLite file beside them for everything that changes.

    PATH/mail/YYYY/MM/DD/<last two hex digits of the id>/<id>.eml.zst    see `mail`
    PATH/quarantine.sqlite3                                             see `database`
    PATH/journal/YYYY-MM-DD.jsonl                                       what was done and wished, see `journal`
    PATH/tmp/, PATH/lock, PATH/in-use                                   files being written; the writers' queue; users

What is durable when: `add` returns once the mail's file is; its rows may be lost by a power cut (not by a crash of
the program) and are then read out of the files again by `FileStore.open`. All other changes are durable rows.

Mail files may be deleted behind our back, by ``find -mtime -delete`` in cron: `body` raises BodyMissing, digests
leave such mail out, and the next `purge` removes what is known of it once it is older than a day. Other processes
on the host may use the same folder at the same time; other hosts may not, since flock and SQLite's shared memory
do not reach across network file systems.

Measured (4 processes, mails of 3 to 19 KB): an `add` takes 270 µs of processor time, a bare loop with the same
compression, fsyncs and a commit 180; a third of ours is compression, a third SQLite. On the disk an 11 KB mail that
compresses to a third takes 6.8 KB of blocks for its file (4.9 KB long) and 1.4 KB of database.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from portal.model.errors import BodyDamaged, BodyMissing, NotFound, QuarantineError, StoreMisfit, StoreUnavailable
from portal.model.message import Body, Export, Tier, first_id, held_at, identity, new_id
from portal.stores import Held, Purged, Record, address_of, search, symbols
from portal.stores.files import verdicts, word_index
from portal.stores.files.database import LOCK_WAIT_SECONDS, Database, to_micros
from portal.stores.files.digests import mark_news
from portal.stores.files.journal import verdict_line
from portal.stores.files.mail import DamagedFile, MailFiles
from portal.stores.files.records import SqliteRecords
from portal.stores.verdict import RAISED_TOGETHER

log = logging.getLogger("quarantine.store")

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # random(4): new at each boot
_CLOCK_MARGIN = timedelta(hours=1)  # clocks are set back, and a row comes later than its id
_ORPHAN_AGE = timedelta(hours=1)
_GONE_AGE = timedelta(days=1)
_ADD_SECONDS = 3.0  # in all, whatever happens
_LOOKED_FOR_BYTES = 1 << 18  # a smaller mail that is known already is written for nothing: most are not known
_PURGE_BATCH = 250  # rows of that many messages are removed in about 10 ms
_PURGE_PAUSE_SECONDS = 0.01  # lets in those who wait for the lock


class FileStore(SqliteRecords):
    """See `portal.stores.Store`."""

    def __init__(self, folder: Path, mail: MailFiles, db: Database) -> None:
        self._folder = folder
        self._mail = mail
        self.db = db

    @classmethod
    def open(cls, path: Path | str, *, must_exist: bool = False, must_be_ours: bool = False) -> FileStore:
        """Open the store in the folder ``path``, which is made if it does not exist, unless it ``must_exist``; with
        ``must_be_ours`` not in a folder that holds other files.

        After a power cut, and when the database is new beside mail files, this reads the files that came since rows
        were last known to be durable. Raises StoreUnavailable, StoreMisfit.
        """
        folder = Path(path).absolute()
        try:
            if must_exist or must_be_ours:
                check_folder(folder, must_exist=must_exist)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            mail = MailFiles(folder)
        except (FileExistsError, NotADirectoryError) as error:
            raise StoreMisfit(f"store.url: {error.filename} is in the way of a folder: name another one") from error
        except OSError as error:
            raise StoreUnavailable(
                f"store.url: {error.filename or folder} cannot be used: {error.strerror}; check owner, permissions "
                "and mount"
            ) from error
        store = cls(folder, mail, Database(folder, must_exist=must_exist))
        try:
            store._recover()
        except BaseException:
            store.db.close()
            raise
        return store

    # ---- life

    def ping(self) -> None:
        with self.db.translated():
            self._mail.try_write()
        self._mark_durable()

    def close(self) -> None:
        if not self.db.is_closed:
            with suppress(StoreUnavailable, StoreMisfit):  # then a little more is looked over after a power cut
                self._mark_durable()
        self.db.close()

    def heartbeat(self, now: datetime) -> None:
        self._mark_durable({"store.heartbeat": str(to_micros(now))})

    def _mark_durable(self, settings: dict[str, str] | None = None) -> None:
        """Note that all rows committed before now are durable: true once this FULL commit is."""
        with self.db.write() as connection:
            marks = {"store.durable_until": str(to_micros(datetime.now(UTC))), **(settings or {})}
            connection.executemany("INSERT OR REPLACE INTO setting (name, value) VALUES (?, ?)", marks.items())

    # ---- after a power cut

    def _recover(self) -> None:
        with self.db.translated():
            boot_id = _BOOT_ID.read_text("ascii").strip()
        if self.recall("store.boot_id") == boot_id:
            return
        with self.db.exclusive(self._folder / "tmp"):  # one process looks, the others wait for it
            if self.recall("store.boot_id") == boot_id:
                return
            durable_until = self.recall("store.durable_until")
            since = None
            if durable_until is not None:
                since = datetime.fromtimestamp(int(durable_until) / 1e6, UTC) - _CLOCK_MARGIN
            adopted = 0
            with self.db.translated():
                for day in self._mail.days():
                    if since is None or day >= since.date():
                        for id in self._mail.ids(day):
                            if since is None or held_at(id) >= since:
                                adopted += self._adopt(id)
            if adopted:
                log.warning("messages read from their files after a power cut or loss of the database: %d", adopted)
            self._mark_durable({"store.boot_id": boot_id})

    def adopt_anew(self, message_id: UUID) -> None:
        """Make the rows of a message from its file, as `reindex` needs it: no file is ever removed. Raises
        DamagedFile, OSError, StoreUnavailable."""
        facts = self._mail.facts(message_id)
        try:
            with self.db.write(durable=False) as connection:
                sameness = bytes.fromhex(facts["sameness"])
                first = _with_sameness(connection, sameness) is None
                _insert_rows(connection, message_id, sameness if first else None, facts)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise DamagedFile("its metadata cannot be read") from error

    def mark_looked_over(self) -> None:
        """Note that all files have their rows, durably."""
        with self.db.translated():
            self._mark_durable({"store.boot_id": _BOOT_ID.read_text("ascii").strip()})

    def _adopt(self, message_id: UUID) -> bool:
        """Give a file its rows again if it has none; remove it if its mail is held by another one. Returns whether
        rows were made. A damaged file stays as it is, for people to look at."""
        if self._has_rows(message_id):
            return False
        try:
            facts = self._mail.facts(message_id)
            first = self._insert(message_id, facts)
        except FileNotFoundError:
            return False
        except (DamagedFile, KeyError, ValueError, TypeError) as error:
            log.error("mail file cannot be read again id=%s: %s", message_id, error)
            return False
        if first != message_id:
            self._mail.remove(message_id)
        return first == message_id

    def _has_rows(self, message_id: UUID) -> bool:
        with self.db.read() as connection:
            return connection.execute("SELECT 1 FROM message WHERE id = ?", (message_id.bytes,)).fetchone() is not None

    # ---- holding

    def add(
        self, export: Export, body: Body, tier: Tier, announce: Collection[str], *, at: datetime | None = None
    ) -> Held:
        deadline = time.monotonic() + _ADD_SECONDS
        id = new_id(at)
        first = self._known(export) if body.size_bytes > _LOOKED_FOR_BYTES else None
        if first is None:
            first = self._write(id, export, body, tier, announce)
        return Held(first, first != id, self._raise_tier(first, export, tier, deadline))

    def _known(self, export: Export) -> UUID | None:
        with self.db.read() as connection:
            known = _with_sameness(connection, export.sameness)
        return known if known is not None and self._mail.has(known) else None

    def _write(self, id: UUID, export: Export, body: Body, tier: Tier, announce: Collection[str]) -> UUID:
        """Make the file and the rows of a message; returns the first id if somebody added the same mail before."""
        facts = _facts(id, export, tier, announce)
        with self.db.translated():
            self._mail.write(id, body, facts)
        try:
            first = self._insert(id, facts)
        except QuarantineError:
            with suppress(OSError):  # what stays is adopted by purge: the mail is held once more than was answered
                self._mail.remove(id)
            raise
        if first != id:
            with suppress(OSError):
                self._mail.remove(id)
        return first

    def _raise_tier(self, held: UUID, export: Export, tier: Tier, deadline: float) -> tuple[UUID, ...]:
        """Give ``held`` and all copies of the same bytes this verdict if theirs is milder.

        Not in the transaction that holds the mail: the sender's retry goes on with what a failure leaves undone.
        """
        raised: list[UUID] = []
        after = UUID(int=0)
        while tier.milder:
            with self.db.read() as connection:
                ids = verdicts.copies(connection, held, export, tier, after)
            if ids:
                left = min(LOCK_WAIT_SECONDS, max(0.0, deadline - time.monotonic()))
                with self.db.write(wait_seconds=left) as connection:
                    more, lines = verdicts.raise_tier(connection, ids, export, tier, datetime.now(UTC))
                    self.db.note(*lines)
                raised += more
            if len(ids) < RAISED_TOGETHER:
                break
            after = ids[-1]
        return tuple(raised)

    def _insert(self, id: UUID, facts: dict[str, Any]) -> UUID:
        """Make the rows of a message whose file is durable; returns the first id if the same mail has some."""
        sameness = bytes.fromhex(facts["sameness"])
        with self.db.write(durable=False) as connection:
            while not _insert_rows(connection, id, sameness, facts):
                known = _with_sameness(connection, sameness)
                if known is not None:
                    if self._mail.has(known):
                        return known
                    connection.execute("UPDATE message SET dedup_key = NULL WHERE id = ?", (known.bytes,))
        return id

    def take(self, record: Record, body: Body | None) -> None:
        """See `Store.take`. Unlike in `add` the rows are durable at once: after a power cut nobody looks for files of
        messages that were held so long ago."""
        id, facts = record.message.id, _facts(record.message.id, record.export(), record.message.tier, ())
        if body is not None:
            with self.db.translated():
                self._mail.discard_unfinished(id)  # of a copy that was killed
                self._mail.write(id, body, facts)
        with self.db.write() as connection:
            row = connection.execute("SELECT tier FROM message WHERE id = ?", (id.bytes,)).fetchone()
            if row is None:
                if body is None:
                    raise NotFound("there is no such message")
                taken = record.sameness is None or _with_sameness(connection, record.sameness) is not None
                _insert_rows(connection, id, None if taken else record.sameness, facts)
            elif row[0] in record.message.tier.milder:
                verdicts.put_verdict(connection, record.message)
                self.db.note(verdict_line(record.message))
            self._take_deliveries(connection, record)

    def body(self, message_id: UUID) -> Iterator[bytes]:
        with self.db.read() as connection:
            row = connection.execute(
                "SELECT size_bytes, body_sha256 FROM message WHERE id = ?", (message_id.bytes,)
            ).fetchone()
        if row is None:
            raise NotFound("there is no such message")
        with self._reading(message_id):
            pieces = self._mail.read(message_id, *row)
        return self._read_on(message_id, pieces)

    def _read_on(self, message_id: UUID, pieces: Iterator[bytes]) -> Iterator[bytes]:
        while True:
            with self._reading(message_id):
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    @contextmanager
    def _reading(self, message_id: UUID) -> Iterator[None]:
        try:
            with self.db.translated():
                try:
                    yield
                except FileNotFoundError as error:
                    raise BodyMissing(f"the mail file of {message_id} was deleted") from error
        except DamagedFile as error:
            raise BodyDamaged(f"the mail file of {message_id} is damaged: {error}") from error

    def _has_mail(self, message_id: UUID) -> bool:
        return self._mail.has(message_id)

    # ---- age

    def purge(self, before: datetime, now: datetime) -> Purged:
        """See `Store.purge`. Also removes what is known of messages older than a day whose file was deleted, and
        gives files without rows (a crash between the two) their rows, or removes them if they are copies."""
        messages, kept = self._purge_old(before)
        with self.db.translated():
            self._mail.sweep_unfinished(now.timestamp(), _ORPHAN_AGE)
            for day in self._days():
                messages += self._match_day(day, before, now)
                if day < now.date() - timedelta(days=1):
                    self._mail.sweep(day)
        self._drop_words()
        self._sweep_expired(now)
        self._forget_strangers()
        self._shorten_journal(before, now)
        self._mark_durable()
        return Purged(messages, kept)

    def prepare_days(self, now: datetime) -> None:
        """See `Store.prepare_days`: today's and tomorrow's folders."""
        with self.db.translated():
            for day in (now.date(), now.date() + timedelta(days=1)):
                self._mail.prepare(day)

    def _purge_old(self, before: datetime) -> tuple[int, int]:
        messages = kept = 0
        bound = first_id(before).bytes
        after = b""
        while True:
            with self.db.read() as connection:
                ids = [
                    row[0]
                    for row in connection.execute(
                        "SELECT id FROM message WHERE id > ? AND id < ? ORDER BY id LIMIT ?",
                        (after, bound, _PURGE_BATCH),
                    )
                ]
            removed = self._forget(ids)
            messages += len(removed)
            kept += len(ids) - len(removed)
            with self.db.translated():
                for id in removed:
                    self._mail.remove(UUID(bytes=id))
            if len(ids) < _PURGE_BATCH:
                return messages, kept
            after = ids[-1]

    def _forget(self, ids: list[bytes]) -> list[bytes]:
        """Remove the rows of these messages but those in use; returns whose were removed. Not durable: a message that
        a power cut brings back has no file, and goes again."""
        removed: list[bytes] = []
        if not ids:
            return removed
        time.sleep(_PURGE_PAUSE_SECONDS)
        with self.db.write(durable=False) as connection:
            for id in ids:
                in_use = connection.execute(
                    "SELECT 1 FROM delivery WHERE message_id = ? AND state IN ('requested', 'releasing')", (id,)
                ).fetchone()
                if in_use is None:
                    connection.execute("DELETE FROM event WHERE message_id = ?", (id,))
                    connection.execute("DELETE FROM announced_to WHERE message_id = ?", (id,))
                    connection.execute("DELETE FROM delivery WHERE message_id = ?", (id,))
                    connection.execute("DELETE FROM message WHERE id = ?", (id,))
                    removed.append(id)
        return removed

    def _drop_words(self) -> None:
        self._clear_words()  # what a purge that was killed left
        with self.db.read() as connection:
            days = word_index.days(connection)
        for day in days:
            with self.db.write(durable=False) as connection:
                word_index.retire_if_empty(connection, day)
        self._clear_words()

    def _clear_words(self) -> None:
        more = True
        while more:
            with self.db.write(durable=False) as connection:
                more = word_index.clear(connection)

    def _days(self) -> list[date]:
        """Days that have mail files or rows."""
        with self.db.read() as connection:
            first, last = connection.execute(
                "SELECT (SELECT min(id) FROM message), (SELECT max(id) FROM message)"
            ).fetchone()
        days = set(self._mail.days())
        if first is not None:
            day = held_at(UUID(bytes=first)).date()
            while day <= held_at(UUID(bytes=last)).date():
                days.add(day)
                day += timedelta(days=1)
        return sorted(days)

    def _match_day(self, day: date, before: datetime, now: datetime) -> int:
        """Bring a day's files and rows together; returns how many messages without a file were removed.

        Holds the ids of one day in memory, 100 bytes each.
        """
        files = set(self._mail.ids(day))
        start = datetime(day.year, day.month, day.day, tzinfo=UTC)
        after, end = first_id(start).bytes, first_id(start + timedelta(days=1)).bytes
        old = first_id(now - _GONE_AGE).bytes
        removed = 0
        while True:
            with self.db.read() as connection:
                ids = [
                    row[0]
                    for row in connection.execute(
                        "SELECT id FROM message WHERE id > ? AND id < ? ORDER BY id LIMIT ?", (after, end, _PURGE_BATCH)
                    )
                ]
            gone = [id for id in ids if UUID(bytes=id) not in files and id < old]
            gone = [id for id in gone if not self._mail.has(UUID(bytes=id))]  # the listing is older than the rows
            removed += len(self._forget(gone))
            files.difference_update(UUID(bytes=id) for id in ids)
            if len(ids) < _PURGE_BATCH:
                break
            after = ids[-1]
        for orphan in files:
            with suppress(FileNotFoundError):
                if self._mail.age(orphan, now.timestamp()) > _ORPHAN_AGE:
                    self._settle_orphan(orphan, before)
        return removed

    def _settle_orphan(self, message_id: UUID, before: datetime) -> None:
        if held_at(message_id) >= before:
            if self._adopt(message_id):
                log.warning("message without rows is held again id=%s", message_id)
        elif not self._has_rows(message_id):
            self._mail.remove(message_id)


def check_folder(folder: Path, *, must_exist: bool) -> None:
    """Raises StoreMisfit when there is no store, and when none should be made there; OSError."""
    if (folder / "mail").is_dir():
        return
    if must_exist:
        if (folder / "mail").exists():
            return  # `MailFiles` names what is in the way
        raise StoreMisfit(
            f"{folder} is no quarantine store: it has no folder `mail`. Check the path; a new store is made by "
            "`quarantine init`, run as the service's user"
        )
    others = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in others if name not in ("links.keys", "lost+found")]
    if others:
        raise StoreMisfit(
            f"{folder} is no quarantine store and holds other files ({others[0]!r}): name an empty folder"
        )


_INSERT_MESSAGE = (
    "INSERT INTO message (rowid, id, dedup_key, tier, envelope_sender, subject, header_from, queue_id, message_id, "
    "action, score, client_ip, username, packed_symbols, flags, body_sha256, size_bytes, has_8bit) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)


def _with_sameness(connection: sqlite3.Connection, sameness: bytes) -> UUID | None:
    row = connection.execute("SELECT id FROM message WHERE dedup_key = ?", (sameness,)).fetchone()
    return UUID(bytes=row[0]) if row else None


def _insert_rows(connection: sqlite3.Connection, id: UUID, sameness: bytes | None, facts: dict[str, Any]) -> bool:
    """Make the rows of a message. False, and nothing is changed, when there is one with that sameness."""
    rowid, row = word_index.key(id), _message_row(id, sameness, facts)
    # Tried first, and asked when that fails: each question costs as much as a row.
    while not connection.execute(_INSERT_MESSAGE, (rowid, *row)).rowcount:
        if sameness is not None and _with_sameness(connection, sameness) is not None:
            return False
        if connection.execute("SELECT 1 FROM message WHERE rowid = ?", (rowid,)).fetchone() is None:
            raise sqlite3.IntegrityError(f"there is a message {id} already")
        rowid += 1
    word_index.put(connection, rowid, _terms(facts))
    at, announce = to_micros(held_at(id)), set(facts["announce"])
    named = "identities" in facts
    people = list(zip(_held_for(facts), facts["recipients"] or [""], strict=True))
    connection.executemany(
        "INSERT INTO delivery (message_id, number, recipient, address, state_at) VALUES (?, ?, ?, ?, ?)",
        [(id.bytes, number, recipient, address, at) for number, (recipient, address) in enumerate(people)],
    )
    for recipient, address in people:
        if recipient in announce:
            mark_news(connection, recipient, address_of(recipient, address) if named else address, at)
    return True


def _facts(id: UUID, export: Export, tier: Tier, announce: Collection[str]) -> dict[str, Any]:
    """All that is known of a message, as JSON can say it: what stands in its file and makes its rows."""
    return {
        "version": 1,
        "id": str(id),
        "recipients": export.recipients,
        "announce": sorted(announce),
        **({"identities": export.identities} if export.identities else {}),
        "tier": tier.value,
        "envelope_sender": export.envelope_sender,
        "subject": export.subject,
        "header_from": export.header_from,
        "queue_id": export.queue_id,
        "message_id": export.message_id,
        "action": export.action,
        "score": export.score,
        "client_ip": export.client_ip,
        "user": export.user,
        "symbols": export.symbols,  # JSON has each as a list
        "flags": sorted(flag.value for flag in export.flags),
        "sameness": export.sameness.hex(),
        "body_sha256": export.body_sha256.hex(),
        "size_bytes": export.size_bytes,
        "has_8bit": export.has_8bit,
    }


def _held_for(facts: dict[str, Any]) -> list[str]:
    return list(facts.get("identities") or map(identity, facts["recipients"] or [""]))


def _terms(facts: dict[str, Any]) -> list[str]:
    return search.terms(
        facts["subject"],
        facts["envelope_sender"],
        facts["header_from"],
        Tier(facts["tier"]),
        facts["score"],
        _held_for(facts),
    )


def _message_row(id: UUID, sameness: bytes | None, facts: dict[str, Any]) -> tuple[Any, ...]:
    return (
        id.bytes,
        sameness,
        facts["tier"],
        facts["envelope_sender"],
        facts["subject"],
        facts["header_from"],
        facts["queue_id"],
        facts["message_id"],
        facts["action"],
        facts["score"],
        facts["client_ip"],
        facts["user"],
        symbols.pack(facts["symbols"]),
        " ".join(facts["flags"]),
        bytes.fromhex(facts["body_sha256"]),
        facts["size_bytes"],
        facts["has_8bit"],
    )
