"""Release requests: a recipient requests or withdraws one, those who decide are reminded of it, or deny it.

A delivery with an open request is `requested`, and its ``reason`` is the recipient's. Approving a request is a release
(`Actions.release`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from uuid import UUID

from portal.model.errors import AlreadyDone, NotAllowed, NotFound
from portal.model.message import RELEASABLE, Actor, ActorKind, Delivery, DeliveryId, Event, EventKind, State, Tier
from portal.model.record import record
from portal.model.rights import ReleaseRight
from portal.model.text import N_, shown
from portal.policy.mailing import Mailing
from portal.stores.lifecycle import REMINDER_AFTER, address_of, is_past

log = logging.getLogger("quarantine.release")

REQUEST_REASON_CHARACTERS = 300  # longer reasons of recipients are cut
_DENIAL_CHARACTERS = 500
NOT_BY_RECIPIENTS = N_("only an administrator can release this message")


@record(frozen=True, slots=True, kw_only=True)
class ReleaseRequests(Mailing):
    """Actions on release requests, with their permission checks and mails."""

    is_local: Callable[[str], bool]

    def request_release(self, id: UUID, number: int, actor: Actor, *, reason: str = "") -> Delivery:
        """Record a request to release a delivery and queue a mail to those who decide, in one transaction.

        ``reason``: the recipient's own words, as typed; those who decide read them. Raises NotFound, AlreadyDone;
        NotAllowed if the administrator of the domain wants no requests.
        """
        now, reason = self.now(), shown(reason, REQUEST_REASON_CHARACTERS)
        requested = replace(
            self.store.deliveries.get(DeliveryId(id, number)), state=State.REQUESTED, state_at=now, reason=reason
        )
        if self.domains.right(requested) is ReleaseRight.ADMINISTRATOR:
            raise NotAllowed(NOT_BY_RECIPIENTS)
        delivery = self.store.deliveries.move(
            DeliveryId(id, number),
            State.REQUESTED,
            RELEASABLE,
            actor,
            now,
            kind=EventKind.REQUESTED,
            reason=reason,
            mails=self.request_mails(requested),
        )
        log.info("requested id=%s recipient=%s", id, delivery.recipient)
        return delivery

    def withdraw_request(self, id: UUID, number: int, actor: Actor) -> Delivery:
        """Withdraw a release request: the delivery is in its state before again.

        Raises NotFound; AlreadyDone if it was decided.
        """
        event = Event(self.now(), EventKind.WITHDRAWN, actor)
        delivery = self.store.deliveries.end_request(DeliveryId(id, number), event)
        log.info("request withdrawn id=%s recipient=%s", id, delivery.recipient)
        return delivery

    def remind(self, key: DeliveryId) -> bool:
        """Remind those who decide of a release request that is open for `REMINDER_AFTER`, once for each request.

        Returns whether a mail was queued. Raises StoreUnavailable.
        """
        now = self.now()
        with suppress(NotFound, AlreadyDone):
            delivery, mails = self.store.deliveries.get(key), []
            if delivery.state is State.REQUESTED and is_past(delivery.state_at, REMINDER_AFTER, now):
                mails = self.request_mails(delivery, reminder=True)
            if mails:
                event = Event(now, EventKind.REMINDED, Actor(ActorKind.DIGEST))
                # Nobody is reminded of a request that was decided or withdrawn since it was read.
                self.store.deliveries.record(
                    key, event, allowed={State.REQUESTED}, mails=mails, interval=REMINDER_AFTER
                )
                log.info("reminder of a request id=%s recipient=%s", delivery.id, delivery.recipient)
                return True
        return False

    def refuse_request(self, id: UUID, number: int, actor: Actor, reason: str) -> Delivery:
        """Deny a release request: the delivery is in its state before again. The recipient sees ``reason``.

        Raises NotFound, AlreadyDone; NotAllowed if nothing of the reason is visible: pages show a denial by its reason.
        """
        now, reason = self.now(), shown(reason, _DENIAL_CHARACTERS)
        if not reason:
            raise NotAllowed("a denial needs a reason that the recipient can read")
        refused = replace(self.store.deliveries.get(DeliveryId(id, number)), reason=reason)
        dangerous = refused.message.tier is Tier.DANGEROUS
        to = address_of(refused.recipient, refused.address) if self.is_local(refused.recipient) else None
        mail = self.mail(to, "refused", self.domains.of(refused.recipient), delivery=refused, dangerous=dangerous)
        event = Event(now, EventKind.REFUSED, actor, reason)
        delivery = self.store.deliveries.end_request(refused.key, event, [mail] if mail else ())
        log.info("request refused id=%s recipient=%s by=%s", id, delivery.recipient, actor.who)
        return delivery
