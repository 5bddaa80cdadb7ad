"""``make packages``: build all packages of this checkout into ``dist/``."""

from __future__ import annotations

import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from tools.packages import deb, environment, image, licences
from tools.packages.release import ROOT


class Built(NamedTuple):
    """The paths of what was built."""

    wheel: Path
    constraints: Path
    package: Path
    image: Path
    notice: Path
    sbom: Path


def build(folder: Path) -> Built:
    """Build all packages into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="quarantine-packages-") as name, ThreadPoolExecutor() as threads:
        work = Path(name)
        base = threads.submit(image.base, work)  # takes as long as the rest, mostly for downloads
        wheel = environment.build_wheel(folder)
        modules = environment.install(wheel, work / "root")
        notice, sbom, constraints = folder / "NOTICE", folder / "sbom.json", folder / "constraints.txt"
        notice.write_text(licences.notice(modules), "utf-8")
        licences.write_sbom(modules, sbom)
        shutil.copy(ROOT / "constraints.txt", constraints)
        package = deb.build(work / "root", modules, notice.read_text("utf-8"), folder)
        container = image.build(base.result(), work / "root", folder)
    return Built(wheel, constraints, package, container, notice, sbom)


def main(arguments: list[str]) -> int:
    """Build the packages and print their hashes, as sha256sum does."""
    for path in build(Path(*arguments) if arguments else ROOT / "dist"):
        print(f"{sha256(path.read_bytes()).hexdigest()}  {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
