"""Fixtures of the contract tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from portal.stores import Store, open_store


@pytest.fixture
def second(store_url: str, store: Store) -> Iterator[Store]:
    """The same store opened once more, as another process has it."""
    opened = open_store(store_url)
    yield opened
    opened.close()
