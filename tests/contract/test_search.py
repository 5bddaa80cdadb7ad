"""Searching, on both stores: words and beginnings of words, dates, scores, tiers, states; hostile text; plans."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from portal.cli import main
from portal.model.message import Delivery, DeliveryId, EventKind, Filter, Reader, Start, State, Tier, held_at, new_id
from portal.stores import Store, search
from portal.stores.files.search import index_waiting
from portal.stores.files.store import FileStore
from portal.stores.postgres.store import PostgresStore
from portal.stores.records import Page
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, MALLORY, SENDER, body, export, hold, mail, now
from tests.contract.helpers import UNKNOWN

DAY = timedelta(days=1)


def ids(page: Page) -> list[UUID]:
    return [delivery.id for delivery in page.deliveries]


def every_page(get_page: Callable[[Any], Page]) -> list[Delivery]:
    """Return the deliveries of all pages; check that no page exceeds its limit and that the pages end."""
    found: list[Delivery] = []
    before = None
    for _ in range(1000):
        page = get_page(before)
        found += page.deliveries
        if page.next is None:
            return found
        assert before is None or page.next < before
        before = page.next
    raise AssertionError("there is no end")


def found(store: Store, **wanted: Any) -> list[UUID]:
    """Return the ids of the messages found, each once, newest first."""
    return list(dict.fromkeys(d.id for d in every_page(lambda b: store.deliveries.search(Filter(**wanted), 7, b))))


# ---- words


@pytest.mark.parametrize(
    "words",
    [
        "invoice",
        "INVOICE",
        "inv",
        "i",
        "overdue invoice",
        "invoice overdue",
        "  invoice,  overdue! ",
        "inv over",
        "2026-0815",
        "0815",
        "invoice promo",  # words of the sender are searched too
        "promo@example.net",
        "example.net",
        "shop",
        "inv invoice",
    ],
)
def test_words_and_beginnings_of_words_are_found(store: Store, words: str) -> None:
    held = hold(store, subject="Your invoice no. 2026-0815 is OVERDUE", header_from="The Shop <promo@example.net>")
    hold(store, subject="Offer", header_from="Other <x@example.com>", envelope_sender="x@example.com")
    assert found(store, words=words) == [held.id]


@pytest.mark.parametrize(
    "words", ["nvoice", "voice", "invoices", "invoice paid", "=spam", "spam", "s17", "alice", "'invoice'x", "in voice"]
)
def test_text_that_no_word_begins_with_is_not_found(store: Store, words: str) -> None:
    hold(store, subject="Your invoice is overdue")
    assert found(store, words=words) == []


@pytest.mark.parametrize("blank", ["", " ", "\t\n\u3000"])
def test_an_empty_search_does_not_restrict(store: Store, blank: str) -> None:
    held = hold(store)
    assert found(store, words=blank) == [held.id]
    assert (
        len(store.deliveries.matching(Reader(ALICE), Filter(states=frozenset({State.HELD}), words=blank), 9).deliveries)
        == 1
    )


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ("Schöne Grüße aus München", "grüsse MÜNCHEN"),
        ("Schöne Grüße aus München", "schone grusse munchen"),
        ("Schone Grusse", "schöne Grüße"),
        ("Cafe\u0301 Zürich", "café zurich"),
        ("Ваш счёт готов", "СЧЕТ"),
        ("Ο ΛΟΓΑΡΙΑΣΜΌΣ ΣΑΣ", "λογαριασμος"),
        ("İSTANBUL", "istanbul"),
        ("ｆｕｌｌ ｗｉｄｔｈ", "full width"),
        ("𝐁𝐨𝐥𝐝 𝕄𝕒𝕥𝕙", "bold math"),
        ("हिन्दी में समाचार", "हिन्दी समा"),
        ("ใบแจ้งหนี้ของคุณ", "ใบแจ้ง"),
        ("청구서가 도착했습니다", "청구서"),
        ("فاتورة جديدة", "فاتورة"),
        ("您的发票已经逾期", "您的"),
        ("您的发票已经逾期", "发票"),
        ("您的发票已经逾期", "期"),
        ("您的发票已经逾期", "发票 逾期"),
        ("請求書のお知らせです", "お知らせ"),
        ("ﾒｰﾙのｾｷｭﾘﾃｨ", "セキュリティ"),
        ("Re:您的VISA卡", "visa"),
    ],
)
def test_case_accents_and_forms_do_not_matter_in_any_script(store: Store, subject: str, words: str) -> None:
    held = hold(store, subject=subject)
    hold(store, subject="Offer")
    assert found(store, words=words) == [held.id]


@pytest.mark.parametrize(
    ("words", "is_found"),
    [
        ('"second invoice"', True),
        ("«SÉCOND invo» paid", True),
        ('"invoice second"', False),
        ('"your invoice"', False),
        ('"invoice is', True),  # not closed
        ('"paid promo"', False),  # a subject and a sender
        ('"promo promo@example.net"', True),
        ("„für Ihr Büro“", True),
        ("「株式 会社」", True),
        ('"会社 株式"', False),
        ('"second" "invoice"', True),
        ('""', False),
    ],
)
def test_a_quoted_phrase_has_its_words_in_this_order(store: Store, words: str, is_found: bool) -> None:
    subject = "Your second, invoice is paid (für Ihr Büro) 株式・会社"
    held = [hold(store, subject=subject, recipients=["ops@example.org"]).id, hold(store, subject=subject).id]
    assert found(store, words=words) == held[::-1] * is_found
    of_alice = store.deliveries.matching(Reader(ALICE), Filter(words=words), 9).deliveries
    assert [each.id for each in of_alice] == held[1:] * is_found


def test_marks_that_make_another_word_do_matter(store: Store) -> None:
    ga = hold(store, subject="がす")
    ka = hold(store, subject="かす")
    assert found(store, words="がす") == [ga.id]
    assert found(store, words="かす") == [ka.id]


def test_of_a_long_subject_the_first_words_are_found_and_of_a_long_word_its_beginning(store: Store) -> None:
    long = "x" * 60 + "y" * 5_000
    held = hold(store, subject=long + " " + " ".join(f"word{n}" for n in range(5_000)))
    few = hold(store, subject=" ".join(f"word{n}" for n in range(45)))
    assert found(store, words=long) == [] or found(store, words=long) == [held.id]
    assert found(store, words="x" * 60) == [held.id]
    assert found(store, words=" ".join(f"word{n}" for n in range(45))) == [few.id]


# ---- the newest messages of a recipient, which are compared without the index

TEXTS = [
    ("Your invoice no. 2026-0815 is OVERDUE", "promo@example.net", "The Shop <promo@example.net>"),
    ("Offer", "", "Other <x@example.com>"),
    ("", None, ""),
    ("Schöne Grüße aus München", "gruesse@münchen.example", "Bürö <b@xn--mnchen-3ya.example>"),
    ("Cafe\u0301 Zürich İSTANBUL", SENDER, "ﾒｰﾙのｾｷｭﾘﾃｨ <x@example.net>"),
    ("Ваш счёт готов", SENDER, "Счёт <x@example.net>"),
    ("您的发票已经逾期 Re:您的VISA卡", SENDER, "请求書 <x@example.net>"),
    ("हिन्दी में समाचार ใบแจ้งหนี้ 청구서가", SENDER, "x"),
    (" ".join(f"word{n}" for n in range(80)), SENDER, " ".join(f"name{n}" for n in range(40)) + " <x@example.net>"),
    ("x" * 60 + "y" * 30 + " =spam 'quoted' a*b", SENDER, "=r0123456789abcdef <x@example.net>"),
    ("e\u0301 \N{COMBINING ACUTE ACCENT} \U0010ffff ﷺ ß", SENDER, "\N{ZERO WIDTH JOINER} <x@example.net>"),
]
QUERIES = [
    "invoice", "inv over", "0815", "promo", "example net", "shop", "x", "o", "grusse", "munchen", "cafe zurich",
    "istanbul", "セキュリティ", "счет", "发票", "发票 逾期", "期", "您的 visa", "求書", "समा", "ใบแจ้ง", "청구",
    "word1", "word47", "word48", "word79", "name2", "name22", "name39", "x" * 64, "x" * 60 + "y" * 5, "spam", "=spam",
    "r0123456789abcdef", "quoted", "a b", "ss", "e", "absent", "invoice absent",
    "report", "2026 docx", "invoice docx", '"report 2026"', '"2026 report"',
]  # fmt: skip
SALES = "sales@example.org"


def test_the_newest_messages_are_compared_as_the_index_finds_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, (subject, envelope_sender, header_from) in enumerate([*TEXTS, *TEXTS]):
        for recipients in ([ALICE, BOB], [ALICE], [SALES]):
            held = hold(
                store,
                recipients=recipients,
                subject=subject,
                envelope_sender=envelope_sender,
                header_from=header_from,
            )
            if number % 2:  # others wait for being read
                store.messages.record_names(held.id, [f"{number} report_2026.pdf", f"{subject[:200]}.docx"])
    deleted = next(iter(store.deliveries.list_for(Reader(ALICE), {State.HELD}, 1).deliveries))
    store.deliveries.move(deleted.key, State.DELETED, {State.HELD}, BY_LINK, now(), kind=EventKind.DELETED)
    middle = deleted.message.held_at

    def all_found() -> list[list[DeliveryId]]:
        held = frozenset({State.HELD})
        filters = [
            *(Filter(recipient=ALICE, states=held, words=words) for words in QUERIES),
            *(Filter(recipient=ALICE, also=(SALES,), states=held, words=words) for words in QUERIES),
            *(Filter(recipient=ALICE, words=words, sender="romo") for words in QUERIES[:8]),
            *(Filter(recipient=BOB, words=words, since=middle - DAY, until=middle) for words in QUERIES[:8]),
        ]
        return [[d.key for d in every_page(partial(store.deliveries.search, each, 7))] for each in filters]

    with monkeypatch.context() as by_index:
        by_index.setattr(search, "begins_with_newest", lambda wanted: False)
        expected = all_found()
    assert sum(map(bool, expected)) > len(QUERIES)
    assert all_found() == expected
    monkeypatch.setattr(search, "NEWEST_MAX", 10)
    monkeypatch.setattr(search, "NEWEST_FIRST", 3)
    assert all_found() == expected, "some are compared, the older ones found by the index"


def test_names_of_attachments_are_searched(store: Store) -> None:
    one, two = hold(store, subject="Offer").id, hold(store, subject="Report").id
    store.messages.record_names(one, ["Report 2026.pdf", "Größe.xlsx"])
    store.messages.record_names(two, [])
    store.messages.record_names(UNKNOWN, ["report.pdf"])
    assert found(store, words="report") == [two, one]
    assert found(store, words="offer grosse") == [one]
    assert found(store, words='"report 2026"') == [one]
    assert found(store, words='"pdf grosse"') == [], "of two names"
    assert found(store, attachment="rep 26") == []
    assert found(store, attachment="rep 2026") == found(store, attachment="rep", words="offer") == [one]
    assert found(store, attachment="offer") == found(store, attachment="?!") == []
    assert [each.id for each in store.messages.without_names(one, UUID(int=(1 << 128) - 1), 9)] == []


def test_a_raised_message_is_still_found_by_its_attachments(store: Store) -> None:
    data = mail()
    id = hold(store, data).id
    store.messages.record_names(id, ["report.pdf"])
    hold(store, data, recipients=[BOB], tier=Tier.DANGEROUS)
    assert found(store, words="report", tiers=frozenset({Tier.DANGEROUS})) == [id]


# ---- everything else


def test_dates_from_and_until(store: Store) -> None:
    held = hold(store, subject="invoice")
    at = held_at(held.id)
    ms = timedelta(milliseconds=1)
    for words in ("", "invoice"):
        assert found(store, words=words, since=at, until=at + ms) == [held.id]
        assert found(store, words=words, since=at + ms) == []
        assert found(store, words=words, until=at) == []
        assert found(store, words=words, since=at - 400 * DAY, until=at + 400 * DAY) == [held.id]
        assert found(store, words=words, since=at + DAY, until=at - DAY) == []


def test_scores(store: Store) -> None:
    scores = [-30.5, -0.5, 0.0, 6.99, 7.0, 15.0, 15.01, 99.9, 250.0, 1e300, None]
    held = {score: hold(store, subject="invoice", score=score).id for score in scores}
    for words in ("", "invoice"):

        def having(**wanted: float) -> list[float]:
            of = {id: score for score, id in held.items() if score is not None}
            return sorted(of[id] for id in found(store, words=words, **wanted))

        assert having(score_min=7) == [7.0, 15.0, 15.01, 99.9, 250.0, 1e300]
        assert having(score_max=7) == [-30.5, -0.5, 0.0, 6.99, 7.0]
        assert having(score_min=6.995, score_max=15.005) == [7.0, 15.0]
        assert having(score_min=-100, score_max=-0.1) == [-30.5, -0.5]
        assert having(score_min=200) == [250.0, 1e300]
        assert having(score_min=float("inf")) == having(score_min=8, score_max=7) == []
        assert having(score_min=float("nan")) == []


def test_tiers(store: Store) -> None:
    held = {tier: hold(store, tier=tier).id for tier in Tier}
    for tier in Tier:
        assert found(store, tiers=frozenset({tier})) == [held[tier]]
    assert found(store, tiers=frozenset({Tier.SPAM, Tier.DANGEROUS})) == [held[Tier.DANGEROUS], held[Tier.SPAM]]
    assert len(found(store, tiers=frozenset(Tier))) == 3


def test_states_with_and_without_words(store: Store) -> None:
    begin = [State.PASSED, State.BLOCKED]  # and nobody finds an expired one
    helds = [hold(store, subject="invoice", recipients=[ALICE]).id for _ in range(len(State) - len(begin) - 1)]
    helds += [
        hold(store, subject="invoice", recipients=[ALICE], starts={ALICE: Start(state, BY_LINK)}).id for state in begin
    ]
    ways = {
        State.REQUESTED: lambda id: store.deliveries.move(
            DeliveryId(id, 0), State.REQUESTED, {State.HELD}, BY_LINK, now(), kind=EventKind.REQUESTED
        ),
        State.DELETED: lambda id: store.deliveries.move(
            DeliveryId(id, 0), State.DELETED, {State.HELD}, BY_LINK, now(), kind=EventKind.DELETED
        ),
        State.RELEASED: lambda id: store.deliveries.releasing(
            DeliveryId(id, 0), {State.HELD}, BY_LINK, now()
        ).__enter__(),
    }
    claims = []
    for id, state in zip(helds, (State.HELD, *ways), strict=False):
        if state is State.RELEASED:
            with store.deliveries.releasing(DeliveryId(id, 0), {State.HELD}, BY_LINK, now()):
                pass
        elif state in ways:
            ways[state](id)
    claims.append(store.deliveries.releasing(DeliveryId(helds[4], 0), {State.HELD}, BY_LINK, now()))
    with claims[0]:
        states = [store.deliveries.get(DeliveryId(id, 0)).state for id in helds]
        assert set(states) == set(State) - {State.EXPIRED}
        for words in ("", "invoice"):
            for id, state in zip(helds, states, strict=True):
                assert found(store, words=words, states=frozenset({state})) == [id]
            for several in ({State.RELEASED, State.DELETED}, {State.HELD, State.REQUESTED}, set(State) - {State.HELD}):
                expected = [id for id, state in zip(helds, states, strict=True) if state in several]
                assert found(store, words=words, states=frozenset(several)) == expected[::-1]


@pytest.mark.parametrize(
    ("sender", "finds"),
    [
        ("shop", True),
        ("hop", True),  # a part of it
        ("THE SHÖP", True),
        ("e Shop <promo@ex", True),
        ("omo@example.net", True),
        ("@example.net", True),
        ("@xample.net", False),
        ("promo example", False),
        ("bounce+", True),
        ("invoice", False),
    ],
)
def test_a_part_of_the_sender(store: Store, sender: str, finds: bool) -> None:
    senders: dict[str, Any] = {
        "envelope_sender": "bounce+7@lists.example.net",
        "header_from": "The Shöp <promo@example.net>",
    }
    held = hold(store, subject="invoice", **senders)
    hold(store, subject="invoice", envelope_sender="", header_from="Other <o@example.com>")
    for more in ({}, {"words": "inv"}, {"recipient": ALICE}, {"score_min": 3}):
        assert found(store, sender=sender, **more) == ([held.id] if finds else [])


@pytest.mark.parametrize("sender", ["\u0301", "\u00b4", " "])
def test_a_sender_without_a_letter_finds_nothing(store: Store, sender: str) -> None:
    # Comparison ignores accents, so that the text compared is empty or a blank, which most senders contain.
    hold(store, recipients=[ALICE], header_from="A Shop <shop@example.net>")
    for more in ({}, {"recipient": ALICE}, {"words": "shop"}):
        assert found(store, sender=sender, **more) == []
    assert store.facets.count(Filter(sender=sender)).count == 0
    assert store.facets.page(Filter(sender=sender, symbols=("BAYES_SPAM",)), 7).deliveries == ()


def test_all_filters_at_once_over_pages(store: Store) -> None:
    wanted = [hold(store, subject=f"Invoice {n}", tier=Tier.SUSPICIOUS, score=20 + n / 10).id for n in range(6)]
    for n in range(6):
        hold(store, subject=f"Offer {n}", tier=Tier.SUSPICIOUS, score=20)
        hold(store, subject=f"Invoice {n}", tier=Tier.SPAM, score=20)
        hold(store, subject=f"Invoice {n}", tier=Tier.SUSPICIOUS, score=3)
        hold(store, subject=f"Invoice {n}", tier=Tier.SUSPICIOUS, score=20, recipients=[BOB])
        hold(store, subject=f"Invoice {n}", tier=Tier.SUSPICIOUS, score=20, envelope_sender="", header_from="x")
    everything = Filter(
        recipient=ALICE, words="inv", sender=SENDER, tiers=frozenset({Tier.SUSPICIOUS}), score_min=20, score_max=25,
        states=frozenset({State.HELD}), since=held_at(wanted[0]), until=now() + DAY,
    )  # fmt: skip
    for limit in (1, 2, 6, 50):
        assert [d.id for d in every_page(lambda b: store.deliveries.search(everything, limit, b))] == wanted[::-1]


def test_pages_continue_within_a_message_with_many_recipients(store: Store) -> None:
    held = [hold(store, subject="invoice", recipients=[f"p{n}@example.org" for n in range(10)]).id for _ in range(2)]
    pages = every_page(lambda b: store.deliveries.search(Filter(words="invoice"), 3, b))
    assert [(d.id, d.number) for d in pages] == [(id, n) for id in held[::-1] for n in range(9, -1, -1)]


def test_more_recipients_than_a_batch_are_all_found(store: Store) -> None:
    count = search.BATCH * 2 + 3
    held = hold(store, subject="invoice", recipients=[f"p{n}@example.org" for n in range(count)], announce=())
    hold(store, subject="other")
    pages = every_page(lambda b: store.deliveries.search(Filter(words="invoice"), 400, b))
    assert [d.number for d in pages] == list(range(count))[::-1]
    assert found(store, recipient="p77@example.org", words="invoice") == [held.id]


@pytest.mark.slow
def test_pages_continue_within_a_millisecond_in_which_many_were_held(store: Store) -> None:
    # Files of the original have times in whole seconds. The file store has 256 keys for a millisecond.
    at, held = now() - DAY, []
    for _ in range(300):
        data = mail()
        held.append(store.messages.add(export(data), body(data), Tier.SPAM, (), at=at).id)
    expected = [(id, number) for id in sorted(held, reverse=True) for number in (1, 0)]
    for recipient, sender in ((None, None), (None, "romo"), (BOB, None)):
        wanted = Filter(words="offer", recipient=recipient, sender=sender)
        pages = every_page(partial(store.deliveries.search, wanted, 7))
        assert [(d.id, d.number) for d in pages] == [key for key in expected if recipient is None or key[1]]


# ---- searches of recipients


@pytest.mark.parametrize("at_once", [500, 3], ids=["", "in small steps"])
def test_a_recipient_pages_back_to_the_first_page(store: Store, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """From any delivery, also one that does not match any more, within a message and within a millisecond."""
    for number in range(24):
        recipients = ([ALICE, SALES], [ALICE, BOB], [SALES], [ALICE])[number % 4]
        at = now() - (3 - number // 8) * DAY  # eight at about the same time
        data = mail()
        sender = "The Shop <x@example.net>" if number % 3 else "Other <y@example.com>"
        message = export(data, subject=f"invoice {number}", recipients=recipients, header_from=sender)
        store.messages.add(message, body(data), Tier.SPAM, (), at=at.replace(microsecond=0) if number % 2 else at)
    reader, wanted = Reader(ALICE, (ALICE, SALES)), Filter(states=frozenset({State.HELD}))
    deleted = store.deliveries.matching(reader, wanted, 100).deliveries[13]
    store.deliveries.move(deleted.key, State.DELETED, {State.HELD}, BY_LINK, now(), kind=EventKind.DELETED)
    monkeypatch.setattr(search, "NEWEST_MAX", at_once)
    monkeypatch.setattr(search, "EXAMINED_MAX", 3 * at_once)
    monkeypatch.setattr("portal.stores.postgres.search.BATCH", at_once)
    since = deleted.message.held_at
    for each in (
        wanted,
        Filter(states=frozenset(State), words="invoice"),
        replace(wanted, words="invoice", sender="hop"),
        replace(wanted, sender="hop"),
        replace(wanted, words="invo", since=since),
        replace(wanted, until=since + DAY / 24),
        replace(wanted, like=deleted.key),
        replace(wanted, words="absent"),
    ):
        for of in (reader, Reader(ALICE)):
            forward = [d.key for d in every_page(partial(store.deliveries.matching, of, each, 5))]
            assert forward or of != reader or each.words == "absent"
            for key in (*forward[::-4], deleted.key):
                left = [one for one in forward if one >= key]
                back, down_to = list[DeliveryId](), key
                while True:
                    page = store.deliveries.matching(of, each, 5, down_to=down_to)
                    back[:0] = [d.key for d in page.deliveries]
                    if page.next is None:
                        break
                    assert page.next > down_to
                    down_to = page.next
                assert back == left, each


def test_a_recipient_finds_only_their_own_mail(store: Store) -> None:
    both = hold(store, subject="invoice one").id
    hold(store, subject="invoice two", recipients=[BOB])
    page = store.deliveries.matching(Reader(ALICE), Filter(states=frozenset({State.HELD}), words="inv"), 10)
    assert ids(page) == [both]
    assert {d.recipient for d in page.deliveries} == {ALICE}
    assert not store.deliveries.matching(
        Reader(MALLORY), Filter(states=frozenset(State), words="invoice"), 10
    ).deliveries
    assert not store.deliveries.matching(
        Reader(ALICE), Filter(states=frozenset({State.DELETED}), words="invoice"), 10
    ).deliveries
    assert not store.deliveries.list_for(Reader(ALICE), set(), 10).deliveries
    assert not store.deliveries.matching(Reader(ALICE), Filter(states=frozenset(State), words="bob"), 10).deliveries


def test_a_recipient_assigned_later_finds_the_mail(store: Store) -> None:
    held = hold(store, subject="invoice", recipients=(), announce=())
    assert found(store, recipient="", words="invoice") == [held.id]
    assert found(store, recipient=ALICE, words="invoice") == []
    store.deliveries.assign(DeliveryId(held.id, 0), "Alice@example.org", BY_OPERATOR, now())
    assert ids(
        store.deliveries.matching(Reader(ALICE), Filter(states=frozenset({State.HELD}), words="invoice"), 10)
    ) == [held.id]


def test_purged_mail_is_not_found(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(store.messages).__module__
    with monkeypatch.context() as clock:
        clock.setattr(f"{module}.new_id", lambda at=None: new_id(now() - 40 * DAY))
        gone = hold(store, subject="invoice").id
        kept = hold(store, subject="invoice").id
    stays = hold(store, subject="invoice").id
    if isinstance(store, FileStore):
        index_waiting(store.db)
    store.deliveries.move(DeliveryId(kept, 0), State.REQUESTED, {State.HELD}, BY_LINK, now(), kind=EventKind.REQUESTED)
    assert set(found(store, words="invoice")) == {gone, kept, stays}
    store.purge(now() - 30 * DAY, now())
    assert found(store, words="invoice") == [stays, kept]
    store.deliveries.move(
        DeliveryId(kept, 0), State.HELD, {State.REQUESTED}, BY_OPERATOR, now(), kind=EventKind.REFUSED
    )
    store.purge(now() - 30 * DAY, now())
    assert found(store, words="invoice") == [stays]
    if isinstance(store, FileStore):
        with store.db.read() as connection:
            tables = connection.execute("SELECT count(*) FROM sqlite_master WHERE name GLOB '*words_????????'")
            assert tables.fetchone() == (1,)


# ---- hostile text


HOSTILE = [
    '"', "'", "''", '""', "\\", "\\'", "(", ")", "()", "*", "a*", "*a", "^a", "a:*", "a:b", "-a", "+a", "!a", "a & b",
    "a | b", "a <-> b", "AND", "OR", "NOT", "NEAR", "NEAR(a b)", "a AND", "{a}: b", "terms : a", "rowid:1", ";", "--",
    "%", "_", "?", ":a", "$1", "%s", "\0", "a\0b", "\ud800", "a\udcff", "\ufffe", "\x1b[2J", "=spam", "=s17", "=r",
    "\N{COMBINING ACUTE ACCENT}", "\N{ZERO WIDTH JOINER}", "ß" * 3000, "a" * 10_000, "a " * 5_000, "(" * 10_000,
    '"' * 10_001, " ".join(f"w{n}" for n in range(3_000)), "漢" * 10_000, "\U0010ffff", "ﷺ" * 100,
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_finds_something_or_nothing(store: Store, text: str) -> None:
    hold(store, subject="Offer")
    filters: tuple[dict[str, Any], ...] = ({"words": text}, {"sender": text}, {"words": text, "recipient": text})
    for wanted in filters:
        for page in (
            store.deliveries.search(Filter(**wanted), 5),
            store.deliveries.search(Filter(**wanted, score_min=1), 5),
        ):
            assert len(page.deliveries) <= 2
    store.deliveries.matching(Reader(text), Filter(states=frozenset({State.HELD}), words=text), 5)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_subjects_are_held_and_found_by_their_words(store: Store, text: str) -> None:
    text = text.replace("\0", " ").encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # as exporters do
    held = hold(store, subject=f"needle {text}", header_from=text)
    assert found(store, words="needle") == [held.id]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(subject=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=80), data=st.data())
@example(subject="İi̇ ǅ ß", data=None)
def test_any_word_of_a_subject_finds_it(store: Store, subject: str, data: Any) -> None:
    held = hold(store, subject=subject)
    words = search.words(subject, search.SUBJECT_WORDS)
    if data is not None and words:
        word = data.draw(st.sampled_from(words))
        word = word[: data.draw(st.integers(1, len(word)))]
        if search.words(word, 9) == [word]:  # a word that is cut before its marks may not be a word
            assert held.id in ids(store.deliveries.search(Filter(words=word), 1000))
    for text in (subject, subject[::-1]):
        store.deliveries.search(Filter(words=text, sender=text), 5)


# ---- limits


def test_a_search_without_an_index_is_bounded_and_continues(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "EXAMINED_MAX", 10)
    for module in ("search", "postgres.search"):
        monkeypatch.setattr(f"portal.stores.{module}.BATCH", 4)
    oldest = hold(store, header_from="The Shop <x@example.net>", score=20.5).id
    for n in range(20):
        hold(store, header_from=f"Other {n} <x@example.net>", score=20.1)
    for wanted in (Filter(sender="hop"), Filter(score_min=20.4), Filter(words="offer", sender="hop")):
        page = store.deliveries.search(wanted, 5)
        assert (page.deliveries, page.next is None) == ((), False)
        assert {d.id for d in every_page(lambda b: store.deliveries.search(wanted, 5, b))} == {oldest}
        assert len(every_page(lambda b: store.deliveries.search(wanted, 1, b))) == 2


# ---- plans


def test_the_file_store_uses_its_index_and_sorts_a_batch_at_most(
    files_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "NEWEST_MAX", 2)
    store = FileStore.open(files_url.removeprefix("files://"))
    for n in range(5):
        held = hold(store, subject=f"invoice {n}")
        store.deliveries.move(
            DeliveryId(held.id, 0), State.DELETED, {State.HELD}, BY_LINK, now(), kind=EventKind.DELETED
        )
    for wanted, index in (
        (Filter(words="inv"), "VIRTUAL TABLE INDEX"),
        (Filter(recipient=ALICE, words="invoice 3"), "VIRTUAL TABLE INDEX"),
        (Filter(recipient=BOB, words="invoice"), "delivery_recipient"),
        (Filter(recipient=ALICE, also=(BOB,), words="invoice"), "delivery_recipient"),
        (Filter(recipient=ALICE, also=(BOB,)), "delivery_recipient"),
        (Filter(tiers=frozenset({Tier.SPAM}), score_min=10), "VIRTUAL TABLE INDEX"),
        (Filter(sender="@example.net"), "VIRTUAL TABLE INDEX"),
        (Filter(states=frozenset({State.DELETED, State.RELEASED})), "delivery_acted"),
        (Filter(states=frozenset({State.REQUESTED})), "delivery_waiting"),
        (Filter(since=now() - DAY, until=now()), "PRIMARY KEY"),
    ):
        index_waiting(store.db)
        statements: list[str] = []
        with store.db.read() as connection:
            connection.set_trace_callback(statements.append)
        page = store.deliveries.search(wanted, 3)
        store.deliveries.search(wanted, 3, page.next)
        if wanted.recipient and page.next:
            reader = Reader(wanted.recipient, (wanted.recipient, *wanted.also))
            store.deliveries.matching(reader, wanted, 3, down_to=page.next)
        connection.set_trace_callback(None)
        plans = []
        for statement in statements:
            if statement.startswith(("SELECT", "WITH")) and "sqlite_master" not in statement:
                steps = [step for *_, step in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]
                plans += steps
                if any("TEMP B-TREE" in step for step in steps):
                    # It reads a batch and not a table.
                    assert "json_each" in statement or "VALUES" in statement, (statement, steps)
        assert any(index in step for step in plans), plans
        assert not [step for step in plans if re.fullmatch(r"SCAN (m|d|message|delivery)", step)], plans
    store.close()


@pytest.fixture
def filled(postgres_dsn: str) -> Iterator[tuple[PostgresStore, psycopg.Connection[Any]]]:
    """A store with 20,000 messages of five days, 100 of them with a rare word, and a second connection."""
    store = PostgresStore.open(postgres_dsn)
    with psycopg.connect(postgres_dsn, autocommit=True) as admin:
        ids = [new_id(now() - n % 5 * DAY) for n in range(20_000)]
        for day in range(5):
            store.prepare_days(now() - day * DAY, 30)
        rows = [
            (
                id,
                ["common", "offer", f"=s{n % 30:03}", "=spam", f"=r{n % 50:016x}", *(["rare"] if n % 199 == 0 else [])],
            )
            for n, id in enumerate(ids)
        ]
        with admin.cursor() as cursor:
            cursor.executemany(
                "insert into message (id, body_id, tier, subject, header_from, terms, score, symbols, flags, "
                "body_sha256, size_bytes, has_8bit) values (%s, %s, 'spam', 'x', 'x', array_to_tsvector(%s), 7, '[]', "
                "'{}', '', 1, false)",
                [(id, id, terms) for id, terms in rows],
            )
            cursor.executemany(
                "insert into delivery (message_id, number, recipient, address, state, state_at) "
                "values (%s, 0, 'alice@example.org', 'alice@example.org', %s, now())",
                [(id, "deleted" if n % 101 == 0 else "held") for n, id in enumerate(ids)],
            )
        admin.execute("vacuum analyze")
        yield store, admin
    store.close()


def days_filled() -> list[str]:
    return [f"{now() - n * DAY:%Y%m%d}" for n in range(5)]


def days_read(plan: str) -> list[str]:
    """Return the days of messages that a plan reads, newest first."""
    return sorted(set(re.findall(r"on message_(\d{8})\b", plan)), reverse=True)


def plans_of(monkeypatch: pytest.MonkeyPatch, admin: psycopg.Connection[Any], call: Callable[[], Any]) -> list[str]:
    queries: list[tuple[str, Any]] = []
    execute = psycopg.Cursor.execute

    def record(cursor: Any, query: Any, params: Any = None, **options: Any) -> Any:
        statement = query.decode() if isinstance(query, bytes) else str(query)
        if re.search("from (message|delivery)", statement):
            queries.append((statement, params))
        return execute(cursor, query, params, **options)

    with monkeypatch.context() as patch:
        patch.setattr(psycopg.Cursor, "execute", record)
        call()
    return [
        "\n".join(line for (line,) in admin.execute("explain (analyze, costs off, timing off) " + query, params))
        for query, params in queries
    ]


@pytest.mark.parametrize(
    "wanted", [Filter(words="rare"), Filter(words="ra off"), Filter(words="rare", score_min=3, score_max=4)]
)
def test_postgresql_reads_a_rare_word_from_the_index_of_each_partition(
    monkeypatch: pytest.MonkeyPatch, filled: tuple[PostgresStore, psycopg.Connection[Any]], wanted: Filter
) -> None:
    store, admin = filled
    plans = plans_of(monkeypatch, admin, lambda: store.deliveries.search(wanted, 1000))
    queried = [days_read(plan) for plan in plans if "terms @@" in plan]
    assert sum(queried, []) == sorted(set(sum(queried, [])), reverse=True), plans  # each day once, newest first
    assert set(days_filled()) <= set(sum(queried, []))
    for plan in plans:
        for day in days_filled():
            assert f"Seq Scan on message_{day}" not in plan and f"Seq Scan on delivery_{day}" not in plan, plan
            if "terms @@" in plan and day in days_read(plan):
                assert f"Bitmap Index Scan on message_{day}_terms_idx" in plan, plan


def test_postgresql_reads_no_older_day_than_fills_the_page(
    monkeypatch: pytest.MonkeyPatch, filled: tuple[PostgresStore, psycopg.Connection[Any]]
) -> None:
    store, admin = filled
    plans = plans_of(monkeypatch, admin, lambda: store.deliveries.search(Filter(words="common"), 20))
    (queried,) = [days_read(plan) for plan in plans if "terms @@" in plan]
    assert set(days_filled()) & set(queried) == {days_filled()[0]}, plans


def test_postgresql_reads_deliveries_that_were_acted_on_by_a_separate_index(
    monkeypatch: pytest.MonkeyPatch, filled: tuple[PostgresStore, psycopg.Connection[Any]]
) -> None:
    store, admin = filled
    plan, _ = plans_of(
        monkeypatch, admin, lambda: store.deliveries.search(Filter(states=frozenset({State.DELETED})), 20)
    )
    assert all(f"delivery_{day}_message_id_number_idx" in plan for day in days_filled()), plan
    assert not [day for day in days_filled() if f"Seq Scan on delivery_{day}" in plan], plan


# ---- the operator's command


@pytest.mark.parametrize(
    ("options", "finds"),
    [
        (["--words", "invo"], True),
        (["--subject", "invoice shop"], True),
        (["--words", "offer"], False),
        (["--score-min", "20", "--score-max", "20.5"], True),
        (["--score-min", "21"], False),
        (["--tier", "dangerous", "--tier", "suspicious"], True),
        (["--tier", "spam"], False),
        (["--until", f"{now():%Y-%m-%d}"], True),  # the whole day
        (["--until", f"{now() - DAY:%Y-%m-%d}"], False),
        (["--until", "1h"], False),
        (["--since", "1h", "--sender", "shop", "--words", "invoice", "--state", "held"], True),
    ],
)
def test_the_operator_finds_it(
    store: Store, store_url: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, options: list[str], finds: bool
) -> None:
    monkeypatch.setenv("QUARANTINE_CONFIG", "/dev/null")
    monkeypatch.setenv("QUARANTINE_STORE__URL", store_url)
    monkeypatch.setenv("QUARANTINE_LINKS__KEYS_FILE", str(tmp_path / "links.keys"))
    id = hold(store, subject="Your invoice", header_from="The Shop <x@example.net>", score=20.5, tier=Tier.DANGEROUS).id
    result = CliRunner().invoke(main, ["list", "--json", *options])
    assert result.exit_code == 0, result.output
    assert (str(id) in result.output) == finds


def test_an_invalid_date_is_named(store_url: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUARANTINE_CONFIG", "/dev/null")
    result = CliRunner().invoke(main, ["list", "--until", "tomorrow"])
    assert result.exit_code == 2
    assert "--until: 'tomorrow' is not a date" in result.output
