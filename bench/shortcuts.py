"""The gain of each shortcut: processor time of a post or a digest with it, and with plain code in its place.

The ratio is the time of the plain code divided by ours. Below 1.03 a shortcut is removed: docs/decisions/speed.md. A
round is a fixed number of posts or digests, so ``--seconds`` does not matter.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from email.headerregistry import HeaderRegistry, UnstructuredHeader
from functools import cache
from typing import Any
from unittest.mock import patch
from uuid import UUID

import zstandard

from bench import digests
from bench.rig import Effort, Row, own_folder, postgres
from bench.sink import sink
from bench.turns import Way, in_turn, needed, posts, sending
from portal.digests import compose
from portal.exporter import values
from portal.ingest import Ingest
from portal.mail import render
from portal.model import fast_json, from_header, log_lines, reasons
from portal.model.message import held_at
from portal.stores import compressors, open_store, search
from portal.stores.files import mail, word_index
from portal.stores.postgres import rows
from portal.stores.postgres.database import Connection

POSTS, DIGESTS = 100, 24  # in a turn
_LOGGED = {name: getattr(logging, name) for name in log_lines.UNUSED}


@contextmanager
def _standard_json() -> Iterator[None]:
    plain = fast_json._lenient
    with (
        patch.object(fast_json, "_encode", lambda value: plain(value).encode()),
        patch.object(values, "_simple_symbols", lambda value: None),
    ):
        yield


@contextmanager
def _standard_log() -> Iterator[None]:
    plain = logging.Formatter(log_lines.FORMAT).format
    with (
        patch.multiple(logging, **_LOGGED),
        patch.object(log_lines.LineFormatter, "format", lambda self, record: plain(record)),
    ):
        yield


class _NewCompressors:
    def plain(self, size_bytes: int) -> zstandard.ZstdCompressor:
        return zstandard.ZstdCompressor(level=compressors._level(size_bytes))

    def with_checksum(self, size_bytes: int) -> zstandard.ZstdCompressor:
        return zstandard.ZstdCompressor(level=compressors._level(size_bytes), write_checksum=True)


class _AnyText(str):
    """A text that does not know whether it is ASCII."""

    def isascii(self) -> bool:
        return False


def _any_words() -> AbstractContextManager[object]:
    fold = search.fold
    return patch.object(search, "fold", lambda text: _AnyText(fold(_AnyText(text))))


def _path(files: mail.MailFiles, id: UUID) -> str:
    return str(files._folder(held_at(id).date()) / str(id)[-2:] / f"{id}{mail._SUFFIX}")


@cache
def _for_psycopg(statement: bytes) -> bytes:
    return re.sub(rb"\$[0-9]+", b"%s", statement)


def _execute(connection: Connection, statement: bytes, parameters: Sequence[Any], seconds: float) -> list[bytes]:
    connection.timeout_seconds = seconds
    with connection.expect_no_warning():
        row = connection.execute(_for_psycopg(statement), parameters).fetchone()
    return [str(field).encode() for field in row or ()]


@contextmanager
def _adapters() -> Iterator[None]:
    """Leave the statement, and its arrays, to psycopg."""
    with (
        patch.object(rows, "ask", _execute),
        patch.object(rows, "_array", list),
        patch.dict(rows._RAW, {frozenset: list}),
    ):
        yield


def _new_class(name: str) -> Any:
    return HeaderRegistry.__getitem__(render._HEADERS, name)


@contextmanager
def _parsed_mime_headers() -> Iterator[None]:
    headers, standard = render._HEADERS, HeaderRegistry().registry
    types = {name: standard.get(name, UnstructuredHeader) for name in render._MIME_HEADERS}
    with patch.dict(headers.registry, types):
        headers._class_of.cache_clear()
        yield
    headers._class_of.cache_clear()


POST: dict[str, Way] = {
    "msgspec": _standard_json,
    "the thread's compressors": lambda: patch.object(compressors, "own", _NewCompressors()),
    "level 1 for small mail": lambda: patch.object(compressors, "_level", lambda size_bytes: 3),
    "code for ASCII words": _any_words,
    "an expression for simple senders": lambda: patch.object(from_header, "_SIMPLE", re.compile("(?!)")),
    "looking for rules while it is held": lambda: patch.object(Ingest, "_add_undecided", lambda *_: None),
    "its own log lines": _standard_log,
    "its own WSGI application": lambda: patch("portal.web.is_export", lambda environ: False),  # but through Bottle
}
FILES: dict[str, Way] = {
    "batches for the word index": lambda: patch.object(word_index, "_BATCH", 1),
    "paths as strings": lambda: patch.object(mail.MailFiles, "_path", _path),
}
POSTGRES: dict[str, Way] = {"parameters as text": _adapters}
DIGEST: dict[str, Way] = {
    "cached header classes": lambda: patch.object(render._HEADERS, "_class_of", _new_class),
    "MIME headers as made": _parsed_mime_headers,
    "sizes of parts": lambda: patch.object(compose, "_fits", lambda mail: len(mail.as_bytes()) <= compose.MAIL_BYTES),
    "cached senders": lambda: patch.object(from_header, "parse", from_header.parse.__wrapped__),
    "cached reasons": lambda: patch.object(reasons, "_text_of", reasons._text_of.__wrapped__),
}


def shortcuts_files(effort: Effort) -> list[Row]:
    """Posts into a file store, in memory: what the kernel spends on a disk depends on what else is written to it."""
    with own_folder(in_memory=True) as folder, posts(f"files://{folder}/store", folder) as post:
        return [
            in_turn(f"a post without {name}, files, µs", post, POSTS, plain, effort)
            for name, plain in (POST | FILES).items()
        ]


def shortcuts_postgres(effort: Effort) -> list[Row]:
    """Posts into PostgreSQL."""
    with own_folder() as folder, postgres() as dsn:
        open_store(dsn, create=True).close()
        with posts(dsn, folder) as post:
            return [
                in_turn(f"a post without {name}, PostgreSQL, µs", post, POSTS, plain, effort, dsn)
                for name, plain in (POST | POSTGRES).items()
            ]


def shortcuts_digest(effort: Effort) -> list[Row]:
    """Digests of ten messages from PostgreSQL."""
    found = []
    with own_folder() as folder, postgres() as dsn, sink() as server:
        url = digests._filled(dsn, needed(DIGESTS, effort))
        environment = digests._environment(url, folder / "digests") | {"QUARANTINE_MAIL__URL": server.url}
        with sending(environment) as send:
            for name, plain in DIGEST.items():
                found.append(in_turn(f"a digest without {name}, µs", send, DIGESTS, plain, effort, dsn))
                digests._due_again(environment)
    return found
