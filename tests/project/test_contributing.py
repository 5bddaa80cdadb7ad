"""CONTRIBUTING.md names files, functions and commands that exist."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

from bench.__main__ import MEASURES
from tests.paths import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
ITEMS = re.split(r"\n\n|\n(?=\d+\. |\| )", TEXT)  # paragraphs, rows of tables, points of lists
_NAME = re.compile(r"[A-Za-z_]\w+(?:\.[A-Za-z_]\w+)?")


def quotations(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", text))


def test_files_exist() -> None:
    named = {name for name in quotations(TEXT) if re.fullmatch(r"[\w./-]*(?:/[\w./-]*|\.(?:py|sql|md|toml))", name)}
    assert len(named) > 25
    made_by_the_reader = {"templates/web/NAME.html", "dist/", "dist/site"}
    folders = (ROOT, ROOT / "tests" / "data")
    assert not [name for name in named - made_by_the_reader if not any((folder / name).exists() for folder in folders)]


def test_names_are_those_of_a_file_that_is_named_with_them() -> None:
    found = 0
    for item in ITEMS:
        named = quotations(item)
        files = [(ROOT / name).read_text("utf-8") for name in named if (ROOT / name).is_file()]
        for name in named if files else ():
            if _NAME.fullmatch(name) and not (ROOT / name).exists() and "quarantine" not in name:
                own = name.rpartition(".")[2]
                assert any(re.search(rf"\b{own}\b", text) for text in files), f"{name} in: {item}"
                found += 1
    assert found > 20


def test_commands_of_make_exist() -> None:
    named = set(re.findall(r"(?m)(?:`|^    )make ([a-z-]+)", TEXT))
    assert len(named) > 5
    assert named <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def test_other_commands_have_what_they_name() -> None:
    commands = [shlex.split(line) for line in re.findall(r"^    (\.venv/.*)$", TEXT, re.MULTILINE)]
    assert len(commands) > 4
    for program, *arguments in commands:
        assert Path(program).name in ("python", "pytest", "ruff")
        if program == ".venv/bin/pytest":
            files = [ROOT / argument for argument in arguments if argument.endswith(".py")]
            (text,) = [file.read_text("utf-8") for file in files]
            options = dict(zip(arguments, arguments[1:], strict=False))
            assert ("mark.system" in text) == (options.get("-m") == "system")
            words = set(re.findall(r"\w+", options.get("-k", ""))) - {"and", "files"}
            assert all(re.search(rf"def test_\w*{word}", text) for word in words), words
        elif "-m" in arguments:
            module = arguments[arguments.index("-m") + 1]
            assert find_spec(module), module
            assert module != "bench" or arguments[-1] in MEASURES
