"""The digest mail, composed without store and network from its arguments alone."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP
from html.parser import HTMLParser
from typing import Any
from unicodedata import east_asian_width
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from portal.digests.compose import MAIL_BYTES, compose
from portal.mail.render import Render
from portal.model.from_header import parse
from portal.model.links import MARK_HEADER, Action, Links
from portal.model.message import Delivery, Flag, Message, Scan, ScanOutcome, State, Symbol, Tier, new_id
from portal.model.rights import ReleaseRight
from portal.model.text import TAGS, wrapped
from portal.stores.records import Digest
from tests.builders import ALICE, SENDER

NOW = datetime(2026, 11, 22, 6, 0, tzinfo=UTC)
LINKS = Links([b"k" * 40], "https://mail.example.org/quarantine", timedelta(days=14))
RENDER = Render("en")
URL = re.compile(r"https://mail\.example\.org/quarantine/\S*")


def delivery(number: int = 0, **fields: Any) -> Delivery:
    """Return a delivery to Alice, held some minutes before NOW; ``fields`` replace those of message or delivery."""
    held_at = NOW - timedelta(minutes=10 + number)
    message = Message(
        id=new_id(held_at),
        verdict_tier=Tier.SPAM,
        envelope_sender=SENDER,
        subject=f"Offer {number}",
        header_from=f"Promo {number} <promo{number}@example.net>",
        queue_id="4XyZq1abc",
        message_id="1@example.net",
        action="reject",
        score=17.5,
        client_ip="198.51.100.9",
        user=None,
        symbols=(Symbol("BAYES_SPAM", 5.1),),
        flags=frozenset(),
        body_sha256=b"",
        size_bytes=100,
        has_8bit=False,
    )
    message = replace(message, from_count=len(parse(fields.get("header_from", message.header_from))))
    if "held_at" in fields:
        fields["id"] = new_id(fields.pop("held_at"))
    mine = {key: fields.pop(key) for key in ("state", "address", "recipient") if key in fields}
    made = Delivery(replace(message, **fields), number, ALICE, ALICE, State.HELD, held_at, "", 0, None, None)
    return replace(made, **mine)


def signed(domain: str = "example.net", score: float = -0.2) -> tuple[Symbol, ...]:
    """Return symbols of a message with a DKIM signature of this domain, which has no DMARC record."""
    return Symbol("R_DKIM_ALLOW", score, (f"{domain}:s=key",)), Symbol("DMARC_NA", 0), Symbol("BAYES_SPAM", 5.1)


def right(delivery: Delivery) -> ReleaseRight:
    """Return who may release a delivery of a domain without values of its own."""
    return ReleaseRight.REQUEST if delivery.message.tier is Tier.DANGEROUS else ReleaseRight.SELF


def mail_of(*deliveries: Delivery, links: Links = LINKS, address: str = ALICE, **values: Any) -> EmailMessage:
    digest = Digest(new_id(NOW), address.lower(), address, NOW, deliveries)
    return compose(
        digest,
        links=links,
        render=RENDER,
        sender="quarantine@example.org",
        zone=values.pop("zone", ZoneInfo("Europe/Berlin")),
        max_rows=values.pop("max_rows", 50),
        retention_days=30,
        right=values.pop("right", right),
        now=NOW,
        **values,
    )


def parsed(mail: EmailMessage) -> EmailMessage:
    """Return the mail as the reader's mail program parses it."""
    read = message_from_bytes(mail.as_bytes(), policy=SMTP.clone(utf8=True))
    assert isinstance(read, EmailMessage)
    return read


