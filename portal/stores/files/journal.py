"""The file store's audit journal, ``journal/YYYY-MM-DD.jsonl``: what was done to deliveries, by whom, who wants what.

The SQLite file is rebuilt from the mail files when it is lost (`reindex`); what the mail files cannot say stands
here, one JSON object a line, in files by UTC day. Lines are snapshots, not steps: replaying them in order, once or
twice, ends with what the last one said.

    {"at": …, "kind": "delivery", "id": …, "number": 0, "recipient": …, "address": …, "state": "released",
     "state_at": …, "reason": "", "attempts": 1, "next_try_at": null, "announced_at": null,
     "events": [{"at": …, "what": "released", "who": "recipient", "via": "link", "address": "192.0.2.7", "detail": ""}]}
    {"at": …, "kind": "verdict", "id": …, "tier": "dangerous", "symbols": [[name, score, [option, …]], …], "score": …,
     "action": "reject", "flags": []}
    {"at": …, "kind": "person", "recipient": …, "address": …, "stopped_at": null, "links_valid_from": …,
     "preferences": null}
    {"at": …, "kind": "told", "reader": …, "deliveries": [[id, number], …]}
    {"at": …, "kind": "digest", "id": …, "recipient": …, "address": …, "issued_at": …, "sent_at": …,
     "deliveries": [[id, number], …]}

A line is written right after the commit of what it tells, still under the writers' lock, so the order of lines is the
order of commits. A crash in between loses the last line: that delivery is held again after a rebuild, and at worst a
mail arrives twice. The other way round, a line about what was never committed could hide a mail for ever.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from portal.model.message import Actor, Delivery, Event, EventKind, Flag, Message, Tier
from portal.stores import DigestRecord, Person, symbols

log = logging.getLogger("quarantine.store")

_SUFFIX = ".jsonl"
_encode = json.JSONEncoder(separators=(",", ":")).encode  # ASCII: any text can be written


class Journal:
    """The folder ``journal`` of a file store; made with its first line."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "journal"

    def append(self, lines: Sequence[dict[str, Any]]) -> Path | None:
        """Write lines, whole, at the end of today's file; the caller holds the writers' lock. Returns it for `sync`.

        What they tell is committed, so a failure is logged, not raised; then None is returned.
        """
        now = datetime.now(UTC)
        path = self._folder / f"{now.date().isoformat()}{_SUFFIX}"
        data = "".join(_encode({"at": now.isoformat(), **line}) + "\n" for line in lines).encode()
        try:
            descriptor = self._open(path)
            try:
                size_bytes = os.fstat(descriptor).st_size
                if size_bytes == 0:
                    _sync(self._folder)  # the file itself must outlive a power cut, too
                elif os.pread(descriptor, 1, size_bytes - 1) != b"\n":
                    data = b"\n" + data  # a full disk or a crash cut the last line: it costs no other
                while data:
                    data = data[os.write(descriptor, data) :]
            finally:
                os.close(descriptor)
        except OSError as error:
            log.error("audit journal not written, a reindex would not know of %d acts: %s", len(lines), error.strerror)
            return None
        return path

    def _open(self, path: Path) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            with suppress(FileExistsError):
                self._folder.mkdir(0o700)
            _sync(self._folder.parent)
            return os.open(path, flags, 0o600)

    def sync(self, path: Path) -> bool:
        """Make what was appended durable; outside the lock, so that only the one who acted waits. False: it failed."""
        try:
            _sync(path)
        except OSError as error:
            log.error("audit journal not synced: %s", error.strerror)
            return False
        return True

    def lines(self) -> Iterator[dict[str, Any] | None]:
        """All lines, oldest first; None for one that cannot be read. Raises OSError."""
        for day in self.days():
            with self._path(day).open("rb") as file:
                for line in file:
                    try:
                        entry = json.loads(line)
                    except ValueError:
                        entry = None
                    if line.strip():
                        yield entry if isinstance(entry, dict) else None

    def days(self) -> list[date]:
        """The days that have a file, oldest first. Raises OSError."""
        found = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            with suppress(ValueError):
                found.append(date.fromisoformat(path.name.removesuffix(_SUFFIX)))
        return sorted(day for day in found if self._path(day).is_file())

    def remove(self, days: Sequence[date]) -> None:
        """Remove these days' files. Raises OSError."""
        for day in days:
            self._path(day).unlink(missing_ok=True)

    def _path(self, day: date) -> Path:
        return self._folder / f"{day.isoformat()}{_SUFFIX}"


