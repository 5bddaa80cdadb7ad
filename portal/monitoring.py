"""Digests as operators see them: what runs did, and since when digests are overdue.

The digest process counts in the store, since nobody can ask it; web workers and `quarantine check` read there, also
when there is no digest process any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from portal.assemble import Parts
from portal.stores import Store, notes
from portal.stores.records import Stats


@dataclass(frozen=True, slots=True)
class Runs:
    """What all runs of all digest processes did together."""

    count: int
    sent: int
    deferred: int  # tries that the mail server put off
    refused: int
    seconds: float
    last_sent_at: datetime | None  # when a run that sent something ended
    last_seconds: float | None  # how long the last run took


def count_run(store: Store, now: datetime, *, sent: int, deferred: int, refused: int, seconds: float) -> None:
    """Add a run that ends now. Raises StoreUnavailable."""
    store.notes.add_counters(
        {"digests.runs": 1, "digests.sent": sent, "digests.deferred": deferred, "digests.refused": refused}
        | {"digests.seconds": seconds}
    )
    notes.RUN_SECONDS.set(store, seconds)
    if sent:
        notes.SENT_AT.set(store, now)


def runs(store: Store) -> Runs:
    """What was counted. Raises StoreUnavailable."""
    tallies = store.notes.counters()
    count, sent, deferred, refused = (
        round(tallies.get(f"digests.{name}", 0)) for name in ("runs", "sent", "deferred", "refused")
    )
    return Runs(
        count,
        sent,
        deferred,
        refused,
        tallies.get("digests.seconds", 0.0),
        notes.SENT_AT.get(store),
        notes.RUN_SECONDS.get(store),
    )


def overdue_since(figures: Stats, last_sent_at: datetime | None, now: datetime, after: timedelta) -> datetime | None:
    """Since when the oldest digest that is overdue has been due; None when none is.

    One that waits for a single mailbox, which the mail server does not take mail for, is not – unless nothing was sent
    to anybody since it became due, which is how a mail server that takes nothing looks.
    """
    untried = figures.oldest_untried_due_at
    if untried is not None and now - untried > after:
        return figures.oldest_digest_due_at
    due = figures.oldest_digest_due_at
    if due is not None and now - due > after and (last_sent_at is None or last_sent_at < due):
        return due
    return None


def watch(parts: Parts, now: datetime) -> None:
    """Tell the administrator by one mail that digests are overdue, and by one that they no longer are.

    Any number of processes may call this at any time. Raises StoreUnavailable.
    """
    store, minutes = parts.store, parts.settings.digest.overdue_minutes
    figures = store.stats(now)
    last_sent_at = runs(store).last_sent_at
    since = overdue_since(figures, last_sent_at, now, timedelta(minutes=minutes))
    known = notes.OUTAGE.get(store)
    if since is not None and known is None:
        parts.actions.alarm(
            "digests are overdue",
            f"{figures.digests_due} digests are due, the oldest since {since:%Y-%m-%d %H:%M} UTC. The mail server "
            f"did not take the last one of {figures.digests_failing} recipients. What waits is sent by itself as "
            "soon as it can be; there will be one more mail then.",
            note=(notes.OUTAGE.name, notes.OUTAGE.text(store), notes.OUTAGE.to_text(since)),
        )
    elif since is None and known is not None and _goes_on(figures, last_sent_at, known):
        parts.actions.alarm(
            "digests go out again",
            f"No digest is overdue any more. They were since {known:%Y-%m-%d %H:%M} UTC.",
            note=(notes.OUTAGE.name, notes.OUTAGE.to_text(known), ""),
        )


def _goes_on(figures: Stats, last_sent_at: datetime | None, known: datetime) -> bool:
    """Whether digests went out since that outage began: those that failed too often are due the next day, not over."""
    sent = last_sent_at is not None and last_sent_at >= known
    return sent or not figures.digests_failing
