"""Searches over all deliveries by facets: each begins with the index, and ends in time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from time import monotonic
from typing import Any, Generic, TypeVar

from portal.model.message import Delivery, DeliveryId, Filter
from portal.stores import facets
from portal.stores.contracts.facets import Facets
from portal.stores.search import Terms
from portal.stores.shared.facet_hits import Batch, Symbols, checked
from portal.stores.shared.facet_index import FacetIndex
from portal.stores.shared.rows import Rows
from portal.stores.shared.session import Engine, Session

_CATCH_UP_SECONDS = 1.0  # of a search for the index
_LEAST_SECONDS = 0.25  # for the first statement after that
COMPARED_AT_ONCE = 2_000  # if texts are compared one by one

Part = TypeVar("Part")  # of the results of a search


class FacetSearches(Facets):
    """The parts that all searches of `Facets` share."""

    def __init__(self, engine: Engine, rows: Rows, index: FacetIndex) -> None:
        self._engine = engine
        self._rows = rows
        self._index = index

    def _deliveries(self, keys: Sequence[DeliveryId]) -> tuple[Delivery, ...]:
        """Return those of these deliveries that still exist, in this order."""
        ids = list({key.message_id for key in keys})
        if not ids:
            return ()
        with self._engine.reading() as session:  # after a statement that was ended, a transaction cannot go on
            found = {each.key: each for each in self._rows.deliveries(session, "where d.message_id in :ids", ids=ids)}
        return tuple(found[key] for key in keys if key in found)

    def _catch_up(self, wanted: Filter) -> bool:
        """Index what waits, if there may be hits. Return whether all messages are indexed."""
        return facets.wanted_terms(wanted) is None or self._index.catch_up(_CATCH_UP_SECONDS)

    @contextmanager
    def _searching(
        self,
        wanted: Filter,
        read: Callable[[Session, Terms, Symbols], Generator[Part]],
        seconds: float,
        indexed: bool | None = None,
    ) -> Iterator[Search[Part]]:
        """Yield a search, which is used in the block. ``read`` returns its parts for these terms and symbols.

        ``indexed`` as in `Facets.count`.
        """
        deadline, least = monotonic() + seconds, 0.0
        if indexed is None:
            indexed, least = self._catch_up(wanted), _LEAST_SECONDS
        terms = facets.wanted_terms(wanted)
        with self._engine.reading(snapshot=True) as session:
            symbols = _numbers(session, wanted.symbols)
            if terms is None or not all(symbols):
                yield Search(session, iter(()), deadline, least, indexed)
                return
            with closing(read(session, terms, symbols)) as parts:
                yield Search(session, parts, deadline, least, indexed)

    @abstractmethod
    def _sources(
        self, session: Session, terms: Terms, wanted: Filter, at_most: int
    ) -> Generator[tuple[str, dict[str, Any]]]:
        """Yield what comes after ``from`` in the statements that find all hits with these terms and `conditions`.

        Each has its parameters. ``at_most`` of the hits are needed.
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


class Search(Generic[Part]):
    """Iterates over the parts of a search until its time is over: then the running statement is ended."""

    def __init__(self, session: Session, parts: Iterator[Part], deadline: float, least: float, indexed: bool) -> None:
        """``least``: seconds for the first statement, also if the index took them all."""
        self._session = session
        self._parts = parts
        self._deadline = deadline
        self._least = least
        self.indexed = indexed  # whether all messages were
        self.is_cut = False  # whether a statement was ended
        self.last: Part | None = None  # before that

    def __iter__(self) -> Iterator[Part]:
        self._session.limit(max(self._least, self._deadline - monotonic()))
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


def each_checked(wanted: Filter, symbols: Symbols, batches: Generator[Batch]) -> Generator[Batch]:
    """Yield these batches without the hits that do not match."""
    with closing(batches):
        for batch in batches:
            yield batch._replace(hits=checked(wanted, symbols, batch.hits))


def _numbers(session: Session, names: Sequence[str]) -> list[set[int]]:
    """Return the numbers of each of these symbols in all its spellings."""
    folded = [name[: facets.SYMBOL_CHARS].lower() for name in names]
    if not folded:
        return []
    rows = session.many("select id, lower(name) from symbol_name where lower(name) in :names", names=folded)
    return [{number for number, found in rows if found == name} for name in folded]
