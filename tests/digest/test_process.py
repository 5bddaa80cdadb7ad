"""The digest process on both stores, with a real mail server: recipients, times, repetitions, and failures."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta
from datetime import time as time_of_day
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from digest import housekeeping, news, run
from digest.__main__ import main
from digest.outcomes import TRIES, Summary
from digest.stopping import Pace, Stopped
from portal.assemble import Parts
from portal.digests.compose import digest_mail
from portal.mail.relay import Relay
from portal.model.audit import AuditFilter
from portal.model.errors import StoreUnavailable
from portal.model.links import MARK_HEADER, Action
from portal.model.message import Filter, Reader, State, Symbol, Tier, identity
from portal.model.schedule import NO_PREFERENCES, Preferences
from portal.monitoring import runs
from portal.stores import LEASE
from portal.stores.records import Claims, DigestRequest, QueuedMail
from tests.builders import ALICE, BOB, BY_LINK, MALLORY, hold, now, prefer, rule, with_parts
from tests.conftest import MakeParts
from tests.contract.helpers import unavailable
from tests.paths import ROOT
from tests.smtp_server import DROP, HANG, Mail, SmtpServer, nobody_listens
from tests.terminal import on_terminal

DAY = timedelta(days=1)
REJECTED = "554 5.7.1 <host>: Client host rejected: Access denied"


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with SmtpServer() as running:
        yield running
        assert running.violations == []


@pytest.fixture
def mailing(make_parts: MakeParts, server: SmtpServer) -> Parts:
    """The parts of the portal, with `server` as the mail server for digests."""
    return make_parts(mail__url=server.url)


def tick(parts: Parts, at: datetime) -> Summary:
    """Do the work that the process does every ten seconds."""
    news.schedule_news(parts, at)
    return run.send_due(parts, at)


def tomorrow() -> datetime:
    return now() + DAY


def read(mail: Mail) -> EmailMessage:
    parsed = message_from_bytes(mail.data, policy=SMTP)
    assert isinstance(parsed, EmailMessage)
    return parsed


def text(mail: Mail) -> str:
    part = read(mail).get_body(("plain",))
    assert part is not None
    return str(part.get_content()).replace("\r\n", "\n")


def notified(server: SmtpServer) -> list[str]:
    return sorted(recipient for mail in server.mails for recipient in mail.recipients)


def environ(store_url: str, folder: Path, server_url: str, **more: str) -> dict[str, str]:
    """Return the environment of a program with this test's settings, as `make_settings` makes them."""
    config = folder / "quarantine.toml"
    config.touch()
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("QUARANTINE_")},
        "QUARANTINE_CONFIG": str(config),
        "QUARANTINE_STORE__URL": store_url,
        "QUARANTINE_LOCAL_DOMAINS": "example.org",
        "QUARANTINE_MAIL__FROM_ADDRESS": "quarantine@example.org",
        "QUARANTINE_MAIL__URL": server_url,
        "QUARANTINE_LINKS__KEYS_FILE": str(folder / "links.keys"),
        **more,
    }


Program = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def program(store_url: str, tmp_path: Path, server: SmtpServer) -> Iterator[Program]:
    """``program("once", "--dry-run", QUARANTINE_…="…")`` starts quarantine-digest as a process."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str, **more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "digest", *words],
            env=environ(store_url, tmp_path, server.url, **more),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def result_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for the process and return exit status, stdout and stderr, which must have no traceback."""
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def wait_until(reached: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline, "did not happen within 30 s"
        time.sleep(0.05)


# ---- recipients, deliveries and times


def test_each_recipient_is_notified_once_of_each_held_delivery(mailing: Parts, server: SmtpServer) -> None:
    shared = hold(mailing.store, subject="Shared offer").id
    hold(mailing.store, recipients=[BOB], subject="For Bob alone")
    summary = tick(mailing, tomorrow())
    assert sorted(summary.sent) == [(ALICE, 1), (BOB, 2)]
    by_recipient = {mail.recipients[0]: mail for mail in server.mails}
    assert all(mail.sender == "" for mail in server.mails)
    assert "For Bob alone" not in text(by_recipient[ALICE])
    assert "Shared offer" in text(by_recipient[BOB])
    assert BOB not in text(by_recipient[ALICE])
    for mail in server.mails:
        marked = mailing.links.read_mark(read(mail)[MARK_HEADER])
        assert marked is not None
        assert marked[0] == "digest"
        assert mailing.store.digests.recipient_of(marked[1]).recipient == mail.recipients[0]
        for token in re.findall(r"/link/(\S+)/", text(mail)):
            link = mailing.links.verify(token, tomorrow())
            if link.action in (Action.PREFERENCES, Action.SEVERAL, Action.FORWARDED, Action.OPEN):
                assert link.id == marked[1]
            else:
                assert mailing.store.deliveries.get(link.key).recipient == mail.recipients[0]
    assert [d.announced_at for d in mailing.store.deliveries.of_message(shared) if d.announced_at is None] == []
    assert tick(mailing, tomorrow() + DAY).sent == []
    assert server.connections == 2


def test_nobody_is_notified_before_their_hour(make_parts: MakeParts, server: SmtpServer) -> None:
    parts = make_parts(mail__url=server.url, digest__at="07:00", digest__timezone="Asia/Kathmandu")
    hold(parts.store)
    at = parts.domains.plan(ALICE, NO_PREFERENCES).next_time(now())
    assert at is not None
    tick(parts, now())
    tick(parts, at - timedelta(seconds=1))
    assert server.mails == []
    tick(parts, at + timedelta(seconds=1))
    assert notified(server) == [ALICE, BOB]


def sunday(hour: int, minute: int = 0) -> datetime:
    """Return a time of a coming Sunday in UTC, in summer or winter time."""
    later = now().replace(hour=hour, minute=minute, second=0, microsecond=0) + DAY
    return later + (6 - later.weekday()) % 7 * DAY


def test_each_recipient_has_their_own_schedule(mailing: Parts, server: SmtpServer) -> None:
    day = sunday(0)
    hold(mailing.store, recipients=[ALICE, BOB, "carol@example.org"])
    prefer(mailing.store, ALICE, Preferences("sunday", (time_of_day(11), time_of_day(17)), "Asia/Kathmandu"))
    prefer(mailing.store, BOB, Preferences("monday", (time_of_day(6),)))
    mailing.store.recipients.set_digests_stopped("carol@example.org", now())
    for person in mailing.store.recipients.unscheduled(10):  # as if all news were from that day
        at = mailing.domains.plan(person.recipient, person.preferences).next_time(day)
        assert at is not None
        mailing.store.recipients.schedule(person.recipient, at)
    seen: list[tuple[float, str]] = []
    for quarter in range(4 * 48):
        at = day + quarter * timedelta(minutes=15)
        seen += [(quarter / 4, recipient) for recipient, _ in tick(mailing, at).sent]
    assert seen == [(5.25, ALICE), (30, BOB)]
    assert notified(server) == [ALICE, BOB]


def test_the_digest_shows_the_times_of_its_reader(make_parts: MakeParts, server: SmtpServer) -> None:
    parts = make_parts(mail__url=server.url, digest__timezone="Europe/Berlin")
    hold(parts.store)
    prefer(parts.store, ALICE, Preferences(timezone="Asia/Kathmandu"))
    run.send_all(parts, now())
    zones = {mail.recipients[0]: re.findall(r"Times are in (\S+)\.", text(mail)) for mail in server.mails}
    assert zones == {ALICE: ["Asia/Kathmandu"], BOB: ["Europe/Berlin"]}
    run.resend(parts, now(), ALICE)
    assert "Times are in Asia/Kathmandu." in text(server.mails[-1])


def test_changing_the_schedule_moves_the_planned_digest(mailing: Parts, server: SmtpServer) -> None:
    hold(mailing.store, recipients=[ALICE])
    news.schedule_news(mailing, now())
    planned = mailing.store.recipients.get(ALICE).next_digest_at
    prefer(mailing.store, ALICE, Preferences(at=(time_of_day(23, 59),)))
    news.schedule_news(mailing, now())
    moved = mailing.store.recipients.get(ALICE).next_digest_at
    assert planned is not None
    assert moved is not None
    assert (moved.hour, moved.minute) == (23, 59)
    assert moved != planned


def test_recipients_without_digests_by_the_settings_are_notified_after_choosing(
    make_parts: MakeParts, server: SmtpServer, program: Program
) -> None:
    parts = make_parts(mail__url=server.url, digest__schedule="never")
    hold(parts.store)
    prefer(parts.store, BOB, Preferences("daily"))
    assert tick(parts, tomorrow() + DAY).sent == [(BOB, 1)]
    assert news.schedule_news(parts, now()) == 0, "out of the way"
    assert run.send_due(parts, tomorrow() + 3 * DAY).skipped == [(ALICE, "digest.schedule is never")]
    assert run.send_due(parts, tomorrow() + 3 * DAY).skipped == []
    status, out, _ = result_of(program("once", "--dry-run", QUARANTINE_DIGEST__SCHEDULE="never"))
    assert status == 0
    assert "digest.schedule is never" in out
    assert tick(make_parts(mail__url=server.url), tomorrow() + 5 * DAY).sent == [(ALICE, 1)]


def test_a_requested_digest_is_sent_at_the_next_tick(mailing: Parts, server: SmtpServer) -> None:
    hold(mailing.store, recipients=[ALICE], subject="First")
    at = now()
    news.schedule_news(mailing, at)
    mailing.store.digests.request(Reader(ALICE), at, at - timedelta(hours=1))
    assert tick(mailing, at).sent == [(ALICE, 1)]
    later = at + timedelta(hours=2)
    assert mailing.store.digests.request(Reader(ALICE), later, at) is DigestRequest.DUE
    assert tick(mailing, later).sent == [(ALICE, 1)]
    assert ["First" in text(mail) for mail in server.mails] == [True, True]
    assert len({read(mail)["Message-ID"] for mail in server.mails}) == 2
    assert tick(mailing, later + DAY).sent == []


@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(days=366)])
def test_a_clock_that_was_ahead_delays_nobody_and_notifies_nobody_twice(
    mailing: Parts, server: SmtpServer, ahead: timedelta
) -> None:
    hold(mailing.store, recipients=[ALICE])
    news.schedule_news(mailing, now() + ahead)
    news.find_news(mailing, now())
    at = tomorrow()
    for minutes in range(0, 48 * 60, 30):
        tick(mailing, at - DAY + timedelta(minutes=minutes))
    assert notified(server) == [ALICE]
    for step in (timedelta(hours=1), timedelta(hours=-1), ahead, -ahead):
        tick(mailing, at + DAY + step)
    assert notified(server) == [ALICE]


