"""A signed-in recipient's list of messages.

Every query of the store names the recipient of the session. Another recipient's delivery is answered with 404, so that
its existence is not disclosed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl
from uuid import UUID

from bottle import HTTPResponse

from portal.model.domains import shown_address
from portal.model.errors import NotFound
from portal.model.message import Delivery, DeliveryId, Reader, State, first_id, new_id
from portal.model.ranking import Group, grouped, ranked, rows_of, rows_of_missing, unfolded
from portal.model.ranking import Section as Likelihood
from portal.model.short_reasons import shortly
from portal.policy.release_requests import REQUEST_REASON_CHARACTERS
from portal.stores.records import Counts, Page
from portal.stores.search import NEWEST_MAX, needs_filtering
from portal.stores.senders import KNOWN_MAX, addresses_in
from portal.web.auth.session import Sessions
from portal.web.filters import filters
from portal.web.listing import RANKED_MAX, SIZES, VIEWS, Listing, name_of, named_message
from portal.web.pages import Pages
from portal.web.request import Request
from portal.web.reselection import Reselection, reselection
from portal.web.results import check_undone, forget, kept
from portal.web.rows import Row, Viewer, act, alert
from portal.web.selection import BULK_ACTS, MORE_ACTS, listed, shown_batch

_COUNTED = 1_000  # deliveries, for the numbers beside the links above the list
_COUNTED_ELSEWHERE = 100  # matches in other views than one without any
_LISTED_OTHERS = 20  # near-duplicates that a row names; the button acts on all of them
_VISIT_COOKIE = "visit"
_HABITS_COOKIE = "list"
_NO_HABITS = f"newest.{SIZES[0]}"
_VISIT_SECONDS = 30 * 60  # without a list for so long, a visit has ended
_VISITS_KEPT_SECONDS = 365 * 24 * 3600
_VISITS = re.compile(r"([0-9]{1,11})\.([0-9]{1,11})", re.ASCII)


@dataclass(frozen=True, slots=True)
class ListRow:
    """A row of the list: a message and those nearly identical to it."""

    number: int  # on the page
    row: Row
    key: str
    others: Sequence[Row]
    keys: str  # of all of them, for the form
    ticked: str  # those of them that are selected at first
    more: int  # others that the row does not name
    is_new: bool  # held since the last visit
    when: str
    why: str
    alert: str  # what the reader should know before anything else, "" if there is nothing
    act: str  # of the row's button, "" without one
    next: str  # the key of the row at which the reader goes on after it, "" for the only one

    @property
    def local(self) -> str:
        """The beginning of the sender's address with its @, which narrow screens leave out before the domain."""
        local, at, _ = self.row.sender.address.rpartition("@")
        return local + at

    @property
    def host(self) -> str:
        """The rest of the sender's address."""
        return self.row.sender.address.rpartition("@")[2]


@dataclass(frozen=True, slots=True)
class Section:
    """Rows under a heading."""

    heading: str
    is_translated: bool  # False: the heading is a text to be translated
    count: str  # of the messages on all pages, "" if they are not counted
    rows: list[ListRow]


@dataclass(frozen=True, slots=True)
class Matches:
    """All messages that a list matches, on all its pages."""

    number: str  # with a plus sign if there may be more
    ceiling: str  # the newest one: those that arrive later are not selected
    shown: str  # those on this page, for the form: the ones without a tick are left out


