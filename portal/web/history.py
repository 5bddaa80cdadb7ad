"""The history of a delivery in sentences, as its reader may see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from portal.model.domains import shown_address
from portal.model.message import Actor, ActorKind, Event, EventKind
from portal.model.rule import ScopeKind, scope_kind
from portal.model.text import N_, shown
from portal.web.rows import Row, Viewer, actor_name

_LINES = 50  # shown for one delivery
_DETAIL_CHARACTERS = 500

# `%(by)s` is one of the texts of `_actor`.
EVENTS_IN_WORDS = {
    EventKind.HELD: N_("Held by the spam filter."),
    EventKind.ASSIGNED: N_("Assigned to this mailbox %(by)s."),
    EventKind.REQUESTED: N_("Release requested %(by)s."),
    EventKind.WITHDRAWN: N_("Release request withdrawn %(by)s."),
    EventKind.REMINDED: N_("Administrator reminded of the release request."),
    EventKind.REFUSED: N_("Release request denied %(by)s."),
    EventKind.RELEASING: N_("Release started %(by)s."),
    EventKind.RELEASED: N_("Delivered by the mail server."),
    EventKind.DEFERRED: N_("Not delivered yet. The release is tried again automatically."),
    EventKind.FAILED: N_("Release failed."),
    EventKind.DELETED: N_("Deleted %(by)s."),
    EventKind.CONFIRMED: N_("Reported as spam and deleted %(by)s."),
    EventKind.LEARNED_HAM: N_("The spam filter learned this message as wanted."),
    EventKind.LEARNED_SPAM: N_("The spam filter learned this message as spam."),
    EventKind.RESTORED: N_("Deletion undone %(by)s."),
    EventKind.RAISED: N_("Classified as more dangerous by the spam filter."),
    EventKind.STOPPED: N_("Release stopped."),
    EventKind.PASSED: N_("Let through %(by)s."),
    EventKind.BLOCKED: N_("Blocked %(by)s."),
    EventKind.UNBLOCKED: N_("Moved to held messages %(by)s."),
    EventKind.REANNOUNCED: N_("Put into the next digest again %(by)s."),
    EventKind.ASKED: N_("Administrator asked %(by)s."),
    EventKind.DOWNLOADED: N_("Message downloaded %(by)s."),
}
_ATTACHMENT_DOWNLOADED = N_("Attachment downloaded %(by)s.")
# The details that readers see. Those of `deferred` may be about the portal itself, those of `learned` name people.
_WITH_DETAIL = frozenset(
    {
        *(EventKind.REQUESTED, EventKind.REFUSED, EventKind.ASKED),
        *(EventKind.RELEASED, EventKind.FAILED, EventKind.STOPPED),
    }
)
_REPEATED = (EventKind.DEFERRED, EventKind.DOWNLOADED)


@dataclass(frozen=True, slots=True)
class Line:
    """One sentence of a history, and how often in a row it happened."""

    at: str
    text: str
    detail: str  # what the mail server or a person said, "" if nothing
    number: int = 1
    last_at: str = ""  # when it happened last, "" if once


def history(events: Sequence[Event], row: Row, viewer: Viewer, *, for_staff: bool = False) -> list[Line]:
    """Return the last lines of a delivery's history, oldest first.

    ``for_staff``: with the names of all actors, from where they acted, and all details.
    Downloads and deferrals that follow each other are one line for each person and kind, so that they do not push out
    what changed the delivery.
    """
    lines: list[Line] = []
    repeated: dict[tuple[str, str], int] = {}  # the lines since the last event of another kind: where they are
    for event in events:
        by = _actor_for_staff(event.actor, row, viewer) if for_staff else _actor(event, row, viewer)
        detail = _detail(event, viewer) if for_staff or event.kind in _WITH_DETAIL else ""
        line = Line(_moment(event.at, viewer), _text(event, by, viewer), detail)
        if event.kind not in _REPEATED:
            repeated.clear()
        elif (place := repeated.setdefault((event.kind, line.text), len(lines))) < len(lines):
            lines[place] = replace(lines[place], number=lines[place].number + 1, last_at=line.at)
            continue
        lines.append(line)
    return lines[-_LINES:]


def _moment(at: datetime, viewer: Viewer) -> str:
    return viewer.language.moment(at, viewer.zone)


def _text(event: Event, by: str, viewer: Viewer) -> str:
    is_attachment = event.kind is EventKind.DOWNLOADED and event.detail.startswith("attachment")
    text = viewer.language.gettext(_ATTACHMENT_DOWNLOADED if is_attachment else EVENTS_IN_WORDS[event.kind])
    return text % {"by": by} if "%(by)s" in text else text


def _detail(event: Event, viewer: Viewer) -> str:
    is_ours = event.kind in (EventKind.FAILED, EventKind.STOPPED)
    return shown(viewer.language.gettext(event.detail) if is_ours else event.detail, _DETAIL_CHARACTERS)


def _actor_for_staff(actor: Actor, row: Row, viewer: Viewer) -> str:
    """Return who acted, in words, with the name, the way and the client's address."""
    _ = viewer.language.gettext
    match actor.kind:
        case ActorKind.OPERATOR | ActorKind.RECIPIENT:
            where = " · ".join(filter(None, [actor.via.partition("/")[0], actor.address]))
            name = _isolated(shown_address(actor.name) or row.mailbox)
            return _(N_("by %(name)s")) % {"name": f"{name} ({where})" if where else name}
        case ActorKind.RULE:
            return _(N_("by a rule for %(sender)s")) % {"sender": _isolated(shown_address(actor.name))}
        case _:
            return _(N_("automatically"))


def _actor(event: Event, row: Row, viewer: Viewer) -> str:
    """Return who acted, in words.

    Operators' names and clients' addresses are shown to operators only.
    """
    _, actor = viewer.language.gettext, event.actor
    match actor.kind:
        case ActorKind.OPERATOR:
            return _(N_("by an administrator"))
        case ActorKind.RULE if scope_kind(actor.via) is ScopeKind.RECIPIENT:
            return _(N_("by your rule for %(sender)s")) % {"sender": _isolated(shown_address(actor.name))}
        case ActorKind.RULE:
            return _(N_("by a rule of your administrator"))
        case ActorKind.RECIPIENT if actor.name == viewer.reader or not (actor.name or row.mailbox):
            return _(N_("through a link in a digest")) if actor.via.partition("/")[0] == "link" else _(N_("by you"))
        case ActorKind.RECIPIENT:
            # Without a name it was recorded when the mailbox had a single reader.
            return _(N_("by %(name)s")) % {"name": _isolated(actor_name(actor) or row.mailbox)}
        case _:
            return _(N_("automatically"))


def _isolated(text: str) -> str:
    """Return a text whose direction does not affect the sentence around it (UAX #9, 2.7), as `<bdi>` does in HTML."""
    return f"\u2068{text}\u2069"
