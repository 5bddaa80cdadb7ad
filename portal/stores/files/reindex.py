"""`quarantine reindex`: the file store's database made anew from its mail files and its audit journal.

For when quarantine.sqlite3 is lost, damaged or not to be trusted. The new one is built beside it and takes its place at
the very end, so that until then a failure changes nothing; the old one is kept in ``before-reindex``. Nobody may use
the store meanwhile: programs that are running are noticed, and those started wait for us with a 503.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from portal.model.errors import NotFound, StoreUnavailable
from portal.model.message import Delivery, DeliveryId, Reader, State, identity
from portal.model.schedule import Preferences
from portal.stores.files.database import DATABASE, Database, unused
from portal.stores.files.digests import import_digest, news_left
from portal.stores.files.journal import Journal
from portal.stores.files.mail import DamagedFile, MailFiles
from portal.stores.files.rows import SqliteRows
from portal.stores.files.store import FileStore, check_folder
from portal.stores.journal import events_of, moment, with_verdict_of
from portal.stores.records import DigestRecord, Person
from portal.stores.shared.rows import add_announced_to, add_event, events

_BATCH = 200
_ROWS = SqliteRows()


@dataclass(slots=True)
class Reindexed:
    """What was rebuilt."""

    messages: int = 0
    actions: int = 0  # lines of the journal that told of a message that is here
    people: int = 0
    digests: int = 0
    damaged: list[Path] = field(default_factory=list)  # mail files that cannot be read: left as they are
    foreign: list[Path] = field(default_factory=list)  # files below mail/ that are none of ours
    unreadable_lines: int = 0  # of the journal
    journal_since: datetime | None = None  # its first line; None: there is no journal


def reindex(path: Path | str, progress: Callable[[int, int, int], None]) -> Reindexed:
    """Rebuild the database of the file store in ``path``; ``progress`` gets files done, files, bytes of mail.

    Raises StoreUnusable when there is no store, StoreUnavailable when it is in use or a file cannot be written.
    """
    folder = Path(path).absolute()
    new = folder / "reindex"
    done = Reindexed()
    with _translated(folder):
        check_folder(folder, must_exist=True)
        with unused(folder):
            shutil.rmtree(new, ignore_errors=True)  # of one that was killed
            new.mkdir(mode=0o700)
            store = FileStore(folder, MailFiles(folder), Database(new))
            try:
                _read_mail(store, folder, done, progress)
                _replay(store, Journal(folder), done)
                _settle_news(store)
                store.mark_checked()
            finally:
                store.db.close()
            _swap(folder, new)
    return done


def _read_mail(store: FileStore, folder: Path, done: Reindexed, progress: Callable[[int, int, int], None]) -> None:
    found: list[UUID] = []
    mail = MailFiles(folder)
    for id, path in mail.everything():
        if id is None:
            done.foreign.append(path)
        else:
            found.append(id)
    found.sort()  # in the order they came: so do the database's pages
    size_bytes = 0
    for n, id in enumerate(found, 1):
        try:
            store.messages.readopt(id)
            done.messages += 1
            size_bytes += mail.path(id).stat().st_size
        except DamagedFile:
            done.damaged.append(mail.path(id))
        except FileNotFoundError:
            pass  # deleted by cron since it was seen
        progress(n, len(found), size_bytes)


# ---- the journal


def _replay(store: FileStore, journal: Journal, done: Reindexed) -> None:
    for line in journal.lines():
        try:
            if line is None:
                raise ValueError("no JSON")
            at = moment(line["at"])
            _replay_line(store, line, done)
        except (KeyError, ValueError, TypeError, AttributeError):
            done.unreadable_lines += 1
        else:
            done.journal_since = done.journal_since or at


def _replay_line(store: FileStore, line: dict[str, Any], done: Reindexed) -> None:
    match line["kind"]:
        case "delivery":
            done.actions += _replay_delivery(store, line)
        case "verdict":
            _replay_verdict(store, line)
        case "person":
            store.recipients.import_preferences(_person(line))
            done.people += 1
        case "told":
            keys = [DeliveryId(UUID(id), int(number)) for id, number in line["deliveries"]]
            with store.engine.writing(durable=False) as session:
                add_announced_to(session, identity(str(line["reader"])), keys)
        case "digest":
            with store.engine.writing(durable=False) as session:
                import_digest(session, _digest(line))
            done.digests += 1
        case kind:
            raise ValueError(f"a line of kind {kind}")


def _replay_delivery(store: FileStore, line: dict[str, Any]) -> bool:
    """Bring a delivery to what the line says, and add those events that are not in its history. Return whether there
    is such a delivery. Idempotent; nothing is written into the journal."""
    told = events_of(line)
    key = DeliveryId(UUID(line["id"]), int(line["number"]))
    with store.engine.writing(durable=False) as session:
        try:
            known = _ROWS.delivery(session, key)
        except NotFound:
            return False  # purged, or its mail file is gone
        _ROWS.put(session, _delivery(known, line))
        history = events(session, [key.message_id]).get(key, [])
        for event in told:
            if event not in history:
                add_event(session, key, event)
    return True


def _replay_verdict(store: FileStore, line: dict[str, Any]) -> None:
    """Give a message, if it is here, the verdict that it got when it came again."""
    with store.engine.writing(durable=False) as session:
        messages = _ROWS.messages(session, "WHERE id = :id", id=UUID(line["id"]))
        if messages:
            judged = with_verdict_of(line, messages[0])
            if messages[0].tier in judged.tier.less_harmful:
                _ROWS.put_verdict(session, judged)


def _settle_news(store: FileStore) -> None:
    """Leave only those with news for whom mail is held that is not announced."""
    after = ""
    while people := store.recipients.records(after, _BATCH):
        after = people[-1].recipient
        with store.engine.writing(durable=False) as session:
            for person in people:
                if person.news_since is not None:
                    session.execute(
                        "UPDATE recipient SET news_since = :since WHERE recipient = :recipient",
                        since=news_left(session, Reader(person.recipient)),
                        recipient=person.recipient,
                    )


def _delivery(known: Delivery, line: dict[str, Any]) -> Delivery:
    return replace(
        known,
        recipient=identity(str(line["recipient"])),  # with U-labels up to version 0.1.1
        address=str(line["address"]),
        state=State(line["state"]),
        state_at=moment(line["state_at"]),
        reason=str(line["reason"]),
        attempts=int(line["attempts"]),
        next_try_at=_moment_or_none(line["next_try_at"]),
        # What was announced stays so, also by an older line.
        announced_at=_moment_or_none(line["announced_at"]) or known.announced_at,
    )


def _person(line: dict[str, Any]) -> Person:
    return Person(
        identity(str(line["recipient"])),
        str(line["address"]),
        _moment_or_none(line["stopped_at"]),
        _moment_or_none(line["links_valid_from"]),
        None,
        None,
        Preferences.from_json(line.get("preferences")),
    )


def _digest(line: dict[str, Any]) -> DigestRecord:
    return DigestRecord(
        UUID(line["id"]),
        identity(str(line["recipient"])),
        str(line["address"]),
        moment(line["issued_at"]),
        moment(line["sent_at"]),
        tuple(DeliveryId(UUID(id), int(number)) for id, number in line["deliveries"]),
    )


def _moment_or_none(text: str | None) -> datetime | None:
    return None if text is None else moment(text)


# ---- the end


def _swap(folder: Path, new: Path) -> None:
    """Put the new database in place of the old one. Killed in between, the next start finds none and reads the mail
    files; running reindex again brings the rest."""
    if (new / f"{DATABASE}-wal").exists():
        raise StoreUnavailable("the new database was not written whole: run reindex again")
    _sync(new / DATABASE)
    kept = folder / "before-reindex"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(mode=0o700)
    # The database before its log: SQLite empties a log that it finds without one, the other way round it would go on
    # with a database that lacks what the log had.
    for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"):
        if (folder / name).exists():
            (folder / name).rename(kept / name)
    _sync(folder)
    (new / DATABASE).rename(folder / DATABASE)
    _sync(folder)
    shutil.rmtree(new)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _translated(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(
            f"{error.filename or folder} cannot be used: {error.strerror or error}; check owner, permissions and mount"
        ) from error