@dataclass(frozen=True, slots=True)
class Position:
    """The messages of a list that a page shows, as texts: from the first to the last one, of so many."""

    first: str
    last: str
    total: str
    is_exact: bool  # False: there are more than ``total``


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of a page."""

    groups: Sequence[Group]
    position: Position
    older: str | None  # query string of the next page, None without one
    newer: str | None = None  # of the page before
    matches: Matches | None = None  # if all messages of the list are selected
    counts: Mapping[Likelihood, str] = field(default_factory=dict)  # of the messages on all pages, if `is_ranked`

    @property
    def is_empty(self) -> bool:
        """True if neither it nor a page beside it has rows."""
        return not (self.groups or self.older or self.newer is not None)


class Inbox:
    """`/`."""

    def __init__(self, pages: Pages, sessions: Sessions) -> None:
        self._pages = pages
        self._sessions = sessions
        self._store = pages.parts.store

    def list(self, request: Request) -> HTTPResponse:
        """GET /: list the recipient's messages, newest or likeliest mistakes first. Search and filters narrow it."""
        result = kept(request)
        session = self._sessions.of(request, result.batch)
        check_undone(self._pages, request)
        listing, habits = _as_usual(request, Listing.of(parse_qsl(request.query_string)))
        reader = self._reader(session.recipient)
        viewer = self._pages.viewer(request, session.recipient)
        since, visits = self._visits(request)
        # A page that begins with the newest message says how many of its messages are new.
        new = DeliveryId(first_id(since + timedelta(milliseconds=1)), 0) if since else None
        counts = self._store.deliveries.counts(
            reader, _COUNTED, senders=KNOWN_MAX if listing.is_ranked else 0, since=listing.cursor or new
        )
        again = reselection(self._sessions.kept_form(request, session, is_shown=result.undone != ""))
        part = self._part(listing, reader, viewer, counts, again.ceiling)
        if part is None:
            return self._pages.see_other(f"/{request.query_without('down_to', 'at', 'up_to', 'skip')}")
        deliveries = [each for group in part.groups for each in (group.newest, *group.others[:_LISTED_OTHERS])]
        job = session.job if session.job and self._pages.batches.is_of_reader(session.job, session.recipient) else None
        named = listed(job) if job else [result.key] if result.key else []
        undone, number = named_message(result.undone)
        on_page = {each.key for group in part.groups for each in (group.newest, *group.others)}
        acted = {key.message_id for key in (*named, *again.beside(on_page))} | ({undone} if undone else set())
        of = self._rows(request, reader, deliveries, acted)
        done = [of[key] for key in named if key in of]
        sections = _sections(listing, part, of, since, viewer, self._pages.now(), again)
        beside = again.names_beside(on_page, of, VIEWS[listing.view])
        response = self._pages.page(
            request,
            "list",
            signed_in=shown_address(session.recipient),
            form_token=session.form_token,
            listing=listing,
            here=listing.query(select=""),
            views=_views(listing, counts, viewer),
            news=_news(listing, counts, since, viewer),
            sections=sections,
            again=again,
            beside=" ".join(beside),
            selected=len(beside) + sum(len(each.ticked.split()) for section in sections for each in section.rows),
            bulk_acts=BULK_ACTS.get(listing.view, ()),
            more_acts=MORE_ACTS.get(listing.view, ()),
            reason_characters=REQUEST_REASON_CHARACTERS,
            form=new_id(),
            part=part,
            # Not where the result of an act is the news: the page would take more statements than it may.
            elsewhere=[] if not part.is_empty or acted else self._elsewhere(listing, reader, viewer, counts),
            sizes=SIZES,
            **filters(listing, reader, of.values(), viewer),
            ranked_max=RANKED_MAX,
            all_likely=_all_likely(listing, part, counts),
            act=result.act,
            done=done,
            rules_made=result.rules,
            may_rule=request.policy.recipient_rules,
            batch=shown_batch(job, done) if job else None,
            nothing=request.query("none") == "1",
            of_other=request.query("link") == "other",  # opened before signing in
            was_signed_out=result.undone != "",  # before a form was sent
            undone=_row_of(of, undone, number),
        )
        self._pages.set_cookie(response, _VISIT_COOKIE, visits, _VISITS_KEPT_SECONDS)
        if habits != (request.cookie(_HABITS_COOKIE) or _NO_HABITS):
            self._pages.set_cookie(response, _HABITS_COOKIE, habits, _VISITS_KEPT_SECONDS)
        if result.act or result.rules or result.undone or (job is not None and job.finished_at is not None):
            forget(self._pages, response)
        return response

    def _rows(
        self, request: Request, reader: Reader, listed: Sequence[Delivery], acted: Collection[UUID]
    ) -> Mapping[DeliveryId, Row]:
        """Return the rows of a page, by key: those of the list, and the reader's deliveries of messages that the page
        says something about. If there are any of these, the events of all of them are read with them, in one query."""
        needing = self._pages.needing_events(listed) if acted else []
        ids = {*acted, *(key.message_id for key in needing)} if acted else ()
        found = self._store.deliveries.with_last_events(reader, ids)
        deliveries = {each.key: each for each in listed} | {
            key: delivery for key, (delivery, _) in found.items() if key.message_id in acted
        }
        events = {key: events for key, (_, events) in found.items()}
        rows = self._pages.rows(request, list(deliveries.values()), reader.identity, events)
        return {row.delivery.key: row for row in rows}

    def _part(
        self, listing: Listing, reader: Reader, viewer: Viewer, counts: Counts, ceiling: DeliveryId | None
    ) -> Part | None:
        """Return the rows of a page; None: nothing is newer than the page, so it is to be the first one.

        ``ceiling``: the newest message of all that match, if they were selected before.
        """
        criteria = listing.criteria(viewer.zone)
        wanted = listing.reader(reader)

        def search(limit: int, before: DeliveryId | None = None, down_to: DeliveryId | None = None) -> Page:
            return self._store.deliveries.matching(wanted, criteria, limit, before, down_to=down_to)

        def position(begin: int, number: int, total: int, *, is_whole: bool) -> Position:
            return _position(listing, counts, viewer, begin, number, total, is_whole=is_whole)

        if listing.selects_matching:
            page = search(_COUNTED, DeliveryId(ceiling.message_id, ceiling.number + 1) if ceiling else None)
            found = page.deliveries[: listing.size]
            is_cut = len(page.deliveries) > len(found) or page.next is not None
            older = listing.older(found[-1].key, len(found)) if is_cut and found else None
            total = viewer.language.number(len(page.deliveries)) + ("+" if page.next else "")
            shown = " ".join(name_of(each.key) for each in found)
            return Part(
                _folded(found, listing),
                position(0, len(found), len(page.deliveries), is_whole=page.next is None),
                older,
                matches=Matches(total, name_of(found[0].key), shown) if found else None,
            )
        if not listing.is_ranked:
            page = search(listing.size, listing.before, listing.down_to)
            groups, number = _folded(page.deliveries, listing), len(page.deliveries)
            at, is_exact = _messages_before(listing, counts)
            if listing.down_to is None:
                older = listing.older(page.next, at + number) if page.next else None
                newer = listing.newer(listing.before, at, is_exact=is_exact) if listing.before else None
                return Part(groups, position(at, number, at + number, is_whole=page.next is None), older, newer)
            if page.next is None:
                return None
            begin = max(0, at - number)
            newer = listing.newer(page.next, begin, is_exact=is_exact)
            return Part(groups, position(begin, number, at, is_whole=False), listing.older(listing.down_to, at), newer)
        page, known = search(RANKED_MAX), addresses_in(counts.released_from)
        ranking = ranked(page.deliveries, known)
        ranking = unfolded(ranking) if listing.get("like") else ranking
        # A search of a large mailbox may take a statement more, and that of near-duplicates does.
        is_one = not listing.is_filtered or (_is_small(counts) and not criteria.like)
        begin, end = self._rows_of_page(listing, reader, ranking, known, may_read=is_one)
        if listing.up_to and end <= listing.size:
            return None
        groups, rows = ranking[begin:end], len(ranking)
        older = listing.next_ranked(groups[-1].newest.key, end) if groups and end < rows else None
        newer = listing.previous_ranked(groups[0].newest.key if groups else None, min(begin, rows)) if begin else None
        before, number = (sum(group.size for group in some) for some in (ranking[:begin], groups))
        sizes = Counter[Likelihood]()
        for group in ranking:
            sizes[group.section] += group.size
        counts_of = {each: viewer.language.number(n) + ("+" if page.next else "") for each, n in sizes.items()}
        return Part(
            groups,
            position(before, number, len(page.deliveries), is_whole=page.next is None),
            older,
            newer,
            counts=counts_of,
        )

    def _rows_of_page(
        self, listing: Listing, reader: Reader, ranking: Sequence[Group], known: Collection[str], *, may_read: bool
    ) -> tuple[int, int]:
        """Return the numbers of the first row of a page, and of the one after its last, if likely mistakes are first.

        A page begins after a row, or ends before one: so none is repeated or left out when messages are held or deleted
        in the meantime. ``may_read``: the page has a statement left to find the place of a row that is gone. Without it
        the number of rows that the pages have counted is its place.
        """
        key = listing.after or listing.up_to
        beside = rows_of(ranking, key) if key else None
        if key and beside is None and may_read:
            with suppress(NotFound):
                gone = self._store.deliveries.get_for(reader, key.message_id, key.number)
                beside = rows_of_missing(ranking, gone, known)
        if listing.up_to:
            end = beside[0] if beside else listing.skip + listing.size
            return max(0, end - listing.size), end
        # At least one of the rows that were counted is gone: its own.
        begin = beside[1] if beside else max(0, listing.skip - (1 if listing.after else 0))
        return begin, begin + listing.size

    def _elsewhere(
        self, listing: Listing, reader: Reader, viewer: Viewer, counts: Counts
    ) -> Sequence[tuple[str, str, str]]:
        """Return the other views in which a search has matches: (key of `VIEWS`, query string, number of messages).

        None of a large mailbox if each delivery would have to be examined, and none for near-duplicates: the page then
        takes more statements than it may.
        """
        others = frozenset(State) - frozenset(VIEWS[listing.view])
        criteria = listing.criteria(viewer.zone)
        is_small = _is_small(counts)
        if not listing.is_filtered or not others or criteria.like or (needs_filtering(criteria) and not is_small):
            return []
        # With all states, words are compared without the index (`begins_with_newest`). This view's have no matches.
        criteria = replace(criteria, states=frozenset(State) if criteria.words and is_small else others)
        page = self._store.deliveries.matching(listing.reader(reader), criteria, _COUNTED_ELSEWHERE)
        number = Counter(each.state for each in page.deliveries)
        more = "+" if page.next else ""
        return [
            (view, listing.query(state=view), viewer.language.number(count) + more)
            for view, states in VIEWS.items()
            if view != "all" and (count := sum(number[state] for state in states))
        ]

    def _visits(self, request: Request) -> tuple[datetime | None, str]:
        """Return the end of the visit before this one, None on the first, and the cookie's new value.

        It is known for each browser: nothing is written to the store when a page is opened.
        """
        now = int(self._pages.now().timestamp())
        match = _VISITS.fullmatch(request.cookie(_VISIT_COOKIE) or "")
        before, last = (int(match[1]), int(match[2])) if match else (0, 0)
        if last < now - _VISIT_SECONDS:
            before = last
        return datetime.fromtimestamp(before, UTC) if before else None, f"{before}.{now}"

    def _reader(self, recipient: str) -> Reader:
        return self._pages.parts.people.reader(recipient)


