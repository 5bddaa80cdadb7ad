"""The text of a held message, its header and its attachments, for the page of the message.

`answer` passes the message to a process of its own, which may do nothing but read it (`child`). That process is forked
from one that has everything loaded (`warm`), and which the first page view starts; without it a new Python is started.

    source  the octets, in order       fields  header fields and their parameters
    header  all fields of a message, for the page that shows them
    mime    the parts of a message     html, styles  HTML as the text that is visible
    words   text and attachments       formatted    HTML as its sender formatted it
    child, warm  the processes
    kinds   the kind of a file         encodings    transfer encodings
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, TypeVar

from portal.model.attachments import Danger, Kind
from portal.model.errors import Busy
from portal.model.text import shown
from portal.reading.child import END
from portal.reading.warm import KEY_BYTES, LIFELINE, READERS_OF_ONE, WAIT_SECONDS, peer_uid

log = logging.getLogger("quarantine.reading")

_RAW_HEADER_BYTES = 1 << 14
_SECONDS = 5.0  # for one message
PART_BYTES = 50 << 20  # of one attachment
_NAME_LINE_BYTES = 1 << 14  # more than `child` answers before it
_TEXT_BYTES = 1 << 22  # more than `child` answers
_HTML_BYTES = 1 << 24  # likewise, with the pictures
_ANSWER_SECONDS = WAIT_SECONDS + 1.0  # until the warm process has forked a reader, or refuses to
_START_SECONDS = 2.0  # until the warm process listens
_RETRY_SECONDS = 60.0  # after it could not be started, or did not answer
_ROOT = Path(__file__).resolve().parents[2]
_T = TypeVar("_T")
# Expected for hostile messages: the process exceeded a limit, or was taken over and answers something else.
UNREADABLE = (TimeoutError, ConnectionError, ValueError)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A part that is not shown. The name is the sender's claim, the kind is by content."""

    name: str
    size_bytes: int | None  # None: it was not read to its end
    kind: Kind
    dangers: tuple[Danger, ...]
    number: int  # for `copy_part`, 0 if it cannot be read by itself


@dataclass(frozen=True, slots=True)
class Preview:
    """The shown parts of a message, sanitized for display but not escaped for HTML."""

    headers: tuple[tuple[str, str], ...]
    text: str
    attachments: tuple[Attachment, ...]
    cut: bool  # the message has more than is shown
    failed: bool  # the message could not be read; `text` holds the raw headers
    has_html: bool = False


@dataclass(frozen=True, slots=True)
class Formatted:
    """The HTML of a message, cleaned by a process that may have been taken over: for a sandboxed frame only."""

    html: str  # "" if it has none
    remote: int  # its pictures on the Internet, which are not shown
    cut: bool


@dataclass(frozen=True, slots=True)
class Headers:
    """All header fields of a message, sanitized for display. A line that is no field has the name ""."""

    fields: tuple[tuple[str, str], ...]
    cut: bool


def read(chunks: Iterable[bytes], recipient: str) -> Preview:
    """Return what is shown of a message, within 9 s for every message.

    A view needs 4 s more if it finds that the warm process does not answer, which is tried once a minute.
    ``recipient``: identity; two messages are read at once for each. Raises Busy, and the errors of ``chunks``.
    """
    beginning = bytearray()

    def kept() -> Iterator[bytes]:
        for chunk in chunks:
            if len(beginning) < _RAW_HEADER_BYTES:
                beginning.extend(chunk[:_RAW_HEADER_BYTES])
            yield chunk

    try:
        return _preview(json.loads(b"".join(answer("text", kept(), recipient, _TEXT_BYTES))))
    except (*UNREADABLE, TypeError, KeyError, RecursionError):
        return Preview((), _lines(_raw_header(bytes(beginning))), (), cut=True, failed=True)


def read_formatted(chunks: Iterable[bytes], recipient: str) -> Formatted | None:
    """Return the HTML of a message, None if it cannot be read within the limits. Raises as `read`."""
    try:
        found = json.loads(b"".join(answer("html", chunks, recipient, _HTML_BYTES)))
        return Formatted(_checked(str, found["html"]), _checked(int, found["remote"]), _checked(bool, found["cut"]))
    except (*UNREADABLE, TypeError, KeyError, RecursionError):
        return None


def read_headers(chunks: Iterable[bytes], recipient: str) -> Headers | None:
    """Return all header fields of a message, None if they cannot be read within the limits. Raises as `read`."""
    try:
        found = json.loads(b"".join(answer("headers", chunks, recipient, _TEXT_BYTES)))
        fields = tuple(
            (shown(_checked(str, name), 100), shown(_checked(str, text), 4_000)) for name, text in found["fields"]
        )
        return Headers(fields, _checked(bool, found["cut"]))
    except (*UNREADABLE, TypeError, KeyError, RecursionError):
        return None


