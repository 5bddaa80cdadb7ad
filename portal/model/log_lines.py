"""Lines of the log: ``2026-11-28 07:00:00,123 INFO quarantine.ingest: held id=…``.

Each message is a line, and `logging` took a tenth of the time of a post. Row of the bench: "a post without its own log
lines".
"""

from __future__ import annotations

import logging
import time
from typing import Any

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# What no line shows: the thread, the process, and the position in the source, for which `logging` walks the stack.
# https://docs.python.org/3/howto/logging.html#optimization
UNUSED: dict[str, Any] = {"logThreads": False, "logProcesses": False, "logMultiprocessing": False, "_srcfile": None}


def leave_out_unused() -> None:
    """Make `logging` leave out what no line shows, in the whole process."""
    for name, value in UNUSED.items():
        setattr(logging, name, value)


class LineFormatter(logging.Formatter):
    """The formatter of `FORMAT`. It formats the time once a second."""

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
        return f"{text},{int(record.msecs):03} {record.levelname} {record.name}: {record.getMessage()}"
