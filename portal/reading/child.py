"""The process that reads one message, and nothing else. Messages are hostile input.

It gives up what it does not need before it reads: after `restrict` it cannot open files or connections, start
processes, or use more than 2 s of processor time and 512 MB.
"""

from __future__ import annotations

import codecs
import json
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from portal.model.charsets import codec_names
from portal.reading.mime import Parser
from portal.reading.words import Words

TEXT_CHARACTERS = 1 << 18
ATTACHMENTS = 1_000
_SHOWN = ("Reply-To", "To", "Cc", "Date")  # the page shows sender and subject from the metadata
_CPU_SECONDS = 2
# After this time what was read so far is shown. The rest is for what cannot be interrupted.
_READING_SECONDS = 1.2
_MEMORY_BYTES = 512 << 20


def prepare() -> None:
    """Load what reading may need: after `restrict` no file can be opened."""
    for codec in codec_names():
        codecs.getincrementaldecoder(codec)


def restrict() -> None:
    """Give up the rights of this process."""
    for limit, value in (
        (resource.RLIMIT_CPU, _CPU_SECONDS),
        (resource.RLIMIT_AS, _MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 0),  # no file or connection more than this process has
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(limit, (value, value))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)


def serve(connection: socket.socket) -> None:
    """Read one message from a connection and answer with its JSON. The process must end afterwards."""
    restrict()
    began = time.process_time()
    connection.sendall(b"+")
    answer = read(connection.recv, lambda: time.process_time() - began > _READING_SECONDS)
    connection.sendall(json.dumps(answer).encode())


def read(receive: Callable[[int], bytes], is_late: Callable[[], bool]) -> dict[str, Any]:
    """Return what the page shows of a message. ``receive`` returns the next octets, at most as many as asked for."""
    parser = Parser(receive, is_late)
    words = Words(parser.root, is_late)
    fields = parser.root.fields
    return {
        "headers": [(name, text) for name in _SHOWN if (text := fields.text(name.lower()))],
        "text": words.text[:TEXT_CHARACTERS],
        "attachments": words.attachments[:ATTACHMENTS],
        "cut": parser.is_cut or words.is_cut or len(words.text) > TEXT_CHARACTERS,
    }


def main() -> None:
    """Read the message that comes through the standard input, which is a socket."""
    prepare()
    serve(socket.socket(fileno=0))
    os._exit(0)
