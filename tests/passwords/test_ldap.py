"""A directory that does not behave gets no password without TLS, and the portal does not wait for it without end."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from pydantic import SecretStr

from portal.model.errors import PasswordServerUnavailable, SettingsError
from portal.passwords import password_servers
from portal.passwords.deadline import Deadline
from portal.passwords.ldap import LdapServer
from portal.settings import Settings
from portal.settings.passwords import LdapSettings

# RFC 4511: ExtendedResponse to message 1 with a result code and two empty texts.
_PROTOCOL_ERROR = bytes.fromhex("300c02010178070a010204000400")
_SUCCESS = bytes.fromhex("300c02010178070a010004000400")


@contextmanager
def directory(answer: Callable[[socket.socket], object]) -> Iterator[tuple[LdapServer, list[bytes]]]:
    """A server that answers the first request like this; yields also all that it receives."""
    received: list[bytes] = []

    def serve() -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                received.append(connection.recv(1 << 16))
                answer(connection)
                while data := connection.recv(1 << 16):
                    received.append(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        settings = LdapSettings(
            uri=f"ldap://127.0.0.1:{listener.getsockname()[1]}",
            base="dc=example,dc=org",
            bind_dn="cn=portal,dc=example,dc=org",
            bind_password=SecretStr("of the portal"),
            timeout_seconds=1,
        )
        yield LdapServer(settings), received
        thread.join(5)


def test_without_the_library_the_portal_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "portal.passwords.ldap")
    monkeypatch.setitem(sys.modules, "ldap3", None)
    assert password_servers(Settings()) == []  # without the setting the library is not needed
    with pytest.raises(SettingsError, match=r"pip install 'rspamd-quarantine-portal\[ldap\]'"):
        password_servers(Settings(ldap=LdapSettings(uri="ldaps://dc1.example.org", base="dc=example,dc=org")))


@pytest.mark.parametrize(
    "answer",
    [
        lambda connection: connection.sendall(_PROTOCOL_ERROR),  # somebody in between removed StartTLS
        lambda connection: connection.sendall(_SUCCESS + b"no TLS"),
        lambda connection: connection.sendall(b"\x30\x84\xff\xff\xff\xff garbage"),
        lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        lambda connection: connection.close(),
        lambda connection: time.sleep(1.5),
    ],
    ids=["refused", "no-tls", "garbage", "http", "closed", "silent"],
)
def test_without_tls_no_password_is_sent(answer: Callable[[socket.socket], object]) -> None:
    began = time.monotonic()
    with directory(answer) as (server, received), Deadline() as deadline, pytest.raises(PasswordServerUnavailable):
        server.check("alice@example.org", "secret of alice", "", deadline)
    assert time.monotonic() - began < 10
    assert received and not any(b"secret" in data or b"of the portal" in data for data in received)
