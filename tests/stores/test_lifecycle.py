"""The rules that both stores share, tested without a store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from datetime import datetime, timedelta
from typing import Any

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
from portal.stores import lifecycle
from tests import builders
from tests.builders import ALICE, now

MINUTE = timedelta(minutes=1)
_OF_THE_EXPORT = {field.name for field in fields(Message)} & {field.name for field in fields(Export)}


@pytest.fixture
def delivery() -> Delivery:
    export, id = builders.export(b"Subject: x\r\n\r\n"), new_id()
    known = {name: getattr(export, name) for name in _OF_THE_EXPORT}
    message = Message(id=id, verdict_tier=Tier.SPAM, **known)
    return Delivery(message, 0, ALICE, ALICE, State.HELD, message.held_at, "", 0, None, None)


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("allowed", [{State.HELD}, {State.HELD, State.REQUESTED, State.DELETED}, set(State)])
def test_claims_in_each_state(delivery: Delivery, state: State, allowed: set[State]) -> None:
    at = now()
    found = replace(delivery, state=state, next_try_at=at - MINUTE if state is State.RELEASING else None)
    if state is State.RELEASING:
        assert lifecycle.is_retry(found, allowed, at), "whatever is allowed"
        assert lifecycle.is_retry(replace(found, next_try_at=at), allowed, at)
        claimed = replace(found, next_try_at=at + MINUTE)
        with pytest.raises(AlreadyDone, match="^this delivery is being released$") as error:
            lifecycle.is_retry(claimed, allowed, at)
        assert error.value.delivery == claimed
    elif state in allowed:
        assert not lifecycle.is_retry(found, allowed, at)
    else:
        with pytest.raises(AlreadyDone, match=f"^this delivery is {state.value}$") as error:
            lifecycle.is_retry(found, allowed, at)
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
def test_after_a_permanent_failure_a_delivery_is_held_again(
    delivery: Delivery, error: Exception, kind: EventKind
) -> None:
    at = now()
    failed = lifecycle.failed_release(replace(delivery, state=State.RELEASING, attempts=3), error, at)
    assert failed == lifecycle.FailedRelease(kind, State.HELD, at, str(error), None)


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
def test_any_other_failure_is_retried_later_and_later(
    delivery: Delivery, error: Callable[[], BaseException], reason: str
) -> None:
    at, pauses = now(), []
    for attempts in range(1, 100):
        claimed = replace(delivery, state=State.RELEASING, state_at=at - MINUTE, attempts=attempts)
        failed = lifecycle.failed_release(claimed, error(), at)
        assert (failed.kind, failed.state, failed.state_at) == (EventKind.DEFERRED, State.RELEASING, at - MINUTE)
        assert failed.reason == reason
        assert failed.next_try_at is not None
        pauses.append((failed.next_try_at - at) / MINUTE)
    assert pauses[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert set(pauses[6:]) == {60}


# ---- mail of the outbox


def pauses_of_mail(error: Exception) -> list[float]:
    """Return the seconds between the attempts to send a mail that was queued a moment ago."""
    at = now()
    times = [lifecycle.next_mail_try(error, attempts, at, at) for attempts in range(1, 100)]
    return [(time - at).total_seconds() for time in times if time is not None]


@pytest.mark.parametrize("error", [RelayDeferred("450 later"), RelayUnreachable("no route"), ValueError("any other")])
def test_a_mail_is_sent_again_after_longer_and_longer_pauses(error: Exception) -> None:
    pauses = pauses_of_mail(error)
    assert pauses[:9] == [10, 20, 40, 80, 160, 320, 640, 900, 900]
    assert len(pauses) == 99
    assert set(pauses[7:]) == {900}


def test_a_rejected_mail_is_never_sent_again() -> None:
    assert pauses_of_mail(RelayRefused("550 no")) == []


def test_a_mail_is_sent_again_for_one_day_only() -> None:
    at, error = now(), RelayDeferred("450 later")
    queued_at = at - timedelta(days=1)
    assert lifecycle.next_mail_try(error, 5, queued_at, at) is None
    assert lifecycle.next_mail_try(error, 5, queued_at + timedelta(milliseconds=1), at) == at + timedelta(seconds=160)


# ---- digests


def digest_row(**changed: datetime | str | None) -> tuple[Any, ...]:
    """Return the row of a recipient whose digest is due: two columns that the rule ignores, four times, the lease."""
    row: dict[str, datetime | str | None] = {
        "recipient": ALICE,
        "address": ALICE,
        "stopped_at": None,
        "news_since": now() - MINUTE,
        "next_digest_at": now() - MINUTE,
        "lease_until": None,
        "schedule": None,
        "lease": None,
    }
    assert changed.keys() <= row.keys()
    return tuple((row | changed).values())


@pytest.mark.parametrize("ignore_schedule", [False, True])
def test_a_digest_that_is_due_can_be_claimed(ignore_schedule: bool) -> None:
    at = now()
    assert lifecycle.unclaimable(digest_row(), at, ignore_schedule) is None
    assert lifecycle.unclaimable(digest_row(next_digest_at=at), at, ignore_schedule) is None
    expired = digest_row(lease_until=at, lease="of another process")
    assert lifecycle.unclaimable(expired, at, ignore_schedule) is None


@pytest.mark.parametrize("ignore_schedule", [False, True])
@pytest.mark.parametrize(
    ("row", "why"),
    [
        (None, "this recipient has no unannounced mail"),
        (digest_row(news_since=None), "this recipient has no unannounced mail"),
        (digest_row(stopped_at=now() - MINUTE), "this recipient stopped digests"),
        (
            digest_row(lease_until=now() + timedelta(hours=1), lease="of another process"),
            "another process is sending this digest, or failed to send it a moment ago",
        ),
    ],
)
def test_a_digest_is_not_sent_without_news_or_if_stopped_or_leased(
    row: tuple[Any, ...] | None, why: str, ignore_schedule: bool
) -> None:
    refusal = lifecycle.unclaimable(row, now(), ignore_schedule)
    assert str(refusal) == why


@pytest.mark.parametrize("next_digest_at", [None, now() + timedelta(hours=1)])
def test_only_an_operator_sends_a_digest_before_it_is_due(next_digest_at: datetime | None) -> None:
    row = digest_row(next_digest_at=next_digest_at)
    assert str(lifecycle.unclaimable(row, now(), False)) == "this digest is not due"
    assert lifecycle.unclaimable(row, now(), True) is None


def test_only_an_operator_sends_a_digest_again_soon_after_it_failed() -> None:
    row = digest_row(lease_until=now() + timedelta(hours=1), lease=None)
    assert str(lifecycle.unclaimable(row, now(), False)).startswith("another process is sending this digest")
    assert lifecycle.unclaimable(row, now(), True) is None


# ---- addresses


@pytest.mark.parametrize(
    ("recipient", "address", "expected"),
    [
        (ALICE, "Alice@Example.ORG", "Alice@Example.ORG"),
        (ALICE, ALICE, ALICE),
        (ALICE, "info@example.org", ALICE),  # an alias: the person is notified, not the alias
        (ALICE, "alice+shop@example.org", ALICE),
        ("erika@xn--mnchen-3ya.example", "Erika@münchen.example", "Erika@xn--mnchen-3ya.example"),
        ("jürgen@xn--mnchen-3ya.example", "JÜRGEN@MÜNCHEN.example", "JÜRGEN@xn--mnchen-3ya.example"),
        ("jürgen@example.org", "Jürgen@Example.org", "Jürgen@example.org"),
        ('"a@ü"@xn--mnchen-3ya.example', '"a@ü"@münchen.example', '"a@ü"@xn--mnchen-3ya.example'),
        ("erika@xn--mnchen-3ya.example", "info@münchen.example", "erika@xn--mnchen-3ya.example"),
    ],
)
def test_a_recipient_is_notified_at_their_own_address_with_a_labels(
    recipient: str, address: str, expected: str
) -> None:
    assert lifecycle.address_of(recipient, address) == expected
