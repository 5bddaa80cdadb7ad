"""The acts: release, delete, restore, ask, refuse – each checked here, where it happens, whoever calls.

Links, signed-in pages and the command line all come through `Actions`. A release is: claim (a committed row with a
lease), send the bytes as they came with two lines in front, record. A crash between the last two repeats the
mail to the same recipient; nothing can lose it or send it to anyone else.
"""

from __future__ import annotations

import logging
import shlex
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from email.utils import format_datetime
from itertools import chain
from typing import Any
from uuid import UUID

from portal.mail.relay import Relay
from portal.mail.render import Render
from portal.model.clock import utc_now
from portal.model.errors import (
    AlreadyDone,
    NotAllowed,
    QuarantineError,
    RelayDeferred,
    RelayRefused,
    RelayUnreachable,
    StoreUnavailable,
)
from portal.model.links import MARK_HEADER, Links
from portal.model.message import Actor, ActorKind, Delivery, DeliveryId, Event, EventKind, Message, State, Tier, new_id
from portal.model.text import shown
from portal.stores import Store, notes
from portal.stores.records import QueuedMail
from portal.stores.rules import address_of

log = logging.getLogger("quarantine.release")

GIVE_UP_AFTER = timedelta(days=5)  # RFC 5321, 4.5.4.1: the sender needs to try for 4-5 days
_DANGEROUS = "only an administrator can release this message"
_ALARM_EVERY = timedelta(hours=1)
_SYMBOLS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Actions:
    """What may be done to a delivery, by whom."""

    store: Store
    relay: Relay
    links: Links
    render: Render
    from_address: str | None  # of our own mail; None: none can be sent
    admin_address: str | None
    is_local: Callable[[str], bool]
    language_of: Callable[[str], str]  # whoever has an address
    host: str = field(default_factory=socket.getfqdn)
    now: Callable[[], datetime] = utc_now

    def release(self, id: UUID, number: int, actor: Actor, *, operator: bool = False, again: bool = False) -> Delivery:
        """Send one delivery to its recipient, now. Returns it as `released`. An operator may send ``again`` what was
        released before: it can be lost behind the mail server, or be deleted by mistake.

        Raises NotFound; NotAllowed when the mail is dangerous and the actor is no operator; AlreadyDone;
        RelayDeferred (it stays `releasing` and is tried again by the digest process; the administrator is told where
        it is ``portal_rejected``); RelayRefused, BodyMissing or BodyDamaged (`held` again with the reason). A mail that
        becomes dangerous before it is sent is `held` again.
        """
        delivery = self.store.deliveries.get(DeliveryId(id, number))
        if not delivery.recipient:
            raise NotAllowed("the recipient of this message is not known: name one with --recipient")
        if operator:
            allowed = {State.HELD, State.REQUESTED, State.DELETED} | ({State.RELEASED} if again else set())
        elif delivery.message.tier is not Tier.DANGEROUS:
            allowed = {State.HELD}
        elif delivery.state is State.HELD:
            raise NotAllowed(_DANGEROUS)
        else:
            # Not from `held` either: a request may be refused between our look and the claim.
            allowed = set()
        return self._send(id, number, allowed, actor)

    def retry(self, id: UUID, number: int) -> Delivery:
        """Go on with a release whose time for another try has come. Raises as `release`."""
        return self._send(id, number, set(), Actor(ActorKind.DIGEST))

    def _send(self, id: UUID, number: int, allowed: set[State], actor: Actor) -> Delivery:
        reply = ""
        with self.store.deliveries.releasing(
            DeliveryId(id, number), allowed, actor, self.now(), lambda: reply
        ) as delivery:
            message = delivery.message
            self._check_tier(delivery)
            try:
                # Opened before the server is asked for anything: a mail whose file is gone shall not begin to go.
                body = self.store.messages.body(id)
                first = next(body, b"")
                reply = self.relay.send(
                    # Not knowing the sender, the null sender is the one that cannot bounce to a stranger.
                    message.envelope_sender or "",
                    delivery.address,
                    chain((self._front(message), first), body),
                    has_8bit=message.has_8bit,
                )
            except (RelayDeferred, StoreUnavailable) as error:
                log.warning(
                    "deferred id=%s recipient=%s tries=%d: %s",
                    id,
                    delivery.recipient,
                    delivery.attempts,
                    error,
                )
                portal_rejected = isinstance(error, RelayDeferred) and error.portal_rejected
                if portal_rejected:
                    self._report_rejection(error)
                if self._too_old(delivery):
                    # Its recipient reads this reason. What is not about this message is the administrator's to know,
                    # who finds it in the history.
                    hidden = portal_rejected or isinstance(error, RelayUnreachable)
                    why = "the mail server did not take it; please tell your administrator" if hidden else error
                    raise RelayRefused(f"given up after {GIVE_UP_AFTER.days} days: {why}") from error
                raise
            except RelayRefused as error:
                log.warning("refused id=%s recipient=%s: %s", id, delivery.recipient, error)
                raise
            log.info("released id=%s recipient=%s by=%s: %s", id, delivery.recipient, actor.who, reply)
        return self.store.deliveries.get(DeliveryId(id, number))

    def _check_tier(self, delivery: Delivery) -> None:
        """Raise NotAllowed for dangerous mail unless an operator began this release.

        Checked under the claim: the verdict may have got worse since the release was allowed, and between two tries.
        """
        if delivery.message.tier is Tier.DANGEROUS:
            begun = self._begun(delivery)
            if begun is None or begun.actor.kind is not ActorKind.OPERATOR:
                log.warning("not released id=%s recipient=%s: dangerous by now", delivery.id, delivery.recipient)
                raise NotAllowed(_DANGEROUS)

    def _begun(self, delivery: Delivery) -> Event | None:
        """Return the event with which the current release began."""
        history = self.store.deliveries.history(delivery.key)
        return next((event for event in reversed(history) if event.kind is EventKind.RELEASING), None)

    def _report_rejection(self, error: QuarantineError) -> None:
        self.alarm_hourly(
            "the mail server rejects releases",
            f"The mail server of relay.url answered a release: {error}. That is about this portal, not about the "
            "message. Check that relay.url leads to the listener of deploy/postfix/master.cf.part, that mynetworks "
            "there has this host, and that the login in relay.url is right, if it has one. The messages are kept and "
            f"tried again by themselves, for {GIVE_UP_AFTER.days} days.",
        )

    def _too_old(self, delivery: Delivery) -> bool:
        begun = self._begun(delivery)
        return begun is not None and self.now() - begun.at > GIVE_UP_AFTER

    def _front(self, message: Message) -> bytes:
        # In front only, never removed or rewritten: what DKIM and ARC signed stays as it was.
        came_from = f"unknown ([{message.client_ip}])" if message.client_ip else "unknown"
        return (
            f"Received: from {came_from}\r\n"
            f"\tby {self.host} (quarantine, held {message.held_at:%Y-%m-%dT%H:%M:%SZ})\r\n"
            f"\tid {message.id}; {format_datetime(self.now())}\r\n"
            f"{MARK_HEADER}: {self.links.mark('release', message.id)}\r\n"
        ).encode("ascii", "replace")

    def delete(self, id: UUID, number: int, actor: Actor) -> Delivery:
        """Put a delivery out of sight; `restore` undoes it until retention. Raises NotFound, AlreadyDone."""
        return self.store.deliveries.move(
            DeliveryId(id, number),
            State.DELETED,
            {State.HELD, State.REQUESTED},
            actor,
            self.now(),
            kind=EventKind.DELETED,
        )

    def restore(self, id: UUID, number: int, actor: Actor) -> Delivery:
        """Undo `delete`. Raises NotFound, AlreadyDone."""
        return self.store.deliveries.move(
            DeliveryId(id, number), State.HELD, {State.DELETED}, actor, self.now(), kind=EventKind.RESTORED
        )

    def request_release(self, id: UUID, number: int, actor: Actor) -> Delivery:
        """Ask the administrator for a delivery and tell them by mail, both or neither. Raises NotFound, AlreadyDone."""
        now = self.now()
        asked = replace(
            self.store.deliveries.get(DeliveryId(id, number)), state=State.REQUESTED, state_at=now, reason=""
        )
        mail = self._mail(
            self.admin_address,
            "request",
            delivery=asked,
            symbols=sorted(asked.message.symbols, key=lambda s: -s.score)[:_SYMBOLS_SHOWN],
            # To be copied into a shell, and whoever wrote the address may have meant it to be.
            recipient_argument=shlex.quote(shown(asked.recipient, 320)),
        )
        delivery = self.store.deliveries.move(
            DeliveryId(id, number), State.REQUESTED, {State.HELD}, actor, now, kind=EventKind.REQUESTED, mail=mail
        )
        log.info("requested id=%s recipient=%s", id, delivery.recipient)
        return delivery

    def refuse_request(self, id: UUID, number: int, actor: Actor, reason: str) -> Delivery:
        """Decline a request with a word of reason, which its recipient gets to see. Raises NotFound, AlreadyDone."""
        now = self.now()
        refused = replace(
            self.store.deliveries.get(DeliveryId(id, number)), state=State.HELD, state_at=now, reason=reason
        )
        to = address_of(refused.recipient, refused.address) if self.is_local(refused.recipient) else None
        mail = self._mail(to, "refused", delivery=refused)
        delivery = self.store.deliveries.move(
            DeliveryId(id, number),
            State.HELD,
            {State.REQUESTED},
            actor,
            now,
            kind=EventKind.REFUSED,
            reason=reason,
            mail=mail,
        )
        log.info("request refused id=%s recipient=%s by=%s", id, delivery.recipient, actor.who)
        return delivery

    def alarm(self, subject: str, text: str, *, note: tuple[str, str | None, str] | None = None) -> None:
        """Tell the administrator something they must look at. In English, like the log it goes with.

        ``note``: what `Notes.compare_and_set` takes. Only the process that sets it queues the mail. Raises
        StoreUnavailable.
        """
        mail = self._mail(self.admin_address, "alarm", language="en", subject=subject, text=text)
        if note is None:
            log.error("alarm: %s", subject)
            if mail is not None:
                self.store.outbox.add(mail, self.now())
        elif self.store.notes.compare_and_set(*note, self.now(), mail=mail):
            log.error("alarm: %s", subject)

    def alarm_hourly(self, subject: str, text: str) -> None:
        """`alarm`, at most once an hour for each subject, over all processes. What hinders it is logged, not raised."""
        now, note = self.now(), notes.alarm(subject)
        try:
            last = note.text(self.store)
            # Either way, so that a clock that was a year ahead does not silence it for a year.
            if last is None or abs(now - note.from_text(last)) >= _ALARM_EVERY:
                self.alarm(subject, text, note=(note.name, last, note.to_text(now)))
        except QuarantineError as error:
            log.error("alarm %r could not be sent: %s", subject, error)

    def _mail(self, to: str | None, template: str, *, language: str = "", **values: Any) -> QueuedMail | None:
        """A mail of ours in the language of its reader, to be queued; None when nobody is to be told or none can be
        sent."""
        if not to or self.from_address is None:
            return None
        id, now = new_id(), self.now()
        mail = self.render.mail(
            template,
            sender=self.from_address,
            to=to,
            id=id,
            mark=self.links.mark("mail", id),
            now=now,
            language=language or self.language_of(to),
            public_url=self.links.base_url,
            **values,
        )
        return QueuedMail(to, mail.as_bytes())


def retry_due(actions: Actions, limit: int = 100) -> int:
    """Go on with every release whose next try is due; returns how many were tried. One failure leaves the others."""
    due = actions.store.deliveries.due_releases(actions.now(), limit)
    for id, number in due:
        try:
            actions.retry(id, number)
        except (RelayDeferred, RelayRefused, AlreadyDone, NotAllowed):
            pass  # recorded and logged where it happened
        except QuarantineError as error:
            log.error("release failed id=%s number=%d: %s", id, number, error)
        except Exception:
            log.exception("release failed id=%s number=%d", id, number)
    return len(due)
