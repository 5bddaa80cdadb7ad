"""The stored form of symbols."""

import json

import pytest
import zstandard

from portal.model.message import Symbol
from portal.stores import symbols

SYMBOLS = (Symbol("BAYES_SPAM", 5.1, ("99 %", "x")), Symbol("LOCAL_RULE", 1.0, (), "Seen at the firewall"))


def test_symbols_are_unpacked_as_they_were_packed() -> None:
    assert symbols.unpack(symbols.pack(SYMBOLS)) == SYMBOLS


@pytest.mark.parametrize("pack", [str, lambda text: zstandard.compress(text.encode())])
def test_symbols_of_older_versions_have_no_description(pack: object) -> None:
    older = json.dumps([["BAYES_SPAM", 5.1, ["99 %", "x"]], ["LOCAL_RULE", 1.0, []]])
    assert symbols.unpack(pack(older)) == tuple(symbol._replace(description="") for symbol in SYMBOLS)  # type: ignore[operator]
