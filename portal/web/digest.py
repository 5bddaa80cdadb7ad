"""The pages behind the links at a digest's foot: release or delete several of its mails, and "I forwarded it".

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
from portal.model.text import N_
from portal.stores import Digest
from portal.stores.senders import known_senders
from portal.web.pages import Row, Web

log = logging.getLogger("quarantine.web")

_MAILS = 200  # on one page; those beyond move up as these are dealt with
_SECONDS = 20  # after which no further act begins: with a release's own 30 s below uWSGI's harakiri of 60 s
_SINCE = re.compile(r"[0-9]{1,11}", re.ASCII)


class DigestPages:
    """`/link/TOKEN/` with a token for a digest, once `LinkPages` verified it and found whose it is."""

    def __init__(self, web: Web, revoke: Callable[[str], None]) -> None:
        self._web = web
        self._store = web.parts.store
        self._revoke = revoke

    def show(self, link: Link, recipient: str) -> HTTPResponse:
        """GET: changes nothing."""
        if link.action is Action.FORWARDED:
            return self._web.page("forwarded", recipient=recipient)
        digest = self._digest_of(link)
        mails = self._listed(digest)
        return self._web.page(
            "several",
            recipient=recipient,
            mails=[(_name(delivery), self._web.row(delivery, recipient)) for delivery in mails[:_MAILS]],
            more=max(0, len(mails) - _MAILS),
            done=self._done(digest, self._web.query("since")),
            rest=self._web.query("rest") == "1",
            nothing=self._web.query("none") == "1",
            drawn=int(self._web.now().timestamp()),
        )

    def act(self, link: Link, recipient: str) -> HTTPResponse:
        """POST: only with the name of a button, which a script that submits forms does not send."""
        self._web.refuse_foreign()
        if link.action is Action.FORWARDED:
            if self._web.form("pressed") != "1":
                return self._web.see_other("./")
            self._revoke(recipient)
            # No way back to the page: this link was revoked with the others.
            return self._web.notice(
                N_("Links revoked"),
                N_(
                    "The links in all digests sent to you until now do nothing any more. Your next digest brings new "
                    "ones."
                ),
                200,
                sign_in=True,
            )
        acts, actor = self._web.parts.acts, self._web.actor
        does = {"release": acts.release, "delete": acts.delete}.get(self._web.form("do"))
        chosen = self._chosen(self._digest_of(link))
        if does is None or not chosen:
            return self._web.see_other("./?none=1")
        left = self._each(chosen, lambda d: does(d.id, d.number, actor("link", d, recipient)))
        drawn = self._web.form("drawn")
        since = drawn if _SINCE.fullmatch(drawn) else str(int(self._web.now().timestamp()))
        log.info("several digest=%s act=%s chosen=%d left=%d", link.id, self._web.form("do"), len(chosen), left)
        return self._web.see_other(f"./?since={since}{'&rest=1' if left else ''}")

    def _digest_of(self, link: Link) -> Digest:
        """The digest, without what its recipient does not read any more."""
        digest = self._store.digest(link.id)
        reader = self._web.parts.people.reader(digest.recipient)
        theirs = tuple(d for d in digest.deliveries if d.recipient in reader.identities)
        return replace(digest, reader=reader, deliveries=theirs)

    def _each(self, chosen: Sequence[Delivery], do: Callable[[Delivery], object]) -> int:
        """Do it to one after the other; returns how many were not begun. What stops one stands in it afterwards."""
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
        """What of a digest is still held, in the digest's order. Dangerous mail is for its own page."""
        held = [d for d in digest.deliveries if d.state is State.HELD and d.message.tier is not Tier.DANGEROUS]
        groups = ranked(held, known_senders(self._store, [digest.reader or digest.recipient]).get(digest.recipient, ()))
        return [delivery for group in groups for delivery in (group.newest, *group.others)]

    def _chosen(self, digest: Digest) -> list[Delivery]:
        """The mails that were ticked, as far as they belong to this digest and may be acted on here."""
        there = {_name(d): d for d in digest.deliveries if d.message.tier is not Tier.DANGEROUS}
        ticked = dict.fromkeys(self._web.all_of_form("mail"))
        return [there[name] for name in ticked if name in there][:_MAILS]

    def _done(self, digest: Digest, since: str) -> list[Row]:
        """What happened to mails of this digest since the page was drawn."""
        if not _SINCE.fullmatch(since):
            return []
        drawn = datetime.fromtimestamp(int(since), UTC)
        changed = [d for d in digest.deliveries if d.state_at >= drawn and (d.state is not State.HELD or d.reason)]
        return [self._web.row(delivery, digest.recipient) for delivery in changed[:_MAILS]]


def _name(delivery: Delivery) -> str:
    """A delivery's name in the form."""
    return f"{delivery.id}.{delivery.number}"
