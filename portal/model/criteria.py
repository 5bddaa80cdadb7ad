"""Search criteria as people type them: in the address of a page and as options of a command, under the same names.

A name may be given several times if `Criterion.many`. A message must have all symbols, and one of the tiers, states,
actions and domains. An empty value is an error: as a criterion that restricts nothing, it would make an act on what a
search finds an act on everything. A form leaves its empty fields out before.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import MAXYEAR, UTC, datetime, timedelta, tzinfo
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from portal.model.domains import lower_case
from portal.model.errors import BadCriterion
from portal.model.message import ACTIONS, Filter, State, Tier, domain, identity
from portal.model.phrase import BadValue, Phrase
from portal.model.record import record
from portal.model.text import N_, is_blank, shown

TEXT_CHARS = 320  # the longest address (RFC 5321, 4.5.3.1)
_MANY = 100  # values of one name
_RELATIVE_TIME = re.compile(r"(\d{1,5})([dhm])", re.ASCII)
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}
_DATE = re.compile(r"\d{4}-?\d\d-?\d\d", re.ASCII)
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,3})?) ?([kmg]?)b?", re.ASCII | re.IGNORECASE)
_FACTORS = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}
_SHOWN = 100


@record(frozen=True, slots=True)
class Criterion:
    """One name of the language. ``read`` returns the value of a text, or raises BadValue."""

    name: str
    help: str
    read: Callable[[str, tzinfo, datetime], Any]
    many: bool = False


def _filled(text: str) -> str:
    if is_blank(text):
        raise BadValue(N_("this is empty: enter a value"))
    return text


def _text(text: str, zone: tzinfo, now: datetime) -> str:
    if len(text) > TEXT_CHARS:
        raise BadValue(N_("this is longer than %(number)s characters"), number=str(TEXT_CHARS))
    return text


def _address(text: str, zone: tzinfo, now: datetime) -> str:
    return identity(_text(text, zone, now))


def _domain(text: str, zone: tzinfo, now: datetime) -> str:
    found = domain(_text(text, zone, now))
    if not found or any(c.isspace() for c in found):
        raise BadValue(N_("%(value)s is not a domain: use one like example.org"), value=_quoted(text))
    return found


def _symbol(text: str, zone: tzinfo, now: datetime) -> str:
    if any(c.isspace() for c in _text(text, zone, now)):
        raise BadValue(N_("%(value)s is not a symbol: use a name like BAYES_SPAM"), value=_quoted(text))
    return text


def _one_of(values: Sequence[str], text: str, zone: tzinfo, now: datetime) -> str:
    if text.lower() not in values:
        raise BadValue(N_("%(value)s is not one of %(values)s"), value=_quoted(text), values=", ".join(values))
    return text.lower()


def moment(text: str, zone: tzinfo, now: datetime, *, ends_day: bool = False) -> datetime:
    """Return the time of a date, with or without the time of day, or of how long ago.

    ``ends_day``: a date alone means the end of that day. Raises BadValue.
    """
    relative = _RELATIVE_TIME.fullmatch(text)
    try:
        if relative:
            return now - timedelta(**{_UNITS[relative[2]]: int(relative[1])})
        found = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise BadValue(
            N_("%(value)s is not a date: use 2026-01-31, 2026-01-31T08:00, 3d, 12h or 30m"), value=_quoted(text)
        ) from error
    # At the ends of the calendar, adding a day or changing the zone would fail.
    if ends_day and _DATE.fullmatch(text) and found.year < MAXYEAR:
        found += timedelta(days=1)
    if found.tzinfo is None:
        found = found.replace(tzinfo=zone if 1 < found.year < MAXYEAR else UTC)
    return found


def number(text: str) -> float:
    """Return the number of a text. Raises BadValue."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise BadValue(N_("%(value)s is not a number: use one like 15 or 7.5"), value=_quoted(text))
    return found


def _number(text: str, zone: tzinfo, now: datetime) -> float:
    return number(text)


def _network(text: str, zone: tzinfo, now: datetime) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text.strip("[]"), strict=False)
    except ValueError as error:
        raise BadValue(
            N_("%(value)s is not an IP address or network: use 192.0.2.1, 192.0.2.0/24 or 2001:db8::/32"),
            value=_quoted(text),
        ) from error


