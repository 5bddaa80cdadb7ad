"""Senders and scopes as people type them."""

from __future__ import annotations

import pytest

from portal.model.errors import BadRule
from portal.model.rule import SITE, Effect, network_keys
from portal.policy import entry
from portal.policy.entry import check_sender, read_scope, read_sender, scope_text, senders_of
from tests.builders import export


@pytest.mark.parametrize(
    ("text", "sender"),
    [
        ("promo@example.net", "promo@example.net"),
        ("  Promo@Example.NET ", "promo@example.net"),
        ("<promo@example.net>", "promo@example.net"),
        ("Promo Shop <promo@example.net>", "promo@example.net"),
        ("promo@example.net (Promo)", "promo@example.net"),
        ("promo@example.net.", "promo@example.net"),
        ("news+alice=example.org@example.net", "news+alice=example.org@example.net"),
        ('"john"@example.net', "john@example.net"),
        ('"a b"@example.net', '"a b"@example.net'),
        ("o'neil@example.net", "o'neil@example.net"),
        ("grüße@münchen.example", "grüße@xn--mnchen-3ya.example"),
        ("root@localhost", "root@localhost"),
        ("root@[192.0.2.1]", "root@[192.0.2.1]"),
        ("root@[IPv6:2001:db8::1]", "root@[ipv6:2001:db8::1]"),
        ("example.net", "example.net"),
        ("Example.NET.", "example.net"),
        ("@example.net", "example.net"),
        (".example.net", "example.net"),
        ("münchen.example", "xn--mnchen-3ya.example"),
        ("XN--MNCHEN-3YA.example", "xn--mnchen-3ya.example"),
        ("my_shop.example.net", "my_shop.example.net"),
        ("top", "top"),
        (".top", "top"),
        ("abc.de", "abc.de"),
    ],
)
def test_addresses_and_domains_are_normalized(text: str, sender: str) -> None:
    assert read_sender(text) == sender
    assert read_sender(sender) == sender


@pytest.mark.parametrize(
    ("text", "sender"),
    [
        ("192.0.2.1", "192.0.2.1/32"),
        ("[192.0.2.1]", "192.0.2.1/32"),
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("2001:DB8:0::/32", "2001:db8::/32"),
        ("2001:db8::1", "2001:db8::1/128"),
        ("2001:db8:0:0:0:0:102:304", "2001:db8::102:304/128"),
        ("::ffff:192.0.2.1", "192.0.2.1/32"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
    ],
)
def test_networks_are_for_administrators(text: str, sender: str) -> None:
    assert read_sender(text, networks=True) == read_sender(sender, networks=True) == sender
    assert sender in network_keys(text.partition("/")[0].strip("[]"))
    with pytest.raises(BadRule, match=entry.NETWORK):
        read_sender(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", entry.EMPTY),
        (" \t ", entry.EMPTY),
        ("a" * 330 + "@example.net", entry.TOO_LONG),
        ("promo\u200b@example.net", entry.INVISIBLE),
        ("\u202eten.elpmaxe", entry.INVISIBLE),
        ("pro\0mo@example.net", entry.INVISIBLE),
        ("*", entry.WILDCARD),
        ("*@example.net", entry.WILDCARD),
        ("*.example.net", entry.WILDCARD),
        ("promo@example.*", entry.WILDCARD),
        ("promo?@example.net", entry.WILDCARD),
        ("https://example.net/", entry.WEB_ADDRESS),
        ("a@example.net b@example.net", entry.SEVERAL),
        ("a@example.net, b@example.net", entry.SEVERAL),
        ("a@example.net;b@example.net", entry.SEVERAL),
        ("A <a@example.net>, B <b@example.net>", entry.SEVERAL),
        ("example.net, example.com", entry.SEVERAL),
        ("example.net example.com", entry.SEVERAL),
        ("boss@example.org <evil@example.net>", entry.NAME),
        ("bob", entry.NEITHER),
        ("localhost", entry.NEITHER),
        ("my friend@example.net", entry.NEITHER),
        ("mailto:promo@example.net", entry.NEITHER),
        ("a@b@example.net", entry.NEITHER),
        ("promo@", entry.NEITHER),
        ("@", entry.NEITHER),
        (".", entry.NEITHER),
        ("promo@-example.net", entry.NEITHER),
        ("promo@.net", entry.NEITHER),
        ("example..net", entry.NEITHER),
        ("example/net.example", entry.NEITHER),
        ("a" * 64 + ".example", entry.NEITHER),
        (".".join(["a" * 60] * 5), entry.NEITHER),
        ("☃️.example", entry.NEITHER),
        ("1.2.3", entry.NEITHER),
        ("root@[300.0.2.1]", entry.NEITHER),
        ("192.0.2.1/24", entry.NETWORK_BITS),
        ("192.0.2.0/33", entry.NETWORK_BITS),
        ("2001:db8::1/64", entry.NETWORK_BITS),
        ("10.0.0.0/7", entry.NETWORK_SIZE),
        ("0.0.0.0/0", entry.NETWORK_SIZE),
        ("2000::/3", entry.NETWORK_SIZE),
        ("::ffff:0.0.0.0/96", entry.NETWORK_SIZE),
    ],
)
def test_other_texts_are_rejected_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(BadRule) as caught:
        read_sender(text, networks=True)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("sender", "sentence"),
    [
        ("gmail.com", entry.FREEMAIL),
        ("gmx.de", entry.FREEMAIL),
        ("mailbox.org", entry.FREEMAIL),  # an addition of the portal
        ("com", entry.SUFFIX),
        ("co.uk", entry.SUFFIX),
        ("github.io", entry.SUFFIX),
        ("example.org", entry.LOCAL),
        ("xn--mnchen-3ya.example", entry.LOCAL),
        ("pilot.example", entry.LOCAL),
    ],
)
def test_domains_of_anybody_and_of_the_site_are_not_allowed_as_a_whole(sender: str, sentence: str) -> None:
    local = ["example.org", "xn--mnchen-3ya.example", "alice@sub.pilot.example"]
    with pytest.raises(BadRule) as caught:
        check_sender(Effect.ALLOW, sender, local)
    assert str(caught.value) == sentence
    check_sender(Effect.BLOCK, sender, local)
    check_sender(Effect.ALLOW, f"promo@{sender}", local)


