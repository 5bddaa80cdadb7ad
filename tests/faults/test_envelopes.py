"""A hundred thousand odd addresses (16), from Rspamd's post through a store to a mail server. The short forms are in
tests/mail/test_relay.py and tests/test_actions.py."""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from portal.exporter import values
from portal.mail.relay import Relay
from portal.model.errors import RelayRefused
from portal.model.message import identity
from portal.stores import Store
from tests.builders import ALICE, SENDER, hold
from tests.envelopes import names, odd_address
from tests.faults.conftest import Report
from tests.smtp_server import SmtpServer

pytestmark = [pytest.mark.faults, pytest.mark.timeout(7200)]

_RECIPIENTS = 80_000
_SENDERS = 20_000  # one for each message, with four recipients
_MESSAGES = 500  # of a round
_AT_ONCE = 8

Envelope = tuple[str, str]  # sender and recipient


def test_each_of_many_odd_addresses_arrives_as_it_is_stored_or_is_refused(store: Store, report: Report) -> None:
    dice, found = Random(16), Counter[str]()
    with (
        SmtpServer() as server,
        Relay(server.url).reusing_connections() as relay,
        ThreadPoolExecutor(_AT_ONCE) as pool,
    ):

        def is_sent(number: int, envelope: Envelope) -> bool:
            try:
                relay.send(*envelope, [b"Subject: %d\r\n\r\n" % number], has_8bit=False)
            except RelayRefused:
                return False
            return True

        for _ in range(_SENDERS // _MESSAGES):
            envelopes = [each for _ in range(_MESSAGES) for each in held(store, dice, found)]
            sent = list(pool.map(is_sent, range(len(envelopes)), envelopes))
            found["arrived as it was stored"] += sum(sent)
            found["refused before it was sent"] += len(sent) - sum(sent)
            arrived = {int(mail.data.split()[1]): mail for mail in server.mails}
            assert sorted(arrived) == [number for number, is_one in enumerate(sent) if is_one]
            assert len(arrived) == len(server.mails)
            for number, mail in arrived.items():
                sender, recipient = envelopes[number]
                [written] = mail.recipients
                assert names(written, recipient) and names(mail.sender, sender), (envelopes[number], mail)
            server.mails.clear()
        assert set(server.verbs) <= {"EHLO", "MAIL", "RCPT", "DATA", "QUIT"}
        assert not server.violations
    report(
        "16 odd senders and recipients",
        f"{_RECIPIENTS:,} recipients and {_SENDERS:,} senders: "
        + ", ".join(f"{number:,} {what}" for what, number in sorted(found.items()))
        + "; 0 arrived at another address",
    )


def held(store: Store, dice: Random, found: Counter[str]) -> list[Envelope]:
    """Hold one message with an odd sender and odd recipients. Return each of them, as stored, in an envelope."""
    posted_sender, posted = odd_address(dice), [odd_address(dice) for _ in range(_RECIPIENTS // _SENDERS)]
    sender, (recipients, _) = values.sender(posted_sender), values.recipients(posted)
    assert sender in (None, posted_sender, posted_sender[1:-1])
    assert set(recipients) <= {*posted, *(each[1:-1] for each in posted if re.fullmatch("<.*>", each))}
    found["not held as an address"] += (sender is None) + len(posted) - len(recipients)
    message = hold(store, recipients=recipients or [ALICE], envelope_sender=sender)
    deliveries = store.deliveries.of_message(message.id)
    assert [each.address for each in deliveries] == [*(recipients or [ALICE])]
    assert {identity(each.address) for each in deliveries} == {each.recipient for each in deliveries}
    assert {each.message.envelope_sender for each in deliveries} == {sender}
    envelopes = [(SENDER, delivery.address) for delivery in deliveries if recipients]
    return envelopes if sender is None else [*envelopes, (sender, ALICE)]
