"""The documentation as a site: built strictly, without dead links, and without anything from other hosts."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.paths import ROOT

pytestmark = pytest.mark.slow


@dataclass
class _Page(HTMLParser):
    """The links of an HTML page, the files that it loads, and its anchors."""

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        found = [values[name] for name in ("href", "src") if name in values]
        (self.links if tag == "a" else self.loaded).extend(found)


def build_site(folder: Path) -> Path:
    """Build the site in an empty folder, and return the folder of its pages."""
    shutil.copy(ROOT / "mkdocs.yml", folder)
    shutil.copytree(ROOT / "docs", folder / "docs")
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return folder / "dist" / "site"


def test_the_site_has_no_dead_links_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    site = build_site(tmp_path)
    pages = {}
    for path in site.rglob("*.html"):
        pages[path] = page = _Page()
        page.feed(path.read_text("utf-8"))
    assert len(pages) > 50
    del pages[site / "404.html"]  # its links are those of the start page, for any folder
    dead = []
    for path, page in pages.items():
        for link in page.links + page.loaded:
            address = urlsplit(link)
            if address.scheme in ("http", "https", "mailto") and link in page.links:
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            anchors = pages[target].anchors if target in pages else {unquote(address.fragment)}
            if address.scheme or address.netloc or not target.exists():
                dead.append(f"{path.name}: {link}")
            elif address.fragment and unquote(address.fragment) not in anchors:
                dead.append(f"{path.name}: {link} (no such anchor)")
    assert not dead
    styles = [style.read_text("utf-8") for style in site.rglob("*.css")]
    assert styles and not [
        url for style in styles for url in re.findall(r"(?:url\(|@import )[\"']?(https?:\S+)", style)
    ]


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]
    named = set(re.findall(r"- (?:\w+: )?([\w-]+\.md)$", navigation, re.MULTILINE))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert not pages - named, "add them to nav in mkdocs.yml"
