"""Rows of a digest: what is shown of a held message, and the links that act on it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from rich.cells import cell_len

from portal.mail.languages import Language
from portal.model.domains import shown_address
from portal.model.links import Action, Links
from portal.model.message import Delivery, Tier
from portal.model.ranking import CHECK_FIRST, Group, Section
from portal.model.reasons import LIKE_SPAM, why
from portal.model.rights import ReleaseRight
from portal.model.sender import Sender, needs_check, sender_shown
from portal.model.short_reasons import shortly
from portal.model.text import N_, shown
from portal.stores.records import Digest

REASONS = 2  # in a row, beside the score and the time; the page that the subject links to shows all
_REASON_COLUMNS = 34  # with more, a row has one reason, so that its line fits a phone
SUBJECT_CHARACTERS = 120
_SENDER_CHARACTERS = 28  # of a longer name and address, a row of the HTML part shows the domain of the address only
_TIME_ALONE = timedelta(days=1)  # so long before the digest, a time of the day is clear without the day
_LINK = re.compile(r"\S*(?:://|(?<!@)\bwww\.|\w\.\w{2,}[/?#])\S*", re.IGNORECASE)
# A digest quotes held subjects and senders. Text that makes scanners reject any mail containing it is therefore broken
# up: their test strings (https://spamassassin.apache.org/gtube/, https://www.eicar.org/download-anti-malware-testfile/)
# and Bitcoin addresses (base58 and BIP 173), which Rspamd takes for blackmail if the mail has the word "password" too.
_TEST_WORD = re.compile(r"(?<=[GE])(?=TUBE|ICAR)", re.IGNORECASE)
_WALLET = re.compile(r"\b((?:[13LM](?=[A-Za-z]*\d)|(?i:bc1))[0-9A-Za-z]{6})[0-9A-Za-z]{18,}")
_RELEASED_BEFORE = N_("released before")


@dataclass(frozen=True, slots=True)
class Row:
    """A held message and its near duplicates, for the text part and the HTML part of the mail.

    All texts are single lines without control characters, see `text.shown`.
    """

    heading: str  # to be translated; "" if the row is not the first one of a section and mailbox
    count: int  # of all messages below the heading, also those that are not listed
    sender: Sender
    address: str  # the sender's as the HTML part shows it: only the domain if it is long; "" if it is missing
    subject: str  # "" when there is none
    when: str
    when_shortly: str  # the same with only the time or only the day
    score: str  # "" when not known
    threshold: str  # the score at which Rspamd withholds messages, "" when not known
    reasons: tuple[str, ...]  # in few words, to be translated
    needs_check: bool  # the recipient should look before releasing it
    is_suspicious: bool  # not dangerous, and the sender has no warning: one sign is enough
    release: str  # link, "" if the recipient may not release it
    ask: str  # link to request a release, "" if the recipient may not
    show: str  # link
    others: int  # near duplicates; the links are for the newest message
    similar: str  # link to the page that lists all of them, "" if there are none
    mailbox: str  # alias or role mailbox that it was sent to; "" for the recipient's own address
    other_readers: int  # of the mailbox, if there is a heading


def mailbox_of(group: Group, digest: Digest) -> str:
    """Return the alias or role mailbox that a group was sent to, "" if it is the recipient's own address."""
    newest = group.newest
    return "" if digest.effective_reader.is_own(newest.recipient) else shown_address(newest.address)


