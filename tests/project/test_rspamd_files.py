"""The shipped files for Rspamd have the version that the portal expects."""

from __future__ import annotations

import re

import pytest

from portal.exporter import RULE_VERSION
from tests.paths import ROOT


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("metadata_exporter.conf", r"^    version = (\d+);$"), ("quarantine.lua", r"^local VERSION = (\d+)$")],
)
def test_version_of_the_shipped_files(name: str, pattern: str) -> None:
    text = (ROOT / "deploy" / "rspamd" / name).read_text("utf-8")
    assert re.findall(pattern, text, re.MULTILINE) == [str(RULE_VERSION)]
