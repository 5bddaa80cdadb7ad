"""The process that starts the readers of messages: it never sees a message itself.

It has loaded everything that reading needs, and forks a child for each message, which takes milliseconds where a new
Python takes a fifth of a second. It is started by `portal.reading` with an empty environment and no open files, so
there is nothing of the portal's in it. It ends when no process of the portal is connected any more.
"""

from __future__ import annotations

import gc
import os
import selectors
import signal
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass

from portal.reading import child

KEY_BYTES = 32
LIFELINE = bytes(KEY_BYTES)  # the key of connections that only say that the portal is running
READERS, READERS_OF_ONE = 8, 2
WAIT_SECONDS = 3.0
_CHILD_SECONDS = 5.0
_IDLE_SECONDS = 10.0
_PEER = struct.Struct("3i")  # pid, uid, gid: struct ucred, unix(7)


def peer_uid(connection: socket.socket) -> int:
    """Return the user of the process at the other end."""
    return int(_PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[1])


@dataclass(slots=True)
class _Running:
    key: bytes
    until: float


class Server:
    """The loop of the process."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._events = selectors.DefaultSelector()
        self._events.register(listener, selectors.EVENT_READ)
        self._wake, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(self._wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake)
        self._events.register(self._wake, selectors.EVENT_READ)
        self._waiting: list[tuple[socket.socket, bytes, float]] = []
        self._running: dict[int, _Running] = {}
        self._connected: set[socket.socket] = set()
        self._last_use = time.monotonic()

    def run(self) -> None:
        """Serve until nobody was connected for 10 s."""
        while self._connected or self._waiting or self._running or time.monotonic() - self._last_use < _IDLE_SECONDS:
            for key, _ in self._events.select(self._seconds()):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj == self._wake:
                    with suppress(BlockingIOError):
                        os.read(self._wake, 4096)
                elif isinstance(key.fileobj, socket.socket):
                    self._receive(key.fileobj)
            self._reap()
            self._start()

    def _seconds(self) -> float:
        """Return how long to wait for events: no longer than those who wait are to be answered."""
        first = min((until for _, _, until in self._waiting), default=float("inf"))
        return max(0.0, min(1.0, first - time.monotonic()))

    def _accept(self) -> None:
        with suppress(OSError):
            connection, _ = self._listener.accept()
            if peer_uid(connection) == os.getuid():
                self._connected.add(connection)
                self._events.register(connection, selectors.EVENT_READ)
            else:
                connection.close()

    def _receive(self, connection: socket.socket) -> None:
        try:
            key = connection.recv(KEY_BYTES)
        except OSError:
            key = b""
        if key == LIFELINE:
            return
        self._events.unregister(connection)
        self._connected.discard(connection)
        self._last_use = time.monotonic()
        if len(key) == KEY_BYTES:
            self._waiting.append((connection, key, time.monotonic() + WAIT_SECONDS))
        else:
            connection.close()

    def _reap(self) -> None:
        now = time.monotonic()
        for pid, running in list(self._running.items()):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self._running[pid]
            elif now > running.until:
                os.kill(pid, signal.SIGKILL)

    def _start(self) -> None:
        """Fork the readers that may run now. Answer those that waited too long."""
        waiting, self._waiting = self._waiting, []
        for connection, key, until in waiting:
            of_one = sum(running.key == key for running in self._running.values())
            if len(self._running) < READERS and of_one < READERS_OF_ONE:
                self._fork(connection, key)
            elif time.monotonic() < until:
                self._waiting.append((connection, key, until))
                continue
            else:
                with suppress(OSError):
                    connection.send(b"-")
            connection.close()

    def _fork(self, connection: socket.socket, key: bytes) -> None:
        try:
            pid = os.fork()
        except OSError:
            return  # the portal starts a process itself
        if pid:
            self._running[pid] = _Running(key, time.monotonic() + _CHILD_SECONDS)
            return
        try:
            signal.set_wakeup_fd(-1)
            os.dup2(connection.fileno(), 0)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            child.serve(socket.socket(fileno=0))
        finally:
            os._exit(0)


def main(name: str) -> None:
    """Listen at a name in Linux's abstract namespace. End at once if another process does."""
    child.unblock_signals()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind("\0" + name)
    except OSError:
        return
    child.prepare()
    listener.listen(64)
    gc.collect()
    gc.freeze()
    Server(listener).run()