def _as_usual(request: Request, listing: Listing) -> tuple[Listing, str]:
    """Return a list with the order and the page size that its reader chose last, unless the address has others; and
    the value of the cookie that remembers them."""
    order, _, size = (request.cookie(_HABITS_COOKIE) or "").partition(".")
    usual = {"order": order if order == "likely" else "", "size": size if size in SIZES[1:] else ""}
    chosen = {name: listing.get(name) or value for name, value in usual.items()}
    values = {**listing.values, **{name: value for name, value in chosen.items() if value}}
    listing = replace(listing, values=values)
    return listing, f"{'likely' if chosen['order'] == 'likely' else 'newest'}.{listing.size}"


def _row_of(rows: Mapping[DeliveryId, Row], message_id: UUID | None, number: int | None) -> Row | None:
    """Return the row of a `named_message`."""
    return next(
        (row for key, row in rows.items() if key.message_id == message_id and number in (None, key.number)), None
    )


def _is_small(counts: Counts) -> bool:
    """Return whether a search of the mailbox is one statement."""
    return counts.complete and sum(counts.of.values()) <= NEWEST_MAX


def _messages_before(listing: Listing, counts: Counts) -> tuple[int, bool]:
    """Return the number of messages from the first one to the page's `before` or `down_to`, and whether it is exact: of
    a list without filters, as long as `counts` counts so many; else the pages have counted them before."""
    if listing.is_filtered or counts.since is None or listing.cursor is None:
        return listing.at, False
    return sum(counts.since.get(state, 0) for state in VIEWS[listing.view]), True


