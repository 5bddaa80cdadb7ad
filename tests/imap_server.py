"""A small IMAP server over TLS with the certificate of tests/data, which does what a test says."""

from __future__ import annotations

import socket
import ssl
import threading
from base64 import b64decode
from collections.abc import Callable
from contextlib import suppress

from tests.paths import DATA

CERTIFICATE = DATA / "localhost.pem"


class ImapServer:
    """A server with one thread for each connection."""

    def __init__(self) -> None:
        self.passwords: dict[str, str] = {}
        self.refusal = "[AUTHENTICATIONFAILED] Authentication failed."
        self.capabilities = "IMAP4rev1 ID AUTH=PLAIN"
        self.signing_in: Callable[[], object] = lambda: None  # called before the answer to a password
        self.tried: list[tuple[str, str]] = []
        self.clients: list[str] = []  # the arguments of ID
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(CERTIFICATE)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=50)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening: connections are refused."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with plain, suppress(OSError), self._context.wrap_socket(plain, server_side=True) as connection:
            stream = connection.makefile("rwb", buffering=0)
            stream.write(b"* OK ready\r\n")
            while line := stream.readline():
                tag, command, arguments = f"{line.decode().strip()} ".split(" ", 2)
                answer = f"{tag} OK done"
                if command == "CAPABILITY":
                    answer = f"* CAPABILITY {self.capabilities}\r\n{answer}"
                elif command == "ID":
                    self.clients.append(arguments.strip())
                    answer = f"* ID NIL\r\n{answer}"
                elif command == "AUTHENTICATE":
                    stream.write(b"+ \r\n")
                    _, user, password = b64decode(stream.readline()).decode().split("\0")
                    self.tried.append((user, password))
                    self.signing_in()
                    if self.passwords.get(user) != password:
                        answer = f"{tag} NO {self.refusal}"
                stream.write(f"{answer}\r\n".encode())
