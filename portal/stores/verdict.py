"""What becomes of a held message when its mail comes again with a worse verdict. The rule, for both stores; no I/O."""

from __future__ import annotations

from dataclasses import replace

from portal.model.message import Export, Flag, Message, State, Tier

RAISED_TOGETHER = 100  # messages in one transaction, so that other writers wait for some milliseconds only

OPEN_STATES = frozenset(State) - {State.RELEASED}  # of deliveries that may still be released: there the tier matters

_OF_THE_VERDICT = frozenset({Flag.SYMBOLS, Flag.ACTION, Flag.SCORE})  # other flags are about one envelope


def with_verdict(message: Message, export: Export, tier: Tier) -> Message:
    """Return the message with the tier and the symbols, score, action and flags of a later export of the same mail.

    An export whose symbols are missing keeps those known before: it says less, even if its tier is worse.
    """
    flags = export.flags & _OF_THE_VERDICT
    if not export.symbols:
        return replace(message, tier=tier, flags=message.flags | flags)
    return replace(
        message,
        tier=tier,
        symbols=export.symbols,
        score=export.score,
        action=export.action,
        flags=message.flags - _OF_THE_VERDICT | flags,
    )


def change(message: Message, tier: Tier) -> str:
    """Return the detail of the history's event."""
    return f"{message.tier} -> {tier}"
