"""A time limit over all steps of what another server does: a check of a password, an answer of a provider."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from types import TracebackType

# A worker is killed after 60 s (uwsgi.ini). Dovecot delays the answer to a wrong password by up to 15 s.
CHECK_SECONDS = 30.0


class Deadline:
    """A moment by which a check or an answer must end. Used by one thread, in a ``with`` block.

    The timeout of a socket is for each packet, so a server that sends a little at a time could take any time. Therefore
    connections that are watched are shut down at the deadline, by a thread of their own.
    """

    def __init__(self, seconds: float = CHECK_SECONDS) -> None:
        self._seconds = seconds
        self._ends_at = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._watched: list[socket.socket] = []
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Deadline:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            while self._watched:
                self._watched.pop().close()

    def left(self, at_most: float) -> float:
        """Return how many seconds the next step may take. Raises TimeoutError if there are none."""
        seconds = min(at_most, self._ends_at - time.monotonic())
        if seconds <= 0:
            raise TimeoutError(self._text())
        return seconds

    def connect(self, host: str, port: int, timeout: float) -> socket.socket:
        """Return a watched connection. ``timeout``: seconds for each address of the host, and for each read.

        Raises OSError.
        """
        problem = OSError("the host has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(self.left(timeout))
                connection.connect(address)
                self.watch(connection)
            except OSError as error:
                connection.close()
                problem = error
                continue
            connection.settimeout(timeout)
            return connection
        raise problem

    def watch(self, connection: socket.socket) -> None:
        """Shut a connection down at the deadline. ``connection``: a plain socket; TLS may be put on it afterwards."""
        # A socket that is wrapped in TLS loses its descriptor; a copy of it stays.
        self._watched.append(connection.dup())
        if self._timer is None:
            self._timer = threading.Timer(self.left(self._seconds), self._end)
            self._timer.daemon = True
            self._timer.start()

    def reason(self, error: Exception) -> Exception | str:
        """Return why a step failed: the error, or that it was ended by the deadline."""
        return error if time.monotonic() < self._ends_at else self._text()

    def _text(self) -> str:
        return f"it did not answer within {self._seconds:g} s in all"

    def _end(self) -> None:
        with self._lock:
            for connection in self._watched:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
