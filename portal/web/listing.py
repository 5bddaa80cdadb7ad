"""The part of a recipient's list that an address names: state, search, filters, order and page. Without I/O.

Everything is in the address, so that a list can be bookmarked, and the way back from a message leads to the same rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from unicodedata import category
from urllib.parse import parse_qsl, urlencode
from uuid import UUID
from zoneinfo import ZoneInfo

from portal.model import criteria
from portal.model.message import DeliveryId, Filter, Reader, State, Tier, parse_id

# The links above the list, and the states that each of them shows.
VIEWS: dict[str, tuple[State, ...]] = {
    "held": (State.HELD,),
    "requested": (State.REQUESTED,),
    "released": (State.RELEASING, State.RELEASED, State.PASSED),
    "blocked": (State.BLOCKED,),
    "deleted": (State.DELETED,),
    "all": tuple(State),
}
SIZES = ("25", "50", "100")
_SIZE = "25"
RANKED_MAX = 300  # the newest messages that are put in order of the likeliest mistakes
_NO_DELIVERY = DeliveryId(UUID(int=0), 0)
_CURSOR = re.compile(r"([0-9a-f-]{36})\.([0-9]{1,5})", re.ASCII)
# A phrase between quotation marks is left as it is.
_PHRASE_OR_FROM = re.compile(r'"[^"]*"?|(?:^|(?<=\s))from:\s*(?:"([^"]+)"?|([^\s"]\S*))', re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]{1,6}", re.ASCII)
_LENGTHS = {  # the parameters, and the most characters of each
    "state": 10,
    "q": 200,
    "sender": 200,
    "since": 10,
    "until": 10,
    "tier": 10,
    "score-min": 8,
    "score-max": 8,
    "reason": 120,
    "attachment": 1,
    "mailbox": 320,
    "like": 42,
    "order": 8,
    "size": 3,
    "before": 42,
    "down_to": 42,
    "at": 6,
    "after": 42,
    "up_to": 42,
    "skip": 4,
    "select": 8,
}
_OF_PAGE = (  # the others stay the same on all pages of a list
    *("before", "down_to", "at", "after", "up_to", "skip", "select"),
)
_OF_FILTERS = (
    *("q", "sender", "since", "until", "tier", "score-min", "score-max", "reason", "attachment", "mailbox", "like"),
)


@dataclass(frozen=True, slots=True)
class Listing:
    """One page of a list. ``values`` are the parameters as typed, without empty and unknown ones."""

    values: Mapping[str, str]

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> Listing:
        """Return the listing of a query's names and values; the last value of a name wins.

        ``from:NAME`` in the search is the filter by sender; the last one wins.
        """
        texts = ((name, _without_controls(value)) for name, value in pairs if name in _LENGTHS)
        values = {name: value[: _LENGTHS[name]] for name, value in texts if value.strip()}
        words, sender = _without_sender(values.get("q", ""))
        if sender:
            values |= {"q": words, "sender": sender}
        return cls({name: value for name, value in values.items() if value})

    @classmethod
    def of_query(cls, query: str) -> Listing:
        """Return the listing of a query string, with or without ``?``."""
        return cls.of(parse_qsl(query.removeprefix("?")))

    def query(self, **changes: str) -> str:
        """Return the query string with ``?``, "" if it is empty.

        A change other than of the page itself leads to the first page.
        """
        kept = self.values if changes.keys() <= set(_OF_PAGE) else _without(self.values, *_OF_PAGE)
        values = {name: value for name, value in {**kept, **changes}.items() if value}
        return f"?{urlencode({name: values[name] for name in _LENGTHS if name in values})}" if values else ""

    def first_page(self, select: str = "") -> str:
        """Return the query string of the first page."""
        return self.query(**{**dict.fromkeys(_OF_PAGE, ""), "select": select})

    def without_filters(self) -> str:
        """Return the query string of the same list without search and filters."""
        return Listing(_without(self.values, *_OF_FILTERS, *_OF_PAGE)).query()

    def get(self, name: str) -> str:
        """Return a parameter without blanks around it, "" if it is missing."""
        return self.values.get(name, "").strip()

    @property
    def view(self) -> str:
        """A key of `VIEWS`."""
        return self.get("state") if self.get("state") in VIEWS else "held"

    @property
    def is_ranked(self) -> bool:
        """True if the likeliest mistakes are first: held messages only."""
        return self.get("order") == "likely" and self.view == "held" and not self.selects_matching

    @property
    def size(self) -> int:
        """The messages on a page."""
        return int(self.get("size") if self.get("size") in SIZES else _SIZE)

    @property
    def is_filtered(self) -> bool:
        """True if a search or a filter hides messages."""
        return any(self.get(name) for name in _OF_FILTERS)

    @property
    def selects_all(self) -> bool:
        """True if the messages of the page are selected at first."""
        return self.get("select") == "all" or self.selects_matching

    @property
    def selects_matching(self) -> bool:
        """True if all messages of the list are selected, on all its pages."""
        return self.get("select") == "matching"

    @property
    def before(self) -> DeliveryId | None:
        """The delivery before which the page begins, None for the first page."""
        return cursor(self.get("before"))

    @property
    def down_to(self) -> DeliveryId | None:
        """The delivery with which the page ends, or the next newer one if it is not listed, if there is no `before`."""
        return None if self.before else cursor(self.get("down_to"))

    @property
    def cursor(self) -> DeliveryId | None:
        """`before` or `down_to`, None for the first page."""
        return self.before or self.down_to

    @property
    def after(self) -> DeliveryId | None:
        """The delivery after whose row the page begins, if `is_ranked`."""
        return cursor(self.get("after"))

    @property
    def up_to(self) -> DeliveryId | None:
        """The delivery before whose row the page ends, if `is_ranked`, if there is no `after`."""
        return None if self.after else cursor(self.get("up_to"))

    @property
    def skip(self) -> int:
        """The rows on the pages before this one, as the pages counted them, if `is_ranked`."""
        return _number(self.get("skip"))

    @property
    def is_first_page(self) -> bool:
        """True if no page is before this one."""
        return not (self.cursor or self.after or self.up_to or self.skip)

    @property
    def at(self) -> int:
        """The messages from the first one to `before` or `down_to`, as the pages counted them, unless `is_ranked`."""
        return _number(self.get("at")) if self.cursor else 0

    def older(self, before: DeliveryId, at: int) -> str:
        """Return the query string of the page that begins after this delivery, the last one of ``at`` messages."""
        return self.query(before=name_of(before), down_to="", at=str(at), select="")

    def newer(self, down_to: DeliveryId, at: int, *, is_exact: bool) -> str:
        """Return the query string of the page that ends with this delivery, the last one of ``at`` messages.

        ``is_exact``: none was held since they were counted. Otherwise the first page might not have this delivery.
        """
        if is_exact and 0 < at <= self.size:
            return self.first_page()
        return self.query(before="", down_to=name_of(down_to), at=str(at or ""), select="")

    def next_ranked(self, after: DeliveryId, skip: int) -> str:
        """Return the query string of the page that begins after this delivery's row, the last one of ``skip`` rows."""
        return self.query(after=name_of(after), up_to="", skip=str(skip), select="")

    def previous_ranked(self, up_to: DeliveryId | None, rows: int) -> str:
        """Return the query string of the page that ends before this delivery's row, with ``rows`` before that row.

        Without a delivery, the page has the last of these rows.
        """
        skip = max(0, rows - self.size)
        return self.query(after="", up_to=name_of(up_to) if up_to else "", skip=str(skip or ""), select="")

    def filter(self, zone: ZoneInfo) -> Filter:
        """Return the criteria besides states, words and recipients. Days are those of this time zone."""
        since, until = period(self.get("since"), self.get("until"), zone)
        tier = next((each for each in Tier if each.value == self.get("tier")), None)
        return Filter(
            sender=self.get("sender") or None,
            since=since,
            until=until,
            tiers=frozenset({tier}) if tier else frozenset(),
            score_min=_score(self.get("score-min")),
            score_max=_score(self.get("score-max")),
            reason=self.get("reason"),
            has_attachment=self.get("attachment") != "",
            # A text that is not a key shows nothing, like the key of no delivery.
            like=(cursor(self.get("like")) or _NO_DELIVERY) if self.get("like") else None,
        )

    def criteria(self, zone: ZoneInfo) -> Filter:
        """Return all criteria besides recipients. Days are those of this time zone."""
        return replace(self.filter(zone), states=frozenset(VIEWS[self.view]), words=self.get("q"))

    def reader(self, reader: Reader) -> Reader:
        """Return the reader of the list's mailbox only, and of none if they may not read it."""
        mailbox = self.get("mailbox")
        return reader.limited_to([mailbox]) if mailbox else reader


