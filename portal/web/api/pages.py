"""The OpenAPI document, and the page of documentation that is made from the same table. Both need no token."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bottle import HTTPResponse

from portal.web.api.openapi import Document
from portal.web.api.problems import NOTHING_HERE, problem
from portal.web.api.route import PREFIX, Route
from portal.web.auth.session import Sessions
from portal.web.pages import Pages
from portal.web.request import Request


@dataclass(frozen=True, slots=True)
class ValueRow:
    """A value of a request or an answer. ``type`` is the name of the type that its kind refers to, "" for none."""

    name: str
    kind: str
    type: str
    text: str
    required: bool


@dataclass(frozen=True, slots=True)
class RouteRow:
    """A route as the page shows it."""

    route: Route
    anchor: str
    values: Sequence[ValueRow]  # of the address and the body
    answer: Sequence[ValueRow]
    answer_name: str
    errors: Mapping[int, str]
    command: str  # for a shell


class ApiPages:
    """GET /api/v1/ and /api/v1/openapi.json."""

    def __init__(self, pages: Pages, sessions: Sessions, table: Sequence[Route]) -> None:
        self._pages = pages
        self._sessions = sessions
        self._table = table
        self._document: Document | None = None  # made for the first request: it takes a moment

    def with_slash(self, request: Request) -> HTTPResponse:
        """GET /api/v1: redirect to the page."""
        self._check(request)
        return self._pages.see_other(f"{PREFIX}/")

    def document(self, request: Request) -> HTTPResponse:
        """GET /api/v1/openapi.json."""
        self._check(request)
        content = self._made().to_json(self._pages.site.root)
        return HTTPResponse(content, 200, {"Content-Type": "application/json"})

    def show(self, request: Request) -> HTTPResponse:
        """GET /api/v1/: the page of documentation. It is in English, as the document and all errors are."""
        self._check(request)
        request.language = self._pages.parts.render.language_for("en")
        document, url = self._made(), request.site.url.rstrip("/") + PREFIX
        of_routes = {each.__name__ for route in self._table for each in (route.answer, route.body) if each is not None}
        # An answer of a route may also be a value of other answers, like a job in the list of jobs.
        of_routes -= {value.type for schema in document.schemas.values() for value in _values(schema)}
        return self._pages.page(
            request,
            "api",
            url=url,
            routes=[_row(document, route, url) for route in self._table],
            types=[
                (name, schema.get("description", ""), _answer(schema), schema.get("enum", ()))
                for name, schema in document.schemas.items()
                if name not in of_routes
            ],
        )

    def _check(self, request: Request) -> None:
        if not self._sessions.is_staff_network(request):
            raise problem(404, NOTHING_HERE)

    def _made(self) -> Document:
        if self._document is None:
            self._document = Document(self._table)
        return self._document


def _row(document: Document, route: Route, url: str) -> RouteRow:
    values = [_value(each.name, each.schema, each.description, each.required) for each in document.parameters(route)]
    if route.body is not None:
        values += _values(document.schemas[route.body.__name__])
    return RouteRow(
        route=route,
        anchor=route.operation,
        values=values,
        answer=_answer(document.schemas[route.answer.__name__]),
        answer_name=route.answer.__name__,
        errors=document.errors(route),
        command=_command(route, url),
    )


def _values(schema: Mapping[str, Any]) -> list[ValueRow]:
    required = schema.get("required", ())
    return [
        _value(name, each, each.get("description", ""), name in required)
        for name, each in schema.get("properties", {}).items()
    ]


def _answer(schema: Mapping[str, Any]) -> list[ValueRow]:
    """Return the values of an answer. It has all of them, so "required" would say nothing."""
    return [replace(each, required=False) for each in _values(schema)]


def _value(name: str, schema: Mapping[str, Any], text: str, required: bool) -> ValueRow:
    kinds = [schema, *schema.get("anyOf", ()), schema.get("items", {})]
    type = next((str(each["$ref"]).rpartition("/")[2] for each in kinds if "$ref" in each), "")
    return ValueRow(name, _kind(schema), type, text, required)


def _kind(schema: Mapping[str, Any]) -> str:
    """Return the kind of a value in words: "string", "list of Found", "integer or null"."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(map(_kind, schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if "enum" in schema:
        return " or ".join(json.dumps(each) for each in schema["enum"])
    return str(schema.get("format") or schema.get("type", ""))


def _command(route: Route, url: str) -> str:
    """Return a command that calls a route; the token is in the variable TOKEN."""
    path = route.path
    for name, each in route.names.items():
        path = path.replace(f"{{{name}}}", each.example)
    words = ['curl -H "Authorization: Bearer $TOKEN"']
    if route.body is None:
        return " ".join([*words, shlex.quote(f"{url}{path}{'?' if route.example else ''}{route.example}")])
    words.append("-H 'Content-Type: application/json' -H \"Idempotency-Key: $(uuidgen)\" \\\n ")
    return " ".join([*words, "--data", shlex.quote(route.example), shlex.quote(url + path)])
