"""Contact sheets of all pages and states of the portal, and docs/pictures.md, which shows them.

A sheet shows a page, from the left: 320 and 390 pixels wide, dark, in Arabic, in Japanese, 1280 pixels wide.
"""

from __future__ import annotations

import html
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser

from tests.system.console_states import CONSOLE
from tests.system.stage import Stage, State
from tests.system.states import AFTER, BEFORE

SECTIONS: dict[str, list[State]] = {**BEFORE, "Console": CONSOLE, **AFTER}
STATES = [state for section in SECTIONS.values() for state in section]
# Routes that show no page of their own. tests/web/test_gallery.py compares both with all routes.
WITHOUT = {
    "/admin": "leads to the page with a slash",
    "/admin/messages/ID/WAY": "leads to another message",
    "/admin/messages/ID/html": "the frame of its view",
    "/admin/recipients": "leads to the page with a slash",
    "/admin/statistics/days.svg": "a part of the statistics",
    "/admin/statistics/tiers.svg": "a part of the statistics",
    "/api/v1": "leads to the page with a slash",
    "/brand/NAME": "a file",
    "/healthz": "for monitors",
    "/messages/ID/WAY": "leads to another message",
    "/messages/ID/html": "the frame of its view",
    "/metrics": "for monitors",
    "/oidc/NAME/sign-out": "leads to the provider",
    "/PATH": "leads to the page with a slash",
    "/preferences/digest/html": "the frame of the preview",
    "/sign-in/oidc/NAME": "leads to the provider",
    "/sign-in/oidc/NAME/callback": "leads on from the provider",
    "/static/NAME": "a file",
}
LANGUAGES = ("en", "ar", "ja")
_HIGHEST = 1600  # pixels of a page that a sheet shows
# caption, language, width in pixels, colour scheme
_VIEWS: list[tuple[str, str, int, Any]] = [
    ("320", "en", 320, "light"),
    ("390", "en", 390, "light"),
    ("390, dark", "en", 390, "dark"),
    ("390, Arabic", "ar", 390, "light"),
    ("390, Japanese", "ja", 390, "light"),
    ("1280", "en", 1280, "light"),
]


def open_states(stage: Stage) -> Iterator[State]:
    """Open all states one after the other."""
    for state in STATES:
        state.show(stage)
        path = urlsplit(stage.page.url).path.removeprefix("/quarantine")
        pattern = re.sub("[A-Z]{2,}", "[^/]+", re.escape(state.page))
        assert not state.page or re.fullmatch(pattern, path), f"{state.name}: {path}"
        yield state


def take(stage: Stage, language: str, folder: Path) -> None:
    """Save a picture of each state, in the sizes and colours that the sheets show in this language."""
    for state in open_states(stage):
        for number, (_, of_language, width, scheme) in enumerate(_VIEWS):
            if of_language == language:
                stage.page.emulate_media(color_scheme=scheme)
                stage.page.set_viewport_size({"width": width, "height": 600})
                stage.page.evaluate("scrollTo(0, 0)")
                height = stage.page.evaluate("document.documentElement.getBoundingClientRect().height")
                stage.page.set_viewport_size({"width": width, "height": min(int(height) + 1, _HIGHEST)})
                stage.page.screenshot(path=folder / f"{state.name}-{number}.png")


def make_sheets(browser: Browser, pictures: Path, folder: Path) -> None:
    """Make a small sheet of the pictures of each state, half as large."""
    page = browser.new_page(viewport={"width": 1600, "height": 600})
    for state in STATES:
        figures = "".join(
            f'<figure><figcaption>{html.escape(caption)}</figcaption><img src="{state.name}-{number}.png" '
            f'width="{width // 2}"></figure>'
            for number, (caption, _, width, _) in enumerate(_VIEWS)
        )
        source = pictures / "sheet.html"
        source.write_text(
            "<!doctype html><style>body { display: flex; gap: 12px; margin: 0; padding: 12px; background: #ccc; "
            "width: max-content; align-items: start } figure { margin: 0 } figcaption { font: 12px sans-serif; "
            f"margin-bottom: 4px }}</style>{figures}",
            "utf-8",
        )
        page.goto(source.as_uri())
        path = folder / f"page-{state.name}.png"
        page.locator("body").screenshot(path=path)
        subprocess.run(["pngquant", "--force", "--ext", ".png", "--speed", "1", "--nofs", "24", path], check=True)
        print(f"{path}  {path.stat().st_size:,} octets")


def describe(path: Path) -> None:
    """Write the page of the documentation that shows all sheets."""
    lines = [
        "# Pictures of all pages",
        "",
        "`python -m tests.system.screenshots` makes these pictures and this page. Each picture shows a page half",
        "as large, from the left: 320 pixels wide, 390, dark, in Arabic, in Japanese, and 1280 pixels wide; at most",
        f"the first {_HIGHEST} pixels of its height. [images](images/README.md) has the digest.",
    ]
    for section, states in SECTIONS.items():
        lines += ["", f"## {section}"]
        for state in states:
            alt = state.caption.replace("*", "")
            lines += ["", f"{state.caption}:", "", f"![{alt}](images/page-{state.name}.png)"]
    path.write_text("\n".join(lines) + "\n", "utf-8")
