"""Every command of the pages for administrators is run by a test, or tests/docs/commands.py says why not."""

from __future__ import annotations

import re

from tests.docs.commands import RUNNERS, commands, runner_of
from tests.paths import ROOT


def test_every_command_is_run_or_says_why_not() -> None:
    found = list(commands())
    assert len(found) > 150
    assert not [command for command in found if not runner_of(command)]


def test_every_test_and_every_pattern_is_of_use() -> None:
    tests = {test for *_, test in RUNNERS}
    files = re.findall(r"tests/[\w/]+(?:\.py)?", " ".join(tests))
    assert not [name for name in files if not (ROOT / name).exists()]
    assert {runner_of(command) for command in commands()} == tests


def test_pages_with_marked_blocks_are_run_as_a_whole() -> None:
    marked = {
        page.name for page in (ROOT / "docs").glob("*.md") if re.search(r"^```sh$", page.read_text("utf-8"), re.M)
    }
    assert marked == {"tutorial.md", "change-domains.md", "many-hosts.md"}
