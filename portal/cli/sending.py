"""``quarantine check --send ADDRESS``: the way of a message from Rspamd to the inbox, with a real one.

The message is handed to Rspamd over HTTP with thresholds of its own (`Rspamd.submit`), so it takes the way of any
rejected message, at any site: docs/decisions/check-send.md. Only the given address gets mail.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import TypeVar

from portal.assemble import OUTCOMES_SECONDS, Parts, assemble
from portal.cli.finding import Finding
from portal.mail import wire
from portal.model.domains import shown_address
from portal.model.errors import QuarantineError, RelayDeferred, RelayRefused, RspamdUnavailable
from portal.model.message import Actor, Delivery, State, identity
from portal.model.text import shown
from portal.rspamd import Rspamd
from portal.settings import Settings

_CONTROLLER = "http://127.0.0.1:11334"  # where Rspamd listens unless it is configured otherwise
_RSPAMD_SECONDS = 30.0
_HELD_SECONDS = 10.0
_DIGEST_SECONDS = 90.0
_PAUSE_SECONDS = 0.2
T = TypeVar("T")


def prove(settings: Settings, address: str, actor: Actor) -> Iterator[Finding]:
    """Send a test message to this address, and yield the result of each step. Ends after the first step that fails."""
    try:
        parts = assemble(settings)
    except QuarantineError as error:
        yield Finding(False, "test message", f"not sent: {error}")
        return
    try:
        yield from _prove(parts, address, actor)
    except QuarantineError as error:
        yield Finding(False, "test message", str(error))
    finally:
        parts.store.close(OUTCOMES_SECONDS)


def _prove(parts: Parts, address: str, actor: Actor) -> Iterator[Finding]:
    problem = _unsuitable(parts, address)
    if problem:
        yield Finding(False, "test message", f"not sent: {problem}")
        return
    queue_id = f"check-{secrets.token_hex(8)}"
    finding = _scan(parts, address, queue_id)
    yield finding
    if not finding.ok:
        return
    delivery = _within(_HELD_SECONDS, lambda: _held(parts, address, queue_id))
    if delivery is None:
        yield Finding(
            False,
            "test: portal",
            f"the message was not held within {_HELD_SECONDS:.0f} s. If exporter.hold_actions lacks `reject`, or "
            "exporter.only_symbols is set, the portal did not select it (its log: `not selected`), which may be as you "
            "want it. Otherwise Rspamd has no rule that posts to this portal: see docs/exporter.md",
        )
        return
    yield Finding(True, "test: portal", f"held as {delivery.id}, tier {delivery.message.tier}")
    yield _digest(parts, delivery, actor)
    yield _release(parts, delivery, actor)


def _unsuitable(parts: Parts, address: str) -> str:
    """Return why this address cannot get the test message, "" if it can."""
    recipient, settings = identity(address), parts.settings
    try:
        wire.path(address, is_sender=False)
    except RelayRefused as error:
        return f"{shown(address)}: {error}"
    if parts.domains.of(recipient).from_address is None:
        return "mail.from_address is not set"
    if not settings.is_local(recipient):
        return f"{shown(address)} is not in local_domains"
    if not parts.people.is_person(recipient):
        return f"{shown(address)} is an alias or a role mailbox: use the address of one person"
    return ""


def _scan(parts: Parts, address: str, queue_id: str) -> Finding:
    settings = parts.settings.rspamd
    url, topic = settings.url or _CONTROLLER, "test: Rspamd"
    rspamd = Rspamd(url, settings.password.get_secret_value() if settings.password else "")
    sender = parts.domains.of(address).from_address or ""
    try:
        action = rspamd.submit(_message(sender, address, queue_id), sender, address, queue_id, _RSPAMD_SECONDS)
    except RspamdUnavailable as error:
        return Finding(
            False, topic, f"{url}: {error}. Set rspamd.url (and rspamd.password) to Rspamd's controller, port 11334"
        )
    if action == "soft reject":
        return Finding(
            False,
            topic,
            f"{url} could not post the message to the portal and asks senders to try again: Rspamd's log has a line "
            "with `quarantine portal:`. Check url in metadata_exporter.conf, that Nginx and the service run, and "
            "exporter.allowed_networks, .user and .password",
        )
    if action != "reject":
        return Finding(
            False,
            topic,
            f"{url} gave the test message the verdict {shown(action, 40)!r}: a list or rule decides about mail from "
            f"{shown(sender)} before its score does. Nothing was held, and nothing was sent",
        )
    return Finding(True, topic, f"{url} scanned the test message and gave it the verdict 'reject'")


def _message(sender: str, address: str, queue_id: str) -> bytes:
    mail = EmailMessage(SMTP.clone(utf8=not address.isascii()))
    mail["From"], mail["To"], mail["Subject"] = sender, address, f"Test of the quarantine: {queue_id}"
    mail["Date"] = format_datetime(datetime.now(UTC))
    mail["Message-ID"] = f"<{queue_id}@{sender.rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(
        "An administrator tests the mail quarantine with this message. It was rejected on purpose, held, listed in a\n"
        "digest and released. You can delete it.\n"
    )
    return mail.as_bytes()


def _held(parts: Parts, address: str, queue_id: str) -> Delivery | None:
    """Return the delivery of the test message, and no other recipient's."""
    for message in parts.store.messages.find(queue_id):
        for delivery in parts.store.deliveries.of_message(message.id):
            if delivery.recipient == identity(address):
                return delivery
    return None


