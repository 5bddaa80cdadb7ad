"""The time of the sign-in's answer does not say who is known (25): the test of Kolmogorov and Smirnov."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from random import Random
from time import perf_counter

import pytest

from portal.model.staff import EVERYWHERE, Grant, Role
from tests.builders import BY_OPERATOR, MALLORY, hold
from tests.conftest import MakeParts
from tests.faults.conftest import Report
from tests.web_client import Site

pytestmark = [pytest.mark.faults, pytest.mark.alone, pytest.mark.timeout(7200)]

_SAMPLES = 5_000
# All of the same length, which takes time as well.
_PEOPLE = {
    "recipient": "charlie@example.org",
    "staff": MALLORY,
    "unknown": "unknown@example.org",
    "foreign": "x@elsewhere.example",
}


def same_distribution(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the probability of so different samples if both are of one distribution (asymptotic)."""
    a, b = sorted(one), sorted(other)
    distance = max(abs(bisect_right(a, x) / len(a) - bisect_right(b, x) / len(b)) for x in (*a, *b))
    root = math.sqrt(len(a) * len(b) / (len(a) + len(b)))
    factor = (root + 0.12 + 0.11 / root) * distance
    terms = [math.exp(-2 * (k * factor) ** 2) for k in range(1, 101)]
    return min(1.0, max(0.0, 2 * (sum(terms[::2]) - sum(terms[1::2]))))


def test_the_time_of_a_sign_in_request_does_not_say_who_is_known(make_parts: MakeParts, report: Report) -> None:
    site, random = Site(make_parts()), Random(25)
    hold(site.store, recipients=(_PEOPLE["recipient"], MALLORY))
    site.store.staff.give(Grant(MALLORY, Role.ADMINISTRATOR, EVERYWHERE, site.now, BY_OPERATOR))
    times: dict[str, list[float]] = {name: [] for name in _PEOPLE}
    order = [*_PEOPLE] * _SAMPLES
    random.shuffle(order)  # what else the machine does meets all of them alike
    for number, name in enumerate(order):
        site.pass_time(minutes=11)  # within all limits
        browser = site.browser()
        browser.peer = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        began = perf_counter()
        answer = browser.post("/sign-in", {"address": _PEOPLE[name]})
        times[name].append(perf_counter() - began)
        assert answer.status == 303
    found = {name: same_distribution(times[name], times["unknown"]) for name in _PEOPLE if name != "unknown"}
    medians = {name: sorted(each)[len(each) // 2] * 1000 for name, each in times.items()}
    report(
        "25 times of sign-in requests",
        f"{_SAMPLES:,} each, median ms: {', '.join(f'{name} {each:.2f}' for name, each in medians.items())}; "
        f"p of being like unknown: {', '.join(f'{name} {p:.3f}' for name, p in found.items())}",
    )
    assert all(p > 0.01 for p in found.values()), (found, medians)
