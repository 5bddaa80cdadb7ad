"""Parsers for values from Rspamd and senders: text, addresses, symbols, header fields.

They never raise, except for more recipients than one message can have. An unreadable value becomes None or is left
out, and the result shows that something is missing. Only this module handles Rspamd's placeholders, encodings and
truncation.
"""

from __future__ import annotations

import json
import re
from binascii import a2b_qp
from codecs import BOM_UTF8
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, cast

from portal.model import from_header
from portal.model.encoded_words import decode_field, decode_words
from portal.model.errors import BadExport
from portal.model.fast_json import (
    DESCRIPTION_CHARACTERS,
    NAME_CHARACTERS,
    OPTION_CHARACTERS,
    OPTIONS,
    SCORE_MAX,
    SYMBOLS,
    reported_symbols,
)
from portal.model.from_header import Mailbox
from portal.model.message import Symbol, identity
from portal.model.text import cleaned

SUBJECT_CHARACTERS = 4_000  # longer subjects are truncated
TEXT_CHARACTERS = 1_000  # the same for all other texts
ADDRESS_OCTETS = 320  # RFC 5321, 4.5.3.1: 64 + @ + 255
_RECIPIENTS = 1 << 16  # the most recipients of one message: deliveries are numbered 0 … 65535
_FIELDS = (
    "ip",
    "user",
    "qid",
    "subject",
    "action",
    "score",
    "rcpt",
    "from",
    "symbols",
    "forced",
    "threshold",
    "scan-time",
)
_DISTINCTIVE = ("rcpt", "symbols", "qid", "action", "scan-time")  # no other header's name ends with one of these
_LISTS = ("rcpt", "symbols")  # JSON, never RFC 2047
_UNDELIVERABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffd]")
_LENIENT = json.JSONDecoder(strict=False)
_SEPARATOR = re.compile(r"[\s,]*")
_RSPAMD_WORD = re.compile(r"=\?UTF-8\?Q\?([^? ]*)\?=")
_RSPAMD_RUNS = re.compile(r"=\?UTF-8\?Q\?[^? ]*\?=(?: ?=\?UTF-8\?Q\?[^? ]*\?=)*")
_HEADER_END = re.compile(rb"\n\r?\n")
_OWN_FIELD = re.compile(
    rb"^(from|subject|message-id|x-quarantine-mark)[ \t]*:[ \t]*([^\n]*(?:\n[ \t][^\n]*)*)",
    re.IGNORECASE | re.MULTILINE,
)


