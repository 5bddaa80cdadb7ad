"""Checks of passwords by the IMAP server: signing in to it succeeds, and nothing else is done there."""

from __future__ import annotations

import imaplib
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address

from portal.model.errors import PasswordServerUnavailable, PasswordUnanswered
from portal.model.text import shown
from portal.passwords import Proven
from portal.passwords.deadline import Deadline
from portal.settings.passwords import ImapSettings

# RFC 5530: the server could not check the password, or rejects the portal and not the password.
_NOT_CHECKED = re.compile(r"\[(?:UNAVAILABLE|SERVERBUG|PRIVACYREQUIRED|INUSE|LIMIT|CANNOT)\]", re.IGNORECASE)
_ERROR_CHARACTERS = 200


class ImapServer:
    """See `PasswordServer`."""

    method = "imap"

    def __init__(self, settings: ImapSettings) -> None:
        self._settings = settings

    def check(self, address: str, password: str, client_ip: str, deadline: Deadline) -> Proven | None:
        user = address if self._settings.user == "address" else address.rpartition("@")[0]
        with self._connected(deadline) as connection:
            if "ID" in connection.capabilities:
                _forward_client(connection, client_ip)
            try:
                # Not LOGIN: imaplib's cannot write characters beyond ASCII.
                connection.authenticate("PLAIN", lambda _: f"\0{user}\0{password}".encode())
            except (imaplib.IMAP4.abort, OSError) as error:
                raise PasswordUnanswered(self._text(deadline.reason(error))) from error
            except imaplib.IMAP4.error as error:
                if _NOT_CHECKED.search(str(error)):
                    raise
                return None
        return Proven(address)

    def takes_client_address(self) -> bool:
        """Return whether the server has the command ID, by which it gets the browser's address.

        Raises `PasswordServerUnavailable`.
        """
        with Deadline() as deadline, self._connected(deadline) as connection:
            return "ID" in connection.capabilities

    @contextmanager
    def _connected(self, deadline: Deadline) -> Iterator[imaplib.IMAP4]:
        """Connect and encrypt."""
        settings = self._settings
        connection: imaplib.IMAP4 | None = None
        try:
            context = ssl.create_default_context(cafile=settings.ca_file)
            plain = deadline.connect(settings.host, settings.tcp_port, settings.timeout_seconds)
            if settings.tls == "implicit":
                with plain:  # it is closed if the handshake fails, and empty afterwards
                    connection = _Connection(context.wrap_socket(plain, server_hostname=settings.host), settings.host)
            else:
                connection = _Connection(plain, settings.host)
                connection.starttls(context)
            if connection.state != "NONAUTH" or "AUTH=PLAIN" not in connection.capabilities:
                raise PasswordServerUnavailable(self._text("it does not offer AUTH=PLAIN after TLS"))
            yield connection
        except (imaplib.IMAP4.error, OSError, ValueError) as error:
            raise PasswordServerUnavailable(self._text(deadline.reason(error))) from error
        finally:
            if connection is not None:
                # Not `logout`, which waits for the answer: Dovecot delays it after a wrong password.
                with suppress(OSError):
                    connection.shutdown()

    def _text(self, problem: Exception | str) -> str:
        return f"{self._settings.host}:{self._settings.tcp_port}: {shown(str(problem), _ERROR_CHARACTERS)}"


class _Connection(imaplib.IMAP4):
    """IMAP on a socket that is connected already."""

    def __init__(self, connected: socket.socket, host: str) -> None:
        self._connected = connected
        super().__init__(host)

    def open(self, host: str = "", port: int = 0, timeout: float | None = None) -> None:
        """Use the socket. imaplib calls it. ``host``: the name in the certificate, for STARTTLS."""
        self.host, self.port = host, port
        self.sock = self._connected
        self.file = self._connected.makefile("rb")


def _forward_client(connection: imaplib.IMAP4, client_ip: str) -> None:
    """Send the server the browser's address, so that it counts wrong passwords by it and not by the portal's.

    Dovecot believes it from hosts in `login_trusted_networks` only, other servers ignore it (RFC 2971, 3.3).
    """
    with suppress(ValueError):
        address = ip_address(client_ip)
        connection.xatom("ID", f'("x-originating-ip" "{address}")')
