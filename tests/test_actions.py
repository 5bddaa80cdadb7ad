"""Actions on both stores and a real SMTP server: the mail that is sent, and the records of failures."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from uuid import UUID

import dkim
import pytest

from portal.actions import GIVE_UP_AFTER, Actions
from portal.batches.parallel import retry_due
from portal.mail.relay import Relay
from portal.mail.render import Render
from portal.model.errors import (
    AlreadyDone,
    BodyMissing,
    NotAllowed,
    NotFound,
    RelayDeferred,
    RelayRefused,
    StoreUnavailable,
)
from portal.model.links import MARK_HEADER, Links
from portal.model.message import DeliveryId, EventKind, Flag, Reader, State, Symbol, Tier, new_id
from portal.model.tiers import Tiers
from portal.policy.domains import Domains
from portal.policy.learning import Learning
from portal.scanning import Scanning
from portal.settings import Settings
from portal.stores import LEASE, Store
from portal.stores.records import QueuedMail
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, MALLORY, SENDER, hold, mail, now
from tests.envelopes import canonical, names, odd_local_part
from tests.paths import DATA, ROOT
from tests.smtp_server import DROP, HANG, SmtpServer, nobody_listens

ADMIN = "postmaster@example.org"
CORPUS = ROOT.parent / "shared" / "corpus"
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


@dataclass
class Clock:
    """A clock that only moves when a test sets it."""

    at: datetime = field(default_factory=now)

    def __call__(self) -> datetime:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


MakeActions = Callable[[str], Actions]


@pytest.fixture
def make_actions(store: Store, clock: Clock) -> MakeActions:
    links = Links([b"k" * 32], "https://mail.example.org/quarantine", timedelta(days=14))

    def make(url: str) -> Actions:
        return Actions(
            store=store,
            relay=Relay(url),
            scanning=Scanning(store, Tiers((), ()), None, (), 0, timedelta(), release_unscanned=False, required=True),
            learning=Learning(store, None, "off", 3, lambda address: (address,)),
            links=links,
            render_mail=Render().mail,
            domains=Domains(
                Settings.model_validate(
                    {
                        "public_url": "https://mail.example.org/quarantine",
                        "mail": {"from_address": "quarantine@example.org", "admin_address": ADMIN},
                    }
                ),
                store,
            ),
            language_of=lambda address: "en",
            public_url_of=lambda address: "https://mail.example.org/quarantine",
            deciders=lambda delivery: (),
            is_local=lambda address: address.endswith("@example.org"),
            host="portal.example.org",
            now=clock,
        )

    return make


@pytest.fixture
def actions(make_actions: MakeActions, smtp: SmtpServer) -> Actions:
    return make_actions(smtp.url)


def number_of(store: Store, id: UUID, recipient: str) -> int:
    return store.deliveries.get_for(Reader(recipient), id).number


def after_front(data: bytes) -> bytes:
    """Return the data after the two header fields of the portal. Fails if they are missing."""
    front = re.match(
        rb"Received: from [^\r\n]+\r\n\tby portal\.example\.org \(quarantine, held [0-9TZ:-]+\)\r\n"
        rb"\tid [0-9a-f-]{36}; [^\r\n]+\r\nX-Quarantine-Mark: release [^\r\n]+\r\n",
        data,
    )
    assert front
    return data[front.end() :]


def queued(store: Store, at: datetime) -> list[tuple[str, EmailMessage]]:
    """Remove all mail from the outbox and return it with its addresses."""
    mails: list[tuple[str, EmailMessage]] = []
    while True:
        with store.outbox.sending(at) as outgoing:
            if outgoing is None:
                return mails
            assert b"\n" not in outgoing.mail.replace(b"\r\n", b"")
            mails.append((outgoing.to, message_from_bytes(outgoing.mail, policy=policy.default)))


def text_of(message: EmailMessage) -> str:
    """Return the text as a mail program shows it."""
    text = message.get_content()
    assert isinstance(text, str)
    return text.replace("\r\n", "\n")


# ---- released


def test_a_release_goes_to_its_recipient_alone_and_is_recorded(
    store: Store, actions: Actions, smtp: SmtpServer
) -> None:
    data = mail()
    id = hold(store, data).id
    number = number_of(store, id, ALICE)
    delivery = actions.release(id, number, BY_LINK)
    assert (delivery.state, delivery.attempts, delivery.reason) == (State.RELEASED, 1, "")
    [received] = smtp.mails
    assert (received.sender, received.recipients) == (SENDER, [ALICE])
    assert after_front(received.data) == data
    assert store.deliveries.get_for(Reader(BOB), id).state is State.HELD
    assert [event.kind for event in store.deliveries.history(DeliveryId(id, number))][-2:] == ["releasing", "released"]
    assert {event.actor for event in store.deliveries.history(DeliveryId(id, number))[-2:]} == {BY_LINK}
    assert not smtp.violations


def test_the_mark_in_front_is_ours(store: Store, actions: Actions, smtp: SmtpServer) -> None:
    id = hold(store).id
    actions.release(id, 0, BY_LINK)
    received = message_from_bytes(smtp.mails[0].data)
    assert actions.links.read_mark(received[MARK_HEADER]) == ("release", id)


def test_releasing_twice_names_the_earlier_release(store: Store, actions: Actions, smtp: SmtpServer) -> None:
    id = hold(store).id
    actions.release(id, 0, BY_LINK)
    for operator in (False, True):
        with pytest.raises(AlreadyDone) as caught:
            actions.release(id, 0, BY_LINK, operator=operator)
        assert caught.value.delivery is not None and caught.value.delivery.state is State.RELEASED
    assert len(smtp.mails) == 1


@pytest.mark.parametrize("sender", ["", None])
def test_the_null_sender_and_the_unknown_one_cannot_bounce(
    store: Store, actions: Actions, smtp: SmtpServer, sender: str | None
) -> None:
    actions.release(hold(store, envelope_sender=sender).id, 0, BY_LINK)
    assert b"MAIL FROM:<>" in smtp.commands


def test_an_unknown_delivery_is_not_found(store: Store, actions: Actions) -> None:
    with pytest.raises(NotFound):
        actions.release(new_id(), 0, BY_LINK)
    with pytest.raises(NotFound):
        actions.release(hold(store).id, 7, BY_LINK)


def test_a_message_without_recipient_is_released_once_it_has_one(
    store: Store, actions: Actions, smtp: SmtpServer
) -> None:
    id = hold(store, recipients=(), flags=frozenset({Flag.RECIPIENTS})).id
    with pytest.raises(NotAllowed, match="--recipient"):
        actions.release(id, 0, BY_OPERATOR, operator=True)
    store.deliveries.assign(DeliveryId(id, 0), BOB, BY_OPERATOR, now())
    actions.release(id, 0, BY_OPERATOR, operator=True)
    assert [received.recipients for received in smtp.mails] == [[BOB]]


# ---- not released


BEHAVIOURS = {
    "450 4.2.0 come back later": State.RELEASING,
    "421 4.3.2 shutting down": State.RELEASING,
    "550 5.7.1 no\n550 5.7.1 and no again": State.HELD,
    "554 5.0.0 not here": State.HELD,
    "530 5.7.0 log in first": State.RELEASING,
    "554 5.7.1 <host>: Client host rejected: Access denied": State.RELEASING,
    HANG: State.RELEASING,
    DROP: State.RELEASING,
}


@pytest.mark.parametrize("verb", ["BANNER", "EHLO", "MAIL", "RCPT", "DATA", "INPUT", "BODY"])
def test_every_failure_is_recorded_with_its_kind_and_a_retry_succeeds(
    store: Store, actions: Actions, smtp: SmtpServer, clock: Clock, verb: str
) -> None:
    released = 0
    for behaviour, state in BEHAVIOURS.items():
        if verb == "INPUT" and behaviour != DROP:
            continue
        if verb in ("BANNER", "EHLO"):
            state = State.RELEASING
        id = hold(store).id
        smtp.script[verb] = behaviour
        short_timeouts = Relay(smtp.url, reply_seconds=0.3, total_seconds=1)
        with pytest.raises((RelayDeferred, RelayRefused)) as caught:
            (replace(actions, relay=short_timeouts) if behaviour == HANG else actions).release(id, 0, BY_LINK)
        delivery = store.deliveries.get(DeliveryId(id, 0))
        assert (delivery.state, delivery.attempts, delivery.reason) == (state, 1, str(caught.value)), behaviour
        assert delivery.next_try_at == (clock() + MINUTE if state is State.RELEASING else None)
        assert store.deliveries.history(DeliveryId(id, 0))[-1].kind == (
            "deferred" if state is State.RELEASING else "failed"
        )
        assert len(smtp.mails) == released

        smtp.script.clear()
        if state is State.HELD:
            assert isinstance(caught.value, RelayRefused)
            assert retry_due(actions) == 0
            actions.release(id, 0, BY_LINK)
        else:
            assert retry_due(actions) == 0
            clock.at += MINUTE
            assert retry_due(actions) == 1
        released += 1
        delivery = store.deliveries.get(DeliveryId(id, 0))
        assert (delivery.state, delivery.reason, delivery.next_try_at) == (State.RELEASED, "", None)
        assert len(smtp.mails) == released
    # Every copy that arrived, also a second one after a lost answer to the final dot, was for alice.
    assert {tuple(received.recipients) for received in smtp.mails + smtp.unanswered} == {(ALICE,)}
    assert bool(smtp.unanswered) == (verb == "BODY")


def turn_dangerous(store: Store, data: bytes) -> None:
    """Hold the same mail again, now with the finding of a virus scanner."""
    hold(store, data, tier=Tier.DANGEROUS, symbols=(Symbol("CLAM_VIRUS"),))


def test_a_release_under_way_stops_when_the_mail_turns_out_dangerous(
    store: Store, actions: Actions, smtp: SmtpServer, clock: Clock
) -> None:
    data = mail()
    id = hold(store, data).id
    smtp.script["RCPT"] = ["450 4.2.0 busy"]
    with pytest.raises(RelayDeferred):
        actions.release(id, 0, BY_LINK)
    turn_dangerous(store, data)
    clock.at += MINUTE
    assert retry_due(actions) == 1
    delivery = store.deliveries.get(DeliveryId(id, 0))
    assert (delivery.state, delivery.reason) == (State.HELD, "only an administrator can release this message")
    assert [event.kind for event in store.deliveries.history(DeliveryId(id, 0))][-2:] == ["raised", "stopped"]
    assert not smtp.mails
    with pytest.raises(NotAllowed):
        actions.release(id, 0, BY_LINK)
    actions.request_release(id, 0, BY_LINK)
    actions.release(id, 0, BY_OPERATOR, operator=True)
    assert len(smtp.mails) == 1


def test_an_operators_release_goes_on_when_the_mail_turns_out_dangerous(
    store: Store, actions: Actions, smtp: SmtpServer, clock: Clock
) -> None:
    data = mail()
    id = hold(store, data).id
    smtp.script["RCPT"] = ["450 4.2.0 busy"]
    with pytest.raises(RelayDeferred):
        actions.release(id, 0, BY_OPERATOR, operator=True)
    turn_dangerous(store, data)
    clock.at += MINUTE
    assert retry_due(actions) == 1
    assert store.deliveries.get(DeliveryId(id, 0)).state is State.RELEASED


def test_a_mail_that_turns_dangerous_between_check_and_claim_is_not_released(
    store: Store, actions: Actions, smtp: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = mail()
    id = hold(store, data).id
    claim = store.deliveries.releasing

    def raised_before(*words: Any, **more: Any) -> Any:
        turn_dangerous(store, data)
        return claim(*words, **more)

    monkeypatch.setattr(store.deliveries, "releasing", raised_before)
    with pytest.raises(NotAllowed):
        actions.release(id, 0, BY_LINK)
    assert store.deliveries.get(DeliveryId(id, 0)).state is State.HELD
    assert not smtp.mails


def test_a_refused_connection_is_retried(store: Store, make_actions: MakeActions) -> None:
    id = hold(store).id
    with pytest.raises(RelayDeferred, match="Connection refused"):
        make_actions(nobody_listens()).release(id, 0, BY_LINK)
    assert store.deliveries.get(DeliveryId(id, 0)).state is State.RELEASING


def test_over_lmtp_the_mailbox_itself_answers(store: Store, make_actions: MakeActions) -> None:
    with SmtpServer(lmtp=True, script={"BODY": ["552 5.2.2 mailbox full"]}) as server:
        actions = make_actions(server.url)
        id = hold(store).id
        with pytest.raises(RelayRefused, match="mailbox full"):
            actions.release(id, 0, BY_LINK)
        assert "mailbox full" in store.deliveries.get(DeliveryId(id, 0)).reason
        actions.release(id, 0, BY_LINK)
        assert len(server.mails) == 1


def test_retries_become_rarer_and_end_after_five_days(
    store: Store, actions: Actions, smtp: SmtpServer, clock: Clock
) -> None:
    id, began = hold(store).id, clock()
    smtp.script["RCPT"] = "450 4.2.0 greylisted"
    with pytest.raises(RelayDeferred):
        actions.release(id, 0, BY_LINK)
    waits = []
    while (due := store.deliveries.get(DeliveryId(id, 0)).next_try_at) is not None:
        waits.append(int((due - clock()) / MINUTE))
        clock.at = due
        assert retry_due(actions) == 1
    assert waits[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert set(waits[6:]) == {60}
    assert GIVE_UP_AFTER < clock() - began < GIVE_UP_AFTER + timedelta(hours=2)
    delivery = store.deliveries.get(DeliveryId(id, 0))
    assert delivery.state is State.HELD
    assert delivery.reason.startswith("given up after 5 days: RCPT TO: 450 4.2.0 greylisted")
    smtp.script.clear()
    assert actions.release(id, 0, BY_LINK).state is State.RELEASED


REJECTED = "554 5.7.1 <host>: Client host rejected: Access denied"


def rejected(actions: Actions, store: Store) -> UUID:
    """Try to release one more message to a mail server that rejects the portal."""
    id = hold(store).id
    with pytest.raises(RelayDeferred) as caught:
        actions.release(id, 0, BY_LINK)
    assert caught.value.portal_rejected
    return id


@pytest.mark.parametrize("verb", ["BANNER", "EHLO", "MAIL", "RCPT", "DATA", "BODY"])
def test_a_mail_server_that_rejects_the_portal_is_reported_once_an_hour(
    store: Store, actions: Actions, smtp: SmtpServer, clock: Clock, verb: str
) -> None:
    smtp.script[verb] = REJECTED
    ids = [rejected(actions, store) for _ in range(3)]
    [(to, alarm)] = queued(store, clock())
    assert (to, alarm["Subject"]) == (ADMIN, "Mail quarantine needs attention: the mail server rejects releases")
    words = " ".join(text_of(alarm).split())
    assert REJECTED in words and "relay.url" in words and "deploy/postfix/master.cf.part" in words
    clock.at += timedelta(minutes=59)
    assert retry_due(actions) == 3
    assert queued(store, clock()) == []
    clock.at += timedelta(minutes=2)
    rejected(actions, store)
    assert [to for to, _ in queued(store, clock())] == [ADMIN]
    smtp.script.clear()
    clock.at += HOUR
    retry_due(actions)
    assert [store.deliveries.get(DeliveryId(id, 0)).state for id in ids] == [State.RELEASED] * 3
    assert queued(store, clock()) == []


@pytest.mark.parametrize("reply", ["450 4.2.0 greylisted", "550 5.1.1 no such user", "421 4.3.2 shutting down", DROP])
def test_temporary_failures_and_those_of_one_mail_are_not_reported(
    store: Store, actions: Actions, smtp: SmtpServer, clock: Clock, reply: str
) -> None:
    smtp.script["RCPT"] = reply
    with pytest.raises((RelayDeferred, RelayRefused)):
        actions.release(hold(store).id, 0, BY_LINK)
    assert queued(store, clock()) == []


def test_an_alarm_that_cannot_be_queued_changes_nothing_else(
    store: Store, actions: Actions, smtp: SmtpServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> bool:
        raise StoreUnavailable("full")

    smtp.script["RCPT"] = REJECTED
    with monkeypatch.context() as patch:
        patch.setattr(store.notes, "compare_and_set", fail)
        id = rejected(actions, store)
    delivery = store.deliveries.get(DeliveryId(id, 0))
    assert (delivery.state, delivery.reason) == (State.RELEASING, f"RCPT TO: {REJECTED}")
    assert queued(store, clock()) == []
    clock.at += MINUTE
    assert retry_due(actions) == 1
    assert [to for to, _ in queued(store, clock())] == [ADMIN]


@pytest.mark.parametrize("verb", ["BANNER", "RCPT"])
def test_a_release_given_up_because_the_portal_is_rejected_has_our_own_reason(
    store: Store, actions: Actions, smtp: SmtpServer, clock: Clock, verb: str
) -> None:
    smtp.script[verb] = REJECTED
    id = rejected(actions, store)
    clock.at += GIVE_UP_AFTER + MINUTE
    assert retry_due(actions) == 1
    delivery = store.deliveries.get(DeliveryId(id, 0))
    assert delivery.state is State.HELD
    assert delivery.reason == (
        "given up after 5 days: the mail server did not accept it; please contact your administrator"
    )
    assert REJECTED in " ".join(event.detail for event in store.deliveries.history(DeliveryId(id, 0))), (
        "the administrator finds the reply in the history"
    )
    smtp.script.clear()
    assert actions.release(id, 0, BY_LINK).state is State.RELEASED


def test_one_failing_release_leaves_the_others_alone(
    store: Store, actions: Actions, smtp: SmtpServer, clock: Clock
) -> None:
    ids = [hold(store, recipients=[address]).id for address in (ALICE, BOB, "carol@example.org")]
    smtp.script["MAIL"] = "450 4.3.0 later"
    for id in ids:
        with pytest.raises(RelayDeferred):
            actions.release(id, 0, BY_LINK)
    smtp.script["MAIL"] = None
    smtp.script["RCPT"] = lambda line: "550 5.1.1 no such user" if b"bob" in line else None
    clock.at += MINUTE
    assert retry_due(actions) == 3
    assert [store.deliveries.get(DeliveryId(id, 0)).state for id in ids] == [State.RELEASED, State.HELD, State.RELEASED]


def test_a_mail_whose_bytes_are_missing_is_held_again_and_nothing_is_sent(
    store: Store, actions: Actions, smtp: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = hold(store).id

    def gone(message_id: UUID) -> Iterator[bytes]:
        raise BodyMissing("the mail's file was deleted")

    monkeypatch.setattr(store.messages, "body", gone)
    with pytest.raises(BodyMissing):
        actions.release(id, 0, BY_LINK)
    assert smtp.connections == 0
    delivery = store.deliveries.get(DeliveryId(id, 0))
    assert (delivery.state, delivery.reason) == (State.HELD, "the mail's file was deleted")


def test_a_mail_that_is_damaged_in_the_middle_never_arrives(
    store: Store, actions: Actions, smtp: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = hold(store).id

    def damaged(message_id: UUID) -> Iterator[bytes]:
        yield b"Subject: x\r\n\r\n"
        raise StoreUnavailable("what is stored is damaged")

    monkeypatch.setattr(store.messages, "body", damaged)
    with pytest.raises(StoreUnavailable):
        actions.release(id, 0, BY_LINK)
    assert not smtp.mails and not smtp.unanswered
    assert store.deliveries.get(DeliveryId(id, 0)).state is State.RELEASING


# ---- many at once, crashes


def test_fifty_clicks_at_once_send_one_mail(store: Store, actions: Actions, smtp: SmtpServer) -> None:
    id = hold(store).id
    together = threading.Barrier(50)

    def click(_: int) -> str:
        together.wait()
        try:
            return actions.release(id, 0, BY_LINK).state.value
        except (AlreadyDone, StoreUnavailable) as error:
            return type(error).__name__

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(click, range(50)))
    assert answers.count("released") == 1
    assert set(answers) <= {"released", "AlreadyDone", "StoreUnavailable"}
    assert len(smtp.mails) == 1
    assert store.deliveries.get(DeliveryId(id, 0)).state is State.RELEASED


CHILD = """
import sys, uuid
from portal.assemble import assemble
from portal.model.message import Actor, ActorKind
from portal.settings import load
assemble(load(), create=True).actions.release(uuid.UUID(sys.argv[1]), 0, Actor(ActorKind.RECIPIENT, via="link"))
"""


@pytest.mark.parametrize("verb", ["RCPT", "INPUT", "BODY"])
def test_a_release_killed_half_way_is_finished_after_the_lease(
    store: Store, store_url: str, actions: Actions, smtp: SmtpServer, clock: Clock, tmp_path: Path, verb: str
) -> None:
    # The mail is so large that the child cannot send the final dot while the server does not read.
    id = hold(store, mail(size_bytes=1 << 24 if verb == "INPUT" else 0)).id
    reached, killed = threading.Event(), threading.Event()

    def wait(line: bytes) -> None:
        reached.set()
        killed.wait(30)

    smtp.script[verb] = [wait]
    environ = {
        **os.environ,
        "QUARANTINE_STORE__URL": store_url,
        "QUARANTINE_RELAY__URL": smtp.url,
        "QUARANTINE_LINKS__KEYS_FILE": str(tmp_path / "child.keys"),
    }
    with subprocess.Popen([sys.executable, "-c", CHILD, str(id)], env=environ) as child:
        assert reached.wait(30)
        child.send_signal(signal.SIGKILL)
        child.wait()
    killed.set()
    claimed = store.deliveries.get(DeliveryId(id, 0))
    assert (claimed.state, claimed.attempts) == (State.RELEASING, 1)
    with pytest.raises(AlreadyDone):
        actions.release(id, 0, BY_LINK)
    assert retry_due(actions) == 0

    assert claimed.next_try_at is not None and claimed.next_try_at < clock() + LEASE + MINUTE
    clock.at = claimed.next_try_at
    assert retry_due(actions) == 1
    delivery = store.deliveries.get(DeliveryId(id, 0))
    assert (delivery.state, delivery.attempts) == (State.RELEASED, 2)
    assert {tuple(received.recipients) for received in smtp.mails + smtp.unanswered} == {(ALICE,)}
    assert len(smtp.mails + smtp.unanswered) == (2 if verb == "BODY" else 1)


# ---- byte for byte


AWKWARD = [
    b"",
    b"\r\n",
    b"no headers at all",
    b".\r\n.\r\n..\r\nMAIL FROM:<mallory@example.org>\r\n",
    b"Subject: x\n folded\r\n\r\nbare LF\nand CR\r, CRCRLF\r\r\n, LFCR\n\r.",
    b"Subject: Gr\xfc\xdfe\r\n\r\n" + bytes(range(256)) * 5,
    b"X: " + b"a" * 70_000 + b"\r\n\r\n" + b"b" * 2_000_000,
    (b"\r\n" * 7 + b".") * 60_000,
]


@pytest.mark.slow
def test_held_mail_arrives_octet_for_octet(store: Store, actions: Actions, smtp: SmtpServer) -> None:
    corpus = sorted(path for path in CORPUS.glob("**/*") if path.suffix in (".eml", ".msg", ".txt"))
    assert corpus or not CORPUS.exists()
    for data in {*AWKWARD, *(path.read_bytes() for path in corpus)}:
        id = hold(store, data, recipients=[ALICE]).id
        actions.release(id, 0, BY_LINK)
        received = smtp.mails.pop()
        assert after_front(received.data) == canonical(data)
        assert received.sender_parameters == ("" if data.isascii() else "BODY=8BITMIME")
    assert not smtp.mails
    assert set(smtp.verbs) == {"EHLO", "MAIL", "RCPT", "DATA", "QUIT"}
    assert not smtp.violations


def test_signatures_survive(store: Store, actions: Actions, smtp: SmtpServer) -> None:
    key, public = (DATA / "dkim.key").read_bytes(), (DATA / "dkim.pub").read_bytes()

    def txt(name: bytes, timeout: int = 5) -> bytes:
        assert name == b"test._domainkey.example.net."
        return b"v=DKIM1; k=rsa; p=" + public

    mails = [
        b"From: promo@example.net\r\nTo: x@example.org\r\nSubject: very\r\n long\r\n\tone\r\n\r\n.dots\r\n..\r\n.\r\n",
        "From: promo@example.net\r\nSubject: Grüße\r\n\r\nGrüße \r\n\r\n\r\n".encode(),
    ]
    for data in mails:
        signed = dkim.sign(data, b"test", b"example.net", key, canonicalize=(b"relaxed", b"relaxed")) + data
        # The milter passes header folds with a bare LF.
        head, _, text = signed.partition(b"\r\n\r\n")
        as_exported = re.sub(rb"\r\n(?=[ \t])", b"\n", head) + b"\r\n\r\n" + text
        assert as_exported != signed
        actions.release(hold(store, as_exported).id, 0, BY_LINK)
        assert dkim.verify(smtp.mails[-1].data, dnsfunc=txt)


def test_any_recipient_gets_exactly_its_own_or_nothing_goes_out(
    store: Store, actions: Actions, smtp: SmtpServer
) -> None:
    dice = random.Random(5321)
    odd = [
        "a b",
        "a,b",
        "a>b",
        'a"b',
        "a\\b",
        "at@sign",
        "@x:bob",
        "a..b",
        ".a",
        "a;b",
        "a<b>",
        "é",
        "a\u3000b",
        "",
        " ",
    ]
    recipients = [f"{local}@example.org" for local in odd]
    recipients += [
        "alice",
        "alice@",
        "alice@ex ample.org",
        "a@b>c",
        "alice@example.org>",
        "x@[192.0.2.1]",
        "x@é.example",
    ]
    for _ in range(150):
        recipients.append(f"{odd_local_part(dice)}@example.org")
    recipients = list({address.lower(): address for address in recipients}.values())
    id = hold(store, recipients=recipients, announce=[]).id
    refused = 0
    for delivery in store.deliveries.of_message(id):
        try:
            actions.release(id, delivery.number, BY_OPERATOR, operator=True)
        except RelayRefused as error:
            refused += 1
            after = store.deliveries.get(DeliveryId(id, delivery.number))
            assert (after.state, after.reason) == (State.HELD, str(error))
            assert not smtp.mails
        else:
            [written] = smtp.mails.pop().recipients
            assert names(written, delivery.address)
    assert refused == 6
    assert not smtp.violations


# ---- permissions


def test_only_an_administrator_releases_dangerous_mail(store: Store, actions: Actions, smtp: SmtpServer) -> None:
    id = hold(store, tier=Tier.DANGEROUS).id
    with pytest.raises(NotAllowed):
        actions.release(id, 0, BY_LINK)
    actions.request_release(id, 0, BY_LINK)
    with pytest.raises(AlreadyDone):
        actions.release(id, 0, BY_LINK)
    assert not smtp.commands
    assert actions.release(id, 0, BY_OPERATOR, operator=True).state is State.RELEASED
    assert actions.release(id, 1, BY_OPERATOR, operator=True).state is State.RELEASED


def test_a_request_refused_just_before_the_claim_is_not_released(
    store: Store, actions: Actions, smtp: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = hold(store, tier=Tier.DANGEROUS).id
    actions.request_release(id, 0, BY_LINK)
    claim = store.deliveries.releasing

    def refused_before(*words: Any, **more: Any) -> Any:
        actions.refuse_request(id, 0, BY_OPERATOR, "it is a trap")
        return claim(*words, **more)

    monkeypatch.setattr(store.deliveries, "releasing", refused_before)
    with pytest.raises(NotAllowed):
        actions.release(id, 0, BY_LINK)
    assert not smtp.commands
    assert store.deliveries.get(DeliveryId(id, 0)).state is State.HELD


def test_deleted_mail_comes_back_by_undo_or_by_an_operator(store: Store, actions: Actions, smtp: SmtpServer) -> None:
    id = hold(store).id
    assert actions.delete(id, 0, BY_LINK).state is State.DELETED
    with pytest.raises(AlreadyDone):
        actions.delete(id, 0, BY_LINK)
    with pytest.raises(AlreadyDone):
        actions.release(id, 0, BY_LINK)
    assert actions.restore(id, 0, BY_LINK).state is State.HELD
    with pytest.raises(AlreadyDone):
        actions.restore(id, 0, BY_LINK)
    actions.delete(id, 0, BY_LINK)
    assert actions.release(id, 0, BY_OPERATOR, operator=True).state is State.RELEASED
    assert [event.kind for event in store.deliveries.history(DeliveryId(id, 0))][1:4] == [
        "deleted",
        "restored",
        "deleted",
    ]
    with pytest.raises(AlreadyDone):
        actions.delete(id, 0, BY_LINK)
    assert store.deliveries.get_for(Reader(BOB), id).state is State.HELD


# ---- requests and notifications


def test_a_request_notifies_the_administrator_with_the_commands(store: Store, actions: Actions, clock: Clock) -> None:
    id = hold(
        store,
        tier=Tier.DANGEROUS,
        subject="Rechnung\u202e \r\nBcc: mallory@example.org",
        symbols=(Symbol("R_SPF_FAIL", 1.0), Symbol("CLAM_VIRUS", 25.0, ("Eicar",), "Found\r\nby \u202eClamAV")),
    ).id
    assert actions.request_release(id, 0, BY_LINK).state is State.REQUESTED
    with pytest.raises(AlreadyDone):
        actions.request_release(id, 0, BY_LINK)
    [(to, request)] = queued(store, clock())
    assert (to, request["To"], request["From"]) == (ADMIN, ADMIN, "Mail quarantine <quarantine@example.org>")
    assert request["Subject"] == f"Release requested by {ALICE}"
    assert request["Bcc"] is None
    kind, _ = actions.links.read_mark(request[MARK_HEADER]) or ("", None)
    assert kind == "mail"
    text = text_of(request)
    assert f"quarantine release {id} --recipient {ALICE}\n" in text
    assert f'quarantine refuse {id} --recipient {ALICE} --reason "…"\n' in text
    assert "Subject: Rechnung Bcc: mallory@example.org\n" in text
    assert f"From: Promo <{SENDER}>\n" in text and f"Envelope sender: <{SENDER}>\n" in text
    assert "\nScore: 17.5, limit 15\n\nRspamd symbols" in text
    assert text.index("- CLAM_VIRUS (25.0): Found by ClamAV\n") < text.index("- R_SPF_FAIL (1.0)\n")
    assert BOB not in text


def test_an_address_cannot_become_a_command_of_the_administrators_shell(
    store: Store, actions: Actions, clock: Clock
) -> None:
    address = "$(reboot);a b@example.org"
    id = hold(store, tier=Tier.DANGEROUS, recipients=[address], envelope_sender=None, header_from="", subject="").id
    actions.request_release(id, 0, BY_LINK)
    [(_, request)] = queued(store, clock())
    assert f"quarantine release {id} --recipient '{address}'\n" in text_of(request)
    assert "From: (unknown)\nEnvelope sender: unknown\nSubject: (no subject)\n" in text_of(request)


@pytest.mark.parametrize(
    ("score", "threshold", "expected"), [(17.5, None, "\nScore: 17.5\n\nRspamd"), (None, None, "UTC\n\nRspamd")]
)
def test_a_request_shows_the_score_if_it_is_known(
    store: Store, actions: Actions, clock: Clock, score: float | None, threshold: float | None, expected: str
) -> None:
    id = hold(store, tier=Tier.DANGEROUS, score=score, threshold=threshold).id
    actions.request_release(id, 0, BY_LINK)
    [(_, request)] = queued(store, clock())
    assert expected in text_of(request)


def test_a_refusal_notifies_the_recipient_with_the_reason(store: Store, actions: Actions, clock: Clock) -> None:
    id = hold(store, tier=Tier.DANGEROUS, recipients=[ALICE, BOB, "eve@elsewhere.example"]).id
    for number in (0, 2):
        actions.request_release(id, number, BY_LINK)
    queued(store, clock())
    with pytest.raises(AlreadyDone):
        actions.refuse_request(id, 1, BY_OPERATOR, "nobody asked")
    refused = actions.refuse_request(id, 0, BY_OPERATOR, "The attachment is a virus, 100% sure.")
    actions.refuse_request(id, 2, BY_OPERATOR, "not one of ours, so not mailed")
    assert (refused.state, refused.reason) == (State.HELD, "The attachment is a virus, 100% sure.")
    [(to, notice)] = queued(store, clock())
    assert (to, notice["To"]) == (ALICE, ALICE)
    text = text_of(notice)
    assert "Reason: The attachment is a virus, 100% sure.\n" in text
    assert "Subject: Offer\n" in text and "https://mail.example.org/quarantine\n" in text
    assert BOB not in text and MALLORY not in text
    with pytest.raises(NotAllowed):
        actions.release(id, 0, BY_LINK)


def test_a_refused_request_can_be_made_again(store: Store, actions: Actions) -> None:
    id = hold(store, tier=Tier.DANGEROUS).id
    actions.request_release(id, 0, BY_LINK)
    actions.refuse_request(id, 0, BY_OPERATOR, "no")
    delivery = actions.request_release(id, 0, BY_LINK)
    assert (delivery.state, delivery.reason) == (State.REQUESTED, "")


def test_alarms_reach_the_administrator(store: Store, actions: Actions, clock: Clock) -> None:
    actions.alarm("released mail is scanned again", "relay.url leads to a listener that scans.")
    [(to, alarm)] = queued(store, clock())
    assert to == ADMIN
    assert alarm["Subject"] == "Mail quarantine needs attention: released mail is scanned again"
    assert "relay.url leads to a listener that scans.\n" in text_of(alarm)


def test_of_many_processes_with_the_same_problem_one_raises_the_alarm(
    store: Store, actions: Actions, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, get = threading.Barrier(4), store.notes.get

    def get_together(name: str) -> str | None:
        found = get(name)
        together.wait(10)  # all have read the note before one sends the alarm
        return found

    monkeypatch.setattr(store.notes, "get", get_together)
    for _ in range(2):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: actions.alarm_hourly("something", "Look at it."), range(4)))
        assert [to for to, _ in queued(store, clock())] == [ADMIN]
        clock.at += HOUR


def test_a_clock_that_was_ahead_silences_no_alarm(store: Store, actions: Actions, clock: Clock) -> None:
    clock.at += timedelta(days=365)
    actions.alarm_hourly("something", "Look at it.")
    assert len(queued(store, clock())) == 1
    clock.at -= timedelta(days=365)
    actions.alarm_hourly("something", "Look at it.")
    actions.alarm_hourly("something", "Look at it.")
    assert len(queued(store, clock() + HOUR)) == 1


# ---- a request and its mail are one transaction


def test_a_move_and_its_mail_are_both_recorded_or_neither(store: Store) -> None:
    id, at = hold(store).id, now()
    request: dict[str, Any] = {"to": State.REQUESTED, "allowed": {State.HELD}, "actor": BY_LINK, "now": at}
    request["kind"] = EventKind.REQUESTED
    with pytest.raises(StoreUnavailable):
        store.deliveries.move(DeliveryId(id, 0), **request, mails=[QueuedMail(ADMIN, None)])  # type: ignore[arg-type]  # a mail that cannot be queued
    assert store.deliveries.get(DeliveryId(id, 0)).state is State.HELD
    assert [event.kind for event in store.deliveries.history(DeliveryId(id, 0))] == ["held"]
    store.deliveries.move(DeliveryId(id, 0), **request, mails=[QueuedMail(ADMIN, b"Subject: please\r\n\r\n")])
    assert [to for to, _ in queued(store, at)] == [ADMIN]
    with pytest.raises(AlreadyDone):
        store.deliveries.move(DeliveryId(id, 0), **request, mails=[QueuedMail(ADMIN, b"Subject: again\r\n\r\n")])
    with pytest.raises(NotFound):
        store.deliveries.move(DeliveryId(new_id(), 0), **request, mails=[QueuedMail(ADMIN, b"Subject: again\r\n\r\n")])
    assert queued(store, at) == []


def test_requesting_twice_notifies_the_administrator_once(store: Store, actions: Actions, clock: Clock) -> None:
    id = hold(store, tier=Tier.DANGEROUS).id
    actions.request_release(id, 0, BY_LINK)
    with pytest.raises(AlreadyDone):
        actions.request_release(id, 0, BY_LINK)
    assert [to for to, _ in queued(store, clock())] == [ADMIN]
    refused = actions.refuse_request(id, 0, BY_OPERATOR, "it is a virus")
    assert (refused.state, refused.reason) == (State.HELD, "it is a virus")
    with pytest.raises(AlreadyDone):
        actions.refuse_request(id, 0, BY_OPERATOR, "it is a virus")
    [(to, message)] = queued(store, clock())
    assert to == ALICE
    assert "Reason: it is a virus" in text_of(message)
