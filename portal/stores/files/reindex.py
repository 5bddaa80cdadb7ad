"""`quarantine reindex`: rebuild the file store's database from its mail files and its audit journal.

For use when quarantine.sqlite3 is lost, damaged or not trusted. The new database is built in a folder of its own and
replaces the old one at the very end, so that a failure before that changes nothing. The old one is kept in
``before-reindex``. No other program may use the store during a reindex. It does not begin while a program has the store
open, and programs that are started in the meantime cannot open it: web workers answer 503 until it has finished.
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
from portal.model.message import Delivery, DeliveryId, EventKind, Reader, State, identity
from portal.model.schedule import Preferences
from portal.stores import scans
from portal.stores.files.database import DATABASE, Database, unused
from portal.stores.files.digests import import_digest, oldest_news
from portal.stores.files.journal import Journal
from portal.stores.files.mail import DamagedFile, MailFiles
from portal.stores.files.rows import SqliteRows
from portal.stores.files.store import FileStore, check_folder
from portal.stores.journal import (
    audit_entries_of,
    domain_value_of,
    events_of,
    grants_of,
    parse_time,
    parse_time_or_none,
    rule_of,
    second_factor_of,
    statistics_of,
    token_of,
    with_verdict_of,
)
from portal.stores.records import DigestRecord, Person
from portal.stores.shared.audit import put
from portal.stores.shared.domains import put_domain_value
from portal.stores.shared.rows import add_announced_to, add_event, events, make_unannounced
from portal.stores.shared.rules import put_rule
from portal.stores.shared.second_factors import put_factor
from portal.stores.shared.staff import put_grants
from portal.stores.shared.statistics import put_closed
from portal.stores.shared.tokens import put_token

_BATCH = 200
_ROWS = SqliteRows()


@dataclass(slots=True)
class Reindexed:
    """Result of `reindex`."""

    messages: int = 0
    actions: int = 0  # lines of the journal about deliveries that are in the store
    people: int = 0
    digests: int = 0
    rules: int = 0
    damaged: list[Path] = field(default_factory=list)  # unreadable mail files, which are not changed
    foreign: list[Path] = field(default_factory=list)  # files below mail/ that are not mail files of the store
    unreadable_lines: int = 0  # of the journal
    journal_since: datetime | None = None  # time of its first line; None: there is no journal


def reindex(path: Path | str, progress: Callable[[int, int, int], None]) -> Reindexed:
    """Rebuild the database of the file store in ``path``.

    ``progress`` is called with the number of files done, the number of all files, and the bytes of mail done. Raises
    StoreUnusable when there is no store, StoreUnavailable when it is in use or a file cannot be written.
    """
    folder = Path(path).absolute()
    new = folder / "reindex"
    result = Reindexed()
    with _translated(folder):
        check_folder(folder, must_exist=True)
        with unused(folder):
            shutil.rmtree(new, ignore_errors=True)  # of a reindex that was killed
            new.mkdir(mode=0o700)
            store = FileStore(folder, MailFiles(folder), Database(new))
            try:
                _read_mail(store, folder, result, progress)
                _replay(store, Journal(folder), result)
                _recompute_news(store)
                store.mark_checked()
            finally:
                store.db.close()
            _replace_database(folder, new)
    return result


def _read_mail(store: FileStore, folder: Path, result: Reindexed, progress: Callable[[int, int, int], None]) -> None:
    found: list[UUID] = []
    mail = MailFiles(folder)
    for id, path in mail.all_files():
        if id is None:
            result.foreign.append(path)
        else:
            found.append(id)
    found.sort()  # in the order in which the messages were held, so that the database grows by appended pages
    size_bytes = 0
    for n, id in enumerate(found, 1):
        try:
            store.messages.rebuild_rows(id)
            result.messages += 1
            size_bytes += mail.path(id).stat().st_size
        except DamagedFile:
            result.damaged.append(mail.path(id))
        except FileNotFoundError:
            pass  # deleted, for example by cron, since it was listed
        progress(n, len(found), size_bytes)


# ---- the journal


def _replay(store: FileStore, journal: Journal, result: Reindexed) -> None:
    for line in journal.lines():
        try:
            if line is None:
                raise ValueError("not a JSON object")
            at = parse_time(line["at"])
            _replay_line(store, line, result)
        except (KeyError, ValueError, TypeError, AttributeError):
            result.unreadable_lines += 1
        else:
            result.journal_since = result.journal_since or at


def _replay_line(store: FileStore, line: dict[str, Any], result: Reindexed) -> None:
    match line["kind"]:
        case "delivery":
            _replay_audit(store, line)
            result.actions += _replay_delivery(store, line)
        case "audit":
            _replay_audit(store, line)
        case "verdict":
            _replay_verdict(store, line)
        case "scan":
            _replay_scan(store, line)
        case "person":
            store.recipients.import_preferences(_person(line))
            result.people += 1
        case "told":
            keys = [DeliveryId(UUID(id), int(number)) for id, number in line["deliveries"]]
            with store.engine.writing(durable=False) as session:
                add_announced_to(session, identity(str(line["reader"])), keys)
        case "digest":
            with store.engine.writing(durable=False) as session:
                import_digest(session, _digest(line))
            result.digests += 1
        case "rule":
            with store.engine.writing(durable=False) as session:
                put_rule(session, rule_of(line), parse_time(line["at"]))
            result.rules += 1
        case "domain":
            with store.engine.writing(durable=False) as session:
                put_domain_value(session, domain_value_of(line))
        case "staff":
            with store.engine.writing(durable=False) as session:
                put_grants(session, str(line["person"]), grants_of(line))
        case "token":
            with store.engine.writing(durable=False) as session:
                put_token(session, token_of(line))
        case "second-factor":
            with store.engine.writing(durable=False) as session:
                put_factor(session, str(line["person"]), second_factor_of(line))
        case "statistics":
            with store.engine.writing(durable=False) as session:
                put_closed(session, *statistics_of(line))
        case kind:
            raise ValueError(f"unknown kind of line: {kind}")


def _replay_delivery(store: FileStore, line: dict[str, Any]) -> bool:
    """Set a delivery to the state of the line, and add the line's events that are not in its history. Idempotent.

    Returns whether the delivery exists. Does not write to the journal.
    """
    line_events = events_of(line)
    key = DeliveryId(UUID(line["id"]), int(line["number"]))
    with store.engine.writing(durable=False) as session:
        try:
            known = _ROWS.delivery(session, key)
        except NotFound:
            return False  # purged, or its mail file is missing
        if line_events and line_events[-1].kind is EventKind.REANNOUNCED:  # then lines before it do not count
            make_unannounced(session, key)
            known = replace(known, announced_at=None)
        _ROWS.put(session, _delivery(known, line))
        history = events(session, [key.message_id]).get(key, [])
        for event in line_events:
            if event not in history:
                add_event(session, key, event)
    return True


def _replay_audit(store: FileStore, line: dict[str, Any]) -> None:
    """Add the entries of the audit that a line has, also for messages that were purged. Idempotent."""
    with store.engine.writing(durable=False) as session:
        put(session, audit_entries_of(line))


def _replay_verdict(store: FileStore, line: dict[str, Any]) -> None:
    """Set the verdict that a message got when it was received again, if the store has the message."""
    with store.engine.writing(durable=False) as session:
        messages = _ROWS.messages(session, "WHERE id = :id", id=UUID(line["id"]))
        if messages:
            updated = with_verdict_of(line, messages[0])
            if messages[0].verdict_tier in updated.verdict_tier.less_harmful:
                _ROWS.put_verdict(session, updated)


def _replay_scan(store: FileStore, line: dict[str, Any]) -> None:
    """Set the virus scan of a message, if the store has the message."""
    scan = scans.from_json(line["scan"])
    with store.engine.writing(durable=False) as session:
        messages = _ROWS.messages(session, "WHERE id = :id", id=UUID(line["id"]))
        if messages:
            _ROWS.put_scan(session, replace(messages[0], scan=scan))


def _recompute_news(store: FileStore) -> None:
    """Recompute ``news_since`` of recipients with news: None if no mail is held that is not announced to them."""
    after = ""
    while people := store.recipients.records(after, _BATCH):
        after = people[-1].recipient
        with store.engine.writing(durable=False) as session:
            for person in people:
                if person.news_since is not None:
                    session.execute(
                        "UPDATE recipient SET news_since = :since WHERE recipient = :recipient",
                        since=oldest_news(session, Reader(person.recipient)),
                        recipient=person.recipient,
                    )


def _delivery(known: Delivery, line: dict[str, Any]) -> Delivery:
    return replace(
        known,
        recipient=identity(str(line["recipient"])),  # with U-labels up to version 0.1.1
        address=str(line["address"]),
        state=State(line["state"]),
        state_at=parse_time(line["state_at"]),
        reason=str(line["reason"]),
        attempts=int(line["attempts"]),
        next_try_at=parse_time_or_none(line["next_try_at"]),
        # An older line does not make an announced delivery unannounced.
        announced_at=parse_time_or_none(line["announced_at"]) or known.announced_at,
    )


def _person(line: dict[str, Any]) -> Person:
    return Person(
        identity(str(line["recipient"])),
        str(line["address"]),
        parse_time_or_none(line["stopped_at"]),
        parse_time_or_none(line["links_valid_from"]),
        None,
        None,
        Preferences.from_json(line.get("preferences")),
        devices_valid_from=parse_time_or_none(line.get("devices_valid_from")),  # since version 7
    )


def _digest(line: dict[str, Any]) -> DigestRecord:
    return DigestRecord(
        UUID(line["id"]),
        identity(str(line["recipient"])),
        str(line["address"]),
        parse_time(line["issued_at"]),
        parse_time(line["sent_at"]),
        tuple(DeliveryId(UUID(id), int(number)) for id, number in line["deliveries"]),
        bool(line.get("is_notice")),  # since version 7
    )


# ---- replacing the database


def _replace_database(folder: Path, new: Path) -> None:
    """Replace the old database with the new one.

    If the program is killed in between, the next start finds no database and reads the mail files; running reindex
    again restores the rest.
    """
    if (new / f"{DATABASE}-wal").exists():
        raise StoreUnavailable("the new database was not written completely: run `quarantine reindex` again")
    _sync(new / DATABASE)
    backup = folder / "before-reindex"
    shutil.rmtree(backup, ignore_errors=True)
    backup.mkdir(mode=0o700)
    # Move the database before its log: SQLite empties a log without a database. In the other order a crash would leave
    # a database without the changes in the log, and SQLite would use it.
    for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"):
        if (folder / name).exists():
            (folder / name).rename(backup / name)
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
