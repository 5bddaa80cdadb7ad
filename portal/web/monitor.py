"""`/healthz` and `/metrics`.

Both ask the store alone: numbers kept in a worker's memory would differ from worker to worker.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta

from bottle import HTTPResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from portal import __version__
from portal.assemble import Parts
from portal.model.errors import StoreUnavailable, StoreUnusable
from portal.monitoring import Runs, overdue_since, runs
from portal.stores.records import Stats
from portal.web.exporter import allowed_peer
from portal.web.pages import json_answer
from portal.web.request import Request

_OVERDUE = "1 while digests wait for longer than digest.overdue_minutes, for any other reason than a single mailbox."

log = logging.getLogger("quarantine.web")


class Monitor(Collector):
    """What monitoring asks."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def describe(self) -> list[Metric]:
        """Nothing in advance: registering must not ask the store."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics of this moment, for prometheus_client."""
        now = self._parts.actions.now()
        try:
            self._parts.store.ping()
            figures = self._parts.store.stats(now)
            done = runs(self._parts.store)
        except (StoreUnavailable, StoreUnusable):
            yield _gauge("store_up", "Whether the store can be written to.", 0)
            return
        yield _gauge("store_up", "Whether the store can be written to.", 1)
        yield _gauge("releases_waiting", "Releases that the mail server has not taken yet.", figures.releases_waiting)
        yield _gauge("requests_waiting", "Requests that an administrator has to decide.", figures.requests_waiting)
        yield _gauge("mails_waiting", "Mails of the portal itself that are not sent yet.", figures.mails_waiting)
        yield _gauge("digests_due", "Recipients whose digest is due.", figures.digests_due)
        if figures.oldest_digest_due_at is not None:
            late = max(0.0, (now - figures.oldest_digest_due_at).total_seconds())
            yield _gauge("digest_late_seconds", "How long the oldest due digest has waited.", late)
        yield _gauge("digests_overdue", _OVERDUE, self._overdue(figures, done, now) is not None)
        yield _gauge(
            "digests_failing", "Recipients whose last digest the mail server did not take.", figures.digests_failing
        )
        yield _counter("digests_sent", "Digests that the mail server took.", done.sent)
        yield _counter("digests_deferred", "Tries that failed for now.", done.deferred)
        yield _counter("digests_refused", "Digests that the mail server refused.", done.refused)
        yield _counter("digest_runs", "Runs over digests that were due.", done.count)
        yield _counter("digest_run_seconds", "What those took together.", done.seconds)
        if done.last_seconds is not None:
            yield _gauge("digest_last_run_seconds", "How long the last run took.", done.last_seconds)
        if done.last_sent_at is not None:
            at = done.last_sent_at.timestamp()
            yield _gauge("digest_last_sent_timestamp_seconds", "When a run that sent something last ended.", at)
        if figures.heartbeat_at is not None:
            age = (now - figures.heartbeat_at).total_seconds()
            yield _gauge("digest_heartbeat_age_seconds", "Since the digest process's last sign of life.", age)
        if self._parts.people.file is not None:
            good = not self._parts.people.problem()
            yield _gauge("alias_file_usable", "Whether people.alias_file can be read and used as it is now.", good)

    def health(self, _: Request) -> HTTPResponse:
        """503 when the store cannot be used. All else is told, not failed: a restart would not mend it."""
        now = self._parts.actions.now()
        try:
            self._parts.store.ping()
            figures = self._parts.store.stats(now)
            done = runs(self._parts.store)
        except (StoreUnavailable, StoreUnusable) as error:
            log.error("unhealthy: %s", error)
            return json_answer(503, {"status": "store unavailable", "version": __version__})
        age = None if figures.heartbeat_at is None else round((now - figures.heartbeat_at).total_seconds())
        due, people = figures.oldest_digest_due_at, self._parts.people
        return json_answer(
            200,
            {
                "status": "ok",
                "version": __version__,
                "releases_waiting": figures.releases_waiting,
                "requests_waiting": figures.requests_waiting,
                "mails_waiting": figures.mails_waiting,
                "digests_due": figures.digests_due,
                "digest_late_seconds": 0 if due is None else max(0, round((now - due).total_seconds())),
                "digests_failing": figures.digests_failing,
                "digests_overdue": self._overdue(figures, done, now) is not None,
                "digest_heartbeat_age_seconds": age,
                # No paths and no names: this page is open to everybody.
                **({} if people.file is None else {"alias_file_usable": not people.problem()}),
            },
        )

    def _overdue(self, figures: Stats, done: Runs, now: datetime) -> datetime | None:
        after = timedelta(minutes=self._parts.settings.digest.overdue_minutes)
        return overdue_since(figures, done.last_sent_at, now, after)

    def metrics(self, request: Request) -> HTTPResponse:
        """The same for Prometheus; to those only who may also post."""
        if not allowed_peer(request.peer, self._parts.settings.exporter.allowed_networks):
            return json_answer(403, {"error": "this address may not read metrics: see exporter.allowed_networks"})
        return HTTPResponse(generate_latest(self._registry), 200, {"Content-Type": CONTENT_TYPE_LATEST})


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(f"quarantine_{name}", help, value=value)


def _counter(name: str, help: str, value: float) -> Metric:
    return CounterMetricFamily(f"quarantine_{name}", help, value=value)
