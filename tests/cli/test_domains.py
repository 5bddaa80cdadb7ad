"""``quarantine domains``, as typed by an operator, on both stores."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from portal.cli import checks, main
from portal.model.domain_value import DomainValue
from portal.model.message import new_id
from portal.settings import load
from portal.settings.domains import EDITABLE
from portal.stores import Store
from tests.builders import ALICE, BY_OPERATOR, WRONG_VALUES, now
from tests.conftest import MakeParts

Run = Callable[..., Result]
TABLE = """
[domains."example.org"]
name = "Example"
language = "it"
admin_address = "it@example.org"
"""
LOCKED = 'locked = ["admin_address", "schedule"]\n'


@pytest.fixture
def run(store_url: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    config = tmp_path / "quarantine.toml"
    config.write_text(
        f'local_domains = ["example.org", "münchen.example"]\nstore.url = "{store_url}"\n'
        f'mail.from_address = "q@example.org"\nlinks.keys_file = "{tmp_path / "links.keys"}"\n{TABLE}{LOCKED}'
    )
    monkeypatch.setenv("QUARANTINE_CONFIG", str(config))

    def call(*words: str, **options: Any) -> Result:
        result = CliRunner().invoke(main, ["domains", *words], **options)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call


def shown(run: Run, name: str = "example.org") -> dict[str, str]:
    """Return where each value of a domain comes from."""
    sources: dict[str, str] = json.loads(run("show", name, "--json").output)["sources"]
    return sources


def test_the_store_wins_until_the_value_is_removed(run: Run) -> None:
    assert shown(run)["language"] == "file"
    assert run("set", "Example.ORG", "language", "fr").output == "example.org language: fr\n"
    found = json.loads(run("show", "example.org", "--json").output)
    assert (found["values"]["language"], found["sources"]["language"]) == ("fr", "store")
    assert run("unset", "example.org", "language").output == "example.org language: removed\n"
    found = json.loads(run("show", "example.org", "--json").output)
    assert (found["values"]["language"], found["sources"]["language"]) == ("it", "file")
    assert [(change["key"], change["value"]) for change in found["history"]] == [("language", None), ("language", "fr")]
    assert all(change["set_by"].startswith("operator") for change in found["history"])
    assert ", by operator" in run("show", "example.org").output


def test_list_names_the_domains_with_values_of_their_own(run: Run) -> None:
    run("set", "münchen.example", "at", "16:00, 07:00")
    [one, two] = [json.loads(line) for line in run("list", "--json").output.splitlines()]
    assert one == {"domain": "example.org", "name": "Example", "admin_address": "it@example.org", "language": "it"}
    assert two == {"domain": "xn--mnchen-3ya.example", "at": ["07:00", "16:00"]}
    assert "münchen.example  at = 07:00, 16:00" in run("list").output
    assert shown(run, "xn--mnchen-3ya.example")["at"] == "store"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("set", "example.org", "admin_address", "a@example.org"),
            "admin_address: This value is locked in the settings file",
        ),
        (("set", "example.org", "schedule", "weekdays"), "schedule: This value is locked in the settings file"),
        (
            ("set", "example.org", "locked", "name"),
            "'locked' is not one of the keys that can be set. Use one of: name, ",
        ),
        (("set", "example.org", "domain", "x"), "'domain' is not one of the keys that can be set"),
        (("set", "other.example", "name", "x"), "other.example is not a domain of local_domains"),
        (("set", "example.org", "language", "tlh"), "language: Enter one of: en, de, "),
        (("set", "example.org", "from_address", "q@other.example"), "from_address: q@other.example is not in example"),
        (("set", "example.org", "at", "07:00:30"), "at: Enter times like 07:00, without seconds and"),
        (("set", "example.org", "name", 'A "B"'), 'name: Leave out " < > \\ and line breaks'),
        (("unset", "example.org", "name"), "name: This value is not set in the store"),
        (("unset", "example.org", "nonsense"), "'nonsense' is not one of the keys that can be set. Use one of: name, "),
        (("unset", "example.org", "schedule"), "schedule: This value is locked in the settings file"),
        (("unset", "other.example", "name"), "other.example is not a domain of local_domains"),
        (("show", "other.example"), "other.example is not a domain of local_domains"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(
    run: Run, store: Store, words: tuple[str, ...], sentence: str
) -> None:
    result = run(*words)
    assert result.exit_code == (1 if "not set in the store" in sentence else 2)  # not done, or wrong arguments
    assert result.output.startswith(sentence) and result.output.count("\n") == 1
    assert store.domains.records(None, 9) == []


@pytest.mark.parametrize("key", EDITABLE)
def test_set_says_what_to_enter_for_each_key(run: Run, store: Store, key: str, tmp_path: Path) -> None:
    (tmp_path / "quarantine.toml").write_text((tmp_path / "quarantine.toml").read_text().replace(LOCKED, ""))
    (tmp_path / "logo").write_text("<svg/>")
    result = run("set", "example.org", key, str(tmp_path / "logo") if key == "logo" else WRONG_VALUES[key][0])
    assert result.exit_code == 2 and re.match(rf"{key}: .*\b(Enter|Use|Leave out) ", result.output)
    assert "Input should" not in result.output and result.output.count("\n") == 1
    assert store.domains.records(None, 9) == []


def test_set_rejects_an_empty_value(run: Run, store: Store) -> None:
    result = run("set", "example.org", "name", " ")
    assert result.exit_code == 2 and "It is empty" in result.output
    assert store.domains.records(None, 9) == []


def test_a_truth_value_is_written_as_in_the_file(run: Run) -> None:
    assert run("set", "example.org", "recipient_rules", "no").output == "example.org recipient_rules: false\n"


def test_a_logo_is_read_from_a_file_or_from_standard_input(run: Run, store: Store, tmp_path: Path) -> None:
    picture = b"\x89PNG\r\n\x1a\n" + bytes(40)
    (tmp_path / "logo.png").write_bytes(picture)
    expected = f"data:image/png;base64,{b64encode(picture).decode()}"
    for name, options in ((str(tmp_path / "logo.png"), {}), ("-", {"input": picture})):
        assert run("set", "example.org", "logo", name, **options).exit_code == 0
        assert store.domains.records(None, 9)[-1].value == expected
        run("unset", "example.org", "logo")
    wrong = run("set", "example.org", "logo", "-", input=b"<svg/>")
    assert wrong.exit_code == 2 and wrong.output.startswith("logo: ")
    assert "No such file" in run("set", "example.org", "logo", "away.png").output


def test_a_value_that_is_no_longer_allowed_is_reported_and_can_be_removed(run: Run, store: Store) -> None:
    for domain, name, value in (
        ("example.org", "schedule", "weekdays"),  # locked since
        ("gone.example", "name", "Gone"),  # no longer local
        ("example.org", "former_key", "1"),
    ):
        store.domains.set([DomainValue(new_id(), domain, name, value, now(), BY_OPERATOR)])
    settings = load()
    texts = [f"{finding.topic}: {finding.text}" for finding in checks.domain_values(settings, store)]
    assert len(texts) == 3
    assert "locked in the settings file" in "".join(texts)
    assert shown(run)["schedule"] == "site, locked"
    assert run("unset", "gone.example", "name").exit_code == 0
    assert run("unset", "example.org", "former_key").exit_code == 0
    assert len(list(checks.domain_values(settings, store))) == 1


def test_a_change_reaches_other_processes_within_seconds(
    run: Run, make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, seconds = make_parts(local_domains="example.org,münchen.example"), [0.0]
    monkeypatch.setattr("portal.policy.domains.monotonic", lambda: seconds[0])
    assert parts.domains.of(ALICE).language == "it"
    run("set", "example.org", "language", "fr")
    seconds[0] += 1e9
    assert parts.domains.of(ALICE).language == "fr"
    assert parts.domains.of("a@münchen.example").language == "en"


def test_values_stay_in_effect_while_the_store_does_not_answer(
    run: Run, make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("set", "example.org", "language", "fr")
    parts, seconds = make_parts(local_domains="example.org,münchen.example"), [0.0]
    monkeypatch.setattr("portal.policy.domains.monotonic", lambda: seconds[0])
    parts.store.close()
    seconds[0] += 1e9
    assert parts.domains.of(ALICE).language == "fr"
