"""The licences of all that the packages contain: NOTICE, and the software bill of materials."""

from __future__ import annotations

import os
import subprocess
import sys
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

from tools.packages.environment import PLACE
from tools.packages.release import NAME, ROOT, epoch

_COPYLEFT = ("GPL", "GNU", "MPL", "Mozilla")
_HEAD = """\
Copyright 2026 the authors of rspamd-quarantine-portal

Licensed under the Apache License, Version 2.0; on Debian, /usr/share/common-licenses/Apache-2.0 is the whole text.
portal/model/confusables.py contains data of Unicode under the Unicode License 3.0, and portal/policy/freemail.txt is
under the MIT licence in it.

The Debian package and the image also contain these libraries. Their licences and authors are in the folders
/{place}/lib/python3.*/site-packages/NAME-VERSION.dist-info.

"""
_COPYLEFT_HEAD = """\

These are under a licence that asks those who pass them on to offer their source. It is unchanged and at the address
named. The portal imports psycopg, pygal, ldap3 and publicsuffixlist, which may be replaced in the folder above; it runs
in pyuwsgi, whose licence has an exception for that. On Debian, /usr/share/common-licenses has GPL-2 and LGPL-3.

"""
_COMPILED_HEAD = "\nThese wheels contain compiled libraries of other projects:\n\n"


def notice(modules: Path) -> str:
    """Return the text of NOTICE for the libraries in a folder with modules."""
    found = [_metadata(path) for path in sorted(modules.glob("*.dist-info"))]
    libraries = [one for one in found if not one["Name"].replace("_", "-").startswith(NAME)]
    lines = [f"  {one['Name']} {one['Version']}: {_licence(one)}\n" for one in libraries]
    sources = [
        f"  {one['Name']} {one['Version']}: {_licence(one)}\n    https://pypi.org/project/{one['Name']}/{one['Version']}/#files\n"
        for one in libraries
        if any(word in _licence(one) for word in _COPYLEFT)
    ]
    compiled = [
        f"  {folder.name.removesuffix('.libs')}: {', '.join(_names(folder))}\n"
        for folder in sorted(modules.glob("*.libs"))
    ]
    parts = [_HEAD.format(place=PLACE), *lines, _COPYLEFT_HEAD, *sources, _COMPILED_HEAD, *compiled]
    return "".join(parts)


def _names(folder: Path) -> list[str]:
    """Return the names of the libraries in a folder, without the hashes that wheels add."""
    return sorted(path.name.partition("-")[0] for path in folder.iterdir())


def _metadata(path: Path) -> Message:
    return HeaderParser().parsestr((path / "METADATA").read_text("utf-8"))


def _licence(metadata: Message) -> str:
    """Return a licence as the project names it: as an expression, as a classifier or in words."""
    classifiers = [text for text in metadata.get_all("Classifier", []) if text.startswith("License ::")]
    words = metadata.get("License-Expression") or ", ".join(text.split(" :: ")[-1] for text in classifiers)
    return str(words or metadata["License"])


def write_sbom(modules: Path, target: Path) -> None:
    """Write the software bill of materials (CycloneDX 1.6, JSON) of the libraries in an environment."""
    python = modules.parents[2] / "bin/python3"
    command: list[str | Path] = [Path(sys.executable).with_name("cyclonedx-py"), "environment"]
    command += ["--output-reproducible", "--pyproject", ROOT / "pyproject.toml"]
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(epoch())}
    subprocess.run([*command, "--output-file", target, python], check=True, env=environment)
