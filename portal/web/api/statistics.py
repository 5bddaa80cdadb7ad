"""The route of the statistics."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from portal.model.message import domain
from portal.model.staff import EVERYWHERE
from portal.model.statistics import ALL, Line, Outcome, Part, lines
from portal.policy.staff import Permission
from portal.web.api.problems import FieldProblem, invalid
from portal.web.api.route import FILLED, READABLE, Caller, Model, Route
from portal.web.pages import Pages

_DAYS = 30
_LIMIT, _LIMIT_MAX = 1_000, 10_000  # numbers of days are kept for 800 days


class By(StrEnum):
    """The subject of one line of the statistics."""

    DAY = "day"
    TIER = "tier"
    SYMBOL = "symbol"
    SENDER = "sender"
    DELAY = "delay"
    DOMAIN = "domain"


class StatisticsQuery(Model):
    """The numbers to return."""

    by: By = Field(
        By.DAY, description="What one line is about; delay: from opening a link to the act; domain: of the recipients."
    )
    domain: Annotated[str, FILLED, READABLE] = Field("", max_length=254, description="Only recipients of this domain.")
    since: date | None = Field(None, description="From this day on (UTC). Default: 30 days ago.")
    until: date | None = Field(None, description="Up to this day (UTC). Default: today.")
    limit: int = Field(
        _LIMIT, ge=1, le=_LIMIT_MAX, description="The most lines in the answer: the newest days, else the first lines."
    )


class StatisticsLine(Model):
    """The numbers of deliveries with one name."""

    name: str
    numbers: dict[str, int] = Field(description="By outcome: held, released and so on.")
    mistakes: float | None = Field(description="The share of released ones among those held; null if none was held.")


class StatisticsList(Model):
    """Days in order; other lines with those with most deliveries first."""

    since: date
    until: date
    domain: str = Field(description='"" for all domains of the token.')
    lines: list[StatisticsLine]
    complete: bool = Field(
        description="False if there are more lines than limit: the oldest days, else the last lines, are left out."
    )


class StatisticsRoutes:
    """GET /statistics."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._parts = pages.parts

    def table(self) -> Sequence[Route]:
        """Return the route."""
        text = "Returns how many messages were held, released and so on. The numbers are kept longer than the messages."
        return (
            Route(
                method="GET", path="/statistics", permission=Permission.SEE_ENVELOPE, operation="getStatistics",
                summary="Show statistics", text=text, handler=self.show, query=StatisticsQuery,
                answer=StatisticsList, example="by=symbol&since=2026-11-01",
            ),
        )  # fmt: skip

    def show(self, caller: Caller, query: StatisticsQuery) -> StatisticsList:
        """GET /statistics."""
        today = self._pages.now().date()
        until = query.until or today
        since = query.since or max(date.min + timedelta(days=_DAYS), until) - timedelta(days=_DAYS)
        if since > until:
            raise invalid(FieldProblem(name="since", detail="It is after until, so no day can match. Exchange them."))
        host, found = self._found(caller, query, since, until)
        left_out = max(0, len(found) - query.limit)
        return StatisticsList(
            since=since,
            until=until,
            domain=host,
            lines=[
                StatisticsLine(
                    name=each.name,
                    numbers={outcome.value: each.number(outcome) for outcome in Outcome},
                    mistakes=each.mistakes,
                )
                for each in (found[left_out:] if query.by is By.DAY else found[: query.limit])
            ],
            complete=not left_out,
        )

    def _found(self, caller: Caller, query: StatisticsQuery, since: date, until: date) -> tuple[str, Sequence[Line]]:
        """Return the domain of the numbers, and their lines."""
        statistics = self._parts.store.statistics
        if query.domain and not domain(query.domain):  # "@"
            raise invalid(FieldProblem(name="domain", detail="Use a domain like example.org."))
        if query.by is By.DOMAIN and not query.domain:
            reach = self._parts.staff.reach(caller.member, Permission.SEE_ENVELOPE)
            with self._pages.searching():
                return ALL, statistics.by_domain(since, until, None if EVERYWHERE in reach else reach)
        host = self._domain(caller, query.domain)
        with self._pages.searching():
            if query.by is By.DOMAIN:
                return host, statistics.by_domain(since, until, [host])
            part = Part.TOTAL if query.by is By.DAY else Part(query.by.value)
            return host, lines(statistics.counts(part, since, until, host), by_day=query.by is By.DAY)

    def _domain(self, caller: Caller, typed: str) -> str:
        """Return the domain of the numbers, `ALL` for all. Raises 422, also for a domain that the token may not see."""
        reach, host = self._parts.staff.reach(caller.member, Permission.SEE_ENVELOPE), domain(typed)
        if EVERYWHERE in reach or host in reach:
            return host
        if not host and len(reach) == 1:
            return next(iter(reach))
        raise invalid(FieldProblem(name="domain", detail="Name a domain of this token."))
