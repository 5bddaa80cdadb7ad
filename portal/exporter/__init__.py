"""What Rspamd's metadata_exporter posted → the message's bytes and what is known of it, whatever the formatter.

Rspamd's src/plugins/lua/metadata_exporter.lua is the truth about what comes. The message is found, never parsed:
no MIME, no decoding before the mail is stored, and metadata that cannot be understood is kept and flagged, never
refused. Content types are not to be trusted (rules send JSON as text/plain by default), so a post is JSON or msgpack
only if it has Rspamd's keys; in doubt it *is* the mail. Depends on its arguments alone. `formats` knows the
packings, `values` the values.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Any, cast

from portal.exporter import formats, values
from portal.model.domains import lower_case
from portal.model.errors import BadExport, TooLarge
from portal.model.message import Body, Export, Flag

_HEAD_BYTES = 1 << 16  # own header fields are looked for in so much of the message
_PACKED_TYPES = re.compile(r"application/(?:json|(?:x-|vnd\.)?msgpack)")
# What a hop puts in front, and so differs when the sender tries again or a release comes round.
_TRACE_FIELDS = re.compile(
    rb"(?:(?:received|received-spf|x-greylist|authentication-results|arc-seal|arc-message-signature"
    rb"|arc-authentication-results|return-path|delivered-to|x-original-to|x-quarantine-mark)"
    rb"[ \t]*:[^\n]*\n(?:[ \t][^\n]*\n)*)*",
    re.IGNORECASE,
)
# The text of formatter email_alert; few lines in between, so that no mail can make the search slow.
_EMAIL_ALERT = re.compile(
    rb"\nMessage-ID: <[0-9a-f]{12}@rspamd>\r?\n(?:[^\r\n]+\r?\n){0,4}\r?\n"
    rb"Authenticated username: [^\n]*\nIP: [^\n]*\nQueue ID: [^\n]*\nSMTP FROM: "
)
_NO_MESSAGE = (
    "this post says what Rspamd knows of a message but does not carry the message: in metadata_exporter.conf set "
    'formatter = "multipart" (Rspamd 3.14.2 or newer), or formatter = "default" with meta_headers = true (before)'
)


@dataclass(slots=True)
class Posted:
    """One understood post. ``body`` is a window into the request's file or into a temporary one, so read it before
    `close`; the request's own file stays open."""

    export: Export
    body: Body
    _files: ExitStack

    def close(self) -> None:
        """Remove temporary files. May be called twice."""
        self._files.close()

    def __enter__(self) -> Posted:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def parse(headers: Mapping[str, str], body: Body, max_body_bytes: int) -> Posted | None:
    """Understand one POST of the exporter. None: its message has 0 bytes, there is nothing to hold.

    ``headers`` are the request's, names in lower case, values as WSGI has them (octets as ISO-8859-1). ``body`` is
    the whole request body. Raises BadExport when no message is in it or the packing is broken, TooLarge when it is
    over ``max_body_bytes`` (unpacked, too), OSError when a spool file cannot be read or written.
    """
    if body.size_bytes > max_body_bytes:
        raise TooLarge(f"the post is larger than exporter.max_body_bytes ({max_body_bytes} bytes)")
    with ExitStack() as files:
        message, told = _unpack(headers, body, max_body_bytes, files)
        if not message.size_bytes:
            return None
        return Posted(_export(told, message), message, files.pop_all())


def wanted(export: Export, only_symbols: Sequence[str], hold_actions: Sequence[str]) -> bool:
    """Whether the site holds such mail. Only what is known for certain can say no; empty lists hold all.

    ``only_symbols`` are patterns with ``*`` and ``?``; case does not matter in either list.
    """
    if hold_actions and export.action is not None:
        action = export.action.casefold()
        if all(action != name.casefold() for name in hold_actions):
            return False
    if not only_symbols or Flag.SYMBOLS in export.flags:
        return True
    patterns = [pattern.upper() for pattern in only_symbols]
    return any(fnmatchcase(symbol.name.upper(), pattern) for symbol in export.symbols for pattern in patterns)


def _unpack(
    headers: Mapping[str, str], body: Body, max_body_bytes: int, files: ExitStack
) -> tuple[Body, dict[str, Any]]:
    """The message, and Rspamd's fields under their own names (``scan-time`` with a hyphen)."""
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding in ("gzip", "x-gzip"):
        body = formats.inflate(body, max_body_bytes, files)
    elif encoding not in ("", "identity"):
        raise BadExport("the post's Content-Encoding is not gzip: nothing else is understood")
    told = values.from_headers(headers)
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        message, metadata = formats.from_multipart(headers["content-type"], body, files)
        return message, told | metadata
    if content_type == "message/rfc822" or not body.size_bytes:
        return body, told
    first = formats.read(body, 0, 1)
    found = formats.from_json(body) if first == b"{" else formats.from_msgpack(body) if first >= b"\x80" else None
    if found is not None and _one_post(told, found[0]):
        metadata, packed = found
        if packed is None:
            raise BadExport(_NO_MESSAGE)
        return formats.from_base64(packed, files) if first == b"{" else packed, told | metadata
    if not told:
        if _PACKED_TYPES.fullmatch(content_type):
            raise BadExport("the post's Content-Type says JSON or msgpack, but it is not an export in that format")
        if _EMAIL_ALERT.search(formats.read(body, 0, _HEAD_BYTES)):
            raise BadExport(_NO_MESSAGE)
    return body, told


