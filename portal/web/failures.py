"""Error pages for expected errors, for unexpected errors and for requests that Bottle rejects."""

from __future__ import annotations

import logging

from bottle import HTTPError, HTTPResponse

from portal.model.errors import (
    BodyDamaged,
    BodyMissing,
    LinkExpired,
    LinkInvalid,
    NotAllowed,
    NotFound,
    StoreUnavailable,
    StoreUnusable,
)
from portal.model.text import N_
from portal.web.pages import Pages
from portal.web.request import Request

log = logging.getLogger("quarantine.web")

_INTERNAL_ERROR = N_("Something went wrong")
_HTTP_ERRORS = {
    400: (N_("That did not arrive whole"), N_("The request could not be understood. Go back and try again.")),
    404: (N_("Nothing here"), N_("There is no such page. Your held mail is on the start page.")),
    405: (N_("Not like this"), N_("This address does not take such a request. Start again from the start page.")),
    413: (N_("Too much"), N_("The form was larger than any of ours. Go back and try again.")),
    416: (N_("That did not arrive whole"), N_("The request could not be understood. Go back and try again.")),
}


def error_page(pages: Pages, request: Request, rule: str, error: Exception) -> HTTPResponse:
    """Return the page for an exception of a handler. Log it here, once, if an operator must know of it.

    ``rule``: the handler's route, which is logged instead of the path, since the path contains tokens.
    """
    response = _expected_error_page(pages, request, error)
    if response is None:
        log.error("request failed %s %s", request.method, rule, exc_info=error)
        return pages.notice(
            request,
            _INTERNAL_ERROR,
            N_(
                "This is our fault, and it was noted. No mail is lost. Please try again; if it stays, tell "
                "your administrator when it happened."
            ),
            500,
        )
    if isinstance(error, StoreUnavailable | StoreUnusable):
        log.error("store unavailable at %s %s: %s", request.method, rule, error)
    return response


def _expected_error_page(pages: Pages, request: Request, error: Exception) -> HTTPResponse | None:
    """Return the page for an expected error. None: the error is a bug."""
    match error:
        case LinkExpired():
            return pages.notice(
                request,
                N_("This link is too old"),
                N_("Links in a mail work for a limited time. Sign in to see what is held for you."),
                410,
                sign_in=True,
            )
        case BodyMissing() | BodyDamaged():
            return pages.notice(
                request,
                N_("This mail is no longer here"),
                N_("It was removed from the quarantine meanwhile. Ask its sender to send it again."),
                410,
            )
        case LinkInvalid() | NotFound():
            # One page for both, so that the existence of another recipient's mail is not disclosed.
            return pages.notice(
                request,
                N_("This does not work (any more)"),
                N_(
                    "The link may have been cut by a mail program or revoked, or the mail is no longer kept. Sign in "
                    "to see what is held for you."
                ),
                404,
                sign_in=True,
            )
        case NotAllowed():
            return pages.notice(
                request,
                N_("Only an administrator can do that"),
                N_("This mail may do harm. Its page has a button to ask your administrator for it."),
                403,
            )
        case StoreUnavailable() | StoreUnusable():  # StoreUnusable: the database was damaged at run time
            return pages.notice(
                request,
                N_("Please try again soon"),
                N_("The quarantine cannot be reached at the moment. No mail is lost. Wait a minute, then try again."),
                503,
                Retry_After="60",
            )
        case _:
            return None


def http_error_page(pages: Pages, request: Request, error: HTTPError) -> HTTPResponse:
    """Return the page for a request that Bottle rejects, or that failed outside of a handler."""
    if error.status_code not in _HTTP_ERRORS:
        log.error("request failed: %s", error.status_line, exc_info=error.exception)
    title, text = _HTTP_ERRORS.get(
        error.status_code, (_INTERNAL_ERROR, N_("This is our fault, and it was noted. Please try again."))
    )
    response = pages.notice(request, title, text, error.status_code)
    if "Allow" in error.headers:
        response.set_header("Allow", error.headers["Allow"])
    return response
