"""Order, headings and grouping of held messages in digests and on pages: likely false positives first, near-duplicates
in one row.

Only the shipped rule exports the threshold that a message crossed. The order uses the score alone: within one site the
threshold is the same for nearly all messages.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from enum import IntEnum
from operator import attrgetter
from uuid import UUID

from portal.model.message import Delivery, DeliveryId, Message, Tier
from portal.model.record import record
from portal.model.sender import from_address, trusted
from portal.model.text import N_, shown

# Rspamd's usual threshold of `reject`, in points (conf/actions.conf). Mistakes are rare far above the threshold.
_USUAL_THRESHOLD = 15.0
_NEAR = 1.5  # times the threshold
# A trusted sender is more likely wanted, and one whose messages this recipient got released before, or who answers a
# message of this site, is the most likely wanted.
_TRUSTED_POINTS = 5
_KNOWN_POINTS = 15
_REPLY = "REPLY"  # answers a Message-ID that this site sent (replies.lua)
_CHANGING = re.compile(r"\S*\d\S*")  # numbers, dates, ids: they differ between the messages of one mailing
# Signs of mail to many people. Such a message is no likely mistake, even if its sender is authentic.
_BULK_SYMBOLS = frozenset({"HAS_LIST_UNSUB", "PRECEDENCE_BULK", "DCC_REJECT", "DCC_BULK", "FUZZY_DENIED", "MAILLIST"})


class Section(IntEnum):
    """A part of a list or digest with a heading, in their order."""

    LIKELY_MISTAKES = 0
    OTHERS = 1
    DANGEROUS = 2

    @property
    def heading(self) -> str:
        """The heading, to be translated."""
        return _HEADINGS[self]


_HEADINGS = (N_("Likely mistakes"), N_("Other messages"), N_("Possibly dangerous messages"))
BULK, LIKELY_SPAM, CHECK_FIRST = N_("Bulk mail"), N_("Likely spam"), N_("Check first")
KINDS = (_HEADINGS[0], BULK, LIKELY_SPAM, CHECK_FIRST, _HEADINGS[2])  # in the order of a summary; to be translated


@record(frozen=True, slots=True)
class Group:
    """Near-duplicates, shown as one row."""

    newest: Delivery  # the row's links act on it
    others: tuple[Delivery, ...]
    trusted: bool  # see `sender.trusted`
    wanted_before: bool  # from a trusted sender whose messages this recipient got released before

    @property
    def size(self) -> int:
        """The number of messages."""
        return 1 + len(self.others)

    @property
    def keys(self) -> Sequence[DeliveryId]:
        """The keys of its deliveries."""
        return [each.key for each in (self.newest, *self.others)]

    @property
    def section(self) -> Section:
        """The part of the list that it belongs to. A likely mistake has a proven sender."""
        tier = self.newest.message.tier
        if tier is Tier.DANGEROUS:
            return Section.DANGEROUS
        if self.wanted_before or (tier is Tier.SPAM and self._looks_wanted):
            return Section.LIKELY_MISTAKES
        return Section.OTHERS

    @property
    def may_be_wanted(self) -> bool:
        """True if it is a likely mistake, or would be one if its virus scan were done."""
        if self.section is not Section.OTHERS:
            return self.section is Section.LIKELY_MISTAKES
        return self._looks_wanted and any(
            each.message.verdict_tier is Tier.SPAM for each in (self.newest, *self.others)
        )

    @property
    def kind(self) -> str:
        """One of `KINDS`, which are finer than the sections."""
        if self.section is not Section.OTHERS:
            return self.section.heading
        if self.newest.message.tier is Tier.SUSPICIOUS:
            return CHECK_FIRST
        return BULK if self._is_bulk else LIKELY_SPAM

    @property
    def _looks_wanted(self) -> bool:
        """True if its sender is proven, and it answers a message of this site, or barely crossed the threshold."""
        message = self.newest.message
        return self.trusted and (_is_reply(message) or (not self._is_bulk and _is_near_threshold(message)))

    @property
    def _is_bulk(self) -> bool:
        return any(symbol.name in _BULK_SYMBOLS for symbol in self.newest.message.symbols)


def ranked(deliveries: Iterable[Delivery], known: Collection[str]) -> list[Group]:
    """Return deliveries in groups, by section; in each section the most likely false positives are first.

    ``known``: addresses in lower case, as returned by `sender.from_address`, whose messages the recipient got
    released. A forger may use such an address: it counts only for trusted messages.
    """
    deliveries = list(deliveries)
    trust = {delivery.id: trusted(delivery.message) for delivery in deliveries}
    ordered = sorted(deliveries, key=lambda each: _likeliest_mistake_first(each.message, trust[each.id], known))
    return sorted(_grouped(ordered, trust, known), key=attrgetter("section"))


def rows_of(ranking: Sequence[Group], key: DeliveryId) -> tuple[int, int] | None:
    """Return the number of the row with a delivery, and the one after it; None if no row has it."""
    number = next((number for number, group in enumerate(ranking) if key in group.keys), None)
    return None if number is None else (number, number + 1)


def rows_of_missing(ranking: Sequence[Group], missing: Delivery, known: Collection[str]) -> tuple[int, int]:
    """Return what `rows_of` would have returned when a delivery was among those of a ranking.

    If none of its near-duplicates is left, both numbers are those of the row that has taken its place.
    """
    deliveries = [delivery for group in ranking for delivery in (group.newest, *group.others)]
    # Equal ones are in the order of a list: the newest first.
    newest = sorted([*deliveries, missing], key=lambda each: (each.id, each.number), reverse=True)
    before = ranked(newest, known)
    place = next(number for number, group in enumerate(before) if missing.key in group.keys)
    own = [rows for key in before[place].keys if (rows := rows_of(ranking, key))]
    if own:
        return own[0]
    others = [rows for key in (before[place - 1].keys if place else ()) if (rows := rows_of(ranking, key))]
    number = max((after for _, after in others), default=0)
    return number, number


def grouped(deliveries: Iterable[Delivery]) -> list[Group]:
    """Return deliveries in groups, in the order of the first delivery of each."""
    deliveries = list(deliveries)
    return _grouped(deliveries, {delivery.id: trusted(delivery.message) for delivery in deliveries}, ())


def unfolded(groups: Iterable[Group]) -> list[Group]:
    """Return a group for each delivery of these groups, in their order."""
    return [
        replace(group, newest=delivery, others=()) for group in groups for delivery in (group.newest, *group.others)
    ]


def _grouped(ordered: Iterable[Delivery], trust: Mapping[UUID, bool], known: Collection[str]) -> list[Group]:
    by_key: dict[object, list[Delivery]] = {}
    groups: list[list[Delivery]] = []
    for delivery in ordered:
        keys = _group_keys(delivery, trust[delivery.id])
        group = next((by_key[key] for key in keys if key in by_key), None)
        if group is None:
            group = []
            groups.append(group)
        group.append(delivery)
        for key in keys:
            by_key.setdefault(key, group)
    return [_group(found, trust, known) for found in groups]


def _group(found: list[Delivery], trust: Mapping[UUID, bool], known: Collection[str]) -> Group:
    newest = max(found, key=lambda delivery: (delivery.id, delivery.number))
    return Group(
        newest=newest,
        others=tuple(delivery for delivery in found if delivery is not newest),
        trusted=trust[newest.id],
        # A dangerous message is no better for coming from somebody known, whose account may be taken over.
        wanted_before=trust[newest.id]
        and newest.message.tier is not Tier.DANGEROUS
        and from_address(newest.message) in known,
    )


@record(frozen=True, slots=True)
class Likeness:
    """The properties that the near-duplicates of a delivery share with it, see `_group_keys`."""

    recipient: str
    body_sha256: bytes
    header_from: str
    sender: str  # see `sender.from_address`
    keys: frozenset[object]

    @classmethod
    def of(cls, delivery: Delivery) -> Likeness:
        """Return the likeness of a delivery."""
        message = delivery.message
        keys = frozenset(_group_keys(delivery, trusted(message)))
        return cls(delivery.recipient, message.body_sha256, message.header_from, from_address(message), keys)

    def fits(self, delivery: Delivery) -> bool:
        """Return whether a delivery is one of the near-duplicates."""
        message = delivery.message
        if message.body_sha256 != self.body_sha256 and from_address(message) != self.sender:
            return False  # faster than its keys
        return not self.keys.isdisjoint(_group_keys(delivery, trusted(message)))


def _group_keys(delivery: Delivery, is_trusted: bool) -> list[object]:
    """Return the keys of a delivery; near-duplicates share at least one: body, or sender and subject without numbers.

    A group has one recipient and one tier, and never mixes trusted messages with others: a forged message must not hide
    a genuine one.
    """
    message = delivery.message
    kind = (delivery.recipient, message.tier, is_trusted)
    keys: list[object] = [(*kind, from_address(message), subject_key(message))]
    if message.body_sha256:
        keys.append((*kind, message.body_sha256))
    return keys


def subject_key(message: Message) -> str:
    """Return the subject without what differs between the messages of one mailing."""
    return _CHANGING.sub("#", shown(message.subject, 200).casefold())


def _is_reply(message: Message) -> bool:
    """Return whether it answers a message that this site sent, by its Message-ID. A forger may know one: it counts only
    for trusted messages."""
    return any(symbol.name == _REPLY for symbol in message.symbols)


def _is_near_threshold(message: Message) -> bool:
    """Return whether its score is not far above the threshold that it crossed. False if it has no score."""
    threshold = message.threshold if message.threshold and message.threshold > 0 else _USUAL_THRESHOLD
    return message.score is not None and message.score <= _NEAR * threshold


def _likeliest_mistake_first(
    message: Message, is_trusted: bool, known: Collection[str]
) -> tuple[bool, bool, float, float]:
    score = message.score or 0.0
    if is_trusted:
        score -= _TRUSTED_POINTS
        if _is_reply(message) or (known and from_address(message) in known):
            score -= _KNOWN_POINTS
    return (
        message.tier is Tier.DANGEROUS,
        message.score is None,  # unknown: after all messages with a score
        score,
        -message.held_at.timestamp(),
    )
