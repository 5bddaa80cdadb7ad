"""The storage contract, sentence by sentence, on every store. What only one store has is tested elsewhere."""

from __future__ import annotations

import io
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import fields, replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from threading import Barrier, Thread
from typing import Any
from uuid import UUID

import pytest

from portal.model.errors import (
    AlreadyDone,
    BodyMissing,
    LinkInvalid,
    NotFound,
    QuarantineError,
    RelayDeferred,
    RelayRefused,
    StoreUnavailable,
)
from portal.model.message import (
    Body,
    Delivery,
    DeliveryId,
    EventKind,
    Filter,
    Flag,
    Message,
    Reader,
    State,
    Symbol,
    Tier,
    held_at,
    new_id,
)
from portal.model.schedule import Preferences
from portal.stores import LEASE, Store, open_store
from portal.stores.records import (
    Claims,
    DigestRequest,
    Held,
    LinkOpen,
    Page,
    Person,
    QueuedMail,
    SignIn,
    SignInLimits,
    Unsent,
)
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, MALLORY, SENDER, body, digesting, export, hold, mail, now

SECOND, MINUTE, HOUR, DAY = (timedelta(seconds=s) for s in (1, 60, 3600, 86400))
ROOT = Path(__file__).resolve().parent.parent
UNKNOWN = UUID("019b76da-a800-7e8d-87d4-180303d39677")  # of 2026
EVERY_STATE = frozenset(State)


@pytest.fixture
def second(store_url: str, store: Store) -> Iterator[Store]:
    """The same store opened once more, as another process has it."""
    opened = open_store(store_url)
    yield opened
    opened.close()


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


# ---- holding


AWKWARD = {
    "empty": b"",
    "only a line end": b"\r\n",
    "no line end": b"Subject: x",
    "empty lines": b"\r\n\r\n\r\nSubject: late\r\n\r\n\r\n",
    "LF only": b"Subject: x\n\nbody\n",
    "CR only": b"Subject: x\r\rbody\r",
    "mixed line ends": b"Subject: x\r\n folded\n bare\r\n\r\nbody\r\r\n.\r\n..\r\n",
    "NUL": b"Subject: \0\r\n\r\n\0\0\0",
    "8 bit": "Subject: Grüße\r\n\r\nŁódź 🎉\r\n".encode(),
    "not UTF-8": b"Subject: \xe4\xf6\xfc \xc3\r\n\r\n\xff\xfe\x80",
    "all octets": bytes(range(256)) * 20,
    "0xFF": b"\xff" * 70_000,
    "one endless line": b"Subject: x\r\n\r\n" + b"y" * 300_000,
    "3 MB random": os.urandom(3_000_000),
    "just over a piece": os.urandom(2**20 + 1),
    "3 MB text": b"The same line again.\r\n" * 150_000,
    "looks like zstd": b"\x28\xb5\x2f\xfd" * 10,
    "looks like a skippable frame": b"\x50\x2a\x4d\x18\x04\0\0\0abcd",
}


@pytest.mark.parametrize("name", AWKWARD)
def test_bytes_come_back_identical(store: Store, name: str) -> None:
    held = hold(store, AWKWARD[name])
    pieces = list(store.messages.body(held.id))
    assert b"".join(pieces) == AWKWARD[name]
    assert all(len(piece) <= 2**20 for piece in pieces)
    assert store.deliveries.get(DeliveryId(held.id, 0)).message.size_bytes == len(AWKWARD[name])


def test_every_message_of_the_corpus_comes_back_identical(store: Store) -> None:
    folders = [ROOT / "tests" / "data", ROOT.parent / "shared" / "corpus"]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    for path in files:
        data = path.read_bytes()
        held = hold(store, data, envelope_sender=f"{path.name}@example.net")
        assert held_bytes(store, held.id) == data, path


def test_a_body_can_be_read_twice_at_the_same_time(store: Store) -> None:
    data = os.urandom(2_500_000)
    held = hold(store, data)
    one, two = store.messages.body(held.id), store.messages.body(held.id)
    first = next(one)
    assert b"".join(two) == data
    assert first + b"".join(one) == data


def test_what_the_export_said_is_kept(store: Store) -> None:
    said = export(
        subject="Grüße 🎉 – 'quoted' \\ %s",
        header_from='"Łucja, X" <lucja@example.net>',
        queue_id="4f" * 40,
        message_id="a b@[::1]",
        action="add header",
        score=-0.125,
        client_ip="2001:db8::7",
        user="alice",
        symbols=(Symbol("A", 1.5, ("x=1", "Łódź", "")), Symbol("B", -2.25), Symbol("A", 0.0)),
        flags=frozenset({Flag.SYMBOLS, Flag.SCORE}),
        has_8bit=True,
    )
    data = mail()
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    held = store.messages.add(replace(said, size_bytes=len(data)), body(data), Tier.SUSPICIOUS, ())
    message = store.deliveries.get(DeliveryId(held.id, 1)).message
    assert message.id == held.id
    assert message.id.version == 7
    assert message.held_at == held_at(held.id)
    assert before <= message.held_at <= now()
    assert message.tier is Tier.SUSPICIOUS
    for name in {field.name for field in fields(Message)} - {"id", "held_at", "tier", "size_bytes"}:
        assert getattr(message, name) == getattr(said, name), name


def test_what_the_export_did_not_know_stays_unknown(store: Store) -> None:
    held = hold(
        store,
        envelope_sender=None,
        subject="",
        header_from="",
        queue_id=None,
        message_id=None,
        action=None,
        score=None,
        client_ip=None,
        user=None,
        symbols=(),
        flags=frozenset(Flag),
    )
    message = store.deliveries.get(DeliveryId(held.id, 0)).message
    unknown = (message.envelope_sender, message.queue_id, message.message_id, message.action, message.score)
    assert unknown == (None,) * 5
    assert (message.client_ip, message.user, message.subject, message.header_from) == (None, None, "", "")
    assert message.symbols == ()
    assert message.flags == frozenset(Flag)