def cursor(text: str) -> DeliveryId | None:
    """Return the delivery that a cursor names, None if it is not a cursor."""
    match = _CURSOR.fullmatch(text)
    id = parse_id(match[1]) if match else None
    return DeliveryId(id, int(match[2])) if match and id else None


def named_message(name: str) -> tuple[UUID | None, int | None]:
    """Return the message, and the number of the delivery, that a `Row.name` names. None: not named."""
    return cursor(name) or (parse_id(name), None)


def name_of(key: DeliveryId) -> str:
    """Return the cursor of a delivery."""
    return f"{key.message_id}.{key.number}"


def place_of(text: str) -> tuple[str, str]:
    """Return the page that a form names as its own, and the query string of its list."""
    page, _, query = text.partition("?")
    return page, Listing.of_query(query).query(select="")


def _number(text: str) -> int:
    return int(text) if _NUMBER.fullmatch(text) else 0


def _score(text: str) -> float | None:
    try:
        return criteria.number(text)
    except ValueError:
        return None


def _without_sender(words: str) -> tuple[str, str]:
    """Return the words of a search without each ``from:NAME``, and the last NAME, "" if there is none."""
    sender = ""
    while found := [match for match in _PHRASE_OR_FROM.finditer(words) if match[1] or match[2]]:
        sender = sender or found[-1][1] or found[-1][2]
        for match in reversed(found):
            words = f"{words[: match.start()]} {words[match.end() :]}".strip()
    return words, sender


def _without_controls(text: str) -> str:
    """Return a text without characters that no field of a page can show."""
    return "".join(each for each in text if each.isprintable() or category(each) == "Cf")


def _without(values: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in values.items() if name not in names}


def period(since: str, until: str, zone: ZoneInfo) -> tuple[datetime | None, datetime | None]:
    """Return the begin and the end of a period of whole days; None for a text that is not a day.

    The texts are as `<input type="date">` sends them.
    """
    first, last = _date(since), _date(until)
    return (
        _midnight(first, zone) if first else None,
        _midnight(last + timedelta(days=1), zone) if last else None,
    )


def _date(text: str) -> date | None:
    """Return a day as `<input type="date">` sends it. Days near the ends of the calendar have no midnight in UTC."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return None
    return day if 1970 <= day.year < 9999 else None


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    return datetime.combine(day, time(), zone)
