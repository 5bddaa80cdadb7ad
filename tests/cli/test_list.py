"""`quarantine list` over all held messages: what it finds, counts and groups, and what it says about nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from portal.cli import main
from portal.model.message import Symbol, Tier
from portal.stores import Store
from portal.stores.shared.facets import SqlFacets
from tests.builders import ALICE, hold, mail, now

Run = Callable[..., Result]
BAD = (Symbol("FUZZY_DENIED", 12.0), Symbol("R_SPF_ALLOW", -0.2))


@pytest.fixture
def run(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    config = tmp_path / "quarantine.toml"
    config.write_text(
        f'local_domains = ["example.org"]\nstore.url = "{store_url}"\nlinks.keys_file = "{tmp_path / "links.keys"}"\n'
        'people.recipient_delimiter = "+"\nmail.from_address = "quarantine@example.org"\n'
    )
    monkeypatch.setenv("QUARANTINE_CONFIG", str(config))
    return lambda *words: CliRunner().invoke(main, words)


@pytest.fixture
def bad(run: Run, store: Store) -> str:
    """The id of a message with facts that others do not have."""
    run("init")
    hold(store, recipients=[ALICE])
    while store.facets.index():
        pass
    held = hold(
        store,
        mail(size_bytes=6_000),
        recipients=["carol@example.org"],
        symbols=BAD,
        action="add header",
        client_ip="192.0.2.77",
        header_from="Shop <a@shop.example>",
        tier=Tier.SUSPICIOUS,
    )
    store.messages.record_names(held.id, ["bill.pdf"])
    return str(held.id)


@pytest.mark.parametrize(
    "options",
    [
        ["--symbol", "fuzzy_denied", "--symbol", "R_SPF_ALLOW"],
        ["--action", "Add header"],
        ["--action", "greylist", "--action", "add header"],
        ["--client", "192.0.2.0/24"],
        ["--size-min", "5k", "--size-max", "1.5M"],
        ["--sender-domain", "Shop.example"],
        ["--symbol", "FUZZY_DENIED", "--recipient", "carol+list@example.org"],
        ["--domain", "@example.org", "--tier", "suspicious", "--since", "1h"],
    ],
)
def test_list_finds_by_what_rspamd_said(run: Run, bad: str, options: list[str]) -> None:
    result = run("list", "--json", *options)
    assert result.exit_code == 0, result.output
    [line] = [json.loads(line) for line in result.stdout.splitlines()]
    assert line["id"] == bad
    assert (line["action"], line["client_ip"]) == ("add header", "192.0.2.77")
    assert line["size_bytes"] > 5_000
    assert line["symbols"][0] == {"name": "FUZZY_DENIED", "score": 12.0}
    assert line["attachments"] == ["bill.pdf"]
    assert run("list", "--count", *options).stdout == "1\n"


def test_list_by_score(run: Run, store: Store, bad: str) -> None:
    ids = [str(hold(store, recipients=[ALICE], score=score).id) for score in (99.0, 98.0)]
    for order, expected in (("highest-score", ids), ("lowest-score", ids[::-1])):
        lines = run("list", "--json", "--order", order, "--score-min", "90").stdout.splitlines()
        assert [json.loads(line)["id"] for line in lines] == expected
    assert run("list", "--count", "--order", "highest-score").exit_code == 2


def test_list_groups(run: Run, bad: str) -> None:
    table = run("list", "--group-by", "symbol").stdout
    assert table.splitlines()[1].split() == ["FUZZY_DENIED", "1", "12.0"]
    lines = [json.loads(line) for line in run("list", "--group-by", "sender-domain", "--json").stdout.splitlines()]
    assert lines == [{"sender-domain": name, "count": 1, "exact": True} for name in ("example.net", "shop.example")]
    first = run("list", "--group-by", "symbol", "--limit", "1")
    assert len(first.stdout.splitlines()) == 2
    assert "--limit 10" in first.stderr
    assert json.loads(run("list", "--count", "--json").stdout) == {"count": 2, "exact": True, "indexed": True}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--recipient", "nobody@elsewhere.example"], "is not a recipient of this site"),
        (["--recipient", "nobody@example.org"], "Nothing is stored for nobody@example.org"),
        (["--symbol", "FUZY_DENIED"], "No message has had the symbol FUZY_DENIED"),
        (["--until", "2020-01-01"], "they are kept for 30 days"),
        (["--since", "2999-01-01"], "in the future"),
        (["--recipient", ALICE, "--state", "released"], "No delivery matches all criteria"),
    ],
)
def test_an_empty_list_says_why(run: Run, bad: str, options: list[str], why: str) -> None:
    for more in ([], ["--count"], ["--group-by", "hour"], ["--json"]):
        result = run("list", *options, *more)
        assert result.exit_code == 0
        assert why in result.stderr, more
    assert why not in result.stdout


def test_list_says_that_only_the_newest_were_counted(run: Run, bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal.cli.listing.COUNTED_MAX", 1)
    monkeypatch.setattr(SqlFacets.count, "__defaults__", (1,))
    monkeypatch.setattr(SqlFacets.groups, "__defaults__", (1,))
    assert run("list", "--count", "--domain", "example.org").stdout == "more than 1\n"
    groups = run("list", "--group-by", "domain", "--domain", "example.org")
    assert groups.stdout.splitlines()[1].split() == ["example.org", "1"]
    assert "only the newest 1 deliveries were counted. They were held since" in groups.stderr


def test_an_empty_store_says_so(run: Run, store: Store) -> None:
    run("init")
    assert "Nothing is held." in run("list").stderr
    held: Any = hold(store, at=now() - timedelta(days=3))
    for more in ([], ["--count"], ["--group-by", "symbol"]):
        assert "There may be more: some messages are still being indexed" in run("list", "--symbol", "x", *more).stderr
    assert json.loads(run("list", "--count", "--json").stdout) == {"count": 0, "exact": False, "indexed": False}
    while store.facets.index():
        pass
    assert str(held.id) in run("list", "--symbol", "BAYES_SPAM").stdout
