"""Fixtures of the tests of commands."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def silent_rspamadm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Put an `rspamadm` that prints nothing before a real one, which takes a second in each `quarantine check`.

    Not for the whole session: tests of other folders, which the same process may run later, need the real one.
    """
    program = tmp_path_factory.mktemp("bin") / "rspamadm"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        yield
