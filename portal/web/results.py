"""The result of an action that the next page shows once: which action, and on which delivery; or which batch.

It is kept in a cookie of the browser for some minutes and not in the address of the page, so that reloading the page or
opening a bookmark does not show it again. The page reads the outcome from the delivery, whose recipient is checked.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from uuid import UUID

from bottle import HTTPResponse

from portal.model.message import DeliveryId
from portal.model.rule import Effect
from portal.web.listing import cursor, name_of
from portal.web.pages import Pages
from portal.web.request import Request

# Of staff: a link to the message was sent or not, a request was denied, the next digest lists the message again,
# somebody else acted before.
STAFF_ACTS = ("link", "link-limit", "deny", "reannounce", "late")
ACTS = (
    *("release", "again", "wait", "delete", "spam", "unreported", "restore", "unblock", "ask", "withdraw"),
    *("question", "asked"),
    *STAFF_ACTS,
)
_COOKIE = "result"
_SECONDS = 300
_VALUE = re.compile(rf"({'|'.join(ACTS)})(?:-({'|'.join(Effect)}))?\.([0-9a-f-]{{36}}\.[0-9]{{1,5}})", re.ASCII)
_BATCH = re.compile(r"batch\.([0-9a-f-]{36})", re.ASCII)
_NAME = re.compile(r"several|[0-9a-f-]{36}(?:\.[0-9]{1,5})?", re.ASCII)  # of what a form would have acted on
_RULES = re.compile(rf"rules\.({'|'.join(Effect)})\.([0-9]{{1,3}})", re.ASCII)
_BATCH_SECONDS = 24 * 3600  # it may take long, and is the way back to its page


class Result(NamedTuple):
    """An action and the delivery it was for."""

    act: str  # one of `ACTS`, "" if there is no result to show
    key: DeliveryId | None = None
    batch: UUID | None = None
    rules: tuple[str, int] | None = None  # the effect and number of the rules that were made
    effect: Effect | None = None  # of the rule that the same button was to make
    undone: str = ""  # the `Row.name` of the message of a form that came after the session had ended, or "several"


_NONE = Result("")


def keep(pages: Pages, response: HTTPResponse, act: str, key: DeliveryId, effect: Effect | None = None) -> None:
    """Keep the result of an action on one delivery in the browser, for the next page.

    ``effect``: of the rule that the same button was to make.
    """
    pages.set_cookie(response, _COOKIE, f"{act}{f'-{effect}' if effect else ''}.{name_of(key)}", _SECONDS)


def keep_batch(pages: Pages, response: HTTPResponse, batch: UUID, seconds: int = _BATCH_SECONDS) -> None:
    """Keep the id of a batch in the browser, for the next list or the page of a digest's link."""
    pages.set_cookie(response, _COOKIE, f"batch.{batch}", seconds)


def keep_rules(pages: Pages, response: HTTPResponse, effect: Effect, count: int) -> None:
    """Keep how many rules were made in the browser, for the next list."""
    pages.set_cookie(response, _COOKIE, f"rules.{effect}.{count}", _SECONDS)


def check_undone(pages: Pages, request: Request) -> None:
    """Raise a 303 to the same page if its address says that a form came after the session had ended.

    The sign-in leads to such an address. The browser keeps what it says, for the next page.
    """
    if name := request.query("undone"):
        response = pages.see_other(f"{request.path}{request.query_without('undone')}")
        if _NAME.fullmatch(name):
            pages.set_cookie(response, _COOKIE, f"undone.{name}", _SECONDS)
        raise response


def kept(request: Request) -> Result:
    """Return the result that the browser sent. Anybody can write it: it only names what is looked up."""
    value = request.cookie(_COOKIE) or ""
    match, batch, rules = _VALUE.fullmatch(value), _BATCH.fullmatch(value), _RULES.fullmatch(value)
    if rules is not None:
        return Result("", rules=(rules[1], int(rules[2])))
    if value.startswith("undone.") and _NAME.fullmatch(value.removeprefix("undone.")):
        return Result("", undone=value.removeprefix("undone."))
    if match is not None and (key := cursor(match[3])):
        return Result(match[1], key, effect=Effect(match[2]) if match[2] else None)
    try:
        return Result("", batch=UUID(batch[1])) if batch is not None else _NONE
    except ValueError:
        return _NONE


def forget(pages: Pages, response: HTTPResponse) -> None:
    """Remove the result, since this response shows it."""
    pages.set_cookie(response, _COOKIE, "", 0)
