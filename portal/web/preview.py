"""The page with a preview of the recipient's next digest, and the frame with its HTML.

It is for the signed-in recipient only: a digest may have been forwarded, so its links do not show what is held now.
The preview is composed by the code that composes the mail, and has no links. The frame also has a policy of its own.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from bottle import HTTPResponse

from portal.batches.mass import KIND
from portal.batches.mass_hold import HELD_BACK_MAX, HeldBack
from portal.batches.mass_rights import MassRights
from portal.digests.compose import DELIVERIES
from portal.digests.preview import Preview, preview
from portal.digests.put_off import put_off_until
from portal.model.domains import shown_address
from portal.model.errors import Busy
from portal.model.schedule import Plan
from portal.model.text import N_
from portal.stores.records import Upcoming
from portal.stores.senders import addresses_in
from portal.web.auth.session import Sessions
from portal.web.pages import Pages
from portal.web.request import Request

_FRAME_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'self'; sandbox",
    "Referrer-Policy": "no-referrer",
}

_STOPPED = N_("No digest will be sent: you stopped digests.")
_NO_DAYS = N_("No digest will be sent: no days are chosen for digests.")
_NOTHING_NEW = N_("No digest would be sent now: there are no new held messages.")
_HELD_BACK = N_("No digest would be sent now: your mail administrator is working on the new messages.")


class DigestPreview:
    """`/preferences/digest`."""

    def __init__(self, pages: Pages, sessions: Sessions) -> None:
        self._pages = pages
        self._sessions = sessions

    def show(self, request: Request) -> HTTPResponse:
        """GET /preferences/digest: what would be sent now, or why nothing would be, and when."""
        session, now = self._sessions.of(request), self._pages.now()
        upcoming, plan, obstacle = self._upcoming(session.recipient, now)
        due = (upcoming.due_at or plan.next_time(now)) if obstacle in ("", _NOTHING_NEW) else None
        latest = self._put_off_until(upcoming, max(due, now)) if due and not obstacle else None
        return self._pages.page(
            request,
            "preview",
            signed_in=shown_address(session.recipient),
            form_token=session.form_token,
            obstacle=obstacle,
            due=request.language.moment(due, plan.zone) if due else "",
            is_due=due is not None and due <= now,
            latest=request.language.moment(latest, plan.zone) if latest else "",
            zone=plan.zone.key.replace("_", " "),
            shown_as="text" if request.query("as") == "text" else "html",
            digest=None if obstacle else self._preview(upcoming, now),
        )

    def frame(self, request: Request) -> HTTPResponse:
        """GET /preferences/digest/html: the HTML part of the mail, for the frame of the page."""
        session, now = self._sessions.of(request), self._pages.now()
        upcoming, _, obstacle = self._upcoming(session.recipient, now)
        # The page says why there is no digest. The frame is empty if that changed in between.
        html = "" if obstacle else self._preview(upcoming, now).html
        return HTTPResponse(html.encode(), 200, {"Content-Type": "text/html; charset=utf-8", **_FRAME_HEADERS})

    def _upcoming(self, recipient: str, now: datetime) -> tuple[Upcoming, Plan, str]:
        """Return the digest that would be sent now, its plan, and why none would be sent ("" if one would be)."""
        parts = self._pages.parts
        reader = parts.people.reader(recipient)
        upcoming = parts.store.digests.upcoming(reader, now, DELIVERIES, kind=KIND, jobs_since=now - HELD_BACK_MAX)
        digest = upcoming.digest
        plan = parts.domains.plan(recipient, digest.preferences)
        obstacle = _obstacle(upcoming, plan, now)
        if not obstacle and upcoming.jobs:
            left = HeldBack(upcoming.jobs, MassRights(parts.staff)).left(digest.deliveries)
            upcoming = replace(upcoming, digest=replace(digest, deliveries=left))
            obstacle = "" if left else _HELD_BACK
        return upcoming, plan, obstacle

    def _put_off_until(self, upcoming: Upcoming, due: datetime) -> datetime | None:
        """Return when the digest is sent at the latest; None: when it is due."""
        known = addresses_in(upcoming.released_from)
        return put_off_until(self._pages.parts.domains, upcoming.digest, known, upcoming.last_sent_at, due)

    def _preview(self, upcoming: Upcoming, now: datetime) -> Preview:
        """Return the preview. Raises Busy: with thousands of messages it takes a second."""
        if not self._pages.previews.acquire(blocking=False):
            raise Busy("too many previews are being made")
        try:
            return preview(self._pages.parts, upcoming, now)
        finally:
            self._pages.previews.release()


def _obstacle(upcoming: Upcoming, plan: Plan, now: datetime) -> str:
    """Return why no digest would be sent, "" if one would be."""
    if upcoming.stopped_at is not None:
        return _STOPPED
    if plan.next_time(now) is None:
        return _NO_DAYS
    return "" if upcoming.digest.deliveries else _NOTHING_NEW
