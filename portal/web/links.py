"""The pages that the links of a digest lead to. docs/security.md describes the rules that this file implements.

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

from bottle import HTTPResponse

from portal.model.domains import shown_address
from portal.model.errors import AlreadyDone, LinkInvalid, NotAllowed, RelayDeferred, RelayRefused
from portal.model.links import Action, Link
from portal.model.message import Actor, Delivery, DeliveryId, State, Tier, identity
from portal.model.text import N_
from portal.stores.records import LinkOpen
from portal.web.digest import DigestPages
from portal.web.pages import Pages
from portal.web.preferences import PreferencePages
from portal.web.request import Request
from portal.web.rows import findings

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

    def __init__(self, pages: Pages, preferences: PreferencePages) -> None:
        self._pages = pages
        self._preferences = preferences
        self._store = pages.parts.store
        self._links = pages.parts.links
        settings = pages.parts.settings.links
        self._auto = settings.confirm == "auto"
        self._settle = timedelta(minutes=settings.autosubmit_after_minutes)
        self._digest = DigestPages(pages, preferences)

    def show(self, request: Request, token: str) -> HTTPResponse:
        """GET and HEAD: what the link does, with the form for it. Only records that it was opened."""
        link = self._links.verify(token, self._pages.now())
        if link.action is Action.PREFERENCES:
            return self._preferences.page(request, self._recipient(request, link))
        opening = LinkOpen(link.key, self._pages.now())
        if link.action in _OF_A_DIGEST:
            recipient = self._recipient(request, link)
            if not request.query("since"):
                self._note(request, link, recipient, opening)
            return self._digest.show(request, link, recipient)
        delivery, reader = self._delivery(request, link)
        # After a POST (`done`) the page neither counts as an opening nor submits itself, or it would loop.
        if request.query("done") and link.action is not Action.SHOW:
            return self._page(request, link, delivery, reader, alone=False)
        opens = self._note(request, link, reader, opening)
        if link.action is Action.SHOW:
            return self._show_mail(request, link, delivery, reader)
        alone = self._may_act_alone(request, link, delivery, reader, opens)
        return self._page(request, link, delivery, reader, alone=alone)

    def act(self, request: Request, token: str) -> HTTPResponse:
        """POST: do it, then 303 back to the page, which shows what happened."""
        link = self._links.verify(token, self._pages.now())
        if link.action is Action.PREFERENCES:
            return self._change_preferences(request, link)
        self._pages.refuse_foreign(request)
        posted = LinkOpen(DeliveryId(_POSTED, 0), self._pages.now())
        if link.action in _OF_A_DIGEST:
            recipient = self._recipient(request, link)
            self._note(request, link, recipient, posted)
            self._pages.refuse_robots(request)
            answer = self._digest.act(request, link, recipient)
            return self._remember(request, answer, recipient) if request.form("do") else answer
        delivery, reader = self._delivery(request, link)
        opens = self._note(request, link, reader, posted)
        if link.action is Action.SHOW:
            return self._pages.see_other("./")  # has no form, so nothing to do
        undo = link.action is Action.DELETE and request.form("undo") == "1"
        pressed = undo or request.form("pressed") == "1"
        if pressed and delivery.message.tier is not Tier.SPAM:
            self._pages.refuse_robots(request)
        if pressed or self._may_act_alone(request, link, delivery, reader, opens):
            self._do(link, self._pages.actor(request, "link", delivery, reader), undo=undo)
        answer = self._pages.see_other("./?done=1")
        return self._remember(request, answer, reader) if pressed and request.is_by_a_person else answer

    def _remember(self, request: Request, answer: HTTPResponse, recipient: str) -> HTTPResponse:
        """Return the answer to a pressed button with the cookie that makes this device known."""
        device = self._links.device(request.cookie("device"), recipient)
        self._pages.set_cookie(answer, "device", device, _DEVICE_SECONDS)
        return answer

    def _delivery(self, request: Request, link: Link) -> tuple[Delivery, str]:
        """Return what a link is for, and its recipient, who must still be a reader of that mail.

        Raises NotFound, LinkInvalid.
        """
        delivery = self._store.deliveries.get(link.key)
        readers = self._pages.parts.people.readers(delivery.recipient)
        reader = next((who for who in readers if self._links.is_for(link, who, delivery.recipient)), None)
        if reader is None:
            raise LinkInvalid("the recipient of this link is no longer a reader of that mail")
        self._check_revoked(request, link, reader)
        return delivery, reader

    def _check_revoked(self, request: Request, link: Link, recipient: str) -> None:
        """Raise LinkInvalid if the link was revoked. Pages are in the recipient's language from here on."""
        person = self._store.recipients.get(recipient)
        self._pages.use_language_of(request, recipient, person.preferences)
        valid_from = person.links_valid_from
        if valid_from is not None and link.issued_at < valid_from:
            raise LinkInvalid("this link was revoked")

    def _note(self, request: Request, link: Link, recipient: str, opening: LinkOpen) -> Sequence[LinkOpen]:
        """Record an opening. Return the digest's openings of the last 15 minutes. Raises 429 if there are too many."""
        since = opening.at - _BURST_MEMORY
        opens = self._store.digests.record_link_open(recipient, link.issued_at, opening, since)
        if sum(1 for o in opens if o.at > opening.at - timedelta(minutes=1)) > _OPENINGS_A_MINUTE:
            raise self._pages.notice(
                request,
                N_("Too many at once"),
                N_("The links of this mail are being opened very often. Wait a minute, then open this one again."),
                429,
                Retry_After="60",
            )
        return opens

    def _may_act_alone(
        self, request: Request, link: Link, delivery: Delivery, reader: str, opens: Sequence[LinkOpen]
    ) -> bool:
        """Return whether the form may submit itself now, and be obeyed when it arrives without its button."""
        if not self._auto or delivery.state is not State.HELD or delivery.reason:
            return False
        if request.is_prefetch:
            return False
        known = self._links.knows_device(request.cookie("device"), reader)
        if link.action is Action.DELETE:
            return known
        if link.action is not Action.RELEASE or delivery.message.tier is not Tier.SPAM:
            return False
        settled = self._pages.now() - link.issued_at > self._settle
        return known or (settled and not burst(opens))

    def _do(self, link: Link, actor: Actor, *, undo: bool) -> None:
        """Do the act. An error is recorded in the delivery, where the page finds it."""
        actions = self._pages.parts.actions
        try:
            if undo:
                actions.restore(link.id, link.number, actor)
            elif link.action is Action.RELEASE:
                actions.release(link.id, link.number, actor)
            elif link.action is Action.DELETE:
                actions.delete(link.id, link.number, actor)
            else:
                actions.request_release(link.id, link.number, actor)
        except (AlreadyDone, NotAllowed, RelayDeferred, RelayRefused) as error:
            log.info("link %s id=%s number=%d: %s", link.action.name, link.id, link.number, error)

    def _page(self, request: Request, link: Link, delivery: Delivery, reader: str, *, alone: bool) -> HTTPResponse:
        return self._pages.page(
            request,
            "link",
            row=self._pages.row(request, delivery, reader),
            action=link.action.name.lower(),
            alone=alone,
            script=alone,
            recipient=shown_address(delivery.recipient),
        )

    def _show_mail(self, request: Request, link: Link, delivery: Delivery, reader: str) -> HTTPResponse:
        """Return the facts and reasons of one mail, with its links of the digest. Its text needs a session."""

        def address(action: Action) -> str:
            whose = reader if link.reader else ""
            token = self._links.token(action, link.id, link.number, link.issued_at, whose)
            return f"{self._pages.site.root}/link/{token}/"

        return self._pages.page(
            request,
            "show",
            row=self._pages.row(request, delivery, reader),
            recipient=shown_address(delivery.recipient),
            release=address(Action.RELEASE),
            delete=address(Action.DELETE),
            ask=address(Action.REQUEST),
            **findings(delivery.message, request.language),
        )

    # ---- preferences (the link at a digest's end, and RFC 8058)

    def _recipient(self, request: Request, link: Link) -> str:
        """Return the recipient of a digest. Raises NotFound, LinkInvalid."""
        recipient = identity(self._store.digests.recipient_of(link.id))
        if not self._pages.parts.people.is_person(recipient):
            raise LinkInvalid("the recipient of this digest is an alias or a role mailbox by now")
        self._check_revoked(request, link, recipient)
        return recipient

    def _change_preferences(self, request: Request, link: Link) -> HTTPResponse:
        recipient = self._recipient(request, link)
        if request.form("List-Unsubscribe") == "One-Click":
            # RFC 8058, 3.2: sent by the mail provider's servers, so without Origin and cookies; no redirect.
            self._preferences.unsubscribe(recipient, link.id)
            return HTTPResponse(b"You will get no more digests.\n", 200, {"Content-Type": "text/plain; charset=utf-8"})
        self._pages.refuse_foreign(request)
        self._pages.refuse_robots(request)
        return self._preferences.change(request, recipient, back="./")


def burst(opens: Sequence[LinkOpen]) -> bool:
    """Return whether links were opened as scanners do: several of a digest, or one repeatedly, within ten seconds.

    ``openings`` oldest first.
    """
    seen = [o for o in opens if o.delivery.message_id != _POSTED]
    for position, first in enumerate(seen):
        near: dict[DeliveryId, int] = {}
        for other in seen[position:]:
            if other.at - first.at > _BURST:
                break
            key = other.delivery
            near[key] = near.get(key, 0) + 1
            if near[key] >= _BURST_REPEATS or len(near) >= _BURST_DELIVERIES:
                return True
    return False
