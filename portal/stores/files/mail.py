"""The mail files: one per message, ``mail/YYYY/MM/DD/<last two hex digits of the id>/<id>.eml.zst``.

A file is the message as one zstd frame (RFC 8878) and behind it a skippable frame (3.1.2) with JSON that holds all
that is known of it, so that one write, fsync, rename and fsync of the folder make both durable at once, ``zstdcat
FILE`` prints the mail, and the database can be made anew from the files. In front, the skippable frame would make
some readers stop after it. The JSON is compressed, as a zstd frame inside the skippable one: it is a third as long
then, and with files of some KB in blocks of 4 KB that is a tenth of what the mail takes on the disk.

Raises OSError as it comes; `files.FileStore` translates.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date, timedelta
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

import zstandard

from portal.model.fast_json import encode
from portal.model.message import Body, held_at, parse_id

_SUFFIX = ".eml.zst"
# Of the sixteen that skippable frames may have: the first for plain JSON, as files of before have it.
_PLAIN_MAGIC, _PACKED_MAGIC = 0x184D2A50, 0x184D2A51
_HEADER = struct.Struct("<II")  # magic, length of what follows
_LEVEL = 3
_AT_ONCE_BYTES = 1 << 20  # smaller bodies are handled in memory, larger ones in pieces
_PIECE_BYTES = 1 << 18
_FACTS_MAX_BYTES = 64 << 20


class DamagedFile(Exception):
    """A mail file that is cut short, altered, or not one of ours."""


class MailFiles:
    """The folders ``mail`` and ``tmp`` of a file store."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "mail"
        self._tmp = folder / "tmp"
        self._durable_days: set[date] = set()
        self._day_folders: dict[date, Path] = {}
        self._own = threading.local()  # each thread's compressor: making one costs as much as compressing 2 KB
        for each in (self.root, self._tmp):
            _make_folder(each)
        _sync_folder(folder)
        # Its own name as well: a new store would be gone as a whole. What cannot be read was not made just now.
        for each in folder.parents:
            with suppress(PermissionError):
                _sync_folder(each)

    def path(self, message_id: UUID) -> Path:
        """Where a message's file is, or would be."""
        return Path(self._path(message_id))

    def _path(self, message_id: UUID) -> str:
        # Text on the way of each mail: a Path costs more than the system call it is for.
        name = str(message_id)
        return f"{self._folder(held_at(message_id).date())}/{name[-2:]}/{name}{_SUFFIX}"

    def has(self, message_id: UUID) -> bool:
        """Whether the file is there, and a file. Any error but its absence is raised."""
        try:
            there = os.stat(self._path(message_id))  # noqa: PTH116 - Path.exists() hides errors such as EIO
        except (FileNotFoundError, NotADirectoryError):
            return False
        return stat.S_ISREG(there.st_mode)

    # ---- write

    def write(self, message_id: UUID, body: Body, facts: dict[str, Any]) -> None:
        """Make the message durable: after this a power cut does not lose it. Readers see all of it or nothing."""
        path, being_written = self._path(message_id), f"{self._tmp}/{message_id}{_SUFFIX}"
        descriptor = os.open(being_written, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                for piece in self._pieces_of(body, facts):
                    _write(descriptor, piece)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._into_place(being_written, path, held_at(message_id).date())
        except BaseException:
            with suppress(OSError):  # what stays is swept by purge; the first error is the one to tell
                Path(being_written).unlink(missing_ok=True)
            raise

    def _pieces_of(self, body: Body, facts: dict[str, Any]) -> Iterator[bytes]:
        """What a file consists of."""
        if not hasattr(self._own, "compressor"):
            self._own.compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        compressor = self._own.compressor
        packed = compressor.compress(encode(facts))
        tail = _HEADER.pack(_PACKED_MAGIC, len(packed)) + packed
        if body.size_bytes <= _AT_ONCE_BYTES:
            yield compressor.compress(b"".join(body.chunks(_AT_ONCE_BYTES))) + tail
            return
        stream = compressor.compressobj(size=body.size_bytes)
        for chunk in body.chunks(_PIECE_BYTES):
            yield stream.compress(chunk)
        yield stream.flush() + tail

    def _into_place(self, being_written: str, path: str, day: date) -> None:
        for last in (False, True):
            try:
                self.prepare(day)
                os.rename(being_written, path)  # noqa: PTH104 - texts, see _path
                break
            except FileNotFoundError:  # emptied folders were removed since we made them
                if last:
                    raise
                self._durable_days.clear()
        try:
            _sync_folder(path.rpartition("/")[0])
        except BaseException:
            with suppress(OSError):
                Path(path).unlink()  # perhaps not durable, so it is not held
            raise

    def prepare(self, day: date) -> None:
        """Make a day's folders durable, all 256 at once: one by one, each would cost its first mail an fsync more.

        Also when they are there: the process that made them may not have come to syncing them yet.
        """
        if day in self._durable_days:
            return
        folder = self._folder(day)
        for each in (folder.parent.parent, folder.parent, folder):
            _make_folder(each)
            _sync_folder(each.parent)
        for number in range(256):
            _make_folder(folder / f"{number:02x}")
        _sync_folder(folder)
        self._durable_days.add(day)

    def _folder(self, day: date) -> Path:
        if day not in self._day_folders:
            self._day_folders[day] = self.root / f"{day.year:04}" / f"{day.month:02}" / f"{day.day:02}"
        return self._day_folders[day]

    def remove(self, message_id: UUID) -> None:
        """Remove a message's file if it is there."""
        with suppress(IsADirectoryError):  # somebody's folder in its place stays
            self.path(message_id).unlink(missing_ok=True)

    # ---- read

    def read(self, message_id: UUID, size_bytes: int, sha256: bytes) -> Iterator[bytes]:
        """The message in pieces of at most 1 MiB. Raises DamagedFile, at the end at the latest, when it is not the
        one with that SHA-256; FileNotFoundError."""
        path = self.path(message_id)
        if size_bytes > _AT_ONCE_BYTES:
            path.stat()
            return self._pieces(path, sha256)
        with _opened(path) as file:
            data = b"".join(_decompress(file))
        if hashlib.sha256(data).digest() != sha256:
            raise DamagedFile("its SHA-256 differs")
        return iter((data,) if data else ())

    @staticmethod
    def _pieces(path: Path, sha256: bytes) -> Iterator[bytes]:
        digest = hashlib.sha256()
        with _opened(path) as file:
            for piece in _decompress(file):
                digest.update(piece)
                yield piece
        if digest.digest() != sha256:
            raise DamagedFile("its SHA-256 differs")

    def facts(self, message_id: UUID) -> dict[str, Any]:
        """What stands behind the mail, after the whole file was checked. Raises DamagedFile, FileNotFoundError."""
        digest = hashlib.sha256()
        with _opened(self.path(message_id)) as file:
            for piece in _decompress(file):
                digest.update(piece)
            file.seek(_frame_end(file))
            data = file.read(_FACTS_MAX_BYTES)
        if len(data) < _HEADER.size or data[4 : _HEADER.size] != (len(data) - _HEADER.size).to_bytes(4, "little"):
            raise DamagedFile("it has no whole metadata frame")
        try:
            facts = json.loads(_unpacked(_HEADER.unpack_from(data)[0], data[_HEADER.size :]))
            fits = facts["id"] == str(message_id) and bytes.fromhex(facts["body_sha256"]) == digest.digest()
        except (ValueError, KeyError, TypeError, zstandard.ZstdError) as error:
            raise DamagedFile("its metadata cannot be read") from error
        if not fits:
            raise DamagedFile("its metadata belong to another mail")
        return dict(facts)

    # ---- look over

    def days(self) -> list[date]:
        """Days that have a folder, oldest first."""
        found = []
        for folder in self.root.glob("[0-9][0-9][0-9][0-9]/[0-9][0-9]/[0-9][0-9]"):
            with suppress(ValueError):
                found.append(date(*(int(part) for part in folder.parts[-3:])))
        return sorted(found)

    def ids(self, day: date) -> Iterator[UUID]:
        """The messages whose files lie in a day's folder, in no order."""
        with suppress(FileNotFoundError):
            for folder in self._folder(day).iterdir():
                with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
                    for entry in entries:
                        id = parse_id(entry.name.removesuffix(_SUFFIX))
                        if id is not None and self.path(id).name == entry.name and entry.path == str(self.path(id)):
                            yield id

    def everything(self) -> Iterator[tuple[UUID | None, Path]]:
        """All files below ``mail``, in no order: the id of a message's, None for what is none of ours. Also what has
        the name of a mail file and is a folder."""
        for folder, folders, names in os.walk(self.root):
            for name in [*names, *(name for name in folders if name.endswith(_SUFFIX))]:
                path = Path(folder, name)
                id = parse_id(name.removesuffix(_SUFFIX)) if name.endswith(_SUFFIX) else None
                yield (id if id is not None and self.path(id) == path else None), path

    def age(self, message_id: UUID, now_seconds: float) -> timedelta:
        """How long ago the file was written. Raises FileNotFoundError."""
        return timedelta(seconds=now_seconds - self.path(message_id).stat().st_mtime)

    def sweep(self, day: date) -> None:
        """Remove a past day's empty folders, and the month's and year's with the last of them."""
        folder = self._folder(day)
        empty = [*folder.iterdir(), folder] if folder.is_dir() else []
        for each in [*empty, folder.parent, folder.parent.parent]:
            with suppress(OSError):  # not empty, or gone already
                each.rmdir()

    def discard_unfinished(self, message_id: UUID) -> None:
        """Remove what a crash left of writing just this message."""
        (self._tmp / f"{message_id}{_SUFFIX}").unlink(missing_ok=True)

    def sweep_unfinished(self, now_seconds: float, older_than: timedelta) -> None:
        """Remove what crashes left half-written in ``tmp``."""
        with os.scandir(self._tmp) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if now_seconds - entry.stat().st_mtime > older_than.total_seconds():
                        Path(entry.path).unlink()

    def try_write(self) -> None:
        """Raise OSError when a small file could not be written now. The database alone does not tell on a full disk:
        its log has room of its own."""
        path = self._tmp / f"ping-{os.getpid()}-{time.monotonic_ns()}"
        try:
            path.write_bytes(bytes(4096))
        finally:
            path.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(0o700)
        folder.chmod(0o700)  # whatever the umask
    except FileExistsError:
        if not folder.is_dir():
            raise


def _sync_folder(folder: Path | str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(descriptor: int, data: bytes) -> None:
    """All of it: a disk that gets full takes a part first."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


def _unpacked(magic: int, data: bytes) -> bytes:
    """The JSON in a skippable frame. Raises DamagedFile, ZstdError."""
    if magic == _PLAIN_MAGIC:
        return data
    if magic != _PACKED_MAGIC or zstandard.frame_content_size(data) > _FACTS_MAX_BYTES:
        raise DamagedFile("it has no whole metadata frame")
    return zstandard.ZstdDecompressor().decompress(data)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Raises DamagedFile when it is no file, so that one mail is lost by that and not the store."""
    try:
        kind = path.stat().st_mode
    except FileNotFoundError as error:
        if path.is_symlink():
            raise DamagedFile("a link to nowhere is in its place") from error
        raise
    if not stat.S_ISREG(kind):  # asked before: opening a pipe waits for somebody to write into it
        raise DamagedFile(f"a {'folder' if stat.S_ISDIR(kind) else 'pipe or device'} is in its place")
    with path.open("rb") as file:
        yield file


def _decompress(file: BinaryIO) -> Iterator[bytes]:
    """The first frame's content in pieces, however much it was compressed. Raises DamagedFile, but a file cut short
    may just end early: the caller compares the SHA-256."""
    reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=False, closefd=False)
    try:
        while piece := reader.read(_PIECE_BYTES):
            yield piece
    except zstandard.ZstdError as error:
        raise DamagedFile("it is no whole zstd frame") from error


def _frame_end(file: BinaryIO) -> int:
    """Where the first frame ends, by walking its blocks (RFC 8878, 3.1.1). Raises DamagedFile."""
    file.seek(0)
    try:
        start = file.read(18)  # the longest frame header
        position = zstandard.frame_header_size(start)
        has_checksum = zstandard.get_frame_parameters(start).has_checksum
    except zstandard.ZstdError as error:
        raise DamagedFile("it is no zstd frame") from error
    last = 0
    while not last:
        file.seek(position)
        header = int.from_bytes(file.read(3).ljust(3, b"\1"), "little")
        last, kind, size_bytes = header & 1, header >> 1 & 3, header >> 3
        position += 3 + (1 if kind == 1 else size_bytes)  # 1: one byte repeated
    return position + (4 if has_checksum else 0)
