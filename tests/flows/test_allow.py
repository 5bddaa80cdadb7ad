"""Allow rules at Rspamd's POST, on both stores: who gets a message at once, and what happens otherwise."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest

from digest.housekeeping import scan_waiting
from portal.batches.parallel import retry_due
from portal.ingest import Ingest
from portal.model.errors import AlreadyDone, StoreUnavailable
from portal.model.message import ActorKind, Delivery, DeliveryId, Event, EventKind, Reader, ScanOutcome, State, Tier
from portal.model.rule import SITE, Rule
from portal.stores.postgres.store import PostgresStore
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, mail, rule
from tests.conftest import MakeParts
from tests.flows.test_aliases import send_digests
from tests.rspamd_server import ARCHIVE, VIRUS, RspamdServer, wait_long_for_scans
from tests.smtp_server import SmtpServer
from tests.web.test_exporter import post
from tests.web_client import Answer, Site

CAROL = "carol@example.org"
AUTHENTIC = [
    {"name": "BAYES_SPAM", "score": 5.1},
    {"name": "DMARC_POLICY_ALLOW", "score": -0.5, "options": ["example.net", "none"]},
]
FORGED = [{"name": "BAYES_SPAM", "score": 5.1}, {"name": "DMARC_POLICY_REJECT", "score": 2.0}]


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def rspamd(monkeypatch: pytest.MonkeyPatch) -> Iterator[RspamdServer]:
    wait_long_for_scans(monkeypatch)
    with RspamdServer() as server:
        yield server


@pytest.fixture
def make_site(make_parts: MakeParts, smtp: SmtpServer, rspamd: RspamdServer) -> Callable[..., Site]:
    def make(**changes: object) -> Site:
        settings = {"relay__url": smtp.url, "mail__url": smtp.url, "rspamd__url": rspamd.url}
        return Site(make_parts(**settings | changes))

    return make


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()


def add(site: Site, made: Rule) -> Rule:
    [in_use] = site.parts.rulebook.add([made])
    return in_use


def arrive(
    site: Site,
    data: bytes | None = None,
    recipients: Sequence[object] = (ALICE, BOB),
    *,
    accepts: bool = True,
    symbols: Any = AUTHENTIC,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Answer:
    """Post a message as the shipped rule does."""
    fields = {"X-Rspamd-rcpt": json.dumps(recipients), "X-Rspamd-symbols": json.dumps(symbols), **headers}
    if accepts:
        fields["X-Rspamd-Accepts-Deliver"] = "1"
    answer = post(site, data, headers=fields)
    assert answer.status == 200, answer.text
    return answer


def deliveries(site: Site, answer: Answer) -> list[Delivery]:
    return list(site.store.deliveries.of_message(UUID(answer.json["id"])))


def states(site: Site, answer: Answer) -> list[State]:
    return [delivery.state for delivery in deliveries(site, answer)]


def kinds(site: Site, answer: Answer, number: int = 0) -> list[EventKind]:
    return [event.kind for event in site.store.deliveries.history(deliveries(site, answer)[number].key)]


def work(site: Site) -> None:
    """Do the work of the digest process that is due."""
    scan_waiting(site.parts, site.now)
    retry_due(site.parts.actions)


def released_to(smtp: SmtpServer) -> list[str]:
    return sorted(recipient for mail in smtp.mails for recipient in mail.recipients)


# ---- delivered at once


def test_only_the_recipient_who_allows_the_sender_gets_it_at_once(
    site: Site, smtp: SmtpServer, rspamd: RspamdServer
) -> None:
    made, data = add(site, rule("promo@example.net", "allow")), mail()
    answer = arrive(site, data, [BOB, ALICE, CAROL])
    assert answer.json == {"status": "held", "id": answer.json["id"], "deliver": [ALICE]}
    assert states(site, answer) == [State.HELD, State.PASSED, State.HELD]
    [(_, scanned)] = rspamd.scans
    assert scanned == data
    message = deliveries(site, answer)[0].message
    assert message.scan is not None
    assert (message.scan.outcome, message.tier) == (ScanOutcome.CLEAN, Tier.SPAM)
    [_, event] = site.store.deliveries.history(deliveries(site, answer)[1].key)
    assert (event.kind, event.actor.kind, event.actor.name) == (EventKind.PASSED, ActorKind.RULE, "promo@example.net")
    assert str(made.id) in event.detail
    assert site.store.rules.get(made.id).hits == 1
    work(site)
    assert smtp.mails == []  # the mail server has it already
    send_digests(site)
    assert released_to(smtp) == [BOB, CAROL]


def test_nobody_gets_it_at_once_without_a_rule(site: Site, rspamd: RspamdServer) -> None:
    assert "deliver" not in arrive(site).json
    add(site, rule("elsewhere.example", "allow"))
    assert "deliver" not in arrive(site).json
    assert rspamd.scans == []


def test_its_page_and_the_list_name_the_rule_and_it_can_be_sent_again(site: Site, smtp: SmtpServer) -> None:
    add(site, rule("example.net", "allow"))
    answer, alice = arrive(site), site.signed_in(ALICE)
    page, listed = alice.get(f"/messages/{answer.json['id']}/").text, alice.get("/?state=released").text
    assert "Let through on" in page
    for text in (page, listed):
        assert "Let through" in text
        assert "By your rule for example.net" in text
        assert "Send again" in text
    assert "Let through by your rule for \u2068example.net\u2069." in page
    alice.post(f"/messages/{answer.json['id']}/release", {"form_token": alice.form_token()})
    assert released_to(smtp) == [ALICE]
    assert states(site, answer) == [State.RELEASED, State.HELD]


def test_an_operator_sends_it_again_only_on_request(site: Site, smtp: SmtpServer) -> None:
    add(site, rule("example.net", "allow"))
    id = UUID(arrive(site).json["id"])
    with pytest.raises(AlreadyDone):
        site.parts.actions.release(id, 0, BY_OPERATOR, operator=True)
    site.parts.actions.release(id, 0, BY_OPERATOR, operator=True, again=True)
    assert released_to(smtp) == [ALICE]


def test_allowed_blocked_and_undecided_recipients_of_one_message(site: Site) -> None:
    add(site, rule("example.net", "allow", scope="@example.org", actor=BY_OPERATOR))
    add(site, rule("example.net", "block", scope=BOB))
    answer = arrive(site, recipients=[BOB, ALICE, "dave@elsewhere.example"])
    assert answer.json["deliver"] == [ALICE]
    assert states(site, answer) == [State.BLOCKED, State.PASSED, State.HELD]


@pytest.mark.parametrize(
    ("posted", "deliver"),
    [
        (["Alice+News@Example.ORG", BOB], ["Alice+News@Example.ORG"]),
        (["alice+a@example.org", "alice+b@example.org"], ["alice+a@example.org", "alice+b@example.org"]),
        ([ALICE, "ALICE@example.org", ALICE, BOB], [ALICE, "ALICE@example.org"]),
        (["<alice@example.org>", "<bob@example.org>"], ["<alice@example.org>"]),
        ([ALICE, 'alice" , "bob@example.org'], [ALICE]),
    ],
)
def test_recipients_are_repeated_as_posted(
    make_site: Callable[..., Site], posted: list[str], deliver: list[str]
) -> None:
    site = make_site(people__recipient_delimiter="+")
    add(site, rule("example.net", "allow"))
    assert arrive(site, recipients=posted).json["deliver"] == deliver


@pytest.mark.parametrize("address", ['"quo ted"@example.org', '"a\\"b@c"@example.org', "jürgen@example.org"])
def test_unusual_addresses_are_repeated_as_posted(site: Site, address: str) -> None:
    add(site, rule("example.net", "allow", scope=address))
    assert arrive(site, recipients=[BOB, address]).json["deliver"] == [address]


@pytest.mark.parametrize("posted", [[ALICE, 7], [ALICE, None, {"a": 1}], [ALICE, "\u2028@example.org"], ["x", ALICE]])
def test_nobody_gets_a_message_at_once_whose_recipients_are_unclear(site: Site, posted: list[object]) -> None:
    add(site, rule("example.net", "allow"))
    answer = arrive(site, recipients=posted)
    assert "deliver" not in answer.json
    assert set(states(site, answer)) == {State.HELD}


# ---- retries


def test_a_retry_gets_the_same_answer_whatever_the_rules_say(site: Site) -> None:
    made, data = add(site, rule("example.net", "allow")), mail()
    first = arrive(site, data, [BOB, ALICE])
    site.parts.rulebook.remove(made.id, BY_LINK)
    for _ in range(2):
        again = arrive(site, data, [BOB, ALICE])
        assert again.json == {"status": "known", "id": first.json["id"], "deliver": [ALICE]}
    add(site, rule("example.net", "block"))
    assert arrive(site, data, [BOB, ALICE]).json["deliver"] == [ALICE]
    assert arrive(site, data, ["bob@EXAMPLE.org", "Alice@example.org"]).json["deliver"] == ["Alice@example.org"]
    assert states(site, first) == [State.HELD, State.PASSED]


def test_a_rule_made_after_the_first_try_changes_nothing(site: Site) -> None:
    data = mail()
    first = arrive(site, data)
    add(site, rule("example.net", "allow"))
    assert "deliver" not in arrive(site, data).json
    assert states(site, first) == [State.HELD, State.HELD]


@pytest.mark.parametrize("act", ["release", "delete"])
def test_a_retry_leaves_out_recipients_who_acted_since(site: Site, smtp: SmtpServer, act: str) -> None:
    add(site, rule("example.net", "allow", scope=SITE, actor=BY_OPERATOR))
    data = mail()
    first = arrive(site, data)
    assert first.json["deliver"] == [ALICE, BOB]
    getattr(site.parts.actions, act)(UUID(first.json["id"]), 0, BY_LINK)
    assert arrive(site, data).json["deliver"] == [BOB]
    assert released_to(smtp) == ([ALICE] if act == "release" else [])


@pytest.mark.parametrize("end", ["withdraw", "deny", "restore"])
def test_what_a_retry_left_out_was_not_let_through(make_site: Callable[..., Site], end: str) -> None:
    site = make_site(domains={"example.org": {"release_spam": "request"}})
    add(site, rule("example.net", "allow"))
    data, actions = mail(), site.parts.actions
    first = arrive(site, data, [ALICE])  # Rspamd did not get the answer
    id = UUID(first.json["id"])
    (actions.delete if end == "restore" else actions.request_release)(id, 0, BY_LINK)
    for _ in range(2):
        assert "deliver" not in arrive(site, data, [ALICE]).json
    assert kinds(site, first).count(EventKind.STOPPED) == 1
    if end == "deny":
        actions.refuse_request(id, 0, BY_OPERATOR, "No.")
    else:
        (actions.restore if end == "restore" else actions.withdraw_request)(id, 0, BY_LINK)
    assert states(site, first) == [State.HELD]
    assert [each.id for each in site.store.digests.unannounced(Reader(ALICE, (ALICE,)), 10)] == [id]
    assert "Let through on" not in site.signed_in(ALICE).get(f"/messages/{id}/").text


def test_a_retry_that_cannot_deliver_releases_it(site: Site, smtp: SmtpServer) -> None:
    add(site, rule("example.net", "allow"))
    data = mail()
    first = arrive(site, data)
    for _ in range(2):
        assert "deliver" not in arrive(site, data, accepts=False).json
    work(site)
    assert released_to(smtp) == [ALICE]
    assert states(site, first) == [State.RELEASED, State.HELD]
    assert "By your rule for example.net" in site.signed_in(ALICE).get(f"/messages/{first.json['id']}/").text


def test_a_retry_found_to_be_dangerous_is_held_and_announced(site: Site, smtp: SmtpServer) -> None:
    add(site, rule("example.net", "allow"))
    data = mail()
    first = arrive(site, data, [ALICE])
    again = arrive(site, data, [ALICE], symbols=[*AUTHENTIC, {"name": "CLAM_VIRUS", "score": 0}])
    assert "deliver" not in again.json
    assert states(site, first) == [State.HELD]
    assert deliveries(site, first)[0].message.tier is Tier.DANGEROUS
    assert kinds(site, first)[-1] is EventKind.STOPPED
    assert "found to be more dangerous" in site.signed_in(ALICE).get(f"/messages/{first.json['id']}/").text


def test_a_virus_that_the_scan_of_a_retry_finds_stops_it(site: Site, rspamd: RspamdServer) -> None:
    add(site, rule("example.net", "allow"))
    data = mail()
    first = arrive(site, data, [ALICE])
    rspamd.symbols = {"CLAM_VIRUS": ["Known.By.Now"]}
    assert "deliver" not in arrive(site, data, [ALICE]).json
    assert (states(site, first), deliveries(site, first)[0].message.tier) == ([State.HELD], Tier.DANGEROUS)


# ---- never at once


@pytest.mark.parametrize(
    ("symbols", "headers"),
    [
        (FORGED, {}),
        ([AUTHENTIC[0]], {}),  # SPF at most
        ([AUTHENTIC[0], {"name": "R_DKIM_ALLOW", "score": -0.2, "options": ["other.example:s=x"]}], {}),
        ([*AUTHENTIC, {"name": "CLAM_VIRUS", "score": 0}], {}),
        ([*AUTHENTIC, {"name": "MIME_ENCRYPTED_ARCHIVE", "score": 2}], {}),
        (AUTHENTIC, {"X-Rspamd-forced": "1"}),
        ([], {}),
    ],
)
@pytest.mark.parametrize("accepts", [True, False])
def test_what_an_allow_rule_cannot_let_through_is_held(
    site: Site, smtp: SmtpServer, symbols: Any, headers: dict[str, str], accepts: bool
) -> None:
    made = add(site, rule("example.net", "allow"))
    answer = arrive(site, symbols=symbols, accepts=accepts, headers=headers)
    assert "deliver" not in answer.json
    assert states(site, answer) == [State.HELD, State.HELD]
    work(site)
    assert smtp.mails == []
    assert site.store.rules.get(made.id).hits == 0


@pytest.mark.parametrize(("content", "tier"), [(VIRUS, Tier.DANGEROUS), (ARCHIVE, Tier.SUSPICIOUS)])
def test_what_the_scan_finds_is_held(
    site: Site, smtp: SmtpServer, rspamd: RspamdServer, content: bytes, tier: Tier
) -> None:
    add(site, rule("example.net", "allow"))
    answer = arrive(site, mail() + content)
    assert "deliver" not in answer.json
    assert states(site, answer) == [State.HELD, State.HELD]
    message = deliveries(site, answer)[0].message
    assert message.verdict_tier is tier
    assert message.scan is not None
    assert message.scan.outcome is ScanOutcome.FOUND
    work(site)
    assert len(rspamd.scans) == 1
    assert [m.recipients for m in smtp.mails] == []


def test_a_block_marked_by_rspamd_wins(site: Site) -> None:
    add(site, rule("example.net", "allow"))
    answer = arrive(site, symbols=[*AUTHENTIC, {"name": "PORTAL_BLOCK", "score": 0}])
    assert "deliver" not in answer.json
    assert states(site, answer) == [State.BLOCKED, State.BLOCKED]


def test_own_mail_that_came_back_is_delivered_to_nobody(site: Site, smtp: SmtpServer) -> None:
    add(site, rule("example.net", "allow"))
    answer = arrive(site, recipients=[ALICE], accepts=False)
    work(site)
    back = arrive(site, smtp.mails[0].data, [ALICE])
    assert back.json == {"status": "known", "id": answer.json["id"]}


# ---- without an answer of the scanner in time


@pytest.mark.parametrize("failure", ["hangs", "fails", "is busy"])
def test_without_a_scan_in_time_it_is_released_after_one(
    site: Site, smtp: SmtpServer, rspamd: RspamdServer, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    made = add(site, rule("example.net", "allow"))
    with monkeypatch.context() as patch:
        if failure == "hangs":
            patch.setattr("portal.ingest.POST_SECONDS", 0.1)
            rspamd.hang.clear()
        elif failure == "fails":
            rspamd.symbols = {"CLAM_VIRUS_FAIL": ["timeout"]}
        else:
            patch.setattr(threading.Semaphore, "acquire", lambda *_, **__: False)
        answer = arrive(site)
    assert "deliver" not in answer.json
    assert states(site, answer) == [State.RELEASING, State.HELD]
    assert kinds(site, answer) == [EventKind.HELD, EventKind.RELEASING]
    rspamd.hang.set()
    rspamd.symbols = None
    work(site)
    assert states(site, answer) == [State.RELEASED, State.HELD]
    assert released_to(smtp) == [ALICE]
    assert site.store.rules.get(made.id).hits == 1
    page = site.signed_in(ALICE).get(f"/messages/{answer.json['id']}/").text
    assert "By your rule for example.net" in page
    send_digests(site)
    assert released_to(smtp) == [ALICE, BOB]  # a digest for bob only


def test_a_release_by_a_rule_stops_if_the_scan_finds_something(
    site: Site, smtp: SmtpServer, rspamd: RspamdServer
) -> None:
    add(site, rule("example.net", "allow"))
    answers = [arrive(site, mail() + content, [ALICE], accepts=False) for content in (VIRUS, ARCHIVE)]
    work(site)
    assert smtp.mails == []
    for answer in answers:
        assert states(site, answer) == [State.HELD]
        assert kinds(site, answer)[-1] is EventKind.STOPPED
    assert send_digests(site).sent
    assert released_to(smtp) == [ALICE]


def test_a_release_by_a_rule_waits_some_tries_for_the_scanner(
    site: Site, smtp: SmtpServer, rspamd: RspamdServer
) -> None:
    add(site, rule("example.net", "allow"))
    rspamd.status = 500
    answer = arrive(site, recipients=[ALICE])
    for _ in range(3):
        retry_due(site.parts.actions)
        assert states(site, answer) == [State.RELEASING]
        site.now += timedelta(minutes=10)
    retry_due(site.parts.actions)
    assert states(site, answer) == [State.HELD]
    assert "could not be scanned for viruses" in site.signed_in(ALICE).get(f"/messages/{answer.json['id']}/").text
    assert smtp.mails == []
    send_digests(site)
    assert released_to(smtp) == [ALICE]


def test_a_site_that_releases_unscanned_mail_lets_no_rule_do_that(
    make_site: Callable[..., Site], smtp: SmtpServer, rspamd: RspamdServer
) -> None:
    site = make_site(rspamd__release_unscanned=True)
    add(site, rule("example.net", "allow"))
    rspamd.status = 500
    answer = arrive(site, recipients=[ALICE])
    for _ in range(5):
        retry_due(site.parts.actions)
        site.now += timedelta(minutes=10)
    assert (states(site, answer), smtp.mails) == ([State.HELD], [])


@pytest.mark.parametrize("accepts", [True, False])
def test_a_message_that_no_scanner_reads_is_held(
    make_site: Callable[..., Site], smtp: SmtpServer, accepts: bool
) -> None:
    site = make_site(rspamd__scan_max_bytes=1 << 16)
    add(site, rule("example.net", "allow"))
    answer = arrive(site, mail(size_bytes=70_000), [ALICE], accepts=accepts)
    assert "deliver" not in answer.json
    work(site)
    assert (states(site, answer), smtp.mails) == ([State.HELD], [])


@pytest.mark.parametrize("accepts", [True, False])
def test_without_a_scanner_everything_is_held(make_site: Callable[..., Site], smtp: SmtpServer, accepts: bool) -> None:
    site = make_site(rspamd__url="")
    made = add(site, rule("example.net", "allow"))
    answer = arrive(site, accepts=accepts)
    assert "deliver" not in answer.json
    assert states(site, answer) == [State.HELD, State.HELD]
    work(site)
    assert smtp.mails == []
    assert site.store.rules.get(made.id).hits == 0


@pytest.mark.parametrize("url", ["", "rspamd"])
def test_a_site_can_let_rules_act_without_scans(
    make_site: Callable[..., Site], smtp: SmtpServer, rspamd: RspamdServer, url: str
) -> None:
    site = make_site(rspamd__scan="off", rspamd__url=rspamd.url if url else "")
    add(site, rule("example.net", "allow"))
    assert arrive(site).json["deliver"] == [ALICE]
    other = arrive(site, accepts=False)
    work(site)
    assert states(site, other) == [State.RELEASED, State.HELD]
    assert (released_to(smtp), rspamd.scans) == ([ALICE], [])


# ---- over HTTP, and with a stock rule


def test_without_the_header_it_is_released_by_the_mail_server(site: Site, smtp: SmtpServer) -> None:
    made, data = add(site, rule("example.net", "allow")), mail()
    answer = arrive(site, data, accepts=False)
    assert answer.json == {"status": "held", "id": answer.json["id"]}
    assert states(site, answer) == [State.RELEASING, State.HELD]
    work(site)
    [sent] = smtp.mails
    assert sent.recipients == [ALICE]
    assert sent.data.endswith(data)
    work(site)
    arrive(site, data, accepts=False)
    work(site)
    assert (len(smtp.mails), site.store.rules.get(made.id).hits) == (1, 1)
    [event] = [e for e in site.store.deliveries.history(deliveries(site, answer)[0].key) if e.kind == "releasing"]
    assert (event.actor.kind, event.actor.via) == (ActorKind.RULE, ALICE)


@pytest.mark.parametrize("value", ["0", "", "yes", "1, 1"])
def test_only_the_documented_value_of_the_header_counts(site: Site, value: str) -> None:
    add(site, rule("example.net", "allow"))
    answer = arrive(site, accepts=False, headers={"X-Rspamd-Accepts-Deliver": value})
    assert "deliver" not in answer.json


# ---- failures of the store


def test_a_store_that_fails_while_holding_is_no_answer(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StoreUnavailable("the disk is full")

    add(site, rule("example.net", "allow"))
    data = mail()
    monkeypatch.setattr(type(site.store.messages), "_hold" if "postgres" in repr(site.store) else "add", fail)
    answer = post(site, data, headers={"X-Rspamd-symbols": json.dumps(AUTHENTIC), "X-Rspamd-Accepts-Deliver": "1"})
    assert answer.status == 503
    assert b"deliver" not in answer.body
    monkeypatch.undo()
    assert arrive(site, data).json["deliver"] == [ALICE]


def test_a_scan_that_cannot_be_recorded_leaves_it_to_the_background(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StoreUnavailable("the disk is full")

    add(site, rule("example.net", "allow"))
    with monkeypatch.context() as patch:
        patch.setattr(type(site.store.messages), "record_scan", fail)
        answer = arrive(site, mail() + VIRUS, [ALICE])
    assert "scan not recorded" in caplog.text
    assert states(site, answer) == [State.HELD]
    work(site)
    assert deliveries(site, answer)[0].message.tier is Tier.DANGEROUS


@pytest.mark.parametrize("store_url", ["postgres"], indirect=True)  # SQLite has one lock, with a time limit
def test_a_post_does_not_wait_long_for_a_locked_rule(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its hits are not counted then: Rspamd gives up after five seconds."""
    monkeypatch.setattr("portal.stores.postgres.store.INGEST_SECONDS", 0.2)
    site = make_site()
    assert isinstance(site.store, PostgresStore)
    made = add(site, rule("example.net", "allow"))
    with site.store.database.transaction() as connection:
        connection.execute("select from rule where id = %s for update", [made.id])
        release = threading.Timer(8, connection.rollback)
        release.start()
        assert arrive(site).json["deliver"] == [ALICE]
        release.cancel()
    assert "hits of rules not counted" in caplog.text
    assert site.store.rules.get(made.id).hits == 0


