"""Pages of the links at the end of a digest: release or delete several of its messages, and revoke its links.

Each link has an action of its own and is signed for one digest, and so for its recipient. These pages never submit
themselves, not even on a known device: these links act on more than one message, so a person must press the button.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from bottle import HTTPResponse

from portal.batches.batch import NAMED, Act, Batch, Outcome, Progress, Selection
from portal.model.domains import shown_address
from portal.model.errors import NotFound
from portal.model.links import Action, Link
from portal.model.message import Delivery, DeliveryId, State, Tier, new_id
from portal.model.ranking import ranked
from portal.model.rights import ReleaseRight
from portal.model.sender import needs_check
from portal.stores.records import Job
from portal.stores.senders import known_senders
from portal.web.bulk import actor_of, confirmation_of, confirmed_of, form_id, perform
from portal.web.listing import cursor, name_of
from portal.web.pages import Pages
from portal.web.preferences import PreferencePages
from portal.web.request import Request
from portal.web.results import keep_batch, kept
from portal.web.rows import outcome_row

_MAX_MESSAGES = 200  # on one page; the others follow when these have been released or deleted
_FIELDS = ("do", "suspicious", "confirmed", "drawn")  # of the form, besides the ticks
_UNDO_SECONDS = 600
_SINCE = re.compile(r"[0-9]{1,11}", re.ASCII)
# The outcome of what changed since the page was rendered, if this browser does not know its batch.
_CHANGED_TO = {
    State.RELEASED: Outcome.RELEASED,
    State.RELEASING: Outcome.RELEASING,
    State.DELETED: Outcome.DELETED,
    State.REQUESTED: Outcome.REQUESTED,
    State.HELD: Outcome.FAILED,
}


class DigestPages:
    """`/link/TOKEN/` for a digest's token, after `LinkPages` has verified it and found its recipient."""

    def __init__(self, pages: Pages, preferences: PreferencePages) -> None:
        self._pages = pages
        self._preferences = preferences
        self._store = pages.parts.store

    def show_forwarded(self, request: Request, recipient: str) -> HTTPResponse:
        """GET: return the page that revokes the links of a forwarded digest."""
        return self._pages.page(request, "forwarded", recipient=shown_address(recipient))

    def show_several(self, request: Request, recipient: str, announced: Sequence[Delivery]) -> HTTPResponse:
        """GET: return the page of several messages of a digest, or the result of what was done there."""
        announced = self._readable(recipient, announced)
        like, made = cursor(request.query("like")), self._made(request, recipient)
        held, result = self._held(recipient, announced, like), _result(announced, made, request.query("since"))
        listed, done = held[:_MAX_MESSAGES], [each for outcome in result for each in outcome.deliveries]
        rows = self._pages.rows(request, [*{each.key: each for each in (*listed, *done)}.values()], recipient)
        of = {row.delivery.key: row for row in rows}
        chosen = request.query("select") or ("all" if like else "")
        return self._pages.page(
            request,
            "several",
            recipient=shown_address(recipient),
            mails=[(_form_value(each), of[each.key]) for each in listed],
            more=max(0, len(held) - _MAX_MESSAGES),
            group=_group(like),
            since=request.query("since") if _SINCE.fullmatch(request.query("since")) else "",
            is_chosen=chosen == "all",
            act=_act_of(made),
            outcomes=[outcome_row(each.outcome, each.number, [of[d.key] for d in each.deliveries]) for each in result],
            is_result=_SINCE.fullmatch(request.query("since")) is not None and made is not None,
            rest=request.query("rest") == "1",
            nothing=request.query("none") == "1",
            may_undo=_has_deleted(made),
            drawn=int(self._pages.now().timestamp()),
            form=new_id(),
        )

    def act(self, request: Request, link: Link, recipient: str) -> HTTPResponse:
        """POST: act only if the name of a button was sent. A script that submits the form does not send it."""
        self._pages.check_same_origin(request)
        if link.action is Action.FORWARDED:
            if request.form("pressed") != "1":
                return self._pages.see_other("./")
            return self._preferences.revoke(request, recipient, via="link")
        like = cursor(request.query("like"))
        group = _group(like)
        made = self._made(request, recipient) if request.form("do") == "restore" else None
        announced = self._readable(recipient, self._store.digests.get(link.id).deliveries)
        chosen = self._selected(announced, " ".join(request.all_of_form("mail")).split())
        if made is not None and _has_deleted(made):
            batch = self._pages.batches.undo(made)
        elif request.form("do") not in ("release", "delete") or not chosen:
            return self._pages.see_other(f"./?none=1&{group}")
        else:
            selection = Selection(tuple(each.key for each in chosen))
            to_check = [each for each in chosen if needs_check(each.message)]
            batch = Batch(Act(request.form("do")), selection, confirmed_of(request, to_check))
            is_checked = len(batch.confirmed) == len(to_check) or request.form("suspicious") == "leave"
            if batch.act is Act.RELEASE and not is_checked:
                return self._confirm(request, recipient, chosen, to_check, f"./?{group}")
        job = perform(self._pages, batch, actor_of(request, recipient, "link"), form_id(request, _FIELDS), now=True)
        rendered_at = request.form("drawn")
        since = rendered_at if _SINCE.fullmatch(rendered_at) else str(int(self._pages.now().timestamp()))
        response = self._pages.see_other(f"./?since={since}{'' if job.finished_at else '&rest=1'}&{group}")
        keep_batch(self._pages, response, job.id, _UNDO_SECONDS)
        return response

    def _made(self, request: Request, recipient: str) -> Job | None:
        """Return the batch that this browser made by a link, as long as its deletions can be undone there.

        None also while it is not finished.
        """
        id = kept(request).batch
        try:
            job = self._pages.batches.of(id, recipient) if id else None
        except NotFound:
            return None
        if job is None or job.finished_at is None or job.actor.via != "link":
            return None
        is_recent = self._pages.now() - job.created_at < timedelta(seconds=_UNDO_SECONDS)
        return job if is_recent else None

    def _confirm(
        self, request: Request, recipient: str, chosen: Sequence[Delivery], to_check: Sequence[Delivery], place: str
    ) -> HTTPResponse:
        """Return the page that shows the cautions of suspicious messages. Its buttons post the same form again."""
        number, others = request.language.number, len(chosen) - len(to_check)
        return self._pages.page(
            request,
            "check",
            fields=[(name, value) for name in ("form", "drawn") if (value := request.form(name))],
            mail=" ".join(map(_form_value, chosen)),
            confirmed=confirmation_of(to_check),
            action=place,
            back=place,
            rows=self._pages.rows(request, to_check, recipient),
            more=0,
            suspicious=number(len(to_check)),
            others=number(others) if others else "",
            all=number(len(chosen)),
        )

    def _readable(self, recipient: str, announced: Sequence[Delivery]) -> list[Delivery]:
        """Return the deliveries without those that the recipient may no longer read."""
        identities = self._pages.parts.people.reader(recipient).identities
        return [delivery for delivery in announced if delivery.recipient in identities]

    def _held(self, recipient: str, announced: Sequence[Delivery], like: DeliveryId | None) -> list[Delivery]:
        """Return the held deliveries of a digest, in the digest's order.

        Those that are dangerous, or that the recipient may not release, have a page each. ``like``: only this delivery
        and its near-duplicates, as the digest showed them.
        """
        listed = [delivery for delivery in announced if self._is_listed(delivery)]
        reader = self._pages.parts.people.reader(recipient)
        groups = ranked(listed, known_senders(self._store, [reader]).get(recipient, ()))
        of_groups = [(group.newest, *group.others) for group in groups]
        return [
            delivery
            for group in of_groups
            if like is None or like in (each.key for each in group)
            for delivery in group
            if delivery.state is State.HELD
        ]

    def _is_listed(self, delivery: Delivery) -> bool:
        """Return True if a delivery may be released together with others."""
        is_own = self._pages.parts.domains.right(delivery) is ReleaseRight.SELF
        return is_own and delivery.message.tier is not Tier.DANGEROUS

    def _selected(self, announced: Sequence[Delivery], ticked: Sequence[str]) -> list[Delivery]:
        """Return the selected deliveries that belong to the digest and may be released together."""
        by_name = {_form_value(d): d for d in announced if self._is_listed(d)}
        return [by_name[name] for name in dict.fromkeys(ticked) if name in by_name][:_MAX_MESSAGES]


