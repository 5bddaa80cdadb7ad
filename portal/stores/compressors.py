"""The zstd compressors of the current thread.

A compressor is not thread-safe, and creating one takes as long as compressing some KB. Row of the bench: "a post
without the thread's compressors".
"""

from __future__ import annotations

import threading

import zstandard

# Level 1 takes a quarter less time than level 3. Up to this size its result is 1 to 3 % longer, for a text of 900 KB
# 9 %. Row of the bench: "a post without level 1 for small mail".
_SMALL_BYTES = 1 << 16


def _level(size_bytes: int) -> int:
    return 1 if size_bytes <= _SMALL_BYTES else 3


class _Compressors(threading.local):
    def __init__(self) -> None:  # runs in each thread that uses them
        self._plain: dict[int, zstandard.ZstdCompressor] = {}
        self._with_checksum: dict[int, zstandard.ZstdCompressor] = {}

    def plain(self, size_bytes: int) -> zstandard.ZstdCompressor:
        """Return the compressor for data of this size."""
        level = _level(size_bytes)
        if level not in self._plain:
            self._plain[level] = zstandard.ZstdCompressor(level=level)
        return self._plain[level]

    def with_checksum(self, size_bytes: int) -> zstandard.ZstdCompressor:
        """Return the compressor for data of this size that adds a checksum to the frame."""
        level = _level(size_bytes)
        if level not in self._with_checksum:
            self._with_checksum[level] = zstandard.ZstdCompressor(level=level, write_checksum=True)
        return self._with_checksum[level]


own = _Compressors()
