"""The routes of one message, and of what is done with messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field

from portal.model.errors import (
    AlreadyDone,
    BodyDamaged,
    BodyMissing,
    NotAllowed,
    NotFound,
    RelayDeferred,
    RelayRefused,
)
from portal.model.message import Delivery, Event, State, Tier
from portal.model.reasons import explain, why
from portal.model.text import shown
from portal.policy.recipients import REASON_CHARACTERS
from portal.policy.staff import Permission
from portal.web.api.route import Caller, Model, Name, Route
from portal.web.api.search import Found, SymbolScore, fields_of
from portal.web.found import visible
from portal.web.listing import name_of
from portal.web.pages import Pages

IDS_MAX = 50  # of one request
_ACT_SECONDS = 10  # no act begins later: with the 30 s of a release this is below uWSGI's harakiri
_EXAMPLE = "01a2b3c4-d5e6-7f01-8a2b-3c4d5e6f7a8b.0"
_PATTERN = "[0-9a-f-]{36}(?:\\.[0-9]{1,5})?"
_NAME = Name(_PATTERN, "The id of a delivery. That of a message alone means its first delivery.", _EXAMPLE)


# ---- requests and answers


def _distinct(ids: list[str]) -> list[str]:
    if len(set(ids)) < len(ids):
        raise ValueError("an id is named twice")
    return ids


# As `name_of` writes it, so that results are found by it, and one delivery has one name.
DeliveryName = Annotated[str, Field(pattern=r"^[0-9a-f-]{36}\.(?:0|[1-9][0-9]{0,4})$")]


class Act(Model):
    """An act, and the deliveries to act on."""

    ids: Annotated[list[DeliveryName], Field(min_length=1, max_length=IDS_MAX), AfterValidator(_distinct)] = Field(
        description="Ids of deliveries, each once. For more use a job.", json_schema_extra={"uniqueItems": True}
    )
    reason: str = Field("", max_length=REASON_CHARACTERS, description="For the history and the audit.")


class ReleaseAct(Act):
    """The deliveries to release."""

    max_tier: Tier = Field(
        Tier.SPAM, description="More harmful messages are left alone, so that a program releases them on purpose only."
    )


class Outcome(StrEnum):
    """The outcome of an act for one delivery."""

    DONE = "done"
    DEFERRED = "deferred"  # the release has begun, and is tried again until the mail server answers
    FAILED = "failed"  # the mail server rejected it, or its content is missing: it is held again
    UNCHANGED = "unchanged"  # it is in a state in which this cannot be done, or another process is doing it
    NOT_PERMITTED = "not-permitted"  # the token may see it, but may not do this
    TOO_HARMFUL = "too-harmful"  # its tier is above max_tier
    NOT_FOUND = "not-found"  # no such delivery, or none that the token may see
    NOT_TRIED = "not-tried"  # the time was over: send these again in another request


class ActResult(Model):
    """The outcome for one delivery."""

    id: str
    outcome: Outcome
    state: State | None = Field(description="The state afterwards; null if it is not known.")
    detail: str = Field(
        description='What the mail server said, or why nothing was done; "" if there is nothing to say.'
    )


class ActResults(Model):
    """The outcomes, in the order of the ids."""

    results: list[ActResult]


class SymbolDetail(SymbolScore):
    """A symbol of Rspamd, with its meaning."""

    text: str = Field(description="In words, in English.")
    options: list[str]


class HistoryEvent(Model):
    """Something that happened to a delivery."""

    at: datetime
    kind: str
    actor: str
    via: str
    address: str = Field(description="The IP address of the client.")
    detail: str


class ScanDetail(Model):
    """The last virus scan."""

    outcome: str
    at: datetime | None
    symbols: list[str]
    detail: str


class Copy(Model):
    """Another delivery of the same message."""

    id: str
    recipient: str
    state: State


class MessageDetail(Found):
    """Everything about one recipient's copy of a message, except its content."""

    reasons: list[str] = Field(description="Why it was held, in words, in English.")
    symbols: list[SymbolDetail]  # type: ignore[assignment]  # each is a SymbolScore
    attachments: list[str] = Field(description="The names of attachments, as soon as they were read.")
    user: str | None = Field(description="Who signed in at the mail server to send it.")
    flags: list[str] = Field(description="Problems of Rspamd's report.")
    scan: ScanDetail | None
    attempts: int = Field(description="How often the current or last release was tried.")
    next_try_at: datetime | None
    announced_at: datetime | None = Field(description="When a digest listed it.")
    history: list[HistoryEvent]
    others: list[Copy] = Field(description="The other deliveries of the message that the token may see.")


