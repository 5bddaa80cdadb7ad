"""`Store` on every store: clock repair, monitoring, opening and closing, purge."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest

from portal.model.errors import AlreadyDone, LinkInvalid, NotFound, RelayRefused
from portal.model.message import DeliveryId, EventKind, Filter, Reader, State
from portal.stores import LEASE, Store, open_store
from portal.stores.records import DigestRequest, Held, LinkOpen, Page, QueuedMail, Unsent
from tests.builders import ALICE, BOB, BY_OPERATOR, MALLORY, digesting, hold, mail, now, prefer
from tests.contract.helpers import (
    CHOSEN,
    DAY,
    EVERY_STATE,
    HOUR,
    MINUTE,
    SECOND,
    SESSION,
    claim,
    concurrently,
    defer,
    delete,
    due,
    held_bytes,
    release,
    request_release,
    send_digest,
    sign_in,
    start,
)


def test_times_from_a_clock_that_was_ahead_are_repaired(store: Store) -> None:
    people = [f"p{n}@example.org" for n in range(4)]
    hold(store, recipients=people)
    at = now()
    ahead = at + 365 * DAY
    store.recipients.schedule(people[0], ahead)
    store.recipients.schedule(people[1], at + 8 * DAY)
    with pytest.raises(RelayRefused), digesting(store, people[2], ahead, 10, ignore_schedule=True):
        raise RelayRefused("550")
    store.digests.request(Reader(people[3]), ahead, ahead - HOUR)
    assert store.repair_clock_skew(at) == 3
    assert {p.recipient for p in store.recipients.unscheduled(10)} == {people[0], people[2], people[3]}
    assert store.recipients.get(people[1]).next_digest_at == at + 8 * DAY
    assert send_digest(store, people[2], at) != []
    assert store.digests.request(Reader(people[3]), at, at - HOUR) is DigestRequest.DUE
    assert store.repair_clock_skew(at) == 0


def test_releases_and_mails_postponed_by_a_clock_that_was_ahead_are_due_now(store: Store) -> None:
    put_off, later = hold(store), hold(store)
    at = now()
    ahead = at + 365 * DAY
    defer(store, put_off, ahead)
    defer(store, later, at)
    store.outbox.add(QueuedMail(ALICE, b"from a year ahead"), ahead)
    assert not store.deliveries.due_releases(at, 10)
    assert store.repair_clock_skew(at) == 2
    assert list(store.deliveries.due_releases(at, 10)) == [(put_off.id, 0)]
    with store.outbox.sending(at) as mail:
        assert mail is not None
        assert mail.mail == b"from a year ahead"
    with store.outbox.sending(at) as mail:
        assert mail is None
    assert store.repair_clock_skew(at) == 0


def test_live_claims_are_not_repaired(store: Store) -> None:
    hold(store, recipients=[ALICE])
    at = now()
    with digesting(store, ALICE, at, 10, ignore_schedule=True):
        assert store.repair_clock_skew(at) == 0
        assert not list(store.digests.due(at, 10))


def test_stats_show_the_oldest_due_digest_that_was_not_attempted(store: Store) -> None:
    at = now()
    due(store, 2, at)
    refused, _ = store.digests.claim(at, 2, 10).digests
    store.digests.settle([], [Unsent(refused, not_before=at + LEASE, failure="450 busy")], at)
    stats = store.stats(at)
    assert stats.digests_due == 2
    assert stats.oldest_digest_due_at == at - 2 * MINUTE
    assert stats.oldest_untried_due_at == at - MINUTE


def test_stats_of_an_empty_store(store: Store) -> None:
    stats = store.stats(now())
    assert (stats.releases_waiting, stats.requests_waiting, stats.mails_waiting, stats.digests_due) == (0,) * 4
    assert stats.oldest_digest_due_at is None
    assert stats.heartbeat_at is None


def test_stats_count_waiting_work(store: Store) -> None:
    helds, at = [hold(store) for _ in range(4)], now()
    defer(store, helds[0], at)
    request_release(store, helds[1], at)
    request_release(store, helds[1], at, 1)
    release(store, helds[2], at)
    store.outbox.add(QueuedMail(ALICE, b"x"), at)
    store.recipients.schedule(ALICE, at)
    store.recipients.schedule(BOB, at + DAY)
    store.heartbeat(at - SECOND)
    store.heartbeat(at)
    stats = store.stats(at + HOUR)
    assert (stats.releases_waiting, stats.requests_waiting, stats.mails_waiting) == (1, 2, 1)
    assert (stats.digests_due, stats.oldest_digest_due_at, stats.heartbeat_at) == (1, at, at)
    assert store.stats(at + 2 * DAY).digests_due == 2
    assert store.health(at + HOUR) == stats
    send_digest(store, ALICE, at + HOUR)
    assert store.stats(at + HOUR).digests_due == 0


def test_ping_returns(store: Store) -> None:
    store.ping()


def test_close_may_be_called_twice(store_url: str) -> None:
    opened = open_store(store_url)
    opened.ping()
    opened.close()
    opened.close()


def test_an_unknown_kind_of_store_is_named() -> None:
    with pytest.raises(ValueError, match="mysql"):
        open_store("mysql://localhost/quarantine")


def test_everything_is_still_there_after_opening_again(store: Store, store_url: str) -> None:
    data, at = mail(size_bytes=5_000), now()
    held = hold(store, data)
    defer(store, held, at)
    delete(store, held, at, 1)
    later = hold(store, recipients=[ALICE])
    with digesting(store, ALICE, at, 10, ignore_schedule=True) as digest:
        pass
    store.recipients.set_digests_stopped(ALICE, at)
    store.recipients.revoke_links(ALICE, at)
    store.recipients.forget_devices(ALICE, at)
    store.recipients.schedule(BOB, at)
    store.outbox.add(QueuedMail(BOB, b"one"), at)
    store.sign_ins.start_session(SESSION, BOB, at)
    pending = sign_in(1, at)
    start(store, pending)
    store.notes.set_default("links.key", "one")
    store.heartbeat(at)

    def seen(opened: Store) -> list[object]:
        return [
            opened.deliveries.of_message(held.id),
            opened.deliveries.of_message(later.id),
            opened.deliveries.history(DeliveryId(held.id, 0)),
            opened.deliveries.search(Filter(), 100),
            opened.deliveries.list_for(Reader(ALICE), EVERY_STATE, 100),
            opened.recipients.get(ALICE),
            opened.recipients.get(BOB),
            opened.digests.last(ALICE),
            opened.digests.recipient_of(digest.id).recipient,
            opened.deliveries.due_releases(at + DAY, 10),
            opened.sign_ins.session(SESSION, at),
            opened.sign_ins.get(pending.token_sha256, at),
            opened.notes.set_default("links.key", "two"),
            opened.stats(at + HOUR),
            held_bytes(opened, held.id),
        ]

    before = seen(store)
    store.close()
    again = open_store(store_url)
    try:
        assert seen(again) == before
        assert hold(again, data) == Held(held.id, known=True)
    finally:
        again.close()


def day_after_tomorrow() -> datetime:
    """Return a time for which all mail held now is old: PostgreSQL drops whole UTC days."""
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + 2 * DAY


def test_a_purge_removes_old_mail_with_all_that_belongs_to_it(store: Store) -> None:
    data, at = mail(), now()
    held, released = hold(store, data, queue_id="AAA"), hold(store)
    release(store, released, at)
    delete(store, released, at, 1)
    store.digests.record_link_open(ALICE, at.replace(microsecond=0), LinkOpen(DeliveryId(held.id, 0), at), at)
    purged = store.purge(day_after_tomorrow(), day_after_tomorrow())
    assert (purged.messages, purged.kept) == (2, 0)
    for call in (
        lambda: store.deliveries.get(DeliveryId(held.id, 0)),
        lambda: store.deliveries.of_message(held.id),
        lambda: store.deliveries.get_for(Reader(ALICE), held.id),
        lambda: store.deliveries.history(DeliveryId(held.id, 0)),
        lambda: next(iter(store.messages.body(held.id))),
        lambda: delete(store, held, at),
        lambda: release(store, held, at),
    ):
        with pytest.raises(NotFound):
            call()
    assert not list(store.messages.find("AAA"))
    assert not list(store.messages.find(str(held.id)))
    assert store.deliveries.search(Filter(), 10) == Page((), None)
    assert store.deliveries.list_for(Reader(ALICE), EVERY_STATE, 10) == Page((), None)
    assert not list(store.digests.unannounced(Reader(ALICE), 10))
    again = hold(store, data)
    assert not again.known
    assert again.id != held.id
    assert held_bytes(store, again.id) == data


def test_a_purge_keeps_newer_mail(store: Store) -> None:
    data = mail()
    held = hold(store, data)
    purged = store.purge(day_after_tomorrow() - 2 * DAY, now())
    assert (purged.messages, purged.kept) == (0, 0)
    assert held_bytes(store, held.id) == data
    assert hold(store, data) == Held(held.id, known=True)


def test_mail_that_somebody_waits_for_outlives_retention(store: Store) -> None:
    datas, at = [mail() for _ in range(3)], now()
    gone, requested, releasing = (hold(store, data, queue_id="AAA") for data in datas)
    request_release(store, requested, at)
    defer(store, releasing, at, 1)
    old = day_after_tomorrow()
    for removed in (1, 0):
        purged = store.purge(old, old)
        assert (purged.messages, purged.kept) == (removed, 2)
        with pytest.raises(NotFound):
            store.deliveries.get(DeliveryId(gone.id, 0))
        assert [d.state for d in store.deliveries.of_message(requested.id)] == [State.REQUESTED, State.HELD]
        assert [d.state for d in store.deliveries.of_message(releasing.id)] == [State.HELD, State.RELEASING]
        assert held_bytes(store, requested.id) == datas[1]
        assert held_bytes(store, releasing.id) == datas[2]
        assert [e.kind for e in store.deliveries.history(DeliveryId(requested.id, 0))] == ["held", "requested"]
        assert {m.id for m in store.messages.find("AAA")} == {requested.id, releasing.id}
        assert len(store.deliveries.search(Filter(), 10).deliveries) == 4
        assert {d.id for d in store.deliveries.list_for(Reader(ALICE), EVERY_STATE, 10).deliveries} == {
            requested.id,
            releasing.id,
        }
        assert list(store.deliveries.due_releases(at + DAY, 10)) == [(releasing.id, 1)]
        assert hold(store, datas[1]) == Held(requested.id, known=True)
    release(store, releasing, old, 1)
    store.deliveries.move(
        DeliveryId(requested.id, 0),
        State.HELD,
        {State.REQUESTED},
        BY_OPERATOR,
        old,
        kind=EventKind.REFUSED,
        reason="no",
    )
    purged = store.purge(old, old)
    assert (purged.messages, purged.kept) == (2, 0)
    assert store.deliveries.search(Filter(), 10) == Page((), None)
    assert not hold(store, datas[1]).known


def test_mail_that_is_being_released_survives_a_purge(store: Store) -> None:
    data = mail(size_bytes=3_000_000)
    held, at, old = hold(store, data), now(), day_after_tomorrow()
    with claim(store, held, at):
        pieces = store.messages.body(held.id)
        first = next(pieces)
        assert store.purge(old, old).kept == 1
        assert first + b"".join(pieces) == data
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASED


def test_digests_are_known_for_60_days_although_their_mail_is_gone(store: Store) -> None:
    hold(store)
    at = now()
    with digesting(store, ALICE, at, 10, ignore_schedule=True) as digest:
        pass
    store.purge(day_after_tomorrow(), at + 59 * DAY)
    assert store.digests.recipient_of(digest.id).recipient == ALICE
    last = store.digests.last(ALICE)
    assert last is None or (last.id, last.deliveries) == (digest.id, ())


def test_a_purge_keeps_people_and_their_preferences(store: Store) -> None:
    hold(store)
    at = now()
    store.recipients.set_digests_stopped(ALICE, at)
    store.recipients.revoke_links(BOB, at)
    store.recipients.forget_devices("carol@example.org", at)
    prefer(store, MALLORY, CHOSEN)
    store.notes.set_default("links.key", "one")
    store.purge(day_after_tomorrow(), at + 40 * DAY)
    assert store.recipients.get(ALICE).stopped_at == at
    assert store.recipients.get(BOB).links_valid_from == at
    assert store.recipients.get("carol@example.org").devices_valid_from == at
    assert store.recipients.get(MALLORY).preferences == CHOSEN
    assert store.notes.set_default("links.key", "two") == "one"


def test_a_purge_removes_what_has_expired_and_keeps_the_rest(store: Store) -> None:
    at = now()
    pending = sign_in(1, at)
    start(store, pending)
    store.sign_ins.start_session(SESSION, ALICE, at)
    store.outbox.add(QueuedMail(ALICE, b"one"), at)
    store.purge(at - DAY, at + MINUTE)
    assert store.sign_ins.get(pending.token_sha256, at + MINUTE) == pending
    assert (found := store.sign_ins.session(SESSION, at + MINUTE)) and found.recipient == ALICE
    assert store.stats(at).mails_waiting == 2
    store.purge(at - DAY, at + 30 * DAY)
    with pytest.raises(LinkInvalid):
        store.sign_ins.get(pending.token_sha256, at)
    assert store.sign_ins.session(SESSION, at) is None


def test_mail_held_while_a_purge_runs_is_kept(store: Store, second: Store) -> None:
    old = day_after_tomorrow() - 2 * DAY
    results = concurrently(8, lambda n: hold(second) if n else store.purge(old, now()))
    for held in results[1:]:
        assert held_bytes(store, held.id)


def test_preparing_days_changes_nothing_for_mail(store: Store) -> None:
    data = mail()
    held = hold(store, data)
    store.prepare_days(now(), 30)
    store.prepare_days(now() + DAY, 30)
    store.prepare_days(now() + 5 * DAY, 30)
    assert held_bytes(store, held.id) == data
    assert not hold(store).known
    assert store.purge(day_after_tomorrow(), day_after_tomorrow()).messages == 2


def test_errors_name_no_mail(store: Store) -> None:
    """Errors are shown in logs and on pages, so they may contain ids only."""
    held = hold(store, subject="Secret plan")
    release(store, held, now())
    with pytest.raises(AlreadyDone) as error:
        delete(store, held, now())
    assert not re.search("Secret|promo|example", str(error.value))
