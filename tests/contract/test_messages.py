"""`Messages` on every store: holding, recognizing the same mail again, reading back, finding by id."""

from __future__ import annotations

import io
import os
import pickle
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from portal.model.errors import StoreUnavailable
from portal.model.message import Body, DeliveryId, Filter, Flag, Message, Reader, State, Symbol, Tier, held_at
from portal.stores import Store
from portal.stores.records import Held, Page
from tests.builders import ALICE, BOB, body, export, hold, mail, now
from tests.contract.helpers import (
    HOUR,
    UNKNOWN,
    call_and_exit,
    concurrently,
    delete,
    every_page,
    held_bytes,
    keys,
    release,
    send_digest,
    start_child,
)
from tests.paths import ROOT

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


def test_metadata_of_the_export_is_kept(store: Store) -> None:
    exported = export(
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
    held = store.messages.add(replace(exported, size_bytes=len(data)), body(data), Tier.SUSPICIOUS, ())
    message = store.deliveries.get(DeliveryId(held.id, 1)).message
    assert message.id == held.id
    assert message.id.version == 7
    assert message.held_at == held_at(held.id)
    assert before <= message.held_at <= now()
    assert message.tier is Tier.SUSPICIOUS
    for name in {field.name for field in fields(Message)} - {"id", "verdict_tier", "scan", "size_bytes", "attachments"}:
        assert getattr(message, name) == getattr(exported, name), name


def test_unknown_metadata_stays_unknown(store: Store) -> None:
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


def test_metadata_may_have_any_length(store: Store) -> None:
    """No metadata may prevent a mail from being held. The text is random, so it cannot be compressed."""

    def long(octets: int) -> str:
        return os.urandom(octets // 2).hex()

    recipient = f"{long(2_000)}@example.org"  # about the limit of Postfix for a line
    metadata: dict[str, Any] = {
        "envelope_sender": f"{long(8_000)}@example.net",
        "subject": long(100_000),
        "header_from": long(100_000),
        "queue_id": long(8_000),
        "message_id": long(8_000),
        "action": long(8_000),
        "user": long(8_000),
        "symbols": tuple(Symbol(f"SYMBOL_{n}", n / 7, (long(60), long(60))) for n in range(1000)),
    }
    held = hold(store, recipients=[recipient, BOB], **metadata)
    message = store.deliveries.get_for(Reader(recipient), held.id).message
    assert {name: getattr(message, name) for name in metadata} == metadata
    assert [m.id for m in store.messages.find(metadata["queue_id"])] == [held.id]
    assert send_digest(store, recipient, now()) == [(held.id, 0)]


@pytest.mark.parametrize(
    "address", ["o'brien%_\\@example.org", '"a b"@example.org', "ünï@example.org", "🎉@example.org"]
)
def test_addresses_are_taken_literally(store: Store, address: str) -> None:
    held = hold(store, recipients=[address], announce=())
    hold(store, recipients=["oxbrienxx@example.org"], announce=())
    assert store.recipients.find_news(now() - HOUR, {address}) == 1
    assert [p.recipient for p in store.recipients.unscheduled(10)] == [address]
    assert keys(store.deliveries.list_for(Reader(address), {State.HELD}, 10).deliveries) == [(held.id, 0)]
    assert keys(store.deliveries.search(Filter(recipient=address), 10).deliveries) == [(held.id, 0)]
    assert send_digest(store, address, now()) == [(held.id, 0)]


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


def test_a_message_without_recipients_has_one_delivery_without_recipient(store: Store) -> None:
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
    processes = [start_child(store_url, "messages.add", export(data), body(data), Tier.SPAM, ()) for _ in range(4)]
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
    held = call_and_exit(store_url, "messages.add", export(data), body(data), Tier.SPAM, (ALICE,))
    assert held_bytes(store, held.id) == data
    assert keys(store.deliveries.list_for(Reader(ALICE), {State.HELD}, 10).deliveries) == [(held.id, 0)]
    assert [p.recipient for p in store.recipients.unscheduled(10)] == [ALICE]


def test_a_body_that_cannot_be_read_leaves_nothing(store: Store) -> None:
    data = mail(size_bytes=5_000)
    with pytest.raises(StoreUnavailable):
        store.messages.add(export(data), Body(io.BytesIO(data[:-100]), 0, len(data)), Tier.SPAM, (ALICE,))
    assert store.deliveries.search(Filter(), 10) == Page((), None)
    assert store.recipients.get(ALICE).news_since is None
    held = hold(store, data)
    assert not held.known
    assert held_bytes(store, held.id) == data


def test_a_message_is_found_by_its_id_and_by_its_queue_id(store: Store) -> None:
    one, two = hold(store, queue_id="AAA"), hold(store, queue_id="BBB")
    assert [m.id for m in store.messages.find(str(one.id))] == [one.id]
    assert [m.id for m in store.messages.find("BBB")] == [two.id]
    assert list(store.messages.find("AAA")) == [store.deliveries.get(DeliveryId(one.id, 0)).message]


def test_a_reused_queue_id_finds_all_newest_first(store: Store) -> None:
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
