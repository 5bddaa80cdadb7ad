"""Senders as recipients see them, and whether they are authentic."""

from __future__ import annotations

from dataclasses import replace

import pytest

from portal.model.message import Message
from portal.model.sender import from_address, sender_shown
from tests.digests.test_compose import delivery


@pytest.fixture
def message() -> Message:
    return delivery().message


@pytest.mark.parametrize(
    ("header_from", "envelope_sender", "shown", "warned"),
    [
        ("Promo <promo@example.net>", "x@y.example", "Promo <promo@example.net>", False),
        ("promo@example.net", "x@y.example", "promo@example.net", False),
        ('"Doe, John" <j@example.net>', "", "Doe, John <j@example.net>", False),
        ('"J@example.net" <j@example.net>', "", "j@example.net", False),
        ('"service@bank.example" <x@evil.example>', "", "service@bank.example <x@evil.example>", True),
        ("service@bank\u200b.example <x@evil.example>", "", "service@bank.example <x@evil.example>", True),
        ("<service@bank.example> <x@evil.example>", "", "service@bank.example, x@evil.example", True),
        ("service＠bank.example <x@evil.example>", "", "service＠bank.example <x@evil.example>", True),  # noqa: RUF001
        ("service＠bank.example", "x@evil.example", "service＠bank.example <x@evil.example>", True),  # noqa: RUF001
        ("service﹫bank．example <x@evil.example>", "", "service﹫bank．example <x@evil.example>", True),  # noqa: RUF001
        ("Service @ Bank.example <x@evil.example>", "", "Service @ Bank.example <x@evil.example>", True),
        ('"service(at)bank.example" <x@evil.example>', "", "service(at)bank.example <x@evil.example>", True),
        ('"service [AT] bank.example" <x@evil.example>', "", "service [AT] bank.example <x@evil.example>", True),
        ('"x @ evil.example" <x@evil.example>', "", "x @ evil.example <x@evil.example>", False),
        ('"Lunch @ 12.30, at home." <x@evil.example>', "", "Lunch @ 12.30, at home. <x@evil.example>", False),
        ('"Sale (at) last" <x@evil.example>', "", "Sale (at) last <x@evil.example>", False),
        ("", "promo@example.net", "promo@example.net", False),
        ("Only a name", "promo@example.net", "Only a name <promo@example.net>", False),
        ("", "", "no sender address, as in automatic replies", False),
        ("", None, "unknown sender", False),
        ("K <x@käse.example>", "", "K <x@käse.example (xn--kse-qla.example)>", False),
        ("K <x@faß.de>", "", "K <x@faß.de (xn--fa-hia.de)>", False),  # not fass.de, as in IDNA 2003
        ("K <x@Ῥόδος.gr>", "", "K <x@Ῥόδος.gr (xn--pxawj1b687y.gr)>", False),  # noqa: RUF001
        ("K <x@mail_1.käse.example>", "", "K <x@mail_1.käse.example (mail_1.xn--kse-qla.example)>", False),
        ("K <x@☃.net>", "", "K <x@☃.net (xn--n3h.net)>", False),
        ("K <x@☃。net>", "", "K <x@☃。net (xn--n3h.net)>", False),
        ("A\u202eB\r\nBcc: x <x@example.net>", "", "AB Bcc: x <x@example.net>", False),
        ("K <x@Bank.example>", "", "K <x@Bank.example>", False),
        ("x@bank.example (K)", "", "K <x@bank.example>", False),
        ("", "root", "root", False),
        ("K <x@ba\u00adnk.example>", "", "K <x@bank.example>", True),  # another domain, with a DMARC policy of its own
        ("x@ba\u200bnk.example", "", "x@bank.example", True),
        ("K <x@bank.example\ufeff>", "", "K <x@bank.example>", True),
        ("", "x@\u2066bank.example", "x@bank.example", True),
        ("service@bank.example. <service@bank.example>", "", "service@bank.example. <service@bank.example>", False),
        ("'service@bank.example' <service@bank.example>", "", "service@bank.example", False),
        ("K <x@bank.example> y>", "", "K <x@bank.example>", False),
        ('"Xavier X" <x@y.example>', "", "Xavier X <x@y.example>", False),
        (r'"J \"K\" L" <x@y.example>', "", 'J "K" L <x@y.example>', False),
        ('K <"a@b"@käse.example>', "", 'K <"a@b"@käse.example (xn--kse-qla.example)>', False),
    ],
)
def test_a_sender_is_shown_with_name_and_address(
    message: Message, header_from: str, envelope_sender: str | None, shown: str, warned: bool
) -> None:
    sender = sender_shown(replace(message, header_from=header_from, envelope_sender=envelope_sender))
    assert str(sender) == shown
    assert bool(sender.warning) == warned


