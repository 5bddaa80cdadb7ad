"""The statistics, in table `daily_count`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from uuid import UUID

from portal.model.message import DeliveryId, EventKind, State, domain, first_id, held_at
from portal.model.statistics import ALL, OUTCOMES, Count, DayCounts, Fact, Line, Outcome, Part, Sums, lines
from portal.stores import facets
from portal.stores.contracts import Statistics
from portal.stores.journal import statistics_line
from portal.stores.shared.session import Engine, Row, Session

_CLOSED = "statistics.closed"  # the last closed day
_DAY = timedelta(days=1)
_BATCH = 5_000
_COLUMNS = "domain, part, day, outcome, name, number, points"
_UPSERT = (
    f"insert into daily_count ({_COLUMNS}) values (:domain, :part, :day, :outcome, :name, :number, :points)"
    " on conflict (domain, part, day, outcome, name) do update set number = excluded.number, points = excluded.points"
)
_DELETE = (
    "delete from daily_count where domain = :domain and part = :part and day = :day and outcome = :outcome"
    " and name = :name"
)
_EVENTS = (
    "select e.message_id, e.number, e.kind, e.at from event e where e.at >= :since and e.at < :until"
    " and e.kind in :kinds"
)
_OPENED = "select message_id, number, min(at) as at from link_open where at >= :since and at < :until group by 1, 2"
_OF_ANY_PART = (
    f"part in ({', '.join(repr(part.value) for part in Part)})"  # so that the index on parts and days is used
)
_OPENED_BEFORE = timedelta(days=2)  # links that were opened longer ago are not looked for

_Key = tuple[str, str, str, str, str]  # of a row
_Numbers = tuple[int, int]
_NONE: _Numbers = (0, 0)


class SqlStatistics(Statistics):
    """See `Statistics`."""

    def __init__(self, engine: Engine, facts: str) -> None:
        """``facts``: the tables of deliveries ``d`` and their facets ``f``, with a place for a condition of the join,
        by which PostgreSQL skips the partitions of other days."""
        self._engine = engine
        select = f"select d.message_id, d.number, d.recipient, d.state, f.tier, f.sender_domain, f.symbols {facts}"
        self._of_day = select.format(" and f.message_id >= :low and f.message_id < :high")
        self._of_ids = select.format(" and f.message_id in :ids")

    def count(self, day: date) -> None:
        with self._engine.reading() as session:
            if (closed := last_closed(session)) is not None and day <= closed:
                return
            counts = self._counts(session, day, is_last=False)
        with self._engine.writing(durable=False) as session:
            if (closed := last_closed(session)) is None or day > closed:  # another host may have closed it
                _put(session, day, counts)

    def close(self, day: date) -> None:
        with self._engine.reading() as session:
            if (closed := last_closed(session)) is not None and day <= closed:
                return
            counts = self._counts(session, day, is_last=True)
        with self._engine.writing() as session:
            put_closed(session, day, counts)
            session.journal(partial(statistics_line, day, counts))

    def _counts(self, session: Session, day: date, *, is_last: bool) -> list[Count]:
        """Count a day. Messages that are not indexed yet are left out unless this is the last time."""
        found = DayCounts(day.isoformat())
        since = datetime.combine(day, time(), UTC)
        kinds = [kind.value for kind in (*OUTCOMES, EventKind.STOPPED)]
        rows = session.many(_EVENTS, since=since, until=since + _DAY, kinds=kinds)
        events = [row for row in rows if row[2] != EventKind.STOPPED]
        # Each delivery is either held or let through. One that was stopped, or that is held now, was not let through
        # in the end.
        passed = {DeliveryId(id, number) for id, number, kind, _ in events if kind == EventKind.PASSED}
        passed -= {DeliveryId(id, number) for id, number, kind, _ in rows if kind == EventKind.STOPPED}
        for key, state, fact in self._held(session, since, since + _DAY):
            if key in passed and state == State.HELD:
                passed.remove(key)
            if key not in passed and (fact.tier or is_last):
                found.add(Outcome.HELD, fact)
        self._add_events(session, found, events, passed, since)
        numbers = list(found.symbols())
        names = session.many("select id, name from symbol_name where id in :ids", ids=numbers) if numbers else []
        return [*found.rows(dict(names))]

    def _held(self, session: Session, since: datetime, until: datetime) -> Iterator[tuple[DeliveryId, str, Fact]]:
        after, high = DeliveryId(first_id(since), -1), first_id(until)
        found = _BATCH
        while found == _BATCH:
            rows = session.many(
                f"{self._of_day} where d.message_id >= :low and d.message_id < :high"
                " and (d.message_id, d.number) > (:low, :number) order by d.message_id, d.number limit :limit",
                low=after.message_id,
                high=high,
                number=after.number,
                limit=_BATCH,
            )
            found = len(rows)
            for id, number, *values in rows:
                after = DeliveryId(id, number)
                yield after, str(values[1]), _fact(values)

    def _add_events(
        self, session: Session, found: DayCounts, events: Sequence[Row], passed: Collection[DeliveryId], since: datetime
    ) -> None:
        opened = {
            DeliveryId(id, number): at
            for id, number, at in session.many(_OPENED, since=since - _OPENED_BEFORE, until=since + _DAY)
        }
        for start in range(0, len(events), _BATCH):
            some = events[start : start + _BATCH]
            facts = self._facts(session, {id for id, *_ in some})
            for id, number, kind, at in some:
                key = DeliveryId(id, number)
                first_opened = opened.get(key)
                delay = at - first_opened if first_opened is not None and first_opened <= at else None
                if key in facts and (kind != EventKind.PASSED or key in passed):  # others were removed in the meantime
                    found.add(Outcome(kind), facts[key], delay)

    def _facts(self, session: Session, ids: set[UUID]) -> dict[DeliveryId, Fact]:
        rows = session.many(f"{self._of_ids} where d.message_id in :ids", ids=[*ids])
        return {DeliveryId(id, number): _fact(values) for id, number, *values in rows}

    def reopen(self, day: date) -> None:
        with self._engine.reading() as session:
            closed = last_closed(session)
        if closed is not None and closed >= day:
            with self._engine.writing() as session:
                _set_closed(session, day - _DAY)

    def next_day(self) -> date | None:
        with self._engine.reading() as session:
            closed = last_closed(session)
            oldest = session.one("select id from message order by id limit 1")
        if closed is not None:
            return closed + _DAY
        return held_at(oldest[0]).date() if oldest else None

    def first_day(self) -> date | None:
        with self._engine.reading() as session:
            # Those by tier are never removed.
            row = session.one("select min(day) from daily_count where domain = '' and part = 'tier'")
        return date.fromisoformat(row[0]) if row and row[0] else None

    def counts(self, part: Part, since: date, until: date, domain: str = ALL) -> Sequence[Count]:
        select = (
            f"select {_COLUMNS} from daily_count where domain = :domain and part = :part"
            " and day >= :since and day <= :until order by day, outcome, name"
        )
        with self._engine.reading() as session:
            rows = session.many(
                select, domain=domain, part=part.value, since=since.isoformat(), until=until.isoformat()
            )
        return [Count(*row) for row in rows]

    def sums(
        self, since: date, until: date, domains: Collection[str] = (ALL,), parts: Collection[Part] = tuple(Part)
    ) -> Sums:
        found: dict[str, list[Count]] = {part.value: [] for part in parts}
        for part, name, outcome, number in self._summed("part, name", since, until, domains, parts):
            found[part].append(Count(ALL, part, "", outcome, name, int(number)))
        return {part: lines(found[part.value]) for part in parts}

    def by_domain(self, since: date, until: date, domains: Collection[str] | None = None) -> Sequence[Line]:
        rows = self._summed("domain", since, until, domains, [Part.TOTAL])
        return lines(Count(ALL, "", "", outcome, name, int(number)) for name, outcome, number in rows)

    def _summed(
        self, columns: str, since: date, until: date, domains: Collection[str] | None, parts: Collection[Part]
    ) -> Sequence[Row]:
        which = "domain <> ''" if domains is None else "domain in :domains"
        select = (
            f"select {columns}, outcome, sum(number) from daily_count where {which}"
            f" and part in :parts and day >= :since and day <= :until group by {columns}, outcome"
        )
        days = {"since": since.isoformat(), "until": until.isoformat()}
        with self._engine.reading() as session:
            names = [part.value for part in parts]
            if domains is None:
                return session.many(select, parts=names, **days)
            return session.many(select, domains=list(domains), parts=names, **days) if domains else []

    def totals(self) -> Sequence[tuple[str, str, int]]:
        select = (
            "select outcome, name, sum(number) from daily_count where domain = '' and part = 'tier' and name <> ''"
            " group by 1, 2"
        )
        with self._engine.reading() as session:
            return [(outcome, tier, int(number)) for outcome, tier, number in session.many(select)]

    def expire(self, before: date) -> None:
        with self._engine.writing(durable=False) as session:
            delete = (
                f"delete from daily_count where {_OF_ANY_PART} and day < :day and not (domain = '' and part = 'tier')"
            )
            session.execute(delete, day=before.isoformat())

    def records(self, after: date | None) -> tuple[date, Sequence[Count]] | None:
        with self._engine.reading() as session:
            # Each day has totals, but of removed ones only those by tier are kept.
            next_day = "select min(day) from daily_count where part in ('total', 'tier') and day > :after"
            first = session.one(next_day, after=after.isoformat() if after else "")
            closed = last_closed(session)
            if first is None or first[0] is None or closed is None or date.fromisoformat(first[0]) > closed:
                return None
            return date.fromisoformat(first[0]), _counts_of_day(session, first[0])

    def import_records(self, day: date, counts: Sequence[Count]) -> None:
        with self._engine.writing() as session:
            put_closed(session, day, counts)
            session.journal(partial(statistics_line, day, counts))


def put_closed(session: Session, day: date, counts: Sequence[Count]) -> None:
    """Store the counts of a closed day without a line in the journal."""
    _put(session, day, counts)
    if (closed := last_closed(session)) is None or day > closed:
        _set_closed(session, day)


def _set_closed(session: Session, day: date) -> None:
    upsert = (
        "insert into setting (name, value) values (:name, :value)"
        " on conflict (name) do update set value = excluded.value"
    )
    session.execute(upsert, name=_CLOSED, value=day.isoformat())


def counts_of(session: Session, days: Sequence[str]) -> Iterator[tuple[date, list[Count]]]:
    """Yield those of these days that have counts, with them."""
    for day in days:
        counts = _counts_of_day(session, day)
        if counts:
            yield date.fromisoformat(day), counts


def _counts_of_day(session: Session, day: str) -> list[Count]:
    select = (
        f"select {_COLUMNS} from daily_count where {_OF_ANY_PART} and day = :day order by domain, part, outcome, name"
    )
    return [Count(*row) for row in session.many(select, day=day)]


def _put(session: Session, day: date, counts: Sequence[Count]) -> None:
    """Store what differs from the present counts of a day.

    If fewer deliveries of some domain are known now, the others are gone, or their recipients are forgotten, but what
    was counted happened nevertheless: then no number becomes lower.
    """
    session.lock("statistics")
    present: dict[_Key, _Numbers] = {count[:5]: count[5:] for count in _counts_of_day(session, day.isoformat())}
    wanted: dict[_Key, _Numbers] = {count[:5]: count[5:] for count in counts}
    if any(
        key[1] == Part.TOTAL and key[3] != Outcome.PASSED and wanted.get(key, _NONE) < present[key] for key in present
    ):
        wanted = _merged(present, wanted)
    gone = [Count(*key, 0)._asdict() for key in present.keys() - wanted.keys()]
    changed = [Count(*key, *numbers)._asdict() for key, numbers in wanted.items() if present.get(key) != numbers]
    if gone:
        session.execute_all(_DELETE, gone)
    if changed:
        session.execute_all(_UPSERT, changed)


def _merged(present: Mapping[_Key, _Numbers], wanted: Mapping[_Key, _Numbers]) -> dict[_Key, _Numbers]:
    """Return the higher one of each number. The totals are those of all tiers, since each delivery has one."""
    merged = {key: max(wanted.get(key, _NONE), present.get(key, _NONE)) for key in present.keys() | wanted.keys()}
    totals = Counter[_Key]()
    for (name, part, day, outcome, _), (number, _) in merged.items():
        if part == Part.TIER:
            totals[name, Part.TOTAL.value, day, outcome, ""] += number
    return merged | {key: (number, 0) for key, number in totals.items()}


def last_closed(session: Session) -> date | None:
    """Return the last closed day."""
    row = session.one("select value from setting where name = :name", name=_CLOSED)
    return date.fromisoformat(row[0]) if row else None


def _fact(values: Row | list[object]) -> Fact:
    recipient, _, tier, sender_domain, symbols = values
    name = domain(str(recipient)) if "@" in str(recipient) else ""
    numbers = facets.unpack(symbols) if symbols else ()  # type: ignore[arg-type]
    return Fact(name, str(tier or ""), str(sender_domain or ""), numbers[::2], numbers[1::2])
