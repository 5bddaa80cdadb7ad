"""Wrong calls of all commands: exit status 2, a sentence, and nothing is done."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import click
import pytest
from click.testing import CliRunner
from pytest import param

from digest.__main__ import main as digest_main
from portal.cli import main
from portal.keys import read_keys
from portal.stores import open_store
from tests.paths import ROOT

_VALID = "alice@example.org"
_ERRORS = {"NotDone", "AlreadyDone", "WrongCall", "click.UsageError", "click.BadParameter", "self.fail"}
# What says what to do: a command, or a verb in the imperative.
_INSTRUCTION = re.compile(
    r"\bquarantine \w|\b(add|call|check|confirm|copy|enter|exchange|give|leave out|run|save|shorten|try|use)\b", re.I
)
_WITHOUT_INSTRUCTION = {"Nothing was changed."}  # somebody has just answered that they do not want it
# Around a sentence of another module.
_FRAME = re.compile(r"\A((line |--recipient |… )?…: |logo: )?…(\nNothing was (changed|imported)\.)?\Z")


def commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield all commands of a program with their names, those of groups included."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        if isinstance(found, click.Group):
            yield from commands(found, *path, name)
        else:
            yield (*path, name), found


def literal(text: ast.expr) -> str:
    """Return the text of an expression, with … for each value that only the call knows."""
    if isinstance(text, ast.JoinedStr):
        return "".join(literal(part) for part in text.values)
    if isinstance(text, ast.BinOp):
        return literal(text.left) + literal(text.right)
    return text.value if isinstance(text, ast.Constant) and isinstance(text.value, str) else "…"


def sentences() -> Iterator[tuple[str, str]]:
    """Yield the place and text of each error of a command."""
    for path in (*sorted((ROOT / "portal/cli").glob("*.py")), ROOT / "digest/__main__.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in _ERRORS:
                yield f"{path.name}:{node.lineno}", literal(node.args[0])


def is_flag(each: click.Parameter) -> bool:
    return isinstance(each, click.Option) and each.is_flag


def with_empty(path: tuple[str, ...], command: click.Command, empty: click.Parameter) -> list[str]:
    """Return a call in which one value is empty and all required ones are there."""
    words = [*path]
    for each in command.params:
        if each is empty or each.required:
            some = each.type.choices[0] if isinstance(each.type, click.Choice) else _VALID
            value = "" if each is empty else str(some)
            words += [each.opts[0], value] if isinstance(each, click.Option) else [value]
    return words


CALLS = [
    param(program, with_empty(path, command, each), id=" ".join([*path, each.name or ""]))
    for program in (main, digest_main)
    for path, command in commands(program)
    for each in command.params
    if not is_flag(each)
]


@pytest.fixture
def no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that accepts its call finds a settings file that has its own error."""
    (tmp_path / "quarantine.toml").write_text('local_domains = "accepted"\n')
    monkeypatch.setenv("QUARANTINE_CONFIG", str(tmp_path / "quarantine.toml"))


@pytest.mark.usefixtures("no_settings")
@pytest.mark.parametrize(("program", "words"), CALLS)
def test_an_empty_value_is_an_error(program: click.Group, words: list[str]) -> None:
    result = CliRunner().invoke(program, words)
    assert result.exit_code == 2, result.output
    assert "Invalid value" in result.output or "is not a mail address" in result.output


@pytest.fixture
def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store without messages, and settings that use it."""
    open_store(f"files://{tmp_path}/store").close()
    read_keys(tmp_path / "links.keys", create=True)
    config = tmp_path / "quarantine.toml"
    config.write_text(f'store.url = "files://{tmp_path}/store"\nlinks.keys_file = "{tmp_path}/links.keys"\n')
    monkeypatch.setenv("QUARANTINE_CONFIG", str(config))


@pytest.mark.usefixtures("empty_store")
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("list", "--since", "2026-02-01", "--until", "2026-01-01"), "Exchange them"),
        (("list", "--since", "1h", "--until", "2h"), "Exchange them"),
        (("list", "--score-min", "9", "--score-max", "8"), "Exchange them"),
        (("list", "--size-min", "2k", "--size-max", "1k"), "Exchange them"),
        (("audit", "--since", "2026-02-01", "--until", "2026-01-01"), "Exchange them"),
        (("stats", "--since", "2026-02-01", "--until", "2026-01-01"), "Exchange them"),
        (("stats", "--since", "2999-01-01"), "--since is in the future. Give a day up to today"),
        (("stats", "--until", "40d"), "Give --since as well"),
        *(
            ((act, "--matching", "--reason", "x", "--since", "1h", "--until", "2h"), "Exchange them")
            for act in ("release", "delete", "refuse", "restore", "reannounce")
        ),
        (("audit", "--recipient", "a@example.org", "--domain", "example.org"), "either --recipient or --domain"),
        (("--as", "", "list"), "It is empty"),
        (("import-original",), "Use either --dir DIR or --dsn DSN"),
        (("digests", "stop"), "Give at least one address"),
        (("digests", "export", "--domain", "elsewhere.example"), "is not a domain of local_domains"),
        (("digests", "list", "--domain", "elsewhere.example"), "is not a domain of local_domains"),
        (("domains", "show", "elsewhere.example"), "is not a domain of local_domains"),
        (("domains", "set", "elsewhere.example", "name", "x"), "is not a domain of local_domains"),
        (("stats", "--domain", "elsewhere.example"), "is not a domain of local_domains"),
        (("recipient", "alice"), "Enter one like name@example.org"),
    ],
)
def test_values_that_do_not_fit_together_are_an_error(words: tuple[str, ...], sentence: str) -> None:
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, sentence in result.output) == (2, True), result.output


@pytest.mark.usefixtures("empty_store")
@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        *(
            (("jobs", act, str(UUID(int=1))), 1, "Try: quarantine jobs list")
            for act in ("show", "pause", "cancel", "retry")
        ),
        (("meta", "0000"), 1, "Try: quarantine list"),
        (("audit", "--recipient", "nobody@example.org"), 0, "No entry matches all criteria."),
        (("list", "--recipient", "nobody@elsewhere.example"), 0, "local_domains has neither it nor its domain"),
    ],
)
def test_an_answer_without_a_result_says_what_to_do(words: tuple[str, ...], status: int, sentence: str) -> None:
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, sentence in result.output) == (status, True), result.output


def test_each_error_of_a_command_says_what_to_do() -> None:
    found = [(place, text) for place, text in sentences() if not _FRAME.match(text)]
    assert len(found) > 50
    assert [
        (place, text) for place, text in found if text not in _WITHOUT_INSTRUCTION and not _INSTRUCTION.search(text)
    ] == []
