"""All notes in the store: names, types and text formats. Text formats do not change, since other versions read them.

The stores themselves also use "store.heartbeat", and the file store "store.boot_id" and "store.durable_until".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import Generic, NamedTuple, TypeVar
from uuid import UUID

from portal.model.message import identity
from portal.model.record import record
from portal.stores.contracts import Store
from portal.stores.records import Sizes

T = TypeVar("T")


@record(frozen=True, slots=True)
class Note(Generic[T]):
    """One note."""

    name: str
    to_text: Callable[[T], str]
    from_text: Callable[[str], T]

    def get(self, store: Store) -> T | None:
        """Return the note, or None. Raises StoreUnavailable."""
        text = store.notes.get(self.name)
        return None if text is None else self.from_text(text)

    def text(self, store: Store) -> str | None:
        """Return the note's text, to compare and set it. Raises StoreUnavailable."""
        return store.notes.get(self.name)

    def set(self, store: Store, value: T) -> None:
        """Set the note. Raises StoreUnavailable."""
        store.notes.set(self.name, self.to_text(value))

    def set_default(self, store: Store, value: T) -> T:
        """Set the note unless it is set; return its value afterwards. Raises StoreUnavailable."""
        return self.from_text(store.notes.set_default(self.name, self.to_text(value)))


class TemplateFailure(NamedTuple):
    """The last failure of one of the site's own templates."""

    changed_ns: int  # modification time of its file, as in `stat`
    what: str  # its name and the error


class MapState(NamedTuple):
    """The block map on one host (`portal.policy.block_map`)."""

    change: UUID | None  # the last change of rules that it contains
    at: datetime  # since when it is in this state
    lines: int
    left_out: int
    problem: str  # why it could not be written since ``at``, "" if it could


class Period(NamedTuple):
    """The time from ``since`` to ``until``."""

    since: datetime
    until: datetime


class Expired(NamedTuple):
    """Until when deliveries that ended were forgotten (`portal.policy.retention`), with these retentions."""

    version: str
    until: datetime


class IdRange(NamedTuple):
    """The ids from ``first`` to ``last``."""

    first: UUID
    last: UUID


class Reported(NamedTuple):
    """The people who have got the report of a month (`digest.report`)."""

    month: str  # 2026-01
    people: tuple[str, ...]


class Measurement(NamedTuple):
    """The last sizes of the store, and when they are measured again (`digest.sizes`)."""

    due_at: datetime
    sizes: Sizes


class DayCount(NamedTuple):
    """A number of events on one UTC day."""

    day: date
    number: int


def _stopped_to_text(stopped: Mapping[str, datetime]) -> str:
    return json.dumps({recipient: at.isoformat() for recipient, at in stopped.items()})


def _stopped_from_text(text: str) -> dict[str, datetime]:
    # Up to version 0.1.1 identities had U-labels.
    return {identity(recipient): datetime.fromisoformat(at) for recipient, at in json.loads(text).items()}


def _measurement_to_text(found: Measurement) -> str:
    oldest = found.sizes.oldest_unannounced_at
    sizes = found.sizes._asdict() | {"oldest_unannounced_at": oldest and oldest.isoformat()}
    return json.dumps({"due_at": found.due_at.isoformat(), "sizes": sizes})


def _measurement_from_text(text: str) -> Measurement:
    found = json.loads(text)
    oldest = found["sizes"].pop("oldest_unannounced_at")
    sizes = Sizes(**found["sizes"], oldest_unannounced_at=oldest and datetime.fromisoformat(oldest))
    return Measurement(datetime.fromisoformat(found["due_at"]), sizes)


def _text(name: str) -> Note[str]:
    return Note(name, str, str)


LINK_KEY = _text("links.key")  # the fingerprint of the newest signing key

ALIASES = _text("people.version")  # the version of the alias file that was last applied
ALIASES_LAST_GOOD = _text("people.last_good")  # the last valid text of the alias file
STOPPED_ALIASES: Note[Mapping[str, datetime]] = Note("people.stopped", _stopped_to_text, _stopped_from_text)

