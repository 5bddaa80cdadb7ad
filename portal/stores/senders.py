"""Senders whose mail was released to a recipient before, for any store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from portal.model.message import Reader
from portal.model.sender import address_in
from portal.stores.contracts import Store

KNOWN_MAX = 100  # messages released to each identity


def known_senders(store: Store, readers: Sequence[Reader]) -> Mapping[str, frozenset[str]]:
    """Return, by identity, the addresses of senders whose mail was released to each reader.

    Readers without released mail are left out. Raises StoreUnavailable.
    """
    found = store.deliveries.released_from(
        list({name: None for reader in readers for name in reader.identities}), KNOWN_MAX
    )
    known = {name: addresses_in(headers) for name, headers in found.items()}
    return {
        reader.identity: frozenset().union(*(known.get(name, frozenset()) for name in reader.identities))
        for reader in readers
        if any(name in known for name in reader.identities)
    }


def addresses_in(headers: Iterable[str]) -> frozenset[str]:
    """Return the addresses of senders that these From headers name."""
    return frozenset(map(address_in, headers)) - {""}
