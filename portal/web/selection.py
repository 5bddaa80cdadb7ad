"""Actions on the messages that a recipient selected in the list: POST /messages, and the page of a batch.

Every query of the store names the recipient of the session, so keys of other recipients' deliveries select nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from bottle import HTTPResponse

from portal.batches.batch import CHANGES, READER_ACTS, Act, Batch, Progress, Selection
from portal.model.domains import shown_address
from portal.model.errors import NotFound
from portal.model.message import Delivery, DeliveryId, Reader, Tier, new_id
from portal.model.rights import ReleaseRight
from portal.model.rule import Effect
from portal.model.sender import needs_check
from portal.model.text import N_, shown
from portal.policy.release_requests import REQUEST_REASON_CHARACTERS
from portal.stores.records import Job, Page
from portal.web.auth.session import Session, Sessions
from portal.web.bulk import actor_of, confirmation_of, confirmed_of, form_id, perform, uuid_of
from portal.web.listing import Listing, cursor, name_of, place_of
from portal.web.pages import Pages
from portal.web.request import Request
from portal.web.results import keep_batch
from portal.web.rows import BatchRow, Row, batch_row
from portal.web.selected_senders import SelectedSenders

AT_ONCE = 50  # deliveries that a request acts on itself; more are left to the digest process
# What the bar below the list does with selected messages, by the keys of `VIEWS`, and what its *More* does.
BULK_ACTS: dict[str, tuple[Act, ...]] = {
    "held": (Act.RELEASE, Act.DELETE),
    "requested": (Act.WITHDRAW, Act.DELETE),
    "blocked": (Act.RELEASE, Act.DELETE),
    "deleted": (Act.RESTORE,),
    "all": (Act.RELEASE, Act.DELETE),
}
MORE_ACTS: dict[str, tuple[Act, ...]] = {"held": (Act.REQUEST,), "all": (Act.REQUEST, Act.RESTORE)}
_MAX_KEYS = 1_000  # of one form: a page of the list has fewer
_EXAMINED = 1_000  # of all that match, before their release is confirmed, or their senders are listed
_LISTED = 50  # suspicious messages that the page of confirmation names
# Of the form, besides the ticks.
_FIELDS = ("do", "only", "from", "all", "shown", "suspicious", "confirmed", "undo", "reason")
_REFRESH_SECONDS = 3
_LATE_SECONDS = 60  # a batch that waits longer is not run by any digest process


class _Wish(NamedTuple):
    """The request of a form."""

    act: Act
    selection: Selection
    page: Page  # the first deliveries of the selection that the act may change
    is_small: bool  # the selection has few deliveries, also with those that the act does not change


class Selections:
    """POST `/messages`, and `/jobs/ID/`."""

    def __init__(self, pages: Pages, sessions: Sessions, senders: SelectedSenders) -> None:
        self._pages = pages
        self._senders = senders
        self._sessions = sessions
        self._batches = pages.batches

    def act(self, request: Request) -> HTTPResponse:
        """POST /messages: perform an action on the selected messages, then redirect (303) to the list.

        Suspicious messages are released only after a page has shown their cautions, dangerous ones never.
        """
        _, place = place_of(request.form("from"))
        again = Listing.of_query(place).query(select="matching" if request.form("all") else "")
        session = self._sessions.of_form(request, f"/{again}{'&' if again else '?'}undone=several", keeps=True)
        if request.form("undo"):
            undone = self._of(request.form("undo"), session)
            if undone.finished_at is None:
                return self._result(request, undone, place)
            batch = self._batches.undo(undone)
            return self._make(request, session, batch, place, is_small=len(batch.selection.keys) > 0)
        if request.form("do") in tuple(Effect):
            return self._senders_of(request, session, place)
        wish = self._wish(request, session, place)
        if wish is None:
            # The second form of a double click finds nothing left.
            made = self._batches.made(actor_of(request, session.recipient, "portal"), form_id(request, _FIELDS))
            return self._result(request, made, place) if made else self._pages.see_other(f"/{place or '?'}&none=1")
        found = wish.page.deliveries
        if wish.act is Act.REQUEST and not _is_small(wish.page):
            return self._pages.notice(
                request,
                N_("Too many messages"),
                N_("An administrator reads each release request. Go back and select at most 50 messages."),
                400,
            )
        to_check = [each for each in found if self._needs_check(each)] if wish.act is Act.RELEASE else []
        # Nobody confirms the release of messages whose cautions the page did not show, as of one that another reader
        # has restored since.
        confirmed = confirmed_of(request, to_check)
        if len(confirmed) < len(to_check) and request.form("suspicious") != "leave":
            return self._confirm(request, session, wish, to_check)
        reason = shown(request.form("reason"), REQUEST_REASON_CHARACTERS) if wish.act is Act.REQUEST else ""
        batch = Batch(wish.act, wish.selection, confirmed, reason=reason)
        return self._make(request, session, batch, place, is_small=wish.is_small)

    def _senders_of(self, request: Request, session: Session, place: str) -> HTTPResponse:
        """Return the page that asks for which senders of the selected messages rules are made."""
        _, page = self._selected(request, session, place, " ".join(request.all_of_form("mail")), _EXAMINED)
        if not page.deliveries:
            return self._pages.see_other(f"/{place or '?'}&none=1")
        effect = Effect(request.form("do"))
        return self._senders.choose(request, session, effect, page.deliveries, is_cut=page.next is not None)

    def _wish(self, request: Request, session: Session, place: str) -> _Wish | None:
        """Return what the form asks for, None if it selects nothing."""
        act, _, names = request.form("only").partition(" ")
        is_one_row = act != ""
        if not is_one_row:
            act, names = request.form("do"), " ".join(request.all_of_form("mail"))
        if act not in READER_ACTS:
            return None
        view = Listing.of_query(place).view
        if (
            not is_one_row
            and cursor(request.form("all"))
            and act not in (*BULK_ACTS.get(view, ()), *MORE_ACTS.get(view, ()))
        ):
            return None
        selection, page = self._selected(request, session, place, names, AT_ONCE + 1, is_one_row=is_one_row)
        if not page.deliveries:
            return None
        changes = CHANGES[Act(act)]
        is_small = _is_small(page)
        if is_small:
            selection = Selection(tuple(each.key for each in page.deliveries))
        elif not selection.keys and act in (Act.RELEASE, Act.REQUEST):
            criteria = replace(selection.criteria, states=selection.criteria.states & changes)
            limit = _EXAMINED if act == Act.RELEASE else AT_ONCE + 1
            page = self._matching(self._reader(session), replace(selection, criteria=criteria), limit)
        changed = tuple(each for each in page.deliveries if each.state in changes)
        return _Wish(Act(act), selection, Page(changed, page.next), is_small)

    def _selected(
        self, request: Request, session: Session, place: str, names: str, limit: int, *, is_one_row: bool = False
    ) -> tuple[Selection, Page]:
        """Return the selection of a form and, of all that match, the first ``limit`` deliveries.

        ``names``: the keys of the rows that are ticked; without ``is_one_row``, all that match may be selected.
        """
        reader, listing = self._reader(session), Listing.of_query(place)
        keys = [key for name in dict.fromkeys(names.split()) if (key := cursor(name))]
        ceiling = None if is_one_row else cursor(request.form("all"))
        if ceiling is None:
            found = self._pages.parts.store.deliveries.of_reader(reader, keys[:_MAX_KEYS])
            return Selection(tuple(each.key for each in found)), Page(tuple(found), None)
        unticked = {key for name in request.form("shown").split() if (key := cursor(name))} - {*keys}
        zone = self._pages.viewer(request, session.recipient).zone
        selection = Selection(
            criteria=listing.criteria(zone),
            identities=frozenset(listing.reader(reader).identities),
            ceiling=ceiling,
            excluded=frozenset(unticked),
        )
        return selection, self._matching(reader, selection, limit)

    def _reader(self, session: Session) -> Reader:
        return self._pages.parts.people.reader(session.recipient)

    def _matching(self, reader: Reader, selection: Selection, limit: int) -> Page:
        """Return the first deliveries of all that match: ``limit`` of them, and more if some rows are not ticked."""
        return self._batches.matching(reader, selection, limit + len(selection.excluded))

    def _needs_check(self, delivery: Delivery) -> bool:
        """Return True if the reader may release a message and should see its cautions before."""
        is_own = self._pages.parts.domains.right(delivery) is ReleaseRight.SELF
        return is_own and delivery.message.tier is not Tier.DANGEROUS and needs_check(delivery.message)

    def _confirm(self, request: Request, session: Session, wish: _Wish, to_check: Sequence[Delivery]) -> HTTPResponse:
        """Return the page that shows the cautions of suspicious messages. Its buttons post the same form again.

        The reader may release them only if the page shows all of them.
        """
        may_confirm = wish.page.next is None and len(to_check) <= _LISTED
        right = self._pages.parts.domains.right
        found, number = wish.page.deliveries, request.language.number
        others = sum(right(each) is ReleaseRight.SELF and not needs_check(each.message) for each in found)
        more = "+" if wish.page.next else ""
        names = ("from", "form", "all", "shown", "rows", "only")
        return self._pages.page(
            request,
            "check",
            signed_in=shown_address(session.recipient),
            form_token=session.form_token,
            fields=[(name, value) for name in names if (value := request.form(name))],
            mail=" ".join(request.all_of_form("mail")),
            confirmed=confirmation_of(to_check) if may_confirm else "",
            action=f"{self._pages.site.root}/messages",
            back=f"{self._pages.site.root}/{place_of(request.form('from'))[1]}",
            rows=self._pages.rows(request, to_check[:_LISTED], session.recipient),
            more=len(to_check) - _LISTED,
            suspicious=number(len(to_check)) + more,
            others=number(others) + more if others else "",
            all=number(others + len(to_check)) if may_confirm else "",
        )

    def _make(self, request: Request, session: Session, batch: Batch, place: str, *, is_small: bool) -> HTTPResponse:
        """Make a batch, run it now if it is small, and return the redirect to its result."""
        actor, form = actor_of(request, session.recipient, "portal"), form_id(request, _FIELDS)
        job = perform(self._pages, batch, actor, form, now=is_small)
        return self._result(request, job, place)

    def _result(self, request: Request, job: Job, place: str) -> HTTPResponse:
        """Return the redirect to the row of the list at which the reader goes on, or to the page of a batch that is not
        finished."""
        path = f"/{place}{_next_row(request, job)}" if job.finished_at else f"/jobs/{job.id}/{place}"
        response = self._pages.see_other(path)
        keep_batch(self._pages, response, job.id)
        return response

    # ---- the page of a batch

    def show(self, request: Request, id: str) -> HTTPResponse:
        """GET /jobs/ID/: show how far a batch is, and its outcomes. The page reloads itself until the batch ends."""
        session = self._sessions.of(request)
        job = self._of(id, session)
        found = self._pages.parts.store.deliveries.of_reader(self._reader(session), listed(job))
        is_paused = request.query("pause") != ""
        response = self._pages.page(
            request,
            "job",
            signed_in=shown_address(session.recipient),
            form_token=session.form_token,
            form=new_id(),
            batch=shown_batch(job, self._pages.rows(request, found, session.recipient)),
            place=Listing.of_query(request.query_string).query(select=""),
            is_paused=is_paused,
            is_late=job.finished_at is None and (self._pages.now() - job.not_before).total_seconds() > _LATE_SECONDS,
        )
        if job.finished_at is None and not is_paused:
            response.set_header("Refresh", str(_REFRESH_SECONDS))
        return response

    def _of(self, name: str, session: Session) -> Job:
        """Return a batch of the signed-in recipient. Raises NotFound."""
        id = uuid_of(name)
        if id is None:
            raise NotFound("there is no such batch")
        return self._batches.of(id, session.recipient)


def _is_small(page: Page) -> bool:
    """Return whether a page has all deliveries, and few enough for a request to act on."""
    return page.next is None and len(page.deliveries) <= AT_ONCE


def _next_row(request: Request, job: Job) -> str:
    """Return the fragment of the first row below those that the form acts on, else of the last one above them; of the
    newest message if a form beside the list restored it; "" without such a row."""
    rows = [key for name in request.form("rows").split() if (key := cursor(name))]
    if not rows:
        batch = Batch.from_json(job.arguments)
        restored = batch.selection.keys if batch.act is Act.RESTORE else ()
        return f"#m-{name_of(max(restored))}" if restored else ""
    ticked = request.form("only").partition(" ")[2] or " ".join(request.all_of_form("mail"))
    acted = {key for name in ticked.split() if (key := cursor(name))}
    first = next((number for number, key in enumerate(rows) if key in acted), 0)
    left = [key for key in (*rows[first:], *reversed(rows[:first])) if key not in acted]
    return f"#m-{name_of(left[0])}" if left else ""


def listed(job: Job) -> list[DeliveryId]:
    """Return the deliveries that the result of a batch names: those it left unchanged, or the only one."""
    progress = Progress.from_json(job.progress)
    is_one = progress.done == 1
    return [key for outcome, keys in progress.named.items() if is_one or not outcome.is_done for key in keys]


def shown_batch(job: Job, rows: Sequence[Row]) -> BatchRow:
    """Return the view model of a batch. ``rows``: of the deliveries that `listed` returns."""
    batch, progress = Batch.from_json(job.arguments), Progress.from_json(job.progress)
    return batch_row(job.id, batch, progress, rows, is_finished=job.finished_at is not None)
