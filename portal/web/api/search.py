"""The routes of searches: lists and groups of deliveries. The criteria are those of `portal.model.criteria`."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from datetime import UTC, date, datetime
from functools import partial
from typing import Any, Literal, TypeVar

from pydantic import Field, create_model

from portal.assemble import Parts
from portal.model import criteria
from portal.model.message import ACTIONS, Delivery, Filter, State, Tier
from portal.model.staff import EVERYWHERE
from portal.policy.empty_search import why_nothing
from portal.policy.staff import Member, Permission
from portal.stores.records import GroupBy, Order, Total
from portal.web.api.problems import FieldProblem, invalid
from portal.web.api.route import Caller, Model, Route, Text
from portal.web.found import counted, found_page, is_place
from portal.web.listing import name_of
from portal.web.pages import Pages

_LIMIT, _LIMIT_MAX = 50, 200
_GROUPS_MAX = 1_000
_VALUES: dict[str, Any] = {"tier": Tier, "state": State, "action": Literal[ACTIONS]}  # the others are texts


# ---- requests


class Search(Model):
    """The criteria of a search. `with_criteria` adds the fields."""

    def texts(self) -> dict[str, list[str]]:
        """Return the criteria as they were typed, by name."""
        typed = self.model_dump(by_alias=True, exclude_defaults=True)
        return {
            name: value if isinstance(value, list) else [value]
            for name, value in typed.items()
            if name in criteria.NAMES
        }

    def filter(self, parts: Parts, member: Member) -> Filter:
        """Return the criteria, for the deliveries that a token may see. Times without a zone are in UTC.

        Raises BadCriterion.
        """
        reach = parts.staff.reach(member, Permission.SEE_ENVELOPE)
        wanted = parts.people.searched(criteria.read(self.texts(), UTC, parts.actions.now()))
        return wanted.within(None if EVERYWHERE in reach else reach)


S = TypeVar("S", bound=Search)


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def with_criteria(name: str, base: type[S]) -> type[S]:
    """Return a model with the fields of ``base`` and one for each criterion."""
    fields: dict[str, Any] = {}
    for each in criteria.CRITERIA:
        kind: Any = _VALUES.get(each.name, Text)
        # An empty value is no value of a criterion, so the document does not name it as the default.
        field = partial(Field, alias=each.name, description=each.help, json_schema_extra=_without_default)
        whole = (list[kind], field([], max_length=100)) if each.many else (kind, field(""))
        fields[each.name.replace("-", "_")] = whole
    model: type[S] = create_model(name, __base__=base, **fields)
    return model


class _ListQuery(Search):
    limit: int = Field(_LIMIT, ge=1, le=_LIMIT_MAX, description="The most deliveries in the answer.")
    order: Order = Field(Order.NEWEST, description="The order; by score only those that have one are listed.")
    cursor: str = Field("", max_length=200, description="The value of next in the answer before.")
    count: bool = Field(False, description="Whether to count what is found; exact up to 10,000.")


class _GroupsQuery(Search):
    by: GroupBy = Field(description="What to group by.")


ListQuery, GroupsQuery = with_criteria("ListQuery", _ListQuery), with_criteria("GroupsQuery", _GroupsQuery)


# ---- answers


class SymbolScore(Model):
    """A symbol of Rspamd."""

    name: str
    score: float


class Found(Model):
    """One recipient's copy of a message."""

    id: str = Field(description="The id of the delivery: that of the message, and its number.")
    recipient: str = Field(description='The address as in the envelope; "" if it is not known.')
    state: State
    state_at: datetime
    reason: str = Field(
        description="Why the last release failed or the request was denied; in the state requested, why the recipient "
        'requests the release; "" if there is none.'
    )
    held_at: datetime
    envelope_sender: str | None = Field(description='"" is the null sender; null: not known.')
    header_from: str
    subject: str
    tier: Tier
    score: float | None
    threshold: float | None = Field(description="The score at which the action begins; null: not known.")
    action: str | None
    client_ip: str | None
    size_bytes: int
    queue_id: str | None
    message_id: str | None = Field(description="The header Message-ID, without < >.")
    symbols: list[SymbolScore]


class Count(Model):
    """The number of deliveries that a search finds."""

    count: int
    exact: bool = Field(description="False if there are more, or may be.")

    @classmethod
    def of(cls, total: Total) -> Count:
        """Return the count of a store."""
        return cls(count=total.count, exact=total.exact)


class FoundList(Model):
    """A page of what a search finds."""

    messages: list[Found]
    next: str | None = Field(description="The cursor of the next page, which may be empty; null on the last page.")
    complete: bool = Field(
        description="False if some are missing: the search took too long, or messages are still being indexed."
    )
    total: Count | None = Field(description="null unless count is true.")
    note: str = Field(description='Why nothing was found; "" otherwise.')


class FoundGroup(Model):
    """Deliveries that have something in common."""

    name: str = Field(description='A symbol, a domain ("" if it is not known), or an hour like 2026-11-28T03 in UTC.')
    count: int
    score: float = Field(description="The sum of the scores of a symbol; otherwise 0.")


