"""Senders and scopes as people type or paste them: read, checked and normalized.

Each error is one sentence, or two, that says what to enter instead.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from ipaddress import ip_address, ip_network

from portal.model import from_header
from portal.model.domains import to_ascii
from portal.model.errors import BadRule
from portal.model.message import Facts, domain, identity
from portal.model.rule import SITE, Effect, SenderKind, network_sender, plain_ip, prefix_min, sender_kind
from portal.model.sender import is_public_suffix, is_top_level
from portal.model.text import N_, shown
from portal.policy.freemail import is_freemail

_OFFERED = 2
_CHARACTERS = 320  # RFC 5321, 4.5.3.1: 64 + @ + 255
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")  # with the underscore, which some senders' domains have
_DIGITS = re.compile(r"[0-9]+")
_NETWORK = re.compile(r"\[?([0-9a-fA-F:.]+)\]?(/[0-9]{1,3})?")
_LITERAL = re.compile(r"\[(?:ipv6:)?([0-9a-f:.]+)\]")
_WILDCARD = re.compile(r"[*?]")

# Recipients see these, so they are translated, all but those about the size of a network.
EMPTY = N_("Enter an address or a domain.")
TOO_LONG = N_("This is too long for an address or a domain.")
INVISIBLE = N_("This contains invisible characters. Type the address instead of copying it.")
WILDCARD = N_("Wildcards are not supported. Enter a domain alone to match all its addresses and subdomains.")
WEB_ADDRESS = N_("This is a web address. Enter only the domain, without http and slashes.")
SEVERAL = N_("Enter one address or domain at a time.")
NEITHER = N_("This is neither an email address nor a domain.")
NAME = N_("The name contains another address. Enter the address alone.")
NETWORK = N_("Only an administrator can make rules for networks.")
NETWORK_BITS = "This is not a network. Enter its first address, such as 192.0.2.0/24."
NETWORK_SIZE = "This network is too large. Enter at most a /8 of IPv4 or a /16 of IPv6."
SUFFIX = N_("Anyone can register a domain below this one. Allow a single domain instead.")
FREEMAIL = N_("Anyone can get an address at this provider. Allow a single address instead.")
LOCAL = N_("This is a domain of your own organization. Allow a single address instead.")


def read_sender(text: str, *, networks: bool = False) -> str:
    """Return the sender of a rule (`portal.model.rule`) from what a person typed. Raises BadRule.

    Accepted are an address, also with a display name and in angle brackets; a domain, also with an @ or a dot before it
    and in any spelling of an international name; and with ``networks`` an IP address or network.
    """
    text = " ".join(text.split())
    if not text:
        raise BadRule(EMPTY)
    if len(text) > _CHARACTERS:
        raise BadRule(TOO_LONG)
    if shown(text, len(text)) != text:
        raise BadRule(INVISIBLE)
    if "://" in text:
        raise BadRule(WEB_ADDRESS)
    if _WILDCARD.search(text):
        raise BadRule(WILDCARD)
    if network := _network(text):
        if not networks:
            raise BadRule(NETWORK)
        return network
    if "@" in text.removeprefix("@"):
        return _address(text)
    host = _host(text.removeprefix("@").removeprefix("."))
    if "." not in host and not is_top_level(host):
        raise BadRule(NEITHER)
    return host


def check_sender(effect: Effect, sender: str, local_domains: Collection[str]) -> None:
    """Raise BadRule if this sender must not be allowed. ``local_domains``: domains, and addresses of local recipients.

    Anybody who can get an address at a domain could use a rule that allows the domain. A domain of the site is refused
    as well, since the mail of every forger of its addresses would depend on nothing but the check of authenticity.
    """
    if effect is not Effect.ALLOW or sender_kind(sender) is not SenderKind.DOMAIN:
        return
    if is_public_suffix(sender):
        raise BadRule(SUFFIX)
    if is_freemail(sender):
        raise BadRule(FREEMAIL)
    if any(f".{name.rpartition('@')[2]}".endswith(f".{sender}") for name in local_domains):
        raise BadRule(LOCAL)


def senders_of(message: Facts) -> Sequence[str]:
    """Return the senders to offer for a rule about a message: addresses, each followed by its domain.

    They are those of the From field, else the envelope sender, at most two addresses. Domains at which anybody gets an
    address are left out: a rule for one is hardly ever meant.
    """
    found = [identity(mailbox.address) for mailbox in from_header.parse(message.header_from) if mailbox.address]
    if not found and message.envelope_sender:
        found = [identity(message.envelope_sender)]
    offered = []
    for address in found[:_OFFERED]:
        host = domain(address)
        is_anybodys = host == address or "[" in host or is_public_suffix(host) or is_freemail(host)
        offered += [address] if is_anybodys else [address, host]
    return [sender for sender in dict.fromkeys(offered) if _is_readable(sender)]


def _is_readable(sender: str) -> bool:
    """Return whether a person could type this sender, which comes from a message and may be hostile."""
    try:
        return read_sender(sender) == sender
    except BadRule:
        return False


def read_scope(text: str) -> str:
    """Return a scope from ``site``, a domain or an address of a recipient. Raises BadRule."""
    if text.strip() in ("site", SITE):
        return SITE
    sender = read_sender(text)
    return sender if "@" in sender else f"@{sender}"


def scope_text(scope: str) -> str:
    """Return a scope as `read_scope` reads it."""
    return "site" if scope == SITE else scope.removeprefix("@")


def _network(text: str) -> str:
    """Return an IP address or a network in its normal form, "" if the text is neither. Raises BadRule."""
    match = _NETWORK.fullmatch(text)
    if match is None or not ("/" in text or _is_ip(match[1])):
        return ""
    try:
        if match[2] is None:
            return network_sender(ip_network(plain_ip(ip_address(match[1]))))
        network = ip_network(match[1] + match[2])
    except ValueError as error:
        raise BadRule(NETWORK_BITS) from error
    if network.prefixlen < prefix_min(network.version):
        raise BadRule(NETWORK_SIZE)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None:
        return network_sender(network)
    if network.prefixlen < 96 + prefix_min(4):
        raise BadRule(NETWORK_SIZE)
    return network_sender(ip_network((mapped, network.prefixlen - 96)))


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _address(text: str) -> str:
    mailboxes = from_header.parse(text)
    if len(mailboxes) > 1:
        raise BadRule(SEVERAL)
    name, address = mailboxes[0]
    if not address:
        raise BadRule(NEITHER)
    if "@" in name:
        raise BadRule(NAME)
    if name and "<" not in text and "(" not in text:
        raise BadRule(NEITHER)  # "my friend@example.net": no address has a blank, and friend@ may be another person
    local, _, host = address.rpartition("@")
    if literal := _LITERAL.fullmatch(host.lower()):
        if not _is_ip(literal[1]):
            raise BadRule(NEITHER)
        return identity(address)
    return identity(f"{local}@{_host(host)}")


def _host(text: str) -> str:
    """Return a domain in lower case with A-labels. Raises BadRule."""
    host = to_ascii(text.removesuffix("."))
    if any(separator in host for separator in ", ;"):
        raise BadRule(SEVERAL)
    labels = host.split(".")
    if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)) or _DIGITS.fullmatch(labels[-1]):
        raise BadRule(NEITHER)
    return host