@dataclass(frozen=True, slots=True)
class Builder:
    """Makes the rows of a digest in a language. ``several`` and ``portal`` are links of the digest."""

    digest: Digest
    links: Links
    locale: Language
    zone: ZoneInfo
    right: Callable[[Delivery], ReleaseRight]
    several: str
    portal: str

    def rows(self, groups: Sequence[Group], limit: int) -> list[Row]:
        """Return rows for the first ``limit`` groups, which are in the order of sections and their mailboxes."""
        places = [(group.section, mailbox_of(group, self.digest)) for group in groups]
        counts = Counter[tuple[Section, str]]()
        for place, group in zip(places, groups, strict=True):
            counts[place] += group.size
        firsts = [place != before for place, before in zip(places, [None, *places], strict=False)]
        return [
            self._row(group, mailbox, section.heading if is_first else "", counts[section, mailbox])
            for group, (section, mailbox), is_first in zip(groups[:limit], places, firsts, strict=False)
        ]

    def _row(self, group: Group, mailbox: str, heading: str, count: int) -> Row:
        delivery, message = group.newest, group.newest.message
        reader = self.digest.recipient if delivery.recipient != self.digest.recipient else ""
        right, locale = self.right(delivery), self.locale

        def link(action: Action) -> str:
            return self.links.url(action, delivery.id, delivery.number, self.digest.issued_at, reader)

        release = link(Action.RELEASE) if right is ReleaseRight.SELF else ""
        sender, dangerous = sender_shown(message), message.tier is Tier.DANGEROUS
        address = _defanged(sender.address)
        return Row(
            heading=heading,
            count=count,
            sender=replace(sender, name=_defanged(sender.name), address=address),
            address=address if sender.warning or _is_short(sender) else _domain(address),
            subject=_defanged(shown(message.subject, SUBJECT_CHARACTERS)),
            when=locale.short_moment(message.held_at, self.zone),
            when_shortly=self._when_shortly(message.held_at),
            score="" if message.score is None else locale.score(message.score),
            threshold="" if message.threshold is None else locale.threshold(message.threshold),
            reasons=self._reasons(group, sender.warning),
            needs_check=needs_check(message),
            is_suspicious=message.tier is Tier.SUSPICIOUS and not sender.warning,
            release=release,
            ask=link(Action.REQUEST) if right is ReleaseRight.REQUEST else "",
            show=link(Action.SHOW),
            others=len(group.others),
            similar=self._similar(delivery, release != "" and not dangerous) if group.others else "",
            mailbox=mailbox,
            other_readers=max(0, len(self.digest.effective_reader.shared.get(delivery.recipient, ())) - 1)
            if heading
            else 0,
        )

    def _when_shortly(self, held_at: datetime) -> str:
        if self.digest.issued_at - held_at < _TIME_ALONE:
            return self.locale.time(held_at, self.zone)
        return self.locale.short_day(held_at, self.zone)

    def _reasons(self, group: Group, warning: str) -> tuple[str, ...]:
        """Return the reasons for one line, without the sender's warning; the second one only if there is room for it.

        That the text resembles spam is left out if there is another reason, since it is true of nearly all messages.
        """
        message = group.newest.message
        long = why(message)
        found = [shortly(each) for each in long if each not in (warning, LIKE_SPAM)] or [shortly(long[0])]
        released = [_RELEASED_BEFORE] if group.wanted_before else []
        reasons = tuple(dict.fromkeys([*released, *found]))[:REASONS]
        before = [CHECK_FIRST] if message.tier is Tier.SUSPICIOUS and not warning else []
        line = " · ".join(map(self.locale.gettext, [*before, *reasons]))
        return reasons if cell_len(line) <= _REASON_COLUMNS else reasons[:1]

    def _similar(self, delivery: Delivery, may_choose: bool) -> str:
        """Return the link to a group: to the page that releases and deletes its messages, else to their list."""
        return f"{self.several if may_choose else self.portal}?like={delivery.id}.{delivery.number}"


def _is_short(sender: Sender) -> bool:
    return len(sender.name) + len(sender.address) <= _SENDER_CHARACTERS


def _domain(address: str) -> str:
    """Return a long address without its local part. The @ remains, since a bare domain would become a link."""
    return "@" + address.rpartition("@")[2]


def _defanged(text: str) -> str:
    """Return the text with URLs, scanners' test strings and Bitcoin addresses broken up.

    Mail programs must not turn a spammer's URL into a link, and a spammer must not be able to get the digest rejected.
    """
    text = _LINK.sub(lambda found: found.group().replace("://", "[://]").replace(".", "[.]"), text)
    return _WALLET.sub(r"\1[…]", _TEST_WORD.sub("-", text))
