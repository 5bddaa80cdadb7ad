"""The page of a person's own second factor: set it up, give it after signing in, and get new recovery codes.

It is the only page of the console that opens without the second factor. So each act asks what the session may do:
somebody who only has the person's mailbox can give the factor, or set up the first one if the person signs in with
mailed links only, and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import segno
from bottle import HTTPResponse
from markupsafe import Markup

from portal.model.errors import AlreadyDone
from portal.model.second_factor import FactorOutcome, SecondFactor
from portal.model.text import N_
from portal.policy.second_factor import Offer
from portal.web.auth.session import Sessions, method_name
from portal.web.console import HOME, SECOND_FACTOR, Console, StaffSession
from portal.web.pages import Pages
from portal.web.request import Request

_WRONG = N_("This code is not valid. Enter the code that the app shows now; each code works once.")
_RESULTS = {
    "changed": N_(
        "Nothing was changed: the second factor is new already. If you have no recovery codes, create new ones."
    ),
    "recovered": N_("This recovery code is used up. If you lost your phone, set up the app again."),
}


class SecondFactorPages:
    """`/admin/second-factor`."""

    def __init__(self, pages: Pages, console: Console, sessions: Sessions) -> None:
        self._pages = pages
        self._console = console
        self._sessions = sessions
        self._staff = pages.parts.staff
        self._stored = pages.parts.store.second_factors
        self._factors = pages.parts.second_factors

    def show(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """GET /admin/second-factor: what the person can do now. ``?new``: a form to set it up again."""
        factor = self._stored.get(staff.member.person)
        if factor is None or not factor.has_app or request.query("new"):
            self._console.check_fresh(request, staff, SECOND_FACTOR)
        if factor is not None and not staff.session.factor_given:
            return self._code_page(request, staff)
        proofs = self._proofs(staff, factor)
        if proofs:
            return self._proof_page(request, staff, proofs)
        if factor is None or not factor.has_app or request.query("new"):
            return self._offer_page(request, staff, factor)
        return self._page(request, staff, factor)

    def act(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """POST /admin/second-factor."""
        act = request.form("act")
        if act == "give":
            return self._give(request, staff)
        factor = self._stored.get(staff.member.person)
        if factor is not None and not staff.session.factor_given:
            return self._code_page(request, staff, 403)
        self._console.check_fresh(request, staff, SECOND_FACTOR)
        proofs = self._proofs(staff, factor)
        if proofs:
            return self._proof_page(request, staff, proofs, 403)
        try:
            if act == "set-up":
                return self._set_up(request, staff, factor)
            codes = self._factors.renew_recovery_codes(
                staff.member.person, staff.session.sha256, request.form("replaces"), staff.actor
            )
        except AlreadyDone:
            # Not a page of its own status: the session may have changed as well, as by a form that was sent twice.
            return self._pages.see_other(f"{SECOND_FACTOR}?done=changed")
        return self._page(request, staff, self._stored.get(staff.member.person), codes=codes)

    def _give(self, request: Request, staff: StaffSession) -> HTTPResponse:
        factor = self._stored.get(staff.member.person)
        if factor is not None and not factor.has_app:  # a set-up code is used up only where the set-up can follow
            self._console.check_fresh(request, staff, SECOND_FACTOR)
        answer = self._factors.check(
            staff.member.person,
            staff.session.sha256,
            request.form("code"),
            request.form("recovery"),
            staff.actor,
        )
        match answer.outcome:
            case FactorOutcome.WRONG:
                return self._code_page(request, staff, 403, _WRONG)
            case FactorOutcome.UNUSABLE:
                return self._code_page(request, staff, 403)
            case FactorOutcome.LOCKED | FactorOutcome.LIMITED:
                return self._code_page(request, staff, 429, until=answer.until)
            case FactorOutcome.RIGHT:
                response = self._pages.see_other(self._next_page(request, staff))
            case FactorOutcome.RECOVERED:
                response = self._pages.see_other(f"{SECOND_FACTOR}?done=recovered")
            case FactorOutcome.MISSING:  # it was reset since the form was opened
                return self._pages.see_other(SECOND_FACTOR)
        return self._sessions.without_destination(response)

    def _set_up(self, request: Request, staff: StaffSession, factor: SecondFactor | None) -> HTTPResponse:
        """Set up the secret of the form. Raises AlreadyDone."""
        person = staff.member.person
        offer = self._offer(request, staff, _salt(request.form("salt")))
        codes = self._factors.set_up(
            person, staff.session.sha256, offer.salt, request.form("code"), request.form("replaces"), staff.actor
        )
        if not codes:
            return self._offer_page(request, staff, factor, 403, offer)
        return self._page(request, staff, self._stored.get(person), codes=codes)

    def _proofs(self, staff: StaffSession, factor: SecondFactor | None) -> Collection[str]:
        """Return the sign-in methods of which the person must use one before they set up their first factor."""
        return self._staff.proofs(staff.member.person, staff.session.method) if factor is None else ()

    # ---- pages

    def _proof_page(
        self, request: Request, staff: StaffSession, methods: Collection[str], status: int = 200
    ) -> HTTPResponse:
        """Return the page that says how to sign in to set up a factor. ``methods``: names of `Method`."""
        oidc = self._pages.parts.settings.oidc
        ways = []
        for name in sorted({*methods} - {"proxy"}):  # whose sessions are never fresh, as a set-up wants them
            provider = name.removeprefix("oidc:")
            title = (oidc[provider].title or provider) if name.startswith("oidc:") else method_name(name)
            path = f"/sign-in/oidc/{provider}" if name.startswith("oidc:") else "/sign-in"
            ways.append((path, title))
        return self._console.page(request, staff, "second-factor-proof", status, ways=ways)

    def _offer(self, request: Request, staff: StaffSession, salt: bytes | None = None) -> Offer:
        site = request.policy.brand.name or request.language.gettext("Mail quarantine")
        return self._factors.offer(staff.member.person, site, salt)

    def _offer_page(
        self,
        request: Request,
        staff: StaffSession,
        factor: SecondFactor | None,
        status: int = 200,
        wrong: Offer | None = None,
    ) -> HTTPResponse:
        """Return the form with a new secret, or with the one of the form whose code was wrong."""
        offer = wrong or self._offer(request, staff)
        return self._console.page(
            request,
            staff,
            "second-factor-new",
            status,
            secret=[offer.secret[start : start + 4] for start in range(0, len(offer.secret), 4)],
            url=offer.url,
            picture=_picture(offer.url),
            salt=offer.salt.hex(),
            replaces=factor.version if factor else "",
            problem=_WRONG if wrong else "",
        )

    def _code_page(
        self,
        request: Request,
        staff: StaffSession,
        status: int = 200,
        problem: str = "",
        until: datetime | None = None,
    ) -> HTTPResponse:
        """Return the form for a code. ``until``: until then no code of the app is compared."""
        factor, viewer = self._stored.get(staff.member.person), self._pages.viewer(request, staff.member.person)
        if factor is None:  # it was reset at this moment
            return self._pages.see_other(SECOND_FACTOR)
        is_lost = factor.has_app and not self._factors.is_usable(factor)
        return self._console.page(
            request,
            staff,
            "second-factor-code",
            status,
            problem=problem,
            until=viewer.language.moment(until, viewer.zone) if until else "",
            has_app=factor.has_app,
            is_lost=is_lost,
            is_recovery=bool(request.form("recovery") or until) or is_lost,
        )

    def _page(
        self,
        request: Request,
        staff: StaffSession,
        factor: SecondFactor | None,
        *,
        codes: tuple[str, ...] = (),
    ) -> HTTPResponse:
        """Return the page for a session in which the factor was given. ``codes``: new ones, shown this once."""
        if factor is None:  # it was reset at this moment
            return self._pages.see_other(SECOND_FACTOR)
        viewer = self._pages.viewer(request, staff.member.person)
        return self._console.page(
            request,
            staff,
            "second-factor",
            result=_RESULTS.get(request.query("done"), ""),
            codes=codes,
            set_up_at=viewer.language.moment(factor.created_at, viewer.zone),
            left=len(factor.recovery),
            version=factor.version,
            next_page=self._next_page(request, staff),
        )

    def _next_page(self, request: Request, staff: StaffSession) -> str:
        return self._sessions.destination(request, staff.member.person) or HOME


def _salt(text: str) -> bytes | None:
    """Return the salt in a form, None if it is not one."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        return None


def _picture(url: str) -> Markup:
    """Return a QR code as an SVG element, which the policy of the pages permits (no data: URL, no style)."""
    code = segno.make(url, micro=False, error="m")
    return Markup(code.svg_inline(omitsize=True, light="#fff", dark="#000", svgclass=None, lineclass=None))  # noqa: S704
