"""Compose a digest mail. `compose` depends on its arguments alone, also for the time.

The likeliest false positives are the first rows, since a recipient reads three rows and not fifty. The mail stays below
the size at which Gmail clips, measured in octets as sent. It shows how many messages do not fit; the portal lists them.
docs/decisions/digest-mail.md has the reasons.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID
from zoneinfo import ZoneInfo

from portal.assemble import Parts
from portal.digests.rows import Builder, Row, mailbox_of
from portal.mail.render import Render
from portal.model.brand import NO_BRAND, Brand
from portal.model.domains import shown_address
from portal.model.errors import SettingsError
from portal.model.links import Action, Links
from portal.model.message import Delivery, State
from portal.model.ranking import KINDS, Group, Section, ranked
from portal.model.rights import ReleaseRight
from portal.model.sender import from_address
from portal.stores.records import Digest

MAIL_BYTES = 90_000  # Gmail clips mail above 102 KB; sources disagree whether it counts before or after decoding
HEADER_BYTES = 8_192  # an upper bound of the size of all headers
DELIVERIES = 5_000  # in one digest, and in one claim; the rest stays unannounced until the next day's digest
DOMAINS = 2  # of likely mistakes, in the subject
PREVIEW_DOMAINS = 3  # in the text that mail programs show beside the subject
_URLS = {  # of the whole digest, by their names in the template
    "preferences": Action.PREFERENCES,
    "several": Action.SEVERAL,
    "forwarded": Action.FORWARDED,
    "portal": Action.OPEN,
}
_UNWANTED_ROWS = 10  # if nothing looks wanted and there are more rows, only the first are listed
_FIRST_ROWS = 5
_DANGEROUS_ROWS = 5  # so many dangerous messages are listed even if the others would take all rows
# A domain name is the only text of held messages in the subject: short ASCII leaves little space for hostile text.
_DOMAIN = re.compile(r"(?=.{4,40}\Z)([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z][a-z0-9-]*[a-z0-9]")


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
    contact: str = "",
    takes_passwords: bool = False,
    is_first: bool = False,
) -> EmailMessage:
    """Return the mail of a digest, at most `MAIL_BYTES` octets as sent (a site's own template may be larger by itself).

    Deliveries that are no longer held are counted and not listed. ``sender`` is the From address, ``zone`` the time
    zone of all times shown, ``language`` a tag ("": the default of ``render``), ``brand`` the look of the mail;
    ``right`` returns who may release a delivery. ``mail_id`` replaces the digest's id in the Message-ID: mail programs
    drop a mail whose Message-ID they have seen, so one that is repeated on purpose needs another. ``known`` are senders
    for `ranking.ranked`. ``contact``: whom the recipient may ask. ``takes_passwords``: the sign-in page does.
    ``is_first``: this recipient was sent none before.
    """
    listed, locale = _Listed.of(digest, known), render.language_for(language or render.language)
    urls = {name: links.url(action, digest.id, 0, digest.issued_at) for name, action in _URLS.items()}
    builder = Builder(digest, links, locale, zone, right, urls["several"], urls["portal"])
    rows, dangerous = listed.rows(builder, max_rows)
    shown = urls if listed.may_be_released_together(right) else urls | {"several": ""}

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
            headers=_unsubscribe(links, urls["preferences"]),
            encoding=encoding,
            recipient=shown_address(digest.address),
            zone=zone.key.replace("_", " "),
            host=urlsplit(links.base_url).netloc,
            organisation=brand.name or shown_address(sender).rpartition("@")[2],
            contact=contact,
            takes_passwords=takes_passwords,
            is_first=is_first,
            is_notice=digest.is_notice,
            link_days=links.lifetime.days,
            retention_days=retention_days,
            **shown | listed.values(rows, dangerous, count),
        )

    return _fitting(mail, len(rows) + len(dangerous), is_latin=locale.latin)


@dataclass(frozen=True, slots=True)
class _Listed:
    """The held messages of a digest in the order of its rows."""

    others: list[Group]  # the likeliest mistakes first
    dangerous: list[Group]  # the last rows
    gone: int  # deliveries that are no longer held

    @classmethod
    def of(cls, digest: Digest, known: Collection[str]) -> _Listed:
        groups = sorted(
            ranked((d for d in digest.deliveries if d.state is State.HELD), known),
            key=lambda group: (group.section, mailbox_of(group, digest)),
        )
        others = [group for group in groups if group.section is not Section.DANGEROUS]
        return cls(others, groups[len(others) :], len(digest.deliveries) - _size(groups))

    @property
    def _wanted(self) -> list[Group]:
        """Those that may be wanted."""
        return [group for group in self.others if group.may_be_wanted]

    def _kinds(self) -> list[tuple[str, int]]:
        """Return how many messages there are of each kind, in order, without kinds of which there are none."""
        counts = Counter[str]()
        for group in [*self.others, *self.dangerous]:
            counts[group.kind] += group.size
        return [(kind, counts[kind]) for kind in KINDS if counts[kind]]

    def rows(self, builder: Builder, max_rows: int) -> tuple[list[Row], list[Row]]:
        """Return the rows of both, together at most so many; a few if nothing looks wanted and there are many."""
        if not self._wanted and len(self.others) + len(self.dangerous) > _UNWANTED_ROWS:
            max_rows = min(max_rows, _FIRST_ROWS)
        others, dangerous = _shares(max_rows, len(self.others), len(self.dangerous))
        return builder.rows(self.others, others), builder.rows(self.dangerous, dangerous)

    def may_be_released_together(self, right: Callable[[Delivery], ReleaseRight]) -> bool:
        """Return whether the page *Release or delete several messages* lists any, also of those without a row."""
        return any(right(each) is ReleaseRight.SELF for group in self.others for each in (group.newest, *group.others))

    def values(self, rows: Sequence[Row], dangerous: Sequence[Row], count: int) -> dict[str, Any]:
        """Return what the template says of them, with ``count`` of these rows."""
        first, last = _shares(count, len(rows), len(dangerous))
        wanted = self._wanted
        held, domains = _size(self.others) + _size(self.dangerous), _domains(wanted)
        return {
            "wanted": _size(wanted),
            "count": held,
            "telling": ", ".join(domains[:DOMAINS]),
            "domains": domains,
            "kinds": self._kinds(),
            "gone": self.gone,
            "rows": rows[:first],
            "dangerous": dangerous[:last],
            "more": held - _size(self.others[:first]) - _size(self.dangerous[:last]),
            "more_dangerous": _size(self.dangerous[last:]),
        }


def _unsubscribe(links: Links, preferences: str) -> dict[str, str]:
    """Return the header fields with which mail programs end digests, if the site's links are https (RFC 8058, 3.1)."""
    if not links.base_url.startswith("https:"):
        return {}
    return {"List-Unsubscribe": f"<{preferences}>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}


def _size(groups: Iterable[Group]) -> int:
    """Return the number of messages in these groups."""
    return sum(group.size for group in groups)


def _shares(rows: int, others: int, dangerous: int) -> tuple[int, int]:
    """Return how many of so many rows are for others and for dangerous messages.

    The latter come last. Some rows are kept for them, so that the recipient learns of them in a full digest as well.
    """
    last = min(dangerous, rows, max(min(_DANGEROUS_ROWS, rows // 4), rows - others))
    return min(others, rows - last), last


def _fitting(mail: Callable[..., EmailMessage], rows: int, *, is_latin: bool) -> EmailMessage:
    """Return the mail with as many of its ``rows`` rows as fit. ``mail`` takes their number, and an encoding.

    Quoted-printable takes six octets for an Arabic letter and nine for a Japanese one, so fifty rows of these fit as
    8bit only. In all other cases quoted-printable is safer: a server without 8BITMIME rewrites 8bit mail and thereby
    breaks its DKIM signature.
    """
    complete = mail(rows)
    if is_latin or _fits(complete):
        return _shortened(complete, rows, mail)
    return _shortened(mail(rows, "8bit"), rows, lambda count: mail(count, "8bit"))


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


def _domains(wanted: Iterable[Group]) -> list[str]:
    """Return the domains of the first likely mistakes among these. Their senders are authentic, so no spammer chose the
    domain of somebody else."""
    likely = [group.newest.message for group in wanted if group.section is Section.LIKELY_MISTAKES]
    hosts = dict.fromkeys(from_address(message).rpartition("@")[2] for message in likely)
    return [host for host in hosts if _DOMAIN.fullmatch(host)][:PREVIEW_DOMAINS]


def digest_mail(
    parts: Parts,
    digest: Digest,
    now: datetime,
    mail_id: UUID,
    known: Collection[str],
    is_first: bool = False,
    links: Links | None = None,
) -> EmailMessage:
    """Return the mail of a digest by the settings. Raises SettingsError without mail.from_address.

    ``links``: None for links that work.
    """
    settings, policy = parts.settings, parts.domains.of(digest.recipient)
    if policy.from_address is None:
        raise SettingsError("mail.from_address is needed to send digests")
    plan = parts.domains.plan(digest.recipient, digest.preferences)
    return compose(
        digest,
        links=(links or parts.links).at(policy.public_url),
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
        contact=settings.site.contact,
        takes_passwords=settings.takes_passwords,
        is_first=is_first,
    )
