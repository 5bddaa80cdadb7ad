"""A model of power cuts: recorded system calls on a folder, and the files that a cut may leave.

The disk guarantees no more than POSIX. Data of a file is durable once that file was synced, and an entry of a folder (a
name that was made, moved or removed) once that folder was synced. Everything else may survive in any part: each 4 KB
block and each entry on its own.

Two recorders make the same list of operations: `from_strace` from strace's log, which has SQLite's calls too, and
`Shim` from Python's own calls, which needs no installed program and can make any single call fail.
"""

from __future__ import annotations

import errno
import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BLOCK_BYTES = 4096


@dataclass(frozen=True)
class Op:
    """An operation. Paths are relative to the folder's parent, so that making the folder is an operation too."""

    kind: str  # create, mkdir, write, truncate, sync, rename, unlink, rmdir, output
    path: str = ""
    to: str = ""
    offset: int = 0
    data: bytes = b""
    failed_sync: bool = False


@dataclass
class _Node:
    """A file (``entries`` None) or a folder. ``unsynced``: its changes since the last sync, oldest first."""

    entries: dict[str, _Node] | None = None
    durable_entries: dict[str, _Node] = field(default_factory=dict)
    durable: bytearray = field(default_factory=bytearray)
    unsynced: list[Any] = field(default_factory=list)

    @property
    def is_folder(self) -> bool:
        return self.entries is not None


class Disk:
    """Applies operations one by one; `remains` writes the files that a power cut would leave now."""

    def __init__(self) -> None:
        self._root = _Node(entries={})

    def apply(self, op: Op) -> None:
        if op.kind == "output":
            return
        if op.kind in ("create", "mkdir"):
            self._enter(op.path, _Node(entries={} if op.kind == "mkdir" else None))
        elif op.kind == "write":
            self._node(op.path).unsynced.append((op.offset, op.data))
        elif op.kind == "truncate":
            self._node(op.path).unsynced.append((op.offset, None))
        elif op.kind == "sync":
            self._sync(self._node(op.path), op.failed_sync)
        elif op.kind == "rename":
            node = self._node(op.path)
            self._enter(op.path, None)
            self._enter(op.to, node)
        else:
            self._enter(op.path, None)

    def exists(self, path: str) -> bool:
        """Return whether this file or folder exists now."""
        try:
            self._node(path)
        except KeyError:
            return False
        return True

    def size_bytes(self, path: str) -> int:
        """Return the current size of a file."""
        node = self._node(path)
        data = bytearray(node.durable)
        for write in node.unsynced:
            _write(data, *write)
        return len(data)

    def _node(self, path: str) -> _Node:
        node = self._root
        for name in Path(path).parts:
            assert node.entries is not None
            node = node.entries[name]
        return node

    def _enter(self, path: str, node: _Node | None) -> None:
        folder, name = self._node(str(Path(path).parent)), Path(path).name
        assert folder.entries is not None
        if node is None:
            folder.entries.pop(name, None)
        else:
            folder.entries[name] = node
        folder.unsynced.append((name, node))

    @staticmethod
    def _sync(node: _Node, failed: bool) -> None:
        if node.is_folder:
            if not failed:
                node.durable_entries = dict(node.entries or {})
                node.unsynced.clear()
            return
        # After a failed fsync Linux marks the pages as clean: a later fsync that succeeds does not cover them.
        if not failed:
            for write in node.unsynced:
                _write(node.durable, *write)
        node.unsynced.clear()

    def remains(self, folder: Path, source: random.Random, keep: float) -> None:
        """Write the remains below ``folder``; each unsynced block and entry survives with probability ``keep``."""
        self._remains(self._root, folder, source, keep)

    def _remains(self, node: _Node, path: Path, source: random.Random, keep: float) -> None:
        if not node.is_folder:
            data = bytearray(node.durable)
            for offset, written in node.unsynced:
                for at, piece in _blocks(offset, written):
                    if source.random() < keep:
                        _write(data, at, piece)
            path.write_bytes(data)
            return
        path.mkdir(exist_ok=True)
        entries = dict(node.durable_entries)
        for name, child in node.unsynced:
            if source.random() < keep:
                if child is None:
                    entries.pop(name, None)
                else:
                    entries[name] = child
        for name, child in entries.items():
            self._remains(child, path / name, source, keep)