def test_missed_nights_become_one_digest(mailing: Parts, server: SmtpServer) -> None:
    hold(mailing.store, recipients=[ALICE])
    news.schedule_news(mailing, now())
    hold(mailing.store, recipients=[ALICE])
    assert tick(mailing, now() + 5 * DAY).sent == [(ALICE, 2)]
    assert tick(mailing, now() + 6 * DAY).sent == []
    assert len(server.mails) == 1


def test_nobody_outside_local_domains_is_mailed(make_parts: MakeParts, server: SmtpServer) -> None:
    stranger = "someone@example.com"
    wider = make_parts(mail__url=server.url, local_domains="example.org,example.com")
    hold(wider.store, recipients=[ALICE, stranger])
    news.schedule_news(wider, now())
    mailing = make_parts(mail__url=server.url)
    summary = run.send_due(mailing, tomorrow())
    assert notified(server) == [ALICE]
    assert summary.skipped == [(stranger, "not in local_domains")]
    assert tick(mailing, tomorrow()).skipped == [], "out of the way until the next day"
    assert [d.announced_at for d in mailing.store.digests.unannounced(Reader(stranger), 10)] == [None]
    assert run.send_all(mailing, tomorrow()).sent == []
    assert notified(server) == [ALICE]


def test_recipients_who_become_local_are_notified(make_parts: MakeParts, server: SmtpServer) -> None:
    hold(make_parts(mail__url=server.url).store, recipients=["zoe@example.com"], announce=[])
    wider = make_parts(mail__url=server.url, local_domains="example.org,example.com")
    assert news.find_news(wider, now()) == 1
    tick(wider, tomorrow())
    assert notified(server) == ["zoe@example.com"]


def test_recipients_who_stopped_digests_get_none_and_all_news_after_resuming(
    mailing: Parts, server: SmtpServer
) -> None:
    mailing.store.recipients.set_digests_stopped(ALICE, now())
    hold(mailing.store, recipients=[ALICE])
    tick(mailing, tomorrow())
    assert server.mails == []
    mailing.store.recipients.set_digests_stopped(ALICE, None)
    tick(mailing, tomorrow())
    assert notified(server) == [ALICE]


def test_nothing_is_sent_when_no_delivery_is_held_any_more(mailing: Parts, server: SmtpServer) -> None:
    held = hold(mailing.store, recipients=[ALICE])
    mailing.actions.delete(held.id, 0, BY_LINK)
    summary = tick(mailing, tomorrow())
    assert (summary.sent, summary.failed, server.mails) == ([], [], [])
    assert mailing.store.recipients.get(ALICE).news_since is None


def test_deliveries_that_do_not_fit_count_as_announced(make_parts: MakeParts, server: SmtpServer) -> None:
    parts = make_parts(mail__url=server.url, digest__max_rows=2)
    for name in ("one", "two", "three", "four", "five"):
        hold(parts.store, recipients=[ALICE], subject=f"Offer {name}")
    assert tick(parts, tomorrow()).sent == [(ALICE, 5)]
    assert "3 more messages are not listed here." in text(server.mails[0])
    assert tick(parts, tomorrow() + DAY).sent == []


@pytest.mark.parametrize("address", ["Alice@Example.org", '"alice, at desk"@example.org', "jürgen@example.org"])
def test_digests_go_to_the_address_as_written(mailing: Parts, server: SmtpServer, address: str) -> None:
    hold(mailing.store, recipients=[address])
    assert tick(mailing, tomorrow()).sent == [(identity(address), 1)]
    assert notified(server) == [address]
    assert ("SMTPUTF8" in server.mails[0].sender_parameters) != address.isascii()


# ---- failures


