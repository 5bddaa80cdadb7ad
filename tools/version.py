"""Check that the version moves when the product does. docs/decisions/version.md gives the rule and the reasons.

``python -m tools.version`` is a part of ``make check``. It compares `portal.__version__`, CHANGELOG.md and
`released.sha256`, which has the SHA-256 of each file of the product as it was released; Git is not asked.

``python -m tools.version release`` is ``make release``: it puts today's date into CHANGELOG.md, takes a suffix like
``.dev0`` off the version, and writes `released.sha256`. Commit all three together.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Everything that a wheel contains, by pyproject.toml.
PRODUCT = ("portal", "digest", "templates", "deploy", "quarantine.sql", "uwsgi.ini", "quarantine.example.toml")

_CONSTANT, _CHANGELOG, _RELEASED = "portal/__init__.py", "CHANGELOG.md", "tools/released.sha256"
_METADATA = "pyproject.toml"
_UNRELEASED = "unreleased"
_VERSION = re.compile(r'^__version__ = "([^"]*)"$', re.MULTILINE)
_PARTS = re.compile(r"(\d+)\.(\d+)\.(\d+)(|\.dev\d+|(?:a|b|rc)\d+)")
_HEADING = re.compile(r"^## (.*)$", re.MULTILINE)
_SECTION = re.compile(rf"\[(\d+\.\d+\.\d+)\] - ({_UNRELEASED}|\d{{4}}-\d\d-\d\d)")
_SHOWN_FILES = 5


class VersionError(Exception):
    """The version, the changelog and the files do not agree; the message says what to do."""


@dataclass(frozen=True)
class Section:
    """A section of the changelog; ``date`` is None before the release."""

    version: str
    date: date | None


def version_of(text: str) -> str:
    """Return the version in the text of portal/__init__.py. Raises VersionError."""
    found = _VERSION.search(text)
    if not found or not _PARTS.fullmatch(found[1]):
        raise VersionError(f'{_CONSTANT} needs a line like __version__ = "1.2.3" or "1.2.3.dev0"')
    return found[1]


def sections_of(text: str) -> list[Section]:
    """Return the sections of the changelog, newest first. Raises VersionError if they are not in order."""
    sections = []
    for heading in _HEADING.findall(text):
        found = _SECTION.fullmatch(heading)
        if not found:
            raise VersionError(f'{_CHANGELOG}: "## {heading}" must be like "## [1.2.3] - {_UNRELEASED}" or have a date')
        sections.append(Section(found[1], None if found[2] == _UNRELEASED else date.fromisoformat(found[2])))
    if not sections:
        raise VersionError(f"{_CHANGELOG} has no section")
    for newer, older in pairwise(sections):
        if older.date is None:
            raise VersionError(f"{_CHANGELOG}: only the newest section can be {_UNRELEASED}, {older.version} is older")
        if _numbers(newer.version) <= _numbers(older.version) or (newer.date and newer.date < older.date):
            raise VersionError(f"{_CHANGELOG}: {newer.version} is above {older.version}, but not newer")
    return sections


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, without a suffix like ``.dev0``."""
    found = _PARTS.fullmatch(version)
    if not found:
        raise VersionError(f"{version} is not a version like 1.2.3")
    return tuple(map(int, found.groups()[:3]))


