"""Claimed digests that are not sent now: a job holds their messages back, or nothing in them looks wanted."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime

from portal.batches.mass_hold import RECHECK_AFTER
from portal.digests.put_off import put_off_until
from portal.model.message import Delivery
from portal.policy.domains import Domains
from portal.stores.records import Digest, Unsent

HELD_BACK = "a job holds messages back until it ends"
UNWANTED = "no message looks wanted"


def postponed(
    digest: Digest,
    left: Collection[Delivery],
    known: Collection[str],
    last_sent: datetime | None,
    domains: Domains,
    now: datetime,
    *,
    is_by_name: bool,
) -> tuple[Unsent, str] | None:
    """Return when a digest is due again, and why; None: it is sent now, with what jobs do not hold back (``left``).

    ``is_by_name``: it was claimed by name, whatever its time.
    """
    if len(left) < len(digest.deliveries) and not (left and is_by_name):
        again = _time_of_partial(digest, left, last_sent, domains, now)
        if again is not None:
            return Unsent(digest, due_at=again), HELD_BACK
    if is_by_name or digest.is_notice:
        return None
    later = _until_wanted(replace(digest, deliveries=tuple(left)), known, last_sent, domains, now)
    return None if later is None else (later, UNWANTED)


def _time_of_partial(
    digest: Digest, left: Collection[Delivery], last_sent: datetime | None, domains: Domains, now: datetime
) -> datetime | None:
    """Return when a digest of which jobs hold something back is tried again, None if the rest (``left``) is sent now.

    What is held back remains news, so the recipient's digest stays due. The rest is sent only at the times of their
    plan and if they request it: otherwise each new message would be sent in a digest of its own.
    """
    recheck = now + RECHECK_AFTER
    if not left:
        return recheck
    if digest.is_notice or last_sent is None:
        return None
    # At most `now`: a digest that was sent by a clock that was ahead would stop all others.
    planned = domains.plan(digest.recipient, digest.preferences).next_time(min(last_sent, now))
    return None if digest.is_requested(last_sent, now) or planned is None or planned <= now else min(recheck, planned)


def _until_wanted(
    digest: Digest, known: Collection[str], last_sent: datetime | None, domains: Domains, now: datetime
) -> Unsent | None:
    """Return when a digest is due again in which nothing looks wanted (`put_off_until`), None if it is sent now.

    One that an earlier claim began to send is sent: its mail may have arrived, and this claim has no other messages.
    """
    if digest.is_begun or put_off_until(domains, digest, known, last_sent, now) is None:
        return None
    if digest.is_taken_over:  # it lacks messages that came after the earlier claim: a new claim has them
        return Unsent(replace(digest, is_taken_over=False), due_at=now)
    return Unsent(digest, due_at=domains.plan(digest.recipient, digest.preferences).next_time(now), is_put_off=True)
