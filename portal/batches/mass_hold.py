"""Deliveries that mass acts hold back from digests and notices until they have ended.

Nothing is marked in the store, so nothing can stay hidden: a claimed digest leaves out what a job that has not ended
would find, if the person or token that confirmed it may act on it now. These deliveries stay unannounced, and a later
digest lists those that are still held. They are compared with the criteria here, without a search, so that a page or
digest takes no statement for each job. A search by a rule cannot hold back anything: only the store knows which rule
decided a delivery. See `mass.can_hold_back`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any
from uuid import UUID

from portal.batches.batch import Progress
from portal.batches.mass import KIND, MassAct, can_hold_back
from portal.batches.mass_rights import MassRights
from portal.model.message import Delivery, domain
from portal.policy.staff import Member
from portal.stores import Store
from portal.stores.facets import matcher

HELD_BACK_MAX = timedelta(days=1)  # after the confirmation: a job that is paused and forgotten must not hide mail
RECHECK_AFTER = timedelta(minutes=5)  # of a digest that waits because messages are held back


class HeldBack:
    """The deliveries that are held back at a time."""

    def __init__(self, jobs: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]], rights: MassRights) -> None:
        """``jobs``: the arguments and progress of unfinished mass acts. Raises StoreUnavailable."""
        self._rights = rights
        self._acts: list[tuple[MassAct, Member | None, Callable[[Delivery], bool]]] = []
        members: dict[tuple[str, str, UUID | None], Member | None] = {}
        for arguments, progress in jobs:
            mass, is_mailing = MassAct.from_json(arguments), Progress.from_json(progress).ends_as != ""
            if not mass.hold_back or is_mailing or not can_hold_back(mass.act, mass.criteria):
                continue
            who = (mass.member, mass.method, mass.token)
            if who not in members:
                members[who] = rights.member(mass)
            self._acts.append((mass, members[who], matcher(mass.criteria)))

    @classmethod
    def at(cls, store: Store, rights: MassRights, now: datetime) -> HeldBack:
        """Read what is held back at a time. Raises StoreUnavailable."""
        recent = takewhile(lambda job: now - job.created_at < HELD_BACK_MAX, store.jobs.each(KIND, unfinished=True))
        return cls(((job.arguments, job.progress) for job in recent), rights)

    def left(self, deliveries: Sequence[Delivery]) -> tuple[Delivery, ...]:
        """Return those of these held deliveries that are not held back."""
        left = tuple(deliveries)
        for mass, member, fits in self._acts:
            left = tuple(each for each in left if not (self._may_act(mass, member, each) and fits(each)))
        return left

    def _may_act(self, mass: MassAct, member: Member | None, delivery: Delivery) -> bool:
        """Return whether a job may act on a delivery now: nobody hides what they may not touch."""
        host, state = domain(delivery.recipient), delivery.state
        tiers = {delivery.message.tier, delivery.message.verdict_tier}
        return all(self._rights.obstacle(mass.act, member, host, tier, state) is None for tier in tiers)
