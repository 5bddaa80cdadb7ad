"""Decision about an incoming message: is it held, in which tier, for which recipients, and who is notified.

All messages are held through this module. The exporter's endpoint uses it for messages that Rspamd posts,
`import-original` for messages that the original script stored.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from portal.assemble import Parts
from portal.exporter import Posted, content_digest, is_blocked
from portal.model.errors import BodyDamaged, NotFound, QuarantineError, RulesInUse
from portal.model.message import WAITING, Actor, ActorKind, Export, Start, State, Tier
from portal.model.rule import BLOCKED, Effect
from portal.policy.decision import Decision
from portal.stores.contracts import NO_STARTS
from portal.stores.records import Held

log = logging.getLogger("quarantine.ingest")


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


def _starts(export: Export, decisions: Mapping[str, Decision]) -> dict[str, Start]:
    """Return how the deliveries begin that are not held: those that a rule blocks."""
    starts = {}
    by_rspamd = is_blocked(export)
    for who in export.held_for:
        rule = decisions[who].rule if who in decisions and decisions[who].effect is Effect.BLOCK else None
        if rule is not None:
            starts[who] = Start(State.BLOCKED, rule.as_actor, rule.summary)
        elif by_rspamd:
            # The rule was removed after Rspamd read its copy of the rules.
            starts[who] = Start(State.BLOCKED, Actor(ActorKind.SYSTEM), BLOCKED)
    return starts


class Ingest:
    """Processing of parsed messages. One object per process, used by many threads.

    ``alarms``: notify the administrator when Rspamd withholds this portal's own messages or scans released messages.
    """

    def __init__(self, parts: Parts, *, alarms: bool = True) -> None:
        self._parts = parts
        self._alarms = alarms
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
        if at is not None:  # rules are for mail that arrives: what another program held before stays held
            held = self._add(posted, export, tier, NO_STARTS, at=at)
        else:
            held = self._add_by_rules(posted, export, tier)
        result = Result.KNOWN if held.known else Result.HELD
        log.info(
            "%s id=%s queue_id=%s size=%d recipients=%d tier=%s flags=%s",
            result.value,
            held.id,
            export.queue_id,
            export.size_bytes,
            len(export.recipients),
            tier.value,
            ",".join(sorted(export.flags)) or "-",
        )
        for raised in held.raised:
            log.warning("tier raised id=%s tier=%s: exported again with a worse verdict", raised, tier.value)
        return Outcome(result, held.id)

    def _add_by_rules(self, posted: Posted, export: Export, tier: Tier) -> Held:
        """Hold a message as the rules say. Raises StoreUnavailable."""
        held = self._add_undecided(posted, export, tier)
        if held is not None:
            return held
        decisions = self._decide(export, tier)
        starts = _starts(export, decisions)
        held = self._add(posted, export, tier, starts)
        if starts and not held.known:
            self._count_hits(decisions, starts)
        return held

    def _add_undecided(self, posted: Posted, export: Export, tier: Tier) -> Held | None:
        """Hold a message without looking for its rules. Return None if there are rules, or Rspamd obeyed one."""
        if self._has_rules or is_blocked(export):
            return None
        try:
            return self._add(posted, export, tier, None)
        except RulesInUse:
            self._has_rules = True
            return None

    def _add(
        self,
        posted: Posted,
        export: Export,
        tier: Tier,
        starts: Mapping[str, Start] | None,
        *,
        at: datetime | None = None,
    ) -> Held:
        parts = self._parts
        notified = {
            who
            for who, address in zip(export.held_for, export.recipients, strict=True)
            if parts.people.is_notified(address) and not (starts and who in starts)
        }
        scan = WAITING if parts.scanning.is_on else None
        return parts.store.messages.add(export, posted.body, tier, notified, at=at, scan=scan, starts=starts)

    def _decide(self, export: Export, tier: Tier) -> Mapping[str, Decision]:
        """Return the decision of the rules for each recipient. Raises StoreUnavailable."""
        return self._parts.rulebook.decide(export, tier, export.held_for, scanned=False)

    def _count_hits(self, decisions: Mapping[str, Decision], starts: Mapping[str, Start]) -> None:
        try:
            self._parts.rulebook.count({who: decisions[who] for who in starts if who in decisions})
        except QuarantineError as error:
            log.error("hits of rules not counted: %s", error)

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
