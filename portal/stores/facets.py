"""Facets: what staff search for and group by, besides words, and the terms under which messages are found by it.

Rows of table `facet` and their terms are written after Rspamd got its answer, by the digest process, and by a search
for the newest messages. All terms begin with ``=`` and a letter, which no word does (`stores.search`).
"""

from __future__ import annotations

import hashlib
import math
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import NamedTuple
from uuid import UUID

from portal.model.message import Delivery, DeliveryId, Filter, Message, Tier, domain
from portal.model.sender import from_address
from portal.stores import search
from portal.stores.search import Terms, between, matches

SYMBOL_CHARS = 60
_SIZES_PER_OCTAVE = 8
_SIZE_MAX = 299  # 2^37 bytes
_NO_TOKEN = re.compile("[^a-z0-9]")
_POINTS_MAX = 1 << 30

SymbolPoints = tuple[int, int]  # the number of a symbol's name, and its score in hundredths


class FacetRow(NamedTuple):
    """A row of table `facet`, with the terms that it adds to those of `search.terms`, and the message's symbols."""

    id: UUID
    terms: tuple[str, ...]
    tier: Tier
    score: float | None
    action: str
    size_bytes: int
    sender_domain: str
    symbols: tuple[tuple[str, float], ...]  # name and score


class Hit(NamedTuple):
    """A delivery that a search found, without its message."""

    key: DeliveryId
    score: float | None
    symbols: bytes  # only if the search needs them, or with the facts
    subject: str = ""  # the texts only if the search needs them
    envelope_sender: str | None = None
    header_from: str = ""
    attachments: str | None = None
    recipient: str = ""  # identity; from here on the facts, which groups need
    sender_domain: str = ""
    state: str = ""
    tier: str = ""

    @property
    def texts(self) -> search.Texts:
        """The texts of the message."""
        names = search.names_from(self.attachments)
        return search.Texts(self.subject, self.envelope_sender, self.header_from, names)


def facet_row(message: Message, recipients: Iterable[str], rules: Iterable[str]) -> FacetRow:
    """Return the row of a message, its recipients' identities, and the senders of rules that decided its deliveries."""
    sender_domain = domain(from_address(message)) if "@" in from_address(message) else ""
    symbols = tuple((symbol.name[:SYMBOL_CHARS], symbol.score) for symbol in message.symbols)
    terms = [_symbol_term(name) for name, _ in symbols]
    terms += [_hashed("=d", domain(recipient)) for recipient in recipients if "@" in recipient]
    terms += [_hashed("=u", sender) for sender in rules]
    terms.append(f"=z{_size(message.size_bytes):03}")
    if message.action:
        terms.append(_action_term(message.action))
    if sender_domain:
        terms.append(_hashed("=f", sender_domain))
    if client := _client(message.client_ip):
        terms.append(client)
    action = (message.action or "").lower()
    return FacetRow(
        message.id,
        tuple(dict.fromkeys(terms)),
        message.tier,
        message.score,
        action,
        message.size_bytes,
        sender_domain,
        symbols,
    )


def wanted_terms(wanted: Filter) -> Terms | None:
    """Return the terms to query the index for, as `search.wanted_terms` does, with those of facets."""
    terms, groups = search.wanted_terms(wanted), _groups(wanted)
    if terms is None or groups is None:
        return None
    if groups and not terms and wanted.recipient is not None:
        groups.append(search.recipient_group(wanted.recipient, *wanted.also))
    return (*terms, *groups)


def _groups(wanted: Filter) -> list[tuple[str, ...]] | None:
    groups: list[tuple[str, ...]] = [(_symbol_term(name[:SYMBOL_CHARS]),) for name in wanted.symbols]
    if wanted.actions:
        groups.append(tuple(_action_term(action) for action in sorted(wanted.actions)))
    if wanted.client is not None:
        groups.append(tuple(_network(wanted.client)))
    if wanted.size_min is not None or wanted.size_max is not None:
        low, high = _size(wanted.size_min or 0), _SIZE_MAX if wanted.size_max is None else _size(wanted.size_max)
        if low > high:
            return None
        groups.append(tuple(between("=z", low, high)))
    if wanted.sender_domain is not None:
        groups.append((_hashed("=f", wanted.sender_domain),))
    if wanted.domains is not None:
        if not wanted.domains:
            return None
        groups.append(tuple(_hashed("=d", each) for each in sorted(wanted.domains)))
    if wanted.rule is not None:
        groups.append((_hashed("=u", wanted.rule),))
    return groups


