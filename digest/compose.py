"""One digest mail from one claimed digest. Depends on its arguments alone, time included.

The likeliest mistakes stand first, since a recipient reads three rows and not fifty. The mail stays below the size at
which Gmail clips, measured in octets as sent; what does not fit is named by number and can be seen in the portal.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from email.message import EmailMessage
from uuid import UUID
from zoneinfo import ZoneInfo

from babel.dates import format_datetime

from portal.links import Action, Links
from portal.message import Delivery, Message, State, Tier
from portal.reasons import Sender, sender_shown, why
from portal.render import Render, shown
from portal.stores import Digest

MAIL_BYTES = 95_000  # Gmail clips from 102 KB on; whether it counts before or after decoding is disputed
HEADER_BYTES = 8_192  # more than all headers ever have
SUBJECT_CHARACTERS = 120
_LINK = re.compile(r"\S*(?:://|(?<!@)\bwww\.|\w\.\w{2,}[/?#])\S*", re.IGNORECASE)
_AUTHENTIC = frozenset({"DMARC_POLICY_ALLOW", "R_DKIM_ALLOW", "R_SPF_ALLOW"})
_AUTHENTIC_POINTS = (
    5  # a third of Rspamd's usual distance to `reject`: who signs with their own name is likelier wanted
)


@dataclass(frozen=True, slots=True)
class Row:
    """One held message as both parts of the mail show it. All texts are harmless lines, see `render.shown`."""

    sender: Sender
    subject: str  # "" when there is none
    when: str
    score: str  # "" when not known
    reasons: tuple[str, ...]  # to be translated
    release: str  # link, "" for dangerous mail
    delete: str  # link, "" for dangerous mail
    ask: str  # link, "" for all other mail


def compose(
    digest: Digest,
    *,
    links: Links,
    render: Render,
    sender: str,
    zone: ZoneInfo,
    max_rows: int,
    retention_days: int,
    now: datetime,
    mail_id: UUID | None = None,
) -> EmailMessage:
    """The mail for a digest, at most `MAIL_BYTES` octets as sent.

    Deliveries that are no longer held are counted instead of offered. ``sender`` is the From address, ``zone`` is
    what times are shown in. ``mail_id`` makes another Message-ID than the digest's own: mail programs drop a mail
    whose Message-ID they have seen, so one repeated on purpose needs its own.
    """
    held = sorted((d for d in digest.deliveries if d.state is State.HELD), key=_likeliest_mistake_first)
    preferences = links.url(Action.PREFERENCES, digest.id, 0, digest.issued_at)
    headers = {}
    if links.base_url.startswith("https:"):  # RFC 8058, 3.1
        headers = {"List-Unsubscribe": f"<{preferences}>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}
    rows = [_row(delivery, digest, links, render.language, zone) for delivery in held[:max_rows]]

    def mail(count: int) -> EmailMessage:
        return render.mail(
            "digest",
            sender=sender,
            to=digest.address,
            id=mail_id or digest.id,
            mark=links.mark("digest", digest.id),
            now=now,
            headers=headers,
            recipient=shown(digest.address),
            count=len(held),
            gone=len(digest.deliveries) - len(held),
            rows=[row for row in rows[:count] if not row.ask],
            dangerous=[row for row in rows[:count] if row.ask],
            more=len(held) - count,
            zone=zone.key.replace("_", " "),
            portal=f"{links.base_url}/",
            preferences=preferences,
            link_days=links.lifetime.days,
            retention_days=retention_days,
        )

    return _fitting(len(rows), mail)


def _fitting(rows: int, mail: Callable[[int], EmailMessage]) -> EmailMessage:
    """The mail with as many of ``rows`` rows as fit, found by halving: a mail grows with each row."""
    best = mail(rows)
    if _fits(best):
        return best
    fits, best, too_many = 0, mail(0), rows
    while too_many - fits > 1:
        count = (fits + too_many) // 2
        tried = mail(count)
        if _fits(tried):
            fits, best = count, tried
        else:
            too_many = count
    return best


def _fits(mail: EmailMessage) -> bool:
    # Parts are encoded already, so most mails need not be written out just to be measured.
    payloads = [str(part.get_payload()) for part in mail.iter_parts()]
    bodies = sum(len(payload) + payload.count("\n") for payload in payloads)
    return bodies + HEADER_BYTES <= MAIL_BYTES or len(mail.as_bytes()) <= MAIL_BYTES


def _likeliest_mistake_first(delivery: Delivery) -> tuple[bool, bool, float, float]:
    message = delivery.message
    score = message.score or 0.0
    if any(symbol.name in _AUTHENTIC for symbol in message.symbols):
        score -= _AUTHENTIC_POINTS
    return (
        message.tier is Tier.DANGEROUS,
        message.score is None,  # nothing speaks for it either
        score,
        -message.held_at.timestamp(),
    )


def _row(delivery: Delivery, digest: Digest, links: Links, language: str, zone: ZoneInfo) -> Row:
    message = delivery.message

    def link(action: Action) -> str:
        return links.url(action, delivery.id, delivery.number, digest.issued_at)

    dangerous = message.tier is Tier.DANGEROUS
    seen = sender_shown(message)
    return Row(
        sender=replace(seen, name=_defused(seen.name), address=_defused(seen.address)),
        subject=_defused(shown(message.subject, SUBJECT_CHARACTERS)),
        when=_when(message, language, zone),
        score="" if message.score is None else f"{message.score:.1f}",
        reasons=tuple(why(message)),
        release="" if dangerous else link(Action.RELEASE),
        delete="" if dangerous else link(Action.DELETE),
        ask=link(Action.ASK) if dangerous else "",
    )


def _defused(text: str) -> str:
    """Text in which mail programs find no address to make a link of: a spammer's link must not work in our mail."""
    return _LINK.sub(lambda found: found.group().replace("://", "[://]").replace(".", "[.]"), text)


def _when(message: Message, language: str, zone: ZoneInfo) -> str:
    """Like "Sat 21 Nov, 14:05"."""
    return format_datetime(message.held_at, "EEE d MMM, HH:mm", tzinfo=zone, locale=language.replace("-", "_"))
