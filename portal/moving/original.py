"""Import of the messages that sys4's original quarantine.py stored: `quarantine import-original`.

For each POST of Rspamd's formatter ``default`` with ``meta_headers`` it stored files, rows or both, as configured:

- ``QID-meta.gz``: a line ``NAME: value`` for each header ``X-Rspamd-NAME``, in capitals (QID, SCORE, FROM, RCPT …);
  ``QID-msg.gz``: the message's bytes as received. A queue id that was used again replaced the files.
- rows of the tables `meta` and `msg`, see `original_tables`: no recipients, no subject, and the message decoded as
  UTF-8; messages that are not valid UTF-8 are missing.

Each message is turned into its POST again and processed like any other: `exporter.parse`, then `ingest.Ingest`.
"""

from __future__ import annotations

import gzip
import io
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, Protocol, cast

from portal import exporter
from portal.ingest import Ingest, Result
from portal.model.errors import BadExport, StoreUnusable
from portal.model.message import Body
from portal.moving.original_tables import OriginalTables, original_tables

log = logging.getLogger("quarantine.original")

_META, _MSG = "-meta.gz", "-msg.gz"
_META_MAX_BYTES = 16 << 20
_BODY_MAX_BYTES = 1 << 40  # in practice no limit: all that was stored is imported
_IN_MEMORY_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Original:
    """One message of the original."""

    fields: Mapping[str, str]  # Rspamd's metadata, by lower-case names; octets as ISO-8859-1
    held_at: datetime | None
    body: Body


@dataclass(slots=True)
class Imported:
    """The result of a run."""

    held: int = 0
    known: int = 0  # were held before, by an earlier run
    without_recipients: int = 0  # of ``held``
    too_old: int = 0
    own: int = 0  # digests and sign-in messages of this portal, which are not held
    problems: list[tuple[str, str]] = field(default_factory=list)  # name, reason


class Source(Protocol):
    """The messages of the original, by name."""

    def names(self) -> list[str]:
        """Return the names of all messages. Raises StoreUnavailable, StoreUnusable."""

    def read(self, name: str) -> Iterator[Original]:
        """Yield the messages of a name. Raises `Unusable`, StoreUnavailable."""


class Unusable(Exception):
    """A message of the original that cannot be imported; the text is the reason."""


class Folder:
    """The original's files, in its folder PREFIX."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        try:
            found = sorted(path.name for path in self._folder.iterdir())
        except OSError as error:
            raise StoreUnusable(f"--dir: {self._folder} cannot be read: {error.strerror}") from error
        names = {name.removesuffix(end) for name in found for end in (_META, _MSG) if name.endswith(end)}
        if not names:
            raise StoreUnusable(
                f"--dir: {self._folder} has no files QID{_META} and QID{_MSG}: use the original's PREFIX"
            )
        return sorted(names)

    def read(self, name: str) -> Iterator[Original]:
        path = self._folder / f"{name}{_MSG}"
        try:
            with SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as spool:
                at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
                with gzip.open(path) as file:
                    while chunk := file.read(_CHUNK_BYTES):
                        spool.write(chunk)
                yield Original(self._fields(name), at, Body(cast(BinaryIO, spool), 0, spool.tell()))
        except FileNotFoundError as error:
            raise Unusable("metadata without a message") from error
        except (OSError, EOFError, zlib.error) as error:  # gzip raises all three
            raise Unusable(f"its file is damaged or unreadable: {error}") from error

    def _fields(self, name: str) -> dict[str, str]:
        fields = {"qid": name}
        try:
            with gzip.open(self._folder / f"{name}{_META}") as file:
                text = file.read(_META_MAX_BYTES).decode("utf-8", "replace")
        except (OSError, EOFError, zlib.error) as error:
            log.warning("metadata missing or damaged qid=%s: %s", name, error)
            return fields  # a message without metadata is held too
        for line in text.split("\n"):
            key, colon, value = line.partition(": ")
            if colon:
                fields[key.lower()] = value
        return fields


class Tables:
    """The original's tables, in its database."""

    def __init__(self, tables: OriginalTables) -> None:
        self._tables = tables

    def names(self) -> list[str]:
        return self._tables.queue_ids()

    def read(self, name: str) -> Iterator[Original]:
        for row in self._tables.read(name):
            if row.content is None:
                raise Unusable("metadata without a message: it was not valid UTF-8, which the original could not store")
            yield Original(row.fields, row.held_at, Body(io.BytesIO(row.content), 0, len(row.content)))


@contextmanager
def opened(folder: Path | None, dsn: str | None) -> Iterator[Source]:
    """Open the folder, if given, or else the database. Raises StoreUnavailable, StoreUnusable."""
    if folder is not None:
        yield Folder(folder)
    else:
        with original_tables(dsn or "") as tables:
            yield Tables(tables)


def import_messages(
    source: Source,
    ingest: Ingest,
    oldest: datetime,
    progress: Callable[[int, int, int], None],
) -> Imported:
    """Hold all messages of the source that are not held yet, with the date that they have there.

    Messages older than ``oldest`` are not imported, since the next purge would remove them. Known local recipients are
    notified by digest. Raises StoreUnavailable; the next run then continues.
    """
    done, size_bytes = Imported(), 0
    names = source.names()
    for n, name in enumerate(names, 1):
        try:
            for original in source.read(name):
                if original.held_at is not None and original.held_at < oldest:
                    done.too_old += 1
                else:
                    size_bytes += original.body.size_bytes
                    _hold(original, ingest, done)
        except (Unusable, BadExport) as error:
            done.problems.append((name.strip(), str(error)))
        progress(n, len(names), size_bytes)
    return done


def _hold(original: Original, ingest: Ingest, done: Imported) -> None:
    headers = {f"x-rspamd-{name}": value for name, value in original.fields.items()}
    # This type makes the body the message, even if it looks like an export.
    posted = exporter.parse(headers | {"content-type": "message/rfc822"}, original.body, _BODY_MAX_BYTES)
    if posted is None:
        raise Unusable("the message has 0 bytes")
    with posted:
        at = min(original.held_at or datetime.now(UTC), datetime.now(UTC))
        outcome = ingest.hold(posted, at=at)
        recipients = posted.export.recipients
    if outcome.result is Result.NOT_SELECTED:
        done.own += 1
    elif outcome.result is Result.KNOWN:
        done.known += 1
    else:
        done.held += 1
        done.without_recipients += not recipients
