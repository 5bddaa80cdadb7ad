"""Pages of the links at the end of a digest: release or delete several of its messages, and revoke its links.

Each link has an action of its own and is signed for one digest, and so for its recipient. These pages never submit
themselves, not even on a known device: these links act on more than one message, so a person must press the button.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from bottle import HTTPResponse

from portal.batches.batch import Act, Batch, Outcome, Progress, Selection
from portal.model.domains import shown_address
from portal.model.errors import NotFound
from portal.model.links import Action, Link
from portal.model.message import Delivery, DeliveryId, State, Tier, new_id
from portal.model.ranking import ranked
from portal.model.rights import ReleaseRight
from portal.stores.records import Digest, Job
from portal.stores.senders import known_senders
from portal.web.bulk import actor_of, form_id, perform
from portal.web.listing import cursor, name_of
from portal.web.pages import Pages
from portal.web.preferences import PreferencePages
from portal.web.request import Request
from portal.web.results import keep_batch, kept

_MAX_MESSAGES = 200  # on one page; the others follow when these have been released or deleted
_FIELDS = ("do", "suspicious", "drawn")  # of the form, besides the ticks
_UNDO_SECONDS = 600
_SINCE = re.compile(r"[0-9]{1,11}", re.ASCII)


class DigestPages:
    """`/link/TOKEN/` for a digest's token, after `LinkPages` has verified it and found its recipient."""

    def __init__(self, pages: Pages, preferences: PreferencePages) -> None:
        self._pages = pages
        self._preferences = preferences
        self._store = pages.parts.store

    def show(self, request: Request, link: Link, recipient: str) -> HTTPResponse:
        """GET: change nothing."""
        if link.action is Action.FORWARDED:
            return self._pages.page(request, "forwarded", recipient=shown_address(recipient))
        digest = self._digest_of(link)
        like = cursor(request.query("like"))
        held, done = self._held(digest, like), self._changed_since(digest, request.query("since"))
        listed = held[:_MAX_MESSAGES]
        rows = self._pages.rows(request, [*listed, *done], recipient)
        made = self._made(request, recipient)
        return self._pages.page(
            request,
            "several",
            recipient=shown_address(recipient),
            mails=list(zip(map(_form_value, listed), rows, strict=False)),
            more=max(0, len(held) - _MAX_MESSAGES),
            is_group=like is not None,
            done=rows[len(listed) :],
            rest=request.query("rest") == "1",
            nothing=request.query("none") == "1",
            may_undo=_has_deleted(made),
            undone=_restored(made) if request.query("since") else None,
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
        group = f"like={name_of(like)}" if like else ""
        made = self._made(request, recipient) if request.form("do") == "restore" else None
        chosen = self._selected(self._digest_of(link), " ".join(request.all_of_form("mail")).split())
        if made is not None and _has_deleted(made):
            batch = self._pages.batches.undo(made)
        elif request.form("do") not in ("release", "delete") or not chosen:
            return self._pages.see_other(f"./?none=1&{group}")
        else:
            batch = Batch(
                Act(request.form("do")),
                Selection(tuple(each.key for each in chosen)),
                with_suspicious=request.form("suspicious") == "release",
            )
        if batch.act is Act.RELEASE and not request.form("suspicious"):
            to_check = [each for each in chosen if each.message.tier is Tier.SUSPICIOUS]
            if to_check:
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
            action=place,
            back=place,
            rows=self._pages.rows(request, to_check, recipient),
            more=0,
            suspicious=number(len(to_check)),
            others=number(others) if others else "",
            all=number(len(chosen)),
        )

    def _digest_of(self, link: Link) -> Digest:
        """Return the digest without deliveries that its recipient may no longer read."""
        digest = self._store.digests.get(link.id)
        reader = self._pages.parts.people.reader(digest.recipient)
        theirs = tuple(d for d in digest.deliveries if d.recipient in reader.identities)
        return replace(digest, reader=reader, deliveries=theirs)

    def _held(self, digest: Digest, like: DeliveryId | None) -> list[Delivery]:
        """Return the held deliveries of a digest, in the digest's order.

        Those that are dangerous, or that the recipient may not release, have a page each. ``like``: only this delivery
        and its near-duplicates, as the digest showed them.
        """
        listed = [delivery for delivery in digest.deliveries if self._is_listed(delivery)]
        groups = ranked(listed, known_senders(self._store, [digest.effective_reader]).get(digest.recipient, ()))
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

    def _selected(self, digest: Digest, ticked: Sequence[str]) -> list[Delivery]:
        """Return the selected deliveries that belong to this digest and may be released together."""
        by_name = {_form_value(d): d for d in digest.deliveries if self._is_listed(d)}
        return [by_name[name] for name in dict.fromkeys(ticked) if name in by_name][:_MAX_MESSAGES]

    def _changed_since(self, digest: Digest, since: str) -> list[Delivery]:
        """Return the deliveries of this digest that changed at or after ``since``, in seconds since the epoch."""
        if not _SINCE.fullmatch(since):
            return []
        rendered_at = datetime.fromtimestamp(int(since), UTC)
        changed = [
            d for d in digest.deliveries if d.state_at >= rendered_at and (d.state is not State.HELD or d.reason)
        ]
        return changed[:_MAX_MESSAGES]


def _form_value(delivery: Delivery) -> str:
    """Return the value of a delivery's checkbox in the form."""
    return f"{delivery.id}.{delivery.number}"


def _has_deleted(job: Job | None) -> bool:
    return job is not None and Progress.from_json(job.progress).counts.get(Outcome.DELETED, 0) > 0


def _restored(job: Job | None) -> int | None:
    """Return how many deletions a batch has undone, None if it is another one."""
    if job is None or Batch.from_json(job.arguments).act is not Act.RESTORE:
        return None
    return Progress.from_json(job.progress).counts.get(Outcome.RESTORED, 0)
