"""Actions on deliveries: release, delete, restore; those on release requests are in `portal.policy.release_requests`.

`Actions` checks each of them, whether it comes from a link, a signed-in page or the command line. A release has three
steps: claim (a committed row with a lease), send the original bytes with two header fields prepended, record. A crash
between the last two steps sends the message to the same recipient again. No crash can lose it or send it to anyone
else.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from datetime import timedelta
from email.utils import format_datetime
from itertools import chain
from typing import TYPE_CHECKING
from uuid import UUID

from portal.model.errors import (
    AlreadyDone,
    NotAllowed,
    QuarantineError,
    RelayDeferred,
    RelayRefused,
    RelayUnreachable,
    RspamdUnavailable,
    StoreUnavailable,
)
from portal.model.links import MARK_HEADER
from portal.model.message import (
    RELEASABLE,
    Actor,
    ActorKind,
    Delivery,
    DeliveryId,
    Event,
    EventKind,
    Message,
    State,
    Tier,
)
from portal.model.record import record
from portal.model.rights import ReleaseRight
from portal.model.text import N_
from portal.model.vote import Label
from portal.policy.decision import WhyNot, why_not
from portal.policy.learning import Learning
from portal.policy.release_requests import NOT_BY_RECIPIENTS, ReleaseRequests
from portal.scanning import RELEASE_SECONDS, Scanning
from portal.stores.durations import Measured, sending
from portal.stores.lifecycle import is_past

if TYPE_CHECKING:
    from portal.mail.relay import Relay

log = logging.getLogger("quarantine.release")

GIVE_UP_AFTER = timedelta(days=5)  # RFC 5321, 4.5.4.1: the sender needs to try for 4-5 days
_SCAN_REPORTED = N_("the virus scan reported a problem")
_NOT_SCANNED = N_("the message could not be scanned for viruses")
_NO_EFFECT = N_("the rule cannot take effect on this message")
_AGAIN_AFTER = timedelta(minutes=1)  # so that nobody fills a mailbox with copies
_SCAN_TRIES = 4  # of a release, in a quarter of an hour

Check = Callable[[Delivery], object]  # raises NotAllowed, or does nothing


@record(frozen=True, slots=True, kw_only=True)
class Actions(ReleaseRequests):
    """Actions on deliveries, with their permission checks, and the portal's mail about them."""

    relay: Relay
    scanning: Scanning
    learning: Learning
    host: str = field(default_factory=socket.getfqdn)

    def release(
        self,
        id: UUID,
        number: int,
        actor: Actor,
        *,
        operator: bool = False,
        again: bool = False,
        check: Check = bool,
        reason: str = "",
    ) -> Delivery:
        """Send one delivery to its recipient now. Return it in its new state `released`.

        With ``again`` a delivery that was released or passed before is sent once more: it may have been lost after the
        mail server accepted it, or been deleted by mistake. Recipients may do so one minute after the last time.
        ``check`` is called with the delivery in the transaction of the claim, and may raise NotAllowed.
        ``reason`` is the operator's, for the audit.

        Raises NotFound; NotAllowed if only an administrator may release it and no operator acts;
        AlreadyDone; RelayDeferred (the delivery stays `releasing` and the digest process tries again; if the error is
        ``portal_rejected`` the administrator gets an alarm); RelayRefused, BodyMissing or BodyDamaged (it is `held`
        again with the reason). A message that becomes dangerous before it is sent is `held` again, also if a virus scan
        right before it made it so; the release waits (RelayDeferred) if the scanner does not answer.
        """
        allowed = set(RELEASABLE)
        if operator:
            allowed |= {State.REQUESTED, State.DELETED, State.RELEASED}
            allowed -= set() if again else {State.RELEASED, State.PASSED}
        elif again:
            allowed = {State.RELEASED, State.PASSED}

        def check_all(delivery: Delivery) -> None:
            if operator:
                _check_recipient(delivery)
            elif again:
                self._check_again(delivery)
            else:
                self._check_release(delivery)
            check(delivery)

        return self._send(id, number, allowed, actor, check_all, reason)

    def queue_release(self, id: UUID, number: int, actor: Actor, *, check: Check = bool) -> Delivery:
        """Record that one delivery is to be released. The digest process sends it within seconds.

        Returns the delivery in its new state `releasing`. ``check`` is called with the delivery before, and may raise
        NotAllowed. Raises NotFound; NotAllowed if only an administrator may release it; AlreadyDone.
        """
        key, now = DeliveryId(id, number), self.now()
        delivery = self.store.deliveries.get(key)
        allowed: set[State] = set()  # not even `held`, since a request may be refused after this check
        if delivery.state in RELEASABLE:
            self._check_release(delivery)
            check(delivery)
            allowed = set(RELEASABLE)
        delivery = self.store.deliveries.move(
            key, State.RELEASING, allowed, actor, now, kind=EventKind.RELEASING, next_try_at=now
        )
        log.info("release queued id=%s recipient=%s", id, delivery.recipient)
        return delivery

    def retry(self, id: UUID, number: int) -> Delivery:
        """Continue a release whose next try is due. Raises as `release`."""
        return self._send(id, number, set(), Actor(ActorKind.DIGEST))

    def _send(
        self, id: UUID, number: int, allowed: set[State], actor: Actor, check: Check = bool, detail: str = ""
    ) -> Delivery:
        reply, now = "", self.now()
        with self.store.deliveries.releasing(
            DeliveryId(id, number), allowed, actor, now, lambda: reply, check=check, detail=detail
        ) as delivery:
            message = delivery.message
            self._check_tier(delivery)
            by_rule = actor.kind is ActorKind.DIGEST and self._is_by_rule(delivery)
            try:
                scanned = self._scan(delivery, by_rule=by_rule)
                if by_rule:
                    self._check_rule(delivery, scanned)
                # The body is opened before the SMTP session, so that a missing file does not interrupt a transaction.
                body = self.store.messages.body(id)
                first = next(body, b"")
                # If the sender is unknown, use the null sender: no bounce can then reach a third party.
                sender, chunks = message.envelope_sender or "", chain((self._prepended_headers(message), first), body)
                with sending(self.store, Measured.RELEASE):
                    reply = self.relay.send(sender, delivery.address, chunks, has_8bit=message.has_8bit)
            except (RelayDeferred, StoreUnavailable) as error:
                log.warning(
                    "deferred id=%s recipient=%s tries=%d: %s", id, delivery.recipient, delivery.attempts, error
                )
                portal_rejected = isinstance(error, RelayDeferred) and error.portal_rejected
                if portal_rejected:
                    self._report_rejection(error)
                if self._is_too_old(delivery):
                    # The recipient reads this reason. It omits errors that are not about this message. The
                    # administrator finds those in the history.
                    hidden = portal_rejected or isinstance(error, RelayUnreachable)
                    reason = "the mail server did not accept it; please contact your administrator" if hidden else error
                    raise RelayRefused(f"given up after {GIVE_UP_AFTER.days} days: {reason}") from error
                raise
            except RelayRefused as error:
                log.warning("refused id=%s recipient=%s: %s", id, delivery.recipient, error)
                raise
            log.info("released id=%s recipient=%s by=%s: %s", id, delivery.recipient, actor.who, reply)
        released = replace(delivery, state=State.RELEASED, state_at=now, reason="", next_try_at=None)
        self._learn(released, Label.HAM, EventKind.RELEASING)
        return released

    def _learn(self, delivery: Delivery, label: Label, kind: EventKind) -> None:
        """Record the decision of the person in the last event of this kind. Errors are logged and not raised.

        A release by a rule is nobody's decision.
        """
        if not self.learning.counts(ActorKind.OPERATOR):
            return
        try:
            events = self.store.deliveries.history(delivery.key)
        except QuarantineError as error:
            log.error("vote not recorded id=%s: %s", delivery.id, error)
            return
        by_rule = [e for e in events if e.actor.kind is ActorKind.RULE and e.kind is not EventKind.BLOCKED]
        actor = next((event.actor for event in reversed(events) if event.kind is kind), None)
        if actor is not None and not by_rule:
            self.learning.decided(delivery, label, actor, self.now())

    def _check_tier(self, delivery: Delivery) -> None:
        """Raise NotAllowed if only an administrator may release the message, unless an operator began this release.

        This is checked under the claim: the verdict may have got worse after the release was allowed, or between two
        tries. A release that staff began in the console or by the API also stops then: it may now need another role. So
        does one of a job: it was confirmed for a search, not for this message.
        """
        is_own, dangerous = self.domains.right(delivery) is ReleaseRight.SELF, delivery.message.tier is Tier.DANGEROUS
        if is_own and not dangerous:
            return
        history = self.store.deliveries.history(delivery.key)
        start = _release_start(history)
        kind = start.actor.kind if start else ActorKind.RECIPIENT
        if start and kind is ActorKind.OPERATOR:
            is_raised = any(event.kind is EventKind.RAISED for event in history[history.index(start) :])
            may_release = not (is_raised and (start.actor.is_limited or start.actor.is_job))
        else:
            may_release = is_own if kind is ActorKind.RECIPIENT else not dangerous  # else a rule began it
        if not may_release:
            log.warning(
                "not released id=%s recipient=%s: only an administrator can release it now",
                delivery.id,
                delivery.recipient,
            )
            self.report_finding(delivery.message)
            raise NotAllowed(NOT_BY_RECIPIENTS)

    def _check_release(self, delivery: Delivery) -> None:
        """Raise NotAllowed unless everybody who may read this delivery may release it."""
        _check_recipient(delivery)
        if self.domains.right(delivery) is not ReleaseRight.SELF:
            raise NotAllowed(NOT_BY_RECIPIENTS)

    def _check_again(self, delivery: Delivery) -> None:
        """Raise AlreadyDone if the delivery was sent less than a minute ago, and as `_check_release`."""
        if not is_past(delivery.state_at, _AGAIN_AFTER, self.now()):
            raise AlreadyDone("this delivery was sent a moment ago", delivery)
        self._check_release(delivery)

    def _is_by_rule(self, delivery: Delivery) -> bool:
        """Return whether an allow rule began the current release."""
        start = self._release_start(delivery)
        return start is not None and start.actor.kind is ActorKind.RULE

    def _check_rule(self, delivery: Delivery, message: Message) -> None:
        """Raise NotAllowed if no allow rule can have an effect on the message any more."""
        scanned = not self.scanning.required or (message.scan is not None and message.scan.is_done)
        reason = why_not(message, message.verdict_tier, scanned=scanned)
        if reason is not None:
            log.warning("not released id=%s recipient=%s by a rule: %s", message.id, delivery.recipient, reason.value)
            raise NotAllowed(_NOT_SCANNED if reason is WhyNot.NOT_SCANNED else _NO_EFFECT)

    def _scan(self, delivery: Delivery, *, by_rule: bool) -> Message:
        """Scan the message for viruses, unless that was done a short while ago. Return it as it is stored afterwards.

        Raises NotAllowed if it is more dangerous than at the claim; RelayDeferred if the release must wait for the
        scanner. A release that a rule began waits for some tries only: then its recipient should see the message.
        """
        scanned, error = self.scanned(delivery)
        if scanned.message.verdict_tier in delivery.message.tier.more_harmful:
            log.warning(
                "not released id=%s recipient=%s: a virus scan raised its tier", delivery.id, delivery.recipient
            )
            raise NotAllowed(_SCAN_REPORTED)
        if error is not None and (
            delivery.attempts < _SCAN_TRIES if by_rule else not self._may_release_unscanned(delivery)
        ):
            raise RelayDeferred("the release waits for the virus scanner") from error
        return scanned.message

    def scanned(self, delivery: Delivery) -> tuple[Delivery, RspamdUnavailable | None]:
        """Return a delivery after a virus scan of its message, unless that was done a short while ago, and the error if
        scanning it later may succeed. The administrator gets a report of what the scan finds.

        A release and a download begin with it. Raises StoreUnavailable, NotFound, BodyMissing, BodyDamaged.
        """
        message, now = delivery.message, self.now()
        if not self.scanning.is_due(message, now):
            return delivery, None
        stored, error = self.scanning.scan(message, now, RELEASE_SECONDS)
        if stored.verdict_tier in message.tier.more_harmful:
            self.report_finding(stored)
        return replace(delivery, message=stored), error

    def _may_release_unscanned(self, delivery: Delivery) -> bool:
        """Return whether a release may go on although the scanner does not answer.

        An operator decides for themselves. A message that the scanner can never read must not wait for days: after
        some tries it counts as one that cannot be scanned, if the scanner reads others.
        """
        start = self._release_start(delivery)
        by_operator = start is not None and start.actor.kind is ActorKind.OPERATOR
        if self.scanning.release_unscanned or by_operator:
            return True
        return delivery.attempts >= _SCAN_TRIES and self.scanning.works(RELEASE_SECONDS)

    def _release_start(self, delivery: Delivery) -> Event | None:
        """Return the event with which the current release began."""
        return _release_start(self.store.deliveries.history(delivery.key))

    def _report_rejection(self, error: QuarantineError) -> None:
        self.alarm_hourly(
            "the mail server rejects releases",
            f"The mail server of relay.url answered a release: {error}. It rejects this portal, not the message. "
            "Check that relay.url is the listener of deploy/postfix/master.cf.part, that mynetworks there includes "
            "this host, and that the login in relay.url is right, if it has one. The messages are kept, and their "
            f"releases are retried for {GIVE_UP_AFTER.days} days.",
        )

    def _is_too_old(self, delivery: Delivery) -> bool:
        start = self._release_start(delivery)
        return start is not None and self.now() - start.at > GIVE_UP_AFTER

    def _prepended_headers(self, message: Message) -> bytes:
        # Header fields are only prepended, never removed or rewritten, so that DKIM and ARC signatures stay valid.
        came_from = f"unknown ([{message.client_ip}])" if message.client_ip else "unknown"
        return (
            f"Received: from {came_from}\r\n"
            f"\tby {self.host} (quarantine, held {message.held_at:%Y-%m-%dT%H:%M:%SZ})\r\n"
            f"\tid {message.id}; {format_datetime(self.now())}\r\n"
            f"{MARK_HEADER}: {self.links.mark('release', message.id)}\r\n"
        ).encode("ascii", "replace")

    def delete(self, id: UUID, number: int, actor: Actor, *, reason: str = "") -> Delivery:
        """Hide a delivery. `restore` undoes this until the retention ends. Raises NotFound, AlreadyDone.

        ``reason``: for the audit.
        """
        return self.store.deliveries.move(
            DeliveryId(id, number),
            State.DELETED,
            {*RELEASABLE, State.REQUESTED},
            actor,
            self.now(),
            kind=EventKind.DELETED,
            detail=reason,
        )

    def confirm_spam(self, id: UUID, number: int, actor: Actor) -> Delivery:
        """Delete a delivery as spam, by which Rspamd may be trained. `restore` undoes both. Raises as `delete`."""
        delivery = self.store.deliveries.move(
            DeliveryId(id, number),
            State.DELETED,
            {*RELEASABLE, State.REQUESTED},
            actor,
            self.now(),
            kind=EventKind.CONFIRMED,
        )
        self._learn(delivery, Label.SPAM, EventKind.CONFIRMED)
        return delivery

    def restore(self, id: UUID, number: int, actor: Actor, *, reason: str = "") -> Delivery:
        """Undo `delete` or `confirm_spam`: the delivery is `blocked` or `passed` again if it was, otherwise `held`.

        ``reason``: for the audit. Raises NotFound, AlreadyDone.
        """
        key, now = DeliveryId(id, number), self.now()
        delivery = self.store.deliveries.restore(key, actor, now, detail=reason)
        deletions = []
        if self.learning.rspamd is not None:
            events = self.store.deliveries.last_events([key]).get(key, ())
            deletions = [event for event in events if event.kind in (EventKind.DELETED, EventKind.CONFIRMED)]
        if deletions and deletions[-1].kind is EventKind.CONFIRMED:
            self.learning.withdrawn(delivery, deletions[-1].actor, now)
        return delivery

    def unblock(self, id: UUID, number: int, actor: Actor) -> Delivery:
        """Let a blocked delivery count as held. Raises NotFound, AlreadyDone."""
        return self.store.deliveries.move(
            DeliveryId(id, number), State.HELD, {State.BLOCKED}, actor, self.now(), kind=EventKind.UNBLOCKED
        )

    def reannounce(self, id: UUID, number: int, actor: Actor, *, reason: str = "") -> Delivery:
        """Put a held delivery into the next digest of its readers again. ``reason``: for the audit.

        Raises NotFound, AlreadyDone, NotAllowed.
        """
        key = DeliveryId(id, number)
        _check_recipient(self.store.deliveries.get(key))
        return self.store.deliveries.reannounce(key, actor, self.now(), detail=reason)


def _release_start(history: Sequence[Event]) -> Event | None:
    """Return the event with which the current release began."""
    return next((event for event in reversed(history) if event.kind is EventKind.RELEASING), None)


def _check_recipient(delivery: Delivery) -> None:
    if not delivery.recipient:
        raise NotAllowed("the recipient of this message is not known: give one with --recipient")
