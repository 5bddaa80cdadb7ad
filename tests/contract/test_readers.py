"""The storage contract where a person reads more than one mailbox: their aliases and role mailboxes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import pytest

from portal.model.errors import NotFound, RelayDeferred
from portal.model.message import Delivery, DeliveryId, EventKind, Filter, Reader, State
from portal.moving.copy import copy
from portal.stores import Store, open_store
from portal.stores.files.reindex import reindex
from portal.stores.files.store import FileStore
from portal.stores.records import DigestRequest
from tests.builders import ALICE, BOB, BY_LINK, MALLORY, digesting, hold, now

CAROL, SALES, INFO = "carol@example.org", "sales@example.org", "info@example.org"
HOUR = timedelta(hours=1)
A = Reader(ALICE, (ALICE, SALES), {INFO: (ALICE, BOB)})
B = Reader(BOB, (BOB,), {INFO: (ALICE, BOB)})


@pytest.fixture
def second(store_url: str, store: Store) -> Iterator[Store]:
    opened = open_store(store_url)
    yield opened
    opened.close()


def announce(store: Store, reader: Reader | str, limit: int = 50) -> list[tuple[str, str]]:
    """Send a digest now; return the recipients and subjects of its deliveries."""
    with digesting(store, reader, now(), limit, ignore_schedule=True) as digest:
        return [(delivery.recipient, delivery.message.subject) for delivery in digest.deliveries]


def unannounced(store: Store, who: Reader | str) -> list[str]:
    reader = who if isinstance(who, Reader) else Reader(who)
    return [delivery.message.subject for delivery in store.digests.unannounced(reader, 50)]


def fill(store: Store) -> None:
    for n, recipient in enumerate((ALICE, SALES, INFO, BOB, MALLORY, INFO), 1):
        hold(store, recipients=[recipient], subject=f"{n}")
    store.recipients.pass_news_on(SALES, [ALICE])
    store.recipients.pass_news_on(INFO, [ALICE, BOB])


# ---- lists


def subjects(deliveries: tuple[Delivery, ...]) -> list[str]:
    return [delivery.message.subject for delivery in deliveries]


def test_a_list_holds_all_that_a_reader_reads_newest_first_page_by_page(store: Store) -> None:
    fill(store)
    assert subjects(store.deliveries.list_for(A, {State.HELD}, 9).deliveries) == ["6", "3", "2", "1"]
    assert subjects(store.deliveries.list_for(B, {State.HELD}, 9).deliveries) == ["6", "4", "3"]
    found, before = [], None
    while True:
        page = store.deliveries.list_for(A, {State.HELD}, 1, before)
        found += subjects(page.deliveries)
        before = page.next
        if before is None:
            break
    assert found == ["6", "3", "2", "1"]
    assert store.deliveries.list_for(A, {State.RELEASED}, 9).deliveries == ()


def test_a_reader_of_twenty_thousand_addresses_finds_their_mail(store: Store) -> None:
    many = Reader(ALICE, (ALICE, *(f"a{n}@example.org" for n in range(20_000))))
    for n, recipient in enumerate((ALICE, "a19999@example.org", MALLORY)):
        hold(store, recipients=[recipient], subject=f"invoice {n}")
    for words in ("", "invoice"):
        assert subjects(
            store.deliveries.matching(many, Filter(states=frozenset({State.HELD}), words=words), 9).deliveries
        ) == [
            "invoice 1",
            "invoice 0",
        ]


def test_a_reader_of_nothing_does_not_get_mail_without_recipients(store: Store) -> None:
    hold(store, recipients=[], subject="for nobody")
    nobody = Reader(ALICE, ())
    for words in ("", "nobody"):
        assert (
            store.deliveries.matching(nobody, Filter(states=frozenset({State.HELD}), words=words), 9).deliveries == ()
        )
    assert unannounced(store, nobody) == []


def test_one_mail_to_several_addresses_of_a_reader_is_listed_for_each(store: Store) -> None:
    held = hold(store, recipients=[MALLORY, SALES, INFO, ALICE])
    page = store.deliveries.list_for(A, {State.HELD}, 2)
    rest = store.deliveries.list_for(A, {State.HELD}, 2, page.next)
    assert [(d.id, d.recipient) for d in (*page.deliveries, *rest.deliveries)] == [
        (held.id, ALICE), (held.id, INFO), (held.id, SALES),
    ]  # fmt: skip
    assert store.deliveries.get_for(A, held.id).recipient == SALES
    assert store.deliveries.get_for(A, held.id, 2).recipient == INFO
    for number in (0, 9):
        with pytest.raises(NotFound):
            store.deliveries.get_for(A, held.id, number)
    with pytest.raises(NotFound):
        store.deliveries.get_for(Reader(CAROL), held.id, 3)


def test_words_are_searched_in_all_that_a_reader_reads_and_nothing_else(store: Store) -> None:
    for recipient in (ALICE, SALES, INFO, BOB, MALLORY):
        hold(store, recipients=[recipient], subject=f"Cheap watches {recipient.partition('@')[0]}")
    found = store.deliveries.matching(A, Filter(states=frozenset({State.HELD}), words="watch"), 9)
    assert subjects(found.deliveries) == ["Cheap watches info", "Cheap watches sales", "Cheap watches alice"]
    assert store.deliveries.matching(A, Filter(states=frozenset({State.HELD}), words="mallory"), 9).deliveries == ()


def test_a_reader_of_nothing_finds_nothing(store: Store) -> None:
    fill(store)
    nobody = Reader(SALES, ())
    assert store.deliveries.list_for(nobody, {State.HELD}, 9).deliveries == ()
    assert store.digests.unannounced(nobody, 9) == []


# ---- announcements


def test_news_are_passed_on_to_the_readers(store: Store) -> None:
    held = hold(store, recipients=[INFO])
    first = store.recipients.get(INFO).news_since
    assert first is not None
    store.recipients.pass_news_on(INFO, [ALICE, BOB])
    assert (store.recipients.get(ALICE).news_since, store.recipients.get(BOB).news_since) == (first, first)
    assert store.recipients.get(INFO).news_since is None
    assert store.recipients.get(ALICE).address == ALICE
    store.recipients.pass_news_on(INFO, [CAROL])  # no news is left
    assert store.recipients.get(CAROL).news_since is None
    hold(store, recipients=[INFO])
    store.recipients.pass_news_on(INFO, [INFO, BOB])
    assert store.recipients.get(INFO).news_since is not None  # it is one of its own readers
    assert store.recipients.get(BOB).news_since == first  # unchanged
    assert held.id


def test_each_reader_is_notified_once_of_all_they_read(store: Store) -> None:
    fill(store)
    assert announce(store, A) == [(ALICE, "1"), (SALES, "2"), (INFO, "3"), (INFO, "6")]
    assert unannounced(store, A) == []
    assert store.recipients.get(ALICE).news_since is None
    hold(store, recipients=[INFO], subject="7")
    store.recipients.pass_news_on(INFO, [ALICE, BOB])
    assert announce(store, A) == [(INFO, "7")]
    assert announce(store, B) == [(INFO, "3"), (BOB, "4"), (INFO, "6"), (INFO, "7")]
    assert unannounced(store, A) == unannounced(store, B) == []


def test_a_delivery_is_announced_once_all_its_readers_were_notified(store: Store) -> None:
    held, alias = hold(store, recipients=[INFO]), hold(store, recipients=[SALES])
    store.recipients.pass_news_on(INFO, [ALICE, BOB])
    announce(store, A)
    assert store.deliveries.get(DeliveryId(alias.id, 0)).announced_at is not None
    assert store.deliveries.get(DeliveryId(held.id, 0)).announced_at is None
    assert store.recipients.with_unannounced([SALES, INFO], now() - HOUR) == [INFO]
    assert store.recipients.with_unannounced([SALES, INFO], now()) == []
    announce(store, B)
    assert store.deliveries.get(DeliveryId(held.id, 0)).announced_at is not None
    assert store.recipients.with_unannounced([SALES, INFO], now() - HOUR) == []


def test_a_new_reader_is_notified_of_mail_not_announced_to_former_ones(store: Store) -> None:
    fill(store)
    announce(store, A)
    assert unannounced(store, Reader(CAROL, (CAROL,), {INFO: (ALICE, CAROL)})) == ["3", "6"]
    assert unannounced(store, Reader(CAROL, (CAROL, SALES))) == []  # it was announced to alice, its only reader
    assert unannounced(store, Reader(ALICE, (ALICE, INFO))) == []  # it is not announced to her again when bob leaves


def test_a_mailbox_with_additional_readers_is_notified_as_they_are(store: Store) -> None:
    readers = {INFO: (INFO, BOB)}
    hold(store, recipients=[INFO], subject="1")
    store.recipients.pass_news_on(INFO, [INFO, BOB])
    assert announce(store, Reader(INFO, (), readers)) == [(INFO, "1")]
    assert unannounced(store, Reader(INFO, (), readers)) == []
    assert announce(store, Reader(BOB, (BOB,), readers)) == [(INFO, "1")]


def test_a_failed_digest_announces_nothing(store: Store) -> None:
    fill(store)
    with pytest.raises(RelayDeferred), digesting(store, A, now(), 50, ignore_schedule=True):
        raise RelayDeferred("busy")
    assert unannounced(store, A) == ["1", "2", "3", "6"]


def test_mail_that_does_not_fit_stays_news(store: Store) -> None:
    fill(store)
    assert announce(store, A, limit=3) == [(ALICE, "1"), (SALES, "2"), (INFO, "3")]
    assert store.recipients.get(ALICE).news_since is not None
    assert announce(store, A, limit=3) == [(INFO, "6")]
    assert store.recipients.get(ALICE).news_since is None


def test_many_readers_are_claimed_together_each_with_all_they_read(store: Store) -> None:
    fill(store)
    who = {ALICE: A, BOB: B}
    claims = store.digests.claim(
        now(),
        9,
        50,
        only=[ALICE, BOB, MALLORY],
        ignore_schedule=True,
        readers=lambda person: who.get(person, Reader(person)),
    )
    found = {digest.recipient: subjects(digest.deliveries) for digest in claims.digests}
    assert found == {ALICE: ["1", "2", "3", "6"], BOB: ["3", "4", "6"], MALLORY: ["5"]}
    store.digests.settle(claims.digests, [], now())
    assert [unannounced(store, reader) for reader in (A, B, MALLORY)] == [[], [], []]
    assert store.recipients.with_unannounced([ALICE, SALES, INFO, BOB, MALLORY], now() - HOUR) == []


def test_two_readers_notified_at_the_same_time_complete_an_announcement(store: Store, second: Store) -> None:
    for _ in range(5):
        held = hold(store, recipients=[INFO])
        store.recipients.pass_news_on(INFO, [ALICE, BOB])
        together = Barrier(2)

        def send(opened: Store, reader: Reader, together: Barrier = together) -> None:
            with digesting(opened, reader, now(), 50, ignore_schedule=True):
                together.wait(10)

        with ThreadPoolExecutor() as pool:
            for done in [pool.submit(send, store, A), pool.submit(send, second, B)]:
                done.result()
        assert store.deliveries.get(DeliveryId(held.id, 0)).announced_at is not None


def test_a_digest_is_looked_up_with_all_it_announced(store: Store) -> None:
    fill(store)
    announce(store, A)
    last = store.digests.last(ALICE)
    assert last is not None
    assert subjects(last.deliveries) == ["1", "2", "3", "6"]
    assert tuple(store.digests.get(last.id).deliveries) == last.deliveries
    assert store.digests.recipient_of(last.id).recipient == ALICE
    assert store.digests.last(BOB) is None


def test_a_digest_requested_again_repeats_what_is_held_for_all_addresses_of_its_reader(store: Store) -> None:
    fill(store)
    announce(store, A)
    announce(store, B)
    assert store.digests.request(A, now(), now() - HOUR) is DigestRequest.DUE
    assert store.recipients.get(ALICE).address == ALICE
    assert announce(store, A) == [(ALICE, "1"), (SALES, "2"), (INFO, "3"), (INFO, "6")]
    assert unannounced(store, B) == []
    # Mail that they no longer read is not repeated.
    assert store.digests.request(Reader(ALICE, (ALICE,)), now(), now() + HOUR) is DigestRequest.DUE
    assert announce(store, ALICE) == [(ALICE, "1")]


def test_news_of_a_role_mailbox_are_requested_at_the_readers_own_address(store: Store) -> None:
    hold(store, recipients=["Info@Example.org"])
    assert store.digests.request(B, now(), now() - HOUR) is DigestRequest.DUE
    assert store.recipients.get(BOB).address == BOB


# ---- purge, copy and reindex


def test_a_purge_removes_announcements_with_their_mail(store: Store) -> None:
    fill(store)
    announce(store, A)
    later = now() + timedelta(days=40)
    store.purge(later - timedelta(days=10), later)
    assert unannounced(store, B) == []
    if isinstance(store, FileStore):
        with store.db.read() as connection:
            assert connection.execute("SELECT count(*) FROM announced_to").fetchone() == (0,)


@pytest.mark.parametrize("way", ["files-to-postgres", "postgres-to-files"])
def test_a_copy_repeats_and_loses_no_announcement(way: str, files_url: str, postgres_dsn: str) -> None:
    urls = (files_url, postgres_dsn) if way == "files-to-postgres" else (postgres_dsn, files_url)
    store, target = map(open_store, urls)
    fill(store)
    announce(store, A)
    copy(store, target, lambda *_: None)
    assert unannounced(target, A) == []
    assert unannounced(target, B) == ["3", "4", "6"]
    last, there = store.digests.last(ALICE), target.digests.last(ALICE)
    assert last is not None
    assert there is not None
    assert subjects(there.deliveries) == subjects(last.deliveries)
    announce(store, B)
    copy(store, target, lambda *_: None)
    assert unannounced(target, B) == []
    for opened in (store, target):
        opened.close()


def test_a_rebuilt_database_repeats_and_loses_no_announcement(files_url: str) -> None:
    store = open_store(files_url)
    fill(store)
    held = hold(store, recipients=[INFO], subject="7")
    store.recipients.pass_news_on(INFO, [INFO, ALICE, BOB])
    announce(store, A)
    announce(store, Reader(INFO, (), {INFO: (INFO, ALICE, BOB)}))
    store.deliveries.move(DeliveryId(held.id, 0), State.DELETED, {State.HELD}, BY_LINK, now(), kind=EventKind.DELETED)
    store.close()
    reindex(files_url.removeprefix("files://"), lambda *_: None)
    store = open_store(files_url)
    assert unannounced(store, A) == []
    assert unannounced(store, B) == ["3", "4", "6"]
    last = store.digests.last(ALICE)
    assert last is not None
    assert subjects(last.deliveries) == ["1", "2", "3", "6", "7"]
    store.close()


def test_mail_announced_while_others_read_it_too_is_no_news_after_they_leave(store: Store) -> None:
    hold(store, recipients=[ALICE], subject="during her leave")
    assert announce(store, Reader(ALICE, (), {ALICE: (ALICE, BOB)})) == [(ALICE, "during her leave")]
    hold(store, recipients=[ALICE], subject="after it")
    hold(store, recipients=[BOB], subject="his own")
    back, bob = Reader(ALICE, (ALICE,)), Reader(BOB, (BOB,))
    assert unannounced(store, back) == ["after it"]
    claims = store.digests.claim(
        now(), 5, 50, only=[ALICE, BOB], ignore_schedule=True, readers=lambda who: back if who == ALICE else bob
    )
    assert [[d.message.subject for d in digest.deliveries] for digest in claims.digests] == [["after it"], ["his own"]]
    store.digests.settle(claims.digests, [], now())
    assert store.recipients.get(ALICE).news_since is None