def _one_post(told: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    """Whether metadata in the body is Rspamd's own, seeing what the headers said.

    Rules may send ``meta_headers`` beside JSON as well. A mail that merely looks like an export cannot foresee its
    queue id, score and scan time; it stays a mail.
    """
    if not told:
        return True
    scores = values.number(told.get("score")), values.number(fields.get("score"))
    return (
        None not in scores
        and abs(cast(float, scores[0]) - cast(float, scores[1])) < 0.01
        and all(str(fields.get(field)) == str(told.get(field)) for field in ("qid", "action", "scan-time"))
    )


def _export(told: Mapping[str, Any], message: Body) -> Export:
    head, content, body_sha256, has_8bit = _digests(message.chunks())
    own = values.own_fields(head)
    flags = set() if told else {Flag.NO_METADATA}

    def known(field: str, limit: int = values.TEXT_CHARACTERS) -> str | None:
        value = told.get(field)
        return values.clean(value, limit) if isinstance(value, str) and value not in ("unknown", "undef") else None

    def checked(value: Any, flag: Flag) -> Any:
        if value is None:
            flags.add(flag)
        return value

    recipients, all_recipients = values.recipients(told.get("rcpt"))
    symbols, all_symbols = values.symbols(told.get("symbols"))
    flags |= {flag for flag, whole in ((Flag.RECIPIENTS, all_recipients), (Flag.SYMBOLS, all_symbols)) if not whole}
    sender = checked(values.sender(told.get("from")), Flag.SENDER)
    queue_id, subject = known("qid"), known("subject", values.SUBJECT_CHARACTERS)
    return Export(
        recipients=recipients,
        envelope_sender=sender,
        subject=own.get("subject", "") if subject is None else subject,
        header_from=own.get("from", "")[: values.TEXT_CHARACTERS],
        queue_id=queue_id or None,
        message_id=known("message-id") or values.message_id(own.get("message-id", "")),
        action=checked(known("action") or None, Flag.ACTION),
        score=checked(values.number(told.get("score")), Flag.SCORE),
        client_ip=values.client_ip(known("ip")),
        user=known("user") or None,
        symbols=symbols,
        flags=frozenset(flags),
        # Without all recipients two mails of one text to two people look alike. Then only the very same bytes with
        # the same queue id are the same: one mail too many is held rather than one too few.
        dedup_key=dedup_key(content, sender, recipients)
        if all_recipients
        else dedup_key(content, sender, recipients, body_sha256, (queue_id or "").encode()),
        body_sha256=body_sha256,
        size_bytes=message.size_bytes,
        has_8bit=has_8bit,
        mark=own.get("x-quarantine-mark", "")[: values.TEXT_CHARACTERS] or None,
    )


def content_digest(chunks: Iterable[bytes]) -> bytes:
    """SHA-256 of a message as a release delivers it, but without the trace fields at its top.

    Equal for a held message and for its release coming back: line ends, and what each hop put in front (Received,
    X-Greylist, …), do not count.
    """
    head, rest = _head(chunks)
    add, finish = _canonical()
    add(head[_trace_end(head) :])
    for chunk in rest:
        add(chunk)
    return finish()


def dedup_key(content: bytes, envelope_sender: str | None, recipients: Iterable[str], *more: bytes) -> bytes:
    """Return the SHA-256 by which a mail that comes again is recognized: SHA-256 of its bytes after the trace fields at
    its top, envelope sender, recipients in lower case.

    The spelling of an international domain counts: a sender's retry has the same one, and keys of stores up to schema
    version 5 stay valid. Not the queue id: each try of a deferred mail has a new one. ``more`` narrows it. Lengths go
    before the parts, so that no two lists of parts make the same bytes.
    """
    sender = [] if envelope_sender is None else [envelope_sender.encode()]
    people = sorted(lower_case(recipient).encode() for recipient in recipients)
    digest = sha256()
    for group in ([content], sender, people, more):
        digest.update(struct.pack(">Q", len(group)))
        for part in group:
            digest.update(struct.pack(">Q", len(part)) + part)
    return digest.digest()


def _digests(chunks: Iterable[bytes]) -> tuple[bytes, bytes, bytes, bool]:
    """In one pass: the first 64 KB, SHA-256 of what follows the trace fields, SHA-256 of all, whether an octet is above
    127. Line ends stay as they are: to make them one took longer than both hashes, and every try of a sender has the
    same."""
    first, rest = _head(chunks)
    whole, content = sha256(first), sha256(memoryview(first)[_trace_end(first) :])
    has_8bit = not first.isascii()
    for chunk in rest:
        whole.update(chunk)
        content.update(chunk)
        has_8bit = has_8bit or not chunk.isascii()
    return first[:_HEAD_BYTES], content.digest(), whole.digest(), has_8bit


def _head(chunks: Iterable[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The first 64 KB or more, and the chunks behind."""
    rest, first = iter(chunks), b""
    for chunk in rest:
        first = first + chunk if first else chunk
        if len(first) >= _HEAD_BYTES:
            break
    return first, rest


def _trace_end(head: bytes) -> int:
    return cast(re.Match[bytes], _TRACE_FIELDS.match(head, 0, _HEAD_BYTES)).end()


def _canonical() -> tuple[Callable[[bytes], None], Callable[[], bytes]]:
    """SHA-256 over lines as the relay sends them: LF and CRLF are one, a stray CR is a blank, the last line ends."""
    digest, held, last = sha256(), b"", b""

    def add(chunk: bytes) -> None:
        nonlocal held, last
        chunk = held + chunk
        held = b"\r" if chunk.endswith(b"\r") else b""
        chunk = chunk[: len(chunk) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b" ")
        digest.update(chunk)
        last = chunk[-1:] or last

    def finish() -> bytes:
        if held:
            digest.update(b" \n")
        elif last != b"\n":
            digest.update(b"\n")
        return digest.digest()

    return add, finish
