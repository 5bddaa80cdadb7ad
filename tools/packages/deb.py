"""The Debian package, which nfpm writes from a folder with its files."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools.packages import manual
from tools.packages.environment import PLACE
from tools.packages.release import MAINTAINER, NAME, ROOT, debian_changelog, debian_version, epoch

_HERE = Path(__file__).with_name("debian")
_DOC = f"usr/share/doc/{NAME}"
_SETTINGS = "etc/rspamd-quarantine"


def build(root: Path, modules: Path, notice: str, folder: Path) -> Path:
    """Add to ``root``, which has the environment, the other files of the package, and write it into ``folder``.
    Return its path."""
    _add_files(root, modules, notice)
    for path in (root, *root.rglob("*")):
        os.utime(path, (epoch(), epoch()), follow_symlinks=False)
    configuration = root.with_name("nfpm.json")
    configuration.write_text(json.dumps(_configuration(root)), "utf-8")
    target = folder / f"{NAME}_{debian_version()}_amd64.deb"
    command = [str(Path(sys.executable).with_name("nfpm")), "package", "--packager", "deb"]
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(epoch())}
    subprocess.run(
        [*command, "--config", str(configuration), "--target", str(target)],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    return target


def _add_files(root: Path, modules: Path, notice: str) -> None:
    manual.write(root)
    for page in (root / "usr/share/man/man8").iterdir():
        _compress(page)
    _add(root, "usr/sbin/quarantine", (_HERE / "wrapper").read_text("utf-8"), mode=0o755)
    (root / "usr/sbin/quarantine-digest").symlink_to("quarantine")
    for unit in ("quarantine.service", "quarantine.socket"):
        text = (ROOT / "deploy/systemd" / unit).read_text("utf-8").replace("/opt/rspamd-quarantine", f"/{PLACE}")
        _add(root, f"lib/systemd/system/{unit}", text)
    _add(root, f"{_SETTINGS}/quarantine.toml", (_HERE / "quarantine.toml").read_text("utf-8"), mode=0o640)
    _add(root, f"{_SETTINGS}/uwsgi.ini", (ROOT / "uwsgi.ini").read_text("utf-8"))
    _add(root, f"usr/share/lintian/overrides/{NAME}", (_HERE / "lintian-overrides").read_text("utf-8"))
    (root / f"usr/share/{NAME}").mkdir()
    (root / f"usr/share/{NAME}/deploy").symlink_to(f"../../{(modules / 'portal/deploy').relative_to(root / 'usr')}")
    _add(root, f"{_DOC}/copyright", notice)
    _add(root, f"{_DOC}/changelog", (ROOT / "CHANGELOG.md").read_text("utf-8"))
    _add(root, f"{_DOC}/changelog.Debian", debian_changelog())
    for name in ("changelog", "changelog.Debian"):
        _compress(root / _DOC / name)
    for pages in ("", "decisions"):
        for path in (ROOT / "docs" / pages).glob("*.md"):
            _add(root, f"{_DOC}/{pages}/{path.name}", path.read_text("utf-8"))


def _add(root: Path, name: str, text: str, *, mode: int = 0o644) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    path.chmod(mode)


def _compress(path: Path) -> None:
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), 9, mtime=0))
    path.unlink()


def _configuration(root: Path) -> dict[str, Any]:
    """Return the configuration of nfpm: the files below ``root``. A site's changes of those in /etc are kept."""
    fixed: dict[str, Any] = json.loads((_HERE / "control.json").read_text("utf-8"))
    contents: list[dict[str, Any]] = [
        {"src": str(path), "dst": f"/{path.name}", "type": "tree"}
        for path in sorted(root.iterdir())
        if path.name != "etc"
    ]
    for path in sorted((root / "etc").rglob("*.*")):
        mode = path.stat().st_mode & 0o777
        destination = f"/{path.relative_to(root)}"
        contents.append({"src": str(path), "dst": destination, "type": "config|noreplace", "file_info": {"mode": mode}})
    scripts = {"postinstall": "postinst", "preremove": "prerm", "postremove": "postrm"}
    return fixed | {
        "version": debian_version().rpartition("-")[0],
        "release": "1",
        "version_schema": "none",
        "maintainer": MAINTAINER,
        "contents": contents,
        "scripts": {when: str(_HERE / name) for when, name in scripts.items()},
    }
