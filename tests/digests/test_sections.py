"""Order, headings and shares of a digest's rows: by how likely a mistake is, and by mailbox."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from email.message import EmailMessage
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from portal.digests.compose import compose
from portal.model.message import Delivery, Reader, Symbol, Tier, new_id
from portal.model.reasons import SCANS_IN_WORDS, why
from portal.model.short_reasons import shortly
from portal.model.text import TAGS
from portal.stores.records import Digest
from tests.builders import ALICE, BOB, MALLORY
from tests.digests.test_compose import LINKS, NOW, RENDER, delivery, html_of, mail_of, right, signed, squeezed, text_of

SUBJECTS = ("Plain", "Forged", "Macro", "Both")
HEADING = re.compile(r"^={20}\n+(.+ \([\d,]+\))$", re.MULTILINE)


def words(number: int) -> str:
    """Return a subject without digits, so that no two of them are near-identical."""
    return " ".join(
        ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")[int(d)] for d in str(number)
    )


def mail_to_readers_of(mailbox: str, held: Sequence[Delivery], *others: str, **values: Any) -> EmailMessage:
    """Return Alice's digest as the reader of these mailboxes."""
    return mail_to(Reader(ALICE, (ALICE, mailbox, *others)), held, **values)


def mail_to(reader: Reader, held: Sequence[Delivery], **values: Any) -> EmailMessage:
    return compose(
        Digest(new_id(NOW), ALICE, ALICE, NOW, tuple(held), reader=reader),
        links=LINKS,
        render=RENDER,
        sender="quarantine@example.org",
        zone=ZoneInfo("UTC"),
        max_rows=50,
        retention_days=30,
        right=right,
        now=NOW,
        **values,
    )


def test_the_sections_are_those_of_the_list() -> None:
    mail = mail_of(
        delivery(1, subject="Virus", verdict_tier=Tier.DANGEROUS, symbols=signed()),
        delivery(2, subject="Letter", score=30, symbols=(*signed(), Symbol("HAS_LIST_UNSUB", -0.01))),
        delivery(3, subject="Macro", score=12, symbols=signed(), verdict_tier=Tier.SUSPICIOUS),
        delivery(4, subject="Known", score=30, symbols=signed(), header_from="Ann <ann@example.net>"),
        delivery(5, subject="Pills", score=10),
        delivery(6, subject="Reply", score=20, symbols=signed()),
        known={"ann@example.net"},
    )
    text = text_of(mail)
    assert HEADING.findall(text) == ["Likely mistakes (2)", "Other messages (3)", "Possibly dangerous messages (1)"]
    subjects = [line for line in text.splitlines() if line in ("Virus", "Letter", "Macro", "Known", "Pills", "Reply")]
    assert subjects[:2] == ["Known", "Reply"] and set(subjects[2:5]) == {"Macro", "Pills", "Letter"}
    assert subjects[5] == "Virus"
    assert str(mail["Subject"]).startswith("2 of 6 held messages may be wanted")
    macro = text[text.index("Macro") :]
    assert macro.splitlines()[1].startswith("Check first · ") and "\nReview:\n" in macro.partition("-----")[0]


REPLY = Symbol("REPLY", -4, ("", ""))


@pytest.mark.parametrize(
    ("is_likely", "fields"),
    [
        (True, {"score": 22.5}),
        (False, {"score": 22.6}),  # by Rspamd's usual threshold
        (True, {"score": 9.0, "threshold": 6.0}),
        (False, {"score": 9.1, "threshold": 6.0}),
        (True, {"score": 30.0, "threshold": 20.0}),
        (False, {"score": 60.0, "threshold": 20.0}),
        (True, {"score": 15.0, "threshold": 0.0}),  # no threshold of Rspamd
        (False, {"score": None}),
        (True, {"score": 60, "symbols": (*signed(), REPLY)}),
        (True, {"score": 60, "symbols": (*signed(), REPLY, Symbol("HAS_LIST_UNSUB", 0))}),
        (False, {"score": 10, "symbols": (REPLY,)}),  # anybody can write the Message-ID
        (False, {"score": 10, "symbols": (*signed(), REPLY), "verdict_tier": Tier.SUSPICIOUS}),  # a stolen thread
        (True, {"score": 60, "header_from": "Ann <ann@example.net>"}),  # released before
    ],
)
def test_likely_mistakes_are_proven_and_barely_held_or_answer_us_or_were_released_before(
    is_likely: bool, fields: dict[str, Any]
) -> None:
    text = text_of(mail_of(delivery(1, **{"symbols": signed()} | fields), known={"ann@example.net"}))
    assert ("Likely mistakes (1)" in text, "Other messages (1)" in text) == (is_likely, not is_likely)
    assert ("1 held message may be wanted" in text) is is_likely


