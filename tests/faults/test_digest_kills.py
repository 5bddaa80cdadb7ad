"""kill -9 of the digest process at named points: all recipients are notified, and few digests are repeated.

The numbers in the reports are those of the list of promises in docs/reliability.md.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from datetime import datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP

import pytest

from digest import housekeeping, news, run
from portal.assemble import Parts
from portal.model.links import Action
from portal.model.message import DeliveryId, EventKind, State, Tier
from portal.stores import LEASE
from portal.stores.records import QueuedMail
from tests.builders import ALICE, BY_LINK, hold, now
from tests.conftest import MakeParts
from tests.faults.conftest import Report
from tests.faults.killing import Killer
from tests.faults.test_kills import full
from tests.faults.victim import JOBS, Point
from tests.smtp_server import Mail, SmtpServer

DIGESTS = ("find-news", "schedule-news", "digests")
POINTS = [
    Point("at the start of the search for news", DIGESTS, "before find_news"),
    Point("during the search for news", DIGESTS, "in find_news"),
    Point("before a digest is planned", DIGESTS, "before schedule"),
    Point("in the commit of a plan", DIGESTS, "commit of schedule"),
    Point("after a digest was planned", DIGESTS, "after schedule"),
    Point("before the claim", DIGESTS, "before claim"),
    Point("in the claim's transaction", DIGESTS, "in claim"),
    Point("in the claim's commit", DIGESTS, "commit of claim"),
    Point("after the claim", DIGESTS, "after claim"),
    Point("before composing", DIGESTS, "before composing"),
    Point("after composing", DIGESTS, "after composing"),
    Point("when connected", DIGESTS, "BANNER"),
    Point("after EHLO", DIGESTS, "EHLO"),
    Point("after MAIL", DIGESTS, "MAIL"),
    Point("after RCPT", DIGESTS, "RCPT"),
    Point("after DATA", DIGESTS, "DATA"),
    Point("at the start of the message", DIGESTS, "INPUT", repeats=True),  # all of it may have been sent
    Point("after half of the message", DIGESTS, "half of a mail"),
    Point("after the final dot was sent", DIGESTS, "final dot", repeats=True),
    Point("after the final dot was received", DIGESTS, "BODY", repeats=True),
    Point("after the reply", DIGESTS, "before record", repeats=True),
    Point("in the record's transaction", DIGESTS, "in record", repeats=True),
    Point("in the record's commit", DIGESTS, "commit of record", repeats=True),
    Point("after the record", DIGESTS, "after record"),
    Point("at the end of the connection", DIGESTS, "QUIT"),
    Point("at any moment", DIGESTS, "any moment", repeats=True),
    Point("outbox: before the claim", ("mails",), "before claim"),
    Point("outbox: in the claim's commit", ("mails",), "commit of claim"),
    Point("outbox: after the claim", ("mails",), "after claim"),
    Point("outbox: after RCPT", ("mails",), "RCPT"),
    Point("outbox: after half of the message", ("mails",), "half of a mail"),
    Point("outbox: after the final dot was received", ("mails",), "BODY", repeats=True),
    Point("outbox: after the reply", ("mails",), "before record", repeats=True),
    Point("outbox: in the record's commit", ("mails",), "commit of record", repeats=True),
    Point("outbox: after the record", ("mails",), "after record"),
    Point("daily: while days are prepared", ("daily",), "in prepare_days"),
    Point("daily: before the purge", ("daily",), "before purge"),
    Point("daily: in the purge", ("daily",), "in purge"),
    Point("daily: after the purge", ("daily",), "after purge"),
]


def read(mail: Mail) -> EmailMessage:
    parsed = message_from_bytes(mail.data, policy=SMTP)
    assert isinstance(parsed, EmailMessage)
    return parsed


def named_in(parts: Parts, mail: Mail, at: datetime) -> set[tuple[str, int]]:
    """Return the deliveries that a digest has links for."""
    part = read(mail).get_body(("plain",))
    assert part is not None
    links = [parts.links.verify(token, at) for token in re.findall(r"/link/(\S+)/", part.get_content())]
    return {(str(link.id), link.number) for link in links if link.action is Action.SHOW}


# A kill repeats at most one mail for each connection; with one connection only if its final dot was sent.
@pytest.mark.parametrize(
    ("runs", "connections"), [(len(POINTS), 1), full(1_000, 1, seconds=1_200), full(300, 4, seconds=600)]
)
def test_a_digest_process_killed_at_any_point_notifies_everybody_of_everything(
    make_parts: MakeParts, server: SmtpServer, kill_at: Killer, runs: int, connections: int, report: Report
) -> None:
    parts, dice = make_parts(mail__url=server.url), random.Random(9)
    # Release requests that wait for an administrator are never purged.
    requested = hold(parts.store, recipients=[ALICE], tier=Tier.DANGEROUS, announce=[])
    parts.store.deliveries.move(
        DeliveryId(requested.id, 0), State.REQUESTED, {State.HELD}, BY_LINK, now(), kind=EventKind.REQUESTED
    )
    at = now() + timedelta(days=1, minutes=1)  # by then every digest that is planned now is due
    kills: Counter[str] = Counter()
    again: Counter[str] = Counter()
    digests = mails = 0
    for number in range(runs):
        point = POINTS[number % len(POINTS)]
        people = [f"p{number}-{n}@example.org" for n in range(3)]
        # From two senders, or they would be one row.
        held = [hold(parts.store, recipients=people, header_from=f"{n}@example.net") for n in range(2)]
        letters = [f"Subject: sign in {number} {n}\r\n\r\n".encode() for n in range(2)] if "mails" in point.jobs else []
        for letter in letters:
            parts.store.outbox.add(QueuedMail(ALICE, letter), at)
        before = len(server.mails)
        if "daily" in point.jobs:  # the daily work removes messages past retention, so announce them first
            news.schedule_news(parts, at)
            run.send_due(parts, at)
            housekeeping.daily(parts, at + timedelta(days=30))  # the clock counts as steady from this time
        month = timedelta(days=31) if "daily" in point.jobs else timedelta()
        nth = dice.randint(1, 2) if number >= len(POINTS) and point.of_each else 1
        kills[point.name] += kill_at(point, at + month, nth, dice, QUARANTINE_DIGEST__CONNECTIONS=str(connections))
        # Another process continues when the lease has ended: no lock survives the killed process.
        at += LEASE + timedelta(seconds=1)
        for job in (*DIGESTS, "mails"):
            JOBS[job](parts, at)
        sent = server.mails[before:]
        sent_digests = [mail for mail in sent if mail.recipients != [ALICE]]
        written = [mail.data for mail in sent if mail.recipients == [ALICE]]
        repeated = len(sent_digests) - len(people) + len(written) - len(letters)
        where = f"{point.name}, run {number}"
        assert {mail.recipients[0] for mail in sent_digests} == set(people), where
        assert sorted(set(written)) == sorted(letters), where
        assert 0 <= repeated <= (point.repeats if connections == 1 else connections), where
        assert max(Counter(mail.recipients[0] for mail in sent_digests).values()) <= 2, where
        assert len({read(mail)["Message-ID"] for mail in sent_digests}) == len(people), where
        for number_of, person in enumerate(people):
            for mail in sent_digests:
                if mail.recipients == [person]:
                    assert named_in(parts, mail, at) == {(str(one.id), number_of) for one in held}, where
        digests, mails = digests + len(sent_digests), mails + len(written)
        again[point.name] += repeated
        if month:
            housekeeping.daily(parts, at + month)
            assert [parts.store.messages.find(str(one.id)) for one in held] == [[], []], where
        else:
            assert all(
                delivery.announced_at for one in held for delivery in parts.store.deliveries.of_message(one.id)
            ), where
        assert run.send_due(parts, at + LEASE).sent == [] and housekeeping.send_queued(parts, at + LEASE) == 0, where
    assert parts.store.deliveries.get(DeliveryId(requested.id, 0)).state is State.REQUESTED
    report(
        f"9 kill -9 of the digest process at a point, {connections} connection{'s'[: connections - 1]}",
        f"{runs:,} runs at {len(POINTS)} points, {kills.total():,} kills, {digests:,} digests and {mails:,} other "
        f"messages; {again.total()} repeated: {', '.join(f'{n} {name}' for name, n in again.items() if n)}",
    )
    spared = [name for name in kills if not kills[name]]
    assert spared in ([], ["at any moment"]), "a point was never reached"
