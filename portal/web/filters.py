"""The filters of the recipient's list as the page shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from portal.model.domains import shown_address
from portal.model.message import Filter, Reader
from portal.model.reasons import ALL_REASONS
from portal.model.text import N_
from portal.model.tiers import TIER_NAMES
from portal.stores.search import phrases, wanted_terms
from portal.web.listing import Listing
from portal.web.rows import Row, Viewer

_CHIPS = {
    "sender": N_("Sender"),
    "since": N_("From day"),
    "until": N_("To day"),
    "tier": N_("Kind"),
    "score-min": N_("Lowest score"),
    "score-max": N_("Highest score"),
    "reason": N_("Reason"),
    "attachment": N_("With attachments"),
    "mailbox": N_("Mailbox"),
    "like": N_("Similar to one message"),
}


def filters(listing: Listing, reader: Reader, rows: Iterable[Row], viewer: Viewer) -> dict[str, Any]:
    """Return what the template of the list takes for its search and filters; ``rows`` are those of the page."""
    identities = reader.identities if len(reader.identities) > 1 else ()
    return {
        "has_phrase": len(phrases(listing.get("q"))) > 0,
        "words_fit": wanted_terms(Filter(words=listing.get("q"))) is not None,
        "chips": _chips(listing, viewer),
        "tiers": TIER_NAMES,
        "reasons": _reasons(listing, rows, viewer.language.gettext),
        "mailboxes": [(each, shown_address(each)) for each in identities],
    }


def _chips(listing: Listing, viewer: Viewer) -> list[tuple[str, str, str]]:
    """Return the filters that are in use: (name to be translated, value, query string without the filter)."""
    _ = viewer.language.gettext
    values = {name: listing.get(name) for name in _CHIPS}
    days = listing.filter(viewer.zone)
    shown = values | {
        "since": viewer.language.date(days.since, viewer.zone) if days.since else values["since"],
        # The filter ends at the midnight after the day.
        "until": viewer.language.date(days.until - timedelta(seconds=1), viewer.zone)
        if days.until
        else values["until"],
        "tier": _(next((text for tier, text in TIER_NAMES.items() if tier == values["tier"]), values["tier"])),
        "reason": _(values["reason"]) if values["reason"] else "",
        "mailbox": shown_address(values["mailbox"]),
        "attachment": "",
        "like": "",
    }
    return [(text, shown[name], listing.query(**{name: ""})) for name, text in _CHIPS.items() if values[name]]


def _reasons(listing: Listing, rows: Iterable[Row], _: Callable[[str], str]) -> list[tuple[str, str]]:
    """Return the choices of the filter by reason: (reason, its translation). Those of the page's messages are first."""
    near = {listing.get("reason"), *(each for row in rows for each in row.reasons)} - {""}
    texts = [(each, _(each)) for each in near.union(ALL_REASONS)]
    return sorted(texts, key=lambda pair: (pair[0] not in near, pair[1].casefold()))
