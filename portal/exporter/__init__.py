"""Parser of POSTs by Rspamd's metadata_exporter: the message's bytes and metadata, for all of its formatters.

Rspamd's src/plugins/lua/metadata_exporter.lua defines what is posted. The message is located, never parsed: no MIME
parsing and no decoding before the message is stored. Metadata that cannot be read is flagged, never a reason to reject
the POST. Content types are unreliable (rules send JSON as text/plain by default), so a POST is JSON or msgpack only if
it has Rspamd's keys; in doubt it *is* the message. Depends on its arguments alone. `formats` unpacks, `values` reads
the values.
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
from portal.model import from_header
from portal.model.domains import lower_case
from portal.model.errors import BadExport, TooLarge
from portal.model.message import Body, Export, Flag, identity
from portal.model.rule import BLOCKED

ACCEPTS_DELIVER = "x-rspamd-accepts-deliver"
RULE_VERSION = 1  # of the files in deploy/rspamd
_HEAD_BYTES = 1 << 16  # trace fields are searched in this much of a message
_HEADER_BYTES = 1 << 20  # the message's own header fields in this much of it
_PACKED_TYPES = re.compile(r"application/(?:json|(?:x-|vnd\.)?msgpack)")
# Fields that a hop adds at the top. They differ when the sender tries again or a released message comes back.
_TRACE_FIELDS = re.compile(
    rb"(?:(?:received|received-spf|x-greylist|authentication-results|arc-seal|arc-message-signature"
    rb"|arc-authentication-results|return-path|delivered-to|x-original-to|x-quarantine-mark)"
    rb"[ \t]*:[^\n]*\n(?:[ \t][^\n]*\n)*)*",
    re.IGNORECASE,
)
# The text of formatter email_alert. Few lines are allowed in between, so that no message can make the search slow.
_EMAIL_ALERT = re.compile(
    rb"\nMessage-ID: <[0-9a-f]{12}@rspamd>\r?\n(?:[^\r\n]+\r?\n){0,4}\r?\n"
    rb"Authenticated username: [^\n]*\nIP: [^\n]*\nQueue ID: [^\n]*\nSMTP FROM: "
)
_NO_MESSAGE = (
    "this post has Rspamd's metadata of a message but not the message itself: in metadata_exporter.conf set "
    'formatter = "multipart" (Rspamd 3.14.2 or newer), or formatter = "default" with meta_headers = true (before)'
)


@dataclass(slots=True)
class Posted:
    """One parsed POST.

    ``body`` is a window into the request's file or into a temporary one: read it before `close`. The request's own file
    stays open. ``accepts_deliver``: the rule in Rspamd delivers the message at once to the recipients that the answer
    names.
    """

    export: Export
    body: Body
    _files: ExitStack
    accepts_deliver: bool = False
    _recipients: Any = None  # as posted

    def as_posted(self, recipients: Iterable[str]) -> tuple[str, ...]:
        """Return these recipients of the export exactly as they were posted, in every spelling."""
        return values.spellings(self._recipients, frozenset(map(identity, recipients)))

    def close(self) -> None:
        """Remove temporary files. Can be called twice."""
        self._files.close()

    def __enter__(self) -> Posted:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def parse(headers: Mapping[str, str], body: Body, max_body_bytes: int) -> Posted | None:
    """Parse one POST of the exporter. Return None if its message has 0 bytes: there is nothing to hold.

    ``headers``: the request's, names in lower case with hyphens, values as in WSGI (octets as ISO-8859-1). ``body``:
    the whole request body. Raises BadExport if it contains no message, its packing is broken or it has too many
    recipients, TooLarge if it is larger than ``max_body_bytes`` (packed or unpacked), OSError if a spool file cannot be
    read or written.
    """
    if body.size_bytes > max_body_bytes:
        raise TooLarge(f"the post is larger than exporter.max_body_bytes ({max_body_bytes} bytes)")
    with ExitStack() as files:
        message, metadata = _unpack(headers, body, max_body_bytes, files)
        if not message.size_bytes:
            return None
        accepts = headers.get(ACCEPTS_DELIVER) == "1"
        return Posted(_export(metadata, message), message, files.pop_all(), accepts, metadata.get("rcpt"))


def wanted(export: Export, only_symbols: Sequence[str], hold_actions: Sequence[str]) -> bool:
    """Return whether the site's settings select this message: unknown values count as selected, empty lists select all.

    ``only_symbols``: patterns with ``*`` and ``?``. Case is ignored in both lists. A message that rules block is always
    selected: Rspamd discards it, so it would be lost.
    """
    return _is_selected(export, only_symbols, hold_actions) or is_blocked(export)


def is_blocked(export: Export) -> bool:
    """Return whether Rspamd withholds the message from all its recipients since rules block it."""
    return any(symbol.name == BLOCKED for symbol in export.symbols)


def _is_selected(export: Export, only_symbols: Sequence[str], hold_actions: Sequence[str]) -> bool:
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
    """Return the message, and Rspamd's fields by their own names (``scan-time`` with a hyphen)."""
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding in ("gzip", "x-gzip"):
        body = formats.inflate(body, max_body_bytes, files)
    elif encoding not in ("", "identity"):
        raise BadExport("the post's Content-Encoding is not gzip: no other encoding is supported")
    from_headers = values.from_headers(headers)
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        message, metadata = formats.from_multipart(headers["content-type"], body, files)
        return message, from_headers | metadata
    if content_type == "message/rfc822" or not body.size_bytes:
        return body, from_headers
    first = formats.read(body, 0, 1)
    found = formats.from_json(body) if first == b"{" else formats.from_msgpack(body) if first >= b"\x80" else None
    if found is not None and _is_metadata(found[0], from_headers):
        metadata, packed = found
        if packed is None:
            raise BadExport(_NO_MESSAGE)
        return formats.from_base64(packed, files) if first == b"{" else packed, from_headers | metadata
    if not from_headers:
        if _PACKED_TYPES.fullmatch(content_type):
            raise BadExport("the post's Content-Type says JSON or msgpack, but it is not an export in that format")
        if _EMAIL_ALERT.search(formats.read(body, 0, _HEAD_BYTES)):
            raise BadExport(_NO_MESSAGE)
    return body, from_headers