def test_a_virus_found_in_a_retry_that_cannot_be_recorded_is_no_answer(
    site: Site, rspamd: RspamdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StoreUnavailable("the disk is full")

    add(site, rule("example.net", "allow"))
    data = mail()
    first = arrive(site, data, [ALICE])
    rspamd.symbols = {"CLAM_VIRUS": ["Known.By.Now"]}
    headers = {
        "X-Rspamd-rcpt": json.dumps([ALICE]),
        "X-Rspamd-symbols": json.dumps(AUTHENTIC),
        "X-Rspamd-Accepts-Deliver": "1",
    }
    with monkeypatch.context() as patch:
        patch.setattr(type(site.store.messages), "record_scan", fail)
        answer = post(site, data, headers=headers)
    assert (answer.status, b"deliver" in answer.body) == (503, False)
    assert "deliver" not in arrive(site, data, [ALICE]).json
    assert states(site, first) == [State.HELD]


@pytest.mark.parametrize("act", ["delete", "restore"])
def test_a_recipient_who_acts_at_the_same_time_wins(site: Site, monkeypatch: pytest.MonkeyPatch, act: str) -> None:
    add(site, rule("example.net", "allow"))
    data, store, actions = mail(), site.store.deliveries, site.parts.actions
    first = arrive(site, data, [ALICE])
    key, last_events, meanwhile = DeliveryId(UUID(first.json["id"]), 0), store.last_events, [getattr(actions, act)]
    if act == "restore":
        actions.delete(*key, BY_LINK)

    def act_then(keys: Collection[DeliveryId]) -> Mapping[DeliveryId, Sequence[Event]]:
        found = last_events(keys)
        while meanwhile:
            meanwhile.pop()(*key, BY_LINK)
        return found

    monkeypatch.setattr(store, "last_events", act_then)
    again = arrive(site, data, [ALICE], accepts=act == "restore").json
    assert again == {"status": "known", "id": first.json["id"]} | ({"deliver": [ALICE]} if act == "restore" else {})
    assert not meanwhile and states(site, first) == [State.PASSED if act == "restore" else State.DELETED]
    assert (kinds(site, first)[-1] is EventKind.STOPPED) is (act == "delete")


def test_passed_messages_are_in_no_list_of_held_ones(site: Site) -> None:
    add(site, rule("example.net", "allow"))
    arrive(site, recipients=[ALICE])
    assert site.store.deliveries.list_for(Reader(ALICE), [State.HELD], 5).deliveries == ()
    assert "Send again" not in site.signed_in(ALICE).get("/").text


def test_posts_do_not_wait_for_each_others_scans(site: Site, rspamd: RspamdServer) -> None:
    """The place for a scan is free again after each one."""
    add(site, rule("example.net", "allow"))
    ingest: Ingest = site.browser().app._export._ingest
    for status in (500, 200):
        rspamd.status = status
        for _ in range(3):
            assert ("deliver" in arrive(site).json) is (status == 200)
    assert ingest._scans._value >= 1
