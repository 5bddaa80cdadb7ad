"""The OpenAPI 3.1 document of the API, made from the table of routes and the models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import responses
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from portal.web.api import problems
from portal.web.api.route import PREFIX, Route

_REF = "#/components/schemas/"
_TEXT = """\
Search, release, delete and restore held messages from programs.

A program sends its token in the header `Authorization: Bearer TOKEN`. A token has at most the rights that its owner
has at that moment, and sees the domains of its role only: deliveries of other domains are answered with 404. Cookies
have no effect. Times are in UTC. Errors are problem details (RFC 9457), whose `detail` says what to do."""
_KEY_TEXT = (
    "A text that no other request has, a UUID for example. If the same request is sent again within a day, because its "
    "answer was lost, it gets the same answer and has no effect."
)
# The statuses of errors, and when each is returned.
_ALWAYS = {
    401: "The token is missing, wrong, expired or revoked.",
    403: "The role or scope of the token does not permit this.",
    404: "No such address or id, or none that the token may see.",
    422: "A value cannot be used; `errors` names it.",
    429: "Too many requests. Retry-After says how long to wait.",
    500: "An error of the portal, which was logged.",
    503: "The quarantine or too many requests at once. Retry-After says how long to wait.",
}
_OF_ACTS = {
    409: "Nothing was changed: it was done before, has ended, or the same request is being answered; `detail` says it."
}
_OF_BODIES = {
    400: "The body is incomplete or not JSON.",
    413: "The body is too large.",
    415: "The body is not application/json.",
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A value in the address or in a header of a request."""

    name: str
    place: str  # "path", "query" or "header"
    description: str
    schema: dict[str, Any]
    required: bool
    example: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the parameter object of OpenAPI."""
        found = {"name": self.name, "in": self.place, "description": self.description, "schema": self.schema}
        return {**found, "required": self.required, **({"example": self.example} if self.example else {})}


class Document:
    """The document of these routes."""

    def __init__(self, table: Sequence[Route]) -> None:
        self._table = table
        pairs: list[tuple[type[BaseModel], JsonSchemaMode]] = [(problems.Problem, "serialization")]
        for route in table:
            pairs.append((route.answer, "serialization"))
            pairs += [(each, "validation") for each in (route.query, route.body) if each is not None]
        keys, found = models_json_schema(pairs, ref_template=_REF + "{model}")
        self._refs = keys
        self.schemas: dict[str, Any] = found["$defs"]
        # Queries are written as parameters, so their models are no schemas of their own.
        self._queries = {
            route.query: self.schemas.pop(self._name(route.query, "validation"))
            for route in {route.query: route for route in table if route.query is not None}.values()
            if route.query is not None
        }

    def to_json(self, root: str) -> bytes:
        """Return the document. ``root``: the path of the portal's public URL."""
        paths: dict[str, dict[str, Any]] = {}
        for route in self._table:
            paths.setdefault(route.path, {})[route.method.lower()] = self._operation(route)
        found = {
            "openapi": "3.1.0",
            "info": {"title": "Quarantine portal", "version": "1", "description": _TEXT},
            "servers": [{"url": root + PREFIX}],
            "security": [{"token": []}],
            "paths": paths,
            "components": {
                "schemas": self.schemas,
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            },
        }
        return json.dumps(found, ensure_ascii=False, indent=1).encode() + b"\n"

    def parameters(self, route: Route) -> Iterator[Parameter]:
        """Yield the values in the address and the headers of a route's requests."""
        for name, each in route.names.items():
            pattern = {"type": "string", "pattern": f"^{each.pattern}$"}
            yield Parameter(name, "path", each.description, pattern, True, each.example)
        if route.is_act:
            visible = {"type": "string", "minLength": 1, "maxLength": 257, "pattern": '^"?[\\x21\\x23-\\x7e]+"?$'}
            yield Parameter("Idempotency-Key", "header", _KEY_TEXT, visible, False)
        if route.query is None:
            return
        model = self._queries[route.query]
        for name, schema in model["properties"].items():
            plain = {key: value for key, value in schema.items() if key not in ("title", "description")}
            if plain.get("default") in ("", []):
                del plain["default"]
            yield Parameter(name, "query", schema.get("description", ""), plain, name in model.get("required", ()))

    def properties(self, route: Route) -> dict[str, dict[str, Any]]:
        """Return the schemas of the values in the body of a route, by name."""
        if route.body is None:
            return {}
        found: dict[str, dict[str, Any]] = self.schemas[self._name(route.body, "validation")]["properties"]
        return found

    def errors(self, route: Route) -> dict[int, str]:
        """Return the statuses of errors of a route, and when each is returned."""
        acts, bodies = _OF_ACTS if route.method == "POST" else {}, _OF_BODIES if route.body else {}
        return dict(sorted({**_ALWAYS, **bodies, **acts}.items()))

    def _operation(self, route: Route) -> dict[str, Any]:
        parameters = [each.to_json() for each in self.parameters(route)]
        found: dict[str, Any] = {
            "operationId": route.operation,
            "summary": route.summary,
            "description": f"{route.text}\n\nNeeds the permission `{route.permission}`.",
        }
        if route.body is not None:
            content = {"schema": self._refs[route.body, "validation"], "example": json.loads(route.example)}
            found["requestBody"] = {"required": True, "content": {"application/json": content}}
        if parameters:
            found["parameters"] = parameters
        problem = {"schema": self._refs[problems.Problem, "serialization"]}
        answer = {"schema": self._refs[route.answer, "serialization"]}
        found["responses"] = {"200": {"description": responses[200], "content": {"application/json": answer}}}
        for status, text in self.errors(route).items():
            found["responses"][str(status)] = {"description": text, "content": {problems.CONTENT_TYPE: problem}}
        return found

    def _name(self, model: type[BaseModel], mode: JsonSchemaMode) -> str:
        return str(self._refs[model, mode]["$ref"]).removeprefix(_REF)
