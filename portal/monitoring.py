"""Monitoring: counters of digest runs and of messages that were not held, and alarms about overdue digests.

The digest process has no interface of its own, so it counts in the store. Web workers and `quarantine check` read the
counters there, also when the digest process does not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from portal.assemble import Parts
from portal.model.message import ACTIONS, held_at
from portal.policy.learning import COUNTER as LEARNED
from portal.scanning import COUNTER as SCANNED
from portal.stores import Store, notes
from portal.stores.records import Stats

_NOT_SELECTED = "not_selected."  # followed by Rspamd's action, or "other"
_DELIVERIES = "deliveries."  # followed by the outcome and the tier


@dataclass(frozen=True, slots=True)
class Runs:
    """Totals of all runs of all digest processes, and facts about the last run."""

    count: int
    sent: int
    deferred: int  # tries, not digests
    refused: int
    seconds: float
    last_sent_at: datetime | None  # end of the last run that sent a digest
    last_seconds: float | None  # duration of the last run
    notices: int  # sent


def count_run(store: Store, now: datetime, *, sent: int, deferred: int, refused: int, seconds: float) -> None:
    """Add a run that ends at ``now`` to the totals. Raises StoreUnavailable."""
    store.notes.add_counters(
        {"digests.runs": 1, "digests.sent": sent, "digests.deferred": deferred, "digests.refused": refused}
        | {"digests.seconds": seconds}
    )
    notes.RUN_SECONDS.set(store, seconds)
    if sent:
        notes.SENT_AT.set(store, now)


def count_notices(store: Store, sent: int) -> None:
    """Add sent notices to their total. Raises StoreUnavailable."""
    if sent:
        store.notes.add_counters({"notices.sent": sent})


def count_not_selected(store: Store, action: str | None) -> None:
    """Count a message that Rspamd posted and the portal did not hold, by Rspamd's action."""
    name = (action or "").casefold()
    store.notes.count({_NOT_SELECTED + (name if name in ACTIONS else "other"): 1})


def not_selected(counters: Mapping[str, float]) -> Mapping[str, int]:
    """Return the number of messages that were not held, by Rspamd's action."""
    return _by_label(counters, _NOT_SELECTED)


def count_deliveries(store: Store) -> None:
    """Set the counters of deliveries to the totals of the statistics. They never go down, as a day that is counted
    again may: Prometheus would take that for a restart. Raises StoreUnavailable."""
    known = store.notes.counters()
    totals = {f"{_DELIVERIES}{outcome}.{tier}": number for outcome, tier, number in store.statistics.totals()}
    more = {name: number - known.get(name, 0) for name, number in totals.items() if number > known.get(name, 0)}
    if more:
        store.notes.add_counters(more)


def deliveries(counters: Mapping[str, float]) -> Mapping[str, int]:
    """Return the number of deliveries, by outcome and tier as "held.spam"."""
    return _by_label(counters, _DELIVERIES)


def scans(counters: Mapping[str, float]) -> Mapping[str, int]:
    """Return the number of virus scans, by `ScanOutcome`."""
    return _by_label(counters, SCANNED)


def learned(counters: Mapping[str, float]) -> Mapping[str, int]:
    """Return the number of messages posted to be learned, by label and HTTP status as "ham.200"."""
    return _by_label(counters, LEARNED)


def _by_label(counters: Mapping[str, float], prefix: str) -> Mapping[str, int]:
    return {name.removeprefix(prefix): round(number) for name, number in counters.items() if name.startswith(prefix)}


def runs(store: Store) -> Runs:
    """Return the totals. Raises StoreUnavailable."""
    counters = store.notes.counters()
    count, sent, deferred, refused = (
        round(counters.get(f"digests.{name}", 0)) for name in ("runs", "sent", "deferred", "refused")
    )
    return Runs(
        count,
        sent,
        deferred,
        refused,
        counters.get("digests.seconds", 0.0),
        notes.SENT_AT.get(store),
        notes.RUN_SECONDS.get(store),
        round(counters.get("notices.sent", 0)),
    )


def overdue_since(stats: Stats, last_sent_at: datetime | None, now: datetime, after: timedelta) -> datetime | None:
    """Return the time at which the oldest overdue digest became due, None if no digest is overdue.

    A digest that the mail server deferred for its recipient is not overdue, since the cause may be a single full
    mailbox. It is if no digest at all was sent since it became due: then the mail server accepts nothing.
    """
    untried = stats.oldest_untried_due_at
    if untried is not None and now - untried > after:
        return stats.oldest_digest_due_at
    due = stats.oldest_digest_due_at
    if due is not None and now - due > after and (last_sent_at is None or last_sent_at < due):
        return due
    return None


def watch(parts: Parts, now: datetime) -> None:
    """Mail the administrator once when digests become overdue, and once when they are sent again.

    Any number of processes may call this at any time. Raises StoreUnavailable.
    """
    store, minutes = parts.store, parts.settings.digest.overdue_minutes
    stats = store.stats(now)
    last_sent_at = runs(store).last_sent_at
    since = overdue_since(stats, last_sent_at, now, timedelta(minutes=minutes))
    outage = notes.OUTAGE.get(store)
    if since is not None and outage is None:
        parts.actions.alarm(
            "digests are overdue",
            f"{stats.digests_due} digests are due, the oldest since {since:%Y-%m-%d %H:%M} UTC. The mail server did "
            f"not accept the last digest of {stats.digests_failing} recipients. Run `quarantine check` for its "
            "replies. Digests are retried automatically; you get another mail when they are sent again.",
            note=(notes.OUTAGE.name, notes.OUTAGE.text(store), notes.OUTAGE.to_text(since)),
        )
    elif since is None and outage is not None and _has_recovered(stats, last_sent_at, outage):
        parts.actions.alarm(
            "digests are sent again",
            f"No digest is overdue any more. Digests had been overdue since {outage:%Y-%m-%d %H:%M} UTC.",
            note=(notes.OUTAGE.name, notes.OUTAGE.to_text(outage), ""),
        )


def _has_recovered(stats: Stats, last_sent_at: datetime | None, outage: datetime) -> bool:
    """Return whether a digest was sent since the outage began, or none fails any more.

    Without overdue digests an outage may still last: digests that failed too often are due the next day.
    """
    sent = last_sent_at is not None and last_sent_at >= outage
    return sent or not stats.digests_failing


def map_behind_seconds(store: Store, state: notes.MapState, now: datetime) -> float:
    """Return for how long a host's block map has not had the last change of rules, 0 if it has it.

    Raises StoreUnavailable.
    """
    change = store.rules.last_change()
    since = state.at if state.problem else held_at(change) if change and change != state.change else now
    return max(0.0, (now - since).total_seconds())
