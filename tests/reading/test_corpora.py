"""Messages that other projects test with are read without an error. Most of them are not in this repository."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from portal.reading import child, formatted
from tests.paths import DATA, ROOT

FOLDERS = [DATA / "mail-cases", ROOT.parent / "shared" / "corpus"]
MAILS = sorted(path for folder in FOLDERS for path in folder.rglob("*.eml"))


@pytest.mark.parametrize("folder", sorted({path.parent for path in MAILS}), ids=lambda folder: folder.name)
def test_every_message_is_read(folder: Path) -> None:
    for path in MAILS:
        if path.parent == folder:
            with path.open("rb") as file:
                seen = child.read(file.read, lambda: 0)
                file.seek(0)
                html = formatted.formatted(file.read, lambda: 0, 1)["html"]
            assert not seen["cut"], path
            assert bool(html.strip()) <= seen["has_html"], path
            assert not re.search(r"<(?:script|style|meta|link|iframe)|\son\w+=\"|src=\"(?!data:)", html), path
