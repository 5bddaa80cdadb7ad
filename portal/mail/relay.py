"""Client for SMTP, SMTPS and LMTP: sends messages to a mail server. The only user of smtplib.

Handles connections, TLS, login, timeouts and reply codes. Either the complete message goes to exactly the given
recipient, or an exception is raised. `RelayDeferred` means "try again". It is also raised for all mistakes of the site
(a wrong password, a server that rejects this host), so that they do not fail messages one by one. `RelayRefused` means
"never": a 5xx reply about this message, or an address that SMTP cannot express. If the connection breaks after the
final dot, it is unknown whether the message was accepted. This counts as deferred, so the message may arrive twice.

A reply counts only for the commands sent before it. Therefore nothing is sent while a reply is unread, and the final
dot is sent by itself, after a last check for unread data: a 250 that arrived before it would be read as acceptance.

Only smtplib's commands and its parser for EHLO replies are used. Its address quoting sends mail to strangers
(``a,b@c.d`` becomes ``<a>``), its dot-stuffing handles only bare LF, its timeouts restart with each octet, and its
login does not support UTF-8.
"""

from __future__ import annotations

import base64
import re
import smtplib
import socket
import ssl
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from ipaddress import IPv6Address, ip_address
from typing import Any
from urllib.parse import unquote, urlsplit

from portal.mail.smtp_replies import rejects_portal
from portal.mail.wire import path, wire
from portal.model.errors import RelayDeferred, RelayRefused, RelayUnreachable

_PORTS = {"smtp": 25, "smtps": 465, "lmtp": 24}
_WRITE_BYTES = 1 << 16  # small pieces are sent together
_LINE_BYTES = 8192  # RFC 5321, 4.5.3.1.5 says 512; a line longer than this is not from a mail server
_REPLY_LINES = 200
_QUIT_SECONDS = 1.0
# The wait before the final dot, in which an early reply to the first lines of a message arrives. The server reads the
# first lines of a large message while the rest is still in the network's buffers.
_EARLY_REPLY_SECONDS, _EARLY_REPLY_LARGE_SECONDS = 0.002, 0.05
_ERROR_CHARACTERS = 300
# RFC 5321, 4.2.1: x5z is about the mail system. 220, 221 or 235 in this place is the reply to another command.
_ACCEPTED = range(250, 260)
_START_INPUT = range(354, 355)

_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)


class Relay:
    """A mail server, given by its URL.

    ``smtp://[user:password@]host[:25]``: STARTTLS is used when it is offered, except on loopback. Without a password
    any certificate is accepted, since an attacker could as well remove the offer. With a password TLS is required and
    the certificate verified, except on loopback. ``smtps://…[:465]``: TLS from the first octet, always verified.
    ``lmtp://…[:24]``: as smtp with LHLO. ``SSL_CERT_FILE`` names a private certificate authority, as usual with
    OpenSSL. User and password are percent-encoded; IPv6 addresses are in brackets.

    ``reply_seconds`` is the longest wait for one reply, ``total_seconds`` that for one message, connecting included.
    Raises ValueError for another kind of URL (`portal.settings` checks URLs before).
    """

    def __init__(self, url: str, *, reply_seconds: float = 10, total_seconds: float = 30) -> None:
        self._server = _parse(url)
        self._reply_seconds = reply_seconds
        self._total_seconds = total_seconds

    def send(self, envelope_sender: str, recipient: str, chunks: Iterable[bytes], *, has_8bit: bool) -> str:
        """Send one message over a new connection; see `Connection.send`."""
        with self.connection() as connection:
            return connection.send(envelope_sender, recipient, chunks, has_8bit=has_8bit)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend a connection for several messages. The first one opens it; it is closed at the end of the block."""
        connection = self._new_connection()
        try:
            yield connection
        finally:
            connection.close()

    @contextmanager
    def reusing_connections(self) -> Iterator[Relay]:
        """Lend this relay with a `send` that reuses connections. Any number of threads may call it.

        A message is sent over an idle connection, or over a new one if none is idle. So there are as many connections
        as messages at the same time. All are closed at the end of the block.
        """
        relay = _ReusingRelay(self)
        try:
            yield relay
        finally:
            relay.close()

    def _new_connection(self) -> Connection:
        return Connection(self._server, self._reply_seconds, self._total_seconds)

    def probe(self) -> str:
        """Connect and log in, but send nothing. Return a sentence that describes the server. Raises RelayDeferred."""
        session = _Session(self._server, self._reply_seconds, time.monotonic() + self._total_seconds)
        try:
            session.open()
            return session.describe()
        finally:
            session.disconnect()


class _ReusingRelay(Relay):
    """See `Relay.reusing_connections`."""

    def __init__(self, relay: Relay) -> None:
        vars(self).update(vars(relay))
        self._idle: deque[Connection] = deque()  # its methods are atomic

    def send(self, envelope_sender: str, recipient: str, chunks: Iterable[bytes], *, has_8bit: bool) -> str:
        """Send one message over an idle connection or a new one; see `Connection.send`."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._new_connection()
        try:
            return connection.send(envelope_sender, recipient, chunks, has_8bit=has_8bit)
        finally:
            self._idle.append(connection)  # after an error as well: it opens a new session if it lost the old one

    def close(self) -> None:
        """Close all idle connections."""
        while self._idle:
            self._idle.pop().close()


