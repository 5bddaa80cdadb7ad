"""A small Debian in a folder, in which tests install the package as on a new host."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.system.services import process

_SYSTEMCTL = '#!/bin/sh\necho "$@" >>/var/log/systemctl\n'


class DebianRoot:
    """A Debian whose processes have their own mounts and the network of this host."""

    def __init__(self, archive: Path, folder: Path) -> None:
        self.folder = folder
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="fully_trusted", numeric_owner=True)

    def run(self, *command: str, check: bool = True, **how: Any) -> str:
        """Run a command as root and return what it printed, errors included."""
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [*self._enter(), *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **how
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}"
        return done.stdout

    @contextmanager
    def running(self, *command: str) -> Iterator[None]:
        """Run a program until the block ends. Its output is in /var/log/program."""
        with process([*self._enter(), *command], self.folder / "var/log/program"):
            yield

    def _enter(self) -> list[str]:
        fixed = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"]
        return ["unshare", "--mount", f"--root={self.folder}", "--mount-proc", *fixed]

    def pretend_systemd(self) -> None:
        """Make maintainer scripts believe that systemd runs, and record what they call."""
        (self.folder / "run/systemd/system").mkdir(parents=True)
        systemctl = self.folder / "usr/bin/systemctl"
        systemctl.write_text(_SYSTEMCTL)
        systemctl.chmod(0o755)

    def pretend_variables_of_the_unit(self, variables: str) -> None:
        """Make systemctl say that the service has these variables."""
        answer = f'[ "$1" != show ] || echo "Environment={variables}"\n'
        (self.folder / "usr/bin/systemctl").write_text(_SYSTEMCTL + answer)

    def systemctl_calls(self) -> list[str]:
        """Return the calls of systemctl since the last call of this function."""
        log = self.folder / "var/log/systemctl"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def path(self, name: str) -> Path:
        return self.folder / name.lstrip("/")
