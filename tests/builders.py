"""Builders of test data: exports, bodies, held messages, digests, and the people that all tests use."""

from __future__ import annotations

import copy
import hashlib
import io
import itertools
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from portal.assemble import Parts
from portal.model.audit import Act, AuditEntry
from portal.model.errors import RelayRefused
from portal.model.from_header import parse
from portal.model.message import Actor, ActorKind, Body, Export, Reader, Start, Symbol, Tier, identity, new_id
from portal.model.rule import Effect, Rule
from portal.model.schedule import Preferences
from portal.model.second_factor import SecondFactor, recovery_hash
from portal.stores import LEASE, Store
from portal.stores.contracts import NO_STARTS
from portal.stores.records import Digest, Held, Unsent

ALICE = "alice@example.org"  # owns mail
BOB = "bob@example.org"  # shares a message with her
MALLORY = "mallory@example.org"  # must see nothing
SENDER = "promo@example.net"

BY_LINK = Actor(ActorKind.RECIPIENT, via="link", address="192.0.2.7")
BY_OPERATOR = Actor(ActorKind.OPERATOR, "root", via="cli")

WRONG_VALUES = {  # that no domain can have in the store, by key
    "name": ("x" * 61, 'A "B"'),
    "colour": ("red", "#ffee00", "#767676"),
    "colour_dark": ("blue", "#1f5fa8", "#858585"),
    "logo": ("/etc/passwd",),
    "from_address": ("nobody", "x@elsewhere.example"),
    "admin_address": ("nobody",),
    "public_url": ("nonsense", "https://a..example/quarantine", "https://q.example.org/other"),
    "at": ("25:00", "07:00:30", "seven", ",", "01:00, 02:00, 03:00, 04:00, 05:00, 06:00, 07:00"),
    "timezone": ("Mars/<b>Base", "Europe"),
    "schedule": ("hourly",),
    "language": ("tlh",),
    "notices": ("perhaps",),
    "release_spam": ("nobody",),
    "release_suspicious": ("nobody", "self"),
    "release_dangerous": ("nobody", "self"),
    "retention_spam_days": ("0", "31", "3651", "1.5", "a month"),
    "retention_suspicious_days": ("x", "-1"),
    "retention_dangerous_days": ("9" * 5000,),
    "recipient_rules": ("2",),
    "formatted_view": ("maybe",),
    "recipient_downloads": ("x",),
}

_numbers = itertools.count(1)


def now() -> datetime:
    """Return the current time in UTC, in whole milliseconds, one second ahead so that no held message is later."""
    moment = datetime.now(UTC) + timedelta(seconds=1)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def with_parts(parts: Parts, **changed: Any) -> Parts:
    """Return the parts with these ones instead. The others stay the same."""
    parts.make_all()
    other = copy.copy(parts)
    vars(other).update(changed)
    return other


def mail(subject: str = "", size_bytes: int = 0) -> bytes:
    """Return a small mail, a different one for each call. ``size_bytes`` is its minimum length."""
    number = next(_numbers)
    head = (
        f"From: Promo <{SENDER}>\r\nTo: {ALICE}, {BOB}\r\nSubject: {subject or f'Offer {number}'}\r\n"
        f"Message-ID: <{number}@example.net>\r\n\r\nBuy {number}!\r\n"
    ).encode()
    lines = max(0, size_bytes - len(head)) // 78
    return head + b"x" * 76 * bool(lines) + b"\r\n" + (b"y" * 76 + b"\r\n") * lines


def export(data: bytes | None = None, **overrides: Any) -> Export:
    """Return an export of ``data`` as `portal.exporter` makes it, by default for alice and bob.

    The dedup key is made of the bytes, the envelope sender and the recipients, the body hash of the bytes.
    """
    data = mail() if data is None else data
    recipients = tuple(overrides.pop("recipients", (ALICE, BOB)))
    sender = overrides.pop("envelope_sender", SENDER)
    dedup_key = hashlib.sha256(data)
    header_from = overrides.pop("header_from", f"Promo <{SENDER}>")
    for part in (repr(sender), *sorted(identity(r) for r in recipients)):
        dedup_key.update(b"\0" + part.encode())
    made = Export(
        recipients=recipients,
        envelope_sender=sender,
        subject="Offer",
        header_from=header_from,
        from_count=len(parse(header_from)),
        queue_id="4XyZq1abc",
        message_id="1@example.net",
        action="reject",
        score=17.5,
        client_ip="198.51.100.9",
        user=None,
        symbols=(
            Symbol("BAYES_SPAM", 5.1, ("99.99%",), "Message probably spam, probability: "),
            Symbol("R_SPF_FAIL", 1.0),
        ),
        threshold=15.0,
        flags=frozenset(),
        dedup_key=dedup_key.digest(),
        body_sha256=hashlib.sha256(data).digest(),
        size_bytes=len(data),
        has_8bit=not data.isascii(),
    )
    return replace(made, **overrides)


def body(data: bytes) -> Body:
    """Return a body as it is in a request: a window with other bytes before and after it."""
    return Body(io.BytesIO(b"before\r\n" + data + b"\r\nbehind"), len(b"before\r\n"), len(data))


def hold(
    store: Store,
    data: bytes | None = None,
    recipients: Collection[str] = (ALICE, BOB),
    tier: Tier = Tier.SPAM,
    announce: Collection[str] | None = None,
    starts: Mapping[str, Start] = NO_STARTS,
    at: datetime | None = None,
    **overrides: Any,
) -> Held:
    """Hold ``data`` (a new small mail when not given), now or as it was at a time, and return the result of the store.

    With ``announce=None`` the message is news for all recipients whose delivery begins as held. Further arguments
    replace fields of the export.
    """
    data = mail() if data is None else data
    announced = {identity(r) for r in recipients} - {*starts} if announce is None else announce
    exported = export(data, recipients=tuple(recipients), **overrides)
    return store.messages.add(exported, body(data), tier, announced, at=at, starts=starts)


@contextmanager
def digesting(
    store: Store, recipient: str | Reader, now: datetime, limit: int, *, ignore_schedule: bool = False
) -> Iterator[Digest]:
    """Claim one digest, as the digest process does, and settle it as sent when the block ends. Raises AlreadyDone.

    If the block raises, nothing is announced, and the digest is due again after LEASE, or after an hour if the mail
    server refused it.
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


def prefer(store: Store, person: str, preferences: Preferences) -> None:
    """Change a recipient's preferences, as staff do. Equal preferences change nothing."""
    store.recipients.change(
        [person],
        lambda each: replace(each, preferences=preferences),
        lambda _: AuditEntry.new(now(), Act.PREFERENCES_SET, BY_OPERATOR, person),
    )


def second_factor(person: str) -> SecondFactor:
    """Return a second factor, always the same one for a person, with two recovery codes."""
    recovery = (recovery_hash("aaaa-bbbb-cccc-dddd"), recovery_hash("eeee-ffff-gggg-hhhh"))
    return SecondFactor(
        person, person.encode().ljust(16)[:16], "0123456789abcdef", datetime(2026, 1, 2, tzinfo=UTC), recovery
    )


def rule(sender: str = "example.net", effect: str = "block", scope: str = ALICE, **overrides: Any) -> Rule:
    """Return a new rule, by default one of alice that blocks a domain."""
    at = overrides.pop("created_at", now())
    values = {"scope": scope, "sender": sender, "effect": Effect(effect), "actor": BY_LINK, **overrides}
    return Rule(id=new_id(at), created_at=at, **values)
