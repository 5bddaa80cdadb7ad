"""Domains at which anybody can get an address: free mail providers, access providers and disposable addresses."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_LIST = Path(__file__).with_name("freemail.txt")  # written by tools/freemail.py


def is_freemail(host: str) -> bool:
    """Return whether anybody can get an address at a domain, which has A-labels."""
    return host in _domains()


@cache
def _domains() -> frozenset[str]:
    lines = _LIST.read_text("utf-8").splitlines()  # loaded when it is first needed: 10 ms, 2 MB
    return frozenset(line for line in lines if not line.startswith("#"))