def _news(listing: Listing, counts: Counts, since: datetime | None, viewer: Viewer) -> tuple[str, str] | None:
    """Return how many messages of the list are new, and since when; None if none are, or they were not counted."""
    if since is None or counts.since is None or not listing.is_first_page or listing.is_filtered:
        return None
    number = sum(counts.since.get(state, 0) for state in VIEWS[listing.view])
    return (viewer.language.number(number), viewer.language.short_moment(since, viewer.zone)) if number else None


def _position(
    listing: Listing, counts: Counts, viewer: Viewer, begin: int, number: int, total: int, *, is_whole: bool
) -> Position:
    """Return the position of a page with so many messages. ``total``: those that are known, ``is_whole``: all of the
    list."""
    last, shown = begin + number, viewer.language.number
    if not is_whole and not listing.is_filtered:
        counted = sum(counts.of.get(state, 0) for state in VIEWS[listing.view])
        # A message may have been held or removed in between.
        total, is_whole = max(total, counted), counts.complete and counted >= total
    return Position(shown(begin + 1), shown(last), shown(max(last, total)), is_whole)


def _all_likely(listing: Listing, part: Part, counts: Counts) -> str:
    """Return the query string of all held messages with the likely mistakes first, on one page; "" if they are on this
    page, in this order, or too many."""
    number = counts.of.get(State.HELD, 0)
    size = next((each for each in SIZES if number <= int(each)), "")
    is_offered = (
        (part.older or part.newer is not None) and counts.complete and not listing.is_filtered and not listing.is_ranked
    )
    return listing.query(order="likely", size=size) if is_offered and size else ""


