"""Responses: rendering, headers, redirects, cookies, and the checks that every form passes.

Redirects are 303 with a path, without scheme and host. Bottle's redirect() takes scheme and host from the request, and
Chromium blocks the redirect of a form to another scheme or host under ``form-action 'self'``.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import UUID
from zoneinfo import ZoneInfo

from bottle import HTTPError, HTTPResponse

from portal.actions import Actions, Check
from portal.assemble import Parts
from portal.batches.parallel import in_parallel
from portal.batches.run import Batches
from portal.model.audit import Act, AuditEntry
from portal.model.errors import Busy, NotConfirmed
from portal.model.log_lines import REQUEST_ID
from portal.model.message import Actor, ActorKind, Delivery, DeliveryId, Event
from portal.model.rights import ReleaseRight
from portal.model.schedule import Preferences
from portal.model.sender import needs_check
from portal.model.text import N_
from portal.policy.retention import removal_of
from portal.web.request import Request
from portal.web.rows import Row, Viewer, needs_events, row
from portal.web.site import Site
from portal.web.static import FOREVER, StaticFiles

# Pages load only their own style, script and icon, submit forms only to their own origin and must not be framed.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
_DEFAULT_HEADERS = (
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    # no-referrer would make the Origin of the portal's own forms "null", same-origin would put tokens into access logs.
    ("Referrer-Policy", "strict-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("X-Robots-Tag", "noindex, nofollow, noarchive"),
    ("Cache-Control", "no-store"),
)
_HSTS = ("Strict-Transport-Security", "max-age=31536000")


class Pages:
    """The opened parts of the portal, and methods to build responses. One object per process, used by many threads."""

    def __init__(self, parts: Parts, threads: int) -> None:
        """``threads``: the number of requests that this process answers at the same time."""
        self.parts = parts
        # Rspamd waits five seconds for an answer, a mail server or the reader of messages may take longer. So releases
        # occupy at most a quarter of the threads (two, if there are fewer than eight), previews at most half, and the
        # rest is always free for Rspamd.
        places = max(1, min(threads - 1, max(2, threads // 4)))
        self._releases = threading.Semaphore(places)
        # Those of all requests for several messages, so that one place is left for people who press a button.
        self._of_several = threading.Semaphore(max(1, places - 1))
        self.previews = threading.Semaphore(max(1, min(threads // 2, threads - places - 1)))
        # Checks of passwords: Dovecot delays its answer to a wrong one by seconds.
        self.password_checks = threading.Semaphore(max(1, min(2, threads // 4)))
        # These hold a connection to the database for seconds. Of the four that a process has, ingest needs one.
        self._searches = threading.Semaphore(max(1, min(2, threads // 4)))
        self.batches = Batches(parts.store, parts.actions, parts.people, parts.settings.is_local)
        self.site = Site.of(parts.settings.public_url)
        self.static = StaticFiles(parts.render.folders, self.site.root)
        self.default_headers = [*_DEFAULT_HEADERS, *([_HSTS] if self.site.https else [])]

    def now(self) -> datetime:
        """Return the current time. Tests replace this clock."""
        return self.parts.actions.now()

    # ---- responses

    def page(self, request: Request, name: str, status: int = 200, **values: Any) -> HTTPResponse:
        """Return the page ``templates/web/NAME.html``, rendered with these values."""
        values = {
            "signed_in": None,
            "form_token": "",
            "script": False,
            "console": request.shows_console,
            "contact": self.parts.settings.site.contact,
            "times_in": request.zone.key.replace("_", " ") if request.zone else "",
            **values,
        }
        html = self.parts.render.page(
            name,
            language=request.language.tag,
            brand=request.policy.brand,
            root=self.site.root,
            static=self.static.url,
            site_style=self.static.has("site.css"),
            **values,
        )
        return HTTPResponse(html.encode(), status, {"Content-Type": "text/html; charset=utf-8"})

    def about(self, request: Request) -> HTTPResponse:
        """GET /about: what this site is, and how a real digest is recognized."""
        policy, settings = request.policy, self.parts.settings
        return self.page(
            request,
            "about",
            host=urlsplit(policy.public_url).hostname,
            retention_days=min(policy.retention_days.values()),
            takes_passwords=settings.takes_passwords,
            times_in="",
        )

    def brand_file(self, _: Request, name: str) -> HTTPResponse:
        """GET /brand/NAME: the logo or the colours of a domain. The name has a hash, so that browsers keep the file."""
        found = self.parts.domains.brand_file(name)
        if found is None:
            raise HTTPError(404)
        content, kind = found
        return HTTPResponse(content, 200, {"Content-Type": kind, "Cache-Control": FOREVER})

    def notice(
        self, request: Request, title: str, text: str, status: int, *, sign_in: bool = False, **headers: str
    ) -> HTTPResponse:
        """Return a page with a title and a text, which the template translates. The response may also be raised."""
        values = {"title": title, "text": text, "request_id": REQUEST_ID.get() if status >= 500 else ""}
        response = self.page(request, "notice", status, **values, sign_in=sign_in, times_in="")
        for header, value in headers.items():
            response.set_header(header.replace("_", "-"), value)
        return response

    def see_other(self, path: str) -> HTTPResponse:
        """Return a 303 to a path below the mount point or, with ``./``, relative to this page. May also be raised."""
        return HTTPResponse(b"", 303, {"Location": path if path.startswith("./") else self.site.root + path})

    def set_cookie(self, response: HTTPResponse, name: str, value: str, max_age_seconds: int) -> None:
        """Set one of the portal's cookies. An age of 0 removes it."""
        response.set_cookie(
            self.site.cookie_name(name),
            value,
            path="/",
            max_age=max_age_seconds,
            secure=self.site.secure_cookies,
            httponly=True,
            samesite="lax",
        )

    # ---- checks of a form

    def check_same_origin(self, request: Request) -> None:
        """Raise 403 if a page of another site made the browser send this form."""
        if request.is_cross_site:
            raise self._from_another_site(request)

    def _from_another_site(self, request: Request) -> HTTPResponse:
        return self.notice(
            request,
            N_("Request from another site"),
            N_(
                "The form was not sent from this site, so nothing was changed. Open the link in your message again, or "
                "open this site at its usual address."
            ),
            403,
        )

    def check_host(self, request: Request, recipient: str) -> None:
        """Raise unless this request came to the host of the recipient's domain: links, cookies and forms of a recipient
        are valid there only.

        A page is opened there instead (303); a form is rejected (403), and has no effect.
        """
        url = self.parts.domains.of(recipient).public_url
        if url == request.site.url:
            return
        if not request.only_reads:
            raise self._from_another_site(request)
        query = f"?{request.query_string}" if request.query_string else ""
        raise HTTPResponse(b"", 303, {"Location": f"{url}{quote(request.path)}{query}"})

    def form_token_fits(self, request: Request, secret: str) -> bool:
        """Return whether the form carries the anti-forgery token of the session with this secret."""
        return self.parts.links.form_token_fits(secret, request.form("form_token"))

    def check_form_token(self, request: Request, secret: str) -> None:
        """Raise 403 unless `form_token_fits`."""
        if not self.form_token_fits(request, secret):
            raise self.notice(
                request,
                N_("This form is from an earlier session"),
                N_("Nothing was changed. Go back, reload the page and try again."),
                403,
            )

    def check_user_gesture(self, request: Request) -> None:
        """Raise 403 unless a person pressed the button. Pages that need a session do not need this check."""
        if not request.has_user_gesture:
            raise self.notice(
                request,
                N_("Sign-in or newer browser required"),
                N_(
                    "Your browser cannot confirm that a person pressed the button, so nothing was changed. Sign in, or "
                    "open the link in a newer browser."
                ),
                403,
                sign_in=True,
            )

    # ---- releases

    def is_unchecked(self, request: Request, delivery: Delivery) -> bool:
        """Return whether a form would release a message whose caution its page has not shown: the page is older than
        the caution, or a list, which shows none. The form names the tier of the message on its page."""
        is_own = self.parts.domains.right(delivery) is ReleaseRight.SELF
        tier = delivery.message.tier
        shown = (tier, *tier.more_harmful)  # a scan may have ended since, and found nothing
        return is_own and needs_check(delivery.message) and request.form("checked") not in shown

    def release(self, request: Request, id: UUID, number: int, actor: Actor) -> Delivery:
        """Release a delivery now or, while as many releases as allowed wait for the mail server, queue it.

        Raises as `Actions.release`, and NotConfirmed. A queued delivery is `releasing`; the digest process sends it.
        """
        check = partial(self._check_shown, request)
        if not self._releases.acquire(blocking=False):
            return self.parts.actions.queue_release(id, number, actor, check=check)
        try:
            return self.parts.actions.release(id, number, actor, check=check)
        finally:
            self._releases.release()

    def _check_shown(self, request: Request, delivery: Delivery) -> None:
        """Raise NotConfirmed for a message that needs a check since the form's page was made. Asked in the claim."""
        if self.is_unchecked(request, delivery):
            raise NotConfirmed("the page of this form did not show the caution")

    def send_again(self, request: Request, id: UUID, number: int, actor: Actor) -> Delivery:
        """Send a delivery that was released or let through once more. Raises as `release`, and Busy."""
        if not self._releases.acquire(blocking=False):
            raise Busy("too many releases wait for the mail server")
        try:
            check = partial(self._check_shown, request)
            return self.parts.actions.release(id, number, actor, again=True, check=check)
        finally:
            self._releases.release()

    def release_as_staff(
        self, delivery: Delivery, actor: Actor, check: Check, reason: str, *, again: bool = False
    ) -> Delivery:
        """Release a delivery by somebody with a role, which ``check`` checks. Raises as `Actions.release`, and Busy."""
        if not self._releases.acquire(blocking=False):
            raise Busy("too many releases wait for the mail server")
        try:
            return self.parts.actions.release(
                delivery.id, delivery.number, actor, operator=True, again=again, check=check, reason=reason
            )
        finally:
            self._releases.release()

    def release_several(
        self,
        deliveries: Sequence[Delivery],
        actor: Callable[[Delivery], Actor],
        check: Check,
        stopped: Callable[[], bool],
    ) -> Generator[tuple[Delivery, Delivery | Exception], None, None]:
        """Release deliveries, as many at once as may still wait for the mail server; queue them all if none may.

        ``check``: see `Actions.release`. Yields the outcomes as `in_parallel`.
        """

        def release(actions: Actions, delivery: Delivery) -> Delivery:
            method = actions.release if places else actions.queue_release
            return method(delivery.id, delivery.number, actor(delivery), check=check)

        with self._places(len(deliveries)) as places:
            yield from in_parallel(self.parts.actions, release, deliveries, max(1, places), stopped=stopped)

    def release_several_as_staff(
        self, deliveries: Sequence[Delivery], actor: Actor, check: Check, reason: str, stopped: Callable[[], bool]
    ) -> Generator[tuple[Delivery, Delivery | Exception], None, None]:
        """Release deliveries as `release_as_staff` does, as many at once as may still wait for the mail server.

        Yields the outcomes as `in_parallel`. Raises Busy.
        """

        def release(actions: Actions, delivery: Delivery) -> Delivery:
            return actions.release(delivery.id, delivery.number, actor, operator=True, check=check, reason=reason)

        with self._places(len(deliveries)) as places:
            if deliveries and not places:
                raise Busy("too many releases wait for the mail server")
            yield from in_parallel(self.parts.actions, release, deliveries, max(1, places), stopped=stopped)

    @contextmanager
    def _places(self, count: int) -> Iterator[int]:
        """Occupy places for the releases of one request for ``count`` messages, and yield how many: those that are
        free, but for one."""
        places = 0
        try:
            while places < count and self._of_several.acquire(blocking=False):
                if not self._releases.acquire(blocking=False):
                    self._of_several.release()
                    break
                places += 1
            yield places
        finally:
            if places:
                self._releases.release(places)
                self._of_several.release(places)

    @contextmanager
    def searching(self) -> Iterator[None]:
        """Occupy one of the places for searches of all messages or of the audit. Raises Busy if there is none."""
        if not self._searches.acquire(blocking=False):
            raise Busy("too many searches of staff are running")
        try:
            yield
        finally:
            self._searches.release()

    # ---- the recipient of a page

    def use_recipient(
        self, request: Request, recipient: str, preferences: Preferences, *, any_host: bool = False
    ) -> None:
        """Use the recipient's language and zone and the look of their domain for this request from now on.

        Raises as `check_host`, unless ``any_host``.
        """
        if not any_host:
            self.check_host(request, recipient)
        plan = self.parts.domains.plan(recipient, preferences)
        request.policy = self.parts.domains.of(recipient)
        request.language, request.zone = self.parts.render.language_for(plan.language), plan.zone

    def viewer(self, request: Request, reader: str) -> Viewer:
        """Return the reader with the language and time zone for the pages of this request."""
        return Viewer(reader, request.language, request.zone or ZoneInfo(request.policy.timezone))

    def rows(
        self,
        request: Request,
        deliveries: Sequence[Delivery],
        reader: str,
        known: Mapping[DeliveryId, Sequence[Event]] | None = None,
    ) -> list[Row]:
        """Return the view models of deliveries for one of their readers. Queries the store at most once.

        ``known``: the last events of some of them, if the caller has them.
        """
        viewer, is_role = self.viewer(request, reader), self.parts.people.is_role
        events = dict(known or {})
        keys = [each for each in self.needing_events(deliveries) if each not in events]
        events |= self.parts.store.deliveries.last_events(keys) if keys else {}
        return [self._row(each, viewer, events.get(each.key, ()), role=is_role(each.recipient)) for each in deliveries]

    def _row(self, delivery: Delivery, viewer: Viewer, events: Sequence[Event], *, role: bool) -> Row:
        domains, now = self.parts.domains, self.now()
        removal = removal_of(domains, delivery, now)
        return row(delivery, viewer, domains.right(delivery), role=role, events=events, removal=removal, now=now)

    def needing_events(self, deliveries: Sequence[Delivery]) -> list[DeliveryId]:
        """Return those of these deliveries whose rows need their events."""
        is_role = self.parts.people.is_role
        return [each.key for each in deliveries if needs_events(each, role=is_role(each.recipient))]

    def row(self, request: Request, delivery: Delivery, reader: str, events: Sequence[Event] | None = None) -> Row:
        """Return the view model of a delivery for one of its readers.

        ``events``: its history, if the caller has it, so that no query of the store is needed.
        """
        if events is None:
            return self.rows(request, [delivery], reader)[0]
        is_role = self.parts.people.is_role(delivery.recipient)
        return self._row(delivery, self.viewer(request, reader), events, role=is_role)

    def may_rule(self, recipient: str) -> bool:
        """Return whether the readers of a recipient's messages may make rules for them.

        The rules of a person's alias are stored for the person, so the domain of the person decides.
        """
        return self.parts.domains.of(self.parts.rulebook.owner(recipient)).recipient_rules

    def actor(self, request: Request, via: str, delivery: Delivery, reader: str) -> Actor:
        """Return the reader as an event's actor: by name, unless the delivery is for the reader's own address."""
        own = reader == delivery.recipient and not self.parts.people.is_role(delivery.recipient)
        return Actor(ActorKind.RECIPIENT, "" if own else reader, via, request.peer)

    def record(self, request: Request, act: Act, recipient: str, detail: str = "", *, via: str = "portal") -> None:
        """Record in the audit what a recipient did, if it is not an event of a delivery."""
        self.parts.store.audit.record(self.audit_entry(request, act, recipient, detail, via=via))

    def audit_entry(self, request: Request, act: Act, recipient: str, detail: str = "", *, via: str) -> AuditEntry:
        """Return what `record` records."""
        actor = Actor(ActorKind.RECIPIENT, recipient, via, request.peer)
        return AuditEntry.new(self.now(), act, actor, recipient, detail)


def json_response(status: int, value: Mapping[str, Any]) -> HTTPResponse:
    """Return a JSON response."""
    return HTTPResponse(json.dumps(value).encode() + b"\n", status, {"Content-Type": "application/json"})


def sha256(*words: str) -> bytes:
    """Return the hash of a secret. The store keeps only this hash."""
    return hashlib.sha256(" ".join(words).encode()).digest()
