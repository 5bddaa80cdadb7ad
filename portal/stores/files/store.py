"""Store on the file system of one host: mail files, and a SQLite file for all data that changes.

    PATH/mail/YYYY/MM/DD/<last two hex digits of the id>/<id>.eml.zst    see `mail`
    PATH/quarantine.sqlite3                                             see `database`
    PATH/journal/YYYY-MM-DD.jsonl                                       actions and preferences, see `journal`
    PATH/tmp/, PATH/lock, PATH/in-use                                   partial files; the write lock; the users' lock

Durability: `add` returns once the mail file is durable. A power cut (but not a crash of the program) may lose the rows;
`FileStore.open` then reads them from the files again. All other changes are durable rows.

Other programs may delete mail files, for example ``find -mtime -delete`` in cron. Then `body` raises BodyMissing,
digests leave the mail out, and the next `purge` removes its rows once the message is older than a day. Several
processes of one host may use the same folder at the same time; other hosts may not, since flock and SQLite's shared
memory do not work across network file systems.

Measured (4 processes, mails of 3 to 19 KB): an `add` takes 270 µs of processor time, a bare loop with the same
compression, fsyncs and a commit 180 µs; a third of the 270 µs is compression, a third SQLite. On the disk an 11 KB mail
that compresses to a third takes 6.8 KB of blocks for its file (4.9 KB long) and 1.4 KB of database.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import UUID

from portal.model.errors import StoreUnavailable, StoreUnusable
from portal.model.message import first_id, held_at
from portal.stores import lifecycle
from portal.stores.contracts import Store
from portal.stores.files import word_index
from portal.stores.files.database import Database, to_micros
from portal.stores.files.deliveries import FileDeliveries
from portal.stores.files.digests import FileDigests, find_unmarked
from portal.stores.files.facets import FACTS, FileFacets
from portal.stores.files.mail import MailFiles
from portal.stores.files.messages import FileMessages
from portal.stores.files.session import SqliteEngine
from portal.stores.files.truncation import Truncation
from portal.stores.records import Ending, Purged, Sizes, Stats
from portal.stores.shared import expiry, upkeep
from portal.stores.shared.audit import SqlAudit
from portal.stores.shared.domains import SqlDomainValues
from portal.stores.shared.idempotency import SqlIdempotencyKeys
from portal.stores.shared.jobs import SqlJobs
from portal.stores.shared.notes import SqlNotes
from portal.stores.shared.outbox import SqlOutbox
from portal.stores.shared.outcomes import Outcomes
from portal.stores.shared.passwords import SqlPasswordTries
from portal.stores.shared.recipients import SqlRecipients
from portal.stores.shared.rules import SqlRules
from portal.stores.shared.second_factors import SqlSecondFactors
from portal.stores.shared.sign_ins import SqlSignIns
from portal.stores.shared.spellings import PENDING, merge_spellings
from portal.stores.shared.staff import SqlStaffRoles
from portal.stores.shared.statistics import SqlStatistics
from portal.stores.shared.tokens import SqlTokens
from portal.stores.shared.votes import SqlVotes

log = logging.getLogger("quarantine.store")

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # random(4): new at each boot
_CLOCK_MARGIN = timedelta(hours=1)  # a clock may be set back, and a row is written after its id is made
_ORPHAN_AGE = timedelta(hours=1)
_MISSING_AGE = timedelta(days=1)
_PURGE_BATCH = 250  # the rows of this many messages are removed in about 10 ms
_PURGE_PAUSE_SECONDS = 0.01  # lets other writers take the lock


class FileStore(Store):
    """See `Store`."""

    messages: FileMessages
    digests: FileDigests
    recipients: SqlRecipients
    notes: SqlNotes

    def __init__(self, folder: Path, mail: MailFiles, db: Database) -> None:
        self._folder = folder
        self._mail = mail
        self.db = db
        self.engine = SqliteEngine(db)
        self.messages = FileMessages(db, mail)
        self.facets = FileFacets(db)
        self.outcomes = Outcomes(self.ping)
        self.deliveries = FileDeliveries(db, self.facets, self.outcomes)
        self.digests = FileDigests(self.engine, mail, self.outcomes)
        self.recipients = SqlRecipients(self.engine, find_unmarked)
        self.sign_ins = SqlSignIns(self.engine)
        self.passwords = SqlPasswordTries(self.engine)
        self.idempotency = SqlIdempotencyKeys(self.engine)
        self.outbox = SqlOutbox(self.engine, self.outcomes)
        self.jobs = SqlJobs(self.engine)
        self.votes = SqlVotes(self.engine)
        self.rules = SqlRules(self.engine)
        self.domains = SqlDomainValues(self.engine, at_requests=self.engine)
        self.audit = SqlAudit(self.engine)
        self.staff = SqlStaffRoles(self.engine)
        self.tokens = SqlTokens(self.engine)
        self.second_factors = SqlSecondFactors(self.engine)
        self.statistics = SqlStatistics(self.engine, FACTS)
        self.notes = SqlNotes(self.engine)

    @classmethod
    def open(cls, path: Path | str, *, must_exist: bool = False, must_be_empty: bool = False) -> FileStore:
        """Open the store in the folder ``path``, and create it if it does not exist and ``must_exist`` is not set. With
        ``must_be_empty`` it is not created in a folder that holds other files.

        After a power cut, and when there are mail files but no database, this reads the files that were written since
        rows were last known to be durable. Raises StoreUnavailable, StoreUnusable.
        """
        folder = Path(path).absolute()
        try:
            if must_exist or must_be_empty:
                check_folder(folder, must_exist=must_exist)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            mail = MailFiles(folder)
        except (FileExistsError, NotADirectoryError) as error:
            raise StoreUnusable(f"store.url: {error.filename} is in the way of a folder: name another one") from error
        except OSError as error:
            raise StoreUnavailable(
                f"store.url: {error.filename or folder} cannot be used: {error.strerror}; check owner, permissions "
                "and mount"
            ) from error
        store = cls(folder, mail, Database(folder, must_exist=must_exist))
        try:
            store._recover()
            if not must_exist and store.notes.get(PENDING) is not None:
                with store.db.exclusive(folder / "tmp"):  # one process merges, the others wait
                    if store.notes.get(PENDING) is not None:
                        merge_spellings(store.engine, store.recipients)
        except BaseException:
            store.db.close()
            raise
        return store

    # ---- health and times

    def ping(self) -> None:
        with self.db.translated():
            self._mail.try_write()
        self._mark_durable()

    def close_outcomes(self, seconds: float) -> None:
        self.outcomes.close(seconds)
        self.notes.close()

    def close(self, seconds: float = 0.5) -> None:
        self.close_outcomes(seconds)
        if not self.db.is_closed:
            with suppress(StoreUnavailable, StoreUnusable):  # the recovery after a power cut then reads more files
                self._mark_durable()
        self.db.close()

    def heartbeat(self, now: datetime) -> None:
        with self.outcomes.watching():
            self._mark_durable({upkeep.HEARTBEAT: now.isoformat()})

    def _mark_durable(self, settings: dict[str, str] | None = None) -> None:
        """Record that all rows committed before now are durable, which this FULL commit makes true."""
        with self.db.write() as connection:
            marks = {"store.durable_until": str(to_micros(datetime.now(UTC))), **(settings or {})}
            connection.executemany("INSERT OR REPLACE INTO setting (name, value) VALUES (?, ?)", marks.items())

    def stats(self, now: datetime) -> Stats:
        with self.engine.reading() as session:
            return upkeep.stats(session, now)

    def sizes(self) -> Sizes:
        with self.engine.reading() as session:
            return upkeep.sizes(session, None)

    def repair_clock_skew(self, now: datetime) -> int:
        return upkeep.repair_clock_skew(self.engine, now)

    # ---- recovery after a power cut

    def _recover(self) -> None:
        boot_id = _boot_id()
        if self.notes.get("store.boot_id") == boot_id:
            return
        with self.db.exclusive(self._folder / "tmp"):  # one process recovers, the others wait
            if self.notes.get("store.boot_id") == boot_id:
                return
            durable_until = self.notes.get("store.durable_until")
            since = None
            if durable_until is not None:
                since = datetime.fromtimestamp(int(durable_until) / 1e6, UTC) - _CLOCK_MARGIN
            recovered = 0
            with self.db.translated():
                for day in self._mail.days():
                    if since is None or day >= since.date():
                        for id in self._mail.ids(day):
                            if since is None or held_at(id) >= since:
                                recovered += self.messages.recover_rows(id)
            if recovered:
                log.warning("messages read from their files after a power cut or loss of the database: %d", recovered)
            self._mark_durable({"store.boot_id": boot_id})

    def mark_checked(self) -> None:
        """Record that all files have durable rows."""
        with self.db.translated():
            self._mark_durable({"store.boot_id": _boot_id()})

    # ---- purge

    def purge(self, before: datetime, now: datetime) -> Purged:
        """See `Store.purge`. Also removes the rows of messages older than a day whose file is missing. If a crash left
        a file without rows, inserts the rows, or removes the file if its mail is held by another message."""
        messages, kept = self._purge_old(before)
        messages += self._remove_forgotten()
        with self.db.translated():
            self._mail.remove_old_unfinished(now.timestamp(), _ORPHAN_AGE)
            for day in self._days():
                messages += self._reconcile_day(day, before, now)
                if day < now.date() - timedelta(days=1):
                    self._mail.remove_empty_folders(day)
        self._remove_unused_indexes()
        self._merge_indexes(now)
        upkeep.remove_expired(self.engine, now)
        self.staff.remove_expired(now)
        self.recipients.remove_unused()
        Truncation(self.db, self.engine, self.messages, self.recipients).truncate(before, now)
        self._mark_durable()
        return Purged(messages, kept)

    def expire(self, deliveries: Sequence[Ending]) -> int:
        """See `Store.expire`. The next purge removes what a crash leaves of the messages."""
        with self.engine.writing(durable=False) as session:
            count, ids = expiry.forget(session, deliveries)
        self._remove_messages(ids)
        return count

    def prepare_days(self, now: datetime, retention_days: int) -> None:
        """See `Store.prepare_days`. Creates the folders of today and tomorrow."""
        self.notes.set(lifecycle.RETENTION, str(retention_days))
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
            removed = self._delete_rows(ids)
            messages += len(removed)
            kept += len(ids) - len(removed)
            with self.db.translated():
                for id in removed:
                    self._mail.remove(UUID(bytes=id))
            if len(ids) < _PURGE_BATCH:
                return messages, kept
            after = ids[-1]

    def _remove_forgotten(self) -> int:
        """Remove the messages that `expire` forgot before a crash; return how many."""
        count, after = 0, UUID(int=0)
        while True:
            with self.engine.reading() as session:
                ids = expiry.all_forgotten(session, after, _PURGE_BATCH)
            if not ids:
                return count
            self._remove_messages(ids)
            count, after = count + len(ids), ids[-1]

    def _remove_messages(self, ids: Sequence[UUID]) -> None:
        """Remove messages whose deliveries are all forgotten.

        The files first: a purge would take a file without rows for a message that is to be held again.
        """
        with self.db.translated():
            for id in ids:
                self._mail.remove(id)
        self._delete_rows([id.bytes for id in ids])

    def _delete_rows(self, ids: list[bytes]) -> list[bytes]:
        """Delete the rows of these messages, except for those in use; return the ids of the deleted ones.

        Not durable: rows that reappear after a power cut have no file, so a later purge deletes them again.
        """
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
                    connection.execute("DELETE FROM facet WHERE key = (SELECT rowid FROM message WHERE id = ?)", (id,))
                    connection.execute("DELETE FROM message WHERE id = ?", (id,))
                    removed.append(id)
        return removed

    def _remove_unused_indexes(self) -> None:
        self._clear_retired()  # left by a purge that was killed
        with self.db.read() as connection:
            indexes = word_index.indexes(connection)
        for index in indexes:
            with self.db.write(durable=False) as connection:
                word_index.retire_if_empty(connection, index)
        self._clear_retired()

    def _merge_indexes(self, now: datetime) -> None:
        """Merge the indexes of past days, which get no more messages."""
        with self.db.read() as connection:
            indexes = word_index.indexes(connection)
        for index in indexes:
            more = index.end <= now
            while more:
                with self.db.write(durable=False) as connection:
                    more = word_index.merge(connection, index)
                time.sleep(_PURGE_PAUSE_SECONDS if more else 0)

    def _clear_retired(self) -> None:
        more = True
        while more:
            with self.db.write(durable=False) as connection:
                more = word_index.clear(connection)

    def _days(self) -> list[date]:
        """Return the days that have mail files or rows."""
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

    def _reconcile_day(self, day: date, before: datetime, now: datetime) -> int:
        """Remove rows without a file, and recover or remove files without rows; return how many messages were removed.

        Holds the ids of one day in memory, 100 bytes each.
        """
        files = set(self._mail.ids(day))
        start = datetime(day.year, day.month, day.day, tzinfo=UTC)
        after, end = first_id(start).bytes, first_id(start + timedelta(days=1)).bytes
        old = first_id(now - _MISSING_AGE).bytes
        removed = 0
        while True:
            with self.db.read() as connection:
                ids = [
                    row[0]
                    for row in connection.execute(
                        "SELECT id FROM message WHERE id > ? AND id < ? ORDER BY id LIMIT ?", (after, end, _PURGE_BATCH)
                    )
                ]
            missing = [id for id in ids if UUID(bytes=id) not in files and id < old]
            missing = [id for id in missing if not self._mail.has(UUID(bytes=id))]  # written since the listing
            removed += len(self._delete_rows(missing))
            files.difference_update(UUID(bytes=id) for id in ids)
            if len(ids) < _PURGE_BATCH:
                break
            after = ids[-1]
        for orphan in files:
            with suppress(FileNotFoundError):
                if self._mail.age(orphan, now.timestamp()) > _ORPHAN_AGE:
                    self._recover_orphan(orphan, before)
        return removed

    def _recover_orphan(self, message_id: UUID, before: datetime) -> None:
        if held_at(message_id) >= before:
            if self.messages.recover_rows(message_id):
                log.warning("rows of a message restored from its file, it is held again id=%s", message_id)
        elif not self.messages.has_rows(message_id):
            self._mail.remove(message_id)


def check_folder(folder: Path, *, must_exist: bool) -> None:
    """Raise StoreUnusable if ``folder`` has no store and it ``must_exist``, or holds other files; OSError."""
    if (folder / "mail").is_dir():
        return
    if must_exist:
        if (folder / "mail").exists():
            return  # `MailFiles` raises an error with the name of the file
        raise StoreUnusable(
            f"{folder} is no quarantine store: it has no folder `mail`. Check the path; to create a new store, run "
            "`quarantine init` as the service's user"
        )
    others = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in others if name not in ("links.keys", "lost+found")]
    if others:
        raise StoreUnusable(
            f"{folder} is no quarantine store and holds other files ({others[0]!r}): name an empty folder"
        )


def _boot_id() -> str:
    """Return the id of this boot. Raises StoreUnavailable."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError as error:
        raise StoreUnavailable(
            f"{_BOOT_ID} cannot be read ({error.strerror}), and without it a power cut is not noticed: mount /proc, "
            "and do not add ProcSubset=pid to the unit"
        ) from error
