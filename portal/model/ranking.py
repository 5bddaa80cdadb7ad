"""Order and grouping of held messages in digests and on their pages: likely false positives first, near-duplicates in
one row.

Only the shipped rule exports the threshold that a message crossed, so the score alone shows how close it was: within
one site the threshold is the same for nearly all messages.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from portal.model.message import Delivery, Message, Tier
from portal.model.reasons import from_address
from portal.model.text import shown

# Rspamd's usual threshold of `reject` is 15 points. An authenticated sender is more likely wanted, and a sender whose
# messages this recipient got released before is the most likely wanted.
_AUTHENTIC_POINTS = 5
_KNOWN_POINTS = 15
_AUTHENTIC = frozenset({"DMARC_POLICY_ALLOW", "R_DKIM_ALLOW", "R_SPF_ALLOW"})
_FORGED = frozenset(
    {
        "DMARC_POLICY_REJECT", "DMARC_POLICY_QUARANTINE", "DMARC_POLICY_SOFTFAIL", "BLACKLIST_DMARC", "R_SPF_FAIL",
        "R_DKIM_REJECT", "SPOOF_DISPLAY_NAME", "FORGED_SENDER",
    }
)  # fmt: skip
_CHANGING = re.compile(r"\S*\d\S*")  # numbers, dates, ids: they differ between the messages of one mailing


@dataclass(frozen=True, slots=True)
class Group:
    """Near-duplicates, shown as one row."""

    newest: Delivery  # the row's links act on it
    others: tuple[Delivery, ...]
    wanted_before: bool  # from an authenticated sender whose messages this recipient got released before


def is_authentic(message: Message) -> bool:
    """Return whether Rspamd authenticated the sender and found no sign of forgery."""
    names = {symbol.name for symbol in message.symbols}
    return not _AUTHENTIC.isdisjoint(names) and not is_forged(message)


def is_forged(message: Message) -> bool:
    """Return whether Rspamd found that the sender is forged."""
    return any(symbol.name in _FORGED for symbol in message.symbols)


def ranked(deliveries: Iterable[Delivery], known: Collection[str]) -> list[Group]:
    """Return deliveries in groups, the most likely false positives first, dangerous messages last.

    ``known``: addresses in lower case, as returned by `reasons.from_address`, whose messages the recipient got
    released. A forger may use such an address: it counts only if no symbol reports a forged sender.
    """
    ordered = sorted(deliveries, key=lambda delivery: _likeliest_mistake_first(delivery.message, known))
    by_key: dict[object, list[Delivery]] = {}
    groups: list[list[Delivery]] = []
    for delivery in ordered:
        keys = _group_keys(delivery)
        group = next((by_key[key] for key in keys if key in by_key), None)
        if group is None:
            group = []
            groups.append(group)
        group.append(delivery)
        for key in keys:
            by_key.setdefault(key, group)
    return [_group(found, known) for found in groups]


def _group(found: list[Delivery], known: Collection[str]) -> Group:
    newest = max(found, key=lambda delivery: (delivery.id, delivery.number))
    message = newest.message
    return Group(
        newest=newest,
        others=tuple(delivery for delivery in found if delivery is not newest),
        wanted_before=is_authentic(message) and from_address(message) in known,
    )


def _group_keys(delivery: Delivery) -> list[object]:
    """Return the keys of a delivery; near-duplicates share at least one: body, or sender and subject without numbers.

    A group has one recipient and one tier, and never mixes authenticated messages with others: a forged message must
    not hide an authenticated one.
    """
    message = delivery.message
    kind = (delivery.recipient, message.tier, is_authentic(message))
    subject = _CHANGING.sub("#", shown(message.subject, 200).casefold())
    keys: list[object] = [(*kind, from_address(message), subject)]
    if message.body_sha256:
        keys.append((*kind, message.body_sha256))
    return keys


def _likeliest_mistake_first(message: Message, known: Collection[str]) -> tuple[bool, bool, float, float]:
    score = message.score or 0.0
    names = {symbol.name for symbol in message.symbols}
    if not _AUTHENTIC.isdisjoint(names):
        score -= _AUTHENTIC_POINTS
    if known and _FORGED.isdisjoint(names) and from_address(message) in known:
        score -= _KNOWN_POINTS
    return (
        message.tier is Tier.DANGEROUS,
        message.score is None,  # unknown: after all messages with a score
        score,
        -message.held_at.timestamp(),
    )