def _is_metadata(fields: Mapping[str, Any], from_headers: Mapping[str, Any]) -> bool:
    """Return whether fields in the body are Rspamd's metadata, by comparison with those in the headers.

    Rules may send ``meta_headers`` in addition to JSON. A message that only looks like an export cannot predict its
    queue id, score and scan time, so it is held as a message.
    """
    if not from_headers:
        return True
    scores = values.number(from_headers.get("score")), values.number(fields.get("score"))
    return (
        None not in scores
        and abs(cast(float, scores[0]) - cast(float, scores[1])) < 0.01
        and all(str(fields.get(field)) == str(from_headers.get(field)) for field in ("qid", "action", "scan-time"))
    )


def _export(metadata: Mapping[str, Any], message: Body) -> Export:
    header, content, body_sha256, has_8bit = _digests(message.chunks())
    own = values.own_fields(header)
    flags = set() if metadata else {Flag.NO_METADATA}

    def known(field: str, limit: int = values.TEXT_CHARACTERS) -> str | None:
        value = metadata.get(field)
        return values.clean(value, limit) if isinstance(value, str) and value not in ("unknown", "undef") else None

    def checked(value: Any, flag: Flag) -> Any:
        if value is None:
            flags.add(flag)
        return value

    recipients, all_recipients = values.recipients(metadata.get("rcpt"))
    symbols, all_symbols = values.symbols(metadata.get("symbols"))
    complete = ((Flag.RECIPIENTS, all_recipients), (Flag.SYMBOLS, all_symbols))
    flags |= {flag for flag, is_complete in complete if not is_complete}
    # A prefilter's verdict stops all filters, and Rspamd then reports no symbols (lua_task.c, task:set_pre_result).
    # Rules without the field "forced" are recognised by that.
    if known("forced") == "1" or (all_symbols and not symbols):
        flags.add(Flag.FORCED)
    sender = checked(values.sender(metadata.get("from")), Flag.SENDER)
    queue_id, subject = known("qid"), known("subject", values.SUBJECT_CHARACTERS)
    if subject is None or (own.subject and values.is_damaged(subject)):
        subject = own.subject
    return Export(
        recipients=recipients,
        envelope_sender=sender,
        subject=subject,
        header_from=from_header.written(own.mailboxes),
        queue_id=queue_id or None,
        message_id=known("message-id") or values.message_id(own.message_id),
        action=checked(known("action") or None, Flag.ACTION),
        score=checked(values.number(metadata.get("score")), Flag.SCORE),
        client_ip=values.client_ip(known("ip")),
        user=known("user") or None,
        symbols=symbols,
        flags=frozenset(flags),
        # If recipients are missing, two messages with one text for two people look the same. Then only identical bytes
        # with the same queue id count as the same message: a duplicate is better than a lost message.
        dedup_key=dedup_key(content, sender, recipients)
        if all_recipients
        else dedup_key(content, sender, recipients, body_sha256, (queue_id or "").encode()),
        body_sha256=body_sha256,
        size_bytes=message.size_bytes,
        has_8bit=has_8bit,
        threshold=values.number(metadata.get("threshold")),
        from_count=len(own.mailboxes),
        mark=own.mark[: values.TEXT_CHARACTERS] or None,
    )


