"""Votes of people on what a message is, by which Rspamd's statistics may be trained. No I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from datetime import datetime
from enum import StrEnum

from portal.model.message import ActorKind, DeliveryId, Message
from portal.model.ranking import subject_key
from portal.model.record import record
from portal.model.sender import authentic, from_address

_OPERATOR = f"{ActorKind.OPERATOR}:"


class Label(StrEnum):
    """The class of a message. The values are kept in stores; the first two are Rspamd's names."""

    HAM = "ham"
    SPAM = "spam"
    NONE = "none"  # the person took back that it is spam

    @property
    def opposite(self) -> Label:
        """Ham for spam and the reverse."""
        return Label.SPAM if self is Label.HAM else Label.HAM


@record(frozen=True, slots=True)
class Vote:
    """The last vote of one person on one campaign."""

    campaign: bytes  # see `campaign_of`
    person: str  # `Actor.who` of the person: "recipient:IDENTITY" or "operator:NAME"
    label: Label
    delivery: DeliveryId  # what they released, or confirmed as spam
    at: datetime

    @property
    def is_operator(self) -> bool:
        """True if an operator voted."""
        return self.person.startswith(_OPERATOR)


def campaign_of(message: Message) -> bytes:
    """Return the 32 bytes that all messages of a campaign have in common.

    Messages of an authentic sender are one campaign if their subjects differ in numbers only, since each recipient of a
    newsletter gets other bytes. Anybody could forge these two fields of other messages, so a campaign of those has
    the same bytes.
    """
    subject = subject_key(message)
    if any(map(str.isalpha, subject)) and authentic(message):
        content = f"{from_address(message)}\0{subject}".encode()
    else:
        content = message.body_sha256
    return hashlib.sha256(content).digest()


def agree(votes: Collection[Vote], opposing: Collection[Vote], at_least: int) -> bool:
    """Return whether so many people cast these votes on one campaign, and nobody one of the other label.

    Votes of operators are not counted.
    """
    return not opposing and sum(not vote.is_operator for vote in votes) >= at_least
