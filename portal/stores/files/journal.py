"""Files of the audit journal, ``journal/YYYY-MM-DD.jsonl``, by UTC day. See `stores.journal` for the lines.

A line is written right after the commit of its change, still under the write lock, so the order of lines is the order
of commits. A crash in between loses the last line: after a rebuild that delivery is held again, and at worst a mail
arrives twice. If lines were written before the commit, a line about a change that was never committed could hide a
mail.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

log = logging.getLogger("quarantine.store")

_SUFFIX = ".jsonl"
_encode = json.JSONEncoder(separators=(",", ":")).encode  # writes ASCII, so any text can be encoded


class Journal:
    """The folder ``journal`` of a file store. It is created with the first line."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "journal"

    def append(self, lines: Sequence[dict[str, Any]]) -> Path | None:
        """Append complete lines to today's file and return its path for `sync`. The caller holds the write lock.

        Their changes are committed already, so a failure is logged, not raised; then None is returned.
        """
        now = datetime.now(UTC)
        path = self._folder / f"{now.date().isoformat()}{_SUFFIX}"
        data = "".join(_encode({"at": now.isoformat(), **line}) + "\n" for line in lines).encode()
        try:
            descriptor = self._open(path)
            try:
                size_bytes = os.fstat(descriptor).st_size
                if size_bytes == 0:
                    _sync(self._folder)  # the new file's name must survive a power cut, too
                elif os.pread(descriptor, 1, size_bytes - 1) != b"\n":
                    data = b"\n" + data  # a full disk or a crash cut the last line: start a new one after it
                while data:
                    data = data[os.write(descriptor, data) :]
            finally:
                os.close(descriptor)
        except OSError as error:
            log.error("audit journal not written, a reindex would lose %d changes: %s", len(lines), error.strerror)
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
        """Make appended lines durable; return False if that failed.

        Called without the write lock, so that other writers do not wait.
        """
        try:
            _sync(path)
        except OSError as error:
            log.error("audit journal not synced: %s", error.strerror)
            return False
        return True

    def lines(self, days: Sequence[date] | None = None) -> Iterator[dict[str, Any] | None]:
        """Yield all lines, or those of these days, oldest first; None for an unreadable line. Raises OSError."""
        for day in self.days() if days is None else days:
            with self._path(day).open("rb") as file:
                for line in file:
                    try:
                        entry = json.loads(line)
                    except ValueError:
                        entry = None
                    if line.strip():
                        yield entry if isinstance(entry, dict) else None

    def days(self) -> list[date]:
        """Return the days that have a file, oldest first. Raises OSError."""
        found = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            with suppress(ValueError):
                found.append(date.fromisoformat(path.name.removesuffix(_SUFFIX)))
        return sorted(day for day in found if self._path(day).is_file())

    def remove(self, days: Sequence[date]) -> None:
        """Remove the files of these days. Raises OSError."""
        for day in days:
            self._path(day).unlink(missing_ok=True)

    def _path(self, day: date) -> Path:
        return self._folder / f"{day.isoformat()}{_SUFFIX}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
