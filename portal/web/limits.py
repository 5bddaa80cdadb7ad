"""Limits on how often one person may do what costs others: the audit has when they did it."""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

from portal.model.audit import AuditFilter
from portal.model.message import EventKind
from portal.model.text import N_
from portal.web.pages import Pages
from portal.web.request import Request


class _Limit(NamedTuple):
    number: int
    interval: timedelta
    text: str  # to be translated


_LIMITS = {
    EventKind.DOWNLOADED: _Limit(
        60,
        timedelta(minutes=10),
        N_("You downloaded many files in a short time. Wait ten minutes, then try again."),
    ),
    EventKind.RELEASING: _Limit(
        60,
        timedelta(minutes=10),
        N_("You released many messages in a short time. Wait ten minutes, then try again."),
    ),
    EventKind.ASKED: _Limit(
        20,
        timedelta(days=1),
        N_("You asked your administrator many questions today. Try again tomorrow."),
    ),
}


def check_limit(pages: Pages, request: Request, person: str, kind: EventKind) -> None:
    """Raise 429 if a person has caused too many events of this kind, on all deliveries together.

    Requests that run at the same time may exceed the limit by their number.
    """
    limit = _LIMITS[kind]
    wanted = AuditFilter(person=person, act=kind, since=pages.now() - limit.interval)
    if len(pages.parts.store.audit.list(wanted, limit.number)) >= limit.number:
        seconds = str(int(limit.interval.total_seconds()))
        raise pages.notice(request, N_("Too many requests"), limit.text, 429, Retry_After=seconds)
