"""The product with its libraries in an environment of Debian's Python: what the package and the image contain."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tools.packages.release import ROOT, epoch

PLACE = "usr/lib/rspamd-quarantine"
PYTHON = "/usr/bin/python3"  # Debian's
_PROGRAMS = ("quarantine", "quarantine-digest", "uwsgi")
_PYVENV = "home = /usr/bin\ninclude-system-site-packages = false\nversion = {}\n"


def build_wheel(folder: Path) -> Path:
    """Build the wheel into a folder and return its path."""
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(epoch())}
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, root: Path) -> Path:
    """Install a wheel and the tested versions of its libraries below ``root``. Return the folder with the modules."""
    home = root / PLACE
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", home], check=True)
    python = home / "bin/python3"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"),
            *("--no-compile", "--only-binary", ":all:", "--constraint", ROOT / "constraints.txt"),
            f"{wheel}[ldap,oidc]",
        ],
        check=True,
    )
    (modules,) = home.glob("lib/python3.*/site-packages")
    _clean(home, modules)
    _strip(modules)
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent == home / "bin" else 0o644)
    return modules


def _clean(home: Path, modules: Path) -> None:
    """Remove what nobody calls, and what depends on the folder and the moment of the build."""
    for path in (home / "bin").iterdir():
        if path.name in _PROGRAMS:
            text = path.read_text("utf-8")
            path.write_text(re.sub(r"\A#!.*", f"#!/{PLACE}/bin/python3", text), "utf-8")
        elif path.name != "python3":
            path.unlink()
    (home / "bin/python3").unlink()
    (home / "bin/python3").symlink_to(PYTHON)
    for folder in ("include", "share", "lib64"):
        path = home / folder
        path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)
    version = modules.parent.name.removeprefix("python")
    (home / "pyvenv.cfg").write_text(_PYVENV.format(version), "utf-8")
    # RECORD has the hashes of the programs, direct_url.json the folder of the wheel. Only pip reads them.
    for name in ("RECORD", "direct_url.json", "REQUESTED"):
        for path in modules.glob(f"*.dist-info/{name}"):
            path.unlink()
    for path in [*home.rglob("__pycache__")]:
        shutil.rmtree(path)


def _strip(modules: Path) -> None:
    """Remove debugging symbols of libraries, half of the size, and load each library, since stripping can break it."""
    libraries = list(_libraries(modules))
    subprocess.run(["strip", "--strip-unneeded", *libraries], check=True)
    code = "import ctypes, sys\nfor path in sys.argv[1:]: ctypes.PyDLL(path)"
    subprocess.run([PYTHON, "-c", code, *libraries], check=True)


def _libraries(modules: Path) -> Iterator[Path]:
    for path in sorted(modules.rglob("*.so*")):
        if path.read_bytes()[:4] == b"\x7fELF":
            yield path
