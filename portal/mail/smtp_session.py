"""One connection to a mail server: connect, TLS, login, commands and replies. The only user of smtplib.

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
from contextlib import suppress
from dataclasses import field
from functools import cache
from ipaddress import IPv6Address, ip_address
from typing import Any
from urllib.parse import unquote, urlsplit

from portal.model.errors import RelayDeferred, RelayRefused
from portal.model.record import record

_PORTS = {"smtp": 25, "smtps": 465, "lmtp": 24}
_LINE_BYTES = 8192  # RFC 5321, 4.5.3.1.5 says 512; a line longer than this is not from a mail server
_REPLY_LINES = 200
_QUIT_SECONDS = 1.0
_ERROR_CHARACTERS = 300

_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)


@record(frozen=True, slots=True)
class Server:
    """The parts of a mail server's URL."""

    scheme: str
    host: str
    port: int
    user: str | None
    password: str = field(repr=False)


class ConnectionLost(RelayDeferred):
    """The connection was closed, by the server or because it cannot be used any longer."""

    has_answer = False


class Session(smtplib.SMTP):
    """One connection. Raises `ConnectionLost` for all its errors; their text begins with the current `step`."""

    def __init__(self, server: Server, reply_seconds: float, deadline: float) -> None:
        super().__init__(local_hostname=_local_hostname())
        self.ehlo_msg = "lhlo" if server.scheme == "lmtp" else "ehlo"
        self.deadline = deadline  # of the message being sent, in time.monotonic()
        self.step = "connection"
        self.addresses: tuple[str, ...] = ()  # the sender and recipient of that message
        self._server, self._reply_seconds = server, reply_seconds
        self._unread = b""

    def open(self) -> None:
        """Connect, encrypt and log in as the URL requires.

        Raises `ConnectionLost`, also for 5xx replies, since all failures here are the site's and concern no message.
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
        return one_line(
            f"{server.host}:{server.port} answers as {name} by {'LMTP' if server.scheme == 'lmtp' else 'SMTP'}, "
            f"{tls}{login}; it offers {', '.join(offered) or 'no extension that is used'}"
            + (f", but not {', '.join(missing)}" if missing else "")
        )

    def run(self, step: str, command: str, *, wanted: int) -> None:
        """Send a command. Raises `ConnectionLost` if the reply has another code than ``wanted``."""
        self.step = step
        self._expect(wanted, *self.docmd(command))

    def disconnect(self) -> None:
        """Send QUIT and close the connection, if there is one. Errors are ignored: each message has its reply."""
        if self.sock is None:
            return
        self.deadline = time.monotonic() + _QUIT_SECONDS
        with suppress(ConnectionLost):  # the server closed the connection, as QUIT requests
            self.docmd("QUIT")
        self.close()

    def lost(self, why: str, *, portal_rejected: bool = False) -> ConnectionLost:
        """Close the connection. Return the error to raise, with the reason."""
        self.close()
        return ConnectionLost(one_line(f"{self.step}: {why}"), portal_rejected=portal_rejected)

    def failure(self, code: int, text: bytes, *, at_final_dot: bool = False) -> RelayDeferred | RelayRefused:
        """Return the error to raise for a reply that does not have an expected code."""
        reply = f"{code} {text.decode('ascii', 'replace')}"
        if code == 421:
            return self.lost(reply)
        if not 400 <= code <= 599:
            return self.lost(f"unexpected reply {reply}")
        from portal.mail.smtp_replies import rejects_portal  # its expressions take 10 ms to compile

        line = one_line(f"{self.step}: {reply}")
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
        """Raise `ConnectionLost` if another reply follows that to the final dot: it is unclear which one counts.

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
        """Send all of ``s`` within the time limits. Raises `ConnectionLost`, also after an unsolicited reply."""
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

        Raises `ConnectionLost` if the server closed the connection.
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

    def _lost_by(self, error: OSError | ValueError) -> ConnectionLost:
        if isinstance(error, TimeoutError):
            return self.lost("timed out")
        if isinstance(error, ssl.SSLError):
            return self.lost(f"TLS failed: {error.reason or 'connection ended'}")
        return self.lost((error.strerror if isinstance(error, OSError) else None) or "connection failed")


def parse(url: str) -> Server:
    """Return the server of a URL. Raises ValueError for another kind of URL."""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("expected smtp://host:port, smtps://user:password@host:port or lmtp://host:port")
    user = None if parts.username is None else unquote(parts.username)
    return Server(parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme], user, unquote(parts.password or ""))


def one_line(text: str) -> str:
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
