"""The last release request for a delivery after it was decided or withdrawn, for its reader and for staff."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from portal.model.message import ActorKind, Event, EventKind
from portal.model.text import shown
from portal.policy.release_requests import REQUEST_REASON_CHARACTERS
from portal.web.rows import Viewer

_ENDS = {
    EventKind.RELEASING: "approved",
    EventKind.REFUSED: "denied",
    EventKind.WITHDRAWN: "withdrawn",
    EventKind.DELETED: "",
    EventKind.CONFIRMED: "",
}


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """A release request that was decided or withdrawn."""

    at: str
    reason: str  # the recipient's, "" if they gave none
    end: str  # a value of `_ENDS`
    ended_at: str
    answer: str  # the reason of a denial


def release_request(events: Sequence[Event], viewer: Viewer) -> ReleaseRequest | None:
    """Return the last request of a delivery if it was decided or withdrawn, None otherwise.

    ``events``: its history, oldest first. If the delivery was deleted, the state says that.
    """

    def moment(at: datetime) -> str:
        return viewer.language.moment(at, viewer.zone)

    places = [place for place, event in enumerate(events) if event.kind is EventKind.REQUESTED]
    if not places:
        return None
    requested, *later = events[places[-1] :]
    at, reason = moment(requested.at), shown(requested.detail, REQUEST_REASON_CHARACTERS)
    end = next((each for each in later if each.kind in _ENDS), None)
    if end is None or not _ENDS[end.kind]:
        return None
    if end.kind is EventKind.RELEASING and end.actor.kind is not ActorKind.OPERATOR:  # a rule did not decide about it
        return None
    answer = shown(end.detail, REQUEST_REASON_CHARACTERS) if end.kind is EventKind.REFUSED else ""
    return ReleaseRequest(at, reason, _ENDS[end.kind], moment(end.at), answer)