def test_answers_come_first_among_likely_mistakes() -> None:
    mail = mail_of(
        delivery(1, subject="Low", score=8, symbols=signed()),
        delivery(2, subject="Answer", score=20, symbols=(*signed(), REPLY)),
    )
    assert re.findall("^(Low|Answer)$", text_of(mail), re.MULTILINE) == ["Answer", "Low"]


def test_a_message_that_needs_a_check_has_review_instead_of_release() -> None:
    forged = '"boss@example.org" <x@example.net>'
    mail = mail_of(
        delivery(1, subject="Plain"),
        delivery(2, subject="Forged", header_from=forged),
        delivery(3, subject="Macro", verdict_tier=Tier.SUSPICIOUS),
        delivery(4, subject="Both", verdict_tier=Tier.SUSPICIOUS, header_from=forged),
    )
    rows = {subject: text_of(mail).partition(f"\n{subject}\n")[2].partition("-----")[0] for subject in SUBJECTS}
    assert [subject for subject in SUBJECTS if "Release to my inbox:" in rows[subject]] == ["Plain"]
    assert [subject for subject in SUBJECTS if "Review:" in rows[subject]] == ["Forged", "Macro", "Both"]
    assert [subject for subject in SUBJECTS if rows[subject].startswith("Check first · ")] == ["Macro"]
    words = squeezed(html_of(mail).words)
    assert words.count(" Release ") - words.count(" Release or delete several ") == 1 and words.count(" Review ") == 3
    assert words.count("Caution: The display name shows a different address") == 2 and words.count("Check first ·") == 1


@pytest.mark.parametrize(
    ("max_rows", "spam", "virus", "more", "dangerous"),
    [(50, 45, 5, 18, 3), (20, 15, 5, 48, 3), (1, 1, 0, 67, 8)],
)
def test_dangerous_messages_are_told_of_in_a_full_digest(
    max_rows: int, spam: int, virus: int, more: int, dangerous: int
) -> None:
    held = [delivery(n, subject=words(n), symbols=() if n else signed()) for n in range(60)]
    held += [delivery(n, subject=words(n), verdict_tier=Tier.DANGEROUS, score=40) for n in range(60, 68)]
    mail = mail_of(*held, max_rows=max_rows)
    text, html = text_of(mail), html_of(mail)
    assert text.count("Release to my inbox:") == spam
    assert text.count("Request release:") == virus
    assert ("Other messages (59)" in text) is (spam > 1)
    assert ("Possibly dangerous messages (8)" in text) is (virus > 0)
    said = f"{more} more messages are not listed here. {dangerous} of them are possibly dangerous."
    for part in (squeezed(text), squeezed(html.words)):
        assert (said in part) is (more > 0)
    assert (f"{said}\n{html.links[-3]}" in text) is (more > 0), "it is a link to the list"


def test_a_heading_for_each_mailbox_and_the_recipients_own_messages_first() -> None:
    def to(address: str, made: Delivery) -> Delivery:
        return replace(made, recipient=address, address=address)

    info, sales = "info@example.org", "sales@example.org"
    held = (
        to(sales, delivery(1, score=1)),
        to(info, delivery(2, score=2)),
        to(info, delivery(3, score=3, subject="Info", symbols=signed())),
        delivery(4, score=40),
        to(info, delivery(5, verdict_tier=Tier.DANGEROUS)),
        to(info, delivery(6, score=9)),
    )
    mail = mail_to_readers_of(info, held, sales)
    text = text_of(mail)
    assert HEADING.findall(text) == [
        f"Likely mistakes – {info} (1)",
        "Other messages (1)",
        f"Other messages – {info} (2)",
        f"Other messages – {sales} (1)",
        f"Possibly dangerous messages – {info} (1)",
    ]
    assert re.findall(r"^Offer (\d)$", text, re.MULTILINE) == ["4", "2", "6", "1", "5"]


