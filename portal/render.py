"""Pages and mails from templates: one Jinja environment, the only user of jinja2.

Autoescape, `StrictUndefined`, no logic in templates beyond loops and conditions. Whatever comes from a held mail is
hostile: `shown()` takes control and bidirectional characters out before a template sees it.
Texts stand in `{% trans %}` blocks and `_()`, so that languages are added as catalogues alone.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime
from email.headerregistry import BaseHeader, HeaderRegistry, UnstructuredHeader
from email.message import EmailMessage
from email.policy import SMTP, Policy
from email.utils import format_datetime
from typing import Any
from uuid import UUID

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from portal import shipped
from portal.links import MARK_HEADER


class _Exact(UnstructuredHeader, BaseHeader):
    """A header for machines, written as it is. The package would turn long words into encoded ones (RFC 2047),
    which breaks our mark and RFC 8058's address, and it mangles or refuses mailboxes that are not ASCII."""

    def fold(self, *, policy: Policy) -> str:
        return f"{self.name}: {self}{policy.linesep}"


_HEADERS = HeaderRegistry()
for _name in ("to", "message-id", "list-unsubscribe", MARK_HEADER.lower()):
    _HEADERS.map_to_type(_name, _Exact)
# RFC 2045, 6.7: at most 76 characters a line; the package's own default is 78, which spam filters notice.
_POLICY = SMTP.clone(max_line_length=76, header_factory=_HEADERS)
_PLAIN_LOCAL = re.compile(r"""[^\s()<>@,;:\\"\[\].]+(\.[^\s()<>@,;:\\"\[\].]+)*|"([^"\\]|\\.)*\"""")
_SPACE = re.compile(r"\s+")
# Bidirectional controls and invisible characters that make text look like other text.
_HIDDEN = re.compile(
    "[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


class Render:
    """The templates, ready. ``language`` is a BCP 47 tag."""

    def __init__(self, language: str = "en") -> None:
        self.language = language
        self._environment = Environment(
            loader=FileSystemLoader(shipped("templates")),
            autoescape=lambda name: name is not None and name.endswith(".html"),  # noqa: S701 – texts are not HTML
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.i18n"],
        )
        # Not the new style: it takes whatever is translated for HTML and for a format, and so would be what stands in
        # a variable: `_(sender)` printed the sender's own tags, and failed at a percent sign.
        self._environment.install_null_translations(newstyle=False)  # type: ignore[attr-defined]
        self._environment.filters["shown"] = shown
        self._environment.globals["language"] = language
        self._names = frozenset(self._environment.list_templates())

    def page(self, name: str, **values: Any) -> str:
        """The page ``templates/web/NAME.html``."""
        return self._environment.get_template(f"web/{name}.html").render(values)

    def mail(
        self,
        name: str,
        *,
        sender: str,
        to: str,
        id: UUID,
        mark: str,
        now: datetime,
        headers: dict[str, str] | None = None,
        **values: Any,
    ) -> EmailMessage:
        """A mail from ``templates/mail/NAME/``: subject.txt, body.txt and, if there is one, body.html.

        Quoted-printable at 76 columns, explicitly: left to itself the package picks 8bit or base64 by content.
        The Message-ID comes from ``id``, so that a mail repeated after a crash carries the same one.
        ``to`` is one address as an envelope wrote it; one beyond ASCII makes a mail for SMTPUTF8 (RFC 6532).
        """
        subject = _SPACE.sub(" ", self._environment.get_template(f"mail/{name}/subject.txt").render(values)).strip()
        mail = EmailMessage(policy=_POLICY.clone(utf8=not to.isascii()))
        mail["From"] = sender
        mail["To"] = mailbox(to)
        mail["Subject"] = subject
        mail["Date"] = format_datetime(now)
        mail["Message-ID"] = f"<{id}@{sender.rpartition('@')[2].rstrip('>')}>"
        mail["Auto-Submitted"] = "auto-generated"
        mail["X-Auto-Response-Suppress"] = "All"
        mail[MARK_HEADER] = mark
        for header, value in (headers or {}).items():
            mail[header] = value
        text = self._environment.get_template(f"mail/{name}/body.txt").render(values)
        mail.set_content(text, cte="quoted-printable")
        if f"mail/{name}/body.html" in self._names:
            html = self._environment.get_template(f"mail/{name}/body.html").render(values)
            mail.add_alternative(html, subtype="html", cte="quoted-printable")
        return mail


def mailbox(address: str) -> str:
    """An envelope's address as a header may carry it: quotes that were lost on the way come back (RFC 5322, 3.4.1)."""
    local, _, domain = address.rpartition("@")
    if not _PLAIN_LOCAL.fullmatch(local):
        local = '"' + re.sub(r'(["\\])', r"\\\1", local) + '"'
    return f"{local}@{domain}"


def shown(text: str | None, limit: int = 200) -> str:
    """Hostile text as one harmless line: no controls, no bidi overrides, no invisible characters, no endless length."""
    line = _HIDDEN.sub("", _SPACE.sub(" ", text or ""))
    line = "".join(c for c in line if unicodedata.category(c) not in ("Cc", "Cs", "Cn", "Co"))
    line = line.strip()
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"
