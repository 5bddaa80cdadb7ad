"""Allow and block rules: the values, and the keys under which rules are found. No I/O.

A rule has two keys. Its *scope* says for whom it holds: the identity of a recipient, ``alice@example.org``; a domain of
recipients, ``@example.org``; or the whole site, ``*``. Its *sender* says which messages it matches: those of an
address, ``promo@example.net``; of a domain with all its subdomains, ``example.net``; or of a network of sending hosts,
``192.0.2.0/24``. Both are plain texts that show their kind, so the rules for one message are found by comparing texts
with lists of keys (`recipient_scopes`, `address_keys`, `network_keys`), which an index does in one step each.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from uuid import UUID

from portal.model.message import Actor, ActorKind, domain
from portal.model.record import record

SITE = "*"  # the scope of all recipients
RULES_PER_RECIPIENT = 1_000
BLOCKS_PER_SITE = 100_000  # of all scopes together: Rspamd reads them all into memory
NOTE_CHARACTERS = 200
BLOCKED = "PORTAL_BLOCK"  # Rspamd's symbol for a message that block rules withhold from all its recipients
# A larger network is a mistake: it would be a part of the whole Internet. The lengths also limit how many keys an
# address has.
_PREFIX_MIN = {4: 8, 6: 16}


class Effect(StrEnum):
    """The effect of a rule on a message. The values are kept in stores and journals."""

    ALLOW = "allow"
    BLOCK = "block"


class ScopeKind(StrEnum):
    """The kind of a scope, the narrowest first."""

    RECIPIENT = "recipient"
    DOMAIN = "domain"
    SITE = "site"


class SenderKind(StrEnum):
    """The kind of a sender, the most specific first."""

    ADDRESS = "address"
    DOMAIN = "domain"
    NETWORK = "network"


@record(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule. It never changes, except that it can be removed and put back; a change makes a new rule."""

    id: UUID
    scope: str
    sender: str
    effect: Effect
    created_at: datetime
    actor: Actor  # who made it
    binding: bool = False  # a block of a domain or the site that narrower allow rules do not override
    message_id: UUID | None = None  # the held message it was made from
    expires_at: datetime | None = None  # it has no effect from this time on
    note: str = ""
    hits: int = 0  # deliveries that it decided
    last_hit_at: datetime | None = None
    removed_at: datetime | None = None
    removed_by: Actor | None = None

    @property
    def scope_kind(self) -> ScopeKind:
        """The kind of its scope."""
        return scope_kind(self.scope)

    @property
    def sender_kind(self) -> SenderKind:
        """The kind of its sender."""
        return sender_kind(self.sender)

    @property
    def as_actor(self) -> Actor:
        """The rule as the actor of an event: its two keys."""
        return Actor(ActorKind.RULE, self.sender, self.scope)

    @property
    def summary(self) -> str:
        """The rule in one line, for the histories of deliveries."""
        return f"{self.effect} rule {self.id}, made by {self.actor.who}"

    def is_active(self, now: datetime) -> bool:
        """Return whether it has an effect at this time."""
        return self.removed_at is None and (self.expires_at is None or self.expires_at > now)


def domain_scope(host: str) -> str:
    """Return the scope of all recipients in a domain, but not in its subdomains, which may belong to others."""
    return f"@{domain(host)}"


def scope_kind(scope: str) -> ScopeKind:
    """Return the kind of a scope."""
    if scope == SITE:
        return ScopeKind.SITE
    return ScopeKind.DOMAIN if scope.startswith("@") else ScopeKind.RECIPIENT


def sender_kind(sender: str) -> SenderKind:
    """Return the kind of a sender."""
    if "@" in sender:
        return SenderKind.ADDRESS
    return SenderKind.NETWORK if "/" in sender else SenderKind.DOMAIN


def recipient_scopes(recipients: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the scopes that hold for one delivery, in levels from the narrowest to the widest.

    ``recipients``: the identity for which the delivery is held, then others whose rules hold for it as well.
    """
    host = domain(recipients[0]) if "@" in recipients[0] else ""
    return (tuple(dict.fromkeys(filter(None, recipients))), (domain_scope(host),) if host else (), (SITE,))


def address_keys(address: str) -> tuple[str, ...]:
    """Return the senders that match an identity, the most specific first: itself, its domain, and its parent domains.

    A domain is its own address, so that ``address_keys("a.example.net")`` begins with it.
    """
    host = domain(address)
    keys = [] if host == address else [address]
    if host and not host.startswith("["):
        labels = host.split(".")
        keys += [".".join(labels[n:]) for n in range(len(labels))]
    return tuple(keys)


def wider_senders(sender: str) -> tuple[str, ...]:
    """Return the senders that match everything that this one matches, the most specific first: it is the first."""
    if sender_kind(sender) is not SenderKind.NETWORK:
        return address_keys(sender)
    address, _, length = sender.partition("/")
    return tuple(key for key in network_keys(address) if int(key.partition("/")[2]) <= int(length))


@lru_cache(maxsize=256)  # a decision needs them twice, and hosts send more than one message
def network_keys(client_ip: str | None) -> tuple[str, ...]:
    """Return the senders that match a host, the smallest network first; none for an invalid or missing address."""
    try:
        host = plain_ip(ip_address(client_ip or ""))
    except ValueError:
        return ()
    bits, number = host.max_prefixlen, int(host)
    return tuple(
        _network(number >> (bits - length) << (bits - length), bits, length)
        for length in range(bits, _PREFIX_MIN[host.version] - 1, -1)
    )


def network_sender(network: IPv4Network | IPv6Network) -> str:
    """Return the sender of rules for a network."""
    return _network(int(network.network_address), network.max_prefixlen, network.prefixlen)


def _network(number: int, bits: int, length: int) -> str:
    # `ipaddress` would take 5 ms for the 113 networks of an IPv6 address.
    family = socket.AF_INET if bits == 32 else socket.AF_INET6
    return f"{socket.inet_ntop(family, number.to_bytes(bits // 8, 'big'))}/{length}"


def prefix_min(version: int) -> int:
    """Return the shortest prefix of a network in a rule, for IP version 4 or 6."""
    return _PREFIX_MIN[version]


def plain_ip(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address for an IPv4-mapped IPv6 address, else the address itself."""
    return getattr(address, "ipv4_mapped", None) or address
