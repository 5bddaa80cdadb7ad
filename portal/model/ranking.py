"""Which held mail is likeliest a mistake, and which mails are as good as one: the order of digests and their pages.

Rspamd does not export the threshold that a mail crossed, so the score itself has to
tell how close it was: within one site the threshold is the same for nearly all mail.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from portal.model.message import Delivery, Message, Tier
from portal.model.reasons import from_address
from portal.model.text import shown

# Rspamd's usual distance between nothing and `reject` is 15 points: who signs with their own name is likelier wanted,
# and whose mail was wanted before is likeliest of all.
_AUTHENTIC_POINTS = 5
_KNOWN_POINTS = 15
_AUTHENTIC = frozenset({"DMARC_POLICY_ALLOW", "R_DKIM_ALLOW", "R_SPF_ALLOW"})
_FORGED = frozenset(
    {
        "DMARC_POLICY_REJECT", "DMARC_POLICY_QUARANTINE", "DMARC_POLICY_SOFTFAIL", "BLACKLIST_DMARC", "R_SPF_FAIL",
        "R_DKIM_REJECT", "SPOOF_DISPLAY_NAME", "FORGED_SENDER",
    }
)  # fmt: skip
_CHANGING = re.compile(r"\S*\d\S*")  # numbers, dates, ids: what differs between mails of one mailing


@dataclass(frozen=True, slots=True)
class Group:
    """Mails that are nearly the same, shown as one row."""

    newest: Delivery  # what the row's links act on
    others: tuple[Delivery, ...]
    wanted_before: bool  # proven to come from somebody whose mail this recipient got released


def is_authentic(message: Message) -> bool:
    """Whether Rspamd found the sender proven, and nothing that says the opposite."""
    names = {symbol.name for symbol in message.symbols}
    return not _AUTHENTIC.isdisjoint(names) and not is_forged(message)


def is_forged(message: Message) -> bool:
    """Whether Rspamd found that the sender is not who the mail says."""
    return any(symbol.name in _FORGED for symbol in message.symbols)


def ranked(deliveries: Iterable[Delivery], known: Collection[str]) -> list[Group]:
    """Deliveries in groups, the likeliest mistakes first, dangerous mail last.

    ``known`` are addresses in lower case, as `reasons.from_address` gives them, whose mail the recipient got released.
    A forger may write such an address: it counts only as long as no symbol says that the sender is forged.
    """
    ordered = sorted(deliveries, key=lambda delivery: _likeliest_mistake_first(delivery.message, known))
    by_key: dict[object, list[Delivery]] = {}
    groups: list[list[Delivery]] = []
    for delivery in ordered:
        keys = _dedup_key(delivery)
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


def _dedup_key(delivery: Delivery) -> list[object]:
    """What near-identical mails share one of: the same bytes, or sender and shape of the subject. Never across
    tiers or the names they are for, and what is proven to come from its sender never hides behind what merely says so.
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
        message.score is None,  # nothing speaks for it either
        score,
        -message.held_at.timestamp(),
    )
