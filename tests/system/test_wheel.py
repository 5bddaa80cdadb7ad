"""The wheel, built and installed elsewhere, has everything it needs: the files that stand beside the code in a
checkout must travel inside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.system.services import ROOT, Portal, http

PO = "locale/de/LC_MESSAGES/quarantine.po"
pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel and what it depends on; its bin folder."""
    home = tmp_path_factory.mktemp("wheel")
    quiet: dict[str, Any] = {"check": True, "cwd": home, "env": {"PATH": "/usr/bin:/bin", **_pip_settings()}}
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", home, ROOT], **quiet)
    (wheel,) = home.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", home / "venv"], **quiet)
    subprocess.run([home / "venv/bin/pip", "install", "--quiet", wheel], **quiet)
    return home / "venv/bin"


def _pip_settings() -> dict[str, str]:
    import os

    names = ("PIP_", "SSL_", "REQUESTS_", "HTTP", "http", "HOME")
    return {name: value for name, value in os.environ.items() if name.startswith(names)}


def test_the_installed_wheel_runs_by_itself(venv: Path, other_portal: Portal) -> None:
    (shipped,) = venv.parent.glob("lib/python3*/site-packages/portal")
    for name in ("quarantine.sql", "uwsgi.ini", "quarantine.example.toml", "templates/web/base.html", PO):
        assert (shipped / name).is_file(), name
    files = {path.relative_to(ROOT / "deploy") for path in (ROOT / "deploy").rglob("*.*") if "pycache" not in str(path)}
    assert files and all((shipped / "deploy" / file).exists() for file in files)

    other_portal.bin, other_portal.ini = venv, shipped / "uwsgi.ini"
    other_portal.environment["PATH"] = f"{venv}:/usr/bin:/bin"
    assert "retention_days" in other_portal.command("quarantine", "settings")
    with other_portal.running():
        german = http(other_portal.nginx.public_url + "/sign-in", headers={"Accept-Language": "de"}).body
        assert "Ihre E-Mail-Adresse" in german.decode()
        assert b"<form" in http(other_portal.nginx.public_url + "/sign-in").body
        assert http(other_portal.nginx.public_url + "/static/style.css").status == 200
        assert other_portal.pids("quarantine-digest")


def test_the_example_settings_are_good_settings(venv: Path, other_portal: Portal) -> None:
    (example,) = venv.parent.glob("lib/python3*/site-packages/portal/quarantine.example.toml")
    environment = {"PATH": "/usr/bin:/bin", "QUARANTINE_CONFIG": str(example)}
    done = subprocess.run(
        [venv / "quarantine", "settings"], env=environment, cwd=other_portal.home, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
