"""One digest mail from one claimed digest. Depends on its arguments alone, time included.

The likeliest mistakes stand first, since a recipient reads three rows and not fifty. The mail stays below the size at
which Gmail clips, measured in octets as sent; what does not fit is named by number and can be seen in the portal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from email.message import EmailMessage
from urllib.parse import urlsplit
from uuid import UUID
from zoneinfo import ZoneInfo

from portal.mail.languages import Language
from portal.mail.render import Render
from portal.model.domains import shown_address
from portal.model.links import Action, Links
from portal.model.message import State, Tier
from portal.model.ranking import Group, is_forged, ranked
from portal.model.reasons import Sender, from_address, sender_shown, why
from portal.model.text import N_, shown
from portal.stores.records import Digest

MAIL_BYTES = 90_000  # Gmail clips from 102 KB on; whether it counts before or after decoding is disputed
HEADER_BYTES = 8_192  # more than all headers ever have
SUBJECT_CHARACTERS = 120
REASONS = 2  # of a row: with three, fifty rows are too large; the page behind Show has all
_LINK = re.compile(r"\S*(?:://|(?<!@)\bwww\.|\w\.\w{2,}[/?#])\S*", re.IGNORECASE)
# Held subjects and senders are quoted, so what makes scanners act on any mail that has it must not come through whole:
# their test words (https://spamassassin.apache.org/gtube/, https://www.eicar.org/download-anti-malware-testfile/), and
# addresses of Bitcoin (base58 and BIP 173), which beside the word "password" are a blackmail to Rspamd.
_TEST_WORD = re.compile(r"(?<=[GE])(?=TUBE|ICAR)", re.IGNORECASE)
_WALLET = re.compile(r"\b((?:[13LM](?=[A-Za-z]*\d)|(?i:bc1))[0-9A-Za-z]{6})[0-9A-Za-z]{18,}")
# The only words of a held mail in the subject: a domain's name, ASCII and short, says little that is hostile.
_DOMAIN = re.compile(r"(?=.{4,40}\Z)([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z][a-z0-9-]*[a-z0-9]")
_WANTED_BEFORE = N_("You had mail of this sender released before")


@dataclass(frozen=True, slots=True)
class Row:
    """One held message, and those that are nearly the same, as both parts of the mail show it. All texts are harmless
    lines, see `text.shown`."""

    sender: Sender
    subject: str  # "" when there is none
    when: str
    score: str  # "" when not known
    reasons: tuple[str, ...]  # to be translated
    release: str  # link, "" for dangerous mail
    delete: str  # link, "" for dangerous mail
    ask: str  # link, "" for all other mail
    show: str  # link
    others: int  # messages nearly the same; the links are for the newest
    mailbox: str = ""  # which alias or role mailbox it is for; "" when it is for the recipient's own address


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
    language: str = "",
    mail_id: UUID | None = None,
    known: Collection[str] = (),
) -> EmailMessage:
    """The mail for a digest, at most `MAIL_BYTES` octets as sent (a site's own template may be larger by itself).

    Deliveries that are no longer held are counted instead of offered. ``sender`` is the From address, ``zone`` is
    what times are shown in, ``language`` what is spoken ("": as ``render`` does). ``mail_id`` makes another Message-ID
    than the digest's own: mail programs drop a mail whose Message-ID they have seen, so one repeated on purpose needs
    its own. ``known`` is for `ranking.ranked`.
    """
    groups = ranked((d for d in digest.deliveries if d.state is State.HELD), known)
    held = sum(1 + len(group.others) for group in groups)
    preferences, several, forwarded = (
        links.url(action, digest.id, 0, digest.issued_at)
        for action in (Action.PREFERENCES, Action.SEVERAL, Action.FORWARDED)
    )
    headers = {}
    if links.base_url.startswith("https:"):  # RFC 8058, 3.1
        headers = {"List-Unsubscribe": f"<{preferences}>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}
    spoken = render.language_for(language or render.language)
    rows = [_row(group, digest, links, spoken, zone) for group in groups[:max_rows]]

    def mail(count: int, encoding: str = "quoted-printable") -> EmailMessage:
        return render.mail(
            "digest",
            sender=sender,
            to=digest.address,
            id=mail_id or digest.id,
            mark=links.mark("digest", digest.id),
            now=now,
            language=spoken.tag,
            headers=headers,
            encoding=encoding,
            recipient=shown_address(digest.address),
            count=held,
            telling=_most_telling(groups),
            gone=len(digest.deliveries) - held,
            rows=[row for row in rows[:count] if not row.ask],
            dangerous=[row for row in rows[:count] if row.ask],
            more=held - sum(1 + row.others for row in rows[:count]),
            zone=zone.key.replace("_", " "),
            portal=f"{links.base_url}/",
            host=urlsplit(links.base_url).netloc,
            several=several if any(row.release for row in rows) else "",
            preferences=preferences,
            forwarded=forwarded,
            link_days=links.lifetime.days,
            retention_days=retention_days,
        )

    whole = mail(len(rows))
    if spoken.latin or _fits(whole):
        return _fitting(whole, len(rows), mail)
    # Quoted-printable makes six octets of an Arabic letter and nine of a Japanese one: fifty rows of them fit as 8bit
    # alone. Otherwise it is the safer one: a server without 8BITMIME rewrites the mail, and so breaks its signature.
    return _fitting(mail(len(rows), "8bit"), len(rows), lambda count: mail(count, "8bit"))


def _fitting(whole: EmailMessage, rows: int, mail: Callable[[int], EmailMessage]) -> EmailMessage:
    """The ``whole`` mail, or the one with as many of its ``rows`` rows as fit, found by halving: a mail grows with
    each row."""
    if _fits(whole):
        return whole
    fits, best, too_many = 0, mail(0), rows
    while too_many - fits > 1:
        count = (fits + too_many) // 2
        tried = mail(count)
        if _fits(tried):
            fits, best = count, tried
        else:
            too_many = count
    # Without rows it is the template that is too large, which is its site's wish: better clipped than empty.
    return best if fits or _fits(best) else whole


def _fits(mail: EmailMessage) -> bool:
    # Parts are encoded already, so most mails need not be written out just to be measured.
    payloads = [str(part.get_payload()).encode() for part in mail.iter_parts()]
    bodies = sum(len(payload) + payload.count(b"\n") for payload in payloads)
    return bodies + HEADER_BYTES <= MAIL_BYTES or len(mail.as_bytes()) <= MAIL_BYTES


def _most_telling(groups: Sequence[Group]) -> str:
    """The domain of the likeliest mistake whose sender raises no doubt; "" when there is none that can be shown."""
    for group in groups:
        message = group.newest.message
        if message.tier is not Tier.DANGEROUS and not is_forged(message) and not sender_shown(message).warning:
            host = from_address(message).rpartition("@")[2]
            return host if _DOMAIN.fullmatch(host) else ""
    return ""


def _row(group: Group, digest: Digest, links: Links, spoken: Language, zone: ZoneInfo) -> Row:
    delivery, message = group.newest, group.newest.message

    reader = digest.recipient if delivery.recipient != digest.recipient else ""
    own = digest.effective_reader.is_own(delivery.recipient)

    def link(action: Action) -> str:
        return links.url(action, delivery.id, delivery.number, digest.issued_at, reader)

    dangerous = message.tier is Tier.DANGEROUS
    seen = sender_shown(message)
    return Row(
        sender=replace(seen, name=_defused(seen.name), address=_defused(seen.address)),
        subject=_defused(shown(message.subject, SUBJECT_CHARACTERS)),
        when=spoken.short_moment(message.held_at, zone),
        score="" if message.score is None else spoken.score(message.score),
        reasons=(*([_WANTED_BEFORE] if group.wanted_before else []), *why(message)[:REASONS]),
        release="" if dangerous else link(Action.RELEASE),
        delete="" if dangerous else link(Action.DELETE),
        ask=link(Action.REQUEST) if dangerous else "",
        show=link(Action.SHOW),
        others=len(group.others),
        mailbox="" if own else shown_address(delivery.address),
    )


def _defused(text: str) -> str:
    """Text in which mail programs find no address to make a link of, and scanners nothing that was put there for them:
    a spammer's link must not work in our mail, nor a spammer's word keep it from its reader."""
    text = _LINK.sub(lambda found: found.group().replace("://", "[://]").replace(".", "[.]"), text)
    return _WALLET.sub(r"\1[…]", _TEST_WORD.sub("-", text))
