"""Mail files: one per message, ``mail/YYYY/MM/DD/<last two hex digits of the id>/<id>.eml.zst``.

A file is the message as one zstd frame (RFC 8878), followed by a skippable frame (3.1.2) with the message's metadata as
JSON. So one write, fsync, rename and fsync of the folder make both durable at once, ``zstdcat FILE`` prints the mail,
and the database can be rebuilt from the files. The skippable frame comes last, since some readers stop after a
skippable frame at the beginning. The JSON is compressed, as a zstd frame inside the skippable one: this reduces it to a
third, which saves a tenth of the disk space of a mail (files of some KB in blocks of 4 KB).

Errors of the file system are raised as OSError; the store translates them (`Database.translated`).
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
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
from portal.stores import compressors

_SUFFIX = ".eml.zst"
# Two of the sixteen magic numbers of skippable frames: the first for plain JSON, as in older files.
_PLAIN_MAGIC, _PACKED_MAGIC = 0x184D2A50, 0x184D2A51
_HEADER = struct.Struct("<II")  # magic number, length of the content
_IN_MEMORY_BYTES = 1 << 20  # larger bodies are handled in pieces
_PIECE_BYTES = 1 << 18
_METADATA_MAX_BYTES = 64 << 20


class DamagedFile(Exception):
    """A mail file is truncated, altered, or was not written by the portal."""


class MailFiles:
    """The folders ``mail`` and ``tmp`` of a file store."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "mail"
        self._tmp = folder / "tmp"
        self._durable_days: set[date] = set()
        for each in (self.root, self._tmp):
            _make_folder(each)
        _sync_folder(folder)
        # Sync the parents as well, or a power cut could remove a whole new store. Folders that this process may not
        # read were not created just now.
        for each in folder.parents:
            with suppress(PermissionError):
                _sync_folder(each)

    def path(self, message_id: UUID) -> Path:
        """Return the path of a message's file, which need not exist."""
        return Path(self._path(message_id))

    def _path(self, message_id: UUID) -> str:
        # A string, since this runs for each mail. Row of the bench: "a post without paths as strings".
        name = str(message_id)
        return f"{self.root}/{_relative(held_at(message_id).date())}/{name[-2:]}/{name}{_SUFFIX}"

    def has(self, message_id: UUID) -> bool:
        """Return whether the message's file exists and is a regular file. Raises OSError for other errors."""
        try:
            status = os.stat(self._path(message_id))  # noqa: PTH116 - Path.exists() hides errors such as EIO
        except (FileNotFoundError, NotADirectoryError):
            return False
        return stat.S_ISREG(status.st_mode)

    # ---- write

    def write(self, message_id: UUID, body: Body, metadata: dict[str, Any]) -> None:
        """Write a message's file durably: a later power cut does not lose it. Readers see the complete file or none."""
        path, temporary = self._path(message_id), f"{self._tmp}/{message_id}{_SUFFIX}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                for piece in self._encoded(body, metadata):
                    _write(descriptor, piece)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._move_into_place(temporary, path, held_at(message_id).date())
        except BaseException:
            with suppress(OSError):  # purge removes a file that stays; the caller needs the first error
                Path(temporary).unlink(missing_ok=True)
            raise

    @staticmethod
    def _encoded(body: Body, metadata: dict[str, Any]) -> Iterator[bytes]:
        """Yield the content of a message's file in pieces."""
        data = encode(metadata)
        packed = compressors.own.with_checksum(len(data)).compress(data)
        tail = _HEADER.pack(_PACKED_MAGIC, len(packed)) + packed
        compressor = compressors.own.with_checksum(body.size_bytes)
        if body.size_bytes <= _IN_MEMORY_BYTES:
            yield compressor.compress(b"".join(body.chunks(_IN_MEMORY_BYTES))) + tail
            return
        stream = compressor.compressobj(size=body.size_bytes)
        for chunk in body.chunks(_PIECE_BYTES):
            yield stream.compress(chunk)
        yield stream.flush() + tail

    def _move_into_place(self, temporary: str, path: str, day: date) -> None:
        for last in (False, True):
            try:
                self.prepare(day)
                os.rename(temporary, path)  # noqa: PTH104 - strings, see _path
                break
            except FileNotFoundError:  # the day's empty folders were removed since `prepare` created them
                if last:
                    raise
                self._durable_days.clear()
        try:
            _sync_folder(path.rpartition("/")[0])
        except BaseException:
            with suppress(OSError):
                Path(path).unlink()  # it may not be durable, so the message is not held
            raise

    def prepare(self, day: date) -> None:
        """Create a day's folders durably, all 256 at once: otherwise the first mail of each would cost one more fsync.

        Folders that exist are synced as well, since the process that created them may not have synced them yet.
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
        return self.root / _relative(day)

    def remove(self, message_id: UUID) -> None:
        """Remove a message's file if it exists."""
        with suppress(IsADirectoryError):  # a folder of that name is not the store's and stays
            self.path(message_id).unlink(missing_ok=True)

    # ---- read

    def read(self, message_id: UUID, size_bytes: int, sha256: bytes) -> Iterator[bytes]:
        """Return the message in pieces of at most 1 MiB.

        Raises DamagedFile, after the last piece at the latest, when the message does not have this SHA-256;
        FileNotFoundError.
        """
        path = self.path(message_id)
        if size_bytes > _IN_MEMORY_BYTES:
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

    def metadata(self, message_id: UUID) -> dict[str, Any]:
        """Return the metadata in a message's file after checking the whole file. Raises DamagedFile,
        FileNotFoundError."""
        digest = hashlib.sha256()
        with _opened(self.path(message_id)) as file:
            for piece in _decompress(file):
                digest.update(piece)
            file.seek(_frame_end(file))
            data = file.read(_METADATA_MAX_BYTES)
        if len(data) < _HEADER.size or data[4 : _HEADER.size] != (len(data) - _HEADER.size).to_bytes(4, "little"):
            raise DamagedFile("its metadata frame is incomplete")
        try:
            metadata = json.loads(_unpacked(_HEADER.unpack_from(data)[0], data[_HEADER.size :]))
            matches = metadata["id"] == str(message_id) and bytes.fromhex(metadata["body_sha256"]) == digest.digest()
        except (ValueError, KeyError, TypeError, zstandard.ZstdError) as error:
            raise DamagedFile("its metadata cannot be read") from error
        if not matches:
            raise DamagedFile("its metadata belongs to another mail")
        return dict(metadata)

    # ---- list and clean up

    def days(self) -> list[date]:
        """Return the days that have a folder, oldest first."""
        found = []
        for folder in self.root.glob("[0-9][0-9][0-9][0-9]/[0-9][0-9]/[0-9][0-9]"):
            with suppress(ValueError):
                found.append(date(*(int(part) for part in folder.parts[-3:])))
        return sorted(found)

    def ids(self, day: date) -> Iterator[UUID]:
        """Yield the ids of the messages that have a file in a day's folder, in no particular order."""
        with suppress(FileNotFoundError):
            for folder in self._folder(day).iterdir():
                with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
                    for entry in entries:
                        id = parse_id(entry.name.removesuffix(_SUFFIX))
                        if id is not None and self.path(id).name == entry.name and entry.path == str(self.path(id)):
                            yield id

    def all_files(self) -> Iterator[tuple[UUID | None, Path]]:
        """Yield (message id, path) of all files below ``mail``, in no particular order.

        The id is ``None`` if the file is not a mail file of the store. Folders with the name of a mail file are
        included.
        """
        for folder, folders, names in os.walk(self.root):
            for name in [*names, *(name for name in folders if name.endswith(_SUFFIX))]:
                path = Path(folder, name)
                id = parse_id(name.removesuffix(_SUFFIX)) if name.endswith(_SUFFIX) else None
                yield (id if id is not None and self.path(id) == path else None), path

    def age(self, message_id: UUID, now_seconds: float) -> timedelta:
        """Return the time since the file was written. Raises FileNotFoundError."""
        return timedelta(seconds=now_seconds - self.path(message_id).stat().st_mtime)

    def remove_empty_folders(self, day: date) -> None:
        """Remove a past day's empty folders, and those of its month and year if they are empty then."""
        folder = self._folder(day)
        empty = [*folder.iterdir(), folder] if folder.is_dir() else []
        for each in [*empty, folder.parent, folder.parent.parent]:
            with suppress(OSError):  # not empty, or removed already
                each.rmdir()

    def remove_unfinished(self, message_id: UUID) -> None:
        """Remove the partial file that a crash left while writing this message."""
        (self._tmp / f"{message_id}{_SUFFIX}").unlink(missing_ok=True)

    def remove_old_unfinished(self, now_seconds: float, older_than: timedelta) -> None:
        """Remove partial files that crashes left in ``tmp``."""
        with os.scandir(self._tmp) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if now_seconds - entry.stat().st_mtime > older_than.total_seconds():
                        Path(entry.path).unlink()

    def try_write(self) -> None:
        """Write and remove a small file. Raises OSError.

        The database alone does not show that the disk is full, since its log has space allocated already.
        """
        path = self._tmp / f"ping-{os.getpid()}-{time.monotonic_ns()}"
        try:
            path.write_bytes(bytes(4096))
        finally:
            path.unlink(missing_ok=True)


