"""The page of the statistics in the console: how many messages were held, released and so on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from types import MappingProxyType
from urllib.parse import urlencode

from bottle import HTTPError, HTTPResponse

from portal.model.message import Tier
from portal.model.message import domain as domain_of
from portal.model.staff import EVERYWHERE
from portal.model.statistics import ALL, DELAYS, LATER, Count, Line, Outcome, Part, lines
from portal.model.text import N_, shown
from portal.policy.staff import Permission
from portal.web.charts import chart
from portal.web.console import Console, StaffSession, shown_domain
from portal.web.pages import Pages
from portal.web.request import Request
from portal.web.rows import TIER_NAMES

PATH = "/admin/statistics"
_DAYS = (7, 30, 90, 365)
_USUAL_DAYS = 30
_NAMES = 20  # lines of symbols and senders
_CHARS = 254

OUTCOME_NAMES = {
    Outcome.HELD: N_("Held"),
    Outcome.RELEASED: N_("Released"),
    Outcome.DELETED: N_("Deleted"),
    Outcome.CONFIRMED: N_("Reported as spam"),
    Outcome.REQUESTED: N_("Requested"),
    Outcome.REFUSED: N_("Denied"),
    Outcome.BLOCKED: N_("Blocked"),
    Outcome.PASSED: N_("Let through"),
}
_KINDS = {tier.value: name for tier, name in TIER_NAMES.items()}
_DELAY_NAMES = dict(
    zip(
        (*DELAYS, LATER),
        (N_("Within a minute"), N_("Within 10 minutes"), N_("Within an hour"), N_("Within a day"), N_("Later")),
        strict=True,
    )
)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table."""

    name: str  # to be translated if it is one of the portal's
    numbers: Sequence[int]  # by outcome
    mistakes: str
    query: str  # of the search for such messages, "" if there is none


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the page."""

    title: str  # to be translated
    first: str  # heading of its first column, to be translated
    rows: Sequence[Row]


class StatisticsPages:
    """`/admin/statistics` and its charts."""

    def __init__(self, pages: Pages, console: Console) -> None:
        self._pages = pages
        self._console = console
        self._staff = pages.parts.staff
        self._statistics = pages.parts.store.statistics

    def show(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """GET /admin/statistics: tables, and links to the charts."""
        days, domain = self._days(request), self._domain(request, staff)
        since, until = self._period(days)
        with self._pages.searching():
            by_part = {part: self._statistics.counts(part, since, until, domain) for part in Part}
        rows = partial(_rows, request, since, domain)
        chosen = {"days": str(days), **({"domain": domain} if domain else {})}
        tables = [
            Table(N_("Days"), N_("Day"), rows(lines(by_part[Part.TOTAL], by_day=True)[::-1])),
            Table(N_("Kinds"), N_("Kind"), rows(lines(by_part[Part.TIER]), _KINDS, "tier")),
            Table(N_("Symbols"), N_("Symbol"), rows(lines(by_part[Part.SYMBOL])[:_NAMES], {}, "symbol")),
            Table(N_("Sender domains"), N_("Domain"), rows(lines(by_part[Part.SENDER])[:_NAMES], {}, "sender-domain")),
            Table(
                N_("Time from opening a link to the act"),
                N_("Time"),
                rows(_by_delay(by_part[Part.DELAY]), _DELAY_NAMES),
            ),
        ]
        return self._console.page(
            request,
            staff,
            "statistics",
            outcomes=[OUTCOME_NAMES[outcome] for outcome in OUTCOME_NAMES],
            tables=[table for table in tables if table.rows],
            days=days,
            all_days=_DAYS,
            domain=domain,
            domains=self._domains(staff),
            period=(since.isoformat(), until.isoformat()),
            charts={name: f"{PATH}/{name}.svg?{urlencode(chosen)}" for name in ("days", "tiers")},
        )

    def chart_of_days(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """GET /admin/statistics/days.svg: held and released deliveries of each day."""
        names = {(outcome.value, ""): OUTCOME_NAMES[outcome] for outcome in (Outcome.HELD, Outcome.RELEASED)}
        return self._chart(request, staff, Part.TOTAL, names, stacked=False)

    def chart_of_tiers(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """GET /admin/statistics/tiers.svg: held deliveries of each day by tier."""
        names = {(Outcome.HELD.value, tier.value): TIER_NAMES[tier] for tier in Tier}
        return self._chart(request, staff, Part.TIER, names, stacked=True)

    def _chart(
        self,
        request: Request,
        staff: StaffSession,
        part: Part,
        wanted: Mapping[tuple[str, str], str],
        *,
        stacked: bool,
    ) -> HTTPResponse:
        """Return the chart of these outcomes and names."""
        domain = self._domain(request, staff)
        since, until = self._period(self._days(request))
        days = [(since + timedelta(days=number)).isoformat() for number in range((until - since).days + 1)]
        with self._pages.searching():
            counts = self._statistics.counts(part, since, until, domain)
        numbers = {(count.outcome, count.name, count.day): count.number for count in counts}
        series = {
            request.language.gettext(text): [numbers.get((*key, day), 0) for day in days]
            for key, text in wanted.items()
        }
        headers = {"Content-Type": "image/svg+xml"}
        return HTTPResponse(chart(days, series, stacked=stacked), 200, headers)

    # ---- what an address names

    def _days(self, request: Request) -> int:
        return next((days for days in _DAYS if str(days) == request.query("days")), _USUAL_DAYS)

    def _period(self, days: int) -> tuple[date, date]:
        today = self._pages.now().date()
        return today - timedelta(days=days - 1), today

    def _domain(self, request: Request, staff: StaffSession) -> str:
        """Return the domain that is shown, `ALL` for all. Raises a 404 if this person may not see it."""
        reach = self._staff.reach(staff.member, Permission.SEE_ENVELOPE)
        typed = request.query("domain").strip()[:_CHARS]
        if not typed:
            return ALL if EVERYWHERE in reach else min(reach)
        chosen = domain_of(typed)
        if EVERYWHERE not in reach and chosen not in reach:
            raise HTTPError(404)
        return chosen

    def _domains(self, staff: StaffSession) -> list[tuple[str, str]]:
        """Return the domains that may be chosen, and how they are shown. Empty: any, by typing it."""
        reach = self._staff.reach(staff.member, Permission.SEE_ENVELOPE)
        return [] if EVERYWHERE in reach else [(name, shown_domain(name)) for name in sorted(reach)]


def _by_delay(counts: Sequence[Count]) -> list[Line]:
    order = [*_DELAY_NAMES]
    return sorted(lines(counts), key=lambda line: order.index(line.name))


def _rows(
    request: Request,
    since: date,
    domain: str,
    found: Sequence[Line],
    names: Mapping[str, str] = MappingProxyType({}),
    criterion: str = "",
) -> list[Row]:
    """Return the rows of lines. ``names``: their names for people; ``criterion``: of the search for such messages."""
    others = {"since": since.isoformat(), **({"domain": domain} if domain else {})}
    return [
        Row(
            names.get(line.name) or shown(line.name, 100),
            [line.number(outcome) for outcome in OUTCOME_NAMES],
            "" if line.mistakes is None else request.language.percent(line.mistakes),
            f"?{urlencode({criterion: line.name, **others})}" if criterion and line.name else "",
        )
        for line in found
    ]
