"""Error pages for expected errors, for unexpected errors and for requests that Bottle rejects."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from bottle import HTTPError, HTTPResponse

from portal.model.errors import (
    BodyDamaged,
    BodyMissing,
    Busy,
    LinkExpired,
    LinkInvalid,
    NotAllowed,
    NotFound,
    SignInInvalid,
    StoreUnavailable,
    StoreUnusable,
)
from portal.model.text import N_
from portal.web.pages import Pages
from portal.web.request import Request

log = logging.getLogger("quarantine.web")

_INTERNAL_ERROR = N_("Something went wrong")
_LOGGED = N_(
    "The error was logged, and no messages were lost. Try again; if it persists, report the time to your administrator."
)
_HTTP_ERRORS = {
    400: (N_("The request was incomplete"), N_("Go back and try again.")),
    404: (N_("Page not found"), N_("This page does not exist. Your held messages are on the start page.")),
    405: (N_("Method not allowed"), N_("Go back to the start page.")),
    413: (N_("Request too large"), N_("The form contains too much data. Go back and try again.")),
    416: (N_("The request was incomplete"), N_("Go back and try again.")),
}


def error_page(pages: Pages, request: Request, rule: str, error: Exception) -> HTTPResponse:
    """Return the page for an exception of a handler. Log it here, once, if an operator must know of it.

    ``rule``: the handler's route, which is logged instead of the path, since the path contains tokens.
    """
    response = _expected_error_page(pages, request, error)
    if response is None:
        log.error("request failed %s %s", request.method, rule, exc_info=error)
        return pages.notice(request, _INTERNAL_ERROR, _LOGGED, 500)
    if isinstance(error, StoreUnavailable | StoreUnusable):
        log.error("store unavailable at %s %s: %s", request.method, rule, error)
    return response


@dataclass(frozen=True, slots=True)
class _Page:
    """The page for some kinds of errors."""

    kinds: tuple[type[Exception], ...]
    title: str  # to be translated, as the text
    text: str
    status: int
    sign_in: bool = False
    retry_after: str = ""  # seconds


# The first one that fits. StoreUnusable: the database was damaged at run time.
_PAGES = (
    _Page(
        (LinkExpired,),
        N_("This link has expired"),
        N_("Links in messages are valid for a limited time. Sign in to see your held messages."),
        410,
        sign_in=True,
    ),
    _Page(
        (BodyMissing, BodyDamaged),
        N_("Message no longer available"),
        N_("It was removed from the quarantine. Ask the sender to send it again."),
        410,
    ),
    _Page(
        (SignInInvalid,),
        N_("This sign-in link is no longer valid"),
        N_("Each sign-in link works once, within 15 minutes. Request a new one."),
        404,
        sign_in=True,
    ),
    _Page(
        (
            LinkInvalid,
            NotFound,
        ),  # one page for both, so that the existence of another recipient's mail is not disclosed
        N_("Link or message not found"),
        N_("The link may be incomplete or revoked, or the message was removed. Sign in to see your held messages."),
        404,
        sign_in=True,
    ),
    _Page(
        (Busy,),
        N_("Too many messages are being opened"),
        N_("Wait a few seconds, then try again."),
        503,
        retry_after="5",
    ),
    _Page(
        (NotAllowed,),
        N_("Only an administrator can release this message"),
        N_("The message may be harmful. To ask your administrator, choose “Request release” on its page."),
        403,
    ),
    _Page(
        (StoreUnavailable, StoreUnusable),
        N_("Quarantine temporarily unavailable"),
        N_("No messages were lost. Wait a minute, then try again."),
        503,
        retry_after="60",
    ),
)


def _expected_error_page(pages: Pages, request: Request, error: Exception) -> HTTPResponse | None:
    """Return the page for an expected error. None: the error is a bug."""
    page = next((each for each in _PAGES if isinstance(error, each.kinds)), None)
    if page is None:
        return None
    headers = {"Retry_After": page.retry_after} if page.retry_after else {}
    return pages.notice(request, page.title, page.text, page.status, sign_in=page.sign_in, **headers)


def http_error_page(pages: Pages, request: Request, error: HTTPError) -> HTTPResponse:
    """Return the page for a request that Bottle rejects, or that failed outside of a handler."""
    if error.status_code not in _HTTP_ERRORS:
        log.error("request failed: %s", error.status_line, exc_info=error.exception)
    title, text = _HTTP_ERRORS.get(error.status_code, (_INTERNAL_ERROR, _LOGGED))
    response = pages.notice(request, title, text, error.status_code)
    if "Allow" in error.headers:
        response.set_header("Allow", error.headers["Allow"])
    return response