class _Seen(HTMLParser):
    """The visible text of HTML, its links, and every tag and attribute."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words = ""
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name == "href"]

    def handle_data(self, data: str) -> None:
        self.words += data


def text_of(mail: EmailMessage) -> str:
    part = parsed(mail).get_body(("plain",))
    assert part is not None
    return str(part.get_content()).replace("\r\n", "\n")


def html_of(mail: EmailMessage) -> _Seen:
    part = parsed(mail).get_body(("html",))
    assert part is not None
    return _Seen(part.get_content().replace("\r\n", "\n"))


def order(mail: EmailMessage) -> list[int]:
    return [int(n) for n in re.findall(r"^Offer (\d+)$", text_of(mail), re.MULTILINE)]


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text)


# ---- content


def test_text_and_html_carry_the_same_facts_and_links() -> None:
    mail = mail_of(
        delivery(1, subject="Your order", header_from="Kontor <shop@example.com>", score=15.25, threshold=7.5),
        delivery(2, subject="", header_from="", envelope_sender="", score=None, flags=frozenset({Flag.SCORE})),
        delivery(3, header_from='"boss@example.org" <x@example.com>', symbols=(Symbol("SPOOF_DISPLAY_NAME", 8),)),
        delivery(4, verdict_tier=Tier.DANGEROUS, subject="Invoice.zip", symbols=(Symbol("CLAM_VIRUS", 20),)),
        delivery(5, state=State.RELEASED),
        *(delivery(n, score=60, verdict_tier=Tier.DANGEROUS) for n in (6, 7)),
        max_rows=4,
    )
    text, html = text_of(mail), html_of(mail)
    assert sorted(set(URL.findall(text))) == sorted(set(html.links))
    words = squeezed(html.words)
    for fact in (
        "6 messages held, none looks wanted",
        "This digest is from example.org. All links lead to mail.example.org. These pages never ask for a password.",
        "Questions? Contact your mail administrator.",
        "Other messages (3)",
        "Possibly dangerous messages (3)",
        "Your order",
        "(no subject)",
        "Caution: The display name shows a different address than the real sender",
        "malware found",
        "Only your mail administrator can release these. You can request their release.",
        "2 more messages are not listed here. 2 of them are possibly dangerous.",
        "1 message listed earlier has been released or deleted.",
        "This digest is for alice@example.org. Its links are valid for 14 days; held messages are removed after 30",
        "Times are in Europe/Berlin.",
    ):
        assert fact in squeezed(text), fact
        assert fact in words, fact
    assert "\nresembles spam · score 15.2, limit 7.5 · Sun 22 Nov, 06:49\n" in text
    assert "score 17.5 · Sun 22 Nov, 06:47\n" in text
    assert "resembles spam · score 15.2 · 06:49" in words and "score 17.5 · 06:47" in words, "short, for phones"


def test_each_address_stands_alone_on_its_line() -> None:
    text = text_of(mail_of(delivery(1), delivery(2, verdict_tier=Tier.DANGEROUS)))
    lines = [line for line in text.splitlines() if "://" in line]
    assert len(lines) == 8  # release, show; request, show; several, portal, preferences, forwarded
    assert all(URL.fullmatch(line) for line in lines)


def test_the_text_part_fits_a_terminal_and_its_links_stay_whole() -> None:
    mail = mail_of(
        *(
            delivery(n, subject=subject, header_from=f"{'Sales department of ' * 4}<sales@shop.example.com>")
            for n, subject in enumerate(
                (
                    "sofort zahlen " * 30,
                    "请查收您的发票，十一月份账单已经可以下载。" * 9,
                    "x" * 300,
                    "-" * 20 + " a" * 60,
                )
            )
        ),
        delivery(9, verdict_tier=Tier.DANGEROUS),
    )
    lines = text_of(mail).splitlines()
    wide = [line for line in lines if sum(1 + (east_asian_width(c) in "WF") for c in line) > 76]
    assert all(URL.fullmatch(line) or line == "x" * 119 + "…" for line in wide), wide
    assert len([line for line in lines if URL.fullmatch(line)]) == 4 * 2 + 2 + 4
    assert not any(line.startswith(("，", "。")) for line in lines)
    words = ("sofort zahlen " * 8).strip()
    assert words in squeezed(text_of(mail)) and words in squeezed(html_of(mail).words), "nothing else changes"


def test_a_command_in_a_mail_stays_one_line() -> None:
    command = "    quarantine refuse 01a212db-6ae0-7339-bf02-d273728fbfd7 --recipient alice@example.org --reason"
    assert wrapped(f"{command}\n{command[4:]}") == f"{command}\n{command[4:70]}\n{command[71:]}"


def test_a_line_with_a_link_is_not_wrapped() -> None:
    words = " ".join(["word"] * 20)
    assert wrapped(f"{words} https://mail.example.org/quarantine/") == f"{words} https://mail.example.org/quarantine/"
    assert wrapped(words) == f"{words[:74]}\n{words[75:]}"


def test_text_is_wrapped_at_76_columns() -> None:
    line = f"{'x' * 37} {'y' * 38}"
    assert wrapped(line) == line
    assert wrapped(f"{line} z") == f"{line}\nz"
    assert wrapped(f"{line}y") == f"{'x' * 37}\n{'y' * 39}"
    assert wrapped(f"a {line}") == f"a {'x' * 37}\n{'y' * 38}"
    assert wrapped(f"- {line}") == f"- {'x' * 37}\n  {'y' * 38}", "items of a list are indented"


def test_links_name_the_action_and_the_delivery_and_are_dated_with_the_digest() -> None:
    spam, virus = delivery(3), delivery(7, verdict_tier=Tier.DANGEROUS)
    mail = mail_of(spam, virus)
    found = [LINKS.verify(url.split("/")[-2], NOW) for url in URL.findall(text_of(mail)) if url.count("/") > 4]
    assert [(link.action, link.id, link.number) for link in found[:4]] == [
        (Action.RELEASE, spam.id, 3),
        (Action.SHOW, spam.id, 3),
        (Action.REQUEST, virus.id, 7),
        (Action.SHOW, virus.id, 7),
    ]
    assert [link.action for link in found[4:]] == [Action.SEVERAL, Action.OPEN, Action.PREFERENCES, Action.FORWARDED]
    assert len({link.id for link in found[4:]}) == 1
    assert {link.issued_at for link in found} == {NOW}


def test_the_likeliest_mistakes_come_first_and_dangerous_mail_last() -> None:
    mail = mail_of(
        delivery(1, score=30),
        delivery(2, score=15, verdict_tier=Tier.DANGEROUS),
        delivery(3, score=19, symbols=signed()),
        delivery(4, score=15),
        delivery(5, score=None),
        delivery(6, score=15),
        delivery(7, score=16),
    )
    assert order(mail) == [3, 4, 6, 7, 1, 5, 2]


def test_proven_senders_come_first_and_then_the_lower_score() -> None:
    mail = mail_of(
        delivery(1, score=18, symbols=signed()),
        delivery(2, score=12, symbols=signed()),
        delivery(3, score=0.5),
        delivery(4, score=0.0),
    )
    assert order(mail) == [2, 1, 4, 3]


def test_title_and_subject_say_how_many_may_be_wanted_and_where_they_are_from() -> None:
    friends = {"header_from": "Ann <ann@Friends.example.com>", "symbols": signed("example.com"), "score": 21}
    shop = {"header_from": "Shop <orders@shop.example.org>", "symbols": signed("example.org"), "score": 22}
    bulk = {"symbols": (*signed(), Symbol("HAS_LIST_UNSUB", -0.01))}
    for expected, *held in (
        ("1 held message may be wanted: example.net", delivery(1, symbols=signed())),
        ("1 message held, it does not look wanted", delivery(1)),
        ("2 messages held, none looks wanted", delivery(1), delivery(2, score=10, **bulk)),
        ("1 of 2 held messages may be wanted: friends.example.com", delivery(1, score=10), delivery(2, **friends)),
        (
            "3 of 4 held messages may be wanted: example.net, friends.example.com",
            *(delivery(1, **shop), delivery(2, symbols=signed()), delivery(3), delivery(4, **friends)),
        ),
    ):
        mail = mail_of(*held)
        assert mail["Subject"] == expected
        assert expected.partition(":")[0] in squeezed(html_of(mail).words)
        assert text_of(mail).splitlines()[1] == expected.partition(":")[0]


def test_the_preview_names_the_domains_of_likely_mistakes_alone() -> None:
    hosts = ["example.net", "a.example", "b.example", "c.example"]
    mail = mail_of(*(delivery(n, header_from=f"X <x@{host}>", symbols=signed(host)) for n, host in enumerate(hosts)))
    assert beside_subject(mail) == "Likely mistakes: @example.net, @a.example, @b.example"
    assert beside_subject(mail_of(delivery(1))) == "Held messages are removed after 30 days."


def beside_subject(mail: EmailMessage) -> str:
    """Return the first text of the HTML part, which mail programs show beside the subject."""
    part = parsed(mail).get_body(("html",))
    assert part is not None
    [found] = re.findall(r"<body.*?<p[^>]*>(.*?)</p>", part.get_content(), re.DOTALL)
    assert "display:none" not in part.get_content()
    return squeezed(found).strip()


def test_a_digest_in_which_nothing_looks_wanted_is_short() -> None:
    bulk, macro = (Symbol("HAS_LIST_UNSUB", -0.01), *signed()), Tier.SUSPICIOUS
    held = [
        *(delivery(n, subject=f"Letter {'abc'[n]}", symbols=bulk) for n in range(3)),
        *(delivery(n, subject=f"Pills {'abcde'[n - 3]}") for n in range(3, 8)),
        delivery(8, subject="Macro", verdict_tier=macro),
        delivery(9, subject="Virus", verdict_tier=Tier.DANGEROUS),
    ]
    summary = "Bulk mail: 3 · Likely spam: 5 · Check first: 1 · Possibly dangerous messages: "
    for more, rows in (([], 10), ([delivery(10, subject="Worm", verdict_tier=Tier.DANGEROUS)], 5)):
        mail = mail_of(*held, *more)
        text, count = squeezed(text_of(mail)), f"{summary}{1 + len(more)}"
        assert mail["Subject"] == f"{10 + len(more)} messages held, none looks wanted"
        assert text.count(" Show: ") == rows and text.count(count) == 1
        assert beside_subject(mail) == count
        assert ("6 more messages are not listed here. 1 of them is possibly dangerous." in text) == bool(more)
    assert squeezed(text_of(mail_of(*held, *more, max_rows=2))).count(" Show: ") == 2
    assert summary not in squeezed(text_of(mail_of(*held, delivery(11, symbols=signed())))), "that one may be wanted"


def test_a_digest_of_messages_that_are_not_scanned_is_not_short() -> None:
    names = [f"{name}.example.net" for name in "abcdefghijkl"]
    scan = Scan(ScanOutcome.FAILED)
    held = [delivery(n, header_from=f"p@{each}", symbols=signed(each), scan=scan) for n, each in enumerate(names)]
    mail = mail_of(*held)
    assert mail["Subject"] == "12 held messages may be wanted", "no sender is named"
    text = text_of(mail)
    assert text.count("Show:") == 12 and "Likely mistakes" not in text and "Bulk" not in text


def test_messages_without_a_row_can_be_released_together() -> None:
    def by_verdict(each: Delivery) -> ReleaseRight:
        return ReleaseRight.SELF if each.message.tier is Tier.SPAM else ReleaseRight.REQUEST

    to_check = [delivery(n, verdict_tier=Tier.SUSPICIOUS, score=5.0) for n in range(5)]
    for more, count in ((delivery(5, score=20.0), 1), (delivery(5, verdict_tier=Tier.DANGEROUS), 0)):
        mail = mail_of(*to_check, more, right=by_verdict, max_rows=5)
        assert text_of(mail).count("Release or delete several messages:") == count
        assert html_of(mail).words.count("Release or delete several messages") == count


@pytest.mark.parametrize(
    "header",
    [
        "Ann <ann@pay-now.example.com>click",
        '"boss@example.org" <x@example.com>',  # a display name that is another address
        "Ann <ann@аррӏе.com>",  # noqa: RUF001 - looks like Latin
        "Ann <ann@xn--80ak6aa92e.com>",
        "Ann <ann@your-account-is-locked-call-the-help-desk-at-once.example>",
        "Ann <ann@evil.example/login>",
        "Ann <ann@10.0.0.1>",
        "Ann <ann@localhost>",
        "Ann <ann@ｅｘａｍｐｌｅ.net>",  # IDNA maps it to example.net, but Rspamd checked another domain
        "Ann <ann@münchen.example>",
        "Ann <ann@exa mple.net>",
        "Ann",
    ],
)
def test_the_subject_names_no_sender_that_raises_doubt(header: str) -> None:
    host = header.rpartition("@")[2].partition(">")[0]
    passed = (Symbol("DMARC_POLICY_ALLOW", -0.5, (host, "reject")), *signed(host))
    subject = mail_of(delivery(1, header_from=header, envelope_sender="", symbols=passed))["Subject"]
    assert subject in (
        "1 message held, it does not look wanted",
        "1 held message may be wanted",  # it is authentic, but not written like a domain
        "1 held message may be wanted: pay-now.example.com",
    )
    assert ("pay-now" in subject) == ("pay-now" in header)


def test_forged_and_dangerous_mail_names_no_sender_in_the_subject() -> None:
    forged = delivery(1, header_from="PayPal <a@paypal.com>", symbols=(Symbol("DMARC_POLICY_REJECT", 2),))
    ann = delivery(2, score=20, header_from="Ann <a@friends.example.com>", symbols=signed("friends.example.com"))
    for other in (forged, delivery(1, verdict_tier=Tier.DANGEROUS, symbols=signed())):
        assert mail_of(other)["Subject"] == "1 message held, it does not look wanted"
        assert mail_of(other, ann)["Subject"] == "1 of 2 held messages may be wanted: friends.example.com"


def test_senders_whose_mail_was_released_before_come_first() -> None:
    passed = (Symbol("DMARC_POLICY_ALLOW", -0.5), Symbol("FORGED_SENDER", 0.3), Symbol("BAYES_SPAM", 5.1))
    mail = mail_of(
        delivery(1, score=15),
        delivery(2, score=28, header_from="Ann <Ann@Friends.example.com>", symbols=passed),
        delivery(3, score=28, header_from="Bea <bea@friends.example.com>"),
        delivery(4, score=28, header_from="Ann <ann@friends.example.com>", symbols=(Symbol("R_SPF_FAIL", 1),)),
        known={"ann@friends.example.com", "bea@friends.example.com"},
    )
    assert order(mail) == [2, 1, 3, 4]
    assert text_of(mail).count("released before") == 1, "only for the authenticated sender"


def test_a_sender_whose_domain_only_maps_to_a_known_one_is_not_that_sender() -> None:
    known = {"ann@example.net"}
    for host, first in (("example.net", True), ("ｅｘａｍｐｌｅ.net", False), ("exam\u00adple.net", False)):
        mail = mail_of(delivery(1, header_from=f"Ann <ann@{host}>", symbols=signed(score=0)), known=known)
        assert ("released before" in text_of(mail)) is first


def test_near_identical_mails_are_one_row_whose_links_act_on_the_newest() -> None:
    shop = {"header_from": "Shop <shop@example.com>"}
    old = delivery(9, subject="Order 4711 of 3 May", score=16, **shop)
    new = delivery(1, subject="ORDER 99 of 21 May", score=20, **shop)
    mail = mail_of(delivery(5, score=18), old, new, delivery(6, subject="Order status", **shop))
    text = text_of(mail)
    assert text.count("Release to my inbox:") == 3
    assert "1 similar message\n" in text
    assert "1 similar message" in squeezed(html_of(mail).words)
    assert str(mail["Subject"]).startswith("4 messages"), "each is counted"
    (similar,) = (url for url in html_of(mail).links if "like" in url)
    token, _, query = similar.rpartition("/")
    assert query == f"?like={new.id}.{new.number}"
    assert LINKS.verify(token.split("/")[-1], NOW).action is Action.SEVERAL
    linked = {LINKS.verify(url.split("/")[-2], NOW).id for url in URL.findall(text)}
    assert new.id in linked and old.id not in linked
    assert text.index("ORDER 99") < text.index("Offer 5"), "in the place of the likeliest of them"


def test_mails_with_the_same_bytes_are_one_row() -> None:
    mail = mail_of(
        *(delivery(n, subject=s, body_sha256=b"x" * 32) for n, s in enumerate(("Hello", "Win", "Last chance")))
    )
    assert text_of(mail).count("Release to my inbox:") == 1
    assert "2 similar messages\n" in text_of(mail)


def test_authenticated_or_dangerous_mail_is_never_grouped_under_other_mail() -> None:
    same = {"subject": "Invoice 1", "header_from": "Shop <shop@example.com>", "body_sha256": b"x" * 32}
    virus = delivery(4, **same, verdict_tier=Tier.DANGEROUS)
    mail = mail_of(
        delivery(1, **same),
        delivery(2, **same, symbols=signed("example.com")),
        delivery(3, **same, verdict_tier=Tier.SUSPICIOUS),
        virus,
        delivery(5, **same, verdict_tier=Tier.DANGEROUS),
    )
    assert "similar message" in text_of(mail)
    assert text_of(mail).count("Release to my inbox:") == 2
    assert text_of(mail).count("Review:") == 1
    assert text_of(mail).count("Request release:") == 1
    [similar] = {url for url in html_of(mail).links if "?like=" in url}
    assert similar.endswith(f"?like={virus.id}.{virus.number}"), "to their list"
    assert LINKS.verify(similar.split("/")[-2], NOW).action is Action.OPEN


@pytest.mark.parametrize(
    ("max_rows", "listed", "more"), [(3, 3, ""), (2, 2, "1 more message is"), (1, 1, "2 more messages are")]
)
def test_max_rows_cuts_and_the_rest_is_named(max_rows: int, listed: int, more: str) -> None:
    text = text_of(mail_of(delivery(1), delivery(2), delivery(3), max_rows=max_rows))
    assert text.count("Release to my inbox:") == listed
    assert more in text
    assert ("not listed here" in text) == bool(more)


# ---- size and format


@pytest.mark.parametrize("language", TAGS)
def test_50_rows_with_two_links_each_fit_before_gmail_clips(language: str) -> None:
    names = ["Kontor Nord", "Ann Example", "Billing team", "Müller & Söhne", "News of the week"]
    words = ["Your invoice for November", "Re: Meeting on Thursday?", "Prüfung Ihrer Angaben", "Last reminder", "Offer"]
    found = (Symbol("BAYES_SPAM", 5.1), Symbol("DBL_SPAM", 4.0), Symbol("RDNS_NONE", 2.0))
    mail = mail_of(
        *(
            delivery(
                n,
                subject=f"{words[n % 5]} {chr(97 + n % 26) * 3}",
                header_from=f"{names[n % 5]} <letters{n}@shop.example.com>",
                symbols=found if n else signed("shop.example.com"),
            )
            for n in range(50)
        ),
        language=language,
    )
    assert len(mail.as_bytes()) <= 90_000
    assert len(set(html_of(mail).links)) == len(set(URL.findall(text_of(mail)))) == 50 * 2 + 4
    # Latin letters fit into quoted-printable; Arabic and Japanese ones do not.
    eight_bit = language in ("ar", "ja")
    assert [part["Content-Transfer-Encoding"] for part in mail.iter_parts()] == [
        "8bit" if eight_bit else "quoted-printable"
    ] * 2
    assert max(map(len, mail.as_bytes().splitlines())) <= 998


def test_a_line_too_long_for_8bit_is_sent_the_safer_way() -> None:
    name = "💰" * 80  # a name of the maximum length; with address and markup more than 998 octets
    held = [delivery(n, header_from=f"{name} <{'ä' * 100}{n}@example.net>", subject="é" * 120) for n in range(60)]
    mail = mail_of(*held, delivery(60, symbols=signed()), max_rows=60, language="ja")
    assert len(mail.as_bytes()) <= MAIL_BYTES
    assert max(map(len, mail.as_bytes().splitlines())) <= 998


def test_a_small_digest_is_quoted_printable_in_every_language() -> None:
    for language in TAGS:
        mail = mail_of(delivery(), language=language)
        assert {part["Content-Transfer-Encoding"] for part in mail.iter_parts()} == {"quoted-printable"}


@pytest.mark.slow
def test_ten_thousand_mails_make_one_bounded_digest() -> None:
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    mail = mail_of(
        delivery(0, symbols=signed()),
        *(delivery(n, subject=" ".join(words[int(d)] for d in str(n)), score=float(n)) for n in range(1, 10_000)),
        max_rows=50,
    )
    assert len(mail.as_bytes()) <= MAIL_BYTES
    text = text_of(mail)
    listed = text.count("Release to my inbox:")
    assert listed >= 45
    assert f"{10_000 - listed:,} more messages are not listed here." in text
    assert str(mail["Subject"]) == "1 of 10,000 held messages may be wanted: example.net"


@pytest.mark.parametrize("subject", ["请查收您的发票十一月份账单已经可以下载" * 8, "ä&<" * 60, "x" * 200])
@pytest.mark.slow
def test_500_rows_stay_below_90_000_octets_and_the_rest_is_named(subject: str) -> None:
    held = [delivery(n, subject=subject, symbols=() if n else signed()) for n in range(500)]
    mail = mail_of(*held, max_rows=500)
    size = len(mail.as_bytes())
    assert size <= MAIL_BYTES
    assert size > MAIL_BYTES - 4_000, "as many rows as fit"
    text = text_of(mail)
    listed = text.count("Release to my inbox:")
    assert f"{500 - listed} more messages" in text
    assert html_of(mail).words.count("score 17.5") == listed


def test_lines_are_quoted_printable_of_at_most_76_octets() -> None:
    raw = mail_of(*(delivery(n, subject="Prüfung 请查收 " * 9) for n in range(20))).as_bytes()
    head, _, rest = raw.partition(b"\r\n\r\n")
    assert max(map(len, rest.split(b"\r\n"))) <= 76
    assert raw.isascii()
    assert b"\n" not in raw.replace(b"\r\n", b"") and b"\r" not in raw.replace(b"\r\n", b"")
    encodings = [part["Content-Transfer-Encoding"] for part in message_from_bytes(raw).walk()]
    assert encodings == [None, "quoted-printable", "quoted-printable"]
    assert b"quoted-printable" not in head


def test_headers_say_that_a_machine_wrote_it_and_how_to_stop_it() -> None:
    mail = mail_of(delivery(1))
    headers = message_from_bytes(mail.as_bytes())  # the old parser, which decodes nothing
    assert headers["From"] == '"Mail quarantine" <quarantine@example.org>'
    assert headers["To"] == ALICE
    assert headers["Auto-Submitted"] == "auto-generated"
    assert headers["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    link = LINKS.verify(headers["List-Unsubscribe"].strip("<>").split("/")[-2], NOW)
    assert link.action is Action.PREFERENCES
    assert headers["Message-ID"] == f"<{link.id}@example.org>"
    assert LINKS.read_mark(headers[MARK_HEADER]) == ("digest", link.id)


def test_one_click_unsubscribe_is_offered_only_by_https() -> None:
    links = Links([b"k" * 40], "http://127.0.0.1:8080/quarantine", timedelta(days=14))
    mail = mail_of(delivery(1), links=links)
    assert "List-Unsubscribe" not in mail
    assert "List-Unsubscribe-Post" not in mail
    assert "Change or stop digests:\nhttp://127.0.0.1:8080/quarantine/link/" in text_of(mail)


def test_a_digest_sent_again_on_purpose_has_a_message_id_of_its_own() -> None:
    another = UUID("01930000-0000-7000-8000-000000000001")
    assert mail_of(delivery(1), mail_id=another)["Message-ID"] == f"<{another}@example.org>"


@pytest.mark.parametrize(
    ("address", "header"),
    [
        ("Alice@Example.org", "To: Alice@Example.org"),
        ("jürgen@example.org", "To: jürgen@example.org"),
        ("Erika@XN--mnchen-3ya.example", "To: Erika@XN--mnchen-3ya.example"),
        ("erika@münchen.example", "To: erika@münchen.example"),
        ('"a b, c@d"@example.org', 'To: "a b, c@d"@example.org'),
        ("a,b@example.org", 'To: "a,b"@example.org'),
        ('a"b\\@example.org', 'To: "a\\"b\\\\"@example.org'),
        ("a..b@example.org", 'To: "a..b"@example.org'),
    ],
)
def test_the_to_header_carries_the_address_as_the_envelope_wrote_it(address: str, header: str) -> None:
    raw = mail_of(delivery(1), address=address).as_bytes()
    assert header in raw.decode().split("\r\n")
    assert raw.partition(b"\r\n\r\n")[2].isascii()


def test_times_are_in_the_readers_time_zone() -> None:
    at = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    assert "Sun 29 Mar, 03:30" in text_of(mail_of(delivery(1, held_at=at)))
    assert "Sat 28 Mar, 21:30" in text_of(mail_of(delivery(1, held_at=at), zone=ZoneInfo("America/New_York")))


# ---- hostile mail


HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)> '",
    "a\r\nBcc: mallory@example.org\r\n\r\nbody",
    "\u202egpj.exe\u2066 \u200bhidden\ufeff",
    "\x92\x00\x1b[31mred\u0085\u2028\u2029next",
    "{{ 7*7 }}{% raw %}",
    "=?utf-8?q?=0D=0ABcc:=20mallory?=",
    "Confirm now: https://evil.example/login.php?a=1 or www.evil.example or evil.example/x",
    "𝕏" * 400,
    "",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_subjects_and_senders_stay_text(text: str) -> None:
    plain = html_of(mail_of(delivery(1)))
    mail = mail_of(delivery(1, subject=text, header_from=f"{text} <{SENDER}>"))
    html = html_of(mail)
    assert html.tags <= plain.tags | {"i", "span"}
    assert html.attributes <= plain.attributes
    assert all(URL.fullmatch(link) for link in html.links)
    for seen in (text_of(mail), html.words):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]", seen)
        assert not re.search(r"https?://(?!mail\.example\.org)", seen)
        assert "www.evil" not in seen
    assert list(parsed(mail).keys()) == list(mail_of(delivery(1)).keys())


@pytest.mark.parametrize(
    "header", ["X <a@b https://evil.example/login>", "a@evil.example/x", "https://evil.example/ <>"]
)
def test_a_sender_that_is_an_address_of_the_web_gets_no_link(header: str) -> None:
    mail = mail_of(delivery(1, header_from=header))
    for seen in (text_of(mail), html_of(mail).words):
        assert not re.search(r"evil\.example", seen)


@pytest.mark.parametrize(
    "word",
    [
        "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X",
        "X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*",
        "1BoatSLRHtKNngkdXEeobR76b53LETtpyT",
        "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4",
    ],
)
def test_patterns_that_scanners_look_for_are_broken_up(word: str) -> None:
    mail = mail_of(delivery(1, subject=f"Pay {word} now", header_from=f'"{word}" <{word}@example.net>'))
    for seen in (text_of(mail), html_of(mail).words):
        assert word not in seen and word[1:-1] not in seen
        assert re.search(rf"Pay {re.escape(word[:7])}\S* now", squeezed(seen)), "its beginning is readable"


def test_long_words_are_no_wallets() -> None:
    words = "Lebensversicherungsgesellschaft 30120001234567890"
    assert words in text_of(mail_of(delivery(1, subject=words)))


@pytest.mark.parametrize("hidden", ["\u034f", "\u115f", "\u1160", "\u17b4", "\u180e", "\u206a", "\u3164", "\uffa0"])
def test_invisible_characters_do_not_count_as_text(hidden: str) -> None:
    mail = mail_of(delivery(1, subject=hidden * 3, header_from=f"{hidden} <promo@example.net>"))
    assert "(no subject)" in text_of(mail)
    assert hidden not in text_of(mail) + html_of(mail).words


def test_marks_that_are_piled_up_do_not_cover_the_rows_around() -> None:
    mail = mail_of(delivery(1, subject="Tiếng Việt".replace("ế", "e\u0302\u0301") + " z" + "\u0336\u0489\u0301" * 30))
    assert "Tie\u0302\u0301ng Việt z\u0336\u0489\u0301\n" in text_of(mail)
    assert "\u0301" * 2 not in html_of(mail).words and html_of(mail).words.count("\u0489") == 1


def test_an_ordinary_address_is_shown_as_it_is() -> None:
    assert "Ann <info@www.example.com>\n" in text_of(mail_of(delivery(1, header_from="Ann <info@www.example.com>")))


@given(subject=st.text(), sender=st.text(), symbol=st.text(), score=st.floats(-1e6, 1e6) | st.none())
@example(subject="https://", sender="<>", symbol="", score=None)
@settings(max_examples=60, deadline=None)
@pytest.mark.slow
def test_a_digest_can_be_composed_for_any_mail(subject: str, sender: str, symbol: str, score: float | None) -> None:
    mail = mail_of(delivery(1, subject=subject, header_from=sender, symbols=(Symbol(symbol, 3),), score=score))
    raw = mail.as_bytes()
    assert raw.isascii()
    assert sorted(set(URL.findall(text_of(mail)))) == sorted(set(html_of(mail).links))
    assert re.fullmatch(
        r"1 (message held, it does not look wanted|held message may be wanted(: [a-z0-9.-]{4,40})?)", mail["Subject"]
    )


def test_the_html_part_says_its_language_and_direction() -> None:
    part = parsed(mail_of(delivery(1))).get_body(("html",))
    assert part is not None
    assert part.get_content().count('lang="en" dir="ltr"') == 2, "on the outer table too, since web mail drops <html>"


def test_all_links_lead_to_one_host_and_the_mail_says_so() -> None:
    mail = mail_of(delivery(1), delivery(2, verdict_tier=Tier.DANGEROUS))
    assert all(link.startswith("https://mail.example.org/quarantine/") for link in html_of(mail).links)
    for words in ("All links lead to mail.example.org.", "These pages never ask for a password."):
        assert words in squeezed(text_of(mail))
        assert words in squeezed(html_of(mail).words)


def test_who_sends_a_digest_and_where_its_links_lead_is_said_above_the_first_row() -> None:
    mail = mail_of(delivery(1), delivery(2, verdict_tier=Tier.DANGEROUS))
    for text in (squeezed(text_of(mail)), squeezed(html_of(mail).words)):
        first = text.index("Offer 1")
        for words in ("This digest is from ", "All links lead to mail.example.org.", "never ask for a password."):
            assert 0 <= text.find(words) < first, words


def test_the_html_part_loads_nothing_and_runs_nothing() -> None:
    html = html_of(mail_of(delivery(1), delivery(2, verdict_tier=Tier.DANGEROUS)))
    assert not html.tags & {"script", "img", "link", "iframe", "form", "object"}
    assert not html.attributes & {"src", "background", "onclick", "onload"}
    assert "url(" not in html.words
