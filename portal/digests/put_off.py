"""Digests that are put off: nothing in them looks wanted, and their recipients chose to get such digests once a week.

Their messages stay unannounced, so the next digest has them. docs/decisions/digest-mail.md has the reasons.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from portal.digests.compose import DELIVERIES
from portal.model.message import State
from portal.model.ranking import ranked
from portal.policy.domains import Domains
from portal.policy.retention import end_of
from portal.stores.records import Digest

_LONGEST = timedelta(days=7)  # after the last digest
_BEFORE_REMOVAL = timedelta(days=1)  # so that a mail server that is down for hours does not matter


def put_off_until(
    domains: Domains, digest: Digest, known: Collection[str], last_sent_at: datetime | None, now: datetime
) -> datetime | None:
    """Return when a due digest is sent at the latest if it is put off now; None: it is sent now.

    Ask again at each time of the recipient's plan: a message that may be wanted may come. ``known`` are senders for
    `ranking.ranked`, ``last_sent_at`` is the time of the recipient's last digest. Nothing is put off for somebody
    who was sent none, who requested this one, or who has more messages than one digest looks at.
    """
    plan, held = domains.plan(digest.recipient, digest.preferences), digest.deliveries
    if not plan.only_wanted or last_sent_at is None or not 0 < len(held) < DELIVERIES:
        return None
    if digest.is_requested(last_sent_at, now):
        return None
    if any(group.may_be_wanted for group in ranked(held, known)):
        return None
    # At most `now`: a digest that was sent by a clock that was ahead would put off all others.
    limit = min(last_sent_at, now) + _LONGEST
    for each in held:
        end = end_of(domains, each.recipient, each.message.tier, State.HELD, each.message.held_at)
        limit = min(limit, end - _BEFORE_REMOVAL)
    latest, at = None, plan.next_time(now)
    while at is not None and at <= limit:
        latest, at = at, plan.next_time(at)
    return latest
