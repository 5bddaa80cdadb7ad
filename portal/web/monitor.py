"""`/healthz` and `/metrics`.

Both read the store only: numbers kept in memory would differ from worker to worker.
"""

from __future__ import annotations

import hmac
import logging
import os
import platform
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from bottle import HTTPResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from portal import __version__
from portal.assemble import Parts
from portal.model.errors import StoreUnavailable, StoreUnusable
from portal.model.message import State
from portal.monitoring import Runs, deliveries, learned, map_behind_seconds, not_selected, overdue_since, runs, scans
from portal.policy.second_factor import COUNTER as SECOND_FACTORS_LOCKED
from portal.stores import notes
from portal.stores.durations import POST_OUTCOMES, Histogram, Measured, histograms
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
        chosen, exporter = parts.settings.metrics, parts.settings.exporter
        self._networks = exporter.allowed_networks if chosen.allowed_networks is None else chosen.allowed_networks
        self._token = chosen.token.get_secret_value() if chosen.token else None
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def describe(self) -> list[Metric]:
        """Return no metrics, so that registering the collector does not query the store."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the current metrics for prometheus_client."""
        now = self._parts.actions.now()
        try:
            found = list(self._of_store(now))
        except (StoreUnavailable, StoreUnusable):
            found = []
        yield self._build()
        yield _gauge("store_up", "Whether the store can be written to.", bool(found))
        yield from found
        yield from self._free_space()
        if self._parts.people.file is not None:
            usable = not self._parts.people.problem()
            yield _gauge("alias_file_usable", "Whether the present people.alias_file can be used.", usable)

    def _build(self) -> Metric:
        labels = {
            "version": __version__,
            "python": platform.python_version(),
            "store": "files" if self._parts.settings.store.place.folder else "postgresql",
        }
        return _info("build_info", "The version that runs; always 1.", labels)

    def _of_store(self, now: datetime) -> Iterator[Metric]:
        """Yield the metrics that are read from the store. Raises StoreUnavailable, StoreUnusable."""
        store = self._parts.store
        stats, done, counters = store.health(now), runs(store), store.notes.counters()
        yield from self._waiting(stats, now)
        yield from self._digests(stats, done, now)
        yield from _counted(counters)
        yield from _durations(counters)
        locked = counters.get(SECOND_FACTORS_LOCKED, 0)
        yield _counter("second_factors_locked", "Times that wrong codes locked the second factor of staff.", locked)
        yield from self._stored(now)
        yield from self._block_map(now)

    def _waiting(self, stats: Stats, now: datetime) -> Iterator[Metric]:
        yield _gauge("releases_waiting", "Releases that the mail server has not accepted yet.", stats.releases_waiting)
        yield _gauge("requests_waiting", "Release requests that wait for an administrator.", stats.requests_waiting)
        yield _gauge("mails_waiting", "The portal's own messages that are not sent yet.", stats.mails_waiting)
        yield _gauge("jobs_waiting", "Background jobs that wait or run: scans, learning, batches.", stats.jobs_waiting)
        yield _counter("messages_not_indexed", "Messages that searches of staff find by words only.", stats.not_indexed)
        if stats.heartbeat_at is not None:
            age = (now - stats.heartbeat_at).total_seconds()
            yield _gauge("digest_heartbeat_age_seconds", "Time since the last heartbeat of the digest process.", age)

    def _digests(self, stats: Stats, done: Runs, now: datetime) -> Iterator[Metric]:
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
        if done.last_seconds is not None:
            yield _gauge("digest_last_run_seconds", "Duration of the last digest run.", done.last_seconds)
        if done.last_sent_at is not None:
            at = done.last_sent_at.timestamp()
            yield _gauge("digest_last_sent_timestamp_seconds", "End of the last digest run that sent a digest.", at)

    def _stored(self, now: datetime) -> Iterator[Metric]:
        """Yield what the digest process counted last (`digest.sizes`). Raises StoreUnavailable."""
        known = notes.SIZES.get(self._parts.store)
        if known is None:
            return
        sizes = known.sizes
        stored = {state.value: float(sizes.states.get(state, 0)) for state in State}
        yield _gauges("deliveries_stored", "Deliveries in the store. Counted every five minutes.", "state", stored)
        oldest = sizes.oldest_unannounced_at
        age = 0.0 if oldest is None else max(0.0, (now - oldest).total_seconds())
        yield _gauge("oldest_unannounced_seconds", "Age of the oldest message that no digest has announced.", age)
        if sizes.bytes is not None:
            yield _gauge("store_bytes", "Size of the database, or used space of the store's file system.", sizes.bytes)

    def _free_space(self) -> Iterator[Metric]:
        """Yield the space of the file system of a file store. Of PostgreSQL's server, only that server knows it."""
        folder = self._parts.settings.store.place.folder
        if folder is None:
            return
        with suppress(OSError):
            space, inodes = shutil.disk_usage(folder), os.statvfs(folder)
            yield _gauge("store_bytes", "Size of the database, or used space of the store's file system.", space.used)
            yield _gauge("store_free_bytes", "Free space of the store's file system.", space.free)
            if inodes.f_files:  # 0: the file system, such as Btrfs, creates inodes on demand
                help = "How many more files the store's file system can have."
                yield _gauge("store_free_inodes", help, inodes.f_favail)

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
        """GET /metrics, in the Prometheus format, for ``metrics.allowed_networks`` and with ``metrics.token``."""
        if not allowed_peer(request.peer, self._networks):
            return json_response(403, {"error": "this address may not read metrics: see metrics.allowed_networks"})
        if self._token is not None:
            scheme, _, token = request.header("Authorization").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._token.encode()):
                response = json_response(401, {"error": "the token is missing or wrong: see metrics.token"})
                response.set_header("WWW-Authenticate", "Bearer")
                return response
        return HTTPResponse(generate_latest(self._registry), 200, {"Content-Type": CONTENT_TYPE_LATEST})


