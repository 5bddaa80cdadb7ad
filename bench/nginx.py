"""The shipped Nginx file's server for Rspamd, in front of a server of the bench."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.rig import ROOT, free_port, own_folder, wait_for_port

_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@dataclass(frozen=True)
class Front:
    """A running Nginx."""

    port: int
    master: int  # its process id


def is_installed() -> bool:
    """Return whether Nginx can be run."""
    return shutil.which("nginx", path=_path()) is not None


@contextmanager
def shipped(socket: Path) -> Iterator[Front]:
    """Run the shipped server for Rspamd in front of a uWSGI socket."""
    port = free_port()
    head, *servers = (ROOT / "deploy" / "nginx" / "quarantine.conf").read_text("utf-8").split("\nserver {")
    text = f"{head}\nserver {{{servers[-1]}"  # the others are for recipients
    for old, new in {
        "unix:/run/quarantine.sock": f"unix:{socket}",
        "listen 127.0.0.1:8081;": f"listen 127.0.0.1:{port};",
        "include uwsgi_params;": "include /etc/nginx/uwsgi_params;",
    }.items():
        if old not in text:
            raise RuntimeError(f"deploy/nginx/quarantine.conf has no {old}")
        text = text.replace(old, new)
    with running(port, text) as front:
        yield front


@contextmanager
def running(port: int, text: str) -> Iterator[Front]:
    """Run Nginx with this part of its ``http`` block, which listens on the port of 127.0.0.1."""
    with own_folder() as home:
        (home / "nginx.conf").write_text(
            f"user {getpass.getuser()};\npid {home}/nginx.pid;\nworker_processes auto;\n"
            "events { worker_connections 500; }\nhttp {\naccess_log off;\n"
            + "".join(f"{kind}_temp_path {home}/{kind};\n" for kind in _TEMPORARY)
            + f"{text}}}\n"
        )
        with (home / "log").open("w") as log:
            process = subprocess.Popen(
                ["nginx", "-p", home, "-c", home / "nginx.conf", "-e", home / "error.log", "-g", "daemon off;"],
                env=os.environ | {"PATH": _path()},
                stderr=log,
            )
        try:
            wait_for_port(port, process, home / "log")
            yield Front(port, process.pid)
        finally:
            process.terminate()
            process.wait(20)


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin"
