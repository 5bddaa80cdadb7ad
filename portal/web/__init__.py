"""The web application: `create_app` with the list of all routes. The modules of this package contain the handlers.

    exporter  Rspamd's POST              inbox        a signed-in recipient's list
    links     the links of a digest      message      one message of the list
    digest    bulk actions of a digest   preferences  schedule, time zone and language of a recipient's digests
    monitor   /healthz and /metrics      auth/        the session, and one module for each sign-in method
    request   one request                neighbours   the previous and the next message
    pages     responses, and the checks that every form passes
    rows      view models                failures     error pages
    rules     allowed and blocked senders
    formatted the frame with a message as its sender formatted it
    views     how the content of a message is shown
    acts      actions on one message
    help_desk questions about a message
    downloads messages and attachments as files
    selection actions on several messages
    sessions  where a recipient is signed in
    preview   the recipient's next digest
    console   who may use /admin/, the pages of staff
    console_search  search over all messages
    console_message one message for staff
    console_acts    what staff do with it
    console_requests  the queue of release requests
    recipients  the page of one recipient, for staff
    recipient_list  what staff change for many recipients
    mass_acts   what staff do to all messages that a search finds
    forgetting  the page on which staff forget a recipient who left
    domains   values of domains, for staff
    staff     roles of staff
    tokens    API tokens of staff
    second_factor  the second factor of staff
    preload   the modules of the workers, imported before the fork
    static    style sheets, scripts and pictures
    api/      the API for programs
    repair    addresses followed by more characters, which are redirected

A handler takes a `Request` and the named parts of its route, and returns or raises an HTTPResponse. Only this package
imports bottle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any

from bottle import Bottle, HTTPError, HTTPResponse
from bottle import request as current

from portal.assemble import Parts
from portal.mail.languages import negotiated
from portal.model.log_lines import begin_request
from portal.passwords import password_servers
from portal.policy.staff import Permission
from portal.stores.durations import Measured, observe
from portal.web import failures
from portal.web.acts import MessageActs
from portal.web.api import Api
from portal.web.audit import AuditPages
from portal.web.auth.identity import Arrivals
from portal.web.auth.mailed_link import MailedLinks
from portal.web.auth.oidc import OidcSignIn
from portal.web.auth.page import SignInPage
from portal.web.auth.password import PasswordSignIn
from portal.web.auth.proxy import ProxySignIn
from portal.web.auth.session import Sessions
from portal.web.console import SECOND_FACTOR, Console
from portal.web.console_acts import ConsoleActs
from portal.web.console_message import ConsoleMessage
from portal.web.console_requests import ConsoleRequests
from portal.web.console_search import ConsoleSearch
from portal.web.domains import DomainPages
from portal.web.downloads import DownloadPages
from portal.web.exporter import ExporterEndpoint, is_export
from portal.web.forgetting import ForgetPages
from portal.web.formatted import FormattedMessages
from portal.web.inbox import Inbox
from portal.web.links import LinkPages
from portal.web.mass_acts import MassActPages
from portal.web.message import MessagePages
from portal.web.monitor import Monitor
from portal.web.neighbours import Neighbours
from portal.web.pages import Pages
from portal.web.preferences import PreferencePages
from portal.web.preview import DigestPreview
from portal.web.recipient_list import RecipientListPages
from portal.web.recipients import RecipientPages
from portal.web.repair import repaired
from portal.web.request import Environ, Request
from portal.web.rules import RulePages
from portal.web.second_factor import SecondFactorPages
from portal.web.selected_senders import SelectedSenders
from portal.web.selection import Selections
from portal.web.sessions import SessionPages
from portal.web.site import Site
from portal.web.staff import StaffPages
from portal.web.statistics import StatisticsPages
from portal.web.tokens import TokenPages

StartResponse = Callable[..., Any]
Handler = Callable[..., HTTPResponse]  # takes a Request and, as keywords, the named parts of the route
Route = tuple[str, str, Handler]  # method, rule of Bottle, handler

_TOKEN = "<token:re:[A-Za-z0-9_.-]{1,200}>"  # noqa: S105  # a pattern; the handler verifies the token
_ID = "<id:re:[0-9a-f-]{36}(?:\\.[0-9]{1,5})?>"  # a message id, or the id and number of a delivery
_ADMIN_MESSAGE = f"/admin/messages/{_ID}/"
_VIEW = "<view:re:text|formatted|headers|source>"
_WAY = "<way:re:previous|next>"
_PROVIDER = "<name:re:[a-z0-9-]{1,32}>"
_BATCH = "<id:re:[0-9a-f-]{36}>"
_ADMIN_JOB = f"/admin/jobs/{_BATCH}/"


class Application:
    """The WSGI application (PEP 3333) mounted at the path of ``public_url``: the exporter's endpoint, and the pages."""

    def __init__(self, pages: Pages, export: ExporterEndpoint, bottle: Bottle) -> None:
        self._pages = pages
        self._export = export
        self._bottle = bottle
        self.routes = [("POST", "/"), *((route.method, route.rule) for route in bottle.routes)]

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request. Strip the mount point from the path and add the default headers to the response."""
        begin_request(environ.get("HTTP_X_REQUEST_ID", ""))
        mount, path = self._pages.site.mount, environ.get("PATH_INFO", "")
        # Bottle ignores octets that are not UTF-8 and treats /%FF as /. Nginx's rules do not match that path.
        known = _is_utf8(path)
        if known and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            meant = repaired(path, mount)
            if meant is not None:
                location = ("Location", self._pages.site.root + meant)
                start_response("303 See Other", [location, ("Content-Length", "0"), *self._pages.default_headers])
                return []
        if not known or (mount and path != mount and not path.startswith(mount + "/")):
            headers = [("Content-Type", "text/plain; charset=utf-8"), *self._pages.default_headers]
            start_response("404 Not Found", headers)
            url = self._pages.parts.domains.at_host(environ.get("HTTP_HOST", "")).public_url
            return [f"Not found. The quarantine is at {url}/\n".encode()]
        environ["SCRIPT_NAME"] = environ.get("SCRIPT_NAME", "") + mount
        environ["PATH_INFO"] = path[len(mount) :] or "/"

        def with_headers(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            present = {name.lower() for name, _ in headers}
            headers.extend(pair for pair in self._pages.default_headers if pair[0].lower() not in present)
            return start_response(status, headers, *exc_info)

        if environ["PATH_INFO"] == "/" and is_export(environ):
            return self._export(environ, with_headers)
        response: Iterable[bytes] = self._bottle(environ, with_headers)
        return response


def _is_utf8(path: str) -> bool:
    try:
        path.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return False
    return True


def create_app(parts: Parts, threads: int = 16) -> Application:
    """Return the WSGI application that uses these parts.

    ``threads``: the number of requests that the server answers at the same time in this process.
    """
    pages = Pages(parts, threads)
    sessions = Sessions(pages)
    mailed, messages, monitor = MailedLinks(pages, sessions), MessagePages(pages, sessions), Monitor(parts)
    sign_in_page = SignInPage(pages, sessions)
    formatted, downloads = FormattedMessages(pages, sessions, messages), DownloadPages(pages, sessions, messages)
    console, api = Console(pages, sessions), Api(pages, sessions)

    def with_slash(_: Request, path: str) -> HTTPResponse:
        return pages.see_other(f"/{path}/")

    def rejected(error: HTTPError) -> HTTPResponse:
        request = _request(pages)
        if api.has(request):
            return api.rejected(request, error)
        return failures.http_error_page(pages, request, error)

    app = Bottle()
    app.default_error_handler = rejected
    for method, rule, handler in (
        *_sign_in_routes(pages, sessions, mailed, sign_in_page, threads),
        *_message_routes(pages, sessions, messages, formatted, downloads),
        *_recipient_routes(pages, sessions, messages, mailed, sign_in_page),
        *_console_routes(pages, console, sessions, mailed),
        *_console_message_routes(pages, console, mailed, formatted, downloads),
        *api.routes(),
        # Some mail programs cut off the trailing slash of a link.
        ("GET", "/<path:re:(?:link|sign-in|messages|jobs)/[A-Za-z0-9_.-]{1,200}>", with_slash),
        ("GET", "/about", pages.about),
        ("GET", "/healthz", monitor.health),
        ("GET", "/metrics", monitor.metrics),
        ("GET", "/static/<name:re:[a-z]+\\.[a-z]+>", pages.static.send),
        ("GET", "/brand/<name:re:[0-9a-f]{16}\\.(?:css|png|webp)>", pages.brand_file),
    ):
        app.route(rule, method, _page_handler(pages, rule, handler))
    return Application(pages, ExporterEndpoint(parts, threads), app)


def _sign_in_routes(
    pages: Pages, sessions: Sessions, mailed: MailedLinks, page: SignInPage, threads: int
) -> Sequence[Route]:
    """Return the routes of all sign-in methods, and those of sessions."""
    arrivals = Arrivals(pages, sessions)
    passwords = PasswordSignIn(pages, page, arrivals, password_servers(pages.parts.settings))
    oidc, signed_in = OidcSignIn(pages, arrivals, page, threads), SessionPages(pages, sessions)
    return (
        ("GET", "/sign-in", page.show),
        ("POST", "/sign-in", mailed.start),
        ("GET", "/sign-in/password", passwords.form),
        ("POST", "/sign-in/password", passwords.sign_in),
        ("GET", "/sign-in/proxy", ProxySignIn(pages, arrivals).sign_in),
        ("GET", f"/sign-in/oidc/{_PROVIDER}", oidc.start),
        ("GET", f"/sign-in/oidc/{_PROVIDER}/callback", oidc.finish),
        ("GET", f"/oidc/{_PROVIDER}/sign-out", oidc.leave),
        ("POST", f"/oidc/{_PROVIDER}/logout", oidc.end_sessions),
        ("GET", "/sign-in/code", mailed.code_form),
        ("POST", "/sign-in/code", mailed.use_code),
        ("GET", f"/sign-in/{_TOKEN}/", mailed.show),
        ("POST", f"/sign-in/{_TOKEN}/", mailed.use),
        ("POST", "/sign-out", sessions.sign_out),
        ("GET", "/sessions", signed_in.show),
        ("POST", "/sessions", signed_in.end),
    )


def _message_routes(
    pages: Pages, sessions: Sessions, messages: MessagePages, formatted: FormattedMessages, downloads: DownloadPages
) -> Sequence[Route]:
    """Return the routes of one message of a recipient."""
    acts, neighbours = MessageActs(pages, sessions, messages), Neighbours(pages, sessions, messages)
    return (
        ("GET", f"/messages/{_ID}/", messages.show),
        ("GET", f"/messages/{_ID}/<view:re:formatted|headers|source>", messages.show),
        ("GET", f"/messages/{_ID}/html", formatted.show),
        ("POST", f"/messages/{_ID}/<act:re:release|again|delete|spam|restore|unblock|ask|withdraw>", acts.act),
        ("POST", f"/messages/{_ID}/<act:re:release-allow|delete-block|question>", acts.act),
        ("GET", f"/messages/{_ID}/{_WAY}", neighbours.go),
        ("GET", f"/messages/{_ID}/download", downloads.form),
        ("POST", f"/messages/{_ID}/download", downloads.send),
    )


def _recipient_routes(
    pages: Pages, sessions: Sessions, messages: MessagePages, mailed: MailedLinks, sign_in_page: SignInPage
) -> Sequence[Route]:
    """Return the routes of a recipient's list, links, rules and preferences."""
    preferences, digest = PreferencePages(pages, sessions), DigestPreview(pages, sessions)
    senders, rules = SelectedSenders(pages, sessions), RulePages(pages, sessions, messages)
    selections = Selections(pages, sessions, senders)
    links = LinkPages(pages, preferences, sessions, mailed, sign_in_page)
    return (
        ("GET", "/", Inbox(pages, sessions).list),
        ("GET", f"/link/{_TOKEN}/", links.show),
        ("POST", f"/link/{_TOKEN}/", links.act),
        ("POST", "/messages", selections.act),
        ("GET", f"/jobs/{_BATCH}/", selections.show),
        ("GET", f"/messages/{_ID}/sender", rules.sender),
        ("GET", "/rules", rules.list),
        ("POST", "/rules", rules.add),
        ("POST", "/rules/senders", senders.add),
        ("POST", "/rules/<rule:re:[0-9a-f-]{36}>/<change:re:remove|restore>", rules.act),
        ("GET", "/preferences", preferences.show),
        ("POST", "/preferences", preferences.act),
        ("GET", "/preferences/digest", digest.show),
        ("GET", "/preferences/digest/html", digest.frame),
    )