def _digest(parts: Parts, delivery: Delivery, actor: Actor) -> Finding:
    """Have the digest process of the site send the digest that lists the message."""
    recipient, topic, began = delivery.recipient, "test: digest", datetime.now(UTC)
    if parts.store.recipients.get(recipient).stopped_at is not None:
        return Finding(
            None, topic, f"not sent: {shown_address(recipient)} has stopped digests. Test with another address"
        )

    def outcome() -> Finding | None:
        current = parts.store.deliveries.get(delivery.key)
        if current.announced_at is not None:
            seconds = (datetime.now(UTC) - began).total_seconds()
            return Finding(
                True, topic, f"sent to {shown_address(recipient)} after {seconds:.0f} s, with the message in it"
            )
        if current.state is not State.HELD:
            return Finding(None, topic, f"not tested: somebody {current.state} the message in the meantime")
        person = parts.store.recipients.get(recipient)
        if person.failed_at is not None and person.failed_at >= began:
            return Finding(False, topic, f"the mail server of mail.url did not accept it: {person.failure}")
        return None

    if finding := outcome():  # the digest process was faster
        return finding
    # The result does not matter: another request may be a moment older.
    parts.recipients.send_digest(recipient, actor, began, "check --send")
    return _within(_DIGEST_SECONDS, outcome) or Finding(
        False,
        topic,
        f"not sent within {_DIGEST_SECONDS:.0f} s: the digest process does not run, or is busy with other digests. See "
        "the line `digest process` above, and its log",
    )


def _release(parts: Parts, delivery: Delivery, actor: Actor) -> Finding:
    topic = "test: relay"
    try:
        parts.actions.release(delivery.id, delivery.number, actor, operator=True)
    except RelayDeferred as error:
        return Finding(False, topic, f"not released: {error}. The digest process keeps trying")
    except RelayRefused as error:
        return Finding(
            False,
            topic,
            f"not released: {error}. If the mail server scans the message again, set relay.url to a listener that does "
            "not (deploy/postfix/master.cf.part)",
        )
    except QuarantineError as error:
        return Finding(False, topic, f"not released: {error}")
    reply = parts.store.deliveries.history(delivery.key)[-1].detail
    return Finding(
        True,
        topic,
        f"released, and the mail server answered {shown(reply, 200)}. Look for “{shown(delivery.message.subject)}” in "
        f"the inbox of {shown_address(delivery.recipient)}. Whether the mail server asks Rspamd was not tested",
    )


def _within(seconds: float, result: Callable[[], T | None]) -> T | None:
    """Call ``result`` until it is not None, for at most this long."""
    deadline = time.monotonic() + seconds
    while (found := result()) is None and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)
    return found