SENT_AT = Note("digests.sent_at", datetime.isoformat, datetime.fromisoformat)  # end of the last run that sent a digest
RUN_SECONDS: Note[float] = Note("digests.run_seconds", "{:.3f}".format, float)  # duration of the last run
# The beginning of an outage of digests that the administrator was notified of; None: it is over.
OUTAGE: Note[datetime | None] = Note(
    "digests.outage",
    lambda since: since.isoformat() if since else "",
    lambda text: datetime.fromisoformat(text) if text else None,
)
# The period in which the daily job found no jump of the clock; it ends with the job's last run.
CLOCK: Note[Period] = Note(
    "digest.clock",
    lambda period: " ".join(moment.isoformat() for moment in period),
    lambda text: Period(*map(datetime.fromisoformat, text.split())),
)
# Since when Rspamd rejects messages to be learned, so that learning is paused; None: it does not.
LEARNING_PAUSED: Note[datetime | None] = Note(
    "learning.paused",
    lambda since: since.isoformat() if since else "",
    lambda text: datetime.fromisoformat(text) if text else None,
)
LEARNED_ON: Note[DayCount] = Note(
    "learning.learned_on",
    lambda count: f"{count.day} {count.number}",
    lambda text: DayCount(date.fromisoformat(text.split()[0]), int(text.split()[1])),
)
EXPIRED: Note[Expired] = Note(
    "retention.expired",
    lambda expired: f"{expired.until.isoformat()} {expired.version}",
    lambda text: Expired(text.partition(" ")[2], datetime.fromisoformat(text.partition(" ")[0])),
)
TEMPLATE_FAILED: Note[TemplateFailure] = Note(
    "site.template_failed",
    lambda failure: f"{failure.changed_ns} {failure.what}",
    lambda text: TemplateFailure(int(text.partition(" ")[0] or 0), text.partition(" ")[2]),
)

REPORTED: Note[Reported] = Note(
    "report.sent",
    lambda reported: json.dumps([reported.month, *reported.people]),
    lambda text: Reported((found := json.loads(text))[0], tuple(found[1:])),
)
SIZES = Note("store.sizes", _measurement_to_text, _measurement_from_text)
SIZES_FAILED = Note("store.sizes_failed", datetime.isoformat, datetime.fromisoformat)  # not counted before
STATISTICS_DUE = Note("statistics.due", datetime.isoformat, datetime.fromisoformat)  # the next count
# The ids for which the names of attachments were read (`digest.attachments`); None: for none yet.
NAMES_READ: Note[IdRange | None] = Note(
    "attachments.read",
    lambda ids: f"{ids.first} {ids.last}" if ids else "",
    lambda text: IdRange(*map(UUID, text.split())) if text else None,
)

FAMILY = _text("store.family")  # the same in stores that are copies of each other
COPY_PROBE = _text("copy.probe")  # a random text that shows whether two URLs name the same store
COPY_NOT_KEPT = Note("copy.not_kept", str, UUID)  # a message that a copy could not read back from its target
# Messages of the last copy that were not read back yet; None: the copy is complete.
COPY_IN_PROGRESS: Note[IdRange | None] = Note(
    "copy.at_work",
    lambda ids: f"{ids.first} {ids.last}" if ids else "",
    lambda text: IdRange(*map(UUID, text.split())) if text else None,
)


def alarm(subject: str) -> Note[datetime]:
    """Return the note with the time of a subject's last alarm. Older versions wrote more text after the time."""
    return Note(f"alarm {subject}", datetime.isoformat, lambda text: datetime.fromisoformat(text.partition(" ")[0]))


def block_map(host: str) -> Note[MapState]:
    """Return the note with the state of a host's block map."""
    return Note(f"block_map {host}", _map_state_to_text, _map_state_from_text)


def _map_state_to_text(state: MapState) -> str:
    change = str(state.change) if state.change else None
    return json.dumps(state._replace(change=None)._asdict() | {"change": change, "at": state.at.isoformat()})


def _map_state_from_text(text: str) -> MapState:
    found = json.loads(text)
    change = UUID(found["change"]) if found["change"] else None
    return MapState(**found | {"change": change, "at": datetime.fromisoformat(found["at"])})
