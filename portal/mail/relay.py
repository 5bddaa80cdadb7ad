"""Handing bytes to a mail server: SMTP, SMTPS and LMTP. The only user of smtplib.

Hides connections, TLS, login, time-outs and reply codes behind one promise: the mail goes to exactly the recipient
it was given, whole, or the caller learns that it did not. `RelayDeferred` means "try again" – also for everything
that is the site's own mistake (a wrong password, a server that rejects this host), which must not return mail one by
one – and `RelayRefused` means "never": a 5xx reply about this mail, or an address that SMTP cannot express. A broken
connection after the final dot leaves open whether the mail arrived and counts as deferred: it may arrive twice.

A reply counts only as the answer to what was sent before it. So nothing is sent while a reply is unread, and the final
dot is sent by itself, after a last look: a 250 that came before it would be read as "the mail was taken".

Of smtplib only the commands and the reading of EHLO are used. Its address quoting sends mail to strangers
(``a,b@c.d`` becomes ``<a>``), its dot-stuffing sees only bare LF, its time-outs begin anew with each octet, and its
login takes no UTF-8.
"""

from __future__ import annotations

import base64
import re
import smtplib
import socket
import ssl
import time
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
_LINE_BYTES = 8192  # RFC 5321, 4.5.3.1.5 says 512; the server that sends more than this is none
_REPLY_LINES = 200
_QUIT_SECONDS = 1.0
# Before the final dot: by then a server that answers the first lines of a mail is heard. It reads those of a large one
# while the rest lies in the network's buffers.
_LISTEN_SECONDS, _LISTEN_LARGE_SECONDS = 0.002, 0.05
_MESSAGE_CHARACTERS = 300
# RFC 5321, 4.2.1: x5z is the mail system. 220, 221 or 235 in this place is the answer to something else.
_TAKEN = range(250, 260)
_GO_ON = range(354, 355)

_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)


class Relay:
    """One mail server, by address.

    ``smtp://[user:password@]host[:25]``: STARTTLS is used when it is offered, except on loopback; without a password
    any certificate is taken, since an attacker could as well hide the offer. With a password TLS is required and
    the certificate verified, except on loopback. ``smtps://…[:465]``: TLS from the first octet, always verified.
    ``lmtp://…[:24]``: as smtp with LHLO. A private certificate authority is named by ``SSL_CERT_FILE``, as OpenSSL
    has it. User and password are percent-encoded; IPv6 addresses stand in brackets.

    ``reply_seconds`` is the longest wait for one reply, ``total_seconds`` for one mail, connecting included.
    Raises ValueError for an address of another shape (`portal.settings` checks them before).
    """

    def __init__(self, url: str, *, reply_seconds: float = 10, total_seconds: float = 30) -> None:
        self._server = _parse(url)
        self._reply_seconds = reply_seconds
        self._total_seconds = total_seconds

    def send(self, envelope_sender: str, recipient: str, chunks: Iterable[bytes], *, has_8bit: bool) -> str:
        """Send one mail over a connection of its own; see `Connection.send`."""
        with self.connection() as connection:
            return connection.send(envelope_sender, recipient, chunks, has_8bit=has_8bit)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """For many mails: a connection, opened by the first of them and closed at the end of the block."""
        connection = Connection(self._server, self._reply_seconds, self._total_seconds)
        try:
            yield connection
        finally:
            connection.close()

    def probe(self) -> str:
        """Connect and log in, send nothing. Returns what was found in one sentence; raises RelayDeferred."""
        session = _Session(self._server, self._reply_seconds, time.monotonic() + self._total_seconds)
        try:
            session.open()
            return session.described()
        finally:
            session.leave()