def failing(server: SmtpServer, verb: str, behaviour: str, recipient: str = "") -> None:
    """Make the server fail like this at a verb, for one recipient or for all."""
    server.script[verb] = lambda line: behaviour if recipient.encode() in line else None


@pytest.mark.parametrize(
    ("verb", "behaviour"),
    [
        ("BANNER", "421 4.3.2 not now"),
        ("BANNER", DROP),
        ("BANNER", HANG),
        ("EHLO", "451 4.3.0 trouble"),
        ("MAIL", "452 4.3.1 full"),
        ("RCPT", "450 4.2.1 busy"),
        ("DATA", "451 4.3.0 trouble"),
        ("DATA", HANG),
        ("BODY", "451 4.3.0 trouble"),
        ("BODY", DROP),
        ("BODY", HANG),
        ("BANNER", REJECTED),
        ("MAIL", REJECTED),
        ("RCPT", REJECTED),
        ("BODY", REJECTED),
        ("BODY", "554 5.7.1 spam"),
        ("RCPT", "550 5.1.1 nobody"),
    ],
)
def test_digests_that_the_mail_server_does_not_accept_are_sent_later(
    mailing: Parts, server: SmtpServer, verb: str, behaviour: str
) -> None:
    hold(mailing.store, recipients=[ALICE])
    failing(server, verb, behaviour)
    impatient = with_parts(mailing, mailer=Relay(server.url, reply_seconds=0.3))
    at = tomorrow().replace(hour=8)  # the next digest, at seven, must not be due two hours later
    summary = tick(impatient, at)
    assert [recipient for recipient, _ in summary.failed] == [ALICE]
    assert summary.sent == []
    assert [d.announced_at for d in mailing.store.digests.unannounced(Reader(ALICE), 10)] == [None]
    server.script.clear()
    assert tick(mailing, at + timedelta(seconds=1)).sent == [], "not at once"
    refused = behaviour in ("554 5.7.1 spam", "550 5.1.1 nobody")
    assert summary.refused == refused
    assert (tick(mailing, at + timedelta(hours=2)).sent == []) == refused
    assert (tick(mailing, at + DAY).sent == [(ALICE, 1)]) == refused, "a refusal waits for the next digest's turn"
    assert notified(server) == [ALICE]
    assert mailing.store.recipients.failing(10) == []


def test_one_recipients_failure_leaves_the_others(mailing: Parts, server: SmtpServer) -> None:
    people = [f"p{n}@example.org" for n in range(10)]
    hold(mailing.store, recipients=people)
    at = tomorrow()
    server.script["RCPT"] = lambda line: {
        b"2": "450 4.2.1 busy", b"3": "450 4.2.1 busy", b"4": "450 4.2.1 busy", b"5": "450 4.2.1 busy",
        b"6": "550 5.1.1 nobody", b"7": DROP,
    }.get(line.split(b"@")[0][-1:])  # fmt: skip
    summary = tick(mailing, at)
    assert sorted(recipient for recipient, _ in summary.sent) == [people[n] for n in (0, 1, 8, 9)]
    assert len(summary.failed) == 6
    assert not summary.stopped_early
    server.script.clear()
    assert sorted(r for r, _ in tick(mailing, at + 2 * LEASE).sent) == [people[n] for n in (2, 3, 4, 5, 7)]
    [failing] = mailing.store.recipients.failing(10)
    assert (failing.recipient, failing.failure) == (people[6], "RCPT TO: 550 5.1.1 nobody")
    assert [r for r, _ in tick(mailing, at + DAY).sent] == [people[6]]
    assert notified(server) == people


@pytest.mark.parametrize(
    ("verb", "behaviour", "tried"),
    [("BANNER", DROP, 3), ("BANNER", REJECTED, 3), ("MAIL", "452 4.3.1 full", 20), ("MAIL", REJECTED, 20)],
)
def test_a_mail_server_that_is_down_gets_few_connections(
    mailing: Parts, server: SmtpServer, verb: str, behaviour: str, tried: int
) -> None:
    people = [f"p{n:02}@example.org" for n in range(30)]
    hold(mailing.store, recipients=people)
    failing(server, verb, behaviour)
    at = tomorrow()
    summary = tick(mailing, at)
    assert summary.stopped_early
    connections = mailing.settings.digest.connections
    assert tried <= len(summary.failed) < tried + connections, "the connections that were open when the run gave up"
    server.script.clear()
    assert len(tick(mailing, at + timedelta(seconds=1)).sent) == 30 - len(summary.failed)
    assert len(tick(mailing, at + 2 * LEASE).sent) == len(summary.failed)
    assert notified(server) == people


def test_a_store_that_fails_after_the_mail_went_out_repeats_it_with_the_same_message_id(
    make_parts: MakeParts, server: SmtpServer
) -> None:
    first, second = make_parts(mail__url=server.url), make_parts(mail__url=server.url)
    hold(first.store, recipients=[ALICE])
    at = tomorrow()
    server.script["BODY"] = [lambda _line: first.store.close()]
    assert tick(first, at).stopped_early
    assert tick(second, at + timedelta(seconds=5)).sent == [], "the claim is still valid"
    assert tick(second, at + 2 * LEASE).sent == [(ALICE, 1)]
    assert len({read(mail)["Message-ID"] for mail in server.mails}) == 1
    assert len(server.mails) == 2


@pytest.mark.parametrize("verb", ["MAIL", "DATA", "INPUT", "BODY"])
def test_a_process_killed_while_sending_leaves_nobody_without_a_digest(
    mailing: Parts, server: SmtpServer, program: Program, verb: str
) -> None:
    people = [f"p{n}@example.org" for n in range(3)]
    hold(mailing.store, recipients=people)
    processes: list[subprocess.Popen[str]] = []

    def kill(_line: bytes) -> None:
        processes[0].kill()
        processes[0].wait()

    server.script[verb] = [None, kill]  # the second time
    processes.append(program("once", QUARANTINE_DIGEST__CONNECTIONS="1"))
    assert processes[0].wait(60) == -signal.SIGKILL
    run.send_all(mailing, now() + 2 * LEASE)
    assert sorted(set(notified(server))) == people
    ids: dict[str, set[str]] = {}
    for mail in server.mails:
        ids.setdefault(mail.recipients[0], set()).add(read(mail)["Message-ID"])
    assert all(len(same) == 1 for same in ids.values()), "repeated with the same Message-ID"
    # A mail can be sent twice only after the final dot; at INPUT it may have been sent when the process is killed.
    assert len(server.mails) in {"BODY": {4}, "INPUT": {3, 4}}.get(verb, {3})


def test_a_digest_that_may_have_arrived_lists_the_same_the_second_time(mailing: Parts, server: SmtpServer) -> None:
    at = now()
    hold(mailing.store, recipients=[ALICE])
    server.script["BODY"] = [DROP]
    assert len(run.send_all(mailing, at).failed) == 1
    behind = hold(mailing.store, recipients=[ALICE], at=at - timedelta(hours=1))  # by the clock of another host
    assert run.send_all(mailing, at + 2 * LEASE).sent == [(ALICE, 1)]
    assert [each.id for each in mailing.store.digests.unannounced(Reader(ALICE), 9)] == [behind.id]


