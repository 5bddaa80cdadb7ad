"""The web application: `create_app` and its routes in one list. The modules of this package have what they lead to.

    exporter  Rspamd's POST              inbox        a signed-in recipient's list and messages
    links     the links of a digest      preferences  when and how a recipient is told
    digest    several mails of a digest  auth/        signing in and out, one module for each method
    pages     what they all share        monitor      /healthz and /metrics

This package is the only user of bottle.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

from bottle import Bottle, HTTPError, HTTPResponse, request, static_file

from portal.assemble import Parts
from portal.model.errors import (
    BodyDamaged,
    BodyMissing,
    LinkExpired,
    LinkInvalid,
    NotAllowed,
    NotFound,
    StoreMisfit,
    StoreUnavailable,
)
from portal.model.text import N_
from portal.web.auth.mailed_link import SignInPages
from portal.web.exporter import ExporterEndpoint, is_export
from portal.web.inbox import PortalPages
from portal.web.links import LinkPages
from portal.web.monitor import Monitor
from portal.web.pages import Web, json_answer
from portal.web.preferences import PreferencePages

log = logging.getLogger("quarantine.web")

Environ = dict[str, Any]
StartResponse = Callable[..., Any]

_TOKEN = "<token:re:[A-Za-z0-9_.-]{1,200}>"  # noqa: S105  # the shape is checked where it is verified
_ID = "<id:re:[0-9a-f-]{36}(?:\\.[0-9]{1,5})?>"  # a message, or one of its deliveries


class Application:
    """A WSGI application (PEP 3333) below the path of ``public_url``. ``routes`` lists what it answers."""

    def __init__(self, web: Web, bottle: Bottle, export: ExporterEndpoint) -> None:
        self._web = web
        self._bottle = bottle
        self._export = export
        self.routes = bottle.routes

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request: take the mount point off the path, add the headers that every answer has."""
        mount, path = self._web.mount, environ.get("PATH_INFO", "")
        # Bottle passes over octets that are no UTF-8, so to it /%FF is /, and to Nginx's rules it is not.
        if not _is_utf8(path) or (mount and path != mount and not path.startswith(mount + "/")):
            headers = [("Content-Type", "text/plain; charset=utf-8"), *self._web.default_headers]
            start_response("404 Not Found", headers)
            return [f"There is nothing here. The quarantine is at {self._web.parts.settings.public_url}/\n".encode()]
        environ["SCRIPT_NAME"] = environ.get("SCRIPT_NAME", "") + mount
        environ["PATH_INFO"] = path[len(mount) :] or "/"

        if environ["PATH_INFO"] == "/" and environ["REQUEST_METHOD"] == "POST":
            # Past Bottle, whose request and response would be a tenth of the work of holding a mail.
            done = self._export(environ)
            start_response(done.status_line, [*done.headers, *self._web.default_headers])
            return [done.body]

        def with_headers(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            there = {name.lower() for name, _ in headers}
            headers.extend(pair for pair in self._web.default_headers if pair[0].lower() not in there)
            return start_response(status, headers, *exc_info)

        answer: Iterable[bytes] = self._bottle(environ, with_headers)
        return answer


def _is_utf8(path: str) -> bool:
    try:
        path.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return False
    return True


def create_app(parts: Parts) -> Application:
    """The WSGI application of these parts."""
    web = Web(parts)
    preferences = PreferencePages(web)
    export, links = ExporterEndpoint(parts), LinkPages(web, preferences)
    portal, signing_in, monitor = PortalPages(web, preferences), SignInPages(web), Monitor(parts)

    def exported() -> HTTPResponse:
        done = export(request.environ)
        return HTTPResponse(done.body, done.status, dict(done.headers))

    def root() -> HTTPResponse:
        return exported() if is_export(request.environ) else portal.list()

    def file(name: str) -> HTTPResponse:
        folders = [folder / "web" / "static" for folder in parts.render.folders]
        ours, found = folders[-1], next((f for f in folders if (f / name).is_file()), folders[-1])
        answer = static_file(name, root=found)
        # Addresses of ours carry the version; a site may change its own at any time.
        answer.set_header("Cache-Control", f"public, max-age={86400 if found is ours else 600}")
        return answer

    app = Bottle()
    app.default_error_handler = lambda error: _bottle_error(web, error)
    app.install(lambda callback: _guarded(web, callback))

    app.route("/", "POST", exported)  # so that it is known: `Application` comes before
    app.route("/", "GET", root)

    app.route(f"/link/{_TOKEN}/", "GET", links.show)
    app.route(f"/link/{_TOKEN}/", "POST", links.act)

    app.route("/sign-in", "GET", signing_in.form)
    app.route("/sign-in", "POST", signing_in.start)
    app.route("/sign-in/code", "GET", signing_in.code_form)
    app.route("/sign-in/code", "POST", signing_in.use_code)
    app.route(f"/sign-in/{_TOKEN}/", "GET", signing_in.show)
    app.route(f"/sign-in/{_TOKEN}/", "POST", signing_in.use)
    app.route("/sign-out", "POST", signing_in.sign_out)

    app.route(f"/messages/{_ID}/", "GET", portal.message)
    app.route(f"/messages/{_ID}/<act:re:release|delete|restore|ask>", "POST", portal.act)
    app.route("/preferences", "GET", portal.preferences)
    app.route("/preferences", "POST", portal.change_preferences)

    # Mail programs cut the last slash off.
    app.route(
        "/<path:re:(?:link|sign-in|messages)/[A-Za-z0-9_.-]{1,200}>", "GET", lambda path: web.see_other(f"/{path}/")
    )

    app.route("/healthz", "GET", monitor.health)
    app.route("/metrics", "GET", monitor.metrics)
    app.route("/static/<name:re:[a-z]+\\.[a-z]+>", "GET", file)
    return Application(web, app, export)


def _guarded(web: Web, callback: Callable[..., HTTPResponse]) -> Callable[..., HTTPResponse]:
    """A route whose failures become pages; what nobody foresaw is logged here, once, with its traceback."""

    @wraps(callback, updated=())
    def guarded(*args: Any, **kwargs: Any) -> HTTPResponse:
        try:
            return callback(*args, **kwargs)
        except HTTPResponse:
            raise
        except Exception as error:
            answer = _failure(web, error)
            if answer is None:
                log.exception("failed %s %s", request.method, request.route.rule)
                answer = web.notice(
                    N_("Something went wrong"),
                    N_(
                        "This is our fault, and it was noted. No mail is lost. Please try again; if it stays, tell "
                        "your administrator when it happened."
                    ),
                    500,
                )
            elif isinstance(error, StoreUnavailable | StoreMisfit):
                log.error("store unavailable at %s %s: %s", request.method, request.route.rule, error)
            return answer

    return guarded


def _failure(web: Web, error: Exception) -> HTTPResponse | None:
    """The page for a failure with a meaning; None when it is a fault of ours."""
    match error:
        case LinkExpired():
            return web.notice(
                N_("This link is too old"),
                N_("Links in a mail work for a limited time. Sign in to see what is held for you."),
                410,
                sign_in=True,
            )
        case BodyMissing() | BodyDamaged():
            return web.notice(
                N_("This mail is no longer here"),
                N_("It was removed from the quarantine meanwhile. Ask its sender to send it again."),
                410,
            )
        case LinkInvalid() | NotFound():
            # One page for both: whether a mail exists is nobody's business.
            return web.notice(
                N_("This does not work (any more)"),
                N_(
                    "The link may have been cut by a mail program or revoked, or the mail is no longer kept. Sign in "
                    "to see what is held for you."
                ),
                404,
                sign_in=True,
            )
        case NotAllowed():
            return web.notice(
                N_("Only an administrator can do that"),
                N_("This mail may do harm. Its page has a button to ask your administrator for it."),
                403,
            )
        case StoreUnavailable() | StoreMisfit():  # the latter: its database was damaged while we run
            return web.notice(
                N_("Please try again soon"),
                N_("The quarantine cannot be reached at the moment. No mail is lost. Wait a minute, then try again."),
                503,
                Retry_After="60",
            )
        case _:
            return None


_BOTTLE_ERRORS = {
    400: (N_("That did not arrive whole"), N_("The request could not be understood. Go back and try again.")),
    404: (N_("Nothing here"), N_("There is no such page. Your held mail is on the start page.")),
    405: (N_("Not like this"), N_("This address does not take such a request. Start again from the start page.")),
    413: (N_("Too much"), N_("The form was larger than any of ours. Go back and try again.")),
    416: (N_("That did not arrive whole"), N_("The request could not be understood. Go back and try again.")),
}


def _bottle_error(web: Web, error: HTTPError) -> HTTPResponse:
    """The page for what Bottle itself refuses, and for failures outside of the routes."""
    if error.status_code not in _BOTTLE_ERRORS:
        log.error("answered %s", error.status_line, exc_info=error.exception)
    title, text = _BOTTLE_ERRORS.get(
        error.status_code, (N_("Something went wrong"), N_("This is our fault, and it was noted. Please try again."))
    )
    if request.method == "POST" and request.path == "/":
        return json_answer(error.status_code, {"error": text})
    answer = web.notice(title, text, error.status_code)
    if "Allow" in error.headers:
        answer.set_header("Allow", error.headers["Allow"])
    return answer