def from_headers(headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields that ``meta_headers`` sent, for any ``meta_header_prefix`` of the rule.

    ``headers``: names in lower case, with hyphens.
    """
    distinctive = [name for name in headers if name.endswith(_DISTINCTIVE)]
    prefixes = {name.removesuffix(field) for name in distinctive for field in _DISTINCTIVE if name.endswith(field)}
    best: dict[str, Any] = {}
    for prefix in sorted(prefixes):
        found = {field: headers[prefix + field] for field in _FIELDS if prefix + field in headers}
        # One field is enough (Nginx may have dropped the others), unless its prefix does not end in a hyphen:
        # "soapaction" is not Rspamd's.
        if len(found) > len(best) and (prefix.endswith("-") or len(found) > 2):
            best = found
    for field, value in best.items():
        if not value.isascii():
            with suppress(UnicodeEncodeError):  # some WSGI servers decode UTF-8 themselves
                value = value.encode("latin-1").decode("utf-8", "replace")
        if "=?" in value and field not in _LISTS:
            value = _RSPAMD_RUNS.sub(_rspamd_run, value)
        best[field] = value
    return best


def _rspamd_run(run: re.Match[str]) -> str:
    """Return the text of adjacent words that Rspamd encoded. Before 3.14.2 it divided characters between two words.

    It always encodes UTF-8, and never pure ASCII: a run that encodes such text is the sender's.
    """
    octets = b"".join(a2b_qp(data.encode(), header=True) for data in _RSPAMD_WORD.findall(run[0]))
    return run[0] if octets.isascii() else octets.decode("utf-8", "replace")


def recipients(value: Any) -> tuple[tuple[str, ...], bool]:
    """Return (deliverable addresses, complete?).

    Of an address in several spellings, the result has the first ASCII one, which every mail server accepts, else the
    first. Raises BadExport for more than 65,536 recipients: the message could not be held for all of them.
    """
    items, complete = _list(value)
    found: dict[str, str] = {}
    for item in items:
        address = _address(item)
        local, _, host = (address or "").rpartition("@")
        if address is None or not local or not host:
            complete = False
        else:
            known = found.setdefault(identity(address), address)
            if address.isascii() and not known.isascii():
                found[identity(address)] = address
    if len(found) > _RECIPIENTS:
        raise BadExport(
            f"the message has {len(found)} recipients, and {_RECIPIENTS} are the most that it can be held for: lower "
            "the limit of the mail server (Postfix: smtpd_recipient_limit)"
        )
    return tuple(found.values()), complete and bool(found)


def spellings(value: Any, identities: Collection[str]) -> tuple[str, ...]:
    """Return the posted recipients that have one of these identities, as they were posted."""
    items, _ = _list(value)
    posted = ((item, _address(item)) for item in items)
    return tuple(dict.fromkeys(item for item, address in posted if address and identity(address) in identities))


def sender(value: Any) -> str | None:
    """Return the envelope sender, ``""`` for the null sender, or None if unknown."""
    return None if value == "unknown" else _address(value)


def _address(value: Any) -> str | None:
    """Return an address as in the envelope, without the angle brackets of the documented rule, or None if unusable.

    Unusual local parts are not changed: Rspamd removed their quotes, the relay adds them again.
    """
    if not isinstance(value, str) or _UNDELIVERABLE.search(value):
        return None
    if value.startswith("<") and value.endswith(">"):
        value = value[1:-1]
    return value if len(value.encode()) <= ADDRESS_OCTETS else None


def symbols(value: Any) -> tuple[tuple[Symbol, ...], bool]:
    """Return (readable symbols, complete?)."""
    simple = _simple_symbols(value)
    if simple is not None:
        return simple, True
    items, complete = _list(value)
    complete = complete and len(items) <= SYMBOLS
    found = []
    for item in items[:SYMBOLS]:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or not name:
            complete = False
            continue
        options, description = item.get("options"), item.get("description")
        texts = [o for o in options[:OPTIONS] if isinstance(o, str)] if isinstance(options, list) else []
        found.append(
            Symbol(
                clean(name, NAME_CHARACTERS),
                number(item.get("score")) or 0.0,
                tuple(clean(text, OPTION_CHARACTERS) for text in texts),
                clean(description, DESCRIPTION_CHARACTERS) if isinstance(description, str) else "",
            )
        )
    return tuple(found), complete


def _simple_symbols(value: Any) -> tuple[Symbol, ...] | None:
    """Return the symbols in a quarter of the time, if no text needs cleaning, else None.

    This is so for JSON in ASCII without escapes, since JSON does not allow raw control characters.
    """
    if not isinstance(value, str) or not value.isascii() or "\\" in value or "\x7f" in value:
        return None
    reported = reported_symbols(value)
    return None if reported is None else tuple([Symbol(s.name, s.score, s.options, s.description) for s in reported])


def _list(value: Any) -> tuple[list[Any], bool]:
    """Return (items, complete?) of a list or its JSON. Nginx may have truncated JSON: then only its complete items."""
    if isinstance(value, list):
        return value, True
    if not isinstance(value, str):
        return [], False
    try:
        items = _LENIENT.decode(value)
        return (items, True) if isinstance(items, list) else ([], False)
    except (ValueError, RecursionError):
        items = []
    at = 1 if value.startswith("[") else len(value)
    try:
        while at < len(value):
            item, at = _LENIENT.raw_decode(value, cast(re.Match[str], _SEPARATOR.match(value, at)).end())
            items.append(item)
    except (ValueError, RecursionError):
        pass  # the text was truncated here
    return items, False


def number(value: Any) -> float | None:
    """Return a score, or None if it is not a number or its absolute value is above 1,000,000."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        score = float(value)
    except (ValueError, OverflowError):
        return None
    return score if abs(score) <= SCORE_MAX else None  # False for NaN


def client_ip(text: str | None) -> str | None:
    """Return an IP address as written, or None. A zone, as in ``fe80::1%eth0``, is rejected: it could be any text."""
    try:
        return text if text and "%" not in text and ip_address(text) else None
    except ValueError:
        return None


def message_id(text: str) -> str | None:
    """Return the value of a Message-ID header without < >, or None if it is empty."""
    inside = text.partition("<")[2].partition(">")[0] or text
    return inside.strip()[:TEXT_CHARACTERS] or None


@dataclass(frozen=True, slots=True)
class OwnFields:
    """The fields that a message has itself, decoded for people to read; "" if missing."""

    mailboxes: tuple[Mailbox, ...]  # of all From fields; empty without any
    subject: str
    message_id: str
    mark: str


def header_of(head: bytes) -> bytes | None:
    """Return the header of the message that begins with ``head``, None if it does not end there."""
    if head.startswith((b"\n", b"\r\n")):
        return b""
    end = _HEADER_END.search(head)
    return head[: end.start()] if end else None


def own_fields(header: bytes) -> OwnFields:
    """Return the message's own fields: all From fields, and the first of each other name.

    Lines that are no field are skipped. A byte order mark may precede the first field, and blanks the colon (RFC 5322,
    4.5).
    """
    found: dict[str, list[bytes]] = {}
    for match in _OWN_FIELD.finditer(header.removeprefix(BOM_UTF8)):
        value = match[2].replace(b"\r\n", b"").replace(b"\n", b"").strip()
        found.setdefault(match[1].decode("ascii").lower(), []).append(value)

    def first(name: str) -> str:
        value = found.get(name, [b""])[0][:SUBJECT_CHARACTERS]
        return clean(decode_field(value), SUBJECT_CHARACTERS).strip()

    return OwnFields(
        mailboxes=from_header.read(value.decode("ascii", "surrogateescape") for value in found.get("from", ())),
        subject=first("subject"),
        message_id=first("message-id"),
        mark=first("x-quarantine-mark"),
    )


def is_damaged(subject: str) -> bool:
    """Return whether a subject that Rspamd reported has lost octets, or words that Rspamd could not decode."""
    return "\ufffd" in subject or decode_words(subject) != subject


def clean(text: str, limit: int) -> str:
    """Return the first ``limit`` characters of a text, as `Export` requires it."""
    return cleaned(text[:limit])
