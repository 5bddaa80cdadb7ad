"""Digests in which nothing looks wanted, of recipients who chose to wait, on both stores, with a real mail server."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest

from digest import news, run
from digest.outcomes import Summary
from portal.assemble import Parts
from portal.model.message import WAITING, Reader, Scan, ScanOutcome, Tier
from portal.model.schedule import Preferences
from portal.stores import LEASE
from portal.stores.records import Digest, DigestRequest, Unsent
from tests.builders import ALICE, BOB, BY_LINK, body, export, hold, mail, now, prefer
from tests.conftest import MakeParts
from tests.digest.test_notices import SIGNED, wanted
from tests.digest.test_process import failing, mailing, notified, server, text, tick
from tests.smtp_server import SmtpServer

__all__ = ["mailing", "server"]  # fixtures

DAY, MINUTE, SECONDS = timedelta(days=1), timedelta(minutes=1), timedelta(seconds=12)


@pytest.fixture
def first(mailing: Parts, server: SmtpServer) -> datetime:
    """The time of Alice's first digest, at seven; she chose to wait."""
    return chosen(mailing, server)


def chosen(parts: Parts, server: SmtpServer) -> datetime:
    at = now().replace(hour=7, minute=0, second=0, microsecond=0) - 40 * DAY
    prefer(parts.store, ALICE, Preferences(timezone="UTC", only_wanted=True))
    hold(parts.store, recipients=[ALICE], at=at - DAY / 2)
    assert tick(parts, at + SECONDS).sent == [(ALICE, 1)], "the first digest waits for nothing"
    server.mails.clear()
    return at


def mornings(parts: Parts, at: datetime, days: int) -> list[Summary]:
    """Tick at seven of the days after ``at``, until one digest was sent."""
    found: list[Summary] = []
    while len(found) < days and not (found and found[-1].sent):
        found.append(tick(parts, at + DAY * (len(found) + 1)))
    return found


def test_a_digest_waits_for_mail_that_may_be_wanted(mailing: Parts, server: SmtpServer, first: datetime) -> None:
    hold(mailing.store, recipients=[ALICE, BOB], at=first + DAY / 2, subject="Cheap pills")
    [put_off] = mornings(mailing, first, 1)
    assert (put_off.sent, put_off.skipped) == ([(BOB, 1)], [(ALICE, "no message looks wanted")])
    assert not mailing.store.stats(first + DAY + MINUTE).digests_due, "nothing is overdue"
    wanted(mailing, at=first + DAY + MINUTE, subject="Your order 4711")
    assert mornings(mailing, first + DAY, 1)[0].sent == [(ALICE, 2)]
    assert "Cheap pills" in text(server.mails[1]) and "Your order 4711" in text(server.mails[1])


def test_mail_that_is_not_scanned_may_be_wanted(mailing: Parts, first: datetime) -> None:
    def add(tier: Tier, scan: Scan, at: datetime) -> None:
        data = mail()
        exported = export(data, recipients=(ALICE,), header_from="ann@example.net", symbols=SIGNED)
        mailing.store.messages.add(exported, body(data), tier, {ALICE}, at=at, scan=scan)

    add(Tier.SUSPICIOUS, WAITING, first + MINUTE)
    assert mornings(mailing, first, 1)[0].sent == [], "its verdict is suspicious"
    add(Tier.SPAM, Scan(ScanOutcome.FAILED, first + DAY), first + DAY + MINUTE)
    assert mornings(mailing, first + DAY, 1)[0].sent == [(ALICE, 2)]


def test_it_is_sent_after_a_week_although_the_last_one_was_late(
    mailing: Parts, server: SmtpServer, first: datetime
) -> None:
    for day in range(7):
        hold(mailing.store, recipients=[ALICE], at=first + DAY * day + MINUTE)
    found = mornings(mailing, first, 9)
    assert [len(each.sent) for each in found] == [0] * 6 + [1], "a week, not a week and a day"
    assert found[-1].sent == [(ALICE, 7)]
    hold(mailing.store, recipients=[ALICE], at=first + DAY * 7 + MINUTE)
    assert mornings(mailing, first + 7 * DAY, 1)[0].sent == [], "the next one waits again"


