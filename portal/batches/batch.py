"""A batch: one action on several deliveries, as a reader asked for it. Values and their JSON, without I/O.

Each batch is a background job (`store.jobs`): its arguments say what to do, its progress what was done. A small batch
is run by the request that made it, a large one by the digest process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field, replace
from datetime import datetime
from enum import StrEnum
from ipaddress import ip_network
from typing import Any
from uuid import UUID

from portal.model.message import ANY, RELEASABLE, Actor, Delivery, DeliveryId, Filter, State, Tier
from portal.model.record import record

KIND = "batch"  # of the job
NAMED = 50  # deliveries that are recorded by name for each outcome; a small batch records all of them


class Act(StrEnum):
    """The action of a batch. The values are kept in stores, and are those of forms."""

    RELEASE = "release"
    DELETE = "delete"
    RESTORE = "restore"
    REQUEST = "ask"  # request release
    WITHDRAW = "withdraw"  # withdraw release requests
    REFUSE = "refuse"  # deny release requests
    REANNOUNCE = "reannounce"  # put into the next digest again


# Of batches; the others are for staff.
READER_ACTS = (Act.RELEASE, Act.DELETE, Act.RESTORE, Act.REQUEST, Act.WITHDRAW)


class Outcome(StrEnum):
    """The outcome of a batch for one delivery. The values are kept in stores."""

    RELEASED = "released"
    RELEASING = "releasing"  # the release was begun: it is tried again until the mail server answers
    DELETED = "deleted"
    RESTORED = "restored"
    REQUESTED = "requested"
    WITHDRAWN = "withdrawn"
    REFUSED = "refused"
    REANNOUNCED = "reannounced"
    TO_CHECK = "to-check"  # dangerous, its reader did not confirm its release, or more harmful than was confirmed
    NOT_ALLOWED = "not-allowed"  # only an administrator may release it
    NOT_NEEDED = "not-needed"  # no release was requested, since the reader may release it
    ALREADY_RELEASED = "already-released"  # these five: the action does not change messages in this state
    ALREADY_RELEASING = "already-releasing"
    LET_THROUGH = "let-through"
    ALREADY_DELETED = "already-deleted"
    ALREADY_REQUESTED = "already-requested"
    NOT_DELETED = "not-deleted"  # so its deletion cannot be undone
    CHANGED = "changed"  # another tab, reader or rule had changed it before
    FAILED = "failed"  # the release failed: it is held again, with the reason

    @property
    def is_done(self) -> bool:
        """True if the action was performed."""
        return self in _DONE

    @property
    def is_moot(self) -> bool:
        """True if the action does not change messages in their state."""
        return self in _MOOT


_DONE = frozenset(
    {
        *(Outcome.RELEASED, Outcome.RELEASING, Outcome.DELETED, Outcome.RESTORED, Outcome.REQUESTED),
        *(Outcome.WITHDRAWN, Outcome.REFUSED, Outcome.REANNOUNCED),
    }
)
# The outcome of an action that was performed, by the state of the delivery afterwards.
DONE_IN_STATE = {
    (Act.RELEASE, State.RELEASED): Outcome.RELEASED,
    (Act.RELEASE, State.RELEASING): Outcome.RELEASING,
    (Act.DELETE, State.DELETED): Outcome.DELETED,
    **{
        (act, state): outcome
        for state in RELEASABLE
        for act, outcome in (
            (Act.RESTORE, Outcome.RESTORED),
            (Act.WITHDRAW, Outcome.WITHDRAWN),
            (Act.REFUSE, Outcome.REFUSED),
        )
    },
    (Act.REQUEST, State.REQUESTED): Outcome.REQUESTED,
    (Act.REANNOUNCE, State.HELD): Outcome.REANNOUNCED,
}
# The states that an action of a reader changes. What a rule let through is in the inbox: nobody sends it once more
# together with others.
CHANGES: Mapping[Act, frozenset[State]] = {
    Act.RELEASE: RELEASABLE - {State.PASSED},
    Act.DELETE: RELEASABLE | {State.REQUESTED},
    Act.RESTORE: frozenset({State.DELETED}),
    Act.REQUEST: RELEASABLE,
    Act.WITHDRAW: frozenset({State.REQUESTED}),
}
_ALREADY = {
    State.RELEASED: Outcome.ALREADY_RELEASED,
    State.RELEASING: Outcome.ALREADY_RELEASING,
    State.PASSED: Outcome.LET_THROUGH,
    State.DELETED: Outcome.ALREADY_DELETED,
    State.REQUESTED: Outcome.ALREADY_REQUESTED,
}
_MOOT = frozenset({*_ALREADY.values(), Outcome.NOT_DELETED})


def unchanged(act: Act, state: State) -> Outcome:
    """Return the outcome of a reader's action for a delivery in a state that it does not change."""
    return Outcome.NOT_DELETED if act is Act.RESTORE else _ALREADY.get(state, Outcome.CHANGED)