class Connection:
    """Sends mails one after the other over one connection. Not thread-safe. Made by `Relay.connection`."""

    def __init__(self, server: _Server, reply_seconds: float, total_seconds: float) -> None:
        self._server, self._reply_seconds, self._total_seconds = server, reply_seconds, total_seconds
        self._session: _Session | None = None
        self._transaction_open = False

    def send(self, envelope_sender: str, recipient: str, chunks: Iterable[bytes], *, has_8bit: bool) -> str:
        """Send one mail to one recipient; returns the server's last reply as one line of printable ASCII.

        ``envelope_sender`` "" is the null sender. ``chunks`` are the mail's bytes, read once and never kept. On the
        wire each line ends with CRLF (a bare LF becomes one, a stray CR a blank, as Postfix has it), lines that
        begin with a dot get another (RFC 5321, 4.5.2), and the last line is ended if it was not.
        ``has_8bit``: some octet is above 127.

        Raises RelayDeferred (RelayUnreachable before the server was told of any mail) or RelayRefused with a line of
        at most 300 characters that names the step. A 5xx reply about this portal is RelayDeferred (`rejects_portal`).
        When ``chunks`` raises, the connection is cut before the final dot, so that no server takes the mail for
        complete, and the exception goes on. A connection that the server closed between two mails, or over which it
        said something unasked, is made anew, once.
        """
        sender, to = path(envelope_sender, is_sender=True), path(recipient, is_sender=False)
        deadline = time.monotonic() + self._total_seconds
        reused = self._session is not None and self._session.sock is not None
        try:
            try:
                session = self._envelope(sender, to, has_8bit, deadline)
            except _Lost:
                if not reused:
                    raise
                session = self._envelope(sender, to, has_8bit, deadline)
            return self._content(session, chunks)
        except (RelayDeferred, RelayRefused):
            raise
        except BaseException:
            # Neither side knows where it stands, so nothing more may go over this connection.
            if self._session is not None:
                self._session.close()
            raise

    def close(self) -> None:
        """Say goodbye if there is still a connection."""
        if self._session is not None:
            self._session.leave()
            self._session = None

    def _envelope(self, sender: str, recipient: str, has_8bit: bool, deadline: float) -> _Session:
        """Bring the server to 354. With PIPELINING (RFC 2920) the three commands travel together."""
        session = self._opened(deadline)
        if self._transaction_open:
            session.ask("RSET", "RSET", wanted=250)
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
            except _Lost:
                if failure is None:
                    raise
                break  # the reason came before the connection ended
            if code not in wanted:
                failure = failure or session.failure(code, text)
                if not pipelined or session.sock is None:
                    break
            elif failure is not None and code == 354:
                # It waits for a mail to nobody. A dot could still send an empty one to somebody; hanging up cannot.
                session.close()
        if failure is not None:
            raise failure
        return session

    def _opened(self, deadline: float) -> _Session:
        if self._session is None or self._session.sock is None:
            self._session = _Session(self._server, self._reply_seconds, deadline)
            self._transaction_open = False
            try:
                self._session.open()
            except _Lost as error:
                raise RelayUnreachable(str(error), portal_rejected=error.portal_rejected) from error
        self._session.deadline = deadline
        return self._session

    def _content(self, session: _Session, chunks: Iterable[bytes]) -> str:
        session.step = "sending the mail"
        try:
            waiting, last, octets = bytearray(), b"", 0
            for piece in wire(chunks):
                waiting += last
                octets += len(last)
                last = piece
                if len(waiting) >= _WRITE_BYTES:
                    session.send(waiting)
                    waiting.clear()
            if waiting:
                session.send(waiting)
            session.listen(_LISTEN_SECONDS if octets <= _WRITE_BYTES else _LISTEN_LARGE_SECONDS)
            session.send(last)  # the final dot
        except BaseException:
            session.close()
            raise
        session.step = "final dot"
        code, text = session.getreply()
        session.check_last_reply()
        if code not in _TAKEN:
            raise session.failure(code, text, at_final_dot=True)
        self._transaction_open = False
        return _one_line(f"{code} {text.decode('ascii', 'replace')}")


@dataclass(frozen=True, slots=True)
class _Server:
    """What an address says."""

    scheme: str
    host: str
    port: int
    user: str | None
    password: str = field(repr=False)


class _Lost(RelayDeferred):
    """The connection is gone, or nothing sensible can follow on it."""


