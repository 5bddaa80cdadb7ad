"""`Outbox` on every store: the portal's own mail, claimed and retried."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime

import pytest

from portal.model.errors import RelayDeferred, RelayRefused
from portal.stores import LEASE, Store
from portal.stores.records import QueuedMail
from tests.builders import ALICE, now
from tests.contract.helpers import DAY, HOUR, MINUTE, SECOND, call_and_exit, concurrently


def send_next(store: Store, at: datetime, error: BaseException | None = None) -> bytes | None:
    with suppress(RelayDeferred, RelayRefused, RuntimeError), store.outbox.sending(at) as outgoing:
        if outgoing is None:
            return None
        if error is not None:
            raise error
        return outgoing.mail
    return None


def test_queued_mail_goes_out_once_in_order(store: Store) -> None:
    at = now()
    mails = [b"Subject: one\r\n\r\n\xff\0", b"two\n", b""]
    for n, data in enumerate(mails):
        store.outbox.add(QueuedMail(f"p{n}@example.org", data), at + n * SECOND)
    assert store.stats(at).mails_waiting == 3
    with store.outbox.sending(at + MINUTE) as outgoing:
        assert outgoing
        assert (outgoing.to, outgoing.mail) == ("p0@example.org", mails[0])
    assert [send_next(store, at + MINUTE) for _ in range(3)] == [mails[1], mails[2], None]
    assert store.stats(at).mails_waiting == 0


def test_a_queued_mail_is_claimed_once(store: Store, second: Store) -> None:
    at = now()
    store.outbox.add(QueuedMail(ALICE, b"one"), at)
    store.outbox.add(QueuedMail(ALICE, b"two"), at + SECOND)
    with store.outbox.sending(at + MINUTE) as first, second.outbox.sending(at + MINUTE) as other:
        assert first
        assert other
        assert {first.mail, other.mail} == {b"one", b"two"}
        with second.outbox.sending(at + MINUTE) as third:
            assert third is None
    assert send_next(store, at + DAY / 2) is None


def test_20_senders_send_each_of_10_mails_once(store: Store, second: Store) -> None:
    at = now()
    for n in range(10):
        store.outbox.add(QueuedMail(ALICE, b"%d" % n), at)
    sent = concurrently(20, lambda n: send_next((store, second)[n % 2], at + SECOND))
    sent += [send_next(store, at + SECOND) for _ in range(10)]
    assert sorted(data for data in sent if data is not None) == [b"%d" % n for n in range(10)]


@pytest.mark.parametrize("error", [RelayDeferred("451"), RuntimeError("a bug")], ids=["deferred", "bug"])
def test_a_deferred_mail_is_tried_again_with_a_back_off(store: Store, error: Exception) -> None:
    at = now()
    store.outbox.add(QueuedMail(ALICE, b"one"), at)
    for seconds in [10, 20, 40, 80, 160, 320, 640, 900, 900]:
        with pytest.raises(type(error)) as raised, store.outbox.sending(at) as outgoing:
            assert outgoing
            raise error
        assert raised.value is error
        assert send_next(store, at + (seconds - 1) * SECOND) is None
        at += (seconds + 1) * SECOND
    assert send_next(store, at) == b"one"


def test_a_refused_mail_is_removed(store: Store) -> None:
    at = now()
    store.outbox.add(QueuedMail(ALICE, b"one"), at)
    with pytest.raises(RelayRefused), store.outbox.sending(at):
        raise RelayRefused("550")
    assert store.stats(at).mails_waiting == 0
    assert send_next(store, at + HOUR) is None


def test_a_mail_is_given_up_after_a_day(store: Store) -> None:
    at = now()
    store.outbox.add(QueuedMail(ALICE, b"one"), at)
    send_next(store, at + DAY + HOUR, RelayDeferred("451"))
    assert send_next(store, at + DAY + 2 * HOUR) is None
    assert store.stats(at + DAY + 2 * HOUR).mails_waiting == 0


def test_a_mail_whose_sender_died_is_sent_by_another(store: Store, store_url: str) -> None:
    at = now()
    store.outbox.add(QueuedMail(ALICE, b"one"), at)
    assert call_and_exit(store_url, "outbox.sending", at).mail == b"one"
    assert send_next(store, at + LEASE - SECOND) is None
    assert send_next(store, at + LEASE + SECOND) == b"one"
