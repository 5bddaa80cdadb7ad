"""Formats of a POST: gzip, multipart, JSON and msgpack. Locates the bytes of the message and of the metadata.

A large message is never read into memory: it stays in the request's file, as a window, or is written to a temporary
file. The only user of msgpack and multipart.
"""

from __future__ import annotations

import binascii
import json
import tempfile
import zlib
from contextlib import ExitStack
from io import BytesIO
from itertools import chain
from typing import Any, BinaryIO, cast

import msgpack
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from portal.model.errors import BadExport, TooLarge
from portal.model.message import Body

_METADATA_BYTES = 1 << 22  # Rspamd's metadata is never larger
_STEP_BYTES = 1 << 16
_SPOOL_BYTES = 1 << 20  # unpacked data is kept in memory up to this size, then in a file
_RSPAMD_KEYS = frozenset(("rcpt", "symbols", "qid", "action", "from"))  # JSON and msgpack by Rspamd have these keys


def inflate(body: Body, max_body_bytes: int, files: ExitStack) -> Body:
    """Decompress a gzip body (RFC 1952) into a temporary file. Raises BadExport, TooLarge.

    A decompression bomb writes at most ``max_body_bytes`` to the file. There is no limit on the ratio: a log full of
    zeros is a legitimate message, and its POST would be rejected again and again until the sender gave up.
    """
    spool = _spool(files)
    inflater = zlib.decompressobj(wbits=31)
    size = 0
    try:
        for chunk in body.chunks(_STEP_BYTES):
            if inflater.eof:
                raise BadExport("the post has data after its gzip data")
            more = True
            while more:
                piece = inflater.decompress(chunk, _STEP_BYTES)
                chunk = inflater.unconsumed_tail
                size += spool.write(piece)
                if size > max_body_bytes:
                    raise TooLarge(f"the post unpacks to more than exporter.max_body_bytes ({max_body_bytes} bytes)")
                more = len(piece) == _STEP_BYTES or bool(chunk)
    except zlib.error as error:
        raise BadExport("the post has Content-Encoding: gzip, but its gzip data is damaged") from error
    if not inflater.eof or inflater.unused_data:
        raise BadExport("the post's gzip data is truncated or followed by other data")
    return Body(spool, 0, size)


def from_multipart(content_type: str, body: Body, files: ExitStack) -> tuple[Body, dict[str, Any]]:
    """Unpack formatter ``multipart`` (RFC 7578): the parts ``message`` and ``metadata``, in any order.

    Metadata that is not JSON counts as missing, since the message must not be rejected for it. Raises BadExport.
    """
    spool = _spool(files)
    size, seen, name = 0, set[str](), ""
    metadata = bytearray()
    try:
        with PushMultipartParser(parse_options_header(content_type)[1].get("boundary", "")) as parser:
            for event in chain.from_iterable(parser.parse(chunk) for chunk in body.chunks(_STEP_BYTES)):
                if isinstance(event, MultipartSegment):
                    name = "" if event.name in seen else event.name
                    seen.add(name)
                elif event and name == "message":
                    size += spool.write(event)
                elif event and name == "metadata" and len(metadata) <= _METADATA_BYTES:
                    metadata += event
    except (MultipartError, UnicodeError) as error:
        raise BadExport('the multipart post is truncated or not from Rspamd\'s formatter = "multipart"') from error
    if "message" not in seen:
        raise BadExport('the multipart post has no part named "message": use Rspamd\'s formatter = "multipart"')
    return Body(spool, 0, size), _json_object(bytes(metadata)) or {}


def from_json(body: Body) -> tuple[dict[str, Any], Body | None] | None:
    """Unpack formatters ``json`` and ``json_with_message``. Return the fields and the message, still in base64.

    Returns None for any other body. A large message is never read into memory: a quote inside a JSON string always has
    a backslash before it, so the key can be found by its bytes.
    """
    key = b'"message":"'
    at = _find(body, key, 0)
    start = at + len(key)
    end = _find(body, b'"', start) if at >= 0 else -1
    if end < 0:
        start = end = body.size_bytes
    if body.size_bytes - (end - start) > _METADATA_BYTES:
        return None
    fields = _json_object(read(body, 0, start) + read(body, end, body.size_bytes - end))
    if fields is None or not fields.keys() >= _RSPAMD_KEYS:
        return None
    if "message" not in fields:
        return fields, None
    inside = fields.pop("message")
    if inside == "":
        return fields, Body(body.file, body.start + start, end - start)
    if not isinstance(inside, str) or not inside.isascii():
        raise BadExport("the post's message is not base64")
    return fields, Body(BytesIO(inside.encode()), 0, len(inside))


