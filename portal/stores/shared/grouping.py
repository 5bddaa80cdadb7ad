"""Groups of a search: deliveries counted one by one, and whole days from the statistics.

docs/decisions/facets.md has the reasons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, NamedTuple

from portal.model.message import ANY, Filter, held_at
from portal.model.statistics import ALL, Outcome, Part, names_max
from portal.stores import facets
from portal.stores.facets import Hit
from portal.stores.records import Group, GroupBy
from portal.stores.shared.session import Session
from portal.stores.shared.statistics import last_closed

_DAY = timedelta(days=1)
_OUTCOMES = (Outcome.HELD.value, Outcome.PASSED.value)  # each delivery has one of them, on the day when it came


class Counted(NamedTuple):
    """The size of a group."""

    deliveries: int
    points: int  # in hundredths


class WholeDays(NamedTuple):
    """The groups of closed days."""

    first: date
    last: date
    total: int
    groups: Mapping[str, Counted]

    def rest(self, wanted: Filter) -> Iterator[Filter]:
        """Yield the searches for what comes before and after these days."""
        begin, end = _midnight(self.first), _midnight(self.last + _DAY)
        if wanted.since is None or wanted.since < begin:
            yield replace(wanted, until=begin)
        if wanted.until is None or wanted.until > end:
            yield replace(wanted, since=end)


class Counts:
    """Counts hits by what they have in common."""

    def __init__(self, by: GroupBy) -> None:
        self._by = by
        self._counts = Counter[Any]()
        self._points = Counter[int]()  # hundredths, by the number of a symbol's name

    def add(self, hits: Sequence[Hit]) -> None:
        """Count some more."""
        match self._by:
            case GroupBy.SYMBOL:
                for hit in hits:
                    numbers = facets.unpack(hit.symbols)
                    self._counts.update(numbers[::2])
                    for number, points in zip(numbers[::2], numbers[1::2], strict=True):
                        if points:
                            self._points[number] += points
            case GroupBy.SENDER_DOMAIN:
                self._counts.update(hit.sender_domain for hit in hits)
            case GroupBy.DOMAIN:
                self._counts.update(hit.recipient.rpartition("@")[2] for hit in hits)
            case GroupBy.HOUR:
                self._counts.update(f"{held_at(hit.key.message_id):%Y-%m-%dT%H}" for hit in hits)

    def groups(self, session: Session, days: WholeDays | None = None) -> tuple[Group, ...]:
        """Return the groups, with those of ``days``, in the order of `Facets.groups`."""
        found: dict[str, Counted] = dict(days.groups) if days else {}
        names: Mapping[Any, str] | None = None
        if self._by is GroupBy.SYMBOL:
            select = "select id, name from symbol_name where id in :ids"
            names = dict(session.many(select, ids=list(self._counts)) if self._counts else ())
        for key, count in self._counts.items():
            name = key if names is None else names.get(key)
            if name is not None:
                before = found.get(name, Counted(0, 0))
                found[name] = Counted(before.deliveries + count, before.points + self._points[key])
        groups = [Group(name, counted.deliveries, counted.points / 100) for name, counted in found.items()]
        if self._by is GroupBy.HOUR:
            return tuple(sorted(groups, key=lambda group: group.name, reverse=True))
        return tuple(sorted(groups, key=lambda group: (-group.points, -group.count, group.name)))


def whole_days(session: Session, wanted: Filter, by: GroupBy, more_than: int) -> WholeDays | None:
    """Return the groups of the closed days within the time of a search, if they have more than so many deliveries.

    None also if the statistics do not know the answer exactly: the search has no beginning, or other criteria than time
    and recipient domains (by recipient domain also tiers), or there were more symbols or senders than are kept.
    """
    part = _part(wanted, by)
    closed = last_closed(session) if part is not None and wanted.since is not None else None
    if part is None or closed is None or wanted.since is None:
        return None
    last = closed if wanted.until is None else min(closed, wanted.until.astimezone(UTC).date() - _DAY)
    first = (wanted.since.astimezone(UTC) + _DAY - timedelta(microseconds=1)).date()  # the first midnight from then on
    hosts = [ALL] if wanted.domains is None else sorted(wanted.domains)
    if first > last or not hosts:
        return None
    values: dict[str, Any] = {
        "since": first.isoformat(),
        "until": last.isoformat(),
        "outcomes": list(_OUTCOMES),
        "hosts": hosts,
        "all": (Part.TIER if wanted.tiers else Part.TOTAL).value,
        "names": sorted(tier.value for tier in wanted.tiers) or [""],
        "part": part.value,
    }
    days = "from daily_count where day >= :since and day <= :until and outcome in :outcomes"
    kept = f"select min(day) from daily_count where domain = '{ALL}' and part = '{Part.TOTAL}'"
    row = session.one(
        f"select sum(number), ({kept}) {days} and day >= ({kept})"
        " and domain in :hosts and part = :all and name in :names",
        **values,
    )
    total, oldest = (int(row[0] or 0), row[1]) if row else (0, None)
    if total <= more_than or oldest is None:
        return None
    first = max(first, date.fromisoformat(oldest))  # of earlier days not all counts are kept
    values["since"] = first.isoformat()
    if by is GroupBy.DOMAIN:
        those = "domain <> ''" if wanted.domains is None else "domain in :hosts"
        rows = session.many(
            f"select domain, sum(number), 0 {days} and {those} and part = :all and name in :names group by domain",
            **values,
        )
    else:
        sizes = f"select count(*) as size {days} and domain in :hosts and part = :part group by domain, day, outcome"
        most = min(names_max(host, outcome) for host in hosts for outcome in _OUTCOMES)
        if session.many(f"select 1 from ({sizes}) as kept where size >= :most limit 1", most=most, **values):
            return None
        rows = session.many(
            f"select name, sum(number), sum(points) {days} and domain in :hosts and part = :part group by name",
            **values,
        )
    groups = {name: Counted(int(number), int(points)) for name, number, points in rows}
    if by is GroupBy.DOMAIN and (nobody := total - sum(each.deliveries for each in groups.values())):
        groups[""] = Counted(nobody, 0)  # messages without recipients
    return WholeDays(first, last, total, groups)


def _part(wanted: Filter, by: GroupBy) -> Part | None:
    """Return the part of the statistics that has these groups. None: there is none."""
    tiers = wanted.tiers if by is GroupBy.DOMAIN else ANY.tiers
    if wanted != replace(ANY, since=wanted.since, until=wanted.until, domains=wanted.domains, tiers=tiers):
        return None
    return {GroupBy.SYMBOL: Part.SYMBOL, GroupBy.SENDER_DOMAIN: Part.SENDER, GroupBy.DOMAIN: Part.TOTAL}.get(by)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
