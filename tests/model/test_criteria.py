"""Search criteria as typed: values, time zones, and sentences about wrong ones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from portal.model.criteria import CRITERIA, read
from portal.model.errors import BadCriterion
from portal.model.message import Filter, State, Tier

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("typed", "field", "value"),
    [
        ({"recipient": " Alice@Example.ORG "}, "recipient", "alice@example.org"),
        ({"domain": "@MÜNCHEN.example"}, "domains", frozenset({"xn--mnchen-3ya.example"})),
        ({"sender-domain": "Shop.Example"}, "sender_domain", "shop.example"),
        ({"action": "Add Header"}, "actions", frozenset({"add header"})),
        ({"tier": "SPAM"}, "tiers", frozenset({Tier.SPAM})),
        ({"state": "held"}, "states", frozenset({State.HELD})),
        ({"client": "192.0.2.9/24"}, "client", ip_network("192.0.2.0/24")),
        ({"client": "[2001:db8::1]"}, "client", ip_network("2001:db8::1")),
        ({"size-min": "1.5M"}, "size_min", 1_500_000),
        ({"size-max": "20 kB"}, "size_max", 20_000),
        ({"score-min": "-1e1"}, "score_min", -10.0),
        ({"since": "12h"}, "since", NOW - timedelta(hours=12)),
        ({"since": "2026-11-28"}, "since", datetime(2026, 11, 27, 23, tzinfo=UTC)),
        ({"since": "2026-11-28T03:00Z"}, "since", datetime(2026, 11, 28, 3, tzinfo=UTC)),
        ({"until": "2026-11-28"}, "until", datetime(2026, 11, 28, 23, tzinfo=UTC)),
        ({"until": "9999-12-31"}, "until", datetime(9999, 12, 31, tzinfo=UTC)),
    ],
)  # fmt: skip
def test_values_are_read(typed: dict[str, str], field: str, value: Any) -> None:
    wanted = read({name: [text] for name, text in typed.items()}, BERLIN, NOW)
    assert getattr(wanted, field) == value
    assert wanted != Filter()


@pytest.mark.parametrize("name", [each.name for each in CRITERIA])
@pytest.mark.parametrize(
    "text", ["", "\0", "\udcff", "9" * 5000, "<script>", "٣d", "1e999", "-1", "0001-01-01", "99999d"]
)
def test_any_text_is_a_value_or_explained(name: str, text: str) -> None:
    try:
        read({name: [text]}, BERLIN, NOW)
    except BadCriterion as error:
        assert error.sentence(str).startswith(f"{name}: ")
        assert error.sentence(str).isprintable()
        assert len(error.sentence(str)) < 400


@pytest.mark.parametrize("name", [each.name for each in CRITERIA])
@pytest.mark.parametrize("text", ["", " ", "\t\n", "\0", "\u200b", "\u3164", "\u0301", "\u00b4", "\u200b \u200b"])
def test_a_text_with_nothing_to_search_for_is_an_error(name: str, text: str) -> None:
    with pytest.raises(BadCriterion, match=f"^{name}: this is empty") as caught:
        read({name: [text]}, BERLIN, NOW)
    assert caught.value.name == name


def test_no_value_of_a_name_restricts_nothing() -> None:
    assert read({each.name: [] for each in CRITERIA}, BERLIN, NOW) == Filter()
