"""A real SMTP or LMTP server for tests: a table of verbs and what to do at each, on a real socket.

    with SmtpServer() as server:
        Relay(server.url).send(...)
        server.mails[0].recipients, server.mails[0].data

``script`` maps a verb to its behaviour: a reply ("450 4.2.0 busy", several lines with \\n between; one with \\r\\n goes
out as it is), `HANG` (never answer), `DROP` (close), `DRIP` (one octet of a reply at a time, without end), or a
callable that gets the command line and returns one of these, or None for the usual answer. A list has one behaviour
for each occurrence; after its end the usual answer is given. Verbs: BANNER EHLO (LHLO too) STARTTLS AUTH MAIL RCPT DATA
RSET NOOP QUIT, INPUT (right after the 354 was sent), PART (the first octets of the mail have arrived) and BODY (the
final dot has arrived). The table may be changed while the server runs.

It is as strict as RFC 5321: only CRLF ends a line and only CRLF.CRLF ends a mail. A bare CR or LF, an octet above 127
without BODY=8BITMIME, a non-ASCII address without SMTPUTF8, and input that comes before the answer to a command that
must be waited for are recorded in ``violations``.
"""

from __future__ import annotations

import base64
import re
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

HANG, DROP, DRIP = "HANG", "DROP", "DRIP"
Behaviour = str | None | Callable[[bytes], str | None] | list[Any]

_PATH = re.compile(rb'(?:MAIL FROM|RCPT TO):<((?:"(?:[^"\\]|\\.)*"|[^<>"])*)>(?: (.*))?', re.IGNORECASE | re.DOTALL)
_LAST = ("EHLO", "LHLO", "STARTTLS", "AUTH", "DATA", "NOOP", "QUIT")  # of a pipelined batch (RFC 2920, 3.1)
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")


@dataclass
class Mail:
    """One mail whose final dot arrived."""

    sender: str  # between < and >, as written
    recipients: list[str]
    sender_parameters: str  # "BODY=8BITMIME"
    recipient_parameters: list[str]
    raw: bytes  # the octets between the 354 and the final dot, still dot-stuffed, with the last CRLF

    @property
    def data(self) -> bytes:
        """The mail without dot-stuffing (RFC 5321, 4.5.2)."""
        unstuffed = self.raw.replace(b"\r\n.", b"\r\n")
        return unstuffed[1:] if unstuffed.startswith(b".") else unstuffed


class _Gone(Exception):
    """The connection is closed."""