def delivery_line(delivery: Delivery, events: Sequence[Event]) -> dict[str, Any]:
    """A delivery as it is now, and what happened to it."""
    return {
        "kind": "delivery",
        "id": str(delivery.id),
        "number": delivery.number,
        "recipient": delivery.recipient,
        "address": delivery.address,
        "state": delivery.state.value,
        "state_at": delivery.state_at.isoformat(),
        "reason": delivery.reason,
        "attempts": delivery.attempts,
        "next_try_at": _text(delivery.next_try_at),
        "announced_at": _text(delivery.announced_at),
        "events": [
            {
                "at": event.at.isoformat(),
                "what": event.kind,
                "who": event.actor.who,
                "via": event.actor.via,
                "address": event.actor.address,
                "detail": event.detail,
            }
            for event in events
        ],
    }


def verdict_line(message: Message) -> dict[str, Any]:
    """Return what Rspamd said of a message when it came again."""
    return {
        "kind": "verdict",
        "id": str(message.id),
        "tier": message.tier.value,
        "symbols": message.symbols,  # JSON has each as a list
        "score": message.score,
        "action": message.action,
        "flags": sorted(message.flags),
    }


def with_verdict_of(line: dict[str, Any], message: Message) -> Message:
    """Return the message with the verdict of a `verdict_line`.

    Raises KeyError, ValueError, TypeError when the line is not one.
    """
    return replace(
        message,
        tier=Tier(line["tier"]),
        symbols=symbols.from_json(line["symbols"]),
        score=None if line["score"] is None else float(line["score"]),
        action=None if line["action"] is None else str(line["action"]),
        flags=frozenset(map(Flag, line["flags"])),
    )


def events_of(line: dict[str, Any]) -> list[Event]:
    """The events of a `delivery_line`. Raises KeyError, ValueError, TypeError when it is none."""
    return [
        Event(
            moment(e["at"]),
            EventKind(e["what"]),
            Actor(str(e["who"]), str(e["via"]), str(e["address"])),
            str(e["detail"]),
        )
        for e in line["events"]
    ]


def person_line(person: Person) -> dict[str, Any]:
    """What a person wants now."""
    return {
        "kind": "person",
        "recipient": person.recipient,
        "address": person.address,
        "stopped_at": _text(person.stopped_at),
        "links_valid_from": _text(person.links_valid_from),
        "preferences": person.preferences.to_json(),
    }


def told_line(reader: str, deliveries: Sequence[tuple[UUID, int]]) -> dict[str, Any]:
    """Who was told of deliveries under another name, or with others."""
    return {"kind": "told", "reader": reader, "deliveries": [[str(id), number] for id, number in deliveries]}


def digest_line(digest: DigestRecord) -> dict[str, Any]:
    """A digest that was sent, and what it announced."""
    return {
        "kind": "digest",
        "id": str(digest.id),
        "recipient": digest.recipient,
        "address": digest.address,
        "issued_at": digest.issued_at.isoformat(),
        "sent_at": _text(digest.sent_at),
        "deliveries": [[str(message_id), number] for message_id, number in digest.deliveries],
    }


def moment(text: str) -> datetime:
    """A time of a line, aware UTC. Raises ValueError, TypeError."""
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("a time without its zone")
    return at.astimezone(UTC)


def _text(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
