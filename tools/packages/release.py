"""The version and the moment of a build, and Debian's changelog, all from files of the checkout."""

from __future__ import annotations

import os
import re
import subprocess
from datetime import UTC, datetime, time
from email.utils import format_datetime
from functools import cache
from pathlib import Path

from portal import __version__
from tools.version import sections_of

ROOT = Path(__file__).resolve().parents[2]
NAME = "rspamd-quarantine"
MAINTAINER = "rspamd-quarantine-portal <postmaster@example.org>"


@cache
def epoch() -> int:
    """Return the time that files of the packages get, in seconds since 1970: that of the commit, unless
    SOURCE_DATE_EPOCH is set. Without git, as in an archive, it is the newest release in CHANGELOG.md."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return int(done.stdout)
    newest = next(section.date for section in sections_of(_changelog()) if section.date)
    return int(datetime.combine(newest, time(), UTC).timestamp())


def _changelog() -> str:
    return (ROOT / "CHANGELOG.md").read_text("utf-8")


def debian_version(version: str = __version__) -> str:
    """Return a version as Debian orders it: 0.3.0.dev0 is before 0.3.0."""
    return re.sub(r"\.?(dev|a|b|rc)(\d+)$", r"~\1\2", version) + "-1"


def debian_changelog() -> str:
    """Return Debian's changelog: an entry for each version. What changed is in CHANGELOG.md, which is its neighbour."""
    entries = []
    for section in sections_of(_changelog()):
        moment = datetime.combine(section.date, time(), UTC) if section.date else datetime.fromtimestamp(epoch(), UTC)
        version = debian_version(section.version if section.date else __version__)
        entries.append(
            f"{NAME} ({version}) unstable; urgency=medium\n\n"
            f"  * Version {section.version}: see changelog.gz, and upgrade.md before an upgrade.\n\n"
            f" -- {MAINTAINER}  {format_datetime(moment)}\n"
        )
    return "\n".join(entries)
