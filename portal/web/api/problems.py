"""Errors of the API: problem details (RFC 9457), each with a sentence that says what to do."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http.client import responses

from bottle import HTTPError, HTTPResponse
from pydantic import Field, ValidationError

from portal.model.errors import (
    AlreadyDone,
    BadCriterion,
    Busy,
    KeyReused,
    NotAllowed,
    NotFound,
    StoreUnavailable,
    StoreUnusable,
)
from portal.web.api.route import Model
from portal.web.request import Request

log = logging.getLogger("quarantine.web")

CONTENT_TYPE = "application/problem+json"
_ERRORS_MAX = 20
NOTHING_HERE = "There is nothing at this address, or nothing that this token may see. Check the address and the id."
_OF_BOTTLE = {
    400: "The request is incomplete. Send its whole body with the right Content-Length.",
    404: NOTHING_HERE,
    405: "This address does not take this method. The header Allow names those that it takes.",
    413: "The body is too large. Send fewer ids in one request.",
}
_INTERNAL = "The error was logged. Try again; if it persists, report the time to the administrator of the portal."


class FieldProblem(Model):
    """A value of a request that cannot be used, and the reason."""

    name: str = Field(description="The name of the value; a dot leads into a list or an object.")
    detail: str


class Problem(Model):
    """An error (RFC 9457)."""

    title: str = Field(description="The meaning of the status.")
    status: int
    detail: str = Field(description="What happened, and what to do.")
    errors: list[FieldProblem] = Field(description="What is wrong with each value, for status 422.")


def problem(status: int, detail: str, errors: Sequence[FieldProblem] = (), **headers: str) -> HTTPResponse:
    """Return an error. It may also be raised."""
    found = Problem(title=responses[status], status=status, detail=detail, errors=list(errors))
    response = HTTPResponse(found.model_dump_json().encode() + b"\n", status, {"Content-Type": CONTENT_TYPE})
    for name, value in headers.items():
        response.set_header(name.replace("_", "-"), value)
    return response


def of_validation(error: ValidationError) -> HTTPResponse:
    """Return the error for a request that its model does not accept."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    if any(each["type"] == "json_invalid" for each in found):
        return problem(400, "The body is not JSON in UTF-8. Check its syntax.")
    errors = [
        FieldProblem(name=".".join(map(str, each["loc"])) or "body", detail=each["msg"]) for each in found[:_ERRORS_MAX]
    ]
    return invalid(*errors)


def invalid(*errors: FieldProblem) -> HTTPResponse:
    """Return the error for values that cannot be used."""
    return problem(422, "Some values cannot be used: errors names each of them. Correct them.", errors)


def of_bottle(request: Request, error: HTTPError) -> HTTPResponse:
    """Return the error for a request that Bottle rejects, or that failed outside of a handler."""
    if error.status_code not in _OF_BOTTLE:
        log.error("request failed: %s", error.status_line, exc_info=error.exception)
    status = error.status_code if error.status_code in _OF_BOTTLE else 500
    response = problem(status, _OF_BOTTLE.get(status, _INTERNAL))
    if "Allow" in error.headers:
        response.set_header("Allow", error.headers["Allow"])
    return response


def of_error(request: Request, rule: str, error: Exception) -> HTTPResponse:
    """Return the error for an exception of a handler. Log it here, once, if an operator must know of it."""
    match error:
        case BadCriterion():
            return invalid(FieldProblem(name=error.name, detail=error.sentence(str)))
        case NotFound():
            return problem(404, NOTHING_HERE)
        case NotAllowed():
            return problem(403, "The role or scope of this token does not permit this. Nothing was changed.")
        case KeyReused():
            detail = "This Idempotency-Key belongs to another request. Use a new key for each request."
            return problem(422, detail)
        case AlreadyDone():
            return problem(409, f"Nothing was changed: {error}.")
        case Busy():
            return problem(503, "Too many such requests are running. Try again in some seconds.", Retry_After="5")
        case StoreUnavailable() | StoreUnusable():
            log.error("store unavailable at %s %s: %s", request.method, rule, error)
            return problem(503, "The quarantine is temporarily unavailable. Try again in a minute.", Retry_After="60")
        case _:
            log.error("request failed %s %s", request.method, rule, exc_info=error)
            return problem(500, _INTERNAL)
