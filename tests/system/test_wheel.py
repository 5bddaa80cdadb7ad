"""The wheel, built and installed in another environment, replaces an older one and contains the files that are next to
the code in a checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from portal import __version__
from tests.system.services import ROOT, Portal, http
from tools.version import PRODUCT

PO = "locale/de/LC_MESSAGES/quarantine.po"
OLD_VERSION = "0.1.0"
OLD_CODE = """
WHO = "the old code"
"""
pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment with the wheel, which was installed over one of an older version."""
    home = tmp_path_factory.mktemp("wheel")
    run(home, sys.executable, "-m", "venv", home / "venv")
    for wheel in (build(home, older(home)), build(home, ROOT)):
        run(home, home / "venv/bin/pip", "install", "--quiet", wheel)
        if OLD_VERSION in wheel.name:
            assert (home / "venv/bin/quarantine").exists()
            assert printed(home, "import portal.gone; print(portal.__version__, portal.WHO)") == "0.1.0 the old code"
    return home / "venv/bin"


def older(home: Path) -> Path:
    """Make a checkout of an older version: another number, other code, and a module that was removed later."""
    checkout = home / "older"
    for name in (*PRODUCT, "pyproject.toml", "README.md", "LICENSE", "LICENSE-UNICODE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, checkout / name)
    constant = checkout / "portal/__init__.py"
    now = f'__version__ = "{__version__}"'
    text = constant.read_text("utf-8")
    assert now in text
    constant.write_text(text.replace(now, f'__version__ = "{OLD_VERSION}"') + OLD_CODE, "utf-8")
    (checkout / "portal/gone.py").touch()
    return checkout


def build(home: Path, checkout: Path) -> Path:
    """Return the wheel that was built from a checkout."""
    folder = home / f"from-{checkout.name}"
    run(home, sys.executable, "-m", "build", "--wheel", "--outdir", folder, checkout)
    (wheel,) = folder.glob("*.whl")
    return wheel


def run(home: Path, *command: str | Path) -> str:
    """Run a command with only the environment variables that pip needs, and return its output."""
    names = ("PIP_", "SSL_", "REQUESTS_", "HTTP", "http", "HOME")
    settings = {name: value for name, value in os.environ.items() if name.startswith(names)}
    environment = {"PATH": "/usr/bin:/bin", **settings}
    done = subprocess.run(command, check=True, cwd=home, env=environment, stdout=subprocess.PIPE, text=True)
    return done.stdout


def printed(home: Path, code: str) -> str:
    return run(home, home / "venv/bin/python", "-c", code).strip()


def test_the_newer_wheel_replaced_the_older_one(venv: Path) -> None:
    home = venv.parent.parent
    assert printed(home, "import portal; print(portal.__version__, hasattr(portal, 'WHO'))") == f"{__version__} False"
    assert run(home, venv / "quarantine", "--version").split()[-1] == __version__
    assert run(home, venv / "quarantine-digest", "--version").split()[-1] == __version__
    assert not list(venv.parent.glob("lib/python3*/site-packages/portal/gone.py"))
    for package in ("portal", "digest"):
        (installed,) = venv.parent.glob(f"lib/python3*/site-packages/{package}")
        for path in (ROOT / package).rglob("*.py"):
            assert (installed / path.relative_to(ROOT / package)).read_bytes() == path.read_bytes(), path


def test_the_installed_wheel_cleans_html(venv: Path) -> None:
    code = "from portal.reading import read_formatted as read; print(read([b'Content-Type: text/html\\n\\n<b>x'], ''))"
    assert "html='<b>x</b>'" in printed(venv.parent.parent, code)


def test_the_installed_wheel_runs_by_itself(venv: Path, other_portal: Portal) -> None:
    (shipped,) = venv.parent.glob("lib/python3*/site-packages/portal")
    for name in ("quarantine.sql", "uwsgi.ini", "quarantine.example.toml", "templates/web/base.html", PO):
        assert (shipped / name).is_file(), name
    files = {path.relative_to(ROOT / "deploy") for path in (ROOT / "deploy").rglob("*.*") if "pycache" not in str(path)}
    assert files and all((shipped / "deploy" / file).exists() for file in files)
    assert not list((shipped / "deploy").rglob("*.py"))  # a program would need a library that only development has

    other_portal.bin, other_portal.ini = venv, shipped / "uwsgi.ini"
    other_portal.environment["PATH"] = f"{venv}:/usr/bin:/bin"
    assert "retention_days" in other_portal.command("quarantine", "settings")
    with other_portal.running():
        german = http(other_portal.nginx.public_url + "/sign-in", headers={"Accept-Language": "de"}).body
        assert "Geben Sie Ihre E-Mail-Adresse ein" in german.decode()
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
