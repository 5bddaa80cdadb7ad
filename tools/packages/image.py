"""The image for containers, and the Debian that is its lower layer."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tools.packages.release import epoch

_SUITE = "bookworm"
# What the Debian package depends on, and the authorities that sign the certificates of other servers.
_PACKAGES = "python3,adduser,init-system-helpers,libexpat1,libgcc-s1,zlib1g,ca-certificates"


def base(folder: Path) -> Path:
    """Make a small Debian with everything that the product needs. Return the path of the archive of its files."""
    target = folder / "base.tar"
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={_PACKAGES}"]
    # Pages and translations that nobody reads in a container; the licences in /usr/share/doc stay.
    unused = 'rm -rf "$1"/usr/share/man/* "$1"/usr/share/info/* "$1"/usr/share/locale/*'
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(epoch())}
    subprocess.run([*command, f"--customize-hook={unused}", _SUITE, target], check=True, env=environment)
    return target
