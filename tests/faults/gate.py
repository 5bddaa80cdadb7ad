"""A network between the portal and PostgreSQL that can be cut: packets are dropped without an error."""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress
from typing import Any


class Gate:
    """Forwards TCP connections to a server until it is shut. While it is shut, connections stay open and new ones are
    accepted, but no octet passes. Keepalives are answered, so only a deadline of the client helps. When it is opened
    again, all data arrives.
    """

    def __init__(self, family: socket.AddressFamily, server: Any) -> None:
        """``server``: the server's address, or a path for AF_UNIX."""
        self._family, self._server = family, server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.open = threading.Event()
        self.open.set()
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.open.set()
        # Closing a socket does not wake a thread that waits for it; a shutdown does.
        for end in [self._listener, *self._ends]:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._ends.append(near)
                threading.Thread(target=self._forward, args=(near,), daemon=True).start()

    def _forward(self, near: socket.socket) -> None:
        self.open.wait()
        far = socket.socket(self._family)
        self._ends.append(far)
        with near, far, selectors.DefaultSelector() as ready, suppress(OSError):
            far.connect(self._server)
            ready.register(near, selectors.EVENT_READ, far)
            ready.register(far, selectors.EVENT_READ, near)
            while True:
                for key, _ in ready.select():
                    data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                    self.open.wait()
                    if not data:
                        return
                    key.data.sendall(data)
