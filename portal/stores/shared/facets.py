"""Search over all deliveries by facets. Each store adds how it finds the rows."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

from portal.model.message import DeliveryId, Filter, State, Tier, domain, held_at
from portal.stores.contracts.facets import COUNTED_MAX, GROUPED_MAX
from portal.stores.facets import Hit
from portal.stores.records import GroupBy, Groups, Page, Tally, Total
from portal.stores.search import EXAMINED_MAX, Terms, needs_texts
from portal.stores.shared.facet_hits import Batch, Symbols, has_symbols
from portal.stores.shared.facet_scores import FacetScores
from portal.stores.shared.facet_searches import COMPARED_AT_ONCE, each_checked
from portal.stores.shared.grouping import Counts, WholeDays, whole_days
from portal.stores.shared.session import Session

_PAGE_SECONDS, _COUNT_SECONDS, _GROUPS_SECONDS = 2.0, 3.0, 6.0  # for one call
_GROUPED_AT_ONCE = 20_000


class SqlFacets(FacetScores):
    """See `Facets`."""

    def page(self, wanted: Filter, limit: int, before: DeliveryId | None = None) -> Page:
        found: list[DeliveryId] = []
        next: DeliveryId | None = None
        examined = 0
        at_once = max(limit + 1, COMPARED_AT_ONCE if needs_texts(wanted) else 0)
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
        hits = partial(self._matching, wanted=wanted, before=None, at_once=COMPARED_AT_ONCE)
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
        return each_checked(wanted, symbols, hits)

    def _counts(self, session: Session, terms: Terms, symbols: Symbols, wanted: Filter, at_most: int) -> Generator[int]:
        """Yield the numbers of hits with these symbols, up to ``at_most`` or more in all."""
        for source, values in self._sources(session, terms, wanted, at_most):
            count = _counted(session, source, values, symbols, at_most)
            at_most -= count
            yield count

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
        limit = max(2 * limit, COMPARED_AT_ONCE)