def test_metadata_may_be_as_long_as_it_likes(store: Store) -> None:
    """Whatever a sender writes must not keep a mail from being held. Random text, since it does not compress."""

    def long(octets: int) -> str:
        return os.urandom(octets // 2).hex()

    recipient = f"{long(2_000)}@example.org"  # as much as Postfix takes in a line
    said: dict[str, Any] = {
        "envelope_sender": f"{long(8_000)}@example.net",
        "subject": long(100_000),
        "header_from": long(100_000),
        "queue_id": long(8_000),
        "message_id": long(8_000),
        "action": long(8_000),
        "user": long(8_000),
        "symbols": tuple(Symbol(f"SYMBOL_{n}", n / 7, (long(60), long(60))) for n in range(1000)),
    }
    held = hold(store, recipients=[recipient, BOB], **said)
    message = store.deliveries.get_for(Reader(recipient), held.id).message
    assert {name: getattr(message, name) for name in said} == said
    assert [m.id for m in store.messages.find(said["queue_id"])] == [held.id]
    assert tell(store, recipient, now()) == [(held.id, 0)]


@pytest.mark.parametrize(
    "address", ["o'brien%_\\@example.org", '"a b"@example.org', "ünï@example.org", "🎉@example.org"]
)
def test_addresses_are_taken_literally(store: Store, address: str) -> None:
    held = hold(store, recipients=[address], announce=())
    hold(store, recipients=["oxbrienxx@example.org"], announce=())
    assert store.recipients.find_news(now() - HOUR, {address}) == 1
    assert [p.recipient for p in store.recipients.unscheduled(10)] == [address]
    assert names(store.deliveries.list_for(Reader(address), {State.HELD}, 10).deliveries) == [(held.id, 0)]
    assert names(store.deliveries.search(Filter(recipient=address), 10).deliveries) == [(held.id, 0)]
    assert tell(store, address, now()) == [(held.id, 0)]


def test_the_null_sender_is_not_an_unknown_sender(store: Store) -> None:
    assert store.deliveries.get(DeliveryId(hold(store, envelope_sender="").id, 0)).message.envelope_sender == ""
    assert store.deliveries.get(DeliveryId(hold(store, envelope_sender=None).id, 0)).message.envelope_sender is None


@pytest.mark.parametrize("tier", Tier)
def test_the_tier_is_kept(store: Store, tier: Tier) -> None:
    assert store.deliveries.get(DeliveryId(hold(store, tier=tier).id, 0)).message.tier is tier


def test_a_new_delivery_is_held_and_untouched(store: Store) -> None:
    held = hold(store)
    delivery = store.deliveries.get(DeliveryId(held.id, 0))
    assert not held.known
    assert delivery.state is State.HELD
    assert delivery.state_at == held_at(held.id)
    assert (delivery.reason, delivery.attempts, delivery.next_try_at, delivery.announced_at) == ("", 0, None, None)


def test_numbers_follow_the_order_of_recipients(store: Store) -> None:
    recipients = [f"person{n * 7919 % 1000}@example.org" for n in range(1000)]
    held = hold(store, recipients=recipients)
    deliveries = store.deliveries.of_message(held.id)
    assert [d.number for d in deliveries] == list(range(1000))
    assert [d.recipient for d in deliveries] == recipients


def test_an_address_is_kept_as_written_and_its_identity_in_lower_case(store: Store) -> None:
    held = hold(store, recipients=['"Quoted Name"@Example.ORG', "Alice+Shop@Example.org", "JÜRGEN@example.org"])
    assert [(d.recipient, d.address) for d in store.deliveries.of_message(held.id)] == [
        ('"quoted name"@example.org', '"Quoted Name"@Example.ORG'),
        ("alice+shop@example.org", "Alice+Shop@Example.org"),
        ("jürgen@example.org", "JÜRGEN@example.org"),
    ]


def test_letters_that_only_look_alike_in_lower_case_are_different_people(store: Store) -> None:
    recipients = ["mike@example.org", "mi\u212ae@example.org", "\u0130da@example.org", "i\u0307da@example.org"]
    held = hold(store, recipients=recipients)
    assert [(d.recipient, d.address) for d in store.deliveries.of_message(held.id)] == [
        (each, each) for each in recipients
    ]
    assert store.recipients.get("mike@example.org").address == "mike@example.org"


def test_a_message_without_recipients_has_one_delivery_for_nobody(store: Store) -> None:
    held = hold(store, recipients=())
    (delivery,) = store.deliveries.of_message(held.id)
    assert (delivery.number, delivery.recipient, delivery.address) == (0, "", "")
    assert not list(store.recipients.unscheduled(10))


def test_the_same_mail_again_gets_the_first_id(store: Store) -> None:
    data = mail()
    first = hold(store, data)
    again = hold(store, data, queue_id="another", score=1.0)
    assert again == Held(first.id, known=True)
    assert store.deliveries.get(DeliveryId(first.id, 0)).message.queue_id == "4XyZq1abc"
    assert len(store.deliveries.of_message(first.id)) == 2


def test_the_same_mail_again_is_known_although_it_was_acted_on(store: Store) -> None:
    data = mail()
    first = hold(store, data)
    release(store, first, now())
    delete(store, first, now(), 1)
    assert hold(store, data) == Held(first.id, known=True)
    assert [d.state for d in store.deliveries.of_message(first.id)] == [State.RELEASED, State.DELETED]


def test_the_same_mail_to_others_is_another_message(store: Store) -> None:
    data = mail()
    first, second = hold(store, data), hold(store, data, recipients=[ALICE])
    assert first.id != second.id
    assert not second.known
    assert held_bytes(store, first.id) == held_bytes(store, second.id) == data


def test_the_same_mail_from_100_threads_is_one_message(store: Store, second: Store) -> None:
    data = mail(size_bytes=20_000)

    results = concurrently(100, lambda number: hold((store, second)[number % 2], data))
    assert len({held.id for held in results}) == 1
    assert sum(not held.known for held in results) == 1
    assert len(store.deliveries.search(Filter(), 100).deliveries) == 2
    assert held_bytes(store, results[0].id) == data


def test_the_same_mail_from_several_processes_is_one_message(store: Store, store_url: str) -> None:
    data = mail()
    processes = [_begin_elsewhere(store_url, "messages.add", export(data), body(data), Tier.SPAM, ()) for _ in range(4)]
    results = [pickle.loads(process.communicate()[0]) for process in processes]
    assert len({held.id for held in results}) == 1
    assert sum(not held.known for held in results) == 1
    assert len(store.deliveries.search(Filter(), 100).deliveries) == 2


def test_different_mail_from_50_threads_is_all_held(store: Store) -> None:
    mails = [mail(size_bytes=5_000) for _ in range(50)]
    results = concurrently(50, lambda number: hold(store, mails[number]))
    assert [held_bytes(store, held.id) for held in results] == mails
    assert len(every_page(lambda before: store.deliveries.list_for(Reader(ALICE), {State.HELD}, 20, before))) == 50


def test_a_held_message_survives_the_death_of_its_process(store: Store, store_url: str) -> None:
    data = mail(size_bytes=200_000)
    held = dies_in(store_url, "messages.add", export(data), body(data), Tier.SPAM, (ALICE,))
    assert held_bytes(store, held.id) == data
    assert names(store.deliveries.list_for(Reader(ALICE), {State.HELD}, 10).deliveries) == [(held.id, 0)]
    assert [p.recipient for p in store.recipients.unscheduled(10)] == [ALICE]


def test_a_body_that_cannot_be_read_leaves_nothing_behind(store: Store) -> None:
    data = mail(size_bytes=5_000)
    with pytest.raises(StoreUnavailable):
        store.messages.add(export(data), Body(io.BytesIO(data[:-100]), 0, len(data)), Tier.SPAM, (ALICE,))
    assert store.deliveries.search(Filter(), 10) == Page((), None)
    assert store.recipients.get(ALICE).news_since is None
    held = hold(store, data)
    assert not held.known
    assert held_bytes(store, held.id) == data


# ---- a recipient's own


def test_mallory_sees_nothing(store: Store) -> None:
    held = hold(store)
    assert store.deliveries.list_for(Reader(MALLORY), EVERY_STATE, 10) == Page((), None)
    assert not list(store.digests.unannounced(Reader(MALLORY), 10))
    assert store.digests.last(MALLORY) is None
    with pytest.raises(NotFound) as somebody_elses:
        store.deliveries.get_for(Reader(MALLORY), held.id)
    with pytest.raises(NotFound) as unknown:
        store.deliveries.get_for(Reader(MALLORY), UNKNOWN)
    assert type(somebody_elses.value) is type(unknown.value) is NotFound
    assert str(somebody_elses.value).replace(str(held.id), "") == str(unknown.value).replace(str(UNKNOWN), "")


def test_each_recipient_gets_their_own_delivery(store: Store) -> None:
    held = hold(store)
    assert store.deliveries.get_for(Reader(ALICE), held.id).number == 0
    assert store.deliveries.get_for(Reader(BOB), held.id).number == 1
    assert store.deliveries.get_for(Reader(BOB), held.id) == store.deliveries.get(DeliveryId(held.id, 1))
    assert names(store.deliveries.list_for(Reader(BOB), {State.HELD}, 10).deliveries) == [(held.id, 1)]


def test_a_list_is_newest_first_and_complete_over_its_pages(store: Store) -> None:
    ids = [hold(store).id for _ in range(7)]
    hold(store, recipients=[BOB])
    found = every_page(lambda before: store.deliveries.list_for(Reader(ALICE), {State.HELD}, 3, before))
    assert [d.id for d in found] == sorted(ids, reverse=True)
    assert {d.recipient for d in found} == {ALICE}


def test_a_page_holds_no_more_than_its_limit_and_the_last_says_so(store: Store) -> None:
    for _ in range(4):
        hold(store)
    first = store.deliveries.list_for(Reader(ALICE), {State.HELD}, 2)
    assert len(first.deliveries) == 2
    assert first.next is not None
    last = store.deliveries.list_for(Reader(ALICE), {State.HELD}, 2, first.next)
    assert len(last.deliveries) == 2
    assert last.next is None


def test_mail_that_comes_between_pages_makes_no_doubles(store: Store) -> None:
    ids = [hold(store).id for _ in range(6)]

    def ask_then_hold(before: DeliveryId | None) -> Page:
        page = store.deliveries.list_for(Reader(ALICE), {State.HELD}, 2, before)
        hold(store)
        return page

    assert [d.id for d in every_page(ask_then_hold)] == sorted(ids, reverse=True)


def test_mail_that_leaves_between_pages_hides_nothing(store: Store) -> None:
    ids = sorted((hold(store) for _ in range(6)), key=lambda held: held.id, reverse=True)
    page = store.deliveries.list_for(Reader(ALICE), {State.HELD}, 3)
    for held in ids[:3]:
        delete(store, held, now())
    assert [d.id for d in store.deliveries.list_for(Reader(ALICE), {State.HELD}, 9, page.next).deliveries] == [
        h.id for h in ids[3:]
    ]


def test_a_list_shows_the_states_asked_for(store: Store) -> None:
    held, deleted, released, requested, releasing = (hold(store) for _ in range(5))
    delete(store, deleted, now())
    release(store, released, now())
    ask(store, requested, now())
    defer(store, releasing, now())

    def ids(*states: State) -> set[UUID]:
        return {d.id for d in store.deliveries.list_for(Reader(ALICE), states, 10).deliveries}

    assert ids(State.HELD) == {held.id}
    assert ids(State.DELETED) == {deleted.id}
    assert ids(State.RELEASED) == {released.id}
    assert ids(State.REQUESTED, State.RELEASING) == {requested.id, releasing.id}
    assert len(ids(*State)) == 5
    assert ids() == set()
    assert len(store.deliveries.list_for(Reader(BOB), {State.HELD}, 10).deliveries) == 5


def test_an_unknown_person_is_empty(store: Store) -> None:
    person = store.recipients.get(MALLORY)
    assert person.recipient == MALLORY
    assert (person.stopped_at, person.links_valid_from, person.news_since, person.next_digest_at) == (None,) * 4


def test_a_person_has_the_address_last_written_and_the_time_of_their_oldest_news(store: Store) -> None:
    first = hold(store, recipients=["alice@Example.org"])
    hold(store, recipients=["Alice@example.org"])
    assert store.recipients.get(ALICE) == Person(ALICE, "Alice@example.org", None, None, held_at(first.id), None)


CHOSEN = Preferences("monday", (time(6, 30), time(18)), "Asia/Kathmandu", "en")


@pytest.mark.parametrize("chosen", [CHOSEN, Preferences(), Preferences(at=(time(0),)), Preferences(timezone="UTC")])
def test_what_a_person_chose_is_kept(store: Store, chosen: Preferences) -> None:
    hold(store, recipients=[ALICE])
    store.recipients.set_preferences(ALICE, CHOSEN)
    store.recipients.set_preferences(ALICE, chosen)
    assert store.recipients.get(ALICE).preferences == chosen
    assert [p.preferences for p in store.recipients.unscheduled(10)] == [chosen]
    assert store.recipients.get(BOB).preferences == Preferences()


def test_one_may_choose_before_any_mail_is_held(store: Store) -> None:
    store.recipients.set_preferences(MALLORY, CHOSEN)
    person = store.recipients.get(MALLORY)
    assert (person.preferences, person.news_since, person.next_digest_at) == (CHOSEN, None, None)
    hold(store, recipients=["Mallory@Example.org"])
    assert store.recipients.get(MALLORY).preferences == CHOSEN
    assert store.recipients.get(MALLORY).address == "Mallory@Example.org"


def test_choosing_makes_the_next_digest_undecided(store: Store) -> None:
    hold(store)
    store.recipients.schedule(ALICE, now() + DAY)
    store.recipients.schedule(BOB, now() + DAY)
    store.recipients.set_preferences(ALICE, CHOSEN)
    assert [p.recipient for p in store.recipients.unscheduled(10)] == [ALICE]


def test_a_digest_says_what_its_recipient_chose(store: Store) -> None:
    hold(store, recipients=[ALICE])
    store.recipients.set_preferences(ALICE, CHOSEN)
    with digesting(store, ALICE, now(), 10, ignore_schedule=True) as digest:
        assert digest.preferences == CHOSEN
    last = store.digests.last(ALICE)
    assert last is not None
    assert last.preferences == CHOSEN


def test_stopping_is_told_once_and_mailed_with_it(store: Store) -> None:
    at = now()
    assert store.recipients.set_digests_stopped(ALICE, at, mail=QueuedMail("Alice@example.org", b"stopped"))
    assert not store.recipients.set_digests_stopped(ALICE, at + HOUR, mail=QueuedMail("Alice@example.org", b"again"))
    assert store.recipients.get(ALICE).stopped_at == at
    with store.outbox.sending(at) as mail:
        assert mail is not None
        assert (mail.to, mail.mail) == ("Alice@example.org", b"stopped")
    assert store.stats(at).mails_waiting == 0
    assert store.recipients.set_digests_stopped(ALICE, None)
    assert not store.recipients.set_digests_stopped(ALICE, None)
    assert store.recipients.get(ALICE).stopped_at is None


def test_of_20_who_stop_at_once_one_is_mailed(store: Store, second: Store) -> None:
    at = now()
    results = concurrently(
        20,
        lambda n: (second if n % 2 else store).recipients.set_digests_stopped(ALICE, at, mail=QueuedMail(ALICE, b"x")),
    )
    assert sorted(results) == [False] * 19 + [True]
    assert store.stats(at).mails_waiting == 1


def test_announce_marks_only_those_named(store: Store) -> None:
    hold(store, announce=[ALICE])
    assert store.recipients.get(ALICE).news_since is not None
    assert store.recipients.get(BOB).news_since is None
    assert [p.recipient for p in store.recipients.unscheduled(10)] == [ALICE]


def test_revoked_links_stay_revoked(store: Store) -> None:
    at = now()
    store.recipients.revoke_links(ALICE, at)
    assert store.recipients.get(ALICE).links_valid_from == at
    store.recipients.revoke_links(ALICE, at - DAY)
    assert store.recipients.get(ALICE).links_valid_from == at
    store.recipients.revoke_links(ALICE, at + DAY)
    assert store.recipients.get(ALICE).links_valid_from == at + DAY
    assert store.recipients.get(BOB).links_valid_from is None


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


def test_no_more_than_500_openings_come_back_and_this_one_is_among_them(store: Store) -> None:
    held, at = hold(store), now()
    for n in range(502):
        this = LinkOpen(DeliveryId(held.id, 0), at + n * SECOND)
        found = store.digests.record_link_open(ALICE, at.replace(microsecond=0), this, at)
    assert len(found) == 500
    assert this in found


# ---- operators and links


def test_what_is_not_there_is_not_found(store: Store) -> None:
    held = hold(store)
    with pytest.raises(NotFound):
        store.deliveries.get(DeliveryId(UNKNOWN, 0))
    with pytest.raises(NotFound):
        store.deliveries.get(DeliveryId(held.id, 2))
    with pytest.raises(NotFound):
        store.deliveries.get(DeliveryId(held.id, 65535))
    with pytest.raises(NotFound):
        store.deliveries.of_message(UNKNOWN)
    with pytest.raises(NotFound) as missing:
        next(iter(store.messages.body(UNKNOWN)))
    assert not isinstance(missing.value, BodyMissing)


def test_a_day_long_past_or_far_ahead_is_not_found_either(store: Store) -> None:
    for year in (1971, 2400):
        id = new_id(datetime(year, 1, 1, tzinfo=UTC))
        with pytest.raises(NotFound):
            store.deliveries.get(DeliveryId(id, 0))
        with pytest.raises(NotFound):
            store.deliveries.get_for(Reader(ALICE), id)
        with pytest.raises(NotFound):
            delete(store, Held(id, known=False), now())
        with pytest.raises(NotFound):
            next(iter(store.messages.body(id)))
        assert not list(store.messages.find(str(id)))


def test_a_message_is_found_by_its_id_and_by_its_queue_id(store: Store) -> None:
    one, two = hold(store, queue_id="AAA"), hold(store, queue_id="BBB")
    assert [m.id for m in store.messages.find(str(one.id))] == [one.id]
    assert [m.id for m in store.messages.find("BBB")] == [two.id]
    assert list(store.messages.find("AAA")) == [store.deliveries.get(DeliveryId(one.id, 0)).message]


def test_a_queue_id_that_came_round_again_finds_all_newest_first(store: Store) -> None:
    ids = [hold(store, queue_id="AAA").id for _ in range(3)]
    assert [m.id for m in store.messages.find("AAA")] == sorted(ids, reverse=True)


def test_no_more_than_100_messages_are_found(store: Store) -> None:
    ids = [hold(store, queue_id="AAA").id for _ in range(103)]
    assert [m.id for m in store.messages.find("AAA")] == sorted(ids, reverse=True)[:100]


@pytest.mark.parametrize("text", ["", "AA", "AAAA", "aaa", "%", "A_A", " AAA", str(UNKNOWN), "'", "\\"])
def test_find_takes_only_exactly_the_text(store: Store, text: str) -> None:
    hold(store, queue_id="AAA")
    hold(store, queue_id=None)
    assert not list(store.messages.find(text))


def test_search_without_a_filter_shows_everything_newest_first(store: Store) -> None:
    ids = [hold(store).id for _ in range(5)] + [hold(store, recipients=()).id]
    found = every_page(lambda before: store.deliveries.search(Filter(), 4, before))
    assert [d.id for d in found] == sorted((d.id for d in found), reverse=True)
    assert sorted(names(found)) == sorted([(id, n) for id in ids[:5] for n in (0, 1)] + [(ids[5], 0)])


def test_search_goes_on_within_a_message_with_many_recipients(store: Store) -> None:
    held = hold(store, recipients=[f"p{n}@example.org" for n in range(10)])
    hold(store)
    found = every_page(lambda before: store.deliveries.search(Filter(), 3, before))
    assert len(found) == len(set(names(found))) == 12
    assert sorted(d.number for d in found if d.id == held.id) == list(range(10))


def test_search_by_recipient(store: Store) -> None:
    one, _ = hold(store), hold(store, recipients=[ALICE])
    assert names(store.deliveries.search(Filter(recipient=BOB), 10).deliveries) == [(one.id, 1)]
    assert not store.deliveries.search(Filter(recipient=MALLORY), 10).deliveries
    assert not store.deliveries.search(Filter(recipient="bob"), 10).deliveries


@pytest.mark.parametrize("part", [SENDER, "promo", "EXAMPLE.NET", "o@e"])
def test_search_by_a_part_of_the_envelope_sender(store: Store, part: str) -> None:
    held = hold(store, recipients=[ALICE], header_from="")
    hold(store, recipients=[ALICE], envelope_sender="other@example.com", header_from="Other <x@example.com>")
    assert names(store.deliveries.search(Filter(sender=part), 10).deliveries) == [(held.id, 0)]


@pytest.mark.parametrize("part", ["Bank", "JÜRGEN", "jürgen", "en from the bank <J", "100%_"])
def test_search_by_a_part_of_the_from_header(store: Store, part: str) -> None:
    sent_as = "Jürgen from the Bank <j@bank.example> 100%_"
    held = hold(store, recipients=[ALICE], envelope_sender=None, header_from=sent_as)
    hold(store, recipients=[ALICE], envelope_sender="", header_from="Other <x@example.com> 1000_")
    assert names(store.deliveries.search(Filter(sender=part), 10).deliveries) == [(held.id, 0)]


@pytest.mark.parametrize("part", ["%", "_", "\\", "'", "p%o", "*", "promo_example"])
def test_search_takes_a_sender_literally(store: Store, part: str) -> None:
    hold(store)
    assert not store.deliveries.search(Filter(sender=part), 10).deliveries


@pytest.mark.parametrize("text", ["\0", "a\0", "\udcff", "x" * 100_000])
def test_strange_text_finds_nothing(store: Store, text: str) -> None:
    """An operator's terminal may hand over whatever it has."""
    hold(store)
    assert not list(store.messages.find(text))
    assert not store.deliveries.search(Filter(sender=text), 10).deliveries
    assert not store.deliveries.search(Filter(recipient=text), 10).deliveries
    assert not store.deliveries.list_for(Reader(text), EVERY_STATE, 10).deliveries


def test_search_since(store: Store) -> None:
    held = hold(store)
    at = held_at(held.id)
    assert len(store.deliveries.search(Filter(since=at), 10).deliveries) == 2
    assert not store.deliveries.search(Filter(since=at + timedelta(milliseconds=1)), 10).deliveries
    assert len(store.deliveries.search(Filter(since=at - 400 * DAY), 10).deliveries) == 2
    assert len(store.deliveries.search(Filter(since=datetime(1, 1, 1, tzinfo=UTC)), 10).deliveries) == 2
    assert not store.deliveries.search(Filter(until=datetime(1, 1, 1, tzinfo=UTC)), 10).deliveries


def test_search_by_state(store: Store) -> None:
    held = hold(store)
    release(store, held, now(), 1)
    assert names(store.deliveries.search(Filter(states=frozenset({State.HELD})), 10).deliveries) == [(held.id, 0)]
    assert names(store.deliveries.search(Filter(states=frozenset({State.RELEASED})), 10).deliveries) == [(held.id, 1)]
    assert len(store.deliveries.search(Filter(states=EVERY_STATE), 10).deliveries) == 2


def test_search_by_everything_at_once_over_pages(store: Store) -> None:
    wanted = [hold(store) for _ in range(5)]
    since = held_at(wanted[0].id)
    for held in wanted:
        delete(store, held, now())
    hold(store)
    delete(store, hold(store, envelope_sender="x@example.com", header_from=""), now())
    everything = Filter(recipient=ALICE, sender="PROMO", since=since, states=frozenset({State.DELETED}))
    found = every_page(lambda before: store.deliveries.search(everything, 2, before))
    assert names(found) == [(id, 0) for id in sorted((h.id for h in wanted), reverse=True)]


def test_history_tells_who_did_what_in_order(store: Store) -> None:
    held, at = hold(store), now()
    delete(store, held, at)
    store.deliveries.move(
        DeliveryId(held.id, 0), State.HELD, {State.DELETED}, BY_OPERATOR, at + SECOND, kind=EventKind.RESTORED
    )
    defer(store, held, at + 2 * SECOND)
    release(store, held, at + 2 * MINUTE)
    events = store.deliveries.history(DeliveryId(held.id, 0))
    assert [e.kind for e in events] == ["held", "deleted", "restored", "releasing", "deferred", "released"]
    assert events[0].at == held_at(held.id)
    assert [e.at for e in events[1:4]] == [at, at + SECOND, at + 2 * SECOND]
    assert [e.actor for e in events[1:4]] == [BY_LINK, BY_OPERATOR, BY_LINK]
    assert [e.kind for e in store.deliveries.history(DeliveryId(held.id, 1))] == ["held"]
    with pytest.raises(NotFound):
        store.deliveries.history(DeliveryId(UNKNOWN, 0))


def test_history_keeps_what_the_mail_server_answered_to_a_release(store: Store) -> None:
    held, answers = hold(store), [""]
    with store.deliveries.releasing(DeliveryId(held.id, 0), {State.HELD}, BY_LINK, now(), lambda: answers[-1]):
        answers.append("250 2.0.0 Ok: queued as 4XYZ")  # known inside of the block only
    assert [(e.kind, e.detail) for e in store.deliveries.history(DeliveryId(held.id, 0))][-2:] == [
        ("releasing", ""),
        ("released", "250 2.0.0 Ok: queued as 4XYZ"),
    ]
    with pytest.raises(NotFound):
        store.deliveries.history(DeliveryId(held.id, 2))


def test_last_events_are_the_latest_of_each_kind_of_these_deliveries(store: Store) -> None:
    first, second, third, at = hold(store), hold(store), hold(store), now()
    for n in range(3):
        delete(store, first, at + 2 * n * SECOND)
        store.deliveries.move(
            DeliveryId(first.id, 0),
            State.HELD,
            {State.DELETED},
            BY_OPERATOR,
            at + (2 * n + 1) * SECOND,
            kind=EventKind.RESTORED,
        )
    defer(store, second, at)
    release(store, second, at + 2 * MINUTE)
    store.deliveries.move(
        DeliveryId(second.id, 1), State.DELETED, {State.HELD}, BY_OPERATOR, at, kind=EventKind.DELETED
    )
    asked = [DeliveryId(id, 0) for id in (first.id, second.id, third.id, UNKNOWN)]
    found = store.deliveries.last_events(asked)
    assert set(found) == {(first.id, 0), (second.id, 0)}
    assert [event.kind for event in found[asked[1]]] == ["releasing", "deferred", "released"]
    deleted, restored = found[asked[0]]
    assert (deleted.kind, deleted.at, deleted.actor) == ("deleted", at + 4 * SECOND, BY_LINK)
    assert (restored.kind, restored.at, restored.actor) == ("restored", at + 5 * SECOND, BY_OPERATOR)
    delete(store, third, at + 10 * SECOND)
    store.deliveries.move(
        DeliveryId(third.id, 0), State.HELD, {State.DELETED}, BY_OPERATOR, at, kind=EventKind.RESTORED
    )  # after a clock was set back
    assert [event.kind for event in store.deliveries.last_events([asked[2]])[asked[2]]] == [
        "deleted",
        "restored",
    ]
    assert store.deliveries.last_events([]) == {}
    assert len(store.deliveries.last_events([asked[0]] * 2 + [DeliveryId(second.id, n) for n in range(998)])) == 3


def test_a_delivery_for_nobody_can_be_given_a_recipient_once(store: Store) -> None:
    held = hold(store, recipients=())
    at = now() - HOUR  # by a clock that is behind
    delivery = store.deliveries.assign(DeliveryId(held.id, 0), "Alice@Example.org", BY_OPERATOR, at)
    assert (delivery.recipient, delivery.address, delivery.state) == (ALICE, "Alice@Example.org", State.HELD)
    assert store.deliveries.get(DeliveryId(held.id, 0)) == delivery == store.deliveries.get_for(Reader(ALICE), held.id)
    assert names(store.deliveries.list_for(Reader(ALICE), {State.HELD}, 10).deliveries) == [(held.id, 0)]
    event = store.deliveries.history(DeliveryId(held.id, 0))[-1]
    assert (event.kind, event.at, event.actor, event.detail) == ("assigned", at, BY_OPERATOR, "Alice@Example.org")
    with pytest.raises(AlreadyDone) as error:
        store.deliveries.assign(DeliveryId(held.id, 0), BOB, BY_OPERATOR, now())
    assert error.value.delivery is None or error.value.delivery.recipient == ALICE
    assert store.deliveries.get(DeliveryId(held.id, 0)).recipient == ALICE


def test_a_delivery_of_somebody_cannot_be_given_away(store: Store) -> None:
    held = hold(store)
    with pytest.raises(AlreadyDone):
        store.deliveries.assign(DeliveryId(held.id, 1), MALLORY, BY_OPERATOR, now())
    with pytest.raises(NotFound):
        store.deliveries.assign(DeliveryId(held.id, 2), MALLORY, BY_OPERATOR, now())
    with pytest.raises(NotFound):
        store.deliveries.assign(DeliveryId(UNKNOWN, 0), MALLORY, BY_OPERATOR, now())
    assert [d.recipient for d in store.deliveries.of_message(held.id)] == [ALICE, BOB]


# ---- moving


def test_a_move_is_recorded(store: Store) -> None:
    held, at = hold(store), now()
    moved = ask(store, held, at)
    assert (moved.state, moved.state_at) == (State.REQUESTED, at)
    refused = store.deliveries.move(
        DeliveryId(held.id, 0),
        State.HELD,
        {State.REQUESTED},
        BY_OPERATOR,
        at + HOUR,
        kind=EventKind.REFUSED,
        reason="It is a virus.",
    )
    assert (refused.state, refused.state_at, refused.reason) == (State.HELD, at + HOUR, "It is a virus.")
    assert refused == store.deliveries.get(DeliveryId(held.id, 0))
    assert store.deliveries.get(DeliveryId(held.id, 1)).state is State.HELD
    again = ask(store, held, at + 2 * HOUR)
    assert again.reason == ""


def test_a_move_from_another_state_changes_nothing_and_shows_the_delivery(store: Store) -> None:
    held, at = hold(store), now()
    release(store, held, at)
    before = store.deliveries.get(DeliveryId(held.id, 0))
    with pytest.raises(AlreadyDone) as error:
        delete(store, held, at + SECOND)
    assert error.value.delivery == before == store.deliveries.get(DeliveryId(held.id, 0))
    assert "deleted" not in [e.kind for e in store.deliveries.history(DeliveryId(held.id, 0))]


def test_what_is_being_released_cannot_be_moved(store: Store) -> None:
    held, at = hold(store), now()
    with claim(store, held, at), pytest.raises(AlreadyDone) as error:
        delete(store, held, at)
    assert error.value.delivery
    assert error.value.delivery.state is State.RELEASING
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASED


def test_an_unknown_delivery_cannot_be_moved(store: Store) -> None:
    held = hold(store)
    with pytest.raises(NotFound):
        delete(store, Held(UNKNOWN, known=False), now())
    with pytest.raises(NotFound):
        delete(store, held, now(), 2)


def test_of_20_who_move_at_once_exactly_one_wins(store: Store, second: Store) -> None:
    held, at = hold(store), now()
    results = concurrently(20, lambda n: delete((store, second)[n % 2], held, at + n * SECOND))
    winners = [r for r in results if isinstance(r, Delivery)]
    losers = [r for r in results if isinstance(r, AlreadyDone)]
    assert (len(winners), len(losers)) == (1, 19)
    assert {loser.delivery for loser in losers} == {winners[0]} == {store.deliveries.get(DeliveryId(held.id, 0))}
    assert [e.kind for e in store.deliveries.history(DeliveryId(held.id, 0))] == ["held", "deleted"]


# ---- releasing


def test_a_release_is_claimed_then_recorded(store: Store, second: Store) -> None:
    held, at = hold(store), now()
    with claim(store, held, at) as claimed:
        assert claimed.state is State.RELEASING
        assert (claimed.attempts, claimed.state_at, claimed.next_try_at) == (1, at, at + LEASE)
        assert (claimed.recipient, claimed.address) == (ALICE, ALICE)
        assert second.deliveries.get(DeliveryId(held.id, 0)) == claimed
        assert second.deliveries.get(DeliveryId(held.id, 1)).state is State.HELD
    released = store.deliveries.get(DeliveryId(held.id, 0))
    assert (released.state, released.attempts, released.next_try_at) == (State.RELEASED, 1, None)
    assert [e.kind for e in store.deliveries.history(DeliveryId(held.id, 0))] == ["held", "releasing", "released"]
    assert not list(store.deliveries.due_releases(at + DAY, 10))


def test_a_release_needs_an_allowed_state(store: Store) -> None:
    held, at = hold(store), now()
    before = delete(store, held, at)
    with pytest.raises(AlreadyDone) as error, claim(store, held, at):
        pytest.fail("entered")
    assert error.value.delivery == before == store.deliveries.get(DeliveryId(held.id, 0))
    with claim(store, held, at, allowed=frozenset({State.DELETED, State.HELD})):
        pass
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASED


def test_what_was_released_is_not_released_again(store: Store) -> None:
    held, at = hold(store), now()
    release(store, held, at)
    with pytest.raises(AlreadyDone) as error, claim(store, held, at + DAY):
        pytest.fail("entered")
    assert error.value.delivery == store.deliveries.get(DeliveryId(held.id, 0))


def test_an_operator_may_release_again(store: Store) -> None:
    held, at = hold(store), now()
    release(store, held, at)
    with claim(store, held, at + HOUR, allowed=EVERY_STATE - {State.RELEASING}) as claimed:
        assert claimed.attempts == 1
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASED


def test_a_release_of_nothing_is_not_found(store: Store) -> None:
    held = hold(store)
    for wrong, number in ((Held(UNKNOWN, known=False), 0), (held, 2)):
        with pytest.raises(NotFound), claim(store, wrong, now(), number):
            pytest.fail("entered")


def test_two_claims_at_once_make_one_release(store: Store, second: Store) -> None:
    held, at = hold(store), now()
    with claim(store, held, at):
        for other in (store, second):
            with pytest.raises(AlreadyDone) as error, claim(other, held, at + LEASE - SECOND):
                pytest.fail("entered")
            assert error.value.delivery
            assert error.value.delivery.state is State.RELEASING


def test_of_20_who_claim_at_once_exactly_one_sends(store: Store, second: Store) -> None:
    held, at = hold(store), now()
    sent = []

    def work(number: int) -> None:
        with claim((store, second)[number % 2], held, at) as delivery:
            sent.append(delivery)

    results = concurrently(20, work)
    assert len(sent) == 1
    assert sum(isinstance(r, AlreadyDone) for r in results) == 19
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASED


def test_a_deferred_release_is_tried_again_after_1_2_4_minutes_and_so_on_up_to_an_hour(store: Store) -> None:
    held, at = hold(store), now()
    for attempt, minutes in enumerate([1, 2, 4, 8, 16, 32, 60, 60], start=1):
        defer(store, held, at)
        delivery = store.deliveries.get(DeliveryId(held.id, 0))
        assert (delivery.state, delivery.reason, delivery.attempts) == (State.RELEASING, "451 busy", attempt)
        assert delivery.next_try_at == at + minutes * MINUTE
        with pytest.raises(AlreadyDone), claim(store, held, delivery.next_try_at - SECOND):
            pytest.fail("entered")
        assert not list(store.deliveries.due_releases(delivery.next_try_at - SECOND, 10))
        at = delivery.next_try_at + SECOND
        assert list(store.deliveries.due_releases(at, 10)) == [(held.id, 0)]
    with claim(store, held, at, allowed=frozenset()):  # a retry: whatever `allowed` says
        pass
    released = store.deliveries.get(DeliveryId(held.id, 0))
    assert (released.state, released.reason, released.next_try_at) == (State.RELEASED, "", None)
    assert [e.kind for e in store.deliveries.history(DeliveryId(held.id, 0))] == [
        "held",
        "releasing",
        *["deferred"] * 8,
        "released",
    ]


@pytest.mark.parametrize("error", [RelayRefused("550 no such user"), BodyMissing("the mail of this message is gone")])
def test_a_refused_release_is_held_again_with_the_reason(store: Store, error: QuarantineError) -> None:
    held, at = hold(store), now()
    defer(store, held, at)
    with pytest.raises(type(error)) as raised, claim(store, held, at + HOUR):
        raise error
    assert raised.value is error
    delivery = store.deliveries.get(DeliveryId(held.id, 0))
    assert (delivery.state, delivery.reason, delivery.next_try_at) == (State.HELD, str(error), None)
    assert [e.kind for e in store.deliveries.history(DeliveryId(held.id, 0))] == [
        "held",
        "releasing",
        "deferred",
        "failed",
    ]
    assert not list(store.deliveries.due_releases(at + DAY, 10))
    with claim(store, held, at + DAY) as claimed:  # a new release counts its own tries
        assert claimed.attempts == 1
    assert store.deliveries.get(DeliveryId(held.id, 0)).reason == ""


@pytest.mark.parametrize(
    "error", [RuntimeError("secret detail"), StoreUnavailable("secret detail"), KeyboardInterrupt()]
)
def test_any_other_error_keeps_the_release_for_another_try(store: Store, error: BaseException) -> None:
    held, at = hold(store), now()
    with pytest.raises(type(error)) as raised, claim(store, held, at):
        raise error
    assert raised.value is error
    delivery = store.deliveries.get(DeliveryId(held.id, 0))
    assert (delivery.state, delivery.reason) == (State.RELEASING, "internal error")
    assert delivery.next_try_at == at + MINUTE
    assert store.deliveries.history(DeliveryId(held.id, 0))[-1].kind == "deferred"


def test_a_claim_whose_process_died_can_be_taken_over(store: Store, store_url: str) -> None:
    held, at = hold(store), now()
    dead = dies_in(store_url, "deliveries.releasing", DeliveryId(held.id, 0), {State.HELD}, BY_LINK, at)
    assert dead.state is State.RELEASING
    with pytest.raises(AlreadyDone), claim(store, held, at + LEASE - SECOND):
        pytest.fail("entered")
    assert not list(store.deliveries.due_releases(at + LEASE - SECOND, 10))
    later = at + LEASE + SECOND
    assert list(store.deliveries.due_releases(later, 10)) == [(held.id, 0)]
    with claim(store, held, later, allowed=frozenset()) as claimed:
        assert (claimed.attempts, claimed.next_try_at) == (2, later + LEASE)
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASED


def test_a_failure_after_a_takeover_is_not_recorded(store: Store, second: Store) -> None:
    held, at = hold(store), now()
    later = at + LEASE + SECOND
    taken = claim(second, held, later)
    with pytest.raises(RelayRefused), claim(store, held, at):
        owned = taken.__enter__()
        raise RelayRefused("550 too slow")
    assert store.deliveries.get(DeliveryId(held.id, 0)) == owned
    taken.__exit__(None, None, None)
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASED


def test_a_success_after_a_takeover_is_recorded_and_stays(store: Store, second: Store) -> None:
    held, at = hold(store), now()
    taken = claim(second, held, at + LEASE + SECOND)
    with claim(store, held, at):
        taken.__enter__()
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASED
    with suppress(RelayDeferred):
        error = RelayDeferred("451 slow")
        taken.__exit__(RelayDeferred, error, None)
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASED
    assert not list(store.deliveries.due_releases(at + DAY, 10))


def test_two_successes_after_a_takeover_are_both_fine(store: Store, second: Store) -> None:
    held, at = hold(store), now()
    with claim(store, held, at), claim(second, held, at + LEASE + SECOND):
        pass
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASED


def test_a_late_failure_does_not_touch_what_others_did_since(store: Store, second: Store) -> None:
    held, at = hold(store), now()
    with pytest.raises(RelayDeferred), claim(store, held, at):
        with pytest.raises(RelayRefused), claim(second, held, at + LEASE + SECOND):
            raise RelayRefused("550 no")
        after = delete(second, held, at + LEASE + MINUTE)
        raise RelayDeferred("451 late")
    assert store.deliveries.get(DeliveryId(held.id, 0)) == after


def test_due_releases_begin_with_the_longest_waiting(store: Store) -> None:
    at = now()
    helds = [hold(store) for _ in range(4)]
    for n, held in enumerate(helds):
        defer(store, held, at - n * HOUR)
    expected = [(held.id, 0) for held in reversed(helds)]
    assert list(store.deliveries.due_releases(at + HOUR, 10)) == expected
    assert list(store.deliveries.due_releases(at + HOUR, 2)) == expected[:2]
    assert list(store.deliveries.due_releases(at - 2 * HOUR + 2 * MINUTE, 10)) == expected[:2]


# ---- digests


def test_news_are_scheduled_then_due(store: Store) -> None:
    hold(store)
    at = now()
    assert sorted(p.recipient for p in store.recipients.unscheduled(10)) == [ALICE, BOB]
    assert len(store.recipients.unscheduled(1)) == 1
    assert store.recipients.unscheduled(10)[0].news_since is not None
    assert not list(store.digests.due(at + DAY, 10))
    store.recipients.schedule(ALICE, at + 2 * HOUR)
    store.recipients.schedule(BOB, at + HOUR)
    assert store.recipients.get(ALICE).next_digest_at == at + 2 * HOUR
    assert not list(store.recipients.unscheduled(10))
    assert not list(store.digests.due(at + HOUR - SECOND, 10))
    assert list(store.digests.due(at + HOUR, 10)) == [BOB]
    assert list(store.digests.due(at + 3 * HOUR, 10)) == [BOB, ALICE]
    assert list(store.digests.due(at + 3 * HOUR, 1)) == [BOB]


def test_a_time_decided_meanwhile_stays(store: Store) -> None:
    hold(store, recipients=[ALICE])
    at = now()
    store.recipients.schedule(ALICE, at + HOUR)
    store.recipients.schedule(ALICE, at + DAY)
    assert store.recipients.get(ALICE).next_digest_at == at + HOUR


def test_a_digest_asked_for_is_due_at_once_and_holds_the_news(store: Store) -> None:
    held, at = hold(store), now()
    store.recipients.schedule(ALICE, at + DAY)
    assert store.digests.request(Reader(ALICE), at, at - HOUR) is DigestRequest.DUE
    assert list(store.digests.due(at, 10)) == [ALICE]
    store.recipients.schedule(ALICE, at + DAY)
    with digesting(store, ALICE, at, 10) as digest:
        assert names(digest.deliveries) == [(held.id, 0)]
    assert [p.recipient for p in store.recipients.unscheduled(10)] == [BOB]


def test_a_digest_asked_for_without_news_repeats_what_is_still_held(store: Store) -> None:
    helds, at = [hold(store, recipients=[ALICE, BOB]) for _ in range(4)], now()
    tell(store, ALICE, at)
    tell(store, BOB, at)
    delete(store, helds[0], at)
    release(store, helds[1], at)
    assert store.digests.request(Reader(ALICE), at + HOUR, at) is DigestRequest.DUE
    assert list(store.digests.due(at + HOUR, 10)) == [ALICE]
    expected = [(held.id, 0) for held in helds[2:]]
    assert names(store.digests.unannounced(Reader(ALICE), 10)) == expected
    with digesting(store, ALICE, at + HOUR, 10) as digest:
        assert names(digest.deliveries) == expected
    last = store.digests.last(ALICE)
    assert last is not None
    assert (last.id, names(last.deliveries)) == (digest.id, expected)
    assert not list(store.digests.due(None, 10))
    assert not list(store.digests.unannounced(Reader(BOB), 10))


def test_only_the_news_are_told_when_there_are_some(store: Store) -> None:
    hold(store, recipients=[ALICE])
    at = now()
    tell(store, ALICE, at)
    later = hold(store, recipients=[ALICE], announce=[])
    assert store.digests.request(Reader(ALICE), at, at - HOUR) is DigestRequest.DUE
    assert tell(store, ALICE, at) == [(later.id, 0)]


def test_a_digest_is_asked_for_once_an_hour(store: Store) -> None:
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


def test_of_20_who_ask_for_a_digest_at_once_one_gets_it(store: Store, second: Store) -> None:
    hold(store)
    at = now()
    asked = concurrently(20, lambda n: (second if n % 2 else store).digests.request(Reader(ALICE), at, at - HOUR))
    assert sorted(a.name for a in asked) == ["DUE"] + ["TOO_SOON"] * 19


def test_whoever_has_nothing_or_stopped_gets_no_digest_by_asking(store: Store) -> None:
    at = now()
    assert store.digests.request(Reader(MALLORY), at, at - HOUR) is DigestRequest.NOTHING
    held = hold(store, recipients=[ALICE])
    store.recipients.set_digests_stopped(ALICE, at)
    assert store.digests.request(Reader(ALICE), at, at - HOUR) is DigestRequest.NOTHING
    store.recipients.set_digests_stopped(ALICE, None)
    tell(store, ALICE, at)
    delete(store, held, at)
    assert store.digests.request(Reader(ALICE), at, at - HOUR) is DigestRequest.NOTHING
    hold(store, recipients=[ALICE])
    assert store.digests.request(Reader(ALICE), at, at - HOUR) is DigestRequest.DUE, (
        "what came to nothing does not count"
    )


def test_what_a_clock_that_was_ahead_left_is_mended(store: Store) -> None:
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
    assert tell(store, people[2], at) != []
    assert store.digests.request(Reader(people[3]), at, at - HOUR) is DigestRequest.DUE
    assert store.repair_clock_skew(at) == 0


def test_releases_and_mails_that_a_clock_which_was_ahead_put_off_are_tried_now(store: Store) -> None:
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


def test_claims_that_live_are_not_mended(store: Store) -> None:
    hold(store, recipients=[ALICE])
    at = now()
    with digesting(store, ALICE, at, 10, ignore_schedule=True):
        assert store.repair_clock_skew(at) == 0
        assert not list(store.digests.due(at, 10))


def test_everybody_with_news_whatever_the_hour_comes_in_pages_by_identity(store: Store) -> None:
    people = sorted(f"p{n}@example.org" for n in range(7))
    hold(store, recipients=people[::-1])
    store.recipients.schedule(people[0], now() + DAY)
    store.recipients.set_digests_stopped(people[1], now())
    tell(store, people[2], now())
    left = [people[0], *people[3:]]
    assert list(store.digests.due(None, 10)) == left
    assert list(store.digests.due(None, 3)) == left[:3]
    assert list(store.digests.due(None, 3, left[2])) == left[3:]
    assert not list(store.digests.due(None, 3, left[-1]))


def test_a_digest_yields_what_is_held_and_was_never_announced_oldest_first(store: Store) -> None:
    helds = [hold(store) for _ in range(6)]
    at = now()
    delete(store, helds[0], at)
    release(store, helds[1], at)
    ask(store, helds[2], at)
    defer(store, helds[3], at)
    hold(store, recipients=[BOB])
    expected = [(id, 0) for id in sorted(held.id for held in helds[4:])]
    assert names(store.digests.unannounced(Reader(ALICE), 10)) == expected
    assert names(store.digests.unannounced(Reader(ALICE), 1)) == expected[:1]
    with digesting(store, ALICE, at, 100, ignore_schedule=True) as digest:
        assert names(digest.deliveries) == expected
        assert (digest.recipient, digest.address) == (ALICE, ALICE)
        assert abs(digest.issued_at - at) < SECOND
        assert digest.issued_at.microsecond == 0
    assert not list(store.digests.unannounced(Reader(ALICE), 10))
    assert all(store.deliveries.get(DeliveryId(*name)).announced_at for name in expected)
    assert store.deliveries.get(DeliveryId(helds[4].id, 1)).announced_at is None
    assert names(store.digests.unannounced(Reader(BOB), 10)) != []


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


def test_what_was_announced_is_not_announced_again(store: Store) -> None:
    held, at = hold(store, recipients=[ALICE]), now()
    assert tell(store, ALICE, at) == [(held.id, 0)]
    delete(store, held, at)
    store.deliveries.move(DeliveryId(held.id, 0), State.HELD, {State.DELETED}, BY_LINK, at, kind=EventKind.RESTORED)
    later = hold(store, recipients=[ALICE])
    assert tell(store, ALICE, at) == [(later.id, 0)]


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
    assert tell(store, ALICE, at + DAY) == [(held.id, 0)]


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


def test_of_20_who_digest_at_once_exactly_one_sends(store: Store, second: Store) -> None:
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
    [dead] = dies_in(store_url, "digests.claim", at, 1, 10, only=[ALICE]).digests
    assert names(dead.deliveries) == [(held.id, 0)]
    assert store.digests.recipient_of(dead.id) == ALICE  # its mail may have gone out: the links in it work
    assert not list(store.digests.due(at + LEASE - SECOND, 10))
    with pytest.raises(AlreadyDone), digesting(store, ALICE, at + LEASE - SECOND, 10):
        pytest.fail("entered")
    later = at + LEASE + SECOND
    assert list(store.digests.due(later, 10)) == [ALICE]
    with digesting(store, ALICE, later, 10) as digest:
        assert digest.id == dead.id
        assert names(digest.deliveries) == [(held.id, 0)]
    hold(store, recipients=[ALICE])
    with digesting(store, ALICE, later, 10, ignore_schedule=True) as digest:
        assert digest.id != dead.id


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
    assert names(store.digests.unannounced(Reader(ALICE), 10)) == [(held.id, 0)]
    assert not list(store.digests.due(at + not_before - SECOND, 10))
    with pytest.raises(AlreadyDone), digesting(store, ALICE, at + not_before - SECOND, 10):
        pytest.fail("entered")
    assert list(store.digests.due(at + at_last + SECOND, 10)) == [ALICE]
    with digesting(store, ALICE, at + at_last + SECOND, 10) as digest:
        assert names(digest.deliveries) == [(held.id, 0)]


def test_mail_that_arrives_while_a_digest_is_sent_is_told_next_time(store: Store, second: Store) -> None:
    first, at = hold(store, recipients=[ALICE]), now()
    store.recipients.schedule(ALICE, at)
    with digesting(store, ALICE, at, 10) as digest:
        arrived = hold(second, recipients=[ALICE])
        assert names(digest.deliveries) == [(first.id, 0)]
    assert store.recipients.get(ALICE).news_since == held_at(arrived.id)
    assert [p.recipient for p in store.recipients.unscheduled(10)] == [ALICE]
    assert tell(store, ALICE, at) == [(arrived.id, 0)]


def test_what_does_not_fit_a_digest_is_told_next_time(store: Store) -> None:
    ids = sorted(hold(store, recipients=[ALICE]).id for _ in range(3))
    at = now()
    assert tell(store, ALICE, at, limit=2) == [(id, 0) for id in ids[:2]]
    assert store.recipients.get(ALICE).news_since == held_at(ids[2])
    assert [p.recipient for p in store.recipients.unscheduled(10)] == [ALICE]
    assert tell(store, ALICE, at, limit=2) == [(ids[2], 0)]


def test_what_is_acted_on_while_a_digest_is_sent_counts_as_announced(store: Store) -> None:
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


def due(store: Store, count: int, at: datetime) -> list[str]:
    """So many recipients with a digest that is due at ``at``, the longest due first."""
    people = [f"p{n:02}@example.org" for n in range(count)]
    for n, person in enumerate(people):
        hold(store, recipients=[person])
        store.recipients.schedule(person, at - (count - n) * MINUTE)
    return people


def claimed(claims: Claims) -> list[str]:
    return [digest.recipient for digest in claims.digests]


def reschedule(store: Store, recipient: str, at: datetime) -> None:
    store.recipients.set_preferences(recipient, store.recipients.get(recipient).preferences)
    store.recipients.schedule(recipient, at)


def test_many_digests_are_claimed_and_settled_together(store: Store, second: Store) -> None:
    at = now()
    people = due(store, 7, at)
    reschedule(store, people[0], at + DAY)
    store.recipients.set_digests_stopped(people[1], at)
    first = store.digests.claim(at, 3, 10)
    assert claimed(first) == people[2:5]
    assert [len(digest.deliveries) for digest in first.digests] == [1, 1, 1]
    assert [store.digests.recipient_of(digest.id) for digest in first.digests] == people[2:5]
    rest = second.digests.claim(at, 10, 10)
    assert claimed(rest) == people[5:]
    assert claimed(store.digests.claim(at, 10, 10)) == []
    assert claimed(store.digests.claim(at + LEASE - SECOND, 10, 10)) == []
    store.digests.settle(first.digests, [], at)
    second.digests.settle(rest.digests, [], at)
    assert list(store.digests.due(at + HOUR, 10)) == []
    for digest in (*first.digests, *rest.digests):
        assert store.digests.last(digest.recipient) is not None
        assert names(store.digests.get(digest.id).deliveries) == names(digest.deliveries)
        assert list(store.digests.unannounced(Reader(digest.recipient), 10)) == []
        assert store.recipients.get(digest.recipient).news_since is None


def test_those_asked_for_by_name_are_claimed_or_told_why_not(store: Store) -> None:
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
    assert claimed(store.digests.claim(at, 10, 100)) == rest, "what was too much is not claimed"
    assert len(people) == 4


def test_a_digest_that_was_not_tried_is_given_back(store: Store, second: Store) -> None:
    at = now()
    people = due(store, 2, at)
    claims = store.digests.claim(at, 2, 10)
    store.digests.settle(claims.digests[:1], [Unsent(claims.digests[1])], at)
    again = second.digests.claim(at, 2, 10)
    assert claimed(again) == people[1:]
    assert again.digests[0].id == claims.digests[1].id
    assert again.digests[0].failures == 0


def test_what_a_mail_server_said_is_kept_until_a_digest_goes_out(store: Store) -> None:
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
    assert [digest.id for digest in again] == [digest.id for digest in digests]
    store.digests.settle(again, [], at + HOUR)
    assert store.recipients.failing(10) == []
    assert store.stats(at).digests_failing == 0
    assert store.recipients.get(people[0]).failure == ""


def test_a_claim_that_ran_out_settles_what_was_sent_and_nothing_else(store: Store, second: Store) -> None:
    at = now()
    [who] = due(store, 1, at)
    slow, failed = store.digests.claim(at, 1, 10).digests[0], at + LEASE + SECOND
    other = second.digests.claim(failed, 1, 10).digests[0]
    store.digests.settle([], [Unsent(slow, due_at=at + DAY, failure="451 busy")], failed)
    assert store.recipients.get(who).next_digest_at == at - MINUTE
    store.digests.settle([slow], [], failed)
    assert list(store.digests.unannounced(Reader(who), 10)) == []
    assert store.recipients.get(who).news_since is not None, "it is the other's to say"
    second.digests.settle([other], [], failed)
    assert store.recipients.get(who).news_since is None


def test_what_is_wanted_at_once_does_not_wait_for_the_next_try_but_for_a_claim(store: Store) -> None:
    at = now()
    people = due(store, 1, at)
    first = store.digests.claim(at, 1, 10).digests
    assert claimed(store.digests.claim(at, 1, 10, only=people, ignore_schedule=True)) == []
    store.digests.settle([], [Unsent(first[0], not_before=at + HOUR)], at)
    assert claimed(store.digests.claim(at, 1, 10, only=people)) == []
    assert claimed(store.digests.claim(at, 1, 10, only=people, ignore_schedule=True)) == people


def test_figures_tell_who_waits_without_the_mail_server_having_said_no(store: Store) -> None:
    at = now()
    due(store, 2, at)
    refused, _ = store.digests.claim(at, 2, 10).digests
    store.digests.settle([], [Unsent(refused, not_before=at + LEASE, failure="450 busy")], at)
    figures = store.stats(at)
    assert figures.digests_due == 2
    assert figures.oldest_digest_due_at == at - 2 * MINUTE
    assert figures.oldest_untried_due_at == at - MINUTE


def test_totals_are_added_up_by_all(store: Store, second: Store) -> None:
    assert store.notes.counters() == {}
    concurrently(
        10, lambda number: (store, second)[number % 2].notes.add_counters({"sent": 2, "seconds": 0.5, "failed": 0})
    )
    assert second.notes.counters() == {"sent": 20, "seconds": 5, "failed": 0}


def test_of_many_who_swap_a_note_one_succeeds(store: Store, second: Store) -> None:
    for old, new in ((None, "a"), ("a", "b"), ("b", "")):

        def swap(number: int, old: str | None = old, new: str = new) -> bool:
            return (store, second)[number % 2].notes.compare_and_set("outage", old, new, now())

        swapped = concurrently(6, swap)
        assert sorted(swapped) == [False] * 5 + [True]
        assert store.notes.get("outage") == new
    assert not store.notes.compare_and_set("outage", None, "c", now())


def test_unannounced_claims_nothing(store: Store) -> None:
    hold(store)
    at = now()
    store.recipients.schedule(ALICE, at)
    assert len(store.digests.unannounced(Reader(ALICE), 10)) == 1
    assert list(store.digests.due(at, 10)) == [ALICE]
    assert len(tell(store, ALICE, at)) == 1


def test_the_last_digest_can_be_looked_up(store: Store) -> None:
    helds, at = [hold(store) for _ in range(3)], now()
    assert store.digests.last(ALICE) is None
    with digesting(store, ALICE, at, 2, ignore_schedule=True) as first:
        pass
    last = store.digests.last(ALICE)
    assert last
    assert replace(last, deliveries=()) == replace(first, deliveries=())
    assert names(last.deliveries) == names(first.deliveries)
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
    assert names(last.deliveries) == [(max(h.id for h in helds), 0)]
    with pytest.raises(RelayDeferred), digesting(store, BOB, at, 10, ignore_schedule=True):
        raise RelayDeferred("451")
    assert store.digests.last(BOB) is None


def test_the_last_of_two_digests_in_one_second_is_the_last(store: Store) -> None:
    at = now().replace(microsecond=0)
    for n in range(5):
        held = hold(store, recipients=[ALICE])
        assert tell(store, ALICE, at + n * timedelta(milliseconds=100)) == [(held.id, 0)]
        last = store.digests.last(ALICE)
        assert last
        assert names(last.deliveries) == [(held.id, 0)]


def test_a_digest_can_be_looked_up_by_its_id(store: Store) -> None:
    for _ in range(3):
        hold(store)
    at = now()
    with digesting(store, ALICE, at, 2, ignore_schedule=True) as first:
        assert names(store.digests.get(first.id).deliveries) == [], "not recorded yet"
    release(store, Held(first.deliveries[0].id, known=True), at)
    with digesting(store, ALICE, at + HOUR, 10, ignore_schedule=True) as second:
        pass
    found = store.digests.get(first.id)
    assert replace(found, deliveries=()) == replace(first, deliveries=())
    assert names(found.deliveries) == names(first.deliveries)
    assert [d.state for d in found.deliveries] == [State.RELEASED, State.HELD]
    assert {d.recipient for d in found.deliveries} == {ALICE}
    assert names(store.digests.get(second.id).deliveries) == names(second.deliveries)
    with pytest.raises(NotFound):
        store.digests.get(UNKNOWN)


def test_whose_mail_a_recipient_got_released(store: Store) -> None:
    at = now()
    first, second, third, fourth = (hold(store, header_from=f"P{n} <p{n}@example.net>") for n in range(4))
    assert store.deliveries.released_from([ALICE], 10) == {}
    release(store, first, at)
    release(store, third, at)
    delete(store, second, at)
    release(store, fourth, at, number=1)
    with pytest.raises(RelayDeferred), claim(store, fourth, at):
        raise RelayDeferred("451")
    hers, his = ["P2 <p2@example.net>", "P0 <p0@example.net>"], ["P3 <p3@example.net>"]
    assert store.deliveries.released_from([ALICE, MALLORY, BOB], 10) == {ALICE: hers, BOB: his}
    assert store.deliveries.released_from([ALICE], 1) == {ALICE: hers[:1]}
    assert store.deliveries.released_from([MALLORY], 10) == {}
    assert store.deliveries.released_from([], 10) == {}


def test_a_digest_belongs_to_its_recipient(store: Store) -> None:
    hold(store)
    with digesting(store, ALICE, now(), 10, ignore_schedule=True) as digest:
        assert store.digests.recipient_of(digest.id) == ALICE
    assert store.digests.recipient_of(digest.id) == ALICE
    with pytest.raises(NotFound):
        store.digests.recipient_of(UNKNOWN)


@pytest.mark.parametrize(
    ("local", "told"),
    [
        ({"example.org"}, [ALICE, BOB]),
        ({ALICE}, [ALICE]),
        ({ALICE, "example.com"}, [ALICE, "carol@example.com"]),
        ({"sub.example.org", "org"}, []),
        (set(), []),
        (None, [ALICE, BOB, "carol@example.com"]),
    ],
    ids=["domain", "address", "both", "other", "nobody", "everybody"],
)
def test_find_news_marks_those_who_were_not_told(store: Store, local: set[str] | None, told: list[str]) -> None:
    hold(store, recipients=["Alice@Example.org", BOB, "carol@example.com"], announce=())
    hold(store, recipients=(), announce=())
    since = now() - HOUR
    assert not list(store.recipients.unscheduled(10))
    assert store.recipients.find_news(since, local) == len(told)
    assert sorted(p.recipient for p in store.recipients.unscheduled(10)) == told
    assert list(store.digests.due(None, 10)) == told


def test_find_news_looks_at_held_and_unannounced_mail_of_that_time(store: Store) -> None:
    told, at = hold(store, recipients=[ALICE]), now()
    tell(store, ALICE, at)
    delete(store, hold(store, recipients=[BOB], announce=()), at)
    late = hold(store, recipients=["carol@example.org"], announce=())
    assert store.recipients.find_news(held_at(late.id) + timedelta(milliseconds=1), None) == 0
    assert store.recipients.find_news(held_at(told.id), None) == 1
    assert list(store.digests.due(None, 10)) == ["carol@example.org"]
    assert store.recipients.get("carol@example.org").news_since == held_at(late.id)


def test_mail_that_keeps_coming_while_digests_go_out_is_told_exactly_once(store: Store, second: Store) -> None:
    ids: list[UUID] = []
    told: list[tuple[UUID, int]] = []

    def keep_holding() -> None:
        for _ in range(40):
            ids.append(hold(second, recipients=[ALICE]).id)

    holder = Thread(target=keep_holding)
    holder.start()
    while holder.is_alive():
        with suppress(AlreadyDone):
            told += tell(store, ALICE, now(), limit=3)
    holder.join()
    store.recipients.find_news(now() - HOUR, None)
    with pytest.raises(AlreadyDone):
        while True:
            told += tell(store, ALICE, now(), limit=50)
    assert sorted(told) == sorted((id, 0) for id in ids)


# ---- our own mail


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


def test_a_queued_mail_is_claimed_by_one(store: Store, second: Store) -> None:
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
    assert dies_in(store_url, "outbox.sending", at).mail == b"one"
    assert send_next(store, at + LEASE - SECOND) is None
    assert send_next(store, at + LEASE + SECOND) == b"one"


# ---- signing in


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


def test_a_sign_in_is_mailed_and_used_once(store: Store) -> None:
    at = now()
    asked = sign_in(1, at)
    assert start(store, asked)
    with store.outbox.sending(at) as outgoing:
        assert outgoing
        assert (outgoing.to, outgoing.mail) == (ALICE, b"mail 1")
    assert store.sign_ins.get(asked.token_sha256, at + MINUTE) == asked
    assert store.sign_ins.get(asked.token_sha256, at + MINUTE) == asked
    assert store.sign_ins.use(asked.token_sha256, at + MINUTE) == asked
    for look in (store.sign_ins.get, store.sign_ins.use):
        with pytest.raises(LinkInvalid):
            look(asked.token_sha256, at + MINUTE)
    with pytest.raises(LinkInvalid):
        store.sign_ins.use_code(asked.browser_sha256, asked.code_sha256, at + MINUTE)


def test_an_unknown_or_expired_sign_in_is_invalid(store: Store) -> None:
    at = now()
    asked = sign_in(1, at)
    start(store, asked)
    for look in (store.sign_ins.get, store.sign_ins.use):
        with pytest.raises(LinkInvalid):
            look(b"x" * 32, at)
        with pytest.raises(LinkInvalid):
            look(asked.token_sha256, asked.expires_at + SECOND)
    with pytest.raises(LinkInvalid):
        store.sign_ins.use_code(asked.browser_sha256, asked.code_sha256, asked.expires_at + SECOND)


def test_of_20_who_use_a_sign_in_exactly_one_gets_it(store: Store, second: Store) -> None:
    at = now()
    asked = sign_in(1, at)
    start(store, asked)
    results = concurrently(20, lambda n: (store, second)[n % 2].sign_ins.use(asked.token_sha256, at))
    assert results.count(asked) == 1
    assert sum(isinstance(r, LinkInvalid) for r in results) == 19


def test_a_code_works_in_the_browser_that_asked(store: Store) -> None:
    at = now()
    asked = sign_in(1, at)
    start(store, asked)
    with pytest.raises(LinkInvalid):
        store.sign_ins.use_code(b"other browser".ljust(32), asked.code_sha256, at)
    for _ in range(4):
        with pytest.raises(LinkInvalid):
            store.sign_ins.use_code(asked.browser_sha256, b"wrong".ljust(32), at)
    assert store.sign_ins.use_code(asked.browser_sha256, asked.code_sha256, at) == asked
    with pytest.raises(LinkInvalid):
        store.sign_ins.use_code(asked.browser_sha256, asked.code_sha256, at)
    with pytest.raises(LinkInvalid):
        store.sign_ins.use(asked.token_sha256, at)


def test_the_fifth_wrong_code_kills_the_sign_in(store: Store) -> None:
    at = now()
    asked = sign_in(1, at)
    start(store, asked)
    for _ in range(5):
        with pytest.raises(LinkInvalid):
            store.sign_ins.use_code(asked.browser_sha256, b"wrong".ljust(32), at)
    with pytest.raises(LinkInvalid):
        store.sign_ins.use_code(asked.browser_sha256, asked.code_sha256, at)
    with pytest.raises(LinkInvalid):
        store.sign_ins.get(asked.token_sha256, at)


def test_50_guesses_at_once_are_no_more_than_five(store: Store, second: Store) -> None:
    at = now()
    asked = sign_in(1, at)
    start(store, asked)
    concurrently(50, lambda n: (store, second)[n % 2].sign_ins.use_code(asked.browser_sha256, bytes([n]) * 32, at))
    with pytest.raises(LinkInvalid):
        store.sign_ins.use_code(asked.browser_sha256, asked.code_sha256, at)


def test_only_the_newest_code_of_a_browser_works(store: Store) -> None:
    at = now()
    old = sign_in(1, at)
    new = sign_in(2, at + 2 * MINUTE, browser_sha256=old.browser_sha256)
    assert start(store, old)
    assert start(store, new)
    with pytest.raises(LinkInvalid):
        store.sign_ins.use_code(old.browser_sha256, old.code_sha256, at + 3 * MINUTE)
    assert store.sign_ins.use_code(old.browser_sha256, new.code_sha256, at + 3 * MINUTE) == new


def test_one_sign_in_a_minute_and_five_an_hour_for_a_recipient(store: Store) -> None:
    at = now()
    assert start(store, sign_in(1, at))
    store.sign_ins.use(sign_in(1, at).token_sha256, at)  # a used one counts as well
    refused = sign_in(2, at + 59 * SECOND)
    assert not start(store, refused)
    with pytest.raises(LinkInvalid):
        store.sign_ins.get(refused.token_sha256, refused.created_at)
    assert store.stats(at).mails_waiting == 1
    assert start(store, sign_in(3, at + 59 * SECOND, recipient=BOB))
    for number in (4, 5, 6, 7):
        assert start(store, sign_in(number, at + (number - 3) * 10 * MINUTE))
    assert not start(store, sign_in(8, at + 59 * MINUTE))
    assert start(store, sign_in(9, at + 61 * MINUTE))


def test_ten_sign_ins_a_minute_from_one_address(store: Store) -> None:
    at = now()
    for number in range(10):
        assert start(store, sign_in(number, at + number * SECOND, recipient=f"p{number}@example.org"))
    late = sign_in(11, at + 30 * SECOND, recipient="late@example.org")
    assert not start(store, late)
    assert start(store, replace(late, client_ip="192.0.2.2"))
    assert start(store, sign_in(12, at + 71 * SECOND, recipient="later@example.org"))


def test_one_address_may_not_ask_for_one_recipient_after_another_all_day(store: Store) -> None:
    at, limits = now(), SignInLimits(per_ip_hour=3)
    for number in range(3):
        assert start(store, sign_in(number, at + number * 10 * MINUTE, recipient=f"p{number}@example.org"), limits)
    late = sign_in(9, at + 59 * MINUTE, recipient="late@example.org")
    assert not start(store, late, limits)
    assert start(store, replace(late, client_ip="192.0.2.2"), limits)
    assert start(store, sign_in(10, at + 61 * MINUTE, recipient="later@example.org"), limits)


def test_sign_ins_of_all_are_limited_too(store: Store) -> None:
    at, limits = now(), SignInLimits(all_minute=3)
    results = [
        start(store, sign_in(n, at, recipient=f"p{n}@example.org", client_ip=f"192.0.2.{n}"), limits) for n in range(5)
    ]
    assert results == [True, True, True, False, False]
    assert start(store, sign_in(9, at + 61 * SECOND, recipient="p9@example.org", client_ip="192.0.2.9"), limits)


def test_20_who_ask_at_once_get_one_sign_in(store: Store, second: Store) -> None:
    at = now()
    results = concurrently(20, lambda n: start((store, second)[n % 2], sign_in(n, at, client_ip=f"192.0.2.{n}")))
    assert results.count(True) == 1
    assert results.count(False) == 19
    assert store.stats(at).mails_waiting == 1


SESSION = b"s" * 32


def test_a_session_ends_after_12_hours_without_use(store: Store) -> None:
    at = now()
    assert store.sign_ins.session(SESSION, at) is None
    store.sign_ins.start_session(SESSION, ALICE, at)
    assert store.sign_ins.session(SESSION, at) == ALICE
    assert store.sign_ins.session(SESSION, at + 11 * HOUR) == ALICE
    assert store.sign_ins.session(SESSION, at + 22 * HOUR) == ALICE
    assert store.sign_ins.session(SESSION, at + 35 * HOUR) is None
    assert store.sign_ins.session(b"t" * 32, at) is None


def test_a_session_ends_after_7_days_however_used(store: Store) -> None:
    at = now()
    store.sign_ins.start_session(SESSION, ALICE, at)
    for hours in range(10, 168, 10):
        assert store.sign_ins.session(SESSION, at + hours * HOUR) == ALICE
    assert store.sign_ins.session(SESSION, at + 7 * DAY + MINUTE) is None


def test_signing_out_ends_that_session_only(store: Store) -> None:
    at = now()
    store.sign_ins.start_session(SESSION, ALICE, at)
    store.sign_ins.start_session(b"t" * 32, ALICE, at)
    store.sign_ins.end_session(SESSION)
    store.sign_ins.end_session(SESSION)
    assert store.sign_ins.session(SESSION, at) is None
    assert store.sign_ins.session(b"t" * 32, at) == ALICE


# ---- life


def test_the_first_value_is_remembered(store: Store) -> None:
    assert store.notes.set_default("links.key", "one") == "one"
    assert store.notes.set_default("links.key", "two") == "one"
    assert store.notes.set_default("other", "two") == "two"
    store.notes.set("links.key", "three")
    assert store.notes.set_default("links.key", "four") == "three"


def test_of_20_who_remember_at_once_all_agree(store: Store, second: Store) -> None:
    results = concurrently(20, lambda n: (store, second)[n % 2].notes.set_default("links.key", str(n)))
    assert len(set(results)) == 1


def test_figures_of_an_empty_store(store: Store) -> None:
    figures = store.stats(now())
    assert (figures.releases_waiting, figures.requests_waiting, figures.mails_waiting, figures.digests_due) == (0,) * 4
    assert figures.oldest_digest_due_at is None
    assert figures.heartbeat_at is None


def test_figures_tell_what_waits(store: Store) -> None:
    helds, at = [hold(store) for _ in range(4)], now()
    defer(store, helds[0], at)
    ask(store, helds[1], at)
    ask(store, helds[1], at, 1)
    release(store, helds[2], at)
    store.outbox.add(QueuedMail(ALICE, b"x"), at)
    store.recipients.schedule(ALICE, at)
    store.recipients.schedule(BOB, at + DAY)
    store.heartbeat(at - SECOND)
    store.heartbeat(at)
    figures = store.stats(at + HOUR)
    assert (figures.releases_waiting, figures.requests_waiting, figures.mails_waiting) == (1, 2, 1)
    assert (figures.digests_due, figures.oldest_digest_due_at, figures.heartbeat_at) == (1, at, at)
    assert store.stats(at + 2 * DAY).digests_due == 2
    tell(store, ALICE, at + HOUR)
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
    store.recipients.schedule(BOB, at)
    store.outbox.add(QueuedMail(BOB, b"one"), at)
    store.sign_ins.start_session(SESSION, BOB, at)
    asked = sign_in(1, at)
    start(store, asked)
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
            opened.digests.recipient_of(digest.id),
            opened.deliveries.due_releases(at + DAY, 10),
            opened.sign_ins.session(SESSION, at),
            opened.sign_ins.get(asked.token_sha256, at),
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


# ---- age


def day_after_tomorrow() -> datetime:
    """Whole UTC days are what PostgreSQL drops: with this, all that is held now is old."""
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + 2 * DAY


def test_old_mail_is_gone_with_all_that_belongs_to_it(store: Store) -> None:
    data, at = mail(), now()
    held, released = hold(store, data, queue_id="AAA"), hold(store)
    release(store, released, at)
    delete(store, released, at, 1)
    store.digests.record_link_open(ALICE, at.replace(microsecond=0), LinkOpen(DeliveryId(held.id, 0), at), at)
    purged = store.purge(day_after_tomorrow(), day_after_tomorrow())
    assert (purged.messages, purged.kept) == (2, 0)
    for look in (
        lambda: store.deliveries.get(DeliveryId(held.id, 0)),
        lambda: store.deliveries.of_message(held.id),
        lambda: store.deliveries.get_for(Reader(ALICE), held.id),
        lambda: store.deliveries.history(DeliveryId(held.id, 0)),
        lambda: next(iter(store.messages.body(held.id))),
        lambda: delete(store, held, at),
        lambda: release(store, held, at),
    ):
        with pytest.raises(NotFound):
            look()
    assert not list(store.messages.find("AAA"))
    assert not list(store.messages.find(str(held.id)))
    assert store.deliveries.search(Filter(), 10) == Page((), None)
    assert store.deliveries.list_for(Reader(ALICE), EVERY_STATE, 10) == Page((), None)
    assert not list(store.digests.unannounced(Reader(ALICE), 10))
    again = hold(store, data)
    assert not again.known
    assert again.id != held.id
    assert held_bytes(store, again.id) == data


def test_newer_mail_stays(store: Store) -> None:
    data = mail()
    held = hold(store, data)
    purged = store.purge(day_after_tomorrow() - 2 * DAY, now())
    assert (purged.messages, purged.kept) == (0, 0)
    assert held_bytes(store, held.id) == data
    assert hold(store, data) == Held(held.id, known=True)


def test_what_somebody_waits_for_outlives_retention(store: Store) -> None:
    datas, at = [mail() for _ in range(3)], now()
    gone, requested, releasing = (hold(store, data, queue_id="AAA") for data in datas)
    ask(store, requested, at)
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


def test_what_is_being_released_survives_a_purge(store: Store) -> None:
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
    assert store.digests.recipient_of(digest.id) == ALICE
    last = store.digests.last(ALICE)
    assert last is None or (last.id, last.deliveries) == (digest.id, ())


def test_a_purge_leaves_people_and_their_wishes(store: Store) -> None:
    hold(store)
    at = now()
    store.recipients.set_digests_stopped(ALICE, at)
    store.recipients.revoke_links(BOB, at)
    store.recipients.set_preferences(MALLORY, CHOSEN)
    store.notes.set_default("links.key", "one")
    store.purge(day_after_tomorrow(), at + 40 * DAY)
    assert store.recipients.get(ALICE).stopped_at == at
    assert store.recipients.get(BOB).links_valid_from == at
    assert store.recipients.get(MALLORY).preferences == CHOSEN
    assert store.notes.set_default("links.key", "two") == "one"


def test_a_purge_ends_what_has_expired_and_leaves_the_rest(store: Store) -> None:
    at = now()
    asked = sign_in(1, at)
    start(store, asked)
    store.sign_ins.start_session(SESSION, ALICE, at)
    store.outbox.add(QueuedMail(ALICE, b"one"), at)
    store.purge(at - DAY, at + MINUTE)
    assert store.sign_ins.get(asked.token_sha256, at + MINUTE) == asked
    assert store.sign_ins.session(SESSION, at + MINUTE) == ALICE
    assert store.stats(at).mails_waiting == 2
    store.purge(at - DAY, at + 30 * DAY)
    with pytest.raises(LinkInvalid):
        store.sign_ins.get(asked.token_sha256, at)
    assert store.sign_ins.session(SESSION, at) is None


def test_mail_held_while_a_purge_runs_is_kept(store: Store, second: Store) -> None:
    old = day_after_tomorrow() - 2 * DAY
    results = concurrently(8, lambda n: hold(second) if n else store.purge(old, now()))
    for held in results[1:]:
        assert held_bytes(store, held.id)


def test_preparing_days_changes_nothing_for_mail(store: Store) -> None:
    data = mail()
    held = hold(store, data)
    store.prepare_days(now())
    store.prepare_days(now() + DAY)
    store.prepare_days(now() + 5 * DAY)
    assert held_bytes(store, held.id) == data
    assert not hold(store).known
    assert store.purge(day_after_tomorrow(), day_after_tomorrow()).messages == 2


def test_errors_name_no_mail(store: Store) -> None:
    """Error texts go to logs and pages: ids at most."""
    held = hold(store, subject="Secret plan")
    release(store, held, now())
    with pytest.raises(AlreadyDone) as error:
        delete(store, held, now())
    assert not re.search("Secret|promo|example", str(error.value))
