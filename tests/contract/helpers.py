"""Helpers of the contract tests."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
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
from portal.stores.files.store import FileStore
from portal.stores.postgres.store import PostgresStore
from portal.stores.records import Claims, Held, Page, QueuedMail, SignIn, SignInLimits
from tests.builders import ALICE, BY_LINK, digesting, hold
from tests.paths import ROOT

SECOND, MINUTE, HOUR, DAY = (timedelta(seconds=s) for s in (1, 60, 3600, 86400))


UNKNOWN = UUID("019b76da-a800-7e8d-87d4-180303d39677")  # of 2026


EVERY_STATE = frozenset(State)

# An SQL condition for which both engines need minutes.
SLOW = (
    "(with recursive n (x) as (select 1 union all select x + 1 from n where x < 1000000000) select count(*) from n) > 0"
)


def concurrently(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run ``work(number)`` in ``count`` threads that begin together; return their results or errors.

    If the store is too busy, a thread tries again, as senders and people do.
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


@contextmanager
def unavailable(store: Store) -> Iterator[None]:
    """Within the block the store raises StoreUnavailable, as during a failover or with a full disk."""

    def refuse(*_: object, **__: object) -> None:
        raise StoreUnavailable("the primary is gone")

    with pytest.MonkeyPatch.context() as patch:
        if isinstance(store, PostgresStore):
            patch.setattr(store.database, "transaction", refuse)
        else:
            assert isinstance(store, FileStore)
            patch.setattr(store.db, "write", refuse)
            patch.setattr(store.db, "read", refuse)
        yield


_CHILD = """
import operator, os, pickle, sys
from portal.stores import open_store
url, name, arguments, options = pickle.load(sys.stdin.buffer)
result = operator.attrgetter(name)(open_store(url))(*arguments, **options)
entered = result.__enter__() if hasattr(result, "__enter__") else result
pickle.dump(entered, sys.stdout.buffer)
sys.stdout.buffer.flush()
os._exit(9)
"""


def start_child(url: str, name: str, *arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", _CHILD],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin
    pickle.dump((url, name, arguments, options), process.stdin)
    process.stdin.close()
    process.stdin = None
    return process


def call_and_exit(url: str, name: str, *arguments: Any, **options: Any) -> Any:
    """Call a method of the store in another process that exits at once, within the block if there is one."""
    process = start_child(url, name, *arguments, **options)
    out, _ = process.communicate()
    assert process.returncode == 9
    return pickle.loads(out)


def held_bytes(store: Store, id: UUID) -> bytes:
    return b"".join(store.messages.body(id))


def every_page(get_page: Callable[[DeliveryId | None], Page]) -> list[Delivery]:
    out: list[Delivery] = []
    page = get_page(None)
    while True:
        out += page.deliveries
        if page.next is None:
            return out
        page = get_page(page.next)


def keys(deliveries: Any) -> list[tuple[UUID, int]]:
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


def request_release(store: Store, held: Held, at: datetime, number: int = 0) -> Delivery:
    return store.deliveries.move(
        DeliveryId(held.id, number), State.REQUESTED, {State.HELD}, BY_LINK, at, kind=EventKind.REQUESTED
    )


def send_digest(store: Store, recipient: str, at: datetime, limit: int = 100) -> list[tuple[UUID, int]]:
    """Send the digest of a recipient now; return the keys of its deliveries."""
    with digesting(store, recipient, at, limit, ignore_schedule=True) as digest:
        return keys(digest.deliveries)


CHOSEN = Preferences("monday", (time(6, 30), time(18)), "Asia/Kathmandu", "en")


def due(store: Store, count: int, at: datetime) -> list[str]:
    """Return ``count`` recipients with a digest that is due at ``at``, the longest due first."""
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


def start(store: Store, pending: SignIn, limits: SignInLimits | None = None) -> bool:
    return store.sign_ins.start(
        pending, limits or SignInLimits(), QueuedMail(pending.recipient, b"mail %d" % pending.token_sha256[0])
    )


SESSION = b"s" * 32
