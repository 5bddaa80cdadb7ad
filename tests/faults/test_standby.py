"""The synchronous standby is down: changes that wait for it are not acknowledged, however the wait ends.

The primary has committed by then, so a failover would lose mail that was answered 200.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from uuid import UUID

import pytest

from portal.model.errors import StoreUnavailable
from portal.model.message import DeliveryId, EventKind, State, Tier
from portal.stores import Store, open_store
from tests.builders import ALICE, BY_LINK, hold, mail, now
from tests.faults.conftest import Serve
from tests.faults.serving import assert_whole
from tests.faults.standby import PATIENCE_SECONDS, Pair

WAITING = "select pid from pg_stat_activity where application_name = 'quarantine' and wait_event = 'SyncRep'"


def end_waits(pair: Pair, how: str) -> None:
    """Wait for sessions that wait for the standby, and call pg_cancel_backend or pg_terminate_backend for them."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not pair.primary.query(f"select pg_{how}_backend(pid) from ({WAITING}) w"):
        assert time.monotonic() < deadline, "nothing waits for the standby"
        time.sleep(0.02)


def restart(pair: Pair) -> None:
    """Kill the primary and start it again, as when the kernel runs out of memory."""
    pair.primary.kill()
    for _ in range(20):
        with suppress(subprocess.CalledProcessError):
            pair.primary.start()
            return
        time.sleep(0.5)
    raise AssertionError("the primary does not start again")


@pytest.mark.parametrize("how", ["terminate", "restart"])
def test_a_retry_waits_for_the_standby_as_the_first_try_did(serve: Serve, pair: Pair, how: str) -> None:
    portal = serve(pair.url, workers=1)
    _, first = portal.post(1)
    pair.standby.kill()
    assert portal.post(2)[0] == 503
    if how == "restart":
        restart(pair)
    else:
        end_waits(pair, how)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while pair.primary.query("select count(*) from message") != [(2,)]:
        assert time.monotonic() < deadline, "the primary alone does not have the mail"
        time.sleep(0.02)
    retry = portal.post(2)[0]
    pair.follow_again()
    status, answer = portal.post(2)
    pair.fail_over()
    assert retry == 503
    assert (status, answer["status"]) == (200, "known")
    assert portal.tracebacks() == 0
    assert_whole(pair.url, {1: UUID(first["id"]), 2: UUID(answer["id"])})


def large() -> bytes:
    """Return a mail that is stored in several statements."""
    return mail() + os.urandom(1_500_000).hex().encode()


def actions(store: Store) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield every kind of change, prepared, with a name."""
    held, released, raised = hold(store), hold(store), mail()
    hold(store, raised)
    claim = store.deliveries.releasing(DeliveryId(released.id, 0), {State.HELD}, BY_LINK, now())
    claim.__enter__()
    known = mail()
    hold(store, known)

    def record() -> None:
        claim.__exit__(None, None, None)
        if store.outcomes._kept:  # type: ignore[attr-defined]  # not an error for its caller: the mail was sent
            raise StoreUnavailable("the database cannot be used now: it is kept in memory")

    yield "hold", lambda: hold(store)
    yield "hold in several statements", lambda: hold(store, large())
    yield "hold again", lambda: hold(store, known)
    yield "raise a tier", lambda: hold(store, raised, tier=Tier.DANGEROUS)
    yield (
        "begin a release",
        lambda: store.deliveries.releasing(DeliveryId(held.id, 1), {State.HELD}, BY_LINK, now()).__enter__(),
    )
    yield "record a release", record
    yield (
        "delete",
        lambda: store.deliveries.move(
            DeliveryId(held.id, 0), State.DELETED, {State.HELD}, BY_LINK, now(), kind=EventKind.DELETED
        ),
    )
    yield "stop digests", lambda: store.recipients.set_digests_stopped(ALICE, now())
    yield "revoke links", lambda: store.recipients.revoke_links(ALICE, now())
    yield "keep a note", lambda: store.notes.set_default("a note", "x")
    yield "swap a note", lambda: store.notes.compare_and_set("a swapped note", None, "x", now())


def test_a_cancelled_wait_for_the_standby_is_not_a_success(serve: Serve, pair: Pair) -> None:
    portal = serve(pair.url, workers=1)
    store = open_store(pair.url)
    ready = list(actions(store))
    pair.standby.kill()
    outcomes = {}
    with ThreadPoolExecutor() as threads:

        def cancelled(act: Callable[[], object]) -> Future[object]:
            future = threads.submit(act)
            end_waits(pair, "cancel")
            return future

        outcomes["post"] = str(cancelled(lambda: portal.post(3)[0]).result())
        for name, act in ready:
            try:
                cancelled(act).result()
                outcomes[name] = "acknowledged"
            except StoreUnavailable as error:
                outcomes[name] = str(error)
    store.close()
    assert outcomes.pop("post") == "503"
    for name, outcome in outcomes.items():
        assert outcome.startswith("the database cannot be used now: "), name
    # On a busy machine the store's own time limit may end some of them before they are cancelled.
    assert sum("canceling wait for synchronous replication" in outcome for outcome in outcomes.values()) >= 3
    assert portal.tracebacks() == 0
