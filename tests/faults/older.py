"""Version 0.2.0 as it was released, from this repository's history, and a site whose version can be exchanged."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.faults.serving import META, children, mail_of
from tests.paths import ROOT
from tests.system.services import BIN, HANDED_OVER, listening, unit, wait_for
from tests.uwsgi_client import HEALTH, packet

RELEASE = "9a38f4fd7bef0934d834fd9a3b72bf4af6f6a8fc"  # "release 0.2.0"
RSPAMD_SECONDS = 5  # the `timeout` in deploy/rspamd/metadata_exporter.conf
_SERVICE = unit("quarantine.service")


def version_0_2_0(folder: Path) -> Path:
    """Unpack the files of version 0.2.0 and return their folder. Its programs run with the libraries of this one."""
    archive = subprocess.run(["git", "archive", RELEASE], cwd=ROOT, capture_output=True)
    if archive.returncode:
        pytest.fail(
            f"this test needs the commit of version 0.2.0, {RELEASE}: use a clone of the repository with its whole "
            f"history (git fetch --unshallow). git said: {archive.stderr.decode().strip()}"
        )
    packed = folder / "0.2.0.tar"
    packed.write_bytes(archive.stdout)
    with tarfile.open(packed) as files:
        files.extractall(folder / "0.2.0", filter="data")
    return folder / "0.2.0"


class Site:
    """The service of a site: its version is exchanged as an administrator does, while systemd keeps the socket."""

    def __init__(self, store_url: str, folder: Path, code: Path, **environ: str) -> None:
        folder.mkdir()
        (folder / "quarantine.toml").touch()
        self.code = code
        self.log = folder / "log"
        self._path = folder / "socket"
        self._environ = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "LANG": "C.UTF-8",
            "QUARANTINE_CONFIG": str(folder / "quarantine.toml"),
            "QUARANTINE_STORE__URL": store_url,
            "QUARANTINE_LOCAL_DOMAINS": "example.org",
            "QUARANTINE_MAIL__FROM_ADDRESS": "quarantine@example.org",
            "QUARANTINE_LINKS__KEYS_FILE": f"{folder}/links.keys",
            **environ,
        }
        self._stack = ExitStack()
        self._listener = self._stack.enter_context(listening(self._path))
        self._running: subprocess.Popen[bytes] | None = None

    def command(self, *words: str, store_url: str = "") -> str:
        """Run ``quarantine`` of the installed version, for another store if given, and return what it printed.

        Raises AssertionError.
        """
        environ = self._of_version() | ({"QUARANTINE_STORE__URL": store_url} if store_url else {})
        done = subprocess.run(
            [str(BIN / "quarantine"), *words], cwd=self.code, env=environ,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.stdout}"
        return done.stdout

    def start(self) -> float:
        """Start the service, its digest process too, and return how many seconds passed until it answered."""
        began, running_before = time.monotonic(), self._times_running()
        with self.log.open("ab") as log:
            self._running = subprocess.Popen(
                [*HANDED_OVER, str(self._listener.fileno()), str(BIN / "uwsgi"), "--ini", "uwsgi.ini"],
                cwd=self.code, env=self._of_version(), pass_fds=[self._listener.fileno()],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        while time.monotonic() < began + 60:
            with suppress(OSError):
                if _exchange(self._path, packet(HEALTH)).startswith(b"HTTP/1.1 200"):
                    seconds = time.monotonic() - began
                    wait_for(lambda: self._times_running() > running_before, details=self.log.read_text)
                    return seconds
        raise AssertionError(f"the service did not start:\n{self.log.read_text('utf-8', 'replace')[-5000:]}")

    def stop(self) -> float:
        """Stop the service as systemd does for a restart. Return how many seconds that took."""
        began = time.monotonic()
        if self._running is not None:
            self._running.send_signal(signal.Signals[_SERVICE["KillSignal"]])
            try:
                self._running.wait(int(_SERVICE["TimeoutStopSec"]))
            except subprocess.TimeoutExpired:
                for pid in [*children(self._running.pid), self._running.pid]:
                    os.kill(pid, signal.SIGKILL)
                self._running.wait()
                raise
            self._running = None
        return time.monotonic() - began

    def close(self) -> None:
        with self._stack:
            self.stop()

    def post(self, number: int) -> tuple[int, dict[str, Any]]:
        """Post the mail with this number once, and wait as long as Rspamd does. Raises OSError."""
        mail = mail_of(number)
        variables = {
            **HEALTH,
            "REQUEST_METHOD": "POST",
            "PATH_INFO": "/quarantine/",
            "CONTENT_TYPE": META["Content-Type"],
            "CONTENT_LENGTH": str(len(mail)),
            **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in META.items()},
        }
        head, _, body = _exchange(self._path, packet(variables, mail)).partition(b"\r\n\r\n")
        if not head:
            raise ConnectionError("no answer")
        status = int(head.split(b" ", 2)[1])
        return status, json.loads(body) if status == 200 else {}

    def tracebacks(self) -> int:
        return self.log.read_bytes().count(b"Traceback (most recent call last)")

    def _times_running(self) -> int:
        return self.log.read_bytes().count(b"quarantine.digest: running ") if self.log.exists() else 0

    def _of_version(self) -> dict[str, str]:
        return {**self._environ, "PYTHONPATH": str(self.code)}


def _exchange(path: Path, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(RSPAMD_SECONDS)
        connection.connect(str(path))
        connection.sendall(data)
        answer = b""
        while chunk := connection.recv(1 << 16):
            answer += chunk
        return answer


def fill(code: Path, store_url: str, messages: int, folder: Path) -> list[Path]:
    """Let the program in ``code`` hold messages. Return the files with their numbers and ids."""
    script = Path(__file__).with_name("fill_older.py")
    parts = 1 if store_url.startswith("files:") else 2  # SQLite has one writer at a time
    lists = [folder / f"held-{part}" for part in range(parts)]
    running = [
        subprocess.Popen(
            [sys.executable, "-P", str(script), store_url, str(messages), str(parts), str(part), str(path)],
            cwd=code, env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "PYTHONPATH": str(code)},
        )
        for part, path in enumerate(lists)
    ]  # fmt: skip
    assert [process.wait() for process in running] == [0] * parts
    return lists
