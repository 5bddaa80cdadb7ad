"""Decision about an incoming message: is it held, in which tier, for which recipients, and who is notified.

All messages are held through this module. The exporter's endpoint uses it for messages that Rspamd posts,
`import-original` for messages that the original script stored.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from threading import Semaphore
from time import monotonic
from uuid import UUID

from portal.assemble import Parts
from portal.exporter import Posted, content_digest, is_blocked
from portal.model.errors import AlreadyDone, BodyDamaged, NotFound, QuarantineError, RulesInUse, StoreUnavailable
from portal.model.message import (
    WAITING,
    Actor,
    ActorKind,
    Delivery,
    Event,
    EventKind,
    Export,
    Scan,
    ScanOutcome,
    Start,
    State,
    Tier,
)
from portal.model.rule import BLOCKED, Effect
from portal.model.text import N_
from portal.policy.decision import Decision, WhyNot, after_scan
from portal.scanning import POST_SECONDS
from portal.stores.contracts import NO_STARTS
from portal.stores.lifecycle import state_before
from portal.stores.records import Held

log = logging.getLogger("quarantine.ingest")

RAISED = N_("the message arrived again, and was found to be more dangerous")
NOT_DELIVERED = N_("the message arrived again, and was not delivered")
_SYSTEM = Actor(ActorKind.SYSTEM)
_TRIES = 3  # to answer a known message while its recipients act on it
_LEFT_OUT = (State.DELETED, State.REQUESTED)  # states of deliveries that a known message does not pass to again


class Result(StrEnum):
    """Result of `Ingest.hold`. The values are the status in the endpoint's answer."""

    HELD = "held"
    KNOWN = "known"  # it was held before
    NOT_SELECTED = "not-selected"  # this portal sent it


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result, and the id of the held message if there is one."""

    result: Result
    id: UUID | None = None
    deliver: tuple[str, ...] = ()  # recipients as posted to whom Rspamd delivers the message at once


def _starts(export: Export, decisions: Mapping[str, Decision], passing: State) -> dict[str, Start]:
    """Return how the deliveries begin that are not held, by identity. Those that rules allow begin as ``passing``."""
    starts = {}
    by_rspamd = is_blocked(export)
    for who in export.held_for:
        decision = decisions[who]
        rule, effect = decision.rule, decision.effect
        if rule is not None and effect is Effect.BLOCK:
            starts[who] = Start(State.BLOCKED, rule.as_actor, rule.summary)
        elif by_rspamd:
            # The rule was removed after Rspamd read its copy of the rules.
            starts[who] = Start(State.BLOCKED, _SYSTEM, BLOCKED)
        elif rule is not None and effect is Effect.ALLOW:
            starts[who] = Start(passing, rule.as_actor, rule.summary)
    return starts


class Ingest:
    """Processing of parsed messages. One object per process, used by many threads.

    ``alarms``: notify the administrator when Rspamd withholds this portal's own messages or scans released messages.
    ``scans_at_once``: how many posts may wait for a virus scan at the same time.
    """

    def __init__(self, parts: Parts, *, alarms: bool = True, scans_at_once: int = 1) -> None:
        self._parts = parts
        self._alarms = alarms
        self._scans = Semaphore(scans_at_once)
        # Most sites have no rules, and looking for them at each post costs as much as holding it (row of the bench: "a
        # post without looking for rules while it is held"). Set once a rule was seen, and only read without a lock.
        self._has_rules = False

    def hold(self, posted: Posted, *, at: datetime | None = None) -> Outcome:
        """Hold a parsed message; on return it is durable.

        ``at``: the time at which another program held it, aware UTC; None: now. Raises StoreUnavailable; holding the
        message again is then always safe.
        """
        parts, export = self._parts, posted.export
        kind, id = (export.mark and parts.links.read_mark(export.mark)) or ("", None)
        if kind in ("digest", "mail"):
            self._alarm(
                "our own mail is withheld by Rspamd",
                "Rspamd exported a digest or sign-in message of this portal, so it withholds such messages from their "
                "recipients. Exempt them in Rspamd: see docs/install.md.",
            )
            log.error("not selected: own mail queue_id=%s mark=%s", export.queue_id, id)
            return Outcome(Result.NOT_SELECTED)
        if kind == "release" and id is not None and self._has_same_content(id, posted):
            self._alarm(
                "released mail is scanned again",
                "Rspamd exported a message that this portal had released, so relay.url points to a listener that "
                "scans. Released messages are withheld again. Set up a listener that does not scan: see "
                "docs/install.md.",
            )
            log.error("known: released mail came back queue_id=%s id=%s", export.queue_id, id)
            return Outcome(Result.KNOWN, id)
        tier, people = parts.tiers.of(export), parts.people
        if people.delimiter:
            export = replace(export, identities=tuple(map(people.held_as, export.recipients)))
        deliver: Sequence[str] = ()
        if at is None:
            held, deliver = self._hold_by_rules(posted, export, tier)
        else:  # rules are for mail that arrives: what another program held before stays held
            held = self._add(posted, export, tier, WAITING, NO_STARTS, at=at)
        result = Result.KNOWN if held.known else Result.HELD
        log.info(
            "%s id=%s queue_id=%s size=%d recipients=%d delivered=%d tier=%s flags=%s",
            result.value,
            held.id,
            export.queue_id,
            export.size_bytes,
            len(export.recipients),
            len(deliver),
            tier.value,
            ",".join(sorted(export.flags)) or "-",
        )
        for raised in held.raised:
            log.warning("tier raised id=%s tier=%s: exported again with a worse verdict", raised, tier.value)
        return Outcome(result, held.id, posted.as_posted(deliver) if deliver else ())

    def _hold_by_rules(self, posted: Posted, export: Export, tier: Tier) -> tuple[Held, Sequence[str]]:
        """Hold a message as the rules say. Return the recipients to whom Rspamd delivers it at once.

        A delivery is only `passed` with the commit that holds the message, so whatever fails before the answer, the
        sender's retry finds either no message or the same answer. Raises StoreUnavailable.
        """
        held = self._add_undecided(posted, export, tier)
        if held is None:
            held, passed = self._decide_and_add(posted, export, tier)
            if not held.known:
                return held, passed
        return held, self._pass_again(held.id, posted) if held.known else ()

    def _decide_and_add(self, posted: Posted, export: Export, tier: Tier) -> tuple[Held, Sequence[str]]:
        """Hold a message after its rules were looked up. Raises StoreUnavailable."""
        scanning, began = self._parts.scanning, monotonic()
        decisions = self._parts.rulebook.decide(export, tier, export.held_for, scanned=not scanning.required)
        passing = State.PASSED if posted.accepts_deliver else State.RELEASING
        scan, done = WAITING, None
        if scanning.is_on and any(each.why_not is WhyNot.NOT_SCANNED for each in decisions.values()):
            if posted.accepts_deliver:
                done = self._scan(posted, POST_SECONDS - (monotonic() - began))
            if done is None:  # the release waits for the scan, and stops if that finds anything
                passing = State.RELEASING
            if done is None or done.outcome is ScanOutcome.CLEAN:
                scan, decisions = done or WAITING, after_scan(decisions)
        starts = _starts(export, decisions, passing)
        held = self._add(posted, export, tier, scan, starts)
        if done is not None:
            self._record(held, done, tier)
        if starts and not held.known:
            self._count_hits(decisions, starts)
        is_passed = {who for who, start in starts.items() if start.state is State.PASSED}
        return held, [a for who, a in zip(export.held_for, export.recipients, strict=True) if who in is_passed]

    def _add_undecided(self, posted: Posted, export: Export, tier: Tier) -> Held | None:
        """Hold a message without looking for its rules. Return None if there are rules, or Rspamd obeyed one."""
        if self._has_rules or is_blocked(export):
            return None
        try:
            return self._add(posted, export, tier, WAITING, None)
        except RulesInUse:
            self._has_rules = True
            return None

    def _add(
        self,
        posted: Posted,
        export: Export,
        tier: Tier,
        scan: Scan,
        starts: Mapping[str, Start] | None,
        *,
        at: datetime | None = None,
    ) -> Held:
        """Hold a message. ``scan``: its scan if it is scanned at all."""
        parts = self._parts
        # A release that fails becomes held, and is announced then.
        silent = {who for who, start in (starts or {}).items() if start.state is not State.RELEASING}
        notified = {
            who
            for who, address in zip(export.held_for, export.recipients, strict=True)
            if parts.people.is_notified(address) and who not in silent
        }
        return parts.store.messages.add(
            export, posted.body, tier, notified, at=at, scan=scan if parts.scanning.is_on else None, starts=starts
        )

    def _scan(self, posted: Posted, seconds: float) -> Scan | None:
        """Scan a message that is not held yet. Return None if there is no result in time."""
        if seconds <= 0 or not self._scans.acquire(blocking=False):
            return None
        try:
            return self._parts.scanning.scan_posted(posted.body, self._parts.actions.now(), seconds)
        finally:
            self._scans.release()

    def _record(self, held: Held, scan: Scan, tier: Tier) -> None:
        """Record a scan that was done before the message was held, unless it is stored with it.

        A failure is logged: the background job repeats the scan. A known message has no such job and may have passed,
        so if something was found in it, StoreUnavailable is raised.
        """
        scanning = self._parts.scanning
        try:
            if held.known or scan.outcome is not ScanOutcome.CLEAN:
                worst, at = scanning.tiers.with_scan(tier, scan), self._parts.actions.now()
                self._parts.store.messages.record_scan(held.id, scan, worst, at)
            scanning.report(held.id, scan)
        except QuarantineError as error:
            if held.known and scan.outcome is ScanOutcome.FOUND:
                raise
            log.error("scan not recorded id=%s: %s", held.id, error)

    def _count_hits(self, decisions: Mapping[str, Decision], starts: Mapping[str, Start]) -> None:
        try:
            self._parts.rulebook.count({who: decisions[who] for who in starts if who in decisions})
        except QuarantineError as error:
            log.error("hits of rules not counted: %s", error)

    def _pass_again(self, id: UUID, posted: Posted) -> Sequence[str]:
        """Return the recipients whom a known message passed to before, whatever the rules say now.

        Rspamd may not have got the first answer. Deliveries on which their recipients acted since are left out. If the
        message became more dangerous, its deliveries are held from now on. If this post cannot deliver, they are
        released. Raises StoreUnavailable.
        """
        for _ in range(_TRIES):
            with suppress(AlreadyDone):  # somebody acted in the meantime
                return self._passed(self._parts.store.deliveries.of_message(id), posted)
        raise StoreUnavailable("the deliveries of a known message were changed again and again")

    def _passed(self, deliveries: Sequence[Delivery], posted: Posted) -> Sequence[str]:
        """See `_pass_again`. Raises AlreadyDone if a delivery is in another state by now."""
        self._record_left_out([each for each in deliveries if each.state in _LEFT_OUT])
        passed = [each for each in deliveries if each.state is State.PASSED]
        if passed and (passed[0].message.tier is not Tier.SPAM or not posted.accepts_deliver):
            self._hold_or_release(passed)
            return ()
        return [delivery.address for delivery in passed]

    def _record_left_out(self, deliveries: Sequence[Delivery]) -> None:
        """Record, once, of deliveries that had passed that this message was not delivered.

        So they are held when their deletion is undone or their release request ends. Raises AlreadyDone.
        """
        store, now = self._parts.store, self._parts.actions.now()
        events = store.deliveries.last_events([each.key for each in deliveries])
        for delivery in deliveries:
            if state_before(events.get(delivery.key, ()))[0] is State.PASSED:
                event = Event(now, EventKind.STOPPED, _SYSTEM, NOT_DELIVERED)
                store.deliveries.record(delivery.key, event, allowed={delivery.state})

    def _hold_or_release(self, passed: Sequence[Delivery]) -> None:
        """Hold deliveries that had passed if their message is more dangerous now, else begin their release.

        Raises AlreadyDone.
        """
        store, now = self._parts.store, self._parts.actions.now()
        events = store.deliveries.last_events([delivery.key for delivery in passed])
        for delivery in passed:
            if delivery.message.tier is not Tier.SPAM:
                store.deliveries.move(
                    delivery.key, State.HELD, {State.PASSED}, _SYSTEM, now, kind=EventKind.STOPPED, reason=RAISED
                )
            else:
                rule = next((e.actor for e in events.get(delivery.key, ()) if e.kind is EventKind.PASSED), _SYSTEM)
                store.deliveries.move(
                    delivery.key, State.RELEASING, {State.PASSED}, rule, now,
                    kind=EventKind.RELEASING, next_try_at=now,
                )  # fmt: skip

    def _alarm(self, subject: str, text: str) -> None:
        if self._alarms:
            self._parts.actions.alarm_hourly(subject, text)

    def _has_same_content(self, id: UUID, posted: Posted) -> bool:
        """Return whether the posted message is the one held under ``id``.

        The mark alone proves nothing: any recipient of a released message can copy its mark to another message. A
        damaged message cannot be compared, so the posted one is held.
        """
        try:
            held = content_digest(self._parts.store.messages.body(id))
        except (NotFound, BodyDamaged):
            return False
        return hmac.compare_digest(held, content_digest(posted.body.chunks()))