def copy_part(chunks: Iterator[bytes], recipient: str, number: int, file: IO[bytes]) -> str | None:
    """Write the decoded octets of an attachment to a file. Return its name, "" if it has none.

    Returns None if there is no such attachment, or it cannot be read within the limits; what was written is then to be
    discarded. Raises as `read`; errors of ``chunks`` also if the attachment was read before.
    """
    beginning: bytes | None = b""
    name = None
    try:
        for piece in answer(f"part {number}", chunks, recipient, PART_BYTES):
            if beginning is not None:
                beginning += piece
                line, end, piece = beginning.partition(b"\n")
                if not end:
                    if len(beginning) > _NAME_LINE_BYTES:
                        return None
                    continue
                name, beginning = _checked(str, json.loads(line)), None
            file.write(piece)
    except (*UNREADABLE, TypeError, RecursionError):
        return None
    for _ in chunks:
        pass  # a body is found to be damaged at its end
    return name


def answer(mode: str, chunks: Iterable[bytes], recipient: str, most_bytes: int) -> Iterator[bytes]:
    """Yield what a restricted process answers about a message, in pieces.

    ``mode``: one of `child.MODES`, and its arguments after blanks; ``recipient``: identity, for the limits of `read`.
    Messages are hostile: what the process answers is not to be trusted. The whole answer must be taken within 5 s, also
    if who takes it is slow. Raises Busy, `UNREADABLE` (the process exceeded a limit), and the errors of ``chunks``.
    """
    with _reader(recipient) as connection:
        left, last = most_bytes + 1, b""
        for piece in _exchange(connection, chain([mode.encode() + b"\n"], chunks)):
            left -= len(piece)
            if left < 0:
                raise ValueError("the answer is too long")
            last, piece = (last + piece)[-1:], (last + piece)[:-1]
            yield piece
        if last != END:
            raise ConnectionError("the answer is not whole")


def _preview(answer: Any) -> Preview:
    """Convert the answer of the child, which is not trusted. Raises ValueError, TypeError, KeyError."""
    return Preview(
        headers=tuple(
            (shown(_checked(str, name)), shown(_checked(str, text), 1000)) for name, text in answer["headers"]
        ),
        text=_lines(_checked(str, answer["text"])),
        attachments=tuple(
            Attachment(
                shown(_checked(str, name)),
                size if size is None else _checked(int, size),
                Kind(kind),
                tuple(map(Danger, dangers)),
                _checked(int, number),
            )
            for name, size, kind, dangers, number in answer["attachments"]
        ),
        cut=_checked(bool, answer["cut"]),
        failed=False,
        has_html=_checked(bool, answer["has_html"]),
    )


def _checked(type_: type[_T], value: object) -> _T:
    if not isinstance(value, type_):
        raise TypeError(f"{type_.__name__} expected")
    return value


