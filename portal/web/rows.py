"""View models: deliveries, findings and histories as templates show them, cleaned and in words.

Pure functions: whatever they need from the store was read before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from portal.mail.languages import Language
from portal.model.domains import shown_address
from portal.model.message import Actor, ActorKind, Delivery, Event, EventKind, Message, State, Tier
from portal.model.reasons import Sender, explain, sender_shown, why
from portal.model.text import N_, shown

_SYMBOLS = 60  # shown of one mail
_EVENTS = 50  # shown of one history

EVENTS_IN_WORDS = {
    EventKind.HELD: N_("held"),
    EventKind.ASSIGNED: N_("changed"),
    EventKind.REQUESTED: N_("asked for"),
    EventKind.REFUSED: N_("request refused"),
    EventKind.RELEASING: N_("release begun"),
    EventKind.RELEASED: N_("released"),
    EventKind.DEFERRED: N_("the mail server could not take it yet"),
    EventKind.FAILED: N_("the mail server refused it"),
    EventKind.DELETED: N_("deleted"),
    EventKind.RESTORED: N_("deletion undone"),
    EventKind.RAISED: N_("found more dangerous by a later check"),
    EventKind.STOPPED: N_("release stopped"),
}
# The event that brings a delivery into a state.
_INTO = {
    State.REQUESTED: EventKind.REQUESTED,
    State.RELEASING: EventKind.RELEASING,
    State.RELEASED: EventKind.RELEASING,
    State.DELETED: EventKind.DELETED,
}
_ANSWERS = (EventKind.RELEASED, EventKind.DEFERRED, EventKind.FAILED)  # of the mail server
_REASONS = (EventKind.REFUSED, EventKind.FAILED, EventKind.STOPPED)  # events that leave a reason in a held delivery


@dataclass(frozen=True, slots=True)
class Viewer:
    """The reader who looks at a page, and how they are shown times and numbers."""

    reader: str  # identity
    language: Language
    zone: ZoneInfo


@dataclass(frozen=True, slots=True)
class Row:
    """A delivery as its reader sees it, without anyone else's data."""

    id: UUID
    name: str  # in addresses of pages
    sender: Sender
    subject: str
    held: str
    reasons: list[str]
    dangerous: bool
    state: State
    state_at: str
    reason: str  # why it is held again
    declined: bool  # whether that reason is an administrator's answer to a request
    size: str
    mailbox: str = ""  # the alias or role mailbox it is for; "" when it is for the reader's own address
    by: str = ""  # the reader of a role mailbox who brought it into this state


def needs_events(delivery: Delivery, *, role: bool) -> bool:
    """Return whether `row` needs the events of this delivery. ``role``: it is for a role mailbox."""
    return role or (delivery.state is State.HELD and delivery.reason != "")


def row(delivery: Delivery, viewer: Viewer, *, role: bool, events: Sequence[Event]) -> Row:
    """Return a delivery as this viewer sees it.

    ``role``: it is for a role mailbox. ``events``: the latest of each kind, oldest first, if `needs_events`.
    """
    message, language = delivery.message, viewer.language
    other = role or viewer.reader != delivery.recipient
    return Row(
        id=message.id,
        name=f"{message.id}.{delivery.number}" if other else str(message.id),
        sender=sender_shown(message),
        subject=shown(message.subject, 200),
        held=language.moment(message.held_at, viewer.zone),
        reasons=why(message),
        dangerous=message.tier is Tier.DANGEROUS,
        state=delivery.state,
        state_at=language.moment(delivery.state_at, viewer.zone),
        reason=shown(delivery.reason, 300),
        declined=delivery.state is State.HELD and delivery.reason != "" and _declined(events),
        size=language.size(message.size_bytes),
        mailbox=shown_address(delivery.address) if other else "",
        by=_by(delivery, events) if role else "",
    )


def _by(delivery: Delivery, events: Sequence[Event]) -> str:
    """Return the reader who brought a role mailbox's delivery into its state, "" if no reader did."""
    kind = _INTO.get(delivery.state)
    return next((by_name(event.actor) for event in reversed(events) if event.kind is kind), "")


def _declined(events: Sequence[Event]) -> bool:
    """Return whether the reason is an administrator's: after a request, an operator's release may have failed."""
    return next((e.kind for e in reversed(events) if e.kind in _REASONS), None) is EventKind.REFUSED


def by_name(actor: Actor) -> str:
    """Return the reader who acted if they are known by name, else ""."""
    return shown_address(actor.name) if actor.kind is ActorKind.RECIPIENT else ""


def findings(message: Message, language: Language) -> dict[str, Any]:
    """Return what Rspamd found for the template's ``findings``: the score, and symbols in words, weightiest first."""
    symbols = sorted(message.symbols, key=lambda symbol: (-abs(symbol.score), symbol.name))
    return {
        "score": "" if message.score is None else language.score(message.score),
        "symbols": [(shown(s.name, 80), language.score(s.score), explain(s)) for s in symbols[:_SYMBOLS]],
    }


def history(events: Sequence[Event], row: Row, viewer: Viewer) -> list[tuple[str, str, str, str]]:
    """Return the last events of a delivery, oldest first: when, what, who in words, and who by name."""
    return [
        (
            viewer.language.moment(event.at, viewer.zone),
            EVENTS_IN_WORDS[event.kind],
            *_who(event, row),
        )
        for event in events[-_EVENTS:]
    ]


def _who(event: Event, row: Row) -> tuple[str, str]:
    """Return who did something: in words, or by name where it is another reader of the same mailbox.

    Operators' names and clients' addresses are shown to operators only. The mail server's answers have no actor.
    """
    if event.kind in _ANSWERS:
        return "", ""
    is_own = event.actor.kind is ActorKind.RECIPIENT and not event.actor.name
    if is_own and row.mailbox:
        return "", row.mailbox  # who that was before others read it, or nobody else did
    if is_own:
        return N_("with a link in a digest") if event.actor.via == "link" else N_("by you"), ""
    return N_("by an administrator") if event.actor.kind is ActorKind.OPERATOR else "", by_name(event.actor)
