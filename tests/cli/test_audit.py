"""``quarantine audit``, and the names under which commands act, on both stores."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from portal.cli import main
from portal.model.message import DeliveryId
from portal.stores import Store
from tests.builders import ALICE, BOB, hold

Run = Callable[..., Result]


@pytest.fixture
def run(store_url: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    config = tmp_path / "quarantine.toml"
    config.write_text(
        f'local_domains = ["example.org"]\nstore.url = "{store_url}"\nmail.from_address = "q@example.org"\n'
        f'links.keys_file = "{tmp_path / "links.keys"}"\n'
    )
    monkeypatch.setenv("QUARANTINE_CONFIG", str(config))
    monkeypatch.setenv("LOGNAME", "quarantine")
    monkeypatch.setenv("SUDO_USER", "carol")

    def call(*words: str) -> Result:
        result = CliRunner().invoke(main, words)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call


def entries(run: Run, *words: str) -> list[dict[str, object]]:
    """Return the entries that the command lists, without those of its own exports."""
    found = [json.loads(line) for line in run("audit", "--json", *words).stdout.splitlines()]
    return [each for each in found if each["act"] != "exported"]


def test_commands_act_under_the_name_of_the_person_who_called_sudo(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (
        ("domains", "set", "example.org", "language"),
        ("--as", "dave", "domains", "set", "example.org", "name"),
    ):
        assert run(*words, "fr").exit_code == 0
    monkeypatch.delenv("SUDO_USER")
    assert run("domains", "unset", "example.org", "name").exit_code == 0
    assert [(each["who"], each["via"], each["detail"]) for each in reversed(entries(run))] == [
        ("operator:carol", "cli", "language = fr"),
        ("operator:dave", "cli:carol", "name = fr"),
        ("operator:quarantine", "cli", "name: as in the settings file"),
    ]


def test_reading_a_message_and_exporting_are_recorded(run: Run, store: Store) -> None:
    held = hold(store, recipients=[ALICE, BOB])
    assert run("print", str(held.id)).exit_code == 0
    assert run("meta", str(held.id)).exit_code == 0  # has no text of the message
    assert run("rules", "export").exit_code == 0
    found = [json.loads(line) for line in run("audit", "--json").stdout.splitlines()]
    assert [(each["act"], each["subject"], each["detail"]) for each in found] == [
        ("exported", "", "audit"),
        ("exported", "", "all rules"),
        *((("body-read", each["subject"], "")) for each in found[2:]),
    ]
    assert {each["subject"] for each in found[2:]} == {ALICE, BOB}
    assert {(each["id"], each["number"]) for each in found[2:]} == {(str(held.id), 0), (str(held.id), 1)}


def test_entries_are_selected(run: Run, store: Store) -> None:
    first, second = hold(store, recipients=[ALICE]), hold(store, recipients=[BOB])
    run("delete", str(first.id))
    run("--as", "dave", "delete", str(second.id))
    run("domains", "set", "example.org", "language", "fr")
    for words, expected in (
        (("--who", "carol"), ["domain-set", "deleted"]),
        (("--who", "dave"), ["deleted"]),
        (("--act", "deleted"), ["deleted", "deleted"]),
        (("--recipient", "Bob@Example.org"), ["deleted"]),
        (("--domain", "example.org"), ["domain-set"]),
        (("--id", str(first.id)), ["deleted"]),
        (("--since", "1h"), ["domain-set", "deleted", "deleted"]),
        (("--until", "1h"), []),
        (("--limit", "1", "--act", "deleted"), ["deleted"]),
    ):
        assert [each["act"] for each in entries(run, *words)] == expected, words
    table = run("audit", "--limit", "1")
    assert "There are more entries. To list more, use --limit 10" in table.stderr


def test_csv_has_no_formulas(run: Run, store: Store) -> None:
    held = hold(store, recipients=[ALICE])
    run("--as", "=cmd|' /C calc'!A0", "refuse", str(held.id), "--recipient", ALICE, "--reason", "no")
    store.deliveries.get(DeliveryId(held.id, 0))
    run("--as", "=1+1", "domains", "set", "example.org", "name", "x")
    rows = [*csv.DictReader(io.StringIO(run("audit", "--csv").stdout))]
    assert {row["who"] for row in rows} >= {"operator:=1+1"}
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@"))]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--since", "1h", "--until", "2h"), "--since is not before --until"),
        (("--recipient", ALICE, "--domain", "example.org"), "Use either --recipient or --domain."),
        (("--json", "--csv"), "Use either --json or --csv."),
        (("--act", "burned"), "burned"),
        (("--who", ""), "It is empty."),
        (("--recipient", " "), "It is empty."),
    ],
)
def test_wrong_calls_end_with_a_sentence_and_status_2(run: Run, words: tuple[str, ...], sentence: str) -> None:
    result = run("audit", *words)
    assert result.exit_code == 2
    assert sentence in result.output


def test_a_name_may_not_be_empty(run: Run) -> None:
    result = run("--as", " ", "list")
    assert result.exit_code == 2
    assert "It is empty." in result.output


def test_an_unknown_id_is_explained(run: Run) -> None:
    result = run("audit", "--id", "4XyZ")
    assert result.exit_code == 1
    assert "There is no message" in result.output
