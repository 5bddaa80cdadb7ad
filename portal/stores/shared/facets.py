"""Search over all deliveries by facets. Each store adds how it finds the rows."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any, Generic, TypeVar

from portal.model.message import Delivery, DeliveryId, Filter, State, Tier, domain, held_at
from portal.stores import facets
from portal.stores.contracts.facets import COUNTED_MAX, GROUPED_MAX, Facets
from portal.stores.facets import Hit
from portal.stores.records import GroupBy, Groups, Page, ScoreKey, ScorePage, Tally, Total
from portal.stores.search import EXAMINED_MAX, Terms, needs_texts
from portal.stores.shared.facet_hits import Batch, Symbols, checked, columns, has_symbols, hits_of
from portal.stores.shared.facet_index import FacetIndex
from portal.stores.shared.grouping import Counts, WholeDays, whole_days
from portal.stores.shared.rows import Rows
from portal.stores.shared.session import Engine, Session

_PAGE_SECONDS, _COUNT_SECONDS, _GROUPS_SECONDS = 2.0, 3.0, 6.0  # for one call
_CATCH_UP_SECONDS = 1.0  # of them for the index
_LEAST_SECONDS = 0.25  # for the first statement after that
_COMPARED_AT_ONCE = 2_000  # if texts are compared one by one
_SORTED_MAX = 15_000  # hits that are sorted by score at once
_POINTS = 4_096.0  # a step of so many points goes to the last score
_SORT_SECONDS = 0.5
_SPARE = 50  # hits beyond a page, in case the index finds some that do not match
_SCORES_SECONDS = 0.4  # for a page of scores that are read in order, of searches that find more
_GROUPED_AT_ONCE = 20_000

Part = TypeVar("Part")  # of the results of a search


class SqlFacets(Facets):
    """See `Facets`."""

    def __init__(self, engine: Engine, rows: Rows, index: FacetIndex) -> None:
        self._engine = engine
        self._rows = rows
        self._index = index

    def page(self, wanted: Filter, limit: int, before: DeliveryId | None = None) -> Page:
        found: list[DeliveryId] = []
        next: DeliveryId | None = None
        examined = 0
        at_once = max(limit + 1, _COMPARED_AT_ONCE if needs_texts(wanted) else 0)
        hits = partial(self._matching, wanted=wanted, before=before, at_once=at_once)
        with self._searching(wanted, hits, _PAGE_SECONDS) as search:
            for batch in search:
                found += [hit.key for hit in batch.hits]
                examined += batch.examined
                if len(found) > limit:
                    next = found[limit - 1]
                    break
                if examined >= EXAMINED_MAX or search.is_over:
                    next = batch.lowest
                    break
            if search.is_cut and search.last:
                next = search.last.lowest
        return Page(self._deliveries(found[:limit]), next, is_cut=search.is_cut, indexed=search.indexed)

    def by_score(
        self, wanted: Filter, limit: int, after: ScoreKey | None = None, *, highest_first: bool = True
    ) -> ScorePage:
        at_most = min(_SORTED_MAX, _COMPARED_AT_ONCE) if needs_texts(wanted) else _SORTED_MAX
        sortable = self._sortable(wanted, limit, after, at_most, _SORT_SECONDS, highest_first=highest_first)
        if sortable is None:  # the search finds much, so that the next scores are soon found in their own order
            page = self._along_scores(wanted, limit, after, highest_first=highest_first)
            if page.next is not None or not page.is_cut:
                return page
            return self._in_ranges(wanted, limit, after, highest_first=highest_first)
        keys, indexed = sortable
        return self._score_page(keys, limit, highest_first=highest_first, indexed=indexed)

    def _in_ranges(self, wanted: Filter, limit: int, after: ScoreKey | None, *, highest_first: bool) -> ScorePage:
        """Return a page of a search whose hits are far apart: sort those of the next point, of two more and so on."""
        deadline = monotonic() + _PAGE_SECONDS
        keys, indexed, is_cut = set[ScoreKey](), True, False
        if after is None:
            first = self._along_scores(Filter(), 1, None, highest_first=highest_first).deliveries
            edge = (first[0].message.score if first else None) or 0.0
        else:
            edge = after.score
        step = -1.0 if highest_first else 1.0
        while len(keys) <= limit and abs(step) <= _POINTS:
            end = edge + step if abs(step) < _POINTS else math.copysign(math.inf, step)
            low, high = sorted((edge, end))
            low = low if wanted.score_min is None else max(low, wanted.score_min)
            high = high if wanted.score_max is None else min(high, wanted.score_max)
            within = replace(wanted, score_min=low, score_max=high)
            found = self._sortable(within, limit, after, EXAMINED_MAX, _PAGE_SECONDS, highest_first=highest_first)
            is_cut = found is None or monotonic() > deadline
            if found is not None:
                keys.update(found[0])
                indexed = found[1]
            if is_cut:
                break
            edge, step = edge + step, 2 * step
        page = self._score_page(keys, limit, highest_first=highest_first, indexed=indexed)
        return replace(page, is_cut=is_cut and page.next is None)

    def _score_page(self, keys: Iterable[ScoreKey], limit: int, *, highest_first: bool, indexed: bool) -> ScorePage:
        found = sorted(keys, reverse=highest_first)
        next = found[limit - 1] if len(found) > limit else None
        return ScorePage(self._deliveries([each.key for each in found[:limit]]), next, indexed=indexed)

    def _sortable(
        self,
        wanted: Filter,
        limit: int,
        after: ScoreKey | None,
        at_most: int,
        seconds: float,
        *,
        highest_first: bool,
    ) -> tuple[list[ScoreKey], bool] | None:
        """Return the first ``limit`` hits after this place and some more, in any order, and whether all is indexed.

        None: there are more than ``at_most``, or it took too long.
        """
        keys: list[ScoreKey] = []
        examined = 0
        hits = partial(
            self._first_by_score, wanted=wanted, limit=limit, after=after, at_most=at_most, highest_first=highest_first
        )
        with self._searching(wanted, hits, seconds) as search:
            for number, first in search:
                keys += [ScoreKey(hit.score or 0.0, hit.key) for hit in first]
                examined += number
                if examined > at_most or search.is_over:
                    return None
        return None if search.is_cut else (keys, search.indexed)

    def _along_scores(self, wanted: Filter, limit: int, after: ScoreKey | None, *, highest_first: bool) -> ScorePage:
        """Return a page of a search that finds much: scores are read in order, until there is a page of hits."""
        found: list[ScoreKey] = []
        next: ScoreKey | None = None
        examined = 0
        hits = partial(self._matching_by_score, wanted=wanted, after=after, limit=limit, highest_first=highest_first)
        with self._searching(wanted, hits, _SCORES_SECONDS) as search:
            for batch in search:
                found += [ScoreKey(hit.score or 0.0, hit.key) for hit in batch.hits]
                examined += batch.examined
                if len(found) > limit:
                    next = found[limit - 1]
                    break
                if examined >= (_COMPARED_AT_ONCE if needs_texts(wanted) else EXAMINED_MAX) or search.is_over:
                    next = ScoreKey(batch.score, batch.lowest)
                    break
            if search.is_cut and search.last:
                next = ScoreKey(search.last.score, search.last.lowest)
        deliveries = self._deliveries([each.key for each in found[:limit]])
        return ScorePage(deliveries, next, is_cut=search.is_cut, indexed=search.indexed)

    def _deliveries(self, keys: Sequence[DeliveryId]) -> tuple[Delivery, ...]:
        """Return those of these deliveries that still exist, in this order."""
        ids = list({key.message_id for key in keys})
        if not ids:
            return ()
        with self._engine.reading() as session:  # after a statement that was ended, a transaction cannot go on
            found = {each.key: each for each in self._rows.deliveries(session, "where d.message_id in :ids", ids=ids)}
        return tuple(found[key] for key in keys if key in found)

    def count(self, wanted: Filter, at_most: int = COUNTED_MAX, *, indexed: bool | None = None) -> Total:
        if needs_texts(wanted):
            return self._compared(wanted, at_most, indexed)
        count = 0
        counts = partial(self._counts, wanted=wanted, at_most=at_most + 1)
        with self._searching(wanted, counts, _COUNT_SECONDS, indexed) as search:
            for part in search:
                count += part
                if count > at_most or search.is_over:
                    return Total(min(count, at_most), exact=False, indexed=search.indexed)
        return Total(count, exact=search.is_whole, indexed=search.indexed)

    def _compared(self, wanted: Filter, at_most: int, indexed: bool | None) -> Total:
        """Return the number of hits of a search that compares texts one by one."""
        count = examined = 0
        hits = partial(self._matching, wanted=wanted, before=None, at_once=_COMPARED_AT_ONCE)
        with self._searching(wanted, hits, _COUNT_SECONDS, indexed) as search:
            for batch in search:
                count += len(batch.hits)
                examined += batch.examined
                if count > at_most or search.is_over or examined >= EXAMINED_MAX:
                    return Total(min(count, at_most), exact=False, indexed=search.indexed)
        return Total(count, exact=search.is_whole, indexed=search.indexed)

    def groups(self, wanted: Filter, by: GroupBy, at_most: int = GROUPED_MAX) -> Groups:
        with self._engine.reading() as session:
            days = whole_days(session, wanted, by, at_most)
        if days is not None and (found := self._around(wanted, by, days, at_most)):
            return found
        counts = Counts(by)
        total, oldest = self._counted(wanted, at_most, counts.add)
        with self._engine.reading() as session:
            groups = counts.groups(session)
        return Groups(groups, total, held_at(oldest.key.message_id) if oldest else None)

    def _around(self, wanted: Filter, by: GroupBy, days: WholeDays, at_most: int) -> Groups | None:
        """Return the groups of whole days together with those before and after them. None: these are too many."""
        counts, count = Counts(by), days.total
        for rest in days.rest(wanted):
            total, _ = self._counted(rest, at_most, counts.add)
            if not total.exact:
                return None
            count += total.count
        with self._engine.reading() as session:
            groups = counts.groups(session, days)
        return Groups(groups, Total(count, exact=True), wanted.since, (days.first, days.last))

    def tally(self, wanted: Filter, at_most: int = GROUPED_MAX) -> Tally:
        counts = Counter[tuple[str, Tier, State]]()

        def add(hits: Sequence[Hit]) -> None:
            counts.update((domain(hit.recipient), Tier(hit.tier), State(hit.state)) for hit in hits)

        total, _ = self._counted(wanted, at_most, add)
        return Tally(counts, total)

    def _counted(self, wanted: Filter, at_most: int, add: Callable[[Sequence[Hit]], None]) -> tuple[Total, Hit | None]:
        """Pass the newest ``at_most`` hits to ``add``. Return how many there are, and the oldest of them."""
        count, is_all = 0, True
        oldest: Hit | None = None
        hits = partial(
            self._matching, wanted=wanted, before=None, at_once=min(at_most + 1, _GROUPED_AT_ONCE), with_facts=True
        )
        with self._searching(wanted, hits, _GROUPS_SECONDS) as search:
            for batch in search:
                is_all = count + len(batch.hits) <= at_most and not search.is_over
                counted = batch.hits[: at_most - count]
                add(counted)
                count += len(counted)
                oldest = counted[-1] if counted else oldest
                if not is_all:
                    break
        return Total(count, exact=is_all and search.is_whole, indexed=search.indexed), oldest

    @contextmanager
    def _searching(
        self,
        wanted: Filter,
        read: Callable[[Session, Terms, Symbols], Generator[Part]],
        seconds: float,
        indexed: bool | None = None,
    ) -> Iterator[_Search[Part]]:
        """Yield a search, which is used in the block. ``read`` returns its parts for these terms and symbols.

        ``indexed`` as in `Facets.count`.
        """
        deadline = monotonic() + seconds
        terms = facets.wanted_terms(wanted)
        if indexed is None:
            indexed = terms is None or self._index.catch_up(_CATCH_UP_SECONDS)
        with self._engine.reading(snapshot=True) as session:
            symbols = _numbers(session, wanted.symbols)
            if terms is None or not all(symbols):
                yield _Search(session, iter(()), deadline, indexed)
                return
            with closing(read(session, terms, symbols)) as parts:
                yield _Search(session, parts, deadline, indexed)

    def _matching(
        self,
        session: Session,
        terms: Terms,
        symbols: Symbols,
        wanted: Filter,
        before: DeliveryId | None,
        at_once: int,
        *,
        with_facts: bool = False,
    ) -> Generator[Batch]:
        """Yield what `_hits` finds, without what does not match."""
        hits = self._hits(session, terms, wanted, before, at_once, with_facts=with_facts)
        return _each_checked(wanted, symbols, hits)

    def _matching_by_score(
        self,
        session: Session,
        terms: Terms,
        symbols: Symbols,
        wanted: Filter,
        after: ScoreKey | None,
        limit: int,
        *,
        highest_first: bool,
    ) -> Generator[Batch]:
        """Yield what `_hits_by_score` finds, without what does not match."""
        hits = self._hits_by_score(session, terms, wanted, after, limit, highest_first=highest_first)
        return _each_checked(wanted, symbols, hits)

    def _first_by_score(
        self,
        session: Session,
        terms: Terms,
        symbols: Symbols,
        wanted: Filter,
        limit: int,
        after: ScoreKey | None,
        at_most: int,
        *,
        highest_first: bool,
    ) -> Generator[tuple[int, list[Hit]]]:
        """Yield for each source the number of its hits after this place, and the first of them: more than ``limit``, if
        there are.

        It ends after more than ``at_most``.
        """
        direction, sign = ("desc", "<") if highest_first else ("asc", ">")
        later, place = "", dict[str, Any]()
        if after is not None:
            later = f" and (f.score, d.message_id, d.number) {sign} (:key_score, :key_id, :key_number)"
            place = {"key_score": after.score, "key_id": after.key.message_id, "key_number": after.key.number}
        order = f"order by score {direction}, message_id {direction}, number {direction}"
        left = at_most + 1
        for source, values in self._sources(session, terms, wanted, left):
            found = f"select {columns(wanted)} from {source} and f.score is not null{later} limit :at_most"
            select = f"select c.*, count(*) over () from ({found}) c {order} limit :shown"
            shown = left if needs_texts(wanted) else limit + 1 + _SPARE * bool(symbols)
            rows = session.many(select, **values, **place, at_most=left, shown=shown)
            number = rows[0][-1] if rows else 0
            hits = checked(wanted, symbols, hits_of([row[:-1] for row in rows]))
            if len(hits) <= limit and number > shown:
                rows = session.many(select, **values, **place, at_most=left, shown=left)
                hits = checked(wanted, symbols, hits_of([row[:-1] for row in rows]))
            yield number, hits
            left -= number
            if left <= 0:
                return

    def _counts(self, session: Session, terms: Terms, symbols: Symbols, wanted: Filter, at_most: int) -> Generator[int]:
        """Yield the numbers of hits with these symbols, up to ``at_most`` or more in all."""
        for source, values in self._sources(session, terms, wanted, at_most):
            count = _counted(session, source, values, symbols, at_most)
            at_most -= count
            yield count

    @abstractmethod
    def _sources(
        self, session: Session, terms: Terms, wanted: Filter, at_most: int
    ) -> Generator[tuple[str, dict[str, Any]]]:
        """Yield what comes after ``from`` in the statements that find all hits with these terms and `conditions`.

        Each has its parameters. ``at_most`` of the hits are needed.
        """

    @abstractmethod
    def _hits(
        self,
        session: Session,
        terms: Terms,
        wanted: Filter,
        before: DeliveryId | None,
        at_once: int,
        *,
        with_facts: bool,
    ) -> Generator[Batch]:
        """Yield the hits before this key that have these terms and `conditions`, newest first.

        One statement returns at most ``at_once``. ``with_facts``: see `Hit`.
        """

    @abstractmethod
    def _hits_by_score(
        self, session: Session, terms: Terms, wanted: Filter, after: ScoreKey | None, limit: int, *, highest_first: bool
    ) -> Generator[Batch]:
        """Yield the hits after this place that have a score, these terms and `conditions`, in the order of the score.

        The page has ``limit`` of them.
        """

    def knows_symbol(self, name: str) -> bool:
        with self._engine.reading() as session:
            [numbers] = _numbers(session, [name])
        return bool(numbers)

    # ---- the index

    def index(self) -> bool:
        return self._index.step()

    def recheck(self, *, are_missing: bool = False) -> None:
        self._index.recheck(are_missing=are_missing)

    def is_complete(self) -> bool:
        return self._index.is_complete()


class _Search(Generic[Part]):
    """Iterates over the parts of a search until its time is over: then the running statement is ended."""

    def __init__(self, session: Session, parts: Iterator[Part], deadline: float, indexed: bool) -> None:
        self._session = session
        self._parts = parts
        self._deadline = deadline
        self.indexed = indexed  # whether all messages were
        self.is_cut = False  # whether a statement was ended
        self.last: Part | None = None  # before that

    def __iter__(self) -> Iterator[Part]:
        self._session.limit(max(_LEAST_SECONDS, self._deadline - monotonic()))
        try:
            for part in self._parts:
                self.last = part
                yield part
        except Exception as error:
            if not self._session.was_ended(error):
                raise
            self.is_cut = True

    @property
    def is_over(self) -> bool:
        """True after the time of the search."""
        return monotonic() > self._deadline

    @property
    def is_whole(self) -> bool:
        """True if all messages were searched, provided that the batches were read to the end."""
        return self.indexed and not self.is_cut


def _each_checked(wanted: Filter, symbols: Symbols, batches: Generator[Batch]) -> Generator[Batch]:
    with closing(batches):
        for batch in batches:
            yield batch._replace(hits=checked(wanted, symbols, batch.hits))


def _counted(session: Session, source: str, values: dict[str, Any], symbols: Symbols, at_most: int) -> int:
    """Return how many hits of a source have these symbols, up to ``at_most`` or more."""
    if not symbols:
        [(count,)] = session.many(
            f"select count(*) from (select 1 from {source} limit :limit) c", limit=at_most, **values
        )
        return int(count)
    limit = at_most
    while True:
        rows = session.many(f"select f.symbols from {source} limit :limit", limit=limit, **values)
        count = sum(has_symbols(packed, symbols) for (packed,) in rows)
        if len(rows) < limit or count >= at_most:
            return count
        limit = max(2 * limit, _COMPARED_AT_ONCE)


def _numbers(session: Session, names: Sequence[str]) -> list[set[int]]:
    """Return the numbers of each of these symbols in all its spellings."""
    folded = [name[: facets.SYMBOL_CHARS].lower() for name in names]
    if not folded:
        return []
    rows = session.many("select id, lower(name) from symbol_name where lower(name) in :names", names=folded)
    return [{number for number, found in rows if found == name} for name in folded]
