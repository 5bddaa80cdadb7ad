"""Stores of held mail: the contracts (`contracts`), their values (`records`), the rules that both stores follow
(`rules`), the SQL that both share (`shared`), and each store (`files`, `postgres`)."""

from __future__ import annotations

from portal.model.store_url import StoreUrl
from portal.stores.contracts import Store
from portal.stores.postgres.migrations import SCHEMA_VERSION
from portal.stores.rules import DIGESTS_KEPT, LEASE

__all__ = ["DIGESTS_KEPT", "LEASE", "SCHEMA_VERSION", "Store", "open_store"]


def open_store(
    url: StoreUrl | str, *, create: bool = False, must_exist: bool = False, must_be_empty: bool = False
) -> Store:
    """Open the store that ``url`` names.

    ``create``: create or upgrade it, as `quarantine init` does. A file store is always created or upgraded, unless
    ``must_exist`` is set; with ``must_be_empty`` it is only created in an empty folder. Raises ValueError for another
    kind of URL, StoreUnavailable when the store cannot be reached, StoreUnusable when it is missing or has another
    schema (the message names the command to run).
    """
    place = url if isinstance(url, StoreUrl) else StoreUrl.parse(url)
    if place.folder is not None:
        from portal.stores.files.store import FileStore

        return FileStore.open(place.folder, must_exist=must_exist, must_be_empty=must_be_empty)
    from portal.stores.postgres.store import PostgresStore

    return PostgresStore.open(place.dsn, create=create)