class Connection:
    """A connection that sends messages one after the other. Not thread-safe. Created by `Relay`."""

    def __init__(self, server: _Server, reply_seconds: float, total_seconds: float) -> None:
        self._server, self._reply_seconds, self._total_seconds = server, reply_seconds, total_seconds
        self._session: _Session | None = None
        self._transaction_open = False

    def send(self, envelope_sender: str, recipient: str, chunks: Iterable[bytes], *, has_8bit: bool) -> str:
        """Send one message to one recipient. Return the server's last reply as one line of printable ASCII.

        ``envelope_sender`` "" is the null sender. ``chunks`` are the message's bytes; they are read once and not kept.
        On the wire each line ends with CRLF (a bare LF becomes CRLF and a stray CR a space, as in Postfix), lines that
        begin with a dot get a second one (RFC 5321, 4.5.2), and a missing last line end is added.
        ``has_8bit``: some octet is above 127.

        Raises RelayDeferred (RelayUnreachable if it fails before MAIL FROM) or RelayRefused with a line of at most 300
        characters that names the step. A 5xx reply about this portal raises RelayDeferred (`rejects_portal`).
        When ``chunks`` raises, the connection is closed before the final dot, so that no server takes the message for
        complete, and the exception is passed on. If the server closed the connection between two messages, or sent an
        unsolicited reply, one new connection is tried.
        """
        sender, to = path(envelope_sender, is_sender=True), path(recipient, is_sender=False)
        deadline = time.monotonic() + self._total_seconds
        reused = self._session is not None and self._session.sock is not None
        try:
            try:
                session = self._send_envelope(sender, to, has_8bit, deadline)
            except _ConnectionLost:
                if not reused:
                    raise
                session = self._send_envelope(sender, to, has_8bit, deadline)
            return self._send_content(session, chunks)
        except (RelayDeferred, RelayRefused):
            raise
        except BaseException:
            # The state of the protocol is unknown, so this connection must not be used again.
            if self._session is not None:
                self._session.close()
            raise

    def close(self) -> None:
        """Send QUIT and close the connection, if there is one."""
        if self._session is not None:
            self._session.disconnect()
            self._session = None

    def _send_envelope(self, sender: str, recipient: str, has_8bit: bool, deadline: float) -> _Session:
        """Send the commands before the message, until the server replies 354.

        With PIPELINING (RFC 2920) the three commands are sent together.
        """
        session = self._open_session(deadline)
        if self._transaction_open:
            session.run("RSET", "RSET", wanted=250)
        session.addresses = (sender[1:-1], recipient[1:-1])
        steps = _commands(session, sender, recipient, has_8bit)
        self._transaction_open = True
        pipelined = session.has_extn("pipelining")
        if pipelined:
            session.step = "MAIL FROM"
            session.send("".join(f"{command}\r\n" for _, command, _ in steps))
        failure: RelayDeferred | RelayRefused | None = None
        for session.step, command, wanted in steps:
            try:
                if not pipelined:
                    session.putcmd(command)
                code, text = session.getreply()
            except _ConnectionLost:
                if failure is None:
                    raise
                break  # an earlier reply has the reason
            if code not in wanted:
                failure = failure or session.failure(code, text)
                if not pipelined or session.sock is None:
                    break
            elif failure is not None and code == 354:
                # The server waits for a message, though a command failed. A final dot might send an empty message to a
                # recipient; closing the connection cannot.
                session.close()
        if failure is not None:
            raise failure
        return session

    def _open_session(self, deadline: float) -> _Session:
        if self._session is None or self._session.sock is None:
            self._session = _Session(self._server, self._reply_seconds, deadline)
            self._transaction_open = False
            try:
                self._session.open()
            except _ConnectionLost as error:
                raise RelayUnreachable(str(error), portal_rejected=error.portal_rejected) from error
        self._session.deadline = deadline
        return self._session

    def _send_content(self, session: _Session, chunks: Iterable[bytes]) -> str:
        session.step = "sending the message"
        try:
            unsent, last, octets = bytearray(), b"", 0
            for piece in wire(chunks):
                unsent += last
                octets += len(last)
                last = piece
                if len(unsent) >= _WRITE_BYTES:
                    session.send(unsent)
                    unsent.clear()
            if unsent:
                session.send(unsent)
            session.wait_for_early_reply(_EARLY_REPLY_SECONDS if octets <= _WRITE_BYTES else _EARLY_REPLY_LARGE_SECONDS)
            session.send(last)  # the final dot
        except BaseException:
            session.close()
            raise
        session.step = "final dot"
        code, text = session.getreply()
        session.check_last_reply()
        if code not in _ACCEPTED:
            raise session.failure(code, text, at_final_dot=True)
        self._transaction_open = False
        return _one_line(f"{code} {text.decode('ascii', 'replace')}")