def _size(text: str, zone: tzinfo, now: datetime) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise BadValue(N_("%(value)s is not a size: use bytes, or one like 20k or 1.5M"), value=_quoted(text))
    return round(float(match[1]) * _FACTORS[match[2].lower()])


def _rule(text: str, zone: tzinfo, now: datetime) -> str:
    return lower_case(_text(text, zone, now))


CRITERIA = (
    Criterion("recipient", "Only messages for this address.", _address),
    Criterion("domain", "Only messages for recipients of this domain.", _domain, many=True),
    Criterion("sender", "Only messages whose envelope sender or From contains this text.", _text),
    Criterion("sender-domain", "Only messages from exactly this domain.", _domain),
    Criterion(
        "words", "Only messages with these words, or beginnings of words, in subject, sender or attachment names.",
        _text,
    ),
    Criterion("attachment", "Only messages with these words in the names of their attachments.", _text),
    Criterion("symbol", "Only messages with this symbol of Rspamd.", _symbol, many=True),
    Criterion("action", "Only messages with this action of Rspamd.", partial(_one_of, ACTIONS), many=True),
    Criterion("tier", f"{', '.join(Tier)}.", partial(_one_of, tuple(Tier)), many=True),
    Criterion("state", f"{', '.join(State)}.", partial(_one_of, tuple(State)), many=True),
    Criterion("score-min", "Only messages with at least this score.", _number),
    Criterion("score-max", "Only messages with at most this score.", _number),
    Criterion(
        "since", "Only messages held since this time: 2026-01-31, 2026-01-31T08:00, 3d, 12h or 30m.", moment
    ),
    Criterion(
        "until", "Only messages held before this time. A date alone means the end of that day.",
        partial(moment, ends_day=True),
    ),
    Criterion("client", "Only messages from this IP address or network.", _network),
    Criterion("size-min", "Only messages with at least this size: bytes, or 20k, 1.5M.", _size),
    Criterion("size-max", "Only messages with at most this size.", _size),
    Criterion("rule", "Only deliveries that a rule for this sender blocked or let through.", _rule),
)  # fmt: skip
NAMES = tuple(criterion.name for criterion in CRITERIA)
_ABOVE = N_("%(first)s is above %(second)s, so no message can match. Exchange them.")
_REVERSED = {
    ("since", "until"): N_("%(first)s is not before %(second)s, so no message can match. Exchange them."),
    ("score-min", "score-max"): _ABOVE,
    ("size-min", "size-max"): _ABOVE,
}


def read(typed: Mapping[str, Sequence[str]], zone: tzinfo, now: datetime) -> Filter:
    """Return the criteria of these texts, by name. Times without a zone are in ``zone``. Raises BadCriterion."""
    found: dict[str, Any] = {}
    for criterion in CRITERIA:
        texts = [text.strip() for text in typed.get(criterion.name, ())]
        if len(texts) > (_MANY if criterion.many else 1):
            many = Phrase(N_("give it at most %(number)s times"), {"number": str(_MANY)})
            raise BadCriterion(criterion.name, many if criterion.many else Phrase(N_("give it once")))
        try:
            values = [criterion.read(_filled(text), zone, now) for text in texts]
        except BadValue as error:
            raise BadCriterion(criterion.name, error.phrase) from error
        if values:
            found[criterion.name] = values if criterion.many else values[0]
    for (low, high), problem in _REVERSED.items():
        if low in found and high in found:
            wrong = found[low] >= found[high] if low == "since" else found[low] > found[high]
            if wrong:
                raise BadCriterion(low, Phrase(problem), high)
    return Filter(
        recipient=found.get("recipient"),
        sender=found.get("sender"),
        since=found.get("since"),
        states=frozenset(map(State, found.get("state", ()))),
        words=found.get("words", ""),
        attachment=found.get("attachment", ""),
        until=found.get("until"),
        score_min=found.get("score-min"),
        score_max=found.get("score-max"),
        tiers=frozenset(map(Tier, found.get("tier", ()))),
        symbols=tuple(found.get("symbol", ())),
        actions=frozenset(found.get("action", ())),
        client=found.get("client"),
        size_min=found.get("size-min"),
        size_max=found.get("size-max"),
        sender_domain=found.get("sender-domain"),
        domains=frozenset(found["domain"]) if "domain" in found else None,
        rule=found.get("rule"),
    )


def _quoted(text: str) -> str:
    return repr(shown(text, _SHOWN))