def _console_routes(pages: Pages, console: Console, sessions: Sessions, mailed: MailedLinks) -> Sequence[Route]:
    """Return the routes of the console, but for those of one message."""
    search, masses = ConsoleSearch(pages, console), MassActPages(pages, console)
    requests, forget = ConsoleRequests(pages, console), ForgetPages(pages, console)
    recipients, many = RecipientPages(pages, console, mailed), RecipientListPages(pages, console)
    domains, statistics = DomainPages(pages, console), StatisticsPages(pages, console)
    staff, tokens, audit = StaffPages(pages, console), TokenPages(pages, console), AuditPages(pages, console)
    factor, route = SecondFactorPages(pages, console, sessions), console.route
    see, manage, read_audit = Permission.SEE_ENVELOPE, Permission.MANAGE_RECIPIENTS, Permission.READ_AUDIT
    return (
        ("GET", "/admin", route(see, console.with_slash)),
        ("GET", "/admin/", route(see, search.show)),
        ("GET", "/admin/jobs/", route(see, masses.list)),
        ("POST", "/admin/jobs/", route(see, masses.start)),
        ("GET", "/admin/jobs/new", route(see, masses.ask)),
        ("GET", _ADMIN_JOB, route(see, masses.show, is_use=False)),
        ("POST", _ADMIN_JOB, route(see, masses.change, "/admin/jobs/")),
        ("GET", "/admin/requests", route(see, requests.show)),
        ("GET", "/admin/recipients", route(see, recipients.with_slash)),
        ("GET", "/admin/recipients/", route(see, recipients.show)),
        ("POST", "/admin/recipients/", route(Permission.SEND_LINK, recipients.act, "/admin/recipients/")),
        ("GET", "/admin/recipients/list", route(manage, many.show)),
        ("POST", "/admin/recipients/list", route(manage, many.act, "/admin/recipients/list")),
        ("POST", "/admin/recipients/list/export", route(manage, many.export, "/admin/recipients/list")),
        ("GET", "/admin/recipients/forget", route(manage, forget.show)),
        ("POST", "/admin/recipients/forget", route(manage, forget.forget)),
        ("GET", "/admin/domains", route(read_audit, domains.show)),
        ("POST", "/admin/domains", route(Permission.MANAGE_DOMAIN_POLICY, domains.change, "/admin/domains")),
        ("GET", "/admin/statistics", route(see, statistics.show)),
        ("POST", "/admin/statistics", route(see, statistics.choose, "/admin/statistics")),
        ("GET", "/admin/statistics/days.svg", route(see, statistics.chart_of_days)),
        ("GET", "/admin/statistics/tiers.svg", route(see, statistics.chart_of_tiers)),
        ("GET", "/admin/staff", route(read_audit, staff.show)),
        ("POST", "/admin/staff", route(Permission.MANAGE_STAFF, staff.change, "/admin/staff")),
        ("GET", "/admin/tokens", route(see, tokens.show)),
        ("POST", "/admin/tokens", route(see, tokens.change, "/admin/tokens")),
        ("GET", SECOND_FACTOR, route(see, factor.show, factor=False)),
        ("POST", SECOND_FACTOR, route(see, factor.act, SECOND_FACTOR, factor=False)),
        ("GET", "/admin/audit", route(read_audit, audit.show)),
        ("POST", "/admin/audit/export", route(read_audit, audit.export, "/admin/audit")),
    )


