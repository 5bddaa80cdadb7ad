"""A million forgeries (23). The short form is tests/web/test_forgeries.py."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from functools import partial

import pytest

from tests import forgeries
from tests.conftest import MakeParts
from tests.faults.conftest import Report
from tests.faults.test_kills import in_words
from tests.web_client import Site

pytestmark = [pytest.mark.faults, pytest.mark.timeout(7200)]

_SIGNED, _SECRETS, _CODES, _HTTP = 1_000_000, 60_000, 14_000, 6_000
_PROCESSES = 2


def test_a_million_forged_signatures(report: Report) -> None:
    with multiprocessing.get_context("spawn").Pool(_PROCESSES) as pool:
        tried = pool.map(partial(forgeries.try_signed, _SIGNED // _PROCESSES), range(_PROCESSES))
    report("23 forged signatures", f"{in_words(sum(tried, Counter()))}; 0 accepted", "–")


def test_guesses_in_the_store_and_forgeries_over_http(make_parts: MakeParts, report: Report) -> None:
    site = Site(make_parts())
    tried = forgeries.try_secrets(site, _SECRETS, 1)
    tried += forgeries.try_codes(site, _CODES, 2)
    tried += forgeries.try_over_http(site, _HTTP, 3)
    report("23 guessed secrets and codes, forgeries over HTTP", f"{in_words(tried)}; 0 accepted")
