"""Checks of passwords by the IMAP server: signing in to it succeeds, and nothing else is done there."""

from __future__ import annotations

import imaplib
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address

from portal.model.errors import PasswordServerUnavailable, PasswordUnanswered
from portal.model.text import shown
from portal.passwords import Proven
from portal.settings.passwords import ImapSettings

# RFC 5530: the server could not check the password, or rejects the portal and not the password.
_NOT_CHECKED = re.compile(r"\[(?:UNAVAILABLE|SERVERBUG|PRIVACYREQUIRED|INUSE|LIMIT|CANNOT)\]", re.IGNORECASE)
_ERROR_CHARACTERS = 200


class ImapServer:
    """See `PasswordServer`."""

    method = "imap"

    def __init__(self, settings: ImapSettings) -> None:
        self._settings = settings

    def check(self, address: str, password: str, client_ip: str) -> Proven | None:
        user = address if self._settings.user == "address" else address.rpartition("@")[0]
        with self._connected() as connection:
            if "ID" in connection.capabilities:
                _forward_client(connection, client_ip)
            try:
                # Not LOGIN: imaplib's cannot write characters beyond ASCII.
                connection.authenticate("PLAIN", lambda _: f"\0{user}\0{password}".encode())
            except (imaplib.IMAP4.abort, OSError) as error:
                raise PasswordUnanswered(self._text(error)) from error
            except imaplib.IMAP4.error as error:
                if _NOT_CHECKED.search(str(error)):
                    raise
                return None
        return Proven(address)

    def takes_client_address(self) -> bool:
        """Return whether the server has the command ID, by which it gets the browser's address.

        Raises `PasswordServerUnavailable`.
        """
        with self._connected() as connection:
            return "ID" in connection.capabilities

    @contextmanager
    def _connected(self) -> Iterator[imaplib.IMAP4]:
        """Connect and encrypt."""
        settings = self._settings
        connection: imaplib.IMAP4 | None = None
        try:
            context = ssl.create_default_context(cafile=settings.ca_file)
            if settings.tls == "implicit":
                connection = imaplib.IMAP4_SSL(
                    settings.host, settings.tcp_port, ssl_context=context, timeout=settings.timeout_seconds
                )
            else:
                connection = imaplib.IMAP4(settings.host, settings.tcp_port, timeout=settings.timeout_seconds)
                connection.starttls(context)
            if connection.state != "NONAUTH" or "AUTH=PLAIN" not in connection.capabilities:
                raise PasswordServerUnavailable(self._text("it does not offer AUTH=PLAIN after TLS"))
            yield connection
        except (imaplib.IMAP4.error, OSError, ValueError) as error:
            raise PasswordServerUnavailable(self._text(error)) from error
        finally:
            if connection is not None:
                # Not `logout`, which waits for the answer: Dovecot delays it after a wrong password.
                with suppress(OSError):
                    connection.shutdown()

    def _text(self, problem: Exception | str) -> str:
        return f"{self._settings.host}:{self._settings.tcp_port}: {shown(str(problem), _ERROR_CHARACTERS)}"


def _forward_client(connection: imaplib.IMAP4, client_ip: str) -> None:
    """Send the server the browser's address, so that it counts wrong passwords by it and not by the portal's.

    Dovecot believes it from hosts in `login_trusted_networks` only, other servers ignore it (RFC 2971, 3.3).
    """
    with suppress(ValueError):
        address = ip_address(client_ip)
        connection.xatom("ID", f'("x-originating-ip" "{address}")')
