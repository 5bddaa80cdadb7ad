"""Forged links, form tokens, cookies, marks, secrets and codes are not accepted. tests/faults has a million of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from portal.assemble import Parts
from tests import forgeries
from tests.web_client import Site

_SEED = 20261129


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Site:
    return Site(make_parts())


def test_no_forged_signature_is_accepted() -> None:
    assert forgeries.try_signed(2_000, _SEED) == {"link": 1_200, "form token": 400, "cookie or mark": 400}


def test_no_guessed_secret_is_accepted(site: Site) -> None:
    assert forgeries.try_secrets(site, 300, _SEED).total() == 300


def test_no_guessed_code_is_accepted(site: Site) -> None:
    assert forgeries.try_codes(site, 70, _SEED).total() == 70


def test_no_forgery_shows_or_changes_anything(site: Site) -> None:
    assert forgeries.try_over_http(site, 150, _SEED).total() == 150
