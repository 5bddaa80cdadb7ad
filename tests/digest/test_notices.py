"""Notices on both stores, with a real mail server: to whom, of what, when, and after failures."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from digest import news, notices, run
from digest.outcomes import Summary
from portal.assemble import Parts
from portal.model.links import Action
from portal.model.message import WAITING, Reader, Scan, ScanOutcome, Symbol, Tier
from portal.model.schedule import Preferences
from portal.monitoring import runs
from portal.policy.domains import Domains
from portal.stores import LEASE
from tests.builders import ALICE, BOB, BY_LINK, body, export, hold, mail, now, prefer
from tests.conftest import MakeParts
from tests.digest.test_process import environ, failing, mailing, notified, read, server, text
from tests.paths import ROOT
from tests.smtp_server import DROP, SmtpServer

__all__ = ["mailing", "server"]  # fixtures

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
SIGNED = (Symbol("R_DKIM_ALLOW", -0.2, ("example.net:s=s",)), Symbol("DMARC_POLICY_ALLOW", -0.5, ("example.net,none",)))


def noon() -> datetime:
    """Return the next noon: digests are due at seven, so none is due soon."""
    return now().replace(hour=12, minute=0, second=0) + DAY


def switch_on(parts: Parts, *people: str, zone: str | None = None) -> None:
    for person in people:
        prefer(parts.store, person, Preferences(timezone=zone, notices=True))


def wanted(parts: Parts, number: int = 0, to: tuple[str, ...] = (ALICE,), **values: Any) -> None:
    """Hold a message that may be wanted."""
    values = {"subject": f"Invoice {'abcdefghij'[number % 10] * (1 + number // 10)}", **values}
    values = {"header_from": "Ann <ann@example.net>", "symbols": SIGNED, "score": 15.5, **values}
    hold(parts.store, recipients=to, **values)


def tick(parts: Parts, at: datetime) -> Summary:
    """Do what the process does every ten seconds, but send no digests."""
    news.schedule_news(parts, at)
    return notices.send_notices(parts, at)


def test_a_notice_lists_what_is_probably_wanted_and_the_digest_lists_the_rest(
    mailing: Parts, server: SmtpServer
) -> None:
    at = noon()
    switch_on(mailing, ALICE)
    wanted(mailing, at=at, to=(ALICE, BOB), subject="Your order 4711")
    hold(mailing.store, recipients=[ALICE], at=at, subject="Cheap pills")
    assert tick(mailing, at + MINUTE).sent == [(ALICE, 1)]
    assert runs(mailing.store).notices == 1
    [notice] = server.mails
    subject = read(notice)["Subject"]
    assert subject == "1 held message may be wanted: example.net", "no subject of a held message"
    assert "Your order 4711" in text(notice)
    assert "Cheap pills" not in text(notice)
    assert "This notice is from" in text(notice)
    assert "digest is" not in text(notice)
    assert {link.action for link in links(mailing, notice, at)} == {
        Action.RELEASE, Action.SHOW, Action.SEVERAL, Action.OPEN, Action.PREFERENCES, Action.FORWARDED,
    }  # fmt: skip
    assert tick(mailing, at + HOUR).sent == [], "once"
    assert sorted(run.send_due(mailing, at + DAY).sent) == [(ALICE, 1), (BOB, 1)]
    digest = {mail.recipients[0]: text(mail) for mail in server.mails[1:]}
    assert "Your order 4711" not in digest[ALICE], "the notice announced it"
    assert "This is your first digest" in digest[ALICE], "a notice is no digest"
    assert "Your order 4711" in digest[BOB], "bob has no notices"


def links(parts: Parts, mail: Any, at: datetime) -> list[Any]:
    return [parts.links.verify(token, at) for token in re.findall(r"/link/(\S+)/", text(mail))]


@pytest.mark.parametrize(
    ("values", "tier"),
    [
        ({"symbols": ()}, Tier.SPAM),
        ({"header_from": "ann@example.com"}, Tier.SPAM),
        ({"symbols": (*SIGNED, Symbol("HAS_LIST_UNSUB", -0.01))}, Tier.SPAM),
        ({}, Tier.SUSPICIOUS),
        ({}, Tier.DANGEROUS),
    ],
    ids=["unproven", "another domain", "bulk", "suspicious", "dangerous"],
)
def test_no_notice_of_anything_else(mailing: Parts, server: SmtpServer, values: dict[str, Any], tier: Tier) -> None:
    at = noon()
    switch_on(mailing, ALICE)
    wanted(mailing, at=at, tier=tier, **values)
    for minutes in (1, 5, 20):
        tick(mailing, at + minutes * MINUTE)
    assert server.mails == []


def test_a_message_is_announced_once_its_virus_scan_ends(mailing: Parts, server: SmtpServer) -> None:
    at = noon()
    switch_on(mailing, ALICE)
    exported = export(recipients=(ALICE,), header_from="Ann <ann@example.net>", symbols=SIGNED)
    held = mailing.store.messages.add(exported, body(mail()), Tier.SPAM, {ALICE}, at=at, scan=WAITING)
    assert tick(mailing, at + MINUTE).sent == []
    mailing.store.messages.record_scan(held.id, Scan(ScanOutcome.CLEAN, at + MINUTE), Tier.SPAM, at + MINUTE)
    assert tick(mailing, at + 3 * MINUTE).sent == [(ALICE, 1)]


def test_only_recipients_who_chose_it_get_notices(make_parts: MakeParts, server: SmtpServer) -> None:
    """The default may be on, a recipient's own choice counts more, and stopping digests stops notices."""
    parts, at = make_parts(mail__url=server.url), noon()
    wanted(parts, at=at)
    tick(parts, at + MINUTE)
    assert server.mails == []
    parts = make_parts(mail__url=server.url, digest__notices=True)
    carol, dave = "carol@example.org", "dave@example.org"
    prefer(parts.store, BOB, Preferences(notices=False))
    parts.store.recipients.set_digests_stopped(carol, at)
    wanted(parts, 1, to=(BOB, carol, dave), at=at)
    tick(parts, at + MINUTE)
    assert notified(server) == [dave]
    switch_on(parts, carol)
    prefer(parts.store, dave, Preferences(notices=False))
    wanted(parts, 2, to=(carol, dave), at=at + HOUR)
    tick(parts, at + HOUR + MINUTE)
    assert notified(server) == [dave], "nothing after switching off"


