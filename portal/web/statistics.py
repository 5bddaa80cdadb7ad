"""The page of the statistics in the console: how many messages were held, released and so on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from types import MappingProxyType
from urllib.parse import urlencode

from bottle import HTTPError, HTTPResponse

from portal.model.message import Tier
from portal.model.message import domain as domain_of
from portal.model.staff import EVERYWHERE
from portal.model.statistics import ALL, DELAY_NAMES, OUTCOME_NAMES, Line, Month, Outcome, Part, Sums, lines
from portal.model.text import N_, shown
from portal.model.tiers import TIER_NAMES
from portal.policy.staff import Permission
from portal.web.charts import chart
from portal.web.console import Console, StaffSession, shown_domain
from portal.web.pages import Pages
from portal.web.request import Request

PATH = "/admin/statistics"
_DAYS = (7, 30, 90, 365)
_USUAL_DAYS = 30
_MONTHS = 13
_NAMES = 20  # lines of symbols and senders
_CHARS = 254

_KINDS = {tier.value: name for tier, name in TIER_NAMES.items()}


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table."""

    name: str  # to be translated if it is one of the portal's
    numbers: Sequence[int]  # by outcome
    mistakes: str
    query: str  # of the search for such messages, "" if there is none


@dataclass(frozen=True, slots=True)
class Period:
    """The days that are shown, and those with which they are compared."""

    value: str  # in the address
    since: date
    until: date
    earlier: tuple[date, date]

    @classmethod
    def of_days(cls, days: int, today: date) -> Period:
        """Return the last so many days."""
        since = today - timedelta(days=days - 1)
        return cls(str(days), since, today, (since - timedelta(days=days), since - timedelta(days=1)))

    @classmethod
    def of_month(cls, month: Month) -> Period:
        """Return a month."""
        return cls(str(month), month.first, month.last, (month.before.first, month.before.last))


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
        self._recipients = pages.parts.store.recipients
        self._statistics = pages.parts.store.statistics

    def show(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """GET /admin/statistics: tables, and links to the charts."""
        today, domain = self._pages.now().date(), self._domain(request, staff)
        period = self._period(request, today)
        with self._pages.searching():
            by_day = self._statistics.counts(Part.TOTAL, period.since, period.until, domain)
            found = self._statistics.sums(period.since, period.until, [domain])
            earlier = self._statistics.sums(*period.earlier, [domain], [Part.TOTAL])
            by_domain = self._by_domain(staff, period, domain)[:_NAMES]
        rows = partial(_rows, request, period, domain)
        by_delay = sorted(found[Part.DELAY], key=lambda line: [*DELAY_NAMES].index(line.name))
        chosen = {"period": period.value, **({"domain": domain} if domain else {})}
        tables = [
            Table(N_("Days"), N_("Day"), rows(lines(by_day, by_day=True)[::-1])),
            Table(
                N_("Recipient domains"),
                N_("Domain"),
                _rows(
                    request,
                    period,
                    ALL,
                    by_domain,
                    {line.name: shown_domain(line.name) for line in by_domain},
                    "domain",
                ),
            ),
            Table(N_("Kinds"), N_("Kind"), rows(found[Part.TIER], _KINDS, "tier")),
            Table(N_("Symbols"), N_("Symbol"), rows(found[Part.SYMBOL][:_NAMES], {}, "symbol")),
            Table(N_("Sender domains"), N_("Domain"), rows(found[Part.SENDER][:_NAMES], {}, "sender-domain")),
            Table(N_("Time from opening a link to the act"), N_("Time"), rows(by_delay, DELAY_NAMES)),
        ]
        return self._console.page(
            request,
            staff,
            "statistics",
            outcomes=[OUTCOME_NAMES[outcome] for outcome in OUTCOME_NAMES],
            tables=[table for table in tables if table.rows],
            period=period,
            periods=_periods(request, today),
            compared=_compared(request, found, earlier),
            domain=domain,
            domains=self._domains(staff),
            charts={name: f"{PATH}/{name}.svg?{urlencode(chosen)}" for name in ("days", "tiers")},
            reports=self._reports(staff),
            done=request.query("done") == "report",
        )

    def _by_domain(self, staff: StaffSession, period: Period, domain: str) -> Sequence[Line]:
        """Return the numbers of each domain that this person sees. Empty: they see or have chosen a single one."""
        reach = self._staff.reach(staff.member, Permission.SEE_ENVELOPE)
        if EVERYWHERE in reach:
            return self._statistics.by_domain(period.since, period.until) if domain == ALL else ()
        return self._statistics.by_domain(period.since, period.until, reach) if len(reach) > 1 else ()

    def choose(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """POST /admin/statistics: send this person the monthly report from now on, or do not."""
        person, chosen = staff.member.person, request.form("report")
        if chosen not in ("on", "off") or self._reports(staff) is None:
            text = N_("Go back and press one of the buttons.")
            return self._pages.notice(request, N_("No action selected"), text, 400)
        recipients = self._pages.parts.recipients
        recipients.choose_report(person, staff.actor, self._pages.now(), wanted=chosen == "on")
        return self._pages.see_other(f"{PATH}?done=report")

    def _reports(self, staff: StaffSession) -> bool | None:
        """Return whether this person gets the monthly report, None if nobody would send it to them."""
        person = staff.member.person
        if not self._pages.parts.settings.staff.monthly_report or not self._staff.administers(staff.member):
            return None
        return self._recipients.get(person).preferences.monthly_report is not False

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
        period = self._period(request, self._pages.now().date())
        since, until = period.since, period.until
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

    def _period(self, request: Request, today: date) -> Period:
        typed = request.query("period")
        month = next((month for month in _months(today) if str(month) == typed), None)
        if month is not None:
            return Period.of_month(month)
        return Period.of_days(next((days for days in _DAYS if str(days) == typed), _USUAL_DAYS), today)

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


def _months(today: date) -> Iterator[Month]:
    """Yield the months that may be chosen, this one first."""
    month = Month(today.replace(day=1))
    for _ in range(_MONTHS):
        yield month
        month = month.before


def _periods(request: Request, today: date) -> list[tuple[str, str]]:
    """Return the periods that may be chosen, and how they are shown."""
    days = [(str(days), request.language.days(days)) for days in _DAYS]
    return days + [(str(month), request.language.month(month.first)) for month in _months(today)]


def _compared(request: Request, found: Sums, earlier: Sums) -> list[tuple[str, str, str]]:
    """Return the rows of the comparison: a name to be translated, and the numbers of both periods."""
    empty, number = Line("", {}), request.language.number
    now, before = (next(iter(sums[Part.TOTAL]), empty) for sums in (found, earlier))
    share, share_before = (
        "" if line.mistakes is None else request.language.percent(line.mistakes) for line in (now, before)
    )
    rows = [(name, number(now.number(each)), number(before.number(each))) for each, name in OUTCOME_NAMES.items()]
    return [*rows, (N_("Mistakes"), share, share_before)]


def _rows(
    request: Request,
    period: Period,
    domain: str,
    found: Sequence[Line],
    names: Mapping[str, str] = MappingProxyType({}),
    criterion: str = "",
) -> list[Row]:
    """Return the rows of lines. ``names``: their names for people; ``criterion``: of the search for such messages."""
    # The search reads a day alone in the viewer's time zone, but days were counted in UTC. Its end is exclusive.
    after = period.until + timedelta(days=1)
    days = {"since": f"{period.since}T00:00Z", "until": f"{after}T00:00Z"}
    others = {**days, **({"domain": domain} if domain else {})}
    return [
        Row(
            names.get(line.name) or shown(line.name, 100),
            [line.number(outcome) for outcome in OUTCOME_NAMES],
            "" if line.mistakes is None else request.language.percent(line.mistakes),
            f"?{urlencode({criterion: line.name, **others})}" if criterion and line.name else "",
        )
        for line in found
    ]
