"""A check of a password ends in time, whatever the servers do."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest

from portal.model.errors import PasswordServerUnavailable, PasswordUnanswered
from portal.passwords import PasswordServer
from portal.passwords.deadline import Deadline
from portal.passwords.imap import ImapServer
from portal.passwords.ldap import LdapServer
from portal.settings.passwords import ImapSettings, LdapSettings
from tests import imap_server
from tests.builders import ALICE

SECONDS = 0.6
_TLS_HANDSHAKE = b"\x16\x03\x03\x40\x00"  # the head of a record of 16 KiB
_LDAP_ANSWER = b"\x30\x84\x00\x00\x40\x00"  # the head of a message of 16 KiB


def of_imap(port: int, tls: str) -> PasswordServer:
    return ImapServer(
        ImapSettings.model_validate({"host": "127.0.0.1", "port": port, "tls": tls, "timeout_seconds": 1})
    )


def of_ldap(port: int, scheme: str) -> LdapServer:
    return LdapServer(LdapSettings(uri=f"{scheme}://127.0.0.1:{port}", base="dc=example", timeout_seconds=1))


SERVERS: dict[str, tuple[Callable[[int], PasswordServer], bytes]] = {
    "imap": (lambda port: of_imap(port, "starttls"), b"* OK "),
    "imaps": (lambda port: of_imap(port, "implicit"), _TLS_HANDSHAKE),
    "ldap": (lambda port: of_ldap(port, "ldap"), _LDAP_ANSWER),
    "ldaps": (lambda port: of_ldap(port, "ldaps"), _TLS_HANDSHAKE),
}


@contextmanager
def dripping(head: bytes) -> Iterator[int]:
    """A server that sends an octet every 50 ms, and so never exceeds the timeout of a read. Yields its port."""
    ended = threading.Event()

    def serve() -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.sendall(head)
                while not ended.wait(0.05):
                    connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ended.set()
            thread.join()


@contextmanager
def silent() -> Iterator[int]:
    """A port that does not answer to connections, since its queue is full."""
    with ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            waiting = opened.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def error_of(server: PasswordServer) -> PasswordServerUnavailable:
    began = time.monotonic()
    with Deadline(SECONDS) as deadline, pytest.raises(PasswordServerUnavailable) as caught:
        server.check(ALICE, "secret", "", deadline)
    assert time.monotonic() - began < SECONDS + 1
    return caught.value


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_that_sends_a_little_at_a_time_ends_no_later(kind: str) -> None:
    make, head = SERVERS[kind]
    with dripping(head) as port:
        error = error_of(make(port))
    assert not isinstance(error, PasswordUnanswered), "no password was sent"
    assert "did not answer within 0.6 s" in str(error)


@pytest.mark.parametrize("kind", ["imap", "ldap"])
def test_many_addresses_that_do_not_answer_have_one_deadline(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = socket.getaddrinfo

    def ten_times(*of: Any, **more: Any) -> list[Any]:
        return found(*of, **more) * 10

    monkeypatch.setattr(socket, "getaddrinfo", ten_times)
    with silent() as port:
        error_of(SERVERS[kind][0](port))


def test_reading_all_entries_has_a_deadline_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal.passwords.ldap._ALL_SECONDS", SECONDS)
    with dripping(_LDAP_ANSWER) as port, pytest.raises(PasswordServerUnavailable, match=r"not answer within 0\.6 s"):
        of_ldap(port, "ldap").all_entries()


def test_a_password_without_an_answer_in_time_may_be_wrong() -> None:
    server, ended = imap_server.ImapServer(), threading.Event()
    server.signing_in = lambda: ended.wait(3)
    settings = ImapSettings(host="127.0.0.1", port=server.port, ca_file=imap_server.CERTIFICATE)
    error = error_of(ImapServer(settings))
    ended.set()
    server.close()
    assert isinstance(error, PasswordUnanswered)


def test_after_the_deadline_no_further_server_is_asked() -> None:
    server = imap_server.ImapServer()
    with Deadline(0.001) as deadline:
        time.sleep(0.01)
        settings = ImapSettings(host="127.0.0.1", port=server.port, ca_file=imap_server.CERTIFICATE)
        with pytest.raises(PasswordServerUnavailable):
            ImapServer(settings).check(ALICE, "secret", "", deadline)
    server.close()
    assert server.tried == []