def _console_message_routes(
    pages: Pages, console: Console, mailed: MailedLinks, formatted: FormattedMessages, downloads: DownloadPages
) -> Sequence[Route]:
    """Return the routes of one message in the console."""
    message, route = ConsoleMessage(pages, console, formatted, downloads), console.route
    acts = ConsoleActs(pages, console, message, mailed)
    return (
        ("GET", _ADMIN_MESSAGE, route(Permission.SEE_ENVELOPE, message.show)),
        ("POST", _ADMIN_MESSAGE, route(Permission.SEE_ENVELOPE, acts.act)),
        ("GET", f"{_ADMIN_MESSAGE}similar", route(Permission.SEE_ENVELOPE, message.similar)),
        ("GET", f"{_ADMIN_MESSAGE}{_WAY}", route(Permission.SEE_ENVELOPE, message.go)),
        ("GET", f"{_ADMIN_MESSAGE}{_VIEW}", route(Permission.SEE_BODY, message.read)),
        ("GET", f"{_ADMIN_MESSAGE}html", route(Permission.SEE_BODY, message.frame)),
        ("GET", f"{_ADMIN_MESSAGE}download", route(Permission.SEE_BODY, message.ask_download)),
        ("POST", f"{_ADMIN_MESSAGE}download", route(Permission.SEE_BODY, message.download)),
    )


