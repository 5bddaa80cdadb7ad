"""Releases per second of several messages at once, compared with the same one after the other, each with a connection
of its own. The mail server accepts everything at once (`sink`)."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import psycopg

from bench import turns
from bench.rig import Effort, Row, own_folder, postgres, print_progress, spread
from bench.sink import sink
from portal.actions import Actions
from portal.batches.parallel import AT_ONCE, in_parallel
from portal.model.message import Actor, ActorKind, Delivery, DeliveryId
from portal.stores import open_store

MESSAGES = 100  # of two recipients each, in a round of each way
_PERSON = Actor(ActorKind.RECIPIENT)

Way = Callable[[Actions, Sequence[DeliveryId]], None]


@dataclass(frozen=True)
class _Taken:
    """The time that one release took, in seconds."""

    elapsed: float
    processor: float


def releases_files(effort: Effort) -> list[Row]:
    """Releases from a file store."""
    with own_folder() as folder:
        return _rows("files", f"files://{folder}/store", folder, effort)


def releases_postgres(effort: Effort) -> list[Row]:
    """Releases from PostgreSQL."""
    with own_folder() as folder, postgres() as dsn:
        open_store(dsn, create=True).close()
        return _rows("PostgreSQL", dsn, folder, effort, dsn)


def _rows(name: str, url: str, folder: Path, effort: Effort, dsn: str = "") -> list[Row]:
    with turns.posts(url, folder) as post:
        post(MESSAGES * 2 * (effort.rounds + 1))
    taken: list[tuple[_Taken, _Taken]] = []
    with sink() as server, turns._assembled(_environment(url, folder, server.url)) as parts:
        held = [DeliveryId(id, number) for id in parts.store.messages.ids(None, 1_000_000) for number in (0, 1)]
        rounds = [held[at : at + 2 * MESSAGES] for at in range(0, len(held), 2 * MESSAGES)]
        with psycopg.connect(dsn, autocommit=True) if dsn else nullcontext() as connection:
            for several, single in zip(rounds[::2], rounds[1::2], strict=True):
                servers = turns.servers(connection) if connection else []
                pair = (
                    _timed(_several_at_once, parts.actions, several, servers),
                    _timed(_one_by_one, parts.actions, single, servers),
                )
                if several is not rounds[0]:  # the first one warms up
                    taken.append(pair)
                    print_progress(" / ".join(f"{1 / t.elapsed:.0f}/s, {t.processor * 1000:.2f} ms" for t in pair))
        if server.got().mails != len(held):
            raise RuntimeError("not every message was released once")
    rates = [spread([1 / pair[side].elapsed for pair in taken]) for side in (0, 1)]
    costs = [spread([pair[side].processor * 1000 for pair in taken], 1) for side in (0, 1)]
    return [
        Row(
            f"releases/s, several at once, {name}", rates[0], f"{rates[1]} one by one",
            statistics.median(alone.elapsed / ours.elapsed for ours, alone in taken), "≥ 200 releases/s",
        ),
        Row(
            f"processor time of a release, several at once, {name}, ms", costs[0], f"{costs[1]} one by one",
            statistics.median(ours.processor / alone.processor for ours, alone in taken), "–",
        ),
    ]  # fmt: skip


def _environment(url: str, folder: Path, relay: str) -> dict[str, str]:
    return {
        "QUARANTINE_CONFIG": os.devnull,
        "QUARANTINE_STORE__URL": url,
        "QUARANTINE_RELAY__URL": relay,
        "QUARANTINE_LOCAL_DOMAINS": "example.org",
        "QUARANTINE_MAIL__FROM_ADDRESS": "quarantine@example.org",
        "QUARANTINE_LINKS__KEYS_FILE": f"{folder}/links.keys",
    }


def _release(actions: Actions, key: DeliveryId) -> Delivery:
    return actions.release(*key, _PERSON)


def _several_at_once(actions: Actions, keys: Sequence[DeliveryId]) -> None:
    for _, outcome in in_parallel(actions, _release, keys, AT_ONCE):
        if isinstance(outcome, Exception):
            raise outcome


def _one_by_one(actions: Actions, keys: Sequence[DeliveryId]) -> None:
    for key in keys:
        _release(actions, key)


def _timed(way: Way, actions: Actions, keys: Sequence[DeliveryId], servers: Sequence[Path]) -> _Taken:
    spent, began = turns.spent(servers), time.monotonic()
    way(actions, keys)
    return _Taken((time.monotonic() - began) / len(keys), (turns.spent(servers) - spent) / len(keys))
