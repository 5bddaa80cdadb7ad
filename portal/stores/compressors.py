"""The zstd compressors of the current thread.

A compressor is not thread-safe, and creating one takes as long as compressing some KB. Row of the bench: "a post
without the thread's compressors".
"""

from __future__ import annotations

import threading

import zstandard

_LEVEL = 3


class _Compressors(threading.local):
    def __init__(self) -> None:  # runs in each thread that uses them
        self.plain = zstandard.ZstdCompressor(level=_LEVEL)
        self.with_checksum = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)


own = _Compressors()
