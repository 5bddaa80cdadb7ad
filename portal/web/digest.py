"""The pages of the links at a digest's foot: release or delete several of its mails, and "I forwarded it".

Each link is an action of its own, signed for that digest and so for its recipient. Neither page ever submits itself,
whatever the device: these links do more than one thing, so a person presses.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from bottle import HTTPResponse

from portal.model.domains import shown_address
from portal.model.errors import (
    AlreadyDone,
    BodyDamaged,
    NotAllowed,
    NotFound,
    RelayDeferred,
    RelayRefused,
    StoreUnavailable,
)
from portal.model.links import Action, Link
from portal.model.message import Delivery, State, Tier
from portal.model.ranking import ranked
from portal.stores.records import Digest
from portal.stores.senders import known_senders
from portal.web.pages import Pages
from portal.web.preferences import PreferencePages
from portal.web.request import Request

log = logging.getLogger("quarantine.web")

_MAILS = 200  # on one page; those beyond move up as these are dealt with
_SECONDS = 20  # after which no further act begins: with a release's own 30 s below uWSGI's harakiri of 60 s
_SINCE = re.compile(r"[0-9]{1,11}", re.ASCII)


class DigestPages:
    """`/link/TOKEN/` with a token for a digest, once `LinkPages` verified it and found whose it is."""

    def __init__(self, pages: Pages, preferences: PreferencePages) -> None:
        self._pages = pages
        self._preferences = preferences
        self._store = pages.parts.store

    def show(self, request: Request, link: Link, recipient: str) -> HTTPResponse:
        """GET: changes nothing."""
        if link.action is Action.FORWARDED:
            return self._pages.page(request, "forwarded", recipient=shown_address(recipient))
        digest = self._digest_of(link)
        mails, done = self._listed(digest), self._done(digest, request.query("since"))
        listed = mails[:_MAILS]
        rows = self._pages.rows(request, [*listed, *done], recipient)
        return self._pages.page(
            request,
            "several",
            recipient=shown_address(recipient),
            mails=list(zip(map(_name, listed), rows, strict=False)),
            more=max(0, len(mails) - _MAILS),
            done=rows[len(listed) :],
            rest=request.query("rest") == "1",
            nothing=request.query("none") == "1",
            drawn=int(self._pages.now().timestamp()),
        )

    def act(self, request: Request, link: Link, recipient: str) -> HTTPResponse:
        """POST: only with the name of a button, which a script that submits forms does not send."""
        self._pages.refuse_foreign(request)
        if link.action is Action.FORWARDED:
            if request.form("pressed") != "1":
                return self._pages.see_other("./")
            return self._preferences.revoke(request, recipient)
        actions, actor = self._pages.parts.actions, self._pages.actor
        does = {"release": actions.release, "delete": actions.delete}.get(request.form("do"))
        chosen = self._chosen(self._digest_of(link), request.all_of_form("mail"))
        if does is None or not chosen:
            return self._pages.see_other("./?none=1")
        left = self._each(chosen, lambda d: does(d.id, d.number, actor(request, "link", d, recipient)))
        drawn = request.form("drawn")
        since = drawn if _SINCE.fullmatch(drawn) else str(int(self._pages.now().timestamp()))
        log.info("several digest=%s act=%s chosen=%d left=%d", link.id, request.form("do"), len(chosen), left)
        return self._pages.see_other(f"./?since={since}{'&rest=1' if left else ''}")

    def _digest_of(self, link: Link) -> Digest:
        """Return the digest without the mail that its recipient no longer reads."""
        digest = self._store.digests.get(link.id)
        reader = self._pages.parts.people.reader(digest.recipient)
        theirs = tuple(d for d in digest.deliveries if d.recipient in reader.identities)
        return replace(digest, reader=reader, deliveries=theirs)

    def _each(self, chosen: Sequence[Delivery], do: Callable[[Delivery], object]) -> int:
        """Act on one after the other. Return how many were not begun. An error is recorded in its delivery."""
        started = time.monotonic()
        for position, delivery in enumerate(chosen):
            if time.monotonic() - started > _SECONDS:
                return len(chosen) - position
            try:
                do(delivery)
            except (AlreadyDone, BodyDamaged, NotAllowed, NotFound, RelayDeferred, RelayRefused) as error:
                log.info("several id=%s number=%d: %s", delivery.id, delivery.number, error)
            except StoreUnavailable as error:
                if position == 0:
                    raise
                log.error("several id=%s number=%d: %s", delivery.id, delivery.number, error)
                return len(chosen) - position
        return 0

    def _listed(self, digest: Digest) -> list[Delivery]:
        """Return what is still held of a digest, in the digest's order. Dangerous mail has a page of its own only."""
        held = [d for d in digest.deliveries if d.state is State.HELD and d.message.tier is not Tier.DANGEROUS]
        groups = ranked(held, known_senders(self._store, [digest.effective_reader]).get(digest.recipient, ()))
        return [delivery for group in groups for delivery in (group.newest, *group.others)]

    def _chosen(self, digest: Digest, ticked: Sequence[str]) -> list[Delivery]:
        """Return the ticked mails that belong to this digest and may be acted on here."""
        there = {_name(d): d for d in digest.deliveries if d.message.tier is not Tier.DANGEROUS}
        return [there[name] for name in dict.fromkeys(ticked) if name in there][:_MAILS]

    def _done(self, digest: Digest, since: str) -> list[Delivery]:
        """Return the mails of this digest that were acted on since the page was drawn."""
        if not _SINCE.fullmatch(since):
            return []
        drawn = datetime.fromtimestamp(int(since), UTC)
        changed = [d for d in digest.deliveries if d.state_at >= drawn and (d.state is not State.HELD or d.reason)]
        return changed[:_MAILS]


def _name(delivery: Delivery) -> str:
    """Return a delivery's name in the form."""
    return f"{delivery.id}.{delivery.number}"