def test_a_long_address_shows_the_end_of_its_domain(message: Message) -> None:
    # Labels have at most 63 characters, so browsers and mail servers accept it.
    forged = "service@bank.example." + ".".join(letter * 60 for letter in "abc") + ".evil.test"
    for header_from, envelope_sender in ((f"Bank <{forged}>", ""), ("", forged)):
        address = sender_shown(replace(message, header_from=header_from, envelope_sender=envelope_sender)).address
        assert address.startswith("service@bank.example.aaa")
        assert address.endswith("ccc.evil.test")
        assert len(address) == 120
        assert not sender_shown(replace(message, header_from=header_from, envelope_sender=envelope_sender)).warning
    whole = "x" * (120 - len("@evil.test")) + "@evil.test"
    assert sender_shown(replace(message, header_from=whole)).address == whole
    assert "…" in sender_shown(replace(message, header_from=f"x{whole}")).address
    beyond = forged.replace("evil", "übel")
    assert sender_shown(replace(message, header_from=beyond)).address.endswith("ccc.xn--bel-goa.test)")


@pytest.mark.parametrize(
    ("host", "warned"),
    [
        ("example.org", False),
        ("müller.de", False),
        ("xn--mller-kva.de", False),
        ("аррӏе.com", True),  # noqa: RUF001 - Cyrillic throughout
        ("xn--80ak6aa92e.com", True),  # the same
        ("XN--80AK6AA92E.COM", True),
        ("paypаl.com", True),  # noqa: RUF001 - one Cyrillic letter
        ("mail.paypаl.com", True),  # noqa: RUF001
        ("пример.рф", False),
        ("сор.рф", False),  # noqa: RUF001 - at home there
        ("пример.com", False),  # does not look Latin
        ("ελληνικα.gr", False),
        ("日本語とカナ.jp", False),
        ("한국.kr", False),
        ("xn--80ak1aic1a7468c.com", True),  # with a sign that IDNA 2008 disallows
        ("xn--", False),
        ("xn--zzzzzzzzzzzz.com", False),  # punycode of nothing
        ("", False),
    ],
)
def test_domains_with_look_alike_letters_get_a_warning(message: Message, host: str, warned: bool) -> None:
    for header, envelope in ((f"K <x@{host}>", "x@example.net"), ("", f"x@{host}")):
        sender = sender_shown(replace(message, header_from=header, envelope_sender=envelope))
        assert sender.warning.startswith("The sender's domain contains look-alike letters") == warned


def test_a_name_is_shown_without_an_address_and_never_longer_than_80_characters(message: Message) -> None:
    sender = sender_shown(replace(message, header_from="Only a name", envelope_sender=""))
    assert (sender.name, sender.address, sender.warning) == ("Only a name", "", "")
    assert str(sender) == f"Only a name <{sender.instead}>"
    name = "n" * 100
    for header_from, envelope_sender in ((name, ""), (name, "x@y.example"), (f"{name} <x@y.example>", "")):
        sender = sender_shown(replace(message, header_from=header_from, envelope_sender=envelope_sender))
        assert sender.name == "n" * 79 + "…"
    for header_from in ("n" * 80, "n" * 80 + " <x@y.example>"):
        assert sender_shown(replace(message, header_from=header_from, envelope_sender="")).name == "n" * 80


@pytest.mark.parametrize(
    ("header_from", "envelope_sender", "address"),
    [
        ("Promo <Promo@Example.net>", "x@y.example", "promo@example.net"),
        ("PROMO@example.net", "x@y.example", "promo@example.net"),
        ("Only a name", "Promo@Example.net", "promo@example.net"),
        ("", "Promo@Example.net", "promo@example.net"),
        ("", "", ""),
        ("", None, ""),
    ],
)
def test_a_sender_is_known_by_the_header_or_else_by_the_envelope(
    message: Message, header_from: str, envelope_sender: str | None, address: str
) -> None:
    assert from_address(replace(message, header_from=header_from, envelope_sender=envelope_sender)) == address


def test_an_address_in_the_name_is_the_more_serious_warning(message: Message) -> None:
    sender = sender_shown(replace(message, header_from='"service@bank.example" <x@аррӏе.com>'))  # noqa: RUF001
    assert sender.warning.startswith("The display name shows a different address")
