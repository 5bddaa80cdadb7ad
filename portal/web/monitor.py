"""`/healthz` and `/metrics`.

Both read the store only: numbers kept in memory would differ from worker to worker.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from bottle import HTTPResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from portal import __version__
from portal.assemble import Parts
from portal.model.errors import StoreUnavailable, StoreUnusable
from portal.monitoring import deliveries, learned, map_behind_seconds, not_selected, overdue_since, posts, runs, scans
from portal.stores import notes
from portal.stores.records import Stats
from portal.web.exporter import allowed_peer
from portal.web.pages import json_response
from portal.web.request import Request

_OVERDUE = "1 if digests have been due for longer than digest.overdue_minutes and not just for a single mailbox."

log = logging.getLogger("quarantine.web")


class Monitor(Collector):
    """The health check and the Prometheus collector."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._overdue_after = timedelta(minutes=parts.settings.digest.overdue_minutes)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def describe(self) -> list[Metric]:
        """Return no metrics, so that registering the collector does not query the store."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the current metrics for prometheus_client."""
        now = self._parts.actions.now()
        try:
            stats = self._parts.store.health(now)
            done = runs(self._parts.store)
            skipped = not_selected(self._parts.store)
            counted, posted = deliveries(self._parts.store), posts(self._parts.store)
            scanned = scans(self._parts.store)
            mapped = list(self._block_map(now))
            trained = learned(self._parts.store)
        except (StoreUnavailable, StoreUnusable):
            yield _gauge("store_up", "Whether the store can be written to.", 0)
            return
        yield _gauge("store_up", "Whether the store can be written to.", 1)
        yield _gauge("releases_waiting", "Releases that the mail server has not accepted yet.", stats.releases_waiting)
        yield _gauge("requests_waiting", "Release requests that wait for an administrator.", stats.requests_waiting)
        yield _gauge("mails_waiting", "The portal's own messages that are not sent yet.", stats.mails_waiting)
        yield _gauge("digests_due", "Recipients whose digest is due.", stats.digests_due)
        if stats.oldest_digest_due_at is not None:
            late = max(0.0, (now - stats.oldest_digest_due_at).total_seconds())
            yield _gauge("digest_late_seconds", "Time since the oldest due digest became due.", late)
        yield _gauge("digests_overdue", _OVERDUE, self._overdue(stats, done.last_sent_at, now) is not None)
        yield _gauge(
            "digests_failing", "Recipients whose last digest the mail server did not accept.", stats.digests_failing
        )
        yield _counter("digests_sent", "Digests that the mail server accepted.", done.sent)
        yield _counter("digests_deferred", "Attempts that failed temporarily.", done.deferred)
        yield _counter("digests_refused", "Digests that the mail server rejected.", done.refused)
        yield _counter("notices_sent", "Notices that the mail server accepted.", done.notices)
        yield _counter("digest_runs", "Digest runs that found due digests.", done.count)
        yield _counter("digest_run_seconds", "Total duration of these runs.", done.seconds)
        yield _counter("messages_not_indexed", "Messages that searches of staff find by words only.", stats.not_indexed)
        yield _gauge("jobs_waiting", "Background jobs that wait or run: scans, learning, batches.", stats.jobs_waiting)
        yield _counters(
            "deliveries",
            "Deliveries that were held, released and so on. Counted once a minute.",
            "outcome.tier",
            counted,
        )
        yield _counters("posts", "Messages of Rspamd that were held before or cannot be held.", "outcome", posted)
        yield _counters("scans", "Virus scans of held messages.", "outcome", scanned)
        yield _counters("learned", "Messages posted to be learned, by label and HTTP status.", "answer", trained)
        yield _counters("not_selected", "Messages of Rspamd that were not held.", "action", skipped)
        if done.last_seconds is not None:
            yield _gauge("digest_last_run_seconds", "Duration of the last digest run.", done.last_seconds)
        if done.last_sent_at is not None:
            at = done.last_sent_at.timestamp()
            yield _gauge("digest_last_sent_timestamp_seconds", "End of the last digest run that sent a digest.", at)
        if stats.heartbeat_at is not None:
            age = (now - stats.heartbeat_at).total_seconds()
            yield _gauge("digest_heartbeat_age_seconds", "Time since the last heartbeat of the digest process.", age)
        if self._parts.people.file is not None:
            usable = not self._parts.people.problem()
            yield _gauge("alias_file_usable", "Whether the present people.alias_file can be used.", usable)
        yield from mapped

    def _block_map(self, now: datetime) -> Iterator[Metric]:
        """Yield the metrics of this host's block map. Raises StoreUnavailable."""
        path, store = self._parts.settings.rspamd.block_map, self._parts.store
        if path is None:
            return
        with suppress(OSError):
            written = path.stat().st_mtime
            yield _gauge("block_map_written_timestamp_seconds", "When the content of the map last changed.", written)
        state = notes.block_map(socket.gethostname()).get(store)
        if state is not None:
            behind = map_behind_seconds(store, state, now)
            yield _gauge("block_map_behind_seconds", "How long the map has not had the last change of rules.", behind)
            yield _gauge("block_map_lines", "Lines of the map.", state.lines)
            yield _gauge("block_map_left_out", "Lines that the map cannot hold, so these do not block.", state.left_out)

    def health(self, request: Request) -> HTTPResponse:
        """GET /healthz: 503 if the store cannot be used, else 200.

        Other problems are only reported, since restarting the portal would not fix them, and only to peers in
        ``exporter.allowed_networks``.
        """
        status, found = self._health()
        if not allowed_peer(request.peer, self._parts.settings.exporter.allowed_networks):
            found = {"status": found["status"]}
        return json_response(status, found)

    def _health(self) -> tuple[int, dict[str, Any]]:
        now = self._parts.actions.now()
        try:
            stats = self._parts.store.health(now)
            due = stats.oldest_digest_due_at
            is_late = due is not None and now - due > self._overdue_after
            last_sent_at = notes.SENT_AT.get(self._parts.store) if is_late else None  # needed only then
        except (StoreUnavailable, StoreUnusable) as error:
            log.error("unhealthy: %s", error)
            return 503, {"status": "store unavailable", "version": __version__}
        age = None if stats.heartbeat_at is None else round((now - stats.heartbeat_at).total_seconds())
        people = self._parts.people
        return (
            200,
            {
                "status": "ok",
                "version": __version__,
                "releases_waiting": stats.releases_waiting,
                "requests_waiting": stats.requests_waiting,
                "mails_waiting": stats.mails_waiting,
                "digests_due": stats.digests_due,
                "digest_late_seconds": 0 if due is None else max(0, round((now - due).total_seconds())),
                "digests_failing": stats.digests_failing,
                "digests_overdue": self._overdue(stats, last_sent_at, now) is not None,
                "digest_heartbeat_age_seconds": age,
                **({} if people.file is None else {"alias_file_usable": not people.problem()}),
            },
        )

    def _overdue(self, stats: Stats, last_sent_at: datetime | None, now: datetime) -> datetime | None:
        return overdue_since(stats, last_sent_at, now, self._overdue_after)

    def metrics(self, request: Request) -> HTTPResponse:
        """GET /metrics, in the Prometheus format. Only peers in ``exporter.allowed_networks`` may read it."""
        if not allowed_peer(request.peer, self._parts.settings.exporter.allowed_networks):
            return json_response(403, {"error": "this address may not read metrics: see exporter.allowed_networks"})
        return HTTPResponse(generate_latest(self._registry), 200, {"Content-Type": CONTENT_TYPE_LATEST})


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(f"quarantine_{name}", help, value=value)


def _counter(name: str, help: str, value: float) -> Metric:
    return CounterMetricFamily(f"quarantine_{name}", help, value=value)


def _counters(name: str, help: str, label: str, values: Mapping[str, float]) -> Metric:
    """Return a counter for each value of a label, or of several that are separated by dots, as their values are."""
    labels = label.split(".")
    found = CounterMetricFamily(f"quarantine_{name}", help, labels=labels)
    for value, number in sorted(values.items()):
        found.add_metric(value.split(".", len(labels) - 1), number)
    return found
