"""`/admin/`: search over the messages of all recipients, counts and groups. No bodies.

Everything is in the address, in the names of `portal.model.criteria`, and `by` groups what is found. Staff find only
deliveries of the domains for which they may see envelopes: `Filter.within` puts these into the query of the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, urlencode

from bottle import HTTPResponse

from portal.batches.batch import Act
from portal.batches.mass import ACTS
from portal.batches.mass_run import MassActs
from portal.mail.languages import Language
from portal.model import criteria
from portal.model.domains import shown_address
from portal.model.errors import BadCriterion
from portal.model.message import ACTIONS, Delivery, Filter, State
from portal.model.reasons import why
from portal.model.sender import sender_shown
from portal.model.staff import EVERYWHERE
from portal.model.text import N_, shown
from portal.model.tiers import TIER_NAMES
from portal.policy.empty_search import why_nothing
from portal.policy.staff import Permission
from portal.stores.contracts.facets import COUNTED_MAX
from portal.stores.records import Group, GroupBy, Order
from portal.web.console import Console, StaffSession
from portal.web.found import counted, found_page
from portal.web.listing import name_of
from portal.web.pages import Pages
from portal.web.request import Request
from portal.web.rows import Viewer

_PAGE = 50
_GROUPS = 100
_ATTACHMENTS = 3  # names in a row
_LABELS = {
    "recipient": N_("Recipient"),
    "sender": N_("Sender"),
    "words": N_("Subject, sender or attachment"),
    "attachment": N_("Attachment name"),
    "since": N_("Held since"),
    "until": N_("Held until"),
    "symbol": N_("Symbol"),
    "action": N_("Action"),
    "tier": N_("Kind"),
    "state": N_("State"),
    "domain": N_("Recipient domain"),
    "sender-domain": N_("Sender domain"),
    "client": N_("Sending server"),
    "score-min": N_("Lowest score"),
    "score-max": N_("Highest score"),
    "size-min": N_("Smallest size"),
    "size-max": N_("Largest size"),
    "rule": N_("Rule for"),
}
_REPEATABLE = frozenset(each.name for each in criteria.CRITERIA if each.many)
_MAIN = ("recipient", "words", "symbol", "since")  # fields that are always open
_GROUPS_BY = {
    GroupBy.SYMBOL: N_("Symbol"),
    GroupBy.SENDER_DOMAIN: N_("Sender domain"),
    GroupBy.DOMAIN: N_("Recipient domain"),
    GroupBy.HOUR: N_("Hour"),
}
STATE_NAMES = {
    State.HELD: N_("Held"),
    State.REQUESTED: N_("Requested"),
    State.RELEASING: N_("Release in progress"),
    State.RELEASED: N_("Released"),
    State.DELETED: N_("Deleted"),
    State.PASSED: N_("Let through"),
    State.BLOCKED: N_("Blocked"),
}
_ACTS_ON_ALL = {
    Act.RELEASE: N_("Release all…"),
    Act.DELETE: N_("Delete all…"),
    Act.RESTORE: N_("Restore all…"),
    Act.REFUSE: N_("Deny all requests…"),
    Act.REANNOUNCE: N_("Put all into the next digest…"),
}
_CHOICES = {
    "tier": [(each.value, text) for each, text in TIER_NAMES.items()],
    "state": [(each.value, text) for each, text in STATE_NAMES.items()],
    "action": [(each, each) for each in ACTIONS],
}


# The template values of a search that was not made, or found nothing.
_NOTHING_FOUND: dict[str, object] = {
    "by": None,
    "rows": [],
    "total": None,
    "older": None,
    "since": "",
    "whole_days": None,
    "is_cut": False,
    "indexed": True,
}


@dataclass(frozen=True, slots=True)
class Search:
    """The search that an address names. ``values`` are names and values as typed, without empty and unknown ones."""

    values: tuple[tuple[str, str], ...]

    @classmethod
    def of_query(cls, query: str) -> Search:
        """Return the search of a query string."""
        known = (*criteria.NAMES, "by", "order", "before")
        # Control and format characters, which the form cannot show, are no part of any value.
        pairs = ((name, "".join(filter(str.isprintable, value)).strip()) for name, value in parse_qsl(query))
        return cls(tuple(dict.fromkeys(pair for pair in pairs if pair[0] in known and pair[1])))

    def get(self, name: str) -> str:
        """Return the last value of a name, "" if there is none."""
        return next((value for each, value in reversed(self.values) if each == name), "")

    def in_field(self, name: str) -> str:
        """Return the value that the form's field for a criterion shows: the last one, if its list has choices the last
        of these."""
        if name not in _CHOICES:
            return self.get(name)
        choices = {value for value, _ in _CHOICES[name]}
        typed = self.typed().get(name, [])
        return next((value.lower() for value in reversed(typed) if value.lower() in choices), "")

    def beside_field(self, name: str) -> list[str]:
        """Return the other values of a criterion that may be repeated. The form sends them as well: without them, it
        would find more than the page that it is on."""
        if name not in _REPEATABLE:
            return []
        shown_value = self.in_field(name)
        values = self.typed().get(name, [])
        return [value for value in values if (value.lower() if name in _CHOICES else value) != shown_value]

    def typed(self) -> dict[str, list[str]]:
        """Return the criteria, as `criteria.read` takes them."""
        found: dict[str, list[str]] = {}
        for name, value in self.values:
            if name in criteria.NAMES:
                found.setdefault(name, []).append(value)
        return found

    @property
    def by(self) -> GroupBy | None:
        """The criterion to group by, None for a list of deliveries."""
        return next((by for by in GroupBy if by.value == self.get("by")), None)

    @property
    def order(self) -> Order:
        """The order of the list."""
        return next((order for order in Order if order.value == self.get("order")), Order.NEWEST)

    def without(self, *names: str, pair: tuple[str, str] | None = None) -> Search:
        """Return the search without these names, or without one value of a name."""
        return Search(tuple(each for each in self.values if each[0] not in names and each != pair))

    def query(self, *more: tuple[str, str]) -> str:
        """Return the query string with these pairs as well, with ``?``; "" if it is empty."""
        pairs = list(dict.fromkeys((*self.values, *more)))
        return f"?{urlencode(pairs)}" if pairs else ""

    def as_place(self) -> str:
        """Return the query string with which the page of a message names the page of the search that one came from."""
        query = self.without("by").query()
        return f"?{urlencode({'search': query})}" if query else ""


@dataclass(frozen=True, slots=True)
class FoundRow:
    """A delivery as staff see it."""

    key: str  # in the address of its page
    held: str
    recipient: str
    sender: str
    subject: str
    attachments: list[str]  # names, shortened
    more_attachments: int
    score: str
    tier: str  # to be translated
    state: str  # to be translated
    reasons: list[str]  # to be translated
    symbols: list[tuple[str, str]]  # the ones with the highest scores, and where each leads


@dataclass(frozen=True, slots=True)
class GroupRow:
    """A group, and the query string that finds its deliveries; "" if there is none."""

    name: str
    count: str
    points: str
    query: str


class ConsoleSearch:
    """`/admin/`."""

    def __init__(self, pages: Pages, console: Console) -> None:
        self._pages = pages
        self._console = console
        self._parts = pages.parts
        self._masses = MassActs(pages.parts.store, pages.parts.actions, pages.parts.staff)

    def show(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """GET /admin/: the form, and what it finds."""
        search = Search.of_query(request.query_string)
        viewer = self._pages.viewer(request, staff.member.person)
        reach = self._parts.staff.reach(staff.member, Permission.SEE_ENVELOPE)
        domains = None if EVERYWHERE in reach else reach
        now, error = self._pages.now(), None
        try:
            typed = criteria.read(search.typed(), viewer.zone, now)
            wanted: Filter | None = self._parts.people.searched(typed).within(domains)
        except BadCriterion as bad:
            wanted, error = None, bad
        found: dict[str, object] = {}
        if wanted is not None:
            with self._pages.searching():
                found = self._found(search, wanted, viewer)
        is_cut = bool(found.get("is_cut"))
        is_empty = wanted is not None and not (found["rows"] or found.get("older") or search.get("before") or is_cut)
        nothing = ""
        if wanted is not None and is_empty and search.typed():
            days = self._parts.domains.longest_retention_days
            why_not = why_nothing(self._parts.store, wanted, self._parts.people.is_notified, days, now, domains)
            nothing = request.language.phrase(why_not)
        return self._console.page(
            request,
            staff,
            "search",
            400 if error else 200,
            is_first_page=not search.values,
            roles=self._console.roles(staff),
            error=error and (error.name, _sentence(error, request.language)),
            acts=[
                (_ACTS_ON_ALL[act], search.without("before", "by").query(("act", act.value)))
                for act in ACTS
                if search.typed() and not is_empty and self._masses.rights.reach(act, staff.member)
            ],
            is_empty=is_empty,
            nothing=nothing,
            **_form_values(search, viewer),
            **{**_NOTHING_FOUND, **found},
        )

    def _found(self, search: Search, wanted: Filter, viewer: Viewer) -> dict[str, object]:
        number = viewer.language.number
        if search.by is not None:
            groups = self._parts.store.facets.groups(wanted, search.by)
            since = viewer.language.moment(groups.since, viewer.zone) if groups.since else ""
            return {
                "by": search.by,
                "by_name": _GROUPS_BY[search.by],
                "rows": [_group_row(search, wanted, search.by, group, viewer) for group in groups.groups[:_GROUPS]],
                "groups_left": number(max(0, len(groups.groups) - _GROUPS)),
                "has_more_groups": len(groups.groups) > _GROUPS,
                "total": number(groups.total.count),
                "is_exact": groups.total.exact,
                "indexed": groups.total.indexed,
                "since": since,
                "whole_days": groups.whole_days,
            }
        page = found_page(self._parts.store, wanted, search.order, _PAGE, search.get("before"))
        found: dict[str, object] = {
            "rows": _rows(search, page.deliveries, viewer),
            "older": search.without("before").query(("before", page.next)) if page.next else None,
            "is_cut": page.is_cut,
            "indexed": page.indexed,
        }
        if search.typed():
            total = counted(self._parts.store, wanted, search.order, page, is_first=not search.get("before"))
            found |= {
                "total": number(total.count),
                "is_exact": total.exact,
                "is_many": total.count >= COUNTED_MAX,
                "indexed": page.indexed and total.indexed,
            }
        return found


def _sentence(error: BadCriterion, language: Language) -> str:
    return error.sentence(lambda name: language.gettext(_LABELS[name]), language.phrase)


def _form_values(search: Search, viewer: Viewer) -> dict[str, object]:
    """Return the template values of the form, and of the links that change the search."""
    first = search.without("before")
    return {
        "search": search,
        "labels": _LABELS,
        "main_fields": _MAIN,
        "more_fields": [name for name in _LABELS if name not in _MAIN],
        "choices": _CHOICES,
        "chips": [
            (
                _LABELS[name],
                _shown_choice(name, value, viewer),
                first.without("by", pair=(name, value)).query(*_by(search)),
            )
            for name, value in search.values
            if name in _LABELS
        ],
        "ways": [
            (text, first.without("by").query(("by", by.value)), by is search.by) for by, text in _GROUPS_BY.items()
        ],
        "here": search.as_place(),
        "list_query": first.without("by").query(),
        "order": search.order,
        "order_queries": [first.without("order").query(*_ordered(order)) for order in Order],
        "newest_query": first.query() if search.get("before") else None,
    }


def _ordered(order: Order) -> Iterable[tuple[str, str]]:
    return [] if order is Order.NEWEST else [("order", order.value)]


def _by(search: Search) -> Iterable[tuple[str, str]]:
    return [("by", search.by.value)] if search.by else []


def _rows(search: Search, deliveries: Sequence[Delivery], viewer: Viewer) -> list[FoundRow]:
    first = search.without("before")
    rows = []
    for each in deliveries:
        message = each.message
        highest = sorted((s for s in message.symbols if s.score > 0), key=lambda s: -s.score)[:3]
        rows.append(
            FoundRow(
                key=name_of(each.key),
                held=viewer.language.short_moment(message.held_at, viewer.zone),
                recipient=shown_address(each.address),
                sender=str(sender_shown(message)),
                subject=shown(message.subject, 120),
                attachments=[shown(name, 60) for name in message.attachments[:_ATTACHMENTS]],
                more_attachments=max(0, len(message.attachments) - _ATTACHMENTS),
                score="" if message.score is None else viewer.language.score(message.score),
                tier=TIER_NAMES[message.tier],
                state=STATE_NAMES.get(each.state, ""),
                reasons=why(message)[:1],
                symbols=[(shown(s.name, 60), first.query(("symbol", s.name))) for s in highest],
            )
        )
    return rows


def _group_row(search: Search, wanted: Filter, by: GroupBy, group: Group, viewer: Viewer) -> GroupRow:
    first, name = search.without("before", "by"), group.name
    pairs = [(by.value, name)]
    shown_name = shown(name, 100)
    if by is GroupBy.HOUR:
        begin = datetime.fromisoformat(f"{name}:00").replace(tzinfo=UTC)
        shown_name = viewer.language.short_moment(begin, viewer.zone)
        first = first.without("since", "until")
        end = begin + timedelta(hours=1)
        since = max(begin, wanted.since or begin)  # the search may begin or end within the hour
        until = min(end, wanted.until or end)
        pairs = [("since", _in_utc(since)), ("until", _in_utc(until))]
    elif by is not GroupBy.SYMBOL:
        shown_name = shown_address(name)
        first = first.without(by.value)
    points = viewer.language.score(group.points) if by is GroupBy.SYMBOL else ""
    query = first.query(*pairs) if name else ""
    return GroupRow(shown_name, viewer.language.number(group.count), points, query)


def _in_utc(at: datetime) -> str:
    """Return a time as a criterion, in whole minutes if it is one."""
    at = at.astimezone(UTC).replace(tzinfo=None)
    return f"{at.isoformat(timespec='auto' if at.second or at.microsecond else 'minutes')}Z"


def shown_criteria(search: Search, viewer: Viewer) -> str:
    """Return the criteria of a search for people, in one line."""
    pairs = [(viewer.language.gettext(_LABELS[name]), name, value) for name, value in search.values if name in _LABELS]
    return ", ".join(f"{label}: {_shown_choice(name, value, viewer)}" for label, name, value in pairs)


def _shown_choice(name: str, value: str, viewer: Viewer) -> str:
    """Return a value of a criterion for people."""
    text = dict(_CHOICES.get(name, ())).get(value)
    return shown(value, 60) if text is None else viewer.language.gettext(text)