def _event(event: Event) -> HistoryEvent:
    actor = event.actor
    return HistoryEvent(
        at=event.at, kind=event.kind, actor=actor.who, via=actor.via, address=actor.address, detail=event.detail
    )


# ---- routes


class MessageRoutes:
    """GET /messages/{id}, and POST /messages/release, /delete and /restore."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._parts = pages.parts

    def table(self) -> Sequence[Route]:
        """Return the routes."""
        return (
            Route(
                method="GET",
                path="/messages/{id}",
                permission=Permission.SEE_ENVELOPE,
                operation="getMessage",
                summary="Show a message",
                text="Returns everything about one delivery except the content of the message: what Rspamd found, its "
                "state, its history and the last virus scan.",
                handler=self.show,
                answer=MessageDetail,
                names={"id": _NAME},
            ),
            self._act(
                "release", Permission.RELEASE_SPAM, self.release, ReleaseAct, "Sends messages to their recipients."
            ),
            self._act("delete", Permission.DELETE, self.delete, Act, "Deletes messages. `restore` undoes it."),
            self._act("restore", Permission.RESTORE, self.restore, Act, "Undoes the deletion of messages."),
        )

    def _act(
        self, name: str, permission: Permission, handler: Callable[..., ActResults], body: type[Model], text: str
    ) -> Route:
        return Route(
            method="POST",
            path=f"/messages/{name}",
            permission=permission,
            operation=f"{name}Messages",
            summary=f"{name.capitalize()} messages",
            text=f"{text} Each id has an outcome of its own; status 200 does not mean that all are done.",
            handler=handler,
            answer=ActResults,
            body=body,
            example=f'{{"ids": ["{_EXAMPLE}"], "reason": "false positive"}}',
        )

    def show(self, caller: Caller, id: str) -> MessageDetail:
        """GET /messages/{id}."""
        delivery, others = visible(self._parts.store, self._parts.staff, caller.member, id)
        message, events = delivery.message, self._parts.store.deliveries.history(delivery.key)
        scan = message.scan and ScanDetail(
            outcome=message.scan.outcome,
            at=message.scan.at,
            symbols=[each.name for each in message.scan.symbols],
            detail=message.scan.detail,
        )
        symbols = [
            SymbolDetail(name=each.name, score=each.score, text=explain(each), options=list(each.options))
            for each in message.symbols
        ]
        return MessageDetail(
            **{**fields_of(delivery), "symbols": symbols},
            reasons=why(message),
            attachments=list(message.attachments),
            user=message.user,
            flags=sorted(message.flags),
            scan=scan,
            attempts=delivery.attempts,
            next_try_at=delivery.next_try_at,
            announced_at=delivery.announced_at,
            history=[*map(_event, events)],
            others=[Copy(id=name_of(each.key), recipient=each.address, state=each.state) for each in others],
        )

    def release(self, caller: Caller, body: ReleaseAct) -> ActResults:
        """POST /messages/release."""
        found, results = self._found(caller, body)
        too_harmful = [each for each in found if each.message.tier in body.max_tier.more_harmful]
        for each in too_harmful:
            detail = f"Its tier is {each.message.tier}: set max_tier to release it."
            results[name_of(each.key)] = _result(each, Outcome.TOO_HARMFUL, detail)

        def check(claimed: Delivery) -> None:
            if claimed.message.tier in body.max_tier.more_harmful:
                raise NotAllowed("it became more harmful a moment ago")
            self._parts.staff.check_release(caller.member, claimed)

        left = [each for each in found if name_of(each.key) not in results]
        reason, too_late = _reason(body), _time_limit()
        with closing(self._pages.release_several_as_staff(left, caller.actor, check, reason, too_late)) as outcomes:
            return _results(body, results, outcomes)

    def delete(self, caller: Caller, body: Act) -> ActResults:
        """POST /messages/delete."""
        return self._each(caller, body, Permission.DELETE, self._parts.actions.delete)

    def restore(self, caller: Caller, body: Act) -> ActResults:
        """POST /messages/restore."""
        return self._each(caller, body, Permission.RESTORE, self._parts.actions.restore)

    def _each(self, caller: Caller, body: Act, permission: Permission, act: Callable[..., Delivery]) -> ActResults:
        found, results = self._found(caller, body)
        reason, too_late = _reason(body), _time_limit()

        def outcome(delivery: Delivery) -> Delivery | Exception:
            if not self._parts.staff.may_for(caller.member, permission, delivery):
                return NotAllowed("the role of this token does not permit it")
            try:
                return act(delivery.id, delivery.number, caller.actor, reason=reason)
            except (NotFound, AlreadyDone) as error:
                return error

        return _results(body, results, ((each, outcome(each)) for each in found if not too_late()))

    def _found(self, caller: Caller, body: Act) -> tuple[Sequence[Delivery], dict[str, ActResult]]:
        """Return the deliveries that the token may see, and the results of the other ids."""
        found: list[Delivery] = []
        results: dict[str, ActResult] = {}
        for id in body.ids:
            try:
                found.append(visible(self._parts.store, self._parts.staff, caller.member, id)[0])
            except NotFound:
                results[id] = ActResult(id=id, outcome=Outcome.NOT_FOUND, state=None, detail="")
        return found, results


def _reason(body: Act) -> str:
    return shown(body.reason.strip(), REASON_CHARACTERS)


def _time_limit() -> Callable[[], bool]:
    end = time.monotonic() + _ACT_SECONDS
    return lambda: time.monotonic() > end


def _results(
    body: Act, results: dict[str, ActResult], outcomes: Iterable[tuple[Delivery, Delivery | Exception]]
) -> ActResults:
    """Return the results in the order of the ids. Raises StoreUnavailable."""
    for delivery, outcome in outcomes:
        results[name_of(delivery.key)] = _of_outcome(delivery, outcome)
    not_tried = {id: ActResult(id=id, outcome=Outcome.NOT_TRIED, state=None, detail="") for id in body.ids}
    return ActResults(results=[{**not_tried, **results}[id] for id in body.ids])


def _of_outcome(delivery: Delivery, outcome: Delivery | Exception) -> ActResult:
    match outcome:
        case Delivery():
            return _result(outcome, Outcome.DONE)
        case RelayDeferred():
            return _result(replace(delivery, state=State.RELEASING), Outcome.DEFERRED, str(outcome))
        case RelayRefused() | BodyMissing() | BodyDamaged():
            return _result(replace(delivery, state=State.HELD), Outcome.FAILED, str(outcome))
        case AlreadyDone():
            return _result(outcome.delivery or delivery, Outcome.UNCHANGED, str(outcome))
        case NotAllowed():
            return _result(delivery, Outcome.NOT_PERMITTED, str(outcome))
        case NotFound():
            return ActResult(id=name_of(delivery.key), outcome=Outcome.NOT_FOUND, state=None, detail="")
        case _:
            raise outcome


def _result(delivery: Delivery, outcome: Outcome, detail: str = "") -> ActResult:
    return ActResult(id=name_of(delivery.key), outcome=outcome, state=delivery.state, detail=detail)
