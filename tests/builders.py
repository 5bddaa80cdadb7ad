"""Small makers of what tests talk about: exports, bodies, held messages, and the people everywhere the same."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from portal.model.errors import RelayRefused
from portal.model.message import Actor, ActorKind, Body, Export, Reader, Symbol, Tier, identity
from portal.stores import LEASE, Store
from portal.stores.records import Digest, Held, Unsent

ALICE = "alice@example.org"  # owns mail
BOB = "bob@example.org"  # shares a message with her
MALLORY = "mallory@example.org"  # must see nothing
SENDER = "promo@example.net"

BY_LINK = Actor(ActorKind.RECIPIENT, via="link", address="192.0.2.7")
BY_OPERATOR = Actor(ActorKind.OPERATOR, "root", via="cli")

_numbers = itertools.count(1)


def now() -> datetime:
    """The moment, aware UTC in whole milliseconds, a little ahead so that it is never before a held message."""
    moment = datetime.now(UTC) + timedelta(seconds=1)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def mail(subject: str = "", size_bytes: int = 0) -> bytes:
    """A small mail, each call another one; ``size_bytes`` makes it at least that long."""
    number = next(_numbers)
    head = (
        f"From: Promo <{SENDER}>\r\nTo: {ALICE}, {BOB}\r\nSubject: {subject or f'Offer {number}'}\r\n"
        f"Message-ID: <{number}@example.net>\r\n\r\nBuy {number}!\r\n"
    ).encode()
    lines = max(0, size_bytes - len(head)) // 78
    return head + b"x" * 76 * bool(lines) + b"\r\n" + (b"y" * 76 + b"\r\n") * lines


def export(data: bytes | None = None, **overrides: Any) -> Export:
    """An export of ``data`` as `portal.exporter` makes it, for alice and bob unless said otherwise.

    Sameness and body hash come from the bytes, the envelope sender and the recipients.
    """
    data = mail() if data is None else data
    recipients = tuple(overrides.pop("recipients", (ALICE, BOB)))
    sender = overrides.pop("envelope_sender", SENDER)
    dedup_key = hashlib.sha256(data)
    for part in (repr(sender), *sorted(identity(r) for r in recipients)):
        dedup_key.update(b"\0" + part.encode())
    made = Export(
        recipients=recipients,
        envelope_sender=sender,
        subject="Offer",
        header_from=f"Promo <{SENDER}>",
        queue_id="4XyZq1abc",
        message_id="1@example.net",
        action="reject",
        score=17.5,
        client_ip="198.51.100.9",
        user=None,
        symbols=(Symbol("BAYES_SPAM", 5.1, ("99.99%",)), Symbol("R_SPF_FAIL", 1.0)),
        flags=frozenset(),
        dedup_key=dedup_key.digest(),
        body_sha256=hashlib.sha256(data).digest(),
        size_bytes=len(data),
        has_8bit=any(octet > 127 for octet in data),
    )
    return replace(made, **overrides)


def body(data: bytes) -> Body:
    """A body as it lies in a request: a window with strange bytes before and behind it."""
    return Body(io.BytesIO(b"before\r\n" + data + b"\r\nbehind"), len(b"before\r\n"), len(data))


def hold(
    store: Store,
    data: bytes | None = None,
    recipients: Collection[str] = (ALICE, BOB),
    tier: Tier = Tier.SPAM,
    announce: Collection[str] | None = None,
    **overrides: Any,
) -> Held:
    """Hold ``data`` (a new small mail when not given) and return what the store says.

    ``announce`` None: all recipients will be told; further arguments replace fields of the export.
    """
    data = mail() if data is None else data
    told = [identity(r) for r in recipients] if announce is None else announce
    return store.messages.add(export(data, recipients=tuple(recipients), **overrides), body(data), tier, told)


@contextmanager
def digesting(
    store: Store, recipient: str | Reader, now: datetime, limit: int, *, ignore_schedule: bool = False
) -> Iterator[Digest]:
    """One digest as the digest process has it: claimed, and settled as sent when the block ends. Raises AlreadyDone.

    A block left by an exception announces nothing: it is due again after LEASE at the earliest, refused after an hour.
    """
    reader = recipient if isinstance(recipient, Reader) else Reader(recipient)
    claims = store.digests.claim(
        now, 1, limit, only=[reader.identity], ignore_schedule=ignore_schedule, readers=lambda _: reader
    )
    for refusal in claims.refused.values():
        raise refusal
    [digest] = claims.digests
    try:
        yield digest
    except BaseException as error:
        again = now + (timedelta(hours=1) if isinstance(error, RelayRefused) else LEASE)
        store.digests.settle([], [Unsent(digest, again)], now)
        raise
    store.digests.settle([digest], [], now)
