"""Deliveries that mass acts hold back from digests and notices until they have ended.

Nothing is marked in the store, so nothing can stay hidden: a claimed digest leaves out what the search of a job finds
that has not ended, if the person or token that confirmed it may act on it now. These deliveries stay unannounced, and a
later digest lists those that are still held. Messages that the index of symbols does not have yet are announced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import takewhile

from portal.batches.batch import Progress
from portal.batches.mass import HOLDING_BACK, KIND, MassAct
from portal.batches.mass_rights import MassRights
from portal.model.message import Delivery, DeliveryId, Filter, Reader, State, domain
from portal.policy.staff import Member
from portal.stores import Store

HELD_BACK_MAX = timedelta(days=1)  # after the confirmation: a job that is paused and forgotten must not hide mail
RECHECK_AFTER = timedelta(minutes=5)  # of a digest that waits because messages are held back
_PAGE = 500


class HeldBack:
    """The deliveries that are held back at a time."""

    def __init__(self, store: Store, rights: MassRights, now: datetime) -> None:
        """Raises StoreUnavailable."""
        self._store = store
        self._rights = rights
        self._acts: list[tuple[MassAct, Member | None]] = []
        for job in takewhile(lambda job: now - job.created_at < HELD_BACK_MAX, store.jobs.each(KIND, unfinished=True)):
            mass, is_mailing = MassAct.from_json(job.arguments), Progress.from_json(job.progress).ends_as != ""
            if mass.hold_back and mass.act in HOLDING_BACK and not is_mailing:
                self._acts.append((mass, rights.member(mass)))

    def left(self, reader: Reader, deliveries: Sequence[Delivery]) -> tuple[Delivery, ...]:
        """Return those of a reader's deliveries that are not held back. Raises StoreUnavailable."""
        left = tuple(deliveries)
        for mass, member in self._acts:
            able = [each for each in left if self._may_act(mass, member, each)]
            found = self._found(reader, mass.criteria, able) if able else set()
            able = [each for each in able if each.key in found]
            left = tuple(each for each in left if each not in able)
        return left

    def _may_act(self, mass: MassAct, member: Member | None, delivery: Delivery) -> bool:
        """Return whether a job may act on a delivery now: nobody hides what they may not touch."""
        host, state = domain(delivery.recipient), delivery.state
        tiers = {delivery.message.tier, delivery.message.verdict_tier}
        return all(self._rights.obstacle(mass.act, member, host, tier, state) is None for tier in tiers)

    def _found(self, reader: Reader, wanted: Filter, deliveries: Sequence[Delivery]) -> set[DeliveryId]:
        """Return what a search finds of a reader's deliveries, as far as it can be completed now."""
        since = min(each.message.held_at for each in deliveries)
        since = max(since, wanted.since) if wanted.since else since
        if wanted.states and State.HELD not in wanted.states:
            return set()
        if wanted.recipient is not None:
            reader = reader.limited_to((wanted.recipient, *wanted.also))
        wanted = replace(wanted, states=frozenset({State.HELD}), since=since)
        found: set[DeliveryId] = set()
        page = self._store.deliveries.matching(reader, wanted, _PAGE)
        while page.indexed and page.next is not None:
            found |= {each.key for each in page.deliveries}
            page = self._store.deliveries.matching(reader, wanted, _PAGE, page.next)
        return found | {each.key for each in page.deliveries}
