"""The monthly report by mail, on both stores."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP
from typing import Any

import pytest

from digest import housekeeping
from digest.report import send_reports
from digest.statistics import count_days
from portal.assemble import Parts
from portal.model.errors import StoreUnavailable
from portal.model.schedule import Preferences
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.model.statistics import Count, Month
from portal.policy.report import Reports
from portal.stores.records import QueuedMail
from tests.builders import ALICE, BOB, BY_OPERATOR, MALLORY, prefer
from tests.conftest import MakeParts
from tests.smtp_server import DROP, SmtpServer

DAVE = "dave@example.com"
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
OCTOBER = Month(date(2026, 10, 1))
BEGIN = datetime(2026, 11, 1, tzinfo=UTC)  # of the month in which October is reported


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with SmtpServer() as running:
        yield running
        assert running.violations == []


@pytest.fixture
def parts(make_parts: MakeParts, server: SmtpServer) -> Parts:
    """The parts of a site with two domains, an administrator, and an administrator of one domain."""
    made = make_parts(mail__url=server.url, local_domains=("example.org", "example.com"))
    prepare(made)
    return made


def prepare(parts: Parts, *, is_counted: bool = True) -> None:
    for person, role, host in (
        (ALICE, Role.ADMINISTRATOR, EVERYWHERE),
        (BOB, Role.DOMAIN_ADMINISTRATOR, "example.org"),
        (DAVE, Role.HELP_DESK, EVERYWHERE),
    ):
        parts.store.staff.give(Grant(person, role, host, BEGIN, BY_OPERATOR))
    if is_counted:
        count(parts, date(2026, 8, 31), held=1)
        count(parts, date(2026, 9, 30), held=7)
        count(parts, date(2026, 10, 31), held=1100, released=11)
    for at in (BEGIN - 2 * DAY, BEGIN - DAY, BEGIN):  # the clock runs steadily
        housekeeping.clock_is_trusted(parts.store, at)


def count(parts: Parts, day: date, *, held: int, released: int = 0) -> None:
    """Close a day with these numbers, of which example.org has all but two."""
    rows = [
        Count(host, part, day.isoformat(), outcome, name, number - (2 if host and outcome == "held" else 0))
        for host in ("", "example.org")
        for part, name in (("total", ""), ("tier", "spam"), ("symbol", "FUZZY_DENIED"), ("sender", "shop.example"))
        for outcome, number in (("held", held), ("released", released))
        if number
    ]
    rows += [Count("", "delay", day.isoformat(), "released", "within an hour", released)] if released else []
    parts.store.statistics.import_records(day, rows)


def sent(parts: Parts, server: SmtpServer, at: datetime) -> list[EmailMessage]:
    """Send what is queued, and return all mails that the server has got."""
    housekeeping.send_queued(parts, at)
    mails = [message_from_bytes(mail.data, policy=SMTP) for mail in server.mails]
    return [mail for mail in mails if isinstance(mail, EmailMessage)]


def texts(mail: EmailMessage) -> tuple[str, str]:
    plain, html = (mail.get_body((kind,)) for kind in ("plain", "html"))
    assert plain is not None and html is not None
    return plain.get_content(), html.get_content()


def test_administrators_get_the_numbers_of_their_domains_once(parts: Parts, server: SmtpServer) -> None:
    assert send_reports(parts, BEGIN + 6 * HOUR) == 0, "digests are sent at seven"
    for at in (BEGIN + 7 * HOUR, BEGIN + 7 * HOUR, BEGIN + DAY, BEGIN + 9 * DAY):
        send_reports(parts, at)
    found = {mail["To"]: mail for mail in sent(parts, server, BEGIN + 8 * HOUR)}
    assert [*found] == [ALICE, BOB] and len(server.mails) == 2
    assert found[ALICE]["Subject"] == "Quarantine report for October 2026"
    assert found[BOB]["Subject"] == "Quarantine report for October 2026: example.org"
    for number, share, mail in (("1,100", "1%", found[ALICE]), ("1,098", "1%", found[BOB])):
        for text in texts(mail):
            assert number in text and share in text and "FUZZY_DENIED" in text and "shop.example" in text
    plain, html = texts(found[ALICE])
    assert "Held: 1,100 (7)" in plain and "Within an hour: 11" in plain and "example.org: 1,098 held" in plain
    assert "/admin/statistics?period=2026-10" in html and "src=" not in html
    assert "period=2026-10&amp;domain=example.org" in texts(found[BOB])[1]


@pytest.mark.parametrize(
    ("zone", "hours"), [("UTC", 7), ("Etc/GMT+12", 19), ("Pacific/Kiritimati", 1), ("America/New_York", 12)]
)
def test_it_is_sent_on_the_first_at_the_time_of_the_site_once_the_month_is_counted(
    make_parts: MakeParts, zone: str, hours: int
) -> None:
    """At UTC+14 the first of the month is seven hours old when its last day in UTC begins to be closed."""
    parts = make_parts(digest__timezone=zone)
    prepare(parts, is_counted=False)
    for day in range(45):
        if not day % 9:
            count(parts, (BEGIN - (45 - day) * DAY).date(), held=day + 1)
    parts.store.statistics.close(date(2026, 10, 30))
    assert not any(send_reports(parts, BEGIN + hour * HOUR) for hour in range(-12, hours + 2)), "a day is not counted"
    parts.store.statistics.close(date(2026, 10, 31))
    if zone != "Pacific/Kiritimati":  # there it has been the time since 17:00 UTC of the day before
        assert send_reports(parts, BEGIN + (hours - 1) * HOUR) == 0
    assert send_reports(parts, BEGIN + hours * HOUR) == 2


def test_a_process_that_is_killed_or_another_host_sends_no_second_one(
    parts: Parts, server: SmtpServer, make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = BEGIN + 8 * HOUR
    other = make_parts(mail__url=server.url, local_domains=("example.org", "example.com"))
    stops = iter((False, True))
    assert send_reports(parts, at, stopped=lambda: next(stops)) == 1
    compose = Reports.mail

    def overtaken(*args: Any) -> QueuedMail | None:
        monkeypatch.setattr(Reports, "mail", compose)
        assert send_reports(other, at) == 1
        return compose(*args)

    monkeypatch.setattr(Reports, "mail", overtaken)
    assert send_reports(parts, at) == 0, "the other host has sent the rest"
    server.script["BODY"] = [DROP]  # the mail arrived, but the connection ends before the reply
    housekeeping.send_queued(parts, at)
    assert len(server.unanswered) == 1
    ids = [str(mail["Message-ID"]) for mail in sent(parts, server, at + DAY)]
    assert len(ids) == 2 and message_from_bytes(server.unanswered[0].data)["Message-ID"] in ids, "it can be recognized"


def test_who_wants_no_report_gets_none(parts: Parts) -> None:
    prefer(parts.store, ALICE, Preferences(monthly_report=False))
    assert send_reports(parts, BEGIN + 8 * HOUR) == 1
    assert send_reports(parts, BEGIN + 9 * HOUR) == 0
    prefer(parts.store, ALICE, Preferences(monthly_report=True))
    assert send_reports(parts, BEGIN + 10 * HOUR) == 1


def test_a_new_site_a_wrong_clock_and_a_setting_send_none(make_parts: MakeParts) -> None:
    new = make_parts()
    prepare(new, is_counted=False)
    assert send_reports(new, BEGIN + 8 * HOUR) == 0
    new.store.statistics.close(date(2026, 10, 31))
    assert send_reports(new, BEGIN + 8 * HOUR) == 0, "nothing was counted"
    off = make_parts(staff__monthly_report=False)
    count(off, date(2026, 10, 30), held=1)
    assert send_reports(off, BEGIN + 8 * HOUR) == 0


@pytest.mark.parametrize(("began", "mails", "numbers"), [
    (date(2026, 10, 1), 0, ""), (date(2026, 9, 1), 2, "Held: 30"), (date(2026, 8, 31), 2, "Held: 30 (0)"),
])  # fmt: skip
def test_a_month_is_reported_and_compared_only_if_it_was_counted_from_its_beginning(
    make_parts: MakeParts, server: SmtpServer, began: date, mails: int, numbers: str
) -> None:
    """After an upgrade, counting begins with the oldest message that is kept."""
    parts = make_parts(mail__url=server.url)
    prepare(parts, is_counted=False)
    count(parts, began, held=5)
    count(parts, date(2026, 10, 31), held=30)
    assert send_reports(parts, BEGIN + 8 * HOUR) == mails
    for mail in sent(parts, server, BEGIN + 8 * HOUR)[:1]:
        plain, html = texts(mail)
        assert any(line.endswith(numbers) for line in plain.splitlines()) and "Mistakes: " in plain
        assert ("September 2026" in plain, "September 2026" in html) == ("(" in numbers, "(" in numbers)


def test_a_clock_that_is_a_year_ahead_sends_none(parts: Parts) -> None:
    ahead = BEGIN + 365 * DAY + 8 * HOUR
    count_days(parts, ahead)
    assert send_reports(parts, ahead) == 0
    count_days(parts, BEGIN)
    housekeeping.clock_is_trusted(parts.store, BEGIN)
    housekeeping.clock_is_trusted(parts.store, BEGIN + DAY)
    parts.store.statistics.close(date(2026, 11, 1))
    assert send_reports(parts, BEGIN + DAY + 8 * HOUR) == 2


def test_it_is_in_the_language_of_the_person(parts: Parts, server: SmtpServer) -> None:
    prefer(parts.store, ALICE, Preferences(language="ar"))
    send_reports(parts, BEGIN + 8 * HOUR)
    mail = next(mail for mail in sent(parts, server, BEGIN + 8 * HOUR) if mail["To"] == ALICE)
    assert 'dir="rtl"' in texts(mail)[1] and mail["Subject"] != "Quarantine report for October 2026"


def test_nothing_is_queued_while_the_store_is_unavailable(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **values: object) -> bool:
        raise StoreUnavailable("gone")

    with monkeypatch.context() as patch:
        patch.setattr(parts.store.notes, "compare_and_set", fail)
        with pytest.raises(StoreUnavailable):
            send_reports(parts, BEGIN + 8 * HOUR)
    assert send_reports(parts, BEGIN + 8 * HOUR) == 2


def test_people_without_such_a_role_get_none(parts: Parts) -> None:
    assert MALLORY not in parts.staff.administrators() and DAVE not in parts.staff.administrators()