def content_digest(chunks: Iterable[bytes]) -> bytes:
    """Return the SHA-256 of a message as a release delivers it, without the trace fields at its top.

    It is equal for a held message and for its release that came back: line endings and the fields that each hop added
    at the top (Received, X-Greylist, …) do not count.
    """
    head, rest = _head(chunks)
    add, finish = _canonical()
    add(head[_trace_end(head) :])
    for chunk in rest:
        add(chunk)
    return finish()


def dedup_key(content: bytes, envelope_sender: str | None, recipients: Iterable[str], *more: bytes) -> bytes:
    """Return the SHA-256 that identifies a message which is exported again.

    It covers ``content`` (the SHA-256 of the bytes after the trace fields at the top), the envelope sender and the
    recipients in lower case. The spelling of an international domain counts: a sender's retry has the same one, and
    keys of stores up to schema version 5 stay valid. The queue id does not: each try of a deferred message has a new
    one. ``more``: parts that must be equal as well. Each part is preceded by its length, so that no two lists of parts
    make the same bytes.
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
    """Return (header, SHA-256 after the trace fields, SHA-256 of all, is any octet above 127?) in one pass.

    Line endings are not normalized: this took longer than both hashes, and each try of a sender has the same ones.
    """
    head, rest = _head(chunks)
    whole, content = sha256(head), sha256(memoryview(head)[_trace_end(head) :])
    has_8bit = not head.isascii()
    header = values.header_of(head)
    for chunk in rest:
        whole.update(chunk)
        content.update(chunk)
        has_8bit = has_8bit or not chunk.isascii()
        if header is None and len(head) < _HEADER_BYTES:
            head += chunk
            header = values.header_of(head)
    return head[:_HEADER_BYTES] if header is None else header, content.digest(), whole.digest(), has_8bit


def _head(chunks: Iterable[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """Return the first 64 KB or more, and the chunks that follow."""
    rest, first = iter(chunks), b""
    for chunk in rest:
        first = first + chunk if first else chunk
        if len(first) >= _HEAD_BYTES:
            break
    return first, rest


def _trace_end(head: bytes) -> int:
    return cast(re.Match[bytes], _TRACE_FIELDS.match(head, 0, _HEAD_BYTES)).end()


def _canonical() -> tuple[Callable[[bytes], None], Callable[[], bytes]]:
    """Return functions that hash lines as the relay sends them, with SHA-256.

    LF and CRLF are equal, a stray CR is a space, and the last line is terminated.
    """
    digest, pending, last = sha256(), b"", b""

    def add(chunk: bytes) -> None:
        nonlocal pending, last
        chunk = pending + chunk
        pending = b"\r" if chunk.endswith(b"\r") else b""
        chunk = chunk[: len(chunk) - len(pending)].replace(b"\r\n", b"\n").replace(b"\r", b" ")
        digest.update(chunk)
        last = chunk[-1:] or last

    def finish() -> bytes:
        if pending:
            digest.update(b" \n")
        elif last != b"\n":
            digest.update(b"\n")
        return digest.digest()

    return add, finish
