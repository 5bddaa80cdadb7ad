"""A mail server that accepts all mail at once and only counts it: ``python -m bench.sink``.

It runs in a process of its own. It prints its port, and for each line of input the totals so far: mails, different
recipients, octets, and the times of the first and the last mail.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bench.rig import ROOT

_MAIL = re.compile(rb"MAIL FROM:<[^>]*>( BODY=8BITMIME)?\r\n", re.IGNORECASE)
_RCPT = re.compile(rb"RCPT TO:<([^>]+)>\r\n", re.IGNORECASE)
_GREETING = b"250-sink\r\n250-PIPELINING\r\n250 8BITMIME\r\n"


@dataclass(frozen=True)
class Got:
    """The totals so far."""

    mails: int
    recipients: int
    octets: int
    first_at: float  # by time.monotonic(), which is the same for all processes
    last_at: float


class Sink:
    """A running mail server."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdin and process.stdout
        self._ask, self._answer = process.stdin, process.stdout
        self.url = f"smtp://127.0.0.1:{int(self._answer.readline())}"

    def got(self) -> Got:
        self._ask.write("\n")
        self._ask.flush()
        mails, recipients, octets, first_at, last_at = self._answer.readline().split()
        return Got(int(mails), int(recipients), int(octets), float(first_at), float(last_at))


@contextmanager
def sink() -> Iterator[Sink]:
    """Run a mail server during the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.sink"], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield Sink(process)
    finally:
        process.terminate()
        process.communicate()


class _Mails:
    def __init__(self) -> None:
        self.count = self.octets = 0
        self.recipients: set[bytes] = set()
        self.first_at = self.last_at = 0.0


class _Session(asyncio.Protocol):
    """One connection by RFC 5321 and 2920: pipelined commands are answered in one write."""

    def __init__(self, mails: _Mails) -> None:
        self._mails = mails
        self._data = bytearray()
        self._in_mail = False
        self._sender = False
        self._recipient = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(b"220 sink\r\n")

    def data_received(self, data: bytes) -> None:
        self._data += data
        answers = []
        while (answer := self._mail() if self._in_mail else self._command()) is not None:
            answers.append(answer)
        self._transport.write(b"".join(answers))

    def _mail(self) -> bytes | None:
        end = self._data.find(b"\r\n.\r\n")
        if end < 0:
            return None
        mails = self._mails
        mails.count += 1
        mails.octets += end
        mails.recipients.add(self._recipient)
        mails.last_at = time.monotonic()
        mails.first_at = mails.first_at or mails.last_at
        del self._data[: end + 5]
        self._in_mail = self._sender = False
        self._recipient = b""
        return b"250 taken\r\n"

    def _command(self) -> bytes | None:
        end = self._data.find(b"\r\n")
        if end < 0:
            return None
        line = bytes(self._data[: end + 2])
        del self._data[: end + 2]
        verb = line[:4].upper()
        if verb == b"MAIL" and _MAIL.fullmatch(line) and not self._sender:
            self._sender = True
        elif verb == b"RCPT" and self._sender and (match := _RCPT.fullmatch(line)):
            self._recipient = match[1]
        elif verb == b"DATA" and self._recipient:
            self._in_mail = True
            return b"354 go on\r\n"
        elif verb == b"EHLO":
            return _GREETING
        elif verb == b"QUIT":
            self._transport.write(b"221 bye\r\n")
            self._transport.close()
            return None
        else:
            return b"503 what is this\r\n"
        return b"250 ok\r\n"


async def _serve() -> None:
    mails, loop = _Mails(), asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Session(mails), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    requests = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)
    while await requests.readline():
        print(mails.count, len(mails.recipients), mails.octets, mails.first_at, mails.last_at, flush=True)


if __name__ == "__main__":
    asyncio.run(_serve())
