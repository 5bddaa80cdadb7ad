"""Client for SMTP, SMTPS and LMTP: sends messages to a mail server.

Handles connections, TLS, login, timeouts and reply codes. Either the complete message goes to exactly the given
recipient, or an exception is raised. `RelayDeferred` means "try again". It is also raised for all mistakes of the site
(a wrong password, a server that rejects this host), so that they do not fail messages one by one. `RelayRefused` means
"never": a 5xx reply about this message, or an address that SMTP cannot express. If the connection breaks after the
final dot, it is unknown whether the message was accepted. This counts as deferred, so the message may arrive twice.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from portal.mail.smtp_session import ConnectionLost, Server, Session, one_line, parse
from portal.mail.wire import path, wire
from portal.model.errors import RelayDeferred, RelayRefused, RelayUnreachable

_WRITE_BYTES = 1 << 16  # small pieces are sent together
# The wait before the final dot, in which an early reply to the first lines of a message arrives. The server reads the
# first lines of a large message while the rest is still in the network's buffers.
_EARLY_REPLY_SECONDS, _EARLY_REPLY_LARGE_SECONDS = 0.002, 0.05
# RFC 5321, 4.2.1: x5z is about the mail system. 220, 221 or 235 in this place is the reply to another command.
_ACCEPTED = range(250, 260)
_START_INPUT = range(354, 355)


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
        self._server = parse(url)
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
        session = Session(self._server, self._reply_seconds, time.monotonic() + self._total_seconds)
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

    def __init__(self, server: Server, reply_seconds: float, total_seconds: float) -> None:
        self._server, self._reply_seconds, self._total_seconds = server, reply_seconds, total_seconds
        self._session: Session | None = None
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
            except ConnectionLost:
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

    def _send_envelope(self, sender: str, recipient: str, has_8bit: bool, deadline: float) -> Session:
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
            except ConnectionLost:
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

    def _open_session(self, deadline: float) -> Session:
        if self._session is None or self._session.sock is None:
            self._session = Session(self._server, self._reply_seconds, deadline)
            self._transaction_open = False
            try:
                self._session.open()
            except ConnectionLost as error:
                raise RelayUnreachable(str(error), portal_rejected=error.portal_rejected) from error
        self._session.deadline = deadline
        return self._session

    def _send_content(self, session: Session, chunks: Iterable[bytes]) -> str:
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
        return one_line(f"{code} {text.decode('ascii', 'replace')}")


def _commands(session: Session, sender: str, recipient: str, has_8bit: bool) -> list[tuple[str, str, range]]:
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