@dataclass
class SmtpServer:
    """A server as the module describes it. ``mails`` were answered 2xx, ``unanswered`` arrived but were not."""

    script: dict[str, Behaviour] = field(default_factory=dict)
    lmtp: bool = False
    extensions: tuple[str, ...] = ("8BITMIME", "SMTPUTF8", "DSN", "PIPELINING", "ENHANCEDSTATUSCODES")
    users: Mapping[str, str] | None = None  # user → password; MAIL is refused before a login
    login_methods: str = "PLAIN LOGIN"
    tls: ssl.SSLContext | None = None  # offers STARTTLS, or with implicit_tls speaks TLS at once
    implicit_tls: bool = False
    host: str = "127.0.0.1"

    mails: list[Mail] = field(default_factory=list, init=False)
    unanswered: list[Mail] = field(default_factory=list, init=False)
    commands: list[bytes] = field(default_factory=list, init=False)  # of all connections, without CRLF
    violations: list[str] = field(default_factory=list, init=False)
    connections: int = field(default=0, init=False)

    def __enter__(self) -> SmtpServer:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._listener = socket.create_server((self.host, 0), family=family, backlog=100)
        self.port: int = self._listener.getsockname()[1]
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and cut every connection."""
        self._stop.set()
        self._listener.close()
        with self._lock:
            for sock in self._sockets:
                _shut(sock)
        # This wakes accept(). On Linux closing the listening socket does not.
        try:
            socket.create_connection((self.host, self.port), 0.1).close()
        except OSError:
            pass
        for thread in self._threads:
            thread.join(5)

    def drop_connections(self) -> None:
        """Close every open connection, as a server does with idle ones."""
        with self._lock:
            for sock in self._sockets:
                _shut(sock)

    def send_unsolicited(self, text: str) -> None:
        """Send a line on every open connection, as a server does that closes idle ones."""
        with self._lock:
            for sock in self._sockets:
                sock.sendall(f"{text}\r\n".encode())

    @property
    def url(self) -> str:
        """The address of the server for `Relay`."""
        scheme = "lmtp" if self.lmtp else "smtps" if self.implicit_tls else "smtp"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}"

    @property
    def verbs(self) -> list[str]:
        """The first word of every command, in order."""
        return [line.split(b" ")[0].decode("ascii", "replace").upper() for line in self.commands]

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            if self._stop.is_set():
                sock.close()
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            with self._lock:
                self.connections += 1
                self._sockets.add(sock)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        session = _Session(self, sock)
        try:
            session.run()
        except (_Gone, OSError):
            pass
        finally:
            with self._lock:
                self._sockets -= {sock, session.sock}
            session.sock.close()
            sock.close()


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


class _Session:
    """One connection."""

    def __init__(self, server: SmtpServer, sock: socket.socket) -> None:
        self.server, self.sock = server, sock
        self.buffer = b""
        self.secure = self.greeted = self.logged_in = False
        self.reset()

    def reset(self) -> None:
        self.sender: tuple[str, str] | None = None
        self.recipients: list[tuple[str, str]] = []

    def run(self) -> None:
        if self.server.implicit_tls:
            self.wrap()
        self.answer("BANNER", b"", "220 mx.example.org ready")
        while True:
            line = self.line()
            self.server.commands.append(line)
            verb = line.split(b" ")[0].upper().decode("ascii", "replace")
            if self.buffer and ("PIPELINING" not in self.server.extensions or verb in _LAST):
                self.server.violations.append(f"more was sent before {line!r} was answered")
            handler = getattr(self, f"on_{verb.lower()}", None)
            if handler is None:
                self.reply("500 5.5.2 unknown command")
            else:
                handler(line)

    # ---- verbs

    def on_ehlo(self, line: bytes) -> None:
        if line[:4].upper() != (b"LHLO" if self.server.lmtp else b"EHLO"):
            self.reply("500 5.5.1 the other protocol is spoken here")
            return
        offers = ["mx.example.org", *self.server.extensions]
        if self.server.tls and not self.secure:
            offers.append("STARTTLS")
        if self.server.users is not None:
            offers.append(f"AUTH {self.server.login_methods}")
        if self.answer("EHLO", line, "\n".join(f"250 {offer}" for offer in offers)):
            self.greeted = True
            self.reset()

    on_lhlo = on_ehlo

    def on_starttls(self, line: bytes) -> None:
        usual = "220 2.0.0 go ahead" if self.server.tls else "502 5.5.1 no"
        if self.answer("STARTTLS", line, usual, wanted="220"):
            self.buffer = b""
            self.greeted = False
            self.wrap()

    def on_auth(self, line: bytes) -> None:
        words = line.split(b" ")
        if words[1].upper() == b"PLAIN":
            _, user, password = base64.b64decode(words[2]).split(b"\0")
        else:
            self.reply("334 VXNlcm5hbWU6")
            user = base64.b64decode(self.line())
            self.reply("334 UGFzc3dvcmQ6")
            password = base64.b64decode(self.line())
        known = (self.server.users or {}).get(user.decode()) == password.decode()
        usual = "235 2.7.0 welcome" if known else "535 5.7.8 wrong password"
        self.logged_in = self.answer("AUTH", line, usual, wanted="235")

    def on_mail(self, line: bytes) -> None:
        if not self.greeted or (self.server.users is not None and not self.logged_in):
            self.reply("503 5.5.1 EHLO first" if not self.greeted else "530 5.7.0 log in first")
            return
        parsed = self.path(line, {"BODY=8BITMIME": "8BITMIME", "BODY=7BIT": "8BITMIME", "SMTPUTF8": "SMTPUTF8"})
        if parsed is None:
            return
        if self.sender is not None:
            self.reply("503 5.5.1 nested MAIL")
        elif self.answer("MAIL", line, "250 2.1.0 ok"):
            self.sender = parsed
            if not parsed[0].isascii() and "SMTPUTF8" not in parsed[1]:
                self.server.violations.append(f"UTF-8 in an address without SMTPUTF8: {line!r}")

    def on_rcpt(self, line: bytes) -> None:
        if self.sender is None:
            self.reply("503 5.5.1 MAIL first")
            return
        parsed = self.path(line, {"NOTIFY=NEVER": "DSN"})
        if parsed is not None and self.answer("RCPT", line, "250 2.1.5 ok"):
            self.recipients.append(parsed)
            if not parsed[0].isascii() and "SMTPUTF8" not in self.sender[1]:
                self.server.violations.append(f"UTF-8 in an address without SMTPUTF8: {line!r}")

    def on_data(self, line: bytes) -> None:
        if not self.recipients:
            self.answer("DATA", line, "554 5.5.1 no valid recipients")
            return
        if not self.answer("DATA", line, "354 go on", wanted="354"):
            return
        self.answer("INPUT", line, "")
        if not self.buffer:
            self.fill()
        self.answer("PART", line, "")
        raw = self.body()
        assert self.sender is not None
        mail = Mail(
            self.sender[0], [r for r, _ in self.recipients], self.sender[1], [p for _, p in self.recipients], raw
        )
        if _BARE.search(raw):
            self.server.violations.append("a bare CR or LF in the mail")
        if not raw.isascii() and "8BITMIME" in self.server.extensions and "BODY=8BITMIME" not in self.sender[1]:
            self.server.violations.append("8-bit mail without BODY=8BITMIME")
        with self.server._lock:
            self.server.unanswered.append(mail)
        for path, _ in self.recipients if self.server.lmtp else self.recipients[:1]:
            self.answer("BODY", path.encode(), "250 2.0.0 queued as 4Bx7", accepted=mail)
        self.reset()

    def on_rset(self, line: bytes) -> None:
        if self.answer("RSET", line, "250 2.0.0 ok"):
            self.reset()

    def on_noop(self, line: bytes) -> None:
        self.answer("NOOP", line, "250 2.0.0 ok")

    def on_quit(self, line: bytes) -> None:
        self.answer("QUIT", line, "221 2.0.0 bye")
        raise _Gone

    # ---- protocol

    def path(self, line: bytes, parameters: Mapping[str, str]) -> tuple[str, str] | None:
        match = _PATH.fullmatch(line)
        if match is None:
            self.server.violations.append(f"syntax: {line!r}")
            self.reply("501 5.5.4 syntax")
            return None
        given = (match[2] or b"").decode("ascii", "replace")
        for word in given.split():
            if parameters.get(word) not in self.server.extensions:
                self.server.violations.append(f"parameter that was not offered: {line!r}")
                self.reply("555 5.5.4 unsupported parameter")
                return None
        return match[1].decode("utf-8", "surrogateescape"), given

    def answer(self, verb: str, line: bytes, usual: str, *, wanted: str = "25", accepted: Mail | None = None) -> bool:
        """Do what the script has for this verb. Return whether the answer was positive."""
        with self.server._lock:
            behaviour = self.server.script.get(verb)
            if isinstance(behaviour, list):
                behaviour = behaviour.pop(0) if behaviour else None
        if callable(behaviour):
            behaviour = behaviour(line)
        reply = usual if behaviour is None else behaviour
        if reply == HANG:
            self.hang(reading=verb != "INPUT")
        if reply == DROP:
            raise _Gone
        if reply == DRIP:
            while not self.server._stop.wait(0.02):
                self.sock.sendall(b"2")
        is_positive = reply.startswith(wanted)
        if accepted is not None and is_positive:
            with self.server._lock:
                self.server.unanswered.remove(accepted)
                self.server.mails.append(accepted)
        if reply:
            self.reply(reply)
        if reply.startswith("421"):
            raise _Gone
        return is_positive

    def hang(self, *, reading: bool) -> None:
        """Send nothing until the client closes the connection."""
        if reading:
            while self.sock.recv(65536):
                pass
        else:
            self.server._stop.wait()
        raise _Gone

    def reply(self, text: str) -> None:
        if "\r\n" in text:
            self.sock.sendall(text.encode())
            return
        *more, last = text.split("\n")
        lines = [f"{line[:3]}-{line[4:]}\r\n" for line in more] + [f"{last}\r\n"]
        self.sock.sendall("".join(lines).encode())

    def wrap(self) -> None:
        assert self.server.tls is not None
        plain, self.sock = self.sock, self.server.tls.wrap_socket(self.sock, server_side=True)
        with self.server._lock:
            self.server._sockets -= {plain}
            self.server._sockets.add(self.sock)
        self.secure = True

    def line(self) -> bytes:
        while b"\r\n" not in self.buffer:
            self.fill()
        line, _, self.buffer = self.buffer.partition(b"\r\n")
        if _BARE.search(line):
            self.server.violations.append(f"a bare CR or LF in a command: {line!r}")
        return line

    def body(self) -> bytes:
        if self.buffer[:1] == b"." or not self.buffer:
            while len(self.buffer) < 3:
                self.fill()
            if self.buffer.startswith(b".\r\n"):
                self.buffer = self.buffer[3:]
                return b""
        data, start = bytearray(self.buffer), 0
        while (end := data.find(b"\r\n.\r\n", start)) < 0:
            start = max(0, len(data) - 4)
            data += self.receive()
        self.buffer = bytes(data[end + 5 :])
        return bytes(data[: end + 2])

    def fill(self) -> None:
        self.buffer += self.receive()

    def receive(self) -> bytes:
        data = self.sock.recv(1 << 18)
        if not data:
            raise _Gone
        return data


def nobody_listens(scheme: str = "smtp") -> str:
    """Return an address where connections are refused."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
