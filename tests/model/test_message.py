"""Quarantine ids: their time, their order, their shape. Identities: one for all spellings of an address."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import idna
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from portal.model import domains
from portal.model.domains import shown_address
from portal.model.fast_json import encode
from portal.model.message import (
    Actor,
    ActorKind,
    Reader,
    domain,
    first_id,
    held_at,
    identity,
    new_id,
    parse_id,
    random_token,
    spellings,
)
from tests.builders import ALICE, BOB


@given(st.datetimes(datetime(1970, 1, 2), datetime(2400, 1, 1), timezones=st.just(UTC)))
def test_an_id_has_its_millisecond_and_sorts_after_the_bound_of_its_day(at: datetime) -> None:
    id = new_id(at)
    assert timedelta(0) <= at - held_at(id) < timedelta(milliseconds=1)
    assert first_id(at) <= id < first_id(at + timedelta(milliseconds=1))
    assert (id.version, id.variant) == (7, "specified in RFC 4122")
    assert parse_id(str(id)) == id


def test_ids_of_one_millisecond_are_in_the_order_of_their_moments() -> None:
    at = datetime(2026, 11, 22, 7, 0, tzinfo=UTC)
    ids = [new_id(at + timedelta(microseconds=n)) for n in range(0, 3000, 5)]
    assert ids == sorted(ids)


def test_ids_of_one_moment_differ() -> None:
    at = datetime(2026, 11, 22, 7, 0, tzinfo=UTC)
    assert len({new_id(at) for _ in range(1000)}) == 1000
    assert abs(held_at(new_id()) - datetime.now(UTC)) < timedelta(minutes=1)


def test_the_last_nanosecond_of_a_millisecond_belongs_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    at = datetime(2026, 11, 22, 7, 0, tzinfo=UTC)
    monkeypatch.setattr("time.time_ns", lambda: int(at.timestamp()) * 1_000_000_000 + 999_999)
    id = new_id()
    assert (held_at(id), id.version, id.variant) == (at, 7, "specified in RFC 4122")
    assert id > new_id(at + timedelta(microseconds=999))


def test_there_is_no_id_beyond_the_last_year() -> None:
    assert parse_id(str(new_id(datetime(9999, 12, 31, tzinfo=UTC))))
    assert parse_id("ffffffff-ffff-7fff-bfff-ffffffffffff") is None


@pytest.mark.parametrize(
    "text",
    [
        "019AA9D2-7C40-7123-8ABC-0123456789AB",
        "019aa9d27c4071238abc0123456789ab",
        "{019aa9d2-7c40-7123-8abc-0123456789ab}",
        "urn:uuid:019aa9d2-7c40-7123-8abc-0123456789ab",
        "019aa9d2-7c40-4123-8abc-0123456789ab",  # version 4
        "019aa9d2-7c40-7123-8abc-0123456789a",
        "",
    ],
)
def test_an_id_has_one_spelling(text: str) -> None:
    assert parse_id("019aa9d2-7c40-7123-8abc-0123456789ab")
    assert parse_id(text) is None


def test_the_bound_of_a_time_before_all_ids_is_the_lowest_id() -> None:
    assert first_id(datetime(1969, 12, 31, tzinfo=UTC)) == first_id(datetime(1970, 1, 1, tzinfo=UTC)) == UUID(int=0)


def test_a_random_token_has_128_bits_by_default() -> None:
    assert len({random_token() for _ in range(100)}) == 100
    assert {len(random_token()) for _ in range(100)} == {22}  # 16 octets in base64
    assert {len(random_token(32)) for _ in range(100)} == {43}


def test_json_is_compact_and_never_fails_for_text_that_is_not_unicode() -> None:
    assert encode({"subject": "Grüße", "symbols": [1, None]}) == '{"subject":"Grüße","symbols":[1,null]}'.encode()
    assert encode({"subject": "ü\udcfc", "symbols": [1, None]}) == '{"subject":"ü?","symbols":[1,null]}'.encode()


# ---- actors


@pytest.mark.parametrize(
    ("actor", "who"),
    [
        (Actor(ActorKind.RECIPIENT, "", "link", "192.0.2.7"), "recipient"),
        (Actor(ActorKind.RECIPIENT, "bob@example.org", "portal", "2001:db8::7"), "recipient:bob@example.org"),
        (Actor(ActorKind.OPERATOR, "site:root", "cli", ""), "operator:site:root"),
        (Actor(ActorKind.DIGEST), "digest"),
    ],
)
def test_an_actor_is_the_same_after_being_kept(actor: Actor, who: str) -> None:
    assert actor.who == who
    assert Actor.from_stored(who, actor.via, actor.address) == actor


def test_an_unknown_actor_is_an_error() -> None:
    with pytest.raises(ValueError, match="stranger"):
        Actor.from_stored("stranger:x", "", "")


# ---- readers


def test_only_a_mailbox_that_nobody_else_reads_is_a_persons_own() -> None:
    info = "info@example.org"
    assert Reader(ALICE).is_own(ALICE)
    assert not Reader(ALICE).is_own(BOB)
    assert Reader(ALICE, (ALICE, "sales@example.org")).is_own(ALICE)
    assert not Reader(ALICE, (ALICE, "sales@example.org")).is_own("sales@example.org")
    assert not Reader(ALICE, (ALICE,), {info: (ALICE, BOB)}).is_own(info)
    assert not Reader(info, (), {info: (info, BOB)}).is_own(info)


# ---- identities


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("Alice@Example.ORG", "alice@example.org"),
        ("a@münchen.example", "a@xn--mnchen-3ya.example"),
        ("A@MÜNCHEN.Example", "a@xn--mnchen-3ya.example"),
        ("a@mu\u0308nchen.example", "a@xn--mnchen-3ya.example"),  # decomposed
        ("a@XN--MNCHEN-3YA.example", "a@xn--mnchen-3ya.example"),
        ("a@faß.de", "a@xn--fa-hia.de"),  # IDNA 2003 and the transitional mapping have fass.de
        ("a@fass.de", "a@fass.de"),
        ("a@münchen。example", "a@xn--mnchen-3ya.example"),
        ("a@ｅｘａｍｐｌｅ．org", "a@example.org"),
        ("a@\u212aelvin.example", "a@kelvin.example"),  # KELVIN SIGN
        ("a@münchen.example.", "a@xn--mnchen-3ya.example."),
        ("JÜRGEN@bücher.example", "jürgen@xn--bcher-kva.example"),
        ("\u212a@example.org", "\u212a@example.org"),  # another mailbox than k
        ('"a@ü"@münchen.example', '"a@ü"@xn--mnchen-3ya.example'),
        # Domains that IDNA rejects are only converted to lower case.
        ("a@[192.0.2.1]", "a@[192.0.2.1]"),
        ("a@[IPv6:2001:DB8::1]", "a@[ipv6:2001:db8::1]"),
        ("a@Mail_1.example", "a@mail_1.example"),
        ("a@Mail_1.Käse.example", "a@mail_1.käse.example"),
        ("a@münchen..example", "a@münchen..example"),
        ("a@" + "Ü" * 64 + ".example", "a@" + "ü" * 64 + ".example"),
        ("a@" + "ü." * 5000 + "example", "a@" + "ü." * 5000 + "example"),
        ("a@XN--ZZZZZZZZZZZZ.com", "a@xn--zzzzzzzzzzzz.com"),
        ("a@xn--.example", "a@xn--.example"),
        ("a@xn--zzzzzzzzzzzz.münchen", "a@xn--zzzzzzzzzzzz.münchen"),
        ("a@☃.example", "a@☃.example"),
        ("a@\udcfc.example", "a@\udcfc.example"),
        ("a@ü＠b", "a@ü＠b"),
        ("München", "münchen"),  # has no domain
        ("a@", "a@"),
        ("@münchen.example", "@xn--mnchen-3ya.example"),
        ("", ""),
    ],
)
def test_an_identity_has_the_a_labels_of_its_domain(address: str, expected: str) -> None:
    assert identity(address) == expected
    if "@" in address:
        assert domain(address) == domain(expected) == expected.rpartition("@")[2]


def test_a_domain_alone_has_the_same_form() -> None:
    assert domain("München.Example") == domain("XN--MNCHEN-3YA.example") == "xn--mnchen-3ya.example"


def test_older_versions_made_identities_with_u_labels() -> None:
    assert spellings("a@xn--mnchen-3ya.example") == ("a@xn--mnchen-3ya.example", "a@münchen.example")
    assert spellings("a@xn--80ak6aa92e.com") == ("a@xn--80ak6aa92e.com", "a@аррӏе.com")  # also if it is not shown so
    assert spellings('"a@b"@xn--mnchen-3ya.example') == ('"a@b"@xn--mnchen-3ya.example', '"a@b"@münchen.example')
    assert spellings("jürgen@example.org") == ("jürgen@example.org",)
    assert spellings("a@xn--zzzzzzzzzzzz.com") == ("a@xn--zzzzzzzzzzzz.com",)


_HOSTS = st.one_of(st.text(max_size=80), st.text("aüßςΣ\u0308.。．-_@xnXN1ｅ\u00ad\u200c\u10a0Ꭰ\u212aİ", max_size=20))


@given(st.text(max_size=20), _HOSTS)
@example("A", "\u10a0.example")  # idna rejects the capital, and not its small letter
@example("A", "xn--mnchen-3ya。example")
def test_an_identity_of_an_identity_is_the_same(local: str, host: str) -> None:
    for address in (f"{local}@{host}", local, host):
        found = identity(address)
        assert identity(found) == found
        assert domain(found) == domain(address)
        assert found.isascii() or found.rpartition("@")[0] == domains.lower_case(address.rpartition("@")[0])
        assert len(shown_address(address, 40)) <= 40


def test_ascii_domains_are_not_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The conversion would run for every recipient of every message."""
    monkeypatch.setattr(idna, "encode", None)
    for address in ("Alice@Example.org", "jürgen@example.org", "a@XN--MNCHEN-3YA.example"):
        assert identity(address) == address.lower()
        assert domain(address) == address.lower().rpartition("@")[2]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("Alice@Example.org", "Alice@Example.org"),
        ("A@xn--mnchen-3ya.example", "A@münchen.example"),
        ("a@XN--MNCHEN-3YA.Example", "a@münchen.example"),
        ("xn--mnchen-3ya.example", "münchen.example"),
        ("a@xn--fa-hia.de", "a@faß.de"),
        ("a@München.example", "a@München.example"),
        ("a@xn--pxawj1b687y.gr", "a@ῥόδος.gr"),
        ("a@xn--mnchen-psa.example", "a@xn--mnchen-psa.example"),  # decodes to mÜnchen
        ("a@xn--80ak6aa92e.com", "a@xn--80ak6aa92e.com"),  # would look like apple.com
        ("a@xn--mnchen-3ya.xn--80ak6aa92e", "a@münchen.аррӏе"),  # whose own top-level domain has such letters
        ("a@xn--zzzzzzzzzzzz.com", "a@xn--zzzzzzzzzzzz.com"),
        ("a@xn--abc-.example", "a@xn--abc-.example"),
        ("a@xn--.example", "a@xn--.example"),
        ("a@mail_1.xn--mnchen-3ya.example", "a@mail_1.xn--mnchen-3ya.example"),
        ("a@xn--mgba3gch31f060k.example", "a@xn--mgba3gch31f060k.example"),  # U+200C would be lost
        ("recipient:a@xn--mnchen-3ya.example", "recipient:a@münchen.example"),
        ("operator:root", "operator:root"),
        ("a\u202e@xn--mnchen-3ya.example", "a@münchen.example"),
        ("", ""),
    ],
)
def test_an_address_is_shown_with_u_labels_that_convert_to_its_a_labels(address: str, expected: str) -> None:
    assert shown_address(address) == expected
