"""The octets of a message, read once and in order, with bounded memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

CHUNK_BYTES = 1 << 18
_LINE_BYTES = 1 << 16  # longer lines are read in several pieces
_HELD_BACK_BYTES = 4
_DELIMITER_BYTES = 1 << 10  # longer lines are no delimiters (RFC 2046, 5.1.1: 70 characters)
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

    def body(self, is_delimiter: Callable[[bytes], bool]) -> Iterator[bytes]:
        """Read a body up to its delimiter, the delimiter's line included. Yield the octets before it.

        ``is_delimiter`` is asked for each line that begins with two hyphens. The line end before the delimiter belongs
        to it (RFC 2046, 5.1.1).
        """
        self.body_end = self.position
        if self._reads_delimiter(is_delimiter):
            return
        while True:
            place = self._data.find(b"\n--", self._at)
            if place < 0:
                stop = max(self._at, len(self._data) - _HELD_BACK_BYTES)  # a delimiter may begin in these
                yield self._data[self._at : stop]
                self._at = stop
                if not self._fill(_HELD_BACK_BYTES + CHUNK_BYTES):
                    yield self._data[self._at :]
                    self._at = len(self._data)
                    self.body_end = self.position
                    return
                continue
            end = place - 1 if place > self._at and self._data[place - 1] == ord("\r") else place
            yield self._data[self._at : end]
            self.body_end = self._before + end
            line_end = self._data[end : place + 1]
            self._at = place + 1
            if self._reads_delimiter(is_delimiter):
                return
            yield line_end

    def _reads_delimiter(self, is_delimiter: Callable[[bytes], bool]) -> bool:
        """Read the line if it is a delimiter. Return whether it is."""
        if len(self._data) - self._at < _DELIMITER_BYTES:
            self._fill(_DELIMITER_BYTES)
        if not self._data.startswith(b"--", self._at):
            return False
        end = self._data.find(b"\n", self._at, self._at + _DELIMITER_BYTES)
        line = self._data[self._at : end if end >= 0 else len(self._data)]
        if len(line) > _DELIMITER_BYTES or not is_delimiter(line):
            return False
        self._at += len(line) + (end >= 0)
        return True