@pytest.mark.parametrize("sender", ["example.net", "news.example.org", "notexample.org", "192.0.2.0/24"])
def test_other_domains_and_networks_are_allowed(sender: str) -> None:
    check_sender(Effect.ALLOW, sender, ["example.org"])


@pytest.mark.parametrize(
    ("header_from", "senders"),
    [
        ("Promo <Promo@Example.net>", ["promo@example.net", "example.net"]),
        ("Promo <promo@news.example.net>", ["promo@news.example.net", "news.example.net"]),
        ("Promo <a@gmail.com>", ["a@gmail.com"]),
        ("Promo <a@github.io>", ["a@github.io"]),
        ("Promo <a@[192.0.2.1]>", ["a@[192.0.2.1]"]),
        ("Promo <pro\u202emo@example.net>", ["example.net"]),
        ("Promo <promo@exam\u200bple.net>", ["promo@example.net", "example.net"]),  # as UTS 46 maps it
        ("Promo <a*b@example.net>", ["example.net"]),
        ("A <a@x.example>, B <b@x.example>, <c@y.example>", ["a@x.example", "x.example", "b@x.example"]),
        ("Promo", ["bounce@mailer.example", "mailer.example"]),
    ],
)
def test_senders_of_a_message_can_be_typed(header_from: str, senders: list[str]) -> None:
    found = senders_of(export(b"", header_from=header_from, envelope_sender="Bounce@mailer.example"))
    assert list(found) == senders
    assert [read_sender(sender) for sender in found] == senders


@pytest.mark.parametrize(
    ("text", "scope", "written"),
    [
        ("site", SITE, "site"),
        ("*", SITE, "site"),
        ("Example.org", "@example.org", "example.org"),
        ("@example.org", "@example.org", "example.org"),
        ("Alice@Example.org", "alice@example.org", "alice@example.org"),
    ],
)
def test_scopes_are_written_as_they_are_read(text: str, scope: str, written: str) -> None:
    assert read_scope(text) == scope
    assert scope_text(scope) == written
    assert read_scope(written) == scope


@pytest.mark.parametrize("text", ["", "nobody", "*@example.org", "192.0.2.0/24"])
def test_other_scopes_are_rejected(text: str) -> None:
    with pytest.raises(BadRule):
        read_scope(text)