def _counted(counters: Mapping[str, float]) -> Iterator[Metric]:
    yield _counters(
        "deliveries",
        "Deliveries that were held, released and so on. Counted once a minute.",
        "outcome.tier",
        deliveries(counters),
    )
    yield _counters("scans", "Virus scans of held messages.", "outcome", scans(counters))
    yield _counters("learned", "Messages posted to be learned, by label and HTTP status.", "answer", learned(counters))
    yield _counters("not_selected", "Messages of Rspamd that were not held.", "action", not_selected(counters))


def _durations(counters: Mapping[str, float]) -> Iterator[Metric]:
    posts, pages = histograms(counters, Measured.POST, POST_OUTCOMES), histograms(counters, Measured.PAGE)
    releases, digests = histograms(counters, Measured.RELEASE), histograms(counters, Measured.DIGEST)
    yield _histogram("post_seconds", "Posts of Rspamd.", "outcome", posts)
    yield _histogram("page_seconds", "Pages, by the first part of the path.", "path", pages)
    yield _histogram("release_seconds", "Releases, by the class of the mail server's answer.", "answer", releases)
    yield _histogram("digest_seconds", "Digests that were sent, likewise.", "answer", digests)


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(f"quarantine_{name}", help, value=value)


def _info(name: str, help: str, labels: Mapping[str, str]) -> Metric:
    found = GaugeMetricFamily(f"quarantine_{name}", help, labels=list(labels))
    found.add_metric(list(labels.values()), 1)
    return found


def _gauges(name: str, help: str, label: str, values: Mapping[str, float]) -> Metric:
    found = GaugeMetricFamily(f"quarantine_{name}", help, labels=[label])
    for value, number in values.items():
        found.add_metric([value], number)
    return found


def _counter(name: str, help: str, value: float) -> Metric:
    return CounterMetricFamily(f"quarantine_{name}", help, value=value)


def _counters(name: str, help: str, label: str, values: Mapping[str, float]) -> Metric:
    """Return a counter for each value of a label, or of several that are separated by dots, as their values are."""
    labels = label.split(".")
    found = CounterMetricFamily(f"quarantine_{name}", help, labels=labels)
    for value, number in sorted(values.items()):
        found.add_metric(value.split(".", len(labels) - 1), number)
    return found


def _histogram(name: str, help: str, label: str, values: Mapping[str, Histogram]) -> Metric:
    found = HistogramMetricFamily(f"quarantine_{name}", f"Duration. {help}", labels=[label])
    for value, each in values.items():
        found.add_metric([value], each.buckets, each.seconds)
    return found
