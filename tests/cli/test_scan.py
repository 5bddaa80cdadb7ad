"""``quarantine scan``: the difference to the verdict at holding time, on both stores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from portal.cli import main
from portal.model.message import EventKind, Message, ScanOutcome, Symbol, Tier
from portal.stores import Store
from tests.builders import ALICE, BOB, hold, mail
from tests.rspamd_server import VIRUS, RspamdServer, wait_long_for_scans

Run = Callable[..., Result]
# For what does not depend on the store.
ON_FILES = pytest.mark.parametrize("store_url", ["files"], indirect=True)
SYMBOLS = (Symbol("BAYES_SPAM", 5.1, ("99%",)), Symbol("R_SPF_FAIL", 1.0), Symbol("DATE_IN_PAST", 1.0))


@pytest.fixture
def rspamd(monkeypatch: pytest.MonkeyPatch) -> Iterator[RspamdServer]:
    wait_long_for_scans(monkeypatch)
    with RspamdServer() as server:
        yield server


@pytest.fixture
def run(store_url: str, store: Store, tmp_path: Path, rspamd: RspamdServer, monkeypatch: pytest.MonkeyPatch) -> Run:
    config = tmp_path / "quarantine.toml"
    config.write_text(
        f'local_domains = ["example.org"]\nstore.url = "{store_url}"\nmail.from_address = "q@example.org"\n'
        f'links.keys_file = "{tmp_path / "links.keys"}"\n'
    )
    monkeypatch.setenv("QUARANTINE_CONFIG", str(config))
    monkeypatch.setenv("QUARANTINE_RSPAMD__URL", rspamd.url)

    def call(*words: str) -> Result:
        result = CliRunner().invoke(main, ["scan", *words])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        return result

    return call


def message(store: Store, held: Any) -> Message:
    return store.deliveries.of_message(held.id)[0].message


def test_the_difference_is_printed_and_a_better_verdict_changes_nothing(
    run: Run, store: Store, rspamd: RspamdServer
) -> None:
    data = mail()
    held = hold(store, data, symbols=SYMBOLS, score=17.5)
    rspamd.verdict_symbols = {"BAYES_SPAM": 2.25, "R_SPF_FAIL": 1.0, "URIBL_BLACK": 7.5}
    result = run(str(held.id))
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert ["action:", "reject", "->", "add", "header"] in lines
    assert ["score:", "17.50", "->", "12.50", "(rejected", "from", "15)"] in lines
    assert ["new", "URIBL_BLACK", "7.50", "x"] in lines
    assert ["gone", "DATE_IN_PAST", "1.00"] in lines
    assert ["changed", "BAYES_SPAM", "5.10", "->", "2.25", "x"] in lines
    assert ["virus", "scan:", "clean"] in lines
    assert ["tier:", "spam"] in lines
    assert "R_SPF_FAIL" not in result.output
    after = message(store, held)
    assert (after.score, after.symbols, after.action) == (17.5, SYMBOLS, "reject")
    [(headers, body)] = rspamd.checks
    assert body == data
    assert [value for name, value in headers if name == "Rcpt"] == [ALICE, BOB]
    one = dict(headers)
    assert (one["From"], one["IP"], one["Pass"]) == ("promo@example.net", "198.51.100.9", "all")
    assert json.loads(one["Settings"]) == {"symbols_disabled": ["EXPORT_METADATA_QUARANTINE", "HISTORY_SAVE"]}
    assert not {"user", "deliver-to"} & {name.lower() for name in one}


def test_unknown_parts_of_the_envelope_are_left_out(run: Run, store: Store, rspamd: RspamdServer) -> None:
    held = hold(store, recipients=[], envelope_sender=None, client_ip=None)
    assert run(str(held.id)).exit_code == 0
    null_sender = hold(store, recipients=["jürgen@example.org"] + [f"a{n}@example.org" for n in range(200)],
                       envelope_sender="")  # fmt: skip
    assert run(str(null_sender.id)).exit_code == 0
    (unknown, _), (known, _) = rspamd.checks
    assert not {"Rcpt", "From", "IP"} & {name for name, _ in unknown}
    assert dict(known)["From"] == "<>"
    recipients = [value.encode("latin-1").decode() for name, value in known if name == "Rcpt"]
    assert (recipients[0], len(recipients)) == ("jürgen@example.org", 80)


def test_what_is_known_as_dangerous_by_now_raises_the_tier(run: Run, store: Store, rspamd: RspamdServer) -> None:
    data = mail()
    held, copy = hold(store, data, [ALICE]), hold(store, data, [BOB])
    rspamd.verdict_symbols = {"PHISHED_OPENPHISH": 0.0, "BAYES_SPAM": 5.1, "R_SPF_FAIL": 1.0}
    result = run(str(held.id))
    assert result.exit_code == 0
    assert "tier: spam -> dangerous" in result.output
    for each in (held, copy):
        assert message(store, each).tier is Tier.DANGEROUS
        assert "PHISHED_OPENPHISH" in [symbol.name for symbol in message(store, each).symbols]
    [delivery] = store.deliveries.of_message(held.id)
    assert store.deliveries.history(delivery.key)[-1].kind is EventKind.RAISED
    rspamd.verdict_symbols = {}
    assert "tier: dangerous\n" in run(str(held.id)).output
    assert message(store, held).tier is Tier.DANGEROUS


def test_a_dangerous_symbol_that_counts_for_the_message_raises_nothing(
    run: Run, store: Store, rspamd: RspamdServer
) -> None:
    held = hold(store)
    rspamd.verdict_symbols = {"OUR_PHISHING": -1.0}
    assert run(str(held.id)).exit_code == 0
    assert message(store, held).tier is Tier.SPAM


def test_a_virus_behind_a_forced_verdict_is_found(run: Run, store: Store, rspamd: RspamdServer) -> None:
    """Such a verdict also keeps a scan by all filters from asking virus scanners."""
    held = hold(store, mail() + VIRUS)
    result = run(str(held.id))
    assert "virus scan: found" in result.output
    assert "tier: spam -> dangerous" in result.output


def test_without_virus_scans_only_the_filters_judge(
    run: Run, store: Store, rspamd: RspamdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUARANTINE_RSPAMD__SCAN_GROUPS", "")
    held = hold(store, mail() + VIRUS)
    result = run(str(held.id))
    assert result.exit_code == 0
    assert "virus scan" not in result.output
    assert message(store, held).scan is None
    assert rspamd.scans == []


def test_a_failed_virus_scan_is_reported(run: Run, store: Store, rspamd: RspamdServer) -> None:
    held = hold(store)
    rspamd.symbols = {"CLAM_VIRUS_FAIL": ["no\x1b[31m answer"]}
    result = run(str(held.id))
    assert result.exit_code == 1
    assert "action: reject -> add header" in result.output
    assert "virus scan: failed: the virus scanner failed" in result.output
    assert "tier: spam -> suspicious" in result.output
    assert "\x1b" not in result.output
    scan = message(store, held).scan
    assert scan is not None and scan.outcome is ScanOutcome.FAILED


HOSTILE = {
    "no JSON": b"<html>",
    "a list": b"[1]",
    "deep": b"[" * 200_000,
    "no symbols": b'{"action": "reject", "score": 1}',
    "symbols is a list": b'{"symbols": [1, 2]}',
    "a symbol is a number": b'{"symbols": {"A": 1}}',
    "a score is a list": b'{"symbols": {"A": {"name": "A", "score": []}}}',
    "options is an object": b'{"symbols": {"A": {"name": "A", "score": 1, "options": {"a": 1}}}}',
    "a score is too large": b'{"symbols": {"A": {"name": "A", "score": 1' + b"0" * 400 + b"}}}",
    "many symbols": json.dumps({"symbols": {f"A{n}": {"name": f"A{n}", "score": 1} for n in range(2001)}}).encode(),
    "skipped": b'{"is_skipped": true, "symbols": {}}',
    "huge": b'{"symbols": {"A": {"name": "' + b"x" * (9 << 20) + b'", "score": 1}}}',
}


@ON_FILES
@pytest.mark.parametrize("answer", HOSTILE)
def test_a_hostile_answer_is_an_error_and_changes_nothing(
    run: Run, store: Store, rspamd: RspamdServer, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUARANTINE_RSPAMD__SCAN_GROUPS", "")
    held = hold(store)
    before = message(store, held)
    rspamd.check_reply = HOSTILE[answer]
    result = run(str(held.id))
    assert result.exit_code == 1
    assert "Rspamd" in result.output
    assert len(result.output) < 500
    assert message(store, held) == before


@ON_FILES
@pytest.mark.parametrize("counters", [{}, [1], "x", None], ids=str)
def test_without_knowing_the_exporters_nothing_is_posted(
    run: Run, store: Store, rspamd: RspamdServer, counters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUARANTINE_RSPAMD__SCAN_GROUPS", "")
    rspamd.counters = counters
    held = hold(store)
    result = run(str(held.id))
    assert (result.exit_code, rspamd.checks) == (1, [])


@ON_FILES
def test_names_options_and_action_are_printed_safely(run: Run, store: Store, rspamd: RspamdServer) -> None:
    held = hold(store)
    evil = "A\x1b]0;title\x07\u202eB[bold]\nC" + "D" * 300
    rspamd.verdict = {"action": evil, "score": float("nan"), "required_score": "15"}
    rspamd.verdict_symbols = {evil: float("inf")}
    result = run(str(held.id))
    assert result.exit_code == 0
    assert "score: 17.50 -> unknown\n" in result.output
    assert not {"\x1b", "\x07", "\u202e"} & set(result.output)
    assert "[bold]" in result.output
    assert max(map(len, result.output.splitlines())) < 200


def test_without_rspamd_or_message(run: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    held = hold(store)
    assert run("nonsense").exit_code == 1
    monkeypatch.delenv("QUARANTINE_RSPAMD__URL")
    result = run(str(held.id))
    assert result.exit_code == 1
    assert "rspamd.url is not set" in result.output


@ON_FILES
def test_rspamd_that_is_down(run: Run, store: Store, rspamd: RspamdServer) -> None:
    held = hold(store)
    rspamd.__exit__(None, None, None)
    result = run(str(held.id))
    assert result.exit_code == 1
    assert "Rspamd cannot be reached" in result.output
