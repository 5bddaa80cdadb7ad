"""The image for containers: a small Debian, and the product in a layer above it. umoci writes it, without a daemon."""

from __future__ import annotations

import os
import subprocess
import tarfile
from datetime import UTC, datetime
from pathlib import Path

from portal import __version__
from tools.packages.environment import PLACE, PYTHON
from tools.packages.release import NAME, epoch

_SUITE = "bookworm"
# What the Debian package depends on, and the authorities that sign the certificates of other servers.
_PACKAGES = "python3,adduser,init-system-helpers,libexpat1,libgcc-s1,zlib1g,ca-certificates"
_DATA = "var/lib/quarantine"
_USER = 10001  # no user of Debian; it has no name in the image
# What a container runs, as whom, and where its data is; deploy/container/Containerfile says the same.
CONTAINER = {
    "user": [f"{_USER}:{_USER}"],
    "workingdir": [f"/{_DATA}"],
    "volume": [f"/{_DATA}"],
    "env": [f"PATH=/{PLACE}/bin:/usr/bin:/bin", "QUARANTINE_SOCKET=0.0.0.0:9000", "container=oci"],
    "exposedports": ["9000/tcp"],
    "stopsignal": ["SIGHUP"],  # on which uWSGI ends once it has answered the requests that run
    "cmd": [f"/{PLACE}/bin/uwsgi", "--ini", "/etc/rspamd-quarantine/uwsgi.ini"],
}


def base(folder: Path) -> Path:
    """Make a small Debian with everything that the product needs. Return the path of the archive of its files."""
    target = folder / "base.tar"
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={_PACKAGES}"]
    # Pages and translations that nobody reads in a container; the licences in /usr/share/doc stay.
    unused = 'rm -rf "$1"/usr/share/man/* "$1"/usr/share/info/* "$1"/usr/share/locale/*'
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(epoch())}
    subprocess.run([*command, f"--customize-hook={unused}", _SUITE, target], check=True, env=environment)
    return target


def build(base_layer: Path, root: Path, folder: Path) -> Path:
    """Write the image of the Debian and of the files of the package below ``root``. Return the path of its archive."""
    product = _product_layer(root)
    layout = root.with_name("oci")
    image = f"{layout}:{__version__}"
    moment = datetime.fromtimestamp(epoch(), UTC).isoformat()
    _umoci("init", "--layout", str(layout))
    _umoci("new", "--image", image)
    for layer in (base_layer, product):
        _umoci("raw", "add-layer", "--image", image, "--history.created", moment, str(layer))
    _umoci("config", "--image", image, "--created", moment, "--history.created", moment, *_options())
    _umoci("gc", "--layout", str(layout))
    target = folder / f"{NAME}_{__version__}_amd64.oci.tar"
    _pack(target, layout, sorted(path.relative_to(layout) for path in layout.rglob("*")))
    return target


def _product_layer(root: Path) -> Path:
    """Return an archive of the product, with its modules compiled: the user in a container cannot write them there."""
    compiling = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", str(root), str(root / PLACE)]
    subprocess.run([PYTHON, *compiling], check=True, env=os.environ | {"PYTHONHASHSEED": "0"})
    (root / _DATA).mkdir(parents=True)
    (root / _DATA).chmod(0o700)
    (root / "etc/rspamd-quarantine/quarantine.toml").chmod(0o644)
    places = (PLACE, "etc/rspamd-quarantine", f"usr/share/{NAME}", f"usr/share/doc/{NAME}/copyright", _DATA)
    names = {path for place in places for path in ((root / place), *(root / place).rglob("*"))}
    target = root.with_name("product.tar")
    _pack(target, root, sorted(path.relative_to(root) for path in names))
    return target


def _pack(target: Path, folder: Path, names: list[Path]) -> None:
    """Write an archive whose bytes depend on the names, modes and contents of the files only."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = _USER if entry.name == _DATA else 0
        entry.uname = entry.gname = ""
        entry.mtime = epoch()
        return entry

    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as packed:
        for name in names:
            packed.add(folder / name, str(name), recursive=False, filter=plain)


def _options() -> list[str]:
    labels = {
        "title": NAME,
        "version": __version__,
        "licenses": "Apache-2.0 AND MIT AND Unicode-3.0",
    }
    values = CONTAINER | {"label": [f"org.opencontainers.image.{name}={text}" for name, text in labels.items()]}
    return [f"--config.{name}={value}" for name, several in values.items() for value in several]


def _umoci(*arguments: str) -> None:
    subprocess.run(["umoci", "--log=error", *arguments], check=True)
