"""The frame of all routes of the API: who may call them, how requests are read, and how answers are written.

Each request passes these checks in this order, before its handler is called:

1. The client is in `staff.networks`. Others get 404, as for an address that does not exist.
2. The request has a valid token in its Authorization header (RFC 6750), else 401. Cookies and tokens in the address
   have no effect, so a page elsewhere cannot make a browser send a request that is accepted.
3. The token has not sent too many requests, else 429.
4. The token has the permission of the route for one domain at least, else 403. The handler checks the domain.
5. The model of the route accepts the query and the body, else 422.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import parse_qsl
from uuid import UUID, uuid4, uuid5

from bottle import HTTPError, HTTPResponse
from pydantic import ValidationError

from portal.web.api.jobs import JobRoutes
from portal.web.api.limits import RequestLimit
from portal.web.api.messages import MessageRoutes
from portal.web.api.pages import ApiPages
from portal.web.api.problems import NOTHING_HERE, FieldProblem, invalid, of_bottle, of_error, of_validation, problem
from portal.web.api.recipients import RecipientRoutes
from portal.web.api.route import PREFIX, Caller, Model, Route
from portal.web.api.rules import RuleRoutes
from portal.web.api.search import SearchRoutes
from portal.web.api.statistics import StatisticsRoutes
from portal.web.auth.session import Sessions
from portal.web.pages import Pages
from portal.web.request import Request

REQUESTS_A_MINUTE = 300  # of one token, in one process
REFUSALS_A_MINUTE = 30  # of one client without a valid token, in one process
BODY_MAX = 64 * 1024  # as in the shipped Nginx file
_PAIRS_MAX = 200  # names and values in one address
_BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/=-]{1,200})", re.ASCII | re.IGNORECASE)  # RFC 6750, 2.1
_KEY = re.compile(r'"?([\x21\x23-\x7e]{1,255})"?', re.ASCII)


class Api:
    """The routes of `PREFIX`."""

    def __init__(self, pages: Pages, sessions: Sessions) -> None:
        self._pages = pages
        self._sessions = sessions
        self._store = pages.parts.store
        self._staff = pages.parts.staff
        self._requests, self._refusals = RequestLimit(REQUESTS_A_MINUTE), RequestLimit(REFUSALS_A_MINUTE)
        parts = (SearchRoutes, MessageRoutes, JobRoutes, RuleRoutes, RecipientRoutes, StatisticsRoutes)
        self.table: Sequence[Route] = [route for part in parts for route in part(pages).table()]

    def routes(self) -> Iterable[tuple[str, str, Any]]:
        """Yield method, rule and handler of all routes."""
        documents = ApiPages(self._pages, self._sessions, self.table)
        yield "GET", PREFIX, documents.with_slash
        yield "GET", f"{PREFIX}/", documents.show
        yield "GET", f"{PREFIX}/openapi.json", documents.document
        for route in self.table:
            yield route.method, route.rule, partial(self._call, route)

    @staticmethod
    def has(request: Request) -> bool:
        """Return whether a request is for the API, so that errors are written for programs."""
        return f"{request.path}/".startswith("/api/")

    def rejected(self, request: Request, error: HTTPError) -> HTTPResponse:
        """Return the answer to a request that Bottle rejects."""
        return of_bottle(request, error) if self._sessions.is_staff_network(request) else problem(404, NOTHING_HERE)

    def _call(self, route: Route, request: Request, **names: str) -> HTTPResponse:
        try:
            return self._answer(route, request, names)
        except HTTPError as error:
            return of_bottle(request, error)
        except HTTPResponse as response:
            return response
        except Exception as error:
            return of_error(request, route.rule, error)

    def _answer(self, route: Route, request: Request, names: Mapping[str, str]) -> HTTPResponse:
        if not self._sessions.is_staff_network(request):
            return problem(404, NOTHING_HERE)
        caller = self._caller(request)
        if not self._staff.reach(caller.member, route.permission):
            detail = f"This token may not do this: it needs the permission {route.permission}. Use another token."
            return problem(403, detail, WWW_Authenticate='Bearer error="insufficient_scope"')
        given: dict[str, Any] = dict(names)
        query, body = _query(route.query, request.query_string), b""
        if query is not None:
            given["query"] = query
        if route.body is not None:
            body = _content(request)
            given["body"] = _parsed(route.body, body)
        if not route.is_act or not request.has_header("Idempotency-Key"):
            return _json(_encoded(route.handler(caller, **given)))
        key = _key(request.header("Idempotency-Key"))
        content = f"{request.path}?{request.query_string} ".encode() + body
        caller = replace(caller, request=uuid5(caller.token, f"{key} {hashlib.sha256(content).hexdigest()}"))
        return self._once(caller.token, key, content, partial(route.handler, caller, **given))

    # ---- who calls

    def _caller(self, request: Request) -> Caller:
        """Return the token of a request, with its rights. Raises 401, 429."""
        found = _BEARER.fullmatch(request.header("Authorization").strip())
        member = self._pages.parts.tokens.member(found[1], self._pages.now()) if found else None
        if member is None or member.token is None:
            self._check(self._refusals, request.peer)
            raise problem(
                401,
                "A valid token is required, in the header Authorization: Bearer TOKEN. It may be wrong, expired or "
                "revoked, or its owner may have lost the role: create another one.",
                WWW_Authenticate='Bearer error="invalid_token"' if found else "Bearer",
            )
        self._check(self._requests, str(member.token.id))
        return Caller(member, member.acting_from(request.peer), member.token.id, uuid4())

    def _check(self, limit: RequestLimit, name: str) -> None:
        seconds = limit.wait_seconds(name)
        if seconds:
            detail = f"Too many requests. Wait {seconds} seconds, then send fewer."
            raise problem(429, detail, Retry_After=str(seconds))

    # ---- requests that are sent again

    def _once(self, token: UUID, key: str, request: bytes, answer: Callable[[], Model]) -> HTTPResponse:
        """Answer a request with an idempotency key (draft-ietf-httpapi-idempotency-key-header-07): a repetition gets
        the first answer again, and has no effect."""
        key_sha256 = hashlib.sha256(f"{token} {key}".encode()).digest()
        keys, now = self._store.idempotency, self._pages.now()
        kept = keys.begin(key_sha256, hashlib.sha256(request).digest(), now)
        if kept is not None:
            return _json(kept)
        try:
            content = _encoded(answer())
        except BaseException:
            keys.forget(key_sha256, now)
            raise
        keys.finish(key_sha256, now, content)
        return _json(content)


def _key(header: str) -> str:
    """Return the key of an Idempotency-Key header. Raises 422."""
    match = _KEY.fullmatch(header.strip())
    if match is None:
        detail = "Use at most 255 visible ASCII characters, like a UUID."
        raise invalid(FieldProblem(name="Idempotency-Key", detail=detail))
    return match[1]


def _query(model: type[Model] | None, query_string: str) -> Model | None:
    """Return the query, None for a route without one. Raises 422."""
    try:
        pairs = parse_qsl(query_string, keep_blank_values=True, max_num_fields=_PAIRS_MAX, errors="strict")
    except ValueError as error:  # also of UTF-8
        detail = f"Use at most {_PAIRS_MAX} names and values, in UTF-8."
        raise invalid(FieldProblem(name="query", detail=detail)) from error
    if model is None:
        if pairs:
            raise invalid(*(FieldProblem(name=name, detail="This address takes no query.") for name, _ in pairs[:1]))
        return None
    typed: dict[str, Any] = {}
    for name, value in pairs:
        typed.setdefault(name, []).append(value)
    fields = {each.alias or name: each for name, each in model.model_fields.items()}
    for name, values in typed.items():
        if name not in fields or not _is_list(fields[name].annotation):
            if len(values) > 1:
                raise invalid(FieldProblem(name=name, detail="Give it once."))
            typed[name] = values[0]
    return _parsed(model, typed)


def _is_list(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) is list


def _content(request: Request) -> bytes:
    content = request.content(BODY_MAX)
    if request.content_type != "application/json":
        raise problem(415, "Send the body as JSON, with the header Content-Type: application/json.")
    return content


def _parsed(model: type[Model], given: bytes | Mapping[str, Any]) -> Model:
    try:
        if isinstance(given, bytes):
            return model.model_validate_json(given, strict=True)
        return model.model_validate(given)
    except ValidationError as error:
        raise of_validation(error) from error


def _encoded(answer: Model) -> bytes:
    return answer.model_dump_json(by_alias=True).encode() + b"\n"


def _json(content: bytes) -> HTTPResponse:
    return HTTPResponse(content, 200, {"Content-Type": "application/json"})