def _relative(day: date) -> str:
    """Return YYYY/MM/DD."""
    return day.isoformat().replace("-", "/")


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
    # A disk that becomes full accepts a part of the data first.
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


def _unpacked(magic: int, data: bytes) -> bytes:
    """Return the JSON of a skippable frame. Raises DamagedFile, ZstdError."""
    if magic == _PLAIN_MAGIC:
        return data
    if magic != _PACKED_MAGIC or zstandard.frame_content_size(data) > _METADATA_MAX_BYTES:
        raise DamagedFile("its metadata frame is incomplete")
    return zstandard.ZstdDecompressor().decompress(data)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a mail file. Raises DamagedFile if it is not a regular file, so that only this mail fails, not the store."""
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
    """Yield the first frame's content in pieces of bounded size, whatever its compression ratio.

    Raises DamagedFile. A truncated file may only end early, so the caller must compare the SHA-256.
    """
    reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=False, closefd=False)
    try:
        while piece := reader.read(_PIECE_BYTES):
            yield piece
    except zstandard.ZstdError as error:
        raise DamagedFile("its zstd frame is damaged") from error


def _frame_end(file: BinaryIO) -> int:
    """Return the offset of the end of the first frame, found by skipping its blocks (RFC 8878, 3.1.1). Raises
    DamagedFile."""
    file.seek(0)
    try:
        start = file.read(18)  # the longest frame header
        position = zstandard.frame_header_size(start)
        has_checksum = zstandard.get_frame_parameters(start).has_checksum
    except zstandard.ZstdError as error:
        raise DamagedFile("it does not begin with a zstd frame") from error
    last = 0
    while not last:
        file.seek(position)
        header = int.from_bytes(file.read(3).ljust(3, b"\1"), "little")
        last, kind, size_bytes = header & 1, header >> 1 & 3, header >> 3
        position += 3 + (1 if kind == 1 else size_bytes)  # 1: one byte repeated
    return position + (4 if has_checksum else 0)
