"""Pages of the documentation whose commands tests run, in order, as a reader does."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.paths import ROOT

_FENCES = re.compile(r"^```(sh|text|toml)\n(.*?)^```$|^## ([^\n]*)$", re.MULTILINE | re.DOTALL)
_VARYING = [
    (r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f-]{21}", "ID"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)?", "TIME"),
    (r"/link/[\w.-]+/", "/link/TOKEN/"),
    (r"version \d\S*", "version NUMBER"),
    (r"127\.0\.0\.1:\d+", "127.0.0.1:PORT"),
    (r"[ \t]+", " "),
]


def parts_of(name: str) -> Iterator[tuple[str, str]]:
    """Return the parts of a page in order: ``heading``, ``sh`` for commands, ``text`` for what they print,
    ``toml`` for settings."""
    for kind, text, heading in _FENCES.findall((ROOT / "docs" / name).read_text("utf-8")):
        yield (kind, text) if kind else ("heading", heading)


def agrees(printed: str, page: str) -> bool:
    """Return whether the last printed lines are those of the page, where … is any text. Ids and times may differ."""
    for pattern, word in _VARYING:
        printed, page = re.sub(pattern, word, printed), re.sub(pattern, word, page)
    lines = "\n".join(line.strip() for line in page.strip().splitlines())
    printed = "\n".join(line.strip() for line in printed.strip().splitlines())
    return re.search(rf"^{re.escape(lines).replace('…', '.*')}\Z", printed, re.MULTILINE) is not None


class Shell:
    """A shell that keeps its folder, variables and background jobs from one part of a page to the next."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"], cwd=folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._bash.stdin is not None and self._bash.stdout is not None
        with self._bash.stdin as stdin, self._bash.stdout:
            stdin.write("kill $(jobs -p) 2>/dev/null; wait; exit\n")
            stdin.close()
            self._bash.wait(90)

    def run(self, commands: str) -> str:
        """Return what the commands print. Each must succeed."""
        assert self._bash.stdin is not None and self._bash.stdout is not None
        self._bash.stdin.write(
            f"trap 'echo failed: $BASH_COMMAND' ERR\n{commands}\ntrap - ERR; printf '\\n%s\\n' =end=\n"
        )
        self._bash.stdin.flush()
        lines = list[str]()
        while (line := self._bash.stdout.readline()) != "=end=\n":
            assert line, f"bash ended: {''.join(lines)}"
            lines.append(line)
        printed = "".join(lines)
        assert "failed: " not in printed, printed
        return printed
