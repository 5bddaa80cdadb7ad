"""The rules that both stores follow, without a store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from datetime import timedelta

import pytest

from portal.model.errors import (
    AlreadyDone,
    BodyDamaged,
    BodyMissing,
    NotAllowed,
    RelayDeferred,
    RelayRefused,
    RelayUnreachable,
    StoreUnavailable,
)
from portal.model.message import Delivery, EventKind, Export, Message, State, Tier, new_id
from portal.stores import rules
from tests import builders
from tests.builders import ALICE, now

MINUTE = timedelta(minutes=1)
_OF_THE_EXPORT = {field.name for field in fields(Message)} & {field.name for field in fields(Export)}


@pytest.fixture
def delivery() -> Delivery:
    export, id = builders.export(b"Subject: x\r\n\r\n"), new_id()
    known = {name: getattr(export, name) for name in _OF_THE_EXPORT}
    message = Message(id=id, tier=Tier.SPAM, **known)
    return Delivery(message, 0, ALICE, ALICE, State.HELD, message.held_at, "", 0, None, None)


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("allowed", [{State.HELD}, {State.HELD, State.REQUESTED, State.DELETED}, set(State)])
def test_what_may_be_claimed(delivery: Delivery, state: State, allowed: set[State]) -> None:
    at = now()
    found = replace(delivery, state=state, next_try_at=at - MINUTE if state is State.RELEASING else None)
    if state is State.RELEASING:
        assert rules.is_retry(found, allowed, at), "whatever is allowed"
        assert rules.is_retry(replace(found, next_try_at=at), allowed, at)
        with pytest.raises(AlreadyDone, match="is being released") as error:
            rules.is_retry(replace(found, next_try_at=at + MINUTE), allowed, at)
    elif state in allowed:
        assert not rules.is_retry(found, allowed, at)
    else:
        with pytest.raises(AlreadyDone, match=f"this delivery is {state.value}") as error:
            rules.is_retry(found, allowed, at)
        assert error.value.delivery == found


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RelayRefused("550 no"), EventKind.FAILED),
        (BodyMissing("gone"), EventKind.FAILED),
        (BodyDamaged("broken"), EventKind.FAILED),
        (NotAllowed("dangerous by now"), EventKind.STOPPED),
    ],
)
def test_a_failure_for_good_is_held_again(delivery: Delivery, error: Exception, kind: EventKind) -> None:
    at = now()
    failed = rules.failed_release(replace(delivery, state=State.RELEASING, attempts=3), error, at)
    assert failed == rules.FailedRelease(kind, State.HELD, at, str(error), None)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (lambda: RelayDeferred("450 later"), "450 later"),
        (lambda: RelayUnreachable("no route"), "no route"),
        (lambda: StoreUnavailable("full"), "internal error"),
        (lambda: ValueError("secret"), "internal error"),
        (lambda: KeyboardInterrupt(), "internal error"),
    ],
)
def test_any_other_failure_is_tried_later_and_later(
    delivery: Delivery, error: Callable[[], BaseException], reason: str
) -> None:
    at, pauses = now(), []
    for attempts in range(1, 100):
        claimed = replace(delivery, state=State.RELEASING, state_at=at - MINUTE, attempts=attempts)
        failed = rules.failed_release(claimed, error(), at)
        assert (failed.kind, failed.state, failed.state_at) == (EventKind.DEFERRED, State.RELEASING, at - MINUTE)
        assert failed.reason == reason
        assert failed.next_try_at is not None
        pauses.append((failed.next_try_at - at) / MINUTE)
    assert pauses[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert set(pauses[6:]) == {60}