def _folded(deliveries: Sequence[Delivery], listing: Listing) -> list[Group]:
    """Return the rows of a page: near-duplicates in one row, unless the list consists of them."""
    return unfolded(grouped(deliveries)) if listing.get("like") else grouped(deliveries)


def _views(listing: Listing, counts: Counts, viewer: Viewer) -> list[tuple[str, str, str, bool]]:
    """Return the links above the list: (key of `VIEWS`, query string, number of messages, is it this one?)."""
    numbers = {view: sum(counts.of.get(state, 0) for state in states) for view, states in VIEWS.items()}
    more = "" if counts.complete else "+"
    return [
        (view, listing.query(state=view), viewer.language.number(numbers[view]) + more, view == listing.view)
        for view in VIEWS
        if view != "blocked" or numbers[view] or view == listing.view
    ]


def _sections(
    listing: Listing,
    part: Part,
    of: Mapping[DeliveryId, Row],
    since: datetime | None,
    viewer: Viewer,
    now: datetime,
    again: Reselection,
) -> list[Section]:
    """Return the rows under headings: days, or how likely a mistake is."""
    sections: list[Section] = []
    last: object = None
    _, today = viewer.language.gettext, now.astimezone(viewer.zone).date()
    for number, group in enumerate(part.groups):
        held_at = group.newest.message.held_at
        day = held_at.astimezone(viewer.zone).date()
        kind: object = group.section if listing.is_ranked else day
        if kind != last or not sections:
            heading = group.section.heading if listing.is_ranked else viewer.language.day(held_at, viewer.zone)
            sections.append(Section(heading, not listing.is_ranked, part.counts.get(group.section, ""), []))
            last = kind
        row, key = of[group.newest.key], name_of(group.newest.key)
        keys = " ".join((key, *(name_of(each.key) for each in group.others)))
        near = part.groups[number + 1 : number + 2] or part.groups[:number][-1:]
        sections[-1].rows.append(
            ListRow(
                number=number,
                row=row,
                key=key,
                others=[of[each.key] for each in group.others[:_LISTED_OTHERS]],
                keys=keys,
                ticked=again.ticked(keys) if again.names or again.ceiling else keys if listing.selects_all else "",
                more=max(0, len(group.others) - _LISTED_OTHERS),
                is_new=since is not None and held_at > since,
                when=row.held_day if listing.is_ranked and day != today else row.held_time,
                why=" · ".join(dict.fromkeys(_(shortly(each)) for each in row.main_reasons)),
                alert=alert(row, _),
                act=act(row),
                next=name_of(near[0].newest.key) if near else "",
            )
        )
    return sections