def test_nothing_is_removed_before_it_is_announced(make_parts: MakeParts, server: SmtpServer) -> None:
    parts = make_parts(mail__url=server.url, domains={"example.org": {"retention_dangerous_days": 4}})
    first = chosen(parts, server)
    hold(parts.store, recipients=[ALICE], at=first + DAY / 2)
    hold(parts.store, recipients=[ALICE], at=first + DAY / 2, tier=Tier.DANGEROUS)
    assert [len(each.sent) for each in mornings(parts, first, 9)] == [0, 0, 1], "it ends at noon of the fifth day"


def test_a_requested_digest_and_one_by_name_do_not_wait(mailing: Parts, server: SmtpServer, first: datetime) -> None:
    hold(mailing.store, recipients=[ALICE], at=first + DAY / 2)
    assert mornings(mailing, first, 1)[0].sent == []
    at = first + DAY + MINUTE
    assert mailing.store.digests.request(Reader(ALICE), at, at - DAY) is DigestRequest.DUE
    assert run.send_due(mailing, at).sent == [(ALICE, 1)]
    hold(mailing.store, recipients=[ALICE], at=at + MINUTE)
    assert mornings(mailing, first + DAY, 1)[0].sent == [], "that request was answered"
    assert run.send_all(mailing, at + DAY).sent == [(ALICE, 1)], "whatever the schedule"
    hold(mailing.store, recipients=[ALICE], at=at + DAY + MINUTE)
    prefer(mailing.store, ALICE, Preferences(timezone="UTC"))
    assert mornings(mailing, first + 2 * DAY, 1)[0].sent == [(ALICE, 1)], "she changed her mind"


def test_a_request_while_a_digest_is_put_off_is_kept(
    mailing: Parts, server: SmtpServer, first: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(mailing.store, recipients=[ALICE], at=first + DAY / 2)
    settle = mailing.store.digests.settle

    def request_first(sent: Sequence[Digest], unsent: Sequence[Unsent], at: datetime) -> bool:
        monkeypatch.undo()
        assert mailing.store.digests.request(Reader(ALICE), at, at - DAY) is DigestRequest.DUE
        return settle(sent, unsent, at)

    monkeypatch.setattr(mailing.store.digests, "settle", request_first)
    assert mornings(mailing, first, 1)[0].sent == [(ALICE, 1)], "it is claimed again at once"


def test_a_failed_digest_that_is_put_off_fails_no_more(mailing: Parts, server: SmtpServer, first: datetime) -> None:
    hold(mailing.store, recipients=[ALICE], at=first + DAY / 2)
    held = hold(mailing.store, recipients=[ALICE], at=first + DAY / 2, header_from="ann@example.net", symbols=SIGNED)
    failing(server, "RCPT", "450 4.2.2 mailbox full")
    assert [who for who, _ in mornings(mailing, first, 1)[0].failed] == [ALICE]
    assert len(mailing.store.recipients.failing(9)) == 1
    server.script.clear()
    mailing.actions.delete(held.id, 0, BY_LINK)
    assert tick(mailing, first + DAY + 30 * MINUTE).skipped == [(ALICE, "no message looks wanted")]
    assert mailing.store.recipients.failing(9) == []


def test_a_claim_of_a_process_that_died_is_put_off_and_loses_nothing(
    mailing: Parts, server: SmtpServer, first: datetime
) -> None:
    hold(mailing.store, recipients=[ALICE], at=first + DAY / 2)
    at = first + DAY
    news.schedule_news(mailing, at)
    [lost] = mailing.store.digests.claim(at, 1, 9).digests
    wanted(mailing, at=at + MINUTE)
    assert tick(mailing, at + MINUTE).sent == [], "claimed"
    assert tick(mailing, at + LEASE).sent == [(ALICE, 2)], "the claim that was taken over lacks the newer message"
    hold(mailing.store, recipients=[ALICE], at=at + DAY / 2)
    news.schedule_news(mailing, at + DAY)
    [begun] = mailing.store.digests.claim(at + DAY, 1, 9).digests
    mailing.store.digests.begin([begun])  # its mail may have arrived
    assert tick(mailing, at + DAY + LEASE).sent == [(ALICE, 1)]
    assert lost.id != begun.id and notified(server) == [ALICE, ALICE]


def test_a_digest_that_does_not_hold_all_messages_does_not_wait(
    mailing: Parts, first: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("portal.digests.put_off.DELIVERIES", 2)
    for _ in range(2):
        hold(mailing.store, recipients=[ALICE], at=first + DAY / 2)
    assert mornings(mailing, first, 1)[0].sent == [(ALICE, 2)], "one that is wanted may be among the others"
