"""Stores of held mail: the contracts (`contracts`), their values (`records`), the rules that both stores follow
(`rules`), the SQL that both share (`shared`), and each store (`files`, `postgres`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from portal.model.store_url import StoreUrl
from portal.stores.contracts import Store
from portal.stores.lifecycle import DIGESTS_KEPT, LEASE
from portal.stores.postgres.migrations import SCHEMA_VERSION

if TYPE_CHECKING:
    from portal.stores.files.store import FileStore
    from portal.stores.postgres.store import PostgresStore

__all__ = ["DIGESTS_KEPT", "LEASE", "SCHEMA_VERSION", "Store", "import_store", "open_store"]


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
        return _file_store().open(place.folder, must_exist=must_exist, must_be_empty=must_be_empty)
    return _postgres_store().open(place.dsn, create=create)


def import_store(place: StoreUrl) -> None:
    """Import the modules of this store, which `open_store` imports otherwise."""
    if place.folder is not None:
        _file_store()
    else:
        _postgres_store()


def _file_store() -> type[FileStore]:
    from portal.stores.files.store import FileStore

    return FileStore


def _postgres_store() -> type[PostgresStore]:
    from portal.stores.postgres.store import PostgresStore

    return PostgresStore
