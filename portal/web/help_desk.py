"""Questions of readers about a message, which are mailed to the administrator of the recipient's domain.

The mail names the message by its id only, and no subject or text of it: the administrator looks it up.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime

from portal.actions import Actions
from portal.model.errors import NotFound
from portal.model.message import Actor, Delivery, Event, EventKind
from portal.model.text import shown
from portal.stores.lifecycle import QUESTION_INTERVAL, is_past

log = logging.getLogger("quarantine.questions")

QUESTION_CHARACTERS = 500  # longer questions are cut


def has_help_desk(actions: Actions, delivery: Delivery) -> bool:
    """Return whether the domain of a delivery's recipient has an administrator who can be asked by mail."""
    policy = actions.domains.of(delivery.recipient)
    return policy.admin_address is not None and policy.from_address is not None


def asked_at(events: Sequence[Event], now: datetime) -> datetime | None:
    """Return when somebody last asked about a delivery, None if that is so long ago that a question may be asked.

    ``events``: its history, oldest first.
    """
    last = next((event.at for event in reversed(events) if event.kind is EventKind.ASKED), None)
    return None if is_past(last, QUESTION_INTERVAL, now) else last


def ask(actions: Actions, delivery: Delivery, person: str, actor: Actor, question: str) -> None:
    """Record a question about a delivery and queue the mail with it, in one transaction.

    ``person``: the address of the reader who asks; ``question``: as typed, it may be empty. Raises NotFound if nobody
    can be asked; AlreadyDone within a day after the last question about this delivery.
    """
    question, policy = shown(question, QUESTION_CHARACTERS), actions.domains.of(delivery.recipient)
    mail = actions.mail(
        policy.admin_address,
        "question",
        policy,
        delivery=delivery,
        person=person,
        question=question,
    )
    if mail is None:
        raise NotFound("there is no administrator who can be asked")
    event = Event(actions.now(), EventKind.ASKED, actor, question)
    actions.store.deliveries.record(delivery.key, event, mails=[mail], interval=QUESTION_INTERVAL)
    log.info("question queued id=%s recipient=%s", delivery.id, delivery.recipient)