@record(frozen=True, slots=True)
class Selection:
    """The deliveries of a batch: those with these keys or, without keys, all that match when the batch reaches them."""

    keys: tuple[DeliveryId, ...] = ()
    criteria: Filter = ANY  # with states and words, without recipients
    identities: frozenset[str] = frozenset()  # whose messages match: the list that the reader saw had these
    ceiling: DeliveryId | None = None  # newer deliveries do not match: the reader had not seen them
    excluded: frozenset[DeliveryId] = frozenset()


@record(frozen=True, slots=True)
class Batch:
    """The request of a reader."""

    act: Act
    selection: Selection
    confirmed: frozenset[DeliveryId] = frozenset()  # suspicious ones that are released: the reader saw their cautions
    undoes: UUID | None = None  # the batch whose deletions are restored
    reason: str = ""  # of release requests, as typed

    def to_json(self) -> dict[str, Any]:
        """Return the arguments of the job. Equal batches have equal arguments."""
        chosen = self.selection
        return {
            "act": self.act.value,
            "keys": [*map(text_of, chosen.keys)],
            "criteria": criteria_to_json(chosen.criteria),
            "identities": sorted(chosen.identities),
            "ceiling": text_of(chosen.ceiling) if chosen.ceiling else None,
            "excluded": sorted(map(text_of, chosen.excluded)),
            "confirmed": sorted(map(text_of, self.confirmed)),
            "undoes": str(self.undoes) if self.undoes else None,
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Batch:
        """Return the batch of a job's arguments."""
        selection = Selection(
            keys=tuple(map(key_of, found["keys"])),
            criteria=criteria_from_json(found["criteria"]),
            identities=frozenset(found["identities"]),
            ceiling=key_of(found["ceiling"]) if found["ceiling"] else None,
            excluded=frozenset(map(key_of, found["excluded"])),
        )
        undoes = UUID(found["undoes"]) if found["undoes"] else None
        confirmed = frozenset(map(key_of, found["confirmed"]))
        # A job that an earlier version made has no reason.
        return cls(Act(found["act"]), selection, confirmed, undoes, found.get("reason", ""))


@record(frozen=True, slots=True)
class Progress:
    """The progress of a batch."""

    total: int = 0  # deliveries that were found so far
    is_counted: bool = False  # they are all
    cursor: DeliveryId | None = None  # of the pass over the deliveries, newest first: None at its beginning
    is_last: bool = False  # no deliveries follow those that are planned
    planned: tuple[DeliveryId, ...] = ()  # deliveries that are acted on next, or were when the process died
    counts: Mapping[Outcome, int] = field(default_factory=dict)
    named: Mapping[Outcome, tuple[DeliveryId, ...]] = field(default_factory=dict)  # at most `NAMED` of each
    is_queueing: bool = False  # the mail server cannot be reached: releases are queued without trying it
    waits_for: str = ""  # of a mass act: a `mass.Waiting`
    waits: int = 0  # how often in a row it had to wait
    busy_seconds: float = 0.0  # how long processes have run it
    ends_as: str = ""  # of a mass act whose recipients are mailed now: its `mass.Status` after that
    mailed_until: str = ""  # the entry of the audit up to which recipients were mailed
    is_mailed: bool = False  # the mails to all recipients were queued
    mailed: int = 0  # people

    @property
    def done(self) -> int:
        """The number of deliveries that have an outcome."""
        return sum(self.counts.values())

    @property
    def is_finished(self) -> bool:
        """True if every delivery has an outcome."""
        return self.is_counted and self.is_last and not self.planned

    def with_outcomes(self, outcomes: Iterable[tuple[DeliveryId, Outcome]]) -> Progress:
        """Return the progress after these outcomes. Their deliveries are planned no longer."""
        counts, named = dict(self.counts), dict(self.named)
        reached = set()
        for key, outcome in outcomes:
            reached.add(key)
            counts[outcome] = counts.get(outcome, 0) + 1
            if len(named.get(outcome, ())) < NAMED:
                named[outcome] = (*named.get(outcome, ()), key)
        left = tuple(key for key in self.planned if key not in reached)
        return replace(self, planned=left, counts=counts, named=named)

    def to_json(self) -> dict[str, Any]:
        """Return the progress of the job."""
        return {
            "total": self.total,
            "is_counted": self.is_counted,
            "cursor": text_of(self.cursor) if self.cursor else None,
            "is_last": self.is_last,
            "planned": [*map(text_of, self.planned)],
            "counts": dict(self.counts),
            "named": {outcome: [*map(text_of, keys)] for outcome, keys in self.named.items()},
            "is_queueing": self.is_queueing,
            "waits_for": self.waits_for,
            "waits": self.waits,
            "busy_seconds": round(self.busy_seconds, 3),
            "ends_as": self.ends_as,
            "mailed_until": self.mailed_until,
            "is_mailed": self.is_mailed,
            "mailed": self.mailed,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Progress:
        """Return the progress of a job, which is empty at first."""
        if not found:
            return cls()
        return cls(
            total=found["total"],
            is_counted=found["is_counted"],
            cursor=key_of(found["cursor"]) if found["cursor"] else None,
            is_last=found["is_last"],
            planned=tuple(map(key_of, found["planned"])),
            counts={Outcome(name): count for name, count in found["counts"].items()},
            named={Outcome(name): tuple(map(key_of, keys)) for name, keys in found["named"].items()},
            is_queueing=found["is_queueing"],
            waits_for=found["waits_for"],
            waits=found["waits"],
            busy_seconds=found["busy_seconds"],
            ends_as=found["ends_as"],
            mailed_until=found["mailed_until"],
            is_mailed=found["is_mailed"],
            mailed=found["mailed"],
        )


def actor_of(batch_id: UUID, actor: Actor) -> Actor:
    """Return the author of a batch's events. The history names the batch, so that it is undone as a whole."""
    return replace(actor, via=f"{actor.via}/{batch_id}")


def is_of(batch_id: UUID, actor: Actor) -> bool:
    """Return whether an event was caused by this batch."""
    return actor.via.partition("/")[2] == str(batch_id)


def text_of(key: DeliveryId) -> str:
    """Return a delivery's id as a text, as in forms."""
    return f"{key.message_id}.{key.number}"


def key_of(text: str) -> DeliveryId:
    """Return the delivery's id of `text_of`."""
    id, _, number = text.partition(".")
    return DeliveryId(UUID(id), int(number))


def newest_first(deliveries: Iterable[Delivery]) -> list[Delivery]:
    """Return deliveries in the order of lists."""
    return sorted(deliveries, key=lambda each: each.key, reverse=True)


def criteria_to_json(criteria: Filter) -> dict[str, Any]:
    """Return search criteria for the arguments of a job."""
    return {
        "states": sorted(criteria.states),
        "words": criteria.words,
        "sender": criteria.sender,
        "since": criteria.since.isoformat() if criteria.since else None,
        "until": criteria.until.isoformat() if criteria.until else None,
        "tiers": sorted(criteria.tiers),
        "reason": criteria.reason,
        "has_attachment": criteria.has_attachment,
        "attachment": criteria.attachment,
        "like": text_of(criteria.like) if criteria.like else None,
        "recipient": criteria.recipient,
        "also": [*criteria.also],
        "score_min": criteria.score_min,
        "score_max": criteria.score_max,
        "symbols": [*criteria.symbols],
        "actions": sorted(criteria.actions),
        "client": str(criteria.client) if criteria.client else None,
        "size_min": criteria.size_min,
        "size_max": criteria.size_max,
        "sender_domain": criteria.sender_domain,
        "domains": None if criteria.domains is None else sorted(criteria.domains),
        "rule": criteria.rule,
    }


def criteria_from_json(found: Mapping[str, Any]) -> Filter:
    """Return the criteria of `criteria_to_json`."""
    return Filter(
        states=frozenset(map(State, found["states"])),
        words=found["words"],
        sender=found["sender"],
        since=datetime.fromisoformat(found["since"]) if found["since"] else None,
        until=datetime.fromisoformat(found["until"]) if found["until"] else None,
        tiers=frozenset(map(Tier, found["tiers"])),
        reason=found["reason"],
        has_attachment=found["has_attachment"],
        attachment=found["attachment"],
        like=key_of(found["like"]) if found["like"] else None,
        recipient=found["recipient"],
        also=tuple(found["also"]),
        score_min=found["score_min"],
        score_max=found["score_max"],
        symbols=tuple(found["symbols"]),
        actions=frozenset(found["actions"]),
        client=ip_network(found["client"]) if found["client"] else None,
        size_min=found["size_min"],
        size_max=found["size_max"],
        sender_domain=found["sender_domain"],
        domains=None if found["domains"] is None else frozenset(found["domains"]),
        rule=found["rule"],
    )
