"""What the tests of the contracts share."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime, time, timedelta
from threading import Barrier
from typing import Any
from uuid import UUID

import pytest

from portal.model.errors import QuarantineError, RelayDeferred, StoreUnavailable
from portal.model.message import Delivery, DeliveryId, EventKind, State
from portal.model.schedule import Preferences
from portal.stores import Store
from portal.stores.records import Claims, Held, Page, QueuedMail, SignIn, SignInLimits
from tests.builders import ALICE, BY_LINK, digesting, hold
from tests.paths import ROOT

SECOND, MINUTE, HOUR, DAY = (timedelta(seconds=s) for s in (1, 60, 3600, 86400))


UNKNOWN = UUID("019b76da-a800-7e8d-87d4-180303d39677")  # of 2026


EVERY_STATE = frozenset(State)


def concurrently(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run ``work(number)`` in ``count`` threads that begin together; their results, or the errors they met.

    Who finds the store too busy tries again, as Rspamd's senders and people do.
    """
    begin = Barrier(count)

    def run(number: int) -> Any:
        begin.wait()
        for _ in range(20):
            try:
                return work(number)
            except StoreUnavailable as error:
                busy = error
            except QuarantineError as error:
                return error
        return busy

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


_ELSEWHERE = """
import operator, os, pickle, sys
from portal.stores import open_store
url, name, arguments, options = pickle.load(sys.stdin.buffer)
result = operator.attrgetter(name)(open_store(url))(*arguments, **options)
entered = result.__enter__() if hasattr(result, "__enter__") else result
pickle.dump(entered, sys.stdout.buffer)
sys.stdout.buffer.flush()
os._exit(9)
"""


def _begin_elsewhere(url: str, name: str, *arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", _ELSEWHERE],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin
    pickle.dump((url, name, arguments, options), process.stdin)
    process.stdin.close()
    process.stdin = None
    return process


def dies_in(url: str, name: str, *arguments: Any, **options: Any) -> Any:
    """Another process calls this method of the store, enters the block if it is one, and drops dead."""
    process = _begin_elsewhere(url, name, *arguments, **options)
    out, _ = process.communicate()
    assert process.returncode == 9
    return pickle.loads(out)


def held_bytes(store: Store, id: UUID) -> bytes:
    return b"".join(store.messages.body(id))


def every_page(ask: Callable[[DeliveryId | None], Page]) -> list[Delivery]:
    out: list[Delivery] = []
    page = ask(None)
    while True:
        out += page.deliveries
        if page.next is None:
            return out
        page = ask(page.next)


def names(deliveries: Any) -> list[tuple[UUID, int]]:
    return [(d.id, d.number) for d in deliveries]


def claim(
    store: Store, held: Held, at: datetime, number: int = 0, allowed: frozenset[State] = frozenset({State.HELD})
) -> AbstractContextManager[Delivery]:
    return store.deliveries.releasing(DeliveryId(held.id, number), allowed, BY_LINK, at)


def release(store: Store, held: Held, at: datetime, number: int = 0) -> None:
    with claim(store, held, at, number):
        pass


def defer(store: Store, held: Held, at: datetime, number: int = 0) -> None:
    with pytest.raises(RelayDeferred, match="busy"), claim(store, held, at, number):
        raise RelayDeferred("451 busy")


def delete(store: Store, held: Held, at: datetime, number: int = 0) -> Delivery:
    return store.deliveries.move(
        DeliveryId(held.id, number), State.DELETED, {State.HELD, State.REQUESTED}, BY_LINK, at, kind=EventKind.DELETED
    )


def ask(store: Store, held: Held, at: datetime, number: int = 0) -> Delivery:
    return store.deliveries.move(
        DeliveryId(held.id, number), State.REQUESTED, {State.HELD}, BY_LINK, at, kind=EventKind.REQUESTED
    )


def tell(store: Store, recipient: str, at: datetime, limit: int = 100) -> list[tuple[UUID, int]]:
    """Send a recipient's digest now; what was in it."""
    with digesting(store, recipient, at, limit, ignore_schedule=True) as digest:
        return names(digest.deliveries)


CHOSEN = Preferences("monday", (time(6, 30), time(18)), "Asia/Kathmandu", "en")


def due(store: Store, count: int, at: datetime) -> list[str]:
    """So many recipients with a digest that is due at ``at``, the longest due first."""
    people = [f"p{n:02}@example.org" for n in range(count)]
    for n, person in enumerate(people):
        hold(store, recipients=[person])
        store.recipients.schedule(person, at - (count - n) * MINUTE)
    return people


def claimed(claims: Claims) -> list[str]:
    return [digest.recipient for digest in claims.digests]


def sign_in(number: int, at: datetime, **overrides: Any) -> SignIn:
    made = SignIn(
        token_sha256=bytes([number]) * 32,
        code_sha256=bytes([number, 1]) * 16,
        browser_sha256=bytes([number, 2]) * 16,
        recipient=ALICE,
        client_ip="192.0.2.1",
        created_at=at,
        expires_at=at + 15 * MINUTE,
    )
    return replace(made, **overrides)


def start(store: Store, asked: SignIn, limits: SignInLimits | None = None) -> bool:
    return store.sign_ins.start(
        asked, limits or SignInLimits(), QueuedMail(asked.recipient, b"mail %d" % asked.token_sha256[0])
    )


SESSION = b"s" * 32
