"""`Digests` on every store: due, claimed, settled, requested, and looked up."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from threading import Thread
from uuid import UUID

import pytest

from portal.model.errors import AlreadyDone, NotFound, RelayDeferred, RelayRefused
from portal.model.message import DeliveryId, EventKind, Reader, State, held_at
from portal.model.schedule import Preferences
from portal.stores import LEASE, Store
from portal.stores.records import DigestRequest, Held, LinkOpen, Unsent
from tests.builders import ALICE, BOB, BY_LINK, MALLORY, digesting, hold, now, prefer
from tests.contract.helpers import (
    CHOSEN,
    DAY,
    HOUR,
    MINUTE,
    SECOND,
    UNKNOWN,
    call_and_exit,
    claimed,
    concurrently,
    defer,
    delete,
    due,
    keys,
    release,
    request_release,
    send_digest,
)

SALES, INFO = "sales@example.org", "info@example.org"


def test_who_was_sent_a_digest_before(store: Store) -> None:
    hold(store, recipients=[ALICE, BOB])
    assert store.digests.last_sent([]) == {}
    with digesting(store, ALICE, now(), 10, ignore_schedule=True):
        assert store.digests.last_sent([ALICE, BOB]) == {}, "it is claimed, and not sent yet"
    assert store.digests.last_sent([ALICE, BOB]).keys() == {ALICE}
    assert store.digests.last_sent([BOB]) == {}


def test_a_digest_has_the_preferences_of_its_recipient(store: Store) -> None:
    hold(store, recipients=[ALICE])
    prefer(store, ALICE, CHOSEN)
    with digesting(store, ALICE, now(), 10, ignore_schedule=True) as digest:
        assert digest.preferences == CHOSEN
    last = store.digests.last(ALICE)
    assert last is not None
    assert last.preferences == CHOSEN


def test_announce_marks_only_those_named(store: Store) -> None:
    hold(store, announce=[ALICE])
    assert store.recipients.get(ALICE).news_since is not None
    assert store.recipients.get(BOB).news_since is None
    assert [p.recipient for p in store.recipients.unscheduled(10)] == [ALICE]


def test_openings_of_one_digest_come_back_oldest_first(store: Store) -> None:
    held, at = hold(store), now()
    issued = at.replace(microsecond=0)
    opens = [LinkOpen(DeliveryId(held.id, n % 2), at + n * SECOND) for n in range(4)]
    for n, opening in enumerate(opens):
        assert list(store.digests.record_link_open(ALICE, issued, opening, at)) == opens[: n + 1]
    late = LinkOpen(DeliveryId(held.id, 0), at + 20 * SECOND)
    assert list(store.digests.record_link_open(ALICE, issued, late, at + 2 * SECOND)) == [*opens[2:], late]
    other = LinkOpen(DeliveryId(held.id, 0), at + 21 * SECOND)
    assert list(store.digests.record_link_open(ALICE, issued - DAY, other, at)) == [other]
    assert list(store.digests.record_link_open(BOB, issued, other, at)) == [other]


@pytest.mark.slow
def test_no_more_than_500_openings_come_back_and_this_one_is_among_them(store: Store) -> None:
    held, at = hold(store), now()
    for n in range(502):
        this = LinkOpen(DeliveryId(held.id, 0), at + n * SECOND)
        found = store.digests.record_link_open(ALICE, at.replace(microsecond=0), this, at)
    assert len(found) == 500
    assert this in found


def test_a_requested_digest_is_due_at_once_and_has_the_news(store: Store) -> None:
    held, at = hold(store), now()
    store.recipients.schedule(ALICE, at + DAY)
    assert store.digests.request(Reader(ALICE), at, at - HOUR) is DigestRequest.DUE
    assert list(store.digests.due(at, 10)) == [ALICE]
    store.recipients.schedule(ALICE, at + DAY)
    with digesting(store, ALICE, at, 10) as digest:
        assert keys(digest.deliveries) == [(held.id, 0)]
    assert [p.recipient for p in store.recipients.unscheduled(10)] == [BOB]


def test_a_requested_digest_without_news_repeats_what_is_still_held(store: Store) -> None:
    helds, at = [hold(store, recipients=[ALICE, BOB]) for _ in range(4)], now()
    send_digest(store, ALICE, at)
    send_digest(store, BOB, at)
    delete(store, helds[0], at)
    release(store, helds[1], at)
    assert store.digests.request(Reader(ALICE), at + HOUR, at) is DigestRequest.DUE
    assert list(store.digests.due(at + HOUR, 10)) == [ALICE]
    expected = [(held.id, 0) for held in helds[2:]]
    assert keys(store.digests.unannounced(Reader(ALICE), 10)) == expected
    with digesting(store, ALICE, at + HOUR, 10) as digest:
        assert keys(digest.deliveries) == expected
    last = store.digests.last(ALICE)
    assert last is not None
    assert (last.id, keys(last.deliveries)) == (digest.id, expected)
    assert not list(store.digests.due(None, 10))
    assert not list(store.digests.unannounced(Reader(BOB), 10))


def test_a_requested_digest_announces_only_news_when_there_are_any(store: Store) -> None:
    hold(store, recipients=[ALICE])
    at = now()
    send_digest(store, ALICE, at)
    later = hold(store, recipients=[ALICE], announce=[])
    assert store.digests.request(Reader(ALICE), at, at - HOUR) is DigestRequest.DUE
    assert send_digest(store, ALICE, at) == [(later.id, 0)]


def test_a_digest_can_be_requested_once_an_hour(store: Store) -> None:
    hold(store)
    at = now()
    assert store.digests.request(Reader(ALICE), at, at - HOUR) is DigestRequest.DUE
    for minutes in (0, 1, 59):
        assert (
            store.digests.request(Reader(ALICE), at + minutes * MINUTE, at + (minutes - 60) * MINUTE)
            is DigestRequest.TOO_SOON
        )
    assert store.digests.request(Reader(BOB), at, at - HOUR) is DigestRequest.DUE
    assert store.digests.request(Reader(ALICE), at + HOUR, at) is DigestRequest.DUE


def test_of_20_concurrent_requests_for_a_digest_one_succeeds(store: Store, second: Store) -> None:
    hold(store)
    at = now()
    results = concurrently(20, lambda n: (second if n % 2 else store).digests.request(Reader(ALICE), at, at - HOUR))
    assert sorted(a.name for a in results) == ["DUE"] + ["TOO_SOON"] * 19


def test_a_request_without_held_mail_or_with_stopped_digests_gets_nothing(store: Store) -> None:
    at = now()
    assert store.digests.request(Reader(MALLORY), at, at - HOUR) is DigestRequest.NOTHING
    held = hold(store, recipients=[ALICE])
    store.recipients.set_digests_stopped(ALICE, at)
    assert store.digests.request(Reader(ALICE), at, at - HOUR) is DigestRequest.NOTHING
    store.recipients.set_digests_stopped(ALICE, None)
    send_digest(store, ALICE, at)
    delete(store, held, at)
    assert store.digests.request(Reader(ALICE), at, at - HOUR) is DigestRequest.NOTHING
    hold(store, recipients=[ALICE])
    assert store.digests.request(Reader(ALICE), at, at - HOUR) is DigestRequest.DUE, (
        "requests without a result do not count"
    )


def test_a_digest_yields_what_is_held_and_was_never_announced_oldest_first(store: Store) -> None:
    helds = [hold(store) for _ in range(6)]
    at = now()
    delete(store, helds[0], at)
    release(store, helds[1], at)
    request_release(store, helds[2], at)
    defer(store, helds[3], at)
    hold(store, recipients=[BOB])
    expected = [(id, 0) for id in sorted(held.id for held in helds[4:])]
    assert keys(store.digests.unannounced(Reader(ALICE), 10)) == expected
    assert keys(store.digests.unannounced(Reader(ALICE), 1)) == expected[:1]
    with digesting(store, ALICE, at, 100, ignore_schedule=True) as digest:
        assert keys(digest.deliveries) == expected
        assert (digest.recipient, digest.address) == (ALICE, ALICE)
        assert abs(digest.issued_at - at) < SECOND
        assert digest.issued_at.microsecond == 0
    assert not list(store.digests.unannounced(Reader(ALICE), 10))
    assert all(store.deliveries.get(DeliveryId(*name)).announced_at for name in expected)
    assert store.deliveries.get(DeliveryId(helds[4].id, 1)).announced_at is None
    assert keys(store.digests.unannounced(Reader(BOB), 10)) != []


def test_after_a_digest_there_are_no_news(store: Store) -> None:
    hold(store, recipients=[ALICE])
    at = now()
    store.recipients.schedule(ALICE, at)
    with digesting(store, ALICE, at, 100):
        pass
    person = store.recipients.get(ALICE)
    assert (person.news_since, person.next_digest_at) == (None, None)
    assert not list(store.digests.due(at + DAY, 10))
    assert not list(store.digests.due(None, 10))
    assert not list(store.recipients.unscheduled(10))
    for at_once_ in (False, True):
        with pytest.raises(AlreadyDone), digesting(store, ALICE, at + DAY, 100, ignore_schedule=at_once_):
            pytest.fail("entered")


def test_announced_mail_is_not_announced_again(store: Store) -> None:
    held, at = hold(store, recipients=[ALICE]), now()
    assert send_digest(store, ALICE, at) == [(held.id, 0)]
    delete(store, held, at)
    store.deliveries.move(DeliveryId(held.id, 0), State.HELD, {State.DELETED}, BY_LINK, at, kind=EventKind.RESTORED)
    later = hold(store, recipients=[ALICE])
    assert send_digest(store, ALICE, at) == [(later.id, 0)]


def test_a_digest_goes_to_the_address_as_last_written(store: Store) -> None:
    hold(store, recipients=["ALICE@example.org"])
    hold(store, recipients=["Alice@Example.org"])
    with digesting(store, ALICE, now(), 10, ignore_schedule=True) as digest:
        assert digest.address == "Alice@Example.org"


def test_a_digest_that_is_not_due_is_not_entered(store: Store) -> None:
    hold(store)
    at = now()
    with pytest.raises(AlreadyDone), digesting(store, ALICE, at, 10):
        pytest.fail("entered: it has no time yet")
    store.recipients.schedule(ALICE, at + HOUR)
    with pytest.raises(AlreadyDone), digesting(store, ALICE, at, 10):
        pytest.fail("entered: too early")
    with pytest.raises(AlreadyDone), digesting(store, MALLORY, at, 10, ignore_schedule=True):
        pytest.fail("entered: nothing is known about her")
    with digesting(store, ALICE, at + HOUR, 10) as digest:
        assert len(digest.deliveries) == 1


def test_a_stopped_digest_waits_until_it_is_resumed(store: Store) -> None:
    at = now()
    store.recipients.set_digests_stopped(ALICE, at)
    held = hold(store, recipients=[ALICE])
    assert store.recipients.get(ALICE).stopped_at == at
    assert not list(store.recipients.unscheduled(10))
    store.recipients.schedule(ALICE, at)
    assert not list(store.digests.due(at + DAY, 10))
    assert not list(store.digests.due(None, 10))
    for at_once_ in (False, True):
        with pytest.raises(AlreadyDone), digesting(store, ALICE, at + DAY, 10, ignore_schedule=at_once_):
            pytest.fail("entered")
    store.recipients.set_digests_stopped(ALICE, None)
    assert store.recipients.get(ALICE).stopped_at is None
    assert list(store.digests.due(None, 10)) == [ALICE]
    assert send_digest(store, ALICE, at + DAY) == [(held.id, 0)]


def test_a_digest_is_claimed_by_one(store: Store, second: Store) -> None:
    hold(store)
    at = now()
    store.recipients.schedule(ALICE, at)
    with digesting(store, ALICE, at, 10):
        assert not list(second.digests.due(at + LEASE - SECOND, 10))
        for at_once_ in (False, True):
            with (
                pytest.raises(AlreadyDone),
                digesting(second, ALICE, at + LEASE - SECOND, 10, ignore_schedule=at_once_),
            ):
                pytest.fail("entered")


def test_of_20_concurrent_digests_exactly_one_is_sent(store: Store, second: Store) -> None:
    hold(store, recipients=[ALICE])
    at, sent = now(), []
    store.recipients.schedule(ALICE, at)

    def work(number: int) -> None:
        with digesting((store, second)[number % 2], ALICE, at, 10) as digest:
            sent.append(digest)

    results = concurrently(20, work)
    assert len(sent) == 1
    assert sum(isinstance(r, AlreadyDone) for r in results) == 19


def test_a_digest_whose_process_died_is_sent_again_under_the_same_id(store: Store, store_url: str) -> None:
    held, at = hold(store, recipients=[ALICE]), now()
    store.recipients.schedule(ALICE, at)
    [dead] = call_and_exit(store_url, "digests.claim", at, 1, 10, only=[ALICE]).digests
    assert keys(dead.deliveries) == [(held.id, 0)]
    assert store.digests.recipient_of(dead.id).recipient == ALICE  # its mail may have gone out: the links in it work
    assert not list(store.digests.due(at + LEASE - SECOND, 10))
    with pytest.raises(AlreadyDone), digesting(store, ALICE, at + LEASE - SECOND, 10):
        pytest.fail("entered")
    later = at + LEASE + SECOND
    assert list(store.digests.due(later, 10)) == [ALICE]
    with digesting(store, ALICE, later, 10) as digest:
        assert digest.id == dead.id
        assert keys(digest.deliveries) == [(held.id, 0)]
    hold(store, recipients=[ALICE])
    with digesting(store, ALICE, later, 10, ignore_schedule=True) as digest:
        assert digest.id != dead.id


def test_links_of_a_digest_that_may_have_arrived_work_after_the_clock_was_set_back(store: Store) -> None:
    at = now()
    [who] = due(store, 1, at)
    [dead] = store.digests.claim(at + 2 * DAY, 1, 10).digests  # its process sends the mail and dies
    store.repair_clock_skew(at)
    [repeated] = store.digests.claim(at + SECOND, 1, 10).digests
    assert repeated.id == dead.id
    store.digests.settle([], [Unsent(repeated, failure="550 no")], at + SECOND)
    assert store.digests.recipient_of(dead.id).recipient == who


@pytest.mark.parametrize(
    ("error", "not_before", "at_last"),
    [
        (RelayDeferred("451 busy"), LEASE, LEASE + HOUR),
        (RuntimeError("a bug"), LEASE, LEASE + HOUR),
        (KeyboardInterrupt(), LEASE, LEASE + HOUR),
        (RelayRefused("550 no"), HOUR, HOUR),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_digest_that_failed_announces_nothing_and_is_due_again(
    store: Store, error: BaseException, not_before: timedelta, at_last: timedelta
) -> None:
    held, at = hold(store, recipients=[ALICE]), now()
    store.recipients.schedule(ALICE, at)
    with pytest.raises(type(error)) as raised, digesting(store, ALICE, at, 10):
        raise error
    assert raised.value is error
    assert store.deliveries.get(DeliveryId(held.id, 0)).announced_at is None
    assert store.digests.last(ALICE) is None
    assert store.recipients.get(ALICE).news_since == held_at(held.id)
    assert keys(store.digests.unannounced(Reader(ALICE), 10)) == [(held.id, 0)]
    assert not list(store.digests.due(at + not_before - SECOND, 10))
    with pytest.raises(AlreadyDone), digesting(store, ALICE, at + not_before - SECOND, 10):
        pytest.fail("entered")
    assert list(store.digests.due(at + at_last + SECOND, 10)) == [ALICE]
    with digesting(store, ALICE, at + at_last + SECOND, 10) as digest:
        assert keys(digest.deliveries) == [(held.id, 0)]


def test_mail_that_arrives_while_a_digest_is_sent_is_announced_next_time(store: Store, second: Store) -> None:
    first, at = hold(store, recipients=[ALICE]), now()
    store.recipients.schedule(ALICE, at)
    with digesting(store, ALICE, at, 10) as digest:
        arrived = hold(second, recipients=[ALICE])
        assert keys(digest.deliveries) == [(first.id, 0)]
    assert store.recipients.get(ALICE).news_since == held_at(arrived.id)
    assert [p.recipient for p in store.recipients.unscheduled(10)] == [ALICE]
    assert send_digest(store, ALICE, at) == [(arrived.id, 0)]


def test_mail_that_does_not_fit_a_digest_is_announced_next_time(store: Store) -> None:
    ids = sorted(hold(store, recipients=[ALICE]).id for _ in range(3))
    at = now()
    assert send_digest(store, ALICE, at, limit=2) == [(id, 0) for id in ids[:2]]
    assert store.recipients.get(ALICE).news_since == held_at(ids[2])
    assert [p.recipient for p in store.recipients.unscheduled(10)] == [ALICE]
    assert send_digest(store, ALICE, at, limit=2) == [(ids[2], 0)]


def test_mail_acted_on_while_a_digest_is_sent_counts_as_announced(store: Store) -> None:
    held, at = hold(store, recipients=[ALICE]), now()
    with digesting(store, ALICE, at, 10, ignore_schedule=True):
        delete(store, held, at)
    store.deliveries.move(DeliveryId(held.id, 0), State.HELD, {State.DELETED}, BY_LINK, at, kind=EventKind.RESTORED)
    assert not list(store.digests.unannounced(Reader(ALICE), 10))


def test_a_digest_of_nothing_clears_the_news_and_counts_as_never_sent(store: Store) -> None:
    held, at = hold(store, recipients=[ALICE]), now()
    store.recipients.schedule(ALICE, at)
    delete(store, held, at)
    assert list(store.digests.due(at, 10)) == [ALICE]
    with digesting(store, ALICE, at, 10) as digest:
        assert digest.deliveries == ()
    assert store.recipients.get(ALICE).news_since is None
    assert not list(store.digests.due(at + DAY, 10))
    assert store.digests.last(ALICE) is None


def reschedule(store: Store, recipient: str, at: datetime) -> None:
    prefer(store, recipient, CHOSEN)  # unschedules the digest that is planned
    store.recipients.schedule(recipient, at)


def test_many_digests_are_claimed_and_settled_together(store: Store, second: Store) -> None:
    at = now()
    people = due(store, 7, at)
    reschedule(store, people[0], at + DAY)
    store.recipients.set_digests_stopped(people[1], at)
    first = store.digests.claim(at, 3, 10)
    assert claimed(first) == people[2:5]
    assert [len(digest.deliveries) for digest in first.digests] == [1, 1, 1]
    assert [store.digests.recipient_of(digest.id).recipient for digest in first.digests] == people[2:5]
    rest = second.digests.claim(at, 10, 10)
    assert claimed(rest) == people[5:]
    assert claimed(store.digests.claim(at, 10, 10)) == []
    assert claimed(store.digests.claim(at + LEASE - SECOND, 10, 10)) == []
    store.digests.settle(first.digests, [], at)
    second.digests.settle(rest.digests, [], at)
    assert list(store.digests.due(at + HOUR, 10)) == []
    for digest in (*first.digests, *rest.digests):
        assert store.digests.last(digest.recipient) is not None
        assert keys(store.digests.get(digest.id).deliveries) == keys(digest.deliveries)
        assert list(store.digests.unannounced(Reader(digest.recipient), 10)) == []
        assert store.recipients.get(digest.recipient).news_since is None


def test_digests_requested_by_name_are_claimed_or_refused_with_a_reason(store: Store) -> None:
    at = now()
    people = due(store, 4, at)
    reschedule(store, people[1], at + DAY)
    store.recipients.set_digests_stopped(people[2], at)
    claims = store.digests.claim(at, 10, 10, only=[MALLORY, *people])
    assert claimed(claims) == [people[0], people[3]]
    assert list(claims.refused) == [MALLORY, people[1], people[2]]
    assert claimed(store.digests.claim(at, 10, 10, only=people, ignore_schedule=True)) == [people[1]]


def test_digests_of_20_claimants_are_claimed_once_each(store: Store, second: Store) -> None:
    at = now()
    people = due(store, 30, at)
    got = concurrently(20, lambda number: claimed((store, second)[number % 2].digests.claim(at, 4, 10)))
    assert sorted(who for part in got for who in part) == people


def test_many_digests_together_stay_below_the_limit(store: Store) -> None:
    at = now()
    many, *few = people = due(store, 4, at)
    for _ in range(5):
        hold(store, recipients=[many])
    assert [len(digest.deliveries) for digest in store.digests.claim(at, 10, 4).digests] == [4]
    second = store.digests.claim(at, 10, 2)
    assert [len(digest.deliveries) for digest in second.digests] in ([1], [1, 1])
    rest = few[len(second.digests) :]
    assert claimed(store.digests.claim(at, 10, 100)) == rest, "digests above the limit are not claimed"
    assert len(people) == 4


def test_an_unattempted_digest_can_be_claimed_again(store: Store, second: Store) -> None:
    at = now()
    people = due(store, 2, at)
    claims = store.digests.claim(at, 2, 10)
    store.digests.settle(claims.digests[:1], [Unsent(claims.digests[1])], at)
    again = second.digests.claim(at, 2, 10)
    assert claimed(again) == people[1:]
    assert again.digests[0].failures == 0


def test_the_reply_of_a_mail_server_is_kept_until_a_digest_is_sent(store: Store) -> None:
    at = now()
    people = due(store, 3, at)
    digests = store.digests.claim(at, 3, 10).digests
    store.digests.settle(
        [],
        [
            Unsent(digests[0], not_before=at + LEASE, due_at=at + HOUR, failure="RCPT TO: 550 nobody"),
            Unsent(digests[1], not_before=at + LEASE),
            Unsent(digests[2], due_at=at + DAY, failure="RCPT TO: 450 busy"),
        ],
        at,
    )
    assert store.stats(at).digests_failing == 2
    failing = {person.recipient: person for person in store.recipients.failing(10)}
    assert set(failing) == {people[0], people[2]}
    assert failing[people[0]].failure == "RCPT TO: 550 nobody"
    assert abs((failing[people[2]].failed_at or at + DAY) - at) < SECOND
    assert [store.recipients.get(who).next_digest_at for who in people] == [at + HOUR, at - 2 * MINUTE, at + DAY]
    assert claimed(store.digests.claim(at + LEASE - SECOND, 3, 10)) == []
    again = store.digests.claim(at + HOUR, 3, 10, only=people, ignore_schedule=True).digests
    assert [digest.failures for digest in again] == [1, 0, 1]
    store.digests.settle(again, [], at + HOUR)
    assert store.recipients.failing(10) == []
    assert store.stats(at).digests_failing == 0
    assert store.recipients.get(people[0]).failure == ""


def test_a_digest_that_may_have_arrived_is_repeated_as_it_was(store: Store) -> None:
    """Mail programs may drop a second mail with the same Message-ID, so it must not be the only one with newer mail."""
    at = now()
    [who] = due(store, 1, at)
    [lost] = store.digests.claim(at, 1, 10).digests
    store.digests.settle([], [Unsent(lost, at + LEASE, failure="final dot: closed", may_have_arrived=True)], at)
    newer = hold(store, recipients=[who], at=at + SECOND)
    [repeated] = store.digests.claim(at + LEASE, 1, 10).digests
    assert (repeated.id, keys(repeated.deliveries)) == (lost.id, keys(lost.deliveries))
    store.digests.settle([repeated], [], at + LEASE)
    assert store.recipients.get(who).news_since == held_at(newer.id)
    assert send_digest(store, who, at + HOUR) == [(newer.id, 0)]


def test_a_digest_that_may_have_arrived_lists_the_same_whatever_the_clocks_of_hosts_are(store: Store) -> None:
    at = now()
    [who] = due(store, 1, at)
    hold(store, recipients=[who])
    [lost] = store.digests.claim(at, 1, 10, only=[who]).digests
    begun = replace(lost, deliveries=lost.deliveries[1:])  # a job holds back the other one
    store.digests.begin([begun])
    behind = hold(store, recipients=[who], at=at - HOUR)
    ahead = store.digests.upcoming(Reader(who), at, 10).digest
    [repeated] = store.digests.claim(at + LEASE, 1, 10, only=[who]).digests
    assert repeated.id == lost.id and keys(repeated.deliveries) == keys(ahead.deliveries) == keys(begun.deliveries)
    store.digests.begin([repeated])
    store.digests.settle([repeated], [], at + LEASE)
    assert (behind.id, 0) in send_digest(store, who, at + DAY)


def test_a_notice_that_may_have_arrived_lists_the_same_whatever_the_clocks_of_hosts_are(store: Store) -> None:
    at = now()
    prefer(store, ALICE, Preferences(notices=True))
    hold(store, recipients=[ALICE], at=at - SECOND)
    store.recipients.schedule(ALICE, at + DAY, notices=True)
    [lost] = store.digests.claim_notices(at, 1, 10)
    store.digests.begin([lost.notice])
    hold(store, recipients=[ALICE], at=at - 2 * SECOND)
    [repeated] = store.digests.claim_notices(at + LEASE, 1, 10)
    assert repeated.notice.id == lost.notice.id
    assert keys(repeated.notice.deliveries) == keys(lost.notice.deliveries) != []


def test_a_digest_that_did_not_arrive_is_followed_by_another_one_with_all_mail(store: Store) -> None:
    at = now()
    [who] = due(store, 1, at)
    [refused] = store.digests.claim(at, 1, 10).digests
    store.digests.settle([], [Unsent(refused, at + LEASE, failure="RCPT TO: 452 mailbox full")], at)
    with pytest.raises(NotFound):
        store.digests.get(refused.id)
    newer = hold(store, recipients=[who], at=at + SECOND)
    [next_one] = store.digests.claim(at + LEASE, 1, 10).digests
    assert next_one.id != refused.id
    assert keys(next_one.deliveries) == [*keys(refused.deliveries), (newer.id, 0)]


def test_a_late_failure_does_not_remove_the_digest_of_the_next_claim(store: Store, second: Store) -> None:
    at = now()
    [who] = due(store, 1, at)
    [slow] = store.digests.claim(at, 1, 10).digests
    later = at + LEASE + SECOND
    [other] = second.digests.claim(later, 1, 10).digests
    store.digests.settle([], [Unsent(slow, failure="451 busy")], later)
    assert store.digests.recipient_of(other.id).recipient == who
    second.digests.settle([other], [], later)
    last = store.digests.last(who)
    assert last is not None
    assert keys(last.deliveries) == keys(slow.deliveries)


def test_an_expired_claim_settles_what_was_sent_and_nothing_else(store: Store, second: Store) -> None:
    at = now()
    [who] = due(store, 1, at)
    slow, failed = store.digests.claim(at, 1, 10).digests[0], at + LEASE + SECOND
    other = second.digests.claim(failed, 1, 10).digests[0]
    store.digests.settle([], [Unsent(slow, due_at=at + DAY, failure="451 busy")], failed)
    assert store.recipients.get(who).next_digest_at == at - MINUTE
    store.digests.settle([slow], [], failed)
    assert list(store.digests.unannounced(Reader(who), 10)) == []
    assert store.recipients.get(who).news_since is not None, "only the current claim may clear the news"
    second.digests.settle([other], [], failed)
    assert store.recipients.get(who).news_since is None


def test_ignoring_the_schedule_skips_the_wait_for_a_retry_but_not_a_claim(store: Store) -> None:
    at = now()
    people = due(store, 1, at)
    first = store.digests.claim(at, 1, 10).digests
    assert claimed(store.digests.claim(at, 1, 10, only=people, ignore_schedule=True)) == []
    store.digests.settle([], [Unsent(first[0], not_before=at + HOUR)], at)
    assert claimed(store.digests.claim(at, 1, 10, only=people)) == []
    assert claimed(store.digests.claim(at, 1, 10, only=people, ignore_schedule=True)) == people


def test_unannounced_claims_nothing(store: Store) -> None:
    hold(store)
    at = now()
    store.recipients.schedule(ALICE, at)
    assert len(store.digests.unannounced(Reader(ALICE), 10)) == 1
    assert list(store.digests.due(at, 10)) == [ALICE]
    assert len(send_digest(store, ALICE, at)) == 1


@pytest.mark.parametrize("reader", [Reader(ALICE), Reader(ALICE, (ALICE, SALES), {INFO: (ALICE, BOB)})])
def test_the_upcoming_digest_is_that_of_a_claim(store: Store, reader: Reader) -> None:
    at = now()
    for recipient in ("Alice@Example.org", BOB, SALES, INFO, SALES, ALICE):
        hold(store, recipients=[recipient])
    delete(store, hold(store, recipients=[ALICE]), at)
    prefer(store, ALICE, CHOSEN)
    store.recipients.schedule(ALICE, at + DAY)
    for limit in (2, 100):
        found = store.digests.upcoming(reader, at, limit)
        [digest] = store.digests.claim(
            at, 1, limit, only=[ALICE], ignore_schedule=True, readers=lambda _: reader
        ).digests
        assert len(digest.deliveries) == min(limit, 2 if reader.is_plain else 5)
        assert replace(found.digest, id=digest.id) == digest
        assert (found.digest.reader, found.stopped_at, found.due_at, found.is_first) == (reader, None, at + DAY, True)
        assert store.digests.upcoming(reader, at, limit).digest.id == digest.id, "another try has the same id"
        store.digests.settle([], [Unsent(digest)], at)
    send_digest(store, ALICE, at)
    store.recipients.set_digests_stopped(ALICE, at)
    found = store.digests.upcoming(reader, at, 9)
    assert (found.stopped_at, found.due_at, found.is_first) == (at, None, False)


def test_upcoming_claims_nothing(store: Store) -> None:
    hold(store, recipients=[ALICE])
    at = now()
    store.recipients.schedule(ALICE, at)
    before = (store.recipients.get(ALICE), list(store.digests.records(None, 9)), store.digests.due(at, 9))
    assert len(store.digests.upcoming(Reader(ALICE), at, 10).digest.deliveries) == 1
    assert (store.recipients.get(ALICE), list(store.digests.records(None, 9)), store.digests.due(at, 9)) == before
    assert store.digests.upcoming(Reader(MALLORY), at, 10).digest.deliveries == ()
    assert [person.recipient for person in store.recipients.records("", 9)] == [ALICE]
    assert len(send_digest(store, ALICE, at)) == 1


def test_the_next_digest_knows_whose_mail_was_released(store: Store) -> None:
    hers = [hold(store, recipients=[ALICE], header_from=f"Ä{n} <a{n}@b.example>") for n in range(2)]
    his = hold(store, recipients=[BOB], header_from='"B" <b@b.example>')
    hold(store, header_from="<c@b.example>")
    for held in (*hers, his):
        release(store, held, now())
    both = Reader(ALICE, shared={BOB: (ALICE, BOB)})
    for reader, names in ((Reader(ALICE), [ALICE]), (both, [ALICE, BOB]), (Reader(MALLORY), [MALLORY])):
        expected = [header for each in store.deliveries.released_from(names, 9).values() for header in each]
        assert sorted(store.digests.upcoming(reader, now(), 10).released_from) == sorted(expected)


def test_the_last_digest_can_be_looked_up(store: Store) -> None:
    helds, at = [hold(store) for _ in range(3)], now()
    assert store.digests.last(ALICE) is None
    with digesting(store, ALICE, at, 2, ignore_schedule=True) as first:
        pass
    last = store.digests.last(ALICE)
    assert last
    assert replace(last, deliveries=()) == replace(first, deliveries=())
    assert keys(last.deliveries) == keys(first.deliveries)
    assert all(d.announced_at for d in last.deliveries)
    release(store, Held(first.deliveries[0].id, known=True), at)
    last = store.digests.last(ALICE)
    assert last
    assert [d.state for d in last.deliveries] == [State.RELEASED, State.HELD]
    with digesting(store, ALICE, at + HOUR, 10, ignore_schedule=True) as second:
        pass
    last = store.digests.last(ALICE)
    assert last
    assert last.id == second.id != first.id
    assert keys(last.deliveries) == [(max(h.id for h in helds), 0)]
    with pytest.raises(RelayDeferred), digesting(store, BOB, at, 10, ignore_schedule=True):
        raise RelayDeferred("451")
    assert store.digests.last(BOB) is None


def test_the_last_of_two_digests_in_one_second_is_the_last(store: Store) -> None:
    at = now().replace(microsecond=0)
    for n in range(5):
        held = hold(store, recipients=[ALICE])
        assert send_digest(store, ALICE, at + n * timedelta(milliseconds=100)) == [(held.id, 0)]
        last = store.digests.last(ALICE)
        assert last
        assert keys(last.deliveries) == [(held.id, 0)]


def test_a_digest_can_be_looked_up_by_its_id(store: Store) -> None:
    for _ in range(3):
        hold(store)
    at = now()
    with digesting(store, ALICE, at, 2, ignore_schedule=True) as first:
        assert keys(store.digests.get(first.id).deliveries) == [], "not recorded yet"
    release(store, Held(first.deliveries[0].id, known=True), at)
    with digesting(store, ALICE, at + HOUR, 10, ignore_schedule=True) as second:
        pass
    found = store.digests.get(first.id)
    assert found.person == store.recipients.get(ALICE)
    assert keys(found.deliveries) == keys(first.deliveries)
    assert [d.state for d in found.deliveries] == [State.RELEASED, State.HELD]
    assert {d.recipient for d in found.deliveries} == {ALICE}
    assert keys(store.digests.get(second.id).deliveries) == keys(second.deliveries)
    with pytest.raises(NotFound):
        store.digests.get(UNKNOWN)


def test_a_digest_belongs_to_its_recipient(store: Store) -> None:
    hold(store)
    with digesting(store, ALICE, now(), 10, ignore_schedule=True) as digest:
        assert store.digests.recipient_of(digest.id).recipient == ALICE
    assert store.digests.recipient_of(digest.id).recipient == ALICE
    with pytest.raises(NotFound):
        store.digests.recipient_of(UNKNOWN)


def test_mail_that_keeps_coming_while_digests_are_sent_is_announced_exactly_once(store: Store, second: Store) -> None:
    ids: list[UUID] = []
    announced: list[tuple[UUID, int]] = []

    def keep_holding() -> None:
        for _ in range(40):
            ids.append(hold(second, recipients=[ALICE]).id)

    holder = Thread(target=keep_holding)
    holder.start()
    while holder.is_alive():
        with suppress(AlreadyDone):
            announced += send_digest(store, ALICE, now(), limit=3)
    holder.join()
    store.recipients.find_news(now() - HOUR, None)
    with pytest.raises(AlreadyDone):
        while True:
            announced += send_digest(store, ALICE, now(), limit=50)
    assert sorted(announced) == sorted((id, 0) for id in ids)
