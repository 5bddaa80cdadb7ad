"""Compose a digest mail. `compose` depends on its arguments alone, also for the time.

The likeliest false positives are the first rows, since a recipient reads three rows and not fifty. The mail stays below
the size at which Gmail clips, measured in octets as sent. It shows how many messages do not fit; the portal lists them.
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

from portal.assemble import Parts
from portal.mail.languages import Language
from portal.mail.render import Render
from portal.model.brand import NO_BRAND, Brand
from portal.model.domains import shown_address
from portal.model.errors import SettingsError
from portal.model.links import Action, Links
from portal.model.message import Delivery, State, Tier
from portal.model.ranking import Group, ranked
from portal.model.reasons import why
from portal.model.rights import ReleaseRight
from portal.model.sender import Sender, from_address, sender_shown
from portal.model.text import N_, shown
from portal.stores.records import Digest

MAIL_BYTES = 90_000  # Gmail clips mail above 102 KB; sources disagree whether it counts before or after decoding
HEADER_BYTES = 8_192  # an upper bound of the size of all headers
SUBJECT_CHARACTERS = 120
REASONS = 2  # in a row: with three, fifty rows are too large; the page that Show opens lists all
_LINK = re.compile(r"\S*(?:://|(?<!@)\bwww\.|\w\.\w{2,}[/?#])\S*", re.IGNORECASE)
# A digest quotes held subjects and senders. Text that makes scanners reject any mail containing it is therefore broken
# up: their test strings (https://spamassassin.apache.org/gtube/, https://www.eicar.org/download-anti-malware-testfile/)
# and Bitcoin addresses (base58 and BIP 173), which Rspamd takes for blackmail if the mail has the word "password" too.
_TEST_WORD = re.compile(r"(?<=[GE])(?=TUBE|ICAR)", re.IGNORECASE)
_WALLET = re.compile(r"\b((?:[13LM](?=[A-Za-z]*\d)|(?i:bc1))[0-9A-Za-z]{6})[0-9A-Za-z]{18,}")
# A domain name is the only text of held messages in the subject: short ASCII leaves little space for hostile text.
_DOMAIN = re.compile(r"(?=.{4,40}\Z)([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z][a-z0-9-]*[a-z0-9]")
_WANTED_BEFORE = N_("You have released messages from this sender before")


@dataclass(frozen=True, slots=True)
class Row:
    """A held message and its near duplicates, for the text part and the HTML part of the mail.

    All texts are single lines without control characters, see `text.shown`.
    """

    sender: Sender
    subject: str  # "" when there is none
    when: str
    score: str  # "" when not known
    threshold: str  # the score at which Rspamd withholds messages, "" when not known
    reasons: tuple[str, ...]  # to be translated
    suspicious: bool  # the recipient should look before releasing it
    release: str  # link, "" if the recipient may not release it
    delete: str  # link
    ask: str  # link to request a release, "" if the recipient may not
    dangerous: bool  # and not to be released by the recipient
    show: str  # link
    others: int  # near duplicates; the links are for the newest message
    mailbox: str = ""  # alias or role mailbox that it was sent to; "" for the recipient's own address


def compose(
    digest: Digest,
    *,
    links: Links,
    render: Render,
    sender: str,
    zone: ZoneInfo,
    max_rows: int,
    retention_days: int,
    right: Callable[[Delivery], ReleaseRight],
    now: datetime,
    language: str = "",
    brand: Brand = NO_BRAND,
    mail_id: UUID | None = None,
    known: Collection[str] = (),
) -> EmailMessage:
    """Return the mail of a digest, at most `MAIL_BYTES` octets as sent (a site's own template may be larger by itself).

    Deliveries that are no longer held are counted and not listed. ``sender`` is the From address, ``zone`` the time
    zone of all times shown, ``language`` a tag ("": the default of ``render``), ``brand`` the look of the mail;
    ``right`` returns who may release a delivery. ``mail_id`` replaces the digest's id in the Message-ID: mail programs
    drop a mail whose Message-ID they have seen, so one that is repeated on purpose needs another. ``known`` are senders
    for `ranking.ranked`.
    """
    groups = ranked((d for d in digest.deliveries if d.state is State.HELD), known)
    held = sum(1 + len(group.others) for group in groups)
    preferences, several, forwarded, portal = (
        links.url(action, digest.id, 0, digest.issued_at)
        for action in (Action.PREFERENCES, Action.SEVERAL, Action.FORWARDED, Action.OPEN)
    )
    headers = {}
    if links.base_url.startswith("https:"):  # RFC 8058, 3.1
        headers = {"List-Unsubscribe": f"<{preferences}>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}
    locale = render.language_for(language or render.language)
    rows = [_row(group, right(group.newest), digest, links, locale, zone) for group in groups[:max_rows]]

    def mail(count: int, encoding: str = "quoted-printable") -> EmailMessage:
        return render.mail(
            "digest",
            sender=sender,
            to=digest.address,
            id=mail_id or digest.id,
            mark=links.mark("digest", digest.id),
            now=now,
            language=locale.tag,
            brand=brand,
            headers=headers,
            encoding=encoding,
            recipient=shown_address(digest.address),
            count=held,
            telling=_likeliest_domain(groups),
            gone=len(digest.deliveries) - held,
            rows=[row for row in rows[:count] if not row.dangerous],
            dangerous=[row for row in rows[:count] if row.dangerous],
            more=held - sum(1 + row.others for row in rows[:count]),
            zone=zone.key.replace("_", " "),
            portal=portal,
            host=urlsplit(links.base_url).netloc,
            several=several if any(row.release for row in rows) else "",
            preferences=preferences,
            forwarded=forwarded,
            link_days=links.lifetime.days,
            retention_days=retention_days,
        )

    complete = mail(len(rows))
    if locale.latin or _fits(complete):
        return _shortened(complete, len(rows), mail)
    # Quoted-printable takes six octets for an Arabic letter and nine for a Japanese one, so fifty rows of these fit as
    # 8bit only. In all other cases quoted-printable is safer: a server without 8BITMIME rewrites 8bit mail and thereby
    # breaks its DKIM signature.
    return _shortened(mail(len(rows), "8bit"), len(rows), lambda count: mail(count, "8bit"))


def _shortened(complete: EmailMessage, rows: int, mail: Callable[[int], EmailMessage]) -> EmailMessage:
    """Return the ``complete`` mail if it fits, otherwise the one with as many of its ``rows`` rows as fit.

    The number of rows is found by bisection, since a mail grows with each row.
    """
    if _fits(complete):
        return complete
    fits, best, too_many = 0, mail(0), rows
    while too_many - fits > 1:
        count = (fits + too_many) // 2
        candidate = mail(count)
        if _fits(candidate):
            fits, best = count, candidate
        else:
            too_many = count
    # If a mail without rows is too large, the site's template is the cause. A clipped mail is better than an empty one.
    return best if fits or _fits(best) else complete


def _fits(mail: EmailMessage) -> bool:
    # The parts are already encoded, so most mails need not be serialized to measure them. Row of the bench: "a digest
    # without sizes of parts".
    payloads = [str(part.get_payload()).encode() for part in mail.walk() if not part.is_multipart()]
    bodies = sum(len(payload) + payload.count(b"\n") for payload in payloads)
    return bodies + HEADER_BYTES <= MAIL_BYTES or len(mail.as_bytes()) <= MAIL_BYTES


def _likeliest_domain(groups: Sequence[Group]) -> str:
    """Return the sender's domain of the likeliest false positive that is trusted, "" if there is none to show."""
    for group in groups:
        message = group.newest.message
        if group.trusted and message.tier is not Tier.DANGEROUS:
            host = from_address(message).rpartition("@")[2]
            return host if _DOMAIN.fullmatch(host) else ""
    return ""


def _row(group: Group, right: ReleaseRight, digest: Digest, links: Links, locale: Language, zone: ZoneInfo) -> Row:
    delivery, message = group.newest, group.newest.message
    reader = digest.recipient if delivery.recipient != digest.recipient else ""
    own = digest.effective_reader.is_own(delivery.recipient)

    def link(action: Action) -> str:
        return links.url(action, delivery.id, delivery.number, digest.issued_at, reader)

    sender = sender_shown(message)
    return Row(
        sender=replace(sender, name=_defanged(sender.name), address=_defanged(sender.address)),
        subject=_defanged(shown(message.subject, SUBJECT_CHARACTERS)),
        when=locale.short_moment(message.held_at, zone),
        score="" if message.score is None else locale.score(message.score),
        threshold="" if message.threshold is None else locale.threshold(message.threshold),
        reasons=(*([_WANTED_BEFORE] if group.wanted_before else []), *why(message)[:REASONS]),
        suspicious=message.tier is Tier.SUSPICIOUS,
        release=link(Action.RELEASE) if right is ReleaseRight.SELF else "",
        delete=link(Action.DELETE),
        ask=link(Action.REQUEST) if right is ReleaseRight.REQUEST else "",
        dangerous=message.tier is Tier.DANGEROUS and right is not ReleaseRight.SELF,
        show=link(Action.SHOW),
        others=len(group.others),
        mailbox="" if own else shown_address(delivery.address),
    )


def _defanged(text: str) -> str:
    """Return the text with URLs, scanners' test strings and Bitcoin addresses broken up.

    Mail programs must not turn a spammer's URL into a link, and a spammer must not be able to get the digest rejected.
    """
    text = _LINK.sub(lambda found: found.group().replace("://", "[://]").replace(".", "[.]"), text)
    return _WALLET.sub(r"\1[…]", _TEST_WORD.sub("-", text))


def digest_mail(parts: Parts, digest: Digest, now: datetime, mail_id: UUID, known: Collection[str]) -> EmailMessage:
    """Return the mail of a digest by the settings. Raises SettingsError without mail.from_address."""
    settings, policy = parts.settings, parts.domains.of(digest.recipient)
    if policy.from_address is None:
        raise SettingsError("mail.from_address is needed to send digests")
    plan = parts.domains.plan(digest.recipient, digest.preferences)
    return compose(
        digest,
        links=parts.links.at(policy.public_url),
        render=parts.render,
        sender=policy.from_address,
        zone=plan.zone,
        max_rows=settings.digest.max_rows,
        retention_days=min(policy.retention_days.values()),
        now=now,
        language=plan.language,
        brand=policy.brand,
        right=parts.domains.right,
        mail_id=mail_id,
        known=known,
    )