@pytest.mark.faults
def test_processes_killed_at_any_moment_leave_nobody_without_a_digest(
    mailing: Parts, server: SmtpServer, program: Program
) -> None:
    people = [f"p{n:03}@example.org" for n in range(200)]
    held = [hold(mailing.store, recipients=people) for _ in range(3)]
    dice, at, kills = random.Random(0), now(), 0
    for _ in range(40):
        at += 2 * LEASE
        process = program("once", "--now", at.isoformat(), QUARANTINE_DIGEST__CONNECTIONS="1")
        before = len(server.mails)
        wait_until(lambda: len(server.mails) >= before + dice.randrange(8) or process.poll() is not None)
        time.sleep(dice.random() / 50)
        kills += process.poll() is None
        process.kill()
        process.communicate()
    assert run.send_all(mailing, at + 2 * LEASE).failed == []
    assert kills > 20
    assert set(notified(server)) == set(people)
    assert len(server.mails) <= len(people) + kills
    assert {d.announced_at is None for h in held for d in mailing.store.deliveries.of_message(h.id)} == {False}
    assert len({read(mail)["Message-ID"] for mail in server.mails}) == len(people)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pipelining", [pytest.param(True, id="pipelined"), pytest.param(False, id="one by one", marks=pytest.mark.system)]
)
@pytest.mark.parametrize(
    ("verb", "behaviour"),
    [
        ("INPUT", DROP),
        ("INPUT", HANG),
        *itertools.product(
            ["BANNER", "EHLO", "MAIL", "RCPT", "DATA", "BODY"],
            ["421 4.3.2 closing", DROP, HANG, "450 4.0.0 later", "gibberish"],
        ),
    ],
)
def test_no_failure_of_one_of_several_connections_loses_a_digest(
    make_parts: MakeParts, server: SmtpServer, verb: str, behaviour: str, pipelining: bool
) -> None:
    if not pipelining:
        server.extensions = ("8BITMIME", "SMTPUTF8")
    parts = make_parts(mail__url=server.url, digest__connections=3)
    people = [f"p{n:02}@example.org" for n in range(9)]
    held = hold(parts.store, recipients=people)
    server.script[verb] = [None, behaviour]  # the second time
    at = tomorrow()
    summary = tick(with_parts(parts, mailer=Relay(server.url, reply_seconds=0.5)), at)
    assert len(summary.sent) + len(summary.failed) == len(people)
    assert len(summary.failed) <= 1, "after a failure of a used connection the mail is retried once over a new one"
    announced = {d.recipient for d in parts.store.deliveries.of_message(held.id) if d.announced_at}
    assert announced == {recipient for recipient, _ in summary.sent}
    assert notified(server) == sorted(announced), "mails without a reply do not count as sent"
    assert [recipient for recipient, _ in tick(parts, at + 2 * LEASE).sent] == [
        recipient for recipient, _ in summary.failed
    ]
    assert notified(server) == people