@dataclass(frozen=True, slots=True)
class _Server:
    """The parts of a mail server's URL."""

    scheme: str
    host: str
    port: int
    user: str | None
    password: str = field(repr=False)


class _ConnectionLost(RelayDeferred):
    """The connection was closed, by the server or because it cannot be used any longer."""


class _Session(smtplib.SMTP):
    """One connection. Raises `_ConnectionLost` for all its errors; their text begins with the current `step`."""

    def __init__(self, server: _Server, reply_seconds: float, deadline: float) -> None:
        super().__init__(local_hostname=_local_hostname())
        self.ehlo_msg = "lhlo" if server.scheme == "lmtp" else "ehlo"
        self.deadline = deadline  # of the message being sent, in time.monotonic()
        self.step = "connection"
        self.addresses: tuple[str, ...] = ()  # the sender and recipient of that message
        self._server, self._reply_seconds = server, reply_seconds
        self._unread = b""

    def open(self) -> None:
        """Connect, encrypt and log in as the URL requires.

        Raises `_ConnectionLost`, also for 5xx replies, since all failures here are the site's and concern no message.
        """
        server = self._server
        self.sock = self._connect()
        if server.scheme == "smtps":
            self._encrypt(verified=True)
        self.step = "greeting"
        self._expect(220, *self.getreply())
        self._send_ehlo()
        if server.scheme != "smtps" and not self._is_on_loopback():
            if self.has_extn("starttls"):
                self.run("STARTTLS", "STARTTLS", wanted=220)
                if self._has_unread():  # unencrypted data must not be read as part of the TLS session (CVE-2011-0411)
                    raise self.lost("the server sent more than one reply before TLS")
                self._encrypt(verified=server.user is not None)
                self._send_ehlo()
            elif server.user is not None:
                raise self.lost("the server offers no STARTTLS, and a password must not be sent unencrypted")
        if server.user is not None:
            self._log_in(server.user, server.password)

    def describe(self) -> str:
        """Return the sentence for `Relay.probe`."""
        server = self._server
        name = (self.ehlo_resp or b"").split(b"\n")[0].split(b" ")[0].decode("ascii", "replace")
        tls = f"with {self.sock.version()}" if isinstance(self.sock, ssl.SSLSocket) else "without TLS"
        login = "" if server.user is None else ", logged in"
        used = ("8BITMIME", "DSN", "PIPELINING", "SMTPUTF8")
        offered = [extension for extension in used if self.has_extn(extension)]
        missing = [extension for extension in used if extension not in offered]
        return _one_line(
            f"{server.host}:{server.port} answers as {name} by {'LMTP' if server.scheme == 'lmtp' else 'SMTP'}, "
            f"{tls}{login}; it offers {', '.join(offered) or 'no extension that is used'}"
            + (f", but not {', '.join(missing)}" if missing else "")
        )

    def run(self, step: str, command: str, *, wanted: int) -> None:
        """Send a command. Raises `_ConnectionLost` if the reply has another code than ``wanted``."""
        self.step = step
        self._expect(wanted, *self.docmd(command))

    def disconnect(self) -> None:
        """Send QUIT and close the connection, if there is one. Errors are ignored: each message has its reply."""
        if self.sock is None:
            return
        self.deadline = time.monotonic() + _QUIT_SECONDS
        with suppress(_ConnectionLost):  # the server closed the connection, as QUIT requests
            self.docmd("QUIT")
        self.close()

    def lost(self, why: str, *, portal_rejected: bool = False) -> _ConnectionLost:
        """Close the connection. Return the error to raise, with the reason."""
        self.close()
        return _ConnectionLost(_one_line(f"{self.step}: {why}"), portal_rejected=portal_rejected)

    def failure(self, code: int, text: bytes, *, at_final_dot: bool = False) -> RelayDeferred | RelayRefused:
        """Return the error to raise for a reply that does not have an expected code."""
        reply = f"{code} {text.decode('ascii', 'replace')}"
        if code == 421:
            return self.lost(reply)
        if not 400 <= code <= 599:
            return self.lost(f"unexpected reply {reply}")
        line = _one_line(f"{self.step}: {reply}")
        portal_rejected = rejects_portal(
            code, text.decode("utf-8", "replace"), self.addresses, at_final_dot=at_final_dot
        )
        return (
            RelayDeferred(line, portal_rejected=portal_rejected)
            if portal_rejected or code < 500
            else RelayRefused(line)
        )

    def wait_for_early_reply(self, seconds: float) -> None:
        """Wait for a reply that the server sends too early. `send` raises if there is one."""
        if not self._unread:
            self._receive(seconds)

    def check_last_reply(self) -> None:
        """Raise `_ConnectionLost` if another reply follows that to the final dot: it is unclear which one counts.

        The reply counts if the server then sends 421 or closes the connection. It does not if the connection is reset:
        the server closed it without reading the whole message.
        """
        closed = not self._unread and not self._receive()
        if self._unread:
            code, text = self.getreply()
            if code != 421:
                raise self.lost(f"more than one reply, the last one {code} {text.decode('ascii', 'replace')}")
            closed = True
        if closed:
            self.close()

    # ---- overridden methods that smtplib calls

    def send(self, s: Any) -> None:
        """Send all of ``s`` within the time limits. Raises `_ConnectionLost`, also after an unsolicited reply."""
        if self._has_unread():
            reply = self._unread.partition(b"\n")[0].decode("ascii", "replace")
            raise self.lost(f"the server sent an unsolicited reply: {reply}")
        with memoryview(s.encode() if isinstance(s, str) else s) as data:
            sent = 0
            while sent < len(data):
                try:
                    sent += self._socket(time.monotonic() + self._reply_seconds).send(data[sent:])
                except OSError as error:
                    raise self._lost_by(error) from error

    def getreply(self) -> tuple[int, bytes]:
        """Return (code, text) of one whole reply. The timeout is for the whole reply, however slowly it arrives."""
        until = time.monotonic() + self._reply_seconds
        texts: list[bytes] = []
        code = b""
        while len(texts) < _REPLY_LINES:
            line = _REPLY_LINE.fullmatch(self._line(until))
            if line is None or (texts and line[1] != code):  # RFC 5321, 4.2.1: each line has the same code
                break
            code = line[1]
            texts.append((line[3] or b"").strip())
            if line[2] != b"-":
                return int(code), b"\n".join(texts)
        raise self.lost("the server's reply is not valid SMTP")

    def _line(self, until: float) -> bytes:
        while b"\n" not in self._unread:
            if len(self._unread) > _LINE_BYTES:
                raise self.lost("the server's reply is not valid SMTP")
            try:
                data = self._socket(until).recv(4096)
            except OSError as error:
                raise self._lost_by(error) from error
            if not data:
                raise self.lost("the server closed the connection")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line.rstrip(b"\r")

    # ---- socket, TLS and login

    def _has_unread(self) -> bool:
        """Return True if there is data that was not read as a reply yet.

        Raises `_ConnectionLost` if the server closed the connection.
        """
        if not self._unread and not self._receive():
            raise self.lost("the server closed the connection")
        return bool(self._unread)

    def _receive(self, seconds: float = 0) -> bool:
        """Read data that arrived, or arrives within ``seconds``. Return False if the server closed the connection."""
        sock = self._socket(time.monotonic() + self._reply_seconds)
        sock.settimeout(seconds)
        try:
            data = sock.recv(4096)
        except (BlockingIOError, TimeoutError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return True  # also after a TLS record without application data (RFC 8446, 4.6)
        except OSError as error:
            raise self._lost_by(error) from error
        self._unread += data
        return bool(data)

    def _connect(self) -> socket.socket:
        """Return a socket that is connected to the first of the host's addresses that accepts."""
        self.step = f"{self._server.host}:{self._server.port}"
        until = time.monotonic() + self._reply_seconds
        try:
            found = socket.getaddrinfo(self._server.host, self._server.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise self.lost("the host name cannot be resolved") from error
        failure: OSError | None = None
        for number, (family, kind, protocol, _, address) in enumerate(found):
            # An address that drops all packets, as IPv6 on some networks, must not use up the time of the others.
            seconds = self._seconds(until) / (len(found) - number)
            sock: socket.socket | None = None
            try:
                # Fails on a kernel without IPv6 (ipv6.disable=1) whose /etc/hosts has ::1.
                sock = socket.socket(family, kind, protocol)
                sock.settimeout(seconds)
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                if sock is not None:
                    sock.close()
                failure = error
            else:
                return sock
        raise self._lost_by(failure or OSError("no address")) from failure

    def _is_on_loopback(self) -> bool:
        try:
            return _is_loopback(self._socket(time.monotonic() + self._reply_seconds))
        except OSError as error:  # reset just after a reply that was still read
            raise self._lost_by(error) from error

    def _encrypt(self, *, verified: bool) -> None:
        self.step = "TLS"
        context = ssl.create_default_context()
        if not verified:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        try:
            plain = self._socket(time.monotonic() + self._reply_seconds)
            self.sock = context.wrap_socket(plain, server_hostname=self._server.host)
        except ssl.SSLCertVerificationError as error:
            raise self.lost(f"the certificate is not valid: {error.verify_message}") from error
        except (OSError, ValueError) as error:
            raise self._lost_by(error) from error

    def _send_ehlo(self) -> None:
        self.step = self.ehlo_msg.upper()
        self._expect(250, *self.ehlo())

    def _log_in(self, user: str, password: str) -> None:
        self.step = "login"
        methods = self.esmtp_features.get("auth", "").upper().split()
        if "PLAIN" in methods:  # RFC 4616
            code, text = self.docmd("AUTH PLAIN", _base64(f"\0{user}\0{password}"))
        elif "LOGIN" in methods:
            code, text = self.docmd("AUTH LOGIN")
            for secret in (user, password):
                if code == 334:
                    code, text = self.docmd(_base64(secret))
        else:
            raise self.lost("the server offers neither AUTH PLAIN nor AUTH LOGIN")
        if code != 235:
            # Only the status code of the reply (RFC 3463), since a server may repeat the password.
            status = re.match(rb"[245]\.[0-9]{1,3}\.[0-9]{1,3}(?![0-9])", text)
            reason = f"{code} {status[0].decode() if status else ''} user or password not accepted"
            raise self.lost(reason, portal_rejected=code >= 500)

    def _expect(self, wanted: int, code: int, text: bytes) -> None:
        if code != wanted:
            raise self.lost(f"{code} {text.decode('ascii', 'replace')}", portal_rejected=code >= 500)

    def _socket(self, until: float) -> socket.socket:
        """Return the socket, with the time until ``until`` or the deadline as its timeout."""
        seconds = self._seconds(until)
        if self.sock is None:
            raise self.lost("not connected")
        self.sock.settimeout(seconds)
        return self.sock

    def _seconds(self, until: float) -> float:
        seconds = min(until, self.deadline) - time.monotonic()
        if seconds <= 0:
            raise self.lost("timed out")
        return seconds

    def _lost_by(self, error: OSError | ValueError) -> _ConnectionLost:
        if isinstance(error, TimeoutError):
            return self.lost("timed out")
        if isinstance(error, ssl.SSLError):
            return self.lost(f"TLS failed: {error.reason or 'connection ended'}")
        return self.lost((error.strerror if isinstance(error, OSError) else None) or "connection failed")


def _parse(url: str) -> _Server:
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("expected smtp://host:port, smtps://user:password@host:port or lmtp://host:port")
    user = None if parts.username is None else unquote(parts.username)
    return _Server(
        parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme], user, unquote(parts.password or "")
    )


def _commands(session: _Session, sender: str, recipient: str, has_8bit: bool) -> list[tuple[str, str, range]]:
    """Return (step, command, expected codes) of the commands before a message. Raises RelayRefused."""
    mail, rcpt = f"MAIL FROM:{sender}", f"RCPT TO:{recipient}"
    if has_8bit and session.has_extn("8bitmime"):
        mail += " BODY=8BITMIME"
    # SMTPUTF8 only for addresses (RFC 6531): if only a header has UTF-8, it would make Postfix bounce the message at a
    # next hop without SMTPUTF8.
    if not (sender + recipient).isascii():
        if not session.has_extn("smtputf8"):
            raise RelayRefused("the sender's or recipient's address is not ASCII and the server offers no SMTPUTF8")
        mail += " SMTPUTF8"
    # RFC 3461, 4.1: no bounce for a message whose sender may be forged.
    if session.has_extn("dsn"):
        rcpt += " NOTIFY=NEVER"
    return [("MAIL FROM", mail, _ACCEPTED), ("RCPT TO", rcpt, _ACCEPTED), ("DATA", "DATA", _START_INPUT)]


def _one_line(text: str) -> str:
    """Return a text as one line of printable ASCII, short enough for a page and a log line."""
    return re.sub(r"[^ -~]", "?", " ".join(text.split()))[:_ERROR_CHARACTERS]


def _is_loopback(sock: socket.socket) -> bool:
    address = ip_address(sock.getpeername()[0].partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


@cache
def _local_hostname() -> str:
    """Return this host's name for EHLO, by smtplib's rule: the fully qualified name, else the address in brackets."""
    return str(smtplib.SMTP().local_hostname)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode("ascii")
