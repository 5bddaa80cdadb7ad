"""Pages of a search by facets in the order of the score."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Generator, Iterable
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any

from portal.model.message import Filter
from portal.stores.facets import Hit
from portal.stores.records import ScoreKey, ScorePage
from portal.stores.search import EXAMINED_MAX, Terms, needs_texts
from portal.stores.shared.facet_hits import Batch, Symbols, checked, columns, hits_of
from portal.stores.shared.facet_searches import COMPARED_AT_ONCE, FacetSearches, each_checked
from portal.stores.shared.session import Session

_FEW = 20_000  # hits that are sorted before anything else is tried
_SORTED_MAX = _IN_RANGE_MAX = 150_000  # hits that are sorted, of all scores and of some points
_SORT_SECONDS = 2.0
_SPARE = 50  # hits beyond a page, in case the index finds some that do not match
_SCORES_SECONDS, _COMPARED_SECONDS = 0.25, 0.4  # for a page of scores that are read in order, without and with texts
_RANGES_SECONDS = 2.0
_POINTS = 4_096.0  # a step of so many points goes to the last score


class FacetScores(FacetSearches):
    """Adds `Facets.by_score`."""

    def by_score(
        self, wanted: Filter, limit: int, after: ScoreKey | None = None, *, highest_first: bool = True
    ) -> ScorePage:
        indexed = self._catch_up(wanted)
        sort = partial(self._sorted, wanted, limit, after, indexed=indexed, highest_first=highest_first)
        few = min(_FEW, COMPARED_AT_ONCE) if needs_texts(wanted) else _FEW
        found, page = sort(few, _SORT_SECONDS), None
        if found is None:  # the search finds more: if it finds much, the next scores are soon found in their own order
            seconds = _COMPARED_SECONDS if needs_texts(wanted) else _SCORES_SECONDS
            page = self._along_scores(wanted, limit, after, seconds, indexed, highest_first=highest_first)
            if len(page.deliveries) == limit or (page.next is None and not page.is_cut):
                return page
            found = None if needs_texts(wanted) else sort(_SORTED_MAX, _SORT_SECONDS)
        if found is not None:
            return self._score_page(found, limit, indexed, highest_first=highest_first)
        if page is not None and page.next is not None:
            return page
        return self._in_ranges(wanted, limit, after, indexed, highest_first=highest_first)

    def _in_ranges(
        self, wanted: Filter, limit: int, after: ScoreKey | None, indexed: bool, *, highest_first: bool
    ) -> ScorePage:
        """Return a page of a search whose hits are far apart: sort those of the next point, of two more and so on."""
        deadline = monotonic() + _RANGES_SECONDS
        keys, is_cut = set[ScoreKey](), False
        if after is None:
            first = self._along_scores(
                Filter(), 1, None, _RANGES_SECONDS, indexed, highest_first=highest_first
            ).deliveries
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
            seconds = deadline - monotonic()
            found = self._sorted(
                within, limit, after, _IN_RANGE_MAX, seconds, indexed=indexed, highest_first=highest_first
            )
            is_cut = found is None or monotonic() > deadline
            keys.update(found or ())
            if is_cut:
                break
            edge, step = edge + step, 2 * step
        page = self._score_page(keys, limit, indexed, highest_first=highest_first)
        return replace(page, is_cut=is_cut and page.next is None)

    def _score_page(self, keys: Iterable[ScoreKey], limit: int, indexed: bool, *, highest_first: bool) -> ScorePage:
        found = sorted(keys, reverse=highest_first)
        next = found[limit - 1] if len(found) > limit else None
        return ScorePage(self._deliveries([each.key for each in found[:limit]]), next, indexed=indexed)

    def _sorted(
        self,
        wanted: Filter,
        limit: int,
        after: ScoreKey | None,
        at_most: int,
        seconds: float,
        *,
        indexed: bool,
        highest_first: bool,
    ) -> list[ScoreKey] | None:
        """Return the first ``limit`` hits after this place and some more, in any order.

        None: there are more than ``at_most``, or it took too long. ``indexed`` as in `Facets.count`.
        """
        keys: list[ScoreKey] = []
        examined = 0
        hits = partial(
            self._first_by_score, wanted=wanted, limit=limit, after=after, at_most=at_most, highest_first=highest_first
        )
        with self._searching(wanted, hits, seconds, indexed) as search:
            for number, first in search:
                keys += [ScoreKey(hit.score or 0.0, hit.key) for hit in first]
                examined += number
                if examined > at_most or search.is_over:
                    return None
        return None if search.is_cut else keys

    def _along_scores(
        self, wanted: Filter, limit: int, after: ScoreKey | None, seconds: float, indexed: bool, *, highest_first: bool
    ) -> ScorePage:
        """Return a page of a search that finds much: scores are read in order, until there is a page of hits."""
        found: list[ScoreKey] = []
        next: ScoreKey | None = None
        examined = 0
        hits = partial(self._matching_by_score, wanted=wanted, after=after, limit=limit, highest_first=highest_first)
        with self._searching(wanted, hits, seconds, indexed) as search:
            for batch in search:
                found += [ScoreKey(hit.score or 0.0, hit.key) for hit in batch.hits]
                examined += batch.examined
                if len(found) > limit:
                    next = found[limit - 1]
                    break
                if examined >= (COMPARED_AT_ONCE if needs_texts(wanted) else EXAMINED_MAX) or search.is_over:
                    next = ScoreKey(batch.score, batch.lowest)
                    break
            if search.is_cut and search.last:
                next = ScoreKey(search.last.score, search.last.lowest)
        deliveries = self._deliveries([each.key for each in found[:limit]])
        return ScorePage(deliveries, next, is_cut=search.is_cut, indexed=search.indexed)

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
        return each_checked(wanted, symbols, hits)

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

    @abstractmethod
    def _hits_by_score(
        self, session: Session, terms: Terms, wanted: Filter, after: ScoreKey | None, limit: int, *, highest_first: bool
    ) -> Generator[Batch]:
        """Yield the hits after this place that have a score, these terms and `conditions`, in the order of the score.

        The page has ``limit`` of them.
        """
