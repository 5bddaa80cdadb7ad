"""The next digest of a recipient as a preview: the mail that would be sent now, with links that do nothing.

A preview contains no tokens, since a reader who has one can release and delete messages. The mail is composed with
`Placeholders`, which are as long as tokens, so that as many rows fit into it. They are then removed from its parts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP

from portal.assemble import Parts
from portal.digests.compose import digest_mail
from portal.model.links import PLACEHOLDER_PATTERN, Placeholders
from portal.stores.records import Upcoming
from portal.stores.senders import addresses_in

_LINK = re.compile(rf"/link/{PLACEHOLDER_PATTERN}/[^\s\"]*")
_HREF = re.compile(rf'href="[^"]*{_LINK.pattern}"')
_LOGO = re.compile(r'(?<=src=")cid:[^"]*')
_NO_LINK = 'role="link" aria-disabled="true"'  # ARIA in HTML: an `a` without an address may be named as a link
# Without links nothing in the frame could be focused, and Chromium would not scroll it by keyboard.
_BODY = '<body tabindex="0"'
_STYLE = "<style>a[aria-disabled]{text-decoration:underline;cursor:not-allowed}</style></head>"


@dataclass(frozen=True, slots=True)
class Preview:
    """A digest that was not sent: its subject line and its parts, without links."""

    subject: str
    html: str
    text: str


def preview(parts: Parts, upcoming: Upcoming, now: datetime) -> Preview:
    """Return the mail of an upcoming digest with deliveries, as it would be sent now.

    Raises SettingsError without mail.from_address; StoreUnavailable.
    """
    digest, no_links = upcoming.digest, Placeholders(parts.links.lifetime)
    known = addresses_in(upcoming.released_from)
    composed = digest_mail(parts, digest, now, digest.id, known, upcoming.is_first, links=no_links)
    mail = message_from_bytes(composed.as_bytes(), policy=SMTP.clone(utf8=True))
    html = _HREF.sub(_NO_LINK, _part(mail, "html")).replace("</head>", _STYLE, 1).replace("<body", _BODY, 1)
    logo = parts.domains.of(digest.recipient).brand.logo
    return Preview(mail["Subject"], _LOGO.sub(lambda _: logo, html), _LINK.sub("/link/…", _part(mail, "plain")))


def _part(mail: EmailMessage, kind: str) -> str:
    """Return a part of the mail, "" if it has none of this kind."""
    part = mail.get_body((kind,))
    return "" if part is None else str(part.get_content()).replace("\r\n", "\n")