class _Outcome(NamedTuple):
    """Deliveries of a digest with the same outcome."""

    outcome: Outcome
    number: int
    deliveries: Sequence[Delivery]  # those that are named


def _result(announced: Sequence[Delivery], made: Job | None, since: str) -> list[_Outcome]:
    """Return the result that a page shows: of the batch that this browser made, else of what changed at or after
    ``since``, in seconds since the epoch. Empty without ``since``."""
    if not _SINCE.fullmatch(since):
        return []
    named: dict[Outcome, list[Delivery]] = {}
    if made is not None:
        progress, of = Progress.from_json(made.progress), {each.key: each for each in announced}
        named = {outcome: [of[key] for key in keys if key in of] for outcome, keys in progress.named.items()}
        counts = progress.counts
    else:
        rendered_at = datetime.fromtimestamp(int(since), UTC)
        for each in announced:
            if each.state_at >= rendered_at and (outcome := _CHANGED_TO.get(each.state)) and not _is_untouched(each):
                named.setdefault(outcome, []).append(each)
        counts = {outcome: len(found) for outcome, found in named.items()}
    return [_Outcome(each, counts[each], named.get(each, ())[:NAMED]) for each in Outcome if counts.get(each)]


def _is_untouched(delivery: Delivery) -> bool:
    return delivery.state is State.HELD and not delivery.reason


def _act_of(job: Job | None) -> str:
    return Batch.from_json(job.arguments).act.value if job else ""


def _group(like: DeliveryId | None) -> str:
    """Return the part of a query that limits the page to a group of similar messages."""
    return f"like={name_of(like)}" if like else ""


def _form_value(delivery: Delivery) -> str:
    """Return the value of a delivery's checkbox in the form."""
    return f"{delivery.id}.{delivery.number}"


def _has_deleted(job: Job | None) -> bool:
    return job is not None and Progress.from_json(job.progress).counts.get(Outcome.DELETED, 0) > 0