def product_files(root: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of the product by its name, and of what pyproject.toml says of the product."""
    hashes = {path.relative_to(root).as_posix(): _sha256(path.read_bytes()) for path in _product(root)}
    project = tomllib.loads((root / _METADATA).read_text("utf-8"))
    metadata = {key: value for key, value in project["project"].items() if key != "optional-dependencies"}
    said = [metadata, project["build-system"], project["tool"]["hatch"]["build"]["targets"]["wheel"]]
    return hashes | {_METADATA: _sha256(json.dumps(said, sort_keys=True).encode())}


def _product(root: Path) -> Iterator[Path]:
    for name in PRODUCT:
        path = root / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            parts = file.relative_to(root).parts
            if file.is_file() and "__pycache__" not in parts and not any(part.startswith(".") for part in parts):
                yield file


def _sha256(content: bytes) -> str:
    return sha256(content).hexdigest()


@dataclass(frozen=True)
class Released:
    """The files of a release: names and SHA-256, as ``sha256sum`` prints them after a line with the version."""

    version: str
    files: Mapping[str, str]

    def __str__(self) -> str:
        return f"# {self.version}\n" + "".join(f"{hash}  {name}\n" for name, hash in self.files.items())

    @classmethod
    def parse(cls, text: str) -> Released:
        first, *lines = text.splitlines()
        return cls(first.removeprefix("# "), {name: hash for hash, name in (line.split("  ", 1) for line in lines)})


def check(root: Path) -> str:
    """Return a sentence about the version. Raises VersionError, whose message says what to do."""
    version = version_of((root / _CONSTANT).read_text("utf-8"))
    sections = sections_of((root / _CHANGELOG).read_text("utf-8"))
    newest = sections[0]
    if _numbers(version) != _numbers(newest.version):
        raise VersionError(
            f"__version__ in {_CONSTANT} is {version}, but {_CHANGELOG} begins with {newest.version}: let both name "
            "the version that is being made"
        )
    if newest.date is None:
        return f"{version} is not released yet; `make release` does that"
    if version != newest.version:
        raise VersionError(
            f"{newest.version} has a date in {_CHANGELOG}, but __version__ in {_CONSTANT} is {version}: write "
            f'"## [{newest.version}] - {_UNRELEASED}" and run `make release`'
        )
    released = _released(root)
    if released is None or released.version != version:
        raise VersionError(
            f"{version} has a date in {_CHANGELOG}, but not in {_RELEASED}: write "
            f'"## [{version}] - {_UNRELEASED}" and run `make release`'
        )
    changed = _changed(released.files, product_files(root))
    if changed:
        raise VersionError(f"{_listed(changed)} changed after {version} was released: {_bump(version)}")
    return f"{version} is released, and no file of the product changed since"


def _released(root: Path) -> Released | None:
    path = root / _RELEASED
    return Released.parse(path.read_text("utf-8")) if path.exists() else None


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN_FILES
    return ", ".join(names[:_SHOWN_FILES]) + (f" and {more} more" if more > 0 else "")


def _bump(version: str) -> str:
    major, minor, patch = _numbers(version)
    following = f"{major}.{minor}.{patch + 1}"
    return (
        f'set __version__ in {_CONSTANT} to "{following}.dev0" (or higher) and begin {_CHANGELOG} with a section '
        f'"## [{following}] - {_UNRELEASED}"'
    )


def release(root: Path, today: date) -> str:
    """Release the version: write its date, take its suffix off, record the files. Raises VersionError."""
    constant, changelog = root / _CONSTANT, root / _CHANGELOG
    version = version_of(constant.read_text("utf-8"))
    newest = sections_of(changelog.read_text("utf-8"))[0]
    if newest.date is not None:
        raise VersionError(f"{newest.version} is released already: {_bump(newest.version)}")
    check(root)
    final = newest.version
    unreleased, dated = f"## [{final}] - {_UNRELEASED}\n", f"## [{final}] - {today}\n"
    changelog.write_text(changelog.read_text("utf-8").replace(unreleased, dated, 1), "utf-8")
    constant.write_text(constant.read_text("utf-8").replace(f'"{version}"', f'"{final}"', 1), "utf-8")
    (root / _RELEASED).write_text(str(Released(final, product_files(root))), "utf-8")
    return f"{final} is released: commit {_CONSTANT}, {_CHANGELOG} and {_RELEASED}"


def main(arguments: list[str]) -> int:
    try:
        print(release(ROOT, datetime.now(UTC).date()) if arguments == ["release"] else check(ROOT))
    except VersionError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