class Days(Model):
    """Whole days in UTC."""

    first: date
    last: date


class FoundGroups(Model):
    """The deliveries that a search finds, grouped: at most 1,000 groups."""

    groups: list[FoundGroup]
    total: Count = Field(description="Of the deliveries that were counted: the newest 100,000, or more by whole days.")
    since: datetime | None = Field(description="When the oldest of them was held.")
    whole_days: Days | None = Field(
        description="The days whose numbers are from the statistics, with messages that were removed since; null: none."
    )
    note: str = Field(description='Why nothing was found; "" otherwise.')


def fields_of(delivery: Delivery) -> dict[str, Any]:
    """Return the values of `Found` for a delivery."""
    message = delivery.message
    return {
        "id": name_of(delivery.key),
        "recipient": delivery.address,
        "state": delivery.state,
        "state_at": delivery.state_at,
        "reason": delivery.reason,
        "held_at": message.held_at,
        "envelope_sender": message.envelope_sender,
        "header_from": message.header_from,
        "subject": message.subject,
        "tier": message.tier,
        "score": message.score,
        "threshold": message.threshold,
        "action": message.action,
        "client_ip": message.client_ip,
        "size_bytes": message.size_bytes,
        "queue_id": message.queue_id,
        "message_id": message.message_id,
        "symbols": [SymbolScore(name=each.name, score=each.score) for each in message.symbols],
    }


# ---- routes


class SearchRoutes:
    """GET /messages and /messages/groups."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._parts = pages.parts

    def table(self) -> Sequence[Route]:
        """Return the routes."""
        return (
            Route(
                method="GET",
                path="/messages",
                permission=Permission.SEE_ENVELOPE,
                operation="listMessages",
                summary="Search messages",
                text="Lists the deliveries that match all criteria, of the domains that the token may see. The "
                "criteria are those of the console's search and of `quarantine list`. Follow `next` until it is null.",
                handler=self.list,
                query=ListQuery,
                answer=FoundList,
                example="symbol=BAYES_SPAM&state=held&since=12h&count=true",
            ),
            Route(
                method="GET",
                path="/messages/groups",
                permission=Permission.SEE_ENVELOPE,
                operation="groupMessages",
                summary="Group messages",
                text="Counts what a search finds by symbol, domain or hour. Symbols with the highest sum of scores and "
                "the largest domains are first, and the newest hours.",
                handler=self.groups,
                query=GroupsQuery,
                answer=FoundGroups,
                example="by=symbol&since=12h",
            ),
        )

    def list(self, caller: Caller, query: _ListQuery) -> FoundList:
        """GET /messages."""
        store, wanted = self._parts.store, query.filter(self._parts, caller.member)
        before = _place(query.cursor, query.order)
        with self._pages.searching():
            page = found_page(store, wanted, query.order, query.limit, before)
            total = counted(store, wanted, query.order, page, is_first=not before) if query.count else None
        is_empty = not (page.deliveries or page.next or before or page.is_cut)
        return FoundList(
            messages=[Found(**fields_of(each)) for each in page.deliveries],
            next=_opaque(page.next) if page.next else None,
            complete=page.indexed and not page.is_cut,
            total=Count.of(total) if total else None,
            note=self._why_nothing(caller, wanted) if is_empty else "",
        )

    def groups(self, caller: Caller, query: _GroupsQuery) -> FoundGroups:
        """GET /messages/groups."""
        wanted = query.filter(self._parts, caller.member)
        with self._pages.searching():
            found = self._parts.store.facets.groups(wanted, query.by)
        groups = [FoundGroup(name=each.name, count=each.count, score=each.points) for each in found.groups]
        return FoundGroups(
            groups=groups[:_GROUPS_MAX],
            total=Count.of(found.total),
            since=found.since,
            whole_days=Days(first=found.whole_days[0], last=found.whole_days[1]) if found.whole_days else None,
            note="" if found.total.count else self._why_nothing(caller, wanted),
        )

    def _why_nothing(self, caller: Caller, wanted: Filter) -> str:
        reach, parts = self._parts.staff.reach(caller.member, Permission.SEE_ENVELOPE), self._parts
        domains = None if EVERYWHERE in reach else reach
        days = parts.domains.longest_retention_days
        return str(why_nothing(parts.store, wanted, parts.people.is_notified, days, self._pages.now(), domains))


def _opaque(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _place(opaque: str, order: Order) -> str:
    """Return the place that a cursor names, "" for the first page. Raises 422."""
    try:
        text = base64.urlsafe_b64decode(opaque + "=" * (-len(opaque) % 4)).decode()
    except (binascii.Error, ValueError):
        text = "?"
    if text and not is_place(text, order):
        detail = "This is not a cursor of a list in this order. Use the next of its answer, or leave it out."
        raise invalid(FieldProblem(name="cursor", detail=detail))
    return text
