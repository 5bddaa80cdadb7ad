"""Training of Rspamd's statistics by what people do with held messages: they release one, or confirm that it is spam.

Statistics are the same for everybody, and one person who releases twenty messages of spam makes them useless
(`docs/decisions/learning.md`). So a decision of a recipient is a *vote*, and messages are learned once several people
agree on them and nobody disagrees. A decision of an operator is learned at once. Requests only record votes and
queue background jobs; the digest process posts the messages.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any
from uuid import UUID

from portal.model.audit import Act, AuditEntry
from portal.model.errors import NotFound, StoreUnavailable
from portal.model.message import (
    Actor,
    ActorKind,
    Delivery,
    DeliveryId,
    Event,
    EventKind,
    ScanOutcome,
    State,
    Tier,
)
from portal.model.record import record
from portal.model.vote import Label, Vote, agree, campaign_of
from portal.stores import Store, notes
from portal.stores.lifecycle import mailbox
from portal.stores.records import Job

if TYPE_CHECKING:
    from portal.rspamd import Rspamd

log = logging.getLogger("quarantine.learning")

LEARN = "learn"  # the kind of the jobs
COUNTER = "learned."  # of messages posted, followed by the label and the HTTP status
VOTES_PER_DAY = 20  # of one recipient that count
LEARNED_PER_DAY = 500  # messages, of the site
_POST_SECONDS = 10.0
_UNDONE = 100  # messages of a campaign that are undone at once
_EVENTS = 1000  # deliveries whose events `last_events` returns
_KINDS = {Label.HAM: EventKind.LEARNED_HAM, Label.SPAM: EventKind.LEARNED_SPAM}
_LABELS = {kind: label for label, kind in _KINDS.items()}
_STATES = {Label.HAM: State.RELEASED, Label.SPAM: State.DELETED}  # in which the decision was not taken back
_LEARNED = (200, 208)  # 208: it was learned before
_SUCCESS = (*_LEARNED, 204)  # 204: it has too few words, or the statistics are sure of it already


class Result(Enum):
    """The next step for a job of kind `LEARN` after it ran."""

    DONE = 1
    SKIPPED = 2  # nothing was posted
    WAIT = 3  # the message waits for its virus scan
    FAILED = 4  # try again
    REJECTED = 5  # Rspamd accepts no message of this portal now
    MISCONFIGURED = 6  # Rspamd cannot learn this one: its configuration is wrong


# 429: too many wrong passwords from this host (Rspamd 4.1.5 and later). 404: no such classifier.
_RESULTS = {
    401: Result.REJECTED,
    403: Result.REJECTED,
    429: Result.REJECTED,
    404: Result.MISCONFIGURED,
}


@record(frozen=True, slots=True)
class Learning:
    """Records the decisions of people, and has Rspamd learn messages.

    ``rspamd``: None if `rspamd.url` is not set. ``learn`` and ``agreed``: the settings. ``readers``: address → the
    people who read it.
    """

    store: Store
    rspamd: Rspamd | None
    learn: str
    agreed: int
    readers: Callable[[str], Sequence[str]]

    def counts(self, kind: ActorKind) -> bool:
        """Return whether decisions of actors of this kind may be learned."""
        if kind is ActorKind.OPERATOR:
            return self.learn != "off"
        return kind is ActorKind.RECIPIENT and self.learn == "agreed"

    def decided(self, delivery: Delivery, label: Label, actor: Actor, now: datetime) -> None:
        """Record that a person released a delivery (ham) or confirmed it as spam. Errors are logged and not raised."""
        if not self.counts(actor.kind) or (label is Label.HAM and delivery.message.verdict_tier is not Tier.SPAM):
            return
        try:
            person = self._person(delivery, actor)
            vote = Vote(campaign_of(delivery.message), person.who, label, delivery.key, now)
            limit = LEARNED_PER_DAY if vote.is_operator else VOTES_PER_DAY
            if not self.store.votes.cast(vote, limit, now - timedelta(days=1)):
                log.info("vote not counted id=%s: this person has cast %d in a day", delivery.id, limit)
            elif vote.is_operator:
                self._queue([vote], label, person, now)
            else:
                votes = self._agreeing(vote.campaign, label)
                self._queue(self._unlearned(votes), label, person, now, campaign=vote.campaign)
        except StoreUnavailable as error:
            log.error("vote not recorded id=%s: %s", delivery.id, error)

    def withdrawn(self, delivery: Delivery, actor: Actor, now: datetime) -> None:
        """Record that a delivery is not spam after all. Errors are logged and not raised.

        ``actor``: who had confirmed that it is. If an operator had, the message is learned as ham. If recipients had
        agreed, it is learned as ham once all of them have withdrawn: one of them alone must not train anything.
        """
        try:
            person = self._person(delivery, actor)
            vote = Vote(campaign_of(delivery.message), person.who, Label.SPAM, delivery.key, now)
            if not self.store.votes.withdraw(vote):
                return
            undone = [vote]
            if not vote.is_operator:
                undone = [*self.store.votes.of_campaign(vote.campaign, Label.NONE, _UNDONE)]
                if not agree(undone, self.store.votes.of_campaign(vote.campaign, Label.SPAM, 1), self.agreed):
                    return
            self._queue(undone, Label.HAM, person, now, undo=True)
        except StoreUnavailable as error:
            log.error("vote not withdrawn id=%s: %s", delivery.id, error)

    def unlearn(self, deliveries: Sequence[Delivery], actor: Actor, now: datetime) -> Label | None:
        """Queue that a message is learned as the opposite of what it was learned as. Return what that was.

        Returns None if it was not learned. ``deliveries``: all of the message. Recipients who agree do not have its
        campaign learned like that again. Raises StoreUnavailable.
        """
        learned = self._learned([delivery.key for delivery in deliveries])
        if learned is None:
            return None
        label, key = learned
        vote = Vote(campaign_of(deliveries[0].message), actor.who, label.opposite, key, now)
        self.store.votes.cast(vote, LEARNED_PER_DAY, now - timedelta(days=1))
        self._queue([vote], label.opposite, actor, now, undo=True)
        delivery = next(each for each in deliveries if each.key == key)
        detail = f"learned as {label}"
        self.store.audit.record(AuditEntry.new(now, Act.UNLEARNED, actor, delivery.recipient, detail, delivery=key))
        return label

    def run(self, job: Job, now: datetime) -> tuple[Result, str]:
        """Run one job. Return what to do with it, and the reason for people if it failed.

        Raises StoreUnavailable, BodyMissing, BodyDamaged, and RspamdUnavailable if Rspamd does not answer.
        """
        label, undo = Label(job.arguments["as"]), bool(job.arguments.get("undo"))
        key = DeliveryId(UUID(job.arguments["message"]), job.arguments["number"])
        try:
            deliveries = self.store.deliveries.of_message(key.message_id)
        except NotFound:
            return Result.SKIPPED, ""  # purged
        delivery = next((each for each in deliveries if each.key == key), None)
        if self.rspamd is None or delivery is None or not delivery.recipient:
            return Result.SKIPPED, ""
        learned = self._learned([each.key for each in deliveries])
        if (undo and learned is None) or (learned is not None and learned[0] is label):
            return Result.SKIPPED, ""
        people = [_name(job.actor.who)]
        if not undo:
            scan = delivery.message.scan
            if scan is not None and scan.outcome is ScanOutcome.WAITING:
                return Result.WAIT, ""
            if not self._may_learn(delivery, label, job.actor.kind):
                return Result.SKIPPED, ""
            if campaign := job.arguments.get("campaign"):
                people = [_name(vote.person) for vote in self._agreeing(bytes.fromhex(campaign), label)]
            if not people:
                return Result.SKIPPED, ""  # somebody has disagreed since
            if not self._within_limit(now):
                log.warning("not learned id=%s: %d messages were learned today", key.message_id, LEARNED_PER_DAY)
                return Result.SKIPPED, ""
        return self._post(self.rspamd, delivery, label, people, now)

    def _may_learn(self, delivery: Delivery, label: Label, kind: ActorKind) -> bool:
        """Return whether a decision was not taken back and may be learned."""
        return self.counts(kind) and delivery.message.tier is Tier.SPAM and delivery.state is _STATES[label]

    def _post(
        self, rspamd: Rspamd, delivery: Delivery, label: Label, people: Iterable[str], now: datetime
    ) -> tuple[Result, str]:
        message = delivery.message
        body = self.store.messages.body(message.id)
        status = rspamd.learn(label, body, message.size_bytes, delivery.address, _POST_SECONDS)
        with suppress(StoreUnavailable):
            self.store.notes.add_counters({f"{COUNTER}{label}.{status}": 1})
        if status in _LEARNED:
            detail = f"answer {status}, by {', '.join(people)}"
            self.store.deliveries.record(delivery.key, Event(now, _KINDS[label], Actor(ActorKind.SYSTEM), detail))
        if status in _SUCCESS:
            log.info("learned id=%s as=%s status=%d", message.id, label, status)
            return Result.DONE, ""
        log.warning("not learned id=%s as=%s status=%d", message.id, label, status)
        result = _RESULTS.get(status, Result.FAILED if status >= 500 else Result.DONE)
        return result, f"Rspamd answers {status} to /learn{label}"

    def _person(self, delivery: Delivery, actor: Actor) -> Actor:
        """Return the actor under a name that is the same for all addresses that a person reads alone."""
        if actor.kind is ActorKind.OPERATOR:
            return actor
        readers = self.readers(delivery.recipient)
        name = actor.name or (readers[0] if len(readers) == 1 else delivery.recipient)
        return replace(actor, name=mailbox(name))

    def _agreeing(self, campaign: bytes, label: Label) -> Sequence[Vote]:
        """Return the last votes of recipients with this label, twice as many as must agree; none if they do not."""
        votes = self.store.votes.of_campaign(campaign, label, 2 * self.agreed)
        opposing = self.store.votes.of_campaign(campaign, label.opposite, 1)
        return [vote for vote in votes if not vote.is_operator] if agree(votes, opposing, self.agreed) else []

    def _unlearned(self, votes: Sequence[Vote]) -> Sequence[Vote]:
        """Return those of these votes of one label whose delivery has no event of it."""
        events = self.store.deliveries.last_events([vote.delivery for vote in votes])
        return [v for v in votes if _KINDS[v.label] not in {event.kind for event in events.get(v.delivery, ())}]

    def _queue(
        self,
        votes: Iterable[Vote],
        label: Label,
        person: Actor,
        now: datetime,
        *,
        campaign: bytes = b"",
        undo: bool = False,
    ) -> None:
        """Queue a job for each message of these votes."""
        for message_id, number in {vote.delivery.message_id: vote.delivery for vote in votes}.values():
            arguments: dict[str, Any] = {"message": str(message_id), "number": number, "as": label}
            arguments |= {"campaign": campaign.hex()} if campaign else {}
            arguments |= {"undo": True} if undo else {}
            self.store.jobs.add(LEARN, arguments, person, now)

    def _learned(self, keys: Sequence[DeliveryId]) -> tuple[Label, DeliveryId] | None:
        """Return as what a message was last learned, and for which of its deliveries."""
        last: tuple[datetime, Label, DeliveryId] | None = None
        for start in range(0, len(keys), _EVENTS):
            for key, events in self.store.deliveries.last_events(keys[start : start + _EVENTS]).items():
                # The order of a delivery's events does not depend on the clocks of several hosts.
                latest = next((event for event in reversed(events) if event.kind in _LABELS), None)
                if latest is not None and (last is None or latest.at >= last[0]):
                    last = latest.at, _LABELS[latest.kind], key
        return last and last[1:]

    def _within_limit(self, now: datetime) -> bool:
        """Count a message to be learned today. Return False if the limit is reached."""
        text, today = notes.LEARNED_ON.text(self.store), now.date()
        count = notes.LEARNED_ON.from_text(text) if text else notes.DayCount(today, 0)
        number = count.number if count.day == today else 0
        if number >= LEARNED_PER_DAY:
            return False
        # Another process may count at the same moment: then one of both messages is not counted.
        new = notes.LEARNED_ON.to_text(notes.DayCount(today, number + 1))
        self.store.notes.compare_and_set(notes.LEARNED_ON.name, text, new, now)
        return True


def _name(who: str) -> str:
    """Return a person for the history: an address, or "operator:NAME"."""
    return who.removeprefix(f"{ActorKind.RECIPIENT}:")