class _Session(smtplib.SMTP):
    """One connection. What goes wrong below arrives as `_Lost`; `step` says in the message what was being done."""

    def __init__(self, server: _Server, reply_seconds: float, deadline: float) -> None:
        super().__init__(local_hostname=_own_name())
        self.ehlo_msg = "lhlo" if server.scheme == "lmtp" else "ehlo"
        self.deadline = deadline  # of the mail being sent, in time.monotonic()
        self.step = "connection"
        self.addresses: tuple[str, ...] = ()  # the sender and recipient of that mail
        self._server, self._reply_seconds = server, reply_seconds
        self._unread = b""

    def open(self) -> None:
        """Connect, encrypt and log in as the address asks for. All failures here are the site's: `_Lost`."""
        server = self._server
        self.sock = self._dialled()
        if server.scheme == "smtps":
            self._encrypt(verified=True)
        self.step = "greeting"
        self._expect(220, *self.getreply())
        self._hello()
        if server.scheme != "smtps" and not self._is_on_loopback():
            if self.has_extn("starttls"):
                self.ask("STARTTLS", "STARTTLS", wanted=220)
                if self._has_more():  # what came unencrypted must not count as said under TLS (CVE-2011-0411)
                    raise self.lost("the server sent more than an answer before TLS")
                self._encrypt(verified=server.user is not None)
                self._hello()
            elif server.user is not None:
                raise self.lost("the server offers no STARTTLS, and a password must not travel unencrypted")
        if server.user is not None:
            self._log_in(server.user, server.password)

    def described(self) -> str:
        """The sentence for `Relay.probe`."""
        server = self._server
        greeted = (self.ehlo_resp or b"").split(b"\n")[0].split(b" ")[0].decode("ascii", "replace")
        tls = f"with {self.sock.version()}" if isinstance(self.sock, ssl.SSLSocket) else "without TLS"
        login = "" if server.user is None else ", logged in"
        wanted = ("8BITMIME", "DSN", "PIPELINING", "SMTPUTF8")
        offered = [name for name in wanted if self.has_extn(name)]
        missing = [name for name in wanted if name not in offered]
        return _one_line(
            f"{server.host}:{server.port} answers as {greeted} by {'LMTP' if server.scheme == 'lmtp' else 'SMTP'}, "
            f"{tls}{login}; it offers {', '.join(offered) or 'no extension that matters'}"
            + (f", but not {', '.join(missing)}" if missing else "")
        )

    def ask(self, step: str, command: str, *, wanted: int) -> None:
        """One command of which only one answer lets us go on."""
        self.step = step
        self._expect(wanted, *self.docmd(command))

    def leave(self) -> None:
        """QUIT, if there still is a connection. Whatever was to be sent has been answered: nothing can fail here."""
        if self.sock is None:
            return
        self.deadline = time.monotonic() + _QUIT_SECONDS
        with suppress(_Lost):  # it has closed already, which is all that QUIT asks for
            self.docmd("QUIT")
        self.close()

    def lost(self, why: str, *, portal_rejected: bool = False) -> _Lost:
        """Close, and the error that says why."""
        self.close()
        return _Lost(_one_line(f"{self.step}: {why}"), portal_rejected=portal_rejected)

    def failure(self, code: int, text: bytes, *, at_final_dot: bool = False) -> RelayDeferred | RelayRefused:
        """What an answer that is no yes means."""
        said = f"{code} {text.decode('ascii', 'replace')}"
        if code == 421:
            return self.lost(said)
        if not 400 <= code <= 599:
            return self.lost(f"unexpected answer {said}")
        line = _one_line(f"{self.step}: {said}")
        portal_rejected = rejects_portal(
            code, text.decode("utf-8", "replace"), self.addresses, at_final_dot=at_final_dot
        )
        return (
            RelayDeferred(line, portal_rejected=portal_rejected)
            if portal_rejected or code < 500
            else RelayRefused(line)
        )

    def listen(self, seconds: float) -> None:
        """Give a server that answers before it was asked a moment to be heard; `send` looks whether it was."""
        if not self._unread:
            self._look(seconds)

    def check_last_reply(self) -> None:
        """Raise `_Lost` when more came with the reply to the final dot: nobody knows which of them was meant.

        A server that says goodbye behind it (421), or just closes, has answered. One whose connection is reset has
        closed it without reading all of the mail.
        """
        closed = not self._unread and not self._look()
        if self._unread:
            code, text = self.getreply()
            if code != 421:
                raise self.lost(f"more than one answer, the last one {code} {text.decode('ascii', 'replace')}")
            closed = True
        if closed:
            self.close()

    # ---- what smtplib calls

    def send(self, s: Any) -> None:
        """Write it all within the time there is, unless the server has answered before it was asked."""
        if self._has_more():
            said = self._unread.partition(b"\n")[0].decode("ascii", "replace")
            raise self.lost(f"the server answered before it was asked: {said}")
        with memoryview(s.encode() if isinstance(s, str) else s) as data:
            sent = 0
            while sent < len(data):
                try:
                    sent += self._socket(time.monotonic() + self._reply_seconds).send(data[sent:])
                except OSError as error:
                    raise self._broken(error) from error

    def getreply(self) -> tuple[int, bytes]:
        """One reply, whole. The time-out is for all of it: a server that drips octets gets no more."""
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
        raise self.lost("the server's answer is no SMTP")

    def _line(self, until: float) -> bytes:
        while b"\n" not in self._unread:
            if len(self._unread) > _LINE_BYTES:
                raise self.lost("the server's answer is no SMTP")
            try:
                data = self._socket(until).recv(4096)
            except OSError as error:
                raise self._broken(error) from error
            if not data:
                raise self.lost("the server closed the connection")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line.rstrip(b"\r")

    # ---- below

    def _has_more(self) -> bool:
        """Whether the server has said something that nobody has asked for yet."""
        if not self._unread and not self._look():
            raise self.lost("the server closed the connection")
        return bool(self._unread)

    def _look(self, seconds: float = 0) -> bool:
        """Take in what has arrived, or arrives within that time; False when the server has closed."""
        sock = self._socket(time.monotonic() + self._reply_seconds)
        sock.settimeout(seconds)
        try:
            data = sock.recv(4096)
        except (BlockingIOError, TimeoutError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return True  # also where TLS itself spoke unasked (RFC 8446, 4.6)
        except OSError as error:
            raise self._broken(error) from error
        self._unread += data
        return bool(data)

    def _dialled(self) -> socket.socket:
        """A connection to the first of the host's addresses that answers."""
        self.step = f"{self._server.host}:{self._server.port}"
        until = time.monotonic() + self._reply_seconds
        try:
            found = socket.getaddrinfo(self._server.host, self._server.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise self.lost("the host name cannot be resolved") from error
        failure: OSError | None = None
        for number, (family, kind, protocol, _, address) in enumerate(found):
            # One that swallows everything, as IPv6 does on many a network, must not take the time of all.
            seconds = self._seconds(until) / (len(found) - number)
            sock: socket.socket | None = None
            try:
                # Fails where a kernel without IPv6 (ipv6.disable=1) is told of ::1 by its /etc/hosts.
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
        raise self._broken(failure or OSError("no address")) from failure

    def _is_on_loopback(self) -> bool:
        try:
            return _is_loopback(self._socket(time.monotonic() + self._reply_seconds))
        except OSError as error:  # reset right behind an answer that we still got to read
            raise self._broken(error) from error

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
            raise self._broken(error) from error

    def _hello(self) -> None:
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
            # Of the answer only the status code (RFC 3463): a server may repeat what we sent.
            status = re.match(rb"[245]\.[0-9]{1,3}\.[0-9]{1,3}(?![0-9])", text)
            said = f"{code} {status[0].decode() if status else ''} user or password not accepted"
            raise self.lost(said, portal_rejected=code >= 500)

    def _expect(self, wanted: int, code: int, text: bytes) -> None:
        if code != wanted:
            raise self.lost(f"{code} {text.decode('ascii', 'replace')}", portal_rejected=code >= 500)

    def _socket(self, until: float) -> socket.socket:
        """The socket, with the time it has left as its time-out."""
        seconds = self._seconds(until)
        if self.sock is None:
            raise self.lost("there is no connection")
        self.sock.settimeout(seconds)
        return self.sock

    def _seconds(self, until: float) -> float:
        seconds = min(until, self.deadline) - time.monotonic()
        if seconds <= 0:
            raise self.lost("time-out")
        return seconds

    def _broken(self, error: OSError | ValueError) -> _Lost:
        if isinstance(error, TimeoutError):
            return self.lost("time-out")
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
    """Step, command and the codes of a yes. Raises RelayRefused."""
    mail, rcpt = f"MAIL FROM:{sender}", f"RCPT TO:{recipient}"
    if has_8bit and session.has_extn("8bitmime"):
        mail += " BODY=8BITMIME"
    # Only for addresses (RFC 6531): with a UTF-8 header alone Postfix would bounce at a next hop that lacks it.
    if not (sender + recipient).isascii():
        if not session.has_extn("smtputf8"):
            raise RelayRefused("the sender's or recipient's address is not ASCII and the server offers no SMTPUTF8")
        mail += " SMTPUTF8"
    # RFC 3461, 4.1: no bounce for a mail whose sender may be forged.
    if session.has_extn("dsn"):
        rcpt += " NOTIFY=NEVER"
    return [("MAIL FROM", mail, _TAKEN), ("RCPT TO", rcpt, _TAKEN), ("DATA", "DATA", _GO_ON)]


def _one_line(text: str) -> str:
    """Printable ASCII, short enough for a page and a log line."""
    return re.sub(r"[^ -~]", "?", " ".join(text.split()))[:_MESSAGE_CHARACTERS]


def _is_loopback(sock: socket.socket) -> bool:
    address = ip_address(sock.getpeername()[0].partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


@cache
def _own_name() -> str:
    """What we call ourselves in EHLO, by smtplib's rule: the host's full name, else its address in brackets."""
    return str(smtplib.SMTP().local_hostname)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode("ascii")
