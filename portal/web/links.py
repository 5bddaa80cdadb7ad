"""The pages behind the links of a digest. docs/security.md tells the rules, this file is them.

Opening a link changes nothing: mail scanners open links, run scripts and submit forms. The page holds one form for
exactly one act on one delivery (`digest` has the pages about a whole digest). It may submit itself only when that
is harmless and a person is likely; the conditions are looked at when the page is made and once more when the form
arrives without its button.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from bottle import HTTPResponse, request

from portal.model.errors import AlreadyDone, LinkInvalid, NotAllowed, RelayDeferred, RelayRefused
from portal.model.links import Action, Link
from portal.model.message import Actor, Delivery, State, Tier
from portal.model.text import N_
from portal.stores import Opening
from portal.web.digest import DigestPages
from portal.web.pages import Web
from portal.web.preferences import PreferencePages

log = logging.getLogger("quarantine.web")

_BURST = timedelta(seconds=10)
_BURST_MEMORY = timedelta(minutes=15)
_BURST_DELIVERIES = 3  # different deliveries of one digest within _BURST
_BURST_REPEATS = 2  # openings of one delivery within _BURST
_OPENINGS_A_MINUTE = 60
_DEVICE_SECONDS = 365 * 24 * 3600
_OF_A_DIGEST = (Action.SEVERAL, Action.FORWARDED)
# A POST is noted too, so that it counts for the rate; under this name, so that it is not taken for an opening.
_POSTED = UUID(int=0)


class LinkPages:
    """`/link/TOKEN/`."""

    def __init__(self, web: Web, preferences: PreferencePages) -> None:
        self._web = web
        self._preferences = preferences
        self._store = web.parts.store
        self._links = web.parts.links
        settings = web.parts.settings.links
        self._auto = settings.confirm == "auto"
        self._settle = timedelta(minutes=settings.autosubmit_after_minutes)
        self._digest = DigestPages(web, revoke=preferences.revoke)

    def show(self, token: str) -> HTTPResponse:
        """GET and HEAD: what the link does, with the form for it. Only notes that it was opened."""
        link = self._links.verify(token, self._web.now())
        if link.action is Action.PREFERENCES:
            return self._preferences.show(self._recipient(link))
        opening = Opening(link.id, link.number, self._web.now())
        if link.action in _OF_A_DIGEST:
            recipient = self._recipient(link)
            if not self._web.query("since"):
                self._note(link, recipient, opening)
            return self._digest.show(link, recipient)
        delivery, reader = self._delivery(link)
        # After a POST (`done`) the page neither counts as an opening nor submits itself, or it would loop.
        if self._web.query("done") and link.action is not Action.SHOW:
            return self._page(link, delivery, reader, alone=False)
        openings = self._note(link, reader, opening)
        if link.action is Action.SHOW:
            return self._show_mail(link, delivery, reader)
        return self._page(link, delivery, reader, alone=self._may_act_alone(link, delivery, reader, openings))

    def act(self, token: str) -> HTTPResponse:
        """POST: do it, then 303 back to the page, which tells what happened."""
        link = self._links.verify(token, self._web.now())
        if link.action is Action.PREFERENCES:
            return self._change_preferences(link)
        self._web.refuse_foreign()
        posted = Opening(_POSTED, 0, self._web.now())
        if link.action in _OF_A_DIGEST:
            recipient = self._recipient(link)
            self._note(link, recipient, posted)
            self._web.refuse_robots()
            answer = self._digest.act(link, recipient)
            return self._remember(answer, recipient) if self._web.form("do") else answer
        delivery, reader = self._delivery(link)
        openings = self._note(link, reader, posted)
        if link.action is Action.SHOW:
            return self._web.see_other("./")  # has no form, so nothing to do
        undo = link.action is Action.DELETE and self._web.form("undo") == "1"
        pressed = undo or self._web.form("pressed") == "1"
        if pressed and delivery.message.tier is not Tier.SPAM:
            self._web.refuse_robots()
        if pressed or self._may_act_alone(link, delivery, reader, openings):
            self._do(link, self._web.actor("link", delivery, reader), undo=undo)
        answer = self._web.see_other("./?done=1")
        return self._remember(answer, reader) if pressed and self._web.pressed_by_a_person() else answer

    def _remember(self, answer: HTTPResponse, recipient: str) -> HTTPResponse:
        """The answer to a press, with the cookie that remembers it."""
        device = self._links.device(self._web.cookie("device"), recipient)
        self._web.set_cookie(answer, "device", device, _DEVICE_SECONDS)
        return answer

    def _delivery(self, link: Link) -> tuple[Delivery, str]:
        """What a link is for and whose it is: somebody who reads that mail now."""
        delivery = self._store.delivery(link.id, link.number)
        readers = self._web.parts.people.readers(delivery.recipient)
        reader = next((who for who in readers if self._links.is_for(link, who, delivery.recipient)), None)
        if reader is None:
            raise LinkInvalid("whose link this is does not read that mail any more")
        self._check_revoked(link, reader)
        return delivery, reader

    def _check_revoked(self, link: Link, recipient: str) -> None:
        """Raise LinkInvalid if it was; pages speak the recipient's language from here on."""
        person = self._store.person(recipient)
        self._web.speak_to(recipient, person.preferences)
        valid_from = person.links_valid_from
        if valid_from is not None and link.issued_at < valid_from:
            raise LinkInvalid("this link was revoked")

    def _note(self, link: Link, recipient: str, opening: Opening) -> Sequence[Opening]:
        """Note an opening; the digest's openings of the last quarter of an hour. 429 when there are too many."""
        since = opening.at - _BURST_MEMORY
        openings = self._store.record_opening(recipient, link.issued_at, opening, since)
        if sum(1 for o in openings if o.at > opening.at - timedelta(minutes=1)) > _OPENINGS_A_MINUTE:
            raise self._web.notice(
                N_("Too many at once"),
                N_("The links of this mail are being opened very often. Wait a minute, then open this one again."),
                429,
                Retry_After="60",
            )
        return openings

    def _may_act_alone(self, link: Link, delivery: Delivery, reader: str, openings: Sequence[Opening]) -> bool:
        """Whether the form may submit itself now, and be obeyed when it arrives without its button."""
        if not self._auto or delivery.state is not State.HELD or delivery.reason:
            return False
        if "prefetch" in request.environ.get("HTTP_SEC_PURPOSE", ""):
            return False
        known = self._links.knows_device(self._web.cookie("device"), reader)
        if link.action is Action.DELETE:
            return known
        if link.action is not Action.RELEASE or delivery.message.tier is not Tier.SPAM:
            return False
        settled = self._web.now() - link.issued_at > self._settle
        return known or (settled and not burst(openings))

    def _do(self, link: Link, actor: Actor, *, undo: bool) -> None:
        """The act itself. What stops it stands in the delivery afterwards, and the page tells it."""
        acts = self._web.parts.acts
        try:
            if undo:
                acts.restore(link.id, link.number, actor)
            elif link.action is Action.RELEASE:
                acts.release(link.id, link.number, actor)
            elif link.action is Action.DELETE:
                acts.delete(link.id, link.number, actor)
            else:
                acts.ask(link.id, link.number, actor)
        except (AlreadyDone, NotAllowed, RelayDeferred, RelayRefused) as error:
            log.info("link %s id=%s number=%d: %s", link.action.name, link.id, link.number, error)

    def _page(self, link: Link, delivery: Delivery, reader: str, *, alone: bool) -> HTTPResponse:
        return self._web.page(
            "link",
            row=self._web.row(delivery, reader),
            action=link.action.name.lower(),
            alone=alone,
            script=alone,
            recipient=delivery.recipient,
        )

    def _show_mail(self, link: Link, delivery: Delivery, reader: str) -> HTTPResponse:
        """Facts and reasons of one mail, and the links that its digest has for it; its text is for who signs in."""

        def address(action: Action) -> str:
            whose = reader if link.reader else ""
            return f"{self._web.root}/link/{self._links.token(action, link.id, link.number, link.issued_at, whose)}/"

        return self._web.page(
            "show",
            row=self._web.row(delivery, reader),
            recipient=delivery.recipient,
            release=address(Action.RELEASE),
            delete=address(Action.DELETE),
            ask=address(Action.ASK),
            **self._web.findings(delivery.message),
        )

    # ---- preferences (the link at a digest's end, and RFC 8058)

    def _recipient(self, link: Link) -> str:
        recipient = self._store.digest_recipient(link.id)
        if not self._web.parts.people.is_person(recipient):
            raise LinkInvalid("whose digest this was is an alias or a role mailbox by now")
        self._check_revoked(link, recipient)
        return recipient

    def _change_preferences(self, link: Link) -> HTTPResponse:
        recipient = self._recipient(link)
        if self._web.form("List-Unsubscribe") == "One-Click":
            # RFC 8058, 3.2: sent by the mail provider's servers, so without Origin and cookies; no redirect.
            self._preferences.unsubscribe(recipient, link.id)
            return HTTPResponse(b"You will get no more digests.\n", 200, {"Content-Type": "text/plain; charset=utf-8"})
        self._web.refuse_foreign()
        self._web.refuse_robots()
        return self._preferences.change(recipient, back="./")


def burst(openings: Sequence[Opening]) -> bool:
    """Whether links were opened as scanners do: several of a digest, or one repeatedly, within ten seconds.

    ``openings`` oldest first.
    """
    seen = [o for o in openings if o.message_id != _POSTED]
    for position, first in enumerate(seen):
        near: dict[tuple[UUID, int], int] = {}
        for other in seen[position:]:
            if other.at - first.at > _BURST:
                break
            name = (other.message_id, other.number)
            near[name] = near.get(name, 0) + 1
            if near[name] >= _BURST_REPEATS or len(near) >= _BURST_DELIVERIES:
                return True
    return False
