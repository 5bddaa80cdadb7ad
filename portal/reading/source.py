"""The octets of a message, read once and in order, with bounded memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

CHUNK_BYTES = 1 << 18
_LINE_BYTES = 1 << 16  # longer lines are read in several pieces
DELIMITER_BYTES = 1 << 11  # at most, with the line ends before and after it
_BLANK_LINE = re.compile(rb"\n\r?\n")


class Late(Exception):
    """The time for one message is over."""


class Source:
    """Lines and bodies of a message.

    ``read`` returns the next octets, at most as many as asked for, b"" at the end. ``is_late``: whether to stop, which
    raises `Late` at the next read. Line endings are CRLF or LF, or CR in messages without any LF at their beginning.
    """

    def __init__(self, read: Callable[[int], bytes], is_late: Callable[[], bool]) -> None:
        self._read = read
        self._is_late = is_late
        self._data = b""
        self._at = 0
        self._before = 0  # octets that are not in `_data` any more
        self._ended = False
        self._old_mac = False
        self.delimiter: re.Match[bytes] | None = None  # that ended the last body
        self.body_end = 0  # the position before the last delimiter, and before the line end that belongs to it
        self._fill(CHUNK_BYTES)
        self._old_mac = b"\n" not in self._data and b"\r" in self._data
        if self._old_mac:
            self._data = self._data.replace(b"\r", b"\n")

    def _fill(self, size: int) -> bool:
        """Have at least ``size`` octets if there are that many. Return whether there are new ones."""
        if self._ended or len(self._data) - self._at >= size:
            return False
        pieces, length = [self._data[self._at :]], len(self._data) - self._at
        before = length
        while length < size:
            if self._is_late():
                raise Late
            piece = self._read(CHUNK_BYTES)
            if not piece:
                self._ended = True
                break
            pieces.append(piece.replace(b"\r", b"\n") if self._old_mac else piece)
            length += len(piece)
        self._before += self._at
        self._data, self._at = b"".join(pieces), 0
        return length > before

    def peek(self, size: int) -> bytes:
        """Return the next octets without reading them, fewer than ``size`` at the end."""
        self._fill(size)
        return self._data[self._at : self._at + size]

    def skip(self, size: int) -> None:
        """Read octets that were peeked at."""
        self._at += size

    @property
    def position(self) -> int:
        """The number of octets read."""
        return self._before + self._at

    def peek_line(self) -> bytes:
        """Return the next line with its end without reading it, or a piece of a long one. Return b"" at the end."""
        end = self._data.find(b"\n", self._at, self._at + _LINE_BYTES)
        if end < 0:
            self._fill(_LINE_BYTES)
            end = self._data.find(b"\n", self._at, self._at + _LINE_BYTES)
        return self._data[self._at : end + 1 if end >= 0 else self._at + _LINE_BYTES]

    def skip_header(self) -> None:
        """Read up to the next blank line."""
        while (end := _BLANK_LINE.search(self._data, self._at)) is None:
            self._at = max(self._at, len(self._data) - 2)
            if not self._fill(CHUNK_BYTES):
                self._at = len(self._data)
                return
        self._at = end.end()

    def body(self, delimiters: re.Pattern[bytes]) -> Iterator[bytes]:
        """Read a body up to its delimiter, the delimiter's line included. Yield the octets before it.

        ``delimiters`` matches a line end and a delimiter, up to the next line end or the end of the message. The line
        end before the delimiter belongs to it (RFC 2046, 5.1.1).
        """
        self.body_end = self.position
        self.delimiter = delimiters.match(b"\n" + self.peek(DELIMITER_BYTES))
        if self.delimiter:
            self._skip_line(self._at + self.delimiter.end() - 1)
            return
        while True:
            found = delimiters.search(self._data, self._at)
            if found and (found.end() < len(self._data) or self._ended):
                end = found.start()
                if end > self._at and self._data[end - 1] == ord("\r"):
                    end -= 1
                yield self._data[self._at : end]
                self.body_end = self._before + end
                self.delimiter = found
                self._skip_line(found.end())
                return
            if self._ended:
                yield self._data[self._at :]
                self._at = len(self._data)
                self.body_end = self.position
                return
            stop = max(self._at, len(self._data) - DELIMITER_BYTES)  # a delimiter may begin in these
            yield self._data[self._at : stop]
            self._at = stop
            self._fill(DELIMITER_BYTES + CHUNK_BYTES)

    def _skip_line(self, end: int) -> None:
        """Read up to the line end at a place of `_data`, and the line end."""
        self._at = min(end + 1, len(self._data))
