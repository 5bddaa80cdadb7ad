"""Overdue digests as operators see them: in metrics, `check`, and one mail to the administrator."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from digest import housekeeping, news, run
from digest.outcomes import BACK_OFF_MAX
from portal.assemble import Parts
from portal.cli import checks
from portal.model.errors import StoreUnavailable
from portal.model.message import Reader
from portal.monitoring import runs, watch
from portal.stores import LEASE
from tests.builders import ALICE, BOB, hold, now
from tests.conftest import MakeParts
from tests.digest.test_process import failing, read, text, tick, tomorrow
from tests.smtp_server import SmtpServer
from tests.web_client import Answer, Site

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
POSTMASTER = "postmaster@example.net"


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with SmtpServer() as running:
        yield running
        assert running.violations == []


@pytest.fixture
def parts(make_parts: MakeParts, server: SmtpServer) -> Parts:
    return make_parts(mail__url=server.url, mail__admin_address=POSTMASTER, digest__overdue_minutes=30)


def alarms(parts: Parts, server: SmtpServer) -> list[str]:
    """Return subjects and texts of the mails that the administrator got by now."""
    housekeeping.send_queued(parts, now() + 400 * HOUR)
    return [f"{read(mail)['Subject']}\n{text(mail)}" for mail in server.mails if mail.recipients == [POSTMASTER]]


def get(site: Site, path: str) -> Answer:
    browser = site.browser()
    browser.peer = "127.0.0.1"
    return browser.get(path)


def metrics(parts: Parts) -> dict[str, float]:
    site = Site(parts)
    lines = get(site, "/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.split() for line in lines if not line.startswith("#"))}


@pytest.mark.slow
def test_an_outage_is_reported_once_and_so_is_its_end(parts: Parts, server: SmtpServer) -> None:
    hold(parts.store, recipients=[f"p{n}@example.org" for n in range(30)])
    failing(server, "BANNER", "421 4.3.2 not now")
    at = tomorrow()
    assert news.schedule_news(parts, at)
    due = parts.store.stats(at).oldest_digest_due_at
    assert due is not None
    for minutes in range(0, 180, 5):
        run.send_due(parts, due + minutes * MINUTE)
        watch(parts, due + minutes * MINUTE)
        queued = parts.store.stats(at).mails_waiting
        assert queued == (minutes > 30), f"{minutes} minutes late"
    server.script.clear()
    assert len(tick(parts, due + 4 * HOUR).sent) == 30
    for _ in range(3):
        watch(parts, due + 4 * HOUR)
    begun, over = alarms(parts, server)
    assert "digests are overdue" in begun
    assert f"30 digests are due, the oldest since {due:%Y-%m-%d %H:%M} UTC" in " ".join(begun.split())
    assert "digests are sent again" in over
    hold(parts.store, recipients=[ALICE])
    tick(parts, due + 100 * HOUR - MINUTE)
    watch(parts, due + 100 * HOUR)
    assert len(alarms(parts, server)) == 2


@pytest.mark.parametrize("reply", ["452 4.3.1 no room", "550 5.7.1 not from you"])
def test_an_outage_is_not_over_while_digests_are_put_off_to_their_next_time(
    parts: Parts, server: SmtpServer, reply: str
) -> None:
    hold(parts.store, recipients=[ALICE, BOB])
    at = tomorrow()
    news.schedule_news(parts, at)
    watch(parts, at + 2 * HOUR)
    failing(server, "MAIL", reply)
    later = at + 2 * HOUR
    while parts.store.stats(later).digests_due:
        run.send_due(parts, later)
        later += BACK_OFF_MAX + MINUTE
    watch(parts, later)
    assert parts.store.stats(at).mails_waiting == 1, "the mail about the beginning"
    server.script.clear()
    assert len(run.send_due(parts, later + 24 * HOUR).sent) == 2
    watch(parts, later + 24 * HOUR)
    assert len(alarms(parts, server)) == 2


def test_only_one_of_several_processes_reports_an_outage(make_parts: MakeParts, server: SmtpServer) -> None:
    hosts = [make_parts(mail__url=server.url, mail__admin_address=POSTMASTER) for _ in range(3)]
    hold(hosts[0].store, recipients=[ALICE])
    at = tomorrow()
    news.schedule_news(hosts[0], at)
    for host in hosts:
        watch(host, at + 2 * HOUR)
    assert len(alarms(hosts[1], server)) == 1


def test_an_outage_that_the_store_failed_to_record_is_reported_later(
    parts: Parts, server: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StoreUnavailable("full")

    def watched(at: datetime) -> None:
        with monkeypatch.context() as patch:
            for module in ("notes", "outbox"):
                patch.setattr(f"portal.stores.shared.{module}.queue", fail)
            with pytest.raises(StoreUnavailable):
                watch(parts, at)
        watch(parts, at + MINUTE)

    hold(parts.store, recipients=[ALICE])
    at = tomorrow()
    news.schedule_news(parts, at)
    watched(at + 2 * HOUR)
    assert parts.store.stats(at).mails_waiting == 1
    assert len(run.send_due(parts, at + 3 * HOUR).sent) == 1
    watched(at + 3 * HOUR)
    begun, over = alarms(parts, server)
    assert "digests are overdue" in begun
    assert "digests are sent again" in over


def test_a_single_mailbox_is_no_outage_but_a_mail_server_that_takes_nothing_is(
    parts: Parts, server: SmtpServer
) -> None:
    hold(parts.store, recipients=[ALICE, BOB])
    failing(server, "RCPT", "452 4.2.2 full", recipient=ALICE)
    at = tomorrow()
    tick(parts, at)
    watch(parts, at + 2 * HOUR)
    assert parts.store.stats(at + 2 * HOUR).digests_due == 1
    assert parts.store.stats(at).mails_waiting == 0, "Bob got his digest"
    for person in (ALICE, BOB):
        hold(parts.store, recipients=[person])
        parts.store.digests.request(Reader(person), at + 5 * HOUR, at)
    failing(server, "RCPT", "452 4.2.2 full")
    run.send_due(parts, at + 5 * HOUR)
    assert parts.store.stats(at + 6 * HOUR).oldest_untried_due_at is None
    watch(parts, at + 6 * HOUR)
    assert parts.store.stats(at).mails_waiting == 1


def test_metrics_report_the_work_of_every_process(parts: Parts, make_parts: MakeParts, server: SmtpServer) -> None:
    assert metrics(parts)["quarantine_digests_sent_total"] == 0
    people = [f"p{n}@example.org" for n in range(5)]
    hold(parts.store, recipients=people)
    server.script["RCPT"] = lambda line: {b"0": "550 5.1.1 nobody", b"1": "450 4.2.1 busy"}.get(
        line.split(b"@")[0][-1:]
    )
    at = now()
    run.send_all(parts, at, recipient=people[4])
    run.send_all(make_parts(mail__url=server.url), at)
    values = metrics(parts)
    assert [values[f"quarantine_digests_{what}_total"] for what in ("sent", "deferred", "refused")] == [3, 1, 1]
    assert values["quarantine_digest_runs_total"] == 2
    assert values["quarantine_digest_run_seconds_total"] > values["quarantine_digest_last_run_seconds"] > 0
    assert abs(values["quarantine_digest_last_sent_timestamp_seconds"] - at.timestamp()) < 60
    assert values["quarantine_digests_failing"] == 2
    assert values["quarantine_digests_overdue"] == 0


def test_web_workers_report_a_missing_digest_process(parts: Parts, server: SmtpServer) -> None:
    hold(parts.store, recipients=[ALICE])
    news.schedule_news(parts, tomorrow())
    site = Site(parts)
    parts.store.heartbeat(site.now)
    site.pass_time(minutes=25 * 60)
    assert "quarantine_digests_overdue 1.0" in get(site, "/metrics").text
    health = get(site, "/healthz").json
    assert health["digests_overdue"] is True
    assert health["digest_heartbeat_age_seconds"] == 25 * 3600


def test_check_reports_overdue_digests_and_the_reply_of_the_mail_server(parts: Parts, server: SmtpServer) -> None:
    people = [f"p{n:02}@example.org" for n in range(checks._MAX_LISTED + 2)]
    hold(parts.store, recipients=people)
    failing(server, "RCPT", "550 5.1.1 nobody here")
    yesterday = now() - 30 * HOUR
    run.send_all(parts, yesterday)
    hold(parts.store, recipients=[ALICE])
    parts.store.recipients.schedule(ALICE, yesterday)
    found = [finding for finding in checks.storage(parts.settings, parts.store) if finding.topic == "digests"]
    overdue, *listed, more = found
    assert overdue.ok is False
    assert re.match(r"overdue: \d+ due, the oldest since .* UTC; last sent never", overdue.text)
    assert len(listed) == checks._MAX_LISTED
    assert "@example.org: not accepted at " in listed[0].text
    assert listed[0].text.endswith("RCPT TO: 550 5.1.1 nobody here")
    assert more.text == "and 2 more recipients"


def test_a_run_that_cannot_be_counted_still_succeeds(
    parts: Parts, server: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StoreUnavailable("full")

    hold(parts.store, recipients=[ALICE])
    monkeypatch.setattr(parts.store.notes, "add_counters", fail)
    assert tick(parts, tomorrow()).sent == [(ALICE, 1)]
    assert runs(parts.store).count == 0
    assert tick(parts, tomorrow() + LEASE).sent == []


def test_check_names_a_hostile_address_without_control_characters(parts: Parts, server: SmtpServer) -> None:
    hold(parts.store, recipients=["al\u202eice@example.org"])
    failing(server, "RCPT", "550 5.1.1 nobody here")
    run.send_all(parts, now())
    [line] = [found.text for found in checks.storage(parts.settings, parts.store) if "not accepted" in found.text]
    assert line.startswith("alice@example.org: not accepted at ")
    assert line.isprintable()