def from_msgpack(body: Body) -> tuple[dict[str, Any], Body | None] | None:
    """Unpack formatters ``msgpack`` and ``structured``. Return the fields and a window on the message.

    Returns None for any other body. The message is ``str`` if it is valid UTF-8, else ``bin``, see
    https://github.com/msgpack/msgpack/blob/master/spec.md.
    """
    fields: dict[str, Any] = {}
    message, at = None, 0
    try:
        unpacker = _unpacker(body, 0)
        for _ in range(unpacker.read_map_header()):
            key = unpacker.unpack()
            if key == "message" and message is None:
                message = _msgpack_window(body, at + unpacker.tell())
                at = message.start - body.start + message.size_bytes
                unpacker = _unpacker(body, at)
            else:
                fields[key.replace("_", "-")] = unpacker.unpack()
            if at + unpacker.tell() - (message.size_bytes if message else 0) > _METADATA_BYTES:
                return None
        if at + unpacker.tell() != body.size_bytes or not fields.keys() >= _RSPAMD_KEYS:
            return None
    except OSError:
        raise
    except Exception:  # the library raises a dozen types, and each of them means that the body is not msgpack
        return None
    return fields, message


def _unpacker(body: Body, start: int) -> Any:
    window = _Window(body, start)
    return msgpack.Unpacker(window, max_buffer_size=_METADATA_BYTES, read_size=1 << 14, unicode_errors="replace")


def _msgpack_window(body: Body, at: int) -> Body:
    head = read(body, at, 5)
    if head[0] & 0xE0 == 0xA0:  # fixstr
        length, start = head[0] & 0x1F, at + 1
    else:  # bin 8/16/32, str 8/16/32; KeyError: something else
        octets = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}[head[0]]
        length, start = int.from_bytes(head[1 : 1 + octets], "big"), at + 1 + octets
    return Body(body.file, body.start + start, length)


class _Window:
    """A readable file with its own position: a body from ``at`` on. Other code may seek in the real file."""

    def __init__(self, body: Body, at: int) -> None:
        self._body, self._at = body, at

    def read(self, size: int) -> bytes:
        data = read(self._body, self._at, size)
        self._at += len(data)
        return data


def from_base64(packed: Body, files: ExitStack) -> Body:
    """Decode base64 (RFC 4648) into a temporary file. Raises BadExport.

    The decoding is strict, since a skipped character would change the message.
    """
    spool = _spool(files)
    size, rest, ended = 0, b"", False
    try:
        for chunk in chain(packed.chunks(_STEP_BYTES), [b""]):
            text = (rest + chunk).replace(b"\\/", b"/")
            # Keep at least one character for the next round: a backslash may be half of an escaped slash.
            usable = max(len(text) - 1, 0) // 4 * 4 if chunk else len(text)
            rest = text[usable:]
            if usable and ended:
                raise binascii.Error("data after the padding")
            ended = text[:usable].endswith(b"=")
            size += spool.write(binascii.a2b_base64(text[:usable], strict_mode=True))
    except binascii.Error as error:
        raise BadExport("the post's message is not base64") from error
    return Body(spool, 0, size)


def _json_object(data: bytes) -> dict[str, Any] | None:
    """Return a JSON object with ``-`` in its keys, or None. RFC 8259, but control characters are accepted."""
    if len(data) > _METADATA_BYTES:
        return None
    try:
        value = json.loads(data.decode("utf-8", "replace"), strict=False)
    except (ValueError, RecursionError):
        return None
    return {key.replace("_", "-"): item for key, item in value.items()} if isinstance(value, dict) else None


def _spool(files: ExitStack) -> BinaryIO:
    return cast(BinaryIO, files.enter_context(tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)))


def read(body: Body, start: int, size: int) -> bytes:
    """Return at most ``size`` bytes of the body from ``start`` on. Raises OSError."""
    body.file.seek(body.start + start)
    return body.file.read(max(0, min(size, body.size_bytes - start)))


def _find(body: Body, needle: bytes, start: int) -> int:
    """Return the position of the first ``needle`` at or after ``start``, or -1."""
    kept = b""
    for chunk in Body(body.file, body.start + start, body.size_bytes - start).chunks():
        kept += chunk
        at = kept.find(needle)
        if at >= 0:
            return start + at
        start += max(0, len(kept) - len(needle) + 1)
        kept = kept[max(0, len(kept) - len(needle) + 1) :]
    return -1