def test_the_heading_of_a_shared_mailbox_says_how_many_others_read_it() -> None:
    info, sales, own = "info@example.org", "sales@example.org", "alice.example@example.org"
    reader = Reader(ALICE, (own,), {info: (ALICE, BOB, MALLORY), sales: (ALICE, BOB), ALICE: (ALICE, BOB)})
    held = (
        *(delivery(n, address=info, recipient=info, subject=words(n)) for n in (1, 2)),
        delivery(3, address=sales, recipient=sales),
        delivery(4, address=own, recipient=own),
        delivery(5),
        delivery(6, address=info, recipient=info, verdict_tier=Tier.DANGEROUS),
    )
    mail = mail_to(reader, held)
    told = [
        f"Other messages – {own} (1)",
        f"Other messages – {ALICE} (1)", "Other readers of this mailbox: 1",
        f"Other messages – {info} (2)", "Other readers of this mailbox: 2",
        f"Other messages – {sales} (1)", "Other readers of this mailbox: 1",
        f"Possibly dangerous messages – {info} (1)", "Other readers of this mailbox: 2",
    ]  # fmt: skip
    lines = re.compile(r"(?:Other|Possibly dangerous) messages – \S+ \(\d\)|Other readers of this mailbox: \d")
    for seen in (text_of(mail), html_of(mail).words):
        assert lines.findall(seen) == told


@pytest.mark.parametrize("language", TAGS)
def test_45_rows_with_all_that_they_may_have_fit_before_gmail_clips(language: str) -> None:
    info, names = (
        "info@example.org",
        ("Kontor Nord", "Ann Example", "Billing team", "Müller & Söhne", "News of the week"),
    )
    symbols = (Symbol("BAYES_SPAM", 5.1), Symbol("HTML_SHORT_LINK_IMG_1", 4.0), Symbol("RDNS_NONE", 2.0))
    held = [
        delivery(
            n + 100 * other,
            address=info,
            recipient=info,  # links to messages of a role mailbox are longer
            subject=f"Prüfung Ihrer Angaben {words(n)}",
            header_from=f"{names[n % 5]} <letters{n}@shop.example.com>",
            symbols=symbols if n else signed("shop.example.com"),
            threshold=15.0,
        )
        for n in range(45)
        for other in range(1 + (n % 5 == 0))  # and every fifth has a near-duplicate
    ]
    mail = mail_to_readers_of(info, held, language=language, is_first=True)
    assert len(mail.as_bytes()) <= 90_000
    assert len(set(html_of(mail).links)) == 45 * 2 + 9 + 4


def test_a_row_has_its_reasons_in_few_words_on_one_line() -> None:
    symbols = (Symbol("BAYES_SPAM", 9), Symbol("DBL_SPAM", 4), Symbol("RDNS_NONE", 2), Symbol("SUBJ_ALL_CAPS", 1))
    assert "\nspam link · misconfigured server · score 17.5 · Sun 22 Nov, 06:49\n" in text_of(
        mail_of(delivery(1, symbols=symbols))
    )
    assert "\nresembles spam · score 17.5 · Sun 22 Nov, 06:49\n" in text_of(mail_of(delivery(1)))


def test_every_reason_has_a_short_form() -> None:
    from portal.model import reasons

    sentences = {text for text, _ in reasons._WORDS} | set(SCANS_IN_WORDS.values()) - {"No virus found"}
    messages = [
        delivery(symbols=symbols, score=score, verdict_tier=tier).message
        for symbols in ((), (Symbol("X", 9),), (Symbol("X", 1),), (Symbol("X", 1), Symbol("Y", 1)))
        for score in (None, 20.0)
        for tier in Tier
    ]
    sentences |= {reason for message in messages for reason in why(message)}
    assert [text for text in sentences if shortly(text) == text] == []
    assert max(len(shortly(text).split()) for text in sentences) <= 3


def test_a_long_address_is_cut_before_its_domain_but_never_beside_a_warning() -> None:
    long = f"newsletter.of.the.week.{'x' * 20}@shop.example.com"
    html = html_of(mail_of(delivery(1, header_from=f"Shop <{long}>")))
    assert "Shop @shop.example.com" in squeezed(html.words) and long not in html.words
    assert "Jo jo@shop.example.com" in squeezed(
        html_of(mail_of(delivery(1, header_from="Jo <jo@shop.example.com>"))).words
    )
    doubtful = html_of(mail_of(delivery(1, header_from=f'"boss@example.org" <{long}>')))
    assert long in doubtful.words


def test_a_site_with_passwords_does_not_say_that_nobody_asks_for_them() -> None:
    for takes_passwords, count in ((False, 1), (True, 0)):
        mail = mail_of(delivery(1), takes_passwords=takes_passwords)
        for seen in (text_of(mail), html_of(mail).words):
            assert squeezed(seen).count("These pages never ask for a password.") == count
            assert squeezed(seen).count("All links lead to ") == 1


def test_the_settings_name_whom_to_ask() -> None:
    mail = mail_of(delivery(1), contact="the help desk, help@example.org")
    for seen in (text_of(mail), html_of(mail).words):
        assert "Questions? Contact the help desk, help@example.org." in squeezed(seen)
        assert "your mail administrator" not in squeezed(seen).partition("Other messages")[0]
