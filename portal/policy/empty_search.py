"""Why a search over all deliveries found nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime, timedelta

from portal.model.domains import shown_address
from portal.model.message import Filter, domain
from portal.model.text import shown
from portal.stores import Store

_DATE = "%Y-%m-%d"


def why_nothing(
    store: Store,
    wanted: Filter,
    is_local: Callable[[str], bool],
    retention_days: int,
    now: datetime,
    domains: Collection[str] | None = None,
) -> str:
    """Return the first reason that explains an empty result, as a sentence for staff. Raises StoreUnavailable.

    ``domains``: those that the searcher may see, None for all. ``retention_days``: the longest one.
    """
    oldest = now - timedelta(days=retention_days)
    if wanted.recipient is not None:
        address = shown_address(wanted.recipient)
        if domains is not None and domain(wanted.recipient) not in domains:
            return f"{address} is not in your domains."
        if not is_local(wanted.recipient):
            return f"{address} is not a recipient of this site: local_domains has neither it nor its domain."
        own = Filter(recipient=wanted.recipient, also=wanted.also)
        if not store.deliveries.search(own, 1).deliveries:
            return (
                f"Nothing is stored for {address}. Either it is unknown, or its messages were removed after "
                f"{retention_days} days."
            )
    if wanted.needs_facets and not store.facets.is_complete():
        return "Older messages are still being indexed. Try again in some minutes."
    # Which symbols exist, other domains have shown: this is not for those who see some domains only.
    for symbol in wanted.symbols if domains is None else ():
        if not store.facets.knows_symbol(symbol):
            return f"No message has had the symbol {shown(symbol)}. Check its spelling."
    if wanted.until is not None and wanted.until <= oldest:
        return f"Messages held before {oldest:{_DATE}} were removed: they are kept for {retention_days} days."
    if wanted.since is not None and wanted.since > now:
        return "The time is in the future."
    if not store.deliveries.search(Filter().within(domains), 1).deliveries:
        return "Nothing is held."
    return "No delivery matches all criteria. Leave some out."