def _write(data: bytearray, offset: int, written: bytes | None) -> None:
    if len(data) < offset:
        data.extend(bytes(offset - len(data)))
    if written is None:
        del data[offset:]
    else:
        data[offset : offset + len(written)] = written


def _blocks(offset: int, written: bytes | None) -> Iterator[tuple[int, bytes | None]]:
    """Yield the pieces of a write, each within one block."""
    if written is None:
        yield offset, None
        return
    end = offset + len(written)
    at = offset
    while at < end:
        upto = min(end, (at // BLOCK_BYTES + 1) * BLOCK_BYTES)
        yield at, written[at - offset : upto - offset]
        at = upto


# ---- strace

CALLS = (
    "openat,creat,mkdir,mkdirat,write,pwrite64,writev,pwritev,pwritev2,fsync,fdatasync,rename,renameat,renameat2,"
    "link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir,ftruncate,truncate,fallocate,lseek,sendfile,copy_file_range"
)
_LINE = re.compile(r"(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)")
_FILE = re.compile(r"(\d+)<((?:\\x[0-9a-f]{2})*)>")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass(frozen=True)
class Call:
    """A system call on the folder. ``number`` counts the process's calls of that name, from 1, as strace does.
    ``lines_written``: the number of lines on the program's standard output before the call."""

    name: str
    number: int
    injected: bool
    lines_written: int


def strace_command(log: Path, inject: str = "") -> list[str]:
    """Return the arguments that go before the program's command."""
    command = ["strace", "-f", "--seccomp-bpf", "-y", "-xx", "-s", "100000000", "-o", str(log), "-e", f"trace={CALLS}"]
    return [*command, "-e", f"inject={inject}"] if inject else command


def from_strace(log: Path, folder: Path) -> tuple[list[Op], list[Call]]:
    """Return the operations of a single-threaded program on ``folder`` with its output, and its calls there."""
    ops: list[Op] = []
    calls: list[Call] = []
    disk = Disk()  # knows which files exist
    counts: dict[str, int] = {}
    positions: dict[str, int] = {}
    lines_written = 0

    def inside(path: bytes) -> str | None:
        text = os.fsdecode(path)
        if text == str(folder.parent):
            return "."
        if text != str(folder) and not text.startswith(f"{folder}/"):
            return None
        return os.path.relpath(text, folder.parent)

    def done(op: Op) -> None:
        disk.apply(op)
        ops.append(op)

    for line in log.read_text("ascii").splitlines():
        match = _LINE.match(line)
        if match is None:
            assert "exited with" in line or "killed by" in line or "resuming" in line or "---" in line, line[:200]
            continue
        name, arguments, result = match[1], match[2], int(match[3])
        counts[name] = counts.get(name, 0) + 1
        texts = [_octets(text) for text in _TEXT.findall(arguments)]
        file = _FILE.match(arguments)
        path = inside(_octets(file[2]) if file else texts[0] if texts else b"")
        if name == "write" and file and file[1] == "1":
            done(Op("output", data=texts[0].rstrip(b"\n")))
            lines_written += 1
        # SQLite rebuilds its shared memory after every crash.
        if path is None or path.endswith("-shm"):
            continue
        calls.append(Call(name, counts[name], "(INJECTED)" in line, lines_written))
        if result < 0 and name not in ("fsync", "fdatasync"):
            continue
        if name == "openat":
            opened = _FILE.match(line[match.start(3) :])
            assert opened
            if "O_CREAT" in arguments and not disk.exists(path):
                done(Op("create", path))
            positions[opened[1]] = disk.size_bytes(path) if "O_APPEND" in arguments else 0
            assert "O_TRUNC" not in arguments or path.rpartition("/")[2].startswith("ping-")
        elif name == "write":
            assert file
            done(Op("write", path, offset=positions[file[1]], data=texts[0][:result]))
            positions[file[1]] += result
        elif name == "pwrite64":
            offset = int(arguments.rpartition(", ")[2])
            done(Op("write", path, offset=offset, data=texts[0][:result]))
        elif name in ("fsync", "fdatasync"):
            done(Op("sync", path, failed_sync=result < 0))
        elif name == "mkdir":
            done(Op("mkdir", path))
        elif name == "rename":
            to = inside(texts[1])
            assert to
            done(Op("rename", path, to))
        elif name in ("unlink", "rmdir"):
            done(Op(name, path))
        elif name == "ftruncate":
            done(Op("truncate", path, offset=int(arguments.rpartition(", ")[2])))
        else:
            assert name == "lseek" and "SEEK_CUR" in arguments, f"unknown call: {line[:200]}"
    return ops, calls


def _octets(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


# ---- Python's own calls


class Shim:
    """Records Python's calls below ``folder``; the call ``fail`` (a name and a number from 0) raises an error.

    SQLite's calls are not seen: `write_line` notes the length of its log, so that a test can cut it there.
    """

    def __init__(self, folder: Path, fail: tuple[str, int] | None = None, error: int = errno.EIO) -> None:
        self.ops: list[Op] = []
        self.counts: dict[str, int] = {}
        self.failed = False
        self._folder = folder
        self._fail = fail
        self._error = error
        self._paths: dict[int, str] = {}
        self._disk = Disk()

    def write_line(self, text: str) -> None:
        log = self._folder / "quarantine.sqlite3-wal"
        self._done(Op("output", data=text.encode(), offset=log.stat().st_size if log.exists() else 0))

    def _inside(self, path: Any) -> str | None:
        text = os.fspath(path)
        if text == str(self._folder.parent):
            return "."
        if not isinstance(text, str) or (text != str(self._folder) and not text.startswith(f"{self._folder}/")):
            return None
        relative = os.path.relpath(text, self._folder.parent)
        return None if "sqlite3" in relative or "ping-" in relative or relative.endswith("/lock") else relative

    def _done(self, op: Op) -> None:
        self._disk.apply(op)
        self.ops.append(op)

    def _may_fail(self, name: str) -> None:
        number = self.counts.get(name, 0)
        self.counts[name] = number + 1
        if self._fail == (name, number):
            self.failed = True
            raise OSError(self._error, os.strerror(self._error))

    @contextmanager
    def recording(self) -> Iterator[Shim]:
        """Record Python's calls until the block ends."""
        real = {name: getattr(os, name) for name in ("open", "fsync", "rename", "mkdir", "unlink", "rmdir")}

        def with_path(name: str, recorded: Callable[..., Op]) -> Callable[..., Any]:
            def call(*arguments: Any, **more: Any) -> Any:
                path = self._inside(arguments[0])
                if path is None:
                    return real[name](*arguments, **more)
                self._may_fail(name)
                result = real[name](*arguments, **more)
                self._done(recorded(path, *arguments[1:]))
                return result

            return call

        def open_(path: Any, flags: int, *more: Any, **other: Any) -> int:
            inside = self._inside(path)
            if inside is None:
                return int(real["open"](path, flags, *more, **other))
            self._may_fail("open")
            descriptor = int(real["open"](path, flags, *more, **other))
            if flags & os.O_CREAT:
                self._done(Op("create", inside))
            self._paths[descriptor] = inside
            return descriptor

        def fsync(descriptor: int) -> None:
            path = self._paths.get(descriptor)
            if path is None:
                real["fsync"](descriptor)
                return
            try:
                self._may_fail("fsync")
            except OSError:
                self._done(Op("sync", path, failed_sync=True))
                raise
            real["fsync"](descriptor)
            self._done(Op("sync", path))

        def write(descriptor: int, data: bytes) -> int:
            path = self._paths.get(descriptor)
            if path is None:
                return os_write(descriptor, data)
            offset = os.lseek(descriptor, 0, os.SEEK_CUR)
            try:
                self._may_fail("write")
            except OSError:
                os_write(descriptor, data[: len(data) // 2])
                raise
            written = os_write(descriptor, data)
            self._done(Op("write", path, offset=offset, data=bytes(data[:written])))
            return written

        def close(descriptor: int) -> None:
            self._paths.pop(descriptor, None)  # the number will be used again
            os_close(descriptor)

        os_write, os_close = os.write, os.close
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "open", open_)
            patch.setattr(os, "fsync", fsync)
            patch.setattr(os, "rename", with_path("rename", lambda path, to, **_: Op("rename", path, self._to(to))))
            patch.setattr(os, "mkdir", with_path("mkdir", lambda path, *_: Op("mkdir", path)))
            patch.setattr(os, "unlink", with_path("unlink", lambda path: Op("unlink", path)))
            patch.setattr(os, "rmdir", with_path("rmdir", lambda path: Op("rmdir", path)))
            patch.setattr(os, "write", write)
            patch.setattr(os, "close", close)
            yield self

    def _to(self, path: Any) -> str:
        inside = self._inside(path)
        assert inside is not None
        return inside
