"""Why a search over all deliveries found nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime, timedelta

from portal.model.domains import shown_address
from portal.model.message import Filter, domain
from portal.model.phrase import Phrase
from portal.model.text import N_, shown
from portal.stores import Store

_DATE = "%Y-%m-%d"


def why_nothing(
    store: Store,
    wanted: Filter,
    is_local: Callable[[str], bool],
    retention_days: int,
    now: datetime,
    domains: Collection[str] | None = None,
) -> Phrase:
    """Return the first reason that explains an empty result, as a sentence for staff. Raises StoreUnavailable.

    ``domains``: those that the searcher may see, None for all. ``retention_days``: the longest one.
    """
    kept = timedelta(days=retention_days)
    oldest = now - kept
    if wanted.recipient is not None:
        address = shown_address(wanted.recipient)
        if domains is not None and domain(wanted.recipient) not in domains:
            return Phrase(N_("%(address)s is not in your domains."), {"address": address})
        if not is_local(wanted.recipient):
            text = N_("%(address)s is not a recipient of this site: local_domains has neither it nor its domain.")
            return Phrase(text, {"address": address})
        own = Filter(recipient=wanted.recipient, also=wanted.also)
        if not store.deliveries.search(own, 1).deliveries:
            text = N_(
                "Nothing is stored for %(address)s. Either it is unknown, or its messages were removed: they are kept "
                "for %(days)s."
            )
            return Phrase(text, {"address": address, "days": kept})
    if wanted.needs_facets and not store.facets.is_complete():
        return Phrase(N_("Older messages are still being indexed. Try again in some minutes."))
    # Which symbols exist, other domains have shown: this is not for those who see some domains only.
    for symbol in wanted.symbols if domains is None else ():
        if not store.facets.knows_symbol(symbol):
            text = N_("No message has had the symbol %(symbol)s. Check its spelling.")
            return Phrase(text, {"symbol": shown(symbol)})
    if wanted.until is not None and wanted.until <= oldest:
        text = N_("Messages held before %(date)s were removed: they are kept for %(days)s.")
        return Phrase(text, {"date": f"{oldest:{_DATE}}", "days": kept})
    if wanted.since is not None and wanted.since > now:
        return Phrase(N_("The time is in the future."))
    if not store.deliveries.search(Filter().within(domains), 1).deliveries:
        return Phrase(N_("Nothing is held."))
    return Phrase(N_("No delivery matches all criteria. Leave some out."))
