"""Types of single values, and of sections, with their checks."""

from __future__ import annotations

import re
from datetime import time
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator

from portal.model.phrase import BadValue
from portal.model.schedule import MAX_TIMES
from portal.model.text import N_, shown

BAD_TIME = N_("Enter times like 07:00, without seconds and without a time zone.")
_SHOWN = 100


class Section(BaseModel):
    """A table of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, defer_build=True)


def _network(value: Any) -> IPv4Network | IPv6Network:
    try:
        return ip_network(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{value!r} is not a network like 192.0.2.0/24 or 2001:db8::/32") from error


def relay_url(url: str) -> str:
    """Return the URL of a mail server if it can be used. Raises ValueError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError("the host is invalid, or the port is not a number from 1 to 65535") from error
    if parts.scheme not in ("smtp", "smtps", "lmtp") or not parts.hostname or any(c.isspace() for c in url):
        raise ValueError("expected smtp://host:port, smtps://user:password@host:port or lmtp://host:port")
    if port == 0 or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("expected scheme://[user:password@]host[:port] and nothing after it")
    if bool(parts.username) != bool(parts.password):
        raise ValueError("give both a user and a password, or neither; write @ : / in them as %40 %3A %2F")
    return url


def _address(address: str) -> str:
    # Only addresses that need no quoting and no SMTPUTF8, since they are in the headers of the portal's own mail.
    if not re.fullmatch(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@([A-Za-z0-9.-]+|\[[A-Za-z0-9.:]+\])", address):
        raise BadValue(
            N_("Enter one address like quarantine@example.org. Write an international domain in its xn-- form.")
        )
    return address


def words(value: Any) -> Any:
    """Split a string at commas: environment variables have no other form of lists."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


Network = Annotated[IPv4Network | IPv6Network, PlainValidator(_network)]
MailAddress = Annotated[str, AfterValidator(_address)]
Words = Annotated[tuple[str, ...], BeforeValidator(words)]


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise BadValue(
            N_("%(value)s is not a time zone. Enter a name like Europe/Berlin."), value=repr(shown(name, _SHOWN))
        ) from error
    return name


def _one_or_more(value: Any) -> Any:
    value = words(value)
    return (value,) if isinstance(value, time) else value


def _hours(at: tuple[time, ...]) -> tuple[time, ...]:
    if any(each.tzinfo or each.second or each.microsecond for each in at):
        raise BadValue(BAD_TIME)
    if not 1 <= len(at) <= MAX_TIMES:
        raise BadValue(N_("Enter one to %(number)s times of day, with commas between them."), number=str(MAX_TIMES))
    return tuple(sorted(set(at)))


def _public_url(url: str) -> str:
    # The path is also that of the cookies and part of every page, so no character may need quoting.
    if not re.fullmatch(r"https?://(\[[0-9a-f:.]+\]|[\w.-]+)(:[0-9]{1,5})?(/[\w.~-]+)*/?", url, re.I | re.A):
        raise BadValue(
            N_(
                "Enter a URL like https://mail.example.org/quarantine. Write an international host name in its xn-- "
                "form."
            )
        )
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - validated only on access
        host = parts.hostname or ""
        if ":" not in host and not all(0 < len(label) < 64 for label in host.removesuffix(".").split(".")):
            raise ValueError("a label of the host name is empty or longer than 63 characters (RFC 1035, 2.3.4)")
    except ValueError as error:
        raise BadValue(
            N_("The host name or the port is not valid. Enter a URL like https://mail.example.org:443/quarantine.")
        ) from error
    return url.rstrip("/")


def _plain(name: str) -> str:
    if any(not c.isprintable() or c in '"<>\\' for c in name):
        raise BadValue(
            N_("Leave out %(characters)s and line breaks, since this is used in a header of mails."),
            characters='" < > \\',
        )
    return name.strip()


def plain(value: Any) -> Any:
    """Return a value as the settings file would have it."""
    if isinstance(value, time):
        return f"{value:%H:%M}"
    text = str(value)
    if text.startswith("data:"):
        return f"{text.partition(';')[0]}, {len(text)} characters"
    return value if isinstance(value, int) else text  # bool is an int


Hours = Annotated[tuple[time, ...], BeforeValidator(_one_or_more), AfterValidator(_hours)]
ZoneName = Annotated[str, AfterValidator(_zone)]
PublicUrl = Annotated[str, AfterValidator(_public_url)]
PlainName = Annotated[str, Field(max_length=60), AfterValidator(_plain)]
PlainText = Annotated[str, Field(max_length=120), AfterValidator(_plain)]
