"""Ports for servers of tests that cannot choose one themselves."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

_given: set[int] = set()


def free_port() -> int:
    """Return a free port of 127.0.0.1. It is below the ports of outgoing connections, so none of these takes it."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as listener, suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port
