"""The contract of what staff search for and group by: symbols, actions, addresses of servers, sizes, domains, rules."""

from __future__ import annotations

from abc import ABC, abstractmethod

from portal.model.message import DeliveryId, Filter
from portal.stores.records import GroupBy, Groups, Page, ScoreKey, ScorePage, Tally, Total

COUNTED_MAX = 10_000
GROUPED_MAX = 100_000


class Facets(ABC):
    """Search over the deliveries of all recipients, on an index that is written after Rspamd got its answer.

    Each call indexes up to some thousand waiting messages first. Older messages are indexed in the background.
    """

    @abstractmethod
    def page(self, wanted: Filter, limit: int, before: DeliveryId | None = None) -> Page:
        """Return the deliveries that match, newest first.

        One call takes a bounded time, so a page may be short or empty and still have a ``next``. If a single statement
        takes too long, it is ended, and the page says so (`Page.is_cut`). Forgotten deliveries are left out.
        """

    @abstractmethod
    def by_score(
        self, wanted: Filter, limit: int, after: ScoreKey | None = None, *, highest_first: bool = True
    ) -> ScorePage:
        """Return the deliveries that match and have a score, in the order of the score. Bounded as `page` is."""

    @abstractmethod
    def count(self, wanted: Filter, at_most: int = COUNTED_MAX, *, indexed: bool | None = None) -> Total:
        """Count the deliveries that match, up to ``at_most``.

        ``indexed``: what a search that has just ended said about the index, so that this one does not look again.
        """

    @abstractmethod
    def groups(self, wanted: Filter, by: GroupBy, at_most: int = GROUPED_MAX) -> Groups:
        """Count the newest ``at_most`` deliveries that match by what they have in common.

        If there are more in closed days, and the statistics know the answer, all are counted: `Groups.whole_days`.
        Symbols with the most points are first, otherwise the largest groups; hours are in order, newest first.
        """

    @abstractmethod
    def tally(self, wanted: Filter, at_most: int = GROUPED_MAX) -> Tally:
        """Count the newest ``at_most`` deliveries that match by recipient domain, tier and state together."""

    @abstractmethod
    def index(self) -> bool:
        """Index some messages that wait for it. Return whether there may be more."""

    @abstractmethod
    def recheck(self, *, are_missing: bool = False) -> None:
        """Let `index` look at all messages again, newest first, and index those that are missing.

        For messages that were added with a time in the past, or by a host whose clock was behind. ``are_missing``:
        there are such messages, so searches say until then that there may be more.
        """

    @abstractmethod
    def is_complete(self) -> bool:
        """Return whether older messages are indexed, too: those held before an upgrade, or copied."""

    @abstractmethod
    def knows_symbol(self, name: str) -> bool:
        """Return whether an indexed message ever had this symbol. Case is ignored."""