def test_a_mailbox_that_rejects_everything_is_retried_with_backoff_and_then_at_its_next_turn(
    mailing: Parts, server: SmtpServer
) -> None:
    hold(mailing.store, recipients=[ALICE])
    failing(server, "RCPT", "452 4.2.2 full")
    start = at = tomorrow().replace(hour=7, minute=0, second=0, microsecond=0)
    tries = []
    while at < start + timedelta(hours=30):
        if tick(mailing, at).failed:
            tries.append((at - start) // timedelta(minutes=1))
        at += timedelta(minutes=1)
    pauses = [later - earlier for earlier, later in zip(tries, tries[1:], strict=False)]
    for pause, wanted in zip(pauses, (1.5, 3, 6, 12, 24), strict=False):
        assert wanted <= pause <= wanted + 2
    assert tries[TRIES - 1] < 6 * 60
    assert tries[TRIES] == 24 * 60, "at seven the next day"
    assert max(pauses[: TRIES - 1]) <= 62
    assert mailing.store.recipients.failing(1)[0].failure == "RCPT TO: 452 4.2.2 full"


def test_a_mail_server_that_rejects_the_portal_is_retried_with_backoff(mailing: Parts, server: SmtpServer) -> None:
    hold(mailing.store, recipients=[ALICE])
    failing(server, "RCPT", REJECTED)
    start = at = tomorrow().replace(hour=7, minute=0, second=0, microsecond=0)
    tries = []
    while at < start + timedelta(hours=5):
        if tick(mailing, at).failed:
            tries.append((at - start) // timedelta(minutes=1))
        at += timedelta(minutes=1)
    assert len(tries) == TRIES
    pauses = [later - earlier for earlier, later in zip(tries, tries[1:], strict=False)]
    assert pauses[0] <= 3
    assert pauses[:6] == sorted(pauses[:6])
    assert mailing.store.recipients.failing(1)[0].failure == f"RCPT TO: {REJECTED}"
    server.script.clear()
    assert tick(mailing, start + DAY).sent == [(ALICE, 1)]


def test_digests_that_cannot_be_started_within_their_lease_are_unclaimed(
    make_parts: MakeParts, server: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = make_parts(mail__url=server.url, digest__connections=1)
    hold(parts.store, recipients=[f"p{n}@example.org" for n in range(4)])
    at = tomorrow()
    news.schedule_news(parts, at)
    late = [run.LEFT_OF_LEASE, LEASE, LEASE, LEASE]
    monkeypatch.setattr(run, "LEFT_OF_LEASE", timedelta())
    real = digest_mail

    def slow(*args: Any) -> EmailMessage:
        monkeypatch.setattr(run, "LEFT_OF_LEASE", late.pop(0) if late else timedelta())
        return real(*args)

    monkeypatch.setattr(run, "digest_mail", slow)
    summary = run.send_due(parts, at, limit=4)
    assert len(summary.sent) == 1
    assert summary.failed == []
    late.clear()
    monkeypatch.setattr(run, "LEFT_OF_LEASE", timedelta())
    assert len(run.send_due(parts, at).sent) == 3, "at once, since nobody has claimed them"
    assert len(notified(server)) == 4


def test_a_run_that_is_interrupted_counts_each_digest_once(make_parts: MakeParts, server: SmtpServer) -> None:
    def interrupt(_line: bytes) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return HANG

    parts = make_parts(mail__url=server.url, digest__connections=1)
    hold(parts.store)
    news.schedule_news(parts, tomorrow())
    server.script["BODY"] = [None, interrupt]
    with pytest.raises(KeyboardInterrupt):
        run.send_due(parts, tomorrow())
    assert (len(server.mails), runs(parts.store).sent) == (1, 1)


@pytest.mark.parametrize("mails", [0, 1, 5, 9])
def test_ctrl_c_over_several_connections_loses_and_duplicates_nothing(
    make_parts: MakeParts, server: SmtpServer, mails: int
) -> None:
    parts = make_parts(mail__url=server.url, digest__connections=4)
    people = [f"p{n:02}@example.org" for n in range(20)]
    hold(parts.store, recipients=people)
    news.schedule_news(parts, tomorrow())
    server.script["BODY"] = [*[None] * mails, lambda _line: os.kill(os.getpid(), signal.SIGINT)]
    with pytest.raises(KeyboardInterrupt):
        run.send_due(parts, tomorrow())
    sent = notified(server)
    assert mails < len(sent) < len(people)
    assert [recipient for recipient in people if parts.store.digests.last(recipient)] == sent
    assert sorted(recipient for recipient, _ in run.send_due(parts, tomorrow()).sent) == sorted(
        set(people) - set(sent)
    ), "at once"
    assert notified(server) == people


@pytest.mark.parametrize("connections", [1, 4])
def test_ctrl_c_right_after_a_claim_undoes_it(
    make_parts: MakeParts, server: SmtpServer, monkeypatch: pytest.MonkeyPatch, connections: int
) -> None:
    parts = make_parts(mail__url=server.url, digest__connections=connections)
    people = [f"p{n:02}@example.org" for n in range(20)]
    hold(parts.store, recipients=people)
    news.schedule_news(parts, tomorrow())
    claim = parts.store.digests.claim

    def interrupted(*args: Any, **named: Any) -> Claims:
        claims = claim(*args, **named)
        if notified(server):
            os.kill(os.getpid(), signal.SIGINT)
        return claims

    monkeypatch.setattr(parts.store.digests, "claim", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.send_due(parts, tomorrow())
    monkeypatch.undo()
    sent = notified(server)
    assert 0 < len(sent) < len(people)
    assert sorted(recipient for recipient, _ in run.send_due(parts, tomorrow()).sent) == sorted(
        set(people) - set(sent)
    ), "at once"


def test_a_store_that_cannot_postpone_strangers_is_reported(
    parts: Parts, make_parts: MakeParts, server: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StoreUnavailable("full")

    hold(parts.store, recipients=[ALICE])
    news.schedule_news(parts, tomorrow())
    parts = make_parts(mail__url=server.url, local_domains="elsewhere.example")  # Alice is no longer local
    monkeypatch.setattr(parts.store.digests, "settle", fail)
    with pytest.raises(StoreUnavailable):
        run.send_due(parts, tomorrow())


def test_a_digest_whose_record_is_interrupted_is_still_recorded(
    make_parts: MakeParts, server: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    parts = make_parts(mail__url=server.url, digest__connections=1)
    hold(parts.store, recipients=[ALICE])
    news.schedule_news(parts, tomorrow())
    monkeypatch.setattr(parts.store.digests, "settle", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.send_due(parts, tomorrow())
    assert parts.store.digests.last(ALICE) is not None
    assert run.send_due(parts, tomorrow() + 2 * LEASE).sent == []
    assert notified(server) == [ALICE]


def test_a_store_that_fails_after_the_final_dot_makes_no_digest_go_twice(
    make_parts: MakeParts, server: SmtpServer
) -> None:
    """Also if it is back only after the claims have ended."""
    parts, outage = make_parts(mail__url=server.url, digest__connections=4), ExitStack()
    people = sorted(f"p{number}@example.org" for number in range(30))
    for each in people:
        hold(parts.store, recipients=[each])
    news.schedule_news(parts, tomorrow())
    bodies = iter(range(30))

    def fail(_line: bytes) -> None:
        if next(bodies) == 5:
            outage.enter_context(unavailable(parts.store))

    server.script["BODY"] = fail
    with suppress(StoreUnavailable):
        run.send_due(parts, tomorrow())
    assert 6 <= len(server.mails) <= 10, "nothing more is begun that might be repeated"
    outage.close()
    run.send_due(parts, tomorrow() + 2 * LEASE)
    assert sorted(notified(server)) == people
    assert all(parts.store.digests.last(each) for each in people)


@pytest.mark.parametrize("startable", [0, 1, 3])
def test_a_host_that_starts_no_more_threads_sends_over_fewer_connections(
    make_parts: MakeParts,
    server: SmtpServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    startable: int,
) -> None:
    """The limit may be RLIMIT_NPROC, a cgroup's pids.max, or memory."""
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if "Run." in getattr(thread._target, "__qualname__", ""):  # type: ignore[attr-defined]
            if len(started) == startable:
                raise RuntimeError("can't start new thread")
            started.append(thread)
        start(thread)

    parts = make_parts(mail__url=server.url, digest__connections=5)
    people = [f"p{n:02}@example.org" for n in range(12)]
    hold(parts.store, recipients=people)
    news.schedule_news(parts, tomorrow())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        summary = run.send_due(parts, tomorrow())
    assert sorted(recipient for recipient, _ in summary.sent) == people
    assert notified(server) == people
    assert len(started) == startable
    assert f"{max(startable, 1)} of 5 connections are used: can't start new thread" in caplog.text


def test_only_the_first_digest_says_what_a_digest_is(mailing: Parts, server: SmtpServer) -> None:
    hold(mailing.store, recipients=[ALICE])
    server.script["DATA"] = "451 4.3.0 try later"
    assert tick(mailing, tomorrow()).sent == []
    server.script.clear()
    assert tick(mailing, tomorrow() + timedelta(hours=1)).sent == [(ALICE, 1)]
    hold(mailing.store, recipients=[ALICE])
    assert tick(mailing, tomorrow() + 2 * DAY).sent == [(ALICE, 1)]
    assert run.resend(mailing, tomorrow() + 2 * DAY, ALICE).sent == [(ALICE, 1)]
    assert ["This is your first digest." in text(mail) for mail in server.mails] == [True, False, False]


def test_an_earlier_release_is_mentioned_for_a_single_mail_too(make_parts: MakeParts, server: SmtpServer) -> None:
    parts = make_parts(mail__url=server.url, relay__url=server.url)
    proven = (Symbol("DMARC_POLICY_ALLOW", -0.5), Symbol("BAYES_SPAM", 5.1))
    parts.actions.release(hold(parts.store, recipients=[ALICE], symbols=proven).id, 0, BY_LINK)
    hold(parts.store, recipients=[ALICE], symbols=proven)
    assert tick(parts, tomorrow()).sent == [(ALICE, 1)]
    assert "released before" in text(server.mails[-1])


def test_a_rate_is_kept_over_runs_and_connections(make_parts: MakeParts, server: SmtpServer) -> None:
    parts = make_parts(mail__url=server.url, digest__per_minute=1_200)
    hold(parts.store, recipients=[f"p{n}@example.org" for n in range(10)])
    at, pace, began = tomorrow(), Pace(1_200), time.monotonic()
    news.schedule_news(parts, at)
    for _ in range(2):
        assert len(run.send_due(parts, at, limit=5, pace=pace).sent) == 5
    assert time.monotonic() - began >= 9 * 0.05


@pytest.mark.parametrize("per_minute", [1, 2, 8])
@pytest.mark.parametrize("named", [False, True])
def test_a_slow_rate_sends_each_digest_at_its_turn(
    make_parts: MakeParts, server: SmtpServer, monkeypatch: pytest.MonkeyPatch, per_minute: int, named: bool
) -> None:
    """A digest's turn may come after its lease would have expired."""
    at, passed, turns = tomorrow(), [timedelta()], []
    monkeypatch.setattr(run, "clock", lambda _: lambda: at + passed[0])

    class FastPace(Pace):
        def wait(self, stopped: Stopped) -> None:
            with self._lock:
                turns.append(passed[0])
                passed[0] += timedelta(minutes=1) / self.per_minute

    parts = make_parts(mail__url=server.url, digest__connections=4)
    people = [f"p{n:02}@example.org" for n in range(9)]
    hold(parts.store, recipients=people)
    news.schedule_news(parts, at)
    if named:
        summary = run.send_all(parts, at, recipient=people, pace=FastPace(per_minute))
    else:
        summary = run.send_due(parts, at, pace=FastPace(per_minute))
    assert sorted(recipient for recipient, _ in summary.sent) == people
    assert (summary.failed, summary.skipped) == ([], [])
    assert notified(server) == people
    assert len(turns) <= len(people) + 4, "one for each digest, and one for each connection that finds none left"


def test_with_a_rate_a_digest_is_recorded_before_the_next_one_waits_for_its_turn(
    make_parts: MakeParts, server: SmtpServer
) -> None:
    parts = make_parts(mail__url=server.url)
    people = [ALICE, BOB]
    hold(parts.store, recipients=people)
    at, stop = tomorrow(), threading.Event()
    news.schedule_news(parts, at)
    running = threading.Thread(target=run.send_due, args=(parts, at), kwargs={"stopped": stop.is_set, "pace": Pace(1)})
    running.start()
    try:
        wait_until(lambda: len([recipient for recipient in people if parts.store.digests.last(recipient)]) == 1)
        assert len(notified(server)) == 1
    finally:
        stop.set()
        running.join()


def test_a_run_that_is_stopped_leaves_the_rest_to_others_at_once(mailing: Parts, server: SmtpServer) -> None:
    people = [f"p{n:02}@example.org" for n in range(20)]
    hold(mailing.store, recipients=people)
    at = tomorrow()
    news.schedule_news(mailing, at)
    first = run.send_due(mailing, at, stopped=lambda: bool(server.mails))
    assert 0 < len(first.sent) < 20
    assert first.failed == []
    assert len(run.send_due(mailing, at).sent) == 20 - len(first.sent)
    assert notified(server) == people


def test_a_recipient_beyond_ascii_waits_for_a_mail_server_with_smtputf8(mailing: Parts, server: SmtpServer) -> None:
    people = [ALICE, "jürgen@example.org"]
    hold(mailing.store, recipients=people)
    offered, server.extensions = server.extensions, ("8BITMIME", "PIPELINING")
    at = tomorrow()
    summary = tick(mailing, at)
    assert (notified(server), summary.refused) == ([ALICE], 1)
    [failing_one] = mailing.store.recipients.failing(10)
    assert failing_one.recipient == people[1]
    assert "the server offers no SMTPUTF8" in failing_one.failure
    server.extensions = offered
    assert [recipient for recipient, _ in tick(mailing, at + DAY).sent] == people[1:]
    assert server.mails[-1].sender_parameters.endswith("SMTPUTF8")


def test_a_mail_server_that_recovers_gets_each_waiting_digest_once(mailing: Parts, server: SmtpServer) -> None:
    people = [f"p{n:02}@example.org" for n in range(40)]
    hold(mailing.store, recipients=people)
    at = tomorrow()
    away = with_parts(mailing, mailer=Relay(nobody_listens()))
    for minute in range(3):
        assert tick(away, at + timedelta(minutes=minute)).sent == []
    assert mailing.store.recipients.failing(50) == [], "the failure is not about recipients"
    tick(mailing, at + timedelta(minutes=3))
    tick(mailing, at + timedelta(minutes=6))
    assert notified(server) == people


# ---- many at once


def test_8_threads_send_each_digest_once(mailing: Parts, server: SmtpServer) -> None:
    people = [f"p{n:02}@example.org" for n in range(24)]
    hold(mailing.store, recipients=people)
    at = tomorrow()
    news.schedule_news(mailing, at)
    summaries: list[Summary] = []
    start = threading.Barrier(8)

    def one() -> None:
        start.wait()
        summaries.append(run.send_due(mailing, at))

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(summaries) == 8
    assert [failure for summary in summaries for failure in summary.failed] == []
    assert notified(server) == people


def test_4_processes_send_each_digest_once(mailing: Parts, server: SmtpServer, program: Program) -> None:
    people = [f"p{n:02}@example.org" for n in range(24)]
    hold(mailing.store, recipients=people)
    processes = [program("once") for _ in range(4)]
    assert [result_of(process)[0] for process in processes] == [0, 0, 0, 0]
    assert notified(server) == people


# ---- the portal's own mail


def test_waiting_mail_is_sent_and_blind_mail_is_dropped(mailing: Parts, server: SmtpServer) -> None:
    mailing.store.outbox.add(QueuedMail("", b"Subject: to nobody\r\n\r\n"), now())
    mailing.store.outbox.add(QueuedMail(ALICE, "Subject: sign in\r\n\r\nü\r\n".encode()), now())
    assert housekeeping.send_queued(mailing, now()) == 1
    assert [(mail.sender, mail.recipients) for mail in server.mails] == [("", [ALICE])]
    assert mailing.store.stats(now()).mails_waiting == 0


def test_waiting_mail_outlives_a_mail_server_that_is_down(make_parts: MakeParts, server: SmtpServer) -> None:
    down = make_parts(mail__url=nobody_listens())
    for _ in range(5):
        down.store.outbox.add(QueuedMail(ALICE, b"Subject: sign in\r\n\r\n"), now())
    assert housekeeping.send_queued(down, now()) == 0
    assert down.store.stats(now()).mails_waiting == 5
    assert housekeeping.send_queued(make_parts(mail__url=server.url), now() + timedelta(minutes=1)) == 5


@pytest.mark.parametrize("verb", ["BANNER", "MAIL", "RCPT", "BODY"])
def test_waiting_mail_outlives_a_mail_server_that_rejects_the_portal(
    mailing: Parts, server: SmtpServer, verb: str
) -> None:
    for _ in range(5):
        mailing.store.outbox.add(QueuedMail(ALICE, b"Subject: sign in\r\n\r\n"), now())
    server.script[verb] = REJECTED
    assert housekeeping.send_queued(mailing, now()) == 0
    assert mailing.store.stats(now()).mails_waiting == 5
    server.script.clear()
    assert housekeeping.send_queued(mailing, now() + timedelta(minutes=1)) == 5


def test_refused_mail_is_dropped_and_the_rest_is_sent(mailing: Parts, server: SmtpServer) -> None:
    for recipient in (MALLORY, ALICE):
        mailing.store.outbox.add(QueuedMail(recipient, b"Subject: sign in\r\n\r\n"), now())
    failing(server, "RCPT", "550 5.1.1 nobody", MALLORY)
    assert housekeeping.send_queued(mailing, now()) == 1
    assert notified(server) == [ALICE]
    assert mailing.store.stats(now()).mails_waiting == 0


# ---- age


def test_daily_work_removes_what_is_past_retention(mailing: Parts) -> None:
    held = hold(mailing.store)
    for days in range(30):
        housekeeping.daily(mailing, now() + days * DAY)
    assert mailing.store.deliveries.of_message(held.id)
    mailing.store.statistics.close((now() + 31 * DAY).date())
    housekeeping.daily(mailing, now() + 31 * DAY)
    assert mailing.store.messages.find(str(held.id)) == []


def test_the_links_at_a_digests_foot_work_for_as_long_as_it_says(make_parts: MakeParts, server: SmtpServer) -> None:
    parts = make_parts(mail__url=server.url, links__lifetime_days=90)
    hold(parts.store, recipients=[ALICE])
    run.send_all(parts, now())
    assert "Its links are valid for 90 days" in text(server.mails[0]).replace("\n", " ")
    at = now() + 89 * DAY
    parts.store.purge(at - 30 * DAY, at)
    links = [parts.links.verify(token, at) for token in re.findall(r"/link/(\S+)/", text(server.mails[0]))]
    foot = [link for link in links if link.action in (Action.PREFERENCES, Action.SEVERAL, Action.FORWARDED)]
    assert [parts.store.digests.recipient_of(link.id).recipient for link in foot] == [ALICE] * 3


def test_messages_are_indexed_for_staff_also_those_of_the_past(mailing: Parts) -> None:
    store = mailing.store
    hold(store, recipients=[ALICE], at=now() - 2 * DAY)
    housekeeping.index_facets(mailing)
    assert store.facets.is_complete()
    hold(store, recipients=[ALICE], at=now() - DAY)  # as an import of another store holds it
    housekeeping.daily(mailing, now())
    housekeeping.index_facets(mailing)
    assert store.facets.count(Filter(symbols=("BAYES_SPAM",))).count == 2


def test_daily_work_removes_nothing_while_the_clock_may_be_wrong(mailing: Parts) -> None:
    held, at = hold(mailing.store), now()
    housekeeping.daily(mailing, at)
    for jumped in (366 * DAY, 366 * DAY + timedelta(hours=19), timedelta(hours=20), -366 * DAY, timedelta(hours=21)):
        housekeeping.daily(mailing, at + jumped)
        housekeeping.daily(mailing, at + jumped + timedelta(minutes=1))  # started again
    assert mailing.store.deliveries.of_message(held.id)
    for days in (40, 41):  # the process did not run for long, and then it did
        assert mailing.store.messages.find(str(held.id))
        housekeeping.daily(mailing, at + days * DAY)
    assert mailing.store.messages.find(str(held.id)) == []


# ---- the command line


def test_once_notifies_everybody_now_and_reports_it(mailing: Parts, server: SmtpServer, program: Program) -> None:
    hold(mailing.store, subject="A secret subject")
    hold(mailing.store, recipients=["someone@example.com"])
    status, out, err = result_of(program("once"))
    assert status == 0
    assert notified(server) == [ALICE, BOB]
    assert re.search(rf"{ALICE}\s+│\s+1\s+│\s+sent", out)
    assert "someone@example.com" in out
    assert "not in local_domains" in out
    assert "secret" not in out + err
    status, out, _ = result_of(program("once", "--recipient", ALICE))
    assert status == 0
    assert len(server.mails) == 2


def test_once_shows_its_progress_on_a_terminal(
    mailing: Parts, server: SmtpServer, store_url: str, tmp_path: Path
) -> None:
    hold(mailing.store, recipients=[f"p{n}@example.org" for n in range(7)])
    command = [sys.executable, "-m", "digest", "once"]
    env = environ(store_url, tmp_path, server.url)
    status, seen, out = on_terminal(command, env, 100, shown="stderr")
    assert status == 0
    assert "7 of 7 digests" in seen
    assert "of None" not in seen
    assert "digest sent" not in seen
    assert out.count(b"sent") == 7


def test_once_for_one_recipient_leaves_the_others(mailing: Parts, server: SmtpServer, program: Program) -> None:
    hold(mailing.store)
    assert result_of(program("once", "--recipient", "BOB@example.org"))[0] == 0
    assert notified(server) == [BOB]
    assert len(mailing.store.digests.unannounced(Reader(ALICE), 10)) == 1


@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--resend",)])
def test_once_for_somebody_who_is_not_local_is_a_wrong_call(
    mailing: Parts, server: SmtpServer, program: Program, more: tuple[str, ...]
) -> None:
    hold(mailing.store, recipients=["someone@example.com"])
    status, out, err = result_of(program("once", "--recipient", "Someone@example.com", *more))
    assert (status, out) == (2, "")
    assert "Someone@example.com gets no digests: local_domains has neither" in err and "Check its spelling." in err
    assert mailing.store.audit.list(AuditFilter(), 9) == [] and not server.mails


def test_a_dry_run_shows_who_would_be_notified_and_does_nothing(
    mailing: Parts, server: SmtpServer, program: Program
) -> None:
    hold(mailing.store)
    hold(mailing.store, recipients=[ALICE, "someone@example.com"])
    status, out, _ = result_of(program("once", "--dry-run"))
    assert status == 0
    assert re.search(rf"{ALICE}\s+│\s+2\s", out)
    assert re.search(rf"{BOB}\s+│\s+1\s", out)
    assert re.search(r"someone@example.com\s+│\s+0\s.*not in local_domains", out)
    assert server.connections == 0
    assert result_of(program("once", "--dry-run", "--recipient", MALLORY))[1].count("no unannounced messages") == 1
    assert sorted(run.send_all(mailing, now()).sent) == [(ALICE, 2), (BOB, 1)], "a dry run claims nothing"


def test_a_narrow_terminal_shows_whole_addresses(mailing: Parts, store_url: str, tmp_path: Path) -> None:
    long = "firstname.of.somebody.lastname@department.example.com"
    hold(mailing.store, recipients=[ALICE, long])
    command = [sys.executable, "-m", "digest", "once", "--dry-run"]
    status, seen, _ = on_terminal(command, environ(store_url, tmp_path, "smtp://127.0.0.1:1"), 80)
    assert status == 0
    cells = [line.split("\u2502")[1].strip() for line in seen.splitlines() if line.startswith("\u2502")]
    assert long in "".join(cells)


def test_resend_repeats_the_last_digest_with_fresh_links(mailing: Parts, server: SmtpServer, program: Program) -> None:
    kept, gone = hold(mailing.store, subject="Kept"), hold(mailing.store, subject="Gone")
    first_at = now()
    run.send_all(mailing, first_at, recipient=ALICE)
    mailing.actions.delete(gone.id, 0, BY_LINK)
    hold(mailing.store, subject="News since")
    later = first_at + timedelta(hours=3)
    status, out, _ = result_of(program("once", "--resend", "--recipient", ALICE, "--now", later.isoformat()))
    assert status == 0
    assert re.search(rf"{ALICE}\s+│\s+1\s+│\s+sent", out)
    first, again = server.mails
    assert read(first)["Message-ID"] != read(again)["Message-ID"], "otherwise mail programs hide it"
    seen = text(again)
    assert "Kept" in seen
    assert "Gone" not in seen
    assert "News since" not in seen
    assert "1 message listed earlier has been released or deleted." in seen
    links = [mailing.links.verify(token, later) for token in re.findall(r"/link/(\S+)/", seen)]
    assert {link.issued_at for link in links} == {later.replace(microsecond=0)}
    assert [link.id for link in links if link.action is Action.RELEASE] == [kept.id]
    preferences = next(link for link in links if link.action is Action.PREFERENCES)
    assert mailing.store.digests.recipient_of(preferences.id).recipient == ALICE
    assert len(mailing.store.digests.unannounced(Reader(ALICE), 10)) == 1, "resending announces nothing"


@pytest.mark.parametrize(("behaviour", "may_have_arrived"), [("452 4.3.1 full", False), (DROP, True)])
def test_a_digest_that_was_not_sent_again_keeps_its_date(
    mailing: Parts, server: SmtpServer, behaviour: str, may_have_arrived: bool
) -> None:
    hold(mailing.store, recipients=[ALICE])
    first, later = (now() + each * DAY for each in (1, 9))
    run.send_all(mailing, first)
    failing(server, "BODY", behaviour)
    assert [who for who, _ in run.resend(mailing, later, ALICE).failed] == [ALICE]
    issued_at = (later if may_have_arrived else first).replace(microsecond=0)
    assert mailing.store.recipients.contacts(ALICE, later)[1].digest_at == issued_at, "links in a mail are known"
    assert mailing.store.digests.issued_since(ALICE, first - DAY) == (1, issued_at)


def test_resend_says_when_there_is_nothing_to_repeat(mailing: Parts, server: SmtpServer, program: Program) -> None:
    assert "no earlier digest" in result_of(program("once", "--resend", "--recipient", ALICE))[1]
    held = hold(mailing.store, recipients=[ALICE])
    run.send_all(mailing, now())
    mailing.actions.delete(held.id, 0, BY_LINK)
    assert (
        "no message of the last digest is still held" in result_of(program("once", "--resend", "--recipient", ALICE))[1]
    )
    assert len(server.mails) == 1


def test_dangerous_mail_can_only_be_requested(mailing: Parts, server: SmtpServer) -> None:
    hold(mailing.store, recipients=[ALICE], tier=Tier.DANGEROUS)
    tick(mailing, tomorrow())
    tokens = re.findall(r"/link/(\S+)/", text(server.mails[0]))
    assert [mailing.links.verify(token, tomorrow()).action for token in tokens] == [
        Action.REQUEST,
        Action.SHOW,
        Action.OPEN,
        Action.PREFERENCES,
        Action.FORWARDED,
    ]


def test_once_fails_with_a_sentence_when_the_mail_server_is_down(mailing: Parts, program: Program) -> None:
    hold(mailing.store)
    status, out, err = result_of(program("once", QUARANTINE_MAIL__URL=nobody_listens()))
    assert status == 1
    assert out.count("failed: ") == 2
    assert "2 digests could not be sent; their messages stay unannounced." in err
    assert mailing.store.digests.unannounced(Reader(ALICE), 10)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["once", "--resend"], "Give --recipient ADDRESS with --resend"),
        (["once", "--resend", "--dry-run", "--recipient", ALICE], "Use either --resend or --dry-run"),
        (["once", "--recipient", "alice"], "is not a mail address. Enter one like name@example.org"),
        (["once", "--now", "yesterday"], "'yesterday' is not a time: use one like 2026-11-22T07:00:00+01:00"),
        (["once", "--now", "2026-11-22T07:00"], "has no offset: add Z for UTC"),
        (["once", "--now", "0001-01-01T00:00+01:00"], "is too far from the present: check the year"),
        (["once", "--now", "9999-12-31T23:59:59Z"], "is too far from the present"),
        (["once", "--recipient", "m\udcfcller@example.org"], "is not a mail address"),
    ],
)
def test_a_wrong_call_is_answered_with_a_sentence(tmp_path: Path, words: list[str], sentence: str) -> None:
    result = CliRunner().invoke(main, words, env=environ("files:unused", tmp_path, "smtp://127.0.0.1:1"))
    assert result.exit_code == 2
    assert sentence in result.stderr


def _plain(folder: Path, words: list[str], store_url: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "digest", *words],
        env={**environ(store_url, folder, "smtp://127.0.0.1:1", **more), "COLUMNS": "200"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("command", ["once", "run"])
def test_wrong_settings_stop_the_program_with_all_problems(tmp_path: Path, command: str) -> None:
    process = _plain(tmp_path, [command], "files:unused", QUARANTINE_DIGEST__AT="late", QUARANTINE_DIGEST__HOUR="7")
    assert process.returncode == 2
    assert "digest.at" in process.stderr
    assert "QUARANTINE_DIGEST__HOUR: there is no such setting" in process.stderr
    assert "Traceback" not in process.stderr


def test_once_says_when_the_store_cannot_be_reached(tmp_path: Path) -> None:
    process = _plain(tmp_path, ["once"], "postgresql://nobody:hidden@127.0.0.1:1/none")
    assert process.returncode == 1
    assert process.stderr.strip()
    assert "Traceback" not in process.stderr
    assert "hidden" not in process.stderr


# ---- the process


def test_the_process_sends_waiting_mail_within_seconds_and_stops_on_sigterm(
    mailing: Parts, server: SmtpServer, program: Program
) -> None:
    hold(mailing.store, recipients=[ALICE])
    mailing.store.recipients.schedule(ALICE, now() - timedelta(minutes=1))
    process = program("run")
    mailing.store.outbox.add(QueuedMail(BOB, b"Subject: sign in\r\n\r\n"), now())
    wait_until(lambda: notified(server) == [ALICE, BOB])
    wait_until(lambda: mailing.store.stats(now()).heartbeat_at)
    held = hold(mailing.store, recipients=[MALLORY])
    assert mailing.store.deliveries.of_message(held.id)[0].state is State.HELD
    process.send_signal(signal.SIGTERM)
    status, _, err = result_of(process)
    assert status == 0
    assert "stopped" in err
    assert "ERROR" not in err


def test_the_process_stops_within_seconds_while_a_mail_server_hangs(
    mailing: Parts, server: SmtpServer, program: Program
) -> None:
    failing(server, "DATA", HANG)
    mailing.store.outbox.add(QueuedMail(BOB, b"Subject: sign in\r\n\r\n"), now())
    process = program("run")
    wait_until(lambda: "DATA" in server.verbs)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    server.script.clear()
    assert housekeeping.send_queued(mailing, now() + 2 * LEASE) == 1, "nothing is lost"


def test_the_process_waits_for_a_store_that_is_down(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "digest", "run"],
        env=environ("postgresql://nobody:hidden@127.0.0.1:1/none", tmp_path, "smtp://127.0.0.1:1"),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    log = ""
    while "trying again in" not in log:
        line = process.stderr.readline()
        assert line, log
        log += line
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in rest
    assert "hidden" not in log + rest


def test_a_process_stopped_while_it_ends_with_an_error_prints_nothing_more(tmp_path: Path) -> None:
    """uWSGI sends SIGTERM when its workers exit with the same sentence."""
    (tmp_path / "store").write_text("in the way")
    process = subprocess.Popen(
        [sys.executable, "-m", "digest", "run"],
        env=environ(f"files://{tmp_path}/store", tmp_path, "smtp://127.0.0.1:1"),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "is in the way of a folder" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=30)
    assert process.returncode in (2, -signal.SIGTERM), "the exit status is not that of a stopped process"
    assert rest == ""


def test_the_process_writes_the_block_map_when_a_rule_changes(program: Program, parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / "block.map"
    program("run", QUARANTINE_RSPAMD__BLOCK_MAP=str(path))
    wait_until(path.exists)
    parts.store.rules.add([rule("x.example")], now())
    wait_until(lambda: f"\n{ALICE}|x.example block\n" in path.read_text())
