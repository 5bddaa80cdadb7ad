"""A client of the uwsgi protocol, such as Nginx or any other process that can connect."""

from __future__ import annotations

import socket
from collections.abc import Mapping

HEALTH = {
    "REQUEST_METHOD": "GET",
    "PATH_INFO": "/quarantine/healthz",
    "QUERY_STRING": "",
    "SERVER_NAME": "localhost",
    "SERVER_PORT": "80",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REMOTE_ADDR": "127.0.0.1",
}


def packet(variables: Mapping[str, str], body: bytes = b"") -> bytes:
    """Return a request: modifiers 0, the variables, then the body."""
    fields = b"".join(
        len(part).to_bytes(2, "little") + part for pair in variables.items() for part in map(str.encode, pair)
    )
    return b"\0" + len(fields).to_bytes(2, "little") + b"\0" + fields + body


def exchange(path: str, data: bytes) -> bytes:
    """Send bytes to a Unix socket and return the whole answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(path)
        connection.sendall(data)
        answer = b""
        while chunk := connection.recv(1 << 16):
            answer += chunk
        return answer
