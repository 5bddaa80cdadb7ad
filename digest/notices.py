"""Notices: short mails soon after messages were held that are probably wanted, to recipients who switched them on.

A notice is claimed, composed, sent and recorded as a digest is (`digest.run`). Its messages count as announced.
docs/decisions/notices.md has the reasons.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from digest.outcomes import NOTICE_INTERVAL, Summary
from digest.run import Claim, Run
from digest.stopping import Pace, Stopped, never
from portal.assemble import Parts
from portal.model.message import Delivery, Tier
from portal.model.ranking import Section, ranked
from portal.stores.records import Digest, NoticeClaim, Unsent
from portal.stores.senders import known_senders

log = logging.getLogger("quarantine.digest")

PER_DAY = 8  # to one recipient, in any 24 hours
_AT_ONCE = 16  # claims
_DELIVERIES = 500  # searched in one claim; of more, the digest lists the rest
_SCAN_TAKES = timedelta(minutes=10)  # at most; after a longer one, the digest lists the message
_SCAN_PAUSE = timedelta(minutes=1)
_WAIT_FOR_SCANS = timedelta(minutes=2)  # how long a notice waits for the scans of messages that came with its own
_ROWS = 20  # in a notice, and at most `digest.max_rows`: it announces no message that it does not list
# So that outcomes are recorded before their claims end. The next tick, seconds later, continues.
_SEARCH = timedelta(seconds=5)


def send_notices(parts: Parts, now: datetime, *, stopped: Stopped = never, pace: Pace | None = None) -> Summary:
    """Send the notices that are due, the longest waiting first. Raises StoreUnavailable."""
    run = Run(parts, now, kind="notice", stopped=stopped, pace=pace)
    run.send(_due(parts, run.clock, stopped))
    return run.summary


def _due(parts: Parts, time: Callable[[], datetime], stopped: Stopped) -> Claim:
    """Return a function that claims notices which have something to announce now, and ends all other claims."""

    rows = min(_ROWS, parts.settings.digest.max_rows)

    def claim() -> Sequence[Digest]:
        store, began = parts.store, time()
        while not stopped() and (now := time()) - began < _SEARCH:
            claims = store.digests.claim_notices(now, _AT_ONCE, _DELIVERIES, readers=parts.people.reader)
            if not claims:
                break
            known = known_senders(store, [each.notice.effective_reader for each in claims])
            ready: list[Digest] = []
            silent: list[Digest] = []  # they have nothing to announce
            later: list[Unsent] = []
            for each in claims:
                notice = each.notice
                try:
                    wanted, not_before = _judged(parts, each, known.get(notice.recipient, ()), rows, now)
                except Exception as error:  # the others are not affected
                    log.error("notice failed recipient=%s", notice.recipient, exc_info=error)
                    wanted, not_before = (), now + NOTICE_INTERVAL
                if not_before is not None:
                    later.append(Unsent(notice, not_before))
                else:
                    (ready if wanted else silent).append(replace(notice, deliveries=wanted))
            store.digests.settle(silent, later, now)
            if ready:
                return ready
        return ()

    return claim


def _judged(
    parts: Parts, claim: NoticeClaim, known: Collection[str], rows: int, now: datetime
) -> tuple[tuple[Delivery, ...], datetime | None]:
    """Return the deliveries to announce, and when they are searched again instead of now; None: not."""
    notice = claim.notice
    if not parts.domains.plan(notice.recipient, notice.preferences).notices:
        return (), None
    wanted = _probably_wanted(notice, known, rows)
    return wanted, _not_before(parts, claim, wanted, now)


def _probably_wanted(notice: Digest, known: Collection[str], rows: int) -> tuple[Delivery, ...]:
    """Return the likely mistakes among the deliveries, as a digest finds them; of these, only the tier *spam*.

    ``rows``: at most so many rows of a digest. It lists the others.
    """
    groups = [
        group
        for group in ranked(notice.deliveries, known)
        if group.section is Section.LIKELY_MISTAKES and group.newest.message.tier is Tier.SPAM
    ]
    return tuple(delivery for group in groups[:rows] for delivery in (group.newest, *group.others))


def _not_before(parts: Parts, claim: NoticeClaim, wanted: Sequence[Delivery], now: datetime) -> datetime | None:
    """Return when the deliveries are searched again instead of now; None: they are announced now."""
    notice = claim.notice
    may_wait = all(now - each.message.held_at < _WAIT_FOR_SCANS for each in wanted)
    if may_wait and any(_awaits_scan(each, now) for each in notice.deliveries):
        return now + _SCAN_PAUSE
    if not wanted:
        return None
    night = parts.domains.plan(notice.recipient, notice.preferences).end_of_night(now)
    if night is not None:
        return night
    if claim.next_digest_at is not None and claim.next_digest_at <= now + NOTICE_INTERVAL:
        return max(claim.next_digest_at, now) + NOTICE_INTERVAL  # the digest lists them
    # Times after now, of a clock that was ahead, count for no longer than a day either.
    sent = [at for at in claim.sent_at if at <= now]
    if len(sent) >= PER_DAY:
        return sent[-PER_DAY] + timedelta(days=1, seconds=1)
    if sent and now - sent[-1] < NOTICE_INTERVAL:
        return sent[-1] + NOTICE_INTERVAL
    return None


def _awaits_scan(delivery: Delivery, now: datetime) -> bool:
    """Return whether a message may belong to the tier *spam* once its virus scan ends."""
    message = delivery.message
    is_scanned = message.scan is None or message.scan.is_done
    return not is_scanned and message.verdict_tier is Tier.SPAM and now - message.held_at < _SCAN_TAKES
