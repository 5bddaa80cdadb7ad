"""The tutorial, as a reader follows it: its commands run in order and print what it says."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.docs.pages import Shell, agrees, parts_of
from tests.paths import ROOT
from tests.ports import free_port
from tests.system.services import http

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_the_tutorial_releases_a_message(tmp_path: Path) -> None:
    for entry in ROOT.iterdir():
        if entry.name not in ("var", "dist", "build"):
            (tmp_path / entry.name).symlink_to(entry)
    ports = {"8080": str(free_port()), "10025": str(free_port())}
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    heading = printed = ""
    compared = 0
    with Shell(tmp_path, environment) as shell:
        for kind, text in parts_of("tutorial.md"):
            for port, free in ports.items():
                text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{free}")
            if kind == "heading":
                heading = text
            elif kind == "text":
                assert agrees(printed, text), f"{heading}: printed:\n{printed}\nbut the page says:\n{text}"
                compared += 1
            elif kind == "sh":
                if heading.startswith("6."):  # the reader opened the link of the digest, and presses the button
                    (link,) = re.findall(r"http://\S+", printed)
                    assert b"Release to inbox" in http(link).body
                    assert http(link, b"pressed=1").status == 303
                printed = shell.run(text)
    assert compared >= 7
    assert not (tmp_path / "var/tutorial").exists()