def test_at_most_one_in_15_minutes_and_8_a_day(mailing: Parts, server: SmtpServer) -> None:
    at, sent = noon() - 3 * HOUR, []
    switch_on(mailing, ALICE)
    for minute in range(0, 300, 5):
        later = at + minute * MINUTE
        wanted(mailing, minute // 5, at=later)
        # Later each time: a notice is recorded when it was sent, and that may have taken seconds.
        if tick(mailing, later + timedelta(seconds=10 + minute)).sent:
            sent.append(minute)
    assert sent == [0, 15, 30, 45, 60, 75, 90, 105]
    assert text(server.mails[1]).count("\nShow:") == 3, "all since the one before"
    # The digest at seven lists what was left.
    assert run.send_due(mailing, at + DAY).sent == [(ALICE, 60 - 22)]


@pytest.mark.parametrize(
    ("zone", "held_at", "told_at"),
    [  # UTC; summer time ends in Berlin on 25 October 2026 and begins on 28 March 2027
        ("Europe/Berlin", "2026-10-24T19:58", "2026-10-24T19:59"),
        ("Europe/Berlin", "2026-10-24T20:01", "2026-10-25T06:00"),
        ("Europe/Berlin", "2027-03-28T00:30", "2027-03-28T05:00"),
        ("America/New_York", "2026-10-24T20:01", "2026-10-24T20:02"),
        ("Pacific/Auckland", "2026-10-24T17:00", "2026-10-24T18:00"),
    ],
)
def test_the_night_of_the_recipient_is_quiet(
    make_parts: MakeParts, server: SmtpServer, zone: str, held_at: str, told_at: str
) -> None:
    parts = make_parts(mail__url=server.url, digest__at=["15:00"])
    held, told = (datetime.fromisoformat(each).replace(tzinfo=UTC) for each in (held_at, told_at))
    switch_on(parts, ALICE, zone=zone)
    wanted(parts, at=held)
    at = held + timedelta(seconds=30)
    while at < told - MINUTE:
        wanted(parts, 1, at=at)  # further messages do not wake anybody either
        assert tick(parts, at).sent == []
        at += HOUR / 2
    assert tick(parts, told + timedelta(seconds=59)).sent[0][0] == ALICE


def test_what_the_next_digest_lists_soon_is_left_to_it(mailing: Parts, server: SmtpServer) -> None:
    seven = noon().replace(hour=7)
    prefer(mailing.store, ALICE, Preferences(at=(seven.replace(hour=12).time(),), notices=True))
    at = seven.replace(hour=11, minute=50)
    wanted(mailing, at=at)
    assert tick(mailing, at + MINUTE).sent == []
    assert run.send_due(mailing, at + 10 * MINUTE).sent == [(ALICE, 1)]
    assert tick(mailing, at + HOUR).sent == []


_SEND = """
import sys
from datetime import datetime
from digest import notices
from portal.assemble import assemble
from portal.settings import load
notices.send_notices(assemble(load()), datetime.fromisoformat(sys.argv[1]))
"""


@pytest.mark.parametrize("verb", ["DATA", "BODY"])
def test_a_process_killed_while_sending_repeats_the_notice_with_its_message_id(
    mailing: Parts, server: SmtpServer, store_url: str, tmp_path: Path, verb: str
) -> None:
    at = noon()
    switch_on(mailing, ALICE)
    wanted(mailing, at=at)
    news.schedule_news(mailing, at)
    processes: list[subprocess.Popen[bytes]] = []

    def kill(_line: bytes) -> None:
        processes[0].kill()
        processes[0].wait()

    server.script[verb] = kill
    words = [sys.executable, "-c", _SEND, (at + MINUTE).isoformat()]
    processes.append(subprocess.Popen(words, env=environ(store_url, tmp_path, server.url), cwd=ROOT))
    assert processes[0].wait(60) == -signal.SIGKILL
    server.script.clear()
    assert tick(mailing, at + 2 * MINUTE).sent == [], "claimed"
    assert run.send_all(mailing, at + 2 * MINUTE).sent == [], "and so is the digest"
    assert tick(mailing, at + 2 * MINUTE + LEASE).sent == [(ALICE, 1)]
    assert tick(mailing, at + HOUR).sent == []
    assert len(server.mails) == (2 if verb == "BODY" else 1)
    assert len({read(each)["Message-ID"] for each in server.mails}) == 1
    assert run.send_due(mailing, at + DAY).sent == []


def test_a_repeated_notice_lists_nothing_newer(mailing: Parts, server: SmtpServer) -> None:
    """Its Message-ID is the same, so mail programs may drop it."""
    at = noon()
    switch_on(mailing, ALICE)
    wanted(mailing, at=at, subject="First invoice")
    news.schedule_news(mailing, at)
    server.script["BODY"] = DROP
    tick(mailing, at + MINUTE)
    server.script.clear()
    wanted(mailing, 1, at=at + 2 * MINUTE, subject="Second invoice")
    assert tick(mailing, at + HOUR).sent == [(ALICE, 1)]
    assert "Second invoice" not in text(server.mails[-1])
    assert run.send_all(mailing, at + 2 * HOUR).sent == [(ALICE, 1)]
    assert "Second invoice" in text(server.mails[-1])


def test_one_recipient_who_cannot_be_judged_stops_no_other(
    mailing: Parts, server: SmtpServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    at = noon()
    switch_on(mailing, ALICE, BOB)
    wanted(mailing, at=at, to=(ALICE, BOB))
    plan = Domains.plan

    def failing_plan(domains: Domains, person: str, *rest: Any) -> Any:
        if person == ALICE:
            raise RuntimeError("a bug")
        return plan(domains, person, *rest)

    news.schedule_news(mailing, at)
    monkeypatch.setattr(Domains, "plan", failing_plan)
    assert notices.send_notices(mailing, at + MINUTE).sent == [(BOB, 1)]
    assert "notice failed recipient=alice@example.org" in caplog.text
    monkeypatch.undo()
    assert tick(mailing, at + 2 * MINUTE).sent == []
    assert tick(mailing, at + HOUR).sent == [(ALICE, 1)]


def test_a_digest_does_not_take_the_message_id_of_a_notice(mailing: Parts, server: SmtpServer) -> None:
    at = noon()
    switch_on(mailing, ALICE)
    wanted(mailing, at=at)
    news.schedule_news(mailing, at)
    [claim] = mailing.store.digests.claim_notices(at + MINUTE, 9, 9)  # by a process that dies
    assert run.send_all(mailing, at + 3 * MINUTE).sent == [(ALICE, 1)]
    assert tick(mailing, at + 4 * MINUTE).sent == []
    wanted(mailing, 1, at=at + HOUR)
    assert tick(mailing, at + HOUR + MINUTE).sent == [(ALICE, 1)]
    ids = {str(read(mail)["Message-ID"]) for mail in server.mails}
    assert len(ids) == 2
    # The dead process may have delivered its notice: a mailbox that drops duplicates would drop a later one.
    assert not any(claim.notice.id.hex in id.replace("-", "") for id in ids)


def test_the_links_of_a_notice_work_whose_record_was_lost(mailing: Parts, server: SmtpServer) -> None:
    at = noon()
    switch_on(mailing, ALICE)
    wanted(mailing, at=at)
    news.schedule_news(mailing, at)
    [claim] = mailing.store.digests.claim_notices(at + MINUTE, 9, 9)  # its mail was delivered, then the process died
    for delivery in claim.notice.deliveries:
        mailing.actions.delete(delivery.id, delivery.number, BY_LINK)
    assert tick(mailing, at + 3 * MINUTE).sent == []
    assert mailing.store.digests.recipient_of(claim.notice.id).recipient == ALICE


def test_a_notice_announces_only_what_it_lists(make_parts: MakeParts, server: SmtpServer) -> None:
    mailing, at = make_parts(mail__url=server.url, digest__max_rows=3), noon()
    switch_on(mailing, ALICE)
    for number in range(5):
        wanted(mailing, number, at=at)
    assert tick(mailing, at + MINUTE).sent == [(ALICE, 3)]
    assert len(mailing.store.digests.unannounced(Reader(ALICE), 9)) == 2


def test_a_notice_waits_for_scans_of_messages_that_came_with_its_own(mailing: Parts, server: SmtpServer) -> None:
    at = noon()
    switch_on(mailing, ALICE)
    wanted(mailing, at=at)
    exported = export(mail(), recipients=(ALICE,), header_from="Bea <bea@example.net>", symbols=SIGNED, score=15.5)
    scanned = mailing.store.messages.add(exported, body(mail()), Tier.SPAM, {ALICE}, at=at, scan=WAITING).id
    assert tick(mailing, at + MINUTE).sent == []
    mailing.store.messages.record_scan(scanned, Scan(ScanOutcome.CLEAN, at), Tier.SPAM, at)
    assert tick(mailing, at + 2 * MINUTE + timedelta(seconds=10)).sent == [(ALICE, 2)]


def test_mail_held_during_a_claim_is_announced_afterwards(mailing: Parts, server: SmtpServer) -> None:
    at = noon()
    switch_on(mailing, ALICE)
    hold(mailing.store, recipients=[ALICE], at=at)
    news.schedule_news(mailing, at)
    [claim] = mailing.store.digests.claim_notices(at + MINUTE, 9, 9)
    wanted(mailing, at=at + 2 * MINUTE - timedelta(seconds=40))
    mailing.store.digests.settle([replace(claim.notice, deliveries=())], [], at + 2 * MINUTE)
    assert tick(mailing, at + 3 * MINUTE).sent == [(ALICE, 1)]


def test_several_processes_send_a_notice_once(make_parts: MakeParts, server: SmtpServer) -> None:
    several = [make_parts(mail__url=server.url, digest__connections=2) for _ in range(4)]
    people, at = [f"p{n:02}@example.org" for n in range(40)], noon()
    switch_on(several[0], *people)
    wanted(several[0], to=tuple(people), at=at)
    news.schedule_news(several[0], at)
    begin = threading.Barrier(len(several))

    def send(parts: Parts) -> int:
        begin.wait()
        return len(notices.send_notices(parts, at + MINUTE).sent)

    with ThreadPoolExecutor(len(several)) as pool:
        assert sum(pool.map(send, several)) == len(people)
    assert notified(server) == people


def test_a_mail_server_that_defers_it_is_tried_again_later(mailing: Parts, server: SmtpServer) -> None:
    at = noon()
    switch_on(mailing, ALICE, BOB)
    wanted(mailing, at=at, to=(ALICE, BOB))
    failing(server, "RCPT", "452 4.2.2 full", ALICE)
    summary = tick(mailing, at + MINUTE)
    assert (summary.sent, [who for who, _ in summary.failed]) == ([(BOB, 1)], [ALICE])
    server.script.clear()
    assert tick(mailing, at + 10 * MINUTE).sent == []
    assert tick(mailing, at + 17 * MINUTE).sent == [(ALICE, 1)]
    assert mailing.store.stats(at).digests_failing == 0


def test_each_reader_of_a_role_mailbox_gets_notices_by_their_own_choice(
    make_parts: MakeParts, server: SmtpServer, tmp_path: Path
) -> None:
    aliases = tmp_path / "virtual"
    aliases.write_text(f"info@example.org {ALICE}, {BOB}\n")
    parts, at = make_parts(mail__url=server.url, people__alias_file=str(aliases)), noon()
    switch_on(parts, ALICE)
    wanted(parts, to=("info@example.org",), at=at)
    assert tick(parts, at + MINUTE).sent == [(ALICE, 1)]
    reader = parts.people.reader(ALICE)
    assert parts.store.digests.unannounced(reader, 9) == []
    assert len(parts.store.digests.unannounced(parts.people.reader(BOB), 9)) == 1, "bob was not notified"
    wanted(parts, 1, to=("info@example.org",), at=at + HOUR)
    assert tick(parts, at + HOUR + MINUTE).sent == [(ALICE, 1)]
    assert sorted(run.send_due(parts, at + DAY).sent) == [(BOB, 2)]
