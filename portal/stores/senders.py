"""Whose mail recipients got released before, out of any store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from portal.model.message import Reader
from portal.model.reasons import address_in
from portal.stores import Store, reader_of

_KNOWN_AT_MOST = 100


def known_senders(store: Store, recipients: Sequence[str | Reader]) -> Mapping[str, frozenset[str]]:
    """Addresses whose mail each of these recipients got released lately, for those who did. Raises StoreUnavailable."""
    readers = [reader_of(recipient) for recipient in recipients]
    found = store.released_from(list({name: None for reader in readers for name in reader.identities}), _KNOWN_AT_MOST)
    known = {name: frozenset(map(address_in, headers)) - {""} for name, headers in found.items()}
    return {
        reader.identity: frozenset().union(*(known.get(name, frozenset()) for name in reader.identities))
        for reader in readers
        if any(name in known for name in reader.identities)
    }
