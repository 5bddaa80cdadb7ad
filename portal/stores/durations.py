"""Durations of posts, pages, releases and digests, as histograms in the counters of the store.

So `/metrics` of any worker has the durations of all processes of all hosts, as it has the other counters.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from time import monotonic
from typing import NamedTuple

from portal.model.errors import RelayDeferred, RelayRefused
from portal.stores.contracts import Store

BOUNDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # seconds, of the buckets
POST_OUTCOMES = ("held", "known", "not-selected", "refused", "failed")
_NAMES = (*map(str, BOUNDS), "+Inf")
_PREFIX = "seconds."  # followed by what was measured, the label, and the bucket or "sum"


class Measured(StrEnum):
    """A kind of work that is measured."""

    POST = "post"
    PAGE = "page"
    RELEASE = "release"
    DIGEST = "digest"


class Histogram(NamedTuple):
    """Durations with the same label."""

    buckets: list[tuple[str, float]]  # the bound, and how many were not above it
    seconds: float  # of all


def observe(store: Store, what: Measured, label: str, seconds: float) -> None:
    """Count a duration. ``label`` has no dots, and few values."""
    name = f"{_PREFIX}{what}.{label}."
    store.notes.count({name + _NAMES[bisect_left(BOUNDS, seconds)]: 1, f"{name}sum": seconds})


@contextmanager
def sending(store: Store, what: Measured) -> Iterator[None]:
    """Count the duration of a block that sends a message, by the answer of the mail server."""
    began, answer = monotonic(), "2xx"
    try:
        yield
    except (RelayDeferred, RelayRefused) as error:
        answer = _class_of(error)
        raise
    except BaseException:
        answer = ""  # the cause is not the mail server
        raise
    finally:
        if answer:
            observe(store, what, answer, monotonic() - began)


def _class_of(error: RelayDeferred | RelayRefused) -> str:
    """Return the class of the answer that the mail server gave."""
    if isinstance(error, RelayRefused) or error.portal_rejected:
        return "5xx"
    return "4xx" if error.has_answer else "none"


def histograms(
    counters: Mapping[str, float], what: Measured, expected: Collection[str] = ()
) -> Mapping[str, Histogram]:
    """Return the durations by label, from the counters of the store.

    ``expected``: labels that are shown with zeros, since an alert sees no increase in a series that has just begun.
    """
    found: dict[str, dict[str, float]] = {label: {} for label in expected}
    for name, number in counters.items():
        if name.startswith(f"{_PREFIX}{what}."):
            label, bucket = name.removeprefix(f"{_PREFIX}{what}.").split(".", 1)
            found.setdefault(label, {})[bucket] = number
    return {label: _histogram(each) for label, each in sorted(found.items())}


def _histogram(counts: Mapping[str, float]) -> Histogram:
    total, buckets = 0.0, []
    for name in _NAMES:
        total += counts.get(name, 0.0)
        buckets.append((name, total))
    return Histogram(buckets, counts.get("sum", 0.0))