def matcher(wanted: Filter) -> Callable[[Delivery], bool]:
    """Return a function that says of a delivery whether a search finds it, without the store.

    It does not check ``rule`` and ``like``, for which the store is needed.
    """
    groups = wanted_terms(replace(wanted, rule=None))
    symbols = {name[:SYMBOL_CHARS].lower() for name in wanted.symbols}
    recipients = {wanted.recipient, *wanted.also}

    def fits(delivery: Delivery) -> bool:
        message, recipient = delivery.message, delivery.recipient
        if groups is None or (wanted.states and delivery.state not in wanted.states):
            return False
        if wanted.recipient is not None and recipient not in recipients:
            return False
        if wanted.domains is not None and domain(recipient) not in wanted.domains:
            return False
        if (wanted.since and message.held_at < wanted.since) or (wanted.until and message.held_at >= wanted.until):
            return False
        row = facet_row(message, [recipient], ())
        if not symbols <= {name.lower() for name, _ in row.symbols}:
            return False
        if wanted.sender_domain not in (None, row.sender_domain) or (
            wanted.actions and row.action not in wanted.actions
        ):
            return False
        if (wanted.size_min or 0) > row.size_bytes or (
            wanted.size_max is not None and row.size_bytes > wanted.size_max
        ):
            return False
        return search.has_one_of_each(groups, [*_terms(message, recipient), *row.terms]) and matches(wanted, delivery)

    return fits


def _terms(message: Message, recipient: str) -> Sequence[str]:
    """Return the terms of a message that are not of its facets."""
    return search.terms(
        message.subject, message.envelope_sender, message.header_from, message.tier, message.score, [recipient],
        message.attachments,
    )  # fmt: skip


def pack(points: Iterable[SymbolPoints]) -> bytes:
    """Return the symbols of a message as column ``facet.symbols``."""
    return array("i", [number for pair in points for number in pair]).tobytes()


def unpack(packed: bytes) -> Sequence[int]:
    """Return numbers of names and scores of that column, in turn."""
    found = array("i")
    found.frombytes(packed)
    return found


def hundredths(score: float) -> int:
    """Return a score in hundredths."""
    return 0 if math.isnan(score) else round(max(-_POINTS_MAX, min(_POINTS_MAX, score * 100)))


def _symbol_term(name: str) -> str:
    return "=y" + _NO_TOKEN.sub("=", name.lower())


def _action_term(action: str) -> str:
    return "=a" + _NO_TOKEN.sub("=", action.lower())[:SYMBOL_CHARS]


def _hashed(prefix: str, text: str) -> str:
    return prefix + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _size(size_bytes: int) -> int:
    return min(_SIZE_MAX, int(_SIZES_PER_OCTAVE * math.log2(size_bytes))) if size_bytes > 1 else 0


def _client(address: str | None) -> str | None:
    try:
        parsed = ip_address(address or "")
    except ValueError:
        return None
    return f"=c{parsed.version}{parsed.packed.hex()}"


def _network(network: IPv4Network | IPv6Network) -> Iterator[str]:
    """Yield terms for the addresses of a network: prefixes of their hexadecimal digits."""
    digits, rest = divmod(network.prefixlen, 4)
    prefix = f"=c{network.version}{network.network_address.packed.hex()[:digits]}"
    if network.prefixlen == network.max_prefixlen:
        yield prefix
    elif rest == 0:
        yield f"{prefix}*"
    else:
        first = int(network.network_address.packed.hex()[digits], 16)
        for digit in range(first, first + (1 << (4 - rest))):
            yield f"{prefix}{digit:x}*"