def _page_handler(pages: Pages, rule: str, handler: Handler) -> Handler:
    """Return Bottle's callback for a route. It calls the handler, turns errors into pages, and counts the duration."""
    path = "/" + rule.split("/")[1]
    label = "other" if "<" in path else path

    def callback(**named: str) -> HTTPResponse:
        began = monotonic()
        try:
            request = _request(pages)
            response = answer(request, named)
            for name in request.stale_cookies:
                pages.set_cookie(response, name, "", 0)
            return response
        finally:
            observe(pages.parts.store, Measured.PAGE, label, monotonic() - began)

    def answer(request: Request, named: dict[str, str]) -> HTTPResponse:
        try:
            return handler(request, **named)
        except HTTPError as error:
            return failures.http_error_page(pages, request, error)
        except HTTPResponse as response:
            return response
        except Exception as error:
            return failures.error_page(pages, request, rule, error)

    return callback


def _request(pages: Pages) -> Request:
    """Return the request of this thread. Only this function uses Bottle's thread-local request."""
    environ: Environ = current.environ
    parts = pages.parts
    policy = parts.domains.at_host(environ.get("HTTP_HOST", ""))
    tag = negotiated(environ.get("HTTP_ACCEPT_LANGUAGE", ""), policy.language)
    return Request(environ, Site.of(policy.public_url), policy, parts.render.language_for(tag))
