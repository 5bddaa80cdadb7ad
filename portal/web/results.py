"""The result of an action that the next page shows once: which action, and on which deliveries; or which batch.

It is kept in a cookie of the browser for some minutes and not in the address of the page, so that reloading the page or
opening a bookmark does not show it again. What happened is read from the deliveries, whose recipient is checked.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable
from typing import NamedTuple
from uuid import UUID

from bottle import HTTPResponse

from portal.model.message import DeliveryId
from portal.model.rule import Effect
from portal.web.pages import Pages
from portal.web.request import Request

ACTS = ("release", "again", "wait", "delete", "spam", "restore", "unblock", "ask")
_COOKIE = "result"
_SECONDS = 300
_NUMBER_OCTETS = 2
_KEY_OCTETS = 16 + _NUMBER_OCTETS
MAX_KEYS = 150  # 3,600 characters: browsers keep cookies of 4,096 octets
_VALUE = re.compile(rf"({'|'.join(ACTS)})\.([A-Za-z0-9_-]+)", re.ASCII)
_BATCH = re.compile(r"batch\.([0-9a-f-]{36})", re.ASCII)
_RULES = re.compile(rf"rules\.({'|'.join(Effect)})\.([0-9]{{1,3}})", re.ASCII)
_BATCH_SECONDS = 24 * 3600  # it may take long, and is the way back to its page


class Result(NamedTuple):
    """An action and the deliveries it was for."""

    act: str  # one of `ACTS`, "" if there is no result to show
    keys: tuple[DeliveryId, ...]
    batch: UUID | None = None
    rules: tuple[str, int] | None = None  # the effect and number of the rules that were made


_NONE = Result("", ())


def keep(pages: Pages, response: HTTPResponse, act: str, keys: Iterable[DeliveryId]) -> None:
    """Keep a result of at most `MAX_KEYS` deliveries in the browser, for the next page."""
    packed = b"".join(key.message_id.bytes + key.number.to_bytes(_NUMBER_OCTETS) for key in keys)
    pages.set_cookie(response, _COOKIE, f"{act}.{urlsafe_b64encode(packed).decode()}".rstrip("="), _SECONDS)


def keep_batch(pages: Pages, response: HTTPResponse, batch: UUID, seconds: int = _BATCH_SECONDS) -> None:
    """Keep the id of a batch in the browser, for the next list or the page of a digest's link."""
    pages.set_cookie(response, _COOKIE, f"batch.{batch}", seconds)


def keep_rules(pages: Pages, response: HTTPResponse, effect: Effect, count: int) -> None:
    """Keep how many rules were made in the browser, for the next list."""
    pages.set_cookie(response, _COOKIE, f"rules.{effect}.{count}", _SECONDS)


def kept(request: Request) -> Result:
    """Return the result that the browser sent. Anybody can write it: it only names what is looked up."""
    value = request.cookie(_COOKIE) or ""
    match, batch, rules = _VALUE.fullmatch(value), _BATCH.fullmatch(value), _RULES.fullmatch(value)
    if rules is not None:
        return Result("", (), rules=(rules[1], int(rules[2])))
    try:
        if batch is not None:
            return Result("", (), UUID(batch[1]))
        if match is None:
            return _NONE
        packed = urlsafe_b64decode(f"{match[2]}==")
    except ValueError:
        return _NONE
    pieces = [packed[start : start + _KEY_OCTETS] for start in range(0, len(packed), _KEY_OCTETS)]
    if not pieces or len(pieces) > MAX_KEYS or len(pieces[-1]) < _KEY_OCTETS:
        return _NONE
    return Result(match[1], tuple(DeliveryId(UUID(bytes=each[:16]), int.from_bytes(each[16:])) for each in pieces))


def forget(pages: Pages, response: HTTPResponse) -> None:
    """Remove the result, since this response shows it."""
    pages.set_cookie(response, _COOKIE, "", 0)
