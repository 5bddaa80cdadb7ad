"""The last release request for a delivery, as the pages of its reader and of staff show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from portal.model.message import ActorKind, Event, EventKind
from portal.model.text import shown
from portal.policy.release_requests import REQUEST_REASON_CHARACTERS
from portal.web.rows import Viewer

# What ends a request. A release that somebody else than an operator began does not decide about it.
_ENDS = {
    EventKind.RELEASING: "approved",
    EventKind.REFUSED: "denied",
    EventKind.WITHDRAWN: "withdrawn",
    EventKind.DELETED: "deleted",
    EventKind.CONFIRMED: "deleted",
}


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """A release request and what became of it."""

    at: str
    reason: str  # the recipient's, "" if they gave none
    end: str = ""  # a value of `_ENDS`, "" as long as it is open
    ended_at: str = ""
    answer: str = ""  # the reason of a denial


def release_request(events: Sequence[Event], viewer: Viewer) -> ReleaseRequest | None:
    """Return the last request of a delivery, None without any. ``events``: its history, oldest first."""

    def moment(at: datetime) -> str:
        return viewer.language.moment(at, viewer.zone)

    places = [place for place, event in enumerate(events) if event.kind is EventKind.REQUESTED]
    if not places:
        return None
    requested, *later = events[places[-1] :]
    at, reason = moment(requested.at), shown(requested.detail, REQUEST_REASON_CHARACTERS)
    end = next((each for each in later if each.kind in _ENDS), None)
    if end is None or (end.kind is EventKind.RELEASING and end.actor.kind is not ActorKind.OPERATOR):
        return ReleaseRequest(at, reason)
    answer = shown(end.detail, REQUEST_REASON_CHARACTERS) if end.kind is EventKind.REFUSED else ""
    return ReleaseRequest(at, reason, _ENDS[end.kind], moment(end.at), answer)
