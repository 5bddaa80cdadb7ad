"""`SignIns` on every store: links, codes, rate limits and sessions."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest

from portal.model.errors import CodesSuspended, LinkInvalid
from portal.stores import Store, lifecycle
from portal.stores.records import MAILED_LINK, Method, QueuedMail, SignInLimits, StartedSession
from tests.builders import ALICE, BOB, hold, now
from tests.contract.helpers import DAY, HOUR, MINUTE, SECOND, SESSION, concurrently, sign_in, start


def who(store: Store, session_sha256: bytes, at: datetime) -> str | None:
    """Return the recipient of a session."""
    found = store.sign_ins.session(session_sha256, at)
    return found.recipient if found else None


def test_a_sign_in_is_mailed_and_used_once(store: Store) -> None:
    at = now()
    pending = sign_in(1, at)
    assert start(store, pending)
    with store.outbox.sending(at) as outgoing:
        assert outgoing
        assert (outgoing.to, outgoing.mail) == (ALICE, b"mail 1")
    assert store.sign_ins.get(pending.token_sha256, at + MINUTE) == pending
    assert store.sign_ins.get(pending.token_sha256, at + MINUTE) == pending
    assert store.sign_ins.use(pending.token_sha256, at + MINUTE) == pending
    for call in (store.sign_ins.get, store.sign_ins.use):
        with pytest.raises(LinkInvalid):
            call(pending.token_sha256, at + MINUTE)
    with pytest.raises(LinkInvalid):
        store.sign_ins.use_code(pending.browser_sha256, pending.code_sha256, at + MINUTE)


def test_an_unknown_or_expired_sign_in_is_invalid(store: Store) -> None:
    at = now()
    pending = sign_in(1, at)
    start(store, pending)
    for call in (store.sign_ins.get, store.sign_ins.use):
        with pytest.raises(LinkInvalid):
            call(b"x" * 32, at)
        with pytest.raises(LinkInvalid):
            call(pending.token_sha256, pending.expires_at + SECOND)
    with pytest.raises(LinkInvalid):
        store.sign_ins.use_code(pending.browser_sha256, pending.code_sha256, pending.expires_at + SECOND)


def test_of_20_concurrent_uses_of_a_sign_in_exactly_one_succeeds(store: Store, second: Store) -> None:
    at = now()
    pending = sign_in(1, at)
    start(store, pending)
    results = concurrently(20, lambda n: (store, second)[n % 2].sign_ins.use(pending.token_sha256, at))
    assert results.count(pending) == 1
    assert sum(isinstance(r, LinkInvalid) for r in results) == 19


def test_a_code_works_in_the_browser_that_requested_it(store: Store) -> None:
    at = now()
    pending = sign_in(1, at)
    start(store, pending)
    with pytest.raises(LinkInvalid):
        store.sign_ins.use_code(b"other browser".ljust(32), pending.code_sha256, at)
    for _ in range(4):
        with pytest.raises(LinkInvalid):
            store.sign_ins.use_code(pending.browser_sha256, b"wrong".ljust(32), at)
    assert store.sign_ins.use_code(pending.browser_sha256, pending.code_sha256, at) == pending
    with pytest.raises(LinkInvalid):
        store.sign_ins.use_code(pending.browser_sha256, pending.code_sha256, at)
    with pytest.raises(LinkInvalid):
        store.sign_ins.use(pending.token_sha256, at)


def test_the_fifth_wrong_code_invalidates_the_code_and_not_the_link(store: Store) -> None:
    at = now()
    pending = sign_in(1, at)
    start(store, pending)
    for _ in range(5):
        with pytest.raises(LinkInvalid):
            store.sign_ins.use_code(pending.browser_sha256, b"wrong".ljust(32), at)
    with pytest.raises(LinkInvalid):
        store.sign_ins.use_code(pending.browser_sha256, pending.code_sha256, at)
    assert store.sign_ins.get(pending.token_sha256, at) == pending
    assert store.sign_ins.use(pending.token_sha256, at) == pending


def test_an_earlier_code_does_not_become_valid_again_after_five_wrong_ones(store: Store) -> None:
    at = now()
    old = sign_in(1, at)
    new = sign_in(2, at + 2 * MINUTE, browser_sha256=old.browser_sha256)
    assert start(store, old) and start(store, new)
    for code in (*[b"wrong".ljust(32)] * 5, old.code_sha256, new.code_sha256):
        with pytest.raises(LinkInvalid):
            store.sign_ins.use_code(old.browser_sha256, code, at + 3 * MINUTE)


def test_wrong_codes_of_all_recipients_are_limited_and_links_still_work(
    store: Store, second: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "WRONG_CODES_OF_ALL_MAX", 12)
    at = now()
    pending = [sign_in(n, at, recipient=f"p{n}@example.org") for n in range(4)]
    assert all(start(store, each) for each in pending)
    results = concurrently(
        20, lambda n: (store, second)[n % 2].sign_ins.use_code(pending[n % 4].browser_sha256, b"w" * 32, at)
    )
    assert sum(isinstance(result, CodesSuspended) for result in results) == 8
    with pytest.raises(CodesSuspended):
        store.sign_ins.use_code(pending[0].browser_sha256, pending[0].code_sha256, at + 14 * MINUTE)
    assert store.sign_ins.use(pending[0].token_sha256, at + 14 * MINUTE) == pending[0]
    late = sign_in(9, at + 59 * MINUTE)
    assert start(store, late)
    assert store.sign_ins.use_code(late.browser_sha256, late.code_sha256, at + 61 * MINUTE) == late


def test_50_guesses_at_once_are_no_more_than_five(store: Store, second: Store) -> None:
    at = now()
    pending = sign_in(1, at)
    start(store, pending)
    concurrently(50, lambda n: (store, second)[n % 2].sign_ins.use_code(pending.browser_sha256, bytes([n]) * 32, at))
    with pytest.raises(LinkInvalid):
        store.sign_ins.use_code(pending.browser_sha256, pending.code_sha256, at)


def test_only_the_newest_code_of_a_browser_works(store: Store) -> None:
    at = now()
    old = sign_in(1, at)
    new = sign_in(2, at + 2 * MINUTE, browser_sha256=old.browser_sha256)
    assert start(store, old)
    assert start(store, new)
    with pytest.raises(LinkInvalid):
        store.sign_ins.use_code(old.browser_sha256, old.code_sha256, at + 3 * MINUTE)
    assert store.sign_ins.use_code(old.browser_sha256, new.code_sha256, at + 3 * MINUTE) == new


def test_one_sign_in_a_minute_and_two_in_ten_for_a_mailbox(store: Store) -> None:
    at = now()
    assert start(store, sign_in(0, at))
    store.sign_ins.use(sign_in(0, at).token_sha256, at)  # used ones do not count
    assert start(store, sign_in(1, at))
    refused = sign_in(2, at + 59 * SECOND)
    assert not start(store, refused)
    with pytest.raises(LinkInvalid):
        store.sign_ins.get(refused.token_sha256, refused.created_at)
    assert store.stats(at).mails_waiting == 2
    assert start(store, sign_in(3, at + 59 * SECOND, recipient=BOB))
    assert start(store, sign_in(4, at + 2 * MINUTE))
    assert not start(store, sign_in(5, at + 9 * MINUTE))
    assert start(store, sign_in(6, at + 11 * MINUTE))
    assert not start(store, sign_in(7, at + 11 * MINUTE + 30 * SECOND))


@pytest.mark.parametrize("recipient", ["alice+1@example.org", "alice+@example.org", "alice+a+b@example.org"])
@pytest.mark.parametrize("first", ["alice+x@example.org", ALICE])
def test_limits_count_a_mailbox_without_its_plus_part(store: Store, first: str, recipient: str) -> None:
    at = now()
    assert start(store, sign_in(1, at, recipient=first))
    assert not start(store, sign_in(2, at + SECOND, recipient=recipient))
    others = ("alice+x@example.net", "alicia@example.org", "+x@example.org", "+y@example.org")
    for number, other in enumerate(others, 3):
        assert start(store, sign_in(number, at + SECOND, recipient=other))


def test_requests_with_a_plus_part_do_not_use_up_the_limit_of_the_mailbox(store: Store) -> None:
    at = now()
    for number in range(20):  # a mail of these would sign in another recipient
        moment = at + number * 2 * MINUTE
        start(store, sign_in(number, moment, client_ip=f"192.0.2.{number}", recipient=f"alice+{number}@example.org"))
    assert start(store, sign_in(30, at + 40 * MINUTE, client_ip="192.0.2.99"))


def test_wrong_codes_of_decoys_do_not_suspend_codes(store: Store) -> None:
    at, limits = now(), replace(SignInLimits(), unknown_minute=1)
    for number in range(1, 240):
        foreign, local = number % 2 == 0, f"nobody{number}@example.org"
        pending = sign_in(number, at, client_ip=f"192.0.2.{number}", recipient="x@example.net" if foreign else local)
        store.sign_ins.start(pending, limits, QueuedMail("" if foreign else local, b"mail"))
        for _ in range(5):
            with pytest.raises(LinkInvalid):
                store.sign_ins.use_code(pending.browser_sha256, b"wrong", at)
    hold(store, recipients=[ALICE])
    pending = sign_in(250, at, client_ip="192.0.2.250")
    assert start(store, pending)
    assert store.sign_ins.use_code(pending.browser_sha256, pending.code_sha256, at).recipient == ALICE


def test_the_reader_of_an_alias_is_known(store: Store) -> None:
    at, limits = now(), replace(SignInLimits(), unknown_minute=0)
    hold(store, recipients=["team@example.org"])
    pending, mail = sign_in(1, at), QueuedMail(ALICE, b"mail")
    assert not store.sign_ins.start(pending, limits, mail)
    assert store.sign_ins.start(sign_in(2, at), limits, mail, ["team@example.org"])  # the decoy does not count


def test_whoever_requests_sign_ins_for_somebody_cannot_keep_them_out(store: Store) -> None:
    at, mailed = now(), []
    for number in range(240):  # every 20 seconds, always from another client
        moment = at + number * 20 * SECOND
        pending = sign_in(number, moment, client_ip=f"192.0.2.{number}")
        if start(store, pending):
            mailed.append(pending)
        usable = store.sign_ins.get(mailed[-1].token_sha256, moment)
        assert usable.expires_at >= moment + 5 * MINUTE
    assert len(mailed) <= 2 * 8


def test_requests_for_foreign_addresses_do_not_use_up_the_limits_of_ours(store: Store) -> None:
    at, limits = now(), SignInLimits(unknown_minute=5)

    def foreign(number: int, client: str) -> bool:
        pending = sign_in(number, at, recipient=f"p{number}@example.net", client_ip=client)
        return store.sign_ins.start(pending, limits, QueuedMail("", b"decoy"))

    assert [foreign(n, "192.0.2.1") for n in range(3)] == [True] * 3
    assert [foreign(n, f"192.0.2.{n}") for n in range(3, 8)] == [True, True, False, False, False]
    assert not foreign(0, "192.0.2.9")  # a repeated one is dropped, like one for ours
    assert start(store, sign_in(20, at), limits)


def test_a_wider_network_has_a_limit_of_its_own(store: Store) -> None:
    at = now()

    def several(count: int, network: str, minutes: int = 0) -> int:
        results = []
        for n in range(count):
            moment = at + minutes * MINUTE
            token = f"{network} {minutes} {n}".encode().ljust(32)
            pending = sign_in(1, moment, client_ip=network.format(n), recipient=f"p{token.hex()}@example.org")
            results.append(start(store, replace(pending, token_sha256=token)))
        return results.count(True)

    assert several(30, "2001:db8:1:ab{:02x}::/64") == 15  # a /56
    assert several(30, "2001:db8:1:{:x}00::/64") == 20 - 15  # the rest of that /48
    assert several(30, "2001:db8:{:x}:1::/64") == 29  # other /48s; one of them is the first
    assert several(30, "192.0.2.{}") == 30
    assert several(30, "192.0.2.1") == 9
    total = 20 + sum(several(15, "2001:db8:1:ab{:02x}::/64", minutes) for minutes in range(2, 50, 4))
    assert total == 90 + 5


def test_ten_sign_ins_a_minute_from_one_address(store: Store) -> None:
    at = now()
    for number in range(10):
        assert start(store, sign_in(number, at + number * SECOND, recipient=f"p{number}@example.org"))
    late = sign_in(11, at + 30 * SECOND, recipient="late@example.org")
    assert not start(store, late)
    assert start(store, replace(late, client_ip="192.0.2.2"))
    assert start(store, sign_in(12, at + 71 * SECOND, recipient="later@example.org"))


def test_an_address_is_limited_over_an_hour_for_different_recipients(store: Store) -> None:
    at, limits = now(), SignInLimits(per_ip_hour=3)
    for number in range(3):
        assert start(store, sign_in(number, at + number * 10 * MINUTE, recipient=f"p{number}@example.org"), limits)
    late = sign_in(9, at + 59 * MINUTE, recipient="late@example.org")
    assert not start(store, late, limits)
    assert start(store, replace(late, client_ip="192.0.2.2"), limits)
    assert start(store, sign_in(10, at + 61 * MINUTE, recipient="later@example.org"), limits)


def test_the_total_of_sign_ins_for_unknown_recipients_is_limited(store: Store) -> None:
    at, limits = now(), SignInLimits(unknown_minute=3)
    hold(store, recipients=[ALICE])
    results = [
        start(store, sign_in(n, at, recipient=f"p{n}@example.org", client_ip=f"192.0.2.{n}"), limits) for n in range(5)
    ]
    assert results == [True, True, True, False, False]
    assert start(store, sign_in(8, at), limits)  # it is not for those whose messages are held
    addresses: list[str] = []
    while store.stats(at).mails_waiting or not addresses:
        with store.outbox.sending(at) as outgoing:
            assert outgoing
            addresses.append(outgoing.to)
    # The mails beyond the limit are decoys: as much work, so that the answers take the same time.
    assert sorted(addresses) == ["", "", ALICE, "p0@example.org", "p1@example.org", "p2@example.org"]
    assert start(store, sign_in(9, at + 61 * SECOND, recipient="p9@example.org", client_ip="192.0.2.9"), limits)


def test_20_concurrent_requests_get_one_sign_in(store: Store, second: Store) -> None:
    at = now()
    results = concurrently(20, lambda n: start((store, second)[n % 2], sign_in(n, at, client_ip=f"192.0.2.{n}")))
    assert results.count(True) == 1
    assert results.count(False) == 19
    assert store.stats(at).mails_waiting == 1


def test_a_session_ends_after_12_hours_without_use(store: Store) -> None:
    at = now()
    assert who(store, SESSION, at) is None
    store.sign_ins.start_session(SESSION, ALICE, at)
    assert who(store, SESSION, at) == ALICE
    assert who(store, SESSION, at + 11 * HOUR) == ALICE
    assert who(store, SESSION, at + 22 * HOUR) == ALICE
    assert who(store, SESSION, at + 35 * HOUR) is None
    assert who(store, b"t" * 32, at) is None


def test_a_session_ends_after_7_days_however_used(store: Store) -> None:
    at = now()
    store.sign_ins.start_session(SESSION, ALICE, at)
    for hours in range(10, 168, 10):
        assert who(store, SESSION, at + hours * HOUR) == ALICE
    assert who(store, SESSION, at + 7 * DAY + MINUTE) is None


def test_signing_out_ends_that_session_only(store: Store) -> None:
    at = now()
    store.sign_ins.start_session(SESSION, ALICE, at)
    store.sign_ins.start_session(b"t" * 32, ALICE, at)
    store.sign_ins.end_session(SESSION)
    store.sign_ins.end_session(SESSION)
    assert who(store, SESSION, at) is None
    assert who(store, b"t" * 32, at) == ALICE


def test_a_recipient_sees_their_sessions_until_these_end(store: Store) -> None:
    at = now()
    store.sign_ins.start_session(SESSION, ALICE, at, "Firefox · Windows")
    store.sign_ins.start_session(b"t" * 32, ALICE, at + HOUR)
    store.sign_ins.start_session(b"b" * 32, BOB, at, "Safari · iPhone")
    assert who(store, SESSION, at + 2 * HOUR) == ALICE
    assert store.sign_ins.sessions(ALICE, 20, at + 3 * HOUR) == [
        StartedSession(SESSION, "Firefox · Windows", at, at + 2 * HOUR),
        StartedSession(b"t" * 32, "", at + HOUR, at + HOUR),
    ]
    assert [each.client for each in store.sign_ins.sessions(ALICE, 1, at + 3 * HOUR)] == ["Firefox · Windows"]
    assert [each.session_sha256 for each in store.sign_ins.sessions(ALICE, 20, at + 13 * HOUR + MINUTE)] == [SESSION]
    assert store.sign_ins.sessions(ALICE, 20, at + 15 * HOUR) == []
    assert store.sign_ins.sessions("nobody@example.org", 20, at) == []


def test_a_use_is_recorded_at_most_once_a_minute(store: Store) -> None:
    at = now()
    store.sign_ins.start_session(SESSION, ALICE, at)
    for seconds in (1, 30, 59):
        store.sign_ins.session(SESSION, at + seconds * SECOND)
        assert store.sign_ins.sessions(ALICE, 20, at + MINUTE)[0].used_at == at
    store.sign_ins.session(SESSION, at + MINUTE)
    assert store.sign_ins.sessions(ALICE, 20, at + MINUTE)[0].used_at == at + MINUTE


def test_a_recipients_sessions_end_at_once_on_all_hosts(store: Store, second: Store) -> None:
    at = now()
    for number in range(4):
        store.sign_ins.start_session(bytes([number]) * 32, ALICE, at)
    store.sign_ins.start_session(b"b" * 32, BOB, at)
    assert store.sign_ins.end_sessions(ALICE, bytes([2]) * 32) == 1
    assert store.sign_ins.end_sessions(ALICE, bytes([2]) * 32) == 0
    assert who(second, bytes([2]) * 32, at) is None
    assert who(second, bytes([3]) * 32, at) == ALICE
    assert store.sign_ins.end_sessions(ALICE, b"b" * 32) == 0  # another recipient's
    assert store.sign_ins.end_sessions(ALICE, but=bytes([3]) * 32) == 2
    assert who(second, bytes([3]) * 32, at) == ALICE
    assert store.sign_ins.end_sessions(ALICE) == 1
    assert [who(second, bytes([number]) * 32, at) for number in range(4)] == [None] * 4
    assert who(second, b"b" * 32, at) == BOB


def test_the_daily_purge_removes_ended_sessions(store: Store) -> None:
    at = now()
    store.sign_ins.start_session(SESSION, ALICE, at)
    store.sign_ins.start_session(b"t" * 32, ALICE, at + 6 * HOUR)
    store.purge(at - DAY, at + 13 * HOUR)
    assert [each.session_sha256 for each in store.sign_ins.sessions(ALICE, 20, at)] == [b"t" * 32]


def test_a_provider_ends_its_own_sessions_only(store: Store) -> None:
    at = now()
    later = at + HOUR
    sessions = {
        b"1" * 32: Method("oidc:company", "alice-1", "s1"),
        b"2" * 32: Method("oidc:company", "alice-1", "s2"),
        b"3" * 32: Method("oidc:other", "alice-1", "s1"),
        b"4" * 32: MAILED_LINK,
    }
    for key, method in sessions.items():
        store.sign_ins.start_session(key, ALICE, at, "Firefox", method)
        found = store.sign_ins.session(key, at)
        assert found and found.method == method
    assert {each.method for each in store.sign_ins.sessions(ALICE, 9, at)} == {m.name for m in sessions.values()}

    def left() -> list[bytes]:
        return sorted(each.session_sha256[:1] for each in store.sign_ins.sessions(ALICE, 9, at))

    assert store.sign_ins.end_sessions_of_method(Method("oidc:company", "bob-2", "s1"), later) == []
    assert store.sign_ins.end_sessions_of_method(Method("oidc:company", "alice-1"), at) == [], "it began later"
    assert store.sign_ins.end_sessions_of_method(Method("oidc:company", "", "s1"), later) == [(ALICE, 1)]
    assert left() == [b"2", b"3", b"4"]
    assert store.sign_ins.end_sessions_of_method(Method("oidc:company", "alice-1"), later) == [(ALICE, 1)]
    assert left() == [b"3", b"4"]


def test_a_form_is_kept_for_its_recipient_and_browser(store: Store, second: Store) -> None:
    at, one, other = now(), b"one".ljust(32), b"other".ljust(32)
    assert store.sign_ins.kept_form(ALICE, one, at) is None
    store.sign_ins.keep_form(ALICE, one, "first", at)
    store.sign_ins.keep_form(BOB, one, "Bob's", at)
    assert second.sign_ins.kept_form(ALICE, one, at + 59 * MINUTE) == "first"
    assert store.sign_ins.kept_form(ALICE, other, at) is None
    assert store.sign_ins.kept_form(ALICE, one, at + HOUR) is None
    store.sign_ins.forget_form(ALICE, other)
    assert store.sign_ins.kept_form(ALICE, one, at) == "first"
    store.sign_ins.keep_form(ALICE, other, "second", at)
    assert store.sign_ins.kept_form(ALICE, one, at) is None
    assert store.sign_ins.kept_form(ALICE, other, at) == "second"
    store.sign_ins.forget_form(ALICE, other)
    assert store.sign_ins.kept_form(ALICE, other, at) is None
    assert store.sign_ins.kept_form(BOB, one, at) == "Bob's"


def test_a_kept_form_is_removed_with_its_recipient_and_by_age(store: Store) -> None:
    at, browser = now(), b"one".ljust(32)
    store.sign_ins.keep_form(ALICE, browser, "form", at)
    store.recipients.forget(ALICE, at)
    assert store.sign_ins.kept_form(ALICE, browser, at) is None
    store.sign_ins.keep_form(ALICE, browser, "form", at)
    store.purge(at - DAY, at + 30 * MINUTE)
    assert store.sign_ins.kept_form(ALICE, browser, at) == "form"
    store.purge(at - DAY, at + 2 * HOUR)
    assert store.sign_ins.kept_form(ALICE, browser, at) is None
