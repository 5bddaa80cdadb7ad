"""Mail of the portal to administrators and recipients, queued in the store: the digest process sends it."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from portal.model.clock import utc_now
from portal.model.errors import QuarantineError
from portal.model.links import Links
from portal.model.message import Delivery, Message, ScanOutcome, Tier, new_id
from portal.model.record import record
from portal.model.text import shown
from portal.policy.domains import DomainPolicy, Domains
from portal.stores import Store, notes
from portal.stores.records import QueuedMail

if TYPE_CHECKING:
    from email.message import EmailMessage

log = logging.getLogger("quarantine.release")

_SYMBOLS_SHOWN = 20
_ALARM_EVERY = timedelta(hours=1)


@record(frozen=True, slots=True, kw_only=True)
class Mailing:
    """Mails in the language of who gets them, and alarms to the administrator."""

    store: Store
    links: Links
    render_mail: Callable[..., EmailMessage]  # `Render.mail`
    domains: Domains
    deciders: Callable[[Delivery], Sequence[str]]  # about a request: the administrators of the recipient's domain
    language_of: Callable[[str], str]  # address → language tag of its owner
    public_url_of: Callable[[str], str]  # address → URL at which its owner signs in, the site's if nobody does
    now: Callable[[], datetime] = utc_now

    def report_finding(self, message: Message) -> None:
        """Tell the administrator, at most once an hour, that a virus scan made a held message dangerous.

        Does nothing if no scan found anything or it is not dangerous.
        """
        if message.tier is not Tier.DANGEROUS or message.scan is None or message.scan.outcome is not ScanOutcome.FOUND:
            return
        self.alarm_hourly(
            "a virus was found in a held message",
            f"A virus scan found something in the held message {message.id}. Only an administrator can release it now: "
            f"`quarantine meta {message.id}` shows what was found. There may be more such messages: the log has a line "
            "`scanned … outcome=found` for each.",
        )

    def request_mails(self, delivery: Delivery, *, reminder: bool = False) -> list[QueuedMail]:
        """Return the mails about a release request: to the administrators of the domain who may decide about it or, if
        there are none, to `admin_address`.

        The link leads to the host at which the receiver signs in: their session is not valid at that of the recipient.
        """
        policy = self.domains.of(delivery.recipient)
        receivers = self.deciders(delivery) or ([policy.admin_address] if policy.admin_address else [])
        mails = [
            self.mail(
                to,
                "request",
                policy,
                delivery=delivery,
                reminder=reminder,
                dangerous=delivery.message.tier is Tier.DANGEROUS,
                symbols=sorted(delivery.message.symbols, key=lambda s: -s.score)[:_SYMBOLS_SHOWN],
                page=f"{self.public_url_of(to)}/admin/messages/{delivery.id}.{delivery.number}/",
                # It is copied into a shell, and a sender may have chosen an address with shell code in it.
                recipient_argument=shlex.quote(shown(delivery.recipient, 320)),
            )
            for to in receivers
        ]
        return [mail for mail in mails if mail is not None]

    def alarm(self, subject: str, text: str, *, note: tuple[str, str | None, str] | None = None) -> None:
        """Log a problem and mail it to the administrator, in English like the log.

        ``note``: arguments for `Notes.compare_and_set`: name, old text, new text. Only the process that sets the note
        queues the mail. Raises StoreUnavailable.
        """
        site = self.domains.site
        mail = self.mail(site.admin_address, "alarm", site, language="en", subject=subject, text=text)
        if note is None:
            log.error("alarm: %s", subject)
            if mail is not None:
                self.store.outbox.add(mail, self.now())
        elif self.store.notes.compare_and_set(*note, self.now(), mail=mail):
            log.error("alarm: %s", subject)

    def alarm_hourly(self, subject: str, text: str) -> None:
        """Call `alarm` at most once an hour for each subject, over all processes. Errors are logged and not raised."""
        now, note = self.now(), notes.alarm(subject)
        try:
            last = note.text(self.store)
            # The difference is absolute, so that a clock that was a year ahead does not silence alarms for a year.
            if last is None or abs(now - note.from_text(last)) >= _ALARM_EVERY:
                self.alarm(subject, text, note=(note.name, last, note.to_text(now)))
        except QuarantineError as error:
            log.error("alarm %r could not be sent: %s", subject, error)

    def mail(
        self, to: str | None, template: str, policy: DomainPolicy, *, language: str = "", **values: Any
    ) -> QueuedMail | None:
        """Return a mail in the language of its recipient, to be queued. Return None without ``to`` or a From address.

        ``policy`` is that of the domain that the mail is about.
        """
        if not to or policy.from_address is None:
            return None
        id, now = new_id(), self.now()
        mail = self.render_mail(
            template,
            sender=policy.from_address,
            brand=policy.brand,
            to=to,
            id=id,
            mark=self.links.mark("mail", id),
            now=now,
            language=language or self.language_of(to),
            public_url=policy.public_url,
            **values,
        )
        return QueuedMail(to, mail.as_bytes())
