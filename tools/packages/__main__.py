"""``make packages``: build all packages of this checkout into ``dist/``."""

from __future__ import annotations

import shutil
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

from tools.packages import deb, environment, licences
from tools.packages.release import ROOT


def build(folder: Path) -> list[Path]:
    """Build all packages into a folder and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="quarantine-packages-") as name:
        work = Path(name)
        wheel = environment.build_wheel(folder)
        modules = environment.install(wheel, work / "root")
        notice, sbom, constraints = folder / "NOTICE", folder / "sbom.json", folder / "constraints.txt"
        notice.write_text(licences.notice(modules), "utf-8")
        licences.write_sbom(modules, sbom)
        shutil.copy(ROOT / "constraints.txt", constraints)
        package = deb.build(work / "root", modules, notice.read_text("utf-8"), folder)
    return [wheel, constraints, package, notice, sbom]


def main(arguments: list[str]) -> int:
    """Build the packages and print their hashes, as sha256sum does."""
    for path in build(Path(*arguments) if arguments else ROOT / "dist"):
        print(f"{sha256(path.read_bytes()).hexdigest()}  {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
