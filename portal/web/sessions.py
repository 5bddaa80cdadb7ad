"""The page of a recipient's sessions: where they are signed in, and the buttons that end sessions.

It is reached after signing in only: a digest may have been forwarded, so its links neither show nor end sessions.
"""

from __future__ import annotations

from dataclasses import dataclass

from bottle import HTTPResponse

from portal.model.domains import shown_address
from portal.model.text import N_
from portal.web.auth.session import Sessions, method_name
from portal.web.pages import Pages
from portal.web.request import Request

# The text after a change, by the query parameter `done`. Ending this browser's own session leads to the sign-in page.
_RESULT_TEXTS = {
    "ended": N_("That browser is signed out."),
    "others": N_("All other browsers are signed out."),
}


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session as the page lists it."""

    name: str  # in forms
    client: str  # "" if unknown
    method: str  # to be translated
    started: str
    used: str
    is_this: bool  # it shows the page


class SessionPages:
    """`/sessions`."""

    def __init__(self, pages: Pages, sessions: Sessions) -> None:
        self._pages = pages
        self._sessions = sessions

    def show(self, request: Request) -> HTTPResponse:
        """GET /sessions: list the sessions, this one first."""
        session = self._sessions.of(request)
        viewer = self._pages.viewer(request, session.recipient)
        language, zone = viewer.language, viewer.zone
        rows = [
            SessionRow(
                name=each.session_sha256.hex(),
                client=each.client,
                method=method_name(each.method),
                started=language.moment(each.started_at, zone),
                used=language.moment(each.used_at, zone),
                is_this=each.session_sha256 == session.sha256,
            )
            for each in self._sessions.all_of(session)
        ]
        return self._pages.page(
            request,
            "sessions",
            signed_in=shown_address(session.recipient),
            form_token=session.form_token,
            result=_RESULT_TEXTS.get(request.query("done"), ""),
            rows=sorted(rows, key=lambda row: not row.is_this),
        )

    def end(self, request: Request) -> HTTPResponse:
        """POST /sessions: end one session, all others or all, then redirect (303) to the page with the result."""
        session = self._sessions.of_form(request, "/sessions")
        match request.form("end"):
            case "one":
                if self._sessions.end(request, session, request.form("session")):
                    return self._signed_out()
                return self._pages.see_other("/sessions?done=ended")
            case "others":
                self._sessions.end_others(request, session)
                return self._pages.see_other("/sessions?done=others")
            case "all":
                self._sessions.end_all(request, session.recipient)
                return self._signed_out()
        raise self._pages.notice(request, N_("No action selected"), N_("Go back and press one of the buttons."), 400)

    def _signed_out(self) -> HTTPResponse:
        return self._sessions.signed_out(self._pages.see_other("/sign-in"))
