"""Lines of the log: ``2026-11-28 07:00:00,123 INFO quarantine.ingest: held id=…``, or the same as JSON.

Each message is a line, and `logging` took a tenth of the time of a post. Row of the bench: "a post without its own log
lines".
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from portal.model.fast_json import encode

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# What no line shows: the thread, the process, and the position in the source, for which `logging` walks the stack.
# https://docs.python.org/3/howto/logging.html#optimization
UNUSED: dict[str, Any] = {"logThreads": False, "logProcesses": False, "logMultiprocessing": False, "_srcfile": None}
_PLACEHOLDER = re.compile(r"(?:(\w+)=)?%(?:%|[-+ 0#]*\d*(?:\.\d+)?[a-z])")
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")

# The id of the request that this thread answers, "" in other programs.
REQUEST_ID: ContextVar[str] = ContextVar("REQUEST_ID", default="")


def begin_request(proposed: str) -> None:
    """Set the id of the request that this thread begins to answer: the one that the proxy gave it, if it has the form
    of an id, or a new one."""
    REQUEST_ID.set(proposed if _REQUEST_ID.fullmatch(proposed) else secrets.token_hex(16))


def leave_out_unused() -> None:
    """Make `logging` leave out what no line shows, in the whole process."""
    for name, value in UNUSED.items():
        setattr(logging, name, value)


class LineFormatter(logging.Formatter):
    """The formatter of `FORMAT`, with the id of the request at the end. It formats the time once a second."""

    def __init__(self) -> None:
        super().__init__(FORMAT)
        self._last = (-1, "")  # replaced as a whole, since threads share it

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, followed by its traceback if it has one."""
        if record.exc_info or record.exc_text or record.stack_info:
            return super().format(record)
        second, text = self._last
        if second != int(record.created):
            second = int(record.created)
            text = time.strftime(self.default_time_format, self.converter(second))
            self._last = (second, text)
        line = f"{text},{int(record.msecs):03} {record.levelname} {record.name}: {record.getMessage()}"
        request = REQUEST_ID.get()
        return f"{line} request={request}" if request else line

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line before a traceback."""
        line, request = super().formatMessage(record), REQUEST_ID.get()
        return f"{line} request={request}" if request else line


class JsonFormatter(logging.Formatter):
    """A JSON object on each line: time (UTC), level, logger, message, and each ``key=value`` of the message as a field.

    `python-json-logger` knows fields only if each call passes them twice, in the text and as ``extra``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the object of a record. A traceback is its field ``error``."""
        at = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := REQUEST_ID.get():
            line["request"] = request
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        if record.args and isinstance(record.args, tuple):
            for name, place in _fields(str(record.msg)):
                line.setdefault(name, str(record.args[place]))
        return encode(line).decode()


@lru_cache(maxsize=1000)
def _fields(message: str) -> tuple[tuple[str, int], ...]:
    """Return the names before placeholders of a message, with the places of their values."""
    found = [match for match in _PLACEHOLDER.finditer(message) if not match[0].endswith("%%")]
    return tuple((match[1], place) for place, match in enumerate(found) if match[1])
