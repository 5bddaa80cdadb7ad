"""The process that reads one message, and nothing else. Messages are hostile input.

It gives up what it does not need before it reads: after `restrict` it cannot open files or connections, start
processes, or use more than 2 s of processor time for the message and 512 MB.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from portal.model.charsets import codec_names
from portal.model.domains import to_ascii
from portal.model.text import shown
from portal.reading.formatted import documents_of, formatted
from portal.reading.header import all_fields
from portal.reading.mime import Parser
from portal.reading.source import Source
from portal.reading.words import TEXT_CHARACTERS, Words

Receive = Callable[[int], bytes]
Seconds = Callable[[], float]

END = b"."  # ends each answer, so that it is seen if a limit ended the process before
ATTACHMENTS = 1_000
_LINE_BYTES = 100  # of the line with the mode
_LINE_CHARACTERS = 10_000  # of a header field or a name
_SHOWN = ("Reply-To", "To", "Cc", "Date")  # the page shows sender and subject from the metadata
_CPU_SECONDS = 2
# After these times of the processor what was read so far is shown: of the parts, and then of their texts. What is left
# until the limit is for steps that cannot be interrupted.
_PARTS_SECONDS = 0.7
_TEXTS_SECONDS = 1.4
_PART_SECONDS = 1.9  # of a file, which is worth nothing unless it is whole
_FORK_SECONDS = 0.1  # at most, of a process that was forked with everything loaded
_MEMORY_BYTES = 512 << 20


def prepare() -> None:
    """Load what reading may need: after `restrict` no file can be opened."""
    for codec in codec_names():
        codecs.getincrementaldecoder(codec)
    to_ascii("ä.example")  # idna loads its tables when it first needs them


def unblock_signals() -> None:
    """Receive signals, which uWSGI blocks in its threads and this process inherited: SIGCHLD, SIGTERM."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def restrict() -> None:
    """Give up the rights of this process."""
    # The kernel counts whole seconds from the start, which takes a new Python some tenths of one.
    started = math.ceil(max(0.0, time.process_time() - _FORK_SECONDS))
    for limit, value in (
        (resource.RLIMIT_CPU, _CPU_SECONDS + started),
        (resource.RLIMIT_AS, _MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 0),  # no file or connection more than this process has
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(limit, (value, value))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)


def serve(connection: socket.socket) -> None:
    """Read one message from a connection, after a line with the mode, and answer. The process must end afterwards."""
    restrict()
    began = time.process_time()
    connection.sendall(b"+")
    mode, *arguments = _line(connection).split()
    for piece in MODES[mode](connection.recv, lambda: time.process_time() - began, *arguments):
        connection.sendall(piece)
    connection.sendall(END)


def _line(connection: socket.socket) -> str:
    line = bytearray()
    while not line.endswith(b"\n") and len(line) < _LINE_BYTES and (octet := connection.recv(1)):
        line += octet
    return line.decode()


def read(receive: Receive, seconds: Seconds) -> dict[str, Any]:
    """Return what the page shows of a message.

    ``receive`` returns the next octets, at most as many as asked for; ``seconds`` the time that was spent.
    """
    parser = Parser(receive, lambda: seconds() > _PARTS_SECONDS)
    words = Words(parser.root, seconds, _TEXTS_SECONDS)
    fields = parser.root.fields
    return {
        "headers": [(name, _short(text, 1_000)) for name in _SHOWN if (text := fields.text(name.lower()))],
        "text": words.text[:TEXT_CHARACTERS],
        "attachments": [
            (_short(each.name, 200), each.size_bytes, each.kind, each.dangers, each.number)
            for each in words.attachments[:ATTACHMENTS]
        ],
        "has_html": bool(documents_of(parser.root)),
        "cut": parser.is_cut
        or words.is_cut
        or len(words.text) > TEXT_CHARACTERS
        or len(words.attachments) > ATTACHMENTS,
    }


def _text(receive: Receive, seconds: Seconds) -> Iterator[bytes]:
    yield json.dumps(read(receive, seconds), ensure_ascii=False).encode("utf-8", "replace")


def _html(receive: Receive, seconds: Seconds) -> Iterator[bytes]:
    yield json.dumps(formatted(receive, seconds, _PARTS_SECONDS), ensure_ascii=False).encode("utf-8", "replace")


def _headers(receive: Receive, seconds: Seconds) -> Iterator[bytes]:
    fields, is_cut = all_fields(Source(receive, lambda: seconds() > _TEXTS_SECONDS))
    yield json.dumps({"fields": fields, "cut": is_cut}, ensure_ascii=False).encode("utf-8", "replace")


def _part(receive: Receive, seconds: Seconds, number: str) -> Iterator[bytes]:
    """Yield the name of a file as JSON and a line end, and then its octets. Raises LookupError if there is none."""
    parser = Parser(receive, lambda: seconds() > _PART_SECONDS, wanted=int(number))
    if parser.content is None:
        raise LookupError(number)
    yield json.dumps(_short(parser.file_name, 1_000)).encode() + b"\n"
    yield from parser.content


# What can be asked about a message. A mode takes the functions that `read` takes, and its arguments, and yields the
# answer.
MODES: dict[str, Callable[..., Iterable[bytes]]] = {"text": _text, "html": _html, "headers": _headers, "part": _part}


def _short(text: str, limit: int) -> str:
    """Return what the portal shows of a line, since the length of the answer is limited."""
    return shown(text[:_LINE_CHARACTERS], limit)


def main() -> None:
    """Read the message that comes through the standard input, which is a socket."""
    unblock_signals()
    prepare()
    serve(socket.socket(fileno=0))
    os._exit(0)
