"""The portal under the real uWSGI, for tests of web/."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

BIN = Path(sys.executable).parent
Start = Callable[..., Path]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``start(*options, NAME="value")`` runs the portal in a new folder and returns the folder; stopped afterwards."""
    running: list[subprocess.Popen[bytes]] = []

    def run(*options: str, **environment: str) -> Path:
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                [BIN / "uwsgi", "--ini", ROOT / "uwsgi.ini", "--processes", "1", *options],
                cwd=tmp_path,
                env={
                    "PATH": f"{BIN}:{os.environ['PATH']}",
                    "PYTHONPATH": f"{ROOT}:{tmp_path}",
                    "QUARANTINE_CONFIG": os.devnull,
                    "QUARANTINE_STORE__URL": f"files:{tmp_path}/store",
                    "QUARANTINE_LOCAL_DOMAINS": "example.org",
                    "QUARANTINE_MAIL__FROM_ADDRESS": "quarantine@example.org",
                    **environment,
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        running.append(process)
        deadline = time.monotonic() + 60
        while "WSGI app 0" not in (output := (tmp_path / "log").read_text("utf-8", "replace")):
            assert process.poll() is None and time.monotonic() < deadline, output
            time.sleep(0.1)
        return tmp_path

    yield run
    for process in running:
        process.terminate()
        process.wait(90)