def _exchange(connection: socket.socket, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Send a message, and yield the answer, which may begin before the message ends. Raises TimeoutError."""
    until = time.monotonic() + _SECONDS
    connection.setblocking(False)
    events, source, rest = select.poll(), iter(chunks), memoryview(b"")
    is_sending = True
    while True:
        while is_sending and not rest:
            chunk = next(source, None)
            if chunk is None:
                is_sending = False
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
            else:
                rest = memoryview(chunk)
        events.register(connection, select.POLLIN | (select.POLLOUT if is_sending else 0))
        happened = events.poll(max(0.0, until - time.monotonic()) * 1000)
        if not happened or time.monotonic() > until:  # also if each octet comes in time
            raise TimeoutError
        if is_sending and happened[0][1] & select.POLLOUT:
            try:
                rest = rest[connection.send(rest) :]
            except OSError:
                is_sending = False  # the child has read enough
        if happened[0][1] & ~select.POLLOUT:
            try:
                piece = connection.recv(1 << 16)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                return  # likewise, after all that it answered
            if not piece:
                return
            yield piece


def _raw_header(data: bytes) -> str:
    end = min((at for at in (data.find(b"\r\n\r\n"), data.find(b"\n\n")) if at >= 0), default=len(data))
    return data[: min(end, _RAW_HEADER_BYTES)].decode("ascii", "replace")


def _lines(text: str) -> str:
    """Return the text with each line sanitized and runs of empty lines reduced to one."""
    lines: list[str] = []
    for line in text.splitlines():
        clean = shown(line, len(line) + 1)
        if clean or (lines and lines[-1]):
            lines.append(clean)
    return "\n".join(lines).strip("\n")


# ---- processes


@contextmanager
def _reader(recipient: str) -> Iterator[socket.socket]:
    """Yield a connection to a process that reads one message. Raises Busy."""
    connection = _warm.connect()
    if connection is not None:
        with connection:
            connection.settimeout(_ANSWER_SECONDS)
            try:
                connection.sendall(hashlib.sha256(recipient.encode()).digest()[:KEY_BYTES])
                answer = connection.recv(1)
            except TimeoutError:
                answer = b""
                log.warning("message reader does not answer: each message is read by a new process for the next minute")
                _warm.suspend()
            except OSError:
                answer = b""
            if answer == b"-":
                raise Busy("too many messages are being read")
            if answer:
                yield connection
                return
    if not _own_children.acquire(timeout=WAIT_SECONDS):
        raise Busy("too many messages are being read")
    try:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            process = _start("from portal.reading.child import main; main()", theirs.fileno())
            theirs.close()
            try:
                ours.settimeout(_SECONDS)
                with suppress(OSError):
                    ours.recv(1)
                yield ours
            finally:
                ours.close()
                process.kill()
                process.wait()
    finally:
        _own_children.release()


def _start(code: str, stdin: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        # The folder comes last, so that nothing in it hides a standard module.
        [_python(), "-I", "-c", f"import sys; sys.path.append({str(_ROOT)!r}); {code}"],
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Not the environment of this process: it has passwords, and Nginx can change it (UWSGI_SETENV), so that
        # LD_PRELOAD would run code.
        env={},
        cwd="/",
        start_new_session=True,
    )


def _python() -> str:
    """Return the path of the interpreter. Under uWSGI, `sys.executable` may be the server itself."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for folder in (sys.prefix, sys.base_prefix):
        path = Path(folder) / "bin" / name
        if path.exists():
            return str(path)
    return sys.executable


class _Warm:
    """The way from this process to the warm one of this host and user, which any process of the portal starts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lifeline: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._not_before = 0.0
        # Another version, or changed files, have another process.
        files = sorted([*_ROOT.glob("portal/reading/*.py"), *_ROOT.glob("portal/model/*.py")])
        text = repr([os.getuid(), _python(), str(_ROOT), [each.stat().st_mtime_ns for each in files]])
        self._name = f"quarantine-reader-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def connect(self) -> socket.socket | None:
        """Return a connection, None if there is no such process and none can be started, or it did not answer."""
        with self._lock:
            # If several processes of the portal start one at once, the others' end.
            if self._process is not None and self._process.poll() is not None:
                self._process = None
            if time.monotonic() < self._not_before:
                return None
            connection = self._connected()
            if connection is None:
                connection = self._started()
            if connection is not None and self._lifeline is None:
                self._lifeline = self._connected()
                if self._lifeline is not None:
                    with suppress(OSError):
                        self._lifeline.sendall(LIFELINE)
            return connection

    def close(self) -> None:
        """Release the warm process, which ends by itself after some seconds if nobody else uses it."""
        if self._lifeline is not None:
            self._lifeline.close()
            self._lifeline = None
        if self._process is not None and self._process.poll() is None:
            self._process.returncode = 0  # or Python warns at its end that this one is still running

    def suspend(self) -> None:
        """Return no connections for a minute."""
        self._not_before = time.monotonic() + _RETRY_SECONDS

    def _started(self) -> socket.socket | None:
        if self._lifeline is not None:  # to one that ended
            self._lifeline.close()
            self._lifeline = None
        try:
            self._process = _start(f"from portal.reading.warm import main; main({self._name!r})", subprocess.DEVNULL)
        except OSError:
            self._process = None
        until = time.monotonic() + _START_SECONDS
        while self._process is not None and time.monotonic() < until:
            connection = self._connected()
            if connection is not None:
                return connection
            time.sleep(0.02)
        log.warning("message reader not started: each message is read by a new process for the next minute")
        self.suspend()
        return None

    def _connected(self) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # With a time limit, connect() fails at once if the other side accepts nothing, and never waits.
            connection.settimeout(0.2)
            connection.connect("\0" + self._name)
            # Every process of the host may use a name in this namespace.
            if peer_uid(connection) == os.getuid():
                return connection
        except OSError:
            pass
        connection.close()
        return None


_warm = _Warm()
atexit.register(_warm.close)
_own_children = threading.BoundedSemaphore(READERS_OF_ONE)
