"""Results of SPF, DKIM and DMARC for the page of a message."""

from dataclasses import fields
from typing import Any

import pytest

from portal.model.authentication import checks
from portal.model.message import FACTS, Flag, Message, Symbol, Tier, new_id
from tests.builders import export


def results(*symbols: Symbol, **more: Any) -> list[tuple[str, str]]:
    exported = export(symbols=symbols, **more)
    facts = {each.name: getattr(exported, each.name) for each in fields(exported) if each.name in FACTS}
    return [(check.result, check.domains) for check in checks(Message(id=new_id(), verdict_tier=Tier.SPAM, **facts))]


# The options as Rspamd 3.4 and 4.1 write them.
@pytest.mark.parametrize(
    ("symbols", "expected"),
    [
        (
            (
                Symbol("R_SPF_ALLOW", -0.2, ("+ip4:192.0.2.0/24",)),
                Symbol("R_DKIM_ALLOW", -0.2, ("example.net:s=key", "esp.example:s=k2")),
                Symbol("DMARC_POLICY_ALLOW", -0.5, ("example.net", "reject")),
            ),
            [("Passed", "example.net"), ("Passed", "example.net, esp.example"), ("Passed", "example.net")],
        ),
        (
            (
                Symbol("R_SPF_SOFTFAIL", 0, ("~all",)),
                Symbol("R_DKIM_REJECT", 1, ("bank.example:s=key",)),
                Symbol("DMARC_POLICY_REJECT", 2, ("bank.example : No valid SPF, No valid DKIM", "reject")),
            ),
            [("Failed", "example.net"), ("Failed", "bank.example"), ("Failed", "bank.example")],
        ),
        ((Symbol("R_SPF_NA"), Symbol("R_DKIM_NA"), Symbol("DMARC_NA", 0, ("x.example",))), [("None", "")] * 3),
        (
            (Symbol("R_SPF_DNSFAIL"), Symbol("R_DKIM_TEMPFAIL")),
            [("Could not be checked", "")] * 2 + [("Not checked", "")],
        ),
        ((), [("Not checked", "")] * 3),
    ],
)
def test_each_method_has_one_result(symbols: tuple[Symbol, ...], expected: list[tuple[str, str]]) -> None:
    assert results(*symbols) == expected


def test_a_hostile_domain_is_cleaned_and_a_null_sender_has_none() -> None:
    hostile = Symbol("R_DKIM_ALLOW", 0, ("evil\u202e.example\n:s=x",))
    found = results(hostile, Symbol("R_SPF_ALLOW"), envelope_sender="", flags=frozenset[Flag]())
    assert found[:2] == [("Passed", ""), ("Passed", "evil.example")]
